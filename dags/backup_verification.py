"""
# Backup verification

**Purpose.** Decrypts backups and compares every file in them with what their manifests say, each at least every 30 days: the oldest
unread ones first, a share of all each day. Says when each recipient, the escrow too, has last decrypted one, and which keys end
before the backups that they open.

**When to run, when not.** By itself every day at 05:30 UTC, once the profile names signers. By hand for one backup before it is
restored, and once a quarter with the escrow's key. In any window and freeze.

**Before you start.** The connection `openpgp_decryption` with a recipient's private key, where that may be: whoever takes this worker
over can read every backup. Without it the run says *not possible here*, and looks at manifests, chains and keys alone. Give the
step `verify_contents` a pool of its own (`backup.decryption_pool`), so that it takes no slot from changes.

**Parameters.** `backup` reads that one; `everything` reads all; `key_connection` reads with another recipient's key.

**Steps.**

| step | meaning | if it fails |
|---|---|---|
| `check_request` | profile, bucket, signing key, and whether there is a key that decrypts | nothing was read; correct what the message names |
| `plan_reading` | reads all manifests and notes; chooses what is due; looks at keys, openings and chains | clear it |
| `verify_contents` | decrypts each archive in memory, compares it, and leaves the signed note *opened* | **a backup is not what it was**: restore nothing of it, make a full backup now, find out who can write to the bucket |
| `report_operation` | JSON and HTML report | clear it: it only writes the report again |
| `verify_outcome` | red when any step failed | it is meant to fail: open the report |

**Duration and blast radius.** Some 100 MiB a second. Writes one small signed note for each backup that was read; changes nothing in
the cluster. Nothing decrypted touches a disk.

**Verify.** The report says *readable*. Its tables say when each recipient last decrypted one, and list all backups: the chain of
each, whether it is checked or verified, its age, and why retention keeps it.

**Roll back.** Nothing to roll back.

**If it fails.** The message names each backup and what differs. In a versioned bucket look for earlier versions of the files.
"""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import Param, dag

from nephoran_maintenance.operators.backup_verification import (
    CheckVerificationOperator,
    PlanReadingOperator,
    ReportVerificationOperator,
    VerifyContentsOperator,
)
from nephoran_maintenance.operators.notification import notify_failure
from nephoran_maintenance.operators.report import VerifyOutcomeOperator
from nephoran_maintenance.profile import load_profile

PROFILE = load_profile()
CONNECTION = "kubernetes_backup_verification"
"""No step asks the cluster anything, so it need not exist."""
DEFAULTS = {"retries": 2, "retry_delay": timedelta(seconds=3)}


@dag(
    dag_display_name="Backup verification",
    description="Decrypt backups and compare them with their manifests, each every 30 days",
    schedule="30 5 * * *" if PROFILE.backup.signers else None,
    catchup=False,
    max_active_runs=1,
    tags=["backup", "risk/read-only"],
    doc_md=__doc__,
    default_args=DEFAULTS,
    params={
        "backup": Param(
            None,
            type=["null", "string"],
            maxLength=63,
            pattern="^(config-only|incremental|full)-[0-9]{8}t[0-9]{6}z-[0-9a-f]{6}$",
            title="Backup",
            description="Id of the one that is read, such as full-20261124t023000z-1a2b3c; empty reads what is due.",
        ),
        "everything": Param(
            False,
            type="boolean",
            title="Read everything",
            description="Decrypt all backups now, whenever they were read before; this takes long.",
        ),
        "key_connection": Param(
            None,
            type=["null", "string"],
            maxLength=63,
            pattern="^openpgp_decryption(_[a-z0-9]+)*$",
            title="Connection of the key",
            description="Another recipient's key, such as openpgp_decryption_escrow; empty takes that of the profile.",
        ),
    },
)
def backup_verification() -> None:
    check_request = CheckVerificationOperator(task_id="check_request", kubernetes_connection_id=CONNECTION)
    plan_reading = PlanReadingOperator(task_id="plan_reading", kubernetes_connection_id=CONNECTION)
    verify_contents = VerifyContentsOperator(
        task_id="verify_contents", kubernetes_connection_id=CONNECTION, pool=PROFILE.backup.decryption_pool
    )
    report_operation = ReportVerificationOperator(task_id="report_operation", kubernetes_connection_id=CONNECTION)
    verify_outcome = VerifyOutcomeOperator(
        task_id="verify_outcome", kubernetes_connection_id=CONNECTION, retries=0, on_failure_callback=notify_failure
    )

    check_request >> plan_reading >> verify_contents >> report_operation >> verify_outcome


backup_verification()
