"""The steps of a backup: what is captured, encrypted and stored, the manifest that makes it one, and reading it back."""

from __future__ import annotations

import functools
from collections.abc import Generator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, get_args

from airflow.sdk.exceptions import AirflowSkipException

from nephoran_maintenance.domain.backup_findings import snapshot_findings, source_finding, staging_finding
from nephoran_maintenance.domain.backups import BackupRequest, BackupType, RequestedType, backup_id, left_in_staging
from nephoran_maintenance.domain.capture import listings
from nephoran_maintenance.domain.chain import PASSPHRASE, Choice, chain_of, choose
from nephoran_maintenance.domain.findings import Finding
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
from nephoran_maintenance.domain.openpgp_keys import check_signer, expiring, signing_ends
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
from nephoran_maintenance.domain.weaviate_backup import folder_in_bucket
from nephoran_maintenance.errors import MaintenanceError, PermanentError
from nephoran_maintenance.operators.backup_readiness import pinned
from nephoran_maintenance.operators.backup_sources import (
    KNOWLEDGE_BASE,
    READERS,
    SOURCES,
    WEAVIATE,
    WITH_DATA,
    Capturing,
    Notes,
    captured_sources,
    sources_of,
)
from nephoran_maintenance.operators.backup_step import BackupStep, Session, backup_exists
from nephoran_maintenance.operators.base import (
    ERROR_KEY,
    NEVER_RAN,
    finish_step,
    journal_of,
    operation_of,
    pull,
    reported_errors,
    states_of,
)
from nephoran_maintenance.operators.report import FAILED_STATES, ReportOperator
from nephoran_maintenance.profile import load_profile
from nephoran_maintenance.sensors.weaviate_backup import WeaviateBackupSensor
from nephoran_maintenance.settings import VERSION
from nephoran_maintenance.triggers.weaviate_backup import WeaviateEndTrigger

BACKEND = "s3"
"""Weaviate's word for the module that writes its backups."""
LONGEST_END = timedelta(minutes=10)
"""So long a backup of Weaviate that is not wanted any more may take to end: a cancelled one takes seconds."""

if TYPE_CHECKING:
    from airflow.sdk import Context

    from nephoran_maintenance.domain.members import Member
    from nephoran_maintenance.engine.sources import Source as MemberSource
    from nephoran_maintenance.profile import SystemProfile


