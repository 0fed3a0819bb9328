"""The rollout trigger against an API server on loopback: one event on every path."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from airflow.sdk._shared.module_loading import import_string

from nephoran_maintenance.triggers.rollout import RolloutTrigger
from tests.unit.hooks.fake_servers import FakeCluster, Received, Reply, Server, deployment, event, pod, status_object

NAMESPACE = "/api/v1/namespaces/ns"
APPS = "/apis/apps/v1/namespaces/ns"
KEYS = {"state", "cause", "message", "pod", "progress", "reference", "hint", "seconds"}


def trigger(**changes: Any) -> RolloutTrigger:
    parameters = {
        "connection_id": "kubernetes_test",
        "namespace": "ns",
        "kind": "Deployment",
        "name": "rag-api",
        "container": "rag-api",
        "image": "r/rag-api:v2",
        "since": "2026-11-23T10:00:00+00:00",
        "poll_interval_seconds": 0.001,
    }
    made = RolloutTrigger(**{**parameters, **changes})
    made.now = lambda: datetime(2026, 11, 23, 10, 0, 30, tzinfo=UTC)  # type: ignore[method-assign]
    return made


async def only_event(of: RolloutTrigger) -> dict[str, Any]:
    """Return the one event of a trigger and check that it ends after it."""

    async def collect() -> list[Any]:
        return [found.payload async for found in of.run()]

    events = await asyncio.wait_for(collect(), 60)
    assert len(events) == 1
    assert set(events[0]) == KEYS
    return dict(events[0])


def put_rollout(fake_cluster: FakeCluster, ready: int) -> None:
    fake_cluster.put(f"{APPS}/deployments", deployment("rag-api", ready=ready))
    for number in range(2):
        fake_cluster.put(f"{NAMESPACE}/pods", pod(f"rag-api-abc-{number}", "rag-api", ready=number < ready))


def after(requests: int, then: Callable[[], None]) -> Callable[[Received], Reply | None]:
    """Return a hook into the fake server that acts once, before the given request."""
    count = 0

    def look(request: Received) -> None:
        nonlocal count
        count += 1
        if count == requests:
            then()

    return look


def test_serializes_every_parameter_and_comes_back_the_same() -> None:
    first = trigger(ordinal=1, deadline_at="2026-11-23T12:00:00+00:00", read_error_limit=3)
    path, parameters = first.serialize()
    again = import_string(path)(**parameters)
    assert again.serialize() == (path, parameters)
    import inspect

    assert set(parameters) == set(inspect.signature(RolloutTrigger.__init__).parameters) - {"self"}


async def test_reports_a_finished_rollout(cluster_server: Server, fake_cluster: FakeCluster) -> None:
    put_rollout(fake_cluster, ready=2)
    found = await only_event(trigger())
    assert found["state"] == "complete"
    assert found["cause"] is None


async def test_waits_until_the_last_pod_is_ready(cluster_server: Server, fake_cluster: FakeCluster) -> None:
    put_rollout(fake_cluster, ready=1)
    fake_cluster.fail = after(10, lambda: put_rollout(fake_cluster, ready=2))
    assert (await only_event(trigger()))["state"] == "complete"
    assert len(cluster_server.received) > 10


async def test_reads_events_only_while_something_is_not_ready(
    cluster_server: Server, fake_cluster: FakeCluster
) -> None:
    put_rollout(fake_cluster, ready=2)
    await only_event(trigger())
    assert not cluster_server.requests("GET", f"{NAMESPACE}/events")


async def test_fails_with_cause_and_pod_when_the_image_can_not_be_pulled(
    cluster_server: Server, fake_cluster: FakeCluster
) -> None:
    fake_cluster.put(f"{APPS}/deployments", deployment("rag-api", replicas=1, ready=0))
    waiting = {"waiting": {"reason": "ImagePullBackOff", "message": 'Back-off pulling image "r/rag-api:v2"'}}
    fake_cluster.put(f"{NAMESPACE}/pods", pod("rag-api-abc-0", "rag-api", ready=False, state=waiting))
    message = 'Failed to pull image "r/rag-api:v2": manifest unknown'
    fake_cluster.put(f"{NAMESPACE}/events", event("e", ("Pod", "rag-api-abc-0"), "Failed", message, count=2))
    found = await only_event(trigger())
    assert (found["state"], found["cause"], found["pod"]) == ("failed", "image-pull", "rag-api-abc-0")
    assert found["reference"] == "rollout-failed"


async def test_tolerates_read_errors_up_to_the_limit(cluster_server: Server, fake_cluster: FakeCluster) -> None:
    put_rollout(fake_cluster, ready=2)
    answers = iter([status_object(503, "ServiceUnavailable", "starting")] * 3)
    fake_cluster.fail = lambda request: next(answers, None)
    assert (await only_event(trigger(read_error_limit=3)))["state"] == "complete"


async def test_read_errors_in_a_row_are_counted_not_those_in_total(
    cluster_server: Server, fake_cluster: FakeCluster
) -> None:
    put_rollout(fake_cluster, ready=1)
    seen = 0

    def fail(request: Received) -> Reply | None:
        nonlocal seen
        seen += 1
        if seen == 60:
            put_rollout(fake_cluster, ready=2)
        return Reply(hang_up=True) if seen % 4 == 0 else None

    fake_cluster.fail = fail
    assert (await only_event(trigger(read_error_limit=1)))["state"] == "complete"


async def test_gives_up_after_too_many_read_errors(cluster_server: Server, fake_cluster: FakeCluster) -> None:
    fake_cluster.fail = lambda request: status_object(503, "ServiceUnavailable", "starting")
    found = await only_event(trigger(read_error_limit=2))
    assert (found["state"], found["reference"]) == ("error", "cluster-unavailable")
    assert len(cluster_server.received) == 3


async def test_a_permanent_error_ends_it_at_once(cluster_server: Server, fake_cluster: FakeCluster) -> None:
    fake_cluster.fail = lambda request: status_object(401, "Unauthorized", "Unauthorized")
    found = await only_event(trigger())
    assert (found["state"], found["reference"]) == ("error", "cluster-unauthorized")
    assert found["hint"]
    assert len(cluster_server.received) == 1


async def test_a_workload_that_is_gone_ends_it(cluster_server: Server) -> None:
    found = await only_event(trigger())
    assert (found["state"], found["reference"]) == ("error", "not-found")


async def test_ends_at_its_deadline_with_the_last_state(cluster_server: Server, fake_cluster: FakeCluster) -> None:
    put_rollout(fake_cluster, ready=1)
    waiting = trigger(deadline_at="2026-11-23T10:05:00+00:00")
    now = datetime(2026, 11, 23, 10, 0, 1, tzinfo=UTC)

    def clock() -> datetime:
        nonlocal now
        now += timedelta(seconds=30)
        return now

    waiting.now = clock  # type: ignore[method-assign]
    found = await only_event(waiting)
    assert (found["state"], found["reference"]) == ("timeout", "deadline-passed")
    assert found["progress"]


async def test_gives_up_when_nothing_has_moved_for_the_limit(cluster_server: Server, fake_cluster: FakeCluster) -> None:
    put_rollout(fake_cluster, ready=1)
    waiting = trigger(no_progress_limit_seconds=60.0)
    now = datetime(2026, 11, 23, 10, 0, 1, tzinfo=UTC)

    def clock() -> datetime:
        nonlocal now
        now += timedelta(seconds=5)
        return now

    waiting.now = clock  # type: ignore[method-assign]
    found = await only_event(waiting)
    assert (found["state"], found["cause"]) == ("failed", "no-progress")


async def test_a_defect_ends_in_an_event_too(
    cluster_server: Server, fake_cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_rollout(fake_cluster, ready=2)

    def broken(*args: Any, **kwargs: Any) -> Any:
        raise ZeroDivisionError("password=very-secret-value")

    monkeypatch.setattr("nephoran_maintenance.triggers.rollout.judge_rollout", broken)
    found = await only_event(trigger())
    assert (found["state"], found["reference"]) == ("error", "trigger-broken")
    assert "very-secret-value" not in found["message"]


async def test_being_cancelled_is_not_an_event(cluster_server: Server, fake_cluster: FakeCluster) -> None:
    put_rollout(fake_cluster, ready=1)
    events: list[Any] = []

    async def consume() -> None:
        events.extend([found async for found in trigger().run()])

    task = asyncio.create_task(consume())
    while not cluster_server.received:  # noqa: ASYNC110
        await asyncio.sleep(0.001)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not events


async def test_logs_on_change_not_on_every_look(
    cluster_server: Server, fake_cluster: FakeCluster, caplog: pytest.LogCaptureFixture
) -> None:
    put_rollout(fake_cluster, ready=1)
    fake_cluster.fail = after(60, lambda: put_rollout(fake_cluster, ready=2))
    waiting = trigger()
    logged: list[tuple[object, ...]] = []
    real = waiting.log_change

    def counting(*what: object) -> None:
        before = waiting._last_logged
        real(*what)
        if waiting._last_logged != before:
            logged.append(what)

    waiting.log_change = counting  # type: ignore[method-assign]
    await only_event(waiting)
    assert len(logged) == 2
