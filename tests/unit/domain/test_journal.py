"""The journal: what it says about the way back, and that it survives the ConfigMap unchanged."""

from __future__ import annotations

import json
import re
from datetime import datetime, timedelta, timezone
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nephoran_maintenance.domain.journal import (
    BEGUN,
    Failure,
    Journal,
    JournalEntry,
    Outcome,
    Step,
    Takeover,
    Workload,
    from_config_map,
    is_of_system,
    operation_id,
    outcome_of,
    to_config_map,
)
from nephoran_maintenance.errors import PermanentError, UnknownStateError
from tests.unit.domain.kubernetes_objects import at


def entry(component: str, kind: Any = "image", step: Step = "planned", **more: Any) -> JournalEntry:
    workload = Workload(kind="Deployment", namespace="nephoran-system", name=component)
    before = {"template": {"spec": {"image": "v1"}}, "strategy": {}}
    return JournalEntry(
        component=component, kind=kind, workload=workload, before=before, intended={"template": {}}, step=step, **more
    )


def journal(*entries: JournalEntry, **changes: Any) -> Journal:
    fields: dict[str, Any] = {
        "operation_id": "rolling-upgrade-20261123t100000-abcdef",
        "procedure": "rolling_upgrade",
        "run_id": "manual__2026",
        "system": "nephoran",
        "plan_hash": "0" * 64,
        "started_at": at(0),
    }
    return Journal(**{**fields, **changes}, entries=entries)


@pytest.mark.parametrize("step", get_args(Step))
def test_a_rollback_concerns_what_was_begun_and_nothing_else(step: Step) -> None:
    concerned = journal(entry("a", step=step)).to_roll_back()
    assert concerned == (["a"] if step in ("intended", "applied", "verified", "rolling-back") else [])
    assert (step in BEGUN) == bool(concerned)


def test_goes_back_in_reverse_order_and_each_component_once() -> None:
    entries = [
        entry("weaviate", step="verified"),
        entry("rag-api", "policy", "verified"),
        entry("rag-api", "image", "applied"),
        entry("llm-processor"),
    ]
    assert journal(*entries).begun() == ["weaviate", "rag-api"]
    assert journal(*entries).to_roll_back() == ["rag-api", "weaviate"]


def test_what_is_rolled_back_is_not_rolled_back_again() -> None:
    assert journal(entry("a", step="rolled-back"), entry("b", step="verified")).to_roll_back() == ["b"]


def test_is_complete_when_every_change_is_verified() -> None:
    assert journal(entry("a", step="verified")).complete()
    assert not journal(entry("a", step="verified"), entry("b", step="applied")).complete()


def test_moves_one_change_and_remembers_when_a_step_was_first_reached() -> None:
    start = journal(entry("a", "policy"), entry("a", "image"))
    moved = start.moved("a", "policy", "intended", at(1)).moved("a", "policy", "intended", at(9))
    policy, image = moved.entries
    assert (policy.step, policy.at) == ("intended", {"intended": at(1)})
    assert image == start.entries[1]
    assert start.entries[0].step == "planned"


def test_moves_all_begun_changes_of_a_component_and_no_other() -> None:
    start = journal(entry("a", "policy", "verified"), entry("a", "image"), entry("b", step="verified"))
    steps = [found.step for found in start.moved("a", None, "rolling-back", at(5)).entries]
    assert steps == ["rolling-back", "planned", "verified"]


def test_measures_a_change_from_its_intent_to_its_verification() -> None:
    done = journal(entry("a")).moved("a", "image", "intended", at(1)).moved("a", "image", "verified", at(31.5))
    assert done.entries[0].seconds() == 30.5
    assert entry("a").seconds() is None
    assert entry("a", at={"intended": at(1)}).seconds() is None


def test_finds_the_entry_of_a_change() -> None:
    found = journal(entry("a", "policy"), entry("a", "image"))
    assert found.entry("a", "image") is found.entries[1]
    assert found.entry("b", "image") is None
    assert found.entries_of("a") == list(found.entries)


def test_closes_once() -> None:
    closed = journal().closed("succeeded", at(5))
    assert (closed.state, closed.outcome, closed.closed_at) == ("closed", "succeeded", at(5))
    assert closed.closed("rolled-back", at(9)) == closed


