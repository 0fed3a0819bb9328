"""The steps of retention: what is past its time, who lets it go, and its deletion by the one account that may delete."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from nephoran_maintenance.domain.approval import Approval, Rule, check_approved
from nephoran_maintenance.domain.backups import MANIFEST, OPENED_FOLDER, SIGNATURE_SUFFIX, is_backup_id
from nephoran_maintenance.domain.findings import Finding
from nephoran_maintenance.domain.report import Overall, conclusion
from nephoran_maintenance.domain.retention import Folder, find_leftovers, plan_retention, table
from nephoran_maintenance.domain.retention_question import body, plan_hash, retention_rule, subject
from nephoran_maintenance.domain.step_ids import (
    DELETE_BACKUPS,
    PLAN_DELETIONS,
    WAIT_APPROVAL,
    WAIT_SECOND_APPROVAL,
)
from nephoran_maintenance.operators.approval import WaitApprovalOperator, recorded_approval
from nephoran_maintenance.operators.backup_readiness import pinned, refuse_unconfigured
from nephoran_maintenance.operators.base import StepOperator, finish_step, mode_of, pull, states_of
from nephoran_maintenance.operators.planning import HASH_KEY, PLANNED_AT_KEY
from nephoran_maintenance.operators.report import FAILED_STATES, ReportOperator

if TYPE_CHECKING:
    from airflow.sdk import Context

    from nephoran_maintenance.hooks.backup_store import BackupStore
    from nephoran_maintenance.hooks.object_deletion import DeletingStore, StoredVersion
    from nephoran_maintenance.profile import SystemProfile

Stored = dict[str, list["StoredVersion"]]
Contents = tuple[Stored, Stored]
SIGNED = f"{MANIFEST}{SIGNATURE_SUFFIX}"
COLUMNS = ["backup", "age_days", "grade", "action", "reason"]


@dataclass(frozen=True)
class Bucket:
    """The backups as the account of retention sees them, and everything that lies in their folders."""

    backups: BackupStore
    store: DeletingStore

    def contents(self, prefix: str) -> Contents:
        """Return everything in the folders of backups, and their notes of who has opened them, each by backup id.

        What lies elsewhere is none of retention.
        """
        folders: Stored = {}
        notes: Stored = {}
        for stored in self.store.everything(f"{prefix}/"):
            first, _, rest = stored.key.removeprefix(f"{prefix}/").partition("/")
            of, name = (notes, rest.partition("/")[0]) if first == OPENED_FOLDER else (folders, first)
            if is_backup_id(name):
                of.setdefault(name, []).append(stored)
        return folders, notes


class RetentionStep(StepOperator):
    """A step of retention; none of them asks the cluster anything."""

    @contextmanager
    def bucket(self) -> Iterator[Bucket]:
        """Open the bucket with the account that may delete, and gpg with the signers' public keys.

        :raises PermanentError: ``backup-not-configured`` when the profile names no signer.
        """
        from nephoran_maintenance.hooks.backup_store import BackupStore
        from nephoran_maintenance.hooks.object_deletion import DeletingStore
        from nephoran_maintenance.hooks.openpgp import OpenPgpHook

        backup, connection_id = self.profile.backup, self.profile.connections.object_store_retention
        refuse_unconfigured(self.profile)
        with OpenPgpHook() as pgp:
            store = DeletingStore(connection_id, bucket=backup.bucket)
            yield Bucket(BackupStore(store, pgp, backup.prefix, pinned(backup.signers)), store)

    def planned(self, bucket: Bucket, at: datetime) -> dict[str, Any]:
        """Return what becomes of everything in the bucket: ``{"rows", "delete", "leftovers", "problems", "parents",
        "asks"}``.
        """
        backup = self.profile.backup
        # The files first: what a run finishes while the manifests are read is no leftover for having none.
        (contents, _), listing = bucket.contents(backup.prefix), bucket.backups.list()
        folders = [folder_of(identifier, stored) for identifier, stored in contents.items()]
        readable = (*listing.backups, *listing.doubtful)
        # Also where somebody has hidden a manifest.
        named = {*listing.problems, *(folder.backup_id for folder in folders if folder.had_manifest)}
        plan = plan_retention(
            listing.backups,
            at,
            backup.retention,
            doubtful=listing.doubtful,
            unreadable=sorted(named - {one.backup_id for one in readable}),
        )
        leftovers = find_leftovers(folders, at, timedelta(days=backup.retention.leftovers_days))
        rows = table(plan) + [
            {
                "backup": left.backup_id,
                "age_days": f"{(at - left.newest_at) / timedelta(days=1):.1f}",
                "grade": "no manifest",
                "action": "delete",
                "reason": f"{left.files} files, {left.size_bytes} bytes of a run that did not finish",
            }
            for left in leftovers
        ]
        count = len(plan.to_delete) + len(leftovers)
        return {
            "rows": rows,
            "delete": list(plan.to_delete),
            "leftovers": [left.backup_id for left in leftovers],
            "problems": listing.problems,
            "parents": {b.backup_id: b.parent_id for b in readable if b.parent_id},
            "asks": count > backup.retention.approval_above,
        }


def folder_of(identifier: str, stored: list[StoredVersion]) -> Folder:
    """Return what retention needs to know of a folder."""
    return Folder(
        backup_id=identifier,
        files=len({one.key for one in stored}),
        size_bytes=sum(one.size_bytes for one in stored),
        newest_at=max(one.written_at for one in stored),
        had_manifest=any(one.key.endswith(f"/{SIGNED}") and not one.is_mark for one in stored),
    )


class CheckRetentionOperator(RetentionStep):
    """Check the profile, the signers' keys and the bucket. Returns ``{"mode", "url"}``. Safe to repeat: yes."""

    def act(self, context: Context) -> dict[str, Any]:
        prefix = self.profile.backup.prefix
        with self.bucket() as bucket:
            bucket.store.everything(f"{prefix}/{MANIFEST}")  # one page: whether it may list versions
            return {"mode": mode_of(context, self.profile.backup.retention.mode), "url": bucket.store.url(prefix)}


