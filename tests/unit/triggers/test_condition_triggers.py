"""The triggers for intents, deletions, draining work and Weaviate: one event on every path."""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from airflow.sdk._shared.module_loading import import_string

from nephoran_maintenance.errors import TransientError
from nephoran_maintenance.hooks.cluster import ClusterHook
from nephoran_maintenance.triggers.base import PollingTrigger
from nephoran_maintenance.triggers.condition import (
    AbsenceTrigger,
    FewPhasesTrigger,
    IntentTrigger,
    JobsTrigger,
    WeaviateNodeTrigger,
)
from tests.unit.hooks.fake_servers import FakeCluster, Received, Reply, Server, connection_json, status_object

INTENTS = "/apis/nephoran.com/v1/namespaces/sandbox/networkintents"
REFERENCE = {
    "group": "nephoran.com",
    "version": "v1",
    "plural": "networkintents",
    "namespace": "sandbox",
    "name": "test-1",
}
RESOURCE = {"group": "nephoran.com", "version": "v1", "plural": "networkintents"}
PAST = "2020-01-01T00:00:00+00:00"


async def only_event(of: PollingTrigger) -> dict[str, Any]:
    async def collect() -> list[Any]:
        return [found.payload async for found in of.run()]

    events = await asyncio.wait_for(collect(), 60)
    assert len(events) == 1
    assert {"state", "message", "reference", "hint", "seconds"} <= set(events[0])
    json.dumps(events[0])
    return dict(events[0])


def intents(**changes: Any) -> IntentTrigger:
    parameters: dict[str, Any] = {
        "connection_id": "kubernetes_test",
        "objects": [REFERENCE],
        "success_phases": ["Deployed"],
        "failure_phases": ["Failed"],
        "poll_interval_seconds": 0.001,
    }
    return IntentTrigger(**{**parameters, **changes})


def absence(**changes: Any) -> AbsenceTrigger:
    parameters: dict[str, Any] = {
        "connection_id": "kubernetes_test",
        "objects": [REFERENCE],
        "poll_interval_seconds": 0.001,
    }
    return AbsenceTrigger(**{**parameters, **changes})


def jobs(**changes: Any) -> JobsTrigger:
    parameters: dict[str, Any] = {
        "connection_id": "kubernetes_test",
        "namespace": "ns",
        "names": ["ask-0", "ask-1"],
        "poll_interval_seconds": 0.001,
    }
    return JobsTrigger(**{**parameters, **changes})


def few(**changes: Any) -> FewPhasesTrigger:
    parameters: dict[str, Any] = {
        "connection_id": "kubernetes_test",
        "resources": [RESOURCE],
        "final_phases": ["Deployed", "Failed"],
        "limit": 2,
        "poll_interval_seconds": 0.001,
    }
    return FewPhasesTrigger(**{**parameters, **changes})


def node(**changes: Any) -> WeaviateNodeTrigger:
    parameters: dict[str, Any] = {
        "connection_id": "kubernetes_test",
        "weaviate_connection_id": "weaviate_test",
        "namespace": "ns",
        "pod": "weaviate-2",
        "collection": "TelecomKnowledge",
        "object_id": "id-1",
        "poll_interval_seconds": 0.001,
    }
    return WeaviateNodeTrigger(**{**parameters, **changes})


def put(fake_cluster: FakeCluster, name: str = "test-1", **status: Any) -> None:
    fake_cluster.put(INTENTS, {"kind": "NetworkIntent", "metadata": {"name": name, "uid": "u-1"}, "status": status})


@pytest.mark.parametrize("made", [intents(), absence(), jobs(), few(), node()], ids=lambda made: type(made).__name__)
def test_serializes_every_parameter_and_comes_back_the_same(made: PollingTrigger) -> None:
    path, parameters = made.serialize()
    again = import_string(path)(**json.loads(json.dumps(parameters)))
    assert again.serialize() == (path, parameters)
    assert set(parameters) == set(inspect.signature(type(made).__init__).parameters) - {"self"}


async def test_intent_is_complete_in_a_good_phase(cluster_server: Server, fake_cluster: FakeCluster) -> None:
    put(fake_cluster)
    phases = iter(["Pending", "Processing"])

    def advance(request: Received) -> Reply | None:
        put(fake_cluster, phase=next(phases, "Deployed"))
        return None

    fake_cluster.fail = advance
    found = await only_event(intents())
    assert found["state"] == "complete"
    assert found["objects"][0]["phase"] == "Deployed"


async def test_intent_in_a_bad_phase_fails_with_its_message(cluster_server: Server, fake_cluster: FakeCluster) -> None:
    put(fake_cluster, phase="Failed", conditions=[{"type": "Ready", "message": "no A1 endpoint"}])
    found = await only_event(intents())
    assert found["state"] == "failed"
    assert found["message"] == "networkintents test-1 is Failed: no A1 endpoint"


async def test_intent_that_is_gone_fails(cluster_server: Server) -> None:
    found = await only_event(intents())
    assert (found["state"], found["message"]) == ("failed", "networkintents test-1 does not exist")


async def test_intent_times_out_with_the_phase_seen_last(cluster_server: Server, fake_cluster: FakeCluster) -> None:
    put(fake_cluster, phase="Processing")
    found = await only_event(intents(deadline_at=PAST))
    assert found["state"] == "timeout"
    assert found["objects"][0]["phase"] == "Processing"


async def test_absence_waits_for_finalizers(cluster_server: Server, fake_cluster: FakeCluster) -> None:
    put(fake_cluster)
    looks = 0

    def finalize(request: Received) -> None:
        nonlocal looks
        looks += 1
        if looks == 5:
            fake_cluster.objects.clear()

    fake_cluster.fail = finalize
    found = await only_event(absence())
    assert (found["state"], found["remaining"]) == ("complete", [])


