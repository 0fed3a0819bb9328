"""The rolling upgrade from the first step to the report, against a cluster with controllers."""

from __future__ import annotations

import contextlib
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowFailException, DownstreamTasksSkipped, TaskDeferred

from nephoran_maintenance.operators.base import operation_of
from tests.unit.dag_runner import DagRunner
from tests.unit.fake_cluster import JOURNALS, is_write, own
from tests.unit.operators.conftest import COMPONENTS, Step, System, changes_spec

WEAVIATE, RAG, LLM = "components.weaviate", "components.rag_api", "components.llm_processor"


def patches_of(system: System, name: str) -> list[Any]:
    """Return the patches of a component's spec that were accepted."""
    done = [r for r in system.cluster.accepted if changes_spec(r)]
    return [request.json for request in done if request.path.endswith(name)]


def test_brings_all_components_to_the_new_version(system: System) -> None:
    before = system.specs()
    system.with_probe()
    run = system.upgrade()
    assert run.surprises == []
    assert run.failed() == []
    assert run.report["overall"] == "succeeded"
    assert "holderIdentity" not in system.lease()["spec"]
    assert system.fences() == {}
    for name in COMPONENTS:
        assert system.cluster.running(name) == {"v2"}
        spec = system.cluster.spec(name)
        sidecar, container = spec["template"]["spec"]["containers"]
        image = system.cluster.image(name, "v2")
        assert container.pop("image") == f"{image}@{system.cluster.digest(image)}"
        before[name]["template"]["spec"]["containers"][1].pop("image")
        assert spec == before[name], "only the image of the named container may differ"
        assert sidecar["image"].endswith("log-shipper:v7")
    journal = system.journal()
    assert (journal.state, journal.outcome) == ("closed", "succeeded")
    assert [entry.component for entry in journal.entries] == COMPONENTS
    assert run.results["rollback.decide_rollback", "return_value"] == {"decision": "keep", "components": []}
    assert {run.states[t] for t in run.states if t.startswith("rollback.rollback_")} == {"skipped"}
    assert {run.states[t] for t in run.states if t.startswith("components.oran_adaptor")} == {"skipped"}
    rows = {row["name"]: row for row in run.report["components"]}
    assert list(rows) == COMPONENTS
    assert {row["result"] for row in rows.values()} == {"changed and verified"}
    assert [(row["ready"], row["desired"]) for row in rows.values()] == [(3, 3), (2, 2), (2, 2)]
    assert [test["deleted"] for test in run.report["functional_test"]] == ["yes", "yes"]
    assert run.report["probe"]["stopped_by"] == "operation"
    page = Path(run.report["report_path"]).read_text(encoding="utf-8")
    assert run.report["operation_id"] in page
    assert run.report["plan_hash"] == journal.plan_hash


def test_one_component_after_the_other_each_intent_written_before_its_change(system: System) -> None:
    system.upgrade()
    assert system.patched() == COMPONENTS
    intended: set[str] = set()
    verified: set[str] = set()
    for request in system.writes():
        if request.path.startswith(JOURNALS) and request.method == "PUT":
            entries = [json.loads(v) for k, v in request.json["data"].items() if k.startswith("entry-")]
            intended |= {entry["component"] for entry in entries if "intended" in entry["at"]}
            verified |= {entry["component"] for entry in entries if entry["step"] == "verified"}
        elif changes_spec(request):
            name = request.path.rpartition("/")[2]
            assert name in intended, f"{name} was changed before the journal said so"
            assert set(COMPONENTS[: COMPONENTS.index(name)]) <= verified, f"{name} was changed too early"
    assert intended == verified == set(COMPONENTS)


def test_weaviate_goes_one_ordinal_at_a_time_from_the_highest(system: System) -> None:
    seen: list[tuple[str, ...]] = []
    intact: list[int] = []

    def look(_: Any) -> None:
        pods = system.cluster.pods_of("weaviate")
        tags = tuple(own(pod, "weaviate")["image"].partition("@")[0].rpartition(":")[2] for pod in pods)
        intact.append(len(tags))
        if len(tags) == 3 and (not seen or seen[-1] != tags):
            seen.append(tags)

    system.cluster.before = look
    system.upgrade(components=["weaviate"])
    assert seen == [("v1", "v1", "v1"), ("v1", "v1", "v2"), ("v1", "v2", "v2"), ("v2", "v2", "v2")]
    assert min(intact) == 2
    partitions = [
        operation["value"]["rollingUpdate"]["partition"]
        for patch in patches_of(system, "weaviate")
        for operation in patch
        if operation["path"] == "/spec/updateStrategy"
    ]
    assert partitions == [3, 2, 1, 0]


