"""An API server on loopback whose exec runs the command on this machine and speaks the real websocket protocol."""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from nephoran_maintenance.domain.pod_files import CONTAINER, MOUNT_PATH, READER
from tests.unit.hooks.fake_servers import FakeCluster, Received, Reply, status_object

GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
FRAME_BYTES = 32 * 1024
SUCCESS = {"metadata": {}, "status": "Success"}


@dataclass
class Inside:
    """What a container sees.

    :param folders: where a path of it is on this machine.
    :param programs: of its image.
    """

    folders: dict[str, Path]
    programs: tuple[str, ...] = ("tar", "ls", "rm")

    def translated(self, argument: str) -> str:
        for path, folder in self.folders.items():
            if argument == path or argument.startswith(f"{path}/"):
                return f"{folder}{argument.removeprefix(path)}"
        return argument


@dataclass
class Spoiled:
    """What goes wrong with the streams of a program.

    :param cut_after_bytes: the connection ends there, without a status.
    :param with_status: the status comes all the same.
    :param while_running: is called after the first block.
    """

    program: str = "tar"
    cut_after_bytes: int | None = None
    with_status: bool = False
    while_running: Callable[[], None] | None = None


class ExecutingCluster(FakeCluster):
    """Runs commands, and helper pods as soon as they are made.

    ``claims`` says by namespace and claim which folder of this machine it is.
    """

    def __init__(self) -> None:
        super().__init__()
        self.inside: dict[tuple[str, str], Inside] = {}
        self.claims: dict[tuple[str, str], Path] = {}
        self.executed: list[tuple[str, list[str]]] = []
        self.created: list[dict[str, Any]] = []
        self.spoiled: Spoiled | None = None
        self.helper_programs: tuple[str, ...] = ("tar", "sh")
        self.answer_to_exec: Reply | None = None
        self.allowed |= {("create", "pods")}

    def __call__(self, request: Received) -> Reply:
        if request.headers.get("upgrade", "").lower() == "websocket":
            self.fail_first(request)
            return self.answer_to_exec or self._exec(request)
        return super().__call__(request)

    def fail_first(self, request: Received) -> None:
        """Note that a stream was asked for; tests put more here."""

    def add_pod(self, namespace: str, name: str, claim: str, path: str, **more: Any) -> dict[str, Any]:
        """Add a running pod whose container ``app`` has a claim at a path."""
        mount = {"name": "data", "mountPath": path, **more.pop("mount", {})}
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": name,
                "namespace": namespace,
                "uid": f"uid-{name}",
                "labels": more.pop("labels", {"app": name.rpartition("-")[0] or name}),
            },
            "spec": {
                "nodeName": more.pop("node", "node-1"),
                "containers": [{"name": "app", "volumeMounts": [mount], **more.pop("container", {})}],
                "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": claim}}],
                **more,
            },
            "status": running("app"),
        }
        self.inside[name, "app"] = Inside({path: self.claims[namespace, claim]})
        return self.put(f"/api/v1/namespaces/{namespace}/pods", pod)

    def add_claim(self, namespace: str, name: str, folder: Path, mode: str = "ReadWriteOnce") -> None:
        self.claims[namespace, name] = folder
        claim = {"kind": "PersistentVolumeClaim", "metadata": {"name": name}, "spec": {"accessModes": [mode]}}
        self.put(f"/api/v1/namespaces/{namespace}/persistentvolumeclaims", claim)

    def add_stateful_set(self, namespace: str, name: str) -> None:
        labels = {"app": name}
        template = {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "app"}]}}
        metadata = {"name": name, "namespace": namespace, "labels": labels}
        spec = {"replicas": 1, "selector": {"matchLabels": labels}, "template": template}
        body = {"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": metadata, "spec": spec}
        self.put(f"/apis/apps/v1/namespaces/{namespace}/statefulsets", body)

    def helpers(self) -> list[dict[str, Any]]:
        """Return the helper pods that are there now."""
        return [found for path, found in self.objects.items() if path.endswith(f"/pods/{READER}")]

    def _post(self, request: Received) -> Reply:
        reply = super()._post(request)
        if reply.status == 201 and request.path.endswith("/pods"):
            self.created.append(request.json)
            stored = self.objects[f"{request.path}/{READER}"]
            stored["metadata"]["uid"] = f"uid-helper-{len(self.created)}"
            stored["status"] = running(CONTAINER)
            namespace = stored["metadata"]["namespace"]
            claim = stored["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"]
            folders = {MOUNT_PATH: self.claims[namespace, claim]}
            self.inside[READER, CONTAINER] = Inside(folders, self.helper_programs)
        return reply

    def _exec(self, request: Received) -> Reply:
        query = parse_qs(request.query_text)
        pod, container, command = request.path.split("/")[-2], query["container"][0], query["command"]
        if request.path.removesuffix("/exec") not in self.objects:
            return status_object(404, "NotFound", f'pods "{pod}" not found')
        self.executed.append((pod, command))
        inside = self.inside[pod, container]
        digest = hashlib.sha1((request.headers["sec-websocket-key"] + GUID).encode()).digest()
        headers = {
            "Upgrade": "websocket",
            "Connection": "Upgrade",
            "Sec-WebSocket-Accept": base64.b64encode(digest).decode(),
            "Sec-WebSocket-Protocol": "v4.channel.k8s.io",
        }
        return Reply(101, headers=headers, stream=lambda wfile: self._stream(Channels(wfile), inside, command))

    def _stream(self, channels: Channels, inside: Inside, command: list[str]) -> None:
        program = command[0]
        if program not in inside.programs:
            message = (
                f'exec failed: unable to start container process: exec: "{program}": executable file not found in $PATH'
            )
            channels.end({"status": "Failure", "reason": "InternalError", "message": message})
            return
        spoiled = self.spoiled if self.spoiled and self.spoiled.program == program and "--help" not in command else None
        arguments = [program, *map(inside.translated, command[1:])]
        child = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT)
        try:
            self._relay(channels, child, spoiled)
        finally:
            child.kill()
            child.communicate()

    @staticmethod
    def _relay(channels: Channels, child: subprocess.Popen[bytes], spoiled: Spoiled | None) -> None:
        assert child.stdout
        assert child.stderr
        sent = 0
        while block := child.stdout.read(FRAME_BYTES):
            if spoiled and spoiled.cut_after_bytes is not None and sent + len(block) > spoiled.cut_after_bytes:
                channels.send(1, block[: spoiled.cut_after_bytes - sent])
                if spoiled.with_status:
                    channels.end(SUCCESS)
                return
            channels.send(1, block)
            sent += len(block)
            if spoiled and spoiled.while_running:
                spoiled.while_running()
                spoiled.while_running = None
        if complaints := child.stderr.read():
            channels.send(2, complaints)
        channels.end(status_of(child.wait()))


ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LC_ALL": "C"}


