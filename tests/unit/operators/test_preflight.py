"""The preflight procedure: every check runs, one table, and what could not be measured blocks."""

from __future__ import annotations

from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowFailException

from nephoran_maintenance.operators.checks import CHECKS
from nephoran_maintenance.operators.readiness import DecideReadinessOperator
from nephoran_maintenance.profile import load_profile
from tests.unit.fake_cluster import INTENT_GROUPS, SYSTEM
from tests.unit.hooks.fake_servers import Reply, status_object
from tests.unit.operators.conftest import System

GOOD = {"check": "pods", "severity": "pass", "object": "Pod/a", "observed": "Ready", "expected": "Ready", "hint": ""}
BAD = {**GOOD, "severity": "block", "object": "Pod/b", "observed": "Pending", "hint": "Mend it."}


def findings(run: Any, check: str) -> list[dict[str, Any]]:
    return [finding for finding in run.report["findings"] if finding["check"] == check]


def add_intents(system: System, count: int, phase: str) -> None:
    for number in range(count):
        group = INTENT_GROUPS[number % 2]
        path = f"/apis/{group}/v1/namespaces/{SYSTEM}/networkintents"
        system.cluster.put(path, {"metadata": {"name": f"intent-{number}"}, "status": {"phase": phase}})


def test_a_good_system_is_ready_and_nothing_was_written(system: System) -> None:
    run = system.preflight(version="v2")
    assert run.surprises == []
    assert run.failed() == []
    assert run.report["overall"] == "ready"
    decision = run.results["preflight.decide_readiness", "return_value"]
    assert decision["approval"]["ready_for_upgrade"] is True
    assert {finding["severity"] for finding in decision["findings"]} == {"pass", "warn"}
    assert {finding["object"] for finding in findings(run, "image")} or findings(run, "images")
    seen = {task for task in run.order if task.startswith("preflight.check_")}
    assert seen == {f"preflight.check_{subject}" for subject in [*CHECKS, "dependencies", "intents"]}
    assert system.writes() == []


def test_without_a_version_only_the_system_is_checked(system: System) -> None:
    system.outside.down.add("v2")
    run = system.preflight()
    assert run.report["overall"] == "ready"


def test_all_findings_are_shown_and_any_block_makes_the_run_red(system: System) -> None:
    system.cluster.behaviour["v0"] = "crash"
    image = system.cluster.image("rag-api", "v0")
    system.cluster.edit("rag-api", lambda w: w["spec"]["template"]["spec"]["containers"][1].update(image=image))
    system.cluster.settle()
    system.outside.llm_status = 500
    run = system.preflight()
    assert run.surprises == []
    assert run.report["overall"] == "not-ready"
    assert run.states["verify_outcome"] == "failed"
    blocking = {finding["check"] for finding in run.report["findings"] if finding["severity"] == "block"}
    assert {"pods", "rollouts", "dependencies"} <= blocking
    assert run.report["findings"][0]["severity"] == "block", "worst first"
    assert "[preflight-blocked]" in run.error("preflight.decide_readiness")


@pytest.mark.parametrize(
    ("subject", "path"),
    [
        ("pods", f"/api/v1/namespaces/{SYSTEM}/pods"),
        ("capacity", "/api/v1/nodes"),
        ("disruption", f"/apis/policy/v1/namespaces/{SYSTEM}/poddisruptionbudgets"),
    ],
)
def test_what_can_not_be_measured_blocks_after_its_retries_and_the_rest_is_still_shown(
    system: System, subject: str, path: str
) -> None:
    system.cluster.fail = lambda r: status_object(503, "ServiceUnavailable", "away") if r.path == path else None
    run = system.preflight()
    assert run.surprises == []
    assert run.order.count(f"preflight.check_{subject}") == 3
    assert run.states[f"preflight.check_{subject}"] == "success"
    found = findings(run, subject)
    assert [finding["severity"] for finding in found] == ["block"]
    assert found[0]["observed"].startswith("not measured: ")
    assert found[0]["hint"]
    assert findings(run, "rollouts")
    assert run.report["overall"] == "not-ready"


