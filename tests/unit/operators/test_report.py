"""The report's step: it is written on every path, tells only what was recorded, and closes the journal honestly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowFailException, DownstreamTasksSkipped

from nephoran_maintenance.domain.journal import Journal, JournalEntry, Workload, outcome_of
from tests.unit.domain.kubernetes_objects import at
from tests.unit.operators.conftest import Step, System
from tests.unit.operators.test_gate import bad_release


def journal(*steps: Any) -> Journal:
    workload = Workload(kind="Deployment", namespace="ns", name="x")
    entries = [
        JournalEntry(component=f"c{n}", kind="image", workload=workload, before={}, intended={}, step=step)
        for n, step in enumerate(steps)
    ]
    return Journal(
        operation_id="o", procedure="p", run_id="r", system="s", plan_hash="h", started_at=at(0), entries=tuple(entries)
    )


@pytest.mark.parametrize(
    ("steps", "verified", "outcome"),
    [
        (["verified", "verified"], True, "succeeded"),
        (["verified", "verified"], False, None),
        (["planned", "planned"], False, "nothing-changed"),
        (["rolled-back", "planned"], False, "rolled-back"),
        (["rolled-back", "verified"], False, None),
        (["rolling-back", "rolled-back"], False, None),
        (["verified", "intended"], True, None),
        (["applied"], False, None),
    ],
)
def test_only_a_journal_with_nothing_left_to_do_is_closed(
    steps: list[str], verified: bool, outcome: str | None
) -> None:
    assert outcome_of(journal(*steps), verified) == outcome


def test_the_report_is_kept_as_page_and_as_data(system: System) -> None:
    run = system.upgrade(components=["rag-api"], reason="<b>ticket 42</b>")
    page = Path(run.report["report_path"])
    data = json.loads(page.with_name("report.json").read_text(encoding="utf-8"))
    assert data["params"]["reason"] == "<b>ticket 42</b>"
    assert data["plan"]["changes"]
    assert data["triggered_by"] == "operator"
    assert "<b>ticket" not in page.read_text(encoding="utf-8"), "what people write is escaped"
    assert run.report["plan"] is None, "the result of the step stays small"


def test_what_was_not_measured_says_so(system: System) -> None:
    def broken(step: Any, context: Any) -> Any:
        raise AirflowFailException("broken by the test")

    system.with_probe()
    run = system.upgrade(
        components=["rag-api"],
        replaced={"measure_traffic": broken, "components.rag_api.wait_image": broken},
    )
    row = run.report["components"][0]
    assert row["seconds"] == "not measured"
    assert row["health"] == "2 of 2 pods answer 200 to /readyz", "that is the way back's"
    assert run.report["probe"]["sent"] == "not measured"
    assert run.report["functional_test"] == []
    assert [(row["after"], row["component"], row["state"]) for row in run.report["gates"]] == [
        ("rag-api", "rag-api", "not measured"),
        ("the whole", "rag-api", "not measured"),
        ("the whole", "llm-processor", "not measured"),
    ]
    assert {"task_id": "measure_traffic", "error": "see the log of the step"} in run.report["failed_steps"]


def said_to_be(health: str) -> Step:
    """Return a step that goes well and has measured something that can be recognised."""

    def execute(step: Any, context: Any) -> Any:
        try:
            result = step.execute(context)
        except DownstreamTasksSkipped:
            found = context["ti"].xcom_pull(task_ids=step.task_id)
            context["ti"].xcom_push(key="return_value", value={**found, "health": health, "ready": 1})
            raise
        return {**result, "health": health, "ready": 1}

    return execute


@pytest.mark.parametrize("may_fail", [False, True], ids=["everything goes back", "it goes back alone"])
def test_what_went_back_shows_the_health_of_the_version_that_it_has_now(system: System, may_fail: bool) -> None:
    if may_fail:
        system.allow_to_fail("rag-api", llm_processor=["weaviate"])
    system.with_gates()
    bad_release(system, "rag-api")
    names = ("weaviate", "rag_api")
    run = system.upgrade(replaced={f"components.{name}.wait_image": said_to_be("of the new version") for name in names})
    assert run.report["overall"] == ("partly-succeeded" if may_fail else "rolled-back")
    rows = {row["name"]: row for row in run.report["components"]}
    assert (rows["rag-api"]["ready"], rows["rag-api"]["health"]) == (2, "2 of 2 pods answer 200 to /readyz")
    assert rows["weaviate"]["ready"] == 3


def test_a_way_back_that_did_not_end_shows_no_health_of_the_new_version(system: System) -> None:
    system.with_gates()
    bad_release(system, "rag-api")

    def begun(step: Any, context: Any) -> Any:
        step.go_back = lambda *arguments: (_ for _ in ()).throw(AirflowFailException("broken by the test"))
        try:
            return step.execute(context)
        finally:
            del step.go_back

    run = system.upgrade(components=["rag-api"], replaced={"rollback.rollback_rag_api": begun})
    assert run.report["overall"] == "failed"
    row = run.report["components"][0]
    assert (row["result"], row["ready"], row["health"]) == ("between: rolling-back", "not measured", "not measured")


def test_a_profile_without_a_probe_measures_nothing_and_does_not_promise_it(system: System) -> None:
    run = system.upgrade(components=["rag-api"])
    assert run.states["measure_traffic"] == "skipped"
    assert run.report["overall"] == "succeeded"
    assert run.report["probe"] is None


def test_a_decision_that_failed_after_a_failed_test_leaves_no_operation_called_good(system: System) -> None:
    """Everything is verified one by one, the test fails, and the way back can't be begun."""

    def broken(step: Any, context: Any) -> Any:
        raise AirflowFailException("broken by the test")

    ways_back = [task_id for task_id in system.dags["rolling_upgrade"].task_ids if task_id.startswith("rollback.")]
    system.cluster.intent_phase = "Failed"
    run = system.upgrade(components=["rag-api"], replaced=dict.fromkeys(ways_back, broken))
    assert run.report["overall"] == "failed"
    assert system.journal().state == "open"


def test_a_bucket_that_can_not_be_written_makes_the_run_red_after_the_local_copy(
    system: System, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    system.edit_profile(lambda data: data["reports"].update(bucket="reports"))
    monkeypatch.delenv("AIRFLOW_CONN_OBJECT_STORE_REPORTS", raising=False)
    run = system.upgrade(components=["rag-api"], mode="plan")
    assert run.states["report_operation"] == "failed"
    assert "object_store_reports" in run.error("report_operation")
    assert list((tmp_path / "reports").rglob("report.html"))
