"""The cluster hook for triggers against an API server on loopback."""

from __future__ import annotations

import importlib
import json
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from nephoran_maintenance.errors import MaintenanceError, PermanentError, TransientError
from nephoran_maintenance.hooks.async_cluster import AsyncClusterHook
from tests.unit.hooks.fake_servers import (
    FakeCluster,
    Reply,
    Server,
    connection_json,
    deployment,
    kube_config,
    pod,
    status_object,
)

NAMESPACE = "/api/v1/namespaces/ns"
APPS = "/apis/apps/v1/namespaces/ns"


async def test_reads_a_workload_with_its_pods(cluster_server: Server, fake_cluster: FakeCluster) -> None:
    fake_cluster.put(f"{APPS}/deployments", deployment("rag-api"))
    fake_cluster.put(f"{NAMESPACE}/pods", pod("rag-api-abc-1", "rag-api"))
    fake_cluster.put(f"{NAMESPACE}/pods", pod("other-1", "other"))
    async with AsyncClusterHook("kubernetes_test") as cluster:
        workload = await cluster.get("Deployment", "rag-api", "ns")
        pods = await cluster.pods_of(workload)
    assert [item["metadata"]["name"] for item in pods] == ["rag-api-abc-1"]
    assert {request.headers["authorization"] for request in cluster_server.received} == {"Bearer token-of-the-test"}


async def test_keeps_one_connection_open(cluster_server: Server, fake_cluster: FakeCluster) -> None:
    async with AsyncClusterHook("kubernetes_test") as cluster:
        for _ in range(5):
            await cluster.find("Pod", "p", "ns")
    assert len({request.client for request in cluster_server.received}) == 1


async def test_reads_every_page(
    cluster_server: Server, fake_cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nephoran_maintenance.hooks.async_cluster.PAGE_SIZE", 2)
    for number in range(5):
        fake_cluster.put(f"{NAMESPACE}/pods", pod(f"p-{number}", "a"))
    async with AsyncClusterHook("kubernetes_test") as cluster:
        assert len(await cluster.list("Pod", "ns")) == 5


@pytest.mark.parametrize(
    ("reply", "kind", "reference"),
    [
        (status_object(401, "Unauthorized", "Unauthorized"), PermanentError, "cluster-unauthorized"),
        (status_object(403, "Forbidden", 'User "u" cannot get'), PermanentError, "cluster-forbidden"),
        (status_object(404, "NotFound", "not found"), PermanentError, "not-found"),
        (status_object(503, "ServiceUnavailable", "starting"), TransientError, "cluster-unavailable"),
        (Reply(200, "<html>"), TransientError, "cluster-unavailable"),
        (Reply(hang_up=True), TransientError, "cluster-unreachable"),
    ],
    ids=["401", "403", "404", "503", "not-json", "connection-broken"],
)
async def test_has_the_same_errors_as_the_blocking_hook(
    cluster_server: Server, fake_cluster: FakeCluster, reply: Reply, kind: type[MaintenanceError], reference: str
) -> None:
    fake_cluster.fail = lambda request: reply
    async with AsyncClusterHook("kubernetes_test") as cluster:
        with pytest.raises(kind) as error:
            await cluster.get("Pod", "p", "ns")
    assert error.value.reference == reference


async def test_a_refusal_of_an_api_server_that_just_starts_is_no_verdict(
    cluster_server: Server, fake_cluster: FakeCluster
) -> None:
    fake_cluster.put(f"{NAMESPACE}/pods", pod("p-1", "a"))
    refusal = status_object(403, "Forbidden", 'RBAC: role "upgrade" not found')
    async with AsyncClusterHook("kubernetes_test") as cluster:
        fake_cluster.ready, fake_cluster.fail = 500, lambda _: refusal
        with pytest.raises(TransientError) as error:
            await cluster.get("Pod", "p-1", "ns")
        assert error.value.reference == "cluster-unavailable"
        replies: list[Reply | None] = [None, refusal]
        fake_cluster.ready, fake_cluster.fail = 200, lambda _: replies.pop()
        assert (await cluster.get("Pod", "p-1", "ns"))["metadata"]["name"] == "p-1"


async def test_missing_connection_is_named() -> None:
    with pytest.raises(PermanentError) as error:
        async with AsyncClusterHook("kubernetes_nowhere"):
            pass
    assert error.value.reference == "connection-missing"


async def test_bad_kubeconfig_path_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    extra = {"kube_config_path": "/nowhere/kubeconfig"}
    monkeypatch.setenv("AIRFLOW_CONN_KUBERNETES_TEST", connection_json(conn_type="kubernetes", extra=extra))
    with pytest.raises(PermanentError) as error:
        async with AsyncClusterHook("kubernetes_test"):
            pass
    assert error.value.reference == "connection-invalid"


async def test_never_talks_to_the_supervisor_on_the_loop(
    cluster_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A blocking message from the loop's thread raises DeadlockImminentError in a busy triggerer."""
    from airflow.sdk.execution_time import task_runner

    loop_thread = threading.get_ident()
    sent: list[str] = []
    blocking: list[str] = []

    class Comms:
        def send(self, message: Any) -> None:
            if threading.get_ident() == loop_thread:
                blocking.append(type(message).__name__)

        async def asend(self, message: Any) -> None:
            sent.append(type(message).__name__)

    monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", Comms(), raising=False)
    async with AsyncClusterHook("kubernetes_test") as cluster:
        await cluster.find("Pod", "p", "ns")
    assert "MaskSecret" in sent
    assert not blocking


async def test_the_client_libraries_are_imported_beside_the_loop(
    cluster_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first import takes seconds, in which nothing else of the triggerer would move."""
    threads: list[int] = []
    real = importlib.import_module

    def recording(name: str) -> Any:
        threads.append(threading.get_ident())
        return real(name)

    monkeypatch.setattr("nephoran_maintenance.hooks.async_cluster.importlib.import_module", recording)
    async with AsyncClusterHook("kubernetes_test") as cluster:
        await cluster.find("Pod", "p", "ns")
    assert threads
    assert threading.get_ident() not in threads


async def test_a_token_in_json_text_is_used(cluster_server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    extra = {"kube_config": json.dumps(kube_config(cluster_server.url, "another-token"))}
    monkeypatch.setenv("AIRFLOW_CONN_KUBERNETES_TEST", connection_json(conn_type="kubernetes", extra=extra))
    async with AsyncClusterHook("kubernetes_test") as cluster:
        await cluster.find("Pod", "p", "ns")
    assert cluster_server.received[0].headers["authorization"] == "Bearer another-token"


@pytest.mark.parametrize("broken", [False, True], ids=["right", "not-json"])
async def test_takes_the_connection_class_of_a_secrets_backend(
    cluster_server: Server, monkeypatch: pytest.MonkeyPatch, broken: bool
) -> None:
    """A backend that the triggerer reads by itself hands out a class without the asynchronous methods."""
    from airflow.sdk import BaseHook

    extra = "{" if broken else json.dumps({"kube_config": kube_config(cluster_server.url)})

    async def aget_connection(connection_id: str) -> Any:
        return SimpleNamespace(conn_id=connection_id, extra=extra, password=None)

    monkeypatch.setattr(BaseHook, "aget_connection", aget_connection)
    if broken:
        with pytest.raises(PermanentError, match="is not a JSON object"):
            await AsyncClusterHook("kubernetes_test").__aenter__()
        return
    async with AsyncClusterHook("kubernetes_test") as cluster:
        assert await cluster.find("Pod", "p", "ns") is None
