"""Files out of the real cluster: a knowledge base by exec and by a helper pod, and a snapshot of a Prometheus in a pod.

What is read from is clean afterwards, also when the step that reads is dead for good.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from lab import oci
from lab.config import PROJECT, LabConfig
from lab.processes import Process
from lab.waiting import wait_until
from tests.lab.stored_backup import StoredBackup
from tests.lab.test_backup import made
from tests.lab.test_backup_faults import LOOK_SECONDS, MOMENT_LIMIT, pid_of

if TYPE_CHECKING:
    from conftest import Lab, Upgrades

SYSTEM, MONITORING = "nephoran-system", "nephoran-monitoring"
BUSYBOX, PROMETHEUS = Path("/usr/bin/busybox"), Path("/usr/bin/prometheus")
APPLETS = ("sh", "sleep", "grep", "tar", "ls", "rm", "cat", "mkdir", "dd", "ln", "sha256sum", "find")
READER = "nephoran-maintenance-reader"
OPTIONAL = PROJECT / "deploy" / "rbac" / "optional"
EXEC_IN_KNOWLEDGE = {
    "apiVersion": "rbac.authorization.k8s.io/v1",
    "kind": "Role",
    "metadata": {"name": "backup-reads-knowledge-0", "namespace": SYSTEM},
    "rules": [
        {"apiGroups": [""], "resources": ["pods/exec"], "resourceNames": ["knowledge-0"], "verbs": ["get", "create"]}
    ],
}
FILL = (
    "mkdir -p /data/docs/sub && cd /data/docs && echo one > a.txt && ln -s a.txt newest"
    " && dd if=/dev/urandom of=sub/large.bin bs=65536 count=320 && while true; do sleep 3600; done"
)


def program_layer(*extra: Path) -> oci.Layer:
    files: dict[str, Path] = {"/bin/busybox": BUSYBOX.resolve(), **{f"/bin/{path.name}": path for path in extra}}
    links = {f"/bin/{name}": "/bin/busybox" for name in APPLETS}
    return oci.build_layer(files, links=links, directories={"/tmp": 0o1777})


def libraries(program: Path) -> dict[str, Path]:
    """Return what a program is linked with, at the same paths."""
    shown = subprocess.run(["ldd", str(program)], capture_output=True, text=True, check=False).stdout
    return {word: Path(word).resolve() for line in shown.splitlines() for word in line.split() if word.startswith("/")}


def push(config: LabConfig, name: str, layers: list[oci.Layer], entrypoint: list[str]) -> str:
    oci.push(oci.build_image(layers, entrypoint=entrypoint), config.registry, name, "v1")
    return f"{config.registry}/{name}:v1"


def stateful_set(name: str, namespace: str, container: dict[str, Any], path: str) -> dict[str, Any]:
    labels = {"app": name}
    claim = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "100Mi"}}}
    mount = {"name": "data", "mountPath": path}
    return {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "replicas": 1,
            "serviceName": name,
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": {
                    "terminationGracePeriodSeconds": 1,
                    "containers": [{"name": name, **container, "volumeMounts": [mount]}],
                },
            },
            "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": claim}],
        },
    }


@pytest.fixture(scope="module")
def volumes(lab: Lab, upgrades: Upgrades) -> Iterator[None]:
    """Put files onto a claim and a Prometheus with the admin API into a pod, and both into the profile."""
    if not BUSYBOX.exists() or not PROMETHEUS.exists():
        pytest.skip("busybox or prometheus is missing")
    tools = push(lab.config, "tools/busybox", [program_layer()], ["/bin/sh"])
    linked = oci.build_layer(libraries(PROMETHEUS)) if libraries(PROMETHEUS) else None
    layers = [program_layer(PROMETHEUS), *([linked] if linked else [])]
    prometheus = push(lab.config, "tools/prometheus", layers, ["/bin/prometheus"])
    arguments = [
        "--config.file=/etc/prometheus/prometheus.yml",
        "--storage.tsdb.path=/prometheus",
        "--web.enable-admin-api",
    ]
    sets = [
        stateful_set("knowledge", SYSTEM, {"image": tools, "command": ["sh", "-c", FILL]}, "/data"),
        stateful_set("prometheus", MONITORING, {"image": prometheus, "args": arguments}, "/prometheus"),
    ]
    settings = {
        "global": {"scrape_interval": "1s"},
        "scrape_configs": [{"job_name": "self", "static_configs": [{"targets": ["127.0.0.1:9090"]}]}],
    }
    config_map = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "prometheus-config", "namespace": MONITORING},
        "data": {"prometheus.yml": yaml.safe_dump(settings)},
    }
    spec = sets[1]["spec"]["template"]["spec"]
    spec["volumes"] = [{"name": "config", "configMap": {"name": "prometheus-config"}}]
    spec["containers"][0]["volumeMounts"].append({"name": "config", "mountPath": "/etc/prometheus"})
    binding = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": {"name": "backup-reads-knowledge-0", "namespace": SYSTEM},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "backup-reads-knowledge-0"},
        "subjects": [{"kind": "ServiceAccount", "name": "backup", "namespace": "nephoran-maintenance"}],
    }
    objects = [config_map, *sets, EXEC_IN_KNOWLEDGE, binding]
    for found in objects:
        lab.kubectl("apply", "--server-side", "--filename=-", input=json.dumps(found))
    for name in ("knowledge-base", "tsdb-snapshot"):
        lab.kubectl("apply", "--server-side", "--filename", str(OPTIONAL / f"{name}.yaml"))
    for name, namespace in (("knowledge", SYSTEM), ("prometheus", MONITORING)):
        lab.kubectl("rollout", "status", f"statefulset/{name}", f"--namespace={namespace}", "--timeout=120s")
    profile = lab.config.home / "profile.yaml"
    before = profile.read_text(encoding="utf-8")
    data = yaml.safe_load(before)
    data["backup"] |= {
        "knowledge_base": [{"name": "docs", "claim": "data-knowledge-0", "path": "docs", "user": 0}],
        "reader_image": tools,
        "prometheus": {"workload": {"name": "prometheus"}, "data_path": "/prometheus"},
    }
    profile.write_text(yaml.safe_dump(data, sort_keys=False), encoding="utf-8")
    time.sleep(5)  # something must have been scraped
    yield
    profile.write_text(before, encoding="utf-8")
    for found in [
        *objects,
        *(
            {"kind": "PersistentVolumeClaim", "metadata": m}
            for m in (
                {"name": "data-knowledge-0", "namespace": SYSTEM},
                {"name": "data-prometheus-0", "namespace": MONITORING},
            )
        ),
    ]:
        where = f"--namespace={found['metadata']['namespace']}"
        lab.kubectl("delete", found["kind"].lower(), found["metadata"]["name"], where, "--ignore-not-found")
    for name in ("knowledge-base", "tsdb-snapshot"):
        lab.kubectl("delete", "--filename", str(OPTIONAL / f"{name}.yaml"), "--ignore-not-found")


def live_digests(lab: Lab) -> dict[str, str]:
    """Return the SHA-256 of each file as the pod itself computes it."""
    command = "cd /data/docs && find . -type f -exec sha256sum {} +"
    shown = lab.kubectl("exec", "knowledge-0", f"--namespace={SYSTEM}", "--", "sh", "-c", command)
    return {line.split("  ", 1)[1].removeprefix("./"): line.split()[0] for line in shown.splitlines()}


def compare_files(lab: Lab, backup: StoredBackup) -> None:
    import hashlib

    root = "knowledge-base/docs/files/"
    files = {p.removeprefix(root): d for p, d in backup.files("knowledge-base").items() if p.startswith(root)}
    assert {path: hashlib.sha256(data).hexdigest() for path, data in files.items()} == live_digests(lab)
    assert len(files) == 2


def only(*names: str) -> list[str]:
    return ["kubernetes-objects", *names]


def test_the_knowledge_base_by_exec_is_what_the_pod_has(lab: Lab, upgrades: Upgrades, volumes: None) -> None:
    found = made(lab, upgrades, type="full", include_sources=only("knowledge-base"))
    assert found.sources["knowledge-base"]["facts"]["folders"]["docs"]["way"] == "exec"
    compare_files(lab, found)


def test_the_knowledge_base_by_a_helper_pod_is_the_same_and_the_pod_is_gone(
    lab: Lab, upgrades: Upgrades, volumes: None
) -> None:
    lab.kubectl("delete", "rolebinding", "backup-reads-knowledge-0", f"--namespace={SYSTEM}")
    found = made(lab, upgrades, type="full", include_sources=only("knowledge-base"))
    assert found.sources["knowledge-base"]["facts"]["folders"]["docs"]["way"] == "helper pod"
    compare_files(lab, found)
    wait_until_gone(lab)


def wait_until_gone(lab: Lab) -> None:
    def gone() -> bool:
        return READER not in lab.kubectl("get", "pods", f"--namespace={SYSTEM}", "--output=name")

    wait_until("the end of the helper pod", gone, limit=timedelta(seconds=30))


def snapshots_folder(lab: Lab) -> Path:
    """Return the folder of Prometheus' snapshots as it lies on this machine."""
    claim = lab.get("persistentvolumeclaim", "data-prometheus-0", MONITORING)
    volume = lab.get("persistentvolume", claim["spec"]["volumeName"])
    return lab.config.state / str(volume["spec"]["hostPath"]["path"]).lstrip("/") / "snapshots"


