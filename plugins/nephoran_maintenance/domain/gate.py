"""The metric gate: whether what a component's pods served after a change is good enough to let the change stand.

A verdict depends on nothing but the recording: settings, baseline and samples. The same recording gives the same
verdict again, and what was decided after some samples is not changed by later ones.

The rule, for the share of failed requests and for the share of requests that were slower than the latency limit (a 95th
percentile above a limit is the same as more than 5 % slower than it):

* At the end the gate closes when the share over all valid samples is above its limit.
* Before that it closes on two samples in a row whose share is above the limit by more than chance explains: the lower
  end of a one-sided 99 % Wilson interval (E. B. Wilson, 1927, JASA 22, 209-212) is above it.

The limit is the profile's, or twice the baseline (and at least a margin over it) where that is lower. What this rule does
at which true error ratio is simulated by ``benchmarks/gate_power.py``; docs/reference/gates.md has the figures.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from nephoran_maintenance.domain.findings import Finding
from nephoran_maintenance.domain.moments import latest, moment
from nephoran_maintenance.domain.stepping import JsonObject, alive, is_ready
from nephoran_maintenance.profile import Gate, GateMetric

State = Literal["open", "closed", "unknown"]
Reason = Literal[
    "within-limits",
    "error_ratio",
    "latency_p95",
    "no-answer",
    "no-pods",
    "no-series",
    "pod-without-series",
    "not-a-number",
    "status-unreadable",
    "stale",
    "no-traffic",
    "gap",
]
Answers = Mapping[str, Sequence[tuple[Mapping[str, str], float]]]
"""What Prometheus answered, by the name of the query: each series' labels and value."""

CONFIDENCE = 2.326
"""Standard normal quantile of 99 %, one-sided: chance alone makes one sample in a hundred a breach at the limit itself."""
SLOW_SHARE = 0.05
BASELINE_FACTOR = 2.0
ERROR_RATIO_MARGIN = 0.01
LATENCY_MARGIN_SECONDS = 0.5
GAP_INTERVALS = 2

REQUESTS, JUDGED, ERRORS, BUCKETS = "requests", "judged", "errors", "duration_buckets"
RESETS, AGE = "resets", "scraped_seconds_ago"
QUERIES: dict[str, tuple[GateMetric, ...]] = {
    REQUESTS: ("error_ratio", "latency_p95"),
    JUDGED: ("error_ratio",),
    ERRORS: ("error_ratio",),
    BUCKETS: ("latency_p95",),
    RESETS: ("error_ratio", "latency_p95"),
    AGE: ("error_ratio", "latency_p95"),
}
"""The files of ``include/promql/<component>/`` and the metrics that need them."""
BASELINE_QUERIES = (REQUESTS, JUDGED, ERRORS, BUCKETS)
ROUNDING = 1e-6
"""By so much of them two sums over the same series may differ."""

HINTS: dict[str, str] = {
    "no-answer": "Look at the health of what does not answer, and at its connection.",
    "no-pods": "Look at the workload: it has no pod that could be measured.",
    "no-series": "Look at Prometheus' targets: a component that answers /metrics with JSON has no series.",
    "pod-without-series": "Look at this pod's /metrics and at its line in Prometheus' targets.",
    "not-a-number": "Ask Prometheus the query of include/promql yourself.",
    "status-unreadable": "Look at this pod's /metrics: its release may call the status otherwise than judged.promql and "
    "errors.promql of include/promql do. Correct both.",
    "stale": "Look at Prometheus' targets; a scrape interval above twice gate.interval_seconds is always stale.",
    "no-traffic": "Look at measure_traffic: the probe must reach the component, or gate.minimum_requests is too high.",
    "gap": "Look at the log of the triggerer, which takes the samples.",
}


