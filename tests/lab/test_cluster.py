"""The cluster of the lab and what stands beside it behave as the real ones."""

from __future__ import annotations

import http.client
import json
import ssl
import uuid
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pytest

from lab import buckets, oci, pki
from lab.system import images
from lab.tools import kubernetes_version
from lab.waiting import http_status, wait_until
from tests.lab.conftest import Lab, failing_registry

LIMIT = timedelta(seconds=90)
BUSYBOX = Path("/usr/bin/busybox")


def ask(url: str, method: str = "GET") -> Any:
    address = urlsplit(url)
    connection = http.client.HTTPConnection(address.netloc, timeout=10)
    try:
        connection.request(method, f"{address.path}?{address.query}")
        response = connection.getresponse()
        content = response.read()
    finally:
        connection.close()
    assert response.status == 200, content[:300]
    return json.loads(content)


@pytest.fixture
def pod(lab: Lab) -> Iterator[str]:
    """A name for a pod of this test; the pod is gone afterwards."""
    name = f"test-{uuid.uuid4().hex[:8]}"
    yield name
    lab.kubectl("delete", "pod", name, "--ignore-not-found", "--grace-period=0", "--force")


def waiting_reason(lab: Lab, pod: str) -> tuple[str, str]:
    statuses = lab.get("pod", pod, "default")["status"].get("containerStatuses", [])
    waiting = statuses[0]["state"].get("waiting", {}) if statuses else {}
    return waiting.get("reason", ""), waiting.get("message", "")


def test_api_server_reports_the_pinned_version(lab: Lab) -> None:
    version = lab.cluster.get("/version")
    assert version["gitVersion"] == kubernetes_version()
    assert (version["major"], version["minor"]) == ("1", "36")


def test_refuses_an_expired_client_certificate(lab: Lab) -> None:
    folder = lab.config.state / "pki"
    authority = pki.Authority.read(folder, "ca")
    pki.write(folder, "expired", authority.issue("someone", lifetime=timedelta(hours=-1)))
    tls = ssl.create_default_context(cafile=str(folder / "ca.crt"))
    tls.load_cert_chain(folder / "expired.crt", folder / "expired.key")
    assert http_status(f"{lab.config.kubernetes_url}/api/v1/pods", tls=tls) == 401


def test_measures_pods_and_nodes(lab: Lab) -> None:
    assert lab.config.node_name in lab.kubectl("top", "nodes")


def test_writes_changes_to_the_audit_log(lab: Lab) -> None:
    name = f"audit-{uuid.uuid4().hex[:8]}"
    lab.kubectl("create", "configmap", name, "--from-literal=key=not-for-the-log")
    lab.kubectl("delete", "configmap", name)
    lines = [line for line in lab.config.audit_log.read_text(encoding="utf-8").splitlines() if name in line]
    events = [json.loads(line) for line in lines]
    assert {"create", "delete"} <= {event["verb"] for event in events}
    assert {event["user"]["username"] for event in events} >= {"lab-admin"}
    assert not [line for line in lines if "not-for-the-log" in line]


def test_buckets_keep_versions(lab: Lab) -> None:
    client = buckets.client(lab.config)
    key = f"test/{uuid.uuid4().hex}"
    for content in (b"one", b"two"):
        client.put_object(Bucket=buckets.REPORTS, Key=key, Body=content)
    versions = client.list_object_versions(Bucket=buckets.REPORTS, Prefix=key)["Versions"]
    assert len(versions) == 2
    oldest = next(entry for entry in versions if not entry["IsLatest"])
    body = client.get_object(Bucket=buckets.REPORTS, Key=key, VersionId=oldest["VersionId"])["Body"].read()
    assert body == b"one"
    for entry in versions:
        client.delete_object(Bucket=buckets.REPORTS, Key=key, VersionId=entry["VersionId"])


def test_prometheus_finds_every_annotated_pod_and_has_a_past(lab: Lab) -> None:
    pods = lab.get("pods", namespace="nephoran-system")["items"]
    wanted = {
        pod["metadata"]["name"]
        for pod in pods
        if pod["metadata"].get("annotations", {}).get("prometheus.io/scrape") == "true"
        and pod["status"]["phase"] == "Running"
        and "deletionTimestamp" not in pod["metadata"]
    }

    def query(text: str) -> list[Any]:
        found = ask(f"{lab.config.prometheus_url}/api/v1/query?query={quote(text)}")
        return list(found["data"]["result"])

    wait_until(
        "a scrape of every pod",
        lambda: {entry["metric"]["pod"] for entry in query("up == 1")} >= wanted,
        limit=timedelta(seconds=30),
    )
    assert wanted
    past = query('count by (app) (last_over_time({app="llm-processor", __name__=~".+_total"}[2m] offset 15m))')
    assert past, "a young series would give far too low a rate"


def test_one_503_of_the_registry_is_only_a_delay(lab: Lab, pod: str) -> None:
    registry = f"http://{lab.config.registry}"
    # A digest that this node has never pulled, or it would not ask for it.
    repository = images.repository("rag-api")
    busybox = oci.build_layer({"/bin/busybox": oci.File(BUSYBOX, 0o755)})
    image = oci.build_image([busybox], entrypoint=["/bin/busybox", "sleep", "600"], labels={"test": pod})
    oci.push(image, registry, repository, pod)
    with failing_registry(lab.config, repository, pod):
        lab.kubectl("run", pod, f"--image={lab.config.registry}/{repository}:{pod}", "--restart=Never")
        wait_until("a failed pull", lambda: "503" in waiting_reason(lab, pod)[1], limit=LIMIT)
        lab.kubectl("wait", f"pod/{pod}", "--for=condition=Ready", "--timeout=90s")
    assert oci.delete_tag(registry, repository, pod) == image.digest


def test_a_deleted_manifest_is_not_found(lab: Lab, pod: str) -> None:
    registry, repository = f"http://{lab.config.registry}", "test/deleted"
    busybox = oci.build_layer({"/bin/busybox": oci.File(BUSYBOX, 0o755)})
    image = oci.build_image([busybox], entrypoint=["/bin/busybox"], labels={"test": pod})
    oci.push(image, registry, repository, pod)
    oci.delete_tag(registry, repository, pod)
    lab.kubectl("run", pod, f"--image={lab.config.registry}/{repository}@{image.digest}", "--restart=Never")
    wait_until("the refusal", lambda: "not found" in waiting_reason(lab, pod)[1], limit=LIMIT)


def test_commands_in_a_pod_keep_their_exit_code_and_resolve_names(lab: Lab, pod: str) -> None:
    repository = "test/shell"
    busybox = oci.build_layer({"/bin/busybox": oci.File(BUSYBOX, 0o755)}, links={"/bin/sh": "/bin/busybox"})
    image = oci.build_image([busybox], entrypoint=["/bin/busybox", "sleep", "600"])
    oci.push(image, lab.config.registry, repository, "v1")
    lab.kubectl("run", pod, f"--image={lab.config.registry}/{repository}:v1", "--restart=Never")
    lab.kubectl("wait", f"pod/{pod}", "--for=condition=Ready", "--timeout=60s")
    name = "weaviate.nephoran-system.svc.cluster.local"
    answer = lab.kubectl("exec", pod, "--", "/bin/busybox", "nslookup", name)
    assert lab.config.service_address("weaviate") in answer
    with pytest.raises(Exception, match="exit code 7"):
        lab.kubectl("exec", pod, "--", "/bin/sh", "-c", "exit 7")