def stopped_with_a_snapshot(upgrades: Upgrades, run_id: str, folder: Path) -> str:
    """Stop the process that captures Prometheus as soon as there is a snapshot, and return its name."""
    database = upgrades.airflow.instance.database
    deadline = time.monotonic() + MOMENT_LIMIT.total_seconds()
    while (pid := pid_of(database, run_id, "capture_prometheus")) is None:
        assert time.monotonic() < deadline, "it was never seen at work"
        time.sleep(10 * LOOK_SECONDS)
    process = Process.of(pid)
    assert process, "it has ended at once"
    while not (names := [path.name for path in folder.glob("*Z-*")]):
        assert process.alive, "it has ended without a snapshot"
        time.sleep(LOOK_SECONDS)
    process.signal(signal.SIGSTOP)
    assert [path.name for path in folder.glob("*Z-*")] == names, "it was too late"
    return names[0]


def test_a_snapshot_is_gone_although_the_step_that_took_it_was_marked_failed(
    lab: Lab, upgrades: Upgrades, volumes: None
) -> None:
    folder = snapshots_folder(lab)
    run_id = upgrades.start("backup", type="full", include_sources=only("prometheus"))
    name = stopped_with_a_snapshot(upgrades, run_id, folder)
    upgrades.client.fail_task("backup", run_id, "capture_prometheus")
    run = upgrades.ended(run_id, "backup")
    assert (run.state, run.steps["capture_prometheus"], run.steps["release_readers"]) == ("failed", "failed", "success")
    released = run.client.xcom("backup", run_id, "release_readers")
    assert released["removed"] == [f"snapshot of Prometheus: {name}"]
    assert list(folder.iterdir()) == []
    assert name in str([found for found in run.report["findings"] if found["check"] == "readers"])


