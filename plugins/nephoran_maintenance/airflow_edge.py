"""The edge to Airflow: its errors, which decide about a retry, its view of other procedures, its metrics and addresses."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

from airflow.sdk.exceptions import AirflowException, AirflowFailException

from nephoran_maintenance.domain.freshness import Standing
from nephoran_maintenance.errors import MaintenanceError, PermanentError

RUNS_LOOKED_AT = 100
"""So many runs back the last scheduled one is looked for."""


@contextmanager
def airflow_errors() -> Iterator[None]:
    """Convert the package's errors inside the block, or inside a function that this decorates.

    A permanent error (and an unknown state, which is one) becomes ``AirflowFailException``: the step fails without a
    retry. Every other one becomes ``AirflowException``: the step is retried as its ``retries`` say. The text is that of
    the error, whose object stays chained as the cause. Everything else, deferral included, passes untouched.
    """
    try:
        yield
    except PermanentError as error:
        raise AirflowFailException(str(error)) from error
    except MaintenanceError as error:
        raise AirflowException(str(error)) from error


def interface_address(path: str) -> str:
    """Return the address of a page in Airflow's user interface, without the host: any name that leads there will do.

    Behind a proxy Airflow may live below a path of its own, which ``[api] base_url`` names.
    """
    from airflow.sdk.configuration import conf

    return urlsplit(str(conf.get("api", "base_url", fallback=""))).path.rstrip("/") + path


def standing_of(ti: Any, dag_id: str, at: datetime) -> Standing:
    """Return whether a procedure is paused, and whether the last of its scheduled runs that has ended failed.

    What was run by hand is passed by: it neither mends a schedule nor breaks it, and may have been of another kind. A
    run without a logical date is none of the schedule's either.

    Asked over the worker's channel to its supervisor, whose messages for other DAGs have no public face in Airflow 3.3.
    It can be asked for the run before a moment alone, so the runs are gone through one by one.
    """
    from airflow.sdk.exceptions import AirflowRuntimeError
    from airflow.sdk.execution_time import task_runner
    from airflow.sdk.execution_time.comms import GetPreviousDagRun

    try:
        paused = bool(ti.get_dag(dag_id).is_paused)
    except AirflowRuntimeError:
        return Standing()

    for _ in range(RUNS_LOOKED_AT):
        answer: Any = task_runner.SUPERVISOR_COMMS.send(GetPreviousDagRun(dag_id=dag_id, logical_date=at))
        run = answer.dag_run
        if run is None:
            return Standing(paused, last_scheduled_failed=False)
        if run.run_type.value == "scheduled" and run.state.value in ("failed", "success"):
            return Standing(paused, last_scheduled_failed=run.state.value == "failed")
        at = run.logical_date
    return Standing(paused)


def gauge(name: str, value: float) -> None:
    """Set a gauge of Airflow's metrics, which go where its own go."""
    from airflow.sdk.observability import stats

    stats.gauge(name, value)
