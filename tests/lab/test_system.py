"""The system in the lab is real enough to prove an upgrade on: it answers, loses nothing when it rolls, and breaks as told."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from lab.system import deployment, images, seed
from lab.system.traffic import Traffic
from lab.system.variants import SYSTEM_NAMESPACE, WEAVIATE, variant_named
from lab.waiting import wait_until
from tests.lab.conftest import failing_registry

if TYPE_CHECKING:
    from tests.lab.conftest import Lab

VARIANT = variant_named("fast")
IN_SYSTEM = f"--namespace={SYSTEM_NAMESPACE}"
LIMIT = timedelta(seconds=60)
SLOW_POLL = timedelta(milliseconds=300)


@pytest.fixture(scope="module", autouse=True)
def _first_state(lab: Lab) -> Iterator[None]:
    deployment.reset(lab.config, VARIANT.name)
    yield
    deployment.reset(lab.config, VARIANT.name)


def set_image(lab: Lab, component: str, tag: str) -> None:
    name = images.image(lab.config, component, tag)
    kind = VARIANT.workload_kind(component).lower()
    lab.kubectl("set", "image", f"{kind}/{component}", f"{component}={name}", IN_SYSTEM)


def wait_for_rollout(lab: Lab, component: str) -> None:
    deployment.wait_for_rollout(lab.cluster, VARIANT.workload_kind(component), component)


def pods(lab: Lab, component: str, tag: str) -> list[dict[str, Any]]:
    found = json.loads(lab.kubectl("get", "pods", IN_SYSTEM, f"--selector=app={component}", "--output=json"))["items"]
    return [pod for pod in found if pod["spec"]["containers"][0]["image"].endswith(f":{tag}")]


def waiting_reason(pod: dict[str, Any]) -> str:
    for status in pod["status"].get("containerStatuses", []):
        return str(status["state"].get("waiting", {}).get("reason", ""))
    return ""


def is_ready(pod: dict[str, Any]) -> bool:
    conditions = {entry["type"]: entry["status"] for entry in pod["status"].get("conditions", [])}
    return conditions.get("Ready") == "True"


@pytest.fixture
def bridge(lab: Lab) -> Iterator[str]:
    """Return the component that bad images are tried on; it is back on v1 afterwards."""
    yield "nephio-bridge"
    set_image(lab, "nephio-bridge", "v1")
    wait_for_rollout(lab, "nephio-bridge")


def ask(lab: Lab, object_id: str) -> httpx.Response:
    body = {"query": "what", "object_id": object_id}
    return httpx.post(f"{lab.config.llm_processor_url}/process", json=body, trust_env=False)


def test_chain_answers_with_the_known_object_and_the_versions(lab: Lab) -> None:
    answer = ask(lab, seed.object_id(seed.KNOWLEDGE, 17))
    assert answer.status_code == 200
    found = answer.json()
    assert (found["title"], found["processor_version"]) == ("knowledge-17", "v1")


def test_chain_masks_no_error(lab: Lab) -> None:
    answer = ask(lab, seed.object_id(seed.KNOWLEDGE, 999_999))
    assert answer.status_code == 502
    assert "status 404" in answer.json()["error"]


def test_weaviate_refuses_who_has_no_key(lab: Lab) -> None:
    assert httpx.get(f"{lab.config.weaviate_url}/v1/schema", trust_env=False).status_code == 401


def test_every_object_is_on_every_node(lab: Lab) -> None:
    with seed.client(lab.config) as weaviate:
        nodes = weaviate.get("/v1/nodes", params={"output": "verbose"}).json()["nodes"]
    counts = {
        (node["name"], shard["class"]): shard["objectCount"] for node in nodes for shard in node.get("shards") or []
    }
    assert len(nodes) == 3
    assert len(counts) == 3 * len(seed.CLASSES)


INTENTS = {
    "nephoran.com/v1": {"intent": "deploy AMF with 2 replicas", "intentType": "deployment"},
    "intent.nephoran.com/v1alpha1": {
        "source": "test",
        "intentType": "scaling",
        "target": "maintenance-sandbox",
        "namespace": SYSTEM_NAMESPACE,
        "replicas": 2,
    },
}


def create_intent(lab: Lab, api_version: str, name: str, spec: dict[str, Any]) -> str:
    """Create the intent and return its kind as kubectl must be told it: the plural alone is ambiguous."""
    manifest = {
        "apiVersion": api_version,
        "kind": "NetworkIntent",
        "metadata": {"name": name, "namespace": SYSTEM_NAMESPACE},
        "spec": spec,
    }
    lab.kubectl("create", "--filename=-", input=json.dumps(manifest))
    return f"networkintents.{api_version.partition('/')[0]}"


def phase(lab: Lab, kind: str, name: str) -> str:
    return str(lab.get(kind, name, SYSTEM_NAMESPACE).get("status", {}).get("phase"))


def policies(lab: Lab) -> list[str]:
    address = lab.config.service_address("oran-adaptor")
    return list(httpx.get(f"http://{address}:8082/a1-p/policytypes/100/policies", trust_env=False).json())


@pytest.mark.parametrize("api_version", INTENTS)
def test_intent_is_deployed_with_a_policy_and_leaves_with_it(lab: Lab, api_version: str) -> None:
    name = f"lab-test-{api_version.partition('.')[0]}"
    kind = create_intent(lab, api_version, name, INTENTS[api_version])
    try:
        wait_until("Deployed", lambda: phase(lab, kind, name) == "Deployed", limit=LIMIT, interval=SLOW_POLL)
        assert f"policy-{name}" in policies(lab)
        finalizers = lab.get(kind, name, SYSTEM_NAMESPACE)["metadata"]["finalizers"]
        assert finalizers == ["intent.nephoran.com/a1-policy-cleanup"]
    finally:
        lab.kubectl("delete", kind, name, IN_SYSTEM, "--timeout=30s")
    assert f"policy-{name}" not in policies(lab)


def test_intent_without_a_source_ends_in_error(lab: Lab) -> None:
    kind = create_intent(lab, "intent.nephoran.com/v1alpha1", "lab-test-invalid", {"intentType": "deployment"})
    try:
        wait_until("Error", lambda: phase(lab, kind, "lab-test-invalid") == "Error", limit=LIMIT, interval=SLOW_POLL)
    finally:
        lab.kubectl("delete", kind, "lab-test-invalid", IN_SYSTEM, "--timeout=30s")


def test_crashing_image_crash_loops(lab: Lab, bridge: str) -> None:
    set_image(lab, bridge, "v2-crash")
    wait_until(
        "a crash loop",
        lambda: any(waiting_reason(pod) == "CrashLoopBackOff" for pod in pods(lab, bridge, "v2-crash")),
        limit=LIMIT,
        interval=SLOW_POLL,
    )
    assert all(is_ready(pod) for pod in pods(lab, bridge, "v1"))


def test_image_that_is_not_in_the_registry_is_not_pulled(lab: Lab, bridge: str) -> None:
    set_image(lab, bridge, "v2-missing")
    wait_until(
        "ImagePullBackOff",
        lambda: any(waiting_reason(pod) == "ImagePullBackOff" for pod in pods(lab, bridge, "v2-missing")),
        limit=LIMIT,
        interval=SLOW_POLL,
    )


def test_image_that_is_never_ready_runs_into_the_progress_deadline(lab: Lab, bridge: str) -> None:
    set_image(lab, bridge, "v2-never-ready")

    def deadline_is_over() -> bool:
        conditions = lab.get("deployment", bridge, SYSTEM_NAMESPACE)["status"]["conditions"]
        return any(entry.get("reason") == "ProgressDeadlineExceeded" for entry in conditions)

    wait_until("the progress deadline", deadline_is_over, limit=LIMIT, interval=SLOW_POLL)
    (pod,) = pods(lab, bridge, "v2-never-ready")
    assert (pod["status"]["phase"], is_ready(pod)) == ("Running", False)
    assert pod["status"]["containerStatuses"][0]["restartCount"] == 0


def test_slow_start_gets_ready_in_time(lab: Lab, bridge: str) -> None:
    set_image(lab, bridge, "v2-slow-start")
    wait_for_rollout(lab, bridge)
    (pod,) = pods(lab, bridge, "v2-slow-start")
    assert pod["status"]["containerStatuses"][0]["restartCount"] == 0


def test_image_with_errors_is_ready_and_fails_a_fifth(lab: Lab, bridge: str) -> None:
    set_image(lab, bridge, "v2-errors")
    wait_for_rollout(lab, bridge)
    wait_until("the old pod's end", lambda: not pods(lab, bridge, "v1"), limit=LIMIT, interval=SLOW_POLL)
    url = f"http://{lab.config.service_address(bridge)}:8081/packages"
    statuses = [httpx.get(url, trust_env=False).status_code for _ in range(50)]
    assert statuses.count(500) == 10


def test_one_503_of_the_registry_is_survived(lab: Lab, bridge: str) -> None:
    with failing_registry(lab.config, images.repository(bridge), "v2-flaky") as failures_left:
        set_image(lab, bridge, "v2-flaky")
        wait_for_rollout(lab, bridge)
        assert failures_left() == 0
    events = lab.kubectl("get", "events", IN_SYSTEM, "--field-selector=reason=Failed", "--output=json")
    failed = [event["message"] for event in json.loads(events)["items"]]
    assert any("v2-flaky" in message and "503" in message for message in failed), failed


@pytest.mark.slow
@pytest.mark.parametrize("component", ["rag-api", "llm-processor"])
def test_rolling_a_stateless_component_loses_no_request(lab: Lab, component: str) -> None:
    with Traffic(lab.config) as traffic:
        set_image(lab, component, "v2")
        wait_for_rollout(lab, component)
        wait_until("the old pods' end", lambda: not pods(lab, component, "v1"), limit=LIMIT, interval=SLOW_POLL)
    assert traffic.result.sent > 60
    assert traffic.result.failures == []


@pytest.mark.slow
def test_stepping_weaviate_by_ordinal_loses_no_read(lab: Lab) -> None:
    """The way that the product goes: next ordinal after a query on the new one, and all nodes in step."""
    with Traffic(lab.config) as traffic, seed.client(lab.config) as weaviate:
        set_partition(lab, 3)
        set_image(lab, WEAVIATE, "v2")
        for ordinal in (2, 1, 0):
            set_partition(lab, ordinal)
            pod = f"weaviate-{ordinal}"
            wait_until(
                f"the new {pod} to answer",
                lambda pod=pod: answers_a_query(lab, pod),  # type: ignore[misc]
                limit=LIMIT,
                interval=SLOW_POLL,
            )
            wait_until("all in step", lambda: seed.in_step(weaviate, 3), limit=LIMIT, interval=SLOW_POLL)
    assert traffic.result.sent > 300
    assert traffic.result.failures == []


def set_partition(lab: Lab, partition: int) -> None:
    update = {"spec": {"updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": partition}}}}
    lab.kubectl("patch", "statefulset", WEAVIATE, IN_SYSTEM, "--type=merge", f"--patch={json.dumps(update)}")


def answers_a_query(lab: Lab, name: str) -> bool:
    everything = json.loads(lab.kubectl("get", "pods", IN_SYSTEM, f"--selector=app={WEAVIATE}", "--output=json"))[
        "items"
    ]
    new = [
        pod
        for pod in everything
        if pod["metadata"]["name"] == name and pod["spec"]["containers"][0]["image"].endswith(":v2")
    ]
    if not new or not is_ready(new[0]):
        return False
    url = f"http://{new[0]['status']['podIP']}:8080/v1/objects/{seed.KNOWLEDGE}/{seed.object_id(seed.KNOWLEDGE, 3)}"
    key = {"Authorization": f"Bearer {lab.config.secret('weaviate-api-key')}"}
    return httpx.get(url, headers=key, trust_env=False).status_code == 200
