"""With the lease in hand everything is looked at again: what was planned and approved is what is done, or nothing is."""

from __future__ import annotations

from typing import Any

import pytest

from nephoran_maintenance.domain.findings import Finding
from nephoran_maintenance.operators import recheck
from nephoran_maintenance.operators.checks import CHECKS
from tests.unit.dag_runner import DagRunner, TaskInstance
from tests.unit.fake_cluster import APPS
from tests.unit.hooks.fake_servers import status_object
from tests.unit.operators.conftest import Step, System
from tests.unit.operators.test_preflight import add_intents
from tests.unit.operators.test_refusals import refused_at

OTHER = "0" * 64
RECHECKS = "nephoran_maintenance.operators.recheck.RECHECKS"
ALL = dict(recheck.RECHECKS)
"""As they are: the fixture replaces them."""


def after(step: str, change: Any) -> dict[str, Step]:
    """Return what lets something happen right after a step has done its work."""

    def execute(task: Any, context: Any) -> Any:
        try:
            return task.execute(context)
        finally:
            change()

    return {step: execute}


def refused(system: System, run: DagRunner, before: Any, step: str = "recheck_plan") -> str:
    """Return the error of the step that stopped; nothing was changed and the lease is free again."""
    assert run.surprises == []
    assert system.specs() == before
    assert system.writes() == []
    assert run.failed() == [step, "verify_outcome"]
    assert run.report["overall"] == "refused"
    assert run.states["release_lease"] == "success"
    assert "holderIdentity" not in system.lease()["spec"]
    assert run.report["failed_steps"] == [{"task_id": step, "error": run.error(step)}]
    return run.error(step)


def test_an_image_that_was_pushed_again_under_its_tag_stops_the_run(system: System) -> None:
    before = system.specs()
    other = "sha256:" + "9" * 64
    pushed = after("acquire_lease", lambda: system.outside.tags.update({"nephoran/rag-api:v2": other}))
    run = system.upgrade(components=["rag-api"], replaced=pushed)
    error = refused(system, run, before)
    assert "[plan-outdated]" in error
    assert (
        f"the digest of the new image was {system.cluster.digest(system.cluster.image('rag-api', 'v2'))}, is {other}"
        in error
    )


def test_an_object_that_somebody_has_changed_stops_the_run_with_the_difference(system: System) -> None:
    def edit() -> None:
        spec = system.cluster.objects[f"{APPS}/deployments/rag-api"]["spec"]
        spec["template"]["spec"]["terminationGracePeriodSeconds"] = 61

    run = system.upgrade(components=["rag-api"], replaced=after("acquire_lease", edit))
    error = refused(system, run, system.specs())
    assert "terminationGracePeriodSeconds: 61" in error
    assert "[plan-outdated]" in error


def test_one_that_is_there_already_is_not_needed_any_more(system: System) -> None:
    """Another tool has brought the version while this run waited for its approval."""

    def upgraded() -> None:
        template = system.cluster.objects[f"{APPS}/deployments/rag-api"]["spec"]["template"]
        image = system.cluster.image("rag-api", "v2")
        template["spec"]["containers"][1]["image"] = f"{image}@{system.cluster.digest(image)}"

    run = system.upgrade(components=["rag-api", "llm-processor"], replaced=after("acquire_lease", upgraded))
    error = refused(system, run, system.specs())
    assert "[plan-outdated]" in error
    assert "not needed any more: rag-api: image rag-api:v1 → rag-api:v2@sha256:" in error


