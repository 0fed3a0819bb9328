"""Kill matrix: whatever is killed, at whatever step, the system ends in its old or its new state and nobody is needed.

Each case starts a ``rolling_upgrade`` of two components (ten of them: of all five) on one lab (variant ``fast``), kills
real processes with SIGKILL at one moment, starts Airflow again where it was killed, and waits for the operation's journal
to be closed. The end is read from the API server by this file, which knows nothing of the package but the journal's name
and label.

    BENCH_CASES=everything make bench-kills     only cases whose name contains this
    BENCH_LIMIT=5 make bench-kills              at most so many cases that have no result yet
    BENCH_SHARD=2/2 make bench-kills            every second case, on a lab of its own beside the first's

A row is written to ``results/kills.jsonl`` as soon as its case is over; a case that has one is not run again.
``recover_operation`` is triggered every ``RECOVERY_SECONDS`` here instead of every two minutes, and the lease and
Airflow's heartbeat limit are shortened; the table says so. One case at the end is run with all of them at their defaults.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import sqlite3
import statistics
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from urllib.parse import quote

import httpx
import yaml

from benchmarks.readers import TaskTable, specs, workloads
from benchmarks.results_file import RESULTS, commit, publish
from lab.airflow import Airflow, session_members
from lab.airflow_access import grant_access
from lab.airflow_client import AirflowClient, AirflowRequestError
from lab.cluster import Cluster
from lab.config import HIGHEST_INDEX, LabConfig
from lab.failure import LabError
from lab.processes import PARENT, Process, read_record, stat_fields, wait_gone
from lab.progress import Progress
from lab.system.profiles import GATES
from lab.waiting import wait_until

VARIANT = "fast"
TWO = ("rag-api", "nephio-bridge")
FIVE = ("weaviate", "rag-api", "llm-processor", "nephio-bridge", "oran-adaptor")
OWN = "nephoran-maintenance"
MARK = "maintenance.nephoran.com"
DAG_ID, RECOVERY = "rolling_upgrade", "recover_operation"
TABLE = RESULTS / "kills.jsonl"
LEASE = {"duration_seconds": 10, "renew_seconds": 2}
HEARTBEAT_SECONDS = 20
RECOVERY_SECONDS = 30.0
REQUESTS_PER_SECOND, WHILE_JUDGED_PER_SECOND = 10, 30
"""Fewer than usual: the processors are needed for starting again what was killed. A gate needs 150 in its window of 10 s."""
OUTAGE_SECONDS = 30.0
LOOK_SECONDS = 0.05
MOMENT_TRIES = 3
"""A step that takes half a second may be over between two looks; then the case is begun again."""
MOMENT_LIMIT = timedelta(minutes=3)
END_LIMIT = timedelta(minutes=8)
DEFAULT_END_LIMIT = timedelta(minutes=20)
AFTERWARDS_LIMIT = timedelta(seconds=60)
"""How long after its journal is closed an operation may take to write its report and to give the lease back."""

CONTROL_PLANE = ("kube-apiserver", "etcd", "kube-controller-manager", "kube-scheduler", "containerd", "kubelet")

BOUNDARIES = (
    "check_request",
    "recover_operations",
    "preflight.decide_readiness",
    "plan_changes",
    "approve.wait_approval",
    "acquire_lease",
    "recheck_plan",
    "record_before_state",
    "components.rag_api.apply_image",
    "components.rag_api.wait_image",
    "components.nephio_bridge.apply_image",
    "components.nephio_bridge.wait_image",
    "functional_test.apply_test_intents",
    "functional_test.wait_test_intents",
    "functional_test.delete_test_intents",
    "verify_metrics",
    "verify_components",
    "rollback.decide_rollback",
    "stop_traffic",
    "report_operation",
    "release_lease",
)
CHANGING = (
    "acquire_lease",
    "record_before_state",
    "components.rag_api.apply_image",
    "components.rag_api.wait_image",
    "components.nephio_bridge.apply_image",
    "components.nephio_bridge.wait_image",
    "functional_test.apply_test_intents",
    "functional_test.delete_test_intents",
    "report_operation",
    "release_lease",
)
UNDOING = ("rollback.rollback_nephio_bridge", "rollback.rollback_rag_api")
KINDS = ("worker", "triggerer", "scheduler", "api-server", "kubelet", "database", "kube-apiserver", "outage")
KINDS_AT = (
    "record_before_state",
    "components.rag_api.apply_image",
    "components.rag_api.wait_image",
    "components.nephio_bridge.wait_image",
    "functional_test.apply_test_intents",
    "report_operation",
)

OF_FIVE = (
    ("in", "components.weaviate.apply_image", False),
    ("in", "components.weaviate.wait_image", False),
    ("after", "components.weaviate.wait_image", False),
    ("in", "components.llm_processor.wait_image", False),
    ("in", "components.oran_adaptor.wait_image", False),
    ("in", "functional_test.wait_test_intents", False),
    ("after", "verify_components", False),
    ("in", "rollback.rollback_oran_adaptor", True),
    ("in", "rollback.rollback_rag_api", True),
    ("in", "rollback.rollback_weaviate", True),
)

PROTECTED = (
    ("in", "protect.capture_kubernetes_objects"),
    ("in", "protect.wait_weaviate_backup"),
    ("in", "protect.capture_weaviate"),
    ("in", "protect.record_manifest"),
    ("after", "protect.verify_stored_files"),
)
"""In the other cases no backup is made before the change."""

GATED = (
    ("in", "components.rag_api.verify_metrics"),
    ("after", "components.rag_api.verify_metrics"),
    ("in", "verify_metrics"),
)
"""In the other cases no metrics are judged."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """What is killed and when.

    ``where`` is ``after`` a step or ``in`` it; ``broken`` cases upgrade the second component to an image that crashes,
    so that the moment lies on the way back.
    """

    kind: str
    where: str
    step: str
    broken: bool = False
    components: tuple[str, ...] = TWO
    default_times: bool = False
    protected: bool = False
    gated: bool = False

    @property
    def name(self) -> str:
        notes = ["broken image"] * self.broken + ["five components"] * (self.components == FIVE)
        notes += ["default times"] * self.default_times + ["backup first"] * self.protected
        notes += ["metrics judged"] * self.gated
        return f"{self.kind} {self.where} {self.step}" + (f" ({', '.join(notes)})" if notes else "")


def cases() -> Iterator[Case]:
    """Yield the matrix: everything at once at every boundary and in every changing step, every kind at some of them."""
    for step in BOUNDARIES:
        yield Case("everything", "after", step)
    for step in CHANGING:
        yield Case("everything", "in", step)
    for step in UNDOING:
        yield Case("everything", "in", step, broken=True)
        yield Case("everything", "after", step, broken=True)
    for kind in KINDS:
        for step in KINDS_AT:
            yield Case(kind, "in", step)
        for step in UNDOING:
            yield Case(kind, "in", step, broken=True)
    for where, step, broken in OF_FIVE:
        yield Case("everything", where, step, broken, FIVE)
    for where, step in PROTECTED:
        yield Case("everything", where, step, protected=True)
    for where, step in GATED:
        yield Case("everything", where, step, gated=True)
    yield Case("everything", "in", "components.rag_api.wait_image", default_times=True)


class Matrix:
    """Runs cases on one lab."""

    def __init__(self, cluster: Cluster, airflow: Airflow) -> None:
        self.cluster = cluster
        self.airflow = airflow

    @property
    def client(self) -> AirflowClient:
        return self.airflow.client()

    def run(self, case: Case) -> Row | None:
        """Run one case and return its row; ``ok`` is true only when everything that was promised was seen.

        Returns None when the moment never came.
        """
        set_profile(self.airflow, {} if case.default_times else LEASE, protected=case.protected, gated=case.gated)
        for _ in range(MOMENT_TRIES):
            self.settle()
            before, journals, target = self.state(), set(self.journals()), self.next_version()
            run_id = self.start(case, target)
            if not self.reached(run_id, case):
                self.client.follow(DAG_ID, run_id, timeout=END_LIMIT)
                continue
            started = time.monotonic()
            killed, orphans = self.kill(case.kind)
            operation, state = self.wait_for_end(journals, run_id, case)
            seconds = round(time.monotonic() - started, 1)
            row = {"case": case.name, **self.judged(before, target, operation, state, case), "seconds": seconds}
            for process in orphans:
                process.signal(signal.SIGKILL)
            row["ok"] = row["ok"] and bool(killed)
            measured = {"requests_per_second": requests_per_second(case.gated), "commit": commit()}
            return row | {"killed": killed, "run_id": run_id, **measured}
        return None

    def start(self, case: Case, target: str) -> str:
        """Start the upgrade of a case and return its run's id."""
        params: dict[str, Any] = {"mode": "apply", "version": target, "components": list(case.components)}
        params |= {"allow_downgrade": True, "reason": f"kill matrix: {case.name}"}
        if case.broken:
            params["images"] = {case.components[-1]: "v2-crash"}
            params["release_quarantine"] = [case.components[-1]]  # a case before has put this version into it
        self.client.await_dag(DAG_ID)
        return self.client.trigger(DAG_ID, params)

    # ------------------------------------------------------------------------------------------------ the moment

    def reached(self, run_id: str, case: Case) -> bool:
        """Return True as soon as the step has ended well, or is at work; False when that was missed or never happens."""
        wanted = ("success",) if case.where == "after" else ("running", "deferred")
        deadline = time.monotonic() + MOMENT_LIMIT.total_seconds()
        with contextlib.closing(TaskTable(self.airflow.instance.database, run_id)) as tasks:
            while time.monotonic() < deadline:
                state = tasks.state(case.step)
                if state in wanted:
                    return True
                if state in ("success", "failed", "upstream_failed", "skipped"):
                    return False
                time.sleep(LOOK_SECONDS)
        return False

    def kill(self, kind: str) -> tuple[list[str], list[Process]]:
        """Kill what the kind names, all at once, and start again what does not come back by itself.

        Returns the names of what was killed, and the workers that a killed scheduler has left behind.
        """
        if kind == "outage":
            api = read_record(self.cluster.config)["kube-apiserver"]
            api.signal(signal.SIGSTOP)
            time.sleep(OUTAGE_SECONDS)
            api.signal(signal.SIGCONT)
            return ["kube-apiserver stopped for 30 s"], []
        leaders, cluster = self.airflow_leaders(), read_record(self.cluster.config)
        orphans: list[Process] = []
        if kind == "worker":
            leader = leaders["scheduler"]
            # Only those at work: an idle one that is killed keeps the lock of the LocalExecutor's queue for ever, and no
            # task of any DAG is started again before the scheduler is.
            members = [found for found in session_members({leader.pid}) if found != leader]
            parents = {parent_of(found.pid) for found in members} - {leader.pid}
            victims = [("worker", f) for f in members if f.pid in parents or parent_of(f.pid) in parents]
        elif kind == "scheduler":
            # Its workers are left behind and go on.
            victims = [(kind, leaders[kind])]
            orphans = [found for found in session_members({leaders[kind].pid}) if found != leaders[kind]]
        elif kind in leaders:
            victims = [(kind, found) for found in session_members({leaders[kind].pid})]
        elif kind in cluster:
            victims = [(kind, cluster[kind])]
        else:
            victims = [(name, found) for name, leader in leaders.items() for found in session_members({leader.pid})]
            if kind == "everything":
                victims += [(name, cluster[name]) for name in CONTROL_PLANE]
        for _, process in victims:
            process.signal(signal.SIGKILL)
        wait_gone([process for _, process in victims], timedelta(seconds=10))
        if kind == "database":
            for path in self.airflow.instance.home.glob("airflow.db*"):
                path.unlink()
        if kind in ("everything", "database", *leaders):
            self.airflow.up()
        return sorted({name for name, _ in victims}), orphans

    def airflow_leaders(self) -> dict[str, Process]:
        """Return Airflow's four processes; each leads a session."""
        found = json.loads((self.airflow.instance.home / "processes.json").read_text(encoding="utf-8"))
        return {name: Process(**entry) for name, entry in found.items()}

    # --------------------------------------------------------------------------------------------------- the end

    def wait_for_end(self, known: set[str], run_id: str, case: Case) -> tuple[str | None, str]:
        """Return the operation's id and its run's state once its journal is closed, or it never had one."""
        limit = DEFAULT_END_LIMIT if case.default_times else END_LIMIT
        deadline = time.monotonic() + limit.total_seconds()
        next_recovery = time.monotonic() + RECOVERY_SECONDS
        state = "unknown"
        while time.monotonic() < deadline:
            with contextlib.suppress(LabError, OSError, httpx.HTTPError, AirflowRequestError, sqlite3.Error):
                state = self.run_state(run_id)
                new = [name for name in self.journals() if name not in known]
                over = state in ("success", "failed", "gone")
                if new and self.journals()[new[0]] == "closed" and over:
                    return new[0], state
                # What died before it wrote its journal may still hold the lease, which the next recovery releases.
                if not new and over and not self.left_over():
                    return None, state
                due = time.monotonic() > next_recovery and not case.default_times
                if due and not self.client.unfinished_runs(RECOVERY):
                    self.client.trigger(RECOVERY, {"mode": "apply"})
                    next_recovery = time.monotonic() + RECOVERY_SECONDS
            time.sleep(1.0)
        return None, f"{state}, journal not closed after {limit.total_seconds():.0f} s"

    def run_state(self, run_id: str) -> str:
        """Return the state of the run; ``gone`` when Airflow knows of none, as after the loss of its database."""
        with contextlib.closing(TaskTable(self.airflow.instance.database, run_id)) as tasks:
            return tasks.run_state() or "gone"

    def judged(self, before: Row, target: str, operation: str | None, state: str, case: Case) -> Row:
        """Return what the end is, and whether it is allowed."""
        expected: tuple[str | None, ...] = ("rolled-back", "refused", "succeeded") if operation else (None,)
        with contextlib.suppress(LabError):
            wait_until(
                "Report and lease",
                lambda: self.reported(operation) in expected and not self.left_over(),
                limit=AFTERWARDS_LIMIT,
            )
        self.settle()
        after = self.state()
        tags = {name: tag_of(image) for name, image in after["images"].items() if name in case.components}
        old = after["specs"] == before["specs"]
        rest = [without_images(state["specs"], case.components) for state in (before, after)]
        new = rest[0] == rest[1] and set(tags.values()) == {target}
        end = "old" if old else "new" if new and not case.broken else "between"
        left = self.left_over()
        reported = self.reported(operation)
        expected = {"old": ("rolled-back", "refused", None), "new": ("succeeded",)}.get(end, ())
        row: Row = {"end": end, "run": state, "operation": operation, "report": reported, "left_over": left}
        row["ok"] = end in ("old", "new") and not left and "not closed" not in state and reported in expected
        if end == "between":
            row["tags"] = tags
        return row

    def reported(self, operation: str | None) -> str | None:
        """Return what the newest report of the operation says; None when there is none."""
        if operation is None:
            return None
        found = []
        for path in (self.airflow.instance.home / "reports").glob("*/*/report.json"):
            report = json.loads(path.read_text(encoding="utf-8"))
            if report.get("operation_id") == operation:
                found.append((path.stat().st_mtime, str(report["overall"])))
        return max(found)[1] if found else None

    def left_over(self) -> list[str]:
        """Return what an operation must not leave: test intents, its own marks on workloads, a lease that is held."""
        found = []
        for group in ("nephoran.com/v1", "intent.nephoran.com/v1alpha1"):
            items = self.cluster.get(f"/apis/{group}/networkintents")["items"]
            found += [f"{group} {i['metadata']['name']}" for i in items if i["metadata"]["name"].startswith("test-")]
        for item in self.workloads():
            annotations = item["metadata"].get("annotations") or {}
            found += [f"{item['metadata']['name']} {key}" for key in annotations if key.startswith(f"{MARK}/")]
        for lease in self.cluster.get(f"/apis/coordination.k8s.io/v1/namespaces/{OWN}/leases")["items"]:
            if lease["spec"].get("holderIdentity"):
                found.append(f"lease held by {lease['spec']['holderIdentity']}")
        return found

    def settle(self) -> None:
        """Wait until every workload is rolled out and the API server answers steadily."""

        def settled() -> bool:
            try:
                return all(is_rolled_out(item) for item in self.workloads())
            except (LabError, OSError):
                return False

        wait_until("the workloads", settled, limit=timedelta(minutes=3))

    def state(self) -> Row:
        """Return specs, labels, annotations and images of all workloads."""
        found = self.workloads()
        images = {i["metadata"]["name"]: i["spec"]["template"]["spec"]["containers"][-1]["image"] for i in found}
        return {"specs": specs(found), "images": images}

    def next_version(self) -> str:
        """Return a version that the first component does not run."""
        running = tag_of(self.state()["images"][TWO[0]])
        return "v3" if running == "v2" else "v2"

    def workloads(self) -> list[Row]:
        return workloads(self.cluster)

    def journals(self) -> dict[str, str]:
        """Return the state of each journal by its name, newest first."""
        path = f"/api/v1/namespaces/{OWN}/configmaps?labelSelector={quote(f'{MARK}/record=journal')}"
        items = sorted(self.cluster.get(path)["items"], key=lambda i: i["metadata"]["creationTimestamp"], reverse=True)
        return {i["metadata"]["name"]: i["metadata"]["labels"].get(f"{MARK}/state", "") for i in items}


