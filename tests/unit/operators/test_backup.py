"""The procedure ``backup`` as a whole: a cluster and a bucket on loopback, real gpg, and what a recipient reads of it."""

from __future__ import annotations

import io
import itertools
import json
import os
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from nephoran_maintenance.domain.backups import is_backup_id
from nephoran_maintenance.domain.journal import Journal, to_config_map
from nephoran_maintenance.engine.sources import Source
from nephoran_maintenance.errors import PermanentError
from nephoran_maintenance.hooks.object_store import ObjectStoreHook
from nephoran_maintenance.operators.backup_readers import ReleaseReadersOperator
from nephoran_maintenance.operators.backup_sources import SOURCES, SourceKind
from nephoran_maintenance.operators.backup_step import BackupStep, Session
from nephoran_maintenance.settings import PROJECT_ROOT
from tests.unit.dag_runner import DagRunner
from tests.unit.fake_exec import ExecutingCluster, Spoiled
from tests.unit.fake_weaviate import BackedUpWeaviate
from tests.unit.hooks.fake_s3 import FakeS3, connection_to
from tests.unit.hooks.fake_servers import Received, Reply, connection_json, kube_config, serving
from tests.unit.openpgp_keys import PASSPHRASE, KeyMaker, plain

SYSTEM = "nephoran-system"
BUCKET = "nephoran-production-backups"
CANARY = "Y2FuYXJ5LW9mLWEtc2VjcmV0"
CONFIGURATION = ["grafana-dashboards", "kubernetes-objects"]


@dataclass
class Site:
    """A system, its bucket, its keys, and the procedure."""

    cluster: ExecutingCluster
    s3: FakeS3
    keys: KeyMaker
    profile_path: Path
    dag: Any
    staging: FakeS3
    weaviate: BackedUpWeaviate
    prometheus: FakePrometheus
    runs: list[DagRunner] = field(default_factory=list)

    def backup(
        self,
        replaced: dict[str, Callable[[Any, Any], Any]] | None = None,
        run_id: str = "manual__2026-11-23",
        run_type: str = "manual",
        **params: Any,
    ) -> DagRunner:
        given = {"type": "config-only", **params}
        run = DagRunner(self.dag, given, replaced=replaced, run_id=run_id, run_type=run_type).run()
        self.runs.append(run)
        assert run.surprises == []
        return run

    def edit_profile(self, change: Callable[[dict[str, Any]], None]) -> None:
        data = yaml.safe_load(self.profile_path.read_text(encoding="utf-8"))
        change(data)
        self.profile_path.write_text(yaml.safe_dump(data), encoding="utf-8")

    def names(self) -> list[str]:
        return sorted(key.rpartition("/")[2] for key in self.s3.objects)

    def stored(self, name: str, backup_id: str = "") -> bytes:
        return next(data for key, data in self.s3.objects.items() if key.endswith(f"{backup_id}/{name}"))

    def manifest(self, backup_id: str = "") -> dict[str, Any]:
        return dict(json.loads(self.stored("manifest.json", backup_id)))

    def opened(self, source: str, backup_id: str = "") -> dict[str, bytes]:
        """Return the files of an archive as a recipient gets them."""
        compressed = plain(self.keys, self.stored(f"{source}.tar.zst.gpg", backup_id))
        data = subprocess.run(["zstd", "-dc"], input=compressed, capture_output=True, check=True).stdout
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            return {info.name: found.read() for info in archive if (found := archive.extractfile(info))}


def served(plural: str, kind: str, scope: str = "Namespaced") -> dict[str, Any]:
    return {"resource": plural, "responseKind": {"kind": kind}, "scope": scope, "verbs": ["get", "list"]}


