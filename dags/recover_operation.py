"""
# Recover operations

**Purpose.** Finishes or undoes every operation that was left half done because its run, its Airflow or its machine is gone.
Afterwards everything is old or everything is new.

**When to run, when not.** It runs by itself every two minutes, in every window and freeze. By hand at any time. An operation
whose run still renews its lease is left alone, whichever Airflow it runs in.

**Before you start.** Nothing. Without any Airflow `python -m nephoran_maintenance recover` does the same.

**Parameters.** `mode` of a run by hand; scheduled runs take `recovery.mode` of the profile.

**Steps.**

| step | meaning | if it fails |
|---|---|---|
| `check_request` | profile, cluster and permissions | nothing was changed; correct what the message names |
| `recover_operations` | finds open operations from their journals, takes the lease over, finishes or undoes, verifies, closes | **page a person** when an object is in no known state: it is left alone; otherwise the next run goes on |
| `report_operation` | a report per operation, under its id: what was found, decided and done; skipped when there was none | clear it: it only reads and writes the report again |
| `verify_outcome` | red when any step failed | it is meant to fail: open the report |

**Duration and blast radius.** Seconds when there is nothing; otherwise as long as the way back of what was changed. Changes
only objects that the journal of an open operation names.

**Verify.** `kubectl get configmap --namespace=nephoran-maintenance` shows no open operation, `kubectl get lease` no holder.

**Roll back.** It is the way back. A recovery that dies is itself taken up by the next one.

**If it fails.** The message names the object, what was expected and what was seen. Put the object into one of the two states in
the journal's ConfigMap, and the next run goes on. The switch `halt` in the ConfigMap `switches` keeps it from acting.
"""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import Param, dag

from nephoran_maintenance.operators.recovery import (
    CheckRecoveryOperator,
    RecoverOperationsOperator,
    ReportRecoveryOperator,
)
from nephoran_maintenance.operators.report import VerifyOutcomeOperator
from nephoran_maintenance.profile import load_profile

load_profile()  # read when the step runs; a bad one is an import error with its line, as in every procedure
CONNECTION = "kubernetes_recover_operation"
DEFAULTS = {"retries": 2, "retry_delay": timedelta(seconds=3)}


@dag(
    dag_display_name="Recover operations",
    description="Finish or undo what a run left half done",
    schedule="*/2 * * * *",
    catchup=False,
    max_active_runs=1,
    is_paused_upon_creation=False,
    tags=["recovery", "risk/changes-system"],
    doc_md=__doc__,
    default_args=DEFAULTS,
    params={
        "mode": Param(
            "plan",
            type="string",
            enum=["plan", "apply"],
            title="Mode",
            description="plan says what would be finished or undone; apply does it. Scheduled runs ask the profile.",
        ),
    },
)
def recover_operation() -> None:
    check_request = CheckRecoveryOperator(task_id="check_request", kubernetes_connection_id=CONNECTION)
    recover_operations = RecoverOperationsOperator(task_id="recover_operations", kubernetes_connection_id=CONNECTION)
    report_operation = ReportRecoveryOperator(task_id="report_operation", kubernetes_connection_id=CONNECTION)
    verify_outcome = VerifyOutcomeOperator(task_id="verify_outcome", kubernetes_connection_id=CONNECTION, retries=0)

    check_request >> recover_operations >> report_operation >> verify_outcome


recover_operation()
