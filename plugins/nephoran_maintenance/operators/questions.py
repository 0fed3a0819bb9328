"""Put a question to a person in Airflow's own way, and end this try of the step: no worker waits for the answer."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from airflow.sdk import Context


def ask(context: Context, *, options: Sequence[str], subject: str, body: str, within: timedelta) -> NoReturn:
    """Put a question; the step goes on in ``resume`` with the answer or with the end of the time.

    :param options: the answers that can be given.
    :param within: how long the question may stand; positive.
    """
    from airflow.sdk.exceptions import TaskAwaitingInput
    from airflow.sdk.execution_time.hitl import upsert_hitl_detail

    # No assigned users: they are compared by id, which is a number in some auth managers, and the profile has names.
    upsert_hitl_detail(
        ti_id=context["ti"].id,
        options=list(options),
        params={},  # with none at all Airflow 3.3 can't show the question
        subject=subject,
        body=body,
    )
    raise TaskAwaitingInput(method_name="resume_step", timeout=within)
