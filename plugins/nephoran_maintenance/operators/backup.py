"""The steps of a backup: what is captured, encrypted and stored, the manifest that makes it one, and reading it back."""

from __future__ import annotations

import functools
from collections.abc import Generator, Sequence
from contextlib import closing
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from airflow.sdk.exceptions import AirflowSkipException

from nephoran_maintenance.domain.backups import BackupRequest, BackupType, RequestedType, backup_id, left_in_staging
from nephoran_maintenance.domain.capture import listings
from nephoran_maintenance.domain.chain import Choice, chain_of, choose
from nephoran_maintenance.domain.findings import Finding, Severity
from nephoran_maintenance.domain.manifest import (
    Cluster,
    Manifest,
    Note,
    Parent,
    Recipient,
    Source,
    check_complete,
    sha256_of,
)
from nephoran_maintenance.domain.openpgp_keys import expiring
from nephoran_maintenance.domain.report import NOT_MEASURED, Overall, conclusion
from nephoran_maintenance.domain.scope import Scope, check_names, check_scope
from nephoran_maintenance.domain.step_ids import (
    CHECK_REQUEST,
    RECORD_MANIFEST,
    RELEASE_READERS,
    RELEASE_STAGING,
    VERIFY_STORED_FILES,
    WAIT_OPERATION,
    WAIT_WEAVIATE_BACKUP,
    capture_step_id,
)
from nephoran_maintenance.domain.tsdb import OTHERS
from nephoran_maintenance.domain.weaviate_backup import folder_in_bucket
from nephoran_maintenance.errors import MaintenanceError, PermanentError
from nephoran_maintenance.operators.backup_sources import (
    KNOWLEDGE_BASE,
    READERS,
    SOURCES,
    WEAVIATE,
    WITH_DATA,
    Capturing,
    Notes,
    sources_of,
)
from nephoran_maintenance.operators.backup_step import BackupStep, Session
from nephoran_maintenance.operators.base import (
    ERROR_KEY,
    NEVER_RAN,
    finish_step,
    journal_of,
    operation_of,
    pull,
    pull_all,
    reported_errors,
    states_of,
)
from nephoran_maintenance.operators.report import FAILED_STATES, ReportOperator
from nephoran_maintenance.sensors.weaviate_backup import WeaviateBackupSensor
from nephoran_maintenance.settings import VERSION

if TYPE_CHECKING:
    from airflow.sdk import Context

    from nephoran_maintenance.domain.members import Member
    from nephoran_maintenance.engine.sources import Source as MemberSource
    from nephoran_maintenance.profile import SystemProfile


