"""An error says what, where and what to do next, on one line."""

from __future__ import annotations

import pickle

import pytest

from nephoran_maintenance.errors import MaintenanceError, PermanentError, TransientError, UnknownStateError


def test_shows_message_reference_facts_and_next_action() -> None:
    error = PermanentError(
        "image-missing",
        "rag-api: the registry does not have it",
        context={"component": "rag-api", "tag": "v9"},
        hint="Push it.",
    )
    expected = "rag-api: the registry does not have it [image-missing] (component=rag-api, tag=v9) Next: Push it."
    assert str(error) == expected


def test_shows_no_empty_parts() -> None:
    assert str(TransientError("cluster-unreachable", "no answer")) == "no answer [cluster-unreachable]"


def test_keeps_its_parts() -> None:
    error = MaintenanceError("a-reference", "m", context={"k": 1}, hint="h")
    assert (error.reference, error.message, error.context, error.hint) == ("a-reference", "m", {"k": 1}, "h")


def test_does_not_share_its_context_with_the_caller() -> None:
    context: dict[str, object] = {"k": 1}
    error = MaintenanceError("a-reference", "m", context=context)
    context["k"] = 2
    assert error.context == {"k": 1}


@pytest.mark.parametrize("kind", [PermanentError, TransientError, UnknownStateError])
def test_survives_pickling(kind: type[MaintenanceError]) -> None:
    error = kind("a-reference", "m", context={"k": 1}, hint="h")
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again)) == (kind, str(error))


def test_an_unknown_state_is_permanent_and_a_transient_error_is_not() -> None:
    assert issubclass(UnknownStateError, PermanentError)
    assert not issubclass(TransientError, PermanentError)