def parent_of(pid: int) -> int | None:
    """Return the parent of a process, None when it is gone."""
    fields = stat_fields(pid)
    return int(fields[PARENT]) if fields else None


def is_rolled_out(item: Mapping[str, Any]) -> bool:
    """Return whether the controller has done what the spec says, and nothing more is under way."""
    status, wanted = item.get("status") or {}, item["spec"].get("replicas", 1)
    counts = [status.get(key, 0) for key in ("replicas", "readyReplicas", "updatedReplicas")]
    if item["plural"] == "statefulsets":
        counts.pop()  # Kubernetes leaves it out when both revisions are one
        if status.get("currentRevision") != status.get("updateRevision"):
            return False
    return status.get("observedGeneration", 0) >= item["metadata"]["generation"] and set(counts) == {wanted}


def without_images(specs: Mapping[str, Any], components: Iterable[str]) -> Any:
    """Return the specs of the upgraded components without the image that the upgrade changes."""
    copied = json.loads(json.dumps(specs))
    for name in components:
        for container in copied[name]["spec"]["template"]["spec"]["containers"]:
            if container["name"] == name:
                container["image"] = ""
    return copied


def tag_of(image: str) -> str:
    return image.partition("@")[0].rpartition(":")[2]


def set_profile(airflow: Airflow, lease: Mapping[str, int], *, protected: bool = False, gated: bool = False) -> None:
    """Write into the profile whether a backup comes first, whether metrics are judged, and how long a lease lasts: a dead
    owner is noticed in seconds.
    """
    profile = yaml.safe_load(airflow.instance.profile.read_text(encoding="utf-8"))  # type: ignore[union-attr]
    profile["lease"] = dict(lease)
    profile["backup"]["before_change"] = "full" if protected else "none"
    profile["gate"] |= GATES["short" if gated else "off"]
    profile["probe"]["rate_per_second"] = requests_per_second(gated)
    airflow.instance.profile.write_text(yaml.safe_dump(profile, sort_keys=False), encoding="utf-8")  # type: ignore[union-attr]


