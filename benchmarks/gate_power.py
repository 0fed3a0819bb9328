"""What the metric gate does at which true error ratio: the verdicts over simulated series, no lab needed.

Each series is a component that answers Poisson many requests per second, each failing with the true ratio, before the
change with the baseline's. Every 15 s the gate's own code gets a sample with the counts of the last 60 s, so windows
overlap as they do in Prometheus, and decides by its own rule with the profile's defaults.

A *false alarm* closes at 3 %, a *miss* opens at 7 %, where the limit is 5 %. The same figures hold for the share of
requests that are slower than the latency limit, which is judged by the same rule.

For comparison each row has what a rule would do that closes on any two samples in a row above the limit.

Besides the result it writes the curve into docs/images and docs/reference/gates.md. ``GATE_POWER_SERIES`` (default 10000)
says how many series there are for each row.
"""

from __future__ import annotations

import bisect
import itertools
import math
import os
import random
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from benchmarks.results_file import publish
from nephoran_maintenance.domain.gate import (
    Baseline,
    PodFigures,
    Recording,
    Sample,
    Verdict,
    baseline_of,
    decide,
)
from nephoran_maintenance.profile import Gate

SEED = 20261124
REQUESTS_PER_SECOND = 10.0
LEAST_REQUESTS_PER_SECOND = 3.0
RATIOS = (0.0, 0.01, 0.02, 0.03, 0.035, 0.04, 0.045, 0.05, 0.055, 0.06, 0.065, 0.07, 0.08, 0.10, 0.15, 0.20, 0.50)
UNCHANGED_RATIOS = (0.0, 0.002, 0.005, 0.01, 0.02, 0.03)
RELATIVE = ((0.002, 0.008), (0.002, 0.01), (0.002, 0.012), (0.002, 0.015), (0.002, 0.02), (0.01, 0.02), (0.01, 0.03))
"""Pairs of the true ratio before and after a change that stays below the limit of the profile."""
FALSE_ALARM_RATIO, MISS_RATIO = 0.03, 0.07
BEGUN_AT = datetime(2026, 1, 1, tzinfo=UTC)
DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGE = DOCS / "reference" / "gates.md"
MARKS = ("<!-- written by `make bench-gate-power` -->\n", "<!-- to here -->\n")

Row = dict[str, Any]
Draw = Callable[[], int]


def main() -> None:
    """Simulate every row, publish the figures and draw the curve."""
    series = int(os.environ.get("GATE_POWER_SERIES", "10000"))
    source = random.Random(SEED)
    curve = [row(source, series, ratio) for ratio in RATIOS]
    low = [row(source, series, ratio, rate=LEAST_REQUESTS_PER_SECOND) for ratio in (FALSE_ALARM_RATIO, MISS_RATIO)]
    publish(
        "gate-power",
        {
            "series": series,
            "seed": SEED,
            "requests_per_second": REQUESTS_PER_SECOND,
            "settings": Gate().model_dump(),
            "false_alarm_share": found(curve, FALSE_ALARM_RATIO)["closed_share"],
            "miss_share": found(curve, MISS_RATIO)["open_share"],
            "curve": curve,
            "least_traffic": low,
            "unchanged": [row(source, series, ratio, before=ratio) for ratio in UNCHANGED_RATIOS],
            "against_baseline": [row(source, series, after, before=before) for before, after in RELATIVE],
        },
    )
    (DOCS / "images" / "gate-power.svg").write_text(drawing(curve), encoding="utf-8")
    before, rest = PAGE.read_text(encoding="utf-8").split(MARKS[0])
    PAGE.write_text(before + MARKS[0] + table(curve) + MARKS[1] + rest.split(MARKS[1])[1], encoding="utf-8")


def found(rows: list[Row], ratio: float) -> Row:
    return next(one for one in rows if one["error_ratio"] == ratio)


