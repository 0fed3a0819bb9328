"""The steps of the deep read: which backups are due, decrypting and comparing them, and what the keys are worth."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from nephoran_maintenance.domain.findings import Finding
from nephoran_maintenance.domain.manifest import (
    Manifest,
    Note,
    Recipient,
    compare_contents,
    compare_files,
    sha256_of,
)
from nephoran_maintenance.domain.moments import moment
from nephoran_maintenance.domain.openpgp_keys import find_key
from nephoran_maintenance.domain.report import Overall, conclusion
from nephoran_maintenance.domain.retention import kept_until, plan_retention
from nephoran_maintenance.domain.step_ids import CHECK_REQUEST, PLAN_READING, VERIFY_CONTENTS
from nephoran_maintenance.domain.verification import (
    COLUMNS,
    Readable,
    backups_table,
    check_chains,
    check_keys,
    check_openings,
    check_signers,
    choose,
    last_opened,
    overdue,
)
from nephoran_maintenance.errors import PermanentError
from nephoran_maintenance.operators.backup_readiness import pinned, refuse_unconfigured
from nephoran_maintenance.operators.base import StepOperator, checked_params, finish_step, operation_of, pull, states_of
from nephoran_maintenance.operators.report import FAILED_STATES, ReportOperator

if TYPE_CHECKING:
    from airflow.sdk import Context

    from nephoran_maintenance.domain.chain import KnownBackup
    from nephoran_maintenance.hooks.archive_reading import Decrypt
    from nephoran_maintenance.hooks.backup_store import BackupStore
    from nephoran_maintenance.hooks.openpgp import OpenPgpHook, SigningKey
    from nephoran_maintenance.profile import SystemProfile

READ_KEY = "read"
"""XCom of what was read, also of a step that failed."""
BY_PASSPHRASE = "passphrase"
"""The name of who opens backups where there are no recipients."""


class VerificationRequest(BaseModel):
    """The parameters of a run."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    backup: str | None = Field(None, max_length=63)
    everything: bool = False
    key_connection: str | None = Field(None, pattern=r"^openpgp_decryption(_[a-z0-9]+)*$", max_length=63)


@dataclass(frozen=True)
class Opener:
    """Who decrypts here.

    :param fingerprint: empty where a passphrase opens every backup.
    """

    fingerprint: str
    decrypt: Decrypt


class VerificationStep(StepOperator):
    """A step of the deep read; none of them asks the cluster anything."""

    @contextmanager
    def backups(self) -> Iterator[tuple[BackupStore, OpenPgpHook]]:
        """Open the store with the account that uploads, and gpg with the signers' public keys."""
        from nephoran_maintenance.hooks.backup_store import BackupStore
        from nephoran_maintenance.hooks.object_store import ObjectStoreHook
        from nephoran_maintenance.hooks.openpgp import OpenPgpHook

        backup, names = self.profile.backup, self.profile.connections
        refuse_unconfigured(self.profile)
        with OpenPgpHook() as pgp:
            store = ObjectStoreHook(names.object_store_backup, bucket=backup.bucket)
            yield BackupStore(store, pgp, backup.prefix, pinned(backup.signers)), pgp

    def signing_key(self, backups: BackupStore, pgp: OpenPgpHook) -> SigningKey:
        signing = pgp.import_signing_key(self.profile.connections.openpgp_signing)
        backups.check_signer(signing)
        return signing

    @contextmanager
    def opener(self, context: Context) -> Iterator[Opener]:
        """Open another gpg with the key that decrypts: that which signs must not be able to.

        :raises PermanentError: ``connection-missing`` where there is no such key, ``openpgp-decryption-key-invalid``.
        """
        from nephoran_maintenance.hooks.openpgp import OpenPgpHook, read_passphrase

        names = self.profile.connections
        with OpenPgpHook() as pgp:
            if self.profile.backup.encryption == "passphrase":
                secret = read_passphrase(names.openpgp_passphrase)
                yield Opener("", partial(pgp.decrypt, passphrase=secret.value))
                return
            key = pgp.import_decryption_key(request_of(context).key_connection or names.openpgp_decryption)
            yield Opener(key.fingerprint, partial(pgp.decrypt, passphrase=key.passphrase))