def test_the_next_weaviate_replica_waits_until_the_one_before_answers(system: System) -> None:
    questions = 0

    def answer(path: str) -> bool:
        nonlocal questions
        questions += path.startswith("/v1/objects/")
        return path.startswith("/v1/objects/") and questions < 4

    plain = system.outside.__class__.__call__

    def call(outside: Any, request: Any) -> Any:
        outside.missing_object = answer(request.path)
        return plain(outside, request)

    system.outside.__class__.__call__, original = call, plain  # type: ignore[method-assign]
    try:
        run = system.upgrade(components=["weaviate"])
    finally:
        system.outside.__class__.__call__ = original  # type: ignore[method-assign]
    assert run.failed() == []
    assert questions > 4


def test_what_is_released_after_an_interruption_is_waited_for_from_then_on(system: System) -> None:
    """Airflow was down in the middle: the next replica is not late because the change was begun an hour ago."""
    begun_at = datetime.now(UTC) - timedelta(hours=1)
    tick, resting = system.cluster.tick, 0
    waited_since: list[datetime] = []

    def slow_tick() -> None:
        nonlocal resting
        resting -= 1
        if resting < 0:
            tick()

    def rest(request: Any) -> None:
        nonlocal resting
        if changes_spec(request):
            resting = 8

    def interrupted(step: Any, context: Any) -> Any:
        step.journals().update(
            operation_of(context), lambda journal: journal.moved("weaviate", "image", "intended", begun_at)
        )
        try:
            return step.execute(context)
        except TaskDeferred as deferred:
            waited_since.append(datetime.fromisoformat(deferred.trigger.since))
            raise

    system.cluster.tick, system.cluster.before = slow_tick, rest  # type: ignore[method-assign]
    run = system.upgrade(components=["weaviate"], replaced={"components.weaviate.apply_image": interrupted})
    assert run.report["overall"] == "succeeded"
    assert system.journal().entries[0].at["intended"] == begun_at
    assert waited_since
    assert min(waited_since) > begun_at + timedelta(minutes=59)


def test_a_policy_that_differs_is_a_change_of_its_own_and_comes_first(system: System) -> None:
    system.cluster.add("rag-api", policy=False)
    run = system.upgrade(components=["rag-api"])
    assert run.report["overall"] == "succeeded"
    assert [(entry.kind, entry.step) for entry in system.journal().entries] == [
        ("policy", "verified"),
        ("image", "verified"),
    ]
    policy, image = patches_of(system, "rag-api")
    templates = [o["value"] for patch in (policy, image) for o in patch if o["path"] == "/spec/template"]
    first, second = (
        [c["image"].rpartition("/")[2].partition("@")[0] for c in t["spec"]["containers"]] for t in templates
    )
    assert first == ["log-shipper:v7", "rag-api:v1"]
    assert second == ["log-shipper:v7", "rag-api:v2"]
    assert any(o["path"] == "/spec/strategy" for o in policy)
    assert not any(o["path"] == "/spec/strategy" for o in image)
    assert "no promise of zero downtime covers that first roll" in run.report["components"][0]["policy"]
    assert "maxUnavailable: 0" in run.results["plan_changes", "plan"]["changes"][0]["diff"]


def test_policy_and_image_go_back_together(system: System) -> None:
    system.cluster.add("rag-api", policy=False)
    before = system.specs()
    system.cluster.behaviour["v2"] = "crash"
    run = system.upgrade(components=["rag-api"])
    assert run.report["overall"] == "rolled-back"
    assert system.specs() == before
    assert {entry.step for entry in system.journal().entries} == {"rolled-back"}