def row(
    source: random.Random, series: int, ratio: float, *, rate: float = REQUESTS_PER_SECOND, before: float | None = None
) -> Row:
    """Return the shares of the verdicts over so many series.

    :param ratio: true share of failed requests after the change.
    :param before: the same before it; None: there is no baseline to compare with.
    """
    verdicts, naive = [], 0
    for one in simulated(source, series, ratio, rate=rate, before=before):
        verdicts.append(decided(one))
        naive += twice_above(one)
    states = Counter(verdict.state for verdict in verdicts)
    shut = sorted(seconds(verdict) for verdict in verdicts if verdict.state == "closed")
    return {
        "error_ratio": ratio,
        "error_ratio_before": before,
        "requests_per_second": rate,
        **{f"{state}_share": round(states[state] / series, 5) for state in ("open", "closed", "unknown")},
        "closed_after_seconds_median": shut[len(shut) // 2] if shut else None,
        "naive_closed_share": round(naive / series, 5),
    }


def twice_above(recording: Recording) -> bool:
    """Return whether two samples in a row are above the limit at all, within the gate's duration."""
    limit, settings = recording.limits()["error_ratio"], recording.settings
    last = int(settings.duration_seconds / settings.interval_seconds) + 1
    figures = [sample.pods["pod"] for sample in recording.samples[:last]]
    above = [(pod.errors or 0.0) > limit * (pod.requests or 0.0) for pod in figures]
    return any(sooner and later for sooner, later in itertools.pairwise(above))


def decided(recording: Recording) -> Verdict:
    verdict = decide(recording)
    if verdict is None:
        raise AssertionError("a whole recording always leads to a verdict")
    return verdict


def seconds(verdict: Verdict) -> float:
    return (datetime.fromisoformat(verdict.figures["ended_at"]) - BEGUN_AT).total_seconds()


def simulated(
    source: random.Random, series: int, ratio: float, *, rate: float = REQUESTS_PER_SECOND, before: float | None = None
) -> Iterator[Recording]:
    """Yield recordings of gates with the profile's defaults."""
    settings = Gate()
    interval = settings.interval_seconds
    blocks_in_window = round(settings.window_seconds / interval)
    slots = int(settings.longest_seconds / interval) + 1
    good, bad = poisson(source, rate * interval * (1 - ratio)), poisson(source, rate * interval * ratio)
    old = None
    if before is not None:
        length = settings.baseline_seconds
        old = (poisson(source, rate * length * (1 - before)), poisson(source, rate * length * before))
    for _ in range(series):
        blocks = [(good(), bad()) for _ in range(slots + blocks_in_window - 1)]
        samples = []
        for slot in range(slots):
            window = blocks[slot : slot + blocks_in_window]
            errors = sum(block[1] for block in window)
            figures = PodFigures(sum(block[0] for block in window) + errors, errors, scraped_seconds_ago=1.0)
            samples.append(Sample(BEGUN_AT + timedelta(seconds=slot * interval), {"pod": BEGUN_AT}, {"pod": figures}))
        baseline = Baseline()
        if old is not None:
            right, wrong = old[0](), old[1]()
            baseline = baseline_of({"pod": PodFigures(right + wrong, wrong)}, settings)
        yield Recording("simulated", ("error_ratio",), settings, BEGUN_AT, baseline, tuple(samples))


def poisson(source: random.Random, mean: float) -> Draw:
    """Return a function that draws from a Poisson distribution, exactly, by its cumulative distribution."""
    cumulative: list[float] = []
    total = 0.0
    last = int(mean + 12 * math.sqrt(mean) + 20)
    for count in range(last):
        total += math.exp(count * math.log(mean) - mean - math.lgamma(count + 1)) if mean else float(count == 0)
        cumulative.append(total)
    return lambda: bisect.bisect_left(cumulative, source.random() * total)


def table(curve: list[Row]) -> str:
    """Return the power curve as a Markdown table."""
    lines = [
        "| true error ratio | closed | open | closed after, median | two above the limit |",
        "|---|---|---|---|---|",
    ]
    for one in curve:
        after = one["closed_after_seconds_median"]
        shares = (f"{one[name]:.2%}" for name in ("closed_share", "open_share"))
        cells = [f"{one['error_ratio']:.1%}", *shares, "" if after is None else f"{after:.0f} s"]
        lines.append(f"| {' | '.join([*cells, format(one['naive_closed_share'], '.2%')])} |")
    return "\n".join(lines) + "\n"


def drawing(curve: list[Row]) -> str:
    """Return the power curve as an SVG image."""
    width, height, left, bottom, widest = 640, 320, 60, 40, 0.12
    across = (width - left - 20) / widest
    up = height - bottom - 20
    rows = [one for one in curve if one["error_ratio"] <= widest]
    points = [(left + one["error_ratio"] * across, height - bottom - one["closed_share"] * up) for one in rows]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for percent in range(0, 101, 25):
        y = height - bottom - percent / 100 * up
        parts.append(f'<path d="M{left} {y:.1f}H{width - 20}" stroke="#ddd"/>')
        parts.append(f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{percent} %</text>')
    for percent in range(0, round(widest * 100) + 1, 2):
        x = left + percent / 100 * across
        parts.append(f'<text x="{x:.1f}" y="{height - bottom + 18}" text-anchor="middle">{percent} %</text>')
    limit = left + Gate().error_ratio_limit * across
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    parts += [
        f'<path d="M{limit:.1f} 20V{height - bottom}" stroke="#b00" stroke-dasharray="4"/>',
        f'<text x="{limit + 6:.1f}" y="32" fill="#b00">limit</text>',
        f'<polyline points="{line}" fill="none" stroke="#06c" stroke-width="2"/>',
        *(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="#06c"/>' for x, y in points),
        f'<text x="{(width + left) / 2:.0f}" y="{height - 6}" text-anchor="middle">true share of failed requests</text>',
        f'<text transform="rotate(-90) translate({-height / 2:.0f} 14)" text-anchor="middle">closed gates</text>',
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    main()
