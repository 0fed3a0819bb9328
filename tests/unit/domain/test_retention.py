"""Retention: ten simulated years against invariants that know nothing of the rules' code, and the rules one by one."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import cache

import pytest
from pydantic import ValidationError

from nephoran_maintenance.domain import retention
from nephoran_maintenance.domain.backups import BackupType, KeepingClass, backup_id
from nephoran_maintenance.domain.chain import KnownBackup
from nephoran_maintenance.domain.manifest import Parent
from nephoran_maintenance.domain.retention import Folder, RetentionPlan, find_leftovers, plan_retention, table
from nephoran_maintenance.profile import Retention

RULES = Retention()
FIRST = datetime(2026, 1, 1, 2, 30, tzinfo=UTC)
DAY = timedelta(days=1)


def backup(
    at: datetime,
    *,
    kind: BackupType = "full",
    parent: KnownBackup | None = None,
    keeping: KeepingClass = "daily",
    checked: bool = True,
    verified: bool = False,
    locked_days: int = 0,
    salt: str = "",
) -> KnownBackup:
    identifier = backup_id(kind, at, f"{at.isoformat()}{kind}{salt}")
    built_on = Parent(backup_id=parent.backup_id, manifest_sha256="0" * 64, depth=parent.depth) if parent else None
    return KnownBackup(
        identifier,
        kind,
        keeping,
        started_at=at,
        ended_at=at + timedelta(minutes=10),
        parent=built_on,
        checked_at=at + timedelta(minutes=20) if checked else None,
        verified_at=at + timedelta(hours=3) if verified else None,
        locked_until=at + locked_days * DAY if locked_days else None,
    )


# ----------------------------------------------------------------------------------------------------- the simulation


@dataclass
class World:
    """A bucket over ten years: daily backups with holes, failures, chains, locks, drills; each day retention runs."""

    seed: int
    days: int
    lock_days: int = 0
    spoilt: float = 0.0
    """How many of a thousand backups have, each day, a note or a manifest that does not count for a while."""
    held: dict[str, KnownBackup] = field(default_factory=dict)
    no_note: dict[str, datetime] = field(default_factory=dict)
    no_manifest: dict[str, datetime] = field(default_factory=dict)
    """Until when; of these retention learns the name alone."""

    def run(self, check: Callable[[World, set[str], dict[str, KnownBackup], datetime], None]) -> World:
        dice = random.Random(self.seed)
        outage, no_drills = 0, 0
        last: KnownBackup | None = None
        for number in range(self.days):
            at = FIRST + number * DAY
            outage = outage - 1 if outage > 0 else (dice.randint(20, 200) if dice.random() < 0.003 else 0)
            no_drills = no_drills - 1 if no_drills > 0 else (dice.randint(50, 400) if dice.random() < 0.005 else 0)
            if not outage and dice.random() > 0.05:
                last = self.make(at, dice, last)
            if not no_drills and dice.random() < 0.04 and self.held:
                self.drill(at, dice)
            self.spoil(at, dice)
            before = dict(self.held)
            for identifier in self.planned(at + timedelta(hours=4)):
                del self.held[identifier]
            check(self, set(before) - set(self.held), before, at + timedelta(hours=4))
            if last is not None and last.backup_id not in self.held:
                last = None
        return self

    def spoil(self, at: datetime, dice: random.Random) -> None:
        for hidden in (self.no_note, self.no_manifest):
            for identifier in [name for name, until in hidden.items() if until <= at]:
                del hidden[identifier]
            for identifier in self.held:
                if dice.random() < self.spoilt / 1000:
                    hidden[identifier] = at + dice.randint(1, 60) * DAY

    def planned(self, now: datetime) -> tuple[str, ...]:
        """Ask retention, which sees what is spoilt as the bucket would show it: without grades, or a mere name."""
        unseen, blind = set(self.no_manifest), set(self.no_note) - set(self.no_manifest)
        readable = [found for name, found in self.held.items() if name not in unseen | blind]
        doubtful = [replace(self.held[name], checked_at=None, verified_at=None, locked_until=None) for name in blind]
        return plan_retention(readable, now, RULES, doubtful=doubtful, unreadable=unseen).to_delete

    def make(self, at: datetime, dice: random.Random, last: KnownBackup | None) -> KnownBackup | None:
        checked = dice.random() > 0.05
        if dice.random() < 0.1:
            config = backup(at + timedelta(hours=2), kind="config-only", locked_days=self.lock_days, checked=checked)
            self.held[config.backup_id] = config
        chained = last is not None and at.weekday() != 6 and last.depth < 5 and dice.random() > 0.05
        keeping = dice.choices(("daily", "weekly", "monthly", "yearly"), (90, 5, 3, 2))[0]
        made = backup(
            at,
            kind="incremental" if chained else "full",
            parent=last if chained else None,
            keeping=keeping,
            checked=checked,
            locked_days=self.lock_days,
        )
        self.held[made.backup_id] = made
        return made if checked else last

    def drill(self, at: datetime, dice: random.Random) -> None:
        checked = [found for found in self.held.values() if found.checked_at]
        if checked:
            chosen = max(checked, key=lambda found: found.started_at)
            self.held[chosen.backup_id] = replace(chosen, verified_at=at)


def invariants(world: World, gone: set[str], before: dict[str, KnownBackup], now: datetime) -> None:
    """What may never be broken, each said from the outside: by what is left, not by what a rule says."""
    left = world.held
    for identifier in gone:
        lost = before[identifier]
        assert now - lost.ended_at >= timedelta(days=90), f"{identifier} was deleted within its 90 days"
        assert not (lost.locked_until and lost.locked_until > now), f"{identifier} was locked"
        assert identifier not in {*world.no_note, *world.no_manifest}, f"nobody could know what {identifier} is"
    for kept in left.values():
        if kept.parent and kept.parent.backup_id in before:
            assert kept.parent.backup_id in left, f"{kept.backup_id} lost the link it is built on"
    if any(found.verified_at for found in before.values()):
        newest = max((found for found in before.values() if found.verified_at), key=lambda found: found.started_at)
        assert newest.backup_id in left, "the last verified backup is gone"
    good_ones = [found for found in before.values() if good(found)]
    if good_ones:
        assert max(good_ones, key=lambda found: found.started_at).backup_id in left, "the last good backup is gone"
    if gone:
        represented(before, left, now)


SPANS = ((7, "%Y-%m-%d"), (5, "%G-%V"), (12, "%Y-%m"), (2, "%Y"))
"""How many of the youngest old days, weeks, months and years keep something."""


@cache
def spans_of(moment: datetime) -> tuple[str, ...]:
    return tuple(moment.strftime(name) for _, name in SPANS)


def represented(before: dict[str, KnownBackup], left: dict[str, KnownBackup], now: datetime) -> None:
    """Each of the last 7 days, 5 weeks, 12 months and 2 years beyond the 90 days that had a backup still has one; and
    where one of them was good, a good one, unless another was made to stand for it."""
    old = [(spans_of(found.started_at), found) for found in before.values() if now - found.ended_at >= 90 * DAY]
    for position, (count, _) in enumerate(SPANS):
        had: dict[str, list[KnownBackup]] = {}
        for spans, found in old:
            had.setdefault(spans[position], []).append(found)
        for span in sorted(had)[-count:]:
            has = [found for found in had[span] if found.backup_id in left]
            assert has, f"nothing is left of {span}"
            if all(found.keeping == "daily" for found in had[span]) and any(map(good, had[span])):
                assert any(map(good, has)), f"nothing good is left of {span}"


def good(found: KnownBackup) -> bool:
    return found.checked_at is not None and found.type != "config-only"


@pytest.mark.parametrize(
    ("days", "lock_days", "spoilt"),
    [(3650, 0, 0), (700, 120, 0), (3650, 0, 0.05)],
    ids=["ten years", "with locks", "with what can't be read"],
)
def test_the_invariants_hold_on_every_day(days: int, lock_days: int, spoilt: float) -> None:
    world = World(seed=7 + lock_days, days=days, lock_days=lock_days, spoilt=spoilt)
    world.run(invariants)
    assert len(world.held) < 250, "retention deletes too little"
    assert min(found.started_at for found in world.held.values()) > FIRST + days * DAY - 4 * 366 * DAY


def no_links(backups: object, reasons: object) -> None:
    """A defect: chains are forgotten."""


def oldest(newest_first: list[KnownBackup], is_meant: Callable[[KnownBackup], bool]) -> KnownBackup | None:
    """A defect: the first instead of the last."""
    return next((found for found in reversed(newest_first) if is_meant(found)), None)


def by_first(old: list[KnownBackup], rules: Retention) -> Iterator[tuple[str, KnownBackup]]:
    """A defect: slots are forgotten but for the days."""
    yield from (("daily", found) for found in old[: rules.daily])


def newest_in_slot(found: KnownBackup, name: str) -> datetime:
    """A defect: what is not checked, or config-only, stands for a day that had a good one."""
    return found.started_at


def only_known(by_id: object, unreadable: object, reasons: object) -> None:
    """A defect: what a backup that can't be read may build on is let go."""


