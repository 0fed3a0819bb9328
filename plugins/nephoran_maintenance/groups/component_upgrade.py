"""The upgrade of one component: its rolling-update policy first, then its image, then a look at its metrics.

One that may fail ends with a decision and its own way back, so that the next one goes on without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from airflow.sdk import TaskGroup, TriggerRule, chain

from nephoran_maintenance.domain.step_ids import (
    CHANGE_KINDS,
    DECIDE_ALONE,
    ROLLBACK_ALONE,
    VERIFY_METRICS,
    identifier,
)
from nephoran_maintenance.operators.base import StepOperator
from nephoran_maintenance.operators.rollback import DecideAloneOperator, RollbackAloneOperator
from nephoran_maintenance.operators.rollout import ApplyChangeOperator, WaitForChangeOperator
from nephoran_maintenance.profile import Component
from nephoran_maintenance.sensors.gate import MetricGateSensor

DEFAULTS: dict[str, Any] = {"trigger_rule": TriggerRule.NONE_FAILED, "retry_delay": timedelta(seconds=2)}

GATE_RETRIES: dict[str, Any] = {"retries": 3, "retry_delay": timedelta(seconds=10)}
"""A Prometheus that is away for half a minute is waited for."""


def upgrade_in_order(
    components: Sequence[Component], *, after: StepOperator, kubernetes_connection_id: str
) -> list[StepOperator | TaskGroup]:
    """Chain the groups of the components, and return what must not have failed before anything that follows.

    A component waits for the last one before it that must not fail, and for the ways back of those between that may.
    Those are skipped also when what came before them has failed, so they alone would let the next one begin.

    :param after: the step before the first component.
    """
    settled: list[StepOperator | TaskGroup] = [after]
    for component in components:
        group = component_upgrade(component, kubernetes_connection_id=kubernetes_connection_id)
        settled >> group
        settled = [*settled, group] if component.criticality == "may fail" else [group]
    return settled


def component_upgrade(component: Component, *, kubernetes_connection_id: str) -> TaskGroup:
    """Return the group of steps that changes one component.

    What the plan does not contain is skipped by the step before it, so the steps run when nothing before them failed.
    """
    with TaskGroup(
        identifier(component.name),
        group_display_name=component.name,
        tooltip=f"Policy, then image of {component.name}, then its metrics",
        default_args=DEFAULTS,  # type: ignore[arg-type]  # an unbound type variable in Airflow 3.3.2
    ) as group:
        steps: list[StepOperator] = []
        for kind in CHANGE_KINDS:
            steps.append(
                ApplyChangeOperator(
                    task_id=f"apply_{kind}",
                    component=component.name,
                    change_kind=kind,
                    kubernetes_connection_id=kubernetes_connection_id,
                    retries=1,
                )
            )
            steps.append(
                WaitForChangeOperator(
                    task_id=f"wait_{kind}",
                    component=component.name,
                    change_kind=kind,
                    kubernetes_connection_id=kubernetes_connection_id,
                    retries=2,
                )
            )
        if component.gate:
            steps.append(
                MetricGateSensor(
                    task_id=VERIFY_METRICS,
                    component=component.name,
                    kubernetes_connection_id=kubernetes_connection_id,
                    **GATE_RETRIES,
                )
            )
        if component.criticality == "may fail":
            steps.append(
                DecideAloneOperator(
                    task_id=DECIDE_ALONE,
                    component=component.name,
                    kubernetes_connection_id=kubernetes_connection_id,
                    trigger_rule=TriggerRule.ALL_DONE,
                    retries=2,
                )
            )
            steps.append(
                RollbackAloneOperator(
                    task_id=ROLLBACK_ALONE,
                    component=component.name,
                    kubernetes_connection_id=kubernetes_connection_id,
                    trigger_rule=TriggerRule.ALL_SUCCESS,
                    retries=2,
                )
            )
        chain(*steps)
    return group
