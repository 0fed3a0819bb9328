"""Renewal lives and dies with its run; waiting ends when the system is free."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowRuntimeError, ErrorType
from airflow.sdk.execution_time import task_runner
from airflow.sdk.execution_time.comms import ErrorResponse

from nephoran_maintenance.domain.journal import LABELS, STATE_LABEL
from nephoran_maintenance.domain.lease import let_go, new_lease, released, taken
from nephoran_maintenance.domain.moments import NEVER
from nephoran_maintenance.triggers.lease import FreeLeaseTrigger, HoldLeaseTrigger
from tests.unit.hooks.fake_servers import FakeCluster, Server, status_object
from tests.unit.triggers.test_condition_triggers import only_event

OWN = "nephoran-maintenance"
LEASES = f"/apis/coordination.k8s.io/v1/namespaces/{OWN}/leases"
PATH = f"{LEASES}/nephoran"
JOURNALS = f"/api/v1/namespaces/{OWN}/configmaps"
ME, OTHER = "rolling-upgrade-a", "rolling-upgrade-b"
WORKING = {"hold_lease": "deferred", "components.rag_api.wait_image": "deferred", "release_lease": None}
STILL = {
    "hold_lease": "deferred",
    "measure_traffic": "deferred",
    "components.rag_api.apply_image": "success",
    "components.rag_api.wait_image": None,
    "release_lease": None,
}
NO_SLOT = {**STILL, "components.rag_api.wait_image": "scheduled"}
OVER = {"hold_lease": "deferred", "release_lease": "failed"}

Act = Callable[[int], None]


def lease(holder: str, age: float = 0, duration: float = 60) -> dict[str, Any]:
    then = datetime.now(UTC) - timedelta(seconds=age)
    return taken(new_lease("nephoran", OWN), holder, "rolling_upgrade", timedelta(seconds=duration), then)


def hold(monkeypatch: pytest.MonkeyPatch, act: Act, states: Mapping[str, str | None] | None) -> HoldLeaseTrigger:
    """Return a trigger that calls ``act`` with the number of each of its pauses, and asks for the run's states at once."""
    trigger = HoldLeaseTrigger(
        connection_id="kubernetes_test",
        namespace=OWN,
        name="nephoran",
        holder=ME,
        dag_id="rolling_upgrade",
        run_id="manual__1",
    )
    pauses = iter(range(1, 1000))

    async def pause() -> None:
        act(next(pauses))

    async def run_states() -> Mapping[str, str | None] | None:
        return states

    monkeypatch.setattr(trigger, "pause", pause)
    monkeypatch.setattr(trigger, "run_states", run_states)
    trigger._asked_at = NEVER
    return trigger


def broken(error: Exception) -> Any:
    """Return what stands for the way to the supervisor, which answers every question with an error."""

    async def asend(message: Any) -> Any:
        raise error

    return SimpleNamespace(asend=asend)


def stood_still(
    monkeypatch: pytest.MonkeyPatch, trigger: HoldLeaseTrigger, cluster: FakeCluster, seconds: float
) -> int:
    """Return how often a lease is renewed in five looks, when the run was seen at work so many seconds before."""
    cluster.put(LEASES, lease(ME, age=15))
    trigger._asked_at = NEVER
    ages: list[float] = []

    async def pause() -> None:
        ages.append(age_of(cluster))
        trigger._at_work_at = datetime.now(UTC) - timedelta(seconds=seconds)
        if len(ages) > 5:
            cluster.put(LEASES, lease(OTHER))
        else:
            grow_old(cluster, 15)

    monkeypatch.setattr(trigger, "pause", pause)
    assert asyncio.run(only_event(trigger))["state"] == "lost", "only another owner ends it"
    return sum(age < 10 for age in ages[1:])


def age_of(cluster: FakeCluster) -> float:
    renewed = datetime.fromisoformat(cluster.objects[PATH]["spec"]["renewTime"])
    return (datetime.now(UTC) - renewed).total_seconds()


def grow_old(cluster: FakeCluster, seconds: float) -> None:
    then = datetime.now(UTC) - timedelta(seconds=seconds)
    cluster.objects[PATH]["spec"]["renewTime"] = then.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