def test_a_snapshot_can_be_opened_by_promtool_and_no_other_is_gone_from_the_pod(
    lab: Lab, upgrades: Upgrades, volumes: None, tmp_path: Path
) -> None:
    in_the_pod = ("exec", "prometheus-0", f"--namespace={MONITORING}", "--")
    theirs = "20261101T000000Z-fedcba9876543210"
    lab.kubectl(*in_the_pod, "mkdir", "-p", f"/prometheus/snapshots/{theirs}")
    found = made(lab, upgrades, type="full", include_sources=only("prometheus"))
    facts = found.sources["prometheus"]["facts"]
    assert facts["kind"] == "tsdb snapshot", facts
    assert facts["other_snapshots"] == {"count": 1, "first": [theirs]}
    assert lab.kubectl(*in_the_pod, "ls", "/prometheus/snapshots").split() == [theirs]
    root = "prometheus/snapshot/"
    for path, data in found.files("prometheus").items():
        if path.startswith(root):
            target = tmp_path / path.removeprefix(root)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
    promtool = shutil.which("promtool")
    assert promtool, "it comes with prometheus"
    listed = subprocess.run(
        [promtool, "tsdb", "list", str(tmp_path)], capture_output=True, text=True, check=True
    ).stdout
    assert all(block in listed for block in facts["blocks"])
    (tmp_path / "wal").mkdir()  # promtool wants the folder, however little is in it
    dumped = subprocess.run(
        [promtool, "tsdb", "dump", str(tmp_path)], capture_output=True, text=True, check=True
    ).stdout
    assert '__name__="up"' in dumped
