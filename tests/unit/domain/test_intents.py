"""NetworkIntents: every served group is found, and the test intent fits each of them."""

from __future__ import annotations

import re
from typing import Any

import pytest

from nephoran_maintenance.domain.intents import (
    IntentKind,
    count_active,
    phase_of,
    phase_verdict,
    sandbox_intent,
    served_kinds,
)
from nephoran_maintenance.errors import PermanentError
from nephoran_maintenance.profile import Intents

OPERATION = "rolling-upgrade-20261123t100000-abcdef"
NO_PERIOD = r"^[a-zA-Z0-9\s\-_,;:()\[\]]*$"


def intents(**changes: Any) -> Intents:
    fields: dict[str, Any] = {
        "success": ("Deployed", "Processed", "Ready", "Completed", "Active"),
        "failure": ("Failed", "Error"),
        "test_namespace": "nephoran-system",
    }
    return Intents(**{**fields, **changes})


def crd(group: str, *versions: dict[str, Any], plural: str = "networkintents") -> dict[str, Any]:
    return {"spec": {"group": group, "names": {"plural": plural}, "versions": list(versions)}}


def version(name: str, *, served: bool = True, storage: bool = True, **spec: Any) -> dict[str, Any]:
    schema = {"openAPIV3Schema": {"properties": {"spec": spec}}}
    return {"name": name, "served": served, "storage": storage, "schema": schema}


TEXT = {
    "required": ["intent"],
    "properties": {
        "intent": {"type": "string", "maxLength": 1000, "pattern": NO_PERIOD},
        "intentType": {"type": "string"},
        "priority": {"enum": ["low", "medium", "high", "critical"]},
    },
}
SCALING = {
    "required": ["intentType", "namespace", "replicas", "target"],
    "properties": {
        "intentType": {"enum": ["scaling"]},
        "namespace": {},
        "replicas": {"minimum": 0},
        "target": {},
        "source": {},
    },
}


def test_finds_every_served_group_by_itself() -> None:
    found = served_kinds(
        [crd("nephoran.com", version("v1")), crd("intent.nephoran.com", version("v1alpha1"))], intents()
    )
    assert [kind.api_version for kind in found] == ["intent.nephoran.com/v1alpha1", "nephoran.com/v1"]


def test_leaves_out_other_kinds_and_versions_that_are_not_served() -> None:
    crds = [crd("nephoran.com", version("v1"), plural="e2nodesets"), crd("nephoran.io", version("v1", served=False))]
    assert served_kinds(crds, intents()) == []


def test_takes_the_stored_one_of_several_served_versions() -> None:
    crds = [crd("nephoran.com", version("v1alpha1", storage=False), version("v1"))]
    assert [kind.version for kind in served_kinds(crds, intents())] == ["v1"]
    only_old = [crd("nephoran.com", version("v1alpha1", storage=False), version("v1", served=False))]
    assert [kind.version for kind in served_kinds(only_old, intents())] == ["v1alpha1"]


def test_the_profile_may_choose_the_groups() -> None:
    crds = [crd("nephoran.com", version("v1")), crd("intent.nephoran.com", version("v1alpha1"))]
    assert [kind.group for kind in served_kinds(crds, intents(groups=("nephoran.com",)))] == ["nephoran.com"]


def intent_for(spec: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return sandbox_intent(IntentKind("nephoran.com", "v1", spec), intents(**changes), OPERATION)


def test_a_kind_with_a_text_gets_the_text_and_no_priority() -> None:
    made = intent_for(TEXT)
    assert made["spec"] == {"intent": "deploy AMF with 2 replicas", "intentType": "deployment"}
    assert made["apiVersion"] == "nephoran.com/v1"
    assert made["kind"] == "NetworkIntent"


def test_a_kind_without_a_text_gets_a_scaling_intent_with_the_source_test() -> None:
    assert intent_for(SCALING)["spec"] == {
        "intentType": "scaling",
        "namespace": "nephoran-system",
        "target": "maintenance-sandbox",
        "replicas": 1,
        "source": "test",
    }


def test_an_intent_can_be_found_by_its_operation_and_has_a_valid_name() -> None:
    metadata = intent_for(TEXT)["metadata"]
    assert metadata["labels"] == {"maintenance.nephoran.com/operation": OPERATION}
    assert re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", metadata["name"])
    assert len(metadata["name"]) <= 63
    assert metadata["name"].endswith(OPERATION)


def test_a_text_is_made_to_fit_the_pattern_and_the_length() -> None:
    assert intent_for(TEXT, test_text="Deploy AMF/SMF. It's urgent!")["spec"]["intent"] == "Deploy AMF SMF It s urgent"
    short = {"properties": {"intent": {"maxLength": 10}}}
    assert intent_for(short)["spec"]["intent"] == "deploy AMF"


def test_a_text_that_can_not_fit_is_refused() -> None:
    with pytest.raises(PermanentError) as caught:
        intent_for({"properties": {"intent": {"pattern": "^[0-9]+$"}}})
    assert caught.value.reference == "test-intent-impossible"


def test_a_required_field_that_nobody_knows_is_refused_and_named() -> None:
    with pytest.raises(PermanentError) as caught:
        intent_for({"required": ["intent", "tenant"], "properties": {"intent": {}, "tenant": {}}})
    assert caught.value.reference == "test-intent-impossible"
    assert "tenant" in caught.value.message


@pytest.mark.parametrize(
    ("phase", "verdict"),
    [
        ("Deployed", "success"),
        ("Processed", "success"),
        ("Failed", "failure"),
        ("Error", "failure"),
        ("Processing", "waiting"),
        ("", "waiting"),
        ("SomethingNew", "waiting"),
    ],
)
def test_phases_mean_what_the_profile_says(phase: str, verdict: str) -> None:
    assert phase_verdict(phase, intents()) == verdict


def test_counts_what_is_neither_done_nor_failed() -> None:
    phases = ["Processing", "Deployed", "Error", None, "Pending"]
    found: list[dict[str, Any]] = [{"status": {"phase": phase}} for phase in phases]
    assert count_active([*found, {}, {"status": None}], intents()) == 5


def test_reads_a_phase_that_is_not_there() -> None:
    assert phase_of({}) == ""
    assert phase_of({"status": {"phase": None}}) == ""
    assert phase_of({"status": {"phase": "Ready"}}) == "Ready"


def test_the_address_of_an_intent_names_its_group() -> None:
    assert IntentKind("nephoran.com", "v1", {}).reference("ns", "a") == {
        "group": "nephoran.com",
        "version": "v1",
        "plural": "networkintents",
        "namespace": "ns",
        "name": "a",
    }
