"""A backup as a person without this product sees it: objects in a bucket, opened by gpg, zstd and tar."""

from __future__ import annotations

import io
import json
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from lab import backup_keys, buckets
from lab.config import LabConfig

PREFIX = "backups"


@dataclass(frozen=True)
class StoredBackup:
    """One backup of a lab.

    :param opened_by: whose private key opens it.
    """

    config: LabConfig
    backup_id: str
    opened_by: str = "operations"

    @cached_property
    def store(self) -> Any:
        return buckets.client(self.config)

    def names(self) -> list[str]:
        """Return the names of its objects."""
        found = self.store.list_objects_v2(Bucket=buckets.BACKUPS, Prefix=f"{PREFIX}/{self.backup_id}/")
        return sorted(entry["Key"].rpartition("/")[2] for entry in found.get("Contents", ()))

    def content(self, name: str) -> bytes:
        answer = self.store.get_object(Bucket=buckets.BACKUPS, Key=f"{PREFIX}/{self.backup_id}/{name}")
        return bytes(answer["Body"].read())

    @cached_property
    def manifest(self) -> dict[str, Any]:
        return dict(json.loads(self.content("manifest.json")))

    @property
    def sources(self) -> dict[str, dict[str, Any]]:
        """Return what the manifest says of each source."""
        return {source["name"]: source for source in self.manifest["sources"]}

    def files(self, source: str) -> dict[str, bytes]:
        """Return the files of a source by path."""
        encrypted = self.content(self.sources[source]["archive"]["key"])
        with backup_keys.private_home() as gpg:
            gpg.run("--import", data=backup_keys.keys(self.config)[self.opened_by].private.encode())
            compressed = gpg.run("--decrypt", data=encrypted)
        data = subprocess.run(["zstd", "--decompress", "--stdout"], input=compressed, capture_output=True, check=True)
        with tarfile.open(fileobj=io.BytesIO(data.stdout)) as archive:
            return {info.name: found.read() for info in archive if (found := archive.extractfile(info))}

    def signed_by(self, name: str) -> str:
        """Return the fingerprint of whoever signed one of its files; gpg fails where the signature is none of it."""
        with backup_keys.private_home() as gpg:
            for key in backup_keys.keys(self.config).values():
                gpg.run("--import", data=key.public.encode())
            signature = gpg.home / "signature.asc"
            signature.write_bytes(self.content(f"{name}.asc"))
            words = gpg.run("--status-fd", "1", "--verify", str(signature), "-", data=self.content(name)).decode()
        return next(line.split()[2] for line in words.splitlines() if line.startswith("[GNUPG:] VALIDSIG"))


def left_out(live: Any, kept: Any, path: str = "") -> Iterator[str]:
    """Yield every path that a live object has and a kept one lacks; fail on anything that differs."""
    if isinstance(live, dict) and isinstance(kept, dict):
        assert kept.keys() <= live.keys(), f"{path}: {sorted(kept.keys() - live.keys())} is not live"
        for key, value in live.items():
            where = f"{path}.{key}" if path else str(key)
            if key in kept:
                yield from left_out(value, kept[key], where)
            elif isinstance(value, dict) and value:
                yield from left_out(value, {}, where)
            else:
                yield where
    elif isinstance(live, list) and isinstance(kept, list) and len(live) == len(kept):
        for one, other in zip(live, kept, strict=True):
            yield from left_out(one, other, f"{path}[]")
    else:
        assert live == kept, f"{path} is {live!r}, and {kept!r} in the backup"
