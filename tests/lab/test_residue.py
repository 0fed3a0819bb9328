"""A lab that leaves anything behind breaks the next one: the machine is compared before and after.

One round with an empty cluster by default. ``LAB_ROUNDS=10`` (``make residue``) does ten, each with the whole system.
Its own lab: the one that the other tests share may be up beside it.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from lab import cgroups, oci
from lab.cluster import Cluster
from lab.config import LabConfig
from lab.processes import Process, wait_gone
from lab.progress import Progress
from lab.residue import Snapshot
from lab.waiting import wait_until

ROUNDS = int(os.environ.get("LAB_ROUNDS", "1"))
WITH_SYSTEM = "LAB_ROUNDS" in os.environ
NETWORK_END_LIMIT = timedelta(seconds=15)


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    found = Cluster(LabConfig.named("residue", index=4), progress=Progress())
    found.down()
    yield found
    found.down()


def assert_machine_is_as(before: Snapshot, config: LabConfig) -> None:
    # The kernel takes the namespaces of the dead away a moment after them.
    wait_until(
        "the machine as it was",
        lambda: not Snapshot.take(config).added_since(before),
        limit=NETWORK_END_LIMIT,
        explain=lambda: json.dumps(Snapshot.take(config).added_since(before), indent=2),
    )
    assert Snapshot.take(config).missing_since(before) == {}


def run_pod_with_volume(cluster: Cluster) -> None:
    """Have a sandbox, a container, a volume, a Service and its rules, so that there is something to leave behind."""
    busybox = oci.build_layer({"/bin/busybox": Path("/usr/bin/busybox")})
    image = oci.build_image([busybox], entrypoint=["/bin/busybox", "httpd", "-f", "-p", "8080", "-h", "/data"])
    oci.push(image, cluster.config.registry, "residue/web", "v1")
    volume = {"name": "data", "persistentVolumeClaim": {"claimName": "web"}}
    container = {
        "name": "web",
        "image": f"{cluster.config.registry}/residue/web:v1",
        "volumeMounts": [{"name": "data", "mountPath": "/data"}],
    }
    claim = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Mi"}}}
    objects = [
        {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "web"}, "spec": claim},
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "web", "labels": {"app": "web"}},
            "spec": {"containers": [container], "volumes": [volume]},
        },
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "web"},
            "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]},
        },
    ]
    wait_until("the default ServiceAccount", lambda: "default" in _names(cluster), limit=timedelta(seconds=30))
    cluster.apply(objects)
    cluster.kubectl("wait", "--for=condition=Ready", "pod/web", "--timeout=60s")


def _names(cluster: Cluster) -> str:
    return cluster.kubectl("get", "serviceaccounts", "--output=name")


def kill_everything(config: LabConfig) -> None:
    """Kill all at once, as a crash of the machine would; nobody gets to clean up."""
    processes = [process for pid in cgroups.members(config.cgroup) if (process := Process.of(pid))]
    assert processes
    for process in processes:
        process.signal(signal.SIGKILL)
    assert wait_gone(processes, timedelta(seconds=20)) == []


@pytest.mark.parametrize("number", range(1, ROUNDS + 1))
def test_leaves_nothing_on_the_machine_after_up_and_down(cluster: Cluster, number: int) -> None:
    before = Snapshot.take(cluster.config)
    cluster.up(variant="fast", with_system=WITH_SYSTEM)
    run_pod_with_volume(cluster)
    during = Snapshot.take(cluster.config).added_since(before)
    cluster.down()
    assert {"processes", "network_namespaces", "links", "routes", "cgroup_directories"} <= during.keys()
    assert_machine_is_as(before, cluster.config)
    assert not cluster.config.state.exists()
    assert cluster.status()["state"] == "down"


def test_comes_up_again_after_everything_was_killed(cluster: Cluster) -> None:
    before = Snapshot.take(cluster.config)
    cluster.up(with_system=False)
    run_pod_with_volume(cluster)
    kill_everything(cluster.config)
    assert cluster.status()["state"] == "partly"
    cluster.up(with_system=False)
    assert cluster.status()["state"] == "up"
    run_pod_with_volume(cluster)
    cluster.down()
    assert_machine_is_as(before, cluster.config)


def test_goes_down_cleanly_when_only_the_supervisor_was_killed(cluster: Cluster) -> None:
    before = Snapshot.take(cluster.config)
    cluster.up(with_system=False)
    supervisor = cluster.supervisor.process()
    assert supervisor is not None
    supervisor.signal(signal.SIGKILL)
    assert wait_gone([supervisor], timedelta(seconds=10)) == []
    assert cluster.supervisor.process() is None
    cluster.down()
    assert_machine_is_as(before, cluster.config)


def test_starts_a_process_again_that_was_killed(cluster: Cluster) -> None:
    cluster.up(with_system=False)
    killed = Process.of(int(cluster.supervisor.listed()["registry"]["pid"]))
    assert killed is not None
    killed.signal(signal.SIGKILL)

    def restarted() -> bool:
        entry = cluster.supervisor.listed()["registry"]
        return bool(entry["running"]) and entry["restarts"] == 1

    wait_until("another registry", restarted, limit=timedelta(seconds=20))
    assert cluster.running()


def test_leaves_a_running_lab_as_it_is(cluster: Cluster) -> None:
    cluster.up(with_system=False)
    processes = {name: entry["pid"] for name, entry in cluster.supervisor.listed().items()}
    cluster.up(with_system=False)
    assert {name: entry["pid"] for name, entry in cluster.supervisor.listed().items()} == processes
