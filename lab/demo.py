"""Show the product's main job from nothing: a real cluster, Airflow, and a rolling upgrade without downtime,
with a full backup first.

    python -m lab.demo          (`make demo` makes the Python environment first)

Lab and Airflow stay up afterwards; `make down` stops them. Each further call upgrades to the next version.
The exit code is 0 only when the run is green, the report says "succeeded" and not one request failed.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from typing import Any, TextIO

from lab import packages, system
from lab.airflow import Airflow
from lab.airflow_access import SYSTEM_NAMESPACE, grant_access, write_profile
from lab.airflow_client import AirflowClient, AirflowRequestError, TaskState
from lab.cluster import CLUSTER_TOOLS, Cluster
from lab.config import PROJECT, LabConfig
from lab.failure import LabError
from lab.progress import Progress
from lab.tools import ensure_tools

DAG_ID = "rolling_upgrade"
REPORT_TASK = "report_operation"
COMPONENTS = ("weaviate", "rag-api", "llm-processor", "nephio-bridge", "oran-adaptor")
VERSIONS = ("v1", "v2", "v3")
RUN_LIMIT = timedelta(minutes=30)
LOG = PROJECT / ".lab" / "logs" / "demo.log"
WORDS = {
    "success": "done",
    "failed": "FAILED",
    "up_for_retry": "will be tried again",
}
"""What the console says about a task's state; states that are not here go to the log only."""


class Tee:
    """Write to the console and to the log file."""

    def __init__(self, *streams: TextIO) -> None:
        self._streams = streams

    def write(self, text: str) -> int:
        for stream in self._streams:
            stream.write(text)
        return len(text)

    def flush(self) -> None:
        for stream in self._streams:
            stream.flush()


