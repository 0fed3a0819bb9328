"""The blocking cluster hook against an API server on loopback."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nephoran_maintenance.errors import MaintenanceError, PermanentError, TransientError
from nephoran_maintenance.hooks.cluster import ClusterHook
from nephoran_maintenance.hooks.kubernetes_rest import Resource
from tests.unit.hooks.fake_servers import (
    FakeCluster,
    Received,
    Reply,
    Server,
    connection_json,
    deployment,
    event,
    kube_config,
    pod,
    serving,
    status_object,
)

NAMESPACE = "/api/v1/namespaces/ns"
APPS = "/apis/apps/v1/namespaces/ns"


@pytest.fixture
def cluster(cluster_server: Server) -> ClusterHook:
    return ClusterHook("kubernetes_test")


def component(label: str, **workload: Any) -> Any:
    reference = SimpleNamespace(kind=None, name=None, selector=None)
    reference.__dict__.update(workload)
    return SimpleNamespace(name=label, workload=reference)


def set_connection(monkeypatch: pytest.MonkeyPatch, **extra: Any) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_KUBERNETES_TEST", connection_json(conn_type="kubernetes", extra=extra))


# --------------------------------------------------------------------------------------------------------- reading


def test_sends_the_token_of_the_connection(cluster: ClusterHook, cluster_server: Server) -> None:
    assert cluster.server_version() == "v1.36.4"
    assert cluster_server.received[0].headers["authorization"] == "Bearer token-of-the-test"


@pytest.mark.parametrize("as_text", [False, True], ids=["object", "json-text"])
def test_accepts_kube_config_as_object_and_as_text(
    cluster_server: Server, monkeypatch: pytest.MonkeyPatch, as_text: bool
) -> None:
    config = kube_config(cluster_server.url)
    set_connection(monkeypatch, kube_config=json.dumps(config) if as_text else config)
    assert ClusterHook("kubernetes_test").server_version() == "v1.36.4"


def test_accepts_the_path_of_a_kubeconfig(
    cluster_server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    path = tmp_path / "kubeconfig"
    path.write_text(json.dumps(kube_config(cluster_server.url)))
    set_connection(monkeypatch, kube_config_path=str(path))
    assert ClusterHook("kubernetes_test").server_version() == "v1.36.4"


def test_takes_the_account_of_the_pod_it_runs_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, content in (("TOKEN", "token-of-the-pod"), ("CERT", "certificate")):
        (tmp_path / name).write_text(content)
        monkeypatch.setattr(f"kubernetes.config.incluster_config.SERVICE_{name}_FILENAME", str(tmp_path / name))
    set_connection(monkeypatch, in_cluster=True)
    with pytest.raises(PermanentError, match="no usable kubeconfig"):
        ClusterHook("kubernetes_test").api_client  # noqa: B018 (outside of a cluster)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.96.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    for extra in ({"in_cluster": True}, {}):
        set_connection(monkeypatch, **extra)
        cluster = ClusterHook("kubernetes_test")
        # An ApiClient of its own would read the certificate.
        monkeypatch.setattr("kubernetes.client.ApiClient", lambda found: SimpleNamespace(configuration=found))
        assert cluster.server == "10.96.0.1:443"
        token = cluster.api_client.configuration.auth_settings()["BearerToken"]["value"]
        assert token == "bearer token-of-the-pod"


def test_a_connection_that_says_nothing_means_the_default_kubeconfig(
    cluster_server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "kubeconfig"
    path.write_text(json.dumps(kube_config(cluster_server.url)))
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(path))
    set_connection(monkeypatch)
    assert ClusterHook("kubernetes_test").server_version() == "v1.36.4"


def test_notices_a_connection_that_a_firewall_has_dropped(cluster: ClusterHook) -> None:
    options = cluster.api_client.rest_client.pool_manager.connection_pool_kw["socket_options"]
    assert (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1) in options


def test_loads_no_second_client_library() -> None:
    """The provider's hook would: 40 MiB in every task."""
    code = (
        "import sys\n"
        "from nephoran_maintenance.hooks.cluster import ClusterHook\n"
        "from nephoran_maintenance.hooks.kubernetes_rest import ClusterSettings\n"
        f"ClusterHook('x', settings=ClusterSettings('x', kube_config={kube_config('http://127.0.0.1:1')!r})).api_client\n"
        "assert 'kubernetes' in sys.modules and 'kubernetes_asyncio' not in sys.modules\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0


def test_token_of_the_connection_is_never_written_to_a_file(
    cluster: ClusterHook, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    cluster.server_version()
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and b"token-of-the-test" in path.read_bytes()]


def test_two_connections_in_one_process_keep_their_own_server(
    cluster: ClusterHook, cluster_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(lambda request: Reply(200, {"gitVersion": "v1.0.0"})) as other:
        extra = {"kube_config": kube_config(other.url)}
        monkeypatch.setenv("AIRFLOW_CONN_KUBERNETES_OTHER", connection_json(conn_type="kubernetes", extra=extra))
        assert ClusterHook("kubernetes_other").server_version() == "v1.0.0"
        assert cluster.server_version() == "v1.36.4"
        assert ClusterHook("kubernetes_other").server_version() == "v1.0.0"


def test_list_gives_each_object_its_kind_and_reads_every_page(
    cluster: ClusterHook, cluster_server: Server, fake_cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nephoran_maintenance.hooks.cluster.PAGE_SIZE", 2)
    for number in range(5):
        fake_cluster.put(f"{NAMESPACE}/pods", pod(f"p-{number}", "a"))
    found = cluster.list("Pod", "ns")
    assert [item["metadata"]["name"] for item in found] == [f"p-{number}" for number in range(5)]
    assert {item["kind"] for item in found} == {"Pod"}
    assert len(cluster_server.requests("GET", f"{NAMESPACE}/pods")) == 3


def test_list_filters_by_labels(cluster: ClusterHook, fake_cluster: FakeCluster) -> None:
    fake_cluster.put(f"{NAMESPACE}/pods", pod("p-1", "a"))
    fake_cluster.put(f"{NAMESPACE}/pods", pod("p-2", "b"))
    assert [item["metadata"]["name"] for item in cluster.list("Pod", "ns", {"app": "b"})] == ["p-2"]


def test_find_returns_none_for_what_is_not_there(cluster: ClusterHook) -> None:
    assert cluster.find("ConfigMap", "journal-x", "ns") is None


def test_get_names_what_is_not_there(cluster: ClusterHook) -> None:
    with pytest.raises(PermanentError) as error:
        cluster.get("ConfigMap", "journal-x", "ns")
    assert error.value.reference == "not-found"
    assert error.value.message == "configmaps journal-x not found in namespace ns"


def test_reads_custom_objects(cluster: ClusterHook, fake_cluster: FakeCluster) -> None:
    path = "/apis/nephoran.com/v1/namespaces/ns/networkintents"
    fake_cluster.put(path, {"kind": "NetworkIntent", "metadata": {"name": "i-1"}})
    assert len(cluster.list_custom("nephoran.com", "v1", "networkintents")) == 1
    resource = Resource("nephoran.com", "v1", "networkintents")
    assert cluster.get(resource, "i-1", "ns")["metadata"]["name"] == "i-1"


def test_logs_of_a_container_and_of_its_previous_run(cluster: ClusterHook, fake_cluster: FakeCluster) -> None:
    fake_cluster.logs[("p-1", "main", False)] = "now\n"
    fake_cluster.logs[("p-1", "main", True)] = "before\n"
    assert cluster.logs("ns", "p-1", "main") == "now\n"
    assert cluster.logs("ns", "p-1", "main", previous=True) == "before\n"


def test_can_i_answers_in_the_order_asked(
    cluster: ClusterHook, cluster_server: Server, fake_cluster: FakeCluster
) -> None:
    fake_cluster.allowed = {("patch", "deployments"), ("get", "pods")}
    accesses = [
        {"verb": "patch", "group": "apps", "resource": "deployments", "namespace": "ns"},
        {"verb": "delete", "resource": "pods", "namespace": "ns"},
        {"verb": "get", "resource": "pods/log", "namespace": "ns"},
    ]
    assert cluster.can_i(accesses) == [True, False, True]
    attributes = cluster_server.received[2].json["spec"]["resourceAttributes"]
    assert attributes == {"verb": "get", "resource": "pods", "subresource": "log", "namespace": "ns"}


def test_metrics_are_none_where_the_cluster_serves_none(cluster: ClusterHook, fake_cluster: FakeCluster) -> None:
    fake_cluster.fail = lambda request: status_object(404, "NotFound", "the server could not find the resource")
    assert cluster.node_metrics() is None
    assert cluster.node_summary("node-1") is None


def test_events_of_a_workload_are_those_of_its_replica_sets_and_pods(
    cluster: ClusterHook, fake_cluster: FakeCluster
) -> None:
    workload = deployment("rag-api")
    for number, about in enumerate(
        [
            ("Deployment", "rag-api"),
            ("ReplicaSet", "rag-api-abc"),
            ("Pod", "rag-api-abc-1"),
            ("Pod", "other-1"),
            ("ReplicaSet", "rag-api-two-abc"),
        ]
    ):
        fake_cluster.put(f"{NAMESPACE}/events", event(f"e-{number}", about, "X", "x"))
    found = cluster.workload_events(workload, [pod("rag-api-abc-1", "rag-api")])
    assert [item["metadata"]["name"] for item in found] == ["e-0", "e-1", "e-2"]


# -------------------------------------------------------------------------------------------------------- workloads


@pytest.mark.parametrize(
    "reference",
    [{"name": "rag-api"}, {"kind": "Deployment", "name": "rag-api"}, {"selector": {"app": "rag-api"}}],
    ids=["by-name", "by-kind-and-name", "by-labels"],
)
def test_discovers_a_component(cluster: ClusterHook, fake_cluster: FakeCluster, reference: dict[str, Any]) -> None:
    fake_cluster.put(f"{APPS}/deployments", deployment("rag-api"))
    fake_cluster.put(f"{APPS}/deployments", deployment("llm-processor"))
    found = cluster.get_workload(component("rag-api", **reference), "ns")
    assert (found["kind"], found["metadata"]["name"]) == ("Deployment", "rag-api")


def test_discovers_a_component_by_the_labels_of_its_pods(cluster: ClusterHook, fake_cluster: FakeCluster) -> None:
    workload = deployment("vectors", labels={"app.kubernetes.io/name": "weaviate"})
    workload["metadata"]["labels"] = {}
    fake_cluster.put(f"{APPS}/deployments", workload)
    found = cluster.get_workload(component("weaviate", selector={"app.kubernetes.io/name": "weaviate"}), "ns")
    assert found["metadata"]["name"] == "vectors"


def test_names_a_component_that_is_not_in_the_cluster(cluster: ClusterHook) -> None:
    with pytest.raises(
        PermanentError, match="component rag-api: no Deployment or StatefulSet or DaemonSet rag-api"
    ) as e:
        cluster.get_workload(component("rag-api", name="rag-api"), "ns")
    assert e.value.reference == "component-not-found"
    assert "profile" in e.value.hint


def test_refuses_a_selector_that_matches_two_workloads(cluster: ClusterHook, fake_cluster: FakeCluster) -> None:
    for name in ("rag-api", "rag-api-two"):
        fake_cluster.put(f"{APPS}/deployments", deployment(name, labels={"app": "rag"}))
    with pytest.raises(PermanentError) as error:
        cluster.get_workload(component("rag-api", selector={"app": "rag"}), "ns")
    assert error.value.reference == "component-ambiguous"
    assert "Deployment rag-api, Deployment rag-api-two" in error.value.message


# ---------------------------------------------------------------------------------------------------------- writing


def test_creates_replaces_patches_and_deletes(
    cluster: ClusterHook, cluster_server: Server, fake_cluster: FakeCluster
) -> None:
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c", "namespace": "ns"}, "data": {"a": "1"}}
    stored = cluster.create(body)
    stored["data"]["a"] = "2"
    cluster.replace(stored)
    patched = cluster.patch("ConfigMap", "c", "ns", {"data": {"b": "3"}}, patch_type="merge")
    assert patched["data"] == {"a": "2", "b": "3"}
    assert cluster.delete("ConfigMap", "c", "ns") is True
    assert cluster.delete("ConfigMap", "c", "ns") is False
    assert {request.query.get("fieldManager") for request in cluster_server.received[:3]} == {"nephoran-maintenance"}


@pytest.mark.parametrize(
    ("patch_type", "content_type"),
    [
        ("json", "application/json-patch+json"),
        ("merge", "application/merge-patch+json"),
        ("strategic", "application/strategic-merge-patch+json"),
    ],
)
def test_patch_fails_when_somebody_was_faster(
    cluster: ClusterHook,
    cluster_server: Server,
    fake_cluster: FakeCluster,
    patch_type: Any,
    content_type: str,
) -> None:
    fake_cluster.put(f"{APPS}/deployments", deployment("rag-api"))
    body: Any = [{"op": "replace", "path": "/spec/replicas", "value": 3}] if patch_type == "json" else {"spec": {}}
    with pytest.raises(TransientError) as error:
        cluster.patch("Deployment", "rag-api", "ns", body, patch_type=patch_type, resource_version="1")
    assert error.value.reference == "conflict"
    assert cluster_server.received[-1].headers["content-type"] == content_type


def test_dry_run_changes_nothing(cluster: ClusterHook, cluster_server: Server, fake_cluster: FakeCluster) -> None:
    fake_cluster.put(f"{APPS}/deployments", deployment("rag-api"))
    answer = cluster.patch("Deployment", "rag-api", "ns", {"spec": {"replicas": 5}}, dry_run=True)
    assert answer["spec"]["replicas"] == 5
    assert cluster_server.received[-1].query["dryRun"] == "All"
    assert cluster.get("Deployment", "rag-api", "ns")["spec"]["replicas"] == 2


def test_create_of_what_exists_is_a_conflict(cluster: ClusterHook) -> None:
    body = {"kind": "ConfigMap", "metadata": {"name": "c", "namespace": "ns"}}
    cluster.create(body)
    with pytest.raises(TransientError) as error:
        cluster.create(body)
    assert error.value.reference == "conflict"


def test_deletes_only_the_object_with_the_uid(cluster: ClusterHook, fake_cluster: FakeCluster) -> None:
    fake_cluster.put(f"{NAMESPACE}/pods", {"kind": "Pod", "metadata": {"name": "p", "uid": "new"}})
    with pytest.raises(TransientError):
        cluster.delete("Pod", "p", "ns", uid="old")
    assert cluster.find("Pod", "p", "ns") is not None


def test_waits_until_finalizers_have_let_an_object_go(cluster: ClusterHook, fake_cluster: FakeCluster) -> None:
    fake_cluster.put(f"{NAMESPACE}/pods", {"kind": "Pod", "metadata": {"name": "p"}})
    pauses: list[float] = []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 2:
            fake_cluster.objects.clear()

    assert cluster.wait_until_gone("Pod", "p", "ns", timeout=timedelta(minutes=1), sleep=sleep)
    assert len(pauses) == 2


def test_a_write_is_sent_once_even_when_the_connection_breaks(
    cluster: ClusterHook, fake_cluster: FakeCluster, cluster_server: Server
) -> None:
    fake_cluster.fail = lambda request: Reply(hang_up=True)
    with pytest.raises(TransientError) as error:
        cluster.patch("Deployment", "rag-api", "ns", {})
    assert error.value.reference == "cluster-unreachable"
    assert len(cluster_server.received) == 1


# ------------------------------------------------------------------------------------------------- HTTP to workloads


def test_http_to_a_pod_returns_status_and_body(cluster: ClusterHook, fake_cluster: FakeCluster) -> None:
    fake_cluster.extra[f"{NAMESPACE}/pods/p-1:8000/proxy/readyz"] = Reply(503, "not yet")
    assert cluster.pod_http_get("ns", "p-1", 8000, "/readyz") == (503, "not yet")


def test_http_to_a_pod_tells_a_forbidden_proxy_from_a_pod_that_forbids(
    cluster: ClusterHook, fake_cluster: FakeCluster
) -> None:
    path = f"{NAMESPACE}/pods/p-1:8000/proxy/"
    fake_cluster.extra[path] = Reply(403, "no entry")
    assert cluster.pod_http_get("ns", "p-1", 8000) == (403, "no entry")
    message = 'pods "p-1" is forbidden: User "u" cannot get resource "pods/proxy" in API group ""'
    fake_cluster.extra[path] = status_object(403, "Forbidden", message)
    with pytest.raises(PermanentError) as error:
        cluster.pod_http_get("ns", "p-1", 8000)
    assert error.value.reference == "cluster-forbidden"


# ----------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("ready", [500, 403])
def test_a_refusal_of_an_api_server_that_just_starts_is_no_verdict(
    cluster: ClusterHook, fake_cluster: FakeCluster, ready: int
) -> None:
    fake_cluster.ready = ready
    fake_cluster.fail = lambda _: status_object(403, "Forbidden", 'RBAC: role "upgrade" not found')
    with pytest.raises(TransientError) as error:
        cluster.get("Pod", "p-1", "ns")
    assert error.value.reference == "cluster-unavailable"
    assert f"/readyz answers {ready}" in str(error.value)


def test_what_was_refused_is_asked_once_more_when_the_api_server_is_ready(
    cluster: ClusterHook, fake_cluster: FakeCluster
) -> None:
    fake_cluster.put(f"{NAMESPACE}/pods", pod("p-1", "a"))
    replies: list[Reply | None] = [None, status_object(403, "Forbidden", 'RBAC: role "upgrade" not found')]
    fake_cluster.fail = lambda _: replies.pop()
    assert cluster.get("Pod", "p-1", "ns")["metadata"]["name"] == "p-1"


def test_unreachable_cluster_is_named_with_address_and_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
    set_connection(monkeypatch, kube_config=kube_config(f"http://{address}"))
    with pytest.raises(TransientError) as error:
        ClusterHook("kubernetes_test").server_version()
    assert error.value.reference == "cluster-unreachable"
    assert address in error.value.message
    assert "'kubernetes_test'" in error.value.message
    assert error.value.hint


def test_a_server_that_does_not_answer_is_given_up_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        set_connection(monkeypatch, kube_config=kube_config(f"http://127.0.0.1:{silent.getsockname()[1]}"))
        with pytest.raises(TransientError) as error:
            ClusterHook("kubernetes_test", read_timeout=timedelta(milliseconds=50)).server_version()
    assert error.value.reference == "cluster-unreachable"
    assert "timed out" in error.value.message.lower()


FORBIDDEN = (
    'deployments.apps "rag-api" is forbidden: User "system:serviceaccount:nephoran-maintenance:preflight" '
    'cannot patch resource "deployments" in API group "apps" in the namespace "ns"'
)


@pytest.mark.parametrize(
    ("reply", "kind", "reference", "parts"),
    [
        pytest.param(
            status_object(401, "Unauthorized", "Unauthorized"),
            PermanentError,
            "cluster-unauthorized",
            ["127.0.0.1:", "kubernetes_test", "expired"],
            id="expired-credentials",
        ),
        pytest.param(
            status_object(403, "Forbidden", FORBIDDEN),
            PermanentError,
            "cluster-forbidden",
            ["patch", "deployments.apps", "ns", "system:serviceaccount:nephoran-maintenance:preflight"],
            id="missing-permission",
        ),
        pytest.param(
            status_object(422, "Invalid", "spec.replicas: Invalid value: -1"),
            PermanentError,
            "cluster-rejected",
            ["spec.replicas: Invalid value: -1"],
            id="invalid-object",
        ),
        pytest.param(
            status_object(500, "InternalError", "etcd is away"),
            TransientError,
            "cluster-unavailable",
            ["500", "etcd is away"],
            id="server-error",
        ),
        pytest.param(
            status_object(429, "TooManyRequests", "slow down"),
            TransientError,
            "cluster-unavailable",
            ["429"],
            id="throttled",
        ),
        pytest.param(
            Reply(502, "<html>bad gateway, token-of-the-test</html>" + "x" * 5000),
            TransientError,
            "cluster-unavailable",
            ["bad gateway", "***"],
            id="a-proxy-answers",
        ),
    ],
)
def test_each_refusal_has_one_clear_error(
    cluster: ClusterHook,
    fake_cluster: FakeCluster,
    reply: Reply,
    kind: type[MaintenanceError],
    reference: str,
    parts: list[str],
) -> None:
    fake_cluster.fail = lambda request: reply
    with pytest.raises(kind) as error:
        cluster.patch("Deployment", "rag-api", "ns", {})
    assert error.value.reference == reference
    for part in parts:
        assert part in error.value.message
    assert error.value.hint
    assert "token-of-the-test" not in str(error.value)
    assert len(error.value.message) < 700


def test_something_else_than_an_api_server_is_said_so(cluster: ClusterHook, fake_cluster: FakeCluster) -> None:
    fake_cluster.fail = lambda request: Reply(200, "<html>welcome</html>")
    with pytest.raises(TransientError, match="is not JSON: <html>welcome</html>"):
        cluster.get("Pod", "p", "ns")


def test_missing_connection_is_named() -> None:
    with pytest.raises(PermanentError) as error:
        ClusterHook("kubernetes_nowhere").server_version()
    assert error.value.reference == "connection-missing"
    assert "kubernetes_nowhere" in error.value.message


def without(config: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in keys}


GOOD = kube_config("http://127.0.0.1:1")


@pytest.mark.parametrize(
    ("extra", "problem"),
    [
        pytest.param({"kube_config": "{not json: ["}, "neither JSON nor YAML", id="not-parseable"),
        pytest.param({"kube_config": "just text"}, "expected a kubeconfig object", id="not-an-object"),
        pytest.param({"kube_config": without(GOOD, "current-context")}, "without current-context", id="no-context"),
        pytest.param({"kube_config": without(GOOD, "contexts")}, "without the context 'lab'", id="unknown-context"),
        pytest.param({"kube_config": without(GOOD, "clusters")}, "without a server", id="no-server"),
        pytest.param({"kube_config": without(GOOD, "users")}, "without credentials", id="no-user"),
        pytest.param(
            {"kube_config": GOOD, "kube_config_path": "/etc/kubeconfig"}, "only one of them", id="two-configurations"
        ),
        pytest.param({"kube_config_path": "/nowhere/kubeconfig"}, "no usable kubeconfig", id="no-such-file"),
    ],
)
def test_bad_connection_is_named_with_its_problem(
    monkeypatch: pytest.MonkeyPatch, extra: dict[str, Any], problem: str
) -> None:
    set_connection(monkeypatch, **extra)
    with pytest.raises(PermanentError) as error:
        ClusterHook("kubernetes_test").server_version()
    assert error.value.reference == "connection-invalid"
    assert problem in error.value.message
    assert "token-of-the-test" not in str(error.value)


def test_unknown_kind_is_named(cluster: ClusterHook) -> None:
    with pytest.raises(PermanentError) as error:
        cluster.list("NetworkIntent")
    assert error.value.reference == "kind-unknown"


def test_received_requests_carry_no_redirect_to_elsewhere(cluster: ClusterHook, fake_cluster: FakeCluster) -> None:
    fake_cluster.fail = lambda request: Reply(307, "", {"Location": "http://127.0.0.1:1/elsewhere"})
    with pytest.raises(MaintenanceError) as error:
        cluster.get("Pod", "p", "ns")
    assert error.value.reference == "cluster-rejected"


def test_user_agent_names_the_product(cluster: ClusterHook, cluster_server: Server) -> None:
    cluster.server_version()
    received: Received = cluster_server.received[0]
    assert received.headers["user-agent"] == "nephoran-maintenance"
