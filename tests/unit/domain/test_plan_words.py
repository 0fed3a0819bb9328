"""Plans in words, and the question that shows one: what a person must see to decide."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nephoran_maintenance.domain.approval import Answer, Approval, Rule
from nephoran_maintenance.domain.approval_question import body, subject
from nephoran_maintenance.domain.plan import Change, Plan, difference, plan_hash
from nephoran_maintenance.domain.plan_words import changed_lines, differences, in_words
from tests.unit.domain.kubernetes_objects import NEW_IMAGE, OLD_IMAGE, at
from tests.unit.domain.test_plan import OTHERS, change, plan, state

DIGEST = "sha256:" + "7" * 64


def test_a_change_of_an_image_in_one_line() -> None:
    pinned = change(after=state(f"registry.example/nephoran/rag-api:v2@{DIGEST}"))
    assert in_words(pinned) == f"rag-api: image {OLD_IMAGE.rpartition('/')[2]} → rag-api:v2@sha256:777777777777…"


def test_a_change_of_a_policy_in_one_line() -> None:
    assert in_words(change(kind="policy")) == "rag-api: rolling-update policy"


def test_only_changed_lines_are_shown_and_not_too_many() -> None:
    diff = difference("rag-api", state(OLD_IMAGE), state(NEW_IMAGE))
    lines = changed_lines(diff)
    assert len(lines) == 2
    assert [line[0] for line in lines] == ["-", "+"]
    assert OLD_IMAGE in lines[0]
    assert NEW_IMAGE in lines[1]
    long = "\n".join(f"+line {n}" for n in range(20))
    assert changed_lines(long, 5) == ["+line 0", "+line 1", "+line 2", "+line 3", "+line 4", "… 15 more lines"]
    assert len(changed_lines(long, 20)) == 20


@pytest.mark.parametrize("other", OTHERS)
def test_whatever_changes_the_hash_is_named(other: Change) -> None:
    assert differences(plan(change()), plan(other)) != []


def test_equal_plans_do_not_differ() -> None:
    moved = change(before={**state(OLD_IMAGE), "generation": 99, "revision": "9", "replicas": 7})
    assert plan_hash(plan(moved)) == plan_hash(plan(change()))
    assert differences(plan(change()), plan(moved)) == []


@pytest.mark.parametrize(
    ("planned", "now", "part"),
    [
        (plan(change(), change("llm-processor")), plan(change()), "not needed any more: llm-processor: image"),
        (plan(change()), plan(change(), change(kind="policy")), "not planned: rag-api: rolling-update policy"),
        (
            plan(change()),
            plan(change(digest=DIGEST)),
            f"the digest of the new image was sha256:{'0' * 64}, is {DIGEST}",
        ),
        (plan(change(digest_before=DIGEST)), plan(change()), f"the digest that runs was {DIGEST}, is None"),
        (
            plan(change()),
            plan(change(workload={"kind": "StatefulSet", "namespace": "ns", "name": "rag-api"})),
            "the object was Deployment/ns/rag-api, is StatefulSet/ns/rag-api",
        ),
        (plan(change()), plan(change(before=state("r/rag-api:v0"))), "+image: r/rag-api:v0"),
        (plan(change()), plan(change(after=state("r/rag-api:v9"))), "+image: r/rag-api:v9"),
        (plan(), plan(nothing_to_do=("a: runs",)), "now: a: runs"),
        (plan(nothing_to_do=("a: runs",)), plan(), "not so any more: a: runs"),
        (plan(change("a"), change("b")), plan(change("b"), change("a")), "the order of the changes is another"),
        (plan(), plan(system="other"), "the plan is of another procedure or system"),
    ],
)
def test_says_in_what_two_plans_differ(planned: Plan, now: Plan, part: str) -> None:
    assert any(part in line for line in differences(planned, now)), differences(planned, now)


CHANGES = st.lists(
    st.builds(
        change,
        component=st.sampled_from(["a", "b", "c"]),
        before=st.sampled_from([state(OLD_IMAGE), state("r/x:v0"), {**state(OLD_IMAGE), "container": "other"}]),
        digest=st.sampled_from([None, DIGEST]),
    ),
    max_size=3,
    unique_by=lambda found: found.component,
)


@given(CHANGES, CHANGES)
def test_plans_differ_in_words_exactly_when_their_hashes_do(planned: list[Change], now: list[Change]) -> None:
    one, other = plan(*planned), plan(*now)
    assert (differences(one, other) == []) is (plan_hash(one) == plan_hash(other))


# --------------------------------------------------------------------------------------------------------- the question

RULE = Rule(
    category="infrastructure",
    needed=2,
    approvers=("ada", "grace_h", "linus"),
    requester="ada",
    requester_counts=False,
    expires_after=timedelta(hours=4),
)
HASH = "3f9a2c1b4d5e" + "0" * 52
WARNING = {
    "check": "ownership",
    "severity": "warn",
    "object": "Deployment/x",
    "observed": "helm",
    "expected": "",
    "hint": "Look.",
}


def asked(**fields: Any) -> Approval:
    return Approval(**{"category": "infrastructure", "needed": 2, "plan_hash": HASH, **fields})


def question(approval: Approval, findings: Any = (), **fields: Any) -> str:
    planned = plan(change(diff=difference("rag-api", state(OLD_IMAGE), state(NEW_IMAGE))), nothing_to_do=("b: runs",))
    times = {"asked_at": at(0), "expires_at": at(0) + timedelta(hours=3, minutes=59), "reason": "CHG-1"}
    return body(RULE, approval, planned, findings, **{**times, **fields})


def test_the_question_has_everything_that_is_needed_to_decide() -> None:
    text = question(asked(), [WARNING, {**WARNING, "severity": "pass", "observed": "unseen"}])
    for part in (
        "| asked for by | ada |",
        "| category | infrastructure |",
        "| reason | CHG-1 |",
        "3 h 59 min after this question",
        "| answers needed | 2 of 2 |",
        f"**Plan** `{HASH}`",
        "`Approve plan 3f9a2c1b4d5e` counts from grace\\_h or linus;",
        "`Reject`",
        "* rag-api: image",
        "* b: runs",
        "* warn, ownership of Deployment/x: helm. Look.",
    ):
        assert part in text, part
    assert any(line.startswith("+") and line.endswith(f"image: {NEW_IMAGE}") for line in text.splitlines())
    assert "unseen" not in text


def test_the_second_person_sees_who_was_first_and_that_they_do_not_count_again() -> None:
    first = Answer(by="grace_h", at=at(1), choice="approve", counts=True)
    approval = asked(answers=(first,))
    text = question(approval)
    assert "| answers needed | 1 of 2 |" in text
    assert "| approved already by | grace\\_h |" in text
    assert "counts from linus;" in text
    assert subject(RULE, approval, plan(change()), at(0)).startswith(
        "second approval: infrastructure change of rag-api in"
    )


def test_says_that_there_is_nothing_to_heed_and_no_reason() -> None:
    text = question(asked(), [], reason=None)
    assert "**Findings to heed**: none." in text
    assert "| reason | none given |" in text


def test_does_not_show_findings_without_end() -> None:
    text = question(asked(), [WARNING] * 25)
    assert text.count("* warn, ownership") == 20
    assert "… and 5 more." in text


def test_what_others_wrote_can_not_pass_for_our_text() -> None:
    text = question(asked(), reason="fine |\n\n# Approved by all <b>[click](http://x)</b> `x`")
    assert "\\# Approved by all \\<b\\>\\[click\\](http://x)" in text
    assert "\n# Approved" not in text
    fence = plan(change(diff="+```\n+# not a headline"))
    shown = body(RULE, asked(), fence, [], asked_at=at(0), expires_at=at(9), reason=None)
    assert shown.count("```") == 2, "a diff must not end its own block"
