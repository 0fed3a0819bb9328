"""The bucket of the backups for the one procedure that may delete in it: versions, locks, and what uploads have left."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from nephoran_maintenance.errors import MaintenanceError
from nephoran_maintenance.hooks.object_store import ObjectStoreHook

UNVERSIONED = ("NotImplemented", "VersioningNotConfigured")
"""What stores that keep no versions at all answer when they are asked for them."""


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
        """Return why the store would refuse to delete it, empty when it would not. Needs the right to read locks."""
        if stored.is_mark or stored.upload_id:
            return ""
        found = self._call("head_object", Key=stored.key, **_version(stored))
        if found.get("ObjectLockLegalHoldStatus") == "ON":
            return f"{stored.key} is under legal hold"
        until = found.get("ObjectLockRetainUntilDate")
        return f"{stored.key} is locked until {until:%Y-%m-%d}" if until is not None and until > at else ""

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
            self._delete(stored)
        return ""

    def _delete(self, stored: StoredVersion) -> None:
        if stored.upload_id:
            self._call("abort_multipart_upload", Key=stored.key, UploadId=stored.upload_id)
        else:
            self._call("delete_object", Key=stored.key, **_version(stored))

    def _versions(self, prefix: str) -> Iterator[StoredVersion]:
        try:
            for page in self._pages("list_object_versions", prefix, "VersionId"):
                for entry in page.get("Versions", ()):
                    size_bytes = int(entry.get("Size", 0))
                    yield StoredVersion(entry["Key"], entry["LastModified"], entry["VersionId"], size_bytes)
                for entry in page.get("DeleteMarkers", ()):
                    yield StoredVersion(entry["Key"], entry["LastModified"], entry["VersionId"], is_mark=True)
        except MaintenanceError as error:
            if error.context.get("code") not in UNVERSIONED:
                raise
            for entry in self._listed(prefix):
                yield StoredVersion(entry["Key"], entry["LastModified"], size_bytes=int(entry["Size"]))

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