def test_says_how_far_each_change_is() -> None:
    found = journal(entry("a", "policy", "verified"), entry("a", "image", "applied"))
    assert found.progress() == "a policy is verified, a image is applied"


def test_knows_the_object_of_each_component() -> None:
    found = journal(entry("a", "policy"), entry("a", "image"), entry("b"))
    assert found.workloads() == {"a": found.entries[0].workload, "b": found.entries[2].workload}


@pytest.mark.parametrize("token", [None, 6, 8])
def test_only_the_holder_of_its_token_may_write_it(token: int | None) -> None:
    with pytest.raises(PermanentError) as caught:
        journal(fencing_token=token).owned(7)
    assert caught.value.reference == "lease-lost"
    assert caught.value.message.startswith("the journal rolling-upgrade-20261123t100000-abcdef")
    assert f"token {token}" in caught.value.message
    assert caught.value.context == {"token": 7}


def test_its_holder_may_write_it() -> None:
    found = journal(fencing_token=7)
    assert found.owned(7) is found


@pytest.mark.parametrize("token", [None, 6, 7])
def test_a_newer_holder_takes_it(token: int | None) -> None:
    assert journal(fencing_token=token).fenced(7) == journal(fencing_token=7)


def test_an_older_holder_does_not_take_it() -> None:
    with pytest.raises(PermanentError) as caught:
        journal(fencing_token=8).fenced(7)
    assert caught.value.reference == "lease-lost"
    assert caught.value.message.startswith("the journal rolling-upgrade-20261123t100000-abcdef")
    assert "token 8" in caught.value.message
    assert caught.value.context == {"token": 7}


def test_the_first_moment_of_turning_back_and_of_being_good_counts() -> None:
    assert journal().turned_back(at(1)).turned_back(at(2)) == journal(turned_back_at=at(1))
    assert journal().seen_good(at(1)).seen_good(at(2)) == journal(verified_at=at(1))


def test_keeps_the_first_takeover_and_the_last_ones() -> None:
    all_of_them = tuple(
        Takeover(by=f"by-{n}", procedure="recover_operation", token=n, at=at(1), decision="undo", reason="gone")
        for n in range(1, 24)
    )
    kept = journal()
    for number, takeover in enumerate(all_of_them, 1):
        kept = kept.taken_over(takeover)
        if number == 21:
            assert kept.takeovers == all_of_them[:21]
    assert kept.takeovers == (all_of_them[0], *all_of_them[3:])


def test_is_opened_again_for_the_way_back_only() -> None:
    closed = journal(entry("a", step="verified")).closed("succeeded", at(5))
    assert closed.reopened(at(9)) == journal(entry("a", step="verified"), turned_back_at=at(9))


@pytest.mark.parametrize(
    ("reached", "verified", "outcome"),
    [
        pytest.param(("verified", "verified"), True, "succeeded", id="all verified, and together"),
        pytest.param(("verified", "verified"), False, None, id="all verified, but not together"),
        pytest.param(("verified", "planned"), True, None, id="one is left"),
        pytest.param(("planned", "planned"), True, "nothing-changed", id="nothing begun"),
        pytest.param((), True, "nothing-changed", id="nothing to do"),
        pytest.param(("rolled-back", "planned"), True, "rolled-back", id="what was begun is back"),
        pytest.param(("rolled-back", "rolled-back"), False, "rolled-back", id="everything is back"),
        pytest.param(("rolled-back", "rolling-back"), True, None, id="one is on its way back"),
        pytest.param(("rolled-back", "verified"), True, None, id="one is not on its way back yet"),
    ],
)
def test_its_entries_tell_the_outcome(reached: tuple[Step, ...], verified: bool, outcome: Outcome | None) -> None:
    found = journal(*(entry(f"c{number}", step=step) for number, step in enumerate(reached)))
    assert outcome_of(found, verified) == outcome


steps = st.sampled_from(get_args(Step))
moments = st.integers(-(10**8), 10**8).map(at)
entries = st.builds(
    entry,
    st.sampled_from(["weaviate", "rag-api"]),
    st.sampled_from(["policy", "image"]),
    steps,
    digest=st.none() | st.just("sha256:" + "0" * 64),
    at=st.dictionaries(steps, moments, max_size=3),
)


