"""Freshness: which backup is the newest that counts, and what a change may make of its age."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from nephoran_maintenance.domain import freshness
from nephoran_maintenance.domain.backups import BackupType, backup_id
from nephoran_maintenance.domain.chain import KnownBackup
from nephoran_maintenance.domain.freshness import (
    Newest,
    Standing,
    check_cron_jobs,
    check_freshness,
    check_standing,
    figures,
    find_newest,
)
from nephoran_maintenance.domain.manifest import Parent
from nephoran_maintenance.errors import PermanentError

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
RPO = 24 * HOUR


def made(hours_ago: float, kind: BackupType = "full", parent: KnownBackup | None = None, **fields: Any) -> KnownBackup:
    at = NOW - hours_ago * HOUR
    digest = f"{int(hours_ago * 10):064x}"
    on = (
        Parent(backup_id=parent.backup_id, manifest_sha256=parent.manifest_sha256, depth=parent.depth)
        if parent
        else None
    )
    backup = KnownBackup(
        backup_id(kind, at, f"{kind}{hours_ago}"),
        kind,
        "daily",
        started_at=at,
        ended_at=at,
        manifest_sha256=digest,
        parent=on,
        checked_at=at,
        cluster_uid="uid-1",
        system="nephoran",
    )
    return replace(backup, **fields)


class Bucket:
    """Backups by id; counts how many manifests were read."""

    def __init__(self, *backups: KnownBackup) -> None:
        self.backups = {backup.backup_id: backup for backup in backups}
        self.read: list[str] = []
        self.bad: dict[str, str] = {}

    def folders(self) -> dict[str, list[str]]:
        return {
            name: ["manifest.json.asc"]
            + (["checked.json.asc"] if one.checked_at else [])
            + (["verified.json.asc"] if one.verified_at else [])
            for name, one in self.backups.items()
        }

    def known(self, name: str) -> KnownBackup:
        self.read.append(name)
        if name in self.bad:
            raise PermanentError("openpgp-signature-invalid", self.bad[name])
        return self.backups[name]

    def newest(self, uid: str | None = "uid-1") -> Newest:
        return find_newest(self.folders(), self.known, "nephoran", uid)


def test_the_newest_checked_one_with_data_counts_and_few_manifests_are_read() -> None:
    newest, *older = [made(hours) for hours in (3, 27, 51)]
    bucket = Bucket(*older, newest, made(1, "config-only"), made(2, checked_at=None))
    assert bucket.newest() == Newest(checked=newest)
    assert bucket.read == [newest.backup_id]


def test_an_incremental_one_counts_when_every_link_is_there_and_checked() -> None:
    full = made(30)
    link = made(20, "incremental", full)
    last = made(2, "incremental", link)
    assert Bucket(full, link, last).newest().checked == last
    assert Bucket(link, last).newest().checked is None
    unchecked = Bucket(full, replace(link, checked_at=None), last).newest()
    assert unchecked.checked == full
    assert "is not checked" in unchecked.passed_by[0]


def test_what_does_not_count_is_passed_by_with_its_reason() -> None:
    forged, foreign, good = made(1), made(2, cluster_uid="uid-2"), made(3)
    bucket = Bucket(made(0.5, system="staging"), forged, foreign, good)
    bucket.bad[forged.backup_id] = "the signature is not one of ours"
    found = bucket.newest()
    assert found.checked == good
    assert [reason.partition(": ")[2] for reason in found.passed_by] == [
        "it is of the system staging",
        "the signature is not one of ours",
        "it is of another cluster",
    ]
    assert bucket.newest(None).checked == foreign


def test_the_newest_verified_one_is_found_behind_newer_ones() -> None:
    verified, checked = made(24 * 30, verified_at=NOW), made(3)
    assert Bucket(verified, checked).newest() == Newest(checked, verified)


@pytest.mark.parametrize(
    ("hours_ago", "severity"),
    [
        pytest.param(23.9, "pass", id="a little younger than a day"),
        pytest.param(24, "block", id="a day"),
        pytest.param(-0.05, "pass", id="clocks differ by three minutes"),
        pytest.param(-1, "block", id="from the future"),
    ],
)
def test_refuses_a_change_when_the_newest_checked_backup_is_24_hours_old(hours_ago: float, severity: str) -> None:
    finding = check_freshness(Newest(made(hours_ago)), NOW, RPO)[0]
    assert finding.severity == severity
    assert bool(finding.hint) == (severity == "block")


def test_no_backup_at_all_blocks_and_says_what_was_passed_by() -> None:
    finding = check_freshness(Newest(passed_by=("full-1: forged",)), NOW, RPO)[0]
    assert (finding.severity, finding.observed) == ("block", "there is none; passed by: full-1: forged")


def test_a_site_that_is_introducing_backups_is_warned() -> None:
    for newest in (Newest(), Newest(made(25))):
        assert check_freshness(newest, NOW, RPO, when_stale="warn")[0].severity == "warn"


def test_without_a_drill_nothing_can_be_verified_and_it_is_said_and_does_not_block() -> None:
    finding = check_freshness(Newest(made(1)), NOW, RPO)[1]
    assert finding.severity == "warn"
    assert "no drill" in finding.observed


@pytest.mark.parametrize(
    ("days", "severity"), [(None, "block"), (35, "pass"), (35.1, "block")], ids=["none", "35 days", "later"]
)
def test_with_a_drill_a_verified_one_older_than_35_days_blocks(
    days: float | None, severity: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(freshness, "DRILL_EXISTS", True)
    verified = made(days * 24) if days is not None else None
    assert check_freshness(Newest(made(1), verified), NOW, RPO)[1].severity == severity


def test_figures_are_ages_in_seconds_and_none_where_there_is_none() -> None:
    one = made(3)
    assert figures(Newest(one), NOW) == {
        "checked_backup": one.backup_id,
        "checked_age_seconds": 10800.0,
        "verified_backup": None,
        "verified_age_seconds": None,
        "rpo_seconds": 10800.0,
    }


@pytest.mark.parametrize(
    ("standing", "expected"),
    [
        pytest.param(Standing(False, False), [("pass", "scheduled, its last run did not fail")], id="good"),
        pytest.param(Standing(True, False), [("warn", "paused")], id="paused"),
        pytest.param(Standing(False, True), [("warn", "its last scheduled run failed")], id="failed"),
        pytest.param(
            Standing(False, None),
            [("warn", "not measured: none of its last runs was scheduled and has ended")],
            id="only by hand",
        ),
        pytest.param(
            Standing(), [("warn", "not measured: Airflow does not know it, or could not be asked")], id="unknown"
        ),
    ],
)
def test_what_airflow_says_of_the_backups_is_told(standing: Standing, expected: list[tuple[str, str]]) -> None:
    assert [(found.severity, found.observed) for found in check_standing(standing)] == expected


def test_suspended_cron_jobs_that_make_backups_are_told() -> None:
    def job(name: str, *, suspend: bool, **labels: str) -> dict[str, Any]:
        return {"metadata": {"name": name, "labels": labels}, "spec": {"suspend": suspend}}

    jobs = [
        job("weaviate-backup", suspend=True),
        job("nightly", suspend=True, app="Backup"),
        job("report", suspend=True),
        job("other-backup", suspend=False),
    ]
    assert [(f.severity, f.object) for f in check_cron_jobs(jobs)] == [
        ("warn", "CronJob/weaviate-backup"),
        ("warn", "CronJob/nightly"),
    ]


def test_a_part_does_not_count() -> None:
    whole, part = made(30), made(3, whole=False)
    found = Bucket(whole, part).newest()
    assert found.checked == whole
    assert found.passed_by == (f"{part.backup_id}: it leaves something out by choice",)