@pytest.mark.parametrize("states", [WORKING, None], ids=["a step is at work", "Airflow does not say"])
async def test_renews_until_the_run_gives_the_lease_back(
    cluster_server: Server, fake_cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch, states: Any
) -> None:
    fake_cluster.put(LEASES, lease(ME))
    ages: list[float] = []
    renewals: list[int] = []
    now = None if states is None else {**states}

    def act(pause: int) -> None:
        ages.append(age_of(fake_cluster))
        renewals.append(len(cluster_server.requests("PUT")))
        grow_old(fake_cluster, 15)
        if pause == 4:
            fake_cluster.put(LEASES, released(fake_cluster.objects[PATH]))
            if now is not None:
                now["release_lease"] = "running"

    event = await only_event(hold(monkeypatch, act, now))
    assert event["state"] == "complete"
    assert max(ages) < 15, "as old as it was made, had it not been renewed"
    # The first look may itself come late on a slow machine.
    assert len(cluster_server.requests("PUT")) - renewals[0] == 3


@pytest.mark.parametrize("release", [None, "scheduled"])
async def test_a_lease_that_somebody_else_has_released_is_lost(
    cluster_server: Server, fake_cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch, release: str | None
) -> None:
    fake_cluster.put(LEASES, released(lease(ME)))
    event = await only_event(hold(monkeypatch, lambda pause: None, {**WORKING, "release_lease": release}))
    assert (event["state"], event["message"]) == ("lost", "the lease nephoran is held by nobody")