def test_a_weaviate_without_a_pod_is_not_reachable(system: System) -> None:
    system.cluster.edit("weaviate", lambda workload: workload["spec"].update(replicas=0))
    for pod in system.cluster.pods_of("weaviate"):
        system.cluster._stop(pod)
    run = system.preflight()
    blocking = [f for f in findings(run, "dependencies") if f["severity"] == "block"]
    assert [finding["observed"] for finding in blocking] == ["no pod (seen from namespace nephoran-system)"]


def test_a_weaviate_that_does_not_find_a_known_object_blocks(system: System) -> None:
    system.outside.missing_object = True
    run = system.preflight()
    assert "no object" in str(findings(run, "dependencies"))
    assert run.report["overall"] == "not-ready"


JOBS = f"/apis/batch/v1/namespaces/{SYSTEM}/jobs"


def look_from_inside(system: System) -> None:
    system.edit_profile(lambda data: data.update(vantage_point={"image": "tools/curl:v1", "command": ["curl", "-s"]}))


def outside_finding(run: Any) -> dict[str, Any]:
    return next(f for f in findings(run, "dependencies") if f["object"] != "weaviate")


def test_without_a_vantage_point_the_worker_asks_and_the_finding_says_so(system: System) -> None:
    assert outside_finding(system.preflight())["observed"] == "status 401 (seen from the Airflow worker)"


def test_dependencies_are_asked_from_inside_and_nothing_stays(system: System) -> None:
    look_from_inside(system)
    system.outside.llm_status = 500  # the worker would see this
    asked: list[Any] = []
    system.cluster.before = lambda r: asked.append(r.json) if (r.method, r.path) == ("POST", JOBS) else None
    run = system.preflight()
    assert run.surprises == []
    found = outside_finding(run)
    assert (found["severity"], found["observed"]) == (
        "pass",
        "status 401 (seen from a pod in namespace nephoran-system)",
    )
    assert run.report["overall"] == "ready"
    spec = asked[0]["spec"]["template"]["spec"]["containers"][0]
    assert (spec["command"], spec["args"][0]) == (["curl"], "-s")
    assert spec["args"][-1].endswith("/v1/models")
    assert [job["spec"]["ttlSecondsAfterFinished"] > 0 for job in asked] == [True]
    assert not [path for path in system.cluster.objects if path.startswith(JOBS)]


@pytest.mark.parametrize(
    ("said", "observed"),
    [("503\n", "status 503"), ("000\n", "no answer: exit code 0, 000"), ("at 200 o'clock\n", "no answer")],
)
def test_what_is_not_reachable_from_inside_blocks(system: System, said: str, observed: str) -> None:
    look_from_inside(system)
    system.cluster.job_says = said
    run = system.preflight()
    assert outside_finding(run)["severity"] == "block"
    assert outside_finding(run)["observed"].startswith(observed)
    assert run.report["overall"] == "not-ready"


def test_a_job_that_can_not_be_made_is_not_measured(system: System) -> None:
    look_from_inside(system)
    forbidden = status_object(403, "Forbidden", "jobs.batch is forbidden")
    system.cluster.fail = lambda r: forbidden if (r.method, r.path) == ("POST", JOBS) else None
    found = outside_finding(system.preflight())
    assert found["severity"] == "block"
    assert found["observed"].startswith("not measured: ")


def test_the_right_to_make_jobs_is_asked_for_only_with_a_vantage_point(system: System) -> None:
    system.cluster.denied = {("create", "jobs")}
    assert system.preflight().report["overall"] == "ready"
    look_from_inside(system)
    run = system.preflight()
    assert "may not create jobs.batch in nephoran-system" in run.error("check_request")
    assert run.report["overall"] == "not-ready"


def test_a_profile_that_counts_more_known_objects_than_there_are_blocks(system: System) -> None:
    system.edit_profile(lambda data: data["known_objects"].update(count=777))
    known = load_profile(system.profile_path).known_objects
    assert known is not None
    system.outside.missing.add(known.id_of(776))
    found = findings(system.preflight(), "dependencies")
    blocking = [finding["observed"] for finding in found if finding["severity"] == "block"]
    assert len(blocking) == 1
    assert "no object 776 of the 777 known ones" in blocking[0]


