"""Real servers on loopback that stand in for what the hooks talk to: each test says what they answer."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from http.client import responses
from io import BufferedIOBase
from socketserver import StreamRequestHandler, ThreadingTCPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit


@dataclass
class Received:
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes
    client: tuple[str, int]
    query_text: str = ""
    """As it was sent: a key may come more than once."""

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Reply:
    status: int = 200
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    before: Callable[[], None] | None = None
    hang_up: bool = False
    stream: Callable[[BufferedIOBase], None] | None = None
    """Goes on writing after the head, and then the connection ends."""

    def encoded(self) -> bytes:
        if self.body is None:
            return b""
        if isinstance(self.body, bytes):
            return self.body
        if isinstance(self.body, str):
            return self.body.encode()
        return json.dumps(self.body).encode()


Answer = Callable[[Received], Reply]


class Server:
    """What was received, in order, and the address to talk to."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.received: list[Received] = []
        server = self

        class Handler(StreamRequestHandler):
            """As much of HTTP/1.1 as the clients of the hooks speak; the library's own handler takes twice as long."""

            wbufsize = 64 * 1024  # head and body in one packet, or each answer waits 40 ms for an acknowledgement

            def handle(self) -> None:
                while (request := self.receive()) is not None:
                    reply = server.reply_to(request)
                    if reply.hang_up and reply.body is None:
                        return
                    self.send(reply, with_body=request.method != "HEAD")
                    if reply.stream:
                        reply.stream(self.wfile)
                        return
                    if reply.hang_up or request.headers.get("connection") == "close":
                        return

            def receive(self) -> Received | None:
                line = self.rfile.readline()
                if not line:
                    return None
                method, target, _ = line.decode().split()
                headers = {}
                while line := self.rfile.readline().strip():
                    key, _, value = line.decode("latin-1").partition(":")
                    headers[key.lower()] = value.strip()
                if headers.get("expect") == "100-continue":
                    # A client that asks before it sends its body waits a second for the answer.
                    self.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                    self.wfile.flush()
                length = int(headers.get("content-length") or 0)
                body = self.rfile.read(length)
                if len(body) < length:
                    return None  # the client was killed while it sent
                parts = urlsplit(target)
                return Received(
                    method,
                    parts.path,
                    dict(parse_qsl(parts.query, keep_blank_values=True)),
                    headers,
                    body,
                    self.client_address,
                    parts.query,
                )

            def send(self, reply: Reply, *, with_body: bool) -> None:
                body = reply.encoded()
                headers = {"Date": formatdate(usegmt=True), "Content-Length": str(len(body)), **reply.headers}
                phrase = responses.get(reply.status, "")
                head = "".join(f"{key}: {value}\r\n" for key, value in headers.items())
                self.wfile.write(f"HTTP/1.1 {reply.status} {phrase}\r\n{head}\r\n".encode("latin-1"))
                self.wfile.write(body if with_body else b"")
                self.wfile.flush()

        class Listener(ThreadingTCPServer):
            allow_reuse_address = True
            daemon_threads = True
            request_queue_size = 512  # the default of 5 would drop connections that come at once

            def handle_error(self, request: Any, client_address: Any) -> None:
                """Say nothing when a client hangs up: several tests do, on purpose."""
                if not isinstance(sys.exception(), OSError):
                    super().handle_error(request, client_address)

        self._server = Listener(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)

    def reply_to(self, request: Received) -> Reply:
        """Note a request and return what it is answered."""
        self.received.append(request)
        reply = self.answer(request)
        if reply.before:
            reply.before()
        return reply

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def requests(self, method: str | None = None, path: str | None = None) -> list[Received]:
        return [
            request
            for request in self.received
            if (method is None or request.method == method) and (path is None or request.path == path)
        ]

    @contextmanager
    def running(self) -> Iterator[Server]:
        self._thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()


@contextmanager
def serving(answer: Answer) -> Iterator[Server]:
    """Run a server whose every answer the given function decides."""
    with Server(answer).running() as server:
        yield server


def status_object(code: int, reason: str, message: str) -> Reply:
    body = {
        "kind": "Status",
        "apiVersion": "v1",
        "status": "Failure",
        "code": code,
        "reason": reason,
        "message": message,
    }
    return Reply(code, body)


