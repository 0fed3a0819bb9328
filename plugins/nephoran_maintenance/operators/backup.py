"""The steps of a backup: what is captured, encrypted and stored, the manifest that makes it one, and reading it back."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from nephoran_maintenance.domain.backups import BackupRequest, backup_id
from nephoran_maintenance.domain.findings import Finding, Severity
from nephoran_maintenance.domain.manifest import (
    Cluster,
    Manifest,
    Note,
    Recipient,
    Source,
    check_complete,
    sha256_of,
)
from nephoran_maintenance.domain.openpgp_keys import Key, PinnedKey, expiring
from nephoran_maintenance.domain.report import Overall, conclusion
from nephoran_maintenance.domain.step_ids import CHECK_REQUEST, VERIFY_STORED_FILES, capture_step_id
from nephoran_maintenance.errors import PermanentError
from nephoran_maintenance.operators.base import StepOperator, checked_params, operation_of, pull, pull_all, states_of
from nephoran_maintenance.operators.report import FAILED_STATES, ReportOperator
from nephoran_maintenance.settings import VERSION

if TYPE_CHECKING:
    from airflow.sdk import Context

    from nephoran_maintenance.domain.members import Member
    from nephoran_maintenance.engine.sources import Source as MemberSource
    from nephoran_maintenance.hooks.backup_store import BackupStore
    from nephoran_maintenance.hooks.cluster import ClusterHook
    from nephoran_maintenance.hooks.openpgp import OpenPgpHook, Passphrase, SigningKey
    from nephoran_maintenance.profile import PublicKey, SystemProfile

MakeSource = Callable[["BackupStep"], "MemberSource"]


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

    @property
    def digest_key_id(self) -> str:
        """Tells whether two backups have digests of the same key, and nothing of the key."""
        return hashlib.sha256(b"id of " + self.digest_key).hexdigest()[:16]


class BackupStep(StepOperator):
    """A step of a backup, whose id follows from the run."""

    def backup_id(self, context: Context) -> str:
        run = context["dag_run"]
        return backup_id(request_of(context).type, run.run_after, operation_of(context))

    @contextmanager
    def session(self) -> Iterator[Session]:
        """Open gpg with the recipients and the signing key, and the store.

        :raises PermanentError: whatever is wrong with a key, named; there is no way without encryption.
        """
        from nephoran_maintenance.hooks.archive import digest_key
        from nephoran_maintenance.hooks.backup_store import BackupStore
        from nephoran_maintenance.hooks.connections import read_connection
        from nephoran_maintenance.hooks.object_store import ObjectStoreHook
        from nephoran_maintenance.hooks.openpgp import OpenPgpHook, Passphrase

        profile = self.profile
        backup, names = profile.backup, profile.connections
        store = ObjectStoreHook(names.object_store_backup, bucket=backup.bucket)
        with OpenPgpHook() as pgp:
            pins: tuple[PinnedKey, ...] = ()
            recipients: tuple[Key, ...] = ()
            to: tuple[Key, ...] | Passphrase
            if backup.encryption == "passphrase":
                secret = str(read_connection(names.openpgp_passphrase).password or "")
                if not secret:
                    raise PermanentError(
                        "openpgp-no-recipients",
                        f"the connection {names.openpgp_passphrase!r} has no passphrase; there is no unencrypted mode",
                        context={"connection": names.openpgp_passphrase},
                        hint="Put the passphrase into the connection's password, or name recipients in the profile.",
                    )
                to = Passphrase(secret)
            else:
                pins = pinned(backup.recipients)
                recipients = to = tuple(pgp.import_recipients(pins, datetime.now(UTC)))
            signing = pgp.import_signing_key(names.openpgp_signing, recipients)
            backups = BackupStore(store, pgp, backup.prefix, pinned(backup.signers))
            backups.check_signer(signing)
            key = digest_key(signing.passphrase, signing.fingerprint)
            yield Session(pgp, backups, pins, recipients, to, signing, key)


def pinned(keys: tuple[PublicKey, ...]) -> tuple[PinnedKey, ...]:
    """Return public keys of the profile with the text of their files."""
    return tuple(PinnedKey(key.name, key.fingerprint, key.armored()) for key in keys)


def request_of(context: Context) -> BackupRequest:
    """Return the run's parameters.

    :raises PermanentError: ``parameters-invalid``, naming the parameter.
    """
    return checked_params(context, BackupRequest)


class CheckBackupOperator(BackupStep):
    """Check parameters, keys, the store and the cluster before anything is read.

    Returns ``{"backup_id", "cluster", "recipients", "expiring", "object_lock", "digest_key_id"}``. Changes nothing. Safe to
    repeat: yes.
    """

    def act(self, context: Context) -> dict[str, Any]:
        profile, identifier = self.profile, self.backup_id(context)
        cluster = self.cluster()
        about = Cluster(
            name=profile.metadata.name,
            uid=str(cluster.get("Namespace", "kube-system")["metadata"]["uid"]),
            kubernetes_version=cluster.server_version(),
        )
        with self.session() as session:
            session.backups.store.list(f"{session.backups.folder(identifier)}/")
            ending = expiring(session.pins, session.recipients, datetime.now(UTC))
            found = {
                "backup_id": identifier,
                "cluster": about.model_dump(),
                "recipients": [
                    Recipient(
                        name=pin.name,
                        fingerprint=key.fingerprint,
                        key_ids=key.encryption_key_ids,
                        expires_at=key.expires_at,
                    ).model_dump(mode="json")
                    for pin, key in zip(session.pins, session.recipients, strict=True)
                ],
                "expiring": {name: end.isoformat() for name, end in ending.items()},
                "object_lock": session.backups.store.object_lock(),
                "digest_key_id": session.digest_key_id,
            }
        for name, end in ending.items():
            self.log.warning("The key of %s ends at %s: renew it, or nothing can be backed up after that", name, end)
        self.log.info("%s goes to %s", identifier, session.backups.store.url(session.backups.folder(identifier)))
        return found


def kubernetes_objects(step: BackupStep) -> MemberSource:
    """Return everything of the system that the cluster's API lists."""
    from nephoran_maintenance.engine.sources import KubernetesObjects

    namespaces = step.profile.namespaces
    return KubernetesObjects(
        step.cluster(),
        namespaces=list(dict.fromkeys((namespaces.system, namespaces.monitoring))),
        own_namespace=namespaces.maintenance,
    )


