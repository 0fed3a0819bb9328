"""Approval in a run: who is asked, whose answer lets it go on, how it ends without one, and what nobody gets around."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from nephoran_maintenance.operators.approval import APPROVAL_KEY
from tests.unit.dag_runner import DagRunner, TaskInstance
from tests.unit.fake_cluster import LEASES
from tests.unit.operators.conftest import Persons, Step, System
from tests.unit.operators.test_refusals import refused_at

FIRST, SECOND = "approve.wait_approval", "approve.wait_second_approval"


def with_approvers(system: System, *names: str, **categories: dict[str, Any]) -> None:
    """Name who may approve, and change what categories ask for."""

    def change(data: dict[str, Any]) -> None:
        data["approvers"] = list(names)
        for category, fields in categories.items():
            data["categories"][category].update(fields)

    system.edit_profile(change)


def upgrade(
    system: System, *answers: tuple[str | None, str], replaced: dict[str, Step] | None = None, **params: Any
) -> Any:
    """Upgrade one component; these answers come, in this order. The run is started by ``operator``."""
    system.persons.answers += answers
    run = system.upgrade(replaced=replaced, **{"components": ["rag-api"], **params})
    assert run.surprises == []
    assert system.persons.answers == [], "not every answer was asked for"
    return run


def untouched(system: System, before: Any) -> None:
    """Nothing was written, no lease was taken."""
    assert system.specs() == before
    assert system.writes() == []
    assert not [path for path in system.cluster.objects if path.startswith(LEASES)]


def test_a_category_without_approval_is_passed_through_at_once(system: System) -> None:
    run = upgrade(system)
    assert system.persons.questions == []
    assert (run.states[FIRST], run.states[SECOND]) == ("success", "skipped")
    assert run.report["overall"] == "succeeded"
    assert (run.report["approval"]["state"], run.report["approval"]["needed"]) == ("not needed", 0)
    assert (system.journal().category, system.journal().approvals) == ("minor", ())


def test_a_plan_is_not_asked_for(system: System) -> None:
    run = upgrade(system, mode="plan", category="major")
    assert run.report["overall"] == "planned"
    assert (run.states[FIRST], run.report["approval"]) == ("skipped", None)


def test_one_approver_lets_it_begin_and_is_recorded(system: System) -> None:
    with_approvers(system, "ada", "grace")
    run = upgrade(system, ("ada", "approve"), category="major", reason="CHG-7")
    assert run.report["overall"] == "succeeded"
    assert (run.states[FIRST], run.states[SECOND]) == ("success", "skipped")
    assert run.order.index(FIRST) < run.order.index("acquire_lease") < run.order.index("recheck_plan")
    (question,) = system.persons.questions
    assert question.options == [f"Approve plan {run.report['plan_hash'][:12]}", "Reject"]
    assert "major change of rag-api in nephoran, until 20" in question.subject
    for part in (run.report["plan_hash"], "CHG-7", "operator", "ada or grace", "rag-api: image rag-api:v1", "1 of 1"):
        assert part in question.body
    (approved,) = run.report["approval"]["answers"]
    assert (approved["by"], approved["choice"], approved["counts"]) == ("ada", "approve", True)
    assert abs(datetime.fromisoformat(approved["at"]) - datetime.now(UTC)) < timedelta(minutes=1)
    assert [answer.by for answer in system.journal().approvals] == ["ada"]
    page = Path(run.report["report_path"]).read_text(encoding="utf-8")
    assert "Category major: approved, 1 needed" in page
    data = json.loads(Path(run.report["report_path"]).with_name("report.json").read_text(encoding="utf-8"))
    assert data["approval"]["plan_hash"] == data["plan_hash"]


def test_who_does_not_count_is_recorded_and_the_question_comes_again(system: System) -> None:
    """In an emergency the one who started the run is no approver, and somebody who is not named never is."""
    with_approvers(system, "operator", "ada")
    answers = [
        ("operator", "approve"),
        ("mallory", "approve"),
        ("mallory", "reject"),
        (None, "approve"),
        ("ada", "approve"),
    ]
    run = upgrade(system, *answers, category="emergency")
    assert run.report["overall"] == "succeeded"
    assert len(system.persons.questions) == 5
    assert len({(q.options[0], q.subject) for q in system.persons.questions}) == 1
    assert [(a["by"], a["choice"]) for a in run.report["approval"]["answers"]] == answers
    assert [a["counts"] for a in run.report["approval"]["answers"]] == [False, False, False, False, True]
    assert [answer.by for answer in system.journal().approvals] == ["ada"]
    page = Path(run.report["report_path"]).read_text(encoding="utf-8")
    assert "no: operator asked for the change" in page
    assert "no: mallory is not named as an approver in the profile" in page


def test_the_requester_counts_where_the_category_lets_them(system: System) -> None:
    with_approvers(system, "operator")
    assert upgrade(system, ("operator", "approve"), category="major").report["overall"] == "succeeded"


def test_two_different_persons_approve_and_neither_is_the_requester(system: System) -> None:
    with_approvers(system, "operator", "ada", "grace", infrastructure={"approval": "two"})
    answers = [
        ("operator", "approve"),
        ("ada", "approve"),
        ("ada", "approve"),
        ("operator", "approve"),
        ("grace", "approve"),
    ]
    run = upgrade(system, *answers, category="infrastructure")
    assert run.report["overall"] == "succeeded"
    assert [q.step for q in system.persons.questions] == [FIRST, FIRST, SECOND, SECOND, SECOND]
    assert "1 of 2" in system.persons.questions[-1].body
    assert "approved already by | ada" in system.persons.questions[-1].body
    assert [answer.by for answer in system.journal().approvals] == ["ada", "grace"]
    assert [a["counts"] for a in run.report["approval"]["answers"]] == [False, True, False, False, True]


ENDS = [
    pytest.param([("ada", "reject")], "rejected", "approval-rejected", id="an approver rejects"),
    pytest.param([("operator", "reject")], "rejected", "approval-rejected", id="the requester takes it back"),
    pytest.param([(None, "nobody")], "expired", "approval-expired", id="nobody answers"),
    pytest.param([("mallory", "approve"), (None, "nobody")], "expired", "approval-expired", id="only others answer"),
]


@pytest.mark.parametrize(("answers", "state", "reference"), ENDS)
def test_without_approval_the_run_is_red_and_nothing_was_changed(
    system: System, answers: list[tuple[str | None, str]], state: str, reference: str
) -> None:
    before = system.specs()
    with_approvers(system, "ada", "grace")
    run = upgrade(system, *answers, category="major")
    untouched(system, before)
    assert run.failed() == [FIRST, "verify_outcome"]
    assert run.order.count(FIRST) == 1, "a decision is not retried"
    assert f"[{reference}]" in run.error(FIRST)
    assert run.report["overall"] == "not-approved"
    assert run.report["approval"]["state"] == state
    assert run.report["failed_steps"] == [{"task_id": FIRST, "error": run.error(FIRST)}]
    assert run.states["acquire_lease"] == "upstream_failed"
    assert run.states["release_lease"] == "skipped"
    page = Path(run.report["report_path"]).read_text(encoding="utf-8")
    assert '<span class="badge not-approved">not approved</span>' in page
    assert f"Category major: {state}" in page


def test_the_second_of_two_can_still_reject(system: System) -> None:
    before = system.specs()
    with_approvers(system, "ada", "grace", major={"approval": "two"})
    run = upgrade(system, ("ada", "approve"), ("grace", "reject"), category="major")
    untouched(system, before)
    assert run.failed() == [SECOND, "verify_outcome"]
    assert run.report["overall"] == "not-approved"
    assert [a["by"] for a in run.report["approval"]["answers"]] == ["ada", "grace"]


def test_the_time_begins_with_the_plan_and_a_late_answer_does_not_count(system: System) -> None:
    """The sweep that ends a question comes some seconds late; who answers in between is too late all the same."""
    before = system.specs()
    with_approvers(system, "ada", major={"expires_minutes": 5})

    def plan_of_an_hour_ago(step: Any, context: Any) -> Any:
        result = step.execute(context)
        context["ti"].xcom_push("planned_at", (datetime.now(UTC) - timedelta(hours=1)).isoformat())
        return result

    run = upgrade(system, category="major", replaced={"plan_changes": plan_of_an_hour_ago})
    assert "[approval-expired]" in run.error(FIRST)
    assert system.persons.questions == []
    untouched(system, before)
    times: list[Any] = []

    def keep_its_time(step: Any, context: Any) -> Any:
        times.append(context["ti"].run.results)
        return step.execute(context)

    def late(step: str) -> dict[str, Any]:
        times[0]["plan_changes", "planned_at"] = (datetime.now(UTC) - timedelta(minutes=5)).isoformat()
        return Persons.answer(system.persons, step)

    system.persons.answer = late  # type: ignore[method-assign]
    run = upgrade(system, ("ada", "approve"), category="major", replaced={FIRST: keep_its_time})
    untouched(system, before)
    assert "[approval-expired]" in run.error(FIRST)
    assert run.report["overall"] == "not-approved"
    (answer,) = run.report["approval"]["answers"]
    assert (answer["counts"], answer["why"].startswith("it came after")) == (False, True)


# -------------------------------------------------------------------------------------------------- refused before asked


@pytest.mark.parametrize(
    ("names", "fields", "part"),
    [
        pytest.param([], {}, "the profile names nobody", id="nobody is named"),
        pytest.param(["ada"], {"approval": "two"}, "needs 2 persons", id="too few"),
        pytest.param(["ada", "operator"], {"approval": "two"}, "names ada beside operator", id="one is the requester"),
    ],
)
def test_a_category_that_nobody_can_approve_is_refused_first_of_all(
    system: System, names: list[str], fields: dict[str, Any], part: str
) -> None:
    with_approvers(system, *names, major=fields)
    run = upgrade(system, category="major")
    error = refused_at(run, system, "check_request")
    assert "[approvers-missing]" in error
    assert part in error
    assert "Add the Airflow user names" in error


def test_a_plan_can_be_made_where_nobody_is_named(system: System) -> None:
    assert upgrade(system, mode="plan", category="major").report["overall"] == "planned"


def test_an_emergency_that_no_known_user_started_is_refused(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one that another DAG has started: nobody could be told apart from its author."""
    with_approvers(system, "ada")
    plain = DagRunner.context

    def of_nobody(self: DagRunner, task: Any, ti: TaskInstance) -> Any:
        self.dag_run.triggering_user_name = None
        return plain(self, task, ti)

    monkeypatch.setattr(DagRunner, "context", of_nobody)
    assert "[requester-unknown]" in refused_at(upgrade(system, category="emergency"), system, "check_request")


