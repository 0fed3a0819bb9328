"""An upgrade that lost everything around it: Airflow is killed in the middle, and the system is whole again afterwards."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from lab.config import PROJECT
from lab.waiting import wait_until

if TYPE_CHECKING:
    from conftest import Upgrades

DAG = "rolling_upgrade"
COMPONENTS = ["weaviate", "rag-api"]
LEASE_SECONDS = 15
"""Short, so that a dead owner is noticed soon; longer than a hiccup of this machine."""
OWN = "nephoran-maintenance"
FENCE = "maintenance.nephoran.com/fence"
RECOVERY_LIMIT = timedelta(minutes=15)
"""Airflow itself needs five minutes to notice that a worker is gone; a run that lives again goes on after that."""


@pytest.fixture
def short_lease(upgrades: Upgrades) -> Iterator[Upgrades]:
    """Return the procedures with the system at v1, a short lease, and Airflow up again whatever a test did to it."""
    upgrades.airflow.up()
    upgrades.prepare()
    path = upgrades.lab.config.home / "profile.yaml"
    profile = yaml.safe_load(path.read_text(encoding="utf-8"))
    profile["lease"] = {"duration_seconds": LEASE_SECONDS, "renew_seconds": 3}
    path.write_text(yaml.safe_dump(profile, sort_keys=False), encoding="utf-8")
    yield upgrades
    upgrades.airflow.up()
    wait_until(
        "The end of all runs",
        lambda: not any(upgrades.client.unfinished_runs(name) for name in (DAG, "recover_operation")),
        limit=RECOVERY_LIMIT,
    )
    upgrades.prepare()


def state_of(upgrades: Upgrades, run_id: str, step: str) -> str | None:
    return next((t.state for t in upgrades.client.task_states(DAG, run_id) if t.task_id == step), None)


def kill_in_the_middle(upgrades: Upgrades, step: str) -> str:
    """Start an upgrade, kill Airflow while a step is at work on the cluster, and return the run's id."""
    upgrades.client.await_dag(DAG)
    run_id = upgrades.client.trigger(DAG, {"mode": "apply", "version": "v2", "components": COMPONENTS})
    workload = "statefulset" if "weaviate" in step else "deployment"
    name = "weaviate" if "weaviate" in step else "rag-api"

    def changing() -> bool:
        if state_of(upgrades, run_id, step) not in ("running", "deferred"):
            return False
        found = upgrades.lab.get(workload, name, "nephoran-system")
        return any(":v2" in c["image"] for c in found["spec"]["template"]["spec"]["containers"])

    wait_until(f"A change in {step}", changing, limit=timedelta(minutes=6), interval=timedelta(milliseconds=200))
    upgrades.airflow.kill()
    assert journal(upgrades)["state"] == "open"
    assert fences(upgrades), "the objects must bear the mark of the operation"
    return run_id


def journal(upgrades: Upgrades) -> dict[str, Any]:
    found = upgrades.lab.get("configmaps", namespace=OWN)["items"]
    heads = [json.loads(item["data"]["journal.json"]) for item in found if "journal.json" in (item.get("data") or {})]
    assert len(heads) == 1
    return dict(heads[0])


def lease(upgrades: Upgrades) -> dict[str, Any]:
    return dict(upgrades.lab.get("leases.coordination.k8s.io", "nephoran", OWN)["spec"])


def fences(upgrades: Upgrades) -> dict[str, str]:
    found = upgrades.lab.get("deployments,statefulsets", namespace="nephoran-system")["items"]
    marks = {item["metadata"]["name"]: item["metadata"].get("annotations", {}).get(FENCE) for item in found}
    return {name: mark for name, mark in marks.items() if mark is not None}


def assert_whole(upgrades: Upgrades, before: dict[str, Any]) -> str:
    """Return whether the system is old or new; nothing else is allowed, and no mark may be left."""
    assert fences(upgrades) == {}
    left = upgrades.lab.get(
        "networkintents.nephoran.com,networkintents.intent.nephoran.com", namespace="nephoran-system"
    )
    assert not [item for item in left["items"] if item["metadata"]["name"].startswith("test-")]
    if upgrades.specs() == before:
        return "old"
    images = upgrades.images()
    assert {name: ":v2@sha256:" in images[name] for name in images} == {name: name in COMPONENTS for name in images}
    return "new"


