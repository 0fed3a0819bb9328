"""The report: it says only what was recorded, and never calls anything better than it was."""

from __future__ import annotations

from typing import Any

import pytest

from nephoran_maintenance.domain.approval import Approval
from nephoran_maintenance.domain.journal import Journal, JournalEntry, Step, Workload
from nephoran_maintenance.domain.report import NOT_MEASURED, build_report, overall
from tests.unit.domain.kubernetes_objects import at

V1, V2 = "sha256:" + "1" * 64, "sha256:" + "2" * 64
BEFORE, AFTER = f"r/rag-api:v1@{V1}", f"r/rag-api:v2@{V2}"


def entry(step: Step, component: str = "rag-api", kind: Any = "image", **more: Any) -> JournalEntry:
    workload = Workload(kind="Deployment", namespace="ns", name=component)
    return JournalEntry(component=component, kind=kind, workload=workload, before={}, intended={}, step=step, **more)


def journal(*entries: JournalEntry, seen_good: bool = True) -> Journal:
    return Journal(
        operation_id="o",
        procedure="rolling_upgrade",
        run_id="r",
        system="nephoran",
        plan_hash="h",
        started_at=at(0),
        verified_at=at(1) if seen_good else None,
        entries=entries,
    )


def how(found: Journal | None, **changes: Any) -> str:
    fields: dict[str, Any] = {"failed": False, "planned": False, "changes": 1, "reads_only": False}
    return overall(found, **{**fields, **changes})


def approval(state: Any) -> Approval:
    return Approval(category="major", needed=1, plan_hash="h", state=state)


CASES = [
    pytest.param(journal(entry("verified"), entry("verified", "b")), {}, "succeeded", id="all verified"),
    pytest.param(journal(entry("verified")), {"failed": True}, "failed", id="verified, but a step failed"),
    pytest.param(journal(entry("verified"), seen_good=False), {}, "failed", id="verified one by one is not succeeded"),
    pytest.param(journal(entry("rolled-back"), entry("planned", "b")), {"failed": True}, "rolled-back", id="undone"),
    pytest.param(journal(entry("rolled-back"), entry("verified", "b")), {"failed": True}, "failed", id="half undone"),
    pytest.param(journal(entry("applied")), {}, "failed", id="not verified is not succeeded"),
    pytest.param(journal(entry("rolling-back")), {"failed": True}, "failed", id="the way back did not end"),
    pytest.param(journal(entry("planned")), {"failed": True}, "refused", id="stopped before the first change"),
    pytest.param(
        journal(entry("verified"), entry("rolled-back", "b", criticality="may fail")),
        {},
        "partly-succeeded",
        id="without one that may fail",
    ),
    pytest.param(
        journal(entry("verified"), entry("rolled-back", "b", criticality="may fail")),
        {"failed": True},
        "failed",
        id="without one that may fail, and another step failed",
    ),
    pytest.param(
        journal(entry("left-out", criticality="may fail")), {"failed": True}, "refused", id="left out, nothing begun"
    ),
    pytest.param(None, {"failed": True}, "refused", id="stopped before there was a journal"),
    pytest.param(None, {"failed": True, "planned": True, "changes": None}, "refused", id="a plan that failed"),
    pytest.param(None, {"failed": True, "approval": approval("rejected")}, "not-approved", id="rejected"),
    pytest.param(None, {"failed": True, "approval": approval("expired")}, "not-approved", id="not approved in time"),
    pytest.param(None, {"failed": True, "approval": approval("approved")}, "refused", id="approved, then stopped"),
    pytest.param(None, {"failed": True, "approval": approval("waiting")}, "refused", id="stopped while it waited"),
    pytest.param(
        journal(entry("rolled-back")),
        {"failed": True, "approval": approval("approved")},
        "rolled-back",
        id="approved, undone",
    ),
    pytest.param(None, {"planned": True}, "planned", id="a plan"),
    pytest.param(None, {"changes": 0}, "nothing-to-do", id="nothing to do"),
    pytest.param(None, {"changes": 0, "planned": True}, "nothing-to-do", id="a plan of nothing"),
    pytest.param(None, {"reads_only": True}, "ready", id="preflight without a block"),
    pytest.param(None, {"reads_only": True, "failed": True}, "not-ready", id="preflight with a block"),
]


@pytest.mark.parametrize(("found", "changes", "expected"), CASES)
def test_says_how_it_ended(found: Journal | None, changes: dict[str, Any], expected: str) -> None:
    assert how(found, **changes) == expected


def change(component: str = "rag-api", kind: str = "image", **fields: Any) -> dict[str, Any]:
    base = {"component": component, "kind": kind, "before": {"image": BEFORE}, "after": {"image": AFTER}, "digest": V2}
    return {**base, **fields}


