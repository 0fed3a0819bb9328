"""Approval: asked by category, before the lease."""

from __future__ import annotations

from airflow.sdk import TaskGroup

from nephoran_maintenance.domain.step_ids import APPROVE_GROUP
from nephoran_maintenance.operators.approval import WaitApprovalOperator


def approval(*, kubernetes_connection_id: str, step: type[WaitApprovalOperator] = WaitApprovalOperator) -> TaskGroup:
    """Return the group: a step per person, because Airflow shows the text of a step's first question for ever."""
    with TaskGroup(
        APPROVE_GROUP, group_display_name="Approval", tooltip="By category: nobody, one person, two"
    ) as group:
        first, second = (
            step(task_id=task_id, number=number, kubernetes_connection_id=kubernetes_connection_id)
            for number, task_id in enumerate(("wait_approval", "wait_second_approval"), 1)
        )
        first >> second
    return group
