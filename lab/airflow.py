"""Start, watch and stop the Airflow of a lab: four processes, one SQLite file, everything on loopback.

    python -m lab.airflow up|down|status|logins [--name demo]

The processes are detached and recorded by process id *and* start time, so that a stop never meets a stranger who was
given the same id later. `airflow standalone` is not used: it orphans all four when it is terminated.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from importlib import metadata
from pathlib import Path

import httpx

from lab.airflow_access import DECRYPTION_POOL, grant_access
from lab.airflow_client import AirflowClient
from lab.airflow_settings import LOGINS, AirflowInstance
from lab.config import PROJECT, LabConfig
from lab.failure import LabError
from lab.processes import Process, boot_id, wait_gone
from lab.progress import Progress
from lab.waiting import wait_until

PROCESSES: dict[str, tuple[str, ...]] = {
    "api-server": ("api-server",),
    # The log servers can't be bound to loopback, and everything is on one machine: the UI reads the files itself.
    "scheduler": ("scheduler", "--skip-serve-logs"),
    "dag-processor": ("dag-processor",),
    "triggerer": ("triggerer", "--skip-serve-logs"),
}
START_LIMIT = timedelta(seconds=300)
PORT_LIMIT = timedelta(seconds=3)
STOP_LIMIT = timedelta(seconds=20)
"""A scheduler that is told to stop waits for the tasks at work; those that take longer than this are killed."""

FIRST_PORT = 8080
PORTS_PER_LAB = 10

ReportStage = Callable[[str], None]


class Airflow:
    """The Airflow of one lab. ``instance`` says where it lives and listens."""

    def __init__(self, instance: AirflowInstance, progress: ReportStage = lambda stage: None) -> None:
        self.instance = instance
        self._progress = progress
        self._record = instance.home / "processes.json"

    @classmethod
    def of_lab(
        cls, config: LabConfig, progress: ReportStage = lambda stage: None, *, dags_folder: Path | None = None
    ) -> Airflow:
        """Return the Airflow that belongs to a lab; it runs the project's DAGs unless told other ones."""
        home = config.home / "airflow"
        instance = AirflowInstance(
            home=home,
            port=_recorded_port(home) or FIRST_PORT + PORTS_PER_LAB * (config.index - 1),
            secret=config.secret("airflow"),
            dags_folder=dags_folder or PROJECT / "dags",
            profile=config.home / "profile.yaml",
        )
        return cls(instance, progress)

    def up(self) -> None:
        """Start what does not run yet and return when all four report healthy.

        Raises LabError with the end of the log when one of them ends early or they are not healthy in time.
        Safe to repeat: yes, running processes are left alone.
        """
        running = self._running()
        missing = [name for name in PROCESSES if name not in running]
        if missing:
            if "api-server" in missing:
                self._take_free_port()
            self.instance.write()
            self._migrate()
            self._progress(f"Airflow: starting {', '.join(missing)}")
            for name in missing:
                self._start(name)
        self._await_health()
        self.client().make_pool(DECRYPTION_POOL, 1, "Steps that decrypt backups")
        self._progress(f"Airflow: healthy at {self.instance.url}")

    def down(self) -> None:
        """Stop all four and whatever they forked. The database and the logs stay. Safe to repeat: yes."""
        recorded = self._recorded()
        # Each of the four leads a session of its own, and what it forks stays in it. The kernel gives a session's id
        # to no new process while a member lives, so the members of a session whose leader has ended are ours too.
        sessions = {
            process.pid for process in recorded.values() if Process.of(process.pid, ended_too=True) in (process, None)
        }
        for process in recorded.values():
            process.signal(signal.SIGTERM)
        wait_gone(recorded.values(), STOP_LIMIT)
        leftovers = session_members(sessions)
        for process in leftovers:
            process.signal(signal.SIGKILL)
        wait_gone(leftovers, STOP_LIMIT)
        self._record.unlink(missing_ok=True)

    def kill(self) -> None:
        """Kill all four and whatever they forked, with no chance to end anything: as a lost machine does.

        The database and the logs stay. Safe to repeat: yes.
        """
        recorded = self._recorded()
        sessions = {
            process.pid for process in recorded.values() if Process.of(process.pid, ended_too=True) in (process, None)
        }
        doomed = session_members(sessions)
        for process in doomed:
            process.signal(signal.SIGKILL)
        wait_gone(doomed, STOP_LIMIT)
        self._record.unlink(missing_ok=True)

    def status(self) -> dict[str, object]:
        """Return the url, the process id of each of the four (None for what does not run) and Airflow's own view."""
        running = self._running()
        health: object = "not running"
        if "api-server" in running:
            try:
                health = self.client().health()
            except httpx.HTTPError as error:
                health = f"no answer: {error}"
        return {
            "url": self.instance.url,
            "home": str(self.instance.home),
            "processes": {name: running.get(name) for name in PROCESSES},
            "health": health,
        }

    def client(self, user: str = "admin") -> AirflowClient:
        """Return a client of the REST API that logs in as ``user``, one of ``LOGINS``."""
        return AirflowClient(self.instance.url, user, self.instance.password(user))

    def command(self, *arguments: str) -> str:
        """Run an ``airflow`` command of this instance and return its standard output."""
        result = subprocess.run(
            (sys.executable, "-m", "airflow", *arguments),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env=self.instance.environment(),
            cwd=PROJECT,
            check=False,
        )
        if result.returncode:
            raise LabError(
                f"`airflow {' '.join(arguments)}` ended with {result.returncode}:\n{(result.stdout + result.stderr)[-3000:]}"
            )
        return result.stdout

    def _migrate(self) -> None:
        """Make the database or bring it to this Airflow's version; the command alone costs seconds, so only if needed."""
        stamp = self.instance.home / "database-version"
        version = metadata.version("apache-airflow")
        if self.instance.database.exists() and stamp.exists() and stamp.read_text(encoding="utf-8") == version:
            return
        self._progress("Airflow: making the database")
        self.command("db", "migrate")
        stamp.write_text(version, encoding="utf-8")

    # -- processes ----------------------------------------------------------------------------------------------------

    def _start(self, name: str) -> None:
        with self.instance.process_log(name).open("ab") as log:
            process = subprocess.Popen(
                (sys.executable, "-m", "airflow", *PROCESSES[name]),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self.instance.environment(),
                cwd=PROJECT,
                start_new_session=True,
            )
        started = Process.of(process.pid, ended_too=True)
        recorded = self._recorded() | ({name: started} if started else {})
        draft = self._record.with_suffix(".tmp")
        draft.write_text(json.dumps({key: value.to_dict() for key, value in recorded.items()}), encoding="utf-8")
        draft.replace(self._record)

    def _recorded(self) -> dict[str, Process]:
        """Return the four as they were started, living or not; nothing of before the machine's last boot."""
        try:
            content = json.loads(self._record.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        processes = {name: Process(**entry) for name, entry in content.items()}
        return {name: process for name, process in processes.items() if process.boot_id == boot_id()}

    def _running(self) -> dict[str, int]:
        return {name: process.pid for name, process in self._recorded().items() if process.alive}

    def _take_free_port(self) -> None:
        """Settle for the first free port of this lab, so that another program on 8080 does not stop us."""
        first = self.instance.port
        # One that was killed a moment ago may still hold it.
        with contextlib.suppress(LabError):
            wait_until(f"Port {first}", lambda: _is_free(first), limit=PORT_LIMIT)
        for port in range(first, first + 8 * 1000, 1000):
            if _is_free(port):
                self.instance = self.instance.on_port(port)
                self.instance.home.mkdir(parents=True, exist_ok=True)
                (self.instance.home / "port").write_text(str(port))
                return
        raise LabError(f"The ports {first}, {first + 1000}, … of 127.0.0.1 are all taken.", hint="Free one of them.")

    def _await_health(self) -> None:
        client = self.client()
        warmed = False
        health: object = "no answer yet"

        def healthy() -> bool:
            nonlocal warmed, health
            for name in sorted(set(PROCESSES) - set(self._running())):
                raise LabError(f"Airflow's {name} ended. The end of its log:\n{self._last_lines(name)}")
            try:
                if not warmed:
                    # The part of the API that tasks talk to is made at its first request, which takes seconds.
                    client.warm_up()
                    warmed = True
                health = client.health()
            except httpx.HTTPError:
                return False
            return client.is_healthy()

        wait_until(
            "A healthy Airflow", healthy, limit=START_LIMIT, explain=lambda: f"{health}; logs: {self.instance.logs}"
        )

    def _last_lines(self, name: str, count: int = 20) -> str:
        path = self.instance.process_log(name)
        return "\n".join(path.read_text(errors="replace").splitlines()[-count:]) if path.exists() else "(no log)"


def _recorded_port(home: Path) -> int | None:
    try:
        return int((home / "port").read_text())
    except FileNotFoundError:
        return None


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def session_members(sessions: set[int]) -> list[Process]:
    """Return the living processes of these sessions."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(ProcessLookupError):
                if os.getsid(int(entry.name)) in sessions and (process := Process.of(int(entry.name))):
                    found.append(process)
    return found


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return 0, or 1 with the reason on standard error."""
    parser = argparse.ArgumentParser(prog="python -m lab.airflow", description="The Airflow of a lab.")
    parser.add_argument("command", choices=["up", "down", "status", "logins", "connect"])
    parser.add_argument("--name", default="demo", help="the lab it belongs to (default: demo)")
    parser.add_argument("--index", type=int, help="needed for names other than demo, test and bench")
    parser.add_argument("--variant", default="standard", help="connect: the variant of the system (default: standard)")
    chosen = parser.parse_args(arguments)
    progress = Progress()
    try:
        config = LabConfig.named(chosen.name, index=chosen.index)
        airflow = Airflow.of_lab(config, progress)
        if chosen.command == "up":
            airflow.up()
        elif chosen.command == "connect":
            grant_access(config, airflow.instance, progress, variant=chosen.variant)
        elif chosen.command == "down":
            airflow.down()
        elif chosen.command == "logins":
            for user, role in LOGINS.items():
                print(f"{user:12} {airflow.instance.password(user):20} role {role}")
        else:
            print(json.dumps(airflow.status(), indent=2))
    except LabError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
