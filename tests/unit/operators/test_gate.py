"""The metric gates in a whole run: what is not good, or was not measured, does not stand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nephoran_maintenance.domain.gate import replay
from nephoran_maintenance.hooks import object_store
from tests.unit.dag_runner import TaskInstance
from tests.unit.fake_cluster import own, tag_of
from tests.unit.fake_prometheus import nothing
from tests.unit.hooks.fake_servers import Reply
from tests.unit.operators.conftest import COMPONENTS, System
from tests.unit.operators.test_approval import with_approvers

RAG, LLM = "components.rag_api.verify_metrics", "components.llm_processor.verify_metrics"
WHOLE = "verify_metrics"


def bad_release(system: System, name: str, tag: str = "v2") -> None:
    """Have the pods of a component that run an image fail every fifth request."""

    def ratio(pod_name: str) -> float:
        running = {pod["metadata"]["name"]: tag_of(own(pod, name)["image"]) for pod in system.cluster.pods_of(name)}
        return 0.2 if running.get(pod_name) == tag else 0.0

    system.outside.prometheus.ratio = ratio


def states(report: dict[str, Any]) -> list[tuple[str, str, str]]:
    return [(row["after"], row["component"], row["state"]) for row in report["gates"]]


def page_of(report: dict[str, Any]) -> str:
    return Path(report["report_path"]).read_text(encoding="utf-8")


def test_open_gates_let_the_change_stand_and_their_figures_are_reported(system: System) -> None:
    system.with_gates()
    system.outside.prometheus.ratio = 0.002
    run = system.upgrade()
    assert run.surprises == []
    assert run.report["overall"] == "succeeded", run.report["failed_steps"]
    assert states(run.report) == [
        ("rag-api", "rag-api", "open"),
        ("llm-processor", "llm-processor", "open"),
        ("the whole", "rag-api", "open"),
        ("the whole", "llm-processor", "open"),
    ]
    row = run.report["gates"][0]
    assert row["figures"]["error_ratio"] == 0.002
    assert row["figures"]["error_ratio_baseline"] == 0.0
    assert row["samples"] == "gate-samples-rag-api.jsonl"
    page = page_of(run.report)
    assert "Metric gates" in page
    assert "0.20 %" in page
    assert 'href="gate-samples-rag-api.jsonl"' in page


def test_each_gate_keeps_samples_that_give_its_verdict_again(system: System) -> None:
    system.with_gates()
    run = system.upgrade()
    folder = Path(run.report["report_path"]).parent
    for row in run.report["gates"]:
        result = replay((folder / row["samples"]).read_text(encoding="utf-8"))[row["component"]]
        assert result is not None
        assert {**result.to_dict(), "after": row["after"], "samples": row["samples"]} == row


def test_the_baseline_is_that_of_the_time_before_the_first_change(system: System) -> None:
    system.with_gates()
    system.outside.prometheus.ratio_before = 0.01
    run = system.upgrade()
    first = min(entry.at["intended"] for entry in system.journal().entries)
    asked = [at for text, at in system.outside.prometheus.asked if "[900s]" in text]
    assert asked
    assert asked == pytest.approx([first.timestamp()] * len(asked), abs=0.05)
    assert {row["figures"]["error_ratio_baseline"] for row in run.report["gates"]} == {0.01}
    assert {row["figures"]["error_ratio_limit"] for row in run.report["gates"]} == {0.02}


def test_a_release_with_errors_goes_back(system: System) -> None:
    before = system.specs()
    system.with_gates()
    bad_release(system, "llm-processor")
    run = system.upgrade()
    assert run.surprises == []
    error = run.error(LLM)
    assert "[gate-closed]" in error
    assert "llm-processor: 20.0% of the requests failed, limit 1.0%" in error
    assert "Next: The rollback follows by itself." in error
    assert run.order.count(LLM) == 1, "a verdict is not asked for again"
    assert run.report["overall"] == "rolled-back"
    assert system.specs() == before
    assert states(run.report) == [
        ("rag-api", "rag-api", "open"),
        ("llm-processor", "llm-processor", "closed"),
        ("the whole", "rag-api", "not measured"),
        ("the whole", "llm-processor", "not measured"),
    ]
    assert "not measured" in page_of(run.report)


def test_a_release_that_is_bad_for_another_component_goes_back_after_the_whole(system: System) -> None:
    before = system.specs()
    system.with_gates()
    bad_release(system, "llm-processor", tag="v1")
    run = system.upgrade(components=["rag-api"])
    assert "[gate-closed]" in run.error(WHOLE)
    assert run.states["functional_test.wait_test_intents"] == "success"
    assert run.states["verify_components"] == "upstream_failed"
    assert run.report["overall"] == "rolled-back"
    assert system.specs() == before


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        pytest.param({"pods": nothing}, "no-series", id="json metrics"),
        pytest.param({"rate": 0.1}, "no-traffic", id="no traffic"),
        pytest.param({"age": 100.0}, "stale", id="stale"),
    ],
)
def test_metrics_that_can_not_be_judged_take_the_change_back(
    system: System, change: dict[str, Any], reason: str
) -> None:
    before = system.specs()
    system.with_gates()
    for name, value in change.items():
        setattr(system.outside.prometheus, name, value)
    run = system.upgrade(components=["rag-api"])
    assert "[gate-unknown]" in run.error(RAG)
    assert f"reason={reason}" in run.error(RAG)
    assert "Next: Look at" in run.error(RAG)
    assert run.report["overall"] == "rolled-back"
    assert run.report["gates"][0]["state"] == "unknown"
    assert system.specs() == before


def asking(system: System, *answers: tuple[str | None, str]) -> dict[str, Any]:
    """Make metrics that can't be judged a question, with these answers to it, and return the specs of before."""
    with_approvers(system, "ada", "grace", minor={"unknown_metrics": "ask"})
    system.with_gates()
    system.outside.prometheus.pods = nothing
    system.persons.answers += answers
    return system.specs()