def _is_selected(labels: dict[str, str], selector: str) -> bool:
    """Return whether labels fit a selector of equalities, and of keys alone."""
    terms = [term.partition("=") for term in selector.split(",")]
    return all(key in labels and (not equals or labels[key] == value) for key, equals, value in terms)


class FakeCluster:
    """An API server with objects in memory, addressed by path; ``fail`` answers in its place while it is set."""

    def __init__(self) -> None:
        self.objects: dict[str, dict[str, Any]] = {}
        self.logs: dict[tuple[str, str, bool], str] = {}
        self.fail: Callable[[Received], Reply | None] | None = None
        self.allowed: set[tuple[str, str]] = set()
        self.version = 100
        self.extra: dict[str, Reply] = {}
        self.ready = 200

    def put(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Store an object below a collection's path, such as ``/api/v1/namespaces/n/pods``."""
        self.version += 1
        body = json.loads(json.dumps(body))
        body.setdefault("metadata", {})["resourceVersion"] = str(self.version)
        self.objects[f"{path}/{body['metadata']['name']}"] = body
        return body

    def __call__(self, request: Received) -> Reply:
        if request.path == "/readyz" and request.path not in self.extra:
            return Reply(self.ready)
        if self.fail is not None and (reply := self.fail(request)) is not None:
            return reply
        if request.path in self.extra:
            return self.extra[request.path]
        if request.path == "/version":
            return Reply(200, {"gitVersion": "v1.36.4"})
        if request.path.endswith("/selfsubjectaccessreviews"):
            attributes = request.json["spec"]["resourceAttributes"]
            allowed = (attributes["verb"], attributes["resource"]) in self.allowed
            return Reply(201, {**request.json, "status": {"allowed": allowed}})
        if request.path.endswith("/selfsubjectreviews"):
            return Reply(201, {"status": {"userInfo": {"username": "system:serviceaccount:ns:upgrade"}}})
        if request.path.endswith("/log"):
            return self._log(request)
        return getattr(self, f"_{request.method.lower()}")(request)

    def _log(self, request: Received) -> Reply:
        pod = request.path.split("/")[-2]
        key = (pod, request.query["container"], request.query.get("previous") == "true")
        if key not in self.logs:
            return status_object(400, "BadRequest", "previous terminated container not found")
        return Reply(200, self.logs[key], {"Content-Type": "text/plain"})

    def _get(self, request: Received) -> Reply:
        if request.path in self.objects:
            return Reply(200, self.objects[request.path])
        items = [
            value
            for path, value in self.objects.items()
            if path.rpartition("/")[0] == request.path or self._in_any_namespace(path, request.path)
        ]
        plural = request.path.rpartition("/")[2]
        if request.path.rpartition("/")[2][-1:] != "s":
            return status_object(404, "NotFound", f'"{plural}" not found')
        if selector := request.query.get("labelSelector"):
            items = [item for item in items if _is_selected(item["metadata"].get("labels", {}), selector)]
        kind = items[0].get("kind", "Thing") if items else "Thing"
        start = int(request.query.get("continue", "0"))
        limit = int(request.query.get("limit", "500"))
        metadata = {"continue": str(start + limit)} if len(items) > start + limit else {}
        stripped = [{key: value for key, value in item.items() if key not in ("kind", "apiVersion")} for item in items]
        page = stripped[start : start + limit]
        return Reply(200, {"kind": f"{kind}List", "apiVersion": "v1", "metadata": metadata, "items": page})

    @staticmethod
    def _in_any_namespace(path: str, collection: str) -> bool:
        head, _, plural = collection.rpartition("/")
        folder = path.rpartition("/")[0]
        return folder.startswith(f"{head}/namespaces/") and folder.endswith(f"/{plural}")

    def _post(self, request: Received) -> Reply:
        name = request.json["metadata"]["name"]
        if f"{request.path}/{name}" in self.objects:
            return status_object(409, "AlreadyExists", f'"{name}" already exists')
        if request.query.get("dryRun"):
            return Reply(201, request.json)
        return Reply(201, self.put(request.path, request.json))

    def _put(self, request: Received) -> Reply:
        stored = self.objects.get(request.path)
        if stored is None:
            return status_object(404, "NotFound", "not found")
        given = request.json["metadata"].get("resourceVersion")
        if given is not None and given != stored["metadata"]["resourceVersion"]:
            return status_object(409, "Conflict", "the object has been modified")
        return Reply(200, self.put(request.path.rpartition("/")[0], request.json))

    def _patch(self, request: Received) -> Reply:
        stored = self.objects.get(request.path)
        if stored is None:
            return status_object(404, "NotFound", "not found")
        patch = request.json
        if isinstance(patch, list):
            for operation in patch:
                if operation["op"] == "test" and operation["path"] == "/metadata/resourceVersion":
                    if operation["value"] != stored["metadata"]["resourceVersion"]:
                        message = "testing value /metadata/resourceVersion failed: test failed"
                        return status_object(422, "Invalid", message)
            return Reply(200, stored)
        given = patch.get("metadata", {}).get("resourceVersion")
        if given is not None and given != stored["metadata"]["resourceVersion"]:
            return status_object(409, "Conflict", "the object has been modified")
        merged = _merged(stored, patch)
        return Reply(200, merged if request.query.get("dryRun") else self.put(request.path.rpartition("/")[0], merged))

    def _delete(self, request: Received) -> Reply:
        stored = self.objects.get(request.path)
        if stored is None:
            return status_object(404, "NotFound", "not found")
        for key, value in request.json.get("preconditions", {}).items():
            if value != stored["metadata"].get(key):
                return status_object(409, "Conflict", f"the {key} in the precondition does not match")
        del self.objects[request.path]
        return Reply(200, {"kind": "Status", "status": "Success"})


def _merged(old: Any, new: Any) -> Any:
    if not isinstance(old, dict) or not isinstance(new, dict):
        return new
    return {**old, **{key: _merged(old.get(key), value) for key, value in new.items()}}


def kube_config(server: str, token: str = "token-of-the-test") -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "lab",
        "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "upgrade"}}],
        "clusters": [{"name": "lab", "cluster": {"server": server}}],
        "users": [{"name": "upgrade", "user": {"token": token}}],
    }


