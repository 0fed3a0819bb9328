"""The bucket of the backups for the one procedure that may delete in it: versions, locks, and what uploads have left."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any

from nephoran_maintenance.errors import MaintenanceError, PermanentError
from nephoran_maintenance.hooks.object_store import ObjectStoreHook

NO_LOCK = ("NoSuchObjectLockConfiguration", "ObjectLockConfigurationNotFoundError", "InvalidRequest", "NotImplemented")
"""What a store answers about the lock of an object, or of a bucket, that has none."""


@dataclass(frozen=True)
class StoredVersion:
    """One version of an object, a mark of its deletion, or an upload that was not finished.

    :param version_id: None where the bucket keeps no versions.
    :param upload_id: of an unfinished upload, which has no version.
    """

    key: str
    written_at: datetime
    version_id: str | None = None
    size_bytes: int = 0
    is_mark: bool = False
    upload_id: str | None = None


class DeletingStore(ObjectStoreHook):
    """Delete for good, which in a versioned bucket means every version. Never passes by a lock."""

    def everything(self, prefix: str) -> list[StoredVersion]:
        """Return every version, deletion mark and unfinished upload below a prefix.

        An object that is renamed or deleted meanwhile may be missing or twice; both are harmless here.
        """
        uploads = self._pages("list_multipart_uploads", prefix, "UploadId")
        return [
            *self._versions(prefix),
            *(
                StoredVersion(upload["Key"], upload["Initiated"], upload_id=upload["UploadId"])
                for page in uploads
                for upload in page.get("Uploads", ())
                # Some stores take the prefix for a hint.
                if upload["Key"].startswith(prefix)
            ),
        ]

    def lock_of(self, stored: StoredVersion, at: datetime) -> str:
        """Return why the store would refuse to delete it, empty when it would not. Needs the right to read locks.

        Some stores keep no lock with the object where it is the bucket's own rule: so that rule counts in any case.
        """
        if stored.is_mark or stored.upload_id or self._rule is None:
            return ""
        hold = self._lock_facts("get_object_legal_hold", Key=stored.key, **_version(stored)).get("LegalHold", {})
        if hold.get("Status") == "ON":
            return f"{stored.key} is under legal hold"
        own = self._lock_facts("get_object_retention", Key=stored.key, **_version(stored)).get("Retention", {})
        until = max(stored.written_at + self._rule, own.get("RetainUntilDate", stored.written_at))
        locked = until > max(at, stored.written_at)
        return f"{stored.key} is locked until {until:%Y-%m-%d}" if locked else ""

    def locked_until(self, key: str) -> datetime | None:
        """Return until when the store refuses to delete the newest version of an object; None: it is not locked."""
        if self._rule is None:
            return None
        written_at: datetime = self._call("head_object", Key=key)["LastModified"]
        own = self._lock_facts("get_object_retention", Key=key).get("Retention", {})
        until: datetime = max(written_at + self._rule, own.get("RetainUntilDate", written_at))
        return until if until > written_at else None

    @cached_property
    def _rule(self) -> timedelta | None:
        """For how long the bucket locks what is written; zero where it may lock and has no rule, None where it can't."""
        found = self._lock_facts("get_object_lock_configuration").get("ObjectLockConfiguration", {})
        if found.get("ObjectLockEnabled") != "Enabled":
            return None
        rule = found.get("Rule", {}).get("DefaultRetention", {})
        return timedelta(days=int(rule.get("Days", 0)) + 366 * int(rule.get("Years", 0)))

    def _lock_facts(self, operation: str, **parameters: Any) -> dict[str, Any]:
        try:
            return dict(self._call(operation, **parameters))
        except MaintenanceError as error:
            if error.reference == "not-found" or error.context.get("code") in NO_LOCK:
                return {}
            raise

    def delete_all(self, chosen: Iterable[StoredVersion], at: datetime, first: str) -> str:
        """Delete everything of a folder, or nothing of it where anything is locked; return why not, or nothing.

        Safe to repeat: yes.

        :param first: key of what makes it count, which goes before the rest: killed in between, what is left counts as
            nothing. Of its versions the oldest goes first, so that none of them comes to light again.
        """
        ordered = sorted(chosen, key=lambda stored: (stored.key != first, stored.written_at))
        for stored in ordered:
            if lock := self.lock_of(stored, at):
                return lock
        for stored in ordered:
            self.delete(stored)
        return ""

    def delete(self, stored: StoredVersion) -> None:
        """Delete one version for good, or end one unfinished upload."""
        if stored.upload_id:
            self._call("abort_multipart_upload", Key=stored.key, UploadId=stored.upload_id)
        else:
            self._call("delete_object", Key=stored.key, **_version(stored))

    def _versions(self, prefix: str) -> Iterator[StoredVersion]:
        if not self._keeps_versions():
            for entry in self._listed(prefix):
                yield StoredVersion(entry["Key"], entry["LastModified"], size_bytes=int(entry["Size"]))
            return
        for page in self._pages("list_object_versions", prefix, "VersionId"):
            for entry in page.get("Versions", ()):
                size_bytes = int(entry.get("Size", 0))
                yield StoredVersion(entry["Key"], entry["LastModified"], entry["VersionId"], size_bytes)
            for entry in page.get("DeleteMarkers", ()):
                yield StoredVersion(entry["Key"], entry["LastModified"], entry["VersionId"], is_mark=True)

    def _keeps_versions(self) -> bool:
        try:
            return bool(self._call("get_bucket_versioning").get("Status"))
        except PermanentError as error:
            # versitygw tells it the bucket's owner alone. Where there are no versions, a list of them has one of each.
            if error.reference == "object-store-forbidden":
                return True
            raise

    def _pages(self, operation: str, prefix: str, second: str) -> Iterator[dict[str, Any]]:
        options: dict[str, Any] = {}
        while True:
            page = self._call(operation, Prefix=prefix, **options)
            yield page
            if not page.get("IsTruncated"):
                return
            options = {"KeyMarker": page["NextKeyMarker"], f"{second}Marker": page[f"Next{second}Marker"]}


def _version(stored: StoredVersion) -> dict[str, str]:
    return {"VersionId": stored.version_id} if stored.version_id else {}
