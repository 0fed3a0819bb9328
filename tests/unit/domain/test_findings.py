"""Findings speak together: one block stops, and the worst comes first."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from nephoran_maintenance.domain.findings import Finding, Severity, as_table, summary, worst_first

AT = datetime(2026, 11, 23, 10, 0, tzinfo=UTC)


def finding(severity: Severity, subject: str = "pods", hint: str = "") -> Finding:
    return Finding(subject, severity, "Pod/a", "seen", "wanted", hint)


@pytest.mark.parametrize(
    ("severities", "ready"),
    [
        pytest.param(["pass", "warn"], True, id="warnings do not stop"),
        pytest.param(["pass", "block"], False, id="one block stops"),
        pytest.param([], False, id="no finding at all is no approval"),
    ],
)
def test_decides_whether_a_change_may_start(severities: list[Severity], ready: bool) -> None:
    result = summary([finding(severity) for severity in severities], AT)
    assert result["approval"]["ready_for_upgrade"] is ready
    assert result["approval"]["blocking"] == severities.count("block")
    assert result["approval"]["warnings"] == severities.count("warn")


def test_a_summary_has_an_id_that_stands_for_its_content() -> None:
    first, same = summary([finding("pass")], AT), summary([finding("pass")], AT)
    other = summary([finding("warn")], AT)
    assert first["id"] == same["id"] != other["id"]
    assert first["id"].startswith("preflight-")


def test_a_summary_has_its_time_in_utc() -> None:
    local = AT.astimezone(timezone(timedelta(hours=2)))
    assert summary([finding("pass")], local)["time"] == "2026-11-23T10:00:00+00:00"


def test_the_worst_comes_first_and_equals_keep_their_order() -> None:
    mixed = [finding("pass", "a"), finding("block", "b"), finding("warn", "c"), finding("block", "d")]
    assert [f.check for f in worst_first(mixed)] == ["b", "d", "c", "a"]
    assert [f["check"] for f in summary(mixed, AT)["findings"]] == ["b", "d", "c", "a"]


def test_the_table_shows_every_finding_and_only_the_hints_that_need_an_action() -> None:
    table = as_table([finding("pass", "fine", "no action"), finding("block", "bad", "do this")])
    lines = table.splitlines()
    assert lines[0].split() == ["severity", "check", "object", "observed", "expected"]
    assert lines[2].split()[:2] == ["block", "bad"]
    assert lines[3].split()[:2] == ["pass", "fine"]
    assert lines[4:] == ["next, bad of Pod/a: do this"]


def test_the_table_of_nothing_is_its_head() -> None:
    assert len(as_table([]).splitlines()) == 2


def test_a_finding_is_plain_data() -> None:
    assert finding("warn").to_dict() == {
        "check": "pods",
        "severity": "warn",
        "object": "Pod/a",
        "observed": "seen",
        "expected": "wanted",
        "hint": "",
    }