@dataclass(frozen=True)
class PodFigures:
    """What Prometheus has of one pod in one window.

    :param requests: their number; None: Prometheus says NaN.
    :param errors: those of them that failed; none without such a series only where all requests have a readable status.
    :param buckets: by upper bound in seconds, how many requests took at most so long.
    :param resets: how often its counters began anew.
    :param scraped_seconds_ago: age of the newest scrape; None: the pod is no longer scraped.
    :param unreadable: requests whose status says neither that they went well nor that they failed; then errors is None.
    """

    requests: float | None
    errors: float | None = 0.0
    buckets: Mapping[float, float] = field(default_factory=dict)
    resets: int = 0
    scraped_seconds_ago: float | None = None
    unreadable: float = 0.0


@dataclass(frozen=True)
class Sample:
    """One look at a component's metrics.

    :param at: the moment that Prometheus was asked about, not that of the answer.
    :param planned: the pods that the cluster has, and since when each is ready.
    :param pods: what Prometheus has, also of pods that were replaced.
    :param problem: why nothing could be read; empty when it was.
    :param unready: those of the planned pods that are not Ready.
    """

    at: datetime
    planned: Mapping[str, datetime] = field(default_factory=dict)
    pods: Mapping[str, PodFigures] = field(default_factory=dict)
    problem: str = ""
    unready: tuple[str, ...] = ()


@dataclass(frozen=True)
class Baseline:
    """The metrics before the change; None where there were too few requests to compare with."""

    requests: float = 0.0
    error_ratio: float | None = None
    latency_p95_seconds: float | None = None


@dataclass(frozen=True)
class Recording:
    """Everything that a verdict depends on.

    :param begun_at: moment of the first sample; the others follow at the settings' interval.
    """

    component: str
    metrics: tuple[GateMetric, ...]
    settings: Gate
    begun_at: datetime
    baseline: Baseline = Baseline()
    samples: tuple[Sample, ...] = ()

    def next_at(self) -> datetime:
        """Return when the next sample is due; moments that were missed are not left out, Prometheus still knows them."""
        return self.begun_at + len(self.samples) * timedelta(seconds=self.settings.interval_seconds)

    def limits(self) -> dict[GateMetric, float]:
        """Return the limit of each metric: the profile's, or what the baseline allows where that is lower."""
        found: dict[GateMetric, float] = {
            "error_ratio": _limit(
                self.settings.error_ratio_limit, self.baseline.error_ratio, margin=ERROR_RATIO_MARGIN
            ),
            "latency_p95": _limit(
                self.settings.latency_p95_limit_seconds,
                self.baseline.latency_p95_seconds,
                margin=LATENCY_MARGIN_SECONDS,
            ),
        }
        return {metric: found[metric] for metric in self.metrics}


@dataclass(frozen=True)
class Verdict:
    """What the gate says: open, closed, or unknown, which does not let a change stand either.

    :param reason: the metric that closed it, or why it is unknown.
    :param figures: see :func:`_figures`; None where something was not measured.
    """

    component: str
    state: State
    reason: Reason
    message: str
    figures: Mapping[str, Any] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()

    @property
    def hint(self) -> str:
        """Return the operator's next action; empty for an open gate."""
        if self.state == "closed":
            return "The rollback follows by itself. Look at the release's own log for the time of the samples."
        return HINTS.get(self.reason, "")

    def to_dict(self) -> dict[str, Any]:
        """Return the verdict as plain data."""
        return {
            **asdict(self),
            "figures": dict(self.figures),
            "findings": [finding.to_dict() for finding in self.findings],
            "hint": self.hint,
        }


# ------------------------------------------------------------------------------------------------------- one sample


@dataclass(frozen=True)
class _Share:
    """So many of so many requests, and the share that is allowed."""

    bad: float
    total: float
    limit: float

    def above(self) -> bool:
        return self.bad > self.limit * self.total

    def above_beyond_chance(self) -> bool:
        return lower_bound(self.bad, self.total) > self.limit


