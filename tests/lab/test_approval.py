"""Approval by other persons, answered through the REST API of a real Airflow on the lab."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from conftest import Run, Upgrades

    from lab.airflow_client import TaskState

COMPONENT = "nephio-bridge"
OTHER = "oran-adaptor"
FIRST, SECOND = "approve.wait_approval", "approve.wait_second_approval"
APPROVE, REJECT = 0, 1
"""Where the answers are among the options of a question."""
LIMIT = timedelta(minutes=3)


def answer(upgrades: Upgrades, run_id: str, who: str, option: int, step: str = FIRST) -> dict[str, Any]:
    """Answer a run's question as somebody, through the REST API, and return what was asked."""
    client = upgrades.airflow.client(who)
    question = client.await_question("rolling_upgrade", run_id, step, LIMIT)
    client.answer("rolling_upgrade", run_id, step, question["options"][option])
    return question


def edit_categories(upgrades: Upgrades, **categories: dict[str, Any]) -> None:
    """Change what categories ask for, until the lab is prepared for the next test."""
    path = upgrades.lab.config.home / "profile.yaml"
    profile = yaml.safe_load(path.read_text(encoding="utf-8"))
    for name, fields in categories.items():
        profile["categories"][name].update(fields)
    path.write_text(yaml.safe_dump(profile, sort_keys=False), encoding="utf-8")


def times(run: Run) -> dict[str, TaskState]:
    return {task.task_id: task for task in run.client.task_states(run.dag_id, run.run_id)}


def lease_holder(upgrades: Upgrades) -> str | None:
    leases = upgrades.lab.get("leases", namespace="nephoran-maintenance")["items"]
    held = [lease["spec"]["holderIdentity"] for lease in leases if lease["spec"].get("holderIdentity")]
    return held[0] if held else None


def test_in_an_emergency_the_requester_does_not_count_and_another_approver_does(upgrades: Upgrades) -> None:
    upgrades.prepare()
    before = upgrades.specs()
    run_id = upgrades.start(mode="apply", version="v2", components=[COMPONENT], category="emergency", reason="CHG-1")
    question = answer(upgrades, run_id, "admin", APPROVE)  # an approver, but the one who has started the run
    again = answer(upgrades, run_id, "operator", APPROVE)  # may edit the run, but is not named in the profile
    assert upgrades.specs() == before, "nothing may change before the approval"
    assert lease_holder(upgrades) is None, "who waits for a person holds no lease"
    last = answer(upgrades, run_id, "approver-1", APPROVE)
    run = upgrades.ended(run_id)
    assert run.state == "success", run.explain()
    assert run.report["overall"] == "succeeded"
    assert ":v2@sha256:" in upgrades.images()[COMPONENT]
    answers = [(found["by"], found["choice"], found["counts"]) for found in run.report["approval"]["answers"]]
    assert answers == [("admin", "approve", False), ("operator", "approve", False), ("approver-1", "approve", True)]
    assert question["options"] == [f"Approve plan {run.report['plan_hash'][:12]}", "Reject"]
    assert question["options"] == again["options"] == last["options"]
    for part in (run.report["plan_hash"], "CHG-1", "approver-1 or approver-2", f"{COMPONENT}: image"):
        assert part in question["body"]
    assert run.steps[SECOND] == "skipped"


def test_a_rejected_change_leaves_the_system_as_it_is_and_the_run_red(upgrades: Upgrades) -> None:
    upgrades.prepare()
    before = upgrades.specs()
    run_id = upgrades.start(mode="apply", version="v2", components=[COMPONENT], category="major")
    answer(upgrades, run_id, "approver-2", REJECT)
    run = upgrades.ended(run_id)
    assert run.state == "failed"
    assert run.report["overall"] == "not-approved"
    assert "[approval-rejected]" in run.error(FIRST)
    assert "rejected by approver-2" in run.error(FIRST)
    assert (run.steps["acquire_lease"], run.steps["release_lease"]) == ("upstream_failed", "skipped")
    assert upgrades.specs() == before
    assert lease_holder(upgrades) is None