def request_of(context: Context) -> VerificationRequest:
    """Return the run's parameters.

    :raises PermanentError: ``parameters-invalid``, naming the parameter.
    """
    return checked_params(context, VerificationRequest)


def recipients_of(manifest: Manifest) -> tuple[Recipient, ...]:
    """Return who can open a backup; whoever knows the passphrase is one of them."""
    return manifest.recipients or (Recipient(name=BY_PASSPHRASE, fingerprint="", key_ids=()),)


class CheckVerificationOperator(VerificationStep):
    """Check profile, store and keys, and whether anything can be decrypted here.

    Returns ``{"fingerprint", "not_possible"}``: which key opens, or why nothing can. Changes nothing. Safe to repeat: yes.
    """

    def act(self, context: Context) -> dict[str, Any]:
        request_of(context)
        with self.backups() as (backups, pgp):
            backups.store.list(f"{self.profile.backup.prefix}/manifest")
            self.signing_key(backups, pgp)
        try:
            with self.opener(context) as opener:
                return {"fingerprint": opener.fingerprint, "not_possible": ""}
        except PermanentError as error:
            if error.reference != "connection-missing":
                raise
            self.log.warning("Decrypting is not possible here: %s", error)
            return {"fingerprint": "", "not_possible": error.message}


class PlanReadingOperator(VerificationStep):
    """Choose what is read today, and look at keys, openings and chains. Reads manifests and notes alone.

    Returns ``{"chosen", "planned_at", "findings", "keys", "opened", "backups"}``. Where nothing is to be read, or nothing
    can be, the reading is skipped. Safe to repeat: yes.

    :raises PermanentError: ``backup-not-found`` for a backup that was asked for.
    """

    def act(self, context: Context) -> Any:
        now, profile, request = datetime.now(UTC), self.profile, request_of(context)
        checked = pull(context, CHECK_REQUEST)
        with self.backups() as (backups, pgp):
            if request.backup:
                backups.read_manifest(request.backup)
            listing = backups.list()
            problems = dict(listing.problems)
            readables = [self.readable(backups, known, problems) for known in listing.backups]
            there = {*problems, *(known.backup_id for known in listing.backups)}
            left, of_gone = backups.left_notes(lambda identifier: identifier not in there)
            pins = pinned(profile.backup.recipients)
            keys = {
                key.fingerprint: (pin.name, key.expires_at)
                for pin, key in zip(pins, pgp.import_pinned(pins), strict=True)
            }
            signers = {pin.name: find_key(pgp.keys(), pin).signs_until for pin in pinned(profile.backup.signers)}
        chosen = self.chosen(readables, checked["fingerprint"], request, now)
        findings = [
            Finding(
                "manifests", "block", name, problem, "a signed manifest and notes that count", "Find out who wrote it."
            )
            for name, problem in (problems | of_gone).items()
        ]
        findings += check_chains(listing.backups)
        rules = profile.backup.retention
        unreadable = set(listing.problems) - {one.backup_id for one in listing.doubtful}
        retention = plan_retention(
            listing.backups, now, rules, doubtful=listing.doubtful, unreadable=sorted(unreadable)
        )
        findings += check_keys(keys, readables, now, kept_until(retention, rules))
        findings += check_signers(signers, now)
        findings += overdue([one for one in readables if one.backup.backup_id not in chosen], now)
        if checked["not_possible"]:
            chosen = []
            seen, hint = f"not possible here: {checked['not_possible']}", "Run it where a recipient's key is."
            findings.append(Finding("contents", "warn", "this worker", seen, "a key that decrypts", hint))
        plan = {
            "chosen": chosen,
            "planned_at": now.isoformat(),
            "findings": [finding.to_dict() for finding in findings],
            "keys": {print_: [name, f"{end:%Y-%m-%d}" if end else "never"] for print_, (name, end) in keys.items()},
            "opened": {name: when.isoformat() for name, when in last_opened(readables, left).items()},
            "backups": backups_table(retention, problems),
        }
        self.log.info("%d of %d backups are read: %s", len(chosen), len(readables), ", ".join(chosen) or "none")
        blocked = any(finding.severity == "block" for finding in findings)
        return finish_step(context, plan, [] if chosen or blocked else [VERIFY_CONTENTS])

    @staticmethod
    def chosen(
        readables: Sequence[Readable], fingerprint: str, request: VerificationRequest, now: datetime
    ) -> list[str]:
        """Return what is read: what was asked for, or what is due of that which the key here can open."""
        if request.backup:
            return [request.backup]
        if request.everything:
            return [one.backup.backup_id for one in readables]
        return choose([one for one in readables if fingerprint in {r.fingerprint for r in one.recipients}], now)

    @staticmethod
    def readable(backups: BackupStore, known: KnownBackup, problems: dict[str, str]) -> Readable:
        """Return a backup with everybody's notes of when they opened it; a note that does not count is a problem."""
        manifest, data = backups.read_manifest(known.backup_id)
        recipients, opened = recipients_of(manifest), {}
        for recipient in recipients:
            try:
                note = backups.read_note(known.backup_id, "opened", data, recipient.name)
            except PermanentError as error:
                problems[known.backup_id] = str(error)
                continue
            if note is not None:
                opened[recipient.name] = note.at
        return Readable(known, recipients, opened)