@dataclass(frozen=True)
class _Look:
    """What one sample says. A sample that is not valid can still show a breach of what it did measure."""

    at: datetime
    problem: tuple[Reason, str] | None
    requests: float = 0.0
    shares: Mapping[GateMetric, _Share] = field(default_factory=dict)
    buckets: Mapping[float, float] = field(default_factory=dict)

    def breaches(self) -> set[GateMetric]:
        return {metric for metric, share in self.shares.items() if share.above_beyond_chance()}


def _look(recording: Recording, sample: Sample, required: Sequence[str]) -> _Look:
    """Return what one sample says.

    :param required: the pods that must have series; see :func:`_settled`.
    """
    settings = recording.settings
    if sample.problem:
        return _Look(sample.at, ("no-answer", sample.problem))
    if not sample.planned:
        return _Look(sample.at, ("no-pods", "the component has no pod"))
    own = {name: figures for name, figures in sample.pods.items() if name in sample.planned}
    fresh = {name: pod for name, pod in own.items() if _is_fresh(pod, settings)}
    measured = [pod for pod in fresh.values() if pod.requests is not None and pod.errors is not None]
    requests = sum(pod.requests or 0.0 for pod in measured)
    problem = _problem(settings, sample, own, fresh, required, requests)
    if requests < settings.minimum_requests:
        return _Look(sample.at, problem)
    limits, buckets = recording.limits(), added(pod.buckets for pod in measured)
    shares: dict[GateMetric, _Share] = {}
    if "error_ratio" in limits:
        errors = min(sum(pod.errors or 0.0 for pod in measured), requests)
        shares["error_ratio"] = _Share(errors, requests, limits["error_ratio"])
    if "latency_p95" in limits:
        answered = max(buckets.values(), default=0.0)
        if answered > 0 and all(math.isfinite(count) for count in buckets.values()):
            slow = answered - at_most(buckets, limits["latency_p95"])
            shares["latency_p95"] = _Share(slow, answered, SLOW_SHARE)
            bare = sorted(name for name in required if name in fresh and not fresh[name].buckets)
            if bare:
                problem = problem or ("pod-without-series", f"Prometheus has no durations of pod {', '.join(bare)}")
        else:
            problem = problem or ("not-a-number", "no durations were observed, so their 95th percentile is NaN")
    return _Look(sample.at, problem, requests, shares, buckets)


def _problem(
    settings: Gate,
    sample: Sample,
    own: Mapping[str, PodFigures],
    fresh: Mapping[str, PodFigures],
    required: Sequence[str],
    requests: float,
) -> tuple[Reason, str] | None:
    """Return why a sample is not valid, None when it is."""
    if not own:
        return "no-series", f"Prometheus has no series of {', '.join(sorted(sample.planned))}"
    unjudged = sorted(name for name, pod in own.items() if pod.unreadable)
    if unjudged:
        count = sum(own[name].unreadable for name in unjudged)
        return (
            "status-unreadable",
            f"{count:.0f} requests of pod {', '.join(unjudged)} have no status that could be read",
        )
    unreadable = sorted(name for name, pod in own.items() if pod.requests is None or pod.errors is None)
    if unreadable:
        return "not-a-number", f"requests or errors of pod {', '.join(unreadable)} are NaN"
    absent = [name for name in required if name not in own or own[name].scraped_seconds_ago is None]
    if absent:
        return "pod-without-series", f"Prometheus has no series of pod {', '.join(absent)}"
    stale = sorted(name for name, pod in own.items() if name not in fresh and pod.scraped_seconds_ago is not None)
    if stale:
        oldest = max(own[name].scraped_seconds_ago or 0.0 for name in stale)
        return "stale", f"the newest scrape of pod {', '.join(stale)} is {oldest:.0f} s old"
    if requests < settings.minimum_requests:
        seconds, wanted = settings.window_seconds, settings.minimum_requests
        return "no-traffic", f"no traffic: {requests:.0f} requests in {seconds} s, at least {wanted} are needed"
    return None