def test_a_component_whose_gate_would_have_no_series_is_named_before_the_change(system: System) -> None:
    system.with_gates()
    gated = [finding["object"] for finding in findings(system.preflight(), "gates")]
    assert gated == ["rag-api", "llm-processor"]
    system.outside.prometheus.pods = list
    run = system.preflight()
    assert [finding["severity"] for finding in findings(run, "gates")] == ["warn", "warn"]
    assert run.report["overall"] == "ready"


def test_a_prometheus_that_does_not_answer_blocks_where_there_are_gates(system: System) -> None:
    system.outside.prometheus.before = lambda request: Reply(503, "starting")
    assert findings(system.preflight(), "gates")[0]["severity"] == "pass"
    system.with_gates()
    found = findings(system.preflight(), "gates")
    assert [finding["severity"] for finding in found] == ["block"]
    assert found[0]["observed"].startswith("not measured: ")


def test_an_image_that_the_registry_does_not_have_blocks(system: System) -> None:
    run = system.preflight(version="v9")
    assert run.report["overall"] == "not-ready"
    assert sum(f["severity"] == "block" and "v9" in f["object"] + f["observed"] for f in run.report["findings"]) == 3


def test_intents_in_work_are_waited_for_and_then_block(system: System, fast_clock: None) -> None:
    add_intents(system, 11, "Processing")
    run = system.preflight()
    assert findings(run, "intents")[0]["severity"] == "block"
    assert "11" in findings(run, "intents")[0]["observed"]


def test_intents_that_finish_while_it_waits_let_it_go_on(system: System) -> None:
    add_intents(system, 10, "Processing")
    looks = 0

    def finish(request: Any) -> None:
        nonlocal looks
        looks += request.path.endswith("/networkintents")
        if looks == 6:
            add_intents(system, 10, "Deployed")

    system.cluster.before = finish
    run = system.preflight()
    assert findings(run, "intents")[0]["severity"] == "pass"
    assert run.report["overall"] == "ready"


def test_finished_and_failed_intents_are_not_in_work(system: System) -> None:
    add_intents(system, 12, "Failed")
    assert system.preflight().report["overall"] == "ready"


# ------------------------------------------------------------------------------------------------------- the decision


class Results:
    """The results of some checks, by task id."""

    def __init__(self, **results: Any) -> None:
        self.results, self.pushed = results, {}

    def xcom_pull(self, task_ids: list[str], map_indexes: int) -> list[Any]:
        return [self.results.get(task_id) for task_id in task_ids]

    def xcom_push(self, key: str, value: Any) -> None:
        self.pushed[key] = value


def decide(ti: Results, *checks: str) -> Any:
    step = DecideReadinessOperator(
        task_id="decide_readiness", kubernetes_connection_id="kubernetes_test", check_task_ids=checks
    )
    return step.execute({"ti": ti})  # type: ignore[typeddict-item]


def test_only_passing_findings_say_ready() -> None:
    assert decide(Results(a=[GOOD], b=[GOOD]), "a", "b")["approval"] == {
        "ready_for_upgrade": True,
        "blocking": 0,
        "warnings": 0,
    }


def test_any_block_stops_and_the_table_stays(caplog: pytest.LogCaptureFixture) -> None:
    ti = Results(a=[GOOD], b=[BAD, GOOD])
    with pytest.raises(AirflowFailException, match=r"1 blocking finding; first pods of Pod/b: observed Pending"):
        decide(ti, "a", "b")
    assert ti.pushed["return_value"]["approval"]["ready_for_upgrade"] is False
    assert len(ti.pushed["return_value"]["findings"]) == 3
    assert ti.pushed["error"].endswith("Next: Mend it.")


def test_a_check_without_a_result_blocks() -> None:
    ti = Results(check_pods=[GOOD])
    with pytest.raises(AirflowFailException, match="expected a result"):
        decide(ti, "check_pods", "preflight.check_images")
    missing = ti.pushed["return_value"]["findings"][0]
    assert (missing["check"], missing["observed"]) == ("images", "not measured")
    assert "preflight.check_images" in missing["hint"]


def test_no_finding_at_all_is_not_ready() -> None:
    ti = Results(a=[])
    with pytest.raises(AirflowFailException):
        decide(ti, "a")