def test_a_plan_shows_the_difference_and_changes_nothing(system: System) -> None:
    run = system.upgrade(mode="plan")
    assert system.writes() == []
    assert run.failed() == []
    assert run.report["overall"] == "planned"
    changes = run.results["plan_changes", "plan"]["changes"]
    assert [change["component"] for change in changes] == COMPONENTS
    image = system.cluster.image("rag-api", "v2")
    added = [line for line in changes[1]["diff"].splitlines() if line.startswith("+") and "image:" in line]
    assert [line.split()[-1] for line in added] == [f"{image}@{system.cluster.digest(image)}"]
    assert run.states["record_before_state"] == run.states["stop_traffic"] == "skipped"
    assert run.states["verify_outcome"] == "success"
    assert run.report["probe"] is None


def test_says_that_there_is_nothing_to_do(system: System) -> None:
    run = system.upgrade(version="v1")
    assert system.writes() == []
    assert run.report["overall"] == "nothing-to-do"
    notes = run.results["plan_changes", "plan"]["nothing_to_do"]
    assert len(notes) == 3
    assert all(note.endswith("already runs; nothing to do") for note in notes)
    assert run.states["verify_outcome"] == "success"


def test_an_evicted_pod_of_long_ago_does_not_count(system: System) -> None:
    pod = json.loads(json.dumps(system.cluster.pods_of("rag-api")[0]))
    pod["metadata"] |= {"name": "rag-api-evicted", "labels": {"app": "rag-api", "pod-template-hash": "old"}}
    pod["status"] = {"phase": "Failed", "reason": "Evicted", "conditions": [], "containerStatuses": []}
    path = f"/api/v1/namespaces/{pod['metadata']['namespace']}/pods"
    system.cluster.pods_of = lambda name, real=system.cluster.pods_of: [  # type: ignore[method-assign]
        p for p in real(name) if p["status"]["phase"] != "Failed"
    ]
    system.cluster.put(path, pod)
    assert system.upgrade(components=["rag-api"]).report["overall"] == "succeeded"


# ----------------------------------------------------------------------------------------------------- breaking a step


def broken(*, after: bool) -> Step:
    """Return a step that fails before its effect, or after it (a step that waits: in the middle)."""

    def execute(step: Any, context: Any) -> Any:
        if after:
            with contextlib.suppress(TaskDeferred, DownstreamTasksSkipped):
                step.execute(context)
        context["ti"].xcom_push("error", "broken by the test")
        raise AirflowFailException("broken by the test")

    return execute


ALL = ["llm-processor", "rag-api", "weaviate"]
BEFORE_THE_JOURNAL = {
    "check_request",
    "preflight.decide_readiness",
    "plan_changes",
    "approve.wait_approval",
    "acquire_lease",
    "recheck_plan",
    "protect.check_request",
    "protect.capture_weaviate",
    "protect.verify_stored_files",
}
FAIL_AT = [
    # step, after its effect, what goes back and in which order, how the run ends
    ("check_request", False, [], "refused"),
    ("preflight.decide_readiness", False, [], "refused"),
    ("plan_changes", False, [], "refused"),
    ("approve.wait_approval", False, [], "refused"),
    ("acquire_lease", False, [], "refused"),
    ("acquire_lease", True, [], "refused"),
    ("recheck_plan", False, [], "refused"),
    ("recheck_plan", True, [], "refused"),
    ("protect.check_request", False, [], "refused"),
    ("protect.capture_weaviate", False, [], "refused"),
    ("protect.verify_stored_files", False, [], "refused"),
    ("record_before_state", False, [], "refused"),
    ("record_before_state", True, [], "refused"),
    (f"{WEAVIATE}.apply_image", False, [], "refused"),
    (f"{WEAVIATE}.apply_image", True, ["weaviate"], "rolled-back"),
    (f"{WEAVIATE}.wait_image", False, ["weaviate"], "rolled-back"),
    (f"{RAG}.apply_image", False, ["weaviate"], "rolled-back"),
    (f"{RAG}.apply_image", True, ["rag-api", "weaviate"], "rolled-back"),
    (f"{RAG}.wait_image", True, ["rag-api", "weaviate"], "rolled-back"),
    (f"{RAG}.verify_metrics", False, ["rag-api", "weaviate"], "rolled-back"),
    (f"{RAG}.verify_metrics", True, ["rag-api", "weaviate"], "rolled-back"),
    (f"{LLM}.wait_image", False, ALL, "rolled-back"),
    (f"{LLM}.verify_metrics", True, ALL, "rolled-back"),
    ("functional_test.apply_test_intents", True, ALL, "rolled-back"),
    ("functional_test.wait_test_intents", False, ALL, "rolled-back"),
    ("functional_test.delete_test_intents", True, ALL, "rolled-back"),
    ("verify_metrics", False, ALL, "rolled-back"),
    ("verify_components", True, ALL, "rolled-back"),
    ("rollback.decide_rollback", False, None, "failed"),
    ("measure_traffic", False, None, "failed"),
    ("hold_lease", False, None, "failed"),
    ("hold_lease", True, None, "failed"),
]


