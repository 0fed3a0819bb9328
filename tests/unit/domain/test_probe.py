"""The figures of the probe: nothing is measured better than it was."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nephoran_maintenance.domain.probe import SHOWN_FAILURES, summarise
from tests.unit.domain.kubernetes_objects import at


def sample(sent: float, *, seconds: float = 0.01, failure: str | None = None) -> dict[str, Any]:
    return {"at": at(sent).isoformat(timespec="milliseconds"), "seconds": seconds, "failure": failure}


def test_counts_requests_and_failures() -> None:
    result = summarise([sample(0), sample(1, failure="refused"), sample(2), sample(3)])
    assert (result.sent, result.failed, result.failure_ratio) == (4, 1, 0.25)
    assert result.requests_per_second == 1.0


def test_nothing_sent_is_not_zero_failures_measured() -> None:
    result = summarise([])
    assert (result.sent, result.failed) == (0, 0)
    assert (result.failure_ratio, result.longest_gap_seconds, result.requests_per_second) == (None, None, None)


@pytest.mark.parametrize(
    ("samples", "gap"),
    [
        pytest.param([sample(0), sample(1), sample(2)], 1.0, id="steady"),
        pytest.param([sample(0), sample(1, failure="x"), sample(2)], 2.0, id="a failure in between"),
        pytest.param([sample(0), sample(1, seconds=4), sample(2)], 3.0 - 0.01 + 0.0, id="a slow answer"),
        pytest.param([sample(0, failure="x"), sample(1, failure="x")], 1.01, id="no answer at all"),
        pytest.param([sample(0), sample(1, failure="x", seconds=5)], 5.99, id="failures at the end"),
        pytest.param([sample(0, failure="x"), sample(3)], 3.01, id="failures at the start"),
    ],
)
def test_the_longest_gap_is_between_two_right_answers(samples: list[dict[str, Any]], gap: float) -> None:
    assert summarise(samples).longest_gap_seconds == pytest.approx(gap, abs=0.0011)


def test_does_not_depend_on_the_order_of_the_answers() -> None:
    samples = [sample(0), sample(1, failure="x"), sample(2, seconds=3), sample(3)]
    assert summarise(samples) == summarise(samples[::-1])


def test_shows_the_first_failures_with_their_reason() -> None:
    result = summarise([sample(n, failure=f"status {n}") for n in range(SHOWN_FAILURES + 5)])
    assert len(result.failures) == SHOWN_FAILURES
    assert result.failures[0] == {"at": sample(0)["at"], "seconds": 0.01, "reason": "status 0"}
    assert result.failed == SHOWN_FAILURES + 5


def test_latencies_are_those_of_right_answers() -> None:
    result = summarise([sample(0, seconds=0.1), sample(1, seconds=0.3), sample(2, seconds=9, failure="timeout")])
    assert result.latency_p95_seconds == 0.3
    assert summarise([sample(0, failure="x")]).latency_p50_seconds is None


def test_one_sample_has_no_rate() -> None:
    assert summarise([sample(0)]).requests_per_second is None


def test_is_plain_data_for_the_report() -> None:
    result = summarise([sample(0), sample(1, failure="x")]).to_dict()
    assert result["failures"] == [{"at": sample(1)["at"], "seconds": 0.01, "reason": "x"}]
    assert result["started_at"] == sample(0)["at"]


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 5), st.booleans()), min_size=1, max_size=30))
def test_a_gap_is_never_longer_than_the_measurement_nor_shorter_than_an_outage(
    drawn: list[tuple[float, float, bool]],
) -> None:
    samples = [sample(sent, seconds=seconds, failure="x" if bad else None) for sent, seconds, bad in drawn]
    gap = summarise(samples).longest_gap_seconds
    assert gap is not None
    first, last = min(sent for sent, _, _ in drawn), max(sent + seconds for sent, seconds, _ in drawn)
    assert 0 <= gap <= last - first + 0.01
    if all(bad for _, _, bad in drawn):
        assert gap == pytest.approx(last - first, abs=0.01)


def test_samples_are_moments_not_only_seconds() -> None:
    later = {**sample(0), "at": (at(0) + timedelta(days=1)).isoformat()}
    assert summarise([sample(0), later]).longest_gap_seconds == pytest.approx(86400)
