"""Where reports, samples and backups are kept: an S3 bucket, or a local folder when no connection is configured."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from nephoran_maintenance.errors import MaintenanceError, PermanentError, TransientError
from nephoran_maintenance.hooks.connections import read_connection
from nephoran_maintenance.hooks.outside_text import excerpt

Keys = list[str]
BLOCK_BYTES = 128 * 1024
"""Small enough for the allocator to use the same memory again; larger blocks are zeroed by the kernel each time."""
SMALLEST_PART_BYTES = 5 * 1024 * 1024
PARTS_OF_A_SIZE = 1000
LONGEST_DOUBLING = 4
MOST_PARTS = 10_000
"""S3's own limit. Parts of 5 MiB that double after each thousand, up to 80 MiB, make room for 542 GiB."""
PARTS_UNDER_WAY = 2


@dataclass(frozen=True)
class Stored:
    """What an upload left in the store.

    :param version_id: the bucket's version of the object; None where the bucket keeps no versions.
    """

    key: str
    size_bytes: int
    sha256: str
    version_id: str | None = None


class ObjectStoreHook:
    """Store and read objects by key, such as ``reports/rolling_upgrade/<operation>/report.json``.

    :param connection_id: an Airflow connection of type ``aws``, or None for the local folder.
    :param bucket: the bucket's name; needed with a connection.
    :param local_folder: the folder that stands in for the bucket; needed without a connection.
    """

    def __init__(
        self,
        connection_id: str | None = None,
        *,
        bucket: str | None = None,
        local_folder: str | Path | None = None,
    ) -> None:
        self.connection_id = connection_id
        self.bucket = bucket
        self.local_folder = Path(local_folder) if local_folder is not None else None
        if (connection_id and not bucket) or (not connection_id and local_folder is None):
            raise PermanentError(
                "object-store-unconfigured",
                "neither a connection with a bucket nor a local folder was given to keep objects in",
                context={"connection": connection_id, "bucket": bucket},
                hint="Name a connection and a bucket in the profile, or a local folder in the settings.",
            )

    def url(self, key: str) -> str:
        """Return the address of an object as people write it: ``s3://bucket/key`` or a path."""
        return f"s3://{self.bucket}/{_checked(key)}" if self.connection_id else str(self._path(key))

    def put_text(self, key: str, text: str, *, content_type: str = "text/plain; charset=utf-8") -> str:
        """Store a text and return its address. Safe to repeat: yes, the same key is replaced as a whole."""
        return self.put_bytes(key, text.encode(), content_type=content_type)

    def put_bytes(self, key: str, data: bytes, *, content_type: str = "application/octet-stream") -> str:
        """Store bytes and return their address. Safe to repeat: yes, the same key is replaced as a whole."""
        if self.connection_id:
            self._call("put_object", Key=_checked(key), Body=data, ContentType=content_type)
        else:
            _write_whole(self._path(key), data)
        return self.url(key)

    def get_bytes(self, key: str) -> bytes:
        """Return an object's content.

        :raises PermanentError: ``not-found``.
        """
        return b"".join(self.read_blocks(key))

    def get_text(self, key: str) -> str:
        """Return an object's content as text.

        :raises PermanentError: ``not-found``.
        """
        return self.get_bytes(key).decode()

    def exists(self, key: str) -> bool:
        """Return whether an object of this key exists."""
        if not self.connection_id:
            return self._path(key).is_file()
        try:
            self._call("head_object", Key=_checked(key))
        except PermanentError as error:
            if error.reference == "not-found":
                return False
            raise
        return True

    def list(self, prefix: str = "") -> Keys:
        """Return the keys that start with a prefix, sorted."""
        if not self.connection_id:
            folder = self._folder
            keys = (path.relative_to(folder).as_posix() for path in folder.rglob("[!.]*") if path.is_file())
            return sorted(key for key in keys if key.startswith(prefix))
        return sorted(entry["Key"] for entry in self._listed(prefix))

    def _listed(self, prefix: str) -> Iterator[dict[str, Any]]:
        """Yield the bucket's own entry of every object below a prefix, page by page."""
        options: dict[str, Any] = {}
        while True:
            page = self._call("list_objects_v2", Prefix=prefix, **options)
            yield from page.get("Contents", ())
            if not page.get("IsTruncated"):
                return
            options = {"ContinuationToken": page["NextContinuationToken"]}

    @contextlib.contextmanager
    def uploading(self, key: str) -> Iterator[Upload]:
        """Store an object of any size that is written block by block: it exists as a whole after the block, or not at all.

        ``upload.stored`` says afterwards what was stored. An error inside the block takes all parts away again. What an
        earlier try left of this key, killed before it could do so, is taken away first. Safe to repeat: yes.
        """
        upload: Upload = _S3Upload(self, _checked(key)) if self.connection_id else _FileUpload(key, self._path(key))
        try:
            yield upload
            upload.finish()
        except BaseException:
            upload.abort()
            raise

    def read_blocks(self, key: str, version_id: str | None = None) -> Iterator[bytes]:
        """Yield an object's content in blocks of at most 128 KiB.

        :raises PermanentError: ``not-found``; ``object-damaged``, after the last block, when the checksum that the store has
            of the object is not that of its content.
        :raises TransientError: ``object-store-unreachable`` when it is cut off on the way.
        """
        if not self.connection_id:
            try:
                with self._path(key).open("rb") as file:
                    while block := file.read(BLOCK_BYTES):
                        yield block
            except FileNotFoundError as error:
                raise self._missing(key) from error
            return
        from botocore.exceptions import BotoCoreError, FlexibleChecksumError, HTTPClientError

        version = {"VersionId": version_id} if version_id else {}
        with contextlib.closing(self._call("get_object", Key=_checked(key), **version)["Body"]) as body:
            try:
                yield from body.iter_chunks(BLOCK_BYTES)
            except FlexibleChecksumError as error:
                raise PermanentError(
                    "object-damaged",
                    f"{self.url(key)} is not what was stored: {excerpt(str(error))}",
                    context={"bucket": self.bucket, "key": key},
                    hint="Use nothing of it. Look for an earlier version of it, and at the health of the store's disks.",
                ) from error
            except (BotoCoreError, HTTPClientError) as error:
                raise self._unreachable(error) from error

    def object_lock(self) -> str:
        """Return how the bucket locks new objects: ``COMPLIANCE 90 days``, ``none``, or ``not measured``."""
        if not self.connection_id:
            return "none"
        try:
            found = self._call("get_object_lock_configuration").get("ObjectLockConfiguration", {})
        except MaintenanceError as error:
            unlocked = error.context.get("code") == "ObjectLockConfigurationNotFoundError"
            return "none" if unlocked else "not measured"
        rule = found.get("Rule", {}).get("DefaultRetention", {})
        if found.get("ObjectLockEnabled") != "Enabled" or not rule:
            return "none"
        length = f"{rule['Days']} days" if "Days" in rule else f"{rule.get('Years')} years"
        return f"{rule.get('Mode')} {length}"

    def locked_until(self, key: str) -> datetime | None:
        """Return until when the store refuses to delete an object; None: it is not locked.

        :raises PermanentError: ``not-found``.
        """
        if not self.connection_id:
            return None
        found = self._call("head_object", Key=_checked(key)).get("ObjectLockRetainUntilDate")
        return found if isinstance(found, datetime) else None

    @property
    def _folder(self) -> Path:
        return self.local_folder if self.local_folder is not None else Path()

    def _path(self, key: str) -> Path:
        return self._folder / _checked(key)

    @cached_property
    def _client(self) -> Any:
        connection_id = str(self.connection_id)
        # A clear error when it is missing: the provider would fall back to the environment's credentials.
        extra = read_connection(connection_id).extra_dejson
        from airflow.providers.amazon.aws.hooks.s3 import S3Hook
        from botocore.config import Config

        # A given configuration replaces the connection's own, which has the addressing style: hence both here.
        limits = {"connect_timeout": 5, "read_timeout": 30, "retries": {"total_max_attempts": 3, "mode": "standard"}}
        hook = S3Hook(aws_conn_id=connection_id, config=Config(**{**limits, **extra.get("config_kwargs", {})}))
        return hook.get_conn()

    def _call(self, operation: str, **parameters: Any) -> Any:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            return getattr(self._client, operation)(Bucket=self.bucket, **parameters)
        except ClientError as error:
            raise self._refused(operation, parameters.get("Key", ""), error) from error
        except BotoCoreError as error:
            raise self._unreachable(error) from error

    def _unreachable(self, error: Exception) -> TransientError:
        return TransientError(
            "object-store-unreachable",
            f"the object store of connection {self.connection_id!r} does not answer: {excerpt(str(error))}",
            context={"connection": self.connection_id, "bucket": self.bucket},
            hint="Check the connection's endpoint_url and that it accepts connections from this machine.",
        )

    def _refused(self, operation: str, key: str, error: Any) -> MaintenanceError:
        code = str(error.response.get("Error", {}).get("Code", ""))
        status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        context = {"connection": self.connection_id, "bucket": self.bucket, "key": key, "code": code}
        if code == "NoSuchBucket":
            return PermanentError(
                "bucket-not-found",
                f"there is no bucket {self.bucket!r}",
                context=context,
                hint="Create the bucket, or correct its name in the profile.",
            )
        if status == 404 and key:
            return self._missing(key)
        text = f"the object store refused {operation} of {key!r} in bucket {self.bucket!r}: {excerpt(str(error))}"
        if status in (401, 403):
            hint = f"Check the keys of connection {self.connection_id!r} and what they may do in the bucket."
            return PermanentError("object-store-forbidden", text, context=context, hint=hint)
        if status == 429 or status >= 500:
            hint = "Try again; if it stays, look at the object store's health."
            return TransientError("object-store-unavailable", text, context=context, hint=hint)
        return PermanentError("object-store-rejected", text, context=context, hint="Correct what the answer names.")

    def _missing(self, key: str) -> PermanentError:
        return PermanentError(
            "not-found",
            f"there is no object {self.url(key)}",
            context={"key": key},
            hint="Check the operation id and where reports are kept.",
        )


