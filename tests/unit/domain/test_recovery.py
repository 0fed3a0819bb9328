"""What a recovery decides: a table of what it can find, and properties over everything that it can."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nephoran_maintenance.domain.journal import Journal, JournalEntry, Step, Workload
from nephoran_maintenance.domain.lease import Lease, lease_of, let_go, new_lease, released, taken
from nephoran_maintenance.domain.recovery import Condition, condition_of, judge
from tests.unit.domain.kubernetes_objects import at

RUN, ME, OTHER = "rolling-upgrade-x", "recover-operation-me", "recover-operation-other"
COMPONENTS = ("weaviate", "rag-api")


def spec(image: str, partition: int = 0) -> dict[str, Any]:
    return {
        "template": {"spec": {"containers": [{"name": "c", "image": image}]}},
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": partition}},
    }


def workload(image: str, partition: int = 0) -> dict[str, Any]:
    found = spec(image, partition)
    return {"kind": "StatefulSet", "spec": {"template": found["template"], "updateStrategy": found["strategy"]}}


def entry(component: str, step: Step = "planned", kind: Any = "image", **states: Any) -> JournalEntry:
    reference = Workload(kind="StatefulSet", namespace="ns", name=component)
    given_states = {"before": spec("v1"), "intended": spec("v2"), **states}
    return JournalEntry(component=component, kind=kind, workload=reference, step=step, **given_states)


def journal(*steps: Step, good: bool = False, back: bool = False, **changes: Any) -> Journal:
    return Journal(
        operation_id=RUN,
        procedure="rolling_upgrade",
        run_id="r",
        system="nephoran",
        plan_hash="h",
        started_at=at(0),
        verified_at=at(1) if good else None,
        turned_back_at=at(2) if back else None,
        entries=tuple(entry(name, step) for name, step in zip(COMPONENTS, steps, strict=True)),
        **changes,
    )


def alone(step: Step, **changes: Any) -> Journal:
    """Return a journal whose second component may fail, and is at a step of its own way back."""
    found = journal("verified", step, **changes)
    first, second = found.entries
    return found.model_copy(update={"entries": (first, second.model_copy(update={"criticality": "may fail"}))})


def held(by: str, age: float = 0) -> Lease:
    return lease_of(taken(new_lease("n", "ns"), by, "p", timedelta(seconds=60), at(-age)))


@pytest.mark.parametrize(
    ("live", "condition"),
    [
        (workload("v1"), "before"),
        (workload("v2"), "intended"),
        (workload("v2", 2), "between"),
        (workload("v1", 3), "between"),
        (workload("v3"), "unknown"),
        (None, "missing"),
    ],
    ids=["before", "intended", "partition-in-the-middle", "partition-left-behind", "others", "deleted"],
)
def test_in_which_state_an_object_is(live: Any, condition: str) -> None:
    assert condition_of(live, [entry("weaviate")]) == condition


def test_the_state_between_policy_and_image_is_known() -> None:
    entries = [
        entry("a", kind="policy", before=spec("v1", 0), intended=spec("v1", 1)),
        entry("a", before=spec("v1", 1), intended=spec("v2", 1)),
    ]
    assert condition_of(workload("v1", 1), entries) == "between"
    assert condition_of(workload("v2", 1), entries) == "intended"


def strategy(kind: str, **rolling: Any) -> dict[str, Any]:
    return {"type": kind, **({"rollingUpdate": rolling} if rolling else {})}


def live_of(kind: str, image: str, live: dict[str, Any]) -> dict[str, Any]:
    field = "strategy" if kind == "Deployment" else "updateStrategy"
    return {"kind": kind, "spec": {"template": spec(image)["template"], field: live}}


SURGE = strategy("RollingUpdate", maxSurge=1, maxUnavailable=0)
OTHER_SURGE = strategy("RollingUpdate", maxSurge=3, maxUnavailable=0)
ON_DELETE = strategy("OnDelete")
TWO_AT_ONCE = strategy("RollingUpdate", partition=0, maxUnavailable=2)


@pytest.mark.parametrize(
    ("kind", "recorded", "live", "condition"),
    [
        pytest.param("Deployment", SURGE, SURGE, "intended", id="deployment"),
        pytest.param("Deployment", SURGE, OTHER_SURGE, "unknown", id="deployment-with-anothers-surge"),
        pytest.param("Deployment", SURGE, strategy("Recreate"), "unknown", id="deployment-recreated"),
        pytest.param("DaemonSet", SURGE, OTHER_SURGE, "unknown", id="daemon-set-with-anothers-surge"),
        pytest.param("DaemonSet", SURGE, ON_DELETE, "unknown", id="daemon-set-on-delete"),
        pytest.param("StatefulSet", TWO_AT_ONCE, {**TWO_AT_ONCE}, "intended", id="stateful-set"),
        pytest.param(
            "StatefulSet",
            TWO_AT_ONCE,
            strategy("RollingUpdate", partition=2, maxUnavailable=2),
            "between",
            id="stateful-set-stepped",
        ),
        pytest.param(
            "StatefulSet",
            TWO_AT_ONCE,
            strategy("RollingUpdate", partition=2, maxUnavailable=3),
            "unknown",
            id="stateful-set-with-anothers-pace",
        ),
        pytest.param("StatefulSet", TWO_AT_ONCE, ON_DELETE, "unknown", id="stateful-set-that-somebody-stopped"),
        pytest.param(
            "StatefulSet", ON_DELETE, strategy("RollingUpdate", partition=1), "between", id="on-delete-stepped"
        ),
        pytest.param(
            "StatefulSet",
            ON_DELETE,
            strategy("RollingUpdate", partition=1, maxUnavailable=1),
            "between",
            id="on-delete-stepped-with-the-server's-default",
        ),
        pytest.param(
            "StatefulSet",
            ON_DELETE,
            strategy("RollingUpdate", partition=1, maxUnavailable=2),
            "unknown",
            id="on-delete-with-anothers-pace",
        ),
    ],
)
@pytest.mark.parametrize("image", ["v1", "v2"])
def test_only_the_partition_of_a_stateful_set_may_differ_on_the_way(
    kind: str, recorded: dict[str, Any], live: dict[str, Any], condition: str, image: str
) -> None:
    states = {"before": {**spec("v1"), "strategy": recorded}, "intended": {**spec("v2"), "strategy": recorded}}
    reference = Workload(kind=kind, namespace="ns", name="a")
    entries = [JournalEntry(component="a", kind="image", workload=reference, **states)]
    wanted = "before" if condition == "intended" and image == "v1" else condition
    assert condition_of(live_of(kind, image, live), entries) == wanted


def test_the_strategy_of_one_state_with_the_template_of_another_is_unknown() -> None:
    """Both come in one write."""
    before, intended = {**spec("v1"), "strategy": SURGE}, {**spec("v2"), "strategy": OTHER_SURGE}
    reference = Workload(kind="Deployment", namespace="ns", name="a")
    entries = [JournalEntry(component="a", kind="policy", workload=reference, before=before, intended=intended)]
    assert condition_of(live_of("Deployment", "v1", OTHER_SURGE), entries) == "unknown"
    assert condition_of(live_of("Deployment", "v2", SURGE), entries) == "unknown"


OK = {"weaviate": "intended", "rag-api": "intended"}
TABLE: list[Any] = [
    # journal, lease, conditions, decision, part of the reason
    (journal("verified", "intended"), held(RUN), OK, "leave", "its own run"),
    (journal("verified", "intended"), held(OTHER), OK, "leave", OTHER),
    (journal("rolling-back", "planned", back=True), held(RUN), OK, "leave", "its own run"),
    (journal("verified", "verified", good=True, state="closed"), None, OK, "leave", "is closed"),
    (journal("verified", "verified", good=True), held(RUN, 60), OK, "finish", "only closing"),
    (journal("verified", "verified", good=True), None, OK, "finish", "only closing"),
    (journal("verified", "verified"), held(RUN, 60), OK, "undo", "not everything together"),
    (journal("verified", "verified", good=True, back=True), None, OK, "undo", "way back had begun"),
    (journal("verified", "verified", good=True), None, {**OK, "rag-api": "between"}, "undo", "every change"),
    (journal("verified", "intended"), held(RUN, 61), OK, "undo", "1 of 2 changes"),
    (journal("verified", "intended"), lease_of(let_go(taken(new_lease("n", "s"), RUN, "p", timedelta(60), at(0)))), OK,
     "undo", "1 of 2"),
    (journal("planned", "planned"), held(RUN, 61), {"weaviate": "before", "rag-api": "unknown"}, "undo", "nothing had"),
    (journal("rolled-back", "planned", back=True), None, {**OK, "weaviate": "before"}, "undo", "back already"),
    (journal("verified", "applied"), None, {**OK, "rag-api": "unknown"}, "stop", "rag-api is in no state"),
    (journal("verified", "applied"), None, {**OK, "weaviate": "missing"}, "stop", "weaviate is not in the cluster"),
    (journal("verified", "planned"), None, {**OK, "rag-api": "unknown"}, "undo", "1 of 2"),
    (alone("rolling-back"), None, {**OK, "rag-api": "between"}, "undo", "1 of 2"),
    (alone("rolled-back"), None, {**OK, "rag-api": "before"}, "undo", "not everything together"),
    (alone("rolled-back", good=True), None, {**OK, "rag-api": "before"}, "finish", "but for rag-api, which may fail"),
    (alone("left-out", good=True), None, {**OK, "rag-api": "before"}, "finish", "but for rag-api"),
    (alone("rolled-back", good=True), None, OK, "undo", "every change"),
    (alone("rolled-back", good=True, back=True), None, {**OK, "rag-api": "before"}, "undo", "way back had begun"),
    (alone("rolled-back", good=True), None, {**OK, "weaviate": "unknown"}, "stop", "weaviate is in no state"),
    (alone("rolling-back"), None, {**OK, "rag-api": "unknown"}, "stop", "rag-api is in no state"),
]  # fmt: skip


@pytest.mark.parametrize(("found", "lease", "conditions", "decision", "reason"), TABLE)
def test_what_is_decided(found: Journal, lease: Lease | None, conditions: Any, decision: str, reason: str) -> None:
    judgement = judge(found, lease, conditions, me=ME, now=at(0))
    assert judgement.decision == decision
    assert reason in judgement.reason


def test_names_every_object_that_others_have_changed() -> None:
    strange: dict[str, Condition] = {"weaviate": "missing", "rag-api": "unknown"}
    said = "weaviate is not in the cluster, rag-api is in no state that this operation has recorded or intended; "
    assert judge(journal("verified", "applied"), None, strange, me=ME, now=at(0)).reason.startswith(said)
    done = journal("verified", "verified", good=True, state="closed", outcome="succeeded")
    assert judge(done, None, strange, me=ME, now=at(0), back=True).reason.startswith(said)


def test_an_operation_that_could_be_finished_is_undone_when_a_person_wants_it() -> None:
    judgement = judge(journal("verified", "verified", good=True), None, OK, me=ME, now=at(0), back=True)
    assert (judgement.decision, judgement.reason) == ("undo", "a person wants it undone")


@pytest.mark.parametrize(
    ("outcome", "conditions", "decision"),
    [
        ("succeeded", OK, "undo"),
        ("succeeded", {**OK, "rag-api": "before"}, "stop"),
        ("succeeded", {**OK, "rag-api": "unknown"}, "stop"),
        ("rolled-back", OK, "leave"),
        ("nothing-changed", OK, "leave"),
    ],
)
def test_a_person_may_want_a_closed_operation_undone(outcome: Any, conditions: Any, decision: str) -> None:
    found = journal("verified", "verified", good=True, state="closed", outcome=outcome)
    judgement = judge(found, None, conditions, me=ME, now=at(0), back=True)
    assert judgement.decision == decision
    assert judgement.reason
    assert judge(found, None, conditions, me=ME, now=at(0)).decision == "leave", "nobody wants it"


def test_what_stayed_behind_is_no_matter_of_the_way_back_that_a_person_wants() -> None:
    found = alone("rolled-back", good=True).model_copy(update={"state": "closed", "outcome": "partly-succeeded"})
    conditions: dict[str, Condition] = {"weaviate": "intended", "rag-api": "unknown"}
    assert judge(found, None, conditions, me=ME, now=at(0), back=True).decision == "undo"
    conditions["weaviate"] = "before"
    assert judge(found, None, conditions, me=ME, now=at(0), back=True).decision == "stop"


STEPS = st.sampled_from(get_args(Step))
CONDITIONS = st.sampled_from(get_args(Condition))
LEASES = st.sampled_from(
    [None, held(RUN), held(RUN, 61), held(OTHER), held(OTHER, 61), held(ME), lease_of(released(new_lease("n", "s")))]
)


@given(STEPS, STEPS, CONDITIONS, CONDITIONS, LEASES, st.booleans(), st.booleans(), st.booleans())
def test_nothing_is_done_while_an_owner_lives_nor_to_an_object_in_no_known_state(
    one: Step, two: Step, first: Condition, second: Condition, lease: Lease | None, good: bool, turned: bool, back: bool
) -> None:
    found = journal(one, two, good=good, back=turned)
    conditions: dict[str, Condition] = {"weaviate": first, "rag-api": second}
    judgement = judge(found, lease, conditions, me=ME, now=at(0), back=back)
    assert judgement.reason
    if lease is not None and lease.standing(ME, at(0)) == "held":
        assert judgement.decision == "leave"
        return
    strange = [name for name in found.begun() if conditions[name] in ("unknown", "missing")]
    assert (judgement.decision == "stop") == bool(strange)
    if judgement.decision == "finish":
        assert found.complete()
        assert good
        assert not turned
        assert not back
        assert first == second == "intended"