class CheckBackupOperator(BackupStep):
    """Check parameters, keys, the store and the cluster before anything is read.

    Skips the steps of sources that this type of backup does not have, and all of them where a procedure needs no backup
    before its change. Returns ``{"backup_id", "type", "reason", "parent", "chain", "base_id", "no_base", "cluster",
    "recipients", "expiring", "object_lock", "digest_key_id", "collections"}``: ``chain`` has the ids of all links before
    this one, ``base_id`` is what Weaviate builds on, ``no_base`` why it does not, ``collections`` what Weaviate had before it
    began. Changes nothing. Safe to repeat: yes; of a run that was cleared after its backup was made it returns what the
    manifest says, and the steps go on from that.
    """

    def act(self, context: Context) -> Any:
        if reason := self.why_not(context):
            self.log.warning("No backup: %s", reason)
            return finish_step(context, {"not_made": reason}, [self.sibling(step) for step in ALL_AFTER_CHECK])
        found = self.made_before(context) or self.looked(context)
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

    def made_before(self, context: Context) -> dict[str, Any] | None:
        """Return what the manifest says of the backup that this run has made, None when it has made none.

        Decided before anything else: *auto* would build on that very backup.
        """
        requested, run_after = self.request(context).type, context["dag_run"].run_after
        types: tuple[BackupType, ...] = get_args(BackupType) if requested == "auto" else (requested,)
        ids = [backup_id(one, run_after, operation_of(context)) for one in types]
        identifier = next((one for one in ids if backup_exists(self.profile, one)), None)
        if identifier is None:
            return None
        with self.session() as session:
            manifest, _ = session.backups.read_manifest(identifier)
            ending = self.ending(session)
        return {
            "backup_id": identifier,
            "type": manifest.type,
            "reason": "this run has made it before, and nothing of it is made again",
            "parent": manifest.parent.model_dump() if manifest.parent else None,
            "chain": [],
            "base_id": "",
            "no_base": "",
            "cluster": manifest.cluster.model_dump(),
            "recipients": [recipient.model_dump(mode="json") for recipient in manifest.recipients],
            "expiring": {name: end.isoformat() for name, end in ending.items()},
            "object_lock": manifest.object_lock,
            "digest_key_id": manifest.digest_key_id,
            "collections": [],
        }

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
            ending = self.ending(session)
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
                "collections": [str(found["class"]) for found in self.weaviate().schema()] if with_weaviate else [],
            }
        if with_weaviate:
            self.staging().refuse_versions()
            self.staging().usage(f"{identifier}/")
        if KNOWLEDGE_BASE in sources_of(choice.type, request.scope):
            files = self.pod_files(context)
            for folder in profile.backup.knowledge_base:
                files.check(files.find(folder, profile.namespaces.system))
        for name, end in ending.items():
            self.log.warning("The key of %s ends at %s: renew it, or nothing can be backed up after that", name, end)
        self.log.info("%s goes to %s", identifier, session.backups.store.url(session.backups.folder(identifier)))
        return found

    def ending(self, session: Session) -> dict[str, datetime]:
        """Return by name which recipients' and signers' keys end soon, and when."""
        now, signer = datetime.now(UTC), check_signer(session.signing.fingerprint, pinned(self.profile.backup.signers))
        return expiring(session.pins, session.recipients, now) | signing_ends(signer, session.pgp.keys(), now)

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
            system=self.profile.metadata.name,
            digest_key_id=session.digest_key_id,
            recipients={pin.fingerprint: pin.name for pin in session.pins} or {PASSPHRASE: "the passphrase"},
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
        if why := self.why_no_base(parent.backup_id):
            return {"base_id": "", "no_base": why}
        return {"base_id": parent.backup_id, "no_base": ""}

    def why_no_base(self, identifier: str) -> str:
        """Return why Weaviate can't build on a backup of its own; empty when it can."""
        answer = self.weaviate().backup_status(BACKEND, identifier) or {}
        staging = self.staging()
        try:
            # Below which path of the bucket it writes, only Weaviate knows.
            folder = folder_in_bucket(str(answer.get("path") or ""), str(staging.bucket), identifier)
        except PermanentError as error:
            return error.message
        if answer.get("status") != "SUCCESS" or staging.usage(folder).objects == 0:
            return f"the descriptors of {identifier} are not in the staging bucket"
        return ""


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
    """Have Weaviate back itself up into the staging bucket, as a step whose errors are in the report.

    Where the backup of this run exists already Weaviate is not asked, and what is returned has only its id.
    """

    def __init__(self, *, kubernetes_connection_id: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.kubernetes_connection_id = kubernetes_connection_id

    def execute(self, context: Context) -> dict[str, Any]:
        with reported_errors(context):
            if backup_exists(load_profile(), self.backup_id):
                self.log.info("%s exists already", self.backup_id)
                return {"backup_id": self.backup_id}
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
    a whole; once there is a manifest nothing is written any more, and what that says is returned.

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
            if (recorded := self.recorded(session, self.backup_id(context))) is not None:
                self.log.info("%s is in the manifest already: %s", self.source, recorded.state)
                return recorded.model_dump(mode="json")
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
            # What was made before it was read is as old as its making.
            started_at=min(started_at, source.made_at or started_at),
            ended_at=datetime.now(UTC),
            facts=source.outcome.facts,
            **found,
        )
        self.log.info("%s: %s %s", self.source, captured.state, captured.reason)
        return captured.model_dump(mode="json")

    def recorded(self, session: Session, identifier: str) -> Source | None:
        """Return what the manifest says of this source, None as long as there is no manifest.

        :raises PermanentError: ``backup-exists``: there is one without this source.
        """
        existing = session.manifest_of(identifier)
        if existing is None:
            return None
        found = next((source for source in existing[0].sources if source.name == self.source), None)
        if found is None:
            raise already_there(identifier, f"{self.source} is not in its manifest")
        return found