def test_two_persons_approve_one_after_the_other(upgrades: Upgrades) -> None:
    upgrades.prepare()
    edit_categories(upgrades, infrastructure={"approval": "two"})
    try:
        run_id = upgrades.start(mode="apply", version="v2", components=[COMPONENT], category="infrastructure")
        answer(upgrades, run_id, "approver-1", APPROVE)
        second = answer(upgrades, run_id, "approver-1", APPROVE, SECOND)
        answer(upgrades, run_id, "approver-2", APPROVE, SECOND)
        run = upgrades.ended(run_id)
    finally:
        upgrades.prepare()
    assert run.state == "success", run.explain()
    assert "approved already by | approver-1" in second["body"]
    answers = [(found["by"], found["counts"]) for found in run.report["approval"]["answers"]]
    assert answers == [("approver-1", True), ("approver-1", False), ("approver-2", True)]


def test_a_change_that_nobody_answers_holds_nobody_up_and_ends_in_time_and_red(upgrades: Upgrades) -> None:
    upgrades.prepare()
    before = upgrades.specs()
    edit_categories(upgrades, major={"expires_minutes": 1})
    try:
        run_id = upgrades.start(mode="apply", version="v2", components=[COMPONENT], category="major")
        upgrades.client.await_question("rolling_upgrade", run_id, FIRST, LIMIT)
        urgent = upgrades.run(mode="apply", version="v2", components=[OTHER], category="security")
        run = upgrades.ended(run_id)
        assert upgrades.specs()[COMPONENT] == before[COMPONENT]
        assert upgrades.specs()[OTHER] != before[OTHER]
    finally:
        upgrades.prepare()
    assert urgent.state == "success", urgent.explain()
    began, ended = times(urgent)["check_request"].started_at, times(run)[FIRST].ended_at
    assert began
    assert ended
    assert began < ended, "it had to wait until the other had ended"
    assert run.state == "failed"
    assert run.report["overall"] == "not-approved"
    assert run.report["approval"]["state"] == "expired"
    assert "[approval-expired]" in run.error(FIRST)
    assert 60 <= run.report["seconds"] < 180


def test_to_mark_the_step_as_successful_is_no_approval(upgrades: Upgrades) -> None:
    upgrades.prepare()
    before = upgrades.specs()
    run_id = upgrades.start(mode="apply", version="v2", components=[COMPONENT], category="emergency")
    upgrades.client.await_question("rolling_upgrade", run_id, FIRST, LIMIT)
    upgrades.client.mark_task("rolling_upgrade", run_id, FIRST, "success")
    run = upgrades.ended(run_id)
    assert run.state == "failed"
    assert "[approval-missing]" in run.error("record_before_state"), run.explain()
    assert run.report["overall"] == "refused"
    assert upgrades.specs() == before
    assert lease_holder(upgrades) is None, "the lease was given back"


def test_a_plan_that_is_another_one_by_then_is_not_applied(upgrades: Upgrades) -> None:
    """Somebody edits the component while the run waits for its approval."""
    upgrades.prepare()
    run_id = upgrades.start(mode="apply", version="v2", components=[COMPONENT], category="major")
    upgrades.client.await_question("rolling_upgrade", run_id, FIRST, LIMIT)
    where = "--namespace=nephoran-system"
    upgrades.lab.kubectl("set", "env", f"deployment/{COMPONENT}", where, "EDITED_MEANWHILE=yes")
    upgrades.lab.kubectl("rollout", "status", f"deployment/{COMPONENT}", where, "--timeout=120s")
    edited = upgrades.specs()
    try:
        answer(upgrades, run_id, "approver-1", APPROVE)
        run = upgrades.ended(run_id)
        assert upgrades.specs() == edited
    finally:
        upgrades.prepare()
    assert run.state == "failed"
    assert "[plan-outdated]" in run.error("recheck_plan"), run.explain()
    assert "EDITED_MEANWHILE" in run.error("recheck_plan")
    assert run.report["overall"] == "refused"
    assert run.steps["release_lease"] == "success"
    assert lease_holder(upgrades) is None