# -------------------------------------------------------------------------------------------- what nobody gets around


def marked(state: str) -> Step:
    """Return a step that somebody has marked in Airflow instead of answering."""

    def execute(step: Any, context: Any) -> None:
        if state == "skipped":
            from airflow.sdk.exceptions import AirflowSkipException

            raise AirflowSkipException("marked by hand")

    return execute


@pytest.mark.parametrize("state", ["success", "skipped"])
def test_to_mark_the_step_is_no_approval(system: System, state: str) -> None:
    before = system.specs()
    with_approvers(system, "ada")
    run = upgrade(system, category="emergency", replaced={FIRST: marked(state), SECOND: marked("skipped")})
    assert system.specs() == before
    assert system.writes() == []
    assert "[approval-missing]" in run.error("record_before_state")
    assert "approved by nobody" in run.error("record_before_state")
    assert run.report["overall"] == "refused"
    assert "holderIdentity" not in system.lease()["spec"], "the lease is given back"


def test_to_mark_one_of_two_is_no_approval(system: System) -> None:
    with_approvers(system, "ada", "grace", major={"approval": "two"})
    run = upgrade(system, ("ada", "approve"), category="major", replaced={SECOND: marked("success")})
    assert system.writes() == []
    assert "approved by ada" in run.error("record_before_state")
    other = upgrade(system, category="major", replaced={FIRST: marked("success")})
    assert "the first approval is not recorded" in other.error(SECOND)


