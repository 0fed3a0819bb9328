"""A forwarded port, against a server that speaks the API server's side of the protocol."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any

import pytest
import requests
from websockets.datastructures import Headers
from websockets.http11 import Response
from websockets.sync.server import Server, ServerConnection, serve
from websockets.typing import Subprotocol

from nephoran_maintenance.errors import PermanentError
from nephoran_maintenance.hooks.cluster import ClusterHook
from tests.unit.hooks.fake_servers import connection_json, kube_config, pod

PORT = 8080


class FakeApiServer:
    """Serves the pod ``p-1``; its port answers HTTP with what was sent to it, in pieces."""

    def __init__(self) -> None:
        self.paths: list[str] = []
        self.tokens: list[str | None] = []
        self.refuse = False
        self.forbid = 0
        """So many streams are answered with 403."""
        self.forbidden = 0
        self.ready = HTTPStatus.OK

    def plain(self, connection: ServerConnection, request: Any) -> Response | None:
        if request.path.startswith("/api/v1/namespaces/ns/pods/p-1/portforward"):
            if self.forbidden == self.forbid:
                return None
            self.forbidden += 1
            return self.answer(HTTPStatus.FORBIDDEN, {"kind": "Status", "reason": "Forbidden"})
        if request.path == "/readyz":
            return self.answer(self.ready, {})
        if request.path == "/api/v1/namespaces/ns/pods/p-1":
            return self.answer(HTTPStatus.OK, pod("p-1", "a"))
        return self.answer(HTTPStatus.NOT_FOUND, {"kind": "Status", "reason": "NotFound"})

    @staticmethod
    def answer(status: HTTPStatus, content: Any) -> Response:
        body = json.dumps(content).encode()
        headers = Headers({"Content-Type": "application/json", "Content-Length": str(len(body)), "Connection": "close"})
        return Response(status.value, status.phrase, headers, body)

    def forward(self, connection: ServerConnection) -> None:
        assert connection.request is not None
        self.paths.append(connection.request.path)
        self.tokens.append(connection.request.headers.get("authorization"))
        for channel in (0, 1):
            connection.send(bytes([channel]) + PORT.to_bytes(2, "little"))
        if self.refuse:
            connection.send(bytes([1]) + b"connection refused")
            return
        received = b""
        for message in connection:
            assert isinstance(message, bytes)
            received += message[1:]
            if b"\r\n\r\n" in received:
                body = json.dumps({"head": received.decode()}).encode()
                answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body
                for start in range(0, len(answer), 7):
                    connection.send(bytes([0]) + answer[start : start + 7])
                received = b""


@pytest.fixture
def api_server() -> FakeApiServer:
    return FakeApiServer()


@pytest.fixture
def cluster(api_server: FakeApiServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[ClusterHook]:
    server: Server = serve(
        api_server.forward,
        "127.0.0.1",
        0,
        process_request=api_server.plain,
        subprotocols=[Subprotocol("v4.channel.k8s.io")],
    )
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    extra = {"kube_config": kube_config(f"http://127.0.0.1:{server.socket.getsockname()[1]}")}
    monkeypatch.setenv("AIRFLOW_CONN_KUBERNETES_TEST", connection_json(conn_type="kubernetes", extra=extra))
    yield ClusterHook("kubernetes_test")
    server.shutdown()
    thread.join()


def test_carries_an_authenticated_request_to_the_named_pod(cluster: ClusterHook, api_server: FakeApiServer) -> None:
    with cluster.port_forward("ns", "p-1", PORT) as url:
        answer = requests.get(f"{url}/v1/meta", headers={"Authorization": "Bearer weaviate-key"}, timeout=10)
    assert "authorization: bearer weaviate-key" in answer.json()["head"].lower()
    assert answer.json()["head"].startswith("GET /v1/meta HTTP/1.1")
    assert api_server.paths == ["/api/v1/namespaces/ns/pods/p-1/portforward?ports=8080"]
    assert api_server.tokens == ["Bearer token-of-the-test"]


def test_listens_on_loopback_only_and_ends_with_the_block(cluster: ClusterHook) -> None:
    with cluster.port_forward("ns", "p-1", PORT) as url:
        assert url.startswith("http://127.0.0.1:")
        assert requests.get(url, timeout=10).ok
    with pytest.raises(requests.ConnectionError):
        requests.get(url, timeout=10)


def test_several_connections_at_once_have_streams_of_their_own(cluster: ClusterHook, api_server: FakeApiServer) -> None:
    answers: list[str] = []

    def ask(url: str, number: int) -> None:
        answers.append(requests.get(f"{url}/{number}", timeout=20).json()["head"].split()[1])

    with cluster.port_forward("ns", "p-1", PORT) as url:
        threads = [threading.Thread(target=ask, args=(url, number)) for number in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(answers) == [f"/{number}" for number in range(5)]
    assert len(api_server.paths) == 5


def test_a_port_that_refuses_closes_the_connection(cluster: ClusterHook, api_server: FakeApiServer) -> None:
    api_server.refuse = True
    with cluster.port_forward("ns", "p-1", PORT) as url, pytest.raises(requests.ConnectionError):
        requests.get(url, timeout=10)


def test_a_stream_that_was_refused_is_asked_for_once_more_when_the_api_server_is_ready(
    cluster: ClusterHook, api_server: FakeApiServer
) -> None:
    api_server.forbid = 1
    with cluster.port_forward("ns", "p-1", PORT) as url:
        assert requests.get(url, timeout=10).ok
    assert api_server.forbidden == 1


@pytest.mark.parametrize(
    ("ready", "asked", "said"),
    [
        pytest.param(HTTPStatus.FORBIDDEN, 1, "cluster-unavailable", id="it just starts"),
        pytest.param(HTTPStatus.INTERNAL_SERVER_ERROR, 1, "cluster-unavailable", id="it is not ready"),
        pytest.param(HTTPStatus.OK, 2, "cluster-forbidden", id="it is ready"),
    ],
)
def test_a_stream_that_is_refused_closes_the_connection_and_the_log_says_why(
    ready: HTTPStatus,
    asked: int,
    said: str,
    cluster: ClusterHook,
    api_server: FakeApiServer,
    caplog: pytest.LogCaptureFixture,
) -> None:
    api_server.forbid, api_server.ready = 5, ready
    caplog.set_level("INFO")
    with cluster.port_forward("ns", "p-1", PORT) as url, pytest.raises(requests.ConnectionError):
        requests.get(url, timeout=10)
    assert api_server.forbidden == asked
    assert f"[{said}]" in caplog.text


def test_a_pod_that_is_not_there_is_named(cluster: ClusterHook) -> None:
    with pytest.raises(PermanentError) as error, cluster.port_forward("ns", "p-2", PORT):
        pass
    assert error.value.reference == "not-found"
    assert "p-2" in error.value.message
