"""The way back: recorded templates return in reverse order, each one verified before the next."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from airflow.sdk import TaskGroup, TriggerRule

from nephoran_maintenance.domain.step_ids import ROLLBACK_GROUP, identifier
from nephoran_maintenance.operators.base import StepOperator
from nephoran_maintenance.operators.rollback import DecideRollbackOperator, RollbackComponentOperator
from nephoran_maintenance.profile import Component

DEFAULTS: dict[str, Any] = {"trigger_rule": TriggerRule.ALL_DONE, "retry_delay": timedelta(seconds=2)}


def rollback(components: Sequence[Component], *, kubernetes_connection_id: str) -> TaskGroup:
    """Return the group: a decision from the journal, then one step per component in reverse order.

    One component that can't be taken back does not keep the others from it.
    """
    with TaskGroup(
        ROLLBACK_GROUP,
        group_display_name="Rollback",
        tooltip="Only after a failure: everything changed so far goes back",
        default_args=DEFAULTS,  # type: ignore[arg-type]  # an unbound type variable in Airflow 3.3.2
    ) as group:
        previous: StepOperator = DecideRollbackOperator(
            task_id="decide_rollback",
            kubernetes_connection_id=kubernetes_connection_id,
            retries=2,
        )
        for component in reversed(components):
            step = RollbackComponentOperator(
                task_id=f"rollback_{identifier(component.name)}",
                component=component.name,
                kubernetes_connection_id=kubernetes_connection_id,
                retries=2,
            )
            previous >> step
            previous = step
    return group
