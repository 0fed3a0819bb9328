"""Backups made by a real Airflow on the lab, opened and compared without the code that made them."""

from __future__ import annotations

import io
import json
import re
import struct
import tarfile
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from botocore.exceptions import ClientError

from lab import backup_keys, buckets
from lab.system import seed
from tests.lab.stored_backup import PREFIX, StoredBackup, left_out

if TYPE_CHECKING:
    from conftest import Lab, Upgrades

SYSTEM = "nephoran-system"
MADE_ANEW = {
    "pods",
    "events",
    "events.events.k8s.io",
    "leases.coordination.k8s.io",
    "replicasets.apps",
    "controllerrevisions.apps",
    "pods.metrics.k8s.io",
}
SLICES_MADE_ANEW = {"endpointslice-controller.k8s.io", "endpointslicemirroring-controller.k8s.io"}
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


BY_HAND = {
    "apiVersion": "v1",
    "kind": "List",
    "items": [
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "database-elsewhere", "namespace": SYSTEM},
            "spec": {"ports": [{"port": 5432}]},
        },
        {
            "apiVersion": "v1",
            "kind": "Endpoints",
            "metadata": {"name": "database-elsewhere", "namespace": SYSTEM},
            "subsets": [{"addresses": [{"ip": "192.0.2.7"}], "ports": [{"port": 5432}]}],
        },
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": "cache-elsewhere-1",
                "namespace": SYSTEM,
                "labels": {"kubernetes.io/service-name": "cache-elsewhere"},
            },
            "addressType": "IPv4",
            "endpoints": [{"addresses": ["192.0.2.8"]}],
            "ports": [{"port": 6379}],
        },
    ],
}
"""A Service that chooses no pods, and a slice: where they lead only a person knows."""


@pytest.fixture(scope="module")
def full(lab: Lab, upgrades: Upgrades) -> Iterator[StoredBackup]:
    lab.kubectl("apply", "--filename=-", input=json.dumps(BY_HAND))
    try:
        yield made(lab, upgrades, type="full", tag="of-a-test", keeping="monthly")
    finally:
        lab.kubectl("delete", "--ignore-not-found", "--filename=-", input=json.dumps(BY_HAND))


def made(lab: Lab, upgrades: Upgrades, **params: Any) -> StoredBackup:
    """Make a backup, which must be good, and return it."""
    run = upgrades.run("backup", **params)
    assert run.state == "success", run.explain()
    assert run.report["overall"] == "backed-up"
    return StoredBackup(lab.config, run.client.xcom("backup", run.run_id, "check_request")["backup_id"])


def live_objects(lab: Lab) -> dict[str, dict[str, Any]]:
    """Return by path everything that a backup must hold, as kubectl shows it."""
    found: dict[str, dict[str, Any]] = {}
    services = json.loads(lab.kubectl("get", "services", "--all-namespaces", "--output=json"))["items"]
    choosing = {path_of("endpoints", item) for item in services if item["spec"].get("selector")}

    def take(resource: str, *where: str) -> None:
        for item in json.loads(lab.kubectl("get", resource, *where, "--output=json"))["items"]:
            if not made_anew(resource, item) and path_of(resource, item) not in choosing:
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
        or labels.get("endpointslice.kubernetes.io/managed-by") in SLICES_MADE_ANEW
        or metadata.get("namespace") == "nephoran-maintenance"
        or any(label.startswith("maintenance.nephoran.com/") for label in labels)
    )


def test_every_object_is_there_as_it_is_in_the_cluster(lab: Lab, full: StoredBackup) -> None:
    compare_objects(lab, full.files("kubernetes-objects"))


def compare_objects(lab: Lab, files: dict[str, bytes]) -> None:
    """Compare the objects of a backup with everything that kubectl shows."""
    root = "kubernetes/objects/"
    kept = {path.removeprefix(root): json.loads(data) for path, data in files.items() if path.startswith(root)}
    live = live_objects(lab)
    assert len(live) > 50
    assert {p for p in kept if not p.startswith("cluster/clusterrole")} == set(live)
    for path, item in live.items():
        own = SET_BY_THE_SERVER_IN.get(item["kind"], "(?!)")
        missing = left_out(item, kept[path])
        assert [n for n in missing if not SET_BY_THE_SERVER.fullmatch(n) and not re.fullmatch(own, n)] == [], path