def _settled(settings: Gate, sample: Sample, ready_since: Mapping[str, datetime]) -> list[str]:
    """Return the pods that must have series: one that has just become ready was not scraped twice yet.

    :param ready_since: since when each was first seen to be Ready; one that comes and goes is not new each time.
    """
    window = timedelta(seconds=settings.window_seconds)
    return sorted(
        name for name, since in sample.planned.items() if sample.at - min(since, ready_since.get(name, since)) >= window
    )


def _is_fresh(pod: PodFigures, settings: Gate) -> bool:
    age = pod.scraped_seconds_ago
    return age is not None and age <= GAP_INTERVALS * settings.interval_seconds


# ----------------------------------------------------------------------------------------------------- the decision


def decide(recording: Recording) -> Verdict | None:
    """Return the verdict, or None while more samples are needed."""
    settings = recording.settings
    longest_gap = timedelta(seconds=GAP_INTERVALS * settings.interval_seconds)
    duration = timedelta(seconds=settings.duration_seconds)
    end_at = recording.begun_at + timedelta(seconds=settings.longest_seconds)
    # What is in no valid window was not measured: the first one has to reach back to where the gate began.
    first_until = recording.begun_at + max(longest_gap, timedelta(seconds=settings.window_seconds))
    ready_since: dict[str, datetime] = {}
    looks: list[_Look] = []
    valid: list[_Look] = []
    for sample in recording.samples:
        for name, since in sample.planned.items():
            if name not in sample.unready:
                ready_since.setdefault(name, since)
            elif since > ready_since.get(name, since):
                del ready_since[name]  # made after that: another pod of the same name, as a StatefulSet has them
        look = _look(recording, sample, _settled(settings, sample, ready_since))
        looks.append(look)
        if len(looks) > 1 and look.at - looks[-2].at <= longest_gap:
            for metric in recording.metrics:
                if metric in looks[-2].breaches() & look.breaches():
                    return _closed(recording, looks, looks[-2:], metric, "in two samples in a row, by more than chance")
        if look.at > (valid[-1].at + longest_gap if valid else first_until):
            return _unknown(recording, looks, since=valid[-1].at if valid else recording.begun_at)
        if look.problem is None:
            valid.append(look)
        if look.at - recording.begun_at >= duration and len(valid) >= settings.minimum_samples:
            return _at_the_end(recording, looks, valid)
        left = int((end_at - look.at).total_seconds() / settings.interval_seconds + 1e-6)
        if len(valid) + left < settings.minimum_samples:
            return _unknown(recording, looks)
    return None


def verdicts_of(found: Iterable[Recording]) -> list[Verdict] | None:
    """Return the verdicts of gates that belong together, or None while more samples are needed.

    The first that is not open decides for all, so those of the others may be missing.
    """
    gates = list(found)
    verdicts = [verdict for recording in gates if (verdict := decide(recording)) is not None]
    complete = len(verdicts) == len(gates) or any(verdict.state != "open" for verdict in verdicts)
    return verdicts if complete else None


def unmeasured(component: str, problem: str) -> Verdict:
    """Return the verdict where not even samples could be taken."""
    return Verdict(component, "unknown", "no-answer", f"{component}: {problem}")


def _at_the_end(recording: Recording, looks: Sequence[_Look], valid: Sequence[_Look]) -> Verdict:
    for metric in recording.metrics:
        if _pooled(valid, metric).above():
            return _closed(recording, looks, valid, metric, f"over {len(valid)} samples")
    text = f"within the limits over {len(valid)} samples"
    return _verdict(recording, looks, "open", "within-limits", text, valid)


def _closed(recording: Recording, looks: Sequence[_Look], on: Sequence[_Look], metric: GateMetric, how: str) -> Verdict:
    limit = recording.limits()[metric]
    if metric == "error_ratio":
        share = _pooled(on, metric)
        text = f"{share.bad / share.total:.1%} of the requests failed, limit {limit:.1%}, {how}"
    else:
        slowest = quantile(added(look.buckets for look in on), 1 - SLOW_SHARE)
        text = f"the 95th percentile of the answer times is {slowest:.2f} s, limit {limit:.2f} s, {how}"
    return _verdict(recording, looks, "closed", metric, text, on)


