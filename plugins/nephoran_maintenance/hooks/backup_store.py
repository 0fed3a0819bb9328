"""Backups as they lie in the object store: manifests and notes with their signatures, and reading everything back."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime

from nephoran_maintenance.domain.backups import (
    CHECKED_NOTE,
    MANIFEST,
    OPENED_FOLDER,
    SIGNATURE_SUFFIX,
    VERIFIED_NOTE,
    folder_of,
    is_backup_id,
    opened_note_of,
)
from nephoran_maintenance.domain.capture import Link
from nephoran_maintenance.domain.chain import KnownBackup, known
from nephoran_maintenance.domain.manifest import (
    Manifest,
    Note,
    StoredFile,
    check_time,
    compare_files,
    compare_recipients,
    encoded,
    open_left_note,
    open_manifest,
    open_note,
    sha256_of,
)
from nephoran_maintenance.domain.openpgp_keys import PinnedKey, Signature, check_signer
from nephoran_maintenance.errors import PermanentError
from nephoran_maintenance.hooks.archive import read_inventory
from nephoran_maintenance.hooks.object_store import ObjectStoreHook
from nephoran_maintenance.hooks.openpgp import OpenPgpHook, SigningKey

HEAD_BYTES = 8192
"""Enough of an archive to see who can open it: some 200 bytes for each recipient with a modern key, 600 with RSA."""
NOTES = {"checked": CHECKED_NOTE, "verified": VERIFIED_NOTE}
"""Those of which a backup has one; each recipient who opens it leaves another."""


@dataclass(frozen=True)
class Listing:
    """What there is.

    :param backups: those with a valid manifest and notes that count.
    :param problems: by id, why a backup with a manifest does not count.
    :param doubtful: those of ``problems`` whose manifest counts, without grades: what they build on is known.
    """

    backups: tuple[KnownBackup, ...]
    problems: dict[str, str]
    doubtful: tuple[KnownBackup, ...] = ()


class BackupStore:
    """Read and write what makes a backup one.

    :param pgp: an open hook; the signers' keys are taken in here.
    :param prefix: the folder of all backups in the bucket.
    """

    def __init__(self, store: ObjectStoreHook, pgp: OpenPgpHook, prefix: str, signers: Iterable[PinnedKey]) -> None:
        self.store, self._pgp, self._prefix = store, pgp, prefix
        self._signers = list(signers)
        pgp.take_in(self._signers)

    def folder(self, backup_id: str) -> str:
        return folder_of(self._prefix, backup_id)

    def check_signer(self, key: SigningKey) -> None:
        """:raises PermanentError: ``openpgp-signer-not-pinned``: nobody would accept what it signs."""
        check_signer(key.fingerprint, self._signers)

    def write_manifest(self, manifest: Manifest, key: SigningKey) -> str:
        """Store a manifest and then its signature, with which the backup begins to exist; return its SHA-256.

        Safe to repeat: yes, both are written again; the signature always fits the manifest that it was written after.
        """
        return self._write_signed(f"{self.folder(manifest.backup_id)}/{MANIFEST}", encoded(manifest), key)

    def write_note(self, note: Note, key: SigningKey) -> str:
        """Store a note beside the manifest, signed by itself. Safe to repeat: yes."""
        return self._write_signed(self._note(note.backup_id, note.grade, note.recipient), encoded(note), key)

    def read_manifest(self, backup_id: str, *, cluster_uid: str | None = None) -> tuple[Manifest, bytes]:
        """Return a backup's manifest and its bytes, after everything that can be said without its archives.

        :raises PermanentError: ``backup-not-found``, ``openpgp-signature-invalid`` or ``manifest-invalid``.
        """
        try:
            data, signature = self._read_signed(f"{self.folder(backup_id)}/{MANIFEST}")
        except PermanentError as error:
            if error.reference != "not-found":
                raise
            raise PermanentError(
                "backup-not-found",
                f"there is no backup {backup_id}: it has no signed manifest",
                context={"backup": backup_id},
                hint="List the bucket for those that exist; what lies there without a manifest was never finished.",
            ) from error
        signed: list[Signature] = []

        def verify(content: bytes, text: str) -> Signature:
            signed.append(self._verify(content, text))
            return signed[0]

        manifest = open_manifest(backup_id, data, signature, verify, cluster_uid=cluster_uid)
        check_time(manifest, signed[0].signed_at)
        return manifest, data

    def read_note(self, backup_id: str, grade: str, manifest: bytes, recipient: str = "") -> Note | None:
        """Return a note on a backup, None when there is none.

        :param recipient: who has opened it, for the grade *opened*.
        :raises PermanentError: ``openpgp-signature-invalid`` or ``manifest-invalid`` for one that is not of this manifest.
        """
        try:
            data, signature = self._read_signed(self._note(backup_id, grade, recipient))
        except PermanentError as error:
            if error.reference == "not-found":
                return None
            raise
        return open_note(backup_id, grade, data, signature, self._verify, manifest, recipient)

    def left_notes(self, gone: Callable[[str], bool]) -> tuple[list[Note], dict[str, str]]:
        """Return the notes of who has opened backups that are gone, and by id why one of them does not count.

        :param gone: whether a backup is gone.
        """
        folder = f"{self._prefix}/{OPENED_FOLDER}/"
        keys = set(self.store.list(folder))
        notes: list[Note] = []
        problems: dict[str, str] = {}
        for key in sorted(keys):
            backup_id, _, name = key.removeprefix(folder).partition("/")
            recipient = name.removesuffix(".json")
            # Without its signature it was being deleted.
            if name == recipient or not is_backup_id(backup_id) or f"{key}{SIGNATURE_SUFFIX}" not in keys:
                continue
            if gone(backup_id):
                try:
                    notes.append(open_left_note(backup_id, "opened", *self._read_signed(key), self._verify, recipient))
                except PermanentError as error:
                    problems[backup_id] = str(error)
        return notes, problems

    def files_of(self, backup_id: str, source: str) -> Link:
        """Return what a backup's inventory says of a source: digests by path, and what no longer belongs to it.

        :raises PermanentError: as :meth:`read_manifest`; ``backup-damaged`` when the inventory is not the one that was signed.
        """
        manifest, _ = self.read_manifest(backup_id)
        found = next((one for one in manifest.sources if one.name == source and one.archive), None)
        if found is None or found.archive is None:
            raise PermanentError(
                "backup-damaged",
                f"{backup_id} has no source {source}",
                context={"backup": backup_id},
                hint="Nothing can be built on it: make a full backup.",
            )
        _, file = found.archive.files
        data = b"".join(self.store.read_blocks(f"{self.folder(backup_id)}/{file.key}", file.version_id))
        compare_files(backup_id, [file], {file.key: (len(data), sha256_of(data))})
        gone = (*found.facts.get("superseded", ()), *found.facts.get("deleted", ()))
        return Link({entry["path"]: entry["digest"] for entry in read_inventory([data])}, gone)

    def list(self) -> Listing:
        """Return all backups that exist, the oldest first, and what only looks like one."""
        found: list[KnownBackup] = []
        doubtful: list[KnownBackup] = []
        problems: dict[str, str] = {}
        for backup_id in self.folders():
            signed: tuple[Manifest, bytes] | None = None
            try:
                signed = self.read_manifest(backup_id)
                found.append(self._graded(*signed))
            except PermanentError as error:
                problems[backup_id] = str(error)
                if signed is not None:
                    doubtful.append(known(signed[0], sha256_of(signed[1])))
        return Listing(tuple(sorted(found, key=lambda backup: backup.started_at)), problems, tuple(doubtful))

    def folders(self) -> dict[str, set[str]]:
        """Return by id of each backup with a manifest the names of the files in its folder; reads none of them."""
        files: dict[str, set[str]] = {}
        for key in self.store.list(f"{self._prefix}/"):
            backup_id, _, name = key.removeprefix(f"{self._prefix}/").partition("/")
            if is_backup_id(backup_id):
                files.setdefault(backup_id, set()).add(name)
        return {name: found for name, found in files.items() if f"{MANIFEST}{SIGNATURE_SUFFIX}" in found}

    def known(self, backup_id: str) -> KnownBackup:
        """Return what the rules need to know of one backup.

        :raises PermanentError: as :meth:`read_manifest` and :meth:`read_note`.
        """
        return self._graded(*self.read_manifest(backup_id))

    def read_back(
        self, backup_id: str, at: datetime, operation_id: str, *, clock: Callable[[], float] = time.monotonic
    ) -> Note:
        """Read every file of a backup and compare it with the manifest; return what can be noted when all is right.

        Reads, decrypts nothing and needs no private key. Safe to repeat: yes.

        :raises PermanentError: ``backup-damaged``, naming each file that is missing, cut, changed, or open to others.
        """
        started = clock()
        manifest, data = self.read_manifest(backup_id)
        found: dict[str, tuple[int, str] | None] = {}
        heads: dict[str, bytes] = {}
        for file in manifest.files:
            seen = self._read(backup_id, file)
            found[file.key] = seen[:2] if seen else None
            heads[file.key] = seen[2] if seen else b""
        compare_files(backup_id, manifest.files, found)
        for source in manifest.sources:
            if source.archive:
                named = self._pgp.recipients_of(heads[source.archive.key])
                compare_recipients(backup_id, manifest, source.archive.key, named)
        return Note(
            grade="checked",
            backup_id=backup_id,
            manifest_sha256=sha256_of(data),
            at=at,
            files=len(found),
            read_bytes=sum(file.size_bytes for file in manifest.files),
            duration_seconds=round(clock() - started, 3),
            operation_id=operation_id,
        )

    def stored(self, backup_id: str, file: StoredFile) -> tuple[int, str] | None:
        """Return size in bytes and SHA-256 of a file as it lies in the store, None when it is not there."""
        seen = self._read(backup_id, file)
        return seen[:2] if seen else None

    def _graded(self, manifest: Manifest, data: bytes) -> KnownBackup:
        backup_id = manifest.backup_id
        notes = {grade: self.read_note(backup_id, grade, data) for grade in NOTES}
        moments = {f"{grade}_at": note.at if note else None for grade, note in notes.items()}
        locked_until = self.store.locked_until(f"{self.folder(backup_id)}/{MANIFEST}")
        return known(manifest, sha256_of(data), locked_until=locked_until, **moments)

    def _read(self, backup_id: str, file: StoredFile) -> tuple[int, str, bytes] | None:
        digest, size_bytes, head = hashlib.sha256(), 0, b""
        try:
            for block in self.store.read_blocks(f"{self.folder(backup_id)}/{file.key}", file.version_id):
                head = head or block[:HEAD_BYTES]
                digest.update(block)
                size_bytes += len(block)
        except PermanentError as error:
            if error.reference == "not-found":
                return None
            # All of it was read; where its digest tells the same, the caller names it among all that is damaged.
            if error.reference != "object-damaged" or digest.hexdigest() == file.sha256:
                raise
        return size_bytes, digest.hexdigest(), head

    def _note(self, backup_id: str, grade: str, recipient: str) -> str:
        if grade == "opened":
            return opened_note_of(self._prefix, backup_id, recipient)
        return f"{self.folder(backup_id)}/{NOTES[grade]}"

    def _write_signed(self, file: str, data: bytes, key: SigningKey) -> str:
        self.check_signer(key)
        signature = self._pgp.sign(data, key)
        self.store.put_bytes(file, data, content_type="application/json")
        self.store.put_text(f"{file}{SIGNATURE_SUFFIX}", signature)
        return sha256_of(data)

    def _verify(self, data: bytes, signature: str) -> Signature:
        return self._pgp.verify(data, signature, self._signers)

    def _read_signed(self, file: str) -> tuple[bytes, str]:
        signature = self.store.get_bytes(f"{file}{SIGNATURE_SUFFIX}").decode("utf-8", "replace")
        return self.store.get_bytes(file), signature