def requests_per_second(gated: bool) -> int:
    return WHILE_JUDGED_PER_SECOND if gated else REQUESTS_PER_SECOND


def table() -> dict[str, Row]:
    """Return the rows written so far by their case."""
    if not TABLE.exists():
        return {}
    rows = [json.loads(line) for line in TABLE.read_text(encoding="utf-8").splitlines()]
    return {row["case"]: row for row in rows}


def lab_of_shard(number: int) -> LabConfig:
    """Return the lab that a shard works on; the first one has the benchmarks' own."""
    return LabConfig.named("bench") if number == 1 else LabConfig.named(f"bench-{number}", index=HIGHEST_INDEX - number)


def main() -> None:
    """Run the cases that have no row yet on a lab of its own; the lab is stopped afterwards."""
    wanted, limit = os.environ.get("BENCH_CASES", ""), int(os.environ.get("BENCH_LIMIT", "1000"))
    shard, shards = (int(part) for part in os.environ.get("BENCH_SHARD", "1/1").split("/"))
    done = table()
    of_shard = list(cases())[shard - 1 :: shards]
    chosen = [case for case in of_shard if wanted in case.name and case.name not in done][:limit]
    config = lab_of_shard(shard)
    progress = Progress()
    cluster, airflow = Cluster(config, progress=progress), Airflow.of_lab(config, progress)
    defaults = airflow.instance
    airflow.instance = dataclasses.replace(defaults, heartbeat_timeout_seconds=HEARTBEAT_SECONDS)
    try:
        cluster.up(variant=VARIANT)
        grant_access(config, airflow.instance, progress, variant=VARIANT, before_change="none")
        airflow.up()
        matrix = Matrix(cluster, airflow)
        for number, case in enumerate(chosen, start=1):
            if case.default_times:
                airflow.down()
                airflow.instance = dataclasses.replace(defaults, port=airflow.instance.port)
                airflow.up()
            row = matrix.run(case)
            if row is None:
                progress(f"{number} of {len(chosen)}: the moment of {case.name!r} never came")
                continue
            with TABLE.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            progress(f"{number} of {len(chosen)}: {'ok' if row['ok'] else 'FAILED'} {row}")
    finally:
        airflow.down()
        cluster.down()
    publish_table()


def publish_table() -> None:
    """Publish what the rows written so far say."""
    rows = list(table().values())
    publish(
        "kills",
        {
            "cases": len(rows),
            "allowed_end_ratio": round(sum(row["ok"] for row in rows) / max(1, len(rows)), 3),
            "ends": {end: sum(row["end"] == end for row in rows) for end in ("old", "new", "between")},
            "failed_cases": [row["case"] for row in rows if not row["ok"]],
            "matrix_cases": len(list(cases())),
            "lease": LEASE,
            "recovery_seconds": RECOVERY_SECONDS,
            "heartbeat_timeout_seconds": HEARTBEAT_SECONDS,
            "seconds_median": round(statistics.median([row["seconds"] for row in rows] or [0]), 1),
            "components": list(TWO),
            "variant": VARIANT,
        },
    )


if __name__ == "__main__":
    main()
