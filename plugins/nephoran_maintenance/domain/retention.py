"""How long backups are kept: what may go, what must stay, and why.

Everything stays for some days. Of what is older, so many days, weeks, months and years keep one backup each. Beyond
that nothing goes that anything kept is built on, that the store has locked, or that is the last proof of its kind. A backup
that leaves something out by choice takes nobody's place: it stays for those days and no longer.

What can't be read now is no evidence that nothing needs it: it stays, it takes nobody's place either, and so does
everything stay that it builds on, or may build on.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from nephoran_maintenance.domain.backups import KeepingClass, started_at_of
from nephoran_maintenance.domain.chain import KnownBackup
from nephoran_maintenance.profile import Retention

SPANS: Mapping[str, timedelta] = {
    "daily": timedelta(days=1),
    "weekly": timedelta(days=7),
    "monthly": timedelta(days=31),
    "yearly": timedelta(days=366),
}
RANKS: Mapping[KeepingClass, int] = {"daily": 0, "weekly": 1, "monthly": 2, "yearly": 3}
CLOCKS = timedelta(days=7)
"""So much later than an incremental one's name says may begin what it builds on: runs wait, and clocks differ."""


@dataclass(frozen=True)
class Verdict:
    """What becomes of one backup; ``reasons`` say why it stays, and are empty when it goes."""

    backup: KnownBackup
    at: datetime
    reasons: tuple[str, ...]

    @property
    def age_days(self) -> float:
        return (self.at - self.backup.ended_at) / timedelta(days=1)

    @property
    def keep(self) -> bool:
        return bool(self.reasons)


@dataclass(frozen=True)
class RetentionPlan:
    verdicts: tuple[Verdict, ...]
    asks_for_approval: bool
    at: datetime

    @property
    def to_delete(self) -> tuple[str, ...]:
        """Ids of what goes: no backup before one that is built on it, so that a kill between two breaks no chain."""
        goes = [verdict.backup for verdict in self.verdicts if not verdict.keep]
        return tuple(b.backup_id for b in sorted(goes, key=lambda b: (b.depth, b.started_at), reverse=True))


@dataclass(frozen=True)
class Folder:
    """What lies in the folder of one backup, earlier versions and unfinished uploads included.

    :param newest_at: when the last of it was written, by the store's clock.
    :param had_manifest: whether any version of the manifest's signature is left.
    """

    backup_id: str
    files: int
    size_bytes: int
    newest_at: datetime
    had_manifest: bool


def plan_retention(
    backups: Iterable[KnownBackup],
    at: datetime,
    rules: Retention,
    *,
    doubtful: Iterable[KnownBackup] = (),
    unreadable: Iterable[str] = (),
) -> RetentionPlan:
    """Return what becomes of each backup, the newest first. Each system of each cluster has its own last ones.

    :param backups: all whose manifests and notes are valid; whatever else lies in the bucket is none of this.
    :param doubtful: those whose manifest is valid, and a note of them is not: they stay, with what they build on.
    :param unreadable: ids of those without a valid manifest. Nobody knows what an incremental one of them builds on, so
        every older one stays that it could be.
    """
    systems: dict[tuple[str, str], tuple[list[KnownBackup], list[KnownBackup]]] = {}
    for position, found in enumerate((backups, doubtful)):
        for backup in found:
            systems.setdefault((backup.cluster_uid, backup.system), ([], []))[position].append(backup)
    children = [name for name in unreadable if name.startswith("incremental-")]
    verdicts = [verdict for own in systems.values() for verdict in _verdicts(*own, children, at, rules)]
    verdicts.sort(key=lambda verdict: (verdict.backup.started_at, verdict.backup.backup_id), reverse=True)
    return RetentionPlan(tuple(verdicts), sum(not verdict.keep for verdict in verdicts) > rules.approval_above, at)