@pytest.mark.parametrize(
    ("step", "after", "undone", "overall"),
    [pytest.param(*row, id=f"{row[0]}-{'after' if row[1] else 'before'}") for row in FAIL_AT],
)
def test_whatever_breaks_everything_is_old_or_everything_is_new(
    system: System, step: str, after: bool, undone: list[str] | None, overall: str
) -> None:
    before = system.specs()
    run = system.upgrade(replaced={step: broken(after=after)})
    assert run.surprises == []
    assert run.states["verify_outcome"] == "failed", "a run with a broken step must be red"
    assert run.report["overall"] == overall
    assert {"task_id": step, "error": "broken by the test"} in run.report["failed_steps"]
    assert not [path for path in system.cluster.objects if "/networkintents/" in path], "a test intent was left"
    assert system.fences() == {}, "an object kept the mark of the operation"
    if undone is None:
        # The change itself is good: it is kept, and the journal says that nothing is left to do.
        assert {tag for name in COMPONENTS for tag in system.cluster.running(name)} == {"v2"}
        assert system.journal().outcome == "succeeded"
        return
    assert system.specs() == before, "the recorded specs must be back exactly"
    assert {tag for name in COMPONENTS for tag in system.cluster.running(name)} == {"v1"}
    assert set(system.patched()) == set(undone), "what was not begun must not be touched"
    went_back = [t.partition("rollback_")[2].replace("_", "-") for t in run.order if ".rollback_" in t]
    assert [
        name for name in went_back if run.states[f"rollback.rollback_{name.replace('-', '_')}"] == "success"
    ] == undone
    assert [row["component"] for row in run.report["rollback"]] == undone
    if step in BEFORE_THE_JOURNAL or (step, after) == ("record_before_state", False):
        assert system.writes() == []
        return
    journal = system.journal()
    assert (journal.state, journal.outcome) == ("closed", "rolled-back" if undone else "nothing-changed")


@pytest.mark.parametrize(
    ("behaviour", "cause"),
    [
        pytest.param("crash", "crash-loop", id="crash at start"),
        pytest.param("pull", "image-pull", id="image can't be pulled"),
    ],
)
def test_a_bad_image_is_named_and_everything_goes_back(system: System, behaviour: str, cause: str) -> None:
    before = system.specs()
    system.cluster.behaviour["v3"] = behaviour
    system.push("v3", "rag-api")
    run = system.upgrade(images={"rag-api": "v3"})
    assert run.surprises == []
    assert run.report["overall"] == "rolled-back"
    error = run.error(f"{RAG}.wait_image")
    assert "[rollout-failed]" in error
    assert cause in error
    assert "Next:" in error
    assert system.specs() == before
    assert set(system.patched()) == {"weaviate", "rag-api"}
    assert run.states[f"{LLM}.apply_image"] == "upstream_failed"
    assert {row["result"] for row in run.report["components"]} == {"rolled back and verified", "not changed"}


def test_a_crashing_weaviate_replica_goes_back_and_the_others_were_never_touched(system: System) -> None:
    before = system.specs()
    uids = {pod["metadata"]["name"]: pod["metadata"]["uid"] for pod in system.cluster.pods_of("weaviate")}
    system.cluster.behaviour["v2"] = "crash"
    run = system.upgrade()
    assert run.surprises == []
    assert run.report["overall"] == "rolled-back"
    assert system.specs() == before
    now = {pod["metadata"]["name"]: pod["metadata"]["uid"] for pod in system.cluster.pods_of("weaviate")}
    assert [name for name in uids if uids[name] != now[name]] == ["weaviate-2"]


