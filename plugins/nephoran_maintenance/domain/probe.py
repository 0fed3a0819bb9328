"""What the probe's samples say: how many requests failed, and for how long nobody got a right answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from itertools import pairwise
from typing import Any

SHOWN_FAILURES = 20


@dataclass(frozen=True)
class ProbeSummary:
    """The figures of one measurement.

    :param longest_gap_seconds: the longest time between two right answers, counted from when they arrived, or between
        an end of the measurement and the answer nearest to it; None when nothing was sent.
    :param latency_p50_seconds: median over right answers; None when there was none.
    """

    sent: int
    failed: int
    failure_ratio: float | None
    longest_gap_seconds: float | None
    requests_per_second: float | None
    latency_p50_seconds: float | None
    latency_p95_seconds: float | None
    started_at: str | None
    ended_at: str | None
    failures: tuple[dict[str, Any], ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the summary as plain data."""
        return {**asdict(self), "failures": [dict(failure) for failure in self.failures]}


def summarise(samples: Sequence[Mapping[str, Any]]) -> ProbeSummary:
    """Return the figures over samples, in whatever order they were answered.

    :param samples: each with ``at`` (when it was sent, ISO 8601), ``seconds`` (until it was answered or given up) and
        ``failure`` (None, or the reason as text).
    """
    ordered = sorted(samples, key=lambda sample: str(sample["at"]))
    if not ordered:
        return ProbeSummary(0, 0, None, None, None, None, None, None, None, ())
    moments = [datetime.fromisoformat(str(sample["at"])).timestamp() for sample in ordered]
    ends = [moment + float(sample["seconds"]) for moment, sample in zip(moments, ordered, strict=True)]
    answered = sorted(end for end, sample in zip(ends, ordered, strict=True) if sample["failure"] is None)
    marks = [moments[0], *answered, max(ends)]
    span = moments[-1] - moments[0]
    latencies = sorted(float(sample["seconds"]) for sample in ordered if sample["failure"] is None)
    failures = [sample for sample in ordered if sample["failure"] is not None]
    return ProbeSummary(
        sent=len(ordered),
        failed=len(failures),
        failure_ratio=len(failures) / len(ordered),
        longest_gap_seconds=round(max(later - sooner for sooner, later in pairwise(marks)), 3),
        requests_per_second=round((len(ordered) - 1) / span, 1) if span > 0 else None,
        latency_p50_seconds=_quantile(latencies, 0.5),
        latency_p95_seconds=_quantile(latencies, 0.95),
        started_at=str(ordered[0]["at"]),
        ended_at=str(ordered[-1]["at"]),
        failures=tuple(
            {"at": sample["at"], "seconds": sample["seconds"], "reason": str(sample["failure"])}
            for sample in failures[:SHOWN_FAILURES]
        ),
    )


def _quantile(ordered: Sequence[float], share: float) -> float | None:
    """Return the nearest-rank quantile of sorted values."""
    if not ordered:
        return None
    return round(ordered[min(int(share * len(ordered)), len(ordered) - 1)], 4)
