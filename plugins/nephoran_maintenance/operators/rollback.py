"""The way back. The journal alone says what it concerns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow.sdk.exceptions import AirflowSkipException

from nephoran_maintenance.domain.journal import Journal
from nephoran_maintenance.domain.step_ids import VERIFY_COMPONENTS
from nephoran_maintenance.engine.fencing import turn_back
from nephoran_maintenance.engine.rolling import Roller, Wait
from nephoran_maintenance.engine.way_back import begin_way_back, take_back
from nephoran_maintenance.errors import PermanentError
from nephoran_maintenance.operators.base import StepOperator, finish_rollback_step, journal_of, operation_of, states_of
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
        decision = "roll back" if concerned else "keep" if kept else "nothing was changed"
        self.log.info("Decision: %s%s", decision, f" {', '.join(concerned)}" if concerned else "")
        result = {"decision": decision, "components": concerned}
        return finish_rollback_step(context, concerned, self.profile, None, result)


def stands(context: Context, journal: Journal) -> bool:
    """Return whether an operation is to stay as it is: everything verified, alone and together, or closed long ago."""
    verified = states_of(context).get(VERIFY_COMPONENTS) == "success"
    return journal.state == "closed" or (verified and journal.complete())


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
        left = store.read(journal.operation_id).to_roll_back()
        return finish_rollback_step(context, left, self.profile, self.task_id, result)
