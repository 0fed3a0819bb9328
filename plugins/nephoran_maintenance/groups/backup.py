"""A backup, from the look at keys and bucket to reading everything back: each source its own step."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import TaskGroup, TriggerRule

from nephoran_maintenance.domain.step_ids import (
    CHECK_REQUEST,
    PROTECT_GROUP,
    RECORD_MANIFEST,
    RELEASE_READERS,
    RELEASE_STAGING,
    VERIFY_STORED_FILES,
    WAIT_OPERATION,
    WAIT_WEAVIATE_BACKUP,
    capture_step_id,
)
from nephoran_maintenance.operators.backup import (
    BACKEND,
    CaptureSourceOperator,
    CheckBackupOperator,
    RecordManifestOperator,
    ReleaseStagingOperator,
    VerifyStoredFilesOperator,
    WaitWeaviateBackupOperator,
)
from nephoran_maintenance.operators.backup_readers import ReleaseReadersOperator
from nephoran_maintenance.operators.backup_sources import READERS, SOURCES, WEAVIATE
from nephoran_maintenance.operators.backup_step import BackupStep
from nephoran_maintenance.operators.lease import WaitOperationOperator
from nephoran_maintenance.profile import SystemProfile

CONNECTION = "kubernetes_backup"
"""Whatever procedure a backup belongs to, it lists the cluster as the ServiceAccount that may do nothing else."""


def protect(profile: SystemProfile) -> tuple[BackupStep, BackupStep, BackupStep]:
    """Make the group that backs the system up before a procedure changes it; return what :func:`backup_steps` does.

    All but the first are skipped where the profile says that no backup is made before a change.
    """
    with TaskGroup(
        PROTECT_GROUP, group_display_name="Protect", tooltip="A backup of the system before its first change"
    ):
        return backup_steps(profile, before_change=True)


def backup_steps(
    profile: SystemProfile, *, before_change: bool = False
) -> tuple[BackupStep, BackupStep, ReleaseReadersOperator]:
    """Make the steps of a backup where they are called, in a DAG or in a group.

    Returns the first, the last, with which the backup is good, and the one that clears up in the cluster beside it.
    """
    account: dict[str, Any] = {"kubernetes_connection_id": CONNECTION}
    about = {**account, "before_change": before_change}
    check_request = CheckBackupOperator(task_id=CHECK_REQUEST, **about)
    captures = {name: CaptureSourceOperator(task_id=capture_step_id(name), source=name, **about) for name in SOURCES}
    told = f"ti.xcom_pull(task_ids='{check_request.task_id}')"
    wait_weaviate_backup = WaitWeaviateBackupOperator(
        task_id=WAIT_WEAVIATE_BACKUP,
        weaviate_connection_id=profile.connections.weaviate,
        backend=BACKEND,
        backup_id=f"{{{{ {told}['backup_id'] }}}}",
        base_id=f"{{{{ {told}['base_id'] }}}}",
        staging_connection_id=profile.connections.object_store_staging,
        staging_bucket=profile.backup.staging_bucket,
        # Weaviate 1.39 may need a minute after a restart before it can make a backup.
        retries=3,
        retry_delay=timedelta(seconds=20),
        **account,
    )
    release_staging = ReleaseStagingOperator(task_id=RELEASE_STAGING, **about)
    # Sources that this type of backup does not have are skipped.
    record_manifest = RecordManifestOperator(
        task_id=RECORD_MANIFEST, trigger_rule=TriggerRule.NONE_FAILED_MIN_ONE_SUCCESS, **about
    )
    # What it can't remove now may go away by itself: a pod that restarts, a node that comes back.
    release_readers = ReleaseReadersOperator(
        task_id=RELEASE_READERS, retries=3, retry_delay=timedelta(seconds=20), **about
    )
    verify_stored = VerifyStoredFilesOperator(task_id=VERIFY_STORED_FILES, **about)

    at_once = [capture for name, capture in captures.items() if name != WEAVIATE]
    ready: BackupStep | WaitOperationOperator = check_request
    if not before_change:
        ready = WaitOperationOperator(task_id=WAIT_OPERATION, **account)
        check_request >> ready
    ready >> at_once >> record_manifest
    ready >> wait_weaviate_backup >> captures[WEAVIATE] >> release_staging >> record_manifest >> verify_stored
    # The bucket is emptied whatever happened; the manifest needs what was captured all the same.
    captures[WEAVIATE] >> record_manifest
    # Not before the manifest: a backup is good whatever is left of its making.
    [captures[name] for name in READERS] >> release_readers
    return check_request, verify_stored, release_readers