class PlanDeletionsOperator(RetentionStep):
    """Say of every backup whether it stays, and why; deletes nothing. Safe to repeat: yes.

    Returns what :meth:`RetentionStep.planned` does; leaves the list's hash and its moment in XCom. With mode
    ``plan``, and when nothing is to be deleted, the steps that delete are skipped.
    """

    def act(self, context: Context) -> Any:
        now = datetime.now(UTC)
        with self.bucket() as bucket:
            plan = self.planned(bucket, now)
        context["ti"].xcom_push(key=HASH_KEY, value=plan_hash([*plan["delete"], *plan["leftovers"]]))
        context["ti"].xcom_push(key=PLANNED_AT_KEY, value=now.isoformat())
        self.log.info("What becomes of each backup:\n%s", as_text(plan["rows"]))
        for identifier, problem in plan["problems"].items():
            self.log.warning("%s is left alone, its manifest does not count: %s", identifier, problem)
        goes_on = mode_of(context, self.profile.backup.retention.mode) == "apply" and (
            plan["delete"] or plan["leftovers"]
        )
        unneeded = [] if goes_on else [WAIT_APPROVAL, WAIT_SECOND_APPROVAL, DELETE_BACKUPS]
        return finish_step(context, plan, unneeded)


def as_text(rows: list[dict[str, str]]) -> str:
    """Return a table for the log."""
    lines = [dict(zip(COLUMNS, COLUMNS, strict=True)), *rows]
    widths = {name: max(len(line[name]) for line in lines) for name in COLUMNS}
    return "\n".join("  ".join(line[name].ljust(widths[name]) for name in COLUMNS).rstrip() for line in lines)


class WaitDeletionApprovalOperator(WaitApprovalOperator):
    """Ask for an approval when more is to be deleted at once than the profile lets go without a question."""

    plan_step = PLAN_DELETIONS

    def rule(self, context: Context) -> Rule:
        return deletion_rule(self.profile, context)

    def refuse_ended(self, context: Context) -> None:
        """Nothing to refuse: what was deleted already is on no list any more."""

    def question(self, context: Context, rule: Rule, approval: Approval, asked_at: datetime) -> tuple[str, str]:
        plan, expires_at = pull(context, PLAN_DELETIONS), self.expires_at(context, rule)
        count, limit = len(plan["delete"]) + len(plan["leftovers"]), self.profile.backup.retention.approval_above
        headline = subject(count, self.profile.metadata.name, expires_at)
        return headline, body(plan["rows"], approval.plan_hash, rule, expires_at, limit)


def deletion_rule(profile: SystemProfile, context: Context) -> Rule:
    """Return how many must let this run delete."""
    plan = pull(context, PLAN_DELETIONS) or {}
    return retention_rule(profile, context["dag_run"].triggering_user_name, asks=bool(plan.get("asks")))


