"""Metrics that can't be judged: what a person is asked about them, and whether an answer lets the change stand. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from nephoran_maintenance.domain.approval import Answer, Choice, Rule, minute, why_not
from nephoran_maintenance.domain.plain_text import plain
from nephoran_maintenance.domain.report import NOT_MEASURED
from nephoran_maintenance.errors import PermanentError

LET_STAND = "let stand"
"""State of a gate that was unknown until a person said that the change may stand."""
STAND, ROLL_BACK = "Let it stand", "Roll back"
"""The answers. They name no moment: Airflow shows the first question of a step, with its options, for ever."""

Row = Mapping[str, Any]


def in_doubt(rows: Sequence[Row]) -> list[Row]:
    """Return the gates that a person decides about: unknown, or not decided because another one was unknown.

    Empty when there is nothing to decide, because one is closed.
    """
    found = [row for row in rows if row["state"] in ("unknown", NOT_MEASURED)]
    others = {row["state"] for row in rows if row not in found}
    return found if others <= {"open"} else []


def subject(unknown: Sequence[Row], until: datetime) -> str:
    """Return the headline of the question."""
    names = " and ".join(str(row["component"]) for row in unknown)
    return f"The metrics of {names} can't be judged: does the change stand? Until {minute(until)}"


def body(rule: Rule, unknown: Sequence[Row], asked_at: datetime, until: datetime) -> str:
    """Return the text of the question, in Markdown."""
    minutes = max(0, round((until - asked_at).total_seconds() / 60))
    names = " or ".join(map(plain, rule.may_approve()))
    answers = (
        f"`{STAND}` counts from {names}; `{ROLL_BACK}` from every approver and from the one who asked for "
        "the change. Another answer does not count, and the question comes again. Without an answer within "
        f"{minutes} min everything that was changed goes back. Until then the operation goes on: it holds the lease, and "
        "its own traffic is measured."
    )
    return "\n\n".join(
        [
            "The change is made and rolled out. Its metrics are neither good nor bad: they were not measured.",
            "\n".join(f"* {plain(row['message'])}. {plain(row['hint'])}".strip() for row in unknown),
            answers,
        ]
    )


def judge(rule: Rule, *, by: str | None, at: datetime, chosen: Sequence[str], asked_at: datetime) -> Answer:
    """Return an answer with the decision whether it counts; ``approve`` lets the change stand, ``reject`` takes it back.

    :param asked_at: when the question was put last; what was answered before does not count.
    """
    choice: Choice = "reject" if list(chosen) == [ROLL_BACK] else "approve"
    why = why_not(rule, (), by, choice)
    if choice == "approve" and list(chosen) != [STAND]:
        why = "it is none of the answers"
    elif choice == "approve" and at < asked_at:
        why = "it is about an earlier question"
    return Answer(by=by, at=at, choice=choice, counts=not why, why=why)


def let_stand(rows: Sequence[Row], answer: Answer) -> list[dict[str, Any]]:
    """Return the rows of gates with those in doubt in the state that the answer gives them."""
    words = f"; {answer.by} let it stand at {minute(answer.at)}"
    decided = in_doubt(rows)
    return [
        {**row, "state": LET_STAND, "message": f"{row['message']}{words}"} if row in decided else dict(row)
        for row in rows
    ]


def why_back(answer: Answer | None, until: datetime) -> str:
    """Return in words why the change goes back, after a question.

    :param answer: None when nobody answered in time.
    """
    if answer is None:
        return f"nobody let the change stand until {minute(until)}"
    return f"{answer.by} took it back at {minute(answer.at)}"


def check_persons(rule: Rule) -> None:
    """Refuse a category that asks a person where nobody could answer, before anything is changed.

    :raises PermanentError: ``approvers-missing``.
    """
    if not rule.may_approve():
        raise PermanentError(
            "approvers-missing",
            f"a change of category {rule.category} asks a person when metrics can't be judged, and nobody that the profile "
            "names may answer",
            context={"category": rule.category},
            hint="Add the Airflow user names of those who may answer to `approvers` in the profile, or set the category's "
            "`unknown_metrics` to roll-back.",
        )