def status_of(code: int) -> dict[str, Any]:
    if code == 0:
        return SUCCESS
    causes = [{"reason": "ExitCode", "message": str(code)}]
    return {"status": "Failure", "reason": "NonZeroExitCode", "message": "failed", "details": {"causes": causes}}


class Channels:
    """The server's side of an exec: frames that are not masked, each with its channel in front."""

    def __init__(self, wfile: BufferedIOBase) -> None:
        self._wfile = wfile

    def send(self, channel: int, content: bytes) -> None:
        self._frame(2, bytes([channel]) + content)

    def end(self, status: dict[str, Any]) -> None:
        self.send(3, json.dumps(status).encode())
        self._frame(8, (1000).to_bytes(2, "big"))

    def _frame(self, opcode: int, content: bytes) -> None:
        size = len(content)
        head = bytes([0x80 | opcode]) + (
            bytes([size])
            if size < 126
            else b"\x7e" + size.to_bytes(2, "big")
            if size < 65536
            else b"\x7f" + size.to_bytes(8, "big")
        )
        self._wfile.write(head + content)
        self._wfile.flush()


def running(container: str) -> dict[str, Any]:
    state = {"running": {"startedAt": "2026-11-24T12:00:00Z"}}
    return {"phase": "Running", "containerStatuses": [{"name": container, "state": state}]}