def test_a_person_lets_metrics_that_can_not_be_judged_stand(system: System) -> None:
    asking(system, ("operator", "approve"), ("ada", "approve"), ("grace", "approve"))
    run = system.upgrade(components=["rag-api"])
    assert run.surprises == []
    assert system.persons.answers == []
    assert run.report["overall"] == "succeeded", run.report["failed_steps"]
    rows = run.report["gates"]
    assert {row["state"] for row in rows} == {"let stand"}
    assert "ada let it stand at" in rows[0]["message"]
    assert "ada let it stand at" in page_of(run.report)
    first, again, whole = system.persons.questions
    assert (first.step, again.step, whole.step) == (RAG, RAG, WHOLE)
    assert "The metrics of rag-api can't be judged" in first.subject
    assert "counts from ada or grace" in first.body
    assert "within 30 min everything that was changed goes back" in first.body


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        pytest.param(("grace", "reject"), "grace took it back at", id="an approver"),
        pytest.param(("operator", "reject"), "operator took it back at", id="who asked for it"),
        pytest.param((None, "nobody"), "nobody let the change stand until", id="nobody in time"),
    ],
)
def test_without_a_person_who_lets_them_stand_they_take_the_change_back(
    system: System, answer: tuple[str | None, str], words: str
) -> None:
    before = asking(system, answer)
    run = system.upgrade(components=["rag-api"])
    assert run.surprises == []
    assert "[gate-unknown]" in run.error(RAG)
    assert words in run.error(RAG)
    assert run.report["overall"] == "rolled-back"
    assert run.report["gates"][0]["state"] == "unknown"
    assert system.specs() == before


def test_an_answer_that_is_none_does_not_count(system: System) -> None:
    asking(system, ("ada", "Why not"), ("ada", "reject"))
    run = system.upgrade(components=["rag-api"])
    assert [question.step for question in system.persons.questions] == [RAG, RAG]
    assert run.report["overall"] == "rolled-back"


def test_a_gate_that_is_closed_is_no_question(system: System) -> None:
    with_approvers(system, "ada", minor={"unknown_metrics": "ask"})
    system.with_gates()
    bad_release(system, "rag-api")
    run = system.upgrade(components=["rag-api"])
    assert system.persons.questions == []
    assert "[gate-closed]" in run.error(RAG)


def test_a_question_that_nobody_could_answer_is_refused_before_anything_is_changed(system: System) -> None:
    with_approvers(system, minor={"unknown_metrics": "ask"})
    system.with_gates()
    run = system.upgrade(components=["rag-api"])
    assert "[approvers-missing]" in run.error("check_request")
    assert "set the category's `unknown_metrics` to roll-back" in run.error("check_request")
    assert system.writes() == []


def test_a_prometheus_that_is_away_is_waited_for_and_then_unknown(system: System) -> None:
    system.with_gates()
    system.outside.down.add("api")
    run = system.upgrade(components=["rag-api"])
    assert run.order.count(RAG) == 4
    assert "[gate-unknown]" in run.error(RAG)
    assert "answered 503" in run.error(RAG)
    assert run.report["gates"][0]["reason"] == "no-answer"
    assert run.report["overall"] == "rolled-back"