@pytest.fixture
def site(dags: dict[str, Any], keys: KeyMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    cluster, s3 = ExecutingCluster(), FakeS3(BUCKET)
    core = [
        served("configmaps", "ConfigMap"),
        served("secrets", "Secret"),
        served("namespaces", "Namespace", "Cluster"),
    ]
    versions = [{"version": "v1", "resources": core, "freshness": "Current"}]
    group = {"metadata": {"name": ""}, "versions": versions}
    cluster.extra = {
        "/api": Reply(200, {"kind": "APIGroupDiscoveryList", "items": [group]}),
        "/apis": Reply(200, {"kind": "APIGroupDiscoveryList", "items": []}),
    }

    def put(path: str, name: str, namespace: str | None = None, **fields: Any) -> None:
        place = {"namespace": namespace} if namespace else {}
        cluster.put(path, {"kind": "Thing", "metadata": {"name": name, "uid": f"uid-{name}", **place}, **fields})

    for namespace in ("kube-system", SYSTEM, "nephoran-monitoring"):
        put("/api/v1/namespaces", namespace)
    put(f"/api/v1/namespaces/{SYSTEM}/configmaps", "settings", SYSTEM, data={"a": "b"})
    put(f"/api/v1/namespaces/{SYSTEM}/secrets", "key", SYSTEM, type="Opaque", data={"key": CANARY})
    data = yaml.safe_load((PROJECT_ROOT / "include" / "profiles" / "nephoran.yaml").read_text(encoding="utf-8"))
    pins = {"recipients": [keys.operations, keys.escrow], "signers": [keys.signer]}
    for use, chosen in pins.items():
        data["backup"][use] = []
        for pin in chosen:
            (tmp_path / f"{pin.name}.asc").write_text(pin.armored, encoding="ascii")
            entry = {"name": pin.name, "fingerprint": pin.fingerprint, "key_file": f"{pin.name}.asc"}
            data["backup"][use].append(entry)
    profile = tmp_path / "profile.yaml"
    profile.write_text(yaml.safe_dump(data), encoding="utf-8")
    monkeypatch.setenv("NEPHORAN_PROFILE", str(profile))
    monkeypatch.setenv("NEPHORAN_REPORTS", str(tmp_path / "reports"))
    monkeypatch.setenv("AIRFLOW_CONN_OPENPGP_SIGNING", keys.signing_connection())
    staging, prometheus = FakeS3(data["backup"]["staging_bucket"]), FakePrometheus()
    staging.may_delete, staging.versioned = True, False
    weaviate = BackedUpWeaviate(staging)
    clients: dict[str | None, Any] = {}
    new_client = ObjectStoreHook._client.func  # type: ignore[attr-defined]

    def client(self: ObjectStoreHook) -> Any:
        # Every step makes its own, which takes longer than what is asked of it.
        if self.connection_id not in clients:
            clients[self.connection_id] = new_client(self)
        return clients[self.connection_id]

    monkeypatch.setattr(ObjectStoreHook, "_client", property(client))
    monkeypatch.setattr(ReleaseReadersOperator, "sleep", staticmethod(lambda seconds: None))
    new_session = BackupStep.session
    sessions: dict[tuple[bytes, ...], Session] = {}

    @contextmanager
    def session(self: BackupStep) -> Iterator[Session]:
        # Every step opens gpg with all keys anew, which takes longer than what it does with them.
        made_of = [path.read_bytes() for path in sorted(tmp_path.glob("*.*"))]
        made_of += [os.environ.get(f"AIRFLOW_CONN_OPENPGP_{name}", "").encode() for name in ("SIGNING", "PASSPHRASE")]
        key = tuple(made_of)
        if key not in sessions:
            sessions[key] = stack.enter_context(new_session(self))
        yield sessions[key]

    monkeypatch.setattr(BackupStep, "session", session)
    with ExitStack() as stack:
        api, bucket, staged, vectors, metrics = (
            stack.enter_context(serving(server)) for server in (cluster, s3, staging, weaviate, prometheus)
        )
        extra = {"kube_config": kube_config(api.url)}
        monkeypatch.setenv("AIRFLOW_CONN_KUBERNETES_BACKUP", connection_json(conn_type="kubernetes", extra=extra))
        monkeypatch.setenv("AIRFLOW_CONN_OBJECT_STORE_BACKUP", connection_to(bucket))
        monkeypatch.setenv("AIRFLOW_CONN_OBJECT_STORE_STAGING", connection_to(staged))
        for name, server in {"WEAVIATE": vectors, "PROMETHEUS": metrics}.items():
            fields = {"conn_type": "http", "host": "127.0.0.1", "port": server.port, "schema": "http"}
            monkeypatch.setenv(f"AIRFLOW_CONN_{name}_DEFAULT", connection_json(**fields))
        yield Site(cluster, s3, keys, profile, dags["backup"], staging, weaviate, prometheus)


def test_a_backup_is_complete_signed_and_read_back(site: Site) -> None:
    run = site.backup(tag="before-move", keeping="monthly")
    assert run.failed() == []
    assert site.names() == [
        "checked.json",
        "checked.json.asc",
        "kubernetes-objects.inventory.zst",
        "kubernetes-objects.tar.zst.gpg",
        "manifest.json",
        "manifest.json.asc",
    ]
    manifest = site.manifest()
    assert is_backup_id(manifest["backup_id"])
    assert (manifest["tag"], manifest["keeping"], manifest["type"]) == ("before-move", "monthly", "config-only")
    assert manifest["cluster"] == {
        "name": "nephoran",
        "uid": "uid-kube-system",
        "kubernetes_version": "v1.36.4",
        "weaviate_version": None,
    }
    states = {source["name"]: source["state"] for source in manifest["sources"]}
    assert states == {"kubernetes-objects": "captured", "grafana-dashboards": "absent"}
    files = site.opened("kubernetes-objects")
    assert CANARY.encode() in files[f"kubernetes/objects/namespaces/{SYSTEM}/secrets/key.json"]
    assert f"kubernetes/objects/namespaces/{SYSTEM}/configmaps/settings.json" in files
    assert run.report["overall"] == "backed-up"
    assert {found["object"] for found in run.report["findings"]} == {*CONFIGURATION, manifest["backup_id"]}


def test_no_secret_is_in_the_bucket_the_results_or_the_report(site: Site, tmp_path: Path) -> None:
    run = site.backup()
    left = [*site.s3.objects.values(), json.dumps(list(run.results.values())).encode()]
    left += [path.read_bytes() for path in (tmp_path / "reports").rglob("*") if path.is_file()]
    for secret in (CANARY, PASSPHRASE, "PRIVATE KEY BLOCK"):
        assert not [data for data in left if secret.encode() in data], secret


class FakePrometheus:
    """Two metrics, of which it tells nothing else."""

    def __init__(self) -> None:
        self.down = False

    def __call__(self, request: Received) -> Reply:
        if self.down:
            return Reply(503, "")
        if request.path.endswith("/values"):
            return Reply(200, {"status": "success", "data": ["up", "requests_total"]})
        return Reply(200, '{"status":"success","data":{"resultType":"matrix","result":[]}}')


def test_a_full_backup_has_everything_and_leaves_only_descriptors_in_staging(site: Site) -> None:
    site.staging.put("full-20261120t100000z-1a2b3c/weaviate-0/TelecomKnowledge/chunk-1", b"of a run that died")
    run = site.backup(type="full")
    assert run.failed() == []
    assert [source["name"] for source in site.manifest()["sources"] if source["state"] != "captured"] == [
        "grafana-dashboards",
        "knowledge-base",
    ]
    assert set(run.states.values()) == {"success"}
    manifest = site.manifest()
    assert manifest["cluster"]["weaviate_version"] == "1.39.0"
    (about,) = [source["facts"] for source in manifest["sources"] if source["name"] == "weaviate"]
    assert (about["collections"], about["collections_added_meanwhile"], about["status"]) == (
        ["TelecomKnowledge"],
        [],
        "SUCCESS",
    )
    files = site.opened("weaviate")
    chunk = "weaviate/backup/weaviate-0/TelecomKnowledge/chunk-1"
    assert files[chunk] == b"vectors of TelecomKnowledge" * 10
    assert sorted(site.staging.objects) == [
        f"{manifest['backup_id']}/backup_config.json",
        f"{manifest['backup_id']}/weaviate-0/backup.json",
    ]
    counts = json.loads(site.opened("weaviate-facts")["weaviate/collections.json"])
    assert counts["TelecomKnowledge"]["objects"] == 2
    assert len([path for path in site.opened("prometheus") if path.endswith(".json")]) == 8
    assert "2 were deleted" in str(run.report["findings"])


SETTINGS = f"/api/v1/namespaces/{SYSTEM}/configmaps/settings"


def id_of(run: DagRunner) -> str:
    return str(run.results["check_request", "return_value"]["backup_id"])


def objects_in(site: Site, run: DagRunner) -> set[str]:
    files = site.opened("kubernetes-objects", id_of(run))
    return {path.rpartition("/")[2] for path in files if path.startswith("kubernetes/")}


def facts_of(site: Site, run: DagRunner, source: str) -> dict[str, Any]:
    sources = site.manifest(id_of(run))["sources"]
    return next(dict(found["facts"]) for found in sources if found["name"] == source)


def test_a_chain_has_in_each_link_what_has_changed_since_the_one_before(site: Site) -> None:
    full = site.backup(type="full", run_id="first")
    site.cluster.objects[SETTINGS]["data"] = {"a": "c"}
    secret = site.cluster.objects.pop(f"/api/v1/namespaces/{SYSTEM}/secrets/key")
    second = site.backup(type="incremental", run_id="second")
    assert second.failed() == []
    manifest = site.manifest(id_of(second))
    assert (manifest["type"], manifest["parent"]["backup_id"], manifest["parent"]["depth"]) == (
        "incremental",
        id_of(full),
        0,
    )
    assert objects_in(site, second) == {"settings.json"}
    facts = facts_of(site, second, "kubernetes-objects")
    gone = f"kubernetes/objects/namespaces/{SYSTEM}/secrets/key.json"
    assert (facts["added"], facts["changed"], facts["deleted"]) == (0, 1, [gone])
    assert site.weaviate.asked[-1] == {"id": id_of(second), "incremental_base_backup_id": id_of(full)}
    assert facts_of(site, second, "weaviate")["incremental"] == "yes"
    assert "prometheus" not in {source["name"] for source in manifest["sources"]}

    site.cluster.objects[f"/api/v1/namespaces/{SYSTEM}/secrets/key"] = secret
    third = site.backup(type="auto", run_id="third")
    assert site.manifest(id_of(third))["parent"]["depth"] == 1
    assert objects_in(site, third) == {"key.json"}
    assert facts_of(site, third, "kubernetes-objects")["deleted"] == []

    staged = {key.partition("/")[0] for key in site.staging.objects}
    assert staged == {id_of(run) for run in (full, second, third)}
    assert {key.rpartition(".")[2] for key in site.staging.objects} == {"json"}


def test_what_a_new_recipient_could_not_open_is_not_built_on(site: Site) -> None:
    full = site.backup(type="full", run_id="first")
    pin = site.keys.stranger
    (site.profile_path.parent / "escrow.asc").write_text(pin.armored, encoding="ascii")
    site.edit_profile(lambda data: data["backup"]["recipients"][1].update(fingerprint=pin.fingerprint))
    assert "[no-parent]" in site.backup(type="incremental", run_id="second").error("check_request")
    run = site.backup(type="auto", run_id="third")
    assert run.failed() == []
    manifest = site.manifest(id_of(run))
    assert (manifest["type"], manifest["parent"]) == ("full", None)
    reason = run.results["check_request", "return_value"]["reason"]
    assert f"can't be opened by escrow ({id_of(full)})" in reason


def test_weaviate_begins_anew_where_staging_has_lost_the_parents_descriptors(site: Site) -> None:
    site.backup(type="full", run_id="first")
    site.staging.objects.clear()
    run = site.backup(type="incremental", run_id="second")
    assert run.failed() == []
    assert "incremental_base_backup_id" not in site.weaviate.asked[-1]
    assert "are not in the staging bucket" in facts_of(site, run, "weaviate")["incremental"]


def test_an_inventory_that_is_not_the_signed_one_is_not_built_on(site: Site) -> None:
    full = site.backup(type="full", run_id="first")
    key = f"backups/{id_of(full)}/kubernetes-objects.inventory.zst"
    (version,) = [version for name, version in site.s3.versions if name == key]
    site.s3.versions[key, version] = site.s3.objects[key][:-1]
    run = site.backup(type="incremental", run_id="second")
    assert "[backup-damaged]" in run.error("capture_kubernetes_objects")
    assert run.states["record_manifest"] == "upstream_failed"


def test_an_incremental_backup_without_anything_to_build_on_is_refused(site: Site) -> None:
    run = site.backup(type="incremental")
    assert "[no-parent]" in run.error("check_request")
    assert site.s3.objects == {}


@pytest.mark.parametrize(("run_type", "told"), [("scheduled", None), ("manual", "rolling-upgrade-1")])
def test_only_a_scheduled_run_lets_a_running_operation_end(site: Site, run_type: str, told: str | None) -> None:
    lease = "/apis/coordination.k8s.io/v1/namespaces/nephoran-maintenance/leases/nephoran"
    now = datetime.now(UTC).isoformat(timespec="microseconds")
    held = {"holderIdentity": "rolling-upgrade-1", "leaseDurationSeconds": 3600, "renewTime": now, "acquireTime": now}
    found = {"kind": "Lease", "metadata": {"name": "nephoran", "namespace": "nephoran-maintenance"}, "spec": held}
    site.cluster.put(lease.rpartition("/")[0], found)
    looks = itertools.count()

    def ends(request: Received) -> Reply | None:
        if request.path == lease and run_type == "scheduled" and next(looks) == 2:
            site.cluster.objects[lease]["spec"].pop("holderIdentity")
        return None

    site.cluster.fail = ends
    run = site.backup(run_type=run_type)
    assert run.failed() == []
    assert site.manifest()["operation_under_way"] == told
    # What a person asked for, or what is due: without anything to build on that is everything.
    assert site.manifest()["type"] == {"scheduled": "full", "manual": "config-only"}[run_type]


MAINTENANCE = "nephoran-maintenance"


def test_an_operation_that_begins_and_ends_during_the_backup_is_named(site: Site) -> None:
    now = datetime.now(UTC)

    def journal(name: str, **changes: Any) -> None:
        found = Journal(
            operation_id=name,
            procedure="rolling_upgrade",
            run_id=name,
            system="nephoran",
            plan_hash="h",
            started_at=now - timedelta(hours=2),
        ).model_copy(update=changes)
        site.cluster.put(f"/api/v1/namespaces/{MAINTENANCE}/configmaps", to_config_map(found, MAINTENANCE))

    def meanwhile(step: Any, context: Any) -> Any:
        result = step.execute(context)
        journal("rolling-upgrade-2", started_at=datetime.now(UTC), state="closed", closed_at=datetime.now(UTC))
        return result

    journal("rolling-upgrade-1", state="closed", closed_at=now - timedelta(hours=1))
    journal("rolling-upgrade-3")
    journal("of-another-system", system="another")
    run = site.backup(replaced={"capture_kubernetes_objects": meanwhile})
    assert run.failed() == []
    assert site.manifest()["operation_under_way"] == "rolling-upgrade-2, rolling-upgrade-3"


def test_a_config_only_backup_asks_neither_weaviate_nor_staging(site: Site) -> None:
    site.staging.deny = True
    run = site.backup()
    assert run.failed() == []
    assert site.weaviate.asked == []
    skipped = {step for step, state in run.states.items() if state == "skipped"}
    assert skipped == {
        "capture_knowledge_base",
        "capture_prometheus",
        "capture_weaviate_facts",
        "wait_weaviate_backup",
        "capture_weaviate",
        "release_staging",
        "release_readers",
    }


def weaviate_refuses(site: Site) -> None:
    site.weaviate.refuse = "backup: no backup backend 's3', did you enable the right module?"


def weaviate_fails(site: Site) -> None:
    site.weaviate.reasons = ["disk full"]


def bucket_cuts(site: Site) -> None:
    site.s3.fail = lambda request: Reply(403, "") if "/weaviate.tar" in request.path else None


@pytest.mark.parametrize(
    ("spoil", "step", "expected"),
    [
        pytest.param(weaviate_refuses, "wait_weaviate_backup", "weaviate-backup-refused", id="no module"),
        pytest.param(weaviate_fails, "wait_weaviate_backup", "disk full", id="failed"),
        pytest.param(bucket_cuts, "capture_weaviate", "object-store-forbidden", id="denied"),
    ],
)
def test_without_weaviate_there_is_no_backup_and_nothing_stays_in_staging(
    site: Site, spoil: Callable[[Site], None], step: str, expected: str
) -> None:
    spoil(site)
    run = site.backup(type="full")
    assert expected in run.error(step)
    assert expected in str(run.report["failed_steps"])
    assert run.states["release_staging"] == "success"
    assert site.staging.objects == {}
    assert run.states["record_manifest"] == "upstream_failed"
    assert "manifest.json" not in site.names()
    assert run.report["overall"] == "not-backed-up"


REINDEXING = 'node "weaviate-0": backup blocked: runtime-reindex in flight on this shard: shard "a"'


def test_a_backup_of_weaviate_that_failed_over_an_index_is_begun_anew_under_its_id(site: Site) -> None:
    site.weaviate.reasons = [REINDEXING, REINDEXING]
    run = site.backup(type="full")
    assert run.failed() == []
    assert run.order.count("wait_weaviate_backup") == 3
    assert site.weaviate.asked == [{"id": id_of(run)}] * 3
    assert facts_of(site, run, "weaviate")["status"] == "SUCCESS"
    assert {key.rpartition(".")[2] for key in site.staging.objects} == {"json"}


def test_an_index_that_is_rebuilt_for_long_ends_the_backup_with_nothing_in_staging(site: Site) -> None:
    site.weaviate.reasons = [REINDEXING] * 9
    run = site.backup(type="full")
    assert "[weaviate-reindexing]" in run.error("wait_weaviate_backup")
    assert run.order.count("wait_weaviate_backup") == 4
    assert site.staging.objects == {}
    assert "manifest.json" not in site.names()


def test_metrics_that_can_not_be_read_are_failed_in_the_manifest_and_stop_nothing(site: Site) -> None:
    site.prometheus.down = True
    run = site.backup(type="full")
    assert run.failed() == []
    assert run.order.count("capture_prometheus") == 3
    (found,) = [source for source in site.manifest()["sources"] if source["name"] == "prometheus"]
    assert (found["state"], "503" in found["reason"]) == ("failed", True)
    assert "prometheus.tar.zst.gpg" not in site.names()


def no_recipients(site: Site, _: pytest.MonkeyPatch) -> None:
    site.edit_profile(lambda data: data["backup"].update(recipients=[]))


def expired_recipient(site: Site, _: pytest.MonkeyPatch) -> None:
    pin = site.keys.expired
    (site.profile_path.parent / "expired.asc").write_text(pin.armored, encoding="ascii")
    entry = {"name": "expired", "fingerprint": pin.fingerprint, "key_file": "expired.asc"}
    site.edit_profile(lambda data: data["backup"]["recipients"].append(entry))


def test_a_signing_key_that_ends_soon_is_told_by_the_backup(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    pin = site.keys.make("ends-soon", passphrase=PASSPHRASE, encrypts=False, options=("--quiet",))  # in a day
    (site.profile_path.parent / "ends-soon.asc").write_text(pin.armored, encoding="ascii")
    entry = {"name": pin.name, "fingerprint": pin.fingerprint, "key_file": "ends-soon.asc"}
    site.edit_profile(lambda data: data["backup"].update(signers=[entry]))
    monkeypatch.setenv("AIRFLOW_CONN_OPENPGP_SIGNING", site.keys.signing_connection(pin))
    for _ in ("first", "cleared"):
        run = site.backup()
        assert run.failed() == []
        (found,) = [one for one in run.report["findings"] if one["severity"] == "warn" and one["check"] == "keys"]
        assert (found["object"], found["observed"][:15]) == ("signer ends-soon", "its key ends at")


def swapped_key_file(site: Site, _: pytest.MonkeyPatch) -> None:
    (site.profile_path.parent / "escrow.asc").write_text(site.keys.stranger.armored, encoding="ascii")


def no_key_file(site: Site, _: pytest.MonkeyPatch) -> None:
    (site.profile_path.parent / "escrow.asc").unlink()


def unknown_signer(site: Site, _: pytest.MonkeyPatch) -> None:
    site.edit_profile(lambda data: data["backup"].update(signers=data["backup"]["recipients"]))


def no_signing_key(site: Site, patch: pytest.MonkeyPatch) -> None:
    patch.delenv("AIRFLOW_CONN_OPENPGP_SIGNING")


def denied(site: Site, _: pytest.MonkeyPatch) -> None:
    site.s3.deny = True


def wrong_bucket(site: Site, _: pytest.MonkeyPatch) -> None:
    site.edit_profile(lambda data: data["backup"].update(bucket="elsewhere"))


@pytest.mark.parametrize(
    ("spoil", "reference"),
    [
        pytest.param(no_recipients, "openpgp-no-recipients", id="no recipients"),
        pytest.param(expired_recipient, "openpgp-key-unusable", id="a key has expired"),
        pytest.param(swapped_key_file, "openpgp-key-not-pinned", id="another key in the file"),
        pytest.param(no_key_file, "openpgp-key-file-missing", id="no key file"),
        pytest.param(unknown_signer, "openpgp-signer-not-pinned", id="the signing key is not pinned"),
        pytest.param(no_signing_key, "connection-missing", id="no signing key"),
        pytest.param(denied, "object-store-forbidden", id="denied"),
        pytest.param(wrong_bucket, "bucket-not-found", id="wrong bucket"),
    ],
)
def test_is_refused_before_anything_is_read_or_written(
    spoil: Callable[[Site, pytest.MonkeyPatch], None], reference: str, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(site, monkeypatch)
    run = site.backup()
    assert f"[{reference}]" in run.error("check_request")
    assert run.states["capture_kubernetes_objects"] == "upstream_failed"
    assert run.states["verify_outcome"] == "failed"
    assert site.s3.objects == {}
    assert run.report["overall"] == "not-backed-up"


@pytest.mark.parametrize(
    "step", ["capture_kubernetes_objects", "capture_grafana_dashboards", "record_manifest", "verify_stored_files"]
)
def test_a_step_that_fails_leaves_no_backup_that_counts(step: str, site: Site) -> None:
    run = site.backup(replaced={step: broken_step})
    assert run.states["verify_outcome"] == "failed"
    assert run.report["overall"] == "not-backed-up"
    assert "checked.json.asc" not in site.names()
    assert ("manifest.json.asc" in site.names()) == (step == "verify_stored_files")


def broken_step(step: Any, context: Any) -> Any:
    from airflow.sdk.exceptions import AirflowFailException

    raise AirflowFailException("it broke")


def test_a_required_source_that_fails_leaves_nothing_of_it(site: Site) -> None:
    def fail(request: Received) -> Reply | None:
        return Reply(403, {"kind": "Status"}) if request.path.endswith("/secrets") else None

    site.cluster.fail = fail
    run = site.backup()
    assert run.states["capture_kubernetes_objects"] == "failed"
    assert site.s3.objects == {}
    assert site.s3.uploads == {}


def test_another_source_that_fails_is_told_in_the_manifest(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(Source):
        def members(self) -> Iterator[Any]:
            raise PermanentError("gone", "it broke")
            yield

    monkeypatch.setitem(SOURCES, "grafana-dashboards", SourceKind(lambda of: Broken(), required=False))
    run = site.backup()
    assert run.failed() == []
    (found,) = [source for source in site.manifest()["sources"] if source["name"] == "grafana-dashboards"]
    assert found["state"] == "failed"
    assert "it broke" in found["reason"]
    assert run.report["findings"][0]["severity"] in ("pass", "warn")


def test_weaviates_part_is_as_old_as_its_making_and_so_is_the_backup(site: Site) -> None:
    site.weaviate.now = lambda: datetime(2026, 11, 23, 9, tzinfo=UTC)
    run = site.backup(type="full")
    assert run.failed() == []
    manifest = site.manifest()
    (weaviate,) = [source for source in manifest["sources"] if source["name"] == "weaviate"]
    assert weaviate["started_at"] == manifest["started_at"] == "2026-11-23T09:00:00Z"


def test_every_step_can_be_repeated(site: Site) -> None:
    first = site.backup()
    before = dict(site.s3.objects)
    again = site.backup()
    assert again.failed() == []
    assert {key.rpartition("/")[0] for key in site.s3.objects} == {key.rpartition("/")[0] for key in before}
    assert first.report["overall"] == again.report["overall"] == "backed-up"


def everything_stored(site: Site) -> tuple[dict[Any, bytes], dict[str, bytes], int]:
    """Return what lies in the buckets, and how often Weaviate was asked for a backup."""
    return {**site.s3.versions}, {**site.staging.objects}, len(site.weaviate.asked)


@pytest.mark.parametrize("kind", ["full", "auto", "config-only"])
def test_a_finished_run_that_is_cleared_goes_on_from_its_backup_and_touches_nothing(site: Site, kind: str) -> None:
    site.s3.versioned = False
    first = site.backup(type=kind)
    before, manifest = everything_stored(site), site.manifest()
    site.cluster.objects[SETTINGS]["data"] = {"a": "changed since"}
    again = site.backup(type=kind)
    assert again.failed() == []
    assert again.report["overall"] == first.report["overall"] == "backed-up"
    assert (id_of(again), site.manifest()) == (id_of(first), manifest)
    assert everything_stored(site) == before
    after = site.backup(type="incremental" if kind != "config-only" else kind, run_id="second")
    assert after.failed() == []
    assert kind == "config-only" or facts_of(site, after, "weaviate")["incremental"] == "yes"


MAKING = [f"capture_{name.replace('-', '_')}" for name in SOURCES]
MAKING += ["wait_weaviate_backup", "release_staging", "record_manifest", "verify_stored_files"]


@pytest.mark.parametrize("step", MAKING)
def test_a_step_of_a_finished_run_that_is_cleared_alone_touches_nothing(site: Site, step: str) -> None:
    site.s3.versioned = False
    run = site.backup(type="full")
    before, result = everything_stored(site), run.results.get((step, "return_value"))
    site.cluster.objects[SETTINGS]["data"] = {"a": "changed since"}
    run._try(run.dag.get_task(step), run_instance(run, step))
    assert everything_stored(site) == before
    if step == "wait_weaviate_backup":
        assert run.results[step, "return_value"] == {"backup_id": id_of(run)}
    elif step == "release_staging":
        assert run.states[step] == "skipped"
    else:
        assert run.results[step, "return_value"] == result


def test_a_backup_is_not_changed_by_a_run_that_found_something_else(site: Site) -> None:
    run = site.backup()
    before = everything_stored(site)
    run.results["capture_kubernetes_objects", "return_value"]["facts"] = {"objects": 0}
    run._try(run.dag.get_task("record_manifest"), run_instance(run, "record_manifest"))
    assert run.states["record_manifest"] == "failed"
    assert "[backup-exists]" in run.error("record_manifest")
    run.params["include_sources"] = ["prometheus"]
    run._try(run.dag.get_task("capture_prometheus"), run_instance(run, "capture_prometheus"))
    assert "[backup-exists]" in run.error("capture_prometheus")
    assert everything_stored(site) == before


def test_a_manifest_that_is_there_already_is_kept(site: Site) -> None:
    run = site.backup()
    signature = site.stored("manifest.json.asc")
    context = run.context(site.dag.get_task("record_manifest"), run_instance(run, "record_manifest"))
    result = site.dag.get_task("record_manifest").execute(context)
    assert result["manifest_sha256"] == run.results["record_manifest", "return_value"]["manifest_sha256"]
    assert site.stored("manifest.json.asc") == signature


def run_instance(run: DagRunner, task_id: str) -> Any:
    from tests.unit.dag_runner import TaskInstance

    return TaskInstance(run, run.dag.get_task(task_id))


def test_a_small_site_encrypts_with_a_passphrase(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "a passphrase of a small site"
    site.edit_profile(lambda data: data["backup"].update(recipients=[], encryption="passphrase"))
    monkeypatch.setenv("AIRFLOW_CONN_OPENPGP_PASSPHRASE", connection_json(conn_type="generic", password=secret))
    run = site.backup()
    assert run.failed() == []
    assert (site.manifest()["encryption"], site.manifest()["recipients"]) == ("passphrase", [])
    encrypted = site.stored("kubernetes-objects.tar.zst.gpg")
    assert site.keys.gpg("--passphrase", secret, "--decrypt", data=encrypted)
    assert not [data for data in site.s3.objects.values() if secret.encode() in data]
    monkeypatch.setenv("AIRFLOW_CONN_OPENPGP_PASSPHRASE", connection_json(conn_type="generic", password=""))
    assert "[openpgp-no-recipients]" in site.backup().error("check_request")


# ------------------------------------------------------------------------------------------------- the knowledge base


def with_knowledge_base(site: Site, folder: Path) -> None:
    (folder / "docs").mkdir(parents=True)
    (folder / "docs" / "a.txt").write_bytes(CANARY.encode())
    site.cluster.add_claim(SYSTEM, "knowledge", folder)
    site.cluster.add_pod(SYSTEM, "rag-api-0", "knowledge", "/data")
    site.cluster.inside["rag-api-0", "app"].programs = ()
    site.cluster.allowed |= {("create", "pods"), ("get", "pods"), ("delete", "pods")}
    site.cluster.allowed |= {("get", "pods/exec"), ("create", "pods/exec")}
    wanted = {"knowledge_base": [{"name": "docs", "claim": "knowledge", "path": "docs"}], "reader_image": "busybox"}
    site.edit_profile(lambda data: data["backup"].update(wanted))


def test_the_knowledge_base_is_in_a_full_backup_once_it_is_configured(site: Site, tmp_path: Path) -> None:
    with_knowledge_base(site, tmp_path / "volume")
    run = site.backup(type="full")
    assert run.failed() == []
    (source,) = [found for found in site.manifest()["sources"] if found["name"] == "knowledge-base"]
    assert (source["required"], source["state"]) == (True, "captured")
    assert source["facts"]["folders"]["docs"]["way"] == "helper pod"
    assert site.opened("knowledge-base")["knowledge-base/docs/files/a.txt"] == CANARY.encode()
    assert site.cluster.helpers() == []


def test_a_configured_knowledge_base_that_can_not_be_read_is_no_backup(site: Site, tmp_path: Path) -> None:
    with_knowledge_base(site, tmp_path / "volume")
    site.cluster.helper_programs = ("tar",)
    site.cluster.spoiled = Spoiled(cut_after_bytes=600)
    run = site.backup(type="full")
    assert "[pod-stream-ended]" in run.error("capture_knowledge_base")
    assert run.order.count("capture_knowledge_base") == 3
    assert run.states["record_manifest"] == "upstream_failed"
    assert not [name for name in site.names() if name.startswith("knowledge-base")]
    assert site.cluster.helpers() == []


def test_a_knowledge_base_without_a_way_to_it_is_refused_before_anything_is_written(site: Site, tmp_path: Path) -> None:
    with_knowledge_base(site, tmp_path / "volume")
    site.cluster.allowed.clear()
    run = site.backup(type="full")
    assert "takes create pods" in run.error("check_request")
    assert site.s3.objects == {}


# ------------------------------------------------------------------------------------------------------ a part of one


def test_a_part_says_so_and_is_nothing_to_build_on(site: Site) -> None:
    run = site.backup(type="full", exclude_sources=["weaviate", "weaviate-facts", "prometheus"])
    assert run.failed() == []
    manifest = site.manifest()
    assert {source["name"] for source in manifest["sources"]} == {*CONFIGURATION, "knowledge-base"}
    assert manifest["scope"]["exclude_sources"] == ["weaviate", "weaviate-facts", "prometheus"]
    assert run.states["wait_weaviate_backup"] == run.states["release_staging"] == "skipped"
    assert site.weaviate.asked == []
    assert "exclude_sources: weaviate" in str(run.report["findings"])
    again = site.backup(type="incremental", run_id="second")
    assert "[no-parent]" in again.error("check_request")


def test_a_whole_backup_says_nothing_of_a_scope(site: Site) -> None:
    site.backup()
    assert site.manifest()["scope"] is None


def test_resources_and_namespaces_are_chosen_by_name(site: Site) -> None:
    run = site.backup(exclude_resources=["secrets"], include_namespaces=[SYSTEM])
    assert objects_in(site, run) == {"settings.json", f"{SYSTEM}.json"}
    kept = site.opened("kubernetes-objects")
    assert not [path for path, data in kept.items() if CANARY.encode() in data]


@pytest.mark.parametrize(
    ("given", "reference"),
    [
        pytest.param({"exclude_resources": ["secret"]}, "scope-unknown", id="unknown resource"),
        pytest.param({"include_sources": ["weaviate"]}, "scope-unknown", id="a source that the type does not have"),
        pytest.param({"exclude_sources": CONFIGURATION}, "parameters-invalid", id="nothing left"),
        pytest.param({"type": "auto", "exclude_resources": ["secrets"]}, "parameters-invalid", id="part of a chain"),
    ],
)
def test_a_part_that_can_not_be_meant_is_refused_before_anything_is_written(
    given: dict[str, Any], reference: str, site: Site
) -> None:
    run = site.backup(**given)
    assert f"[{reference}]" in run.error("check_request")
    assert site.s3.objects == {}
