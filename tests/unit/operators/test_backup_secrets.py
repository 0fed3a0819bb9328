"""No secret of a backup is seen: 20 are planted, and nothing that a run writes, starts or stores holds one of them."""

from __future__ import annotations

import base64
import json
import logging
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from airflow.serialization.serialized_objects import DagSerialization

from tests.unit.backup_bucket import BackupBucket
from tests.unit.dag_runner import DagRunner
from tests.unit.hooks.fake_s3 import DELETER, SECRET, connection_to
from tests.unit.hooks.fake_servers import FakeCluster, Received, Reply, connection_json, kube_config, serving
from tests.unit.openpgp_keys import PASSPHRASE

SYSTEM = "nephoran-system"
KEY_PASSPHRASE = "passphrase-of-a-recipients-key"
IN_THE_CLUSTER = {name: f"planted-{name.replace(' ', '-')}-7f3a" for name in (
    "api key", "database password", "tls key", "webhook token", "registry login", "in binary", "in a config map",
    "in an environment", "in an annotation", "in a custom resource", "in a dashboard", "in a status",
)}  # fmt: skip


@dataclass
class Planted:
    """A system and its site, with every secret by name, and what its runs have started."""

    bucket: BackupBucket
    cluster: FakeCluster
    secrets: dict[str, str]
    started: list[tuple[str, str]] = field(default_factory=list)
    """Command line and environment of every child, as the kernel has them."""

    def leaks(self, run: DagRunner, logs: str) -> list[str]:
        """Return where which secret is seen."""
        tasks = [*run.dag.tasks]
        places = {
            "task logs": logs,
            "results": json.dumps([[list(key), value] for key, value in run.results.items()]),
            "rendered fields": str([[getattr(task, name) for name in task.template_fields] for task in tasks]),
            "serialized procedure": json.dumps(DagSerialization.to_dict(run.dag), default=str),
            "command lines": "\n".join(command for command, _ in self.started),
            "environments": "\n".join(environment for _, environment in self.started),
        }
        for path in self.reports():
            places[f"report {path.name}"] = path.read_text(encoding="utf-8")
        for key, data in self.bucket.s3.objects.items():
            places[f"bucket {key}"] = data.decode("latin-1")
        found = []
        for name, secret in self.secrets.items():
            forms = {secret, base64.b64encode(secret.encode()).decode(), json.dumps(secret)[1:-1]}
            found += [f"{name} in {place}" for place, text in places.items() if any(form in text for form in forms)]
        return found

    def reports(self) -> list[Path]:
        root = self.bucket.profile_path.parent / "reports"
        return [path for path in root.rglob("*") if path.is_file()]


def served(plural: str, kind: str, scope: str = "Namespaced") -> dict[str, Any]:
    return {"resource": plural, "responseKind": {"kind": kind}, "scope": scope, "verbs": ["get", "list"]}


def discovery(group: str, *resources: dict[str, Any]) -> dict[str, Any]:
    versions = [{"version": "v1", "resources": list(resources), "freshness": "Current"}]
    return {"metadata": {"name": group}, "versions": versions}


def system_with(secrets: dict[str, str]) -> FakeCluster:
    """Return a cluster whose objects hold these secrets."""
    cluster = FakeCluster()
    core = [
        served("configmaps", "ConfigMap"),
        served("secrets", "Secret"),
        served("namespaces", "Namespace", "Cluster"),
    ]
    groups = [
        discovery("apps", served("deployments", "Deployment")),
        discovery("nephoran.com", served("networkintents", "NetworkIntent")),
    ]
    cluster.extra = {
        "/api": Reply(200, {"kind": "APIGroupDiscoveryList", "items": [discovery("", *core)]}),
        "/apis": Reply(200, {"kind": "APIGroupDiscoveryList", "items": groups}),
    }

    def put(path: str, name: str, namespace: str | None = SYSTEM, **fields: Any) -> None:
        metadata = {"name": name, "uid": f"uid-{name}", **fields.pop("metadata", {})}
        place = {"namespace": namespace} if namespace else {}
        cluster.put(path, {"metadata": {**metadata, **place}, **fields})

    def encoded(text: str) -> str:
        return base64.b64encode(text.encode()).decode()

    of_system = f"/api/v1/namespaces/{SYSTEM}"
    for namespace in ("kube-system", SYSTEM, "nephoran-monitoring"):
        put("/api/v1/namespaces", namespace, None)
    for name in ("api key", "database password", "tls key", "webhook token", "registry login"):
        put(f"{of_system}/secrets", name.replace(" ", "-"), type="Opaque", data={"value": encoded(secrets[name])})
    put(f"{of_system}/secrets", "binary", data={"value": encoded("\x00\x01" + secrets["in binary"])})
    put(f"{of_system}/configmaps", "settings", data={"config.ini": f"password = {secrets['in a config map']}"})
    hint = {"annotations": {"note": secrets["in an annotation"]}}
    put(f"{of_system}/configmaps", "noted", metadata=hint, data={})
    label = {"labels": {"grafana_dashboard": "1"}}
    put(f"{of_system}/configmaps", "board", metadata=label, data={"board.json": secrets["in a dashboard"]})
    container = {"name": "c", "image": "i", "env": [{"name": "TOKEN", "value": secrets["in an environment"]}]}
    spec = {"template": {"spec": {"containers": [container]}}}
    put(f"/apis/apps/v1/namespaces/{SYSTEM}/deployments", "app", spec=spec)
    intents = f"/apis/nephoran.com/v1/namespaces/{SYSTEM}/networkintents"
    status = {"message": secrets["in a status"]}
    put(intents, "intent", spec={"intent": secrets["in a custom resource"]}, status=status)
    return cluster


