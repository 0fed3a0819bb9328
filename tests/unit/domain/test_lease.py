"""Who may take the lease, and what a write must bear to be let through."""

from __future__ import annotations

import copy
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nephoran_maintenance.domain.lease import (
    FENCE,
    LET_GO,
    PROCEDURE,
    check_fence,
    fence_of,
    fence_test,
    lease_of,
    let_go,
    new_lease,
    refusal,
    released,
    renewed,
    stamp_patch,
    taken,
    unstamp_patch,
)
from nephoran_maintenance.errors import PermanentError
from tests.unit.domain.kubernetes_objects import at

ME, OTHER = "rolling-upgrade-20261123t100000-aaaaaa", "rolling-upgrade-20261123t090000-bbbbbb"
MINUTE = timedelta(seconds=60)


def held_by(holder: str, since: float = 0) -> dict[str, Any]:
    return taken(new_lease("nephoran", "ns"), holder, "rolling_upgrade", MINUTE, at(since))


@pytest.mark.parametrize(
    ("lease", "now", "standing"),
    [
        pytest.param(new_lease("n", "ns"), 0, "free", id="never taken"),
        pytest.param(released(held_by(OTHER)), 0, "free", id="released"),
        pytest.param(held_by(ME), 0, "mine", id="mine"),
        pytest.param(held_by(ME), 9999, "mine", id="mine and expired: nobody else took it"),
        pytest.param(held_by(OTHER), 59, "held", id="renewed in time"),
        pytest.param(held_by(OTHER), 60, "expired", id="not renewed for its duration"),
        pytest.param(renewed(held_by(OTHER), at(50)), 60, "held", id="renewed"),
        pytest.param(let_go(held_by(OTHER)), 1, "expired", id="let go"),
        pytest.param(renewed(let_go(held_by(OTHER)), at(1)), 2, "held", id="let go and held again"),
    ],
)
def test_how_a_lease_stands(lease: dict[str, Any], now: float, standing: str) -> None:
    assert lease_of(lease).standing(ME, at(now)) == standing


@pytest.mark.parametrize(
    ("lease", "now", "due"),
    [
        pytest.param(held_by(ME), 9, False, id="renewed a moment ago"),
        pytest.param(held_by(ME), 10, True, id="time to renew"),
        pytest.param(renewed(held_by(ME), at(5)), 14, False, id="renewed since it was taken"),
        pytest.param(let_go(held_by(ME)), 1, True, id="let go"),
    ],
)
def test_when_a_lease_is_renewed(lease: dict[str, Any], now: float, due: bool) -> None:
    assert lease_of(lease).due(at(now), timedelta(seconds=10)) is due


def test_a_new_lease_is_ours_and_nobodys() -> None:
    assert new_lease("nephoran", "ns") == {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {
            "name": "nephoran",
            "namespace": "ns",
            "labels": {"app.kubernetes.io/managed-by": "nephoran-maintenance"},
        },
        "spec": {"leaseTransitions": 0},
    }


def test_a_lease_without_a_spec_reads_as_never_taken() -> None:
    found = lease_of({"metadata": {"name": "nephoran"}})
    assert (found.name, found.holder, found.token) == ("nephoran", None, 0)
    assert (found.procedure, found.duration, found.let_go) == ("unknown procedure", timedelta(0), False)


def test_taking_keeps_what_others_wrote_and_nothing_of_the_holder_before() -> None:
    found = let_go(held_by(OTHER))
    found["metadata"]["annotations"]["other"] = "x"
    found["spec"]["preferredHolder"] = "y"
    lease = taken(found, ME, "recover_operation", MINUTE, at(9))
    assert lease["metadata"]["annotations"] == {"other": "x", PROCEDURE: "recover_operation"}
    assert lease["spec"] == {
        "preferredHolder": "y",
        "holderIdentity": ME,
        "leaseDurationSeconds": 60,
        "acquireTime": "2026-11-23T10:00:09.000000Z",
        "renewTime": "2026-11-23T10:00:09.000000Z",
        "leaseTransitions": 2,
    }