def _unknown(recording: Recording, looks: Sequence[_Look], since: datetime | None = None) -> Verdict:
    """Return the verdict for too few valid samples, or for a gap that began after a moment."""
    problems = [look.problem for look in looks if look.problem and (since is None or look.at >= since)]
    valid = [look for look in looks if look.problem is None]
    if since is not None:
        until = looks[-1].at
        text = f"no valid sample for {(until - since).total_seconds():.0f} s"
    else:
        wanted = recording.settings.minimum_samples
        text = f"only {len(valid)} of {wanted} valid samples could be had"
    reason, why = problems[-1] if problems else ("gap", "samples are missing")
    return _verdict(recording, looks, "unknown", reason, f"{text}: {why}", valid)


def _verdict(
    recording: Recording, looks: Sequence[_Look], state: State, reason: Reason, message: str, over: Sequence[_Look]
) -> Verdict:
    samples = recording.samples[: len(looks)]
    return Verdict(
        recording.component,
        state,
        reason,
        f"{recording.component}: {message}",
        _figures(recording, looks, over),
        _restarts(samples),
    )


def _figures(recording: Recording, looks: Sequence[_Look], over: Sequence[_Look]) -> dict[str, Any]:
    """Return the figures of a verdict, over the samples that it rests on; None is not measured.

    Keys: ``samples``, ``valid_samples``, ``requests_per_second``, ``error_ratio``, ``error_ratio_limit``,
    ``error_ratio_baseline``, ``latency_p95_seconds``, ``latency_p95_limit_seconds``, ``latency_p95_baseline_seconds``,
    ``began_at``, ``ended_at``.
    """
    limits, baseline = recording.limits(), recording.baseline
    errors = _pooled(over, "error_ratio")
    requests = [look.requests for look in over]
    seconds = recording.settings.window_seconds
    return {
        "samples": len(looks),
        "valid_samples": sum(1 for look in looks if look.problem is None),
        "requests_per_second": round(sum(requests) / len(requests) / seconds, 2) if requests else None,
        "error_ratio": round(errors.bad / errors.total, 5) if errors.total else None,
        "error_ratio_limit": _rounded(limits.get("error_ratio")),
        "error_ratio_baseline": _rounded(baseline.error_ratio),
        "latency_p95_seconds": _rounded(quantile(added(look.buckets for look in over), 1 - SLOW_SHARE)),
        "latency_p95_limit_seconds": _rounded(limits.get("latency_p95")),
        "latency_p95_baseline_seconds": _rounded(baseline.latency_p95_seconds),
        "began_at": recording.begun_at.isoformat(timespec="seconds"),
        "ended_at": looks[-1].at.isoformat(timespec="seconds"),
    }


def _restarts(samples: Sequence[Sample]) -> tuple[Finding, ...]:
    """Return a finding for each pod that stayed and whose counters began anew: the first time counts."""
    seen: dict[str, datetime] = {}
    for sample in samples:
        for name, pod in sample.pods.items():
            if pod.resets and name in sample.planned:
                seen.setdefault(name, sample.at)
    return tuple(
        Finding(
            "metrics",
            "warn",
            f"pod {name}",
            f"its counters began anew before {at.isoformat(timespec='seconds')}: a container was restarted",
            "no restart after the rollout",
            f"Read what it said before (kubectl logs {name} --previous).",
        )
        for name, at in sorted(seen.items())
    )


def _pooled(looks: Iterable[_Look], metric: GateMetric) -> _Share:
    """Return one share over several samples; their windows overlap, so a request may count more than once."""
    shares = [look.shares[metric] for look in looks if metric in look.shares]
    return _Share(
        sum(share.bad for share in shares),
        sum(share.total for share in shares),
        shares[0].limit if shares else math.inf,
    )


def _limit(absolute: float, baseline: float | None, *, margin: float) -> float:
    if baseline is None:
        return absolute
    return min(absolute, max(BASELINE_FACTOR * baseline, baseline + margin))


