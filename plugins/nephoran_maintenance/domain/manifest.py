"""The manifest of a backup: what was to be saved, what was saved, and by which figures it can be told from anything else.

It is written last and signed. A backup without a valid manifest does not exist, whatever files there are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from nephoran_maintenance.domain.backups import BackupType, KeepingClass, started_at_of
from nephoran_maintenance.domain.openpgp_keys import Signature
from nephoran_maintenance.domain.scope import Scope
from nephoran_maintenance.errors import PermanentError

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
FileName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9.-]*$")]
State = Literal["captured", "absent", "failed"]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ArchiveRecord(Section):
    """One archive and its inventory, as they are in the store; names are relative to the backup's folder.

    :param sha256_before_encryption: of the zstd stream, which is what decryption gives.
    :param members: how many files are in it, without its own lists of checksums.
    """

    key: FileName
    size_bytes: int = Field(gt=0)
    sha256: Sha256
    version_id: str | None = None
    sha256_before_encryption: Sha256
    members: int = Field(ge=0)
    member_bytes: int = Field(ge=0)
    inventory_key: FileName
    inventory_sha256: Sha256
    inventory_size_bytes: int = Field(gt=0)
    inventory_version_id: str | None = None

    @property
    def files(self) -> tuple[StoredFile, ...]:
        return (
            StoredFile(self.key, self.size_bytes, self.sha256, self.version_id),
            StoredFile(self.inventory_key, self.inventory_size_bytes, self.inventory_sha256, self.inventory_version_id),
        )


@dataclass(frozen=True)
class StoredFile:
    """A file that a manifest vouches for."""

    key: str
    size_bytes: int
    sha256: str
    version_id: str | None = None


class Source(Section):
    """One source: what became of it, and by what.

    :param facts: what the source itself tells: counts, versions, the way it was read.
    """

    name: FileName
    required: bool
    state: State
    reason: str = ""
    started_at: AwareDatetime
    ended_at: AwareDatetime
    archive: ArchiveRecord | None = None
    facts: dict[str, Any] = {}

    @model_validator(mode="after")
    def _consistent(self) -> Source:
        if (self.state == "captured") != (self.archive is not None):
            raise ValueError(f"source {self.name} is {self.state}: an archive belongs to captured, and only to it")
        if self.state != "captured" and not self.reason:
            raise ValueError(f"source {self.name} is {self.state} without a reason")
        if self.ended_at < self.started_at:
            raise ValueError(f"source {self.name} ended before it started")
        return self


class Recipient(Section):
    """Who can open the backup: ``key_ids`` are the subkeys that the archives name."""

    name: str
    fingerprint: str
    key_ids: tuple[str, ...]
    expires_at: AwareDatetime | None = None


class Cluster(Section):
    """:param uid: the UID of the namespace ``kube-system``, which no other cluster has."""

    name: str
    uid: str
    kubernetes_version: str
    weaviate_version: str | None = None


class Parent(Section):
    """The link before this one in the chain, told by its manifest's own digest."""

    backup_id: str
    manifest_sha256: Sha256
    depth: int = Field(ge=0, description="how many links there are before it")


class Manifest(Section):
    format: Literal[1] = 1
    backup_id: str
    type: BackupType
    tag: str = ""
    keeping: KeepingClass = "daily"
    operation_id: str
    operation_under_way: str | None = None
    """All that were at any time of the backup, with commas between them."""
    system: str
    cluster: Cluster
    started_at: AwareDatetime
    ended_at: AwareDatetime
    sources: tuple[Source, ...] = Field(min_length=1)
    encryption: Literal["public-key", "passphrase"]
    recipients: tuple[Recipient, ...] = ()
    digest_key_id: str
    object_lock: str = "not measured"
    parent: Parent | None = None
    scope: Scope | None = None
    """What was included and excluded by choice; None: it is whole."""
    tool_version: str

    @model_validator(mode="after")
    def _consistent(self) -> Manifest:
        try:
            started_at_of(self.backup_id)
        except PermanentError as error:
            raise ValueError(error.message) from None
        if not self.backup_id.startswith(f"{self.type}-"):
            raise ValueError(f"{self.backup_id} is not the id of a {self.type} backup")
        if (self.type == "incremental") != (self.parent is not None):
            raise ValueError("an incremental backup has a parent, and no other has one")
        if self.parent and not self.whole:
            raise ValueError("a backup that leaves something out has no parent")
        if self.parent and self.parent.backup_id == self.backup_id:
            raise ValueError("a backup can't be its own parent")
        if (self.encryption == "public-key") != bool(self.recipients):
            raise ValueError("recipients belong to public-key encryption, and it needs them")
        names = [source.name for source in self.sources]
        keys = [file.key for file in self.files]
        if len(set(names)) != len(names) or len(set(keys)) != len(keys):
            raise ValueError("a source or a file is listed twice")
        if self.ended_at < self.started_at:
            raise ValueError("it ended before it started")
        return self

    @property
    def files(self) -> tuple[StoredFile, ...]:
        return tuple(file for source in self.sources if source.archive for file in source.archive.files)

    @property
    def whole(self) -> bool:
        """Whether nothing was left out by choice."""
        return self.scope is None or self.scope.whole

    @property
    def depth(self) -> int:
        """How many links of the chain come before this one."""
        return self.parent.depth + 1 if self.parent else 0

    @property
    def missing_sources(self) -> tuple[str, ...]:
        return tuple(source.name for source in self.sources if source.required and source.state != "captured")