def test_a_lease_lasts_for_a_second_at_least_as_kubernetes_asks() -> None:
    lease = taken({"metadata": {"name": "n"}}, ME, "p", timedelta(seconds=0.2), at(0))
    assert lease["spec"]["leaseDurationSeconds"] == 1
    assert lease["spec"]["leaseTransitions"] == 1


def test_a_lease_that_was_deleted_counts_on() -> None:
    assert lease_of(taken(new_lease("n", "ns"), ME, "p", MINUTE, at(0), above=7)).token == 8
    assert lease_of(taken(new_lease("n", "ns"), ME, "p", MINUTE, at(0))).token == 1


def test_what_holder_and_letting_go_leave_behind() -> None:
    lease = held_by(OTHER)
    assert let_go(lease)["metadata"]["annotations"] == {PROCEDURE: "rolling_upgrade", LET_GO: OTHER}
    for again in (renewed(let_go(lease), at(5)), released(let_go(lease))):
        assert again["metadata"]["annotations"] == {PROCEDURE: "rolling_upgrade"}
    assert renewed(lease, at(5))["spec"] == {**lease["spec"], "renewTime": "2026-11-23T10:00:05.000000Z"}
    free = released(lease)
    assert free["spec"] == {key: value for key, value in lease["spec"].items() if key != "holderIdentity"}
    assert released(free) == free
    bare = {"metadata": {"name": "n"}, "spec": {"holderIdentity": ME}}
    assert renewed(bare, at(5))["metadata"] == released(bare)["metadata"] == {"name": "n"}
    assert let_go(bare)["metadata"]["annotations"] == {LET_GO: ME}


def test_no_step_changes_the_object_that_it_was_given() -> None:
    lease = let_go(held_by(OTHER))
    before = copy.deepcopy(lease)
    taken(lease, ME, "p", MINUTE, at(5))
    renewed(lease, at(5))
    released(lease)
    let_go(lease)
    assert lease == before


@pytest.mark.parametrize(
    ("lease", "left_open", "reference"),
    [
        pytest.param(new_lease("n", "ns"), [], None, id="free"),
        pytest.param(held_by(OTHER, 0), [OTHER], "lease-held", id="a living owner is never disturbed"),
        pytest.param(held_by(OTHER, -60), [OTHER], "operation-abandoned", id="what a dead one left open comes first"),
        pytest.param(held_by(OTHER, -60), [], None, id="a dead one that left nothing open"),
        pytest.param(released(held_by(OTHER)), [OTHER], "operation-abandoned", id="open without an owner"),
        pytest.param(held_by(ME, -60), [ME], None, id="my own"),
        pytest.param(let_go(held_by(OTHER)), [OTHER], "operation-abandoned", id="let go"),
    ],
)
def test_when_an_operation_may_begin(lease: dict[str, Any], left_open: list[str], reference: str | None) -> None:
    refused = refusal(lease_of(lease), left_open, ME, at(0))
    assert (refused.reference if refused else None) == reference
    if refused is not None:
        assert OTHER in str(refused), "the owner is named"
        assert refused.hint


def test_a_refusal_says_who_and_since_when() -> None:
    refused = refusal(lease_of(held_by(OTHER)), [], ME, at(1))
    assert refused is not None
    assert f"{OTHER} (rolling_upgrade, since {at(0).isoformat(timespec='seconds')})" in refused.message
    assert refused.context == {"lease": "nephoran", "holder": OTHER}


def test_my_own_lease_refuses_nothing() -> None:
    assert refusal(lease_of(held_by(ME)), [], ME, at(1)) is None


def test_a_refusal_names_what_was_left_open() -> None:
    refused = refusal(lease_of(new_lease("nephoran", "ns")), [OTHER, ME], ME, at(1))
    assert refused is not None
    assert f"operation {OTHER} was left open" in refused.message
    assert refused.context == {"operation": OTHER, "lease": "nephoran"}


