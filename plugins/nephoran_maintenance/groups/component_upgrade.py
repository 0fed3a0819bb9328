"""The upgrade of one component: its rolling-update policy first, then its image."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import TaskGroup, TriggerRule

from nephoran_maintenance.domain.step_ids import CHANGE_KINDS, identifier
from nephoran_maintenance.operators.rollout import ApplyChangeOperator, WaitForChangeOperator
from nephoran_maintenance.profile import Component

DEFAULTS: dict[str, Any] = {"trigger_rule": TriggerRule.NONE_FAILED, "retry_delay": timedelta(seconds=2)}


def component_upgrade(component: Component, *, kubernetes_connection_id: str) -> TaskGroup:
    """Return the group of steps that changes one component.

    What the plan does not contain is skipped by the step before it, so the steps run when nothing before them failed.
    """
    with TaskGroup(
        identifier(component.name),
        group_display_name=component.name,
        tooltip=f"Policy, then image of {component.name}",
        default_args=DEFAULTS,  # type: ignore[arg-type]  # an unbound type variable in Airflow 3.3.2
    ) as group:
        previous = None
        for kind in CHANGE_KINDS:
            apply = ApplyChangeOperator(
                task_id=f"apply_{kind}",
                component=component.name,
                change_kind=kind,
                kubernetes_connection_id=kubernetes_connection_id,
                retries=1,
            )
            wait = WaitForChangeOperator(
                task_id=f"wait_{kind}",
                component=component.name,
                change_kind=kind,
                kubernetes_connection_id=kubernetes_connection_id,
                retries=2,
            )
            if previous:
                previous >> apply
            apply >> wait
            previous = wait
    return group
