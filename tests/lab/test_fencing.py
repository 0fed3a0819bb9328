"""A stopped owner wakes up too late: the real API server refuses its write.

The owner is a process of its own that gets a real SIGSTOP between its last check and its write, for longer than its lease
lasts; whoever takes over uses the same hooks in this process.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from lab.airflow_access import MANIFESTS, write_profile
from lab.config import PROJECT
from lab.waiting import wait_until
from nephoran_maintenance.domain.journal import Journal
from nephoran_maintenance.domain.lease import FENCE
from nephoran_maintenance.engine.fencing import stamp
from nephoran_maintenance.hooks.cluster import KubeconfigClusterHook
from nephoran_maintenance.hooks.journal_store import JournalStore
from nephoran_maintenance.hooks.lease_store import LeaseStore
from nephoran_maintenance.profile import SystemProfile, load_profile
from tests.lab.conftest import VARIANT
from tests.lab.late_owner import CONTAINER, MARK, NAMESPACE, marked, roller

if TYPE_CHECKING:
    from conftest import Lab

LEASE_SECONDS = 3
NEW_OWNER = "recover-operation-of-the-fencing-test"
LIMIT = timedelta(seconds=30)


@dataclass
class Scene:
    """A Deployment without pods, a system of its own with its lease, and the hands that take over."""

    lab: Lab
    profile_path: Path
    name: str

    @property
    def operation(self) -> str:
        return f"rolling-upgrade-{self.name}"

    @property
    def profile(self) -> SystemProfile:
        return load_profile(self.profile_path)

    @property
    def cluster(self) -> KubeconfigClusterHook:
        return KubeconfigClusterHook(self.lab.config.kubeconfig, self.lab.config.context)

    @property
    def store(self) -> JournalStore:
        return JournalStore(self.cluster, self.profile.namespaces.maintenance, self.profile.metadata.name)

    @property
    def leases(self) -> LeaseStore:
        return LeaseStore(self.cluster, self.profile)

    def deployment(self) -> dict[str, Any]:
        """Return what of the object no controller writes."""
        found = self.lab.get("deployment", self.name, NAMESPACE)
        fence = found["metadata"].get("annotations", {}).get(FENCE)
        return {"spec": found["spec"], "generation": found["metadata"]["generation"], "fence": fence}

    def mark(self) -> str | None:
        """Return who has written the template."""
        template = self.deployment()["spec"]["template"]
        return template["metadata"].get("annotations", {}).get(MARK)

    def expired(self) -> bool:
        lease, now = self.leases.look()
        return lease is not None and now is not None and lease.standing(NEW_OWNER, now) == "expired"

    def take_over(self) -> Journal:
        """Take the operation over and write, as a recovery does."""
        cluster, store = self.cluster, self.store
        lease = self.leases.take(NEW_OWNER, "recover_operation", above=store.read(self.operation).fencing_token)
        journal = store.update(self.operation, lambda found: found.fenced(lease.token))
        stamp(cluster, journal, lease)
        entry = journal.entries[0]
        theirs = marked(entry.before, NEW_OWNER)
        roller(cluster, self.profile, entry.workload, lease).put_in_place(theirs, lambda found: None)
        return journal


@pytest.fixture
def scene(lab: Lab, tmp_path: Path) -> Iterator[Scene]:
    for manifests in MANIFESTS:
        lab.kubectl("apply", "--server-side", "--filename", str(manifests))
    name = f"fencing-{uuid.uuid4().hex[:6]}"
    path = tmp_path / "profile.yaml"
    write_profile(lab.config, path, VARIANT)
    profile = yaml.safe_load(path.read_text(encoding="utf-8"))
    profile["metadata"]["name"] = name
    profile["lease"] = {"duration_seconds": LEASE_SECONDS, "renew_seconds": 1}
    path.write_text(yaml.safe_dump(profile, sort_keys=False), encoding="utf-8")
    labels = {"app": name}
    container = {"name": CONTAINER, "image": f"{lab.config.registry}/nephoran/rag-api:v1"}
    template = {"metadata": {"labels": labels}, "spec": {"containers": [container]}}
    body = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {"replicas": 0, "selector": {"matchLabels": labels}, "template": template},
    }
    lab.kubectl("create", "--filename=-", input=json.dumps(body))
    found = Scene(lab, path, name)
    yield found
    own = "--namespace=nephoran-maintenance"
    lab.kubectl("delete", "deployment", name, f"--namespace={NAMESPACE}", "--ignore-not-found")
    lab.kubectl("delete", "configmap", found.operation, own, "--ignore-not-found")
    lab.kubectl("delete", "lease", name, own, "--ignore-not-found")


@contextmanager
def stopped_owner(scene: Scene, *options: str) -> Iterator[subprocess.Popen[str]]:
    """Start the owner, stop it between its check and its write, and let its lease run out; end it in any case."""
    config = scene.lab.config
    arguments = (str(config.kubeconfig), config.context, str(scene.profile_path), scene.name, scene.operation, *options)
    with subprocess.Popen(
        (sys.executable, "-m", "tests.lab.late_owner", *arguments),
        cwd=PROJECT,
        env={**os.environ, "PYTHONPATH": f"{PROJECT / 'plugins'}:{PROJECT}"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as owner:
        try:
            assert owner.stdin is not None
            assert owner.stdout is not None
            assert owner.stdout.readline() == "checked\n"
            owner.send_signal(signal.SIGSTOP)
            wait_until("A stopped owner", lambda: state_of(owner.pid) == "T", limit=LIMIT)
            # Whatever keeps it from its write from now on is the signal alone.
            owner.stdin.write("go on\n")
            owner.stdin.flush()
            wait_until("The end of the lease", scene.expired, limit=LIMIT)
            assert scene.mark() is None, "nothing was written yet"
            yield owner
        finally:
            owner.kill()


def state_of(pid: int) -> str:
    """Return the state of a process, as the kernel has it."""
    return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]


def woken(owner: subprocess.Popen[str]) -> dict[str, Any]:
    """Let the owner go on, and return what became of its write."""
    owner.send_signal(signal.SIGCONT)
    told, _ = owner.communicate(timeout=LIMIT.total_seconds())
    assert owner.returncode == 0
    return dict(json.loads(told))


@pytest.mark.parametrize("options", [(), ("--fence-alone",)], ids=["as-it-is", "by-the-fence-alone"])
def test_the_late_write_of_an_owner_that_was_stopped_is_refused_by_the_api_server(
    scene: Scene, options: tuple[str, ...]
) -> None:
    with stopped_owner(scene, *options) as owner:
        journal = scene.take_over()
        assert scene.mark() == NEW_OWNER
        written = scene.deployment()
        late = woken(owner)
    assert [answer for answer, _ in late["sent"]] == ["conflict"], "sent once, and refused by the API server"
    assert scene.deployment() == written
    assert written["fence"] == str(journal.fencing_token)
    assert "[lease-lost]" in late["error"]
    assert NEW_OWNER in late["error"], "it says who owns the system now"
    assert scene.store.read(scene.operation) == journal


def test_an_owner_that_was_stopped_goes_on_when_nobody_took_over(scene: Scene) -> None:
    """The same process and the same write: it is the fence that refuses it above, and nothing else."""
    with stopped_owner(scene, "--fence-alone") as owner:
        late = woken(owner)
    assert late == {"sent": [["accepted", ""]], "error": ""}
    assert scene.mark() == scene.operation
