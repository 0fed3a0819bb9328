"""Preflight: all checks run side by side, all findings come together in one table."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import TaskGroup, TriggerRule

from nephoran_maintenance.domain.step_ids import PREFLIGHT_GROUP
from nephoran_maintenance.operators.base import StepOperator
from nephoran_maintenance.operators.checks import CHECKS, CheckIntentsOperator, CheckOperator
from nephoran_maintenance.operators.dependencies import CheckDependenciesOperator
from nephoran_maintenance.operators.readiness import DecideReadinessOperator

DEFAULTS: dict[str, Any] = {"retries": 2, "retry_delay": timedelta(seconds=3)}


def preflight(*, kubernetes_connection_id: str) -> TaskGroup:
    """Return the group: one step per subject, then the decision. Any *block* fails the decision."""
    with TaskGroup(
        PREFLIGHT_GROUP,
        group_display_name="Preflight",
        tooltip="Everything that must hold before a change; reads only",
        default_args=DEFAULTS,  # type: ignore[arg-type]  # an unbound type variable in Airflow 3.3.2
    ) as group:
        checks: list[StepOperator] = [
            CheckOperator(
                task_id=f"check_{subject}", subject=subject, kubernetes_connection_id=kubernetes_connection_id
            )
            for subject in CHECKS
        ]
        checks += [
            CheckDependenciesOperator(task_id="check_dependencies", kubernetes_connection_id=kubernetes_connection_id),
            CheckIntentsOperator(task_id="check_intents", kubernetes_connection_id=kubernetes_connection_id),
        ]
        decide = DecideReadinessOperator(
            task_id="decide_readiness",
            kubernetes_connection_id=kubernetes_connection_id,
            check_task_ids=[check.task_id for check in checks],
            trigger_rule=TriggerRule.ALL_DONE_MIN_ONE_SUCCESS,
        )
        checks >> decide
    return group