def test_an_approval_is_of_one_plan_only(system: System) -> None:
    """``plan_changes`` is cleared alone after the approval, and somebody has changed what it sees."""
    before = system.specs()
    with_approvers(system, "ada")

    def another_plan_by_now(step: Any, context: Any) -> Any:
        system.push("v3", "rag-api")
        system.outside.tags["nephoran/rag-api:v2"] = system.outside.tags["nephoran/rag-api:v3"]
        step.dag.get_task("plan_changes").execute(
            {**context, "ti": TaskInstance(context["ti"].run, step.dag.get_task("plan_changes"))}
        )
        return step.execute(context)

    run = upgrade(system, ("ada", "approve"), category="major", replaced={"acquire_lease": another_plan_by_now})
    assert system.specs() == before
    assert "[approval-missing]" in run.error("record_before_state")
    assert "was approved, and this is plan" in run.error("record_before_state")


def test_an_answer_to_the_text_of_an_earlier_plan_stops_the_run(system: System) -> None:
    before = system.specs()
    with_approvers(system, "ada")
    run = upgrade(system, ("ada", "Approve plan 000000000000"), category="major")
    untouched(system, before)
    assert "[approval-outdated]" in run.error(FIRST)
    assert run.report["overall"] == "refused"


def test_a_closed_operation_asks_nobody_again(system: System) -> None:
    with_approvers(system, "ada")
    run = upgrade(system, ("ada", "approve"), category="major")
    writes = len(system.writes())
    for step in (FIRST, "recheck_plan", "record_before_state"):
        run.states.pop(step)
        task = run.dag.get_task(step)
        run._try(task, TaskInstance(run, task))
        assert run.states[step] == "failed"
        assert "[operation-closed]" in run.error(step)
    assert len(system.persons.questions) == 1
    assert len(system.writes()) == writes


