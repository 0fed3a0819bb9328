"""
# Roll back an operation

**Purpose.** Undoes one operation: an open one whose run is gone, or the last one that succeeded. Every component goes back to the
exact template that the operation's journal holds.

**When to run, when not.** When a change that went well turns out to be bad. Not for an operation that still runs: mark its
running step as *failed* instead. Not after another change of the same components: then the objects are in no state of this
operation, and they are left alone.

**Before you start.** Take the operation's id from its report, and run with `mode = plan`.

**Parameters.** `operation`; the defaults change nothing (`mode = plan`).

**Steps.**

| step | meaning | if it fails |
|---|---|---|
| `check_request` | parameters, profile, cluster and permissions | nothing was changed; correct what the message names |
| `recover_operations` | compares each object with the journal, takes the lease, puts the recorded templates back in reverse order, verifies, closes | **page a person** when an object is in no known state; otherwise `recover_operation` goes on with it |
| `report_operation` | a report under the operation's id: what was found, decided and done | clear it: it only reads and writes the report again |
| `verify_outcome` | red when any step failed | it is meant to fail: open the report |

**Duration and blast radius.** That of the operation: one component after the other, with its rolling-update policy.

**Verify.** The report says *rolled-back*; the journal is closed with that outcome.

**Roll back.** Run the change again.

**If it fails.** The operation is open now, and `recover_operation` goes on with the way back every two minutes.
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
CONNECTION = "kubernetes_rollback"
DEFAULTS = {"retries": 2, "retry_delay": timedelta(seconds=3)}


@dag(
    dag_display_name="Roll back an operation",
    description="Put back what one operation changed",
    schedule=None,
    catchup=False,
    max_active_runs=1,
    tags=["recovery", "risk/changes-system"],
    doc_md=__doc__,
    default_args=DEFAULTS,
    params={
        "mode": Param(
            "plan",
            type="string",
            enum=["plan", "apply"],
            title="Mode",
            description="plan says what would be put back and ends; apply does it.",
        ),
        "operation": Param(
            None,
            type=["null", "string"],
            maxLength=52,
            title="Operation",
            description="Id of the operation that is to be undone, such as rolling-upgrade-20261123t100000-abcdef.",
        ),
    },
)
def rollback() -> None:
    check_request = CheckRecoveryOperator(task_id="check_request", kubernetes_connection_id=CONNECTION)
    recover_operations = RecoverOperationsOperator(
        task_id="recover_operations", back=True, kubernetes_connection_id=CONNECTION
    )
    report_operation = ReportRecoveryOperator(task_id="report_operation", kubernetes_connection_id=CONNECTION)
    verify_outcome = VerifyOutcomeOperator(task_id="verify_outcome", kubernetes_connection_id=CONNECTION, retries=0)

    check_request >> recover_operations >> report_operation >> verify_outcome


rollback()