def main() -> int:
    """Run the demo; return 0 when everything that it promises was seen."""
    started = float(os.environ.get("DEMO_STARTED_AT", time.time()))
    LOG.parent.mkdir(parents=True, exist_ok=True)
    with LOG.open("a", encoding="utf-8") as log:
        progress = Progress(Tee(sys.stdout, log))  # type: ignore[arg-type]
        try:
            return _demo(progress, log, started)
        except (LabError, AirflowRequestError, TimeoutError) as error:
            progress(f"the demo stopped: {error}")
            print(f"What was started stays up; `make down` stops it. Log: {LOG}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("\nInterrupted. What was started stays up; `make down` stops it.", file=sys.stderr)
            return 130


def _demo(progress: Progress, log: TextIO, started: float) -> int:
    config = LabConfig.named("demo")
    airflow = Airflow.of_lab(config, progress)
    progress(f"everything verbose is in {LOG.relative_to(PROJECT)} and {config.home.relative_to(PROJECT)}")
    _bring_up(config, airflow, progress)
    target = _next_version(config, progress)

    client = airflow.client()
    client.await_dag(DAG_ID)
    if before := client.unfinished_runs(DAG_ID):
        progress(f"another run is at work, and this one waits for it: {', '.join(before)}")
    run_id = client.trigger(DAG_ID, {"mode": "apply", "version": target, "reason": "make demo"})
    url = client.run_url(DAG_ID, run_id)
    progress(f"rolling upgrade of {', '.join(COMPONENTS)} to {target} started: {url}")
    print(f"           login: admin / {airflow.instance.password('admin')}", flush=True)
    run = _follow(client, run_id, progress, log)
    report = client.xcom(DAG_ID, run_id, REPORT_TASK)
    print(json.dumps(report, indent=2, default=str), file=log)

    verdict = judge(str(run["state"]), report)
    lines = summary_lines(report)
    lines += [
        ("run", url),
        ("login", f"admin / {airflow.instance.password('admin')}"),
        ("whole command", f"{time.time() - started:.0f} s"),
    ]
    print("\n" + "\n".join(f"  {name:22}{value}" for name, value in lines))
    print(f"\n{verdict or 'Upgraded without a failed request.'} Lab and Airflow stay up until `make down`.")
    return 1 if verdict else 0


def _bring_up(config: LabConfig, airflow: Airflow, progress: Progress) -> None:
    """Start the lab and, beside it, Airflow; then give Airflow its access to the lab."""
    cluster = Cluster(config, progress=progress)
    packages.ensure_packages(progress, config.logs / "apt.log")
    ensure_tools(progress, [*CLUSTER_TOOLS, "weaviate"])
    # The DAGs are made from the profile, so it must be there before Airflow reads them.
    write_profile(config, config.home / "profile.yaml")
    with ThreadPoolExecutor(max_workers=1) as beside:
        # Airflow needs half a minute of one core; the lab mostly waits for pods in that time.
        starting: Future[None] = beside.submit(airflow.up)
        cluster.up()
        grant_access(config, airflow.instance, progress)
        starting.result()


def _next_version(config: LabConfig, progress: Progress) -> str:
    """Return the version to go to; set a lab that has the newest one back to the first."""
    target = next_version(_running_versions(config))
    if target is None:
        progress(f"everything runs {VERSIONS[-1]}, the newest version: setting the lab back to {VERSIONS[0]}")
        system.deploy(config, versions=dict.fromkeys(COMPONENTS, VERSIONS[0]), progress=progress)
        target = next_version(_running_versions(config))
    if target is None:
        raise LabError("The lab's components can't be set back to their first version.", hint="make down, make demo")
    return target


def next_version(running: Iterable[str]) -> str | None:
    """Return the version after the oldest that runs, but none that some component is beyond; None after the last."""
    places = [VERSIONS.index(version) for version in running if version in VERSIONS]
    if not places:
        return VERSIONS[1]
    place = max(min(places) + 1, max(places))
    return VERSIONS[place] if place < len(VERSIONS) else None


def _running_versions(config: LabConfig) -> list[str]:
    workloads = json.loads(
        Cluster(config).kubectl("get", "deployments,statefulsets", f"--namespace={SYSTEM_NAMESPACE}", "--output=json")
    )
    tags = []
    for workload in workloads["items"]:
        if workload["metadata"]["name"] in COMPONENTS:
            tags += [
                found[1]
                for container in workload["spec"]["template"]["spec"]["containers"]
                # An upgraded component names its digest too: REPOSITORY:TAG@sha256:…
                if (found := re.search(r"/nephoran/[^:@]+:([^@]+)", container["image"]))
            ]
    return tags


def _follow(client: AirflowClient, run_id: str, progress: Progress, log: TextIO) -> dict[str, Any]:
    """Wait for the run and tell of each step that ends."""

    def tell(state: TaskState) -> None:
        print(f"{state.name} {state.state} try {state.try_number} {state.seconds} s", file=log, flush=True)
        word = WORDS.get(state.state or "")
        if word:
            seconds = f"  {state.seconds:6.1f} s" if state.seconds is not None else ""
            progress(f"  {state.name:48}{word}{seconds}")
        if state.state == "failed":
            print(f"           {client.last_error(DAG_ID, run_id, state)}", flush=True)

    return client.follow(DAG_ID, run_id, timeout=RUN_LIMIT, on_change=tell)


def judge(run_state: str, report: Mapping[str, Any] | None) -> str | None:
    """Return what the demo promised and did not show; None when all of it was seen."""
    if report is None:
        return f"The run ended {run_state} and left no report."
    if run_state != "success" or report["overall"] != "succeeded":
        return f"The run ended {run_state}; the report says {report['overall']}."
    if (report.get("backup") or {}).get("checked") != "every byte read back":
        return "There is no checked backup from before the change."
    failed = _probe(report).get("failed")
    if failed is None:
        return "The requests were not measured."
    return f"{failed} requests failed." if failed else None


def summary_lines(report: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """Return what the report says, as pairs of a name and a text for the console."""
    if report is None:
        return []
    probe = _probe(report)
    gap = probe.get("longest_gap_seconds")
    return [
        ("result", str(report["overall"])),
        ("operation", str(report["operation_id"])),
        ("backup", _backup_text(report.get("backup"))),
        ("requests", f"{probe.get('sent', 'not measured')} sent, {probe.get('failed', 'not measured')} failed"),
        ("metric gates", _gates_text(report.get("gate_seconds"))),
        ("longest gap", f"{gap:.2f} s" if isinstance(gap, int | float) else "not measured"),
        *((f"{component['name']}", _component_text(component)) for component in report.get("components", [])),
        ("report", str(report.get("report_path", "not kept"))),
    ]


def _gates_text(seconds: object) -> str:
    """Return how long each gate judged: the promise of no failed request is the probe's, not theirs, when they are off."""
    if not isinstance(seconds, int | float):
        return "not measured"
    return f"{seconds:g} s each" if seconds else "gates off: 0 s"


def _backup_text(backup: Mapping[str, Any] | None) -> str:
    if not backup:
        return "none"
    return f"{backup['backup_id']}, {backup['stored_bytes'] / 2**20:.1f} MiB, {backup['checked']}"


def _component_text(component: Mapping[str, Any]) -> str:
    seconds = component.get("seconds")
    time_text = f"{seconds:.1f} s" if isinstance(seconds, int | float) else f"{seconds}"
    return f"{time_text}  {_tag(component.get('image_before'))} -> {_tag(component.get('image_after'))}"


def _tag(image: object) -> str:
    return str(image).partition("@")[0].rpartition("/")[2]


def _probe(report: Mapping[str, Any]) -> Mapping[str, Any]:
    probe = report.get("probe")
    return probe if isinstance(probe, Mapping) else {}


if __name__ == "__main__":
    sys.exit(main())