def report(**changes: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "operation_id": "o",
        "procedure": "rolling_upgrade",
        "title": "Rolling upgrade",
        "system": "nephoran",
        "how": "succeeded",
        "triggered_by": "admin",
        "started_at": at(0),
        "ended_at": at(90.04),
        "params": {"mode": "apply"},
        "plan": {"changes": [change()]},
        "plan_hash": "h",
    }
    return build_report(**{**fields, **changes})


def test_has_every_key_that_readers_rely_on() -> None:
    assert set(report()) >= {
        "operation_id",
        "procedure",
        "system",
        "overall",
        "triggered_by",
        "started_at",
        "ended_at",
        "params",
        "plan",
        "plan_hash",
        "components",
        "functional_test",
        "probe",
        "rollback",
        "findings",
    }


def test_a_measured_component_shows_its_figures() -> None:
    done = entry("verified", at={"intended": at(1), "verified": at(31)})
    health = {"rag-api": {"ready": 2, "desired": 2, "health": "2 of 2 pods answer"}}
    assert report(journal=journal(done), health=health)["components"] == [
        {
            "name": "rag-api",
            "result": "changed and verified",
            "image_before": BEFORE,
            "image_after": AFTER,
            "digest_before": V1,
            "digest_after": V2,
            "ready": 2,
            "desired": 2,
            "seconds": 30.0,
            "health": "2 of 2 pods answer",
            "policy": None,
            "changed": {"began_at": at(1).isoformat(), "verified_at": at(31).isoformat()},
            "failure": None,
        }
    ]


def test_what_was_not_measured_says_so() -> None:
    unpinned = change(before={"image": "r/rag-api:v1"})
    row = report(plan={"changes": [unpinned]}, journal=journal(entry("applied")))["components"][0]
    for key in ("digest_before", "ready", "desired", "seconds", "health"):
        assert row[key] == NOT_MEASURED, key
    assert row["result"] == "between: applied"


def test_policy_and_image_of_a_component_are_one_row_and_its_seconds_are_both() -> None:
    plan = {"changes": [change(kind="policy", after={"image": BEFORE}, digest=None), change()]}
    entries = (
        entry("verified", kind="policy", at={"intended": at(0), "verified": at(20)}),
        entry("verified", at={"intended": at(20), "verified": at(50)}),
    )
    (row,) = report(plan=plan, journal=journal(*entries))["components"]
    assert row["seconds"] == 50.0
    assert (row["image_before"], row["image_after"]) == (BEFORE, AFTER)
    assert "no promise of zero downtime" in row["policy"]


def test_half_measured_seconds_are_not_measured() -> None:
    plan = {"changes": [change(kind="policy"), change()]}
    entries = (entry("verified", kind="policy", at={"intended": at(0), "verified": at(20)}), entry("applied"))
    assert report(plan=plan, journal=journal(*entries))["components"][0]["seconds"] == NOT_MEASURED


@pytest.mark.parametrize(
    ("steps", "result"),
    [
        (("verified", "verified"), "changed and verified"),
        (("rolled-back", "rolled-back"), "rolled back and verified"),
        (("rolled-back", "planned"), "rolled back and verified"),
        (("planned", "planned"), "not changed"),
        (("verified", "rolling-back"), "between: verified, rolling-back"),
    ],
)
def test_says_what_became_of_a_component(steps: tuple[Step, Step], result: str) -> None:
    entries = (entry(steps[0], kind="policy"), entry(steps[1]))
    plan = {"changes": [change(kind="policy"), change()]}
    assert report(plan=plan, journal=journal(*entries))["components"][0]["result"] == result


def test_a_component_without_a_journal_was_not_changed() -> None:
    assert report(how="planned")["components"][0]["result"] == "not changed"


def test_a_probe_that_left_nothing_is_not_measured_and_one_that_was_not_wanted_is_not_shown() -> None:
    assert report(probe_expected=True)["probe"]["failed"] == NOT_MEASURED
    assert report()["probe"] is None
    assert report(probe={"sent": 5, "failed": 0}, probe_expected=True)["probe"] == {"sent": 5, "failed": 0}


def test_times_are_written_for_machines_and_a_missing_start_is_not_measured() -> None:
    assert report()["started_at"] == "2026-11-23T10:00:00+00:00"
    assert report()["seconds"] == 90.0
    assert report(started_at=None)["seconds"] == NOT_MEASURED


def test_a_failure_after_the_last_change_does_not_claim_a_failed_way_back() -> None:
    text = report(how="failed", journal=journal(entry("verified")))["summary"]
    assert "another step failed" in text
    unseen = report(how="failed", journal=journal(entry("verified"), seen_good=False))["summary"]
    assert "nobody has seen everything together to be good" in unseen
    assert "way back" in report(how="failed", journal=journal(entry("rolling-back")))["summary"]


def test_findings_carry_their_rank() -> None:
    findings = [{"check": "pods", "severity": "pass"}, {"check": "pods", "severity": "block"}]
    assert [f["rank"] for f in report(findings=findings)["findings"]] == [2, 0]


def test_a_run_without_a_plan_has_no_components() -> None:
    assert report(plan=None)["components"] == []
