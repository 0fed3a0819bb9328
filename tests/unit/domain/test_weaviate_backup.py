"""What Weaviate's answers about a backup mean."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from nephoran_maintenance.domain.weaviate_backup import (
    TENANTS_NAMED,
    BackupVerdict,
    Staged,
    has_incremental,
    is_final,
    judge_backup,
    refusal_of,
    shards_in,
    tenants_left_out,
)

NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
LIMIT = timedelta(minutes=10)


def judged(
    answer: dict[str, Any] | None, *, staged: Staged | None = None, standing: timedelta | None = None
) -> BackupVerdict:
    progressed_at = NOW - (standing or timedelta())
    return judge_backup(answer, staged=staged, now=NOW, progressed_at=progressed_at, no_progress_limit=LIMIT)


@pytest.mark.parametrize(
    ("status", "state"),
    [
        ("STARTED", "progressing"),
        ("TRANSFERRING", "progressing"),
        ("TRANSFERRED", "progressing"),
        ("FINALIZING", "progressing"),
        ("SUCCESS", "complete"),
        ("FAILED", "failed"),
        ("CANCELLING", "progressing"),
        ("CANCELED", "cancelled"),
        ("CANCELLED", "cancelled"),
        ("SOMETHING_NEW", "progressing"),
        ("", "progressing"),
        ("success", "progressing"),
    ],
)
def test_every_status_has_its_meaning(status: str, state: str) -> None:
    assert judged({"status": status}).state == state
    assert is_final(status) is (state in ("complete", "failed", "cancelled"))


@pytest.mark.parametrize("status", ["STARTED", "TRANSFERRED", "CANCELLING", "SOMETHING_NEW", None])
@pytest.mark.parametrize(
    ("standing", "state"),
    [(LIMIT - timedelta(seconds=1), "progressing"), (LIMIT, "stalled")],
    ids=["within", "at-the-limit"],
)
def test_what_does_not_move_for_too_long_stands_still(status: str | None, standing: timedelta, state: str) -> None:
    found = judged(None if status is None else {"status": status}, standing=standing)
    assert found.state == state
    assert ("no progress for 600 s" in found.message) is (state == "stalled")


@pytest.mark.parametrize(("status", "state"), [("SUCCESS", "complete"), ("FAILED", "failed")])
def test_an_end_counts_however_late_it_is_seen(status: str, state: str) -> None:
    assert judged({"status": status}, standing=2 * LIMIT).state == state


@pytest.mark.parametrize(("error", "message"), [("shard is locked", "shard is locked"), (None, "gives no reason")])
def test_a_failure_has_its_reason(error: str | None, message: str) -> None:
    assert message in judged({"status": "FAILED", "error": error}).message


def test_says_what_has_arrived() -> None:
    staged = Staged(52, 42_467_328)
    assert judged({"status": "TRANSFERRING"}, staged=staged).progress == "TRANSFERRING, 40.5 MiB in 52 objects staged"


def test_says_that_a_status_is_unknown() -> None:
    assert judged({"status": "SOMETHING_NEW"}).progress == "SOMETHING_NEW (an unknown status)"
    assert judged(None).progress == "not known to Weaviate"


def test_a_new_status_and_new_bytes_are_progress_and_nothing_else_is() -> None:
    answers: list[tuple[dict[str, Any], Staged | None]] = [
        ({"status": "STARTED"}, None),
        ({"status": "TRANSFERRING"}, None),
        ({"status": "TRANSFERRING"}, Staged(1, 10)),
        ({"status": "TRANSFERRING"}, Staged(1, 11)),
    ]
    assert len({judged(answer, staged=staged).fingerprint for answer, staged in answers}) == len(answers)
    first = judged({"status": "STARTED", "path": "a"}, staged=Staged(1, 1))
    assert first.fingerprint == judged({"status": "STARTED", "path": "b"}, staged=Staged(1, 1)).fingerprint


REFUSALS = {
    "in-progress": ("backup full-2026-1 already in progress", "in-progress", "full-2026-1"),
    "restore": ("restoration r-1 already in progress", "in-progress", "r-1"),
    "restore-of-a-node": ("restore r-1 already in progress", "in-progress", "r-1"),
    "exists": ('backup "b-1" already exists at "s3://staging/b-1"', "exists", ""),
    "module": ('no backup backend "s3": not registered, did you enable the right module?', "module-missing", ""),
    "several-nodes": (
        "local filesystem backend is not viable for backing up a node cluster, try s3 or gcs",
        "backend-not-viable",
        "",
    ),
    "base": ("resolve base backup chain: could not fetch base backup: not found", "base-unusable", ""),
    "index": ('weaviate-0/C: backup blocked: runtime-reindex in flight on this shard: "a"', "reindexing", ""),
    "anything-else": ("empty class list", "other", ""),
}


@pytest.mark.parametrize(("message", "kind", "other_id"), REFUSALS.values(), ids=REFUSALS.keys())
def test_every_refusal_has_its_meaning(message: str, kind: str, other_id: str) -> None:
    found = refusal_of(message)
    assert (found.kind, found.other_id, found.message) == (kind, other_id, message)


@pytest.mark.parametrize(
    ("version", "expected"),
    [("1.36.9", False), ("1.37.0", True), ("1.39.0", True), ("2.0.0", True), ("1.9.0", False), ("", False)],
)
def test_knows_who_can_build_on_an_earlier_backup(version: str, expected: bool) -> None:
    assert has_incremental(version) is expected


def test_a_tenant_is_in_a_backup_when_a_descriptor_names_its_shard() -> None:
    one = {"classes": [{"name": "A", "shards": [{"name": "a"}], "chunks": {"1": ["b"], "2": None}}, {"name": "B"}]}
    other = {"classes": [{"name": "A", "shards": None, "chunks": {"1": ["c"]}}]}
    assert shards_in(one) == {"A": {"a", "b"}, "B": set()}
    assert shards_in({"classes": None}) == {}
    shards = {"A": shards_in(one)["A"] | shards_in(other)["A"]}
    tenants = {"A": {"a": "HOT", "b": "HOT", "c": "COLD"}, "B": {"x": "", "y": "FROZEN"}}
    assert tenants_left_out(tenants, shards) == {
        "B": {"count": 2, "states": {"unknown": 1, "FROZEN": 1}, "names": ["x", "y"]}
    }


def test_a_manifest_does_not_grow_without_end_by_tenants() -> None:
    found = tenants_left_out({"A": {f"{number:05}": "COLD" for number in range(5000)}}, {})["A"]
    assert (found["count"], len(found["names"])) == (5000, TENANTS_NAMED)
