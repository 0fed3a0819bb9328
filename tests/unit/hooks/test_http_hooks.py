"""Weaviate, Prometheus and the image registry against servers on loopback."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from nephoran_maintenance.errors import MaintenanceError, PermanentError, TransientError
from nephoran_maintenance.hooks.async_prometheus import AsyncPrometheusHook
from nephoran_maintenance.hooks.image_registry import ImageRegistryHook
from nephoran_maintenance.hooks.prometheus_api import PrometheusHook
from nephoran_maintenance.hooks.weaviate_api import AsyncWeaviate, WeaviateHook, missing_on
from tests.unit.hooks.fake_servers import Answer, Received, Reply, Server, connection_json, serving

Serve = Callable[[Answer], Server]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Start servers that end with the test."""
    from contextlib import ExitStack

    with ExitStack() as stack:
        yield lambda answer: stack.enter_context(serving(answer))


def connect(monkeypatch: pytest.MonkeyPatch, name: str, url: str, **fields: Any) -> None:
    parts = urlsplit(url)
    value = connection_json(conn_type="http", host=parts.hostname, port=parts.port, schema=parts.scheme, **fields)
    monkeypatch.setenv(f"AIRFLOW_CONN_{name.upper()}", value)


# --------------------------------------------------------------------------------------------------------- Weaviate


class FakeWeaviate:
    def __init__(self) -> None:
        self.replies: dict[str, Reply] = {
            "/v1/.well-known/ready": Reply(200),
            "/v1/meta": Reply(200, {"version": "1.39.0"}),
            "/v1/cluster/statistics": Reply(200, {"synchronized": True, "statistics": []}),
            "/v1/nodes": Reply(200, {"nodes": [{"name": "weaviate-0", "status": "HEALTHY"}]}),
            "/v1/schema": Reply(200, {"classes": [{"class": "TelecomKnowledge"}]}),
            "/v1/graphql": Reply(200, {"data": {"Aggregate": {"TelecomKnowledge": [{"meta": {"count": 2000}}]}}}),
            "/v1/objects/TelecomKnowledge/id-1": Reply(200, {"id": "id-1"}),
        }

    def __call__(self, request: Received) -> Reply:
        if request.path != "/v1/.well-known/ready" and request.headers.get("authorization") != "Bearer weaviate-key":
            return Reply(401, {"error": [{"message": "anonymous access not enabled, key weaviate-key"}]})
        return self.replies.get(request.path, Reply(404, ""))


@pytest.fixture
def fake_weaviate() -> FakeWeaviate:
    return FakeWeaviate()


