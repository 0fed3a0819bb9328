"""Benchmark of failing upgrades: how soon the cause on the third component is named, and that everything goes back.

``BENCH_ROUNDS`` (default 10) times each, on one lab in the variant ``fast``, by the procedure run by Airflow:

* ``missing-image``: the manifest is deleted from the registry between plan and pull;
* ``crash``: the program ends at once;
* ``never-ready``: it runs and its readiness probe never succeeds.

``named_seconds`` is the time from what can't get better any more to the end of the step that failed with the cause in
its text. It counts from the kubelet's second failed attempt, or from the deadline that the workload gives itself
(creation of the new pod plus ``progressDeadlineSeconds``). Both are Kubernetes' own whole seconds, rounded down, so the
figures are up to a second too long, never too short. What the kubelet did is read from the API server here, beside the
procedure. After each run every spec of the system is compared with the one before it.
"""

from __future__ import annotations

import os
import statistics
import threading
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import quote

from benchmarks.readers import NAMESPACE, specs, workloads
from benchmarks.results_file import publish
from lab.airflow import Airflow
from lab.airflow_access import grant_access
from lab.airflow_client import AirflowClient
from lab.cluster import Cluster
from lab.config import LabConfig
from lab.progress import Progress
from lab.system.images import delete_tag, push_all, push_fresh

VARIANT = "fast"
COMPONENTS = ("rag-api", "llm-processor", "nephio-bridge")
THIRD = COMPONENTS[-1]
STEP = "components.nephio_bridge.wait_image"
CAUSES = {"missing-image": "image-pull", "crash": "crash-loop", "never-ready": "failing-probe"}
TAGS = {"missing-image": "v2", "crash": "v2-crash", "never-ready": "v2-never-ready"}
DAG_ID = "rolling_upgrade"
LIMIT = timedelta(minutes=10)
LOOK_SECONDS = 0.25
WANTED_SECONDS = 10.0

Figures = dict[str, Any]


def main() -> None:
    """Run the benchmark on a lab of its own and publish the figures; the lab is stopped afterwards."""
    rounds = int(os.environ.get("BENCH_ROUNDS", "10"))
    config = LabConfig.named("bench")
    progress = Progress()
    cluster, airflow = Cluster(config, progress=progress), Airflow.of_lab(config, progress)
    try:
        cluster.up(variant=VARIANT)
        grant_access(config, airflow.instance, progress, variant=VARIANT, before_change="none")
        airflow.up()
        publish("failures", measure(cluster, airflow.client(), rounds, progress))
    finally:
        airflow.down()
        cluster.down()


def measure(cluster: Cluster, client: AirflowClient, rounds: int, progress: Callable[[str], None]) -> Figures:
    client.await_dag(DAG_ID)
    runs: dict[str, list[Figures]] = {failure: [] for failure in CAUSES}
    for number in range(rounds):
        for failure in CAUSES:
            figures = broken_upgrade(cluster, client, failure)
            runs[failure].append(figures)
            progress(f"round {number + 1}, {failure}: {figures}")
    return {
        "named_seconds_max": {failure: max(run["named_seconds"] for run in runs[failure]) for failure in runs},
        "named_seconds_median": {
            failure: round(statistics.median(run["named_seconds"] for run in runs[failure]), 1) for failure in runs
        },
        "wanted_seconds": WANTED_SECONDS,
        "rounds": rounds,
        "components": list(COMPONENTS),
        "variant": VARIANT,
        "runs": runs,
    }