def test_status_is_kept_beside_and_access_by_reference(lab: Lab, full: StoredBackup) -> None:
    files = full.files("kubernetes-objects")
    groups = ("networkintents.nephoran.com", "networkintents.intent.nephoran.com")
    for group in groups:
        for intent in json.loads(lab.kubectl("get", group, "--all-namespaces", "--output=json"))["items"]:
            record = json.loads(files[f"kubernetes/records/{path_of(group, intent)}"])
            assert record["status"] == intent["status"]
    roles = [path.rpartition("/")[2] for path in files if "/clusterroles." in path]
    assert "nephoran-operator-manager.json" in roles
    assert "cluster-admin.json" not in roles


def test_dashboards_of_every_namespace_are_there(lab: Lab, full: StoredBackup) -> None:
    found = json.loads(
        lab.kubectl("get", "configmaps", "--all-namespaces", "--selector=grafana_dashboard", "--output=json")
    )["items"]
    live = {f"grafana/{i['metadata']['namespace']}/{i['metadata']['name']}.json": i["data"] for i in found}
    files = full.files("grafana-dashboards")
    assert {path: json.loads(data)["data"] for path, data in files.items() if path.startswith("grafana/")} == live
    assert len(live) >= 3


def test_every_object_and_vector_of_weaviate_is_there(lab: Lab, full: StoredBackup) -> None:
    """Weaviate's own files: behind the id of an object and two moments lie the length of its vector and the vector."""
    segments = object_segments(full.files("weaviate"))
    with seed.client(lab.config) as weaviate:
        collections = [entry["class"] for entry in weaviate.get("/v1/schema").json()["classes"]]
        assert len(collections) == 3
        nodes = {node["name"] for node in weaviate.get("/v1/nodes").json()["nodes"]}
        assert {node for node, _ in segments} == nodes
        for collection in collections:
            live = list(all_objects(weaviate, collection))
            assert len(live) == seed.count(weaviate, collection)
            for node in nodes:
                content = segments[node, collection]
                lost = [
                    found["id"] for found in live if as_stored(found["vector"]) not in vectors_of(found["id"], content)
                ]
                assert lost == [], f"{collection} on {node}"
            facts = json.loads(full.files("weaviate-facts")["weaviate/collections.json"])[collection]
            assert facts["objects"] == len(live)
            assert facts["reachability"]["found_itself"] == facts["reachability"]["asked"] > 0


def all_objects(weaviate: httpx.Client, collection: str) -> Iterator[dict[str, Any]]:
    after = ""
    while True:
        query = {"class": collection, "limit": 200, "include": "vector", "after": after}
        page = weaviate.get("/v1/objects", params=query).raise_for_status().json()["objects"]
        if not page:
            return
        yield from page
        after = page[-1]["id"]


def object_segments(files: dict[str, bytes]) -> dict[tuple[str, str], bytes]:
    """Return by node and collection what Weaviate has on disk of its objects, out of the compressed chunks."""
    found: dict[tuple[str, str], bytes] = {}
    for path, content in files.items():
        if "/chunk-" not in path:
            continue
        node, collection = path.removeprefix("weaviate/backup/").split("/")[:2]
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as chunk:
            for info in chunk:
                file = chunk.extractfile(info)
                if file and "/lsm/objects/" in info.name and info.name.endswith(".db"):
                    found[node, collection] = found.get((node, collection), b"") + file.read()
    return found


def vectors_of(object_id: str, content: bytes) -> Iterator[bytes]:
    """Yield the bytes of every vector that stands behind an object's id."""
    name = uuid.UUID(object_id).bytes
    at = content.find(name)
    while at >= 0:
        start = at + len(name) + 2 * 8
        (length,) = struct.unpack_from("<H", content, start) if start + 2 <= len(content) else (0,)
        yield content[start + 2 : start + 2 + 4 * length]
        at = content.find(name, at + 1)


def as_stored(vector: list[float]) -> bytes:
    return struct.pack(f"<{len(vector)}f", *vector)


