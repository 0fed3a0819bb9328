"""The checks of preflight: what passes, what warns and what blocks, with a next action for each."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from nephoran_maintenance.domain import preflight
from nephoran_maintenance.domain.findings import Finding
from nephoran_maintenance.domain.preflight import quantity
from tests.unit.domain.kubernetes_objects import (
    at,
    container,
    daemon_set,
    deployment,
    ended,
    pod,
    running,
    stamp,
    stateful_set,
    template,
    waiting,
)

NOW = at(0)


def severities(findings: list[Finding]) -> list[str]:
    for finding in findings:
        assert finding.severity == "pass" or finding.hint, f"{finding} names no next action"
    return sorted({finding.severity for finding in findings})


def only(findings: list[Finding], severity: str) -> Finding:
    found = [finding for finding in findings if finding.severity == severity]
    assert len(found) == 1
    return found[0]


# ---------------------------------------------------------------------------------------------------------- quantities


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2", "2"),
        ("100m", "0.1"),
        ("1Gi", "1073741824"),
        ("512Ki", "524288"),
        ("1k", "1000"),
        ("1.5G", "1500000000"),
        ("1e3", "1000"),
        ("12E", "12000000000000000000"),
        ("100n", "0.0000001"),
        ("50u", "0.00005"),
        (0, "0"),
        ("8149472Ki", "8345059328"),
    ],
)
def test_reads_quantities_as_kubernetes_writes_them(text: object, value: str) -> None:
    assert quantity(text) == Decimal(value)


@pytest.mark.parametrize("text", ["", "abc", "1Xi", "Gi", "1 Gi"])
def test_refuses_what_is_no_quantity(text: str) -> None:
    with pytest.raises(ValueError, match="quantity"):
        quantity(text)


# ----------------------------------------------------------------------------------------------------------------- pods


def ready(name: str = "a", **changes: Any) -> dict[str, Any]:
    return pod(name, ready=True, **changes)


def owned_by_job(made: dict[str, Any], phase: str) -> dict[str, Any]:
    made["metadata"]["ownerReferences"] = [{"kind": "Job", "name": "backup"}]
    made["status"]["phase"] = phase
    return made


def test_ready_pods_pass() -> None:
    assert severities(preflight.check_pods([ready("a"), ready("b")], NOW)) == ["pass"]


def test_a_running_pod_that_is_not_ready_blocks_and_says_why() -> None:
    findings = preflight.check_pods([ready(), pod("b", statuses=[waiting("CrashLoopBackOff")])], NOW)
    blocking = only(findings, "block")
    assert blocking.object == "Pod/b"
    assert "CrashLoopBackOff" in blocking.observed
    assert severities(findings) == ["block"]


@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
def test_pods_of_finished_jobs_do_not_count(phase: str) -> None:
    findings = preflight.check_pods([ready(), owned_by_job(pod("job"), phase)], NOW)
    assert severities(findings) == ["pass"]
    assert "1 pods" in findings[0].object


def test_a_failed_pod_of_no_job_blocks() -> None:
    evicted = pod("b", status={"phase": "Failed", "reason": "Evicted"})
    assert severities(preflight.check_pods([ready(), evicted], NOW)) == ["block"]


@pytest.mark.parametrize(("age_seconds", "warns"), [(10, True), (3599, True), (3601, False)])
def test_a_restart_in_the_last_hour_warns(age_seconds: float, warns: bool) -> None:
    restarted = ready(statuses=[running(ready=True, restarts=3, last=ended(finished=-age_seconds))])
    findings = preflight.check_pods([restarted], NOW)
    assert severities(findings) == (["pass", "warn"] if warns else ["pass"])


def test_a_terminating_pod_warns() -> None:
    leaving = ready("b", metadata={"deletionTimestamp": stamp(0)})
    assert severities(preflight.check_pods([ready(), leaving], NOW)) == ["pass", "warn"]


def test_a_namespace_without_pods_blocks() -> None:
    assert severities(preflight.check_pods([], NOW)) == ["block"]
    assert severities(preflight.check_pods([owned_by_job(pod("job"), "Succeeded")], NOW)) == ["block"]


# -------------------------------------------------------------------------------------------------------------- intents


@pytest.mark.parametrize(("active", "severity"), [(0, "pass"), (9, "pass"), (10, "block"), (11, "block")])
def test_ten_intents_in_work_block(active: int, severity: str) -> None:
    findings = preflight.check_intents(active, 10, timedelta(seconds=600), ["nephoran.com"])
    assert severities(findings) == [severity]
    assert f"{active} in work" in findings[0].observed


def test_no_served_group_blocks_instead_of_counting_zero() -> None:
    assert severities(preflight.check_intents(0, 10, timedelta(), [])) == ["block"]


# ------------------------------------------------------------------------------------------------------------- rollouts

SETTLED = {"currentRevision": "r", "updateRevision": "r"}
ROLLOUTS = [
    pytest.param(deployment(), "pass", "", id="Deployment rolled out"),
    pytest.param(stateful_set(status=SETTLED), "pass", "", id="StatefulSet rolled out"),
    pytest.param(daemon_set(), "pass", "", id="DaemonSet rolled out"),
    pytest.param(deployment(spec={"paused": True}), "block", "paused", id="paused"),
    pytest.param(deployment(status={"observedGeneration": 1}), "block", "not yet seen", id="not observed"),
    pytest.param(deployment(status={"updatedReplicas": 1}), "block", "1 of 2 updated", id="rolling"),
    pytest.param(deployment(status={"replicas": 3}), "block", "updated", id="an old pod is left"),
    pytest.param(deployment(status={"availableReplicas": 1}), "block", "1 available", id="not available"),
    pytest.param(deployment(replicas=0), "block", "zero", id="scaled to zero"),
    pytest.param(stateful_set(), "block", "two revisions", id="StatefulSet between two revisions"),
    pytest.param(stateful_set(partition=1, status=SETTLED), "block", "partition 1", id="partition left behind"),
    pytest.param(stateful_set(status={**SETTLED, "readyReplicas": 2}), "block", "2 of 3 ready", id="one is not ready"),
    pytest.param(daemon_set(numberAvailable=1), "block", "1 available", id="DaemonSet not available"),
    pytest.param(daemon_set(updatedNumberScheduled=1), "block", "1 of 2 updated", id="DaemonSet rolling"),
]


@pytest.mark.parametrize(("workload", "severity", "observed"), ROLLOUTS)
def test_a_workload_that_is_not_at_rest_blocks(workload: dict[str, Any], severity: str, observed: str) -> None:
    findings = preflight.check_rollouts({"rag-api": workload})
    assert severities(findings) == [severity]
    assert observed in findings[0].observed
    assert "rag-api" in findings[0].object


def test_a_daemon_set_whose_pods_only_a_person_replaces_blocks() -> None:
    workload = daemon_set()
    workload["spec"]["updateStrategy"] = {"type": "OnDelete"}
    finding = preflight.check_rollouts({"rag-api": workload})[0]
    assert finding.severity == "block"
    assert "OnDelete" in finding.observed
    assert "RollingUpdate" in finding.hint


def test_one_replica_of_a_stateful_set_warns_that_it_will_be_away() -> None:
    findings = preflight.check_rollouts({"weaviate": stateful_set(replicas=1, status=SETTLED)})
    assert severities(findings) == ["pass", "warn"]


# ------------------------------------------------------------------------------------------------------------- headroom


def node(name: str = "n", *, cpu: str = "2", memory: str = "4Gi", pods: str = "110", **changes: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": name},
        "spec": changes.get("spec", {}),
        "status": {
            "allocatable": {"cpu": cpu, "memory": memory, "pods": pods},
            "conditions": [{"type": "Ready", "status": changes.get("ready", "True")}],
        },
    }


def using(cpu: str, memory: str, *, on: str = "n", phase: str = "Running") -> dict[str, Any]:
    resources = {"requests": {"cpu": cpu, "memory": memory}}
    return {
        "spec": {"nodeName": on, "containers": [{"name": "c", "resources": resources}]},
        "status": {"phase": phase},
    }


def surge(cpu: str = "500m", memory: str = "1Gi", pods: int = 1, **more: Any) -> dict[str, preflight.Surge]:
    resources = {"requests": {"cpu": cpu, "memory": memory}, **more}
    return {"rag-api": preflight.Surge(deployment(pod_template=template(container(resources=resources))), pods)}


@pytest.mark.parametrize(
    ("replicas", "strategy", "policy", "pods"),
    [
        pytest.param(2, {"rollingUpdate": {"maxSurge": 1}}, None, 1, id="a number"),
        pytest.param(10, {"rollingUpdate": {"maxSurge": "25%"}}, None, 3, id="a share, rounded up"),
        pytest.param(8, {"rollingUpdate": {"maxSurge": "25%"}}, None, 2, id="a share without a rest"),
        pytest.param(3, {"rollingUpdate": {"maxSurge": "100%"}}, None, 3, id="all"),
        pytest.param(5, {}, None, 2, id="the default"),
        pytest.param(5, {"rollingUpdate": {}}, None, 2, id="the default of a part"),
        pytest.param(2, {"rollingUpdate": {"maxSurge": 5}}, None, 2, id="never more than the replicas"),
        pytest.param(4, {"rollingUpdate": {"maxSurge": 0}}, None, 0, id="none"),
        pytest.param(4, {"type": "Recreate"}, None, 0, id="everything at once"),
        pytest.param(4, {"type": "Recreate"}, 2, 2, id="the policy's, over that of before"),
        pytest.param(4, {"rollingUpdate": {"maxSurge": 1}}, 3, 3, id="the policy allows more"),
        pytest.param(4, {"rollingUpdate": {"maxSurge": 3}}, 1, 3, id="the way back allows more"),
    ],
)
def test_the_surge_is_what_kubernetes_makes_of_it(
    replicas: int, strategy: dict[str, Any], policy: int | None, pods: int
) -> None:
    workload = {"kind": "Deployment", "spec": {"replicas": replicas, "strategy": strategy}}
    assert preflight.surge_of(workload, policy) == preflight.Surge(workload, pods)
    del workload["spec"]["replicas"]
    assert preflight.surge_of(workload, policy).pods == min(pods, 1), "without a number there is one replica"


@pytest.mark.parametrize(
    ("pods", "nodes", "severity"),
    [
        pytest.param(4, [node(cpu="2")], "pass", id="four on one node"),
        pytest.param(5, [node(cpu="2")], "block", id="five are too many"),
        pytest.param(3, [node("a", cpu="1"), node("b", cpu="900m")], "pass", id="spread over the nodes"),
        pytest.param(4, [node("a", cpu="1"), node("b", cpu="900m")], "block", id="what is left of a node is no place"),
        pytest.param(2, [node(pods="1")], "block", id="a node takes only so many pods"),
        pytest.param(0, [node(cpu="100m")], "pass", id="none is added"),
    ],
)
def test_every_pod_of_the_surge_must_fit(pods: int, nodes: list[dict[str, Any]], severity: str) -> None:
    findings = preflight.check_headroom(nodes, [], surge(pods=pods))
    assert severities(findings) == [severity]
    assert f"for each of {pods} pods" in findings[0].expected


def test_a_pod_that_asks_for_nothing_fits_where_there_is_a_place_for_it() -> None:
    assert severities(preflight.check_headroom([node(pods="3")], [], surge("0", "0", pods=3))) == ["pass"]
    assert severities(preflight.check_headroom([node(pods="3")], [], surge("0", "0", pods=4))) == ["block"]


@pytest.mark.parametrize(
    ("used", "severity"),
    [
        pytest.param([using("1500m", "1Gi")], "pass", id="exactly enough"),
        pytest.param([using("1501m", "1Gi")], "block", id="too little CPU"),
        pytest.param([using("1", "3.1Gi")], "block", id="too little memory"),
        pytest.param([using("2", "4Gi", phase="Succeeded")], "pass", id="finished pods use nothing"),
        pytest.param([using("2", "4Gi", on="elsewhere")], "pass", id="other nodes do not matter"),
    ],
)
def test_the_surge_must_fit_on_a_node(used: list[dict[str, Any]], severity: str) -> None:
    findings = preflight.check_headroom([node()], used, surge())
    assert severities(findings) == [severity]
    assert "500m CPU, 1024 MiB" in findings[0].expected


def test_the_surge_must_fit_on_one_node_not_on_all_together() -> None:
    nodes = [node("a", cpu="400m"), node("b", cpu="400m")]
    assert severities(preflight.check_headroom(nodes, [], surge())) == ["block"]


def test_a_full_node_has_no_place_for_another_pod() -> None:
    assert severities(preflight.check_headroom([node(pods="1")], [using("0", "0")], surge())) == ["block"]


@pytest.mark.parametrize(
    "unusable",
    [
        node(ready="False"),
        node(ready="Unknown"),
        node(spec={"unschedulable": True}),
        node(spec={"taints": [{"key": "k", "effect": "NoSchedule"}]}),
    ],
    ids=["not ready", "unknown", "cordoned", "tainted"],
)
def test_a_node_that_takes_no_pods_has_no_headroom(unusable: dict[str, Any]) -> None:
    assert severities(preflight.check_headroom([unusable], [], surge())) == ["block"]


def test_a_sidecar_counts_and_an_init_container_only_when_it_is_larger() -> None:
    small, large = {"requests": {"cpu": "100m"}}, {"requests": {"cpu": "1900m"}}
    workload = deployment(pod_template=template(container(resources=small)))
    spec = workload["spec"]["template"]["spec"]
    nodes = [node(cpu="1")]
    spec["initContainers"] = [{"name": "setup", "resources": small}]
    assert severities(preflight.check_headroom(nodes, [], {"a": preflight.Surge(workload, 1)})) == ["pass"]
    spec["initContainers"] = [{"name": "setup", "resources": large}]
    assert severities(preflight.check_headroom(nodes, [], {"a": preflight.Surge(workload, 1)})) == ["block"]
    spec["initContainers"] = [{"name": "proxy", "restartPolicy": "Always", "resources": {"requests": {"cpu": "950m"}}}]
    assert severities(preflight.check_headroom(nodes, [], {"a": preflight.Surge(workload, 1)})) == ["block"]


def test_a_limit_without_a_request_is_a_request() -> None:
    limited = deployment(pod_template=template(container(resources={"limits": {"cpu": "3"}})))
    assert severities(preflight.check_headroom([node()], [], {"a": preflight.Surge(limited, 1)})) == ["block"]


def quota(hard: dict[str, str], used: dict[str, str]) -> dict[str, Any]:
    return {"metadata": {"name": "compute"}, "status": {"hard": hard, "used": used}}


@pytest.mark.parametrize(
    ("resource", "hard", "used", "blocks"),
    [
        ("requests.cpu", "4", "3500m", False),
        ("requests.cpu", "4", "3501m", True),
        ("cpu", "4", "4", True),
        ("requests.memory", "4Gi", "3.5Gi", True),
        ("limits.cpu", "4", "3", True),
        ("limits.cpu", "5", "3", False),
        ("pods", "10", "10", True),
        ("count/pods", "10", "10", True),
        ("count/pods", "10", "9", False),
        ("requests.storage", "1Gi", "1Gi", False),
        ("services", "1", "1", False),
    ],
)
def test_a_quota_must_leave_room_for_the_surge(resource: str, hard: str, used: str, blocks: bool) -> None:
    findings = preflight.check_quotas(
        [quota({resource: hard}, {resource: used})], surge(limits={"cpu": "2", "memory": "1Gi"})
    )
    assert severities(findings) == (["block"] if blocks else [])


@pytest.mark.parametrize(
    ("resource", "hard", "blocks"),
    [("requests.cpu", "1500m", False), ("requests.cpu", "1499m", True), ("pods", "3", False), ("pods", "2", True)],
)
def test_a_quota_must_leave_room_for_every_pod_of_the_surge(resource: str, hard: str, blocks: bool) -> None:
    findings = preflight.check_quotas([quota({resource: hard}, {resource: "0"})], surge(pods=3))
    assert severities(findings) == (["block"] if blocks else [])


def test_a_quota_does_not_matter_where_nothing_surges() -> None:
    assert preflight.check_quotas([quota({"pods": "1"}, {"pods": "1"})], {}) == []


# -------------------------------------------------------------------------------------------------------------- volumes


def claim(name: str = "data-weaviate-0", phase: str = "Bound") -> dict[str, Any]:
    return {"metadata": {"name": name}, "status": {"phase": phase}}


@pytest.mark.parametrize(
    ("share", "severity"),
    [(0.1, "pass"), (0.79, "pass"), (0.80, "warn"), (0.94, "warn"), (0.95, "block"), (1.0, "block")],
)
def test_a_full_volume_warns_and_then_blocks(share: float, severity: str) -> None:
    assert severities(preflight.check_volumes([claim()], {"data-weaviate-0": share})) == [severity]


def test_a_claim_that_is_not_bound_blocks() -> None:
    findings = preflight.check_volumes([claim(phase="Pending")], {})
    assert severities(findings) == ["block"]
    assert findings[0].observed == "Pending"


@pytest.mark.parametrize("usage", [None, {}])
def test_usage_that_was_not_measured_says_so(usage: dict[str, float] | None) -> None:
    findings = preflight.check_volumes([claim()], usage)
    assert severities(findings) == ["pass"]
    assert "not measured" in findings[0].observed


def test_no_claims_pass() -> None:
    assert severities(preflight.check_volumes([], None)) == ["pass"]


def test_reads_the_usage_of_claims_of_one_namespace() -> None:
    def volume(name: str, namespace: str) -> dict[str, Any]:
        return {"pvcRef": {"name": name, "namespace": namespace}, "usedBytes": 25, "capacityBytes": 100}

    summary = {"pods": [{"volume": [volume("a", "ns"), volume("b", "other"), {"name": "no claim"}]}, {}]}
    assert preflight.volume_usage([summary, {}], "ns") == {"a": 0.25}


# ---------------------------------------------------------------------------------- budgets, autoscalers, and the others


def budget(allowed: int, expected: int = 2) -> dict[str, Any]:
    status = {"disruptionsAllowed": allowed, "expectedPods": expected, "currentHealthy": expected}
    return {"metadata": {"name": "rag-api"}, "status": status}


@pytest.mark.parametrize(("drains", "severity"), [(False, "warn"), (True, "block")])
def test_a_budget_that_allows_nothing_blocks_only_a_drain(drains: bool, severity: str) -> None:
    assert severities(preflight.check_disruption_budgets([budget(0)], drains=drains)) == [severity]


@pytest.mark.parametrize("budgets", [[budget(1)], [budget(0, expected=0)], []], ids=["allows", "selects none", "none"])
def test_other_budgets_pass(budgets: list[dict[str, Any]]) -> None:
    assert severities(preflight.check_disruption_budgets(budgets, drains=True)) == ["pass"]


@pytest.mark.parametrize(
    ("current", "desired", "severities_"),
    [(2, 3, ["block"]), (3, 2, ["block"]), (2, 2, ["pass"]), (2, 0, ["warn"]), (None, 2, ["block"]), (0, 0, ["pass"])],
)
def test_an_autoscaler_that_moves_blocks(current: int | None, desired: int, severities_: list[str]) -> None:
    scaler = {"metadata": {"name": "a"}, "status": {"currentReplicas": current, "desiredReplicas": desired}}
    assert severities(preflight.check_autoscalers([scaler])) == severities_


def test_an_autoscaler_that_nobody_has_looked_at_is_not_measured() -> None:
    (finding,) = preflight.check_autoscalers([{"metadata": {"name": "a"}}])
    assert finding.severity == "block"
    assert "not measured" in finding.observed
    disabled = {"desiredReplicas": 0, "conditions": [{"type": "ScalingActive", "status": "False"}]}
    assert severities(preflight.check_autoscalers([{"metadata": {"name": "a"}, "status": disabled}])) == ["pass"]


def test_a_missing_permission_blocks_and_is_named() -> None:
    accesses = [
        {"verb": "list", "resource": "pods", "namespace": "ns"},
        {"verb": "patch", "group": "apps", "resource": "deployments", "namespace": "ns"},
    ]
    findings = preflight.check_permissions(accesses, [True, False], "system:serviceaccount:ns:upgrade")
    blocking = only(findings, "block")
    assert blocking.observed == "may not patch deployments.apps in ns"
    assert blocking.object == "system:serviceaccount:ns:upgrade"
    assert severities(preflight.check_permissions(accesses, [True, True], "sa")) == ["pass"]


def test_an_answer_for_each_question_is_required() -> None:
    with pytest.raises(ValueError, match="shorter"):
        preflight.check_permissions([{"verb": "list", "resource": "pods"}], [], "sa")


def test_an_image_must_be_in_the_registry() -> None:
    assert preflight.check_image("rag-api", "r/rag-api:v2", "sha256:1").severity == "pass"
    missing = preflight.check_image("rag-api", "r/rag-api:v9", None)
    assert (missing.severity, missing.object) == ("block", "rag-api (r/rag-api:v9)")


def test_a_dependency_names_where_it_was_asked_from() -> None:
    fine = preflight.check_dependency("llm-provider", "status 401", True, "status 200 or 401", "pod ns/a")
    assert (fine.severity, fine.observed) == ("pass", "status 401 (seen from pod ns/a)")
    broken = preflight.check_dependency("llm-provider", "status 503", False, "status 200 or 401", "pod ns/a")
    assert severities([broken]) == ["block"]


def test_a_gate_without_series_is_known_before_the_change() -> None:
    assert preflight.check_gate_series("rag-api", 2).severity == "pass"
    found = preflight.check_gate_series("rag-api", 0)
    assert found.severity == "warn"
    assert found.hint
