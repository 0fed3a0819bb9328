"""What a change does to a workload, and that the way back is exact whatever the change was."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nephoran_maintenance.domain.patches import (
    container_of,
    policy_patch,
    record_before,
    same_spec,
    same_strategy,
    same_template,
    spec_patch,
    with_image,
)
from tests.unit.domain.kubernetes_objects import (
    NEW_IMAGE,
    OLD_IMAGE,
    container,
    daemon_set,
    deployment,
    stateful_set,
    template,
)

POLICY: dict[str, Any] = {
    "max_surge": 1,
    "max_unavailable": 0,
    "grace_period_seconds": 60,
    "pre_stop_sleep_seconds": 15,
    "readiness": {"path": "/readyz", "initial_delay_seconds": 10, "period_seconds": 5},
    "liveness": {"path": "/healthz", "failure_threshold": 3},
}


def merged(live: Any, patch: Any) -> Any:
    """Return what the API server makes of a strategic merge patch, for the fields that ours have."""
    if isinstance(patch, Mapping) and isinstance(live, Mapping):
        result = dict(live)
        for key, value in patch.items():
            if value is None:
                result.pop(key, None)
            else:
                result[key] = merged(live.get(key), value)
        return result
    if isinstance(patch, Mapping):
        return {key: merged(None, value) for key, value in patch.items() if value is not None}
    if isinstance(patch, list) and all(isinstance(item, Mapping) and "name" in item for item in patch):
        found = {item["name"]: item for item in live or []}
        for item in patch:
            found[item["name"]] = merged(found.get(item["name"]), item)
        return list(found.values())
    return copy.deepcopy(patch)


def with_json_patch(workload: dict[str, Any], operations: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what the API server makes of a JSON patch; a failed test raises."""
    result = copy.deepcopy(workload)
    for operation in operations:
        *parents, last = operation["path"].strip("/").split("/")
        target = result
        for key in parents:
            target = target[key]
        if operation["op"] == "test":
            assert target[last] == operation["value"]
        else:
            assert operation["op"] == "add" or last in target
            target[last] = operation["value"]
    return result


def sidecar_first(image: str = OLD_IMAGE) -> dict[str, Any]:
    return template(container("proxy", "mesh:1"), container(image=image))


def test_changes_the_image_of_the_named_container_only() -> None:
    workload = deployment(pod_template=sidecar_first())
    patch = with_image(policy_patch(workload, "rag-api", {}), NEW_IMAGE)
    changed = merged(workload, patch)
    assert container_of(changed, "rag-api")["image"] == NEW_IMAGE
    assert container_of(changed, "proxy") == container_of(workload, "proxy")
    expected = copy.deepcopy(workload)
    expected["spec"]["template"]["spec"]["containers"][1]["image"] = NEW_IMAGE
    expected["spec"]["template"] = changed["spec"]["template"]
    assert changed == expected


def test_does_not_change_the_patch_that_it_adds_an_image_to() -> None:
    patch = policy_patch(deployment(), "rag-api", POLICY)
    before = copy.deepcopy(patch)
    with_image(patch, NEW_IMAGE)
    assert patch == before


def test_an_unknown_container_is_no_guess() -> None:
    with pytest.raises(KeyError, match="other"):
        policy_patch(deployment(), "other", POLICY)
    with pytest.raises(KeyError, match="other"):
        record_before(deployment(), "other")


