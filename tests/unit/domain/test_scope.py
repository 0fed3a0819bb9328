"""Parts of a backup: what is chosen, and what is refused before anything happens."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from nephoran_maintenance.domain.backups import BackupRequest
from nephoran_maintenance.domain.scope import Scope, check_names, check_scope
from nephoran_maintenance.errors import PermanentError

SOURCES = ["kubernetes-objects", "prometheus", "weaviate"]
NAMESPACES = ["nephoran-system", "nephoran-monitoring"]
RESOURCES = ["secrets", "deployments.apps", "networkintents.nephoran.com", "networkintents.intent.nephoran.com"]


def test_nothing_chosen_is_everything() -> None:
    assert Scope().whole
    assert Scope().chosen("sources", SOURCES) == SOURCES


@pytest.mark.parametrize(
    ("scope", "expected"),
    [
        pytest.param(Scope(include_sources=("weaviate",)), ["weaviate"], id="include"),
        pytest.param(Scope(exclude_sources=("weaviate",)), ["kubernetes-objects", "prometheus"], id="exclude"),
    ],
)
def test_a_choice_is_no_whole_backup(scope: Scope, expected: list[str]) -> None:
    assert scope.chosen("sources", SOURCES) == expected
    assert not scope.whole
    check_scope(scope, sources=SOURCES, namespaces=NAMESPACES)


@pytest.mark.parametrize("what", ["sources", "namespaces", "resources"])
def test_include_and_exclude_of_the_same_are_refused(what: str) -> None:
    with pytest.raises(ValidationError, match="give one of them"):
        Scope.model_validate({f"include_{what}": ["a"], f"exclude_{what}": ["b"]})


@pytest.mark.parametrize(
    ("given", "reference"),
    [
        pytest.param({"include_sources": ["weavate"]}, "scope-unknown", id="unknown source"),
        pytest.param({"exclude_namespaces": ["default"]}, "scope-unknown", id="unknown namespace"),
        pytest.param({"exclude_sources": SOURCES}, "parameters-invalid", id="no source left"),
        pytest.param({"exclude_namespaces": NAMESPACES}, "parameters-invalid", id="no namespace left"),
        pytest.param(
            {"include_sources": ["weaviate"], "exclude_resources": ["secrets"]},
            "parameters-invalid",
            id="resources of a source that is left out",
        ),
    ],
)
def test_a_choice_that_can_not_be_meant_is_refused(given: dict[str, list[str]], reference: str) -> None:
    with pytest.raises(PermanentError) as error:
        check_scope(Scope.model_validate(given), sources=SOURCES, namespaces=NAMESPACES)
    assert error.value.reference == reference


@pytest.mark.parametrize(
    ("name", "near"), [("deployments", "deployments.apps"), ("networkintents", "networkintents.intent.nephoran.com")]
)
def test_resources_have_their_full_names(name: str, near: str) -> None:
    with pytest.raises(PermanentError, match=near):
        check_names(Scope(include_resources=(name,)), "resources", RESOURCES)


@pytest.mark.parametrize("kind", ["incremental", "auto"])
def test_a_part_builds_on_nothing(kind: str) -> None:
    with pytest.raises(ValidationError, match="need the type full or config-only"):
        BackupRequest.model_validate({"type": kind, "exclude_sources": ["weaviate"]})
    assert BackupRequest.model_validate({"type": kind}).whole
