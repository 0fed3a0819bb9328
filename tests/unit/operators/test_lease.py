"""The lease beside the chain: held for as long as the run lives, given back when nothing is left to do."""

from __future__ import annotations

from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowException, AirflowFailException, TaskDeferred

from nephoran_maintenance.operators.checks import LONGEST_BACKUP
from nephoran_maintenance.operators.lease import LONGEST_HOLD
from tests.unit.operators.conftest import System


def test_a_run_that_outlives_the_longest_hold_is_held_on(system: System) -> None:
    holders: list[str] = []

    def outlives(step: Any, context: Any) -> None:
        with pytest.raises(TaskDeferred):
            step.execute(context)
        with pytest.raises(TaskDeferred) as again:
            step.resume_step(context, {"state": "timeout", "message": "the deadline has passed"})
        holders.append(again.value.trigger.holder)
        raise again.value

    run = system.upgrade(components=["rag-api"], replaced={"hold_lease": outlives})
    assert run.states["verify_outcome"] == "success"
    assert [name.startswith("rolling-upgrade-") for name in holders] == [True]
    assert LONGEST_HOLD > LONGEST_BACKUP, "a backup is made with the lease in hand"


def test_a_renewal_that_broke_is_tried_again_and_one_that_was_lost_is_not(system: System) -> None:
    raised: list[BaseException] = []

    def broken(step: Any, context: Any) -> None:
        event = {"message": "x", "reference": "trigger-broken", "hint": ""}
        for state in ("error", "lost"):
            with pytest.raises(AirflowException) as error:
                step.resume_step(context, {**event, "state": state})
            raised.append(error.value)

    system.upgrade(components=["rag-api"], replaced={"hold_lease": broken})
    assert "[lease-not-renewed]" in str(raised[0])
    assert "[lease-lost]" in str(raised[1])
    assert [isinstance(error, AirflowFailException) for error in raised] == [False, True]
