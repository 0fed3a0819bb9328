"""Where reports and samples are kept: an S3 bucket, or a local folder when no connection is configured."""

from __future__ import annotations

import contextlib
import os
import tempfile
from functools import cached_property
from pathlib import Path
from typing import Any

from nephoran_maintenance.errors import MaintenanceError, PermanentError, TransientError
from nephoran_maintenance.hooks.connections import read_connection
from nephoran_maintenance.hooks.outside_text import excerpt

Keys = list[str]


class ObjectStoreHook:
    """Store and read small objects by key, such as ``reports/rolling_upgrade/<operation>/report.json``.

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
        if self.connection_id:
            with contextlib.closing(self._call("get_object", Key=_checked(key))["Body"]) as body:
                return bytes(body.read())
        try:
            return self._path(key).read_bytes()
        except FileNotFoundError as error:
            raise self._missing(key) from error

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
        found: Keys = []
        options: dict[str, Any] = {}
        while True:
            page = self._call("list_objects_v2", Prefix=prefix, **options)
            found += [entry["Key"] for entry in page.get("Contents", ())]
            if not page.get("IsTruncated"):
                return sorted(found)
            options = {"ContinuationToken": page["NextContinuationToken"]}

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
        limits = {"connect_timeout": 5, "read_timeout": 30, "retries": {"total_max_attempts": 2, "mode": "standard"}}
        hook = S3Hook(aws_conn_id=connection_id, config=Config(**{**limits, **extra.get("config_kwargs", {})}))
        return hook.get_conn()

    def _call(self, operation: str, **parameters: Any) -> Any:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            return getattr(self._client, operation)(Bucket=self.bucket, **parameters)
        except ClientError as error:
            raise self._refused(operation, parameters.get("Key", ""), error) from error
        except BotoCoreError as error:
            raise TransientError(
                "object-store-unreachable",
                f"the object store of connection {self.connection_id!r} does not answer: {excerpt(str(error))}",
                context={"connection": self.connection_id, "bucket": self.bucket},
                hint="Check the connection's endpoint_url and that it accepts connections from this machine.",
            ) from error

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
        if status == 404:
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