def find_leftovers(folders: Iterable[Folder], at: datetime, safe_age: timedelta) -> list[Folder]:
    """Return what runs have left that never came to a manifest, the oldest first.

    A run that is at work writes all the time, so the newest file counts. Where a manifest was, even a deleted one, nothing
    is a leftover: retention itself takes the manifest first, and whoever else deletes one is to be found out.
    """
    found = [f for f in folders if not f.had_manifest and at - f.newest_at > safe_age]
    return sorted(found, key=lambda folder: (folder.newest_at, folder.backup_id))


def _verdicts(
    backups: Iterable[KnownBackup],
    doubtful: Iterable[KnownBackup],
    unreadable: Iterable[str],
    at: datetime,
    rules: Retention,
) -> list[Verdict]:
    newest_first = sorted(backups, key=lambda backup: (backup.started_at, backup.backup_id), reverse=True)
    reasons: dict[str, list[str]] = {backup.backup_id: [] for backup in newest_first}

    def keep(backup: KnownBackup | None, reason: str) -> None:
        if backup is not None:
            reasons[backup.backup_id].append(reason)

    limit = at - timedelta(days=rules.days)
    old = []
    for backup in newest_first:
        # The end counts: what took long is not older for it. A clock that is ahead makes it younger, and it stays.
        if backup.ended_at > limit:
            keep(backup, f"younger than {rules.days} days")
        elif backup.whole:
            old.append(backup)
        if _is_locked(backup, at):
            keep(backup, f"locked until {backup.locked_until:%Y-%m-%d}")
    for name, backup in _kept_by_count(old, rules):
        keep(backup, name)
    by_id = {backup.backup_id: backup for backup in newest_first}
    for backup in doubtful:
        by_id[backup.backup_id] = backup
        reasons[backup.backup_id] = ["left alone: a note on it does not count"]

    def is_whole(backup: KnownBackup) -> bool:
        return backup.whole and _links(backup, by_id)[-1].parent_id is None

    # Of two proofs also the one that can still be used.
    keep(_newest(newest_first, lambda b: b.verified_at is not None), "the last verified one")
    keep(_newest(newest_first, lambda b: b.verified_at is not None and is_whole(b)), "the last verified one")
    keep(_newest(newest_first, _is_good), "the last checked one with data")
    keep(_newest(newest_first, lambda b: _is_good(b) and is_whole(b)), "the last checked one with data")
    keep(_newest(newest_first, lambda b: True), "the newest")
    _keep_links(by_id, reasons)
    _keep_what_may_be_links(by_id, unreadable, reasons)
    return [Verdict(b, at, tuple(dict.fromkeys(reasons[b.backup_id]))) for b in by_id.values()]


def table(plan: RetentionPlan) -> list[dict[str, str]]:
    """Return the plan as rows for the log and the report."""
    return [
        {
            "backup": verdict.backup.backup_id,
            "age_days": f"{verdict.age_days:.1f}",
            "grade": "verified" if verdict.backup.verified_at else "checked" if verdict.backup.checked_at else "none",
            "action": "keep" if verdict.keep else "delete",
            "reason": ", ".join(verdict.reasons) or "past its time and not needed",
        }
        for verdict in plan.verdicts
    ]


def kept_until(plan: RetentionPlan, rules: Retention) -> dict[str, datetime]:
    """Return by id until about when each backup that stays will be kept, as far as that is known today.

    What is kept for a week, month or year stays until as many newer ones are kept so. What is kept as the last of its
    kind alone stays until there is a newer one, which nobody knows: for that the day of the plan is returned.
    """
    counts = {"daily": rules.daily, "weekly": rules.weekly, "monthly": rules.monthly, "yearly": rules.yearly}
    until: dict[str, datetime] = {}
    kept = [verdict for verdict in plan.verdicts if verdict.keep]
    for verdict in kept:
        backup, always = verdict.backup, verdict.backup.ended_at + timedelta(days=rules.days)
        slots = [name for name in verdict.reasons if name in SPANS]
        # One that was made to be kept so will be, once it is old enough.
        slots += [backup.keeping] if backup.whole and counts[backup.keeping] else []
        ends = [always + counts[name] * SPANS[name] for name in slots if name != "daily" or name in verdict.reasons]
        locked = [backup.locked_until] if backup.locked_until else []
        until[backup.backup_id] = max([always, verdict.at, *ends, *locked])
    for verdict in sorted(kept, key=lambda verdict: verdict.backup.depth, reverse=True):
        parent = verdict.backup.parent_id
        if parent in until:
            until[parent] = max(until[parent], until[verdict.backup.backup_id])
    return until