def grafana_dashboards(step: BackupStep) -> MemberSource:
    """Return the dashboards of all namespaces."""
    from nephoran_maintenance.engine.monitoring_sources import GrafanaDashboards

    return GrafanaDashboards(step.cluster())


SOURCES: dict[str, tuple[MakeSource, bool]] = {
    "kubernetes-objects": (kubernetes_objects, True),
    "grafana-dashboards": (grafana_dashboards, False),
}
"""By name: how a source is made, and whether a backup must have it."""


class CaptureSourceOperator(BackupStep):
    """Stream one source through compression and encryption into the store; return what the manifest says of it.

    Nothing of it stays in the store when it fails, and nothing in clear is written to a disk. A source that must not be
    missing fails the step; another one is *failed* in the manifest. Safe to repeat: yes, its objects are written again as
    a whole.

    :param source: a name of :data:`SOURCES`.
    """

    def __init__(self, *, source: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.source = source

    def act(self, context: Context) -> dict[str, Any]:
        from nephoran_maintenance.hooks.archive import ArchiveWriter

        make, required = SOURCES[self.source]
        started_at = datetime.now(UTC)
        found: dict[str, Any] = {"state": "captured"}
        source = make(self)
        with self.session() as session:
            writer = ArchiveWriter(
                session.backups.store,
                session.pgp,
                session.to,
                digest_key=session.digest_key,
                changed_at=context["dag_run"].run_after,
            )
            folder = session.backups.folder(self.backup_id(context))
            try:
                found["archive"] = writer.write(folder, self.source, present(source))
            except AbsentError as absent:
                found = {"state": "absent", "reason": absent.reason}
            except PermanentError as error:
                if required:
                    raise
                found = {"state": "failed", "reason": str(error)}
        captured = Source(
            name=self.source,
            required=required,
            started_at=started_at,
            ended_at=datetime.now(UTC),
            facts=source.outcome.facts,
            **found,
        )
        self.log.info("%s: %s %s", self.source, captured.state, captured.reason)
        return captured.model_dump(mode="json")


class AbsentError(Exception):
    """There is nothing to capture: known only once the source was read."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def present(source: MemberSource) -> Iterator[Member]:
    """Yield the members of a source.

    :raises AbsentError: instead of an archive of nothing.
    """
    yield from source
    if source.outcome.state == "absent":
        raise AbsentError(source.outcome.message)


class RecordManifestOperator(BackupStep):
    """Write and sign the manifest, with which the backup begins to exist.

    Returns ``{"backup_id", "manifest_sha256", "stored_bytes", "member_bytes", "members", "url"}``. Safe to repeat: yes; a
    manifest of the same sources that an earlier try has written is kept.

    :raises PermanentError: ``backup-incomplete`` when a source is missing that must not.
    """

    def act(self, context: Context) -> dict[str, Any]:
        checked, identifier = pull(context, CHECK_REQUEST), self.backup_id(context)
        results = pull_all(context, [capture_step_id(name) for name in SOURCES])
        sources = tuple(Source.model_validate(found) for found in results.values())
        check_complete([*sources, *self.missing(sources)], identifier)
        request, profile = request_of(context), self.profile
        manifest = Manifest(
            backup_id=identifier,
            type=request.type,
            tag=request.tag,
            keeping=request.keeping,
            operation_id=operation_of(context),
            operation_under_way=self.operation_under_way(context, self.cluster()),
            system=profile.metadata.name,
            cluster=Cluster.model_validate(checked["cluster"]),
            started_at=min(source.started_at for source in sources),
            ended_at=datetime.now(UTC),
            sources=sources,
            encryption=profile.backup.encryption,
            recipients=tuple(Recipient.model_validate(found) for found in checked["recipients"]),
            digest_key_id=checked["digest_key_id"],
            object_lock=checked["object_lock"],
            tool_version=VERSION,
        )
        with self.session() as session:
            digest = self.earlier(session, manifest) or session.backups.write_manifest(manifest, session.signing)
            url = session.backups.store.url(session.backups.folder(identifier))
        archives = [source.archive for source in sources if source.archive]
        self.log.info("%s exists: %s", identifier, url)
        return {
            "backup_id": identifier,
            "manifest_sha256": digest,
            "stored_bytes": sum(file.size_bytes for file in manifest.files),
            "member_bytes": sum(archive.member_bytes for archive in archives),
            "members": sum(archive.members for archive in archives),
            "url": url,
        }

    @staticmethod
    def missing(sources: tuple[Source, ...]) -> list[Source]:
        """Return sources that must be there and left no result at all."""
        names, now = {source.name for source in sources}, datetime.now(UTC)
        return [
            Source(
                name=name, required=True, state="failed", reason="its step left no result", started_at=now, ended_at=now
            )
            for name, (_, required) in SOURCES.items()
            if required and name not in names
        ]

    @staticmethod
    def earlier(session: Session, manifest: Manifest) -> str | None:
        """Return the digest of the manifest that an earlier try has written of the same sources."""
        try:
            found, data = session.backups.read_manifest(manifest.backup_id)
        except PermanentError as error:
            if error.reference == "backup-not-found":
                return None
            raise
        return sha256_of(data) if found.sources == manifest.sources else None

    def operation_under_way(self, context: Context, cluster: ClusterHook) -> str | None:
        """Return who holds the lease on the system now."""
        lease, now = self.leases(cluster).look()
        if lease is None or now is None or lease.holder is None:
            return None
        return lease.holder if lease.standing(operation_of(context), now) == "held" else None


class VerifyStoredFilesOperator(BackupStep):
    """Read every file of the backup back, compare it with the manifest, and leave a signed note that it is *checked*.

    Returns the note. Safe to repeat: yes; a note that an earlier try has left is kept.
    """

    def act(self, context: Context) -> dict[str, Any]:
        identifier = self.backup_id(context)
        with self.session() as session:
            note = self.earlier(session, identifier)
            if note is None:
                note = session.backups.read_back(identifier, datetime.now(UTC), operation_of(context))
                session.backups.write_note(note, session.signing)
        self.log.info("%s is checked: %s files, %s bytes read back", identifier, note.files, note.read_bytes)
        return note.model_dump(mode="json")

    @staticmethod
    def earlier(session: Session, identifier: str) -> Note | None:
        """Return the note that an earlier try has left; one on a manifest that was replaced since does not count."""
        try:
            return session.backups.read_note(identifier, "checked", session.backups.read_manifest(identifier)[1])
        except PermanentError as error:
            if error.reference == "manifest-invalid":
                return None
            raise


class ReportBackupOperator(ReportOperator):
    """Write the report of a backup: a finding for each source and for each key that ends soon."""

    def build(self, context: Context, profile: SystemProfile, operation: str) -> dict[str, Any]:
        report = super().build(context, profile, operation)
        states = states_of(context)
        failed = any(state in FAILED_STATES for state in states.values())
        note = pull(context, VERIFY_STORED_FILES)
        how: Overall = "not-backed-up" if failed or note is None else "backed-up"
        checked = pull(context, CHECK_REQUEST) or {}
        findings = [self.about(found) for found in self.captured(context)]
        findings += [
            Finding(
                "recipients",
                "warn",
                name,
                f"its key ends at {end}",
                "a key that outlives the backups",
                "Renew the key.",
            )
            for name, end in checked.get("expiring", {}).items()
        ]
        if note is not None:
            read = f"{note['files']} files, {note['read_bytes']} bytes read back in {note['duration_seconds']} s"
            findings.append(Finding("stored files", "pass", note["backup_id"], read, "as the manifest says"))
        return {**report, **conclusion(how, findings)}

    @staticmethod
    def captured(context: Context) -> list[Source]:
        results = pull_all(context, [capture_step_id(name) for name in SOURCES])
        return [Source.model_validate(found) for found in results.values()]

    @staticmethod
    def about(source: Source) -> Finding:
        archive = source.archive
        if archive:
            observed = f"{archive.members} files, {archive.member_bytes} bytes, {archive.size_bytes} bytes stored"
            return Finding("sources", "pass", source.name, observed, "captured")
        severity: Severity = "block" if source.required else "warn"
        return Finding(
            "sources", severity, source.name, f"{source.state}: {source.reason}", "captured", "See its step."
        )