class DeleteBackupsOperator(RetentionStep):
    """Delete what was planned and is past its time still: every version of every file, the manifest first.

    A backup of which anything is locked is left whole. The notes of who has opened it go after it, once their own locks
    have ended; the last one of each recipient stays, as it alone says when they did. Returns ``{"deleted": {id: bytes},
    "held": {id: reason}, "spared": [id]}``. Safe to repeat: yes; what is gone is on no list any more.

    :raises PermanentError: ``approval-missing``.
    """

    def act(self, context: Context) -> dict[str, Any]:
        plan, prefix, now = pull(context, PLAN_DELETIONS), self.profile.backup.prefix, datetime.now(UTC)
        check_approved(
            deletion_rule(self.profile, context), recorded_approval(context), pull(context, PLAN_DELETIONS, HASH_KEY)
        )
        chosen = [*plan["delete"], *plan["leftovers"]]
        deleted: dict[str, int] = {}
        held: dict[str, str] = {}
        with self.bucket() as bucket:
            again = self.planned(bucket, now)
            still = {*again["delete"], *again["leftovers"]}
            contents, notes = bucket.contents(prefix)
            for identifier in [name for name in chosen if name in still]:
                stored = contents.get(identifier, [])
                # What is built on another comes first, so here it is known to stay.
                reason = needed_by(identifier, again["parents"], held) or bucket.store.delete_all(
                    stored, now, f"{prefix}/{identifier}/{SIGNED}"
                )
                if reason:
                    held[identifier] = reason
                    self.log.warning("%s stays: %s", identifier, reason)
                else:
                    deleted[identifier] = sum(one.size_bytes for one in stored)
                    self.log.info("%s is deleted: %d bytes", identifier, deleted[identifier])
            last = last_notes(notes, there=set(contents) - set(deleted))
            for identifier in [name for name in notes if name in deleted or name not in contents]:
                for note in notes[identifier]:
                    if note.key.removesuffix(SIGNATURE_SUFFIX) not in last and not bucket.store.lock_of(note, now):
                        bucket.store.delete(note)
        return {"deleted": deleted, "held": held, "spared": [name for name in chosen if name not in still]}


def last_notes(notes: Stored, there: Collection[str]) -> set[str]:
    """Return the keys of the newest note of each recipient.

    :param there: ids of the backups that stay: of two notes of the same moment that on one of them counts.
    """
    newest: dict[str, tuple[datetime, bool, str]] = {}
    for identifier, stored in notes.items():
        for one in stored:
            if one.is_mark or one.upload_id or not one.key.endswith(".json"):
                continue
            recipient, candidate = one.key.rpartition("/")[2], (one.written_at, identifier in there, one.key)
            newest[recipient] = max(candidate, newest.get(recipient, candidate))
    return {key for _, _, key in newest.values()}


def needed_by(identifier: str, parents: Mapping[str, str], held: Iterable[str]) -> str:
    """Return which of the backups that stay is built on this one, as a reason; empty when none is."""
    for name in held:
        if parents.get(name) == identifier:
            return f"needed by {name}, which stays"
    return ""


class ReportRetentionOperator(ReportOperator):
    """Write the report of retention: the table of what becomes of each backup, and a finding for what needs a look."""

    def build(self, context: Context, profile: SystemProfile, operation: str) -> dict[str, Any]:
        report = super().build(context, profile, operation)
        failed = any(state in FAILED_STATES for state in states_of(context).values())
        plan, done = pull(context, PLAN_DELETIONS), pull(context, DELETE_BACKUPS)
        approval = recorded_approval(context)
        how: Overall = "cleaned-up"
        if failed:
            refused = approval is not None and approval.state in ("rejected", "expired")
            how = "not-approved" if refused else "not-cleaned-up"
        elif mode_of(context, profile.backup.retention.mode) == "plan":
            how = "planned"
        rows = [with_outcome(row, done) for row in (plan or {}).get("rows", ())]
        return {
            **report,
            **conclusion(how, self.findings(plan, done)),
            "approval": approval.model_dump(mode="json") if approval else None,
            "tables": [{"title": "Backups", "columns": COLUMNS, "rows": [list(row.values()) for row in rows]}],
        }

    @staticmethod
    def findings(plan: dict[str, Any] | None, done: dict[str, Any] | None) -> list[Finding]:
        if plan is None:
            return []
        found = [
            Finding(
                "retention",
                "warn",
                name,
                problem,
                "a manifest that counts",
                "Find out who wrote it; neither it nor what it may build on is deleted.",
            )
            for name, problem in plan["problems"].items()
        ]
        found += [
            Finding("retention", "warn", name, f"not deleted: {reason}", "deleted", "A later run deletes it.")
            for name, reason in (done or {}).get("held", {}).items()
        ]
        going, there = len(plan["delete"]) + len(plan["leftovers"]), len(plan["rows"])
        gone = (
            "none was deleted"
            if done is None
            else f"{len(done['deleted'])} deleted, {sum(done['deleted'].values())} bytes"
        )
        found.append(
            Finding("retention", "pass", f"{there} backups", f"{going} past their time; {gone}", "kept by rule")
        )
        return found


def with_outcome(row: dict[str, str], done: dict[str, Any] | None) -> dict[str, str]:
    """Return a row of the table with what was done with the backup."""
    if done is None:
        return row
    if row["backup"] in done["deleted"]:
        return {**row, "action": "deleted"}
    if row["backup"] in done["held"]:
        return {**row, "action": "not deleted", "reason": done["held"][row["backup"]]}
    return {**row, "action": "kept"} if row["action"] == "delete" else row