def already_there(identifier: str, problem: str) -> PermanentError:
    """Return the error of a step that would change a backup that exists."""
    return PermanentError(
        "backup-exists",
        f"the backup {identifier} exists already, and {problem}",
        context={"backup": identifier},
        hint="A backup is never changed: trigger a new run instead of clearing this one.",
    )


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

    A backup that Weaviate has not called finished is cancelled, and its end is awaited without a worker. Of a backup that was
    captured the descriptors stay, on which an incremental one can build. What a dead run or a chain that is over has left
    there goes too. Returns ``{"deleted", "seconds", "doubt"}``: how many objects, how long the files of this backup may have
    lain there, and why some may lie there still; empty: none does. Safe to repeat: yes.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(trigger_rule="all_done", **kwargs)

    def act(self, context: Context) -> dict[str, Any]:
        if states_of(context).get(self.sibling(WAIT_WEAVIATE_BACKUP)) in NEVER_RAN:
            raise AirflowSkipException("Weaviate has written nothing")
        identifier = self.backup_id(context)
        if backup_exists(self.profile, identifier):
            # What an incremental one builds on lies there; the run that made the backup has cleared the rest.
            raise AirflowSkipException("the backup exists already")
        made = pull(context, self.sibling(WAIT_WEAVIATE_BACKUP))
        if not made:
            self.defer(
                trigger=WeaviateEndTrigger(
                    connection_id=self.profile.connections.weaviate,
                    backend=BACKEND,
                    backup_id=identifier,
                    deadline_at=(datetime.now(UTC) + LONGEST_END).isoformat(),
                ),
                method_name="resume_step",
                # The trigger's own deadline answers in an event; this one only catches a triggerer that is gone.
                timeout=LONGEST_END + timedelta(minutes=5),
            )
        return self.cleared(context, made, doubt="")

    def resume(self, context: Context, event: dict[str, Any]) -> dict[str, Any]:
        doubt = ""
        if event["state"] != "complete":
            last = event.get("status") or "not known"
            doubt = f"Weaviate may still write there: its backup was {last} at last, {event['message']}"
        return self.cleared(context, {"path": event.get("path")}, doubt)

    def cleared(self, context: Context, made: dict[str, Any], doubt: str) -> dict[str, Any]:
        """Clear the bucket, and look once more.

        :param made: what is known of Weaviate's backup: ``path`` and ``started_at``.
        :param doubt: why more may come.
        """
        captured = states_of(context).get(self.sibling(capture_step_id("weaviate"))) == "success"
        staging, identifier, path = self.staging(), self.backup_id(context), str(made.get("path") or "")
        folders = [] if path else staging.folders_of(identifier)
        folders = folders or [folder_in_bucket(path, str(staging.bucket), identifier)]
        deleted = 0
        for folder in folders:
            deleted += staging.clear(folder, keep_descriptors=captured)
            root = folder.removesuffix(f"{identifier}/")
            there = {file.key.removeprefix(root).partition("/")[0] for file in staging.files(root)}
            left = left_in_staging(sorted(there), identifier, self.checked(context)["chain"])
            deleted += sum(staging.clear(f"{root}{name}/", keep_descriptors=keep) for name, keep in left.items())
        if late := sum(staging.clear(folder, keep_descriptors=captured) for folder in folders):
            deleted += late
            doubt = doubt or f"{late} objects came while it was cleared"
        began = datetime.fromisoformat(made["started_at"]) if made.get("started_at") else None
        seconds = round((datetime.now(UTC) - began).total_seconds(), 1) if began else NOT_MEASURED
        self.log.info("%d objects of %s are out of the staging bucket after %s s", deleted, identifier, seconds)
        if doubt:
            self.log.warning("%s", doubt)
        return {"deleted": deleted, "seconds": seconds, "doubt": doubt}


