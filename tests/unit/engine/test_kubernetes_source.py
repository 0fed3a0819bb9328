"""The Kubernetes objects of a backup, captured from an API server on loopback."""

from __future__ import annotations

import json
from typing import Any

import pytest

from nephoran_maintenance.domain.capture import digest_of
from nephoran_maintenance.engine.sources import KubernetesObjects
from nephoran_maintenance.errors import MaintenanceError
from nephoran_maintenance.hooks.cluster import ClusterHook
from tests.unit.hooks.fake_servers import FakeCluster, Received, Reply, Server, status_object

SYSTEM, MONITORING, OWN = "nephoran-system", "nephoran-monitoring", "nephoran-maintenance"
RBAC = "rbac.authorization.k8s.io"
INTENTS = "networkintents"


def resource(plural: str, kind: str, *, cluster: bool = False) -> dict[str, Any]:
    scope = "Cluster" if cluster else "Namespaced"
    return {"resource": plural, "responseKind": {"kind": kind}, "scope": scope, "verbs": ["get", "list"]}


def group(name: str, version: str, *resources: dict[str, Any], freshness: str = "Current") -> dict[str, Any]:
    versions = [{"version": version, "resources": list(resources), "freshness": freshness}]
    return {"metadata": {"name": name}, "versions": versions}


GROUPS = [
    group("apps", "v1", resource("deployments", "Deployment")),
    group("nephoran.com", "v1", resource(INTENTS, "NetworkIntent")),
    group("intent.nephoran.com", "v1alpha1", resource(INTENTS, "NetworkIntent")),
    group(
        "apiextensions.k8s.io", "v1", resource("customresourcedefinitions", "CustomResourceDefinition", cluster=True)
    ),
    group(
        RBAC,
        "v1",
        resource("clusterroles", "ClusterRole", cluster=True),
        resource("clusterrolebindings", "ClusterRoleBinding", cluster=True),
    ),
]
CORE = group(
    "",
    "v1",
    resource("pods", "Pod"),
    resource("configmaps", "ConfigMap"),
    resource("secrets", "Secret"),
    resource("namespaces", "Namespace", cluster=True),
)


@pytest.fixture
def system(fake_cluster: FakeCluster) -> FakeCluster:
    fake_cluster.extra = {
        "/api": Reply(200, {"kind": "APIGroupDiscoveryList", "items": [CORE]}),
        "/apis": Reply(200, {"kind": "APIGroupDiscoveryList", "items": GROUPS}),
    }

    def put(path: str, name: str, namespace: str | None = None, **fields: Any) -> None:
        metadata = {"name": name, "uid": f"uid-{name}", **({"namespace": namespace} if namespace else {})}
        fake_cluster.put(path, {"kind": "Thing", "metadata": {**metadata, **fields.pop("metadata", {})}, **fields})

    for namespace in (SYSTEM, MONITORING, OWN, "default"):
        put("/api/v1/namespaces", namespace)
        put(f"/api/v1/namespaces/{namespace}/configmaps", "settings", namespace, data={"of": namespace})
        put(f"/api/v1/namespaces/{namespace}/configmaps", "kube-root-ca.crt", namespace)
    put(f"/api/v1/namespaces/{SYSTEM}/secrets", "key", SYSTEM, type="Opaque", data={"key": "c2VjcmV0"})
    put(f"/api/v1/namespaces/{SYSTEM}/pods", "pod", SYSTEM)
    put(f"/apis/apps/v1/namespaces/{SYSTEM}/deployments", "rag-api", SYSTEM, spec={"replicas": 2}, status={"x": 1})
    for api_version in ("nephoran.com/v1", "intent.nephoran.com/v1alpha1"):
        for namespace in (SYSTEM, "elsewhere"):
            path = f"/apis/{api_version}/namespaces/{namespace}/{INTENTS}"
            put(path, "intent", namespace, spec={"intent": api_version}, status={"phase": "Deployed"})
    for name in ("nephoran.com", "example.com"):
        put("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", f"things.{name}", spec={"group": name})
    subject = {"kind": "ServiceAccount", "name": "operator", "namespace": SYSTEM}
    reference = {"kind": "ClusterRole", "name": "manager"}
    put(f"/apis/{RBAC}/v1/clusterrolebindings", "manager", subjects=[subject], roleRef=reference)
    for name in ("manager", "foreign"):
        put(f"/apis/{RBAC}/v1/clusterroles", name)
    return fake_cluster


def source_of(parent: dict[str, str] | None = None) -> KubernetesObjects:
    cluster = ClusterHook("kubernetes_test")
    return KubernetesObjects(cluster, namespaces=(SYSTEM, MONITORING), own_namespace=OWN, parent=parent)


def read(source: KubernetesObjects) -> dict[str, bytes]:
    return {member.path: b"".join(member.chunks) for member in source}


EXPECTED = sorted(
    [
        "kubernetes/objects/cluster/customresourcedefinitions.apiextensions.k8s.io/things.nephoran.com.json",
        f"kubernetes/objects/cluster/namespaces/{SYSTEM}.json",
        f"kubernetes/objects/cluster/namespaces/{MONITORING}.json",
        f"kubernetes/objects/namespaces/{SYSTEM}/configmaps/settings.json",
        f"kubernetes/objects/namespaces/{MONITORING}/configmaps/settings.json",
        f"kubernetes/objects/namespaces/{SYSTEM}/secrets/key.json",
        f"kubernetes/objects/namespaces/{SYSTEM}/deployments.apps/rag-api.json",
        *(
            f"kubernetes/{folder}/namespaces/{namespace}/{INTENTS}.{name}/intent.json"
            for folder in ("objects", "records")
            for namespace in (SYSTEM, "elsewhere")
            for name in ("nephoran.com", "intent.nephoran.com")
        ),
        f"kubernetes/objects/cluster/clusterrolebindings.{RBAC}/manager.json",
        f"kubernetes/objects/cluster/clusterroles.{RBAC}/manager.json",
    ]
)


