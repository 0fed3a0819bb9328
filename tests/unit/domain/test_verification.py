"""The deep read: in simulated years nothing stays unread for more than 30 days; what is said of keys and recipients."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

import pytest

from nephoran_maintenance.domain.backups import backup_id
from nephoran_maintenance.domain.chain import KnownBackup
from nephoran_maintenance.domain.manifest import Parent, Recipient
from nephoran_maintenance.domain.retention import kept_until, plan_retention
from nephoran_maintenance.domain.verification import (
    Readable,
    check_chains,
    check_keys,
    check_openings,
    check_signers,
    choose,
    last_opened,
    overdue,
)
from nephoran_maintenance.profile import Retention

NOW = datetime(2027, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)
OPERATIONS = Recipient(name="operations", fingerprint="A" * 40, key_ids=("1",))
ESCROW = Recipient(name="escrow", fingerprint="B" * 40, key_ids=("2",))


def kept(backups: list[Readable]) -> dict[str, datetime]:
    """Everything for 90 days."""
    return {one.backup.backup_id: one.backup.ended_at + 90 * DAY for one in backups}


def readable(ended_at: datetime, **opened: datetime) -> Readable:
    identifier = backup_id("full", ended_at, ended_at.isoformat())
    known = KnownBackup(identifier, "full", "daily", started_at=ended_at, ended_at=ended_at)
    return Readable(known, (OPERATIONS, ESCROW), opened)


@dataclass
class World:
    """Daily backups, some days without one, all of them deleted after so many days; reading misses a day now and then."""

    seed: int
    missed: int
    kept: int = 120
    there: dict[str, Readable] = field(default_factory=dict)
    longest: timedelta = timedelta()
    most_a_day: int = 0

    def run(self, days: int) -> None:
        chance = random.Random(self.seed)
        away = 0
        for number in range(days):
            at = NOW + number * DAY
            for _ in range(chance.choice([0, 1, 1, 1, 2])):
                made = readable(at - timedelta(seconds=chance.randrange(80000)))
                self.there[made.backup.backup_id] = made
            self.there = {i: r for i, r in self.there.items() if at - r.backup.ended_at < self.kept * DAY}
            away = away - 1 if away else chance.choice([0] * 9 + [self.missed])
            if not away:
                chosen = choose(self.there.values(), at)
                self.most_a_day = max(self.most_a_day, len(chosen))
                for identifier in chosen:
                    self.there[identifier] = replace(self.there[identifier], opened={"operations": at})
            self.longest = max([self.longest, *(at - one.read_at for one in self.there.values())])


@pytest.mark.parametrize("missed", [0, 1])
@pytest.mark.parametrize("seed", range(3))
def test_nothing_stays_unread_for_more_than_30_days(seed: int, missed: int) -> None:
    world = World(seed, missed)
    world.run(700)
    assert timedelta(days=20) < world.longest <= timedelta(days=30)
    assert world.most_a_day <= 12, "the reading is spread over the days"


def test_what_is_due_is_read_at_once_however_much_it_is() -> None:
    old = [readable(NOW - (40 + number) * DAY) for number in range(50)]
    assert len(choose(old, NOW)) == 50
    assert choose([], NOW) == []


def test_the_longest_unread_goes_first() -> None:
    backups = [readable(NOW - 20 * DAY, escrow=NOW - 2 * DAY), readable(NOW - 10 * DAY), readable(NOW - 5 * DAY)]
    assert choose(backups, NOW) == [backups[1].backup.backup_id]


def test_overdue_is_told() -> None:
    late, good = readable(NOW - 31 * DAY), readable(NOW - 90 * DAY, operations=NOW - 29 * DAY)
    assert [found.object for found in overdue([late, good], NOW)] == [late.backup.backup_id]


@pytest.mark.parametrize(
    ("days_left", "severity", "expected"),
    [
        pytest.param(None, "pass", "never ends", id="never"),
        pytest.param(29, "warn", "ends at", id="in 29 days"),
        pytest.param(31, "warn", "kept until", id="before its backups"),
        pytest.param(88, "warn", "kept until", id="a day before its backups"),
        pytest.param(90, "pass", "ends at", id="after its backups"),
    ],
)
def test_a_key_must_outlive_the_backups_it_opens(days_left: int | None, severity: str, expected: str) -> None:
    ends = None if days_left is None else NOW + days_left * DAY
    backups = [readable(NOW - DAY), readable(NOW - 60 * DAY)]
    (found,) = check_keys(
        {OPERATIONS.fingerprint: ("operations", ends)},
        [replace(b, recipients=(OPERATIONS,)) for b in backups],
        NOW,
        kept(backups),
    )
    assert (found.severity, found.object) == (severity, "operations")
    assert expected in found.observed


def test_a_key_must_outlive_also_what_is_kept_for_a_month_or_a_year() -> None:
    rules = Retention()
    old = readable(NOW - 200 * DAY)
    backups = [readable(NOW - DAY), *(readable(NOW - days * DAY) for days in range(95, 150)), old]
    plan = plan_retention([one.backup for one in backups], NOW, rules)
    (verdict,) = [one for one in plan.verdicts if one.backup == old.backup]
    assert verdict.reasons == ("monthly",)
    until = kept_until(plan, rules)
    assert until[old.backup.backup_id] == old.backup.ended_at + (90 + 12 * 31) * DAY
    keys = {OPERATIONS.fingerprint: ("operations", NOW + 40 * DAY)}
    (found,) = check_keys(keys, [replace(old, recipients=(OPERATIONS,))], NOW, until)
    assert (found.severity, "are kept until" in found.observed) == ("warn", True)
    (found,) = check_keys(keys, [replace(old, recipients=(OPERATIONS,))], NOW, {})
    assert found.severity == "pass", "what goes needs no key"


def test_a_parent_is_kept_as_long_as_its_children_and_one_made_for_years_for_years() -> None:
    rules = Retention()
    full, child, audit = (readable(NOW - days * DAY).backup for days in (95, 10, 5))
    child = replace(
        child, type="incremental", parent=Parent(backup_id=full.backup_id, manifest_sha256="0" * 64, depth=0)
    )
    audit = replace(audit, keeping="yearly")
    until = kept_until(plan_retention([full, child, audit], NOW, rules), rules)
    assert until[child.backup_id] == child.ended_at + 90 * DAY
    assert until[full.backup_id] >= until[child.backup_id]
    assert until[audit.backup_id] == audit.ended_at + (90 + 2 * 366) * DAY


def test_a_signer_that_ends_is_told_30_days_before() -> None:
    ends = {"never": None, "soon": NOW + 10 * DAY, "later": NOW + 31 * DAY, "retired": NOW - DAY}
    found = check_signers(ends, NOW)
    assert [one.severity for one in found] == ["pass", "warn", "pass", "pass"]
    assert found[1].observed == "ends at 2027-01-11"
    (last,) = check_signers({"retired": NOW - DAY}, NOW)
    assert (last.severity, last.object, last.observed) == ("warn", "signer retired", "ended at 2026-12-31")


def test_a_key_that_left_the_profile_and_still_opens_something_is_told() -> None:
    backups = [readable(NOW), readable(NOW - DAY)]
    found = check_keys({OPERATIONS.fingerprint: ("operations", None)}, backups, NOW, kept(backups))
    assert [(f.severity, f.object) for f in found] == [("pass", "operations"), ("warn", "escrow")]
    assert "opens 2 backups" in found[1].observed


def test_each_recipient_is_told_when_they_last_decrypted() -> None:
    backups = [readable(NOW - 50 * DAY, operations=NOW - 3 * DAY), readable(NOW, operations=NOW - 9 * DAY)]
    backups.append(readable(NOW - 200 * DAY, escrow=NOW - 93 * DAY))
    found = {
        f.object: (f.severity, f.observed)
        for f in check_openings(["operations", "escrow", "board"], last_opened(backups), NOW)
    }
    assert found == {
        "operations": ("pass", "last decrypted one at 2026-12-29"),
        "escrow": ("warn", "last decrypted one at 2026-09-30"),
        "board": ("warn", "no note says that it has ever decrypted one"),
    }


def test_a_broken_chain_is_told() -> None:
    full, child = readable(NOW - DAY).backup, readable(NOW).backup
    parent = Parent(backup_id=full.backup_id, manifest_sha256="0" * 64, depth=0)
    link = replace(child, type="incremental", parent=parent)
    assert check_chains([replace(full, manifest_sha256="0" * 64), link]) == []
    (found,) = check_chains([link])
    assert (found.severity, found.object) == ("block", link.backup_id)