def test_only_descriptors_stay_in_the_staging_bucket(lab: Lab, full: StoredBackup) -> None:
    found = buckets.client(lab.config).list_objects_v2(Bucket=buckets.STAGING).get("Contents", ())
    keys = [entry["Key"] for entry in found]
    assert [key for key in keys if not key.endswith(".json")] == []
    assert f"{full.backup_id}/backup_config.json" in keys


def test_metrics_of_the_last_day_are_there(lab: Lab, full: StoredBackup) -> None:
    source, files = full.sources["prometheus"], full.files("prometheus")
    assert source["facts"]["kind"] == "range-query export"
    until = datetime.fromisoformat(source["facts"]["until"]).timestamp()
    metric = "nephoran_llm_requests_total"  # the lab gives it a past
    query = {"query": metric, "start": until - 600, "end": until, "step": "60"}
    answer = httpx.get(f"{lab.config.prometheus_url}/api/v1/query_range", params=query, trust_env=False).json()
    kept = {
        (json.dumps(series["metric"], sort_keys=True), at): value
        for path, data in files.items()
        if path.startswith(f"prometheus/export/{metric}/")
        for series in json.loads(data)["data"]["result"]
        for at, value in series["values"]
    }
    live = {
        (json.dumps(series["metric"], sort_keys=True), at): value
        for series in answer["data"]["result"]
        for at, value in series["values"]
        if at < until - 90  # the export ends a step before; on a busy machine the newest scrapes come in late
    }
    assert len(live) >= 8
    assert live.items() <= kept.items()


@pytest.fixture
def changed(lab: Lab, full: StoredBackup) -> Iterator[str]:
    """Change the system after its full backup: an object added, one changed, one deleted, a vector added."""
    where = f"--namespace={SYSTEM}"
    config_map = {"apiVersion": "v1", "kind": "ConfigMap", "data": {"a": "b"}}
    lab.kubectl(
        "apply", "--filename=-", input=json.dumps({**config_map, "metadata": {"name": "added", "namespace": SYSTEM}})
    )
    lab.kubectl("label", "service", "rag-api", where, "changed=yes")
    audit = lab.get("cronjob", "policy-audit", SYSTEM)
    lab.kubectl("delete", "cronjob", "policy-audit", where)
    object_id = str(uuid.uuid4())
    with seed.client(lab.config) as weaviate:
        added = {"class": "IntentPatterns", "id": object_id, "vector": [float(n) for n in range(64)], "properties": {}}
        weaviate.post("/v1/objects", json=added, params={"consistency_level": "ALL"}).raise_for_status()
        yield object_id
        weaviate.delete(f"/v1/objects/IntentPatterns/{object_id}").raise_for_status()
    lab.kubectl("delete", "configmap", "added", where)
    lab.kubectl("label", "service", "rag-api", where, "changed-")
    for field in ("uid", "resourceVersion", "creationTimestamp", "managedFields", "generation"):
        audit["metadata"].pop(field, None)
    lab.kubectl("apply", "--server-side", "--force-conflicts", "--filename=-", input=json.dumps(audit))


def test_an_incremental_backup_and_its_parent_are_the_live_system(
    lab: Lab, upgrades: Upgrades, full: StoredBackup, changed: str
) -> None:
    found = made(lab, upgrades, type="incremental")
    assert found.manifest["parent"]["backup_id"] == full.backup_id
    root = "kubernetes/objects/"
    before, since = (one.files("kubernetes-objects") for one in (full, found))
    differing = {path.removeprefix(root) for path in since if path.startswith(root)}
    assert differing == {f"namespaces/{SYSTEM}/configmaps/added.json", f"namespaces/{SYSTEM}/services/rag-api.json"}
    deleted = found.sources["kubernetes-objects"]["facts"]["deleted"]
    assert deleted == [f"{root}namespaces/{SYSTEM}/cronjobs.batch/policy-audit.json"]
    kept = {path: data for path, data in {**before, **since}.items() if path not in deleted}
    compare_objects(lab, kept)
    facts = found.sources["weaviate"]["facts"]
    assert (facts["incremental"], facts["base_backup_id"]) == ("yes", full.backup_id)
    segments, older = (object_segments(one.files("weaviate")) for one in (found, full))
    with seed.client(lab.config) as weaviate:
        for (node, collection), content in segments.items():
            both = content + older.get((node, collection), b"")
            live = list(all_objects(weaviate, collection))
            lost = [one["id"] for one in live if as_stored(one["vector"]) not in vectors_of(one["id"], both)]
            assert lost == [], f"{collection} on {node}"
    added = [content for (_, collection), content in segments.items() if collection == "IntentPatterns"]
    assert len(added) == 3
    assert all(list(vectors_of(changed, content)) for content in added)


