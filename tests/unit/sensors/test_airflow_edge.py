"""Which error is retried."""

from __future__ import annotations

import pytest
from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowSkipException, TaskDeferred

from nephoran_maintenance.airflow_edge import airflow_errors
from nephoran_maintenance.errors import MaintenanceError, PermanentError, TransientError, UnknownStateError


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (PermanentError("a", "b"), AirflowFailException),
        (UnknownStateError("a", "b"), AirflowFailException),
        (TransientError("a", "b"), AirflowException),
    ],
    ids=["permanent", "unknown-state", "transient"],
)
def test_only_a_transient_error_is_retried(error: MaintenanceError, kind: type[Exception]) -> None:
    with pytest.raises(AirflowException) as found, airflow_errors():
        raise error
    assert type(found.value) is kind
    assert found.value.__cause__ is error
    assert str(found.value) == "b [a]"


@pytest.mark.parametrize("kind", [AirflowSkipException, ValueError])
def test_every_other_error_passes(kind: type[Exception]) -> None:
    with pytest.raises(kind), airflow_errors():
        raise kind("x")


def test_deferring_passes() -> None:
    class Deferral(TaskDeferred):
        def __init__(self) -> None:
            BaseException.__init__(self)

    with pytest.raises(TaskDeferred), airflow_errors():
        raise Deferral


def test_serves_as_a_decorator_of_many_calls() -> None:
    @airflow_errors()
    def broken() -> None:
        raise PermanentError("a", "b")

    for _ in range(2):
        with pytest.raises(AirflowFailException):
            broken()
