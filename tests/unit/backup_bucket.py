"""A bucket on loopback with signed manifests in it, the keys of its site, and a profile that leads there."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from nephoran_maintenance.domain.backups import BackupType, backup_id
from nephoran_maintenance.domain.manifest import (
    ArchiveRecord,
    Cluster,
    Manifest,
    Note,
    Parent,
    Recipient,
    Source,
    sha256_of,
)
from nephoran_maintenance.domain.members import Member
from nephoran_maintenance.domain.openpgp_keys import Key
from nephoran_maintenance.hooks.archive import ArchiveWriter
from nephoran_maintenance.hooks.backup_store import BackupStore
from nephoran_maintenance.hooks.object_store import ObjectStoreHook
from nephoran_maintenance.hooks.openpgp import OpenPgpHook, SigningKey
from nephoran_maintenance.settings import PROJECT_ROOT
from tests.unit.hooks.fake_s3 import DELETER, FakeS3, connection_to
from tests.unit.hooks.fake_servers import Server, serving
from tests.unit.openpgp_keys import SIGNING, KeyMaker

BUCKET = "nephoran-production-backups"
NOW = datetime.now(UTC).replace(microsecond=0)
"""The steps ask the clock themselves; everything here is so many days before that."""
NOTHING = "0" * 64


@dataclass
class BackupBucket:
    """What lies in the bucket, by whom it is signed, and the profile."""

    keys: KeyMaker
    s3: FakeS3
    server: Server
    profile_path: Path
    pgp: OpenPgpHook
    signing: SigningKey
    backups: BackupStore
    recipients: list[Key]
    made: dict[Any, tuple[Parent, dict[tuple[str, str], bytes]]]
    parents: dict[str, Parent] = field(default_factory=dict)

    def add(
        self,
        days_ago: float,
        type: BackupType = "full",
        *,
        parent: str | None = None,
        checked: bool = True,
        verified: bool = False,
        members: dict[str, bytes] | None = None,
        cluster: str = "uid-1",
    ) -> str:
        """Store a backup that ended so many days ago, and return its id; with members it has an archive of them.

        The first one of its kind is made, further ones are copies of it.
        """
        kind = (days_ago, type, parent, checked, verified, str(members), cluster)
        if kind not in self.made:
            before = set(self.s3.versions)
            made = self.make(days_ago, type, parent, checked, verified, members, cluster)
            files = {place: self.s3.versions[place] for place in self.s3.versions if place not in before}
            self.made[kind] = (made, files)
        parent_of_others, files = self.made[kind]
        for (key, version), data in files.items():
            self.s3.objects[key] = self.s3.versions[key, version] = data
        self.parents[parent_of_others.backup_id] = parent_of_others
        return parent_of_others.backup_id

    def make(
        self,
        days_ago: float,
        type: BackupType,
        parent: str | None,
        checked: bool,
        verified: bool,
        members: dict[str, bytes] | None,
        cluster: str,
    ) -> Parent:
        at = NOW - timedelta(days=days_ago)
        identifier = backup_id(type, at, f"{type}-{at.isoformat()}-{cluster}")
        archive = self.archive(identifier, members, self.recipients, at) if members is not None else an_archive()
        captured = Source(name="objects", required=True, state="captured", started_at=at, ended_at=at, archive=archive)
        manifest = Manifest(
            backup_id=identifier,
            type=type,
            operation_id="backup-1",
            system="nephoran",
            cluster=Cluster(name="nephoran", uid=cluster, kubernetes_version="v1.36.4"),
            started_at=at,
            ended_at=at,
            sources=(captured,),
            encryption="public-key",
            recipients=tuple(
                Recipient(name=pin.name, fingerprint=key.fingerprint, key_ids=key.encryption_key_ids)
                for pin, key in zip((self.keys.operations, self.keys.escrow), self.recipients, strict=True)
            ),
            digest_key_id="id",
            parent=self.parents[parent] if parent else None,
            tool_version="0",
        )
        digest = self.backups.write_manifest(manifest, self.signing)
        depth = self.parents[parent].depth + 1 if parent else 0
        for grade in [name for name, wanted in (("checked", checked), ("verified", verified)) if wanted]:
            self.note(identifier, grade, at)
        return Parent(backup_id=identifier, manifest_sha256=digest, depth=depth)

    def archive(self, identifier: str, members: dict[str, bytes], to: Any, at: datetime) -> ArchiveRecord:
        writer = ArchiveWriter(self.backups.store, self.pgp, to, digest_key=b"k" * 32, changed_at=at)
        content = [Member(path, len(data), [data]) for path, data in members.items()]
        return writer.write(self.backups.folder(identifier), "objects", content)

    def note(self, identifier: str, grade: str, at: datetime, **fields: Any) -> None:
        manifest = self.s3.objects[f"backups/{identifier}/manifest.json"]
        note = Note.model_validate(
            {
                "grade": grade,
                "backup_id": identifier,
                "manifest_sha256": sha256_of(manifest),
                "at": at,
                "files": 2,
                "read_bytes": 2,
                "duration_seconds": 1,
                **fields,
            }
        )
        self.backups.write_note(note, self.signing)

    def ids(self) -> set[str]:
        """Return the ids of all folders with anything in them."""
        return {key.split("/")[1] for key in self.s3.objects}

    def edit_profile(self, change: Callable[[dict[str, Any]], None]) -> None:
        data = json.loads(self.profile_path.read_text(encoding="utf-8"))
        change(data)
        self.profile_path.write_text(json.dumps(data), encoding="utf-8")


def an_archive() -> ArchiveRecord:
    """Return the record of an archive that nobody looks at."""
    return ArchiveRecord(
        key="objects.tar.zst.gpg",
        size_bytes=1,
        sha256=NOTHING,
        sha256_before_encryption=NOTHING,
        members=1,
        member_bytes=1,
        inventory_key="objects.inventory.zst",
        inventory_sha256=NOTHING,
        inventory_size_bytes=1,
    )


@dataclass
class Workshop:
    """What takes longer to make than a test: a server, clients for it, and gpg with the keys of a site."""

    keys: KeyMaker
    server: Server
    pgp: OpenPgpHook
    signing: SigningKey
    recipients: list[Key]
    clients: dict[str, Any] = field(default_factory=dict)
    made: dict[Any, Any] = field(default_factory=dict)
    verified: dict[Any, Any] = field(default_factory=dict)

    def share_clients(self, patch: pytest.MonkeyPatch) -> None:
        """Have one client for each connection."""
        make = ObjectStoreHook.__dict__["_client"].func

        def client(store: ObjectStoreHook) -> Any:
            connection = os.environ[f"AIRFLOW_CONN_{str(store.connection_id).upper()}"]
            if connection not in self.clients:
                self.clients[connection] = make(store)
            return self.clients[connection]

        patch.setattr(ObjectStoreHook, "_client", property(client))

    def remember_signatures(self, patch: pytest.MonkeyPatch) -> None:
        """Have gpg look at the same good signature over the same bytes once."""
        verify = OpenPgpHook.verify

        def remembered(pgp: OpenPgpHook, data: bytes, signature: str, signers: Any) -> Any:
            signers = list(signers)
            case = (data, signature, tuple(pin.fingerprint for pin in signers))
            if case not in self.verified:
                self.verified[case] = verify(pgp, data, signature, signers)
            return self.verified[case]

        patch.setattr(OpenPgpHook, "verify", remembered)

    def bucket(self, folder: Path, patch: pytest.MonkeyPatch) -> BackupBucket:
        """Return an empty bucket, with a profile and connections that lead there."""
        self.share_clients(patch)
        self.remember_signatures(patch)
        self.server.answer = s3 = FakeS3(BUCKET)
        s3.page_length = 100
        profile = folder / "profile.yaml"
        profile.write_text(json.dumps(self.profile(folder)), encoding="utf-8")
        patch.setenv("NEPHORAN_PROFILE", str(profile))
        patch.setenv("NEPHORAN_REPORTS", str(folder / "reports"))
        patch.setenv("AIRFLOW_CONN_OPENPGP_SIGNING", self.keys.signing_connection())
        patch.setenv("AIRFLOW_CONN_OBJECT_STORE_BACKUP", connection_to(self.server))
        patch.setenv("AIRFLOW_CONN_OBJECT_STORE_RETENTION", connection_to(self.server, DELETER))
        store = ObjectStoreHook("object_store_backup", bucket=BUCKET)
        backups = BackupStore(store, self.pgp, "backups", [self.keys.signer])
        return BackupBucket(
            self.keys, s3, self.server, profile, self.pgp, self.signing, backups, self.recipients, self.made
        )

    def profile(self, folder: Path) -> dict[str, Any]:
        data = json.loads(example_profile())
        for use, pins in {
            "recipients": [self.keys.operations, self.keys.escrow],
            "signers": [self.keys.signer],
        }.items():
            for pin in pins:
                (folder / f"{pin.name}.asc").write_text(pin.armored, encoding="ascii")
            data["backup"][use] = [
                {"name": pin.name, "fingerprint": pin.fingerprint, "key_file": f"{pin.name}.asc"} for pin in pins
            ]
        return dict(data)


@cache
def example_profile() -> str:
    """Return the example profile as JSON, which is read far faster than YAML."""
    text = (PROJECT_ROOT / "include" / "profiles" / "nephoran.yaml").read_text(encoding="utf-8")
    return json.dumps(yaml.safe_load(text))


@contextmanager
def workshop_of(keys: KeyMaker) -> Iterator[Workshop]:
    with serving(FakeS3(BUCKET)) as server, OpenPgpHook() as pgp, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIRFLOW_CONN_OPENPGP_SIGNING", keys.signing_connection())
        recipients = pgp.import_recipients([keys.operations, keys.escrow], NOW)
        yield Workshop(keys, server, pgp, pgp.import_signing_key(SIGNING), recipients)
