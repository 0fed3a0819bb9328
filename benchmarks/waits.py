"""Benchmark of waiting: a thousand rollouts waited for in one triggerer, against one watch for each.

A lab without controllers and without nodes at work holds 1,000 Deployments whose status this benchmark writes. Real
Airflow runs one task for each, all deferred in its one triggerer; then three Deployments a second become complete.
A wait is over when its trigger has handed the task back: it is ``deferred`` no longer. When a worker is free for it then
is a matter of the machine's size; two processors start about one task a second.

Beside it, on the same API server and with the same completions, the alternative: one process with one connection and
one watch for each Deployment (``one_watch_each``). It has no Airflow in it, so its resume time is that of the news alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import multiprocessing
import ssl
import statistics
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import timedelta
from http.client import HTTPSConnection
from pathlib import Path
from typing import Any

import aiohttp

from benchmarks.dags.waits import WORKLOADS
from benchmarks.readers import NAMESPACE, TaskTable
from benchmarks.results_file import publish
from lab.airflow import Airflow, session_members
from lab.airflow_access import grant_access, issue_token
from lab.cluster import Cluster
from lab.config import LabConfig
from lab.processes import SYSTEM_TICKS, USER_TICKS, stat_fields
from lab.progress import Progress
from lab.waiting import wait_until

DEPLOYMENTS = f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments"
USER = "system:serviceaccount:nephoran-maintenance:rolling-upgrade"
COMPLETIONS_PER_SECOND = 3.0
IDLE_SECONDS = 30.0
DEFER_LIMIT = timedelta(minutes=40)
TICKS_PER_SECOND = 100
WORKERS = 2
"""One for each processor: what was handed back is begun beside the triggerer, and it is the triggerer that is measured."""

Figures = dict[str, Any]


def main() -> None:
    """Run the benchmark on a lab of its own and publish the figures; the lab is stopped afterwards."""
    config = LabConfig.named("bench")
    progress = Progress()
    cluster = Cluster(config, progress=progress)
    airflow = Airflow.of_lab(config, progress, dags_folder=Path(__file__).resolve().parent / "dags")
    airflow.instance = dataclasses.replace(airflow.instance, parallelism=WORKERS)
    try:
        cluster.up(with_system=False)
        cluster.apply(
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
            for name in (NAMESPACE, "nephoran-monitoring")
        )
        for controller in ("kube-controller-manager", "kube-scheduler"):
            cluster.supervisor.stop(controller)
        grant_access(config, airflow.instance, progress, before_change="none")
        cluster.apply(deployment(number) for number in range(WORKLOADS))
        progress(f"{WORKLOADS} Deployments are there")
        airflow.up()
        shared = in_the_triggerer(cluster, airflow, progress)
        airflow.down()
        each = one_watch_each(cluster, progress)
        publish("waits", {**shared, "one_watch_each": each, "workloads": WORKLOADS})
    finally:
        airflow.down()
        cluster.down()


def in_the_triggerer(cluster: Cluster, airflow: Airflow, progress: Callable[[str], None]) -> Figures:
    """Have every Deployment waited for by a task of its own, let them complete, and measure the triggerer."""
    status = StatusWriter(cluster)
    status.write_all(ready=False)
    client = airflow.client()
    client.await_dag("waits")
    began = time.monotonic()
    run_id = client.trigger("waits")
    tasks = TaskTable(airflow.instance.database, run_id)
    wait_until(
        "deferred tasks",
        lambda: tasks.count("deferred") == WORKLOADS,
        limit=DEFER_LIMIT,
        interval=timedelta(seconds=2),
        explain=lambda: str(tasks.states()),
    )
    progress(f"all {WORKLOADS} tasks are deferred after {time.monotonic() - began:.0f} s")
    leader = json.loads((airflow.instance.home / "processes.json").read_text(encoding="utf-8"))["triggerer"]["pid"]
    time.sleep(IDLE_SECONDS)
    worker_slots = tasks.count("running") + tasks.count("queued")
    window = Window(cluster, lambda: [process.pid for process in session_members({leader})])
    with window, Resumptions(airflow.instance.database, run_id) as resumed:
        completed = status.complete_all()
        wait_until("the last trigger", lambda: len(resumed.at) == WORKLOADS, limit=timedelta(minutes=5))
    waits = sorted(resumed.at[name] - at for name, at in completed.items())
    figures = {
        "worker_slots": worker_slots,
        "triggerer_cpu_cores": window.cpu_cores,
        "triggerer_pss_mib": window.pss_mib,
        "api_requests_per_second": window.requests_per_second,
        "resume_seconds_median": round(statistics.median(waits), 2),
        "resume_seconds_p95": round(waits[int(len(waits) * 0.95)], 2),
        "seconds_until_all_deferred": round(time.monotonic() - began, 0),
        "completions_per_second": COMPLETIONS_PER_SECOND,
    }
    progress(f"in the triggerer: {figures}")
    return figures


def one_watch_each(cluster: Cluster, progress: Callable[[str], None]) -> Figures:
    """Let the same completions be seen by one process with a watch for each Deployment, and measure that."""
    status = StatusWriter(cluster)
    status.write_all(ready=False)
    token = issue_token(cluster, "rolling-upgrade")
    parent, child = multiprocessing.get_context("spawn").Pipe(duplex=False)
    url, authority = cluster.config.kubernetes_url, str(cluster.config.state / "pki" / "ca.crt")
    watcher = multiprocessing.get_context("spawn").Process(target=watch_all, args=(child, url, authority, token))
    watcher.start()
    try:
        assert parent.poll(300)
        parent.recv()
        time.sleep(IDLE_SECONDS)
        window = Window(cluster, lambda: [watcher.pid] if watcher.pid else [])
        with window:
            completed = status.complete_all()
            assert parent.poll(300)
            seen: dict[str, float] = parent.recv()
    finally:
        watcher.join(10)
        if watcher.is_alive():
            watcher.kill()
    waits = [seen[name] - at for name, at in completed.items()]
    figures = {
        "cpu_cores": window.cpu_cores,
        "pss_mib": window.pss_mib,
        "api_requests_per_second": window.requests_per_second,
        "connections": WORKLOADS,
        "news_seconds_median": round(statistics.median(waits), 2),
    }
    progress(f"one watch each: {figures}")
    return figures


def watch_all(pipe: Any, url: str, authority: str, token: str) -> None:
    """Watch every Deployment over a connection of its own; tell when all watches are open, and when each was complete."""

    async def watch(name: str, seen: dict[str, float], opened: list[str]) -> None:
        tls = ssl.create_default_context(cafile=authority)
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=tls)) as session:
            query = f"?watch=true&fieldSelector=metadata.name%3D{name}&timeoutSeconds=3600"
            headers = {"Authorization": f"Bearer {token}"}
            limits = aiohttp.ClientTimeout(total=None)
            while True:
                async with session.get(f"{url}{DEPLOYMENTS}{query}", headers=headers, timeout=limits) as answer:
                    if answer.status == 429:  # so many at once: the server says when to come again
                        await asyncio.sleep(float(answer.headers.get("Retry-After", "1")))
                        continue
                    answer.raise_for_status()
                    opened.append(name)
                    async for line in answer.content:
                        if json.loads(line)["object"].get("status", {}).get("availableReplicas"):
                            seen[name] = time.time()
                            return

    async def everything() -> dict[str, float]:
        seen: dict[str, float] = {}
        opened: list[str] = []
        tasks = [asyncio.create_task(watch(name_of(number), seen, opened)) for number in range(WORKLOADS)]
        while len(opened) < WORKLOADS:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
        pipe.send("open")
        await asyncio.gather(*tasks)
        return seen

    pipe.send(asyncio.run(everything()))


class Resumptions:
    """Looks at Airflow's database four times a second and remembers when each task was no longer deferred."""

    def __init__(self, database: Path, run_id: str) -> None:
        self.at: dict[str, float] = {}
        self._database, self._run_id = database, run_id
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look_on, daemon=True)

    def __enter__(self) -> Resumptions:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _look_on(self) -> None:
        with contextlib.closing(TaskTable(self._database, self._run_id)) as tasks:
            while not self._stop.wait(0.25):
                for number in tasks.left("deferred"):
                    self.at.setdefault(name_of(number), time.time())


