"""Which kind of backup is made, on what it builds, and chains that must not be trusted."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from nephoran_maintenance.domain.backups import (
    BackupType,
    RequestedType,
    backup_id,
    folder_of,
    is_backup_id,
    started_at_of,
)
from nephoran_maintenance.domain.chain import Choice, KnownBackup, chain_of, choose
from nephoran_maintenance.domain.manifest import Parent
from nephoran_maintenance.errors import PermanentError

MONDAY = datetime(2026, 11, 23, 2, 30, tzinfo=UTC)
DAY = timedelta(days=1)
RECIPIENTS = {"A" * 40: "operations", "B" * 40: "escrow"}


def link(at: datetime, parent: KnownBackup | None = None, kind: BackupType | None = None) -> KnownBackup:
    kind = kind or ("incremental" if parent else "full")
    built_on = None
    if parent:
        built_on = Parent(backup_id=parent.backup_id, manifest_sha256=parent.manifest_sha256, depth=parent.depth)
    identifier = backup_id(kind, at, at.isoformat())
    return KnownBackup(
        identifier,
        kind,
        "daily",
        started_at=at,
        ended_at=at + timedelta(minutes=5),
        manifest_sha256=identifier[-6:].ljust(64, "0"),
        parent=built_on,
        checked_at=at + timedelta(minutes=9),
        digest_key_id="key-1",
        cluster_uid="uid-1",
        system="nephoran",
        opened_by=frozenset(RECIPIENTS),
    )


def chain(length: int, start: datetime = MONDAY - 7 * DAY) -> list[KnownBackup]:
    links: list[KnownBackup] = []
    for number in range(length):
        links.append(link(start + number * DAY, links[-1] if links else None))
    return links


def chosen(requested: RequestedType, backups: list[KnownBackup], at: datetime = MONDAY) -> Choice:
    return choose(
        requested,
        at,
        backups,
        cluster_uid="uid-1",
        system="nephoran",
        digest_key_id="key-1",
        recipients=RECIPIENTS,
        longest_chain=6,
    )


def by_id(*backups: KnownBackup) -> dict[str, KnownBackup]:
    return {backup.backup_id: backup for backup in backups}


# ---------------------------------------------------------------------------------------------------------------- type


def test_auto_builds_on_the_newest_checked_one() -> None:
    links = chain(3)
    choice = chosen("auto", links)
    assert choice.type == "incremental"
    assert choice.parent == Parent(backup_id=links[-1].backup_id, manifest_sha256=links[-1].manifest_sha256, depth=2)
    assert chosen("incremental", links).parent == choice.parent


@pytest.mark.parametrize(
    ("backups", "at", "reason"),
    [
        pytest.param([], MONDAY, "there is no backup with data", id="no parent"),
        pytest.param(chain(3), MONDAY + 6 * DAY, "it is Sunday", id="sunday"),
        pytest.param(chain(6), MONDAY, "has 6 links", id="the chain is long"),
        pytest.param([replace(chain(1)[0], checked_at=None)], MONDAY, "is not checked", id="not checked"),
        pytest.param([replace(chain(1)[0], cluster_uid="uid-2")], MONDAY, "another cluster", id="another cluster"),
        pytest.param([replace(chain(1)[0], system="other")], MONDAY, "another system, other", id="another system"),
        pytest.param([replace(chain(1)[0], digest_key_id="key-2")], MONDAY, "another key", id="another key"),
        pytest.param(
            [replace(chain(1)[0], opened_by=frozenset({"A" * 40, "C" * 40}))],
            MONDAY,
            "can't be opened by escrow",
            id="a recipient is new",
        ),
        pytest.param(
            [replace(chain(2)[0], opened_by=frozenset({"A" * 40})), chain(2)[1]],
            MONDAY,
            "can't be opened by escrow",
            id="a recipient could not open the full one",
        ),
        pytest.param(
            [replace(chain(1)[0], opened_by=frozenset({""}))], MONDAY, "can't be opened by operations", id="passphrase"
        ),
        pytest.param(chain(3)[1:], MONDAY, "is missing", id="a link is missing"),
        pytest.param([link(MONDAY - DAY, kind="config-only")], MONDAY, "no backup with data", id="config-only"),
    ],
)
def test_auto_is_full_when(backups: list[KnownBackup], at: datetime, reason: str) -> None:
    choice = chosen("auto", backups, at)
    assert (choice.type, choice.parent) == ("full", None)
    assert reason in choice.reason


def test_a_recipient_who_has_left_is_no_reason_for_a_full_one() -> None:
    links = [replace(one, opened_by=one.opened_by | {"C" * 40}) for one in chain(2)]
    assert chosen("auto", links).type == "incremental"


def test_five_links_take_a_sixth() -> None:
    assert chosen("auto", chain(5)).type == "incremental"


def test_an_unchecked_link_is_passed_over_for_an_older_checked_one() -> None:
    first, second, third = chain(3)
    choice = chosen("auto", [first, second, replace(third, checked_at=None)])
    assert choice.parent
    assert choice.parent.backup_id == second.backup_id


def test_incremental_without_a_parent_is_refused() -> None:
    with pytest.raises(PermanentError) as error:
        chosen("incremental", [])
    assert error.value.reference == "no-parent"


@pytest.mark.parametrize("requested", ["full", "config-only"])
def test_what_is_asked_for_is_made(requested: RequestedType) -> None:
    assert chosen(requested, chain(3)) == Choice(requested, None, "asked for")  # type: ignore[arg-type]


# --------------------------------------------------------------------------------------------------------------- chains


def test_a_chain_is_listed_from_the_full_one_on() -> None:
    links = chain(4)
    assert chain_of(links[-1].backup_id, by_id(*reversed(links))) == tuple(links)
    assert chain_of(links[0].backup_id, by_id(*links)) == (links[0],)


def built_on_itself() -> list[KnownBackup]:
    first, second = chain(2)
    assert second.parent
    parent = Parent(backup_id=second.backup_id, manifest_sha256=second.manifest_sha256, depth=1)
    return [replace(first, type="incremental", parent=parent), second]


@pytest.mark.parametrize(
    ("links", "expected"),
    [
        pytest.param(chain(3)[1:], "is missing", id="the full one is missing"),
        pytest.param([chain(3)[0], chain(3)[2]], "is missing", id="one between is missing"),
        pytest.param(
            [replace(chain(2)[0], manifest_sha256="f" * 64), chain(2)[1]], "is not the one that", id="replaced"
        ),
        pytest.param(built_on_itself(), "is not older than", id="leads round"),
        pytest.param(
            [replace(chain(2)[0], started_at=MONDAY + DAY), chain(2)[1]], "is not older than", id="younger parent"
        ),
        pytest.param([replace(chain(2)[0], type="config-only"), chain(2)[1]], "config-only", id="on config-only"),
        pytest.param([replace(chain(2)[0], cluster_uid="uid-2"), chain(2)[1]], "another cluster", id="other cluster"),
        pytest.param([replace(chain(2)[0], system="other"), chain(2)[1]], "another system", id="other system"),
        pytest.param(
            [chain(2)[0], replace(chain(2)[1], parent=Parent(**{**chain(2)[1].parent.model_dump(), "depth": 3}))],  # type: ignore[union-attr]
            "counts 4 links",
            id="counts wrong",
        ),
    ],
)
def test_a_broken_chain_is_named(links: list[KnownBackup], expected: str) -> None:
    with pytest.raises(PermanentError, match=expected) as error:
        chain_of(links[-1].backup_id, by_id(*links))
    assert error.value.reference == "chain-broken"


# ---------------------------------------------------------------------------------------------------------------- names


def test_an_id_is_of_the_operation_and_valid_everywhere() -> None:
    identifier = backup_id("config-only", MONDAY, "backup-1")
    assert identifier == backup_id("config-only", MONDAY, "backup-1")
    assert identifier != backup_id("config-only", MONDAY, "backup-2")
    assert started_at_of(identifier) == MONDAY
    assert identifier == identifier.lower()
    assert len(identifier) <= 52
    assert folder_of("backups", identifier) == f"backups/{identifier}"


@pytest.mark.parametrize(
    "text", ["", "..", "full", "full-20261124t023000z-1a2b3", "full-20269924t023000z-1a2b3c", "a/b"]
)
def test_anything_else_is_no_id(text: str) -> None:
    assert not is_backup_id(text)
    with pytest.raises(PermanentError) as error:
        folder_of("backups", text)
    assert error.value.reference == "backup-id-invalid"


def test_nothing_is_built_on_a_part() -> None:
    whole, part = link(MONDAY - 2 * DAY), replace(link(MONDAY - DAY), whole=False)
    found = chosen("incremental", [whole, part])
    assert found.parent is not None
    assert found.parent.backup_id == whole.backup_id
    with pytest.raises(PermanentError, match="leaves something out"):
        chain_of("x", {**by_id(part), "x": replace(link(MONDAY, part), backup_id="x")})
