"""A backup, from the look at keys and bucket to reading everything back: each source its own step."""

from __future__ import annotations

from airflow.sdk import TriggerRule

from nephoran_maintenance.domain.step_ids import (
    CHECK_REQUEST,
    RECORD_MANIFEST,
    RELEASE_STAGING,
    VERIFY_STORED_FILES,
    WAIT_WEAVIATE_BACKUP,
    capture_step_id,
)
from nephoran_maintenance.operators.backup import (
    CaptureSourceOperator,
    CheckBackupOperator,
    RecordManifestOperator,
    ReleaseStagingOperator,
    VerifyStoredFilesOperator,
    WaitWeaviateBackupOperator,
)
from nephoran_maintenance.operators.backup_sources import SOURCES
from nephoran_maintenance.operators.backup_step import BackupStep
from nephoran_maintenance.profile import SystemProfile

WEAVIATE = "weaviate"


def backup_steps(profile: SystemProfile, *, kubernetes_connection_id: str) -> tuple[BackupStep, BackupStep]:
    """Make the steps of a backup where they are called, in a DAG or in a group; return the first and the last of them."""
    account = {"kubernetes_connection_id": kubernetes_connection_id}
    check_request = CheckBackupOperator(task_id=CHECK_REQUEST, **account)
    captures = {name: CaptureSourceOperator(task_id=capture_step_id(name), source=name, **account) for name in SOURCES}
    told = f"ti.xcom_pull(task_ids='{check_request.task_id}')"
    wait_weaviate_backup = WaitWeaviateBackupOperator(
        task_id=WAIT_WEAVIATE_BACKUP,
        weaviate_connection_id=profile.connections.weaviate,
        backend="s3",
        backup_id=f"{{{{ {told}['backup_id'] }}}}",
        base_id=f"{{{{ {told}['base_id'] }}}}",
        staging_connection_id=profile.connections.object_store_staging,
        staging_bucket=profile.backup.staging_bucket,
        **account,
    )
    release_staging = ReleaseStagingOperator(task_id=RELEASE_STAGING, **account)
    # Sources that this type of backup does not have are skipped.
    record_manifest = RecordManifestOperator(
        task_id=RECORD_MANIFEST, trigger_rule=TriggerRule.NONE_FAILED_MIN_ONE_SUCCESS, **account
    )
    verify_stored = VerifyStoredFilesOperator(task_id=VERIFY_STORED_FILES, **account)

    at_once = [capture for name, capture in captures.items() if name != WEAVIATE]
    check_request >> at_once >> record_manifest
    check_request >> wait_weaviate_backup >> captures[WEAVIATE] >> release_staging >> record_manifest >> verify_stored
    # The bucket is emptied whatever happened; the manifest needs what was captured all the same.
    captures[WEAVIATE] >> record_manifest
    return check_request, verify_stored