@pytest.mark.parametrize(
    ("name", "defect", "lock_days"),
    [
        pytest.param("_keep_links", no_links, 0, id="chains are forgotten"),
        pytest.param("_newest", oldest, 0, id="the oldest instead of the newest"),
        pytest.param("_kept_by_count", by_first, 0, id="weeks, months and years are forgotten"),
        pytest.param("_worth", newest_in_slot, 0, id="a bad one stands for a good one"),
        pytest.param("timedelta", lambda days: timedelta(days=days - (days > 1)), 0, id="a day too early"),
        pytest.param("_is_locked", lambda backup, at: False, 120, id="locks are forgotten"),
        pytest.param("_keep_what_may_be_links", only_known, 0, id="what can't be read needs nothing"),
    ],
)
def test_a_defect_in_the_rules_breaks_an_invariant(
    name: str, defect: object, lock_days: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert hasattr(retention, name)
    monkeypatch.setattr(retention, name, defect)
    with pytest.raises(AssertionError):
        World(seed=7, days=1200, lock_days=lock_days, spoilt=0.05 if defect is only_known else 0).run(invariants)


def test_what_has_a_note_that_does_not_count_keeps_what_it_builds_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def blind(world: World, now: datetime) -> tuple[str, ...]:
        """A defect: only what counts is looked at."""
        hidden = {*world.no_note, *world.no_manifest}
        readable = [found for name, found in world.held.items() if name not in hidden]
        return plan_retention(readable, now, RULES, unreadable=world.no_manifest).to_delete

    monkeypatch.setattr(World, "planned", blind)
    with pytest.raises(AssertionError, match="lost the link"):
        World(seed=7, days=3650, spoilt=0.05).run(invariants)


# ------------------------------------------------------------------------------------------------------- one by one


NOW = datetime(2027, 6, 1, tzinfo=UTC)


def plan(*backups: KnownBackup, rules: Retention = RULES) -> RetentionPlan:
    return plan_retention(backups, NOW, rules)


def reasons(result: RetentionPlan, of: KnownBackup) -> tuple[str, ...]:
    return next(verdict.reasons for verdict in result.verdicts if verdict.backup.backup_id == of.backup_id)


def test_everything_younger_than_90_days_stays() -> None:
    young = [backup(NOW - number * DAY) for number in range(1, 90)]
    assert plan(*young).to_delete == ()


def test_the_last_verified_one_stays_however_old_it_is() -> None:
    verified = backup(NOW - 2000 * DAY, verified=True)
    newer = [backup(NOW - number * 40 * DAY) for number in range(1, 30)]
    assert reasons(plan(verified, *newer), verified) == ("the last verified one",)


def test_a_link_that_something_kept_is_built_on_stays() -> None:
    full = backup(NOW - 400 * DAY, salt="full")
    first = backup(NOW - 399 * DAY, kind="incremental", parent=full)
    second = backup(NOW - 398 * DAY, kind="incremental", parent=first, verified=True)
    others = [backup(NOW - number * DAY) for number in range(1, 398)]
    result = plan(full, first, second, *others)
    assert reasons(result, first) == (f"needed by {second.backup_id}",)
    assert reasons(result, full) == (f"needed by {second.backup_id}",)


def test_what_can_not_be_read_keeps_what_it_builds_on_or_may_build_on() -> None:
    full, other, young = backup(NOW - 401 * DAY), backup(NOW - 395 * DAY), backup(NOW - DAY)
    child = backup(NOW - 400 * DAY, kind="incremental", parent=full)
    rules = Retention(daily=1, weekly=1, monthly=1, yearly=0)
    assert set(plan(full, child, other, young, rules=rules).to_delete) == {full.backup_id, child.backup_id}
    noted = plan_retention([full, other, young], NOW, rules, doubtful=[child])
    assert noted.to_delete == ()
    assert reasons(noted, full) == (f"needed by {child.backup_id}",)
    assert reasons(noted, child) == ("left alone: a note on it does not count",)
    older = backup(NOW - 900 * DAY, kind="config-only")
    nameless = plan_retention([full, older, other, young], NOW, rules, unreadable=[child.backup_id])
    assert nameless.to_delete == (older.backup_id,)
    assert reasons(nameless, full) == (f"may be needed by {child.backup_id}, whose manifest does not count",)
    assert plan_retention([full, other, young], NOW, rules, unreadable=[older.backup_id]).to_delete == (full.backup_id,)


def test_a_chain_is_kept_also_when_a_clock_was_wrong() -> None:
    full = backup(NOW - 400 * DAY, salt="full")
    child = replace(backup(NOW - 400 * DAY, kind="incremental", parent=full, verified=True), started_at=NOW - 500 * DAY)
    others = [backup(NOW - number * DAY) for number in range(1, 600)]
    assert reasons(plan(full, child, *others), full) == (f"needed by {child.backup_id}",)


def test_what_is_built_on_another_goes_first() -> None:
    full = backup(NOW - 900 * DAY)
    child = backup(NOW - 899 * DAY, kind="incremental", parent=full)
    others = [backup(NOW - number * DAY) for number in range(1, 800)]
    goes = plan(full, child, *others).to_delete
    assert goes.index(child.backup_id) < goes.index(full.backup_id)


def test_a_backup_made_to_be_kept_for_a_year_stands_for_its_year() -> None:
    audit = backup(NOW - 400 * DAY, keeping="yearly")
    others = [backup(NOW - number * DAY) for number in range(1, 500) if number != 400]
    assert "yearly" in reasons(plan(audit, *others), audit)


def test_more_than_20_at_once_ask_for_approval() -> None:
    young = backup(NOW - DAY)
    few = Retention(daily=1, weekly=1, monthly=1, yearly=0)
    # All in one month, so that exactly one of them stays.
    old = [backup(datetime(2026, 6, 1, hour, minute, tzinfo=UTC)) for hour in range(20) for minute in (0, 30)]
    assert not plan(young, *old[:21], rules=few).asks_for_approval
    assert len(plan(young, *old[:21], rules=few).to_delete) == 20
    assert plan(young, *old[:22], rules=few).asks_for_approval


def test_the_table_says_of_each_what_and_why() -> None:
    old = [backup(NOW - number * DAY) for number in (800, 801)]
    rows = table(plan(backup(NOW - DAY), *old, rules=Retention(daily=1, weekly=1, monthly=1, yearly=0)))
    assert [row["action"] for row in rows] == ["keep", "keep", "delete"]
    assert rows[0]["reason"] == "younger than 90 days, the last checked one with data, the newest"
    assert rows[2]["reason"] == "past its time and not needed"
    assert rows[2]["grade"] == "checked"
    assert rows[2]["age_days"] == "801.0"


@pytest.mark.parametrize("setting", [{"days": 0}, {"days": -1}, {"days": 6}, {"daily": 0}, {"approval_above": 0}])
def test_settings_that_would_delete_everything_are_refused(setting: dict[str, int]) -> None:
    with pytest.raises(ValidationError):
        Retention(**setting)


def test_no_backups_no_plan() -> None:
    assert plan().verdicts == ()


def folder(name: str, days_ago: float, *, had_manifest: bool = False) -> Folder:
    return Folder(name, 1, 10, NOW - timedelta(days=days_ago), had_manifest)


def test_only_old_files_that_never_had_a_manifest_are_leftovers() -> None:
    folders = [folder("young", 6.9), folder("old", 7.1), folder("older", 30), folder("had", 30, had_manifest=True)]
    assert [found.backup_id for found in find_leftovers(folders, NOW, timedelta(days=7))] == ["older", "old"]


def test_each_cluster_keeps_its_own_last_ones() -> None:
    lost = replace(backup(NOW - 2000 * DAY), cluster_uid="lost")
    ours = [backup(NOW - number * DAY) for number in range(1, 100)]
    assert {"the last checked one with data", "the newest"} <= set(reasons(plan(lost, *ours), lost))
    assert "the newest" not in reasons(plan(replace(lost, cluster_uid=""), *ours), lost)


def test_two_systems_of_one_cluster_have_each_their_last_verified_one() -> None:
    ours, theirs = (replace(backup(NOW - days * DAY, verified=True), cluster_uid="uid-1") for days in (500, 600))
    theirs = replace(theirs, system="other")
    young = [
        replace(backup(NOW - day * DAY, salt=name), cluster_uid="uid-1", system=name)
        for day in range(1, 500)
        for name in ("", "other")
    ]
    found = plan(ours, theirs, *young)
    assert all("the last verified one" in reasons(found, one) for one in (ours, theirs))


def test_a_part_takes_nobodys_place_and_proves_nothing() -> None:
    at = FIRST + 400 * DAY
    whole = [backup(FIRST + day * DAY) for day in range(0, 300, 10)]
    parts = [replace(backup(one.started_at + timedelta(hours=5)), whole=False) for one in whole]
    without = {v.backup.backup_id for v in plan_retention(whole, at, RULES).verdicts if v.keep}
    kept = {v.backup.backup_id for v in plan_retention([*whole, *parts], at, RULES).verdicts if v.keep}
    # The newest of all stays whatever it is.
    assert kept == {*without, parts[-1].backup_id}
    young = replace(backup(at - 5 * DAY), whole=False)
    assert all(verdict.keep for verdict in plan_retention([young], at, RULES).verdicts)
