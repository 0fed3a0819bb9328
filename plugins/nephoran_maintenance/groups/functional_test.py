"""The functional test: one NetworkIntent per served API group goes through the whole system and away again."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import TaskGroup, TriggerRule

from nephoran_maintenance.domain.step_ids import FUNCTIONAL_TEST_GROUP
from nephoran_maintenance.operators.functional_test import (
    ApplyTestIntentsOperator,
    DeleteTestIntentsOperator,
    WaitForTestIntentsOperator,
)

DEFAULTS: dict[str, Any] = {"retry_delay": timedelta(seconds=2)}


def functional_test(*, kubernetes_connection_id: str) -> TaskGroup:
    """Return the group; the intents are deleted whatever happened before."""
    with TaskGroup(
        FUNCTIONAL_TEST_GROUP,
        group_display_name="Functional test",
        tooltip="A NetworkIntent per served API group, always deleted again",
        default_args=DEFAULTS,  # type: ignore[arg-type]  # an unbound type variable in Airflow 3.3.2
    ) as group:
        apply = ApplyTestIntentsOperator(
            task_id="apply_test_intents",
            kubernetes_connection_id=kubernetes_connection_id,
            trigger_rule=TriggerRule.NONE_FAILED,
            retries=1,
        )
        wait = WaitForTestIntentsOperator(
            task_id="wait_test_intents", kubernetes_connection_id=kubernetes_connection_id, retries=2
        )
        delete = DeleteTestIntentsOperator(
            task_id="delete_test_intents",
            kubernetes_connection_id=kubernetes_connection_id,
            trigger_rule=TriggerRule.ALL_DONE,
            retries=2,
        )
        apply >> wait >> delete
    return group