class RecordManifestOperator(BackupStep):
    """Write and sign the manifest, with which the backup begins to exist.

    Returns ``{"backup_id", "type", "manifest_sha256", "stored_bytes", "member_bytes", "members", "url"}``. Safe to repeat: yes; a
    manifest that an earlier try has written is kept.

    :raises PermanentError: ``backup-incomplete`` when a source is missing that must not; ``backup-exists`` when there is a
        manifest of other sources.
    """

    def act(self, context: Context) -> dict[str, Any]:
        identifier, sources = self.backup_id(context), captured_sources(context, self.sibling)
        with self.session() as session:
            manifest, digest = self.earlier(session, identifier, sources) or self.written(context, session, sources)
            url = session.backups.store.url(session.backups.folder(identifier))
        archives = [source.archive for source in manifest.sources if source.archive]
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

    def written(self, context: Context, session: Session, sources: tuple[Source, ...]) -> tuple[Manifest, str]:
        """Write the manifest; return it and its digest."""
        checked, identifier = self.checked(context), self.backup_id(context)
        request, profile = self.request(context), self.profile
        expected = sources_of(self.backup_type(context), request.scope)
        check_complete([*sources, *self.missing(sources, expected)], identifier)
        manifest = Manifest(
            backup_id=identifier,
            type=self.backup_type(context),
            tag=request.tag,
            keeping=request.keeping,
            operation_id=operation_of(context),
            operation_under_way=self.operations(context, min(source.started_at for source in sources)),
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
        return manifest, session.backups.write_manifest(manifest, session.signing)

    def operations(self, context: Context, began_at: datetime) -> str | None:
        """Return which operations were under way at any time of the backup: what is in it may be of halfway through a change.

        Two looks at the lease miss one that begins and ends between them; its journal does not.
        """
        found = {pull(context, self.sibling(WAIT_OPERATION)), self.other_operation(context)}
        found |= {*self.journals().open_since(began_at)}
        return ", ".join(sorted(found - {None, operation_of(context)})) or None

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
    def earlier(session: Session, identifier: str, sources: tuple[Source, ...]) -> tuple[Manifest, str] | None:
        """Return the manifest that is there already, and its digest: an earlier try has written it.

        :raises PermanentError: ``backup-exists`` when it says something else of a source than that source's step.
        """
        existing = session.manifest_of(identifier)
        if existing is None:
            return None
        manifest, data = existing
        if differing := [source.name for source in sources if source not in manifest.sources]:
            raise already_there(identifier, f"its manifest says something else of {', '.join(differing)}")
        return manifest, sha256_of(data)


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
        sources = captured_sources(context, self.sibling)
        findings = [*map(source_finding, sources), *snapshot_findings(sources), *self.about_readers(context)]
        findings += self.about_scope(context) if checked else []
        findings += [
            Finding(
                "keys",
                "warn",
                name,
                f"its key ends at {end}",
                "30 days or more left",
                "Renew the key now, or nothing can be backed up after that.",
            )
            for name, end in checked.get("expiring", {}).items()
        ]
        if note is not None:
            read = f"{note['files']} files, {note['read_bytes']} bytes read back in {note['duration_seconds']} s"
            findings.append(Finding("stored files", "pass", note["backup_id"], read, "as the manifest says"))
        if (staged := pull(context, RELEASE_STAGING)) is not None:
            findings.append(staging_finding(profile.backup.staging_bucket, staged))
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

    def about_scope(self, context: Context) -> list[Finding]:
        """Return that the backup is a part, where it is one."""
        scope = self.request(context).scope
        if scope.whole:
            return []
        hint = "Nothing is built on it, and it satisfies no check of freshness: make a whole one too."
        return [Finding("scope", "warn", self.backup_id(context), str(scope), "everything", hint)]
