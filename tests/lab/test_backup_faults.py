"""A backup whose processes are killed, and two at once: whole or not there, and nothing of it is left behind."""

from __future__ import annotations

import contextlib
import fcntl
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from benchmarks.readers import TaskTable
from lab import buckets
from lab.processes import Process, wait_gone
from nephoran_maintenance.operators.backup import ALL_AFTER_CHECK
from tests.lab import test_backup
from tests.lab.stored_backup import StoredBackup

if TYPE_CHECKING:
    from conftest import Lab, Run, Upgrades

MOMENT_LIMIT = timedelta(minutes=2)
EVERY_LIMIT = timedelta(minutes=10)
SHORT_STEPS = ("wait_operation", "release_staging", "release_readers", "report_operation")
SOON_SECONDS = 0.1
LOOK_SECONDS = 0.005
COMPONENT = "rag-api"
INODE = 9
"""Of the columns of /proc/net/tcp."""


# ------------------------------------------------------------------------------------------------------------ the moment


def pid_of(database: Path, run_id: str, task_id: str) -> int | None:
    """Return the process that a task runs in now."""
    query = "select pid from task_instance where run_id = ? and task_id = ? and state = 'running'"
    with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=30)) as connection:
        row = connection.execute(query, (run_id, task_id)).fetchone()
    return int(row[0]) if row and row[0] else None


def below(pid: int) -> Iterator[int]:
    """Yield the ids of all processes below one."""
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text(encoding="ascii").split():
                yield int(child)
                yield from below(int(child))


def runs_gpg(pid: int, option: str) -> bool:
    """Return whether a process has a gpg below it that was told to do something."""
    for child in below(pid):
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")
            if words[0].endswith(b"gpg") and option.encode() in words:
                return True
    return False


def kill_tree(upgrades: Upgrades, run_id: str, task_id: str, option: str) -> None:
    """Kill a task's process and all below it, once its gpg is at work."""
    database = upgrades.airflow.instance.database
    deadline = time.monotonic() + MOMENT_LIMIT.total_seconds()
    pid = None
    while time.monotonic() < deadline:
        pid = pid or pid_of(database, run_id, task_id)
        if pid is not None and runs_gpg(pid, option):
            victims = [found for one in (pid, *below(pid)) if (found := Process.of(one))]
            for process in victims:
                process.signal(signal.SIGKILL)
            assert victims
            assert wait_gone(victims, timedelta(seconds=10)) == []
            return
        time.sleep(LOOK_SECONDS if pid else 10 * LOOK_SECONDS)
    raise AssertionError(f"{task_id} was never seen with gpg {option}")


def at_work(pid: int) -> bool:
    """Return whether a task has begun what it is there for: it holds a home of gpg, or a connection to somewhere."""
    own = set()
    with contextlib.suppress(OSError):
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                own.add(str(descriptor.readlink()))
    if any(opened.startswith("/dev/shm/nephoran-gpg-") for opened in own):
        return True
    lines = Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]
    return any(f"socket:[{line.split()[INODE]}]" in own for line in lines)


def kill_each_once(upgrades: Upgrades, run_id: str, steps: set[str]) -> None:
    """Kill the process of each step in its first try, once it is at work, while the run goes on.

    What talks to the cluster for some milliseconds only is killed soon after it has begun.
    """
    database = upgrades.airflow.instance.database
    left, began = set(steps), dict[str, float]()
    query = "select task_id, pid from task_instance where run_id = ? and state = 'running' and try_number = 1"
    deadline = time.monotonic() + EVERY_LIMIT.total_seconds()
    with (
        contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=30)) as connection,
        contextlib.closing(TaskTable(database, run_id)) as tasks,
    ):
        while left and tasks.run_state() in ("queued", "running") and time.monotonic() < deadline:
            for task_id, pid in connection.execute(query, (run_id,)).fetchall():
                if task_id not in left or not pid:
                    continue
                seconds = time.monotonic() - began.setdefault(task_id, time.monotonic())
                soon = task_id in SHORT_STEPS and seconds > SOON_SECONDS
                if (soon or at_work(int(pid))) and (process := Process.of(int(pid))):
                    process.signal(signal.SIGKILL)
                    left.remove(task_id)
            time.sleep(LOOK_SECONDS)
    assert not left, f"never seen at work: {sorted(left)}"


def await_state(upgrades: Upgrades, run_id: str, task_id: str, wanted: str) -> None:
    deadline = time.monotonic() + MOMENT_LIMIT.total_seconds()
    with contextlib.closing(TaskTable(upgrades.airflow.instance.database, run_id)) as tasks:
        while (state := tasks.state(task_id)) != wanted:
            assert state not in ("success", "failed", "skipped"), f"{task_id} was never seen {wanted}"
            assert time.monotonic() < deadline, f"{task_id} was never seen {wanted}: {state}"
            time.sleep(10 * LOOK_SECONDS)


# --------------------------------------------------------------------------------------------------------- what is left


def ownerless_homes() -> list[str]:
    """Return the homes of gpg whose process is gone: nobody holds their lock."""
    found = []
    for home in Path("/dev/shm").glob("nephoran-gpg-*"):
        with contextlib.suppress(OSError), (home / ".lock").open("r") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            found.append(home.name)
    return found


