"""Whose answer about metrics that can't be judged counts, and what it does."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from nephoran_maintenance.domain.approval import Rule
from nephoran_maintenance.domain.gate_question import ROLL_BACK, STAND, judge

ASKED = datetime(2026, 11, 29, 2, 0, tzinfo=UTC)
RULE = Rule(
    category="minor",
    needed=0,
    approvers=("ada",),
    requester="operator",
    requester_counts=True,
    expires_after=timedelta(hours=1),
)


@pytest.mark.parametrize(
    ("by", "chosen", "seconds", "choice", "why"),
    [
        pytest.param("ada", [STAND], 1, "approve", "", id="an approver"),
        pytest.param("ada", [STAND], 0, "approve", "", id="at once"),
        pytest.param("ada", [STAND], -1, "approve", "it is about an earlier question", id="before it was asked again"),
        pytest.param("ada", ["Why not"], 1, "approve", "it is none of the answers", id="no answer"),
        pytest.param("ada", [STAND, ROLL_BACK], 1, "approve", "it is none of the answers", id="both"),
        pytest.param("ada", [ROLL_BACK], 1, "reject", "", id="back"),
        pytest.param("ada", [ROLL_BACK], -1, "reject", "", id="back, whenever it was said"),
        pytest.param("operator", [ROLL_BACK], 1, "reject", "", id="back, by who asked for the change"),
    ],
)
def test_what_counts(by: str, chosen: list[str], seconds: int, choice: str, why: str) -> None:
    answer = judge(RULE, by=by, at=ASKED + timedelta(seconds=seconds), chosen=chosen, asked_at=ASKED)
    assert (answer.by, answer.choice, answer.counts, answer.why) == (by, choice, not why, why)


@pytest.mark.parametrize("by", ["operator", "mallory", None])
def test_who_is_no_approver_lets_nothing_stand(by: Any) -> None:
    answer = judge(RULE, by=by, at=ASKED, chosen=[STAND], asked_at=ASKED)
    assert not answer.counts
    assert answer.why
