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
    """Return whether a procedure is paused, and whether its last scheduled run failed and nothing went well since.

    Asked over the worker's channel to its supervisor, whose messages for other DAGs have no public face in Airflow 3.3.
    """
    from airflow.sdk.exceptions import AirflowRuntimeError
    from airflow.sdk.execution_time import task_runner
    from airflow.sdk.execution_time.comms import GetPreviousDagRun

    try:
        paused = bool(ti.get_dag(dag_id).is_paused)
    except AirflowRuntimeError:
        return Standing()

    def last(state: str) -> Any:
        answer: Any = task_runner.SUPERVISOR_COMMS.send(GetPreviousDagRun(dag_id=dag_id, logical_date=at, state=state))
        return answer.dag_run

    failed, good = last("failed"), last("success")
    scheduled = failed is not None and failed.run_type.value == "scheduled"
    return Standing(paused, scheduled and (good is None or good.run_after < failed.run_after))


def gauge(name: str, value: float) -> None:
    """Set a gauge of Airflow's metrics, which go where its own go."""
    from airflow.sdk.observability import stats

    stats.gauge(name, value)
