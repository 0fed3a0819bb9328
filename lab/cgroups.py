"""Make, read and remove the lab's directory in every cgroup hierarchy of the machine, version 1, 2 or both.

Everything that a lab starts stays below this directory, also what its processes start: membership tells for certain
which processes are the lab's, even after whoever kept records was killed.
"""

from __future__ import annotations

import contextlib
import os
import time
from datetime import timedelta
from pathlib import Path

DAEMONS = "daemons"
"""Directory below the lab's own for the processes that are no pods; the kubelet's ``kubepods`` is beside it."""


def hierarchies() -> list[Path]:
    """Return the mount point of every cgroup hierarchy."""
    mounts = (line.split() for line in Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines())
    found = {Path(fields[1]) for fields in mounts if fields[2] in ("cgroup", "cgroup2")}
    return sorted(found)


def create(name: str) -> None:
    """Make the directory ``name`` and ``name/daemons`` in every hierarchy, ready to hold processes."""
    for hierarchy in hierarchies():
        for folder in (hierarchy / name, hierarchy / name / DAEMONS):
            folder.mkdir(exist_ok=True)
            _inherit_cpuset(folder)
            _offer_controllers(folder.parent)


def join_daemons(name: str) -> None:
    """Move the calling process there; what it starts from then on is born there."""
    for hierarchy in hierarchies():
        (hierarchy / name / DAEMONS / "cgroup.procs").write_text(str(os.getpid()), encoding="ascii")


def members(name: str) -> set[int]:
    """Return the ids of all processes below the directory in any hierarchy."""
    found: set[int] = set()
    for hierarchy in hierarchies():
        for folder, _, _ in os.walk(hierarchy / name):
            with contextlib.suppress(OSError):
                found.update(map(int, (Path(folder) / "cgroup.procs").read_text(encoding="ascii").split()))
    return found


def directories(name: str) -> list[Path]:
    """Return all directories of that name and below, deepest first."""
    return [Path(folder) for hierarchy in hierarchies() for folder, _, _ in os.walk(hierarchy / name, topdown=False)]


def remove(name: str, *, limit: timedelta = timedelta(seconds=10)) -> list[Path]:
    """Remove the directory from every hierarchy; return what could not be removed within the limit.

    The kernel lets a directory go only some milliseconds after its last process ended, hence the repetition.
    """
    deadline = time.monotonic() + limit.total_seconds()
    while left := directories(name):
        for folder in left:
            with contextlib.suppress(OSError):
                folder.rmdir()
        if time.monotonic() > deadline:
            break
        if directories(name):
            time.sleep(0.02)
    return directories(name)


def _inherit_cpuset(folder: Path) -> None:
    """Version 1 only: a new cpuset has no processors and no memory, and nothing can join it."""
    for file in ("cpuset.cpus", "cpuset.mems"):
        own, parent = folder / file, folder.parent / file
        if own.exists() and parent.exists() and not own.read_text(encoding="ascii").strip():
            with contextlib.suppress(OSError):
                own.write_text(parent.read_text(encoding="ascii"), encoding="ascii")


def _offer_controllers(folder: Path) -> None:
    """Version 2 only: let the directories below use every controller that this one has."""
    available = folder / "cgroup.controllers"
    if not available.exists():
        return
    for controller in available.read_text(encoding="ascii").split():
        with contextlib.suppress(OSError):
            (folder / "cgroup.subtree_control").write_text(f"+{controller}", encoding="ascii")
