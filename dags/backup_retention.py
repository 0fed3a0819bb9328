"""
# Backup retention

**Purpose.** Deletes backups that are past their time, and what unfinished runs have left. Everything stays for 90 days; of what
is older, 7 days, 5 weeks, 12 months and 2 years keep one backup each (`backup.retention` in the profile). Whatever the rules
say, it never deletes the last verified one, the last checked one with data, a link that anything kept is built on, what the
store has locked, or what has a manifest or a note that does not count, and what that builds on: nobody knows what an
incremental one without a manifest needs, so with it every older one stays.

**When to run, when not.** By itself every day at 04:30 UTC, once the profile names signers. By hand to see what would go, in any
window and freeze. Not to make room in a hurry: shorten `backup.retention` first, and look at the plan.

**Before you start.** The connection `object_store_retention`, whose account is the only one that may delete in the bucket, and may
list versions and read locks. Run with `mode = plan` and read the table in the report.

**Parameters.** `mode`; by hand it is `plan`, which deletes nothing. Scheduled runs take `backup.retention.mode`.

**Steps.**

| step | meaning | if it fails |
|---|---|---|
| `check_request` | profile, signers' keys, and the bucket with the account that may delete | nothing was deleted; correct what the message names |
| `plan_deletions` | reads every manifest; says of each backup whether it stays, and why | nothing was deleted; clear it |
| `approve` | only when more than `backup.retention.approval_above` would go at once: a person looks first | rejected or not answered in time: nothing was deleted, trigger a new run |
| `delete_backups` | decides again, and deletes what is on both lists, manifest first, every version | clear it: it goes on with what is left |
| `report_operation` | JSON and HTML report with the table | clear it: it only writes the report again |
| `verify_outcome` | red when any step failed | it is meant to fail: open the report |

**Duration and blast radius.** Some seconds for a hundred backups. Destroys data in the bucket for good; changes nothing in the
cluster.

**Verify.** The report says *cleaned-up*, and its table what became of each backup.

**Roll back.** None: what was deleted is gone, with all its versions.

**If it fails.** Backups stay longer than they need to, which is safe. *Not deleted: locked* needs nothing, a later run deletes it.
A backup whose manifest or note does not count is a finding of its own: find out who wrote it, and take its folder away by hand
once you are sure that nothing needs it, or nothing older is deleted any more.
"""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import Param, TriggerRule, dag

from nephoran_maintenance.groups.approval import approval
from nephoran_maintenance.operators.backup_retention import (
    CheckRetentionOperator,
    DeleteBackupsOperator,
    PlanDeletionsOperator,
    ReportRetentionOperator,
    WaitDeletionApprovalOperator,
)
from nephoran_maintenance.operators.notification import notify_failure
from nephoran_maintenance.operators.report import VerifyOutcomeOperator
from nephoran_maintenance.profile import load_profile

PROFILE = load_profile()
CONNECTION = "kubernetes_backup_retention"
"""No step asks the cluster anything, so it need not exist."""
DEFAULTS = {"retries": 2, "retry_delay": timedelta(seconds=3)}


@dag(
    dag_display_name="Backup retention",
    description="Delete backups that are past their time, and never the last good one",
    schedule="30 4 * * *" if PROFILE.backup.signers else None,
    catchup=False,
    max_active_runs=1,
    tags=["backup", "risk/destroys-data"],
    doc_md=__doc__,
    default_args=DEFAULTS,
    params={
        "mode": Param(
            "plan",
            type="string",
            enum=["plan", "apply"],
            title="Mode",
            description="plan shows what would be deleted and why the rest stays; apply deletes it for good.",
        ),
    },
)
def backup_retention() -> None:
    check_request = CheckRetentionOperator(task_id="check_request", kubernetes_connection_id=CONNECTION)
    plan_deletions = PlanDeletionsOperator(task_id="plan_deletions", kubernetes_connection_id=CONNECTION)
    approved = approval(kubernetes_connection_id=CONNECTION, step=WaitDeletionApprovalOperator)
    delete_backups = DeleteBackupsOperator(
        task_id="delete_backups", kubernetes_connection_id=CONNECTION, trigger_rule=TriggerRule.NONE_FAILED
    )
    report_operation = ReportRetentionOperator(task_id="report_operation", kubernetes_connection_id=CONNECTION)
    verify_outcome = VerifyOutcomeOperator(
        task_id="verify_outcome", kubernetes_connection_id=CONNECTION, retries=0, on_failure_callback=notify_failure
    )

    check_request >> plan_deletions >> approved >> delete_backups >> report_operation >> verify_outcome
    # The second step is skipped a moment before the first has ended: deleting waits for both.
    approved.get_child_by_label("wait_approval") >> delete_backups


backup_retention()