# --------------------------------------------------------------------------------------------------- what is waited for


def name_of(number: int) -> str:
    return f"waited-{number:04d}"


def deployment(number: int) -> dict[str, object]:
    labels = {"app": name_of(number)}
    container = {"name": "main", "image": "registry.example/nephoran/waited:v2"}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name_of(number), "namespace": NAMESPACE, "labels": labels},
        "spec": {
            "replicas": 1,
            "progressDeadlineSeconds": 7200,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": {"containers": [container]}},
        },
    }


class StatusWriter:
    """Writes what a Deployment controller would."""

    def __init__(self, cluster: Cluster) -> None:
        pki = cluster.config.state / "pki"
        tls = ssl.create_default_context(cafile=str(pki / "ca.crt"))
        tls.load_cert_chain(pki / "admin.crt", pki / "admin.key")
        port = int(cluster.config.kubernetes_url.rpartition(":")[2])
        self._connection = HTTPSConnection(cluster.config.node_address, port, timeout=30, context=tls)

    def write(self, number: int, *, ready: bool) -> None:
        body = {"status": {"observedGeneration": 1, "replicas": 1, "updatedReplicas": 1, **counts(ready=ready)}}
        self._connection.request(
            "PATCH",
            f"{DEPLOYMENTS}/{name_of(number)}/status",
            json.dumps(body),
            {"Content-Type": "application/merge-patch+json"},
        )
        answer = self._connection.getresponse()
        content = answer.read()
        if answer.status != 200:
            raise SystemExit(f"{name_of(number)}: {answer.status} {content[:300]!r}")

    def write_all(self, *, ready: bool) -> None:
        for number in range(WORKLOADS):
            self.write(number, ready=ready)

    def complete_all(self) -> dict[str, float]:
        """Complete them one after the other at the benchmark's rate and return when each was."""
        self._connection.close()  # the server has closed it meanwhile; the next request opens another
        completed = {}
        first_at = time.monotonic()
        for number in range(WORKLOADS):
            time.sleep(max(0.0, first_at + number / COMPLETIONS_PER_SECOND - time.monotonic()))
            self.write(number, ready=True)
            completed[name_of(number)] = time.time()
        return completed


