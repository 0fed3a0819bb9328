"""The staging bucket: where Weaviate's own backups lie on their way, and where this product may read and delete."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from nephoran_maintenance.domain.weaviate_backup import Staged
from nephoran_maintenance.errors import MaintenanceError, PermanentError, TransientError
from nephoran_maintenance.hooks.connections import read_connection_async
from nephoran_maintenance.hooks.object_store import BLOCK_BYTES, ObjectStoreHook
from nephoran_maintenance.hooks.outside_text import excerpt

NO_VERSIONING = ("NotImplemented", "VersioningNotConfigured")
"""What a store answers that keeps no versions at all."""

TRIAL = "nephoran-maintenance-trial"
"""An empty object that shows whether a bucket keeps versions."""


@dataclass(frozen=True)
class StagedFile:
    """One object of the staging bucket."""

    key: str
    size_bytes: int


class StagingBucket(ObjectStoreHook):
    """List and stream what lies below a prefix."""

    @classmethod
    async def connect(cls, connection_id: str, bucket: str) -> StagingBucket:
        """Return a bucket for a trigger, whose connection is read without blocking the event loop.

        Keys of the connection are used as they are, without assuming a role; without keys those of the machine.
        """
        connection, extra = await read_connection_async(connection_id)
        staging = cls(connection_id, bucket=bucket)

        def client() -> Any:
            import boto3
            from botocore.config import Config

            limits = {"connect_timeout": 5, "read_timeout": 30, "retries": {"total_max_attempts": 2}}
            return boto3.session.Session(
                aws_access_key_id=connection.login or None,
                aws_secret_access_key=connection.password or None,
                region_name=extra.get("region_name"),
            ).client(
                "s3",
                endpoint_url=extra.get("endpoint_url"),
                verify=extra.get("verify"),
                config=Config(**{**limits, **extra.get("config_kwargs", {})}),
            )

        staging.__dict__["_client"] = await asyncio.to_thread(client)
        return staging

    def files(self, prefix: str) -> Iterator[StagedFile]:
        """Return every object below a prefix, in the order of the keys."""
        return (StagedFile(entry["Key"], int(entry["Size"])) for entry in self._listed(prefix))

    def usage(self, prefix: str) -> Staged:
        """Return how much lies below a prefix."""
        sizes = [file.size_bytes for file in self.files(prefix)]
        return Staged(len(sizes), sum(sizes))

    def refuse_versions(self) -> None:
        """Refuse a bucket in which what is deleted stays as an older version, in clear.

        One whose versioning is suspended is refused too: what was written before stays in it.

        :raises PermanentError: ``staging-versioned``.
        """
        try:
            status = str(self._call("get_bucket_versioning").get("Status") or "")
        except MaintenanceError as error:
            if error.reference == "object-store-forbidden":
                status = self._version_of_a_trial()
            elif error.context.get("code") in NO_VERSIONING:
                return
            else:
                raise
        if status:
            raise PermanentError(
                "staging-versioned",
                f"the staging bucket {self.bucket!r} keeps versions ({status}): what is deleted there stays, in clear",
                context={"connection": self.connection_id, "bucket": self.bucket},
                hint="Have Weaviate write into a bucket that was never versioned, and name it in backup.staging_bucket.",
            )

    def _version_of_a_trial(self) -> str:
        """Return what version a store gives to an object, empty when it keeps none.

        For stores that tell how a bucket is versioned to its owner alone, such as versitygw.
        """
        version = str(self._call("put_object", Key=TRIAL, Body=b"").get("VersionId") or "")
        if not version:
            self._call("delete_object", Key=TRIAL)
            return ""
        with contextlib.suppress(MaintenanceError):  # it is empty, and the bucket is refused anyhow
            self._call("delete_object", Key=TRIAL, VersionId=version)
        return f"an object has the version {version}"

    def folders_of(self, backup_id: str) -> list[str]:
        """Return where a backup's objects and unfinished uploads lie, each folder with a slash at its end.

        Weaviate writes below its own ``BACKUP_S3_PATH``, which only it can tell; this is for when it does not answer.
        """
        keys = [file.key for file in self.files("")] + [key for key, _ in self._uploads("")]
        parts = (f"/{key}".partition(f"/{backup_id}/") for key in keys)
        return sorted({f"{head}/{backup_id}/".removeprefix("/") for head, found, _ in parts if found})

    def clear(self, prefix: str, *, keep_descriptors: bool = True) -> int:
        """Delete what lies below a prefix, apart from descriptors (``.json``), and end uploads that were not finished.

        Returns how many objects and uploads that were. An increment needs of the backups before it nothing but the
        descriptors. Safe to repeat: yes.
        """
        deleted = 0
        for key, upload_id in self._uploads(prefix):
            try:
                self._call("abort_multipart_upload", Key=key, UploadId=upload_id)
            except PermanentError as error:
                if error.reference != "not-found":  # it was finished, or ended, meanwhile
                    raise
            deleted += 1
        for file in self.files(prefix):
            if not (keep_descriptors and file.key.endswith(".json")):
                self._call("delete_object", Key=file.key)
                deleted += 1
        return deleted

    def _uploads(self, prefix: str) -> list[tuple[str, str]]:
        """Return key and id of every unfinished upload below a prefix."""
        found: list[tuple[str, str]] = []
        options: dict[str, Any] = {}
        while True:
            page = self._call("list_multipart_uploads", Prefix=prefix, **options)
            # Some stores take the prefix for a hint.
            uploads = [upload for upload in page.get("Uploads", ()) if upload["Key"].startswith(prefix)]
            found += [(upload["Key"], upload["UploadId"]) for upload in uploads]
            if not page.get("IsTruncated"):
                return found
            options = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}

    def chunks(self, file: StagedFile) -> Iterator[bytes]:
        """Yield the content of an object, read once.

        :raises TransientError: ``object-store-cut-off`` when it ends early or differs in length from what was listed.
        """
        from botocore.exceptions import BotoCoreError, HTTPClientError

        answer = self._call("get_object", Key=file.key)
        read = 0
        with contextlib.closing(answer["Body"]) as body:
            try:
                for chunk in body.iter_chunks(BLOCK_BYTES):
                    read += len(chunk)
                    yield chunk
            except (BotoCoreError, HTTPClientError, OSError) as error:
                raise self._cut_off(file, read, excerpt(f"{type(error).__name__}: {error}")) from error
        if read != file.size_bytes:
            raise self._cut_off(file, read, "it was changed while it was read")

    def _cut_off(self, file: StagedFile, read: int, why: str) -> TransientError:
        return TransientError(
            "object-store-cut-off",
            f"{self.url(file.key)} has {file.size_bytes} bytes, of which {read} were read: {why}",
            context={"connection": self.connection_id, "bucket": self.bucket, "key": file.key},
            hint="Start the step again; if it stays, look at the object store's health.",
        )