def connection_json(**fields: Any) -> str:
    return json.dumps(fields)


def deployment(name: str, *, replicas: int = 2, ready: int | None = None, labels: dict[str, str] | None = None) -> Any:
    labels = labels or {"app": name}
    count = replicas if ready is None else ready
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": "ns", "labels": labels, "generation": 2, "uid": f"uid-{name}"},
        "spec": {
            "replicas": replicas,
            "progressDeadlineSeconds": 600,
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": {"containers": [{"name": name, "image": f"r/{name}:v2"}]},
            },
        },
        "status": {
            "observedGeneration": 2,
            "replicas": replicas,
            "updatedReplicas": replicas,
            "readyReplicas": count,
            "availableReplicas": count,
            "unavailableReplicas": replicas - count,
            "conditions": [
                {"type": "Progressing", "status": "True", "reason": "NewReplicaSetAvailable"},
                {"type": "Available", "status": "True" if count == replicas else "False"},
            ],
        },
    }


def pod(name: str, app: str, *, ready: bool = True, state: dict[str, Any] | None = None, restarts: int = 0) -> Any:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": "ns",
            "labels": {"app": app, "pod-template-hash": "abc"},
            "creationTimestamp": "2026-11-23T10:00:00Z",
            "ownerReferences": [{"kind": "ReplicaSet", "name": f"{app}-abc", "controller": True}],
        },
        "spec": {"nodeName": "node-1", "containers": [{"name": app, "image": f"r/{app}:v2"}]},
        "status": {
            "phase": "Running" if ready else "Pending",
            "startTime": "2026-11-23T10:00:01Z",
            "conditions": [{"type": "Ready", "status": "True" if ready else "False"}],
            "containerStatuses": [
                {
                    "name": app,
                    "image": f"r/{app}:v2",
                    "imageID": f"r/{app}@sha256:1",
                    "ready": ready,
                    "restartCount": restarts,
                    "state": state or {"running": {"startedAt": "2026-11-23T10:00:02Z"}},
                }
            ],
        },
    }


def event(name: str, about: tuple[str, str], reason: str, message: str, *, count: int = 1) -> Any:
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": name, "namespace": "ns"},
        "involvedObject": {"kind": about[0], "name": about[1], "namespace": "ns"},
        "type": "Warning",
        "reason": reason,
        "message": message,
        "count": count,
        "firstTimestamp": "2026-11-23T10:00:03Z",
        "lastTimestamp": "2026-11-23T10:00:13Z",
    }
