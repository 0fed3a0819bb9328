"""Twenty minutes of request metrics for Prometheus, so that a rate over five minutes is right from the start."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator, Mapping
from datetime import timedelta

from lab.config import LabConfig
from lab.system.variants import SYSTEM_NAMESPACE

LENGTH = timedelta(minutes=20)
STEP_SECONDS = 10
BUCKETS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
"""As the llm-processor has them."""
QUERIES_PER_SECOND = 4.0
SHARES = (0.55, 0.25, 0.12, 0.05, 0.02, 0.01)
"""Share of the queries that ends in each of the first buckets: the 95th percentile is below one second."""
ERROR_RATIO = 0.002
MODEL = "stand-in"
JOB = "pods"


def openmetrics(config: LabConfig) -> str:
    """Return the history of the running llm-processor pods in the OpenMetrics format, with the labels of their scrapes."""
    from lab.cluster import Cluster

    pods = json.loads(Cluster(config).kubectl("get", "pods", f"--namespace={SYSTEM_NAMESPACE}", "--output=json"))[
        "items"
    ]
    return history([labels for pod in pods if (labels := scrape_labels(pod))], ended_at=time.time())


def scrape_labels(pod: Mapping[str, object]) -> dict[str, str] | None:
    """Return the labels that a scrape of this pod gets, None when it is no llm-processor or has no address yet."""
    found = json.loads(json.dumps(pod))
    metadata, labels = found["metadata"], found["metadata"].get("labels", {})
    app = labels.get("app") or labels.get("app.kubernetes.io/name")
    component = labels.get("app.kubernetes.io/component") or labels.get("app")
    address = found.get("status", {}).get("podIP")
    if component != "llm-processor" or not address:
        return None
    port = metadata.get("annotations", {}).get("prometheus.io/port", "8080")
    return {
        "app": app,
        "instance": f"{address}:{port}",
        "job": JOB,
        "namespace": metadata["namespace"],
        "pod": metadata["name"],
    }


def history(targets: list[dict[str, str]], *, ended_at: float) -> str:
    """Return counters and histograms of steady traffic that end at a moment (seconds since 1970), shared by the targets."""
    started_at = ended_at - LENGTH.total_seconds()
    moments = [started_at + step * STEP_SECONDS for step in range(int(LENGTH.total_seconds()) // STEP_SECONDS + 1)]
    series = [_Series(target, random.Random(index), len(targets)) for index, target in enumerate(targets)]
    requests: list[str] = []
    buckets: list[str] = []
    sums: list[str] = []
    counts: list[str] = []
    for one in series:
        for moment in moments:
            one.advance()
            requests += one.requests(moment)
            buckets += one.buckets(moment)
        sums += one.sums
        counts += one.counts
    durations = "nephoran_llm_processing_duration_seconds"
    return "\n".join(
        [
            "# HELP nephoran_llm_requests Queries by outcome.",
            "# TYPE nephoran_llm_requests counter",
            *requests,
            f"# HELP {durations} Time to answer a query.",
            f"# TYPE {durations} histogram",
            *buckets,
            *sums,
            *counts,
            "# EOF",
            "",
        ]
    )


class _Series:
    """Count up for one pod."""

    def __init__(self, target: Mapping[str, str], source: random.Random, pods: int) -> None:
        self._target = target
        self._source = source
        self._per_step = QUERIES_PER_SECOND * STEP_SECONDS / max(1, pods)
        self._answered = [0] * (len(BUCKETS) + 1)
        self._failed = 0
        self._seconds = 0.0
        self.sums: list[str] = []
        self.counts: list[str] = []

    def advance(self) -> None:
        for _ in range(round(self._per_step * self._source.uniform(0.9, 1.1))):
            if self._source.random() < ERROR_RATIO:
                self._failed += 1
                continue
            position = self._source.choices(range(len(SHARES)), SHARES)[0]
            self._answered[position] += 1
            self._seconds += BUCKETS[position] * 0.8

    def requests(self, moment: float) -> Iterator[str]:
        for outcome, value in (("success", sum(self._answered)), ("error", self._failed)):
            yield f"nephoran_llm_requests_total{self._labels(status=outcome)} {value} {moment:.3f}"

    def buckets(self, moment: float) -> Iterator[str]:
        name = "nephoran_llm_processing_duration_seconds"
        total = 0
        for position, bound in enumerate((*BUCKETS, None)):
            total += self._answered[position]
            labels = self._labels(status="success", le="+Inf" if bound is None else f"{bound:g}")
            yield f"{name}_bucket{labels} {total} {moment:.3f}"
        self.sums.append(f"{name}_sum{self._labels(status='success')} {self._seconds:.3f} {moment:.3f}")
        self.counts.append(f"{name}_count{self._labels(status='success')} {total} {moment:.3f}")

    def _labels(self, **more: str) -> str:
        labels = {**self._target, "model": MODEL, **more}
        return "{" + ",".join(f'{name}="{value}"' for name, value in sorted(labels.items())) + "}"
