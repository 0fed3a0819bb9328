"""Who may let a change begin: whose answer counts, what is missing, when it is too late."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from nephoran_maintenance.domain.approval import (
    REJECT,
    Answer,
    Approval,
    Rule,
    approve_option,
    check_approved,
    check_rule,
    expired,
    judge,
    rejected,
    rule_for,
)
from nephoran_maintenance.errors import PermanentError
from nephoran_maintenance.profile import SystemProfile
from nephoran_maintenance.settings import PROJECT_ROOT
from tests.unit.domain.kubernetes_objects import at

HASH, OTHER = "a" * 64, "b" * 64
END = at(3600)


def rule(**fields: Any) -> Rule:
    base: dict[str, Any] = {
        "category": "major",
        "needed": 1,
        "approvers": ("ada", "grace", "linus"),
        "requester": "ada",
        "requester_counts": True,
        "expires_after": timedelta(hours=1),
    }
    return Rule(**{**base, **fields})


TWO = rule(category="infrastructure", needed=2, requester_counts=False)
EMERGENCY = rule(category="emergency", requester_counts=False)


def asked(by: Rule, **fields: Any) -> Approval:
    return Approval(**{"category": by.category, "needed": by.needed, "plan_hash": HASH, **fields})


def answer(by: Rule, approval: Approval, who: str | None, what: str = "approve", **fields: Any) -> Answer:
    chosen = [REJECT if what == "reject" else approve_option(HASH)]
    return judge(by, approval, by=who, **{"at": at(60), "chosen": chosen, "expires_at": END, **fields})


def answered(by: Rule, *answers: tuple[str | None, str]) -> Approval:
    approval = asked(by)
    for who, what in answers:
        approval = approval.answered(answer(by, approval, who, what))
    return approval


def profile(**changes: Any) -> SystemProfile:
    data = yaml.safe_load((PROJECT_ROOT / "include" / "profiles" / "nephoran.yaml").read_text(encoding="utf-8"))
    return SystemProfile.model_validate({**data, **changes})


# ------------------------------------------------------------------------------------------------------------- the rule


@pytest.mark.parametrize("named", [True, False], ids=["named in the profile", "left out of the profile"])
@pytest.mark.parametrize(
    ("category", "needed", "own"),
    [
        ("security", 0, True),
        ("emergency", 1, False),
        ("minor", 0, True),
        ("major", 1, True),
        ("infrastructure", 1, True),
    ],
)
def test_each_category_asks_for_what_is_documented(category: Any, needed: int, own: bool, named: bool) -> None:
    found = rule_for(profile() if named else profile(categories={}), category, "ada")
    assert (found.needed, found.requester_counts) == (needed, own)
    assert found.expires_after == timedelta(hours=4)


def test_the_profile_says_how_many_for_how_long_and_who() -> None:
    categories = {"minor": {"window": "any", "approval": "two", "downtime": "zero", "expires_minutes": 7}}
    found = rule_for(profile(categories=categories, approvers=["ada", "grace"]), "minor", "ada")
    assert (found.needed, found.expires_after, found.approvers) == (2, timedelta(minutes=7), ("ada", "grace"))
    assert not found.requester_counts, "never the requester where two are needed"
    assert found.may_approve() == ("grace",)


@pytest.mark.parametrize(
    ("fields", "part"),
    [
        ({"approvers": ()}, "needs one person to approve it, and the profile names nobody"),
        ({"approvers": ("grace",), "needed": 2}, "needs 2 persons to approve it, and the profile names grace"),
        ({"approvers": ("ada",), "requester_counts": False}, "names nobody beside ada, who asked for it"),
        ({"approvers": ("ada", "grace"), "needed": 2, "requester_counts": False}, "names grace beside ada"),
    ],
    ids=["nobody", "one of two", "only the requester", "the requester and one more"],
)
def test_refuses_what_could_never_be_approved(fields: dict[str, Any], part: str) -> None:
    with pytest.raises(PermanentError) as caught:
        check_rule(rule(**fields))
    assert caught.value.reference == "approvers-missing"
    assert part in caught.value.message
    assert "`approvers` in the profile" in caught.value.hint


@pytest.mark.parametrize("nobody", [EMERGENCY, TWO], ids=["emergency", "two"])
def test_refuses_an_unknown_requester_who_would_have_to_be_left_out(nobody: Rule) -> None:
    with pytest.raises(PermanentError) as caught:
        check_rule(nobody.model_copy(update={"requester": None}))
    assert caught.value.reference == "requester-unknown"


@pytest.mark.parametrize(
    "good",
    [
        rule(needed=0, approvers=()),
        rule(needed=0, approvers=(), requester=None, requester_counts=False),
        rule(approvers=("ada",)),
        rule(requester=None),
        TWO,
        EMERGENCY,
    ],
)
def test_lets_pass_what_can_be_approved(good: Rule) -> None:
    check_rule(good)


# ----------------------------------------------------------------------------------------------------------- the answer

CASES = [
    # rule, who has approved before, who, what, counts, why not
    (rule(), [], "grace", "approve", ""),
    (rule(), [], "ada", "approve", ""),
    (rule(), [], "mallory", "approve", "mallory is not named as an approver"),
    (rule(), [], "Grace", "approve", "Grace is not named as an approver"),
    (rule(), [], None, "approve", "nobody is recorded"),
    (rule(requester="mallory"), [], "mallory", "approve", "mallory is not named as an approver"),
    (rule(requester=None), [], "ada", "approve", ""),
    (EMERGENCY, [], "ada", "approve", "ada asked for the change"),
    (EMERGENCY, [], "grace", "approve", ""),
    (TWO, [], "ada", "approve", "ada asked for the change"),
    (TWO, [], "grace", "approve", ""),
    (TWO, ["grace"], "grace", "approve", "grace has approved already"),
    (TWO, ["grace"], "ada", "approve", "ada asked for the change"),
    (TWO, ["grace"], "linus", "approve", ""),
    (rule(), [], "grace", "reject", ""),
    (EMERGENCY, [], "ada", "reject", ""),
    (rule(requester="mallory"), [], "mallory", "reject", ""),
    (TWO, ["grace"], "grace", "reject", ""),
    (rule(), [], "mallory", "reject", "mallory is not named as an approver"),
    (rule(), [], None, "reject", "nobody is recorded"),
    (rule(requester=None), [], None, "reject", "nobody is recorded"),
]


@pytest.mark.parametrize(("by", "before", "who", "what", "why"), CASES)
def test_whose_answer_counts(by: Rule, before: list[str], who: str | None, what: str, why: str) -> None:
    approval = answered(by, *((name, "approve") for name in before))
    found = answer(by, approval, who, what)
    assert found.counts is (why == "")
    assert found.why.startswith(why)
    assert (found.by, found.choice, found.at) == (who, what, at(60))


@pytest.mark.parametrize("what", ["approve", "reject"])
def test_an_answer_after_the_end_does_not_count(what: str) -> None:
    assert answer(rule(), asked(rule()), "grace", what, at=END).counts
    late = answer(rule(), asked(rule()), "grace", what, at=END + timedelta(seconds=1))
    assert not late.counts
    assert late.why == f"it came after {END:%Y-%m-%d %H:%M} UTC"


@pytest.mark.parametrize(
    "chosen",
    [[approve_option(OTHER)], ["Approve"], [], [approve_option(HASH), REJECT]],
    ids=["another plan", "no plan", "nothing", "both"],
)
def test_an_answer_to_another_question_stops(chosen: list[str]) -> None:
    with pytest.raises(PermanentError) as caught:
        answer(rule(), asked(rule()), "grace", chosen=chosen)
    assert caught.value.reference == "approval-outdated"
    assert HASH[:12] in caught.value.message


def test_the_answer_names_the_plan() -> None:
    assert approve_option("3f9a2c1b4d5e" + "0" * 52) == "Approve plan 3f9a2c1b4d5e"


# ----------------------------------------------------------------------------------------------------------- the record


@pytest.mark.parametrize(
    ("by", "answers", "state", "missing"),
    [
        (rule(), [], "waiting", 1),
        (rule(), [("grace", "approve")], "approved", 0),
        (rule(), [("mallory", "approve")], "waiting", 1),
        (rule(), [("mallory", "reject")], "waiting", 1),
        (rule(), [("grace", "reject")], "rejected", 1),
        (EMERGENCY, [("ada", "approve"), ("grace", "approve")], "approved", 0),
        (TWO, [("grace", "approve")], "waiting", 1),
        (TWO, [("grace", "approve"), ("grace", "approve")], "waiting", 1),
        (TWO, [("grace", "approve"), ("ada", "approve")], "waiting", 1),
        (TWO, [("grace", "approve"), ("linus", "approve")], "approved", 0),
        (TWO, [("grace", "approve"), ("linus", "reject")], "rejected", 1),
    ],
)
def test_what_is_missing_and_what_happens_next(
    by: Rule, answers: list[tuple[str | None, str]], state: str, missing: int
) -> None:
    found = answered(by, *answers)
    assert (found.state, found.missing()) == (state, missing)
    assert [(a.by, a.choice) for a in found.answers] == answers, (
        "every answer is recorded, also one that does not count"
    )


def test_an_end_without_an_answer_is_recorded() -> None:
    waiting = answered(TWO, ("grace", "approve"))
    assert waiting.expired().state == "expired"
    error = expired(waiting.expired(), END)
    assert error.reference == "approval-expired"
    assert "1 of 2 approvals are missing" in error.message


def test_a_rejection_names_who_and_when() -> None:
    error = rejected(answer(rule(), asked(rule()), "grace", "reject"))
    assert (error.reference, "by grace at 20" in error.message) == ("approval-rejected", True)


PEOPLE = st.sampled_from(["ada", "grace", "linus", "mallory", None])


@given(
    st.lists(st.tuples(PEOPLE, st.sampled_from(["approve", "reject"])), max_size=6), st.sampled_from([EMERGENCY, TWO])
)
def test_nothing_is_approved_but_by_enough_others_who_are_named(answers: list[tuple[Any, str]], by: Rule) -> None:
    found = answered(by, *answers)
    named = {who for who, what in answers if what == "approve"} & {"grace", "linus"}
    vetoed = any(what == "reject" and who in by.approvers for who, what in answers)
    if found.state == "approved":
        assert len(named) >= by.needed
        check_approved(by, found, HASH)
    if len(named) >= by.needed and not vetoed:
        assert found.state == "approved"


# ------------------------------------------------------------------------------------------------------- at the journal


@pytest.mark.parametrize(
    ("approval", "part"),
    [
        (None, "approved by nobody"),
        (asked(TWO), "approved by nobody"),
        (asked(TWO, state="approved"), "approved by nobody"),
        (answered(TWO, ("grace", "approve")), "approved by grace"),
        (answered(TWO, ("grace", "approve"), ("grace", "approve")), "approved by grace"),
        (answered(TWO, ("grace", "approve"), ("linus", "reject")), "it was rejected"),
        (
            answered(TWO, ("grace", "approve"), ("linus", "approve")).model_copy(update={"plan_hash": OTHER}),
            "plan bbbbbbbbbbbb was approved, and this is plan aaaaaaaaaaaa",
        ),
    ],
    ids=["no record", "waiting", "the state alone", "one of two", "twice the same", "rejected", "another plan"],
)
def test_a_change_does_not_begin_without_its_approval(approval: Approval | None, part: str) -> None:
    with pytest.raises(PermanentError) as caught:
        check_approved(TWO, approval, HASH)
    assert caught.value.reference == "approval-missing"
    assert part in caught.value.message


def test_an_approver_who_is_named_no_more_does_not_count_any_more() -> None:
    approval = answered(rule(), ("grace", "approve"))
    check_approved(rule(), approval, HASH)
    with pytest.raises(PermanentError):
        check_approved(rule(approvers=("ada",)), approval, HASH)


def test_a_change_begins_without_a_record_where_nobody_is_asked() -> None:
    check_approved(rule(needed=0), None, HASH)


def test_a_record_survives_json() -> None:
    found = answered(TWO, ("grace", "approve"), ("mallory", "approve"))
    assert Approval.model_validate_json(found.model_dump_json()) == found
