"""The rolling upgrade, run by a real Airflow on the lab."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from lab.system import deployment
from lab.system.images import delete_tag, push_all, push_fresh, repository
from tests.lab.conftest import failing_registry

if TYPE_CHECKING:
    from conftest import Upgrades

FIVE = ["weaviate", "rag-api", "llm-processor", "nephio-bridge", "oran-adaptor"]
STATELESS = FIVE[1:]
THIRD = "llm-processor"


def test_upgrades_all_five_components_without_a_failed_request(upgrades: Upgrades) -> None:
    upgrades.prepare()
    run = upgrades.run(mode="apply", version="v2")
    assert run.state == "success", run.explain()
    report = run.report
    assert report["overall"] == "succeeded"
    assert report["probe"]["failed"] == 0, report["probe"]["failures"]
    assert report["probe"]["sent"] > 1000
    assert [component["name"] for component in report["components"]] == FIVE
    for component in report["components"]:
        assert f":v2@{component['digest_after']}" in component["image_after"]
        assert component["ready"] == component["desired"]
    assert {test["phase"] for test in report["functional_test"]} == {"Deployed"}
    assert len(report["functional_test"]) == 2
    for name, image in upgrades.images().items():
        assert (":v2@sha256:" in image) == (name in FIVE), (name, image)
    left = upgrades.lab.get(
        "networkintents.nephoran.com,networkintents.intent.nephoran.com", namespace="nephoran-system"
    )
    assert not [item for item in left["items"] if item["metadata"]["name"].startswith("test-")]
    journal = upgrades.lab.get("configmap", report["operation_id"], "nephoran-maintenance")
    assert json.loads(journal["data"]["journal.json"])["state"] == "closed"


def test_says_that_there_is_nothing_to_do_when_everything_runs_already(upgrades: Upgrades) -> None:
    upgrades.prepare()
    before = upgrades.specs()
    run = upgrades.run(mode="apply", version="v1")
    assert run.state == "success", run.explain()
    assert run.report["overall"] == "nothing-to-do"
    assert upgrades.specs() == before


def test_plan_mode_shows_differences_and_changes_nothing(upgrades: Upgrades) -> None:
    upgrades.prepare()
    before = upgrades.specs()
    run = upgrades.run(mode="plan", version="v2")
    assert run.state == "success", run.explain()
    assert run.report["overall"] == "planned"
    plan = run.client.xcom(run.dag_id, run.run_id, "plan_changes", "plan")
    assert [change["component"] for change in plan["changes"]] == FIVE
    assert all(":v2@sha256:" in change["diff"] for change in plan["changes"])
    assert upgrades.specs() == before


@pytest.mark.parametrize(
    ("tag", "cause"),
    [
        pytest.param("v2-crash", "crash-loop", id="crash"),
        # make bench-failures has all three kinds, ten times each; Weaviate's below is never ready either
        pytest.param("v2-never-ready", "failing-probe", id="never-ready", marks=pytest.mark.slow),
    ],
)
def test_third_component_fails_and_everything_goes_back(upgrades: Upgrades, tag: str, cause: str) -> None:
    upgrades.prepare()
    before = upgrades.specs()
    run = upgrades.run(mode="apply", version="v2", components=[*STATELESS, "weaviate"], images={THIRD: tag})
    assert run.state == "failed"
    assert run.report["overall"] == "rolled-back", run.explain()
    assert cause in run.error("components.llm_processor.wait_image")
    assert [row["component"] for row in run.report["rollback"]] == [THIRD, "rag-api", "weaviate"]
    assert run.steps["components.nephio_bridge.apply_image"] != "success"
    assert upgrades.specs() == before


def test_a_component_that_may_fail_crashes_and_only_it_is_old(upgrades: Upgrades) -> None:
    upgrades.prepare(may_fail=["nephio-bridge"])
    try:
        before = upgrades.specs()
        # The steps of the procedure come from the profile: Airflow must have read it again.
        upgrades.client.await_task("rolling_upgrade", "components.nephio_bridge.rollback_alone")
        run = upgrades.run(mode="apply", version="v2", images={"nephio-bridge": "v2-crash"})
        assert run.state == "failed", "what was planned is not all there"
        report = run.report
        assert report["overall"] == "partly-succeeded", run.explain()
        assert "crash-loop" in run.error("components.nephio_bridge.wait_image")
        steps = run.steps
        assert steps["components.nephio_bridge.decide_alone"] == "success"
        assert steps["components.nephio_bridge.rollback_alone"] == "success"
        assert steps["rollback.rollback_rag_api"] == "skipped"
        assert steps["verify_components"] == "success"
        rows = {row["name"]: row for row in report["components"]}
        assert list(rows) == FIVE
        assert rows["nephio-bridge"]["result"] == "rolled back alone and verified; it may fail"
        assert rows["nephio-bridge"]["failure"]
        assert {row["result"] for name, row in rows.items() if name != "nephio-bridge"} == {"changed and verified"}
        assert [row["component"] for row in report["rollback"]] == ["nephio-bridge"]
        assert report["probe"]["failed"] == 0, report["probe"]["failures"]
        assert upgrades.specs()["nephio-bridge"] == before["nephio-bridge"]
        for name, image in upgrades.images().items():
            assert (":v2@sha256:" in image) == (name in FIVE and name != "nephio-bridge"), (name, image)
        journal = upgrades.lab.get("configmap", report["operation_id"], "nephoran-maintenance")
        assert json.loads(journal["data"]["journal.json"])["outcome"] == "partly-succeeded"
        again = upgrades.run(mode="apply", components=["nephio-bridge"], images={"nephio-bridge": "v2-crash"})
        assert again.report["overall"] == "refused"
        assert "in quarantine since" in str(again.report["findings"])
        assert upgrades.specs()["nephio-bridge"] == before["nephio-bridge"]
    finally:
        upgrades.prepare()


def test_image_that_vanishes_between_plan_and_pull_is_named_and_undone(upgrades: Upgrades) -> None:
    """The tag is in the registry when the plan resolves it; its manifest is gone when the kubelet asks for it."""
    upgrades.prepare()
    before = upgrades.specs()
    push_fresh(upgrades.lab.config, THIRD, "v2")  # what the node has pulled once it would not ask for again
    client = upgrades.client
    client.await_dag("rolling_upgrade")
    components = ["rag-api", THIRD]
    run_id = client.trigger("rolling_upgrade", {"mode": "apply", "version": "v2", "components": components})

    def planned(task: object) -> None:
        if getattr(task, "task_id", "") == "record_before_state" and getattr(task, "state", "") == "success":
            delete_tag(upgrades.lab.config, f"nephoran/{THIRD}", "v2")

    try:
        state = client.follow("rolling_upgrade", run_id, timeout=upgrades.limit, on_change=planned)["state"]
    finally:
        push_all(upgrades.lab.config)
    error = str(client.xcom("rolling_upgrade", run_id, "components.llm_processor.wait_image", "error"))
    report = client.xcom("rolling_upgrade", run_id, "report_operation")
    assert state == "failed"
    assert "image-pull" in error
    assert report["overall"] == "rolled-back"
    assert upgrades.specs() == before


def test_one_503_of_the_registry_and_a_slow_start_are_only_delays(upgrades: Upgrades) -> None:
    upgrades.prepare()
    config = upgrades.lab.config
    push_fresh(config, "rag-api", "v2-flaky")
    try:
        with failing_registry(config, repository("rag-api"), "v2-flaky") as failures_left:
            run = upgrades.run(
                mode="apply",
                version="v2",
                components=["rag-api", "nephio-bridge", "operator"],
                images={"rag-api": "v2-flaky", "nephio-bridge": "v2-slow-start"},
            )
            left = failures_left()
    finally:
        push_all(config)
    assert run.state == "success", run.explain()
    assert left == 0, "the kubelet never met the 503"
    assert [component["name"] for component in run.report["components"]] == ["rag-api", "nephio-bridge", "operator"]
    assert run.report["components"][1]["seconds"] > 20
    assert run.report["probe"]["failed"] == 0, run.report["probe"]["failures"]


def test_weaviate_that_never_gets_ready_goes_back_ordinal_by_ordinal(upgrades: Upgrades) -> None:
    """Its controller would wait for the broken pod for ever, also after the template is back (kubernetes#67250)."""
    upgrades.prepare()
    before = upgrades.specs()
    run = upgrades.run(
        mode="apply", version="v2", components=["weaviate", "rag-api"], images={"weaviate": "v2-never-ready"}
    )
    assert run.state == "failed"
    assert run.report["overall"] == "rolled-back", run.explain()
    assert [row["component"] for row in run.report["rollback"]] == ["weaviate"]
    assert run.steps["components.rag_api.apply_image"] != "success"
    assert run.report["probe"]["failed"] == 0, run.report["probe"]["failures"]
    assert upgrades.specs() == before
    assert all(found["ready"] == found["desired"] for found in deployment.status(upgrades.lab.config).values())


def test_an_autoscaler_that_moves_a_full_quota_and_a_reconciler_block(upgrades: Upgrades) -> None:
    upgrades.prepare()
    lab, where = upgrades.lab, "--namespace=nephoran-system"
    pods = lab.get("pods", namespace="nephoran-system")["items"]
    running = sum(pod["status"]["phase"] == "Running" for pod in pods)
    lab.kubectl("create", "quota", "full", f"--hard=pods={running}", where)
    lab.kubectl("patch", "hpa", "rag-api", where, "--patch", '{"spec": {"minReplicas": 3}}')
    tracked = "argocd.argoproj.io/tracking-id"
    lab.kubectl("annotate", "deployment", "nephio-bridge", where, f"{tracked}=system:apps/Deployment:nephio-bridge")
    try:
        lab.kubectl("wait", "hpa/rag-api", where, "--for=jsonpath={.status.desiredReplicas}=3", "--timeout=90s")
        run = upgrades.run("preflight")
    finally:
        lab.kubectl("delete", "quota", "full", where)
        lab.kubectl("annotate", "deployment", "nephio-bridge", where, f"{tracked}-")
        lab.kubectl("patch", "hpa", "rag-api", where, "--patch", '{"spec": {"minReplicas": 2}}')
        # The next test would be refused because of it.
        for field in ("desiredReplicas", "currentReplicas"):
            lab.kubectl("wait", "hpa/rag-api", where, f"--for=jsonpath={{.status.{field}}}=2", "--timeout=90s")
    assert run.report["overall"] == "not-ready"
    blocking = {finding["object"] for finding in run.report["findings"] if finding["severity"] == "block"}
    assert {"HorizontalPodAutoscaler/rag-api", "ResourceQuota/full"} <= blocking
    assert "nephio-bridge (Deployment/nephio-bridge)" in blocking
    assert "managed by Argo CD" in str(run.report["findings"])


def test_rolls_the_policy_out_first_and_says_what_that_means(upgrades: Upgrades) -> None:
    upgrades.prepare("no-policy")
    run = upgrades.run(mode="apply", version="v2", components=["nephio-bridge"])
    assert run.state == "success", run.explain()
    component = run.report["components"][0]
    assert "policy put in place first" in component["policy"]
    assert run.steps["components.nephio_bridge.wait_policy"] == "success"
    container = upgrades.specs()["nephio-bridge"]["template"]["spec"]["containers"][0]
    assert container["lifecycle"]["preStop"]["sleep"]["seconds"] > 0


def test_policy_goes_back_with_the_image(upgrades: Upgrades) -> None:
    upgrades.prepare("no-policy")
    before = upgrades.specs()
    run = upgrades.run(mode="apply", components=["nephio-bridge"], images={"nephio-bridge": "v2-crash"})
    assert run.state == "failed"
    assert run.report["overall"] == "rolled-back", run.explain()
    assert upgrades.specs() == before


def test_works_on_a_layout_with_other_kinds_labels_containers_and_ports(upgrades: Upgrades) -> None:
    upgrades.prepare("other-layout")
    try:
        run = upgrades.run(mode="apply", version="v2")
        assert run.state == "success", run.explain()
        assert run.report["overall"] == "succeeded"
        assert [component["name"] for component in run.report["components"]] == FIVE
    finally:
        upgrades.prepare()


@pytest.mark.parametrize(
    ("params", "reference"),
    [
        pytest.param({"version": "latest"}, "image-tag-mutable", id="mutable-tag"),
        pytest.param({"version": "v2-missing"}, "preflight-blocked", id="missing-tag"),
        pytest.param(
            {"components": ["weaviate"], "version": "v1-minor"}, "weaviate-minor-refused", id="weaviate-minor"
        ),
        pytest.param({"version": None}, "nothing-requested", id="nothing-requested"),
    ],
)
def test_refuses_before_anything_is_changed(upgrades: Upgrades, params: dict[str, object], reference: str) -> None:
    upgrades.prepare()
    before = upgrades.specs()
    run = upgrades.run(mode="apply", **params)
    assert run.state == "failed"
    assert reference in run.explain()
    assert run.report["overall"] == "refused"
    assert upgrades.specs() == before


def test_refuses_a_downgrade_that_was_not_asked_for(upgrades: Upgrades) -> None:
    upgrades.prepare(versions={"nephio-bridge": "v2"})
    run = upgrades.run(mode="apply", version="v1", components=["nephio-bridge"])
    assert "downgrade-refused" in run.explain()
    assert run.report["overall"] == "refused"
