"""The way back. The journal alone says what it concerns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow.sdk.exceptions import AirflowSkipException

from nephoran_maintenance.domain.journal import Journal
from nephoran_maintenance.domain.step_ids import change_step_ids, gate_step_id
from nephoran_maintenance.engine.fencing import turn_back, turn_back_alone
from nephoran_maintenance.engine.rolling import Roller, Wait
from nephoran_maintenance.engine.way_back import begin_way_back, take_back
from nephoran_maintenance.errors import PermanentError
from nephoran_maintenance.operators.base import (
    StepOperator,
    finish_change_step,
    finish_rollback_step,
    journal_of,
    operation_of,
    states_of,
)
from nephoran_maintenance.operators.proof import seen_good
from nephoran_maintenance.operators.rolling import RollingOperator

if TYPE_CHECKING:
    from airflow.sdk import Context


class DecideRollbackOperator(StepOperator):
    """Keep the change when every entry is verified and so is the whole; otherwise open the way back.

    Skips the rollback steps of components that were not begun. An operation that is closed is never undone: clearing a
    step of an old run must not bring back what was there before it. Leaves ``{"decision", "components"}`` in XCom.
    Safe to repeat: yes, it reads.
    """

    def act(self, context: Context) -> Any:
        journal = journal_of(context, self.journals())
        kept = journal is not None and stands(context, journal)
        concerned = [] if journal is None or kept else journal.to_roll_back()
        decision = "roll back" if concerned else "keep" if kept else "nothing is left to take back"
        self.log.info("Decision: %s%s", decision, f" {', '.join(concerned)}" if concerned else "")
        result = {"decision": decision, "components": concerned}
        return finish_rollback_step(context, concerned, self.profile, None, result)


def stands(context: Context, journal: Journal) -> bool:
    """Return whether an operation is to stay as it is: everything verified, alone and together, or closed long ago."""
    return journal.state == "closed" or (seen_good(context, journal) and journal.complete())


class RollbackComponentOperator(RollingOperator):
    """Put back the template and strategy that the component had before the operation, and verify it.

    Returns ``{"component", "result", "seconds", "ready", "desired", "health"}``. Safe to repeat: yes, it goes on from
    what is there.
    """

    def act(self, context: Context) -> Any:
        cluster = self.cluster()
        store, operation = self.journals(cluster), operation_of(context)
        journal = journal_of(context, store)
        if journal is None or self.component not in journal.to_roll_back():
            raise AirflowSkipException(f"{self.component} was not changed by this operation")
        if journal.state == "closed":
            raise PermanentError(
                "operation-closed",
                f"operation {operation} is closed: {journal.outcome}",
                context={"component": self.component},
                hint="Trigger a new run with the earlier version instead of clearing this one.",
            )
        if stands(context, journal):
            raise AirflowSkipException("every change is verified; the operation stays as it is")
        self.check_switches(cluster, forward=False)
        journal, lease = turn_back(cluster, store, self.leases(cluster), journal, operation)
        roller = self.roller(cluster, journal.entries_of(self.component)[0], lease)
        return self.go_back(context, roller, begin_way_back(roller, store, journal))

    def resume(self, context: Context, event: dict[str, Any]) -> Any:
        cluster = self.cluster()
        self.check_switches(cluster, forward=False)
        journal = self.journals(cluster).read(operation_of(context))
        entry = journal.entries_of(self.component)[0]
        roller = self.roller(cluster, entry, self.held_lease(context, cluster, journal))
        self.check_event(roller, event, entry.before["container"])
        return self.go_back(context, roller, journal)

    def go_back(self, context: Context, roller: Roller, journal: Journal) -> Any:
        store = self.journals(roller.cluster)
        result = take_back(roller, store, journal)
        if isinstance(result, Wait):
            self.wait_for(result)
        return self.finish(context, store.read(journal.operation_id), result)

    def finish(self, context: Context, journal: Journal, result: Any) -> Any:
        return finish_rollback_step(context, journal.to_roll_back(), self.profile, self.task_id, result)


class DecideAloneOperator(StepOperator):
    """Decide about a component that may fail: it stays, it goes back alone, or everything goes back.

    Alone only when a step of its own has written into the journal that the component itself has failed. A step that
    was marked as failed by a person, lost its worker or could not reach the cluster has not: then this step fails, and
    everything goes back. Skipped when something before the component has failed. Leaves ``{"component", "decision"}`` in
    XCom. Safe to repeat: yes, it reads.

    :param component: name of the component in the profile.
    """

    def __init__(self, *, component: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.component = component

    def act(self, context: Context) -> Any:
        states = states_of(context)
        own = {step: states.get(step) for step in (*change_step_ids(self.component), gate_step_id(self.component))}
        failed = [step for step, state in own.items() if state == "failed"]
        if not failed and "upstream_failed" in own.values():
            raise AirflowSkipException("a step before this component has failed: it was not begun")
        journal = self.journals().read(operation_of(context))
        if not failed:
            result = {"component": self.component, "decision": "stays"}
            return finish_change_step(context, journal, self.profile, self.task_id, result)
        failure = journal.failure_of(self.component)
        entries = journal.entries_of(self.component)
        if failure is None or not entries or entries[0].criticality != "may fail":
            raise PermanentError(
                "not-a-failure-of-the-component",
                f"{self.component}: {failed[0].rpartition('.')[2]} ended without having seen the component itself fail",
                context={"component": self.component},
                hint="Nothing: everything goes back. Read the error of that step; without one it was marked as failed by "
                "a person, or its worker was lost.",
            )
        self.log.info("%s goes back alone, because %s", self.component, failure.message)
        return {"component": self.component, "decision": "goes back alone", "because": failure.message}


class RollbackAloneOperator(RollbackComponentOperator):
    """Take back one component that may fail, verify it, and let the operation go on without it.

    What needs it is left out. Returns what :class:`RollbackComponentOperator` does. Safe to repeat: yes, it goes on from
    what is there.
    """

    def act(self, context: Context) -> Any:
        cluster = self.cluster()
        store, operation = self.journals(cluster), operation_of(context)
        journal = store.read(operation)
        if journal.state == "closed" or journal.turned_back_at is not None:
            raise PermanentError(
                "operation-closed",
                f"operation {operation} is {f'closed: {journal.outcome}' if journal.outcome else 'on its way back'}",
                context={"component": self.component},
                hint="Trigger a new run instead of clearing this one.",
            )
        if journal.failure_of(self.component) is None:
            raise AirflowSkipException(f"{self.component} has not failed")
        self.check_switches(cluster, forward=False)
        journal, lease = turn_back_alone(cluster, store, self.leases(cluster), journal, operation, self.component)
        if self.component not in journal.to_roll_back():
            return self.finish(context, journal, {"component": self.component, "result": "was not changed"})
        roller = self.roller(cluster, journal.entries_of(self.component)[0], lease)
        return self.go_back(context, roller, begin_way_back(roller, store, journal))

    def finish(self, context: Context, journal: Journal, result: Any) -> Any:
        return finish_change_step(context, journal, self.profile, self.task_id, result)
