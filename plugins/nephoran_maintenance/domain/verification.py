"""Which backups are read today, and what is to be said of the keys that open them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from nephoran_maintenance.domain.backups import is_backup_id, started_at_of
from nephoran_maintenance.domain.chain import KnownBackup, chain_of
from nephoran_maintenance.domain.findings import Finding
from nephoran_maintenance.domain.manifest import Note, Recipient
from nephoran_maintenance.domain.openpgp_keys import EXPIRY_WARNING
from nephoran_maintenance.domain.retention import RetentionPlan
from nephoran_maintenance.errors import PermanentError

READ_WITHIN = timedelta(days=30)
"""Everything is decrypted and compared at least so often."""
SPARE = timedelta(days=2)
"""So much earlier than that a backup is due, because a daily run may be missed."""
OPENED_WITHIN = timedelta(days=92)
"""Each recipient, the escrow too, should prove once a quarter that the key still opens something."""


@dataclass(frozen=True)
class Readable:
    """A backup, who can open it, and when each of them last did.

    :param opened: by name of the recipient.
    """

    backup: KnownBackup
    recipients: tuple[Recipient, ...]
    opened: Mapping[str, datetime]

    @property
    def read_at(self) -> datetime:
        """When its content was last known good: decrypted, or made."""
        return max([*self.opened.values(), self.backup.ended_at])


def choose(backups: Iterable[Readable], at: datetime) -> list[str]:
    """Return the ids of the backups that are read today: a share of all, the longest unread first, and what is due.

    Read once a day, everything is read within :data:`READ_WITHIN`.
    """
    oldest_first = sorted(backups, key=lambda one: (one.read_at, one.backup.backup_id))
    days = (READ_WITHIN - SPARE) // timedelta(days=1)
    share = math.ceil(len(oldest_first) / days)
    due = sum(at - one.read_at >= READ_WITHIN - SPARE for one in oldest_first)
    return [one.backup.backup_id for one in oldest_first[: max(share, due)]]


def overdue(backups: Iterable[Readable], at: datetime) -> list[Finding]:
    """Return a finding for each backup whose content nobody has looked at for too long."""
    return [
        Finding(
            "contents",
            "warn",
            one.backup.backup_id,
            f"last read {(at - one.read_at).days} days ago",
            f"decrypted and compared every {READ_WITHIN.days} days",
            "Run backup_verification where a key is, with this backup.",
        )
        for one in backups
        if at - one.read_at > READ_WITHIN
    ]


def check_keys(
    expires: Mapping[str, tuple[str, datetime | None]],
    backups: Sequence[Readable],
    at: datetime,
    kept_until: Mapping[str, datetime],
) -> list[Finding]:
    """Return what is to be said of every recipient's key: of the profile, and of those that older backups need.

    :param expires: by fingerprint, the name in the profile, and when the key ends; None: never.
    :param kept_until: by id, until when a backup is kept as far as is known; those that are not in it go.
    """
    findings = []
    for fingerprint, (name, end) in expires.items():
        opens = [one.backup.backup_id for one in backups if fingerprint in {r.fingerprint for r in one.recipients}]
        needed_until = max((kept_until[name] for name in opens if name in kept_until), default=at)
        if end is not None and end - at < EXPIRY_WARNING:
            seen, hint = f"ends at {end:%Y-%m-%d}", "Renew the key now, or nothing can be backed up after that."
            findings.append(Finding("keys", "warn", name, seen, "30 days or more left", hint))
        elif end is not None and end < needed_until:
            seen = (
                f"ends at {end:%Y-%m-%d}, and backups that it opens are kept until {needed_until:%Y-%m-%d}, or longer"
            )
            hint = "Renew the key, and put the public key with its new end into the key file."
            findings.append(Finding("keys", "warn", name, seen, "a key that outlives its backups", hint))
        else:
            seen = f"ends at {end:%Y-%m-%d}" if end else "never ends"
            findings.append(Finding("keys", "pass", name, seen, "a key that outlives its backups"))
    gone: dict[tuple[str, str], int] = {}
    for one in backups:
        for recipient in one.recipients:
            if recipient.fingerprint not in expires:
                gone[recipient.name, recipient.fingerprint] = gone.get((recipient.name, recipient.fingerprint), 0) + 1
    for (name, fingerprint), count in gone.items():
        seen = f"opens {count} backups, and is no recipient any more ({fingerprint})"
        findings.append(Finding("keys", "warn", name, seen, "its private key is kept", "Keep it while they are kept."))
    return findings


def check_signers(ends: Mapping[str, datetime | None], at: datetime) -> list[Finding]:
    """Return what is to be said of every signer's key: what it has signed goes on counting, and no more is signed.

    :param ends: by name in the profile, when the key can sign nothing any more; None: never.
    """
    living = any(end is None or end > at for end in ends.values())
    findings = []
    for name, end in ends.items():
        ended = end is not None and end <= at
        warn = end is not None and end - at < EXPIRY_WARNING and not (ended and living)
        seen = f"{'ended' if ended else 'ends'} at {end:%Y-%m-%d}" if end else "never ends"
        hint = (
            "Renew the key, and put the public key with its new end into the key file: without it there is no backup."
        )
        findings.append(
            Finding("keys", "warn" if warn else "pass", f"signer {name}", seen, "30 days or more left", hint * warn)
        )
    return findings


def last_opened(backups: Iterable[Readable], left: Iterable[Note] = ()) -> dict[str, datetime]:
    """Return by name of the recipient when they last decrypted a backup.

    :param left: notes on backups that are gone: who has opened one did so also after retention has deleted it.
    """
    latest: dict[str, datetime] = {}
    moments = [moment for one in backups for moment in one.opened.items()]
    for name, moment in (*moments, *((note.recipient, note.at) for note in left)):
        latest[name] = max(moment, latest.get(name, moment))
    return latest


def check_openings(names: Iterable[str], latest: Mapping[str, datetime], at: datetime) -> list[Finding]:
    """Return for each recipient, the escrow too, when they last decrypted a backup."""
    findings = []
    for name in names:
        when = latest.get(name)
        seen = f"last decrypted one at {when:%Y-%m-%d}" if when else "no note says that it has ever decrypted one"
        if when is not None and at - when <= OPENED_WITHIN:
            findings.append(Finding("recipients", "pass", name, seen, "once a quarter"))
        else:
            hint = "Run backup_verification with this key: nobody knows whether it opens anything."
            findings.append(Finding("recipients", "warn", name, seen, "once a quarter", hint))
    return findings


COLUMNS = ["backup", "chain", "state", "age in days", "kept because"]


def backups_table(plan: RetentionPlan, problems: Mapping[str, str]) -> list[list[str]]:
    """Return a row for each backup: its chain, its state, its age, and why retention keeps it; the newest first.

    :param problems: by id, why one does not count.
    """
    by_id = {verdict.backup.backup_id: verdict.backup for verdict in plan.verdicts}
    rows = [
        [
            verdict.backup.backup_id,
            _place(verdict.backup, by_id),
            "does not count" if verdict.backup.backup_id in problems else _state(verdict.backup),
            f"{verdict.age_days:.1f}",
            ", ".join(verdict.reasons) or "it is not: retention deletes it",
        ]
        for verdict in plan.verdicts
    ]
    unread = [name for name in problems if name not in by_id and is_backup_id(name)]
    ages = {name: f"{(plan.at - started_at_of(name)) / timedelta(days=1):.1f}" for name in unread}
    return rows + [[name, "unknown", "does not count", ages[name], "nothing unread is deleted"] for name in unread]


def _state(backup: KnownBackup) -> str:
    return "verified" if backup.verified_at else "checked" if backup.checked_at else "not checked"


def _place(backup: KnownBackup, by_id: Mapping[str, KnownBackup]) -> str:
    if backup.parent is None:
        return "alone" if backup.type == "config-only" else "begins one"
    try:
        links = chain_of(backup.backup_id, by_id)
    except PermanentError:
        return f"broken, built on {backup.parent_id}"
    return f"link {len(links)} of {links[0].backup_id}, built on {backup.parent_id}"


def check_chains(backups: Iterable[KnownBackup]) -> list[Finding]:
    """Return a finding for each backup whose chain is broken."""
    by_id = {backup.backup_id: backup for backup in backups}
    findings = []
    for identifier, backup in by_id.items():
        try:
            if backup.parent is not None:
                chain_of(identifier, by_id)
        except PermanentError as error:
            findings.append(Finding("chains", "block", identifier, error.message, "every link is there", error.hint))
    return findings