def test_a_finding_that_blocks_by_now_stops_the_run(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = Finding("pods", "block", "Pod/x", "crash loop", "running", "Look at its log.")
    monkeypatch.setattr(RECHECKS, {"rollouts": CHECKS["rollouts"], "pods": lambda step, context: [blocks]})
    before = system.specs()
    error = refused(system, system.upgrade(components=["rag-api"]), before)
    assert "[preflight-blocked]" in error
    assert "pods of Pod/x: observed crash loop, expected running" in error
    assert "Next: Look at its log." in error


def test_a_warning_that_is_new_by_now_stands_in_the_report(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    new = Finding("pods", "warn", "Pod/x", "restarted", "no restart", "Read its log.")
    monkeypatch.setattr(RECHECKS, {"pods": lambda step, context: [new]})
    run = system.upgrade(components=["rag-api"])
    assert run.report["overall"] == "succeeded"
    assert [found["observed"] for found in run.report["findings"]].count("restarted") == 1


def test_what_can_not_be_measured_again_stops_the_run_too(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RECHECKS, {"capacity": CHECKS["capacity"]})
    before = system.specs()

    def no_nodes(request: Any) -> Any:
        return status_object(403, "Forbidden", "no nodes for you") if request.path == "/api/v1/nodes" else None

    system.cluster.fail = no_nodes
    error = refused(system, system.upgrade(components=["rag-api"]), before)
    assert "observed not measured: " in error


def test_everything_but_the_dependencies_is_checked_again(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []

    def remembered(subject: str, check: Any) -> Any:
        def run(step: Any, context: Any) -> Any:
            made.append(subject)
            return check(step, context)

        return run

    monkeypatch.setattr(RECHECKS, {subject: remembered(subject, check) for subject, check in ALL.items()})
    run = system.upgrade(components=["rag-api"])
    assert run.report["overall"] == "succeeded", run.error("recheck_plan")
    preflight = {t.rpartition("check_")[2] for t in run.dag.task_ids if t.startswith("preflight.check_")}
    assert set(made) == preflight - {"dependencies"}


def test_intents_that_came_while_a_person_was_waited_for_stop_the_run(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RECHECKS, {"intents": ALL["intents"]})
    arrived = after("acquire_lease", lambda: add_intents(system, 10, "Processing"))
    run = system.upgrade(components=["rag-api"], replaced=arrived)
    error = refused(system, run, system.specs())
    assert "[preflight-blocked]" in error
    assert "observed 10 " in error


def test_a_recheck_that_was_passed_over_lets_nothing_begin(system: System) -> None:
    before = system.specs()
    run = system.upgrade(components=["rag-api"], replaced={"recheck_plan": lambda task, context: None})
    error = refused(system, run, before, "record_before_state")
    assert "[plan-outdated]" in error
    assert "was not computed again with the lease in hand, but none" in error


def test_an_operation_that_has_begun_is_not_compared_with_what_it_has_changed(system: System) -> None:
    """The lease's step is cleared with what follows it, in the middle of a change: the run goes on from its journal."""

    def cleared(step: Any, context: Any) -> Any:
        run = context["ti"].run
        for name in ("acquire_lease", "recheck_plan", "record_before_state"):
            task = step.dag.get_task(name)
            run._try(task, TaskInstance(run, task))
            assert run.states[name] == "success", run.error(name)
        return step.execute(context)

    run = system.upgrade(
        components=["rag-api", "llm-processor"], replaced={"components.llm_processor.apply_image": cleared}
    )
    assert run.surprises == []
    assert run.failed() == []
    assert run.report["overall"] == "succeeded"


# -------------------------------------------------------------------------------------------------- the hash as parameter


def test_the_hash_of_a_plan_lets_exactly_that_plan_be_applied(system: System) -> None:
    planned = system.upgrade(components=["rag-api"], mode="plan").report["plan_hash"]
    run = system.upgrade(components=["rag-api"], plan_hash=planned, run_id="by-hash")
    assert run.report["overall"] == "succeeded"
    assert system.journal().plan_hash == planned


@pytest.mark.parametrize("mode", ["apply", "plan"])
def test_another_plan_than_the_one_that_was_meant_is_refused_before_anybody_is_asked(system: System, mode: str) -> None:
    system.edit_profile(lambda data: data.update(approvers=["ada"]))
    run = system.upgrade(components=["rag-api"], mode=mode, category="major", plan_hash=OTHER)
    error = refused_at(run, system, "plan_changes")
    assert "[plan-hash-differs]" in error
    for part in (OTHER, run.report["plan_hash"], "rag-api: image rag-api:v1", "→ rag-api:v2@sha256:"):
        assert part in error
    assert system.persons.questions == []
    assert run.states["acquire_lease"] == "upstream_failed"


def test_a_hash_is_refused_when_there_is_nothing_to_do(system: System) -> None:
    run = system.upgrade(components=["rag-api"], version="v1", plan_hash=OTHER)
    assert "already runs; nothing to do" in refused_at(run, system, "plan_changes")


@pytest.mark.parametrize("text", ["abc", "g" * 64, "A" * 64, "0" * 65])
def test_what_is_no_hash_is_refused_first_of_all(system: System, text: str) -> None:
    error = refused_at(system.upgrade(components=["rag-api"], plan_hash=text), system, "check_request")
    assert "[parameters-invalid] " in error
    assert "plan_hash" in error