def wait_for_recovery(upgrades: Upgrades) -> dict[str, Any]:
    wait_until("A closed journal", lambda: journal(upgrades)["state"] == "closed", limit=RECOVERY_LIMIT)
    return journal(upgrades)


def wait_for_the_lease_to_run_out() -> None:
    time.sleep(LEASE_SECONDS + 3)


def command_line(upgrades: Upgrades, *arguments: str) -> subprocess.CompletedProcess[str]:
    config = upgrades.lab.config
    return subprocess.run(
        (
            sys.executable,
            "-m",
            "nephoran_maintenance",
            *arguments,
            f"--kubeconfig={config.kubeconfig}",
            f"--profile={config.home / 'profile.yaml'}",
        ),
        env={"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), "PYTHONPATH": str(PROJECT / "plugins")},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )


@pytest.mark.parametrize(
    ("step", "database"),
    [
        pytest.param("components.weaviate.apply_image", "kept", id="weaviate", marks=pytest.mark.slow),
        pytest.param("components.rag_api.wait_image", "lost", id="rag-api-and-the-database"),
        # make bench-kills has the whole matrix
    ],
)
def test_airflow_killed_in_a_changing_step_ends_in_an_allowed_state(
    short_lease: Upgrades, step: str, database: str
) -> None:
    upgrades = short_lease
    before = upgrades.specs()
    kill_in_the_middle(upgrades, step)
    wait_for_the_lease_to_run_out()
    if database == "lost":
        for path in upgrades.airflow.instance.home.glob(f"{upgrades.airflow.instance.database.name}*"):
            path.unlink()
    upgrades.airflow.up()
    closed = wait_for_recovery(upgrades)
    state = assert_whole(upgrades, before)
    assert closed["outcome"] == {"old": "rolled-back", "new": "succeeded"}[state]
    wait_until(
        "The end of the lease",
        lambda: lease(upgrades).get("holderIdentity") != closed["operation_id"],
        limit=timedelta(seconds=30),
    )
    if database == "lost":
        assert state == "old", "nobody is left who could have gone on"
        assert closed["takeovers"]
    if not closed["takeovers"]:
        return  # the run came back to life before the recovery and went on by itself
    folder = upgrades.airflow.instance.home / "reports" / "recover_operation" / closed["operation_id"]
    wait_until("The report", (folder / "report.json").exists, limit=timedelta(minutes=2))
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert report["operation_id"] == closed["operation_id"]
    assert report["overall"] == {"old": "rolled-back", "new": "succeeded"}[state]
    assert report["recovery"]["decision"] == {"old": "undo", "new": "finish"}[state]
    assert report["recovery"]["done"] == f"closed: {closed['outcome']}"


@pytest.mark.slow
def test_the_command_line_recovers_with_airflow_down(short_lease: Upgrades) -> None:
    upgrades = short_lease
    before = upgrades.specs()
    run_id = kill_in_the_middle(upgrades, "components.weaviate.apply_image")
    early = command_line(upgrades, "recover")
    assert early.returncode == 0, early.stderr
    assert "is left: the lease is renewed by its own run" in early.stdout
    wait_for_the_lease_to_run_out()
    status = command_line(upgrades, "status")
    assert status.returncode == 1
    assert "no longer renewed" in status.stdout
    done = command_line(upgrades, "recover")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "is closed: rolled-back" in done.stdout
    assert assert_whole(upgrades, before) == "old"
    assert command_line(upgrades, "status").returncode == 0
    upgrades.airflow.up()
    assert upgrades.client.follow(DAG, run_id, timeout=RECOVERY_LIMIT)["state"] == "failed"
    assert upgrades.specs() == before, "a run that was recovered changes nothing more"


def marks_the_task_failed(upgrades: Upgrades, run_id: str, step: str) -> None:
    upgrades.client.fail_task(DAG, run_id, step)


def marks_the_run_failed(upgrades: Upgrades, run_id: str, step: str) -> None:
    upgrades.client.fail_run(DAG, run_id)


def deletes_the_run(upgrades: Upgrades, run_id: str, step: str) -> None:
    """Airflow deletes no run that is running: who wants that marks it first, and waits for its last step."""
    upgrades.client.fail_run(DAG, run_id)
    upgrades.client.follow(DAG, run_id, timeout=timedelta(minutes=2))
    upgrades.client.delete_run(DAG, run_id)


def pauses_the_dag(upgrades: Upgrades, run_id: str, step: str) -> None:
    upgrades.client.pause(DAG, paused=True)


def clears_a_step_before(upgrades: Upgrades, run_id: str, step: str) -> None:
    upgrades.client.clear_task(DAG, run_id, "components.weaviate.apply_image")


@pytest.mark.parametrize(
    ("does", "allowed"),
    [
        pytest.param(marks_the_task_failed, {"old"}, id="marks the task as failed"),
        pytest.param(marks_the_run_failed, {"old"}, id="marks the run as failed", marks=pytest.mark.slow),
        pytest.param(deletes_the_run, {"old"}, id="deletes the run", marks=pytest.mark.slow),
        pytest.param(pauses_the_dag, {"old"}, id="pauses the DAG", marks=pytest.mark.slow),
        pytest.param(clears_a_step_before, {"old", "new"}, id="clears a step before", marks=pytest.mark.slow),
    ],
)
def test_whatever_a_person_does_in_the_middle_the_system_is_old_or_new(
    short_lease: Upgrades, does: Callable[[Upgrades, str, str], None], allowed: set[str]
) -> None:
    """docs/how-to/abort-an-upgrade.md, line by line."""
    upgrades, step = short_lease, "components.rag_api.wait_image"
    before = upgrades.specs()
    run_id = upgrades.start(mode="apply", version="v2", components=COMPONENTS)
    at_work = ("running", "deferred")
    wait_until(f"{step} at work", lambda: state_of(upgrades, run_id, step) in at_work, limit=timedelta(minutes=6))
    try:
        does(upgrades, run_id, step)
        closed = wait_for_recovery(upgrades)
    finally:
        upgrades.client.pause(DAG, paused=False)
    state = assert_whole(upgrades, before)
    assert state in allowed
    assert closed["outcome"] == {"old": "rolled-back", "new": "succeeded"}[state]
    if does is marks_the_task_failed:
        run = upgrades.ended(run_id)
        assert run.state == "failed"
        assert run.report["overall"] == "rolled-back"
        assert closed["takeovers"] == [], "its own run has gone back"


def test_an_upgrade_is_rolled_back_on_request(short_lease: Upgrades) -> None:
    upgrades = short_lease
    before = upgrades.specs()
    done = upgrades.run(mode="apply", version="v2", components=["rag-api"])
    assert done.state == "success", done.explain()
    back = upgrades.run("rollback", mode="apply", operation=done.report["operation_id"])
    assert back.state == "success", back.explain()
    assert back.report["overall"] == "rolled-back"
    assert assert_whole(upgrades, before) == "old"


def test_the_lease_shows_who_owns_the_system_and_refuses_a_second_operation(short_lease: Upgrades) -> None:
    upgrades = short_lease
    body = {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": "nephoran", "namespace": OWN},
        "spec": {
            "holderIdentity": "rolling-upgrade-of-another-airflow",
            "leaseDurationSeconds": 3600,
            "renewTime": time.strftime("%Y-%m-%dT%H:%M:%S.000000Z", time.gmtime()),
            "leaseTransitions": 7,
        },
    }
    upgrades.lab.kubectl("apply", "--server-side", "--filename", "-", input=json.dumps(body))
    try:
        run = upgrades.run(mode="apply", version="v2", components=["rag-api"])
        assert run.state == "failed"
        assert "rolling-upgrade-of-another-airflow" in run.error("acquire_lease")
        assert run.report["overall"] == "refused"
    finally:
        upgrades.lab.kubectl("delete", "leases.coordination.k8s.io", "nephoran", f"--namespace={OWN}")