def _rounded(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else round(value, 5)


# ------------------------------------------------------------------------------------------------------- arithmetic


def lower_bound(bad: float, total: float) -> float:
    """Return the lower end of the one-sided 99 % Wilson interval of a share; 0 when nothing was counted."""
    if total <= 0:
        return 0.0
    share, square = bad / total, CONFIDENCE**2
    centre = share + square / (2 * total)
    spread = CONFIDENCE * math.sqrt(max(share * (1 - share), 0.0) / total + square / (4 * total**2))
    return (centre - spread) / (1 + square / total)


def added(parts: Iterable[Mapping[float, float]]) -> dict[float, float]:
    """Return the sum of some histograms."""
    total: dict[float, float] = {}
    for part in parts:
        for bound, count in part.items():
            total[bound] = total.get(bound, 0.0) + count
    return total


def at_most(buckets: Mapping[float, float], seconds: float) -> float:
    """Return how many requests took at most so long, evenly spread within each bucket as Prometheus assumes.

    Above the last finite bound nobody knows: those all count as slower.
    """
    below, counted = 0.0, 0.0
    for bound, count in sorted(buckets.items()):
        count = max(count, counted)
        if bound >= seconds:
            if not math.isfinite(bound):
                return counted
            return counted + (count - counted) * (seconds - below) / (bound - below)
        below, counted = bound, count
    return counted


def quantile(buckets: Mapping[float, float], share: float) -> float:
    """Return the quantile of a histogram as Prometheus' ``histogram_quantile`` does; NaN when it is empty."""
    total = max(buckets.values(), default=0.0)
    if not total > 0:
        return math.nan
    rank, below, counted = share * total, 0.0, 0.0
    for bound, count in sorted(buckets.items()):
        count = max(count, counted)
        if count >= rank:
            if not math.isfinite(bound):
                return below
            return below + (bound - below) * (rank - counted) / (count - counted) if count > counted else bound
        below, counted = bound, count
    return below


# ------------------------------------------------------------------------------------------ from and to what is kept


def planned_pods(pods: Iterable[JsonObject]) -> dict[str, datetime]:
    """Return the pods that answer or should, with the moment since when each is Ready; one that is not: was made."""
    planned = {}
    for pod in alive(pods):
        conditions = (pod.get("status") or {}).get("conditions") or ()
        ready = [c.get("lastTransitionTime") for c in conditions if c.get("type") == "Ready" and is_ready(pod)]
        planned[str(pod["metadata"]["name"])] = latest(
            moment(pod["metadata"].get("creationTimestamp")), *map(moment, ready)
        )
    return planned


def unready_pods(pods: Iterable[JsonObject]) -> tuple[str, ...]:
    """Return those of the planned pods that are not Ready."""
    return tuple(sorted(str(pod["metadata"]["name"]) for pod in alive(pods) if not is_ready(pod)))


def pods_in(answers: Answers) -> dict[str, PodFigures]:
    """Return the figures by pod from what Prometheus answered to :data:`QUERIES`.

    No series of errors is evidence of no errors only where the status of every request could be read: a release that
    calls it otherwise has none either.
    """

    def by_pod(name: str) -> dict[str, float]:
        return {labels["pod"]: value for labels, value in answers.get(name, ()) if "pod" in labels}

    judged, errors, resets, ages = by_pod(JUDGED), by_pod(ERRORS), by_pod(RESETS), by_pod(AGE)
    buckets: dict[str, dict[float, float]] = {}
    for labels, value in answers.get(BUCKETS, ()):
        if "pod" in labels and "le" in labels:
            buckets.setdefault(labels["pod"], {})[float(labels["le"])] = value

    def unreadable(name: str, requests: float) -> float:
        """Return how many requests were counted and not judged; 0 where one of both is not a number."""
        left = requests - judged.get(name, 0.0) if JUDGED in answers else 0.0
        return left if left > ROUNDING * requests else 0.0

    found = {}
    for name, requests in by_pod(REQUESTS).items():
        left = unreadable(name, requests)
        readable = not left and math.isfinite(judged.get(name, 0.0))
        found[name] = PodFigures(
            requests=_number(requests),
            errors=_number(errors.get(name, 0.0)) if readable else None,
            buckets=buckets.get(name, {}),
            resets=int(_number(resets.get(name)) or 0),
            scraped_seconds_ago=_number(ages.get(name)),
            unreadable=left,
        )
    return found


def baseline_of(pods: Mapping[str, PodFigures], settings: Gate) -> Baseline:
    """Return the metrics before the change, over all pods of that time.

    It counts when it holds as many requests as a gate at its least traffic would.
    """
    measured = [pod for pod in pods.values() if pod.requests is not None and pod.errors is not None]
    requests = sum(pod.requests or 0.0 for pod in measured)
    if requests < settings.minimum_requests * max(1.0, settings.duration_seconds / settings.window_seconds):
        return Baseline(round(requests, 1))
    slowest = quantile(added(pod.buckets for pod in measured), 1 - SLOW_SHARE)
    errors = min(sum(pod.errors or 0.0 for pod in measured), requests)
    return Baseline(round(requests, 1), errors / requests, slowest if math.isfinite(slowest) else None)


def head_line(recording: Recording) -> dict[str, Any]:
    """Return what is kept of a recording besides its samples, as plain data."""
    return {
        "component": recording.component,
        "gate": {
            "metrics": list(recording.metrics),
            "settings": recording.settings.model_dump(),
            "begun_at": recording.begun_at.isoformat(),
            "baseline": asdict(recording.baseline),
        },
    }


def sample_line(component: str, sample: Sample) -> dict[str, Any]:
    """Return a sample as plain data; NaN is null, and so is what was not scraped."""
    return {
        "component": component,
        "at": sample.at.isoformat(),
        "problem": sample.problem,
        "planned": {name: since.isoformat() for name, since in sample.planned.items()},
        "unready": list(sample.unready),
        "pods": {
            name: {
                **asdict(pod),
                "buckets": {str(bound): _number(count) for bound, count in sorted(pod.buckets.items())},
            }
            for name, pod in sample.pods.items()
        },
    }


def recordings(lines: Iterable[Mapping[str, Any]]) -> dict[str, Recording]:
    """Return the recordings in kept lines by component; a second head of the same component is left out."""
    found: dict[str, Recording] = {}
    samples: dict[str, list[Sample]] = {}
    for line in lines:
        name = str(line["component"])
        if "gate" in line:
            found.setdefault(name, _recording(name, line["gate"]))
        else:
            samples.setdefault(name, []).append(_sample(line))
    return {name: replace(recording, samples=tuple(samples.get(name, ()))) for name, recording in found.items()}


def replay(text: str) -> dict[str, Verdict | None]:
    """Return by component the verdict that a file of samples gives; None: it holds too few for one."""
    lines = [json.loads(line) for line in text.splitlines() if line.strip()]
    return {name: decide(recording) for name, recording in recordings(lines).items()}


def _recording(component: str, head: Mapping[str, Any]) -> Recording:
    return Recording(
        component,
        tuple(head["metrics"]),
        Gate.model_validate(head["settings"]),
        datetime.fromisoformat(head["begun_at"]).astimezone(UTC),
        Baseline(**head["baseline"]),
    )


def _sample(line: Mapping[str, Any]) -> Sample:
    return Sample(
        datetime.fromisoformat(line["at"]),
        {name: datetime.fromisoformat(since) for name, since in line["planned"].items()},
        {
            name: PodFigures(
                **{
                    **pod,
                    "buckets": {
                        float(bound): math.nan if count is None else count for bound, count in pod["buckets"].items()
                    },
                }
            )
            for name, pod in line["pods"].items()
        },
        line["problem"],
        tuple(line.get("unready", ())),
    )


def _number(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else value
