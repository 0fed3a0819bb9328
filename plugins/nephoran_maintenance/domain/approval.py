"""Approval: who may let a change begin, whether an answer counts, what is missing, and when it is too late."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Literal

from pydantic import BaseModel, ConfigDict

from nephoran_maintenance.errors import PermanentError
from nephoran_maintenance.profile import CategoryName, SystemProfile

NEEDED = {"none": 0, "one": 1, "two": 2}
HASH_DIGITS = 12
"""So much of the plan's hash is in the answer that approves it."""
REJECT = "Reject"

Choice = Literal["approve", "reject"]
State = Literal["not needed", "waiting", "approved", "rejected", "expired"]


class Rule(BaseModel):
    """What the category of a change asks for, applied to the person who asked for the change."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    category: CategoryName
    needed: int
    """Number of persons who must approve."""
    approvers: tuple[str, ...]
    requester: str | None
    """Who started the run; None when it was no person that Airflow knows."""
    requester_counts: bool
    """Whether the requester's own approval counts, where they are an approver."""
    expires_after: timedelta

    def may_approve(self) -> tuple[str, ...]:
        """Return the persons whose approval counts."""
        return tuple(name for name in self.approvers if self.requester_counts or name != self.requester)


class Answer(BaseModel):
    """What somebody answered, and whether it counts."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    by: str | None
    at: datetime
    choice: Choice
    counts: bool
    why: str = ""
    """Why it does not count."""


class Approval(BaseModel):
    """What is recorded of the approval of one plan."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    category: CategoryName
    needed: int
    plan_hash: str
    state: State = "waiting"
    expires_at: datetime | None = None
    answers: tuple[Answer, ...] = ()

    def approvers(self) -> list[str]:
        """Return who has approved, as far as it counts, each once."""
        found = [a.by for a in self.answers if a.counts and a.choice == "approve" and a.by]
        return list(dict.fromkeys(found))

    def missing(self) -> int:
        """Return the number of approvals that are still needed."""
        return max(0, self.needed - len(self.approvers()))

    def answered(self, answer: Answer) -> Approval:
        """Return the record with one more answer, in the state that it leads to."""
        state: State = self.state
        after = self.model_copy(update={"answers": (*self.answers, answer)})
        if answer.counts:
            state = "rejected" if answer.choice == "reject" else "waiting" if after.missing() else "approved"
        return after.model_copy(update={"state": state})

    def expired(self) -> Approval:
        """Return the record of a question that nobody answered in time."""
        return self.model_copy(update={"state": "expired"})


def rule_for(profile: SystemProfile, category: CategoryName, requester: str | None) -> Rule:
    """Return the rule for a change. The requester's own approval counts neither in an emergency nor where two are needed."""
    found = profile.category(category)
    return Rule(
        category=category,
        needed=NEEDED[found.approval],
        approvers=profile.approvers,
        requester=requester,
        requester_counts=category != "emergency" and found.approval != "two",
        expires_after=timedelta(minutes=found.expires_minutes),
    )


def check_rule(rule: Rule) -> None:
    """Refuse a change that could never be approved, before anybody waits for it.

    :raises PermanentError: ``requester-unknown``, ``approvers-missing``.
    """
    if rule.needed and not rule.requester_counts and rule.requester is None:
        raise PermanentError(
            "requester-unknown",
            f"a change of category {rule.category} is not approved by the person who asks for it, and Airflow does not "
            "know who started this run",
            hint="Start it in the user interface or through the REST API as yourself.",
        )
    persons = rule.may_approve()
    if len(persons) < rule.needed:
        who = ", ".join(persons) or "nobody"
        own = rule.requester in rule.approvers and not rule.requester_counts
        raise PermanentError(
            "approvers-missing",
            f"a change of category {rule.category} needs {_persons(rule.needed)} to approve it, and the profile names "
            + (f"{who} beside {rule.requester}, who asked for it" if own else who),
            context={"category": rule.category, "needed": rule.needed},
            hint="Add the Airflow user names of those who may approve to `approvers` in the profile.",
        )


