"""A sample of the simulation in benchmarks/, small enough for every run, and the committed figures of the whole one."""

from __future__ import annotations

import itertools
import json
import random
import statistics
from typing import Any

import pytest

from benchmarks.gate_power import BEGUN_AT, PAGE, decided, poisson, row, seconds, simulated, table
from benchmarks.results_file import RESULTS
from nephoran_maintenance.domain.gate import decide
from nephoran_maintenance.profile import Gate

SERIES = 300


@pytest.fixture(scope="module")
def result() -> Any:
    return json.loads((RESULTS / "gate-power.json").read_text(encoding="utf-8"))


def share(ratio: float, state: str, **more: float) -> float:
    return float(row(random.Random(7), SERIES, ratio, **more)[f"{state}_share"])


def test_false_alarms_at_3_percent_are_at_most_2_percent() -> None:
    assert share(0.03, "closed") <= 0.02


def test_misses_at_7_percent_are_at_most_2_percent() -> None:
    assert share(0.07, "open") <= 0.02


def test_an_unchanged_system_is_not_closed_by_its_own_baseline() -> None:
    for ratio in (0.0, 0.01, 0.03):
        assert share(ratio, "closed", before=ratio) <= 0.02


def test_the_least_traffic_still_tells_3_from_7_percent() -> None:
    assert share(0.03, "closed", rate=3.0) <= 0.02
    assert share(0.07, "open", rate=3.0) <= 0.02


def test_a_fifth_of_errors_is_found_by_the_second_sample() -> None:
    found = [decided(one) for one in simulated(random.Random(7), 50, 0.2)]
    assert {(verdict.state, seconds(verdict)) for verdict in found} == {("closed", 15.0)}


def test_a_rule_without_evidence_would_fail_here() -> None:
    """The simulation can tell good rules from bad ones."""
    found = row(random.Random(7), SERIES, 0.04)
    assert found["closed_share"] <= 0.02
    assert found["naive_closed_share"] >= 0.3


def test_simulated_counts_are_poisson() -> None:
    draw = poisson(random.Random(7), 4.5)
    drawn = [draw() for _ in range(20_000)]
    assert statistics.mean(drawn) == pytest.approx(4.5, abs=0.06)
    assert statistics.variance(drawn) == pytest.approx(4.5, abs=0.2)
    assert {poisson(random.Random(7), 0.0)() for _ in range(10)} == {0}


def test_simulated_windows_overlap() -> None:
    recording = next(simulated(random.Random(7), 1, 0.03))
    assert recording.begun_at == BEGUN_AT
    assert decide(recording) is not None
    requests = [sample.pods["pod"].requests or 0.0 for sample in recording.samples]
    assert statistics.mean(requests) == pytest.approx(600, abs=30)
    changes = [abs(later - sooner) for sooner, later in itertools.pairwise(requests)]
    assert statistics.mean(changes) < 25, "neighbouring windows share three quarters of their requests"


def test_the_committed_result_shows_what_the_gate_promises(result: Any) -> None:
    assert result["series"] >= 10_000
    assert result["settings"] == Gate().model_dump()
    assert result["false_alarm_share"] <= 0.02
    assert result["miss_share"] <= 0.02


def test_the_page_has_the_curve_of_the_committed_result(result: Any) -> None:
    assert table(result["curve"]) in PAGE.read_text(encoding="utf-8")
