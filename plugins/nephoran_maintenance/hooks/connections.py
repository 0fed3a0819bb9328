"""Reading an Airflow connection, blocking and from within a trigger's event loop."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from nephoran_maintenance.errors import PermanentError

if TYPE_CHECKING:
    from airflow.sdk import Connection


def read_connection(connection_id: str) -> Connection:
    """Return an Airflow connection. Never call this in an event loop: use :func:`read_connection_async` there.

    :raises PermanentError: ``connection-missing``.
    """
    from airflow.sdk import BaseHook
    from airflow.sdk.exceptions import AirflowNotFoundException

    try:
        return BaseHook.get_connection(connection_id)
    except AirflowNotFoundException as error:
        raise _missing(connection_id) from error


async def read_connection_async(connection_id: str) -> tuple[Connection, dict[str, Any]]:
    """Return an Airflow connection and its extra fields without blocking the event loop.

    In a triggerer a blocking read, and even ``extra_dejson`` (it reports the secrets to be masked), talks to the parent
    process on the loop's thread; while another trigger waits for that same channel Airflow 3.3.2 raises
    ``DeadlockImminentError``, which ends every trigger of the process.

    :raises PermanentError: ``connection-missing`` or ``connection-invalid``.
    """
    from airflow.sdk import BaseHook
    from airflow.sdk.exceptions import AirflowNotFoundException

    try:
        connection = await BaseHook.aget_connection(connection_id)
    except AirflowNotFoundException as error:
        raise _missing(connection_id) from error
    # A secrets backend that the triggerer reads by itself hands out the other Connection class, without this method.
    read_extra = getattr(connection, "aextra_dejson", None)
    return connection, await read_extra() if read_extra is not None else _parsed(connection_id, connection.extra)


def _parsed(connection_id: str, extra: str | None) -> dict[str, Any]:
    """Return the extra fields from their text.

    :raises PermanentError: ``connection-invalid`` when it is not a JSON object.
    """
    try:
        value = json.loads(extra or "{}")
    except ValueError:
        value = None
    if isinstance(value, dict):
        return value
    raise PermanentError(
        "connection-invalid",
        f"the extra field of the connection {connection_id!r} is not a JSON object",
        context={"connection": connection_id},
        hint="Correct the connection's extra field.",
    )


def _missing(connection_id: str) -> PermanentError:
    return PermanentError(
        "connection-missing",
        f"there is no Airflow connection {connection_id!r}",
        context={"connection": connection_id},
        hint=f"Create it: airflow connections add {connection_id} …, or set AIRFLOW_CONN_{connection_id.upper()}.",
    )