class VerifyContentsOperator(VerificationStep):
    """Decrypt every archive of the chosen backups, compare it with its manifest, and leave a signed note for each.

    Leaves in the XCom ``read`` a row for each, also when it fails: ``{"backup_id", "recipient", "at", "archives", "read_bytes",
    "seconds", "problem"}``. Nothing decrypted is kept anywhere. Safe to repeat: yes; what an earlier try has noted is not read
    again.

    :raises PermanentError: ``backup-unreadable``, naming every backup that is not what its manifest says, has none that
        counts, or builds on a chain that is broken.
    """

    def act(self, context: Context) -> list[dict[str, Any]]:
        plan = pull(context, PLAN_READING)
        rows = self.read_all(context, plan) if plan["chosen"] else []
        problems = [row["problem"] for row in rows if row["problem"]]
        problems += [found["observed"] for found in plan["findings"] if found["severity"] == "block"]
        if problems:
            raise PermanentError(
                "backup-unreadable",
                f"{len(problems)} problems, {len(rows)} backups were read: {'; '.join(problems)}",
                hint="Restore nothing of what is named. Take a full backup now, and find out who can write to the bucket.",
            )
        return rows

    def read_all(self, context: Context, plan: dict[str, Any]) -> list[dict[str, Any]]:
        since = moment(plan["planned_at"]) or datetime.now(UTC)
        rows: list[dict[str, Any]] = []
        with self.backups() as (backups, pgp), self.opener(context) as opener:
            signing = self.signing_key(backups, pgp)
            for identifier in plan["chosen"]:
                rows.append(self.read(context, backups, signing, opener, identifier, since))
                context["ti"].xcom_push(key=READ_KEY, value=rows)
        return rows

    def read(
        self,
        context: Context,
        backups: BackupStore,
        signing: SigningKey,
        opener: Opener,
        identifier: str,
        since: datetime,
    ) -> dict[str, Any]:
        """Read one backup, note that it was, and return its row."""
        row: dict[str, Any] = {"backup_id": identifier, "archives": 0, "read_bytes": 0, "seconds": 0.0, "problem": ""}
        started = time.monotonic()
        try:
            manifest, data = backups.read_manifest(identifier)
            recipient = recipient_of(manifest, opener)
            note = backups.read_note(identifier, "opened", data, recipient)
            if note is None or note.at < since:
                for source in manifest.sources:
                    if source.archive:
                        row["read_bytes"] += self.read_archive(backups, opener, identifier, source.archive)
                        row["archives"] += 1
                row["seconds"] = round(time.monotonic() - started, 3)
                note = Note(
                    grade="opened",
                    recipient=recipient,
                    backup_id=identifier,
                    manifest_sha256=sha256_of(data),
                    at=datetime.now(UTC),
                    files=row["archives"],
                    read_bytes=row["read_bytes"],
                    duration_seconds=row["seconds"],
                    operation_id=operation_of(context),
                )
                backups.write_note(note, signing)
            row |= {"recipient": recipient, "at": note.at.isoformat()}
            self.log.info("%s was opened by %s: %d bytes", identifier, recipient, note.read_bytes)
        except PermanentError as error:
            self.log.error("%s", error)
            row["problem"] = error.message
        return row

    @staticmethod
    def read_archive(backups: BackupStore, opener: Opener, identifier: str, archive: Any) -> int:
        """Decrypt an archive, compare it and its inventory with the manifest, and return how much was read."""
        from nephoran_maintenance.hooks.archive_reading import read_contents

        key = f"{backups.folder(identifier)}/{archive.key}"
        seen = read_contents(backups.store.read_blocks(key, archive.version_id), opener.decrypt)
        compare_contents(identifier, archive, seen)
        inventory = archive.files[1]
        compare_files(identifier, [inventory], {inventory.key: backups.stored(identifier, inventory)})
        return seen.size_bytes