class Upload:
    """Takes an object's content block by block and counts it."""

    def __init__(self, key: str) -> None:
        self.key = key
        self.stored: Stored | None = None
        self._size_bytes = 0
        self._digest = hashlib.sha256()

    def write(self, block: bytes) -> None:
        self._digest.update(block)
        self._size_bytes += len(block)
        self._take(block)

    def finish(self) -> None:
        version_id = self._complete()
        self.stored = Stored(self.key, self._size_bytes, self._digest.hexdigest(), version_id)

    def abort(self) -> None:
        """Leave nothing of it in the store. Safe to repeat: yes."""
        raise NotImplementedError

    def _take(self, block: bytes) -> None:
        raise NotImplementedError

    def _complete(self) -> str | None:
        raise NotImplementedError


class _FileUpload(Upload):
    def __init__(self, key: str, path: Path) -> None:
        super().__init__(key)
        self._target = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._draft = path.with_name(f".{path.name}.part")
        self._file = self._draft.open("wb")

    def _take(self, block: bytes) -> None:
        self._file.write(block)

    def _complete(self) -> None:
        self._file.close()
        self._draft.replace(self._target)

    def abort(self) -> None:
        self._file.close()
        self._draft.unlink(missing_ok=True)


class _S3Upload(Upload):
    """A multipart upload with two parts under way; an object smaller than a part is put at once.

    Three parts are in memory, the one that is filled and the two under way, and the same three all the time: the kernel
    zeroes what is allocated, which costs more than a copy.
    """

    def __init__(self, store: ObjectStoreHook, key: str) -> None:
        super().__init__(key)
        self._store = store
        self._upload_id: str | None = None
        self._part = bytearray()
        self._filled_bytes = 0
        self._parts: list[tuple[int, str]] = []
        self._under_way: list[tuple[int, bytearray, Future[str]]] = []
        self._spare: list[bytearray] = []
        self._senders = ThreadPoolExecutor(PARTS_UNDER_WAY, thread_name_prefix="upload")
        self._take_left_overs_away()

    def _take(self, block: bytes) -> None:
        rest = memoryview(block)
        while rest:
            if not self._part:
                self._part = self._empty_part()
            taken = rest[: len(self._part) - self._filled_bytes]
            self._part[self._filled_bytes : self._filled_bytes + len(taken)] = taken
            self._filled_bytes += len(taken)
            rest = rest[len(taken) :]
            if self._filled_bytes == len(self._part):
                self._send()

    def _empty_part(self) -> bytearray:
        size_bytes = part_bytes(len(self._parts) + len(self._under_way) + 1)
        while self._spare:
            if len(part := self._spare.pop()) == size_bytes:
                return part
        return bytearray(size_bytes)

    def _filled_part(self) -> bytearray:
        part, self._part = self._part, bytearray()
        del part[self._filled_bytes :]
        self._filled_bytes = 0
        return part

    def _send(self) -> None:
        if self._upload_id is None:
            self._upload_id = str(self._store._call("create_multipart_upload", Key=self.key)["UploadId"])
        number = len(self._parts) + len(self._under_way) + 1
        if number > MOST_PARTS:
            raise PermanentError(
                "archive-too-large",
                f"{self._store.url(self.key)} has more parts than S3 allows",
                context={"size_bytes": self._size_bytes},
                hint="Back the parts of this source up one by one: exclude some of it in the parameters.",
            )
        if len(self._under_way) == PARTS_UNDER_WAY:
            self._await_oldest()
        part = self._filled_part()
        self._under_way.append((number, part, self._senders.submit(self._send_part, number, part)))

    def _send_part(self, number: int, part: bytearray) -> str:
        # Not as bytes: botocore would join these with the head of the request, and so have them twice.
        answer = self._store._call("upload_part", Key=self.key, UploadId=self._upload_id, PartNumber=number, Body=part)
        return str(answer["ETag"])

    def _await_oldest(self) -> None:
        number, part, future = self._under_way.pop(0)
        self._parts.append((number, future.result()))
        self._spare.append(part)

    def _complete(self) -> str | None:
        if self._upload_id is None:
            answer = self._store._call("put_object", Key=self.key, Body=self._filled_part())
        else:
            if self._filled_bytes:
                self._send()
            while self._under_way:
                self._await_oldest()
            parts = [{"PartNumber": number, "ETag": tag} for number, tag in self._parts]
            answer = self._store._call(
                "complete_multipart_upload", Key=self.key, UploadId=self._upload_id, MultipartUpload={"Parts": parts}
            )
        self._senders.shutdown()
        version = answer.get("VersionId")
        return str(version) if version else None

    def abort(self) -> None:
        # A part that arrives after the abort would stay: none may be under way.
        self._senders.shutdown(wait=True, cancel_futures=True)
        if self._upload_id is not None:
            with contextlib.suppress(MaintenanceError):
                self._store._call("abort_multipart_upload", Key=self.key, UploadId=self._upload_id)

    def _take_left_overs_away(self) -> None:
        found = self._store._call("list_multipart_uploads", Prefix=self.key).get("Uploads", ())
        for upload in found:
            if upload["Key"] == self.key:
                with contextlib.suppress(PermanentError):
                    self._store._call("abort_multipart_upload", Key=self.key, UploadId=upload["UploadId"])


def part_bytes(number: int) -> int:
    """Return the size of a part by its number, from 1."""
    return int(SMALLEST_PART_BYTES * 2 ** min((number - 1) // PARTS_OF_A_SIZE, LONGEST_DOUBLING))


def _checked(key: str) -> str:
    """Return a key, which may not lead out of the bucket's stand-in folder.

    :raises PermanentError: ``object-key-invalid``.
    """
    parts = key.split("/")
    if not key or key.startswith("/") or any(part in ("", ".", "..") for part in parts):
        raise PermanentError(
            "object-key-invalid",
            f"{key!r} is not a key of an object",
            context={"key": key},
            hint="A key is a relative path without empty parts and without dots alone.",
        )
    return key


def _write_whole(path: Path, data: bytes) -> None:
    """Write a file so that a reader sees the old content or the new one, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
