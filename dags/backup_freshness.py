"""
# Backup freshness

**Purpose.** Says every hour how old the newest backup is that was *checked*, and the newest that was *verified*, and what would be
lost now: as metrics (`nephoran.backup.checked_age_seconds`, `verified_age_seconds`, `rpo_seconds`, `fresh`), as events of the assets
`nephoran_checked_backup` and `nephoran_verified_backup`, and with a red run and an alert when it is more than `targets.rpo_hours`.

**When to run, when not.** By itself every hour, once the profile names signers. By hand at any time, in any window and freeze.

**Before you start.** The connection `object_store_backup`. For alerts, `connections.alerts` in the profile.

**Parameters.** None.

**Steps.**

| step | meaning | if it fails |
|---|---|---|
| `check_request` | the profile describes backups | describe them, or pause this procedure |
| `measure_freshness` | reads the signed manifests and notes of the newest ones, and Airflow's view of `backup` | *backup-stale*: run `backup` with type full; anything else: clear it |
| `report_operation` | JSON and HTML report; skipped when a scheduled run found nothing to heed | clear it: it only writes the report again |
| `verify_outcome` | red when any step failed, and then the alert is sent | it is meant to fail: open the report |

**Duration and blast radius.** Seconds. Changes nothing.

**Verify.** The run is green, and the newest event of the asset is younger than an hour.

**Roll back.** Nothing to roll back.

**If it fails.** Changes are refused too until there is a fresh backup. Run `backup`; if that fails, its report says why.
"""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import dag

from nephoran_maintenance.operators.backup_freshness import (
    CheckFreshnessOperator,
    MeasureFreshnessOperator,
    ReportFreshnessOperator,
)
from nephoran_maintenance.operators.notification import notify_failure
from nephoran_maintenance.operators.report import VerifyOutcomeOperator
from nephoran_maintenance.profile import load_profile

PROFILE = load_profile()
CONNECTION = "kubernetes_backup_freshness"
"""No step asks the cluster anything, so it need not exist."""
DEFAULTS = {"retries": 2, "retry_delay": timedelta(seconds=3)}


@dag(
    dag_display_name="Backup freshness",
    description="How old the newest backup is that counts: metrics, assets, an alarm",
    schedule="15 * * * *" if PROFILE.backup.signers else None,
    catchup=False,
    max_active_runs=1,
    tags=["backup", "risk/read-only"],
    doc_md=__doc__,
    default_args=DEFAULTS,
)
def backup_freshness() -> None:
    check_request = CheckFreshnessOperator(task_id="check_request", kubernetes_connection_id=CONNECTION)
    measure_freshness = MeasureFreshnessOperator(task_id="measure_freshness", kubernetes_connection_id=CONNECTION)
    report_operation = ReportFreshnessOperator(task_id="report_operation", kubernetes_connection_id=CONNECTION)
    verify_outcome = VerifyOutcomeOperator(
        task_id="verify_outcome", kubernetes_connection_id=CONNECTION, retries=0, on_failure_callback=notify_failure
    )

    check_request >> measure_freshness >> report_operation >> verify_outcome


backup_freshness()
