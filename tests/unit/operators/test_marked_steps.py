"""A step that a person has marked as success has measured nothing, and nothing stands on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nephoran_maintenance.sensors.gate import row_without_verdict
from tests.unit.operators.conftest import COMPONENTS, Step, System, nothing

RAG = "components.rag_api"
TWO = ["rag-api", "llm-processor"]
WAYS_BACK = ["rollback.rollback_rag_api", "rollback.rollback_weaviate", "rollback.rollback_llm_processor"]


def marked(*steps: str) -> dict[str, Step]:
    """Return the steps that somebody has marked as success: they leave nothing."""
    return dict.fromkeys(steps, nothing)


def with_a_policy_to_change(system: System) -> dict[str, Any]:
    """Have the plan change every step after the first gate, so that the one right behind it does not stop; return specs."""
    system.cluster.edit("llm-processor", lambda w: w["spec"].update(strategy={"type": "Recreate"}))
    system.cluster.settle()
    return system.specs()


@pytest.mark.parametrize("gates", ["measured", "off"])
@pytest.mark.parametrize(
    ("step", "missing"),
    [
        pytest.param(f"{RAG}.wait_image", "does not say that the change was verified", id="rollout"),
        pytest.param(f"{RAG}.verify_metrics", "no open verdict on rag-api", id="gate of a component"),
        pytest.param("verify_metrics", "no open verdict on rag-api, llm-processor", id="gate of the whole"),
        pytest.param("functional_test.wait_test_intents", "no result of the functional test", id="functional test"),
    ],
)
def test_everything_goes_back_and_the_report_names_the_marked_step(
    system: System, step: str, missing: str, gates: str
) -> None:
    if gates == "measured":
        system.with_gates()
    before = with_a_policy_to_change(system)
    run = system.upgrade(components=TWO, replaced=marked(step))
    assert run.surprises == []
    assert run.states[step] == "success"
    error = run.error("verify_components")
    assert "[step-without-result]" in error
    assert f"not measured: {step}: " in error
    assert missing in error
    assert system.specs() == before
    assert run.report["overall"] == "rolled-back"
    assert [row["task_id"] for row in run.report["failed_steps"]] == ["verify_components", step]
    assert "marked as success" in run.report["failed_steps"][1]["error"]
    assert run.states["verify_outcome"] == "failed"
    assert system.quarantine() == {}, "what nobody has measured is not called bad"


def test_a_marked_last_look_is_none_and_everything_goes_back(system: System) -> None:
    before = system.specs()
    run = system.upgrade(replaced=marked("verify_components"))
    assert run.surprises == []
    assert system.specs() == before
    journal = system.journal()
    assert (journal.state, journal.outcome, journal.verified_at) == ("closed", "rolled-back", None)
    assert run.report["overall"] == "rolled-back"
    assert [row["task_id"] for row in run.report["failed_steps"]] == ["verify_components"]
    assert run.failed() == ["verify_outcome"], "all else is green, and the run is red all the same"
    assert "verify_components" in run.error("verify_outcome")
    assert "marked as success" in Path(run.report["report_path"]).read_text(encoding="utf-8")


def test_marking_the_way_back_too_leaves_the_operation_open_for_a_recovery(system: System) -> None:
    run = system.upgrade(replaced=marked("verify_metrics", "verify_components", "rollback.decide_rollback", *WAYS_BACK))
    assert {tag for name in COMPONENTS for tag in system.cluster.running(name)} == {"v2"}
    assert run.report["overall"] == "failed"
    assert "nobody has seen everything together to be good" in run.report["summary"]
    assert (system.journal().state, system.journal().outcome) == ("open", None)
    assert run.states["verify_outcome"] == "failed"


def test_a_marked_report_makes_the_run_red(system: System) -> None:
    run = system.upgrade(components=["rag-api"], replaced=marked("report_operation", "release_lease", "hold_lease"))
    assert run.failed() == ["verify_outcome"]
    assert "among them report_operation" in run.error("verify_outcome")
    assert system.journal().state == "open"


def test_a_gate_that_the_procedure_was_read_without_is_not_taken_for_passed(system: System) -> None:
    system.edit_profile(lambda data: data["components"][0].update(gate=["error_ratio"]))
    run = system.upgrade(components=["weaviate"])
    assert "components.weaviate.verify_metrics: there is no open verdict on weaviate" in run.error("verify_components")
    assert run.report["overall"] == "rolled-back"
    assert [row["task_id"] for row in run.report["failed_steps"]] == ["verify_components"], "nobody has marked it"


def test_a_verdict_that_is_not_open_is_no_proof(system: System) -> None:
    def closed(step: Any, context: Any) -> Any:
        return [row_without_verdict("rag-api", "closed", "a fifth fails")]

    with_a_policy_to_change(system)
    run = system.upgrade(components=TWO, replaced={f"{RAG}.verify_metrics": closed})
    assert "no open verdict on rag-api" in run.error("verify_components")
    assert run.report["overall"] == "rolled-back"


@pytest.mark.parametrize("phase", ["Failed", "Processing"])
def test_a_phase_that_is_no_success_is_no_proof(system: System, phase: str) -> None:
    def ended(step: Any, context: Any) -> Any:
        return [{"object": "networkintents.x/y", "phase": phase, "seconds": 1.0}]

    run = system.upgrade(components=["rag-api"], replaced={"functional_test.wait_test_intents": ended})
    assert "no result of the functional test" in run.error("verify_components")
    assert run.report["overall"] == "rolled-back"