def test_a_lost_worker_asks_again_in_the_time_that_is_left(system: System) -> None:
    """A retry begins without the answers of the try before it, and with the same end."""
    with_approvers(system, "ada")
    tries: list[int] = []

    def lost_once(step: Any, context: Any) -> Any:
        tries.append(context["ti"].try_number)
        if len(tries) == 1:
            from airflow.sdk.exceptions import AirflowException

            context["ti"].xcom_push(APPROVAL_KEY, {"half": "written"})
            raise AirflowException("the worker is gone")
        return step.execute(context)

    run = upgrade(system, ("ada", "approve"), category="major", replaced={FIRST: lost_once})
    assert tries == [1, 2]
    assert run.report["overall"] == "succeeded"


@pytest.mark.parametrize("kind", ["backfill", "manual"])
def test_every_kind_of_run_passes_the_same_admission(
    system: System, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    with_approvers(system, "ada")
    plain = DagRunner.context

    def of_kind(self: DagRunner, task: Any, ti: TaskInstance) -> Any:
        self.dag_run.run_type.value = kind
        return plain(self, task, ti)

    monkeypatch.setattr(DagRunner, "context", of_kind)
    before = system.specs()
    run = upgrade(system, ("ada", "reject"), category="major")
    assert run.report["overall"] == "not-approved"
    untouched(system, before)
