"""The way back. The journal alone says what it concerns."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from airflow.sdk.exceptions import AirflowSkipException, DownstreamTasksSkipped

from nephoran_maintenance.domain.journal import Journal
from nephoran_maintenance.domain.patches import same_spec
from nephoran_maintenance.domain.step_ids import VERIFY_COMPONENTS, rollback_step_id
from nephoran_maintenance.domain.stepping import Move
from nephoran_maintenance.errors import UnknownStateError
from nephoran_maintenance.operators.base import StepOperator, operation_of, states_of
from nephoran_maintenance.operators.live import check_health
from nephoran_maintenance.operators.rolling import RollingOperator
from nephoran_maintenance.operators.rollout import pod_runs

if TYPE_CHECKING:
    from airflow.sdk import Context

    from nephoran_maintenance.hooks.cluster import ClusterHook


class DecideRollbackOperator(StepOperator):
    """Keep the change when every entry is verified and so is the whole; otherwise open the way back.

    Skips the rollback steps of components that were not begun. Leaves ``{"decision", "components"}`` in XCom.
    Safe to repeat: yes, it reads.
    """

    def act(self, context: Context) -> None:
        journal = self.journals().find(operation_of(context))
        verified = states_of(context).get(VERIFY_COMPONENTS) == "success"
        concerned = [] if journal is None or (verified and journal.complete()) else journal.to_roll_back()
        decision = "roll back" if concerned else "keep" if verified else "nothing was changed"
        self.log.info("Decision: %s%s", decision, f" {', '.join(concerned)}" if concerned else "")
        context["ti"].xcom_push(key="return_value", value={"decision": decision, "components": concerned})
        steps = {rollback_step_id(component.name): component.name for component in self.profile.components}
        raise DownstreamTasksSkipped(tasks=[step for step, name in steps.items() if name not in concerned])


class RollbackComponentOperator(RollingOperator):
    """Put back the template and strategy that the component had before the operation, and verify it.

    Returns ``{"component", "result", "seconds", "ready", "desired", "health"}``. Safe to repeat: yes, it goes on from
    what is there.
    """

    def act(self, context: Context) -> dict[str, Any]:
        cluster = self.cluster()
        store, operation = self.journals(cluster), operation_of(context)
        journal = store.find(operation)
        if journal is None or self.component not in journal.to_roll_back():
            raise AirflowSkipException(f"{self.component} was not changed by this operation")
        self.check_known(self.workload(cluster), journal)
        journal = store.update(
            operation, lambda journal: journal.moved(self.component, None, "rolling-back", datetime.now(UTC))
        )
        return self.go_back(context, cluster, journal)

    def resume(self, context: Context, event: dict[str, Any]) -> dict[str, Any]:
        cluster = self.cluster()
        journal = self.journals(cluster).read(operation_of(context))
        self.check_event(cluster, event, journal.entries_of(self.component)[0].before["container"])
        return self.go_back(context, cluster, journal)

    def go_back(self, context: Context, cluster: ClusterHook, journal: Journal) -> dict[str, Any]:
        begun = [entry for entry in journal.entries_of(self.component) if entry.step == "rolling-back"]
        before, since = begun[0].before, min(entry.at["rolling-back"] for entry in begun)
        workload = self.workload(cluster)
        if workload["kind"] != "StatefulSet" and not same_spec(workload, before):
            self.make(cluster, workload, Move("patch"), before)
        workload = self.roll(cluster, before, since)
        pods = [pod for pod in cluster.pods_of(workload) if pod_runs(pod, before["container"], before["image"])]
        measured = check_health(cluster, workload, pods, self.described, before["container"])
        now = datetime.now(UTC)
        self.journals(cluster).update(
            operation_of(context), lambda journal: journal.moved(self.component, None, "rolled-back", now)
        )
        return {
            "component": self.component,
            "result": "back on its recorded template, verified",
            "seconds": round((now - since).total_seconds(), 1),
            **measured,
        }

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