@given(st.lists(entries, max_size=12), st.none() | st.integers(0, 9), moments)
def test_survives_the_config_map(drawn: list[JournalEntry], token: int | None, started_at: datetime) -> None:
    written = journal(*drawn, fencing_token=token, started_at=started_at)
    config_map = json.loads(json.dumps(to_config_map(written, "nephoran-maintenance")))
    assert from_config_map(config_map) == written


def test_the_config_map_can_be_found_and_read_by_people() -> None:
    config_map = to_config_map(journal(entry("a", step="applied"), entry("b")), "nephoran-maintenance")
    metadata = config_map["metadata"]
    assert (config_map["apiVersion"], config_map["kind"]) == ("v1", "ConfigMap")
    assert metadata["name"] == "rolling-upgrade-20261123t100000-abcdef"
    assert metadata["namespace"] == "nephoran-maintenance"
    assert metadata["labels"]["maintenance.nephoran.com/record"] == "journal"
    assert metadata["labels"]["maintenance.nephoran.com/state"] == "open"
    assert metadata["labels"]["maintenance.nephoran.com/procedure"] == "rolling_upgrade"
    assert config_map["data"]["progress"] == "a image: applied\nb image: planned"
    assert '\n  "run_id": "manual__2026",\n' in config_map["data"]["journal.json"]
    assert "entries" not in json.loads(config_map["data"]["journal.json"])
    assert all(isinstance(value, str) for value in config_map["data"].values())