class Note(Section):
    """What was found out about a backup later: signed by itself, beside a manifest that may be locked.

    :param grade: ``checked``: every file was read back whole; ``verified``: it was restored in a drill; ``opened``: a
        recipient has decrypted every archive and found in it what the manifest says.
    :param recipient: who has opened it; empty for the other grades.
    """

    grade: Literal["checked", "verified", "opened"]
    recipient: str = Field("", pattern=r"^([a-z0-9]([-a-z0-9]*[a-z0-9])?)?$")
    backup_id: str
    manifest_sha256: Sha256
    at: AwareDatetime
    files: int = Field(ge=0)
    read_bytes: int = Field(ge=0)
    duration_seconds: float = Field(ge=0)
    operation_id: str = ""


def encoded(section: Manifest | Note) -> bytes:
    """Return a manifest or a note as it is signed and stored: JSON, two spaces deep, for people too."""
    return (section.model_dump_json(indent=2) + "\n").encode()


def sha256_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def check_complete(sources: Iterable[Source], identifier: str) -> None:
    """Refuse a backup that lacks what it must have.

    :raises PermanentError: ``backup-incomplete``, naming each required source that is absent or failed.
    """
    lacking = [f"{s.name} {s.state} ({s.reason})" for s in sources if s.required and s.state != "captured"]
    if lacking:
        raise PermanentError(
            "backup-incomplete",
            f"the backup {identifier} lacks what it must have: {'; '.join(lacking)}",
            context={"backup": identifier},
            hint="No manifest was written, so this backup does not exist. Correct the sources and run it again.",
        )


Read = TypeVar("Read", "Manifest", "Note")

Verify = Callable[[bytes, str], Signature]
"""Checks a detached signature over some bytes against the pinned signers, and raises when it is none of theirs."""


def open_manifest(
    identifier: str, data: bytes, signature: str, verify: Verify, *, cluster_uid: str | None = None
) -> Manifest:
    """Return the manifest of a backup, after everything that can be said without its archives.

    :param identifier: the backup whose folder it lies in: a manifest of another one is a replay.
    :param cluster_uid: where given, the cluster that it must be of.
    :raises PermanentError: ``openpgp-signature-invalid`` or ``manifest-invalid``.
    """
    verify(data, signature)
    manifest = _parsed(Manifest, identifier, data)
    if manifest.backup_id != identifier:
        raise _invalid(identifier, f"is the manifest of {manifest.backup_id}, put in another's place")
    if manifest.missing_sources:
        raise _invalid(identifier, f"says that it lacks {', '.join(manifest.missing_sources)}")
    if cluster_uid is not None and manifest.cluster.uid != cluster_uid:
        raise _invalid(identifier, f"is of the cluster {manifest.cluster.uid}, expected {cluster_uid}")
    return manifest


def open_note(
    identifier: str, grade: str, data: bytes, signature: str, verify: Verify, manifest: bytes, recipient: str = ""
) -> Note:
    """Return a note on a backup, which counts for exactly the manifest that it was written for.

    :param recipient: who has opened it, for the grade *opened*.
    :raises PermanentError: ``openpgp-signature-invalid`` or ``manifest-invalid``.
    """
    note = open_left_note(identifier, grade, data, signature, verify, recipient)
    if note.manifest_sha256 != sha256_of(manifest):
        raise _invalid(identifier, "has a note on another manifest")
    return note


