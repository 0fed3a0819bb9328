"""The edge to Airflow: turns this package's errors into the ones that decide about a retry."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from airflow.sdk.exceptions import AirflowException, AirflowFailException

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
