"""The journal is opened: from here on the operation can be undone by whoever reads it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from nephoran_maintenance.domain.approval import Approval, check_approved
from nephoran_maintenance.domain.journal import Journal, JournalEntry, Workload
from nephoran_maintenance.domain.patches import same_spec
from nephoran_maintenance.domain.plan import Plan
from nephoran_maintenance.domain.quarantine import check_quarantine
from nephoran_maintenance.domain.step_ids import PLAN_CHANGES, RECHECK_PLAN
from nephoran_maintenance.engine.fencing import stamp
from nephoran_maintenance.errors import PermanentError
from nephoran_maintenance.operators.admission import released_from_quarantine
from nephoran_maintenance.operators.approval import recorded_approval, rule_of
from nephoran_maintenance.operators.base import StepOperator, finish_change_step, operation_of, pull, refuse_closed
from nephoran_maintenance.operators.planning import HASH_KEY, PLAN_KEY

if TYPE_CHECKING:
    from airflow.sdk import Context

    from nephoran_maintenance.hooks.cluster import ClusterHook


class RecordBeforeStateOperator(StepOperator):
    """Write the journal with every planned change, each object's exact state before and after it.

    Then every object in scope is stamped with the token of the lease: from here on a write without it is refused.
    Refuses a plan that was not approved as its category asks, or not computed again with the lease in hand, and when an
    object is no longer what the plan saw. Safe to repeat: yes, an operation has one journal.
    """

    def act(self, context: Context) -> Any:
        plan = Plan.model_validate(pull(context, PLAN_CHANGES, PLAN_KEY))
        cluster = self.cluster()
        store = self.journals(cluster)
        operation = operation_of(context)
        journal = store.find(operation)
        if journal is None:
            approval = self.check_admitted(context)
            lease = self.leases(cluster).hold(operation)
            self.check_unchanged(cluster, plan)
            self.check_quarantine(context, cluster, plan)
            journal = store.create(self.journal(context, plan, lease.token, approval))
        refuse_closed(journal)
        stamp(cluster, journal, self.held_lease(context, cluster, journal))
        self.log.info("Journal %s has %d entries", operation, len(journal.entries))
        return finish_change_step(context, journal, self.profile, None, operation)

    def check_admitted(self, context: Context) -> Approval | None:
        """Return the recorded approval, when this very plan was approved and rechecked; the colours of steps prove nothing.

        :raises PermanentError: ``approval-missing``, ``plan-outdated``.
        """
        digest, approval = pull(context, PLAN_CHANGES, HASH_KEY), recorded_approval(context)
        check_approved(rule_of(self, context), approval, digest)
        rechecked = (pull(context, RECHECK_PLAN) or {}).get("plan_hash")
        if rechecked != digest:
            raise PermanentError(
                "plan-outdated",
                f"the plan {digest} was not computed again with the lease in hand, but {rechecked or 'none'}",
                hint=f"Nothing was changed. Clear {RECHECK_PLAN} with what follows it, or trigger a new run.",
            )
        return approval

    def journal(self, context: Context, plan: Plan, token: int, approval: Approval | None) -> Journal:
        """Return the journal of this run before its first change."""
        run = context["dag_run"]
        return Journal(
            operation_id=operation_of(context),
            procedure=self.dag_id,
            run_id=context["run_id"],
            system=plan.system,
            plan_hash=pull(context, PLAN_CHANGES, HASH_KEY),
            started_at=datetime.now(UTC),
            fencing_token=token,
            requested_by=run.triggering_user_name or run.run_type.value,
            reason=context["params"].get("reason"),
            category=context["params"].get("category"),
            approvals=() if approval is None else tuple(answer for answer in approval.answers if answer.counts),
            entries=tuple(
                JournalEntry(
                    component=change.component,
                    kind=change.kind,
                    workload=Workload(**change.workload),
                    before=change.before,
                    intended=change.after,
                    digest=change.digest,
                    criticality=change.criticality,
                    needs=change.needs,
                )
                for change in plan.changes
            ),
        )

    def check_quarantine(self, context: Context, cluster: ClusterHook, plan: Plan) -> None:
        """:raises PermanentError: ``version-quarantined``: another operation may have failed since preflight."""
        versions = self.quarantine(cluster).all()
        for change in plan.changes:
            released = released_from_quarantine(context, change.component)
            held = check_quarantine(versions, change.component, change.digest, released=released)
            if held is not None and held.severity == "block":
                raise PermanentError(
                    "version-quarantined",
                    f"{held.object} is {held.observed}",
                    context={"component": change.component},
                    hint=held.hint,
                )

    def check_unchanged(self, cluster: ClusterHook, plan: Plan) -> None:
        """:raises PermanentError: ``plan-outdated`` when an object has changed since it was planned for."""
        first: dict[str, Any] = {}
        for change in plan.changes:
            first.setdefault(change.component, change)
        for name, change in first.items():
            live = cluster.get(change.workload["kind"], change.workload["name"], change.workload["namespace"])
            if not same_spec({**live, "kind": change.workload["kind"]}, change.before):
                raise PermanentError(
                    "plan-outdated",
                    f"{name}: {change.workload['kind']}/{change.workload['name']} was changed after the plan was made",
                    context={"component": name},
                    hint="Find out who changed it, then trigger a new run.",
                )