@pytest.mark.parametrize("good", [True, False], ids=["new", "old"])
def test_a_stateful_set_on_delete_is_stepped_by_its_policy_and_goes_back_to_its_own_strategy(
    system: System, good: bool
) -> None:
    """Its controller would never replace a pod by itself; the policy's strategy is a change of the plan."""
    system.cluster.edit("weaviate", lambda w: w["spec"].update(updateStrategy={"type": "OnDelete"}))
    system.cluster.settle()
    before = system.specs()
    system.cluster.behaviour["v2"] = "fine" if good else "crash"
    run = system.upgrade(components=["weaviate"])
    assert run.surprises == []
    assert run.report["overall"] == ("succeeded" if good else "rolled-back")
    assert system.cluster.running("weaviate") == {"v2" if good else "v1"}
    assert system.cluster.spec("weaviate")["updateStrategy"]["type"] == ("RollingUpdate" if good else "OnDelete")
    assert [entry.kind for entry in system.journal().entries] == ["policy", "image"]
    assert (system.specs() == before) is not good


def test_a_failing_health_check_behind_a_ready_pod_goes_back(system: System) -> None:
    system.cluster.behaviour["v2"] = "unhealthy"
    run = system.upgrade(components=["rag-api"])
    assert "[health-check-failed]" in run.error(f"{RAG}.wait_image")
    assert "answers 500 to /readyz on port 8000, expected 200" in run.error(f"{RAG}.wait_image")
    assert run.report["overall"] == "rolled-back"
    assert system.cluster.running("rag-api") == {"v1"}


def test_a_failed_test_intent_takes_everything_back(system: System) -> None:
    system.cluster.intent_phase = "Failed"
    run = system.upgrade(components=["rag-api"])
    error = run.error("functional_test.wait_test_intents")
    assert "[functional-test-failed]" in error
    assert "is Failed" in error
    assert run.report["overall"] == "rolled-back"
    assert [(test["phase"], test["deleted"]) for test in run.report["functional_test"]] == [("Failed", "yes")] * 2


# ------------------------------------------------------------------------------------------------- somebody else's hand


def by_others(name: str, system: System) -> Step:
    """Return a step before which another person has changed a component."""

    def execute(step: Any, context: Any) -> Any:
        system.cluster.edit(name, lambda w: w["spec"]["template"]["metadata"].update(annotations={"by": "another"}))
        return step.execute(context)

    return execute


def test_a_component_that_others_changed_before_its_turn_is_left_alone(system: System) -> None:
    run = system.upgrade(replaced={f"{RAG}.apply_image": by_others("rag-api", system)})
    assert "[object-changed-by-others]" in run.error(f"{RAG}.apply_image")
    assert run.report["overall"] == "rolled-back"
    assert system.patched() == ["weaviate"]
    assert system.cluster.spec("rag-api")["template"]["metadata"]["annotations"] == {"by": "another"}


def test_a_component_that_others_changed_after_the_plan_stops_the_run(system: System) -> None:
    run = system.upgrade(replaced={"record_before_state": by_others("rag-api", system)})
    assert "[plan-outdated]" in run.error("record_before_state")
    assert run.report["overall"] == "refused"
    assert system.writes() == []


def test_what_others_changed_during_the_rollout_is_not_overwritten_and_a_person_is_called(system: System) -> None:
    run = system.upgrade(replaced={f"{RAG}.wait_image": by_others("rag-api", system)})
    assert "[object-changed-by-others]" in run.error(f"{RAG}.wait_image")
    assert "[object-changed-by-others]" in run.error("rollback.rollback_rag_api")
    assert run.states["rollback.rollback_weaviate"] == "success", "one that can't go back must not keep the others"
    assert run.report["overall"] == "failed"
    assert system.cluster.running("weaviate") == {"v1"}
    assert system.cluster.spec("rag-api")["template"]["metadata"]["annotations"] == {"by": "another"}
    journal = system.journal()
    assert (journal.state, journal.outcome) == ("open", None), "what is in between must stay open for a recovery"