def open_left_note(
    identifier: str, grade: str, data: bytes, signature: str, verify: Verify, recipient: str = ""
) -> Note:
    """Return a note on a backup that may be gone: what it says of the manifest can't be compared.

    :raises PermanentError: ``openpgp-signature-invalid`` or ``manifest-invalid``.
    """
    verify(data, signature)
    note = _parsed(Note, identifier, data)
    if note.backup_id != identifier:
        raise _invalid(identifier, f"has a note on another manifest, of {note.backup_id}")
    if (note.grade, note.recipient) != (grade, recipient):
        raise _invalid(identifier, f"has a note {note.grade} {note.recipient} in the place of {grade} {recipient}")
    return note


def compare_files(identifier: str, files: Iterable[StoredFile], found: Mapping[str, tuple[int, str] | None]) -> None:
    """Compare what lies in the store with what the manifest says.

    :param found: by key, size in bytes and SHA-256; None: there is no such object.
    :raises PermanentError: ``backup-damaged``, naming every file that is missing, cut, or another.
    """
    problems = []
    for file in files:
        seen = found.get(file.key)
        if seen is None:
            problems.append(f"{file.key} is missing")
        elif seen[0] != file.size_bytes:
            problems.append(f"{file.key} has {seen[0]} bytes, expected {file.size_bytes}")
        elif seen[1] != file.sha256:
            problems.append(f"{file.key} has the SHA-256 {seen[1][:12]}…, expected {file.sha256[:12]}…")
    if problems:
        raise _damaged(identifier, "; ".join(problems))


@dataclass(frozen=True)
class Contents:
    """What an archive turned out to be when it was decrypted.

    :param problem: why it could not be read to its end, or what in it differs from its own list of checksums.
    """

    size_bytes: int
    sha256: str
    sha256_before_encryption: str
    members: int
    member_bytes: int
    problem: str = ""


def compare_contents(identifier: str, archive: ArchiveRecord, seen: Contents) -> None:
    """Compare a decrypted archive with what the manifest says.

    :raises PermanentError: ``backup-damaged``, naming everything that differs.
    """
    pairs = {
        "bytes": (seen.size_bytes, archive.size_bytes),
        "the SHA-256": (seen.sha256, archive.sha256),
        "decrypted the SHA-256": (seen.sha256_before_encryption, archive.sha256_before_encryption),
        "files in it": (seen.members, archive.members),
        "bytes in its files": (seen.member_bytes, archive.member_bytes),
    }
    problems = [f"{what} {found}, expected {wanted}" for what, (found, wanted) in pairs.items() if found != wanted]
    problems += [seen.problem] if seen.problem else []
    if problems:
        raise _damaged(identifier, f"{archive.key}: {'; '.join(problems)}")


def compare_recipients(identifier: str, manifest: Manifest, key: str, named: Iterable[str]) -> None:
    """Compare the subkeys that an archive says it can be opened with, with those of the manifest's recipients.

    :raises PermanentError: ``backup-damaged``.
    """
    named = set(named)
    allowed = {key_id for recipient in manifest.recipients for key_id in recipient.key_ids}
    shut_out = [r.name for r in manifest.recipients if not named & set(r.key_ids)]
    if named - allowed:
        raise _damaged(identifier, f"{key} is also encrypted to {', '.join(sorted(named - allowed))}")
    if shut_out:
        raise _damaged(identifier, f"{key} is not encrypted to {', '.join(shut_out)}")


def check_time(manifest: Manifest, signed_at: datetime) -> None:
    """Refuse a manifest that was signed before the backup had ended.

    :raises PermanentError: ``manifest-invalid``.
    """
    if signed_at < manifest.ended_at.replace(microsecond=0):
        raise _invalid(manifest.backup_id, f"was signed at {signed_at.isoformat()}, before the backup had ended")


def _parsed(model: type[Read], identifier: str, data: bytes) -> Read:
    try:
        return model.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise _invalid(identifier, f"can't be read: {where + ': ' if where else ''}{first['msg']}") from None


def _invalid(identifier: str, problem: str) -> PermanentError:
    return PermanentError(
        "manifest-invalid",
        f"the manifest of {identifier} {problem}",
        context={"backup": identifier},
        hint="This backup does not exist for restores. Find out who wrote it; take another backup.",
    )


def _damaged(identifier: str, problems: str) -> PermanentError:
    return PermanentError(
        "backup-damaged",
        f"the backup {identifier} is not what its manifest says: {problems}",
        context={"backup": identifier},
        hint="Restore nothing of it. In a versioned bucket look for earlier versions of the files; take a new backup.",
    )
