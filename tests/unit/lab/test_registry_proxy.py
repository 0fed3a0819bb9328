from __future__ import annotations

import http.client
import json
from urllib.parse import urlsplit

import pytest

from lab import oci
from lab.registry_proxy import ADMIN_PATH, RegistryProxy
from tests.unit.lab.conftest import ServeInThread
from tests.unit.lab.fake_registry import FakeRegistry
from tests.unit.lab.test_oci import image

KUBELET = "containerd/1.6"


@pytest.fixture
def proxy(serve: ServeInThread) -> str:
    registry = FakeRegistry()
    serve(registry)
    url = serve(RegistryProxy(("127.0.0.1", 0), ("127.0.0.1", registry.server_port)))
    oci.push(image(), url, "team/app", "v1")
    return url


def call(
    url: str, method: str, path: str, *, client: str = KUBELET, chunks: list[bytes] | None = None
) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=10)
    try:
        connection.request(method, path, headers={"User-Agent": client}, body=iter(chunks) if chunks else None)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def test_passes_pushes_and_reads_through(proxy: str) -> None:
    assert oci.resolve_tag(proxy, "team/app", "v1") == image().digest
    assert call(proxy, "GET", "/v2/team/app/manifests/v1") == (200, image().manifest)


def test_passes_on_a_body_in_chunks(proxy: str) -> None:
    status, _ = call(
        proxy, "PUT", "/v2/team/app/manifests/v9", chunks=[image("v9").manifest[:10], image("v9").manifest[10:]]
    )
    assert status == 201
    assert oci.resolve_tag(proxy, "team/app", "v9") == image("v9").digest


@pytest.mark.parametrize("reference", ["v1", image().digest], ids=["by tag", "by digest"])
def test_answers_503_once_to_the_kubelet_and_not_to_others(proxy: str, reference: str) -> None:
    status, _ = call(proxy, "PUT", f"{ADMIN_PATH}?repository=team/app&reference=v1")
    assert status == 200
    path = f"/v2/team/app/manifests/{reference}"
    assert call(proxy, "GET", path, client="python")[0] == 200
    assert call(proxy, "HEAD", path)[0] == 503
    assert call(proxy, "HEAD", path)[0] == 200


def test_answers_only_for_the_armed_repository_and_reference(proxy: str) -> None:
    oci.push(image("v2"), proxy, "team/app", "v2")
    oci.push(image(), proxy, "team/other", "v1")
    call(proxy, "PUT", f"{ADMIN_PATH}?repository=team/app&reference=v1&count=5&status=500")
    assert call(proxy, "GET", "/v2/team/app/manifests/v2")[0] == 200
    assert call(proxy, "GET", "/v2/team/other/manifests/v1")[0] == 200
    assert call(proxy, "GET", "/v2/team/app/manifests/v1")[0] == 500


def test_lists_what_is_armed_and_disarms(proxy: str) -> None:
    call(proxy, "PUT", f"{ADMIN_PATH}?repository=team/app&count=2&client=")
    call(proxy, "GET", "/v2/team/app/manifests/v1", client="anybody")
    (armed,) = json.loads(call(proxy, "GET", ADMIN_PATH)[1])
    assert (armed["repository"], armed["left"]) == ("team/app", 1)
    call(proxy, "DELETE", ADMIN_PATH)
    assert json.loads(call(proxy, "GET", ADMIN_PATH)[1]) == []
    assert call(proxy, "GET", "/v2/team/app/manifests/v1")[0] == 200


@pytest.mark.parametrize("query", ["", "?repository=", "?repository=a&count=many"], ids=["none", "empty", "no number"])
def test_refuses_to_arm_without_a_usable_request(proxy: str, query: str) -> None:
    assert call(proxy, "PUT", f"{ADMIN_PATH}{query}")[0] == 400


def test_answers_502_when_the_registry_is_down(serve: ServeInThread) -> None:
    unused = FakeRegistry()
    port = unused.server_port
    unused.server_close()
    url = serve(RegistryProxy(("127.0.0.1", 0), ("127.0.0.1", port)))
    assert call(url, "GET", "/v2/")[0] == 502