def test_a_connection_that_is_missing_is_named(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    system.with_gates()
    monkeypatch.delenv("AIRFLOW_CONN_PROMETHEUS_DEFAULT")
    run = system.upgrade(components=["rag-api"])
    assert "[connection-missing]" in run.error(RAG)
    assert run.report["overall"] == "rolled-back"
    assert run.report["gates"][0]["state"] == "not measured"


def test_a_query_that_prometheus_refuses_is_unknown(system: System) -> None:
    system.with_gates()
    system.outside.prometheus.before = lambda request: (
        None if "[900s]" in request.query["query"] else Reply(400, {"status": "error", "error": "parse error"})
    )
    run = system.upgrade(components=["rag-api"])
    assert "[gate-unknown]" in run.error(RAG)
    assert "parse error" in run.error(RAG)
    assert run.report["gates"][0]["state"] == "unknown"
    assert run.report["overall"] == "rolled-back"


@pytest.mark.parametrize("share", [0.0, 0.9])
def test_a_release_that_calls_the_status_otherwise_has_no_errors_that_count(system: System, share: float) -> None:
    before = system.specs()
    system.with_gates()
    system.outside.prometheus.ratio = 1.0

    def readable(pod_name: str) -> float:
        running = {
            pod["metadata"]["name"]: tag_of(own(pod, "rag-api")["image"]) for pod in system.cluster.pods_of("rag-api")
        }
        return share if running.get(pod_name) == "v2" else 1.0

    system.outside.prometheus.readable = readable
    run = system.upgrade(components=["rag-api"])
    assert "[gate-unknown]" in run.error(RAG)
    assert "have no status that could be read" in run.error(RAG)
    assert run.report["gates"][0]["reason"] == "status-unreadable"
    assert system.specs() == before


def test_samples_are_kept_where_reports_are_kept(
    system: System, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    system.with_gates()
    system.edit_profile(lambda data: data["reports"].update(bucket="reports"))
    store = object_store.ObjectStoreHook(local_folder=tmp_path / "bucket")
    monkeypatch.setattr(object_store, "ObjectStoreHook", lambda *args, **kwargs: store)
    run = system.upgrade(components=["rag-api"])
    folder = tmp_path / "bucket" / "reports" / "rolling_upgrade" / run.report["operation_id"]
    assert {path.name for path in folder.iterdir()} == {
        "report.html",
        "report.json",
        "gate-samples.jsonl",
        "gate-samples-rag-api.jsonl",
    }


def test_gates_that_are_off_are_not_called_open(system: System) -> None:
    run = system.upgrade(components=["rag-api"])
    assert run.report["overall"] == "succeeded"
    assert {row["state"] for row in run.report["gates"]} == {"off"}
    assert "gate.duration_seconds is 0, so no metrics were judged" in page_of(run.report)
    assert system.outside.prometheus.asked == []


def test_a_gate_without_queries_is_refused_before_anything_is_changed(system: System) -> None:
    system.with_gates()
    system.edit_profile(lambda data: data["components"][0].update(gate=["error_ratio"]))
    run = system.upgrade()
    assert "[gate-queries-missing]" in run.error("check_request")
    assert system.writes() == []
    assert run.report["overall"] == "refused"
    assert run.report["gates"] == []


def test_gates_of_components_that_are_not_changed_are_skipped_in_their_turn(system: System) -> None:
    run = system.upgrade(components=["rag-api"])
    assert run.states[RAG] == "success"
    assert run.states[LLM] == "skipped"
    order = [task_id for task_id in run.order if run.states[task_id] == "success"]
    places = [
        order.index(step) for step in ("components.rag_api.wait_image", RAG, "functional_test.apply_test_intents")
    ]
    assert places == sorted(places)
    assert order.index("functional_test.delete_test_intents") < order.index(WHOLE) < order.index("verify_components")


def test_the_next_component_waits_for_the_gate_before_it(system: System) -> None:
    seen: list[set[str]] = []

    def look(step: Any, context: Any) -> Any:
        seen.append(system.cluster.running("llm-processor"))
        return step.execute(context)

    system.upgrade(replaced={RAG: look})
    assert seen == [{"v1"}]


def test_a_lost_deferral_goes_on_with_the_samples_that_are_kept(system: System) -> None:
    system.with_gates()
    run = system.upgrade(components=["rag-api"])
    asked = len(system.outside.prometheus.asked)
    journal = system.journal()
    path = next(path for path in system.cluster.objects if path.endswith(journal.operation_id))
    stored = system.cluster.objects[path]
    head = json.loads(stored["data"]["journal.json"]) | {"state": "open", "outcome": None, "closed_at": None}
    stored["data"]["journal.json"] = json.dumps(head)
    task = run.dag.get_task(WHOLE)
    run._try(task, TaskInstance(run, task))
    assert run.states[WHOLE] == "success"
    assert len(system.outside.prometheus.asked) == asked


def test_a_restart_during_the_gate_is_a_finding(system: System) -> None:
    system.with_gates()
    restarted: list[str] = []

    def restart(step: Any, context: Any) -> Any:
        restarted.append(system.cluster.pods_of("rag-api")[0]["metadata"]["name"])
        system.outside.prometheus.resets = {restarted[0]: 1}
        return step.execute(context)

    run = system.upgrade(components=["rag-api"], replaced={RAG: restart})
    found = [finding for finding in run.report["findings"] if finding["check"] == "metrics"]
    assert {finding["object"] for finding in found} == {f"pod {restarted[0]}"}
    assert COMPONENTS[1] in restarted[0]
