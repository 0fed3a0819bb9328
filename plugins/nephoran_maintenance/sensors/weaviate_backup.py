"""Have Weaviate make a backup and wait for it, without a worker."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, NoReturn

from airflow.sdk import BaseSensorOperator

from nephoran_maintenance.airflow_edge import airflow_errors
from nephoran_maintenance.domain.weaviate_backup import (
    CANCELLED,
    folder_in_bucket,
    has_incremental,
    is_final,
    is_reindexing,
    reindexing_error,
)
from nephoran_maintenance.errors import MaintenanceError, PermanentError, TransientError
from nephoran_maintenance.triggers.weaviate_backup import WeaviateBackupTrigger, WeaviateIdleTrigger

if TYPE_CHECKING:
    from airflow.sdk import Context

    from nephoran_maintenance.hooks.weaviate_api import WeaviateHook

CANCELLED_BY_US = ("stalled", "timeout", "error")
"""States after which the backup may still be at work, so that it is cancelled."""


class WeaviateBackupSensor(BaseSensorOperator):
    """Start a backup of all collections, unless it was started before, and wait until it has ended.

    Weaviate makes one backup at a time: while another is under way this one waits for its turn. Once it is late, stands
    still, can't be judged or is killed, the backup is cancelled, so that nothing blocks the next one. One that has failed
    because an index may be rebuilt is taken out of the staging bucket, and its id with it: the next try begins it anew.

    Returns ``{"backup_id", "status", "progress", "incremental_base_id", "incremental": "yes" | why not,
    "staged_objects", "staged_bytes", "size_gib", "path": where it lies, "started_at", "completed_at", "weaviate_version",
    "seconds"}``.

    Safe to repeat: yes, the id is derived from the operation, and its status is looked at before it is started.

    :param weaviate_connection_id: Airflow connection of Weaviate.
    :param backend: ``s3``, ``gcs`` or ``azure``; ``filesystem`` on a single node only.
    :param backup_id: lower-case letters, digits, ``_`` and ``-``.
    :param base_id: build on this backup, where the server can; empty: a full one.
    :param staging_connection_id: the staging bucket's, whose growth is progress; None: not measured, and nothing is taken
        out of it.
    :param staging_prefix: where this backup lies in it; empty: where Weaviate says.
    :param no_progress_limit: give up after so long without a new status or a new byte.
    :param backup_timeout: give up after so long altogether, the wait for another backup included. The default is that of
        Weaviate's own store timeout, 24 hours.
    """

    template_fields: Sequence[str] = ("backend", "backup_id", "base_id", "staging_bucket", "staging_prefix")

    def __init__(
        self,
        *,
        weaviate_connection_id: str,
        backend: str,
        backup_id: str,
        base_id: str = "",
        staging_connection_id: str | None = None,
        staging_bucket: str | None = None,
        staging_prefix: str = "",
        no_progress_limit: timedelta = timedelta(minutes=30),
        backup_timeout: timedelta = timedelta(hours=24),
        poll_interval: timedelta = timedelta(seconds=2),
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("retries", 2)
        kwargs.setdefault("retry_delay", timedelta(seconds=5))
        super().__init__(**kwargs)
        self.weaviate_connection_id = weaviate_connection_id
        self.backend = backend
        self.backup_id = backup_id
        self.base_id = base_id
        self.staging_connection_id = staging_connection_id
        self.staging_bucket = staging_bucket
        self.staging_prefix = staging_prefix
        self.no_progress_limit = no_progress_limit
        self.backup_timeout = backup_timeout
        self.poll_interval = poll_interval

    def execute(self, context: Context) -> dict[str, Any]:
        with airflow_errors():
            return self._look(self.now() + self.backup_timeout)

    def resume(self, context: Context, event: dict[str, Any], deadline_at: str) -> dict[str, Any]:
        """Continue when the other backup has ended."""
        with airflow_errors():
            if event["state"] != "complete":
                raise TransientError(
                    "weaviate-backup-in-progress",
                    f"another backup was under way until the end: {event['message']}",
                    context={"backup": self.backup_id},
                    hint="Look at that backup; cancel it if nobody waits for it.",
                )
            return self._look(datetime.fromisoformat(deadline_at))

    def conclude(self, context: Context, event: dict[str, Any]) -> dict[str, Any]:
        """Continue with the trigger's event."""
        with airflow_errors():
            return self._conclude(event)

    def on_kill(self) -> None:
        """Cancel the backup when the worker is killed while it looks; the trigger does so while it waits."""
        self._cancel()

    # ------------------------------------------------------------------------------------------------------ the steps

    def _look(self, deadline_at: datetime) -> dict[str, Any]:
        weaviate = self._weaviate()
        answer = weaviate.backup_status(self.backend, self.backup_id)
        if answer is None or answer.get("status") in CANCELLED:  # an id that was cancelled may be used again
            try:
                answer = weaviate.create_backup(self.backend, self.backup_id, base_id=self._base_of(weaviate)[0])
            except TransientError as error:
                if error.reference != "weaviate-backup-in-progress":
                    raise
                self.log.info("%s", error.message)
                self._wait_for_other(str(error.context["other_id"]), deadline_at)
            self.log.info("Weaviate has started the backup %s", self.backup_id)
        if not is_final(str(answer.get("status") or "")):
            self._wait(deadline_at, self._folder(str(answer.get("path") or "")))
        states = {"SUCCESS": "complete", "FAILED": "failed"}
        status = str(answer["status"])
        message = str(answer.get("error") or "")
        return self._conclude({"state": states.get(status, "cancelled"), "message": message, "answer": answer})

    def _base_of(self, weaviate: WeaviateHook) -> tuple[str | None, str]:
        """Return the base to build on, and why there is none."""
        if not self.base_id:
            return None, "a full one was asked for"
        version = weaviate.version()
        if not has_incremental(version):
            return None, f"Weaviate {version} can't: 1.37 can"
        return self.base_id, ""

    def _folder(self, path: str) -> str:
        """Return where the backup lies in the staging bucket.

        :raises PermanentError: ``weaviate-staging-elsewhere``, once it is cancelled.
        """
        if self.staging_prefix or not self.staging_bucket:
            return self.staging_prefix
        try:
            return folder_in_bucket(path, self.staging_bucket, self.backup_id)
        except PermanentError:
            self._cancel()
            raise

    def _wait(self, deadline_at: datetime, folder: str) -> NoReturn:
        self.defer(
            trigger=WeaviateBackupTrigger(
                connection_id=self.weaviate_connection_id,
                backend=self.backend,
                backup_id=self.backup_id,
                no_progress_limit_seconds=self.no_progress_limit.total_seconds(),
                staging_connection_id=self.staging_connection_id,
                staging_bucket=self.staging_bucket,
                staging_prefix=folder,
                poll_interval_seconds=self.poll_interval.total_seconds(),
                deadline_at=deadline_at.isoformat(),
            ),
            method_name="conclude",
            # The trigger's own deadline answers in an event; this one only catches a triggerer that is gone.
            timeout=max(deadline_at - self.now(), timedelta()) + timedelta(minutes=5),
        )

    def _wait_for_other(self, other_id: str, deadline_at: datetime) -> NoReturn:
        self.defer(
            trigger=WeaviateIdleTrigger(
                connection_id=self.weaviate_connection_id,
                backend=self.backend,
                backup_id=other_id,
                deadline_at=deadline_at.isoformat(),
            ),
            method_name="resume",
            kwargs={"deadline_at": deadline_at.isoformat()},
            timeout=max(deadline_at - self.now(), timedelta()) + timedelta(minutes=5),
        )

    def _conclude(self, event: dict[str, Any]) -> dict[str, Any]:
        answer = event.get("answer") or {}
        if event["state"] == "complete":
            weaviate = self._weaviate()
            base = str(answer.get("incremental_base_backup_id") or "")
            why_full = "" if base else self._base_of(weaviate)[1]
            result = {
                "backup_id": self.backup_id,
                "status": str(answer.get("status") or ""),
                "progress": event.get("progress", ""),
                "incremental_base_id": base,
                "incremental": "yes" if base else why_full or "Weaviate does not say that it built on the base",
                "staged_objects": event.get("staged_objects"),
                "staged_bytes": event.get("staged_bytes"),
                "size_gib": answer.get("size"),
                "path": str(answer.get("path") or ""),
                "started_at": answer.get("startedAt"),
                "completed_at": answer.get("completedAt"),
                "weaviate_version": weaviate.version(),
                "seconds": event.get("seconds"),
            }
            self.log.info("Weaviate's backup %s is complete: %s", self.backup_id, result["progress"])
            return result
        if event["state"] == "failed":
            answer = self._with_reason(answer)
            event = {**event, "message": str(answer.get("error") or event["message"])}
            if is_reindexing(event["message"]) and self._take_out(answer):
                raise reindexing_error(self.backup_id, event["message"])
        ended = ""
        if event["state"] in CANCELLED_BY_US:
            ended = "; it was cancelled" if self._cancel() else "; it could not be cancelled"
        raise PermanentError(
            "weaviate-backup-failed",
            f"Weaviate's backup {self.backup_id} is {event['state']}: {event['message']}{ended}",
            context={
                "backup": self.backup_id,
                "backend": self.backend,
                "status": answer.get("status"),
                "reference": event.get("reference"),
            },
            hint=event.get("hint") or "Read Weaviate's log and its access to the bucket; then make a new backup.",
        )

    def _with_reason(self, answer: dict[str, Any]) -> dict[str, Any]:
        """Return the answer about a failed backup; Weaviate 1.39 has no reason in it for a moment."""
        if answer.get("error"):
            return answer
        return self._weaviate().backup_status(self.backend, self.backup_id) or answer

    def _take_out(self, answer: dict[str, Any]) -> bool:
        """Delete what a failed backup has left in the staging bucket, so that its id can be used again.

        It has ended on all nodes then, or is about to: while one is still at it, Weaviate begins no other.
        """
        if not (self.staging_connection_id and self.staging_bucket):
            return False
        from nephoran_maintenance.hooks.staging import StagingBucket

        folder = folder_in_bucket(str(answer.get("path") or ""), self.staging_bucket, self.backup_id)
        staging = StagingBucket(self.staging_connection_id, bucket=self.staging_bucket)
        # What it says of itself goes last: until then a killed try is repeated from here.
        deleted = staging.clear(folder) + staging.clear(folder, keep_descriptors=False)
        self.log.info("%d objects of the failed backup %s are out of the staging bucket", deleted, self.backup_id)
        return True

    def _cancel(self) -> bool:
        """Cancel the backup, best effort; True when Weaviate took the request."""
        try:
            return self._weaviate().cancel_backup(self.backend, self.backup_id)
        except MaintenanceError as error:
            self.log.warning("The backup %s could not be cancelled: %s", self.backup_id, error)
            return False

    @staticmethod
    def now() -> datetime:
        """Return the moment that deadlines are counted from."""
        return datetime.now(UTC)

    def _weaviate(self) -> WeaviateHook:
        from nephoran_maintenance.hooks.weaviate_api import WeaviateHook

        return WeaviateHook(self.weaviate_connection_id)
