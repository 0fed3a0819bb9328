"""What the steps of a backup have in common: which backup it is, and the session in which it is written."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from nephoran_maintenance.domain.backups import MANIFEST, SIGNATURE_SUFFIX, BackupRequest, BackupType, folder_of
from nephoran_maintenance.domain.openpgp_keys import Key, PinnedKey
from nephoran_maintenance.domain.step_ids import CHECK_REQUEST
from nephoran_maintenance.errors import PermanentError
from nephoran_maintenance.operators.backup_readiness import pinned
from nephoran_maintenance.operators.base import StepOperator, checked_params, operation_of, pull

if TYPE_CHECKING:
    from airflow.sdk import Context

    from nephoran_maintenance.domain.manifest import Manifest
    from nephoran_maintenance.hooks.backup_store import BackupStore
    from nephoran_maintenance.hooks.openpgp import OpenPgpHook, Passphrase, SigningKey
    from nephoran_maintenance.hooks.pod_files import PodFiles
    from nephoran_maintenance.hooks.staging import StagingBucket
    from nephoran_maintenance.hooks.weaviate_api import WeaviateHook
    from nephoran_maintenance.profile import SystemProfile


def backup_exists(profile: SystemProfile, identifier: str) -> bool:
    """Return whether a backup has its signed manifest; what that is worth is told by reading it.

    Then nothing of the backup may be written or cleared any more: a step of a finished run that is cleared goes on from it.
    """
    from nephoran_maintenance.hooks.object_store import ObjectStoreHook

    store = ObjectStoreHook(profile.connections.object_store_backup, bucket=profile.backup.bucket)
    return store.exists(f"{folder_of(profile.backup.prefix, identifier)}/{MANIFEST}{SIGNATURE_SUFFIX}")


@dataclass(frozen=True)
class Session:
    """What a step needs to write backups: open as long as the step runs."""

    pgp: OpenPgpHook
    backups: BackupStore
    pins: tuple[PinnedKey, ...]
    recipients: tuple[Key, ...]
    to: tuple[Key, ...] | Passphrase
    signing: SigningKey
    digest_key: bytes

    def digest(self, content: bytes) -> str:
        """Return the digest of a content as inventories have it."""
        from nephoran_maintenance.hooks.archive import keyed_digest

        return keyed_digest(self.digest_key, hashlib.sha256(content).digest())

    @property
    def digest_key_id(self) -> str:
        """Tells whether two backups have digests of the same key, and nothing of the key."""
        return hashlib.sha256(b"id of " + self.digest_key).hexdigest()[:16]

    def manifest_of(self, identifier: str) -> tuple[Manifest, bytes] | None:
        """Return a backup's manifest and its bytes, None as long as the backup does not exist.

        :raises PermanentError: ``openpgp-signature-invalid`` or ``manifest-invalid``: there is one, and it is worth nothing.
        """
        try:
            return self.backups.read_manifest(identifier)
        except PermanentError as error:
            if error.reference == "backup-not-found":
                return None
            raise


class BackupStep(StepOperator):
    """A step of a backup, alone or inside the group of another procedure.

    :param before_change: it belongs to another procedure, which is about to change something: type and tag are not the
        run's parameters.
    """

    def __init__(self, *, before_change: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.before_change = before_change

    def sibling(self, step_id: str) -> str:
        """Return the id of another step of the same backup: below the same group."""
        group = self.task_id.rpartition(".")[0]
        return f"{group}.{step_id}" if group else step_id

    def request(self, context: Context) -> BackupRequest:
        """Return what was asked for.

        :raises PermanentError: ``parameters-invalid``, naming the parameter.
        """
        if self.before_change:
            return BackupRequest(type=self.profile.backup.before_change, tag=f"pre-{operation_of(context)}")
        if context["dag_run"].run_type.value == "scheduled":
            return BackupRequest(type="auto")
        return checked_params(context, BackupRequest)

    def checked(self, context: Context) -> dict[str, Any]:
        """Return what the first step has found out and decided.

        :raises PermanentError: ``backup-not-begun``: it has decided that there is no backup, or has left nothing.
        """
        step = self.sibling(CHECK_REQUEST)
        found = pull(context, step) or {}
        if "backup_id" not in found:
            why = found.get("not_made") or f"{step} left no result"
            raise PermanentError(
                "backup-not-begun",
                f"this run makes no backup: {why}",
                hint=f"Trigger a new run; a step that comes after {step} means nothing without it.",
            )
        return dict(found)

    def backup_id(self, context: Context) -> str:
        return str(self.checked(context)["backup_id"])

    def backup_type(self, context: Context) -> BackupType:
        return self.checked(context)["type"]  # type: ignore[no-any-return]

    def weaviate(self) -> WeaviateHook:
        from nephoran_maintenance.hooks.weaviate_api import WeaviateHook

        return WeaviateHook(self.profile.connections.weaviate)

    def staging(self) -> StagingBucket:
        from nephoran_maintenance.hooks.staging import StagingBucket

        profile = self.profile
        return StagingBucket(profile.connections.object_store_staging, bucket=profile.backup.staging_bucket)

    def pod_files(self, context: Context) -> PodFiles:
        """Return what reads files out of pods; the id of the operation marks a helper pod of this run."""
        from nephoran_maintenance.hooks.pod_files import PodFiles

        return PodFiles(self.cluster(), operation_of(context), image=self.profile.backup.reader_image)

    @contextmanager
    def session(self) -> Iterator[Session]:
        """Open gpg with the recipients and the signing key, and the store.

        :raises PermanentError: whatever is wrong with a key, named; there is no way without encryption.
        """
        from nephoran_maintenance.hooks.archive import digest_key
        from nephoran_maintenance.hooks.backup_store import BackupStore
        from nephoran_maintenance.hooks.object_store import ObjectStoreHook
        from nephoran_maintenance.hooks.openpgp import OpenPgpHook, read_passphrase

        profile = self.profile
        backup, names = profile.backup, profile.connections
        store = ObjectStoreHook(names.object_store_backup, bucket=backup.bucket)
        with OpenPgpHook() as pgp:
            pins: tuple[PinnedKey, ...] = ()
            recipients: tuple[Key, ...] = ()
            to: tuple[Key, ...] | Passphrase
            if backup.encryption == "passphrase":
                to = read_passphrase(names.openpgp_passphrase)
            else:
                pins = pinned(backup.recipients)
                recipients = to = tuple(pgp.import_recipients(pins, datetime.now(UTC)))
            signing = pgp.import_signing_key(names.openpgp_signing, recipients)
            with ThreadPoolExecutor(1, thread_name_prefix="digest-key") as beside:
                # It is stretched for about as long as gpg takes the signers' keys in.
                stretched = beside.submit(digest_key, signing.passphrase, signing.fingerprint)
                backups = BackupStore(store, pgp, backup.prefix, pinned(backup.signers))
                backups.check_signer(signing)
                key = stretched.result()
            yield Session(pgp, backups, pins, recipients, to, signing, key)