def test_a_backup_says_which_operation_was_under_way(lab: Lab, upgrades: Upgrades) -> None:
    now = datetime.now(UTC).isoformat(timespec="microseconds")
    times = {"leaseDurationSeconds": 3600, "acquireTime": now, "renewTime": now, "leaseTransitions": 1}
    where = {"name": "nephoran", "namespace": "nephoran-maintenance"}
    lease = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": where}
    spec = {"holderIdentity": "rolling-upgrade-of-a-test", **times}
    lab.kubectl(
        "apply", "--server-side", "--force-conflicts", "--filename=-", input=json.dumps({**lease, "spec": spec})
    )
    try:
        found = made(lab, upgrades, type="config-only")
    finally:
        lab.kubectl("delete", "lease", "nephoran", "--namespace=nephoran-maintenance")
    assert found.manifest["operation_under_way"] == "rolling-upgrade-of-a-test"


def test_config_only_leaves_the_data_out(lab: Lab, upgrades: Upgrades) -> None:
    found = made(lab, upgrades, type="config-only")
    assert set(found.sources) == {"kubernetes-objects", "grafana-dashboards"}
    assert len(found.files("kubernetes-objects")) > 50


def test_manifest_names_what_when_where_and_by_whom(lab: Lab, full: StoredBackup) -> None:
    manifest, keys = full.manifest, backup_keys.keys(lab.config)
    assert (manifest["type"], manifest["tag"], manifest["keeping"]) == ("full", "of-a-test", "monthly")
    assert manifest["cluster"]["uid"] == lab.get("namespace", "kube-system")["metadata"]["uid"]
    assert {r["name"]: r["fingerprint"] for r in manifest["recipients"]} == {
        name: keys[name].fingerprint for name in backup_keys.RECIPIENTS
    }
    assert manifest["object_lock"] == "GOVERNANCE 1 days"
    for name in ("manifest.json", "checked.json"):
        assert full.signed_by(name) == keys[backup_keys.SIGNER].fingerprint


def test_escrow_alone_can_open_it(lab: Lab, full: StoredBackup) -> None:
    escrow = StoredBackup(lab.config, full.backup_id, opened_by="escrow")
    assert escrow.files("grafana-dashboards") == full.files("grafana-dashboards")


def test_nothing_in_the_bucket_shows_a_secret(lab: Lab, full: StoredBackup) -> None:
    values = [lab.config.secret(name).encode() for name in ("weaviate-api-key", "s3-weaviate-staging")]
    for name in full.names():
        content = full.content(name)
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
def test_uploader_can_not(lab: Lab, full: StoredBackup, attempt: Callable[[Any, dict[str, str]], Any]) -> None:
    key = {"Bucket": buckets.BACKUPS, "Key": f"{PREFIX}/{full.backup_id}/manifest.json"}
    before = full.content("manifest.json")
    with pytest.raises(ClientError, match="AccessDenied"):
        attempt(buckets.client(lab.config, buckets.UPLOADER), key)
    assert full.content("manifest.json") == before


def newest(store: Any, which: dict[str, str]) -> str:
    return str(store.head_object(**which)["VersionId"])


def delete_many(store: Any, which: dict[str, str]) -> None:
    answer = store.delete_objects(Bucket=which["Bucket"], Delete={"Objects": [{"Key": which["Key"]}]})
    if errors := answer.get("Errors"):
        raise ClientError({"Error": errors[0]}, "DeleteObjects")


def test_even_the_administrator_deletes_nothing_that_is_locked(lab: Lab, full: StoredBackup) -> None:
    store = buckets.client(lab.config)
    key = {"Bucket": buckets.BACKUPS, "Key": f"{PREFIX}/{full.backup_id}/manifest.json"}
    with pytest.raises(ClientError, match="protected by object lock"):
        store.delete_object(**key, VersionId=newest(store, key))
    assert full.content("manifest.json")
