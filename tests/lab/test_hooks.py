"""The hooks and triggers with the procedures' own ServiceAccounts, against a real cluster. They read only."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from lab import buckets
from lab.airflow_access import MANIFESTS, connections, issue_token, kubeconfig, write_profile
from nephoran_maintenance.errors import PermanentError
from nephoran_maintenance.hooks.async_cluster import AsyncClusterHook
from nephoran_maintenance.hooks.cluster import ClusterHook
from nephoran_maintenance.hooks.evidence import collect_evidence
from nephoran_maintenance.hooks.image_registry import ImageRegistryHook
from nephoran_maintenance.hooks.object_store import ObjectStoreHook
from nephoran_maintenance.hooks.prometheus_api import PrometheusHook
from nephoran_maintenance.hooks.weaviate_api import WeaviateHook
from nephoran_maintenance.profile import SystemProfile, load_profile
from nephoran_maintenance.triggers.base import PollingTrigger
from nephoran_maintenance.triggers.condition import WeaviateNodeTrigger
from nephoran_maintenance.triggers.probe import ProbeTrigger, read_samples
from nephoran_maintenance.triggers.rollout import RolloutTrigger
from tests.lab.conftest import VARIANT

if TYPE_CHECKING:
    from conftest import Lab

UPGRADE = "kubernetes_rolling_upgrade"
SYSTEM = "nephoran-system"


@pytest.fixture(scope="module")
def access(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SystemProfile]:
    """Give this process the connections that the lab's Airflow gets, and return the lab's profile."""
    for manifests in MANIFESTS:
        lab.kubectl("apply", "--server-side", "--filename", str(manifests))
    path = tmp_path_factory.mktemp("profile") / "profile.yaml"
    write_profile(lab.config, path, VARIANT)
    with pytest.MonkeyPatch.context() as monkeypatch:
        found = connections(lab.config, lambda account: issue_token(lab.cluster, account))
        for name, connection in found.items():
            monkeypatch.setenv(f"AIRFLOW_CONN_{name.upper()}", json.dumps(connection))
        yield load_profile(path)


@pytest.fixture
def cluster(access: SystemProfile) -> ClusterHook:
    return ClusterHook(UPGRADE)


def running(cluster: ClusterHook, access: SystemProfile, name: str) -> tuple[dict[str, Any], list[str]]:
    workload = cluster.get_workload(access.component(name), SYSTEM)
    return workload, [pod["metadata"]["name"] for pod in cluster.pods_of(workload)]


async def only_event(of: PollingTrigger) -> dict[str, Any]:
    async def collect() -> list[Any]:
        return [found.payload async for found in of.run()]

    events = await asyncio.wait_for(collect(), 60)
    assert len(events) == 1
    return dict(events[0])


def test_acts_as_the_procedures_own_service_account(cluster: ClusterHook) -> None:
    assert cluster.who_am_i() == "system:serviceaccount:nephoran-maintenance:rolling-upgrade"
    assert cluster.server_version().startswith("v1.36")


def test_knows_beforehand_what_it_may_not_do(cluster: ClusterHook) -> None:
    accesses = [
        {"verb": "patch", "group": "apps", "resource": "deployments", "namespace": SYSTEM},
        {"verb": "get", "resource": "pods/log", "namespace": SYSTEM},
        {"verb": "get", "resource": "secrets", "namespace": SYSTEM},
        {"verb": "create", "resource": "pods/exec", "namespace": SYSTEM},
    ]
    assert cluster.can_i(accesses) == [True, True, False, False]


def test_a_missing_permission_names_verb_resource_and_account(cluster: ClusterHook) -> None:
    with pytest.raises(PermanentError) as error:
        cluster.list("Secret", SYSTEM)
    assert error.value.reference == "cluster-forbidden"
    assert "list secrets in namespace nephoran-system" in error.value.message
    assert error.value.context["account"] == "system:serviceaccount:nephoran-maintenance:rolling-upgrade"


def test_a_token_that_is_no_longer_valid_is_named(
    lab: Lab, access: SystemProfile, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = issue_token(lab.cluster, "preflight")
    head, claims, signature = token.split(".")
    expired = json.loads(base64.urlsafe_b64decode(claims + "=="))
    expired["exp"] = expired["iat"] - 3600
    forged = base64.urlsafe_b64encode(json.dumps(expired).encode()).decode().rstrip("=")
    config = kubeconfig(lab.config, f"{head}.{forged}.{signature}")
    value = json.dumps({"conn_type": "kubernetes", "extra": {"kube_config": config}})
    monkeypatch.setenv("AIRFLOW_CONN_KUBERNETES_EXPIRED", value)
    with pytest.raises(PermanentError) as error:
        ClusterHook("kubernetes_expired").server_version()
    assert error.value.reference == "cluster-unauthorized"
    assert "kubernetes_expired" in error.value.message


def test_discovers_every_component_of_the_profile(cluster: ClusterHook, access: SystemProfile) -> None:
    for component in access.components:
        workload, pods = running(cluster, access, component.name)
        assert workload["kind"] in ("Deployment", "StatefulSet")
        assert len(pods) >= int(workload["spec"]["replicas"])


def test_reads_health_logs_and_events_of_a_component(cluster: ClusterHook, access: SystemProfile) -> None:
    workload, pods = running(cluster, access, "rag-api")
    assert cluster.pod_http_get(SYSTEM, pods[0], 8000, "/readyz")[0] == 200
    assert cluster.logs(SYSTEM, pods[0], "rag-api", tail_lines=5).strip()
    assert isinstance(cluster.workload_events(workload), list)
    evidence = collect_evidence(
        cluster, namespace=SYSTEM, kind=workload["kind"], name="rag-api", pod=pods[0], container="rag-api"
    )
    assert evidence["log"]
    assert evidence["not_read"] == []


def test_a_dry_run_shows_the_change_and_makes_none(cluster: ClusterHook, access: SystemProfile) -> None:
    before, _ = running(cluster, access, "rag-api")
    body = {"spec": {"template": {"spec": {"containers": [{"name": "rag-api", "image": "example/rag-api:v9"}]}}}}
    shown = cluster.patch("Deployment", before["metadata"]["name"], SYSTEM, body, dry_run=True)
    assert shown["spec"]["template"]["spec"]["containers"][0]["image"] == "example/rag-api:v9"
    after, _ = running(cluster, access, "rag-api")
    assert after["spec"] == before["spec"]


def test_asks_one_weaviate_pod_with_its_key(cluster: ClusterHook, access: SystemProfile) -> None:
    _, pods = running(cluster, access, "weaviate")
    known = access.known_objects
    assert known is not None
    for pod in pods:
        with cluster.port_forward(SYSTEM, pod, 8080) as url:
            weaviate = WeaviateHook(access.connections.weaviate, base_url=url)
            assert weaviate.ready()
            assert weaviate.synchronized()
            found = weaviate.get_object(known.collection, known.id_of(0))
            assert found is not None
            assert found["properties"]["title"] == f"{known.title}-0"


def test_registry_prometheus_and_object_store_answer(lab: Lab, access: SystemProfile) -> None:
    registry = ImageRegistryHook(access.connections.image_registry)
    image = f"{lab.config.registry}/nephoran/rag-api"
    assert {"v1", "v2"} <= set(registry.tags(image))
    assert registry.digest(f"{image}:v1") != registry.digest(f"{image}:v2")
    assert registry.config_labels(f"{image}:v2")["org.opencontainers.image.version"] == "v2"
    assert registry.find_digest(f"{image}:v2-missing") is None
    assert PrometheusHook(access.connections.prometheus).ready()
    store = ObjectStoreHook(access.connections.object_store, bucket=buckets.REPORTS)
    store.put_text("reports/test_hooks/report.json", "{}")
    assert store.get_text("reports/test_hooks/report.json") == "{}"


async def test_triggers_see_what_the_hook_sees(cluster: ClusterHook, access: SystemProfile) -> None:
    _, pods = running(cluster, access, "rag-api")
    async with AsyncClusterHook(UPGRADE) as asynchronous:
        workload = await asynchronous.get("Deployment", "rag-api", SYSTEM)
        found = [pod["metadata"]["name"] for pod in await asynchronous.pods_of(workload)]
    assert sorted(found) == sorted(pods)


@pytest.mark.parametrize("name", ["weaviate", "rag-api"])
async def test_a_finished_rollout_is_complete_at_once(cluster: ClusterHook, access: SystemProfile, name: str) -> None:
    workload, _ = running(cluster, access, name)
    trigger = RolloutTrigger(
        connection_id=UPGRADE,
        namespace=SYSTEM,
        kind=workload["kind"],
        name=workload["metadata"]["name"],
        container=name,
        since=datetime.now(UTC).isoformat(),
        deadline_at=(datetime.now(UTC) + timedelta(seconds=30)).isoformat(),
    )
    assert (await only_event(trigger))["state"] == "complete"


async def test_a_weaviate_pod_that_takes_part_is_complete_at_once(cluster: ClusterHook, access: SystemProfile) -> None:
    _, pods = running(cluster, access, "weaviate")
    known = access.known_objects
    assert known is not None
    trigger = WeaviateNodeTrigger(
        connection_id=UPGRADE,
        weaviate_connection_id=access.connections.weaviate,
        namespace=SYSTEM,
        pod=pods[0],
        collection=known.collection,
        object_id=known.id_of(0),
        healthy_nodes=len(pods),
        deadline_at=(datetime.now(UTC) + timedelta(seconds=30)).isoformat(),
    )
    found = await only_event(trigger)
    assert (found["state"], found["missing"]) == ("complete", "")


async def test_the_probe_measures_a_system_at_rest_without_a_failure(access: SystemProfile, tmp_path: Path) -> None:
    probe, known = access.probe, access.known_objects
    assert probe is not None
    assert known is not None
    trigger = ProbeTrigger(
        url=probe.url,
        rate_per_second=probe.rate_per_second,
        timeout_seconds=probe.timeout_seconds,
        collection=known.collection,
        known_objects_count=known.count,
        object_name_template=f"{known.prefix}/{{collection}}/{{number}}",
        title_template=f"{known.title}-{{number}}",
        samples_path=str(tmp_path / "samples.jsonl"),
        kubernetes_connection_id=UPGRADE,
        journal_namespace=access.namespaces.maintenance,
        journal_name="no-such-operation",
        deadline_seconds=3.0,
    )
    found = await only_event(trigger)
    assert found["state"] == "complete"
    summary = found["summary"]
    assert summary["failures"] == []
    # Each slot was used or is told as left out: what a busy machine does not manage is no rate of the system.
    assert summary["sent"] + summary["skipped"] >= 2.0 * probe.rate_per_second
    assert {sample["versions"] for sample in read_samples(tmp_path / "samples.jsonl")} != {""}