def test_puts_the_whole_policy_in_place() -> None:
    workload = deployment(pod_template=sidecar_first(), spec={"strategy": {"type": "Recreate"}})
    changed = merged(workload, policy_patch(workload, "rag-api", POLICY))
    own = container_of(changed, "rag-api")
    assert changed["spec"]["strategy"] == {
        "type": "RollingUpdate",
        "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0},
    }
    assert changed["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] == 60
    assert own["lifecycle"] == {"preStop": {"sleep": {"seconds": 15}}}
    assert own["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": 8000}
    assert own["readinessProbe"]["initialDelaySeconds"] == 10
    assert own["readinessProbe"]["timeoutSeconds"] == 3
    assert own["livenessProbe"] == {"httpGet": {"path": "/healthz", "port": "http"}, "failureThreshold": 3}
    assert container_of(changed, "proxy") == container_of(workload, "proxy")


def test_a_policy_that_is_in_place_changes_nothing() -> None:
    workload = deployment()
    once = merged(workload, policy_patch(workload, "rag-api", POLICY))
    twice = merged(once, policy_patch(once, "rag-api", POLICY))
    assert same_spec(twice, record_before(once, "rag-api"))


def test_a_shell_in_a_pre_stop_hook_gives_way_to_the_native_sleep() -> None:
    shell = container(lifecycle={"preStop": {"exec": {"command": ["sleep", "5"]}}, "postStart": {"exec": {}}})
    workload = deployment(pod_template=template(shell))
    own = container_of(merged(workload, policy_patch(workload, "rag-api", POLICY)), "rag-api")
    assert own["lifecycle"] == {"preStop": {"sleep": {"seconds": 15}}, "postStart": {"exec": {}}}


def test_another_kind_of_probe_gives_way_and_https_stays() -> None:
    probes = container(
        readinessProbe={"exec": {"command": ["true"]}, "periodSeconds": 9},
        livenessProbe={"httpGet": {"path": "/x", "port": 8443, "scheme": "HTTPS"}},
        ports=[{"containerPort": 8000}],
    )
    workload = deployment(pod_template=template(probes))
    own = container_of(merged(workload, policy_patch(workload, "rag-api", POLICY)), "rag-api")
    assert own["readinessProbe"] == {
        "httpGet": {"path": "/readyz", "port": 8000},
        "periodSeconds": 5,
        "initialDelaySeconds": 10,
    }
    assert own["livenessProbe"]["httpGet"] == {"path": "/healthz", "port": 8443, "scheme": "HTTPS"}


@pytest.mark.parametrize(
    ("ports", "port"),
    [
        pytest.param([], "http", id="no port at all"),
        pytest.param(
            [{"containerPort": 9000}, {"containerPort": 8000, "name": "http"}], "http", id="a port named http"
        ),
        pytest.param([{"containerPort": 9000, "name": "grpc"}, {"containerPort": 1}], 9000, id="else the first"),
    ],
)
def test_a_new_probe_asks_the_port_of_the_container(ports: list[dict[str, Any]], port: object) -> None:
    bare = container(ports=ports)
    del bare["readinessProbe"]
    workload = deployment(pod_template=template(bare))
    own = container_of(merged(workload, policy_patch(workload, "rag-api", POLICY)), "rag-api")
    assert own["readinessProbe"]["httpGet"]["port"] == port


def test_the_policy_names_a_port_where_it_wants_to() -> None:
    policy = {"readiness": {"path": "/ready", "port": 9999}}
    own = container_of(merged(deployment(), policy_patch(deployment(), "rag-api", policy)), "rag-api")
    assert own["readinessProbe"]["httpGet"] == {"path": "/ready", "port": 9999}


def test_a_probe_without_a_path_keeps_its_handler() -> None:
    policy = {"readiness": {"period_seconds": 1}}
    own = container_of(merged(deployment(), policy_patch(deployment(), "rag-api", policy)), "rag-api")
    assert own["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": 8000}
    assert own["readinessProbe"]["periodSeconds"] == 1


def test_a_stateful_set_keeps_its_partition_and_gets_no_surge() -> None:
    workload = stateful_set(partition=2)
    changed = merged(workload, policy_patch(workload, "weaviate", POLICY))
    assert changed["spec"]["updateStrategy"] == {"type": "RollingUpdate", "rollingUpdate": {"partition": 2}}


def test_an_empty_policy_changes_nothing() -> None:
    workload = deployment(pod_template=sidecar_first())
    assert merged(workload, policy_patch(workload, "rag-api", {}))["spec"] == workload["spec"]


# ------------------------------------------------------------------------------------------------------- the way back


def test_records_what_a_way_back_needs() -> None:
    workload = deployment(metadata={"annotations": {"deployment.kubernetes.io/revision": "7"}})
    record = record_before(workload, "rag-api")
    assert record == {
        "template": workload["spec"]["template"],
        "strategy": workload["spec"]["strategy"],
        "container": "rag-api",
        "image": NEW_IMAGE,
        "replicas": 2,
        "revision": "7",
        "generation": 2,
        "uid": "d",
    }


def test_a_record_does_not_follow_the_object() -> None:
    workload = deployment()
    record = record_before(workload, "rag-api")
    workload["spec"]["template"]["spec"]["containers"][0]["image"] = "other"
    assert record["template"]["spec"]["containers"][0]["image"] == NEW_IMAGE
    assert not same_template(workload, record)


@pytest.mark.parametrize("workload", [stateful_set(), daemon_set()], ids=["StatefulSet", "DaemonSet"])
def test_knows_what_each_kind_calls_its_strategy(workload: dict[str, Any]) -> None:
    name = workload["spec"]["template"]["spec"]["containers"][0]["name"]
    record = record_before(workload, name)
    assert record["strategy"] == workload["spec"]["updateStrategy"]
    changed = copy.deepcopy(workload)
    changed["spec"]["updateStrategy"] = {"type": "OnDelete"}
    assert not same_strategy(changed, record)


def test_the_way_back_is_refused_for_another_object_of_the_same_name() -> None:
    workload = deployment()
    record = record_before(workload, "rag-api")
    operations = spec_patch(workload, template=record["template"], strategy=record["strategy"])
    assert operations == [{"op": "test", "path": "/metadata/uid", "value": "d"}]
    other = deployment(metadata={"uid": "another"})
    with pytest.raises(AssertionError):
        with_json_patch(other, operations)


def test_the_way_back_takes_along_what_was_added_and_keeps_replicas_and_labels() -> None:
    workload = deployment(spec={"strategy": {"type": "Recreate"}})
    record = record_before(workload, "rag-api")
    changed = merged(workload, with_image(policy_patch(workload, "rag-api", POLICY), "r/rag-api:v9"))
    changed["spec"]["replicas"] = 5
    changed["metadata"]["labels"] = {"added": "meanwhile"}
    back = with_json_patch(changed, spec_patch(changed, template=record["template"], strategy=record["strategy"]))
    assert same_spec(back, record)
    assert back["spec"]["replicas"] == 5
    assert back["metadata"]["labels"] == {"added": "meanwhile"}


def test_a_restart_by_hand_counts_as_another_template() -> None:
    workload = deployment()
    record = record_before(workload, "rag-api")
    workload["spec"]["template"]["metadata"]["annotations"] = {"kubectl.kubernetes.io/restartedAt": "now"}
    assert not same_spec(workload, record)


def test_what_the_server_writes_does_not_count() -> None:
    workload = deployment()
    record = record_before(workload, "rag-api")
    workload["metadata"] |= {
        "generation": 9,
        "resourceVersion": "77",
        "annotations": {"deployment.kubernetes.io/revision": "8"},
    }
    workload["status"]["observedGeneration"] = 9
    workload["spec"]["replicas"] = 4
    assert same_spec(workload, record)


names = st.sampled_from(["rag-api", "proxy", "agent"])
small = st.integers(1, 60)
probes = st.fixed_dictionaries(
    {},
    optional={
        "httpGet": st.fixed_dictionaries({"path": st.just("/x"), "port": st.sampled_from([8000, "web"])}),
        "exec": st.just({"command": ["true"]}),
        "periodSeconds": small,
    },
)
containers = st.fixed_dictionaries(
    {"image": st.sampled_from([OLD_IMAGE, "a:1"])},
    optional={
        "readinessProbe": probes,
        "livenessProbe": probes,
        "lifecycle": st.just({"preStop": {"exec": {"command": ["sleep", "1"]}}}),
        "ports": st.lists(st.fixed_dictionaries({"containerPort": small}), max_size=2),
        "env": st.just([{"name": "A", "value": "1"}]),
    },
)
probe_policies = st.fixed_dictionaries(
    {}, optional={"path": st.just("/readyz"), "port": small, "period_seconds": small, "failure_threshold": small}
)
policies = st.fixed_dictionaries(
    {},
    optional={
        "grace_period_seconds": small,
        "pre_stop_sleep_seconds": small,
        "readiness": probe_policies,
        "liveness": probe_policies,
    },
)


@st.composite
def workloads(draw: st.DrawFn) -> dict[str, Any]:
    others = draw(st.sets(names)) - {"rag-api"}
    made = [{"name": name, **draw(containers)} for name in draw(st.permutations(sorted(others | {"rag-api"})))]
    made_template = template(*made, grace=draw(small))
    kind = draw(st.sampled_from(["Deployment", "StatefulSet", "DaemonSet"]))
    if kind == "Deployment":
        strategy = draw(
            st.sampled_from([{"type": "Recreate"}, {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%"}}])
        )
        return deployment(pod_template=made_template, spec={"strategy": strategy})
    if kind == "DaemonSet":
        return daemon_set(pod_template=made_template) | {"metadata": {"name": "rag-api", "uid": "d"}}
    return stateful_set(partition=draw(st.integers(0, 3)), spec={"template": made_template})


@given(workloads(), policies, st.sampled_from([NEW_IMAGE, OLD_IMAGE, "other:1"]))
def test_whatever_was_changed_the_way_back_is_exact(
    workload: dict[str, Any], policy: dict[str, Any], image: str
) -> None:
    record = record_before(workload, "rag-api")
    changed = merged(workload, with_image(policy_patch(workload, "rag-api", policy), image))
    others = [c for c in changed["spec"]["template"]["spec"]["containers"] if c["name"] != "rag-api"]
    assert others == [c for c in workload["spec"]["template"]["spec"]["containers"] if c["name"] != "rag-api"]
    back = with_json_patch(changed, spec_patch(changed, template=record["template"], strategy=record["strategy"]))
    assert back == workload