def approve_option(plan_hash: str) -> str:
    """Return the answer that approves a plan; it names the plan.

    Airflow shows the text of the first question again when a run is cleared. An answer to an old text then names an old
    plan, and does not count.
    """
    return f"Approve plan {plan_hash[:HASH_DIGITS]}"


def judge(
    rule: Rule, approval: Approval, *, by: str | None, at: datetime, chosen: Sequence[str], expires_at: datetime
) -> Answer:
    """Return an answer with the decision whether it counts.

    A rejection counts from every approver and from the requester, who may take the request back.

    :param by: Airflow user name; None when nobody is recorded.
    :param chosen: the options that were chosen.
    :raises PermanentError: ``approval-outdated`` when the answer is to a question about another plan.
    """
    if list(chosen) == [REJECT]:
        choice: Choice = "reject"
    elif list(chosen) == [approve_option(approval.plan_hash)]:
        choice = "approve"
    else:
        raise PermanentError(
            "approval-outdated",
            f"the answer {', '.join(chosen) or 'nothing'!r} of {by} is about another plan than "
            f"{approval.plan_hash[:HASH_DIGITS]}: the question is one of an earlier try of this run",
            hint="Trigger a new run; its question shows the plan as it is now.",
        )
    why = why_not(rule, approval.approvers(), by, choice)
    if at > expires_at:
        why = f"it came after {minute(expires_at)}"
    return Answer(by=by, at=at, choice=choice, counts=not why, why=why)


def why_not(rule: Rule, approved_by: Sequence[str], by: str | None, choice: Choice) -> str:
    """Return why somebody's answer does not count; empty when it does.

    :param approved_by: whose approval counts already.
    """
    if by is None:
        return "nobody is recorded as its author"
    if by not in rule.approvers:
        if choice == "reject" and by == rule.requester:
            return ""
        return f"{by} is not named as an approver in the profile"
    if choice == "reject":
        return ""
    if by == rule.requester and not rule.requester_counts:
        return f"{by} asked for the change"
    if by in approved_by:
        return f"{by} has approved already, and two persons are needed"
    return ""


def check_approved(rule: Rule, approval: Approval | None, plan_hash: str) -> None:
    """Refuse to begin a change that nobody let begin, whatever colour the step of the approval has.

    :raises PermanentError: ``approval-missing``.
    """
    if not rule.needed:
        return
    allowed = set(rule.may_approve())
    found = [] if approval is None else [name for name in approval.approvers() if name in allowed]
    if approval is not None and approval.plan_hash != plan_hash:
        problem = f"plan {approval.plan_hash[:HASH_DIGITS]} was approved, and this is plan {plan_hash[:HASH_DIGITS]}"
    elif approval is not None and approval.state == "rejected":
        problem = "it was rejected"
    elif len(found) < rule.needed:
        problem = f"approved by {', '.join(found) or 'nobody'}"
    else:
        return
    raise PermanentError(
        "approval-missing",
        f"a change of category {rule.category} needs {_persons(rule.needed)} to approve it: {problem}",
        context={"category": rule.category},
        hint="Nothing was changed. Trigger a new run and have it approved; to mark the step as successful is no approval.",
    )


def rejected(answer: Answer) -> PermanentError:
    """Return the error that ends a run after a rejection."""
    return PermanentError(
        "approval-rejected",
        f"the change was rejected by {answer.by} at {minute(answer.at)}",
        hint="Nothing was changed. Ask for the reason, then trigger a new run.",
    )


def expired(approval: Approval, expires_at: datetime) -> PermanentError:
    """Return the error that ends a run that nobody approved in time."""
    return PermanentError(
        "approval-expired",
        f"the change was not approved until {minute(expires_at)}: {approval.missing()} of {approval.needed} approvals "
        "are missing",
        context={"category": approval.category},
        hint="Nothing was changed. Ask an approver, then trigger a new run; `expires_minutes` of the category says how "
        "long it waits.",
    )


def minute(at: datetime) -> str:
    """Return a moment as people read it."""
    return at.strftime("%Y-%m-%d %H:%M UTC")


def _persons(number: int) -> str:
    return "one person" if number == 1 else f"{number} persons"
