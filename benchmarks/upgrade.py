"""Benchmark of the rolling upgrade: how much time the care costs, and how much the old runbook's fixed waits did.

On one lab, alternating, each from one good version to the next:

(a) the procedure ``rolling_upgrade``, run by Airflow, with its probe of 60 requests per second;
(b) plain patch and wait: the same components in the same order, each patched to the same digest-pinned image, waited
    for with ``kubectl rollout status`` and asked for its health at the same addresses, nothing else;
(c) the old runbook's way: (b) with its 30 s after each component, and the test intent read 60 s after it was made.

``overhead_seconds_per_component`` is (a) minus (b) from first patch to last healthy, divided by the components;
``gate_seconds`` says how long each metric gate of (a) judged: 0, because they are off in the lab; what they cost is their
length. ``ratio_to_old_runbook`` is (a) divided by (c), over the whole run from its trigger to its end.

``BENCH_ROUNDS`` (default 2) says how often the three are run.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

from benchmarks.results_file import publish
from lab.airflow import Airflow
from lab.airflow_access import grant_access
from lab.cluster import Cluster
from lab.config import LabConfig
from lab.progress import Progress
from lab.system.images import image, push_all

COMPONENTS = ("weaviate", "rag-api", "llm-processor", "nephio-bridge", "oran-adaptor")
KINDS = {"weaviate": "statefulset"}
HEALTH = {
    "weaviate": (8080, "v1/.well-known/ready"),
    "rag-api": (8000, "readyz"),
    "llm-processor": (8080, "readyz"),
    "nephio-bridge": (8081, "readyz"),
    "oran-adaptor": (8082, "readyz"),
}
VERSIONS = ("v1", "v2", "v3")
NAMESPACE = "nephoran-system"
DAG_ID = "rolling_upgrade"
LIMIT = timedelta(minutes=20)
OLD_WAIT_AFTER_COMPONENT_SECONDS = 30.0
OLD_WAIT_FOR_INTENT_SECONDS = 60.0
INTENT = {
    "apiVersion": "nephoran.com/v1",
    "kind": "NetworkIntent",
    "metadata": {"name": "bench-intent", "namespace": NAMESPACE},
    "spec": {"intent": "deploy AMF with 2 replicas", "intentType": "deployment"},
}

Figures = dict[str, Any]


def main() -> None:
    """Run the benchmark on a lab of its own and publish the figures; the lab is stopped afterwards."""
    rounds = int(os.environ.get("BENCH_ROUNDS", "2"))
    config = LabConfig.named("bench")
    progress = Progress()
    cluster, airflow = Cluster(config, progress=progress), Airflow.of_lab(config, progress)
    try:
        cluster.up()
        grant_access(config, airflow.instance, progress, before_change="none")
        airflow.up()
        publish("upgrade", measure(cluster, airflow, rounds, progress))
    finally:
        airflow.down()
        cluster.down()


def measure(cluster: Cluster, airflow: Airflow, rounds: int, progress: Progress) -> Figures:
    digests = push_all(cluster.config)
    version = 0
    runs: dict[str, list[Figures]] = {"procedure": [], "plain": [], "old_runbook": []}
    ways: dict[str, Callable[[str], Figures]] = {
        "procedure": lambda target: procedure(airflow, target),
        "plain": lambda target: patched(cluster, digests, target, old=False),
        "old_runbook": lambda target: patched(cluster, digests, target, old=True),
    }
    for number in range(rounds):
        for name, way in ways.items():
            version = (version + 1) % len(VERSIONS)
            figures = way(VERSIONS[version])
            runs[name].append(figures)
            progress(f"round {number + 1}, {name}: {figures}")
    changing = {name: statistics.mean(run["changing_seconds"] for run in runs[name]) for name in runs}
    whole = {name: statistics.mean(run["whole_seconds"] for run in runs[name]) for name in runs}
    return {
        "overhead_seconds_per_component": round((changing["procedure"] - changing["plain"]) / len(COMPONENTS), 2),
        "ratio_to_old_runbook": round(whole["procedure"] / whole["old_runbook"], 3),
        "gate_seconds": max(run["gate_seconds"] for run in runs["procedure"]),
        "failed_requests": sum(run["failed_requests"] for run in runs["procedure"]),
        "sent_requests": sum(run["sent_requests"] for run in runs["procedure"]),
        "requests_per_second": [run["requests_per_second"] for run in runs["procedure"]],
        "changing_seconds": {name: round(value, 1) for name, value in changing.items()},
        "whole_seconds": {name: round(value, 1) for name, value in whole.items()},
        "rounds": rounds,
        "components": len(COMPONENTS),
        "runs": runs,
    }


def procedure(airflow: Airflow, target: str) -> Figures:
    """Run the procedure through Airflow's REST API and take its figures from journal and report."""
    client = airflow.client()
    client.await_dag(DAG_ID)
    started = time.monotonic()
    params = {"mode": "apply", "version": target, "components": list(COMPONENTS), "allow_downgrade": True}
    run_id = client.trigger(DAG_ID, params)
    run = client.follow(DAG_ID, run_id, timeout=LIMIT)
    whole = time.monotonic() - started
    report = client.xcom(DAG_ID, run_id, "report_operation")
    if run["state"] != "success":
        raise SystemExit(f"the procedure ended {run['state']}: {json.dumps(report.get('failed_steps'))}")
    changed = [component["changed"] for component in report["components"]]
    first = min(datetime.fromisoformat(times["began_at"]) for times in changed)
    last = max(datetime.fromisoformat(times["verified_at"]) for times in changed)
    return {
        "changing_seconds": round((last - first).total_seconds(), 1),
        "whole_seconds": round(whole, 1),
        "gate_seconds": report["gate_seconds"],
        "failed_requests": report["probe"]["failed"],
        "sent_requests": report["probe"]["sent"],
        "requests_per_second": report["probe"]["requests_per_second"],
        "longest_gap_seconds": report["probe"]["longest_gap_seconds"],
        "seconds_by_component": {c["name"]: c["seconds"] for c in report["components"]},
    }