@pytest.fixture
def weaviate(fake_weaviate: FakeWeaviate, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> WeaviateHook:
    connect(monkeypatch, "weaviate_test", serve(fake_weaviate).url, password="weaviate-key")
    return WeaviateHook("weaviate_test")


def test_weaviate_answers(weaviate: WeaviateHook) -> None:
    assert weaviate.ready()
    assert weaviate.version() == "1.39.0"
    assert weaviate.synchronized()
    assert weaviate.nodes()[0]["status"] == "HEALTHY"
    assert weaviate.schema()[0]["class"] == "TelecomKnowledge"
    assert weaviate.count("TelecomKnowledge") == 2000
    assert weaviate.get_object("TelecomKnowledge", "id-1") == {"id": "id-1"}
    assert weaviate.get_object("TelecomKnowledge", "id-2") is None


def test_weaviate_at_another_address_keeps_the_key(
    weaviate: WeaviateHook, fake_weaviate: FakeWeaviate, serve: Serve
) -> None:
    other = serve(fake_weaviate)
    assert weaviate.at(other.url).version() == "1.39.0"
    assert len(other.received) == 1


def test_weaviate_not_ready_has_an_empty_body(weaviate: WeaviateHook, fake_weaviate: FakeWeaviate) -> None:
    fake_weaviate.replies["/v1/.well-known/ready"] = Reply(503)
    assert not weaviate.ready()


@pytest.mark.parametrize(
    ("path", "reply", "missing"),
    [
        (None, None, ""),
        ("/v1/.well-known/ready", Reply(503), "it is not ready"),
        (
            "/v1/objects/TelecomKnowledge/id-1",
            Reply(404),
            "it does not have the object id-1 of TelecomKnowledge",
        ),
        ("/v1/cluster/statistics", Reply(200, {"synchronized": False}), "the cluster is not synchronized"),
        ("/v1/nodes", Reply(200, {"nodes": [{"status": "UNHEALTHY"}]}), "it sees 0 of 1 nodes healthy"),
    ],
    ids=["nothing", "not-ready", "no-object", "not-synchronized", "node-missing"],
)
def test_weaviate_says_what_a_node_lacks(
    weaviate: WeaviateHook, fake_weaviate: FakeWeaviate, path: str | None, reply: Reply, missing: str
) -> None:
    if path:
        fake_weaviate.replies[path] = reply
    assert missing_on(weaviate, collection="TelecomKnowledge", object_id="id-1", healthy_nodes=1) == missing


def test_weaviate_query_errors_come_with_status_200(weaviate: WeaviateHook, fake_weaviate: FakeWeaviate) -> None:
    fake_weaviate.replies["/v1/graphql"] = Reply(200, {"errors": [{"message": "no such class"}]})
    with pytest.raises(PermanentError, match="no such class") as error:
        weaviate.count("TelecomKnowledge")
    assert error.value.reference == "weaviate-query-failed"


@pytest.mark.parametrize("name", ["", "lower", "A-B", "A{x}", "../meta"])
def test_weaviate_refuses_names_that_are_no_collections(weaviate: WeaviateHook, name: str) -> None:
    with pytest.raises(PermanentError) as error:
        weaviate.count(name)
    assert error.value.reference == "weaviate-collection-invalid"


def test_weaviate_with_a_wrong_key_is_refused_without_showing_it(
    serve: Serve, fake_weaviate: FakeWeaviate, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect(
        monkeypatch, "weaviate_test", serve(lambda request: Reply(401, "bad key wrong-key")).url, password="wrong-key"
    )
    with pytest.raises(PermanentError) as error:
        WeaviateHook("weaviate_test").meta()
    assert error.value.reference == "weaviate-unauthorized"
    assert "wrong-key" not in str(error.value)
    assert "weaviate_test" in error.value.hint


async def test_weaviate_answers_in_a_loop(weaviate: WeaviateHook) -> None:
    found = await AsyncWeaviate.connect("weaviate_test")
    assert await found.ready()
    assert await found.synchronized()
    assert (await found.meta())["version"] == "1.39.0"


# ------------------------------------------------------------------------------------------------------- Prometheus


def prometheus(monkeypatch: pytest.MonkeyPatch, server: Server) -> PrometheusHook:
    connect(monkeypatch, "prometheus_test", server.url)
    return PrometheusHook("prometheus_test")


def test_prometheus_gives_series_with_their_samples(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    vector = {"resultType": "vector", "result": [{"metric": {"app": "rag-api"}, "value": [1000.5, "0.25"]}]}
    server = serve(lambda request: Reply(200, {"status": "success", "data": vector}))
    series = prometheus(monkeypatch, server).query("rate(x[1m])", at=datetime(2026, 11, 23, tzinfo=UTC))
    assert series[0].labels == {"app": "rag-api"}
    assert series[0].value == 0.25
    assert series[0].samples[0][0] == datetime.fromtimestamp(1000.5, UTC)
    assert server.received[0].query == {"query": "rate(x[1m])", "time": "1795392000.000"}


def test_prometheus_ranges_and_scalars(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = {"resultType": "matrix", "result": [{"metric": {}, "values": [[1, "1"], [2, "NaN"]]}]}
    scalar = {"resultType": "scalar", "result": [1, "42"]}
    server = serve(lambda request: Reply(200, {"data": matrix if "range" in request.path else scalar}))
    hook = prometheus(monkeypatch, server)
    start = datetime(2026, 11, 23, tzinfo=UTC)
    series = hook.query_range("x", start, start + timedelta(minutes=1), timedelta(seconds=15))
    assert [value for _, value in series[0].samples[:1]] == [1.0]
    assert hook.query("42")[0].value == 42.0
    assert server.received[0].query["step"] == "15"


def test_prometheus_names_a_bad_expression(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve(lambda request: Reply(400, {"status": "error", "error": "parse error: unexpected )"}))
    with pytest.raises(PermanentError, match="parse error") as error:
        prometheus(monkeypatch, server).query("rate(")
    assert error.value.reference == "prometheus-query-invalid"


def test_prometheus_that_is_away_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    connect(monkeypatch, "prometheus_test", "http://127.0.0.1:1")
    with pytest.raises(TransientError, match=r"Prometheus at 127\.0\.0\.1:1 does not answer") as error:
        PrometheusHook("prometheus_test").ready()
    assert error.value.reference == "prometheus-unreachable"


async def test_prometheus_answers_in_a_loop_as_it_does_outside(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    vector = {"resultType": "vector", "result": [{"metric": {"pod": "a"}, "value": [1000.5, "NaN"]}]}
    server = serve(lambda request: Reply(200, {"status": "success", "data": vector}))
    connect(monkeypatch, "prometheus_test", server.url, password="a-long-token")
    async with AsyncPrometheusHook("prometheus_test") as hook:
        series = await hook.query("rate(x[1m])", at=datetime(2026, 11, 23, tzinfo=UTC))
    assert series[0].labels == {"pod": "a"}
    assert math.isnan(series[0].value)
    assert server.received[0].query == {"query": "rate(x[1m])", "time": "1795392000.000"}
    assert server.received[0].headers["authorization"] == "Bearer a-long-token"


@pytest.mark.parametrize(
    ("reply", "reference"),
    [
        (Reply(400, {"status": "error", "error": "parse error"}), "prometheus-query-invalid"),
        (Reply(401, "no"), "prometheus-unauthorized"),
        (Reply(503, "starting"), "prometheus-unavailable"),
        (Reply(200, "<html>"), "prometheus-unavailable"),
        (Reply(hang_up=True), "prometheus-unreachable"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_prometheus_names_its_failures_in_a_loop(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, reply: Reply, reference: str
) -> None:
    connect(monkeypatch, "prometheus_test", serve(lambda request: reply).url)
    async with AsyncPrometheusHook("prometheus_test") as hook:
        with pytest.raises(MaintenanceError) as error:
            await hook.query("x")
    assert error.value.reference == reference


# --------------------------------------------------------------------------------------------------- image registry

INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"


class FakeRegistry:
    """One repository ``nephoran/rag-api`` with v1 (an image) and v2 (an index of two)."""

    def __init__(self) -> None:
        self.challenge = ""
        self.accepted = ""
        manifest = {"config": {"digest": "sha256:config"}}
        other = {"platform": {"os": "linux", "architecture": "arm64"}, "digest": "sha256:arm"}
        ours = {"platform": {"os": "linux", "architecture": "amd64"}, "digest": "sha256:amd"}
        self.manifests: dict[str, tuple[str, Any]] = {
            "v1": ("sha256:one", manifest),
            "v2": ("sha256:two", {"manifests": [other, ours]}),
            "sha256:amd": ("sha256:amd", manifest),
        }

    def __call__(self, request: Received) -> Reply:
        if request.path == "/token":
            return Reply(200, {"token": "the-token"})
        if self.challenge and request.headers.get("authorization") != self.accepted:
            return Reply(401, {"errors": []}, {"WWW-Authenticate": self.challenge})
        if request.path.endswith("/tags/list"):
            if "last" in request.query:
                return Reply(200, {"tags": ["v3"]})
            link = '</v2/nephoran/rag-api/tags/list?last=v2&n=2>; rel="next"'
            return Reply(200, {"tags": ["v1", "v2"]}, {"Link": link})
        if "/blobs/" in request.path:
            return Reply(200, {"config": {"Labels": {"org.opencontainers.image.version": "v1"}}})
        found = self.manifests.get(request.path.rpartition("/")[2])
        if found is None:
            return Reply(404, {"errors": [{"code": "MANIFEST_UNKNOWN"}]})
        body = b"" if request.method == "HEAD" else json.dumps(found[1]).encode()
        return Reply(200, body, {"Docker-Content-Digest": found[0], "Content-Type": MANIFEST})


@pytest.fixture
def fake_registry() -> FakeRegistry:
    return FakeRegistry()


@pytest.fixture
def registry_server(fake_registry: FakeRegistry, serve: Serve) -> Server:
    return serve(fake_registry)


def image(server: Server, version: str = "") -> str:
    return f"127.0.0.1:{server.port}/nephoran/rag-api{version}"


def test_registry_lists_tags_over_all_pages(registry_server: Server) -> None:
    assert ImageRegistryHook(plain_http=True).tags(image(registry_server)) == ["v1", "v2", "v3"]


def test_registry_resolves_a_tag_to_its_digest(registry_server: Server) -> None:
    hook = ImageRegistryHook(plain_http=True)
    assert hook.digest(image(registry_server, ":v1")) == "sha256:one"
    assert hook.find_digest(image(registry_server, ":v9")) is None
    assert INDEX in registry_server.received[0].headers["accept"]


def test_registry_names_an_image_that_it_does_not_have(registry_server: Server) -> None:
    with pytest.raises(PermanentError, match="no image 127") as error:
        ImageRegistryHook(plain_http=True).digest(image(registry_server, ":v9"))
    assert error.value.reference == "image-not-found"


@pytest.mark.parametrize("version", [":v1", ":v2"], ids=["image", "index"])
def test_registry_reads_the_labels_of_an_image(registry_server: Server, version: str) -> None:
    labels = ImageRegistryHook(plain_http=True).config_labels(image(registry_server, version))
    assert labels == {"org.opencontainers.image.version": "v1"}


def test_registry_gets_a_token_with_the_login_of_the_connection(
    registry_server: Server, fake_registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_registry.challenge = f'Bearer realm="{registry_server.url}/token",service="registry"'
    fake_registry.accepted = "Bearer the-token"
    connect(monkeypatch, "registry_test", registry_server.url, login="puller", password="pull-password")
    assert ImageRegistryHook("registry_test").digest(image(registry_server, ":v1")) == "sha256:one"
    asked = registry_server.requests("GET", "/token")[0]
    assert asked.headers["authorization"] == "Basic " + base64.b64encode(b"puller:pull-password").decode()
    assert asked.query == {"service": "registry", "scope": "repository:nephoran/rag-api:pull"}


def test_registry_login_is_not_sent_to_another_registry(
    registry_server: Server, fake_registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_registry.challenge = 'Basic realm="x"'
    connect(monkeypatch, "registry_test", "http://registry.example:5000", login="puller", password="pull-password")
    with pytest.raises(PermanentError) as error:
        ImageRegistryHook("registry_test").digest(image(registry_server, ":v1"))
    assert error.value.reference == "image-registry-unauthorized"
    assert all("authorization" not in request.headers for request in registry_server.received)


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        (lambda request: Reply(503, "starting"), "image-registry-unavailable"),
        (lambda request: Reply(hang_up=True), "image-registry-unreachable"),
    ],
    ids=["503", "connection-broken"],
)
def test_registry_that_is_down_is_named(serve: Serve, answer: Answer, reference: str) -> None:
    server = serve(answer)
    with pytest.raises(MaintenanceError) as error:
        ImageRegistryHook(plain_http=True).digest(image(server, ":v1"))
    assert error.value.reference == reference
    assert f"127.0.0.1:{server.port}" in error.value.message
    assert isinstance(error.value, TransientError)


def test_a_proxy_of_the_environment_is_not_asked_for_a_forwarded_port(
    weaviate: WeaviateHook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    assert weaviate.version() == "1.39.0"


def test_a_netrc_does_not_replace_the_key_of_the_connection(
    weaviate: WeaviateHook, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login somebody password something\n")
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setattr("nephoran_maintenance.hooks.http_api.LOOPBACK", ())
    assert weaviate.version() == "1.39.0"