def recipient_of(manifest: Manifest, opener: Opener) -> str:
    """Return the name under which a key opens a backup.

    :raises PermanentError: ``not-a-recipient``.
    """
    for recipient in recipients_of(manifest):
        if recipient.fingerprint == opener.fingerprint:
            return recipient.name
    raise PermanentError(
        "not-a-recipient",
        f"{manifest.backup_id} is not encrypted to the key {opener.fingerprint}, which is the one here",
        context={"backup": manifest.backup_id},
        hint=f"It can be opened by {', '.join(r.name for r in manifest.recipients) or 'a passphrase'}: read it there.",
    )


class ReportVerificationOperator(ReportOperator):
    """Write the report of the deep read: what was read, when each recipient last decrypted, which keys end, and a list of
    all backups with their chains.
    """

    def build(self, context: Context, profile: SystemProfile, operation: str) -> dict[str, Any]:
        report = super().build(context, profile, operation)
        failed = any(state in FAILED_STATES for state in states_of(context).values())
        plan, rows = pull(context, PLAN_READING) or {}, pull(context, VERIFY_CONTENTS, READ_KEY) or []
        possible = not (pull(context, CHECK_REQUEST) or {}).get("not_possible")
        findings = [Finding(**found) for found in plan.get("findings", ())]
        blocked = any(finding.severity == "block" for finding in findings)
        how: Overall = "not-readable" if failed or blocked else "readable" if possible else "not-read"
        opened = {name: datetime.fromisoformat(when) for name, when in plan.get("opened", {}).items()}
        opened |= {row["recipient"]: datetime.fromisoformat(row["at"]) for row in rows if not row["problem"]}
        keys = plan.get("keys", {})
        if plan:
            names = [name for name, _ in keys.values()] or [BY_PASSPHRASE]
            findings += check_openings(names, opened, datetime.now(UTC))
        who = {
            "title": "Who can open the backups",
            "columns": ["recipient", "fingerprint", "key ends", "last decrypted"],
            "rows": [
                [name, fingerprint, end, f"{opened[name]:%Y-%m-%d}" if name in opened else "no note"]
                for fingerprint, (name, end) in keys.items()
            ],
        }
        chains = {"title": "Backups", "columns": COLUMNS, "rows": plan.get("backups", [])}
        return {**report, **conclusion(how, [*findings, *map(about, rows)]), "tables": [who, chains]}


def about(row: dict[str, Any]) -> Finding:
    """Return what is to be said of a backup that was read."""
    expected = "what the manifest says"
    if row["problem"]:
        return Finding("contents", "block", row["backup_id"], row["problem"], expected, "Restore nothing of it.")
    seen = f"{row['archives']} archives, {row['read_bytes']} bytes decrypted in {row['seconds']} s"
    return Finding("contents", "pass", row["backup_id"], seen, expected)