DAMAGES = [
    pytest.param(lambda data: data.pop("journal.json"), id="no head"),
    pytest.param(lambda data: data.update({"journal.json": "{"}), id="no JSON"),
    pytest.param(lambda data: data.update({"entry-00.json": "{}"}), id="an entry without fields"),
    pytest.param(
        lambda data: data.update(
            {"journal.json": data["journal.json"].replace('"schema_version": 1', '"schema_version": 2')}
        ),
        id="another schema",
    ),
    pytest.param(
        lambda data: data.update({"journal.json": data["journal.json"].replace('"open"', '"half"')}), id="unknown state"
    ),
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_journal_stops_everything(damage: Any) -> None:
    config_map = to_config_map(journal(entry("a")), "nephoran-maintenance")
    damage(config_map["data"])
    with pytest.raises(UnknownStateError) as caught:
        from_config_map(config_map)
    assert caught.value.reference == "journal-unreadable"
    assert "rolling-upgrade-20261123t100000-abcdef" in caught.value.message
    assert caught.value.context == {"journal": "rolling-upgrade-20261123t100000-abcdef"}
    assert "kubectl" in caught.value.hint


def test_a_journal_of_another_schema_is_named_so() -> None:
    config_map = to_config_map(journal(schema_version=2), "nephoran-maintenance")
    with pytest.raises(UnknownStateError) as caught:
        from_config_map(config_map)
    assert "schema version 2, expected 1" in caught.value.message


def test_a_journal_is_of_its_system_and_one_that_can_not_be_read_of_any() -> None:
    config_map = to_config_map(journal(), "nephoran-maintenance")
    assert is_of_system(config_map, "nephoran")
    assert is_of_system(config_map, None)
    assert not is_of_system(config_map, "other")
    for damaged in ({}, {"data": None}, {"data": {"journal.json": "{"}}, {"data": {"journal.json": "{}"}}):
        assert is_of_system(damaged, "other")


def test_an_empty_config_map_is_no_journal() -> None:
    with pytest.raises(UnknownStateError):
        from_config_map({"metadata": {"name": "x"}})


# --------------------------------------------------------------------------------------------------------- operation id


def test_an_operation_id_says_what_and_when() -> None:
    local = at(0).astimezone(timezone(timedelta(hours=-5)))
    found = operation_id("rolling_upgrade", local, "manual__1")
    assert found.startswith("rolling-upgrade-20261123t100000-")
    assert found == operation_id("rolling_upgrade", at(0), "manual__1")
    assert found != operation_id("rolling_upgrade", at(0), "manual__2")


@pytest.mark.parametrize(
    ("procedure", "name"),
    [
        pytest.param("A_b", "a-b", id="short"),
        pytest.param("a" * 80, "a" * 29, id="cut"),
        pytest.param("a" * 28 + "_rest", "a" * 28, id="cut behind a dash"),
    ],
)
def test_an_operation_id_is_name_moment_and_six_digits(procedure: str, name: str) -> None:
    found = operation_id(procedure, at(0), "manual__1")
    assert re.fullmatch(rf"{name}-20261123t100000-[0-9a-f]{{6}}", found)


@given(st.from_regex(r"[a-z][a-z0-9_]{0,80}", fullmatch=True), moments, st.text(min_size=1))
def test_an_operation_id_is_a_valid_name_of_at_most_52_characters(procedure: str, when: datetime, run: str) -> None:
    found = operation_id(procedure, when, run)
    assert len(found) <= 52
    assert re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", found)


# --------------------------------------------------------------------------------------------------------- may fail


def shaky(component: str, step: Step, kind: Any = "image", *needs: str) -> JournalEntry:
    return entry(component, kind, step, criticality="may fail", needs=needs)


@pytest.mark.parametrize(
    ("entries", "behind", "complete", "outcome"),
    [
        pytest.param([entry("a", step="verified"), shaky("b", "verified")], [], True, "succeeded", id="all new"),
        pytest.param(
            [entry("a", step="verified"), shaky("b", "rolled-back")], ["b"], True, "partly-succeeded", id="one behind"
        ),
        pytest.param(
            [entry("a", step="verified"), shaky("b", "left-out")], ["b"], True, "partly-succeeded", id="one left out"
        ),
        pytest.param(
            [entry("a", step="verified"), shaky("b", "rolled-back", "policy"), shaky("b", "left-out")],
            ["b"],
            True,
            "partly-succeeded",
            id="policy back, image never begun",
        ),
        pytest.param(
            [entry("a", step="verified"), shaky("b", "verified", "policy"), shaky("b", "left-out")],
            [],
            False,
            None,
            id="policy not back yet",
        ),
        pytest.param([entry("a", step="verified"), shaky("b", "rolling-back")], [], False, None, id="on its way back"),
        pytest.param(
            [entry("a", step="planned"), shaky("b", "rolled-back")], ["b"], False, "rolled-back", id="not yet"
        ),
        pytest.param([entry("a", step="verified"), entry("b", step="rolled-back")], [], False, None, id="it must not"),
        pytest.param(
            [shaky("a", "rolled-back"), shaky("b", "left-out")], ["a", "b"], False, "rolled-back", id="none new"
        ),
        pytest.param([shaky("a", "left-out")], ["a"], False, "nothing-changed", id="nothing begun"),
    ],
)
def test_what_may_fail_may_stay_behind(entries: Any, behind: list[str], complete: bool, outcome: Any) -> None:
    found = journal(*entries)
    assert found.behind() == behind
    assert found.complete() == complete
    assert outcome_of(found, verified=True) == outcome
    assert found.turned_back(at(9)).behind() == [], "then the whole goes back, and nothing stays behind of it"
    if complete:
        assert outcome_of(found, verified=False) is None
        assert not found.turned_back(at(9)).complete() or not behind


def test_an_empty_journal_is_not_complete() -> None:
    assert not journal().complete()


def test_given_up_is_what_is_planned_of_it_and_of_what_needs_it() -> None:
    found = journal(
        shaky("a", "verified", "policy"),
        shaky("a", "planned"),
        shaky("b", "planned", "image", "a"),
        shaky("c", "planned", "image", "x"),
        entry("d"),
    ).given_up("a", at(3))
    assert [e.step for e in found.entries] == ["verified", "left-out", "left-out", "planned", "planned"]
    assert found.entries[1].at == {"left-out": at(3)}
    assert found.to_roll_back() == ["a"]
    assert from_config_map(to_config_map(found, "ns")) == found


def test_the_first_failure_of_a_component_counts() -> None:
    one, two = (Failure(component="a", reference="gate-closed", message=m, at=at(1)) for m in ("one", "two"))
    found = journal(entry("a")).failed(one).failed(two)
    assert found.failures == (one,)
    assert found.failure_of("a") == one
    assert found.failure_of("b") is None


def test_what_went_back_alone_before_is_none_of_the_whole_way_back() -> None:
    early = shaky("a", "rolled-back").model_copy(update={"at": {"rolled-back": at(1)}})
    late = entry("b", step="rolled-back").model_copy(update={"at": {"rolled-back": at(5)}})
    assert journal(early, late, turned_back_at=at(3)).gone_back() == ["b"]
