"""Wait for a backup that Weaviate makes, without holding a worker."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any, ClassVar

from nephoran_maintenance.domain.weaviate_backup import BackupVerdict, Staged, is_final, judge_backup
from nephoran_maintenance.errors import MaintenanceError
from nephoran_maintenance.hooks.staging import StagingBucket
from nephoran_maintenance.hooks.weaviate_api import AsyncWeaviate
from nephoran_maintenance.triggers.base import Event, PollingTrigger

LOOKS_AFTER_THE_END = 3
"""In a row: Weaviate uploads its descriptor last, some time after it calls a backup ended."""


class WeaviateBackupTrigger(PollingTrigger):
    """Yield one event when a backup has ended, stands still, or can't be judged.

    The event: ``{"state": "complete" | "failed" | "cancelled" | "stalled" | "timeout" | "error", "status": str,
    "progress": str, "staged_objects": int | None, "staged_bytes": int | None, "answer": Weaviate's last status,
    "message", "reference", "hint", "seconds"}``.

    When a person marks the deferred task failed or clears it, the backup is cancelled.

    :param connection_id: Airflow connection of Weaviate.
    :param no_progress_limit_seconds: give up after so long without a new status or a new byte in the staging bucket.
    :param staging_connection_id: with bucket and prefix: what has arrived there is progress too. None: not measured.
    """

    parameters: ClassVar[tuple[str, ...]] = (
        "connection_id",
        "backend",
        "backup_id",
        "no_progress_limit_seconds",
        "staging_connection_id",
        "staging_bucket",
        "staging_prefix",
    )

    def __init__(
        self,
        *,
        connection_id: str,
        backend: str,
        backup_id: str,
        no_progress_limit_seconds: float = 1800.0,
        staging_connection_id: str | None = None,
        staging_bucket: str | None = None,
        staging_prefix: str | None = None,
        poll_interval_seconds: float = 2.0,
        read_error_limit: int = 60,
        deadline_at: str | None = None,
    ) -> None:
        super().__init__(
            poll_interval_seconds=poll_interval_seconds, read_error_limit=read_error_limit, deadline_at=deadline_at
        )
        self.connection_id = connection_id
        self.backend = backend
        self.backup_id = backup_id
        self.no_progress_limit_seconds = no_progress_limit_seconds
        self.staging_connection_id = staging_connection_id
        self.staging_bucket = staging_bucket
        self.staging_prefix = staging_prefix
        self._answer: dict[str, Any] | None = None
        self._staged: Staged | None = None
        self._progress = ""
        self._fingerprint = ""
        # A triggerer that was restarted can't know what moved before it: its first look counts as progress.
        self._progressed_at = self.now()

    def empty_event(self) -> Event:
        return {
            **super().empty_event(),
            "status": str((self._answer or {}).get("status") or ""),
            "progress": self._progress,
            "staged_objects": self._staged.objects if self._staged else None,
            "staged_bytes": self._staged.size_bytes if self._staged else None,
            "answer": self._answer or {},
        }

    async def watch(self) -> Event:
        weaviate = await AsyncWeaviate.connect(self.connection_id)
        staging = await self._staging()
        return await self.until(lambda: self._look(weaviate, staging))

    async def _look(self, weaviate: AsyncWeaviate, staging: StagingBucket | None) -> Event | None:
        self._answer = await weaviate.backup_status(self.backend, self.backup_id)
        if staging is not None:
            await self._measure(staging)
        verdict = self._judge()
        if verdict.fingerprint != self._fingerprint:
            self._fingerprint, self._progressed_at = verdict.fingerprint, self.now()
            verdict = self._judge()
        self._progress = verdict.progress
        self.log_change(verdict.state, verdict.progress, verdict.message)
        if verdict.state == "progressing":
            return None
        return {"state": verdict.state, "message": verdict.message or verdict.progress}

    def _judge(self) -> BackupVerdict:
        return judge_backup(
            self._answer,
            staged=self._staged,
            now=self.now(),
            progressed_at=self._progressed_at,
            no_progress_limit=timedelta(seconds=self.no_progress_limit_seconds),
        )

    async def _staging(self) -> StagingBucket | None:
        if not (self.staging_connection_id and self.staging_bucket):
            return None
        return await StagingBucket.connect(self.staging_connection_id, self.staging_bucket)

    async def _measure(self, staging: StagingBucket) -> None:
        try:
            self._staged = await asyncio.to_thread(staging.usage, self.staging_prefix or "")
        except MaintenanceError as error:
            # Only a measure of progress: the status decides whether the backup is good.
            self.log_change(f"the staging bucket can't be read: {error.message}")

    async def on_kill(self) -> None:
        """Cancel the backup: nobody waits for it any more."""
        try:
            weaviate = await AsyncWeaviate.connect(self.connection_id)
            cancelled = await weaviate.cancel_backup(self.backend, self.backup_id)
        except MaintenanceError as error:
            self.log.warning("The backup %s could not be cancelled: %s", self.backup_id, error)
        else:
            self.log.info("The backup %s %s", self.backup_id, "is cancelled" if cancelled else "was not under way")


class BackupStatusTrigger(PollingTrigger):
    """Asks Weaviate how one of its backups stands.

    :param connection_id: Airflow connection of Weaviate.
    """

    parameters: ClassVar[tuple[str, ...]] = ("connection_id", "backend", "backup_id")

    def __init__(
        self,
        *,
        connection_id: str,
        backend: str,
        backup_id: str,
        poll_interval_seconds: float = 10.0,
        read_error_limit: int = 30,
        deadline_at: str | None = None,
    ) -> None:
        super().__init__(
            poll_interval_seconds=poll_interval_seconds, read_error_limit=read_error_limit, deadline_at=deadline_at
        )
        self.connection_id = connection_id
        self.backend = backend
        self.backup_id = backup_id


class WeaviateIdleTrigger(BackupStatusTrigger):
    """Wait until another backup has ended, however it ends; Weaviate makes one at a time.

    It pauses before it looks, because what is under way may be a restore, which this status does not know: then the
    caller simply tries again after each pause. The event's state is ``complete``, ``timeout`` or ``error``.

    :param backup_id: the one that is under way.
    """

    async def watch(self) -> Event:
        weaviate = await AsyncWeaviate.connect(self.connection_id)
        await self.pause()
        return await self.until(lambda: self._look(weaviate))

    async def _look(self, weaviate: AsyncWeaviate) -> Event | None:
        answer = await weaviate.backup_status(self.backend, self.backup_id)
        status = str((answer or {}).get("status") or "")
        self.log_change(f"{self.backup_id} is {status or 'not known'}")
        if status and not is_final(status):
            return None
        return {"state": "complete", "message": f"{self.backup_id} is not under way any more"}


class WeaviateEndTrigger(BackupStatusTrigger):
    """Wait until a backup that nobody wants any more has ended, and for what Weaviate still writes after that.

    What is at work is cancelled, again and again until Weaviate takes it: it may have been away when the sensor tried, and
    nobody else comes by here. The event's state is ``complete``, ``timeout`` or ``error``; ``path`` is where Weaviate says that
    the backup lies, empty when it did not say.
    """

    def __init__(
        self,
        *,
        connection_id: str,
        backend: str,
        backup_id: str,
        poll_interval_seconds: float = 5.0,
        read_error_limit: int = 24,
        deadline_at: str | None = None,
    ) -> None:
        super().__init__(
            connection_id=connection_id,
            backend=backend,
            backup_id=backup_id,
            poll_interval_seconds=poll_interval_seconds,
            read_error_limit=read_error_limit,
            deadline_at=deadline_at,
        )
        self._path = self._status = ""
        self._ended = 0

    def empty_event(self) -> Event:
        return {**super().empty_event(), "path": self._path, "status": self._status}

    async def watch(self) -> Event:
        weaviate = await AsyncWeaviate.connect(self.connection_id)
        return await self.until(lambda: self._look(weaviate))

    async def _look(self, weaviate: AsyncWeaviate) -> Event | None:
        answer = await weaviate.backup_status(self.backend, self.backup_id) or {}
        self._status = str(answer.get("status") or "")
        self._path = str(answer.get("path") or "") or self._path
        self.log_change(f"{self.backup_id} is {self._status or 'not known'}")
        if self._status and not is_final(self._status):
            self._ended = 0
            if self._status != "CANCELLING":
                await self._cancel(weaviate)
            return None
        self._ended += 1
        if self._ended < LOOKS_AFTER_THE_END:
            return None
        return {"state": "complete", "message": f"{self.backup_id} is not under way any more"}

    async def _cancel(self, weaviate: AsyncWeaviate) -> None:
        try:
            await weaviate.cancel_backup(self.backend, self.backup_id)
        except MaintenanceError as error:
            self.log_change(f"the backup {self.backup_id} could not be cancelled: {error.message}")
