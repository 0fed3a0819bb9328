"""Look for what a lab may leave on the machine: take a snapshot before, one after, and compare."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from pathlib import Path

from lab import cgroups
from lab.config import HIGHEST_INDEX, LabConfig
from lab.packages import SEARCH_PATH
from lab.processes import Process
from lab.supervisor import KERNEL_SETTINGS

FIXED_PLACES = (
    "/run/containerd",
    "/run/lab",
    "/run/netns",
    "/tmp/hostpath_pv",
    "/var/lib/cni",
    "/var/lib/containerd",
    "/var/lib/kubelet",
    "/var/log/containers",
    "/var/log/pods",
)
"""Where Kubernetes, containerd and CNI write when nothing stops them."""

_CGROUP_NAMES = ("kubepods", "nephoran-lab", "containerd", "cri-")


@dataclass(frozen=True)
class Snapshot:
    """Hold what is on the machine, kind by kind, as lines that a person can read.

    Of processes only those are seen that could be the lab's: in namespaces of their own, in a cgroup of the lab or of
    Kubernetes, or with the lab's folder on their command line. What else comes and goes on a machine is not its matter.
    """

    processes: frozenset[str]
    mounts: frozenset[str]
    network_namespaces: frozenset[str]
    links: frozenset[str]
    addresses: frozenset[str]
    routes: frozenset[str]
    cgroup_directories: frozenset[str]
    firewall_rules: frozenset[str]
    kernel_settings: frozenset[str]
    fixed_places: frozenset[str]

    @classmethod
    def take(cls, lab: LabConfig) -> Snapshot:
        """Look at the machine for what could be of this lab; other labs may run, start and stop beside."""
        others = [LabConfig("other", index) for index in range(1, HIGHEST_INDEX + 1) if index != lab.index]
        processes = _processes(lab, {config.cgroup for config in others})
        links = {config.link for config in others}
        foreign = {f"10.{200 + config.index}." for config in others}
        return cls(
            processes=frozenset(processes.values()),
            mounts=_mounts(),
            network_namespaces=_network_namespaces(processes),
            links=frozenset(name for name in _links() if name not in links),
            addresses=_without(_ip("address"), foreign, links),
            routes=_without(_ip("route", "show", "table", "all"), foreign, links),
            cgroup_directories=_cgroup_directories({config.cgroup for config in others}),
            firewall_rules=_firewall_rules(),
            kernel_settings=_kernel_settings(),
            fixed_places=frozenset(place for place in FIXED_PLACES if Path(place).exists()),
        )

    def added_since(self, before: Snapshot) -> dict[str, list[str]]:
        """Return what is here and was not there before, by kind; empty when nothing is left."""
        return self._difference(before, lambda now, then: now - then)

    def missing_since(self, before: Snapshot) -> dict[str, list[str]]:
        """Return what was there before and is gone, by kind, apart from processes, which may end by themselves."""
        gone = self._difference(before, lambda now, then: then - now)
        return {kind: lines for kind, lines in gone.items() if kind not in ("processes", "network_namespaces")}

    def _difference(
        self, before: Snapshot, compare: Callable[[frozenset[str], frozenset[str]], frozenset[str]]
    ) -> dict[str, list[str]]:
        found = {
            entry.name: sorted(compare(getattr(self, entry.name), getattr(before, entry.name)))
            for entry in fields(self)
        }
        return {kind: lines for kind, lines in found.items() if lines}


def _processes(lab: LabConfig, other_cgroups: set[str]) -> dict[int, str]:
    own = {kind: os.stat(f"/proc/self/ns/{kind}").st_ino for kind in ("net", "mnt")}
    supervisor, own_supervisor = " -m lab.supervisor ", f" -m lab.supervisor --name {lab.name} "
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            groups = (entry / "cgroup").read_text(encoding="utf-8")
            parts = {part for line in groups.splitlines() for part in line.split(":", 2)[2].split("/")}
            if parts & other_cgroups:
                continue
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            if not command:
                continue  # a thread of the kernel
            if supervisor in f"{command} " and own_supervisor not in f"{command} ":
                continue  # of another lab, in the moment before it joins its cgroup
            apart = any(os.stat(entry / "ns" / kind).st_ino != inode for kind, inode in own.items())
            grouped = any(part.startswith(_CGROUP_NAMES) for part in parts)
            process = Process.of(int(entry.name))
            if process is not None and (apart or grouped or f"{lab.home}/" in command):
                found[process.pid] = f"{process.pid} started at {process.start_ticks}: {command[:200]}"
    return found


def _network_namespaces(processes: Iterable[int]) -> frozenset[str]:
    found = {f"file {name}" for name in _names_in(Path("/run/netns"))}
    own = os.stat("/proc/self/ns/net").st_ino
    for pid in processes:
        with contextlib.suppress(OSError):
            if (inode := os.stat(f"/proc/{pid}/ns/net").st_ino) != own:
                found.add(f"namespace {inode}")
    return frozenset(found)


def _mounts() -> frozenset[str]:
    lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
    return frozenset(f"{line.split()[4]} of {line.partition(' - ')[2]}" for line in lines)


def _links() -> set[str]:
    shown = subprocess.run(["ip", "-json", "link", "show"], capture_output=True, text=True, check=True)
    return {link["ifname"] for link in json.loads(shown.stdout or "[]")}


def _ip(*arguments: str) -> set[str]:
    shown = subprocess.run(["ip", "-oneline", *arguments], capture_output=True, text=True, check=True)
    # Lifetimes count down and say nothing about a lab; neither does the number of an interface.
    lines = (line.split(" valid_lft ")[0].split(" expires ")[0] for line in shown.stdout.splitlines())
    return {" ".join(line.split(": ", 1)[-1].replace("\\", " ").split()) for line in lines}


def _without(lines: set[str], addresses: set[str], links: set[str]) -> frozenset[str]:
    return frozenset(
        line
        for line in lines
        if not any(address in line for address in addresses) and not links.intersection(line.split())
    )


def _cgroup_directories(other_cgroups: set[str]) -> frozenset[str]:
    found: set[str] = set()
    for hierarchy in cgroups.hierarchies():
        for folder, children, _ in os.walk(hierarchy):
            # What belongs to another lab is neither looked at nor entered.
            children[:] = [child for child in children if child not in other_cgroups]
            found.update(
                f"{folder}/{child}"
                for child in children
                if Path(folder) == hierarchy or any(name in f"{folder}/{child}" for name in _CGROUP_NAMES)
            )
    return frozenset(found)


def _firewall_rules() -> frozenset[str]:
    found: set[str] = set()
    for program in ("iptables-save", "ip6tables-save"):
        if shutil.which(program, path=SEARCH_PATH):
            saved = subprocess.run(
                [program], capture_output=True, text=True, check=False, env={"PATH": SEARCH_PATH}
            ).stdout
            rules = (line.partition(" [")[0] for line in saved.splitlines() if not line.startswith("#"))
            found.update(f"{program}: {rule}" for rule in rules)
    return frozenset(found)


def _kernel_settings() -> frozenset[str]:
    found = set()
    for setting in (*KERNEL_SETTINGS, "net/ipv4/ip_forward"):
        with contextlib.suppress(OSError):
            found.add(f"{setting} = {(Path('/proc/sys') / setting).read_text(encoding='ascii').strip()}")
    return frozenset(found)


def _names_in(folder: Path) -> list[str]:
    with contextlib.suppress(OSError):
        return [entry.name for entry in folder.iterdir()]
    return []
