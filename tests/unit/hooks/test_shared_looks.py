"""Everybody who waits for a rollout in a namespace is served by the same few lists."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from nephoran_maintenance.errors import PermanentError, TransientError
from nephoran_maintenance.hooks import shared_looks as module
from nephoran_maintenance.hooks.shared_looks import NamespaceLook, shared_looks
from tests.unit.hooks.fake_servers import FakeCluster, Received, Server, deployment, event, pod, status_object

CONNECTION, NAMESPACE = "kubernetes_test", "ns"
DEPLOYMENTS = "/apis/apps/v1/namespaces/ns/deployments"
PODS, EVENTS = "/api/v1/namespaces/ns/pods", "/api/v1/namespaces/ns/events"


@pytest.fixture(autouse=True)
def nothing_stays_open() -> Any:
    yield
    assert module._shared == {}


def put(fake_cluster: FakeCluster, name: str, pods: int = 1) -> None:
    fake_cluster.put(DEPLOYMENTS, deployment(name, ready=0))
    for number in range(pods):
        fake_cluster.put(PODS, pod(f"{name}-abc-{number}", name, ready=False))


async def looked() -> NamespaceLook:
    async with shared_looks(CONNECTION, NAMESPACE) as looks:
        return await looks.look("Deployment")


async def test_a_hundred_who_wait_cost_no_more_than_a_few_looks(
    cluster_server: Server, fake_cluster: FakeCluster
) -> None:
    names = [f"rag-api-{number}" for number in range(100)]
    for name in names:
        put(fake_cluster, name)

    async def wait(name: str) -> list[str]:
        async with shared_looks(CONNECTION, NAMESPACE) as looks:
            for _ in range(3):
                look = await looks.look("Deployment")
            workload = look.workload(name)
            assert workload is not None
            return [found["metadata"]["name"] for found in look.pods_of(workload)]

    found = await asyncio.gather(*map(wait, names))
    assert found == [[f"{name}-abc-0"] for name in names]
    assert len(cluster_server.requests("GET", DEPLOYMENTS)) <= 6
    assert len(cluster_server.requests("GET", PODS)) <= 6


async def test_a_look_is_begun_after_it_was_asked_for(cluster_server: Server, fake_cluster: FakeCluster) -> None:
    put(fake_cluster, "first")
    asked: list[asyncio.Task[NamespaceLook]] = []
    loop = asyncio.get_running_loop()
    begun = asyncio.Event()

    def change(request: Received) -> None:
        # The workloads are read; what changes now is not in this look, and who asks now must not get it.
        if request.path == PODS and not asked:
            put(fake_cluster, "second")
            loop.call_soon_threadsafe(lambda: (asked.append(loop.create_task(looked())), begun.set()))

    fake_cluster.fail = change
    first = await looked()
    await begun.wait()
    second = await asked[0]
    assert first.workload("second") is None
    assert second.workload("second") is not None


async def test_events_are_listed_once_a_look_and_only_when_somebody_asks(
    cluster_server: Server, fake_cluster: FakeCluster
) -> None:
    put(fake_cluster, "rag-api")
    for about in (("Pod", "rag-api-abc-0"), ("ReplicaSet", "rag-api-abc"), ("Deployment", "rag-api"), ("Pod", "b-0")):
        fake_cluster.put(EVENTS, event(f"about-{about[0]}-{about[1]}".lower(), about, "Failed", "x"))
    async with shared_looks(CONNECTION, NAMESPACE) as looks:
        look = await looks.look("Deployment")
        workload = look.workload("rag-api")
        assert workload is not None
        assert not cluster_server.requests("GET", EVENTS)
        pods = look.pods_of(workload)
        found, again = await asyncio.gather(look.events_about(workload, pods), look.events_about(workload, pods))
    assert found == again
    assert sorted(item["involvedObject"]["kind"] for item in found) == ["Deployment", "Pod", "ReplicaSet"]
    assert len(cluster_server.requests("GET", EVENTS)) == 1


async def test_an_error_reaches_everybody_and_the_next_look_is_made_all_the_same(
    cluster_server: Server, fake_cluster: FakeCluster
) -> None:
    put(fake_cluster, "rag-api")
    async with shared_looks(CONNECTION, NAMESPACE) as looks:
        fake_cluster.fail = lambda request: status_object(503, "ServiceUnavailable", "starting")
        found = await asyncio.gather(looks.look("Deployment"), looks.look("Deployment"), return_exceptions=True)
        assert [type(error) for error in found] == [TransientError, TransientError]
        fake_cluster.fail = None
        assert (await looks.look("Deployment")).workload("rag-api")


async def test_who_stops_waiting_does_not_take_the_look_from_the_others(
    cluster_server: Server, fake_cluster: FakeCluster
) -> None:
    put(fake_cluster, "rag-api")
    first = asyncio.create_task(looked())
    second = asyncio.create_task(looked())
    while not cluster_server.received:  # noqa: ASYNC110
        await asyncio.sleep(0.001)
    first.cancel()
    assert (await second).workload("rag-api")
    with pytest.raises(asyncio.CancelledError):
        await first


async def test_what_a_look_has_not_seen_is_asked_for_by_name(cluster_server: Server, fake_cluster: FakeCluster) -> None:
    async with shared_looks(CONNECTION, NAMESPACE) as looks:
        look = await looks.look("Deployment")
        assert look.workload("rag-api") is None
        with pytest.raises(PermanentError) as error:
            await looks.find("Deployment", "rag-api")
        assert error.value.reference == "not-found"
        put(fake_cluster, "rag-api")
        assert (await looks.find("Deployment", "rag-api"))["metadata"]["name"] == "rag-api"


async def test_a_connection_that_is_not_there_is_named() -> None:
    with pytest.raises(PermanentError) as error:
        async with shared_looks("kubernetes_missing", NAMESPACE):
            pass
    assert error.value.reference == "connection-missing"
