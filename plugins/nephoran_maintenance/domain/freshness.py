"""How old the newest backups are that count, and what a change may make of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from nephoran_maintenance.domain.backups import CHECKED_NOTE, SIGNATURE_SUFFIX, VERIFIED_NOTE, started_at_of
from nephoran_maintenance.domain.chain import KnownBackup, chain_of
from nephoran_maintenance.domain.findings import Finding, Severity
from nephoran_maintenance.errors import PermanentError

CHECK = "backup"
VERIFIED_WITHIN = timedelta(days=35)
DRILL_EXISTS = False
"""Whether this product can restore a backup to prove it; until then nothing can become *verified*, and nothing blocks."""
CLOCK_SKEW = timedelta(minutes=5)
FILES = {"checked": f"{CHECKED_NOTE}{SIGNATURE_SUFFIX}", "verified": f"{VERIFIED_NOTE}{SIGNATURE_SUFFIX}"}


@dataclass(frozen=True)
class Newest:
    """The newest backups with data that count.

    :param passed_by: newer ones that do not count, each with the reason.
    """

    checked: KnownBackup | None = None
    verified: KnownBackup | None = None
    passed_by: tuple[str, ...] = ()


@dataclass(frozen=True)
class Standing:
    """What Airflow says of the procedure that makes the backups; None: it could not be asked."""

    paused: bool | None = None
    last_scheduled_failed: bool | None = None


def find_newest(
    folders: Mapping[str, Iterable[str]],
    read: Callable[[str], KnownBackup],
    system: str,
    cluster_uid: str | None = None,
) -> Newest:
    """Return the newest checked and the newest verified backup with data, reading as few manifests as possible.

    One counts when every link of its chain is there and is checked. Configuration alone never counts.

    :param folders: by id of a backup, the names of the files in its folder.
    :param read: returns what a manifest and its notes say; an error is the reason why one does not count.
    :param system: name of the system; backups of another one do not count.
    :param cluster_uid: backups of another cluster do not count either; None: all of the system do.
    """
    newest_first = sorted(
        (name for name in folders if not name.startswith("config-only-")), key=started_at_of, reverse=True
    )
    passed_by: list[str] = []
    known: dict[str, KnownBackup] = {}

    def counts(identifier: str) -> KnownBackup:
        wanted: str | None = identifier
        while wanted is not None and wanted not in known and wanted in folders:
            known[wanted] = read(wanted)
            wanted = known[wanted].parent_id
        links = chain_of(identifier, known)
        unread = [link.backup_id for link in links if link.checked_at is None]
        if unread:
            raise PermanentError("chain-broken", f"its link {unread[0]} is not checked")
        if not links[-1].whole:
            raise PermanentError("manifest-invalid", "it leaves something out by choice")
        if links[-1].system != system:
            raise PermanentError("manifest-invalid", f"it is of the system {links[-1].system}")
        if cluster_uid is not None and links[-1].cluster_uid != cluster_uid:
            raise PermanentError("manifest-invalid", "it is of another cluster")
        return links[-1]

    found: dict[str, KnownBackup] = {}
    for grade, file in FILES.items():
        for identifier in [name for name in newest_first if file in folders[name]]:
            try:
                backup = counts(identifier)
            except PermanentError as error:
                passed_by.append(f"{identifier}: {error.message}")
                continue
            if grade == "checked" or backup.verified_at is not None:
                found[grade] = backup
                break
    return Newest(found.get("checked"), found.get("verified"), tuple(dict.fromkeys(passed_by)))


def figures(newest: Newest, at: datetime) -> dict[str, Any]:
    """Return what is measured, for metrics and assets.

    Keys: ``checked_backup``, ``checked_age_seconds``, ``verified_backup``, ``verified_age_seconds``, ``rpo_seconds``; None:
    there is none. What would be lost now is what has changed since the newest checked one began.
    """
    ages = {name: (at - one.started_at).total_seconds() if one else None for name, one in _both(newest).items()}
    return {
        **{f"{name}_backup": one.backup_id if one else None for name, one in _both(newest).items()},
        **{f"{name}_age_seconds": age for name, age in ages.items()},
        "rpo_seconds": ages["checked"],
    }


def check_freshness(newest: Newest, at: datetime, rpo: timedelta, *, when_stale: Severity = "block") -> list[Finding]:
    """Return the findings on both grades.

    :param when_stale: the severity when the newest checked one is older than the objective, or there is none.
    """
    expected = f"a checked full or incremental one younger than {_hours(rpo)}"
    hint = "Run `backup` with type full, and see that it is checked."
    passed_by = f"; passed by: {'; '.join(newest.passed_by[:3])}" if newest.passed_by else ""
    checked = newest.checked
    if checked is None:
        findings = [Finding(CHECK, when_stale, "newest checked backup", f"there is none{passed_by}", expected, hint)]
    else:
        age = at - checked.started_at
        seen = f"{checked.backup_id}, {_hours(age)} old"
        if age < -CLOCK_SKEW:
            seen, hint = f"{checked.backup_id} begins in the future", "Compare the clocks of workers and cluster."
        fresh = -CLOCK_SKEW <= age < rpo
        severity: Severity = "pass" if fresh else when_stale
        said = seen if fresh else f"{seen}{passed_by}"
        findings = [Finding(CHECK, severity, "newest checked backup", said, expected, "" if fresh else hint)]
    return [*findings, _verified(newest.verified, at)]


def not_configured() -> Finding:
    """Return the finding of a profile that describes no backups."""
    return Finding(
        CHECK,
        "warn",
        "newest checked backup",
        "not configured: the profile names nobody whose signature makes a backup",
        "a checked full or incremental one",
        "Describe the backups in the profile, or make sure by hand that there is one that can be restored.",
    )


def not_made() -> Finding:
    """Return the finding of a profile by which backups count, and no new one can be made."""
    seen, hint = "the profile names none, so no new backup can be made", "Name them again: operations and an escrow."
    return Finding(CHECK, "warn", "recipients of backups", seen, "at least one, or a passphrase", hint)


def check_standing(standing: Standing) -> list[Finding]:
    """Return what is to be heeded of the procedure that makes the backups."""
    findings = []
    if standing.paused:
        hint = "Unpause it in Airflow: no scheduled backup is made."
        findings.append(Finding(CHECK, "warn", "DAG backup", "paused", "scheduled every day", hint))
    if standing.last_scheduled_failed:
        hint = "Open the report of that run."
        findings.append(Finding(CHECK, "warn", "DAG backup", "its last scheduled run failed", "a good last run", hint))
    if standing.paused is not None and standing.last_scheduled_failed is None:
        seen = "not measured: none of its last runs was scheduled and has ended"
        findings.append(Finding(CHECK, "warn", "DAG backup", seen, "a good last run", "Look at the list of its runs."))
    if standing.paused is None:
        seen = "not measured: Airflow does not know it, or could not be asked"
        findings.append(Finding(CHECK, "warn", "DAG backup", seen, "scheduled every day", "Look at the list of DAGs."))
    return findings or [
        Finding(CHECK, "pass", "DAG backup", "scheduled, its last run did not fail", "scheduled every day")
    ]


def check_cron_jobs(jobs: Sequence[Mapping[str, Any]]) -> list[Finding]:
    """Return a finding for each suspended CronJob that makes a backup: someone may still rely on it."""
    return [
        Finding(
            CHECK,
            "warn",
            f"CronJob/{'/'.join(job['metadata'][key] for key in ('namespace', 'name') if key in job['metadata'])}",
            "suspended",
            "not suspended, or gone",
            "Resume it, or delete it when this product has taken over.",
        )
        for job in jobs
        if job["spec"].get("suspend") and _is_backup(job)
    ]


def only_listed_in(namespaces: Sequence[str]) -> Finding:
    """Return the finding that CronJobs elsewhere could not be listed: a suspended backup may be among them."""
    seen = f"not measured: this account may list them in {', '.join(namespaces)} alone"
    hint = "Give it list on cronjobs of all namespaces: deploy/rbac/10-preflight.yaml."
    return Finding(CHECK, "warn", "CronJobs of other namespaces", seen, "none that makes backups is suspended", hint)


def _is_backup(job: Mapping[str, Any]) -> bool:
    metadata = job["metadata"]
    return "backup" in " ".join([metadata["name"], *(metadata.get("labels") or {}).values()]).lower()


def _verified(verified: KnownBackup | None, at: datetime) -> Finding:
    expected, name = f"restored in a drill within {VERIFIED_WITHIN.days} days", "newest verified backup"
    hint = "Prove by hand that one can be restored: docs/how-to/restore-by-hand.md."
    severity: Severity = "block" if DRILL_EXISTS else "warn"
    if verified is None:
        seen = (
            "there is none"
            if DRILL_EXISTS
            else "not applicable yet: this product has no drill so far, so it does not block"
        )
        return Finding(CHECK, severity, name, seen, expected, hint)
    age = at - verified.started_at
    seen = f"{verified.backup_id}, {age.days} days old"
    if age <= VERIFIED_WITHIN:
        return Finding(CHECK, "pass", name, seen, expected)
    return Finding(CHECK, severity, name, seen, expected, hint)


def _both(newest: Newest) -> dict[str, KnownBackup | None]:
    return {"checked": newest.checked, "verified": newest.verified}


def _hours(length: timedelta) -> str:
    return f"{length / timedelta(hours=1):.1f} h".replace(".0 h", " h")
