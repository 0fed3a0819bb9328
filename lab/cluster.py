"""Bring one lab up and down: namespaces, cluster, services beside it, and the system in it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import cached_property
from http.client import HTTPSConnection
from pathlib import Path
from typing import Any

from lab import buckets, cgroups, control_plane, network, node, packages, pki, services
from lab.config import PROJECT, LabConfig
from lab.failure import LabError
from lab.processes import Process, SupervisorClient, read_record, wait_gone
from lab.tools import ensure_tools, tools_folder
from lab.waiting import accepts_connections, http_status, wait_until

API_LIMIT = timedelta(seconds=120)
NODE_LIMIT = timedelta(seconds=120)
RECOVERY_LIMIT = timedelta(seconds=30)
SUPERVISOR_LIMIT = timedelta(seconds=20)
END_LIMIT = timedelta(seconds=20)

EXTRAS = ("metrics-server",)
"""Names that ``with_extras`` takes."""

CLUSTER_PROCESSES = (
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kube-proxy",
    "coredns",
    "containerd",
    "kubelet",
)

STARTED_MARK = "started"
"""File in the state folder that is there once the empty lab was up completely."""

CLUSTER_TOOLS = ("kubernetes", "coredns", "etcd", "versitygw")
SYSTEM_TOOLS = ("weaviate",)


class Cluster:
    """One lab. ``progress`` is told each stage; by default nobody is."""

    def __init__(self, config: LabConfig, *, progress: Callable[[str], None] | None = None) -> None:
        self.config = config
        self.supervisor = SupervisorClient(config)
        self._progress = progress or (lambda _stage: None)

    # Up and down

    def up(
        self,
        *,
        variant: str = "standard",
        versions: Mapping[str, str] | None = None,
        with_extras: Sequence[str] = (),
        with_system: bool = True,
    ) -> None:
        """Bring everything up; what is up already stays as it is, what a crash left is cleared away first.

        ``variant`` and ``versions`` go to ``lab.system.deploy``. ``with_extras`` adds optional services
        (``metrics-server``). Without the system there is only the empty cluster and its services. Returns while all
        processes go on. Raises ``LabError`` with the reason and the log's end. Safe to repeat: yes.
        """
        unknown = set(with_extras) - set(EXTRAS)
        if unknown:
            raise LabError(f"There is no extra {', '.join(sorted(unknown))}.", hint=f"Choose from {', '.join(EXTRAS)}.")
        refuse_unfit_machine()
        with self._alone():
            packages.ensure_packages(self._progress, self.config.home / "apt.log")
            # All builds before anything runs that would compete with them.
            tools = ensure_tools(self._progress, [*CLUSTER_TOOLS, *with_extras, *(SYSTEM_TOOLS if with_system else ())])
            self._refuse_foreign_lab()
            if self._running_or_recovering():
                self._progress(f"lab {self.config.name} is up already")
                self._resume_services()
            else:
                if self._anything_left():
                    self._progress("clearing away what an earlier lab left")
                    self._clear()
                self._start(tools)
            self._start_extras(with_extras, tools)
            if with_system:
                self._deploy_system(variant, versions)
            # Only now: metrics-server measures twice, 10 s apart, before it serves.
            self._wait_for_extras(with_extras)
            if not self._runs("prometheus"):
                filled = services.start_prometheus(self.config, self.supervisor)
                self._progress("Prometheus ready" + (", history filled" if filled else ""))
            self._progress(f"lab {self.config.name} is up")

    def down(self) -> None:
        """End every process of the lab and leave nothing on the machine but logs and secrets in ``.lab/<name>``.

        Works on whatever is there: a running lab, half of one, or what a crash left. Safe to repeat: yes.
        """
        refuse_unfit_machine()
        with self._alone():
            self._refuse_foreign_lab()
            self._clear()
            self._progress(f"lab {self.config.name} is down")

    def reset(self, *, variant: str = "standard") -> None:
        """Take the lab down and bring a new one up, with the same secrets and everything else new."""
        self.down()
        self.up(variant=variant)

    def running(self) -> bool:
        """Tell whether the lab was started to its end, its cluster's processes live and the API server is ready."""
        if self.supervisor.process() is None or not (self.config.state / STARTED_MARK).exists():
            return False
        listed = self.supervisor.listed()
        return all(listed.get(name, {}).get("running") for name in CLUSTER_PROCESSES) and self._api_ready()

    def _running_or_recovering(self) -> bool:
        """Give a lab that is only slow, or restarting a process, its time: to take it for broken would cost its data."""
        if self.supervisor.process() is None or not (self.config.state / STARTED_MARK).exists():
            return False
        with contextlib.suppress(LabError):
            wait_until("the lab", self.running, limit=RECOVERY_LIMIT)
            return True
        return False

    def status(self) -> dict[str, Any]:
        """Return ``{name, index, state, processes, node, addresses}``; ``state`` is up, partly or down."""
        config = self.config
        listed = self.supervisor.listed()
        up = self.running()
        left = bool(listed) or self._anything_left()
        return {
            "name": config.name,
            "index": config.index,
            "state": "up" if up else "partly" if left else "down",
            "processes": listed,
            "node": self._node_condition() if up else "unknown",
            "addresses": {
                "kubeconfig": str(config.kubeconfig),
                "kubernetes": config.kubernetes_url,
                "registry": config.registry,
                "s3": config.s3_endpoint,
                "prometheus": config.prometheus_url,
                "llm_provider": config.llm_provider_url,
                "weaviate": config.weaviate_url,
                "llm_processor": config.llm_processor_url,
            },
        }

    # Using it

    def kubectl(self, *arguments: str, input: str | None = None, timeout: timedelta = timedelta(minutes=5)) -> str:
        """Run kubectl as the lab's administrator and return its output; raise ``LabError`` with what it said.

        The context is always the lab's own, whatever KUBECONFIG says outside.
        """
        kubectl = ensure_tools(self._progress, ["kubernetes"])["kubectl"]
        command = [str(kubectl), f"--kubeconfig={self.config.kubeconfig}", f"--context={self.config.context}"]
        done = subprocess.run(
            [*command, *arguments],
            input=input,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout.total_seconds(),
            # No proxy and no KUBECONFIG from outside may send this anywhere else.
            env={"PATH": packages.SEARCH_PATH, "HOME": str(self.config.home)},
        )
        if done.returncode != 0:
            raise LabError(f"kubectl {' '.join(arguments[:6])} ended with {done.returncode}: {done.stderr.strip()}")
        return done.stdout

    def get(self, path: str) -> Any:
        """GET a path of the API as administrator and return the decoded JSON; raise ``LabError`` on other than 200."""
        connection = HTTPSConnection(
            self.config.node_address, int(self.config.kubernetes_url.rpartition(":")[2]), timeout=10, context=self._tls
        )
        try:
            connection.request("GET", path, headers={"Accept": "application/json"})
            response = connection.getresponse()
            content = response.read()
        finally:
            connection.close()
        if response.status != 200:
            raise LabError(f"GET {path} answered {response.status}: {content[:300].decode(errors='replace')}")
        return json.loads(content)

    def apply(self, objects: Iterable[Mapping[str, object]]) -> None:
        """Apply objects by kubectl, server-side."""
        manifest = json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)})
        flags = ["--server-side", "--force-conflicts", "--field-manager=lab", "--validate=false"]
        self.kubectl("apply", *flags, "--filename=-", input=manifest)

    def namespace_command(self, argv: Sequence[str]) -> list[str]:
        """Return the command that runs ``argv`` in the lab's network namespace, where pods and loopback services are."""
        supervisor = self.supervisor.process()
        if supervisor is None:
            raise LabError(f"The lab {self.config.name!r} is not up.", hint="Run `make lab-up`.")
        return network.enter(supervisor.pid, argv)

    # Starting

    def _start(self, tools: Mapping[str, Path]) -> None:
        config, supervisor = self.config, self.supervisor
        shutil.rmtree(config.logs, ignore_errors=True)
        for folder in (config.home, config.logs):
            folder.mkdir(parents=True, exist_ok=True)
        config.state.mkdir(mode=0o700)
        pki.create_all(config, config.state / "pki")
        self.__dict__.pop("_tls", None)  # of an earlier lab of this object
        node.write_files(config)
        control_plane.write_files(config)
        cgroups.create(config.cgroup)
        pid = self._start_supervisor()
        network.attach(config, pid)
        self._progress("namespaces and network ready")
        control_plane.start_storage_and_api(config, supervisor, tools)
        node.start_runtime(supervisor)
        with ThreadPoolExecutor(1) as beside:
            services_ready = beside.submit(self._start_services, tools)
            self._wait("the API server", self._api_ready, API_LIMIT, "etcd", "kube-apiserver")
            self._progress("API server ready")
            self._wait("containerd", lambda: node.import_sandbox_image(pid), API_LIMIT, "containerd")
            node.start_kubelet(config, supervisor, tools)
            control_plane.start_controllers(supervisor, tools)
            self.apply(control_plane.basic_objects(config))
            self._wait("the node", lambda: self._node_condition() == "Ready", NODE_LIMIT, "kubelet", "containerd")
            self._progress("node Ready")
            services_ready.result()
        self._wait("DNS", lambda: accepts_connections(config.node_address, 53), API_LIMIT, "coredns")
        (config.state / STARTED_MARK).touch()

    def _start_services(self, tools: Mapping[str, Path]) -> None:
        services.start_registry(self.config, self.supervisor)
        services.start_object_store(self.config, self.supervisor, tools)
        services.start_llm_provider(self.config, self.supervisor)
        services.wait_for_services(self.config, self.supervisor)
        buckets.make_all(self.config)
        self._progress("registry, object store and LLM provider ready")

    def _start_supervisor(self) -> int:
        config = self.config
        command = ["unshare", "--net", "--mount", "--propagation", "private", "--", sys.executable]
        command += ["-m", "lab.supervisor", "--name", config.name, "--index", str(config.index)]
        with (config.logs / "supervisor.log").open("ab") as log:
            started = subprocess.Popen(
                command,
                cwd=PROJECT,
                env={"PATH": packages.SEARCH_PATH, "HOME": str(Path.home()), "XDG_CACHE_HOME": str(_cache_home())},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

        def answers() -> bool:
            if started.poll() is not None:
                raise LabError(
                    f"The supervisor ended with {started.returncode}:\n{self.supervisor.log_tail('supervisor')}"
                )
            return self.supervisor.process() is not None

        wait_until("the supervisor", answers, limit=SUPERVISOR_LIMIT, interval=timedelta(milliseconds=10))
        # It goes on after this command; the object must not wait for it.
        started.returncode = 0
        return started.pid

    def _start_extras(self, extras: Sequence[str], tools: Mapping[str, Path]) -> None:
        if "metrics-server" in extras and not self._runs("metrics-server"):
            services.start_metrics_server(self.config, self.supervisor, tools)
            self.apply(services.metrics_server_objects(self.config))

    def _wait_for_extras(self, extras: Sequence[str]) -> None:
        if "metrics-server" in extras:
            self._wait("metrics-server", self._metrics_available, API_LIMIT, "metrics-server")
            self._progress("metrics-server ready")

    def _deploy_system(self, variant: str, versions: Mapping[str, str] | None) -> None:
        system = services.optional_module("lab.system")
        if system is None or not hasattr(system, "deploy"):
            self._progress("the project has no lab.system: the cluster stays empty")
            return
        system.deploy(self.config, variant=variant, versions=versions, progress=self._progress)

    def _resume_services(self) -> None:
        """Start again what a test, or a person, stopped beside the cluster."""
        for name, entry in self.supervisor.listed().items():
            # Prometheus and the extras are started anew by what comes later.
            if not entry["running"] and name not in ("prometheus", *EXTRAS):
                self._progress(f"starting {name} again")
                self.supervisor.resume(name)
        services.wait_for_services(self.config, self.supervisor)

    # Ending

    def _clear(self) -> None:
        """End all, then remove what outlives processes. The order matters: nothing may be starting while it is cleared.

        Killing at once is enough: all data goes too, and with the last process of a namespace the kernel removes its
        mounts, interfaces and rules, those of pods too. (An orderly stop would have to end the API server before etcd,
        and every sandbox before its runtime.)
        """
        config = self.config
        recorded = read_record(config)
        if (supervisor := recorded.get("supervisor")) is not None and supervisor.alive:
            strangers_in = [p for p in _processes_in_network_of(supervisor.pid) if p.pid != os.getpid()]
            supervisor.signal(signal.SIGKILL)
            wait_gone([supervisor], END_LIMIT)
        else:
            strangers_in = []
        deadline = time.monotonic() + END_LIMIT.total_seconds()
        while living := self._living(recorded, strangers_in):
            for process in living:
                process.signal(signal.SIGKILL)
            left = wait_gone(living, timedelta(seconds=deadline - time.monotonic()))
            if left and time.monotonic() > deadline:
                raise LabError(
                    f"Processes of the lab don't end: {', '.join(str(process.pid) for process in left)}.",
                    hint="They wait for the kernel; look at /proc/<pid>/stack, then try again.",
                )
        network.detach(config)
        stuck = cgroups.remove(config.cgroup)
        if stuck:
            raise LabError(f"Cgroup directories can't be removed: {', '.join(map(str, stuck[:5]))}.")
        if config.state.exists():
            shutil.rmtree(config.state)
        config.kubeconfig.unlink(missing_ok=True)

    def _living(self, recorded: Mapping[str, Process], more: Iterable[Process]) -> list[Process]:
        members = (Process.of(pid) for pid in cgroups.members(self.config.cgroup))
        found = {process for process in members if process is not None}
        return sorted(found | {p for p in [*recorded.values(), *more] if p.alive}, key=lambda process: process.pid)

    def _anything_left(self) -> bool:
        config = self.config
        return (
            config.state.exists()
            or network.owner(config) is not None
            or bool(cgroups.directories(config.cgroup))
            or bool(self._living(read_record(config), ()))
        )

    # Looking

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        folder = self.config.state / "pki"
        context = ssl.create_default_context(cafile=str(folder / "ca.crt"))
        context.load_cert_chain(folder / "admin.crt", folder / "admin.key")
        return context

    def _api_ready(self) -> bool:
        try:
            return http_status(f"{self.config.kubernetes_url}/readyz", tls=self._tls) == 200
        except OSError:  # no certificates yet
            return False

    def _node_condition(self) -> str:
        try:
            found = self.get(f"/api/v1/nodes/{self.config.node_name}")
        except (LabError, OSError):
            return "missing"
        conditions = {entry["type"]: entry["status"] for entry in found["status"].get("conditions", [])}
        return "Ready" if conditions.get("Ready") == "True" else "NotReady"

    def _runs(self, name: str) -> bool:
        return bool(self.supervisor.listed().get(name, {}).get("running"))

    def _metrics_available(self) -> bool:
        try:
            return bool(self.get("/apis/metrics.k8s.io/v1beta1/nodes")["items"])
        except (LabError, OSError):
            return False

    def _wait(self, what: str, condition: Callable[[], bool], limit: timedelta, *processes: str) -> None:
        wait_until(what, condition, limit=limit, explain=lambda: self.supervisor.explain(*processes))

    def _refuse_foreign_lab(self) -> None:
        owner = network.owner(self.config)
        if owner is not None and owner != str(self.config.home) and Path(owner).is_dir():
            raise LabError(
                f"The index {self.config.index} belongs to the lab in {owner}.",
                hint="Take that one down there first, or choose another --name and --index.",
            )

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Let only one command at a time, of all clones, work on this index."""
        with (tools_folder().parent / f"lab-{self.config.index}.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._progress("waiting for another command that works on this lab")
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def refuse_unfit_machine() -> None:
    """Raise ``LabError`` where a lab can't run: not Linux, not root, or no cgroups."""
    if sys.platform != "linux":
        raise LabError(f"The lab needs Linux, this is {sys.platform}.", hint="Use a Debian 12 machine.")
    if os.geteuid() != 0:
        raise LabError("The lab needs root: it makes namespaces, mounts and cgroups.", hint="Run it as root.")
    if not cgroups.hierarchies():
        raise LabError("No cgroup hierarchy is mounted.", hint="Mount cgroup2 on /sys/fs/cgroup.")


def _processes_in_network_of(pid: int) -> list[Process]:
    """Return every process in the same network namespace, also one that was brought in by hand."""
    wanted = os.stat(f"/proc/{pid}/ns/net").st_ino
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if os.stat(entry / "ns/net").st_ino == wanted and (process := Process.of(int(entry.name))):
                    found.append(process)
    return found


def _cache_home() -> Path:
    return tools_folder().parent.parent
