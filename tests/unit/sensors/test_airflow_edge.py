"""Which error is retried, and what Airflow says of another procedure."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.api.datamodels._generated import DagRun
from airflow.sdk.exceptions import (
    AirflowException,
    AirflowFailException,
    AirflowRuntimeError,
    AirflowSkipException,
    ErrorType,
    TaskDeferred,
)
from airflow.sdk.execution_time import task_runner
from airflow.sdk.execution_time.comms import ErrorResponse, GetPreviousDagRun, PreviousDagRunResult

from nephoran_maintenance.airflow_edge import RUNS_LOOKED_AT, airflow_errors, standing_of
from nephoran_maintenance.domain.freshness import Standing
from nephoran_maintenance.errors import MaintenanceError, PermanentError, TransientError, UnknownStateError


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (PermanentError("a", "b"), AirflowFailException),
        (UnknownStateError("a", "b"), AirflowFailException),
        (TransientError("a", "b"), AirflowException),
    ],
    ids=["permanent", "unknown-state", "transient"],
)
def test_only_a_transient_error_is_retried(error: MaintenanceError, kind: type[Exception]) -> None:
    with pytest.raises(AirflowException) as found, airflow_errors():
        raise error
    assert type(found.value) is kind
    assert found.value.__cause__ is error
    assert str(found.value) == "b [a]"


@pytest.mark.parametrize("kind", [AirflowSkipException, ValueError])
def test_every_other_error_passes(kind: type[Exception]) -> None:
    with pytest.raises(kind), airflow_errors():
        raise kind("x")


def test_deferring_passes() -> None:
    class Deferral(TaskDeferred):
        def __init__(self) -> None:
            BaseException.__init__(self)

    with pytest.raises(TaskDeferred), airflow_errors():
        raise Deferral


def test_serves_as_a_decorator_of_many_calls() -> None:
    @airflow_errors()
    def broken() -> None:
        raise PermanentError("a", "b")

    for _ in range(2):
        with pytest.raises(AirflowFailException):
            broken()


# ------------------------------------------------------------------------------------------------ how backup is doing

NOW = datetime(2026, 11, 29, 12, tzinfo=UTC)


class Supervisor:
    """Answers as Airflow's API does: the run before a moment, of those that have a logical date."""

    def __init__(self, *runs: tuple[str, str]) -> None:
        self.runs = [a_run(number, *run) for number, run in enumerate(runs)]

    def send(self, message: GetPreviousDagRun) -> PreviousDagRunResult:
        assert message.dag_id == "backup"
        before = [run for run in self.runs if run.logical_date and run.logical_date < message.logical_date]
        of_state = [run for run in before if message.state in (None, run.state.value)]
        return PreviousDagRunResult(dag_run=max(of_state, key=lambda run: run.logical_date or NOW, default=None))


def a_run(number: int, kind: str, state: str) -> DagRun:
    """Return a run, ``number`` hours after the one before; ``undated``: by hand and without a logical date."""
    at = NOW - timedelta(days=30) + timedelta(hours=number)
    return DagRun.model_validate(
        {
            "dag_id": "backup",
            "run_id": f"{kind}-{number}",
            "logical_date": None if kind == "undated" else at,
            "data_interval_start": None,
            "data_interval_end": None,
            "run_after": at,
            "start_date": at,
            "end_date": at,
            "run_type": "manual" if kind == "undated" else kind,
            "state": state,
            "consumed_asset_events": [],
            "partition_key": None,
        }
    )


def standing(monkeypatch: pytest.MonkeyPatch, *runs: tuple[str, str], paused: bool = False) -> Standing:
    monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", Supervisor(*runs), raising=False)
    ti: Any = SimpleNamespace(get_dag=lambda dag_id: SimpleNamespace(is_paused=paused))
    return standing_of(ti, "backup", NOW)


FAILED, GOOD = ("scheduled", "failed"), ("scheduled", "success")


@pytest.mark.parametrize(
    ("runs", "failed"),
    [
        pytest.param([], False, id="none"),
        pytest.param([GOOD, FAILED], True, id="failed"),
        pytest.param([FAILED, GOOD], False, id="good since"),
        pytest.param([FAILED, ("manual", "failed")], True, id="one by hand failed after it"),
        pytest.param([FAILED, ("manual", "success")], True, id="one by hand, maybe of configuration alone, was good"),
        pytest.param([FAILED, ("undated", "failed")], True, id="one without a logical date"),
        pytest.param([GOOD, ("manual", "failed"), ("undated", "failed")], False, id="only those by hand failed"),
        pytest.param([FAILED, ("scheduled", "running")], True, id="the next is at work"),
        pytest.param([GOOD, ("scheduled", "queued"), ("backfill", "failed")], False, id="a backfill"),
        pytest.param([FAILED, *[("manual", "success")] * RUNS_LOOKED_AT], None, id="too long ago"),
    ],
)
def test_the_last_scheduled_run_that_has_ended_is_what_counts(
    runs: list[tuple[str, str]], failed: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert standing(monkeypatch, *runs, paused=True) == Standing(True, failed)
    assert standing(monkeypatch, *runs) == Standing(False, failed)


def test_a_procedure_that_airflow_does_not_know_is_not_measured() -> None:
    def unknown(dag_id: str) -> Any:
        raise AirflowRuntimeError(ErrorResponse(error=ErrorType.GENERIC_ERROR))

    ti: Any = SimpleNamespace(get_dag=unknown)
    assert standing_of(ti, "backup", NOW) == Standing()
