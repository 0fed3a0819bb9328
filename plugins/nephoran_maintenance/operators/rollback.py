"""The way back. The journal alone says what it concerns."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from airflow.sdk.exceptions import AirflowSkipException

from nephoran_maintenance.domain.journal import Journal
from nephoran_maintenance.domain.step_ids import VERIFY_COMPONENTS
from nephoran_maintenance.engine.live import check_health
from nephoran_maintenance.engine.rolling import Wait
from nephoran_maintenance.errors import PermanentError, UnknownStateError
from nephoran_maintenance.operators.base import StepOperator, finish_rollback_step, journal_of, operation_of, states_of
from nephoran_maintenance.operators.rolling import RollingOperator
from nephoran_maintenance.operators.rollout import pod_runs

if TYPE_CHECKING:
    from airflow.sdk import Context

    from nephoran_maintenance.hooks.cluster import ClusterHook


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
        roller = self.roller(cluster, journal.entries_of(self.component)[0])
        self.check_known(roller.workload(), journal)
        journal = store.update(
            operation, lambda journal: journal.moved(self.component, None, "rolling-back", datetime.now(UTC))
        )
        return self.go_back(context, cluster, journal)

    def resume(self, context: Context, event: dict[str, Any]) -> Any:
        cluster = self.cluster()
        journal = self.journals(cluster).read(operation_of(context))
        entry = journal.entries_of(self.component)[0]
        self.check_event(self.roller(cluster, entry), event, entry.before["container"])
        return self.go_back(context, cluster, journal)

    def go_back(self, context: Context, cluster: ClusterHook, journal: Journal) -> Any:
        begun = [entry for entry in journal.entries_of(self.component) if entry.step == "rolling-back"]
        before, since = begun[0].before, min(entry.at["rolling-back"] for entry in begun)

        def check_known(workload: dict[str, Any]) -> None:
            self.check_known(workload, journal)

        found = self.roller(cluster, begun[0]).roll(before, since, check_known)
        if isinstance(found, Wait):
            self.wait_for(found)
        pods = [pod for pod in cluster.pods_of(found) if pod_runs(pod, before["container"], before["image"])]
        measured = check_health(cluster, found, pods, self.described, before["container"])
        now = datetime.now(UTC)
        journal = self.journals(cluster).update(
            operation_of(context), lambda journal: journal.moved(self.component, None, "rolled-back", now)
        )
        result = {
            "component": self.component,
            "result": "back on its recorded template, verified",
            "seconds": round((now - since).total_seconds(), 1),
            **measured,
        }
        return finish_rollback_step(context, journal.to_roll_back(), self.profile, self.task_id, result)

    def check_known(self, workload: dict[str, Any], journal: Journal) -> None:
        """:raises UnknownStateError: ``object-changed-by-others`` when the object is in no state of this operation."""
        entries = journal.entries_of(self.component)
        known = [state["template"] for entry in entries for state in (entry.before, entry.intended)]
        if workload["spec"]["template"] in known:
            return
        raise UnknownStateError(
            "object-changed-by-others",
            f"{self.component}: {entries[0].workload.kind}/{entries[0].workload.name} is in no state that this "
            "operation has recorded or intended; it is left alone",
            context={"component": self.component, "journal": journal.operation_id},
            hint="Page the person who changed it. The recorded state is in the journal's ConfigMap.",
        )