def test_others_changes_in_the_middle_of_a_stateful_set_are_not_overwritten(system: System) -> None:
    def after_the_first_replica(request: Any) -> None:
        newest = system.cluster.pods_of("weaviate")[-1]
        if own(newest, "weaviate")["image"].partition("@")[0].endswith(":v2") and not edited:
            edited.append(1)
            system.cluster.edit(
                "weaviate", lambda w: w["spec"]["template"]["metadata"].update(annotations={"by": "another"})
            )

    edited: list[int] = []
    system.cluster.before = after_the_first_replica
    run = system.upgrade(components=["weaviate"])
    assert edited
    assert "[object-changed-by-others]" in run.error(f"{WEAVIATE}.apply_image")
    assert system.cluster.spec("weaviate")["template"]["metadata"]["annotations"] == {"by": "another"}
    assert run.report["overall"] == "failed"


@pytest.mark.parametrize("name", ["weaviate", "rag-api"])
def test_a_write_that_meets_another_one_is_decided_again(system: System, name: str) -> None:
    met: list[str] = []

    def touch(request: Any) -> None:
        if is_write(request) and request.method == "PATCH" and request.path.endswith(f"/{name}") and len(met) < 3:
            met.append(request.path)
            workload = system.cluster.workload(name)
            system.cluster.store({**workload, "status": {**workload["status"], "collisionCount": len(met)}})

    system.cluster.before = touch
    run = system.upgrade(components=[name])
    assert len(met) == 3
    assert run.report["overall"] == "succeeded"
    assert max(run.order.count(task) for task in run.order) == 1, "a conflict must not cost a retry"


# --------------------------------------------------------------------------------------------------- steps once more


@pytest.mark.parametrize(
    "step",
    [
        "record_before_state",
        f"{RAG}.apply_image",
        f"{RAG}.verify_metrics",
        "verify_metrics",
        "functional_test.apply_test_intents",
        "verify_components",
        "report_operation",
    ],
)
def test_a_step_that_runs_twice_does_no_more_than_once(system: System, step: str) -> None:
    def run_twice(task: Any, context: Any) -> Any:
        try:
            task.execute(context)
        except TaskDeferred:
            raise
        except Exception as error:  # a skip of others is how these steps end well
            if type(error).__name__ != "DownstreamTasksSkipped":
                raise
        first.extend(system.writes())
        try:
            return task.execute(context)
        finally:
            again.extend(system.writes()[len(first) :])

    first: list[Any] = []
    again: list[Any] = []
    run = system.upgrade(components=["rag-api"], replaced={step: run_twice})
    assert run.report["overall"] == "succeeded"
    assert again == []


def replay(system: System, run: DagRunner, task_id: str) -> Any:
    """Run one step of a finished run again, as clearing it in the UI does."""
    from tests.unit.dag_runner import TaskInstance

    task = run.dag.get_task(task_id)
    run.states.pop(task_id)
    run._try(task, TaskInstance(run, task))
    return run.states[task_id]


@pytest.mark.parametrize(
    "task_id",
    [
        "rollback.rollback_rag_api",
        f"{RAG}.apply_image",
        f"{RAG}.verify_metrics",
        "verify_metrics",
        "record_before_state",
    ],
)
def test_clearing_a_step_of_a_closed_operation_changes_nothing(system: System, task_id: str) -> None:
    run = system.upgrade(components=["rag-api"])
    before, writes = system.specs(), len(system.writes())
    run.states["verify_components"] = "failed"
    assert replay(system, run, task_id) == "failed"
    assert "[operation-closed]" in run.error(task_id)
    assert system.specs() == before
    assert len(system.writes()) == writes


def test_the_decision_on_a_closed_operation_is_to_keep_it(system: System) -> None:
    run = system.upgrade(components=["rag-api"])
    run.states["verify_components"] = "failed"
    replay(system, run, "rollback.decide_rollback")
    assert run.results["rollback.decide_rollback", "return_value"] == {"decision": "keep", "components": []}


def test_no_forward_step_is_made_once_the_way_back_has_begun(system: System) -> None:
    tried: list[str] = []

    def forward(step: Any, context: Any) -> Any:
        try:
            return step.execute(context)
        finally:
            # the first component on the way back is done; the operation is not closed yet
            try:
                step.dag.get_task(f"{LLM}.apply_image").execute(context)
            except AirflowFailException as error:
                tried.append(str(error))

    system.upgrade(replaced={"verify_components": broken(after=False), "rollback.rollback_llm_processor": forward})
    assert len(tried) == 1
    assert "[operation-closed]" in tried[0]
    assert system.cluster.running("llm-processor") == {"v1"}