def test_captures_what_belongs_to_the_system_and_nothing_else(cluster_server: Server, system: FakeCluster) -> None:
    source = source_of()
    files = read(source)
    assert sorted(files) == EXPECTED
    assert source.outcome.state == "captured"
    assert source.outcome.facts["objects"] == len([path for path in EXPECTED if "/objects/" in path])
    assert source.digests == {path: digest_of(content) for path, content in files.items()}
    assert set(source.outcome.facts["left_out"]) >= {"made in every namespace", "of another group", "another namespace"}


def test_what_was_captured_can_be_applied(cluster_server: Server, system: FakeCluster) -> None:
    files = read(source_of())
    found = json.loads(files[f"kubernetes/objects/namespaces/{SYSTEM}/deployments.apps/rag-api.json"])
    assert found == {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "rag-api", "namespace": SYSTEM},
        "spec": {"replicas": 2},
    }


def test_sizes_are_those_of_the_content(cluster_server: Server, system: FakeCluster) -> None:
    assert all(member.size_bytes == len(b"".join(member.chunks)) for member in source_of())


def test_an_increment_holds_what_changed_and_says_what_is_gone(cluster_server: Server, system: FakeCluster) -> None:
    first = source_of()
    read(first)
    path = f"/api/v1/namespaces/{SYSTEM}/configmaps"
    system.put(path, {"metadata": {"name": "settings", "namespace": SYSTEM}, "data": {"of": "new"}})
    system.put(path, {"metadata": {"name": "more", "namespace": SYSTEM}})
    del system.objects[f"/api/v1/namespaces/{SYSTEM}/secrets/key"]
    second = source_of(dict(first.digests))
    assert sorted(read(second)) == [
        f"kubernetes/objects/namespaces/{SYSTEM}/configmaps/{name}.json" for name in ("more", "settings")
    ]
    found = second.difference
    assert [len(part) for part in (found.added, found.changed, found.deleted)] == [1, 1, 1]
    assert found.deleted[0].endswith("/secrets/key.json")


def test_a_list_that_expires_leaves_a_whole_backup_and_is_named(cluster_server: Server, system: FakeCluster) -> None:
    path = f"/api/v1/namespaces/{SYSTEM}/configmaps"
    for number in range(60):
        system.put(path, {"metadata": {"name": f"many-{number:02d}", "namespace": SYSTEM}})
    expired: list[Received] = []

    def expire(request: Received) -> Reply | None:
        if "continue" in request.query and not expired:
            expired.append(request)
            del system.objects[f"{path}/many-00"]
            return status_object(410, "Expired", "too old")
        return None

    system.fail = expire
    source = source_of()
    files = read(source)
    kept = {path for path in source.digests if "many-" in path}
    assert len(kept) == 59
    assert {path: digest_of(files[path]) for path in kept} == {path: source.digests[path] for path in kept}
    assert source.outcome.facts["superseded"] == [f"kubernetes/objects/namespaces/{SYSTEM}/configmaps/many-00.json"]
    assert source.outcome.facts["restarted_lists"] == [f"configmaps in namespace {SYSTEM}"]


def test_a_forbidden_list_fails_the_source_and_is_named(cluster_server: Server, system: FakeCluster) -> None:
    system.fail = lambda request: status_object(403, "Forbidden", "no") if request.path.endswith("/secrets") else None
    source = source_of()
    with pytest.raises(MaintenanceError) as caught:
        read(source)
    assert caught.value.reference == "cluster-forbidden"
    assert (source.outcome.state, f"secrets in namespace {SYSTEM}" in source.outcome.message) == ("failed", True)


def test_a_group_that_does_not_say_what_it_serves_fails_the_source(cluster_server: Server, system: FakeCluster) -> None:
    items = [*GROUPS, group("away.example.com", "v1", freshness="Stale")]
    system.extra["/apis"] = Reply(200, {"kind": "APIGroupDiscoveryList", "items": items})
    source = source_of()
    with pytest.raises(MaintenanceError, match=r"away\.example\.com/v1"):
        read(source)
    assert source.outcome.state == "failed"


def test_a_source_that_is_left_in_the_middle_is_not_captured(cluster_server: Server, system: FakeCluster) -> None:
    source = source_of()
    next(iter(source))
    assert source.outcome.state == "failed"


def test_names_configuration_that_a_workload_needs_and_that_is_nowhere(
    cluster_server: Server, system: FakeCluster
) -> None:
    container = {
        "name": "rag-api",
        "envFrom": [{"configMapRef": {"name": "settings"}}, {"secretRef": {"name": "lost"}}],
        "env": [{"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "key", "key": "key"}}}],
    }
    spec = {"replicas": 1, "template": {"spec": {"containers": [container]}}}
    path = f"/apis/apps/v1/namespaces/{SYSTEM}/deployments"
    system.put(path, {"metadata": {"name": "rag-api", "namespace": SYSTEM}, "spec": spec})
    source = source_of()
    read(source)
    assert source.outcome.facts["missing_references"] == [f"{SYSTEM}: Secret lost"]
