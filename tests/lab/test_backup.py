"""Backups made by a real Airflow on the lab, opened and compared without the code that made them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from botocore.exceptions import ClientError

from lab import backup_keys, buckets
from tests.lab.stored_backup import PREFIX, StoredBackup, left_out

if TYPE_CHECKING:
    from conftest import Lab, Upgrades

SYSTEM = "nephoran-system"
MADE_ANEW = {
    "pods",
    "events",
    "events.events.k8s.io",
    "endpoints",
    "endpointslices.discovery.k8s.io",
    "leases.coordination.k8s.io",
    "replicasets.apps",
    "controllerrevisions.apps",
    "pods.metrics.k8s.io",
}
SET_BY_THE_SERVER = re.compile(
    r"status\b.*|metadata\.(uid|resourceVersion|generation|creationTimestamp|managedFields|ownerReferences|finalizers)"
    r"|metadata\.annotations\.(deployment\.kubernetes\.io/revision|p?v[a-z]*\.(beta\.)?kubernetes\.io/.*)"
    r"|metadata\.annotations\.maintenance\.nephoran\.com/.*|spec\.volumeClaimTemplates\[\]\.status\.phase"
)
SET_BY_THE_SERVER_IN = {
    "Job": r"(metadata|spec\.selector|spec\.template\.metadata)\.(labels|matchLabels)\..*(controller-uid|job-name)",
    "Namespace": r"spec\.finalizers",
    "PersistentVolumeClaim": r"spec\.volumeName",
    "Service": r"spec\.clusterIPs?",
}


@pytest.fixture(scope="module")
def config_only(lab: Lab, upgrades: Upgrades) -> StoredBackup:
    return made(lab, upgrades, type="config-only", tag="of-a-test", keeping="monthly")


def made(lab: Lab, upgrades: Upgrades, **params: Any) -> StoredBackup:
    """Make a backup, which must be good, and return it."""
    run = upgrades.run("backup", **params)
    assert run.state == "success", run.explain()
    assert run.report["overall"] == "backed-up"
    return StoredBackup(lab.config, run.client.xcom("backup", run.run_id, "check_request")["backup_id"])


def live_objects(lab: Lab) -> dict[str, dict[str, Any]]:
    """Return by path everything that a backup must hold, as kubectl shows it."""
    found: dict[str, dict[str, Any]] = {}

    def take(resource: str, *where: str) -> None:
        for item in json.loads(lab.kubectl("get", resource, *where, "--output=json"))["items"]:
            if not made_anew(resource, item):
                found[path_of(resource, item)] = item

    namespaced = lab.kubectl("api-resources", "--verbs=list", "--namespaced=true", "--output=name").split()
    for resource in namespaced:
        if resource.endswith("nephoran.com"):
            take(resource, "--all-namespaces")
        elif resource not in MADE_ANEW:
            for namespace in (SYSTEM, "nephoran-monitoring"):
                take(resource, f"--namespace={namespace}")
    for item in lab.get("customresourcedefinitions")["items"]:
        if item["spec"]["group"].endswith("nephoran.com"):
            found[path_of("customresourcedefinitions.apiextensions.k8s.io", item)] = item
    for namespace in (SYSTEM, "nephoran-monitoring"):
        found[f"cluster/namespaces/{namespace}.json"] = lab.get("namespace", namespace)
    return found


def path_of(resource: str, item: dict[str, Any]) -> str:
    metadata = item["metadata"]
    scope = f"namespaces/{metadata['namespace']}" if "namespace" in metadata else "cluster"
    return f"{scope}/{resource}/{metadata['name']}.json"


def made_anew(resource: str, item: dict[str, Any]) -> bool:
    metadata = item["metadata"]
    labels = metadata.get("labels", {})
    return (
        metadata["name"] == "kube-root-ca.crt"
        or item.get("type") == "kubernetes.io/service-account-token"
        or (resource == "jobs.batch" and "ownerReferences" in metadata)
        or metadata.get("namespace") == "nephoran-maintenance"
        or any(label.startswith("maintenance.nephoran.com/") for label in labels)
    )


def test_every_object_is_there_as_it_is_in_the_cluster(lab: Lab, config_only: StoredBackup) -> None:
    files = config_only.files("kubernetes-objects")
    root = "kubernetes/objects/"
    kept = {path.removeprefix(root): json.loads(data) for path, data in files.items() if path.startswith(root)}
    live = live_objects(lab)
    assert len(live) > 50
    assert {p for p in kept if not p.startswith("cluster/clusterrole")} == set(live)
    for path, item in live.items():
        own = SET_BY_THE_SERVER_IN.get(item["kind"], "(?!)")
        missing = left_out(item, kept[path])
        assert [n for n in missing if not SET_BY_THE_SERVER.fullmatch(n) and not re.fullmatch(own, n)] == [], path


def test_status_is_kept_beside_and_access_by_reference(lab: Lab, config_only: StoredBackup) -> None:
    files = config_only.files("kubernetes-objects")
    groups = ("networkintents.nephoran.com", "networkintents.intent.nephoran.com")
    for group in groups:
        for intent in json.loads(lab.kubectl("get", group, "--all-namespaces", "--output=json"))["items"]:
            record = json.loads(files[f"kubernetes/records/{path_of(group, intent)}"])
            assert record["status"] == intent["status"]
    roles = [path.rpartition("/")[2] for path in files if "/clusterroles." in path]
    assert "nephoran-operator-manager.json" in roles
    assert "cluster-admin.json" not in roles


def test_dashboards_of_every_namespace_are_there(lab: Lab, config_only: StoredBackup) -> None:
    found = json.loads(
        lab.kubectl("get", "configmaps", "--all-namespaces", "--selector=grafana_dashboard", "--output=json")
    )["items"]
    live = {f"grafana/{i['metadata']['namespace']}/{i['metadata']['name']}.json": i["data"] for i in found}
    files = config_only.files("grafana-dashboards")
    assert {path: json.loads(data)["data"] for path, data in files.items() if path.startswith("grafana/")} == live
    assert len(live) >= 3


def test_manifest_names_what_when_where_and_by_whom(lab: Lab, config_only: StoredBackup) -> None:
    manifest, keys = config_only.manifest, backup_keys.keys(lab.config)
    assert (manifest["type"], manifest["tag"], manifest["keeping"]) == ("config-only", "of-a-test", "monthly")
    assert manifest["cluster"]["uid"] == lab.get("namespace", "kube-system")["metadata"]["uid"]
    assert {r["name"]: r["fingerprint"] for r in manifest["recipients"]} == {
        name: keys[name].fingerprint for name in backup_keys.RECIPIENTS
    }
    assert manifest["object_lock"] == "GOVERNANCE 1 days"
    for name in ("manifest.json", "checked.json"):
        assert config_only.signed_by(name) == keys[backup_keys.SIGNER].fingerprint


def test_escrow_alone_can_open_it(lab: Lab, config_only: StoredBackup) -> None:
    escrow = StoredBackup(lab.config, config_only.backup_id, opened_by="escrow")
    assert escrow.files("grafana-dashboards") == config_only.files("grafana-dashboards")


def test_nothing_in_the_bucket_shows_a_secret(lab: Lab, config_only: StoredBackup) -> None:
    values = [lab.config.secret(name).encode() for name in ("weaviate-api-key", "s3-weaviate-staging")]
    for name in config_only.names():
        content = config_only.content(name)
        assert not [value for value in values if value in content], name


@pytest.mark.parametrize(
    "attempt",
    [
        pytest.param(lambda s, o: s.delete_object(**o), id="delete"),
        pytest.param(lambda s, o: s.delete_object(**o, VersionId=newest(s, o)), id="delete a version"),
        pytest.param(lambda s, o: delete_many(s, o), id="delete many"),
        pytest.param(lambda s, o: s.put_object_retention(**o, Retention={}), id="shorten the lock"),
        pytest.param(
            lambda s, o: s.put_bucket_versioning(Bucket=o["Bucket"], VersioningConfiguration={"Status": "Suspended"}),
            id="stop versions",
        ),
        pytest.param(lambda s, o: s.put_bucket_policy(Bucket=o["Bucket"], Policy="{}"), id="give itself rights"),
        pytest.param(lambda s, o: s.delete_bucket(Bucket=o["Bucket"]), id="delete the bucket"),
    ],
)
def test_uploader_can_not(lab: Lab, config_only: StoredBackup, attempt: Callable[[Any, dict[str, str]], Any]) -> None:
    key = {"Bucket": buckets.BACKUPS, "Key": f"{PREFIX}/{config_only.backup_id}/manifest.json"}
    before = config_only.content("manifest.json")
    with pytest.raises(ClientError, match="AccessDenied"):
        attempt(buckets.client(lab.config, buckets.UPLOADER), key)
    assert config_only.content("manifest.json") == before


def newest(store: Any, which: dict[str, str]) -> str:
    return str(store.head_object(**which)["VersionId"])


def delete_many(store: Any, which: dict[str, str]) -> None:
    answer = store.delete_objects(Bucket=which["Bucket"], Delete={"Objects": [{"Key": which["Key"]}]})
    if errors := answer.get("Errors"):
        raise ClientError({"Error": errors[0]}, "DeleteObjects")


def test_even_the_administrator_deletes_nothing_that_is_locked(lab: Lab, config_only: StoredBackup) -> None:
    store = buckets.client(lab.config)
    key = {"Bucket": buckets.BACKUPS, "Key": f"{PREFIX}/{config_only.backup_id}/manifest.json"}
    with pytest.raises(ClientError, match="protected by object lock"):
        store.delete_object(**key, VersionId=newest(store, key))
    assert config_only.content("manifest.json")
