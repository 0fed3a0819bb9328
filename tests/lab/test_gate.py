"""The metric gates, by a real Airflow and a real Prometheus on the lab."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from nephoran_maintenance.domain.gate import replay

if TYPE_CHECKING:
    from conftest import Run, Upgrades

THIRD = "llm-processor"
GATE = "components.llm_processor.verify_metrics"


def rolled_back_after(upgrades: Upgrades, run: Run) -> tuple[float, float]:
    """Return the seconds from the first failed request until the component was on its way back, and until it was back."""
    first = datetime.fromisoformat(run.report["probe"]["failures"][0]["at"])
    journal = upgrades.lab.get("configmap", run.report["operation_id"], "nephoran-maintenance")
    entries = [json.loads(text) for name, text in journal["data"].items() if name.startswith("entry-")]
    begun, ended = (
        [datetime.fromisoformat(entry["at"][step]) for entry in entries if entry["component"] == THIRD]
        for step in ("rolling-back", "rolled-back")
    )
    return (min(begun) - first).total_seconds(), (max(ended) - first).total_seconds()


def gates(run: Run) -> list[tuple[str, str, str]]:
    return [(row["after"], row["component"], row["state"]) for row in run.report["gates"]]


@pytest.mark.parametrize(
    ("variant", "gate", "components", "limit_seconds"),
    [
        pytest.param("fast", "short", ["rag-api", THIRD], 120.0, id="fast"),
        # Prometheus scrapes every 2 s, the product's window is 60 s: the gate needs two samples, 15 s apart.
        pytest.param("standard", "real", [THIRD], 150.0, id="real-delays", marks=pytest.mark.slow),
    ],
)
def test_a_release_that_serves_a_fifth_of_errors_is_taken_back_in_time(
    upgrades: Upgrades,
    variant: str,
    gate: str,
    components: list[str],
    limit_seconds: float,
    record_property: Any,
) -> None:
    upgrades.prepare(variant, gate=gate)
    before = upgrades.specs()
    try:
        run = upgrades.run(mode="apply", version="v2", components=components, images={THIRD: "v2-errors"})
        assert upgrades.specs() == before
        begun_seconds, seconds = rolled_back_after(upgrades, run)
    finally:
        upgrades.prepare()  # which takes the journals away too
    assert run.state == "failed"
    assert "[gate-closed]" in run.error(GATE), run.explain()
    assert run.report["overall"] == "rolled-back"
    closed = next(row for row in run.report["gates"] if row["state"] == "closed")
    assert (closed["after"], closed["reason"]) == (THIRD, "error_ratio")
    assert closed["figures"]["error_ratio"] == pytest.approx(0.2, abs=0.04)
    assert [row["component"] for row in run.report["rollback"]] == list(reversed(components))
    record_property("seconds_from_first_failed_request_to_rolling_back", begun_seconds)
    record_property("seconds_from_first_failed_request_to_rolled_back", seconds)
    print(f"on its way back {begun_seconds:.1f} s after the first failed request, back after {seconds:.1f} s")
    assert seconds <= limit_seconds


def test_a_good_release_passes_all_gates_and_their_samples_are_kept(upgrades: Upgrades) -> None:
    upgrades.prepare(gate="short")
    try:
        run = upgrades.run(mode="apply", version="v2", components=["rag-api", THIRD])
    finally:
        upgrades.prepare()
    assert run.state == "success", run.explain()
    assert gates(run) == [
        ("rag-api", "rag-api", "open"),
        (THIRD, THIRD, "open"),
        ("the whole", "rag-api", "open"),
        ("the whole", THIRD, "open"),
    ]
    for row in run.report["gates"]:
        assert row["figures"]["valid_samples"] >= 8
        assert row["figures"]["requests_per_second"] > 30, "the operation's own probe is the traffic"
        assert row["figures"]["latency_p95_seconds"] > 0
        kept = Path(run.report["report_path"]).with_name(row["samples"])
        again = replay(kept.read_text(encoding="utf-8"))[row["component"]]
        assert again is not None
        assert again.to_dict()["figures"] == row["figures"]


def test_a_component_whose_metrics_are_json_is_taken_back_as_unknown(upgrades: Upgrades) -> None:
    upgrades.prepare("json-metrics", gate="short")
    before = upgrades.specs()
    try:
        run = upgrades.run(mode="apply", version="v2", components=[THIRD])
        assert upgrades.specs() == before
    finally:
        upgrades.prepare()
    assert "[gate-unknown]" in run.error(GATE), run.explain()
    assert run.report["overall"] == "rolled-back"
    assert (run.report["gates"][0]["state"], run.report["gates"][0]["reason"]) == ("unknown", "no-series")