@pytest.fixture
def planted(bucket: BackupBucket, monkeypatch: pytest.MonkeyPatch) -> Iterator[Planted]:
    keys = bucket.keys
    signing_key = json.loads(keys.signing_connection())["extra"]["private_key"]
    recipient_key = keys.private(keys.operations)
    secrets = {
        **IN_THE_CLUSTER,
        "token of the account": "token-of-the-backup-account-5c1d",
        "key of the bucket": SECRET,
        "key of the bucket for retention": "secret-key-of-the-retention-91ab",
        "passphrase of the signing key": PASSPHRASE,
        "signing key": signing_key.splitlines()[3],
        "recipient's key": recipient_key.splitlines()[3],
        "passphrase of the recipient's key": KEY_PASSPHRASE,
        "token of the alerts": "token-of-the-alert-receiver-66e2",
    }
    cluster = system_with(secrets)
    retention = json.loads(connection_to(bucket.server, DELETER))
    retention["password"] = secrets["key of the bucket for retention"]
    decryption = {"private_key": recipient_key}
    with serving(cluster) as api:
        access = {"kube_config": kube_config(api.url, secrets["token of the account"])}
        for name, connection in {
            "KUBERNETES_BACKUP": connection_json(conn_type="kubernetes", extra=access),
            "OBJECT_STORE_RETENTION": json.dumps(retention),
            "OPENPGP_DECRYPTION": connection_json(conn_type="generic", password=KEY_PASSPHRASE, extra=decryption),
            "ALERTS": connection_json(conn_type="http", host=api.url, password=secrets["token of the alerts"]),
        }.items():
            monkeypatch.setenv(f"AIRFLOW_CONN_{name}", connection)
        bucket.edit_profile(lambda data: data["connections"].update(alerts="alerts"))
        found = Planted(bucket, cluster, secrets)
        watch_children(found.started, monkeypatch)
        yield found


def watch_children(started: list[tuple[str, str]], patch: pytest.MonkeyPatch) -> None:
    """Note what the kernel says of every child, once it runs its program, and what it was asked to run."""
    start = subprocess.Popen.__init__

    def init(self: Any, args: Any, *rest: Any, **named: Any) -> None:
        start(self, args, *rest, **named)
        folder = Path("/proc") / str(self.pid)
        command, environment = (read_quietly(folder / name) for name in ("cmdline", "environ"))
        started.append((f"{args} {command}", f"{named.get('env')} {environment}"))

    patch.setattr(subprocess.Popen, "__init__", init)


def read_quietly(path: Path) -> str:
    try:
        return path.read_bytes().decode("latin-1")
    except OSError:
        return ""  # it has ended already


def run_of(dags: dict[str, Any], name: str, replaced: Any = None, **params: Any) -> DagRunner:
    class Nowhere(dict[Any, Any]):
        def __missing__(self, key: Any) -> Any:
            return type("Outlet", (), {"add": lambda self, asset, extra: None})()

    def with_events(step: Any, context: Any) -> Any:
        return step.execute({**context, "outlet_events": Nowhere()})

    measured = {"measure_freshness": with_events} if name == "backup_freshness" else {}
    return DagRunner(dags[name], params, replaced={**measured, **(replaced or {})}).run()


