"""The edge to Airflow: its errors, which decide about a retry, and the address of its user interface."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

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


def interface_address(path: str) -> str:
    """Return the address of a page in Airflow's user interface, without the host: any name that leads there will do.

    Behind a proxy Airflow may live below a path of its own, which ``[api] base_url`` names.
    """
    from airflow.sdk.configuration import conf

    return urlsplit(str(conf.get("api", "base_url", fallback=""))).path.rstrip("/") + path