STEPS = st.sampled_from(["take", "take over", "renew", "release", "let go"])


@given(st.lists(STEPS, max_size=30))
def test_the_token_only_grows_and_each_taking_has_its_own(steps: list[str]) -> None:
    lease, now, tokens = new_lease("nephoran", "ns"), at(0), []
    for step in steps:
        before, now = lease_of(lease).token, now + timedelta(seconds=7)
        if step in ("take", "take over"):
            lease = taken(lease, ME if step == "take" else OTHER, "p", MINUTE, now)
            tokens.append(lease_of(lease).token)
        elif lease_of(lease).holder is not None:
            changed = {"renew": renewed(lease, now), "release": released(lease), "let go": let_go(lease)}
            lease = changed[step]
        assert lease_of(lease).token >= before
    assert tokens == sorted(set(tokens)), "no two takings share a token"


@given(st.floats(0, 1e8), st.integers(3, 3600))
def test_moments_survive_the_object(moment: float, seconds: int) -> None:
    now = at(moment)
    lease = lease_of(taken(new_lease("n", "ns"), ME, "p", timedelta(seconds=seconds), now))
    assert (lease.renewed_at, lease.taken_at, lease.duration) == (now, now, timedelta(seconds=seconds))


# ---------------------------------------------------------------------------------------------------------- the fence


def workload(**annotations: str) -> dict[str, Any]:
    metadata: dict[str, Any] = {"name": "rag-api", "uid": "u-1"}
    return {"kind": "Deployment", "metadata": {**metadata, **({"annotations": annotations} if annotations else {})}}


def test_the_path_of_the_test_is_escaped() -> None:
    assert fence_test(7) == {
        "op": "test",
        "path": "/metadata/annotations/maintenance.nephoran.com~1fence",
        "value": "7",
    }


def test_a_stamp_keeps_other_annotations_and_names_the_very_object() -> None:
    bare, own = stamp_patch(workload(), 7), stamp_patch(workload(other="x"), 7)
    assert bare[1] == {"op": "add", "path": "/metadata/annotations", "value": {FENCE: "7"}}
    assert own[1] == {"op": "add", "path": fence_test(7)["path"], "value": "7"}
    for patch in (bare, own, unstamp_patch(workload(**{FENCE: "7"}), 7)):
        assert patch[0] == {"op": "test", "path": "/metadata/uid", "value": "u-1"}


def test_only_our_own_stamp_is_taken_away() -> None:
    assert unstamp_patch(workload(**{FENCE: "7"}), 7)[1:] == [
        fence_test(7),
        {"op": "remove", "path": fence_test(7)["path"]},
    ]


@given(st.integers(1, 50), st.integers(1, 50))
def test_an_older_owner_never_stamps_over_a_newer_one(there: int, mine: int) -> None:
    found = workload(**{FENCE: str(there)})
    if there > mine:
        with pytest.raises(PermanentError) as error:
            stamp_patch(found, mine)
        assert error.value.reference == "lease-lost"
        assert f"Deployment/rag-api has token {there}, this operation holds token {mine}" in error.value.message
    else:
        assert stamp_patch(found, mine)[1]["value"] == str(mine)


@pytest.mark.parametrize(
    ("annotations", "observed"),
    [({}, "no token"), ({FENCE: "8"}, "token 8"), ({FENCE: "6"}, "token 6"), ({FENCE: "what"}, "no token")],
)
def test_an_object_without_our_token_is_not_ours(annotations: dict[str, str], observed: str) -> None:
    with pytest.raises(PermanentError) as error:
        check_fence(workload(**annotations), 7)
    assert error.value.reference == "lease-lost"
    assert error.value.message.startswith(f"Deployment/rag-api has {observed}, this operation holds token 7")
    assert error.value.context == {"token": 7}
    assert "kubectl get lease" in error.value.hint


def test_an_object_with_our_token_is_ours() -> None:
    check_fence(workload(**{FENCE: "7"}), 7)
    assert fence_of(workload(**{FENCE: "7"})) == 7