def _kept_by_count(old: Sequence[KnownBackup], rules: Retention) -> Iterable[tuple[str, KnownBackup]]:
    slots: tuple[tuple[KeepingClass, int, Callable[[datetime], Hashable]], ...] = (
        ("daily", rules.daily, lambda moment: moment.date()),
        ("weekly", rules.weekly, lambda moment: moment.isocalendar()[:2]),
        ("monthly", rules.monthly, lambda moment: (moment.year, moment.month)),
        ("yearly", rules.yearly, lambda moment: moment.year),
    )
    for name, count, slot_of in slots:
        slots_found: dict[Hashable, list[KnownBackup]] = {}
        for backup in old:
            slot = slot_of(backup.started_at.astimezone(UTC))
            if slot not in slots_found and len(slots_found) == count:
                break
            slots_found.setdefault(slot, []).append(backup)
        for candidates in slots_found.values():
            yield name, max(candidates, key=lambda backup: _worth(backup, name))


def _worth(backup: KnownBackup, name: KeepingClass) -> tuple[bool, bool, bool, bool, datetime]:
    """Return what decides between the backups of one day, week, month or year: the greatest is kept."""
    meant = RANKS[name] > 0 and RANKS[backup.keeping] >= RANKS[name]
    checked, verified = backup.checked_at is not None, backup.verified_at is not None
    return meant, backup.holds_data and checked, verified, backup.holds_data, backup.started_at


def _is_locked(backup: KnownBackup, at: datetime) -> bool:
    return backup.locked_until is not None and backup.locked_until > at


def _is_good(backup: KnownBackup) -> bool:
    return backup.holds_data and backup.whole and backup.checked_at is not None


def _newest(newest_first: Iterable[KnownBackup], is_meant: Callable[[KnownBackup], bool]) -> KnownBackup | None:
    return next((backup for backup in newest_first if is_meant(backup)), None)


def _keep_links(by_id: Mapping[str, KnownBackup], reasons: dict[str, list[str]]) -> None:
    """Keep what anything kept is built on, whatever their clocks say."""
    for backup in [backup for backup in by_id.values() if backup.parent and reasons[backup.backup_id]]:
        for link in _links(backup, by_id)[1:]:
            reasons[link.backup_id].append(f"needed by {backup.backup_id}")


def _keep_what_may_be_links(
    by_id: Mapping[str, KnownBackup], unreadable: Iterable[str], reasons: dict[str, list[str]]
) -> None:
    """Keep everything with data that is older than an incremental one of which nobody knows what it builds on."""
    last = max(unreadable, key=started_at_of, default=None)
    if last is None:
        return
    for backup in by_id.values():
        if backup.holds_data and backup.started_at < started_at_of(last) + CLOCKS:
            reasons[backup.backup_id].append(f"may be needed by {last}, whose manifest does not count")


def _links(backup: KnownBackup, by_id: Mapping[str, KnownBackup]) -> list[KnownBackup]:
    """Return a backup and what of its chain there is, itself first."""
    links = [backup]
    if backup.parent is None:
        return links
    seen = {backup.backup_id}
    while (parent := by_id.get(links[-1].parent_id or "")) is not None and parent.backup_id not in seen:
        links.append(parent)
        seen.add(parent.backup_id)
    return links
