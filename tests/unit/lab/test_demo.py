"""What the demo decides: where to go next, whether its promise was kept, what it says at the end."""

from __future__ import annotations

from typing import Any

import pytest

from lab.demo import judge, next_version, summary_lines

COMPONENTS = 5


def report(**changes: Any) -> dict[str, Any]:
    return {
        "overall": "succeeded",
        "operation_id": "rolling-upgrade-20261123t220000z-abc123",
        "backup": {
            "backup_id": "full-20261123t220000z-abc123",
            "stored_bytes": 2**20,
            "checked": "every byte read back",
        },
        "probe": {"sent": 1000, "failed": 0, "longest_gap_seconds": 0.041},
        "components": [
            {
                "name": "rag-api",
                "seconds": 31.26,
                "image_before": "10.201.0.1:5000/nephoran/rag-api:v1",
                "image_after": "10.201.0.1:5000/nephoran/rag-api:v2@sha256:aa",
            }
        ],
        "gate_seconds": 0.0,
        "report_path": "reports/x/report.html",
        **changes,
    }


@pytest.mark.parametrize(
    ("running", "expected"),
    [
        pytest.param(["v1"] * COMPONENTS, "v2", id="first upgrade"),
        pytest.param(["v2"] * COMPONENTS, "v3", id="second upgrade"),
        pytest.param(["v3"] * COMPONENTS, None, id="nothing newer"),
        pytest.param(["v1", "v2", "v2"], "v2", id="one is behind"),
        pytest.param(["v1", "v3"], "v3", id="never a downgrade"),
        pytest.param(["v2-slow-start"], "v2", id="an image of the tests"),
    ],
)
def test_next_version_follows_the_oldest_that_runs(running: list[str], expected: str | None) -> None:
    assert next_version(running) == expected


@pytest.mark.parametrize(
    ("run_state", "content", "said"),
    [
        pytest.param("success", report(), None, id="all kept"),
        pytest.param("failed", report(overall="rolled-back"), "rolled-back", id="rolled back"),
        pytest.param("success", report(overall="planned"), "planned", id="only planned"),
        pytest.param("success", report(probe={"sent": 9, "failed": 2}), "2 requests failed", id="requests failed"),
        pytest.param("success", report(backup=None), "no checked backup", id="no backup"),
        pytest.param("success", report(backup={"checked": "not checked"}), "no checked backup", id="not checked"),
        pytest.param("success", report(probe="not measured"), "not measured", id="not measured"),
        pytest.param("failed", None, "no report", id="no report"),
    ],
)
def test_promise_is_kept_only_by_a_green_run_without_a_failed_request(
    run_state: str, content: dict[str, Any] | None, said: str | None
) -> None:
    verdict = judge(run_state, content)
    assert verdict is None if said is None else said in str(verdict)


def test_summary_has_requests_gap_seconds_per_component_and_report() -> None:
    lines = dict(summary_lines(report()))
    assert lines["requests"] == "1000 sent, 0 failed"
    assert lines["longest gap"] == "0.04 s"
    assert lines["metric gates"] == "gates off: 0 s"
    assert dict(summary_lines(report(gate_seconds=300.0)))["metric gates"] == "300 s each"
    assert lines["backup"] == "full-20261123t220000z-abc123, 1.0 MiB, every byte read back"
    assert lines["rag-api"] == "31.3 s  rag-api:v1 -> rag-api:v2"
    assert lines["report"] == "reports/x/report.html"


def test_summary_says_not_measured_instead_of_leaving_a_figure_out() -> None:
    lines = dict(summary_lines(report(probe="not measured", gate_seconds=None)))
    assert lines["metric gates"] == "not measured"
    assert lines["requests"] == "not measured sent, not measured failed"
    assert lines["longest gap"] == "not measured"