PROCEDURES: dict[str, dict[str, Any]] = {
    "backup": {"type": "config-only"},
    "backup_verification": {"everything": True},
    "backup_retention": {"mode": "apply"},
    "backup_freshness": {},
}


def test_20_secrets_are_planted_and_all_of_the_cluster_are_in_the_backup(
    planted: Planted, dags: dict[str, Any]
) -> None:
    assert len(planted.secrets) == len(set(planted.secrets.values())) == 20
    run = run_of(dags, "backup", **PROCEDURES["backup"])
    assert run.failed() == []
    opened = b""
    for key, data in planted.bucket.s3.objects.items():
        if key.endswith(".gpg"):
            plain = planted.bucket.keys.gpg("--decrypt", data=data)
            opened += subprocess.run(["zstd", "-dc"], input=plain, capture_output=True, check=True).stdout
    for name, secret in IN_THE_CLUSTER.items():
        forms = (
            secret,
            base64.b64encode(secret.encode()).decode(),
            base64.b64encode(f"\x00\x01{secret}".encode()).decode(),
        )
        assert any(form.encode() in opened for form in forms), (
            f"{name} was not captured, so the scan would prove nothing"
        )


@pytest.mark.parametrize("name", PROCEDURES)
def test_none_is_seen_in_a_run_that_goes_well(
    name: str,
    planted: Planted,
    dags: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("nephoran_maintenance.operators.backup_freshness.gauge", lambda name, value: None)
    monkeypatch.setattr("nephoran_maintenance.operators.backup_freshness.standing_of", lambda *_: standing())
    if name != "backup":
        planted.bucket.add(0.5, members={"objects/secret.json": IN_THE_CLUSTER["api key"].encode()})
        planted.bucket.add(400, members={"objects/secret.json": IN_THE_CLUSTER["tls key"].encode()})
    caplog.set_level(logging.INFO)
    run = run_of(dags, name, **PROCEDURES[name])
    assert run.failed() == []
    assert run.surprises == []
    assert planted.started, "no child was seen"
    assert planted.reports()
    assert planted.leaks(run, caplog.text + "".join(capfd.readouterr())) == []


def standing() -> Any:
    from nephoran_maintenance.domain.freshness import Standing

    return Standing(False, False)


def cluster_refuses(planted: Planted) -> None:
    def fail(request: Received) -> Reply | None:
        if not request.path.endswith("/secrets"):
            return None
        said = f"bearer {request.headers.get('authorization', '').removeprefix('Bearer ')} is not allowed"
        return Reply(403, {"kind": "Status", "message": said})

    planted.cluster.fail = fail


def bucket_refuses(planted: Planted) -> None:
    planted.bucket.s3.fail = lambda request: (
        planted.bucket.s3.error(403, "AccessDenied") if request.method == "PUT" else None
    )


@pytest.mark.parametrize("fault", [cluster_refuses, bucket_refuses])
def test_none_is_seen_in_a_run_that_fails(
    fault: Callable[[Planted], None],
    planted: Planted,
    dags: dict[str, Any],
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.INFO)
    fault(planted)
    run = run_of(dags, "backup", **PROCEDURES["backup"])
    assert run.failed()
    assert planted.leaks(run, caplog.text + "".join(capfd.readouterr())) == []


@pytest.mark.parametrize("place", ["results", "task logs", "command lines", "environments", "bucket"])
def test_the_scan_sees_a_secret_where_there_is_one(
    place: str,
    planted: Planted,
    dags: dict[str, Any],
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    secret = IN_THE_CLUSTER["webhook token"]

    def leak(step: Any, context: Any) -> Any:
        if place == "results":
            return {"seen": secret}
        if place == "task logs":
            logging.getLogger("a.client").warning("found %s", base64.b64encode(secret.encode()).decode())
        elif place == "command lines":
            subprocess.run(["true", secret], check=True)
        elif place == "environments":
            subprocess.run(["true"], env={"PATH": "/usr/bin:/bin", "TOKEN": secret}, check=True)
        else:
            planted.bucket.s3.put("notes.txt", secret.encode())
        return None

    run = run_of(dags, "backup_freshness", replaced={"check_request": leak, "measure_freshness": lambda *_: None})
    found = planted.leaks(run, caplog.text + "".join(capfd.readouterr()))
    assert [one for one in found if one.startswith(f"webhook token in {place}")]