def patched(cluster: Cluster, digests: dict[str, str], target: str, *, old: bool) -> Figures:
    """Patch and wait, component after component; with ``old`` the way the old runbook waited."""
    started = time.monotonic()
    by_component = {}
    for component in COMPONENTS:
        began = time.monotonic()
        workload = f"{KINDS.get(component, 'deployment')}/{component}"
        pinned = f"{image(cluster.config, component, target)}@{digests[f'nephoran/{component}:{target}']}"
        cluster.kubectl("set", "image", workload, f"{component}={pinned}", f"--namespace={NAMESPACE}")
        cluster.kubectl("rollout", "status", workload, f"--namespace={NAMESPACE}", "--timeout=600s", timeout=LIMIT)
        if old:
            time.sleep(OLD_WAIT_AFTER_COMPONENT_SECONDS)
        ask_for_health(cluster, component)
        by_component[component] = round(time.monotonic() - began, 1)
    changing = time.monotonic() - started
    test_intent(cluster, old=old)
    return {
        "changing_seconds": round(changing, 1),
        "whole_seconds": round(time.monotonic() - started, 1),
        "seconds_by_component": by_component,
    }


def ask_for_health(cluster: Cluster, component: str) -> None:
    """Ask every pod through the API server, as the procedure does."""
    port, path = HEALTH[component]
    pods = json.loads(
        cluster.kubectl("get", "pods", f"--selector=app={component}", f"--namespace={NAMESPACE}", "--output=json")
    )["items"]
    for pod in pods:
        if "deletionTimestamp" not in pod["metadata"]:
            name = pod["metadata"]["name"]
            cluster.kubectl("get", "--raw", f"/api/v1/namespaces/{NAMESPACE}/pods/{name}:{port}/proxy/{path}")


def test_intent(cluster: Cluster, *, old: bool) -> None:
    """Make a NetworkIntent, see it deployed and delete it; the old runbook read it after a fixed time."""
    address = ("networkintents.nephoran.com/bench-intent", f"--namespace={NAMESPACE}")
    cluster.kubectl("create", "--filename", "-", input=json.dumps(INTENT))
    if old:
        time.sleep(OLD_WAIT_FOR_INTENT_SECONDS)
    cluster.kubectl("wait", address[0], address[1], "--for=jsonpath={.status.phase}=Deployed", "--timeout=120s")
    cluster.kubectl("delete", *address, "--timeout=120s")


if __name__ == "__main__":
    main()
