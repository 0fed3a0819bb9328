"""Hold one lab together: the first process in its network and mount namespaces, parent of all others.

Runs as ``unshare --net --mount --propagation private python -m lab.supervisor --name NAME --index N`` and stays when
the command that started it returns. As long as it or anything below it lives, the namespaces live; with the last one
the kernel takes away the interfaces, iptables rules and mounts of the lab, whatever way the processes ended.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lab import cgroups
from lab.config import INSIDE, PROJECT, LabConfig
from lab.packages import SEARCH_PATH
from lab.processes import RECORD_NAME, SOCKET_NAME, Process
from lab.tools import tools_folder

SHORTEST_BACKOFF_SECONDS = 0.5
LONGEST_BACKOFF_SECONDS = 10.0
OPEN_FILES = 65536

KERNEL_SETTINGS = (
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
)
"""What a kubelet insists on setting for the whole machine."""

_BIND, _RECURSIVE = 4096, 16384
_BECOME_SUBREAPER = 36


@dataclass
class Child:
    """Remember a process and how to start it again."""

    argv: Sequence[str]
    environment: Mapping[str, str]
    keep: bool
    process: Process | None = None
    restarts: int = 0
    exit_code: int | None = None
    start_again_at: float | None = None
    backoff_seconds: float = field(default=SHORTEST_BACKOFF_SECONDS)


class Supervisor:
    """Start processes on request, reap everything that ends, start again what should stay."""

    def __init__(self, config: LabConfig) -> None:
        self._config = config
        self._children: dict[str, Child] = {}
        self._myself = Process.of(os.getpid())

    def serve(self) -> None:
        """Answer requests until killed."""
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(INSIDE / SOCKET_NAME))
        (INSIDE / SOCKET_NAME).chmod(0o600)
        listener.listen()
        wake, woken = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(woken)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._record()
        while True:
            readable, _, _ = select.select([listener.fileno(), wake], [], [], self._seconds_to_next_start())
            if wake in readable:
                os.read(wake, 4096)
            self._reap()
            self._start_due()
            if listener.fileno() in readable:
                self._answer(listener)

    def _answer(self, listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection, contextlib.suppress(OSError):
            connection.settimeout(2.0)
            with connection.makefile("rb") as lines:
                try:
                    answer = self._do(json.loads(lines.readline()))
                except (OSError, ValueError, KeyError) as problem:
                    answer = {"error": f"{type(problem).__name__}: {problem}"}
            connection.sendall(json.dumps(answer).encode() + b"\n")

    def _do(self, request: dict[str, object]) -> dict[str, object]:
        name = str(request.get("name", ""))
        match request["do"]:
            case "start":
                known = self._children.get(name)
                if known is None or known.process is None:
                    argv, environment = request["argv"], request["environment"]
                    if not isinstance(argv, list) or not isinstance(environment, dict):
                        raise ValueError("argv must be a list and environment an object")
                    child = Child(argv, environment, bool(request["keep"]))
                    self._start(name, child)
                    self._children[name] = child
                    self._record()
            case "forget":
                if name in self._children:
                    self._children[name].keep = False
                    self._children[name].start_again_at = None
            case "resume":
                child = self._children[name]
                child.keep = True
                if child.process is None:
                    self._start(name, child)
                    self._record()
            case "list":
                return {"processes": {name: _describe(child) for name, child in self._children.items()}}
            case unknown:
                raise ValueError(f"unknown request {unknown!r}")
        return {}

    def _start(self, name: str, child: Child) -> None:
        environment = {"PATH": SEARCH_PATH, "HOME": "/root", "LANG": "C.UTF-8", "PYTHONUNBUFFERED": "1"}
        with (self._config.logs / f"{name}.log").open("ab") as log:
            started = subprocess.Popen(
                child.argv,
                cwd=PROJECT,
                env={**environment, **child.environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        started.returncode = 0  # this loop reaps, the object must not
        child.process = Process.of(started.pid, ended_too=True)
        child.start_again_at = None

    def _reap(self) -> None:
        """Collect all that ended, also orphans that came here because this process is their reaper."""
        ended: dict[int, int] = {}
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    break
                ended[pid] = os.waitstatus_to_exitcode(status)
        changed = False
        for name, child in self._children.items():
            if child.process is not None and child.process.pid in ended:
                child.exit_code = ended[child.process.pid]
                child.process = None
                changed = True
                print(f"{name} ended with {child.exit_code}", flush=True)
                if child.keep:
                    child.start_again_at = time.monotonic() + child.backoff_seconds
                    child.backoff_seconds = min(child.backoff_seconds * 2, LONGEST_BACKOFF_SECONDS)
        if changed:
            self._record()

    def _start_due(self) -> None:
        for name, child in self._children.items():
            if child.start_again_at is not None and child.start_again_at <= time.monotonic():
                child.restarts += 1
                print(f"starting {name} again, number {child.restarts}", flush=True)
                self._start(name, child)
                self._record()

    def _seconds_to_next_start(self) -> float | None:
        moments = [child.start_again_at for child in self._children.values() if child.start_again_at is not None]
        return max(0.0, min(moments) - time.monotonic()) if moments else None

    def _record(self) -> None:
        """Write down who runs; after this process is killed, ``down`` finds the others by it."""
        processes = {"supervisor": self._myself} | {name: child.process for name, child in self._children.items()}
        content = {name: process.to_dict() for name, process in processes.items() if process is not None}
        draft = INSIDE / f"{RECORD_NAME}.new"
        draft.write_text(json.dumps(content), encoding="utf-8")
        draft.replace(INSIDE / RECORD_NAME)


def _describe(child: Child) -> dict[str, object]:
    return {
        "pid": child.process.pid if child.process else None,
        "running": child.process is not None,
        "restarts": child.restarts,
        "exit_code": child.exit_code,
    }


def enclose(config: LabConfig) -> None:
    """Put private folders over those that Kubernetes, containerd and CNI write to at fixed places of the machine.

    ``/run``, ``/var/lib`` and ``/var/log`` become memory file systems, ``/tmp`` (where the controller-manager's
    provisioner makes volumes) a folder of the state. What the lab itself needs from below them stays visible. The
    kernel settings that a kubelet changes become plain files, so that the machine keeps its own.
    """
    needed = {PROJECT, tools_folder(), Path(sys.prefix), Path(sys.base_prefix), Path(sys.executable).resolve().parent}
    masked = [Path("/run"), Path("/tmp"), Path("/var/lib"), Path("/var/log")]
    hidden = sorted(path for path in needed if any(path.is_relative_to(folder) for folder in masked))
    kept = {path: os.open(path, os.O_PATH | os.O_DIRECTORY) for path in hidden}
    state = os.open(config.state, os.O_PATH | os.O_DIRECTORY)
    volumes = config.state / "tmp"
    volumes.mkdir(exist_ok=True)
    volumes.chmod(0o1777)
    temporary = os.open(volumes, os.O_PATH | os.O_DIRECTORY)
    for folder in masked:
        if folder == Path("/tmp"):
            _mount(f"/proc/self/fd/{temporary}", folder, _BIND)
        else:
            _mount("tmpfs", folder, 0, file_system="tmpfs", options="mode=0755")
    for path, descriptor in kept.items():
        path.mkdir(parents=True, exist_ok=True)
        _mount(f"/proc/self/fd/{descriptor}", path, _BIND | _RECURSIVE)
        os.close(descriptor)
    INSIDE.mkdir()
    _mount(f"/proc/self/fd/{state}", INSIDE, _BIND)
    os.close(state)
    os.close(temporary)
    for setting in KERNEL_SETTINGS:
        real, copy = Path("/proc/sys") / setting, INSIDE / "kernel" / setting
        if real.exists():
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(real.read_bytes())
            _mount(str(copy), real, _BIND)


def _mount(source: str, target: Path, flags: int, *, file_system: str = "", options: str = "") -> None:
    library = ctypes.CDLL(None, use_errno=True)
    outcome = library.mount(
        source.encode(),
        str(target).encode(),
        file_system.encode() or None,
        ctypes.c_ulong(flags),
        options.encode() or None,
    )
    if outcome != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"mounting {source} on {target}: {os.strerror(number)}")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="lab.supervisor", description="Internal: hold one lab together.")
    parser.add_argument("--name", required=True)
    parser.add_argument("--index", type=int, required=True)
    chosen = parser.parse_args(arguments)
    config = LabConfig.named(chosen.name, index=chosen.index)
    os.umask(0o022)
    cgroups.join_daemons(config.cgroup)
    _, highest = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(OPEN_FILES, highest), highest))
    ctypes.CDLL(None).prctl(_BECOME_SUBREAPER, 1, 0, 0, 0)
    enclose(config)
    Supervisor(config).serve()


if __name__ == "__main__":
    main()
