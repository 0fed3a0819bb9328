"""Know processes for certain: by process id and start time, never by name; and talk to a lab's supervisor."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from lab.config import LabConfig
from lab.failure import LabError

SOCKET_NAME = "supervisor.sock"
RECORD_NAME = "processes.json"
STATE, PARENT, USER_TICKS, SYSTEM_TICKS, START_TICKS = 0, 1, 11, 12, 19
"""Where in :func:`stat_fields` these stand (proc_pid_stat(5), counted from the third field)."""


@dataclass(frozen=True)
class Process:
    """Name one process so that no other is ever taken for it: ids are used again, ids with a start time are not."""

    pid: int
    start_ticks: int
    boot_id: str

    @classmethod
    def of(cls, pid: int, *, ended_too: bool = False) -> Process | None:
        """Return the process that has this id now; None when there is none, or only a zombie and not ``ended_too``."""
        fields = stat_fields(pid)
        if not fields:
            return None
        return None if fields[STATE] in "ZX" and not ended_too else cls(pid, int(fields[START_TICKS]), boot_id())

    @property
    def alive(self) -> bool:
        return Process.of(self.pid) == self

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to this very process; nothing happens when it is gone."""
        with contextlib.suppress(ProcessLookupError):
            descriptor = os.pidfd_open(self.pid)
            try:
                # Only now, with the process held by the descriptor, is the comparison worth something.
                if self.alive:
                    signal.pidfd_send_signal(descriptor, number)
            finally:
                os.close(descriptor)

    def to_dict(self) -> dict[str, object]:
        return {"pid": self.pid, "start_ticks": self.start_ticks, "boot_id": self.boot_id}


def stat_fields(pid: int) -> list[str]:
    """Return what ``/proc/<pid>/stat`` says after the program's name; empty when there is no such process."""
    try:
        # The name stands in brackets and may hold spaces and brackets.
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return []


def boot_id() -> str:
    """Return the id of this boot of the machine: a record from before it names no process any more."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def wait_gone(processes: Iterable[Process], limit: timedelta) -> list[Process]:
    """Wait until all have ended; return those that have not after the limit."""
    deadline = time.monotonic() + limit.total_seconds()
    left = []
    for process in processes:
        try:
            descriptor = os.pidfd_open(process.pid)
        except ProcessLookupError:
            continue
        try:
            if process.alive:
                poll = select.poll()
                poll.register(descriptor, select.POLLIN)
                poll.poll(max(0.0, deadline - time.monotonic()) * 1000)
                if process.alive:
                    left.append(process)
        finally:
            os.close(descriptor)
    return left


def read_record(config: LabConfig) -> dict[str, Process]:
    """Return the processes that the lab's supervisor wrote down, itself as ``supervisor``, living or not."""
    try:
        content = json.loads((config.state / RECORD_NAME).read_text(encoding="utf-8"))
        return {name: Process(**entry) for name, entry in content.items()}
    except (OSError, ValueError, TypeError):
        return {}


class SupervisorClient:
    """Ask a lab's supervisor to start, stop and list processes."""

    def __init__(self, config: LabConfig) -> None:
        self._config = config

    def process(self) -> Process | None:
        """Return the supervisor when it lives."""
        supervisor = read_record(self._config).get("supervisor")
        return supervisor if supervisor is not None and supervisor.alive else None

    def start(
        self, name: str, argv: Sequence[str | Path], *, environment: Mapping[str, str] | None = None, keep: bool = True
    ) -> None:
        """Start a process inside the lab; with ``keep`` it is started again whenever it ends.

        A living process of that name is left as it is. Its output goes to ``logs/<name>.log``.
        """
        self._ask(
            {
                "do": "start",
                "name": name,
                "argv": [str(argument) for argument in argv],
                "environment": dict(environment or {}),
                "keep": keep,
            }
        )

    def stop(self, name: str, *, grace: timedelta = timedelta(seconds=5)) -> None:
        """End a process and wait for it: SIGTERM, then SIGKILL after ``grace``."""
        self._ask({"do": "forget", "name": name})
        process = read_record(self._config).get(name)
        if process is None:
            return
        process.signal(signal.SIGTERM)
        if wait_gone([process], grace):
            process.signal(signal.SIGKILL)
            wait_gone([process], grace)

    def resume(self, name: str) -> None:
        """Start again, as it was started first, what ``stop`` ended."""
        self._ask({"do": "resume", "name": name})

    def listed(self) -> dict[str, dict[str, Any]]:
        """Return ``{name: {"pid", "running", "restarts", "exit_code"}}``; empty when no supervisor answers."""
        try:
            return dict(self._ask({"do": "list"})["processes"])
        except OSError:
            return {}

    def log_tail(self, name: str, lines: int = 12) -> str:
        """Return the last lines that the process wrote."""
        path = self._config.logs / f"{name}.log"
        if not path.exists():
            return ""
        return "\n".join(path.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])

    def explain(self, *names: str) -> str:
        """Say in one text which of these processes are not running, with the end of their logs."""
        listed = self.listed()
        reasons = []
        for name in names:
            entry = listed.get(name, {})
            if not entry.get("running") or entry.get("restarts"):
                state = f"{name}: running {entry.get('running', False)}, restarted {entry.get('restarts', 0)} times"
                reasons.append(f"{state}, exit code {entry.get('exit_code')}\n{self.log_tail(name)}")
        return "\n".join(reasons)

    def _ask(self, request: Mapping[str, object]) -> dict[str, Any]:
        # The folder's path may be longer than a socket address can be; /proc/self/fd makes it short.
        folder = os.open(self._config.state, os.O_PATH | os.O_DIRECTORY)
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(10.0)
                connection.connect(f"/proc/self/fd/{folder}/{SOCKET_NAME}")
                connection.sendall(json.dumps(request).encode() + b"\n")
                with connection.makefile("rb") as answers:
                    answer = json.loads(answers.readline() or b"{}")
        finally:
            os.close(folder)
        if "error" in answer:
            raise LabError(f"The supervisor could not {request['do']} {request.get('name', '')}: {answer['error']}")
        return dict(answer)