class CheckBackupOperator(BackupStep):
    """Check parameters, keys, the store and the cluster before anything is read.

    Skips the steps of sources that this type of backup does not have, and all of them where a procedure needs no backup
    before its change. Returns ``{"backup_id", "type", "reason", "parent", "chain", "base_id", "no_base", "cluster",
    "recipients", "expiring", "object_lock", "digest_key_id"}``: ``chain`` has the ids of all links before this one,
    ``base_id`` is what Weaviate builds on, ``no_base`` why it does not. Changes nothing. Safe to repeat: yes.
    """

    def act(self, context: Context) -> Any:
        if reason := self.why_not(context):
            self.log.warning("No backup: %s", reason)
            return finish_step(context, {"not_made": reason}, [self.sibling(step) for step in ALL_AFTER_CHECK])
        found = self.looked(context)
        self.log.info("A backup of the type %s: %s", found["type"], found["reason"])
        return finish_step(
            context, found, [self.sibling(s) for s in unneeded_steps(found["type"], self.request(context).scope)]
        )

    def why_not(self, context: Context) -> str:
        """Return why there is no backup before this change; empty when there is one to be made."""
        if not self.before_change:
            return ""
        if self.profile.backup.before_change == "none":
            return "the profile says that none is made before a change"
        # A step that was cleared: a backup of what is half changed already must not take the place of the one before.
        return "the change has begun, and its backup was made before" if journal_of(context, self.journals()) else ""

    def looked(self, context: Context) -> dict[str, Any]:
        """Return what is found out about cluster, keys and store, and what is decided from it."""
        profile, cluster, request = self.profile, self.cluster(), self.request(context)
        self.check_scope(request)
        with_data = request.type in (*WITH_DATA, "auto")
        with_weaviate = with_data and bool(request.scope.chosen("sources", [WEAVIATE]))
        about = Cluster(
            name=profile.metadata.name,
            uid=str(cluster.get("Namespace", "kube-system")["metadata"]["uid"]),
            kubernetes_version=cluster.server_version(),
            weaviate_version=self.weaviate().version() if with_weaviate else None,
        )
        with self.session() as session:
            choice, chain = self.choice(context, session, request.type, about.uid)
            identifier = backup_id(choice.type, context["dag_run"].run_after, operation_of(context))
            session.backups.store.list(f"{session.backups.folder(identifier)}/")
            # A wrong passphrase, or a key that has ended, is known now and not after hours of reading.
            session.pgp.try_signing(session.signing)
            ending = expiring(session.pins, session.recipients, datetime.now(UTC))
            found = {
                "backup_id": identifier,
                "type": choice.type,
                "reason": choice.reason,
                "parent": choice.parent.model_dump() if choice.parent else None,
                "chain": chain,
                **self.base(choice.parent if with_data else None),
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
        if with_weaviate:
            self.staging().usage(f"{identifier}/")
        if KNOWLEDGE_BASE in sources_of(choice.type, request.scope):
            files = self.pod_files(context)
            for folder in profile.backup.knowledge_base:
                files.check(files.find(folder, profile.namespaces.system))
        for name, end in ending.items():
            self.log.warning("The key of %s ends at %s: renew it, or nothing can be backed up after that", name, end)
        self.log.info("%s goes to %s", identifier, session.backups.store.url(session.backups.folder(identifier)))
        return found

    def check_scope(self, request: BackupRequest) -> None:
        """Refuse what is included or excluded and does not exist, or that leaves nothing.

        :raises PermanentError: ``scope-unknown`` or ``parameters-invalid``.
        """
        scope = request.scope
        if request.type == "incremental" or request.type == "auto" or scope.whole:
            return
        own = self.profile.namespaces.of_the_system
        check_scope(scope, sources=sources_of(request.type), namespaces=own)
        if scope.limits("resources"):
            from nephoran_maintenance.hooks.object_listing import ObjectLister

            there = listings(ObjectLister(self.cluster()).discover(), own)
            check_names(scope, "resources", {listing.served.label for listing in there})

    def choice(
        self, context: Context, session: Session, requested: RequestedType, cluster_uid: str
    ) -> tuple[Choice, list[str]]:
        """Return type and parent of the backup, and the chain that it continues, the full one first."""
        decide = functools.partial(
            choose,
            requested,
            context["dag_run"].run_after,
            cluster_uid=cluster_uid,
            digest_key_id=session.digest_key_id,
            longest_chain=self.profile.backup.longest_chain,
        )
        if requested not in ("incremental", "auto"):
            return decide(()), []
        listing = session.backups.list()
        for identifier, problem in listing.problems.items():
            self.log.warning("%s does not count: %s", identifier, problem)
        choice = decide(listing.backups)
        if choice.parent is None:
            return choice, []
        known = {backup.backup_id: backup for backup in listing.backups}
        return choice, [link.backup_id for link in chain_of(choice.parent.backup_id, known)]

    def base(self, parent: Parent | None) -> dict[str, str]:
        """Return what Weaviate builds on, or why there is nothing although there is a parent."""
        if parent is None:
            return {"base_id": "", "no_base": ""}
        if self.staging().usage(f"{parent.backup_id}/").objects == 0:
            return {"base_id": "", "no_base": f"the descriptors of {parent.backup_id} are not in the staging bucket"}
        return {"base_id": parent.backup_id, "no_base": ""}


ALL_AFTER_CHECK = (
    *(capture_step_id(name) for name in SOURCES),
    WAIT_WEAVIATE_BACKUP,
    RELEASE_STAGING,
    RELEASE_READERS,
    RECORD_MANIFEST,
    VERIFY_STORED_FILES,
)


def unneeded_steps(backup_type: BackupType, scope: Scope) -> list[str]:
    """Return the steps that a backup of this type and scope does not have."""
    there = sources_of(backup_type, scope)
    steps = [capture_step_id(name) for name in SOURCES if name not in there]
    if WEAVIATE not in there:
        steps += [WAIT_WEAVIATE_BACKUP, RELEASE_STAGING]
    return steps if set(READERS) & set(there) else [*steps, RELEASE_READERS]


class WaitWeaviateBackupOperator(WeaviateBackupSensor):
    """Have Weaviate back itself up into the staging bucket, as a step whose errors are in the report."""

    def __init__(self, *, kubernetes_connection_id: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.kubernetes_connection_id = kubernetes_connection_id

    def execute(self, context: Context) -> dict[str, Any]:
        with reported_errors(context):
            return super().execute(context)

    def resume(self, context: Context, event: dict[str, Any], deadline_at: str) -> dict[str, Any]:
        with reported_errors(context):
            return super().resume(context, event, deadline_at)

    def conclude(self, context: Context, event: dict[str, Any]) -> dict[str, Any]:
        with reported_errors(context):
            return super().conclude(context, event)


class CaptureSourceOperator(BackupStep):
    """Stream one source through compression and encryption into the store; return what the manifest says of it.

    Nothing of it stays in the store when it fails, and nothing in clear is written to a disk. A source that must not be
    missing fails the step; another one is *failed* in the manifest. Safe to repeat: yes, its objects are written again as
    a whole.

    :param source: a name of ``SOURCES``.
    """

    def __init__(self, *, source: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.source = source

    def act(self, context: Context) -> dict[str, Any]:
        from nephoran_maintenance.hooks.archive import ArchiveWriter

        kind = SOURCES[self.source]
        if kind.notes:
            Notes(context).tell_again(kind.notes)
        required = kind.is_required(self.profile)
        started_at = datetime.now(UTC)
        found: dict[str, Any] = {"state": "captured"}
        with self.session() as session:
            source = kind.make(Capturing(self, context, session))
            writer = ArchiveWriter(
                session.backups.store,
                session.pgp,
                session.to,
                digest_key=session.digest_key,
                changed_at=context["dag_run"].run_after,
            )
            folder = session.backups.folder(self.backup_id(context))
            try:
                # Closed at once, whatever happens: a source may hold something in the cluster.
                with closing(present(source)) as members:
                    found["archive"] = writer.write(folder, self.source, members)
            except AbsentError as absent:
                found = {"state": "absent", "reason": absent.reason}
            except MaintenanceError as error:
                again = not isinstance(error, PermanentError) and context["ti"].try_number <= (self.retries or 0)
                if required or again:
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


def present(source: MemberSource) -> Generator[Member, None, None]:
    """Yield the members of a source.

    :raises AbsentError: instead of an archive of nothing.
    """
    yield from source
    if source.outcome.state == "absent":
        raise AbsentError(source.outcome.message)


class ReleaseStagingOperator(BackupStep):
    """Take Weaviate's files out of the staging bucket again, also when nothing came of the backup.

    Of a backup that was captured the descriptors stay, on which an incremental one can build. What a dead run or a chain
    that is over has left there goes too. Returns ``{"deleted", "seconds"}``: how many objects, and how long the files of this
    backup may have lain there. Safe to repeat: yes.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(trigger_rule="all_done", **kwargs)

    def act(self, context: Context) -> dict[str, Any]:
        states = states_of(context)
        if states.get(self.sibling(WAIT_WEAVIATE_BACKUP)) in NEVER_RAN:
            raise AirflowSkipException("Weaviate has written nothing")
        made = pull(context, self.sibling(WAIT_WEAVIATE_BACKUP)) or {}
        captured = states.get(self.sibling(capture_step_id("weaviate"))) == "success"
        staging, identifier = self.staging(), self.backup_id(context)
        folder = folder_in_bucket(str(made.get("path") or ""), str(staging.bucket), identifier)
        deleted = staging.clear(folder, keep_descriptors=captured)
        root = folder.removesuffix(f"{identifier}/")
        there = {file.key.removeprefix(root).partition("/")[0] for file in staging.files(root)}
        left = left_in_staging(sorted(there), identifier, self.checked(context)["chain"])
        deleted += sum(staging.clear(f"{root}{name}/", keep_descriptors=keep) for name, keep in left.items())
        began = datetime.fromisoformat(made["started_at"]) if made.get("started_at") else None
        seconds = round((datetime.now(UTC) - began).total_seconds(), 1) if began else NOT_MEASURED
        self.log.info("%d objects of %s are out of the staging bucket after %s s", deleted, identifier, seconds)
        return {"deleted": deleted, "seconds": seconds}


def captured_sources(step: BackupStep, context: Context) -> tuple[Source, ...]:
    """Return what became of each source that was tried."""
    results = pull_all(context, [step.sibling(capture_step_id(name)) for name in SOURCES])
    return tuple(Source.model_validate(found) for found in results.values())


class RecordManifestOperator(BackupStep):
    """Write and sign the manifest, with which the backup begins to exist.

    Returns ``{"backup_id", "type", "manifest_sha256", "stored_bytes", "member_bytes", "members", "url"}``. Safe to repeat: yes; a
    manifest of the same sources that an earlier try has written is kept.

    :raises PermanentError: ``backup-incomplete`` when a source is missing that must not.
    """

    def act(self, context: Context) -> dict[str, Any]:
        checked, identifier = self.checked(context), self.backup_id(context)
        sources = captured_sources(self, context)
        request, profile = self.request(context), self.profile
        expected = sources_of(self.backup_type(context), request.scope)
        check_complete([*sources, *self.missing(sources, expected)], identifier)
        manifest = Manifest(
            backup_id=identifier,
            type=self.backup_type(context),
            tag=request.tag,
            keeping=request.keeping,
            operation_id=operation_of(context),
            operation_under_way=pull(context, self.sibling(WAIT_OPERATION)) or self.other_operation(context),
            system=profile.metadata.name,
            cluster=Cluster.model_validate(checked["cluster"]),
            started_at=min(source.started_at for source in sources),
            ended_at=datetime.now(UTC),
            sources=sources,
            encryption=profile.backup.encryption,
            recipients=tuple(Recipient.model_validate(found) for found in checked["recipients"]),
            digest_key_id=checked["digest_key_id"],
            object_lock=checked["object_lock"],
            parent=Parent.model_validate(checked["parent"]) if checked["parent"] else None,
            scope=None if request.whole else request.scope,
            tool_version=VERSION,
        )
        with self.session() as session:
            digest = self.earlier(session, manifest) or session.backups.write_manifest(manifest, session.signing)
            url = session.backups.store.url(session.backups.folder(identifier))
        archives = [source.archive for source in sources if source.archive]
        self.log.info("%s exists: %s", identifier, url)
        return {
            "backup_id": identifier,
            "type": manifest.type,
            "manifest_sha256": digest,
            "stored_bytes": sum(file.size_bytes for file in manifest.files),
            "member_bytes": sum(archive.member_bytes for archive in archives),
            "members": sum(archive.members for archive in archives),
            "url": url,
        }

    def missing(self, sources: tuple[Source, ...], expected: list[str]) -> list[Source]:
        """Return sources that must be there and left no result at all."""
        names, now = {source.name for source in sources}, datetime.now(UTC)
        return [
            Source(
                name=name, required=True, state="failed", reason="its step left no result", started_at=now, ended_at=now
            )
            for name in expected
            if SOURCES[name].is_required(self.profile) and name not in names
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


class ReportBackupOperator(ReportOperator, BackupStep):
    """Write the report of a backup: a finding for each source, for each key that ends soon, and for the staging bucket."""

    def build(self, context: Context, profile: SystemProfile, operation: str) -> dict[str, Any]:
        report = super().build(context, profile, operation)
        states = states_of(context)
        # The backup is good whatever is left of its making; that makes the run red, and is told below.
        failed = any(state in FAILED_STATES for step, state in states.items() if step != RELEASE_READERS)
        note = pull(context, VERIFY_STORED_FILES)
        how: Overall = "not-backed-up" if failed or note is None else "backed-up"
        checked = pull(context, CHECK_REQUEST) or {}
        sources = captured_sources(self, context)
        findings = [*map(self.about, sources), *self.about_snapshots(sources), *self.about_readers(context)]
        findings += self.about_scope(context) if checked else []
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
        if (staged := pull(context, RELEASE_STAGING)) is not None:
            lay = f"Weaviate's files lay there for {staged['seconds']} s; {staged['deleted']} were deleted"
            findings.append(
                Finding("staging bucket", "pass", profile.backup.staging_bucket, lay, "only descriptors stay")
            )
        return {**report, **conclusion(how, findings)}

    def about_readers(self, context: Context) -> list[Finding]:
        """Return whether anything of the reading of volumes is left in the cluster, where there was any."""
        expected = "no helper pod and no snapshot of this backup is left"
        if states_of(context).get(RELEASE_READERS) in FAILED_STATES:
            why = pull(context, RELEASE_READERS, ERROR_KEY) or "see the log of the step"
            hint = "Do what it says, or clear the step: it looks again."
            return [Finding("readers", "warn", RELEASE_READERS, why, expected, hint)]
        released = pull(context, RELEASE_READERS) or {}
        if not released.get("looked_for"):
            return []
        removed = ", ".join(released["removed"])
        observed = f"left by a dead step and removed: {removed}" if removed else "nothing is left"
        return [Finding("readers", "pass", ", ".join(released["looked_for"]), observed, expected)]

    @staticmethod
    def about_snapshots(sources: Sequence[Source]) -> list[Finding]:
        """Return that Prometheus has snapshots that nobody may know of: they keep the space of old blocks."""
        hint = (
            "A backup that vanished may have left them. Unless another backup is at work or somebody needs them, delete "
            "them below snapshots in the data of Prometheus: they keep the space of old blocks."
        )
        findings = []
        for source in sources:
            if others := source.facts.get(OTHERS):
                names = ", ".join(others["first"])
                seen = f"{others['count']} that are none of this backup: {names}"
                findings.append(Finding("snapshots", "warn", source.name, seen, "none but its own", hint))
        return findings

    def about_scope(self, context: Context) -> list[Finding]:
        """Return that the backup is a part, where it is one."""
        scope = self.request(context).scope
        if scope.whole:
            return []
        hint = "Nothing is built on it, and it satisfies no check of freshness: make a whole one too."
        return [Finding("scope", "warn", self.backup_id(context), str(scope), "everything", hint)]

    @staticmethod
    def about(source: Source) -> Finding:
        archive = source.archive
        if archive:
            observed = f"{archive.members} files, {archive.member_bytes} bytes, {archive.size_bytes} bytes stored"
            if kind := source.facts.get("kind"):
                why = source.facts.get("reason")
                observed += f", {kind}{f' because {why}' if why else ''}"
            if added := source.facts.get("collections_added_meanwhile"):
                seen = f"{observed}; not in it: {', '.join(added)}, added while it was made"
                return Finding("sources", "warn", source.name, seen, "captured", "The next backup has them.")
            return Finding("sources", "pass", source.name, observed, "captured")
        severity: Severity = "block" if source.required else "warn"
        return Finding(
            "sources", severity, source.name, f"{source.state}: {source.reason}", "captured", "See its step."
        )