def counts(*, ready: bool) -> dict[str, int | None]:
    return {"readyReplicas": int(ready) or None, "availableReplicas": int(ready) or None}


# ------------------------------------------------------------------------------------------------------- what is measured


@dataclass
class Window:
    """Measures processes and the API server's audit log between entering and leaving."""

    cluster: Cluster
    pids: Callable[[], list[int]]
    cpu_cores: float = 0.0
    pss_mib: float = 0.0
    requests_per_second: float = 0.0
    _started: float = 0.0
    _ticks: int = 0
    _offset: int = 0
    _stop: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Window:
        self._started, self._ticks = time.monotonic(), ticks_of(self.pids())
        self._offset = self.cluster.config.audit_log.stat().st_size
        self._sampler = threading.Thread(target=self._sample, daemon=True)
        self._sampler.start()
        return self

    def __exit__(self, *_: object) -> None:
        seconds = time.monotonic() - self._started
        self.cpu_cores = round((ticks_of(self.pids()) - self._ticks) / TICKS_PER_SECOND / seconds, 3)
        self._stop.set()
        self._sampler.join()
        with self.cluster.config.audit_log.open("rb") as log:
            log.seek(self._offset)
            asked = sum(1 for line in log if USER.encode() in line)
        self.requests_per_second = round(asked / seconds, 2)

    def _sample(self) -> None:
        while not self._stop.wait(5.0):
            self.pss_mib = max(self.pss_mib, round(sum(map(pss_of, self.pids())), 0))


def ticks_of(pids: Iterable[int]) -> int:
    """Return the processor time of processes so far, in clock ticks."""
    total = 0
    for pid in pids:
        if fields := stat_fields(pid):
            total += int(fields[USER_TICKS]) + int(fields[SYSTEM_TICKS])
    return total


def pss_of(pid: int) -> float:
    """Return a process' share of memory in MiB, pages that it shares divided by those who do."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) / 1024
    return 0.0


if __name__ == "__main__":
    main()