async def test_absence_does_not_wait_for_another_object_of_the_name(
    cluster_server: Server, fake_cluster: FakeCluster
) -> None:
    put(fake_cluster)
    assert (await only_event(absence(objects=[{**REFERENCE, "uid": "older"}])))["state"] == "complete"


async def test_absence_names_what_remains(cluster_server: Server, fake_cluster: FakeCluster) -> None:
    put(fake_cluster)
    found = await only_event(absence(deadline_at=PAST))
    assert found["state"] == "timeout"
    assert [reference["name"] for reference in found["remaining"]] == ["test-1"]


def put_job(fake_cluster: FakeCluster, name: str, *conditions: str) -> None:
    status = {"conditions": [{"type": condition, "status": "True"} for condition in conditions]}
    job = {"kind": "Job", "metadata": {"name": name, "namespace": "ns"}, "status": status}
    fake_cluster.put("/apis/batch/v1/namespaces/ns/jobs", job)


@pytest.mark.parametrize("end", ["Complete", "Failed"])
async def test_jobs_are_waited_for_until_the_last_has_ended(
    cluster_server: Server, fake_cluster: FakeCluster, end: str
) -> None:
    put_job(fake_cluster, "ask-0", "SuccessCriteriaMet", "Complete")
    put_job(fake_cluster, "ask-1", "SuccessCriteriaMet")
    looks = 0

    def finish(request: Received) -> None:
        nonlocal looks
        looks += 1
        if looks == 5:
            put_job(fake_cluster, "ask-1", end)

    fake_cluster.fail = finish
    assert (await only_event(jobs()))["state"] == "complete"
    assert looks >= 5


async def test_jobs_that_are_gone_have_ended(cluster_server: Server) -> None:
    assert (await only_event(jobs()))["state"] == "complete"


async def test_jobs_that_do_not_end_time_out(cluster_server: Server, fake_cluster: FakeCluster) -> None:
    put_job(fake_cluster, "ask-0")
    assert (await only_event(jobs(deadline_at=PAST)))["state"] == "timeout"


async def test_work_has_drained_when_fewer_than_the_limit_are_active(
    cluster_server: Server, fake_cluster: FakeCluster
) -> None:
    for number, phase in enumerate(["Deployed", "Processing", "", "Failed"]):
        put(fake_cluster, f"i-{number}", phase=phase)
    looks = 0

    def drain(request: Received) -> None:
        nonlocal looks
        looks += 1
        if looks == 3:
            put(fake_cluster, "i-2", phase="Deployed")

    fake_cluster.fail = drain
    found = await only_event(few())
    assert (found["state"], found["active"]) == ("complete", 1)


async def test_work_that_does_not_drain_times_out_with_its_number(
    cluster_server: Server, fake_cluster: FakeCluster
) -> None:
    for number in range(3):
        put(fake_cluster, f"i-{number}", phase="Processing")
    found = await only_event(few(deadline_at=PAST))
    assert (found["state"], found["active"]) == ("timeout", 3)


@pytest.mark.parametrize("made", [intents, absence, jobs, few], ids=["intent", "absence", "jobs", "few"])
async def test_read_errors_are_tolerated_up_to_the_limit(
    cluster_server: Server, fake_cluster: FakeCluster, made: Any
) -> None:
    fake_cluster.fail = lambda request: status_object(503, "ServiceUnavailable", "starting")
    found = await only_event(made(read_error_limit=2))
    assert (found["state"], found["reference"]) == ("error", "cluster-unavailable")
    assert len(cluster_server.received) == 3


@pytest.fixture
def forwarded(monkeypatch: pytest.MonkeyPatch, cluster_server: Server) -> list[str]:
    """Put an address where the forwarded port of a pod would be, and record which pod was asked for."""
    monkeypatch.setenv(
        "AIRFLOW_CONN_WEAVIATE_TEST", connection_json(conn_type="http", host="x", password="key-of-test")
    )
    asked: list[str] = []

    @contextmanager
    def port_forward(self: ClusterHook, namespace: str, pod: str, port: int) -> Iterator[str]:
        asked.append(f"{namespace}/{pod}:{port}")
        yield "http://127.0.0.1:1"

    monkeypatch.setattr(ClusterHook, "port_forward", port_forward)
    return asked


async def test_weaviate_pod_is_asked_until_it_lacks_nothing(
    forwarded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said = iter(
        [
            "it is not ready",
            TransientError("weaviate-unreachable", "no answer"),
            TransientError("cluster-unreachable", "no answer"),
            "the cluster is not synchronized",
        ]
    )

    def missing(*args: Any, **kwargs: Any) -> str:
        answer = next(said, "")
        if isinstance(answer, TransientError):
            raise answer
        return answer

    monkeypatch.setattr("nephoran_maintenance.engine.answers.missing_on", missing)
    found = await only_event(node())
    assert (found["state"], found["missing"]) == ("complete", "")
    assert forwarded == ["ns/weaviate-2:8080"] * 5


async def test_weaviate_pod_that_stays_behind_says_what_it_lacks(
    forwarded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nephoran_maintenance.engine.answers.missing_on", lambda *args, **kwargs: "it is not ready")
    found = await only_event(node(deadline_at=PAST))
    assert (found["state"], found["missing"], found["pod"]) == ("timeout", "it is not ready", "weaviate-2")


async def test_weaviate_pod_that_is_not_there_is_waited_for(
    cluster_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(
        "AIRFLOW_CONN_WEAVIATE_TEST", connection_json(conn_type="http", host="x", password="key-of-test")
    )
    found = await only_event(node(deadline_at=PAST))
    assert (found["state"], found["missing"]) == ("timeout", "it does not exist")
