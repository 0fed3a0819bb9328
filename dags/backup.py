"""
# Backup

**Purpose.** Saves the configuration of the system, encrypted so that only its recipients can open it, signed, and read back.
A backup exists when its signed manifest does; it counts as *checked* when every byte was read back.

**When to run, when not.** At any time, in every window and freeze. It reads the cluster and writes into the bucket alone.
Today it makes `config-only` backups: Kubernetes objects with Secrets, custom resources, definitions and access rules, and
the dashboards. Weaviate's data is not in it yet.

**Before you start.** `backup.recipients` and `backup.signers` in the profile, the connections `object_store_backup` and
`openpgp_signing`, the ServiceAccount of `deploy/rbac/40-backup.yaml`. The bucket should be versioned and locked.

**Parameters.** `tag` is a word of yours; `keeping` says for how long it is meant, beyond the 90 days that everything is kept.

**Steps.**

| step | meaning | if it fails |
|---|---|---|
| `check_request` | parameters, recipients' keys, signing key, bucket and cluster | nothing was written; correct what the message names |
| `capture_…` | one source each: read, compressed, encrypted and stored in one stream | nothing of it is stored; a source that may be missing is *failed* in the manifest instead |
| `record_manifest` | writes and signs the manifest | there is no backup; clear it when the cause is gone |
| `verify_stored_files` | reads every file back and compares it, then leaves the signed note *checked* | the message names the damaged file; the backup does not count |
| `report_operation` | JSON and HTML report | clear it: it only writes the report again |
| `verify_outcome` | red when any step failed | it is meant to fail: open the report |

**Duration and blast radius.** Seconds for some thousand objects. Changes nothing in the cluster.

**Verify.** The report says *backed-up*; the bucket has `manifest.json.asc` and `checked.json.asc` in the backup's folder.

**Roll back.** Nothing to roll back. A run that dies leaves files without a manifest, which nothing counts.

**If it fails.** There is no backup of this run, and the one before still counts. Correct what the message names and run it again.
"""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import Param, dag

from nephoran_maintenance.domain.step_ids import capture_step_id
from nephoran_maintenance.operators.backup import (
    SOURCES,
    CaptureSourceOperator,
    CheckBackupOperator,
    RecordManifestOperator,
    ReportBackupOperator,
    VerifyStoredFilesOperator,
)
from nephoran_maintenance.operators.report import VerifyOutcomeOperator
from nephoran_maintenance.profile import load_profile

load_profile()  # read when the step runs; a bad one is an import error with its line, as in every procedure
CONNECTION = "kubernetes_backup"
DEFAULTS = {"retries": 2, "retry_delay": timedelta(seconds=3)}


@dag(
    dag_display_name="Backup",
    description="Save the system's configuration: encrypted, signed, read back",
    schedule=None,
    catchup=False,
    max_active_runs=1,
    tags=["backup", "risk/read-only"],
    doc_md=__doc__,
    default_args=DEFAULTS,
    params={
        "type": Param(
            "config-only",
            type="string",
            enum=["config-only"],
            title="Type",
            description="What is saved: config-only is everything but the data of Weaviate and Prometheus.",
        ),
        "tag": Param(
            "",
            type="string",
            maxLength=63,
            pattern="^([a-z0-9]([-a-z0-9]*[a-z0-9])?)?$",
            title="Tag",
            description="A word of yours that the manifest keeps, such as before-move.",
        ),
        "keeping": Param(
            "daily",
            type="string",
            enum=["daily", "weekly", "monthly", "yearly"],
            title="Kept as",
            description="Which of the rules of retention it is meant for once it is older than everything that is kept.",
        ),
    },
)
def backup() -> None:
    check_request = CheckBackupOperator(task_id="check_request", kubernetes_connection_id=CONNECTION)
    captures = [
        CaptureSourceOperator(task_id=capture_step_id(name), source=name, kubernetes_connection_id=CONNECTION)
        for name in SOURCES
    ]
    record_manifest = RecordManifestOperator(task_id="record_manifest", kubernetes_connection_id=CONNECTION)
    verify_stored = VerifyStoredFilesOperator(task_id="verify_stored_files", kubernetes_connection_id=CONNECTION)
    report_operation = ReportBackupOperator(task_id="report_operation", kubernetes_connection_id=CONNECTION)
    verify_outcome = VerifyOutcomeOperator(task_id="verify_outcome", kubernetes_connection_id=CONNECTION, retries=0)

    check_request >> captures >> record_manifest >> verify_stored >> report_operation >> verify_outcome


backup()
