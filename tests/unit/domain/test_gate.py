"""The metric gate: which samples lead to which verdict, and what chance can do to it."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nephoran_maintenance.domain.gate import (
    Baseline,
    PodFigures,
    Recording,
    Sample,
    Verdict,
    added,
    at_most,
    baseline_of,
    decide,
    head_line,
    lower_bound,
    planned_pods,
    pods_in,
    quantile,
    recordings,
    replay,
    sample_line,
    unmeasured,
    unready_pods,
    verdicts_of,
)
from nephoran_maintenance.profile import Gate
from tests.unit.domain import kubernetes_objects
from tests.unit.domain.kubernetes_objects import at

BOUNDS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, math.inf)
LONG_AGO = at(-3600)
PODS = ("rag-api-a", "rag-api-b")


def durations(requests: float, seconds: float) -> dict[float, float]:
    """Return a histogram in which every request took so long."""
    return {bound: requests if seconds <= bound else 0.0 for bound in BOUNDS}


def pod(requests: float | None = 300.0, ratio: float = 0.0, seconds: float = 0.2, **changes: Any) -> PodFigures:
    count = requests or 0.0
    return replace(PodFigures(requests, count * ratio, durations(count, seconds), scraped_seconds_ago=2.0), **changes)


def sample(number: int, ratio: float = 0.0, seconds: float = 0.2, **changes: Any) -> Sample:
    """Return the sample of a slot: two pods that share 600 requests a minute."""
    moment = at(15 * number)
    pods = {name: pod(ratio=ratio, seconds=seconds) for name in PODS}
    return replace(Sample(moment, dict.fromkeys(PODS, LONG_AGO), pods), **changes)


def samples(count: int, ratio: float = 0.0, seconds: float = 0.2) -> list[Sample]:
    return [sample(number, ratio, seconds) for number in range(count)]


def recording(found: Sequence[Sample], baseline: Baseline | None = None, **settings: Any) -> Recording:
    return Recording(
        "rag-api",
        ("error_ratio", "latency_p95"),
        Gate(**settings),
        at(0),
        baseline or Baseline(9000.0, 0.002, 0.3),
        tuple(found),
    )


def verdict(found: Sequence[Sample], **more: Any) -> Verdict:
    result = decide(recording(found, **more))
    assert result is not None
    return result


def with_one(number: int, change: Sample, count: int = 29) -> list[Sample]:
    found = samples(count)
    found[number] = replace(change, at=found[number].at)
    return found


def without_pod(found: Sample, name: str) -> Sample:
    return replace(found, pods={key: value for key, value in found.pods.items() if key != name})


def instead(found: Sample, name: str, figures: PodFigures) -> Sample:
    return replace(found, pods={**found.pods, name: figures})


NO_BASELINE = Baseline(10.0)
DOWN = Sample(at(0), problem="Prometheus at 127.0.0.1:9090 does not answer")
QUIET = replace(sample(0), pods={name: pod(10.0) for name in PODS})
STALE = instead(sample(0), PODS[0], pod(scraped_seconds_ago=31.0))
NAN = instead(sample(0), PODS[0], pod(None))
NAN_ERRORS = instead(sample(0), PODS[0], pod(errors=None))
NAN_LATENCY = replace(sample(0), pods={name: pod(buckets=durations(math.nan, 0.2)) for name in PODS})
NO_DURATIONS = replace(sample(0), pods={name: pod(buckets={}) for name in PODS})
EMPTY = replace(sample(0), pods={})
ONE_MISSING = without_pod(sample(0), PODS[0])
NO_LONGER_SCRAPED = instead(sample(0), PODS[0], pod(scraped_seconds_ago=None))
NO_PODS = replace(sample(0), planned={})
UNREADABLE = instead(sample(0), PODS[0], pod(errors=None, unreadable=3.0))

VERDICTS = [
    # what the samples are, state, reason, how many samples it took
    ("good", samples(29), {}, "open", "within-limits", 21),
    ("no errors at all", samples(29, ratio=0.0, seconds=0.05), {}, "open", "within-limits", 21),
    ("a fifth fails", samples(29, ratio=0.2), {}, "closed", "error_ratio", 2),
    ("everything fails, so no durations", [replace(s, pods={n: pod(ratio=1.0, buckets={}) for n in PODS})
     for s in samples(29)], {}, "closed", "error_ratio", 2),
    ("slow", samples(29, seconds=8.0), {}, "closed", "latency_p95", 2),
    ("a little above the limit", samples(29, ratio=0.055), {"baseline": NO_BASELINE}, "closed", "error_ratio", 21),
    ("a little below the limit", samples(29, ratio=0.045), {"baseline": NO_BASELINE}, "open", "within-limits", 21),
    ("as bad as before", samples(29, ratio=0.03), {"baseline": Baseline(9000.0, 0.03, 0.3)}, "open",
     "within-limits", 21),
    ("far worse than before, below the limit", samples(29, ratio=0.04), {"baseline": Baseline(9000.0, 0.002, 0.3)},
     "closed", "error_ratio", 2),
    ("twice as bad, less than 0.01 over it", samples(29, ratio=0.009), {"baseline": Baseline(9000.0, 0.002, 0.3)},
     "open", "within-limits", 21),
    ("twice as slow, less than 0.5 s over it", samples(29, seconds=0.4), {"baseline": Baseline(9000.0, 0.0, 0.3)},
     "open", "within-limits", 21),
    ("far slower than before, below the limit", samples(29, seconds=2.0), {"baseline": Baseline(9000.0, 0.0, 0.3)},
     "closed", "latency_p95", 2),
    ("one bad sample alone", with_one(7, sample(7, ratio=0.2)), {"baseline": NO_BASELINE}, "open", "within-limits", 21),
    ("Prometheus is down throughout", [replace(DOWN, at=s.at) for s in samples(29)], {}, "unknown", "no-answer", 6),
    ("Prometheus is down for one sample", with_one(7, DOWN), {}, "open", "within-limits", 21),
    ("no series at all", [replace(EMPTY, at=s.at) for s in samples(29)], {}, "unknown", "no-series", 6),
    ("one pod never has series", [replace(ONE_MISSING, at=s.at) for s in samples(29)], {}, "unknown",
     "pod-without-series", 6),
    ("one pod is no longer scraped", [replace(NO_LONGER_SCRAPED, at=s.at) for s in samples(29)], {}, "unknown",
     "pod-without-series", 6),
    ("one pod has no durations", [instead(s, PODS[0], pod(buckets={})) for s in samples(29)], {}, "unknown",
     "pod-without-series", 6),
    ("requests are NaN", [replace(NAN, at=s.at) for s in samples(29)], {}, "unknown", "not-a-number", 6),
    ("errors are NaN", [replace(NAN_ERRORS, at=s.at) for s in samples(29)], {}, "unknown", "not-a-number", 6),
    ("durations are NaN", [replace(NAN_LATENCY, at=s.at) for s in samples(29)], {}, "unknown", "not-a-number", 6),
    ("no durations", [replace(NO_DURATIONS, at=s.at) for s in samples(29)], {}, "unknown", "not-a-number", 6),
    ("stale", [replace(STALE, at=s.at) for s in samples(29)], {}, "unknown", "stale", 6),
    ("no traffic", [replace(QUIET, at=s.at) for s in samples(29)], {}, "unknown", "no-traffic", 6),
    ("no pod", [replace(NO_PODS, at=s.at) for s in samples(29)], {}, "unknown", "no-pods", 6),
    ("a gap of three intervals", [*samples(6), *(replace(DOWN, at=at(15 * n)) for n in (6, 7)), sample(8)], {},
     "unknown", "no-answer", 9),
    ("samples are missing", [*samples(6), *(sample(n) for n in range(9, 29))], {}, "unknown", "gap", 7),
    ("errors behind one pod without series", [without_pod(s, PODS[0]) for s in samples(29, ratio=0.3)], {}, "closed",
     "error_ratio", 2),
    ("some requests have no readable status", [replace(UNREADABLE, at=s.at) for s in samples(29)], {}, "unknown",
     "status-unreadable", 6),
    ("the first two minutes are missing", [*(replace(DOWN, at=at(15 * n)) for n in range(9)),
     *(sample(n) for n in range(9, 29))], {}, "unknown", "no-answer", 6),
    ("the first window is missing", [*(replace(DOWN, at=at(15 * n)) for n in range(5)),
     *(sample(n) for n in range(5, 29))], {}, "unknown", "no-answer", 6),
    ("the first valid window reaches back to the begin", [*(replace(DOWN, at=at(15 * n)) for n in range(4)),
     *(sample(n) for n in range(4, 29))], {}, "open", "within-limits", 24),
    ("the first sample is late", [sample(n) for n in range(5, 29)], {}, "unknown", "gap", 1),
]  # fmt: skip


@pytest.mark.parametrize(
    ("found", "more", "state", "reason", "needed"), [pytest.param(*row[1:], id=row[0]) for row in VERDICTS]
)
def test_verdict(found: list[Sample], more: dict[str, Any], state: str, reason: str, needed: int) -> None:
    for count in range(needed):
        assert decide(recording(found[:count], **more)) is None
    result = verdict(found[:needed], **more)
    assert (result.state, result.reason) == (state, reason)
    assert verdict(found, **more) == result, "later samples must not change it"
    assert result.component == "rag-api"
    assert result.hint == "" if state == "open" else result.hint


BOTH = {"rag-api-a": 31.0, "rag-api-b": 45.0}
MESSAGES = [
    ("open", samples(21), "within the limits over 21 samples"),
    ("failed at once", samples(2, ratio=0.2),
     "20.0% of the requests failed, limit 1.2%, in two samples in a row, by more than chance"),
    ("failed at the end", samples(21, ratio=0.0125), "1.2% of the requests failed, limit 1.2%, over 21 samples"),
    ("slow", samples(2, seconds=8.0),
     "the 95th percentile of the answer times is 9.75 s, limit 0.80 s, in two samples in a row, by more than chance"),
    ("a gap", [*samples(6), *(replace(DOWN, at=at(15 * n)) for n in (6, 7, 8))],
     "no valid sample for 45 s: Prometheus at 127.0.0.1:9090 does not answer"),
    ("samples are missing", [*samples(6), sample(9)], "no valid sample for 60 s: samples are missing"),
    ("the last problem counts",
     [sample(0), *(replace(one, at=at(15 * n + 15)) for n, one in enumerate(2 * [EMPTY] + 2 * [NO_PODS] + 6 * [DOWN]))],
     "no valid sample for 45 s: the component has no pod"),
    ("too few", [replace(one, at=at(15 * n)) for n, one in enumerate(10 * [sample(0), QUIET])],
     "only 10 of 20 valid samples could be had: no traffic: 20 requests in 60 s, at least 150 are needed"),
    ("no series", [replace(EMPTY, at=s.at) for s in samples(29)],
     "no valid sample for 75 s: Prometheus has no series of rag-api-a, rag-api-b"),
    ("not a number", [replace(s, pods=dict.fromkeys(PODS, pod(None))) for s in samples(29)],
     "no valid sample for 75 s: requests or errors of pod rag-api-a, rag-api-b are NaN"),
    ("no longer scraped", [replace(s, pods=dict.fromkeys(PODS, pod(scraped_seconds_ago=None))) for s in samples(29)],
     "no valid sample for 75 s: Prometheus has no series of pod rag-api-a, rag-api-b"),
    ("stale", [replace(s, pods={n: pod(scraped_seconds_ago=age) for n, age in BOTH.items()}) for s in samples(29)],
     "no valid sample for 75 s: the newest scrape of pod rag-api-a, rag-api-b is 45 s old"),
    ("no durations of two of three",
     [replace(s, planned={**s.planned, "c": LONG_AGO}, pods={**dict.fromkeys(PODS, pod(buckets={})), "c": pod()})
      for s in samples(29)],
     "no valid sample for 75 s: Prometheus has no durations of pod rag-api-a, rag-api-b"),
    ("unreadable", [replace(s, pods=dict.fromkeys(PODS, pod(errors=None, unreadable=300.0))) for s in samples(29)],
     "no valid sample for 75 s: 600 requests of pod rag-api-a, rag-api-b have no status that could be read"),
]  # fmt: skip


@pytest.mark.parametrize(("found", "message"), [pytest.param(*row[1:], id=row[0]) for row in MESSAGES])
def test_says_what_was_measured_and_what_was_missing(found: list[Sample], message: str) -> None:
    assert verdict(found).message == f"rag-api: {message}"


def test_a_share_exactly_at_its_limit_is_within_it() -> None:
    assert verdict(samples(29, ratio=0.05), baseline=NO_BASELINE).state == "open"


@pytest.mark.parametrize(
    ("changes", "state"),
    [
        pytest.param({"pods": {PODS[0]: pod(150.0), PODS[1]: pod(0.0)}}, "open", id="exactly enough requests"),
        pytest.param({"pods": {PODS[0]: pod(149.0), PODS[1]: pod(0.0)}}, "unknown", id="one request too few"),
        pytest.param({"pods": dict.fromkeys(PODS, pod(scraped_seconds_ago=30.0))}, "open", id="twice the interval old"),
        pytest.param(
            {"pods": {PODS[0]: pod(None, errors=300.0), PODS[1]: pod()}}, "unknown", id="errors of uncounted requests"
        ),
        pytest.param(
            {"pods": {PODS[0]: pod(errors=None), PODS[1]: pod(149.0)}}, "unknown", id="requests of uncounted errors"
        ),
    ],
)
def test_what_just_counts_and_what_just_does_not(changes: dict[str, Any], state: str) -> None:
    assert verdict([replace(s, **changes) for s in samples(29)]).state == state


@pytest.mark.parametrize(("ready_at", "valid"), [(1.0, 21), (0.0, 20)])
def test_a_pod_must_have_series_once_it_is_ready_for_a_window(ready_at: float, valid: int) -> None:
    found = [replace(s, planned={**s.planned, PODS[0]: at(ready_at)}) for s in samples(21)]
    for number in range(5):
        found[number] = without_pod(found[number], PODS[0])
    assert verdict(found).figures["valid_samples"] == valid


def flapping(number: int, created: float = -3600.0) -> Sample:
    """Return a sample in which one of two pods has no series: Ready again since a moment, or just not Ready."""
    found = replace(ONE_MISSING, at=at(15 * number))
    if number % 2:
        return replace(found, planned={**found.planned, PODS[0]: at(created)}, unready=(PODS[0],))
    return replace(found, planned={**found.planned, PODS[0]: found.at - timedelta(seconds=5)})


def test_a_pod_that_comes_and_goes_faster_than_a_window_must_have_series_too() -> None:
    for created in (-3600.0, -10.0):
        result = verdict([flapping(number, created) for number in range(29)])
        assert (result.state, result.reason) == ("unknown", "pod-without-series")
    ready_each_time = [replace(flapping(0), at=at(15 * n), planned={PODS[1]: LONG_AGO, PODS[0]: at(15 * n - 5)})
                       for n in range(29)]  # fmt: skip
    assert verdict(ready_each_time).reason == "pod-without-series"


def test_a_pod_that_starts_slowly_need_not_have_series_before_it_is_ready_for_a_window() -> None:
    found = samples(29)
    for number in range(29):
        since, unready = (at(-30), (PODS[0],)) if number < 2 else (at(25), ())
        planned = {**found[number].planned, PODS[0]: since}
        found[number] = replace(found[number], planned=planned, unready=unready)
        if number < 5:
            found[number] = without_pod(found[number], PODS[0])
    assert verdict(found).state == "open"


def test_another_pod_of_the_same_name_is_new() -> None:
    found = samples(29)
    for number in range(8, 12):
        since, unready = (at(118), (PODS[0],)) if number == 8 else (at(130), ())
        planned = {**found[number].planned, PODS[0]: since}
        found[number] = without_pod(replace(found[number], planned=planned, unready=unready), PODS[0])
    for number in range(12, 29):
        found[number] = replace(found[number], planned={**found[number].planned, PODS[0]: at(130)})
    assert verdict(found).state == "open"


def test_two_samples_are_in_a_row_when_no_more_than_one_is_missing_between_them() -> None:
    bad = sample(0, ratio=0.2)
    assert verdict([bad, replace(bad, at=at(30))]).reason == "error_ratio"
    assert verdict([bad, replace(bad, at=at(31))]).reason == "gap"


def test_the_figures_of_a_closed_gate_are_those_of_the_two_samples() -> None:
    result = verdict([sample(0), sample(1, ratio=0.2), sample(2, ratio=0.2)])
    assert (result.figures["error_ratio"], result.figures["samples"]) == (0.2, 3)


def test_the_figures_of_an_unknown_gate_are_those_of_its_valid_samples() -> None:
    result = verdict([*samples(6), *(replace(DOWN, at=at(15 * n)) for n in (6, 7, 8))])
    assert (result.figures["requests_per_second"], result.figures["error_ratio"]) == (10.0, 0.0)
    assert (result.figures["samples"], result.figures["valid_samples"]) == (9, 6)


def test_figures_are_rounded_for_people() -> None:
    third = [replace(s, pods=dict.fromkeys(PODS, pod(100.0, 1 / 700))) for s in samples(21)]
    figures = verdict(third, baseline=Baseline(9000.0, 0.01, 1 / 3)).figures
    assert (figures["requests_per_second"], figures["error_ratio"]) == (3.33, 0.00143)
    assert figures["latency_p95_baseline_seconds"] == 0.33333


def test_a_verdict_as_plain_data() -> None:
    found = samples(21)
    found[9] = instead(found[9], PODS[1], pod(resets=1))
    result = verdict(found)
    assert json.loads(json.dumps(result.to_dict())) == {
        "component": "rag-api",
        "state": "open",
        "reason": "within-limits",
        "message": "rag-api: within the limits over 21 samples",
        "figures": result.figures,
        "findings": [result.findings[0].to_dict()],
        "hint": "",
    }
    assert verdict(samples(2, ratio=0.2)).to_dict()["hint"] == verdict(samples(2, ratio=0.2)).hint


def test_the_next_sample_is_due_at_its_own_time() -> None:
    assert recording([]).next_at() == at(0)
    assert recording(samples(3)).next_at() == at(45)


def test_gates_that_belong_together_are_open_when_all_are() -> None:
    good, bad, young = recording(samples(21)), recording(samples(2, ratio=0.2)), recording(samples(3))
    assert verdicts_of([]) == []
    assert verdicts_of([young, good]) is None
    assert verdicts_of([good, good]) == [decide(good), decide(good)]
    assert verdicts_of([young, bad, good]) == [decide(bad), decide(good)], "one that is not open decides for all"


def test_a_gate_without_samples_is_unknown() -> None:
    assert unmeasured("rag-api", "no connection") == Verdict(
        "rag-api", "unknown", "no-answer", "rag-api: no connection"
    )


def test_too_few_requests_are_named_no_traffic() -> None:
    found = verdict([replace(QUIET, at=s.at) for s in samples(29)])
    assert "no traffic: 20 requests in 60 s, at least 150 are needed" in found.message


def test_is_extended_until_there_are_enough_valid_samples_and_not_for_longer() -> None:
    found = samples(29)
    for number in (1, 3, 5, 7):
        found[number] = replace(DOWN, at=found[number].at)
    assert decide(recording(found[:23])) is None
    result = verdict(found)
    assert (result.state, result.figures["samples"], result.figures["valid_samples"]) == ("open", 24, 20)
    for number in (9, 11, 13, 15, 17, 19):
        found[number] = replace(DOWN, at=found[number].at)
    result = verdict(found)
    assert (result.state, result.reason) == ("unknown", "no-answer")
    assert result.figures["ended_at"] < at(300).isoformat(), "it is over as soon as it can't succeed any more"


def test_a_breach_has_to_be_followed_by_one_of_the_same_metric() -> None:
    found = samples(29)
    found[5], found[6] = sample(5, ratio=0.2), sample(6, seconds=8.0)
    assert verdict(found, baseline=NO_BASELINE).state == "open"


def test_a_breach_within_the_noise_waits_for_the_end() -> None:
    """6 % of 600 requests: a true 5 % gives that in one window of seven."""
    found = samples(29, ratio=0.06)
    assert decide(recording(found[:20], baseline=NO_BASELINE)) is None
    assert verdict(found, baseline=NO_BASELINE).state == "closed"


def test_series_of_replaced_pods_come_and_go() -> None:
    gone = {"rag-api-old": pod(ratio=1.0, seconds=60.0)}
    found = [replace(s, pods={**s.pods, **(gone if n % 3 else {})}) for n, s in enumerate(samples(29))]
    assert verdict(found).state == "open"


def test_a_pod_that_was_replaced_during_the_gate_is_judged_once_it_is_settled() -> None:
    found = samples(29)
    for number in range(8, 29):
        young = number < 10
        pods = {PODS[0]: pod(), **({} if young else {"rag-api-c": pod()})}
        found[number] = replace(found[number], planned={PODS[0]: LONG_AGO, "rag-api-c": at(120)}, pods=pods)
    assert verdict(found).state == "open"
    for number in range(8, 29):
        found[number] = without_pod(found[number], "rag-api-c")
    result = verdict(found)
    assert (result.state, result.reason) == ("unknown", "pod-without-series")
    assert "rag-api-c" in result.message


def test_a_counter_reset_on_a_pod_that_stayed_is_a_restart_finding() -> None:
    found = samples(29)
    for number in (9, 10, 11):
        found[number] = instead(found[number], PODS[1], pod(resets=1))
    found[3] = instead(found[3], "rag-api-old", pod(resets=2))
    result = verdict(found)
    assert [finding.object for finding in result.findings] == [f"pod {PODS[1]}"]
    assert at(135).isoformat() in result.findings[0].observed
    assert (result.findings[0].check, result.findings[0].severity) == ("metrics", "warn")
    assert result.findings[0].expected
    assert f"kubectl logs {PODS[1]} --previous" in result.findings[0].hint
    assert result.state == "open"


def test_without_a_baseline_the_limits_decide_and_the_figures_say_so() -> None:
    result = verdict(samples(21, ratio=0.045), baseline=NO_BASELINE)
    assert result.figures["error_ratio_baseline"] is None
    assert result.figures["error_ratio_limit"] == 0.05
    assert result.figures["error_ratio"] == 0.045


def test_figures_name_what_was_measured_and_against_what() -> None:
    assert verdict(samples(21, ratio=0.005)).figures == {
        "samples": 21,
        "valid_samples": 21,
        "requests_per_second": 10.0,
        "error_ratio": 0.005,
        "error_ratio_limit": 0.012,
        "error_ratio_baseline": 0.002,
        "latency_p95_seconds": 0.2425,
        "latency_p95_limit_seconds": 0.8,
        "latency_p95_baseline_seconds": 0.3,
        "began_at": at(0).isoformat(),
        "ended_at": at(300).isoformat(),
    }


def test_a_gate_of_one_metric_needs_and_judges_only_that() -> None:
    found = [replace(s, pods={n: pod(seconds=60.0, buckets={}) for n in PODS}) for s in samples(21)]
    assert verdict(found[:10]).reason == "not-a-number"
    result = decide(replace(recording(found), metrics=("error_ratio",)))
    assert result is not None
    assert result.state == "open"
    assert result.figures["latency_p95_seconds"] is None


@pytest.mark.parametrize(
    ("baseline", "error_limit", "latency_limit"),
    [
        (Baseline(9000.0, 0.0, 0.1), 0.01, 0.6),
        (Baseline(9000.0, 0.02, 1.0), 0.04, 2.0),
        (Baseline(9000.0, 0.04, 4.0), 0.05, 5.0),
        (Baseline(9.0), 0.05, 5.0),
    ],
    ids=["margin", "twice", "profile", "too few requests"],
)
def test_the_lower_of_limit_and_baseline_counts(baseline: Baseline, error_limit: float, latency_limit: float) -> None:
    found = recording([], baseline=baseline).limits()
    assert found["error_ratio"] == pytest.approx(error_limit)
    assert found["latency_p95"] == pytest.approx(latency_limit)


def test_a_baseline_of_too_few_requests_is_none() -> None:
    settings = Gate()
    assert baseline_of({}, settings) == Baseline(0.0)
    assert baseline_of({"a": pod(700.0, 0.1)}, settings) == Baseline(700.0)
    found = baseline_of({"a": pod(700.0, 0.1), "b": pod(300.0, 0.0), "c": pod(None)}, settings)
    assert (found.requests, found.error_ratio) == (1000.0, 0.07)
    assert found.latency_p95_seconds == pytest.approx(0.2425)
    assert baseline_of({"a": pod(749.0, 0.1), "b": pod(0.0)}, settings) == Baseline(749.0)
    assert baseline_of({"a": pod(750.0, 0.1)}, settings).error_ratio == pytest.approx(0.1)
    assert baseline_of({"a": pod(700.0, errors=None), "b": pod(300.0)}, settings) == Baseline(300.0)
    assert baseline_of({"a": pod(None, errors=99.0), "b": pod(1000.0)}, settings).error_ratio == 0.0
    short = Gate(duration_seconds=60, minimum_samples=5)
    assert baseline_of({"a": pod(150.0, 0.1)}, short).error_ratio == pytest.approx(0.1)


def test_a_baseline_counts_requests_to_a_tenth_and_may_know_no_durations() -> None:
    assert baseline_of({"a": pod(700.06)}, Gate()) == Baseline(700.1)
    assert baseline_of({"a": pod(1000.06, buckets={})}, Gate()) == Baseline(1000.1, 0.0, None)


# -------------------------------------------------------------------------------------------------------- what is kept


def answers(pods: dict[str, PodFigures]) -> dict[str, list[tuple[dict[str, str], float]]]:
    found: dict[str, list[tuple[dict[str, str], float]]] = {
        "requests": [({"pod": n}, p.requests or 0.0) for n, p in pods.items()],
        "errors": [({"pod": n}, p.errors) for n, p in pods.items() if p.errors],
        "resets": [({"pod": n}, float(p.resets)) for n, p in pods.items()],
        "scraped_seconds_ago": [({"pod": n}, p.scraped_seconds_ago or 0.0) for n, p in pods.items()],
        "duration_buckets": [({"pod": n, "le": str(b)}, c) for n, p in pods.items() for b, c in p.buckets.items()],
    }
    return found


def test_figures_by_pod_from_what_prometheus_answers() -> None:
    pods = {"a": pod(10.0, 0.5, resets=1), "b": pod(20.0)}
    assert pods_in(answers(pods)) == pods
    assert pods_in({"requests": [({"pod": "a"}, math.nan), ({}, 3.0)]}) == {"a": PodFigures(None)}
    assert pods_in({"errors": [({"pod": "a"}, 3.0)]}) == {}, "errors without requests are no measurement"
    stray: list[tuple[dict[str, str], float]] = [({"pod": "a"}, 1.0), ({"le": "1"}, 1.0)]
    assert pods_in({"requests": [({"pod": "a"}, 2.0)], "duration_buckets": stray}) == {"a": PodFigures(2.0)}


@pytest.mark.parametrize(
    ("judged", "errors", "expected"),
    [
        pytest.param({"a": 100.0}, {}, {"errors": 0.0}, id="all of them are judged"),
        pytest.param({"a": 100.0 - 1e-9}, {"a": 3.0}, {"errors": 3.0}, id="but for rounding"),
        pytest.param({"a": 99.0}, {"a": 3.0}, {"errors": None, "unreadable": 1.0}, id="one is not"),
        pytest.param({}, {}, {"errors": None, "unreadable": 100.0}, id="the label has another name"),
        pytest.param({"a": math.nan}, {}, {"errors": None}, id="not a number"),
    ],
)
def test_no_series_of_errors_is_none_only_where_every_status_can_be_read(
    judged: dict[str, float], errors: dict[str, float], expected: dict[str, Any]
) -> None:
    found = {"requests": {"a": 100.0}, "judged": judged, "errors": errors}
    said = {name: [({"pod": pod}, value) for pod, value in values.items()] for name, values in found.items()}
    assert pods_in(said) == {"a": replace(PodFigures(100.0), **expected)}


def test_a_pod_without_requests_has_no_errors() -> None:
    assert pods_in({"requests": [({"pod": "a"}, 0.0)], "judged": []}) == {"a": PodFigures(0.0)}


def test_a_recording_of_before_still_gives_its_verdict() -> None:
    kept = recording(samples(21))
    lines = [head_line(kept), *(sample_line(kept.component, one) for one in kept.samples)]
    for line in lines[1:]:
        del line["unready"]
        for figures in line["pods"].values():
            del figures["unreadable"]
    assert replay("\n".join(map(json.dumps, lines))) == {"rag-api": decide(kept)}


def test_pods_that_are_not_ready() -> None:
    ready = kubernetes_objects.pod("ready", ready=True, created=1, ready_since=9)
    young = kubernetes_objects.pod("young", created=2, ready_since=9)
    leaving = kubernetes_objects.pod("leaving", metadata={"deletionTimestamp": "2026-11-23T10:00:03Z"})
    assert unready_pods([ready, young, leaving]) == ("young",)


def test_pods_that_answer_or_should_since_they_are_ready_or_were_made() -> None:
    ready = kubernetes_objects.pod("ready", ready=True, created=1, ready_since=9)
    young = kubernetes_objects.pod("young", created=2, ready_since=9)
    bare = {"metadata": {"name": "bare", "creationTimestamp": "2026-11-23T10:00:03Z"}}
    leaving = kubernetes_objects.pod("leaving", ready=True, metadata={"deletionTimestamp": "2026-11-23T10:00:03Z"})
    assert planned_pods([ready, young, bare, leaving]) == {"ready": at(9), "young": at(2), "bare": at(3)}


@pytest.mark.parametrize("found", [pytest.param(row[1], id=row[0]) for row in VERDICTS])
def test_a_verdict_is_replayed_from_what_is_kept(found: list[Sample]) -> None:
    kept = recording(found)
    lines = [head_line(kept), *(sample_line(kept.component, one) for one in kept.samples)]
    text = "\n".join(json.dumps(line, allow_nan=False) for line in lines)
    assert replay(text) == {"rag-api": decide(kept)}


def test_two_components_share_a_file() -> None:
    one, two = recording(samples(2)), replace(recording(samples(3)), component="llm-processor")
    lines = [head_line(one), head_line(two), *(sample_line(r.component, s) for r in (two, one) for s in r.samples)]
    assert recordings([*lines, head_line(replace(one, begun_at=at(999)))]) == {"rag-api": one, "llm-processor": two}
    assert recordings([head_line(one)]) == {"rag-api": replace(one, samples=())}
    assert replay("") == {}


ratios = st.sampled_from([0.0, 0.02, 0.049, 0.06, 0.2, 1.0])
anything = st.lists(
    st.one_of(
        st.builds(sample, st.just(0), ratios, st.sampled_from([0.1, 4.0, 8.0])),
        st.sampled_from([DOWN, QUIET, STALE, NAN, NAN_LATENCY, EMPTY, ONE_MISSING, NO_PODS]),
    ),
    min_size=29,
    max_size=29,
).map(lambda found: [replace(one, at=at(15 * n)) for n, one in enumerate(found)])


@given(anything, st.sampled_from([NO_BASELINE, Baseline(9000.0, 0.01, 0.2), Baseline(9000.0, 0.0, 4.0)]))
def test_every_gate_ends_in_time_and_stays_at_its_verdict(found: list[Sample], baseline: Baseline) -> None:
    decided = [decide(recording(found[:count], baseline=baseline)) for count in range(30)]
    final = decided[-1]
    assert final is not None
    first = next(number for number, result in enumerate(decided) if result is not None)
    assert all(result == final for result in decided[first:])
    if final.state == "open":
        assert final.figures["valid_samples"] >= 20
        assert final.figures["error_ratio"] <= final.figures["error_ratio_limit"] + 1e-5


@given(anything)
def test_worse_samples_never_open_a_gate(found: list[Sample]) -> None:
    worse = [replace(s, pods={n: replace(p, errors=p.requests) for n, p in s.pods.items()}) for s in found]
    if verdict(found).state != "open":
        assert verdict(worse).state != "open"


# ----------------------------------------------------------------------------------------------------------- arithmetic


def test_the_lower_bound_is_wilsons() -> None:
    # by the formula of the 1927 paper, 98 % two-sided: 12 of 100
    assert lower_bound(12, 100) == pytest.approx(0.0632, abs=2e-4)
    assert lower_bound(0, 0) == 0.0
    assert lower_bound(0, 600) == pytest.approx(0.0, abs=1e-12)
    assert lower_bound(600, 600) < 1.0
    assert lower_bound(1, 1) == pytest.approx(0.156, abs=1e-3)
    assert lower_bound(9, 0) == 0.0


def test_a_quantile_is_prometheus_own() -> None:
    buckets = {0.1: 10.0, 0.5: 50.0, 1.0: 90.0, math.inf: 100.0}
    assert quantile(buckets, 0.3) == pytest.approx(0.3)
    assert quantile(buckets, 0.05) == pytest.approx(0.05)
    assert quantile(buckets, 0.95) == 1.0, "above the last bound it is the last bound"
    assert quantile({1.0: 50.0, 2.0: 50.0, 3.0: 100.0, math.inf: 100.0}, 0.5) == 1.0, "the first bucket that holds it"
    assert quantile({1.0: 0.0, 2.0: 5.0, math.inf: 5.0}, 0.0) == 1.0
    assert quantile({1.0: 0.5, math.inf: 0.5}, 0.5) == 0.5, "rates may be below one"
    assert math.isnan(quantile({}, 0.95))
    assert math.isnan(quantile({1.0: 0.0, math.inf: 0.0}, 0.95))


def test_histograms_add_up_bound_by_bound() -> None:
    assert added([{1.0: 1.0, 2.0: 5.0}, {1.0: 2.0}, {}]) == {1.0: 3.0, 2.0: 5.0}


def test_requests_are_evenly_spread_within_a_bucket() -> None:
    assert at_most({1.0: 10.0, 2.0: 30.0, math.inf: 40.0}, 0.5) == 5.0
    assert at_most({1.0: 10.0, 2.0: 30.0, math.inf: 40.0}, 1.5) == 20.0
    assert at_most({1.0: 10.0, 2.0: 30.0, math.inf: 40.0}, 9.0) == 30.0, "above the last bound they count as slower"


@given(
    st.lists(st.floats(0, 1000), min_size=3, max_size=3).map(sorted),
    st.floats(0.01, 4.9),
)
def test_a_quantile_above_a_limit_is_more_than_its_share_slower_than_that(counts: list[float], limit: float) -> None:
    buckets = dict(zip((0.5, 2.0, 5.0), counts, strict=True)) | {math.inf: counts[-1]}
    total = counts[-1]
    if total < 1:
        return
    slow = 1 - at_most(buckets, limit) / total
    p95 = quantile(buckets, 0.95)
    if abs(slow - 0.05) > 1e-6:
        assert (p95 > limit) == (slow > 0.05)