def ownerless_agents() -> list[str]:
    """Return the agents of gpg whose home is gone."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (process / "cmdline").read_bytes().decode().split("\0")
            home = next((word for word in words if word.startswith("/dev/shm/nephoran-gpg-")), None)
            if words[0].endswith("gpg-agent") and home and not Path(home).exists():
                found.append(home)
    return found


def check_end(lab: Lab, run: Run, check: str = "check_request") -> None:
    """See that a backup is whole, or that there is none; and that nothing of it is left behind."""
    found = StoredBackup(lab.config, str(run.client.xcom(run.dag_id, run.run_id, check)["backup_id"]))
    names = found.names()
    if run.state == "success":
        assert {"manifest.json.asc", "checked.json.asc"} <= set(names), names
        for source in found.sources.values():
            assert source["state"] in ("captured", "absent"), source
    else:
        assert not [name for name in names if name.startswith(("manifest", "checked"))], names
    store = buckets.client(lab.config)
    staged = store.list_objects_v2(Bucket=buckets.STAGING, Prefix=f"{found.backup_id}/").get("Contents", ())
    assert [entry["Key"] for entry in staged if not entry["Key"].endswith(".json")] == []
    uploads = store.list_multipart_uploads(Bucket=buckets.BACKUPS).get("Uploads", ())
    assert [entry["Key"] for entry in uploads if found.backup_id in entry["Key"]] == []
    assert ownerless_homes() == []
    assert ownerless_agents() == []


def compare(lab: Lab, run: Run, check: str = "check_request") -> None:
    """Compare a full backup with the live system, object by object and vector by vector."""
    found = StoredBackup(lab.config, str(run.client.xcom(run.dag_id, run.run_id, check)["backup_id"]))
    test_backup.compare_objects(lab, found.files("kubernetes-objects"))
    test_backup.test_every_object_and_vector_of_weaviate_is_there(lab, found)


# -------------------------------------------------------------------------------------------------------------- the cases


def capturing_weaviate(upgrades: Upgrades, run_id: str) -> None:
    kill_tree(upgrades, run_id, "capture_weaviate", "--encrypt")


def signing_the_manifest(upgrades: Upgrades, run_id: str) -> None:
    kill_tree(upgrades, run_id, "record_manifest", "--detach-sign")


def everything_while_weaviate_works(upgrades: Upgrades, run_id: str) -> None:
    """Kill all of Airflow at once, as a lost machine does, and start it again."""
    await_state(upgrades, run_id, "wait_weaviate_backup", "deferred")
    upgrades.airflow.kill()
    upgrades.airflow.up()


EVERY_STEP = {
    step
    for step in ("check_request", "wait_operation", *ALL_AFTER_CHECK, "report_operation")
    # What it does is told by its trigger; all of Airflow is killed while it waits, above.
    if step != "wait_weaviate_backup"
}


@pytest.mark.parametrize(
    ("kind", "kill"),
    [
        pytest.param("full", capturing_weaviate, id="the task that captures Weaviate"),
        pytest.param("config-only", signing_the_manifest, id="the task that signs the manifest"),
        pytest.param("full", everything_while_weaviate_works, id="all of Airflow while Weaviate works"),
    ],
)
def test_a_backup_that_is_killed_ends_whole_or_not_at_all(
    kind: str, kill: Callable[[Upgrades, str], None], lab: Lab, upgrades: Upgrades
) -> None:
    run_id = upgrades.start("backup", type=kind)
    kill(upgrades, run_id)
    run = upgrades.ended(run_id, "backup")
    check_end(lab, run)
    if run.state != "success":
        # Then the next one must be good, whatever is left of this.
        run = upgrades.run("backup", type=kind)
        assert run.state == "success", run.explain()
        check_end(lab, run)
    if kind == "full":
        compare(lab, run)


def test_a_backup_whose_every_step_is_killed_once_is_whole(lab: Lab, upgrades: Upgrades) -> None:
    run_id = upgrades.start("backup", type="full")
    kill_each_once(upgrades, run_id, EVERY_STEP)
    run = upgrades.ended(run_id, "backup")
    tries = {task.task_id: task.try_number for task in run.client.task_states(run.dag_id, run.run_id)}
    assert {step for step in EVERY_STEP if tries[step] < 2} == set()
    assert run.state == "success", run.explain()
    assert run.report["overall"] == "backed-up"
    check_end(lab, run)
    compare(lab, run)


def test_two_at_once_are_both_whole(lab: Lab, upgrades: Upgrades) -> None:
    """One by hand, and one before a change: Weaviate makes theirs one after the other."""
    upgrades.prepare(before_change="full")
    change = upgrades.start(mode="apply", version="v2", components=[COMPONENT])
    by_hand = upgrades.start("backup", type="full")
    runs: list[tuple[Run, str]] = [
        (upgrades.ended(by_hand, "backup"), "check_request"),
        (upgrades.ended(change), "protect.check_request"),
    ]
    for run, check in runs:
        assert run.state == "success", run.explain()
        check_end(lab, run, check)
    assert overlapping(runs), "they were not at work at once"
    compare_weaviate(lab, runs)


def compare_weaviate(lab: Lab, runs: list[tuple[Run, str]]) -> None:
    for run, check in runs:
        identifier = str(run.client.xcom(run.dag_id, run.run_id, check)["backup_id"])
        test_backup.test_every_object_and_vector_of_weaviate_is_there(lab, StoredBackup(lab.config, identifier))


def overlapping(runs: list[tuple[Run, str]]) -> bool:
    """Return whether one backup began before the other had ended."""
    times: list[tuple[str, str]] = []
    for run, check in runs:
        group = check.rpartition(".")[0]
        last = f"{group}.verify_stored_files" if group else "verify_stored_files"
        steps: dict[str, Any] = {task.task_id: task for task in run.client.task_states(run.dag_id, run.run_id)}
        times.append((steps[check].started_at, steps[last].ended_at))
    (began, ended), (other_began, other_ended) = times
    return began < other_ended and other_began < ended
