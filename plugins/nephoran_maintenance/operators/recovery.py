"""Operations whose owner is gone are finished or undone; a person can ask for the way back."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from airflow.sdk.exceptions import AirflowSkipException

from nephoran_maintenance.domain.intents import served_kinds
from nephoran_maintenance.domain.preflight import check_permissions
from nephoran_maintenance.domain.report import recovery_report
from nephoran_maintenance.domain.step_ids import RECOVER_OPERATIONS
from nephoran_maintenance.domain.upgrade import recovery_permissions_for
from nephoran_maintenance.engine.recovery import Recovery
from nephoran_maintenance.engine.rolling import Wait
from nephoran_maintenance.errors import PermanentError, UnknownStateError
from nephoran_maintenance.operators.base import ERROR_KEY, StepOperator, mode_of, operation_of, pull, states_of
from nephoran_maintenance.operators.report import FAILED_STATES, ReportOperator
from nephoran_maintenance.operators.rolling import WaitingOperator

if TYPE_CHECKING:
    from airflow.sdk import Context

    from nephoran_maintenance.domain.journal import Journal
    from nephoran_maintenance.hooks.cluster import ClusterHook
    from nephoran_maintenance.profile import SystemProfile

FOUND_KEY = "found"


class CheckRecoveryOperator(StepOperator):
    """Check profile, cluster and permissions. Returns ``{"mode", "account"}``. Changes nothing. Safe to repeat: yes."""

    def act(self, context: Context) -> dict[str, Any]:
        profile, cluster = self.profile, self.cluster()
        if "operation" in context["params"] and not context["params"]["operation"]:
            raise PermanentError(
                "nothing-requested",
                "no operation is given that is to be rolled back",
                hint="Give the operation's id: it is in its report, and kubectl get configmap in the maintenance "
                "namespace lists all.",
            )
        account = cluster.who_am_i()
        groups = [kind.group for kind in served_kinds(cluster.crds(), profile.intents)]
        accesses = recovery_permissions_for(profile, groups)
        denied = [f for f in check_permissions(accesses, cluster.can_i(accesses), account) if f.severity == "block"]
        if denied:
            raise PermanentError(
                "permission-missing",
                f"{account} {denied[0].observed}" + (f", and {len(denied) - 1} more" if len(denied) > 1 else ""),
                context={"connection": self.kubernetes_connection_id},
                hint=denied[0].hint,
            )
        return {"mode": mode_of(context, profile.recovery.mode), "account": account}


class RecoverOperationsOperator(WaitingOperator):
    """Finish or undo every operation that was left open and whose lease nobody renews; holds no worker while waiting.

    Decides from journal, lease and live objects alone, so it does not matter whose Airflow began the operation. In plan
    mode it only says what it would do. Leaves in the XCom ``found``, also when it fails, what it saw at first:
    ``[{"operation", "procedure", "decision", "reason", "found"}]``, and returns the same. Safe to repeat: yes.

    :param back: undo the one operation that the run's parameter ``operation`` names, also when it is closed.
    """

    def __init__(self, *, back: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.back = back

    def act(self, context: Context) -> list[dict[str, Any]]:
        recovery = self.recovery(context, self.cluster())
        # What an earlier try of this step has closed still belongs into the report.
        known = {row["operation"]: row for row in (recovery.done() if context["ti"].try_number > 1 else ())}
        for found in recovery.find(context["params"]["operation"] if self.back else None):
            row = found.to_dict()
            known.setdefault(row["operation"], row)
        rows = list(known.values())
        context["ti"].xcom_push(key=FOUND_KEY, value=rows)
        for row in rows:
            self.log.info(
                "%s: %s, because %s; found %s", *(row[key] for key in ("operation", "decision", "reason", "found"))
            )
        if mode_of(context, self.profile.recovery.mode) == "plan":
            return rows
        if self.back and rows[0]["decision"] == "leave":
            raise PermanentError(
                "rollback-refused",
                f"operation {rows[0]['operation']} is not rolled back: {rows[0]['reason']}",
                hint="To abort a running operation, mark its running step as failed.",
            )
        return self.go_on(context, recovery, rows)

    def resume(self, context: Context, event: dict[str, Any]) -> list[dict[str, Any]]:
        # Whatever the trigger says: the engine looks itself, and tells with its evidence what has failed.
        rows = pull(context, self.task_id, FOUND_KEY)
        return self.go_on(context, self.recovery(context, self.cluster()), rows)

    def go_on(self, context: Context, recovery: Recovery, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        for row in rows:
            if row["decision"] not in ("finish", "undo") or ERROR_KEY in row:
                continue
            try:
                result = recovery.go_on(row["operation"])
            except PermanentError as error:
                # The others are recovered all the same. It is noted, so that after a wait for one of them the lease is
                # not taken away from that for this one.
                self.log.error("%s can't be recovered now: %s", row["operation"], error)
                row[ERROR_KEY] = {"reference": error.reference, "message": error.message, "hint": error.hint}
                context["ti"].xcom_push(key=FOUND_KEY, value=rows)
                continue
            if isinstance(result, Wait):
                # Short waits: between two of them the lease is renewed, and what others did is seen.
                self.wait_for(result, self.profile.lease.duration / 3)
            self.log.info("%s is closed: %s", row["operation"], result.outcome)
        self.check_left(recovery, rows)
        if not self.back and (holder := recovery.release_abandoned()):
            self.log.info("Released the lease of %s, which is over and has left nothing open", holder)
        return rows

    def check_left(self, recovery: Recovery, rows: list[dict[str, Any]]) -> None:
        """Raise the error of what a person must look at, of the first operation with the names of all others."""
        left = [row for row in rows if row["decision"] == "stop" or ERROR_KEY in row]
        if not left:
            return
        first, others = left[0], [row["operation"] for row in left[1:]]
        besides = f"; neither can {', '.join(others)}" if others else ""
        try:
            if ERROR_KEY in first:
                raise PermanentError(**first[ERROR_KEY])
            recovery.store.read(first["operation"])
            raise UnknownStateError(
                "object-changed-by-others",
                f"operation {first['operation']} can be neither finished nor undone: {first['reason']}",
                hint="Page the person who changed it. Both states are in the journal's ConfigMap; put the object into one "
                "of them, and the next recovery goes on.",
            )
        except PermanentError as error:
            error.message += besides
            error.context["operation"] = first["operation"]
            raise

    def recovery(self, context: Context, cluster: ClusterHook) -> Recovery:
        me = operation_of(context)
        return Recovery(cluster, self.profile, me, self.dag_id, back=self.back, log=self.log)


class ReportRecoveryOperator(ReportOperator):
    """Write one report per operation that was taken up, under that operation's id: what was found, decided and done.

    Returns the last of them. Skipped when nothing was found, which is how most scheduled runs end. Safe to repeat: yes.
    """

    def act(self, context: Context) -> dict[str, Any]:
        profile, store = self.profile, self.journals()
        failed = [task_id for task_id, state in states_of(context).items() if state in FAILED_STATES]
        rows = [row for row in pull(context, RECOVER_OPERATIONS, FOUND_KEY) or () if row["decision"] != "leave"]
        if not rows:
            raise AirflowSkipException("no operation was to be recovered")
        report: dict[str, Any] = {}
        for row in rows:
            try:
                journal = store.read(row["operation"])
            except UnknownStateError as error:
                self.log.error("No report: %s", error)
                continue
            report = self.publish(profile, journal.operation_id, self.recovered(context, profile, journal, row, failed))
        if not report:
            raise AirflowSkipException("no operation's journal can be read; the failed step names them")
        return report

    def recovered(
        self, context: Context, profile: SystemProfile, journal: Journal, row: dict[str, Any], failed: list[str]
    ) -> dict[str, Any]:
        run = context["dag_run"]
        return recovery_report(
            journal,
            row,
            procedure=self.dag_id,
            title=self.dag.dag_display_name,
            triggered_by=run.triggering_user_name or run.run_type.value,
            started_at=run.start_date,
            ended_at=datetime.now(UTC),
            params=dict(context["params"]),
            planned=mode_of(context, profile.recovery.mode) == "plan",
            wanted_back="operation" in context["params"],
            failed_steps=[
                {"task_id": task_id, "error": pull(context, task_id, ERROR_KEY) or "see the log of the step"}
                for task_id in failed
            ],
        )