def broken_upgrade(cluster: Cluster, client: AirflowClient, failure: str) -> Figures:
    """Upgrade three components, the last one to an image that is broken, and return the figures of the way back.

    :raises SystemExit: when the cause was not named, or anything is not as it was before.
    """
    before = specs(workloads(cluster))
    if failure == "missing-image":
        # What a node has pulled once it never asks the registry for again.
        push_fresh(cluster.config, THIRD, TAGS[failure])
    params = {
        "mode": "apply",
        "version": "v2",
        "components": list(COMPONENTS),
        "images": {THIRD: TAGS[failure]},
        "release_quarantine": [THIRD],  # the round before has put this version into it
        "reason": f"benchmark: {failure}",
    }
    observer = Observer(cluster, {pod["metadata"]["name"] for pod in pods(cluster)})
    run_id = client.trigger(DAG_ID, params)

    def planned(task: Any) -> None:
        if failure == "missing-image" and (task.task_id, task.state) == ("record_before_state", "success"):
            delete_tag(cluster.config, f"nephoran/{THIRD}", TAGS[failure])

    with observer:
        state = client.follow(DAG_ID, run_id, timeout=LIMIT, on_change=planned)["state"]
    if failure == "missing-image":
        push_all(cluster.config)
    report = client.xcom(DAG_ID, run_id, "report_operation")
    error = str(client.xcom(DAG_ID, run_id, STEP, "error"))
    ended = next(task.ended_at for task in client.task_states(DAG_ID, run_id) if task.task_id == STEP)
    back = [row["component"] for row in report["rollback"]]
    faults = [
        text
        for fault, text in (
            (state != "failed", f"the run is {state}"),
            (report["overall"] != "rolled-back", f"the report says {report['overall']}"),
            (CAUSES[failure] not in error, f"{CAUSES[failure]} is not in: {error[:500]}"),
            (back != list(reversed(COMPONENTS)), f"rolled back: {back}"),
            (specs(workloads(cluster)) != before, "a spec is not as it was"),
            (observer.hopeless_at[failure] is None, "Kubernetes was not seen failing"),
        )
        if fault
    ]
    hopeless_at = observer.hopeless_at[failure]
    if faults or hopeless_at is None:
        raise SystemExit(f"{failure}, run {run_id}: {'; '.join(faults)}")
    return {
        "named_seconds": round(datetime.fromisoformat(str(ended)).timestamp() - hopeless_at, 1),
        "whole_seconds": report["seconds"],
        "failed_requests": report["probe"]["failed"],
        "sent_requests": report["probe"]["sent"],
    }


class Observer:
    """Look at the third component's new pods, and remember when each kind of failure was first beyond hope."""

    def __init__(self, cluster: Cluster, old: set[str]) -> None:
        self.hopeless_at: dict[str, float | None] = dict.fromkeys(CAUSES)
        self._cluster = cluster
        self._old = old
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._look_on, daemon=True)

    def __enter__(self) -> Observer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()

    def _look_on(self) -> None:
        asks = {"missing-image": self._second_pull, "crash": self._second_end, "never-ready": self._deadline}
        while not self._stopped.wait(LOOK_SECONDS):
            new = [pod for pod in pods(self._cluster) if pod["metadata"]["name"] not in self._old]
            for failure, ask in asks.items():
                if new and self.hopeless_at[failure] is None:
                    self.hopeless_at[failure] = ask(new)

    def _second_pull(self, new: list[Figures]) -> float | None:
        """Return when the kubelet failed to pull for the second time; None while it has not."""
        query = quote("reason=Failed,involvedObject.kind=Pod")
        names = {pod["metadata"]["name"] for pod in new}
        pulls = [
            event
            for event in self._cluster.get(f"/api/v1/namespaces/{NAMESPACE}/events?fieldSelector={query}")["items"]
            if event["involvedObject"]["name"] in names and "Failed to pull image" in event["message"]
        ]
        tries = sum(int(event.get("count") or 1) for event in pulls)
        return max(seconds(event["lastTimestamp"]) for event in pulls) if tries >= 2 else None

    def _second_end(self, new: list[Figures]) -> float | None:
        """Return when a container ended for the second time; None while none has."""
        for pod in new:
            for status in pod["status"].get("containerStatuses") or ():
                state = status.get("state") or {}
                ended = state.get("terminated") or (status.get("lastState") or {}).get("terminated")
                if status.get("restartCount", 0) >= 1 and "running" not in state and ended:
                    return seconds(ended["finishedAt"])
        return None

    def _deadline(self, new: list[Figures]) -> float:
        """Return until when the workload's own deadline gives its first new pod time."""
        workload = self._cluster.get(f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments/{THIRD}")
        created = min(seconds(pod["metadata"]["creationTimestamp"]) for pod in new)
        return created + float(workload["spec"]["progressDeadlineSeconds"])


def seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def pods(cluster: Cluster) -> list[Figures]:
    path = f"/api/v1/namespaces/{NAMESPACE}/pods?labelSelector={quote(f'app={THIRD}')}"
    return list(cluster.get(path)["items"])


if __name__ == "__main__":
    main()