async def test_asks_for_no_renewal_before_it_is_due(
    cluster_server: Server, fake_cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_cluster.put(LEASES, lease(ME, age=3))
    act: Act = lambda pause: fake_cluster.put(LEASES, released(fake_cluster.objects[PATH])) if pause == 3 else None  # noqa: E731
    await only_event(hold(monkeypatch, act, WORKING))
    assert cluster_server.requests("PUT") == []


async def test_says_when_somebody_else_took_the_lease(
    cluster_server: Server, fake_cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_cluster.put(LEASES, lease(ME))
    event = await only_event(hold(monkeypatch, lambda pause: fake_cluster.put(LEASES, lease(OTHER)), WORKING))
    assert event["state"] == "lost"
    assert OTHER in event["message"]


async def test_ends_when_the_run_lets_go_or_is_over(
    cluster_server: Server, fake_cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_cluster.put(LEASES, let_go(lease(ME)))
    assert (await only_event(hold(monkeypatch, lambda pause: None, WORKING)))["state"] == "complete"
    fake_cluster.put(LEASES, lease(ME, age=15))
    assert "is over" in (await only_event(hold(monkeypatch, lambda pause: None, OVER)))["message"]


async def test_asks_for_the_states_of_the_run_only_after_as_long_as_the_lease_lasts(
    cluster_server: Server, fake_cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first answer takes the triggerer seconds, in which no other trigger gets anywhere."""
    fake_cluster.put(LEASES, lease(ME, age=15))

    def act(pause: int) -> None:
        grow_old(fake_cluster, 15)
        if pause == 3:
            fake_cluster.put(LEASES, released(fake_cluster.objects[PATH]))

    trigger = hold(monkeypatch, act, OVER)
    trigger._asked_at = None
    assert "was given back" in (await only_event(trigger))["message"]
    assert len(cluster_server.requests("PUT")) == 3


async def test_does_not_renew_for_a_run_in_which_nothing_moves(
    cluster_server: Server, fake_cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its DAG was paused, say: after as long as the lease lasts a recovery may take it over."""
    fake_cluster.put(LEASES, lease(ME, age=15))
    ages: list[float] = []
    trigger = hold(monkeypatch, lambda pause: None, STILL)

    def act(pause: int) -> None:
        if pause == 1:
            trigger._at_work_at = datetime.now(UTC) - timedelta(seconds=61)
        if pause < 5:
            grow_old(fake_cluster, 15)
        else:
            ages.append(age_of(fake_cluster))
            fake_cluster.put(LEASES, lease(OTHER))

    pauses = iter(range(1, 1000))

    async def pause() -> None:
        act(next(pauses))

    monkeypatch.setattr(trigger, "pause", pause)
    assert (await only_event(trigger))["state"] == "lost"
    assert len(cluster_server.requests("PUT")) == 1, "the grace is one duration, then it stops"
    assert ages[0] > 10


@pytest.mark.parametrize(
    ("states", "seconds", "renewals"),
    [
        pytest.param(STILL, 50, 5, id="between two steps"),
        pytest.param(STILL, 70, 0, id="no step at work"),
        pytest.param({}, 70, 0, id="the run was deleted"),
        pytest.param(NO_SLOT, 70, 5, id="waits for a slot"),
        pytest.param(NO_SLOT, 590, 5, id="waits long for a slot"),
        pytest.param(NO_SLOT, 610, 0, id="waits too long for a slot"),
        pytest.param(None, 70, 5, id="Airflow does not answer"),
        pytest.param(None, 590, 5, id="Airflow does not answer for long"),
        pytest.param(None, 610, 0, id="Airflow does not answer for too long"),
    ],
)
def test_how_long_a_run_may_stand_still_depends_on_what_is_known_of_it(
    cluster_server: Server,
    fake_cluster: FakeCluster,
    monkeypatch: pytest.MonkeyPatch,
    states: Any,
    seconds: float,
    renewals: int,
) -> None:
    trigger = hold(monkeypatch, lambda pause: None, states)
    assert stood_still(monkeypatch, trigger, fake_cluster, seconds) == renewals


@pytest.mark.parametrize(
    "error",
    [
        pytest.param(AirflowRuntimeError(ErrorResponse(error=ErrorType.API_SERVER_ERROR)), id="Airflow's database"),
        pytest.param(AirflowRuntimeError(ErrorResponse(error=ErrorType.GENERIC_ERROR)), id="Airflow's supervisor"),
        pytest.param(ValueError("not to be decoded"), id="an answer of another version"),
        pytest.param(ConnectionResetError(), id="no way to the supervisor"),
    ],
)
async def test_a_question_to_airflow_that_fails_does_not_end_the_renewal(
    cluster_server: Server, fake_cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", broken(error), raising=False)
    fake_cluster.put(LEASES, lease(ME, age=15))
    ages: list[float] = []

    def act(pause: int) -> None:
        ages.append(age_of(fake_cluster))
        grow_old(fake_cluster, 15)
        if pause == 4:
            fake_cluster.put(LEASES, released(fake_cluster.objects[PATH]))

    trigger = hold(monkeypatch, act, None)
    monkeypatch.setattr(trigger, "run_states", partial(HoldLeaseTrigger.run_states, trigger))
    event = await only_event(trigger)
    assert event["state"] == "complete", event["message"]
    assert max(ages) < 15, "renewed at every look"


async def test_an_api_server_that_is_away_and_a_write_in_between_are_outlived(
    cluster_server: Server, fake_cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_cluster.put(LEASES, lease(ME, age=15))

    def act(pause: int) -> None:
        if pause == 1:
            fake_cluster.fail = lambda r: status_object(409, "Conflict", "x") if r.method == "PUT" else None
        if pause == 2:
            fake_cluster.fail = lambda r: status_object(503, "ServiceUnavailable", "x")
        if pause == 40:
            fake_cluster.fail = None
            fake_cluster.put(LEASES, released(fake_cluster.objects[PATH]))
            states["release_lease"] = "success"
        if pause < 3:
            grow_old(fake_cluster, 15)

    states = {**WORKING}
    assert (await only_event(hold(monkeypatch, act, states)))["state"] == "complete"


async def test_waits_until_the_owner_and_what_it_left_open_are_gone(
    cluster_server: Server, fake_cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_cluster.put(LEASES, lease(OTHER))
    labels = {**LABELS, STATE_LABEL: "open"}
    fake_cluster.put(JOURNALS, {"kind": "ConfigMap", "metadata": {"name": OTHER, "labels": labels}, "data": {}})
    trigger = FreeLeaseTrigger(connection_id="kubernetes_test", namespace=OWN, name="nephoran", holder=ME)
    waited_for: list[str] = []

    async def pause() -> None:
        waited_for.append(trigger.empty_event()["waits_for"])
        if len(waited_for) == 2:
            grow_old(fake_cluster, 61)
        if len(waited_for) == 4:
            del fake_cluster.objects[f"{JOURNALS}/{OTHER}"]

    monkeypatch.setattr(trigger, "pause", pause)
    assert (await only_event(trigger))["state"] == "complete"
    assert ["held by" in text for text in waited_for] == [True, True, False, False]
    assert "was left open" in waited_for[-1]
