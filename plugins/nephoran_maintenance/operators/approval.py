"""A person lets a change begin: Airflow's own human-in-the-loop state, and a look at who has answered."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from nephoran_maintenance.domain import approval as decisions
from nephoran_maintenance.domain.approval import REJECT, Approval, Rule, approve_option, rule_for
from nephoran_maintenance.domain.approval_question import body, subject
from nephoran_maintenance.domain.moments import moment
from nephoran_maintenance.domain.plan import Plan
from nephoran_maintenance.domain.step_ids import (
    DECIDE_READINESS,
    PLAN_CHANGES,
    WAIT_APPROVAL,
    WAIT_SECOND_APPROVAL,
)
from nephoran_maintenance.errors import PermanentError
from nephoran_maintenance.operators.admission import request_of
from nephoran_maintenance.operators.base import StepOperator, finish_step, journal_of, pull, refuse_closed
from nephoran_maintenance.operators.planning import HASH_KEY, PLAN_KEY, PLANNED_AT_KEY
from nephoran_maintenance.operators.questions import ask

if TYPE_CHECKING:
    from airflow.sdk import Context

APPROVAL_KEY = "approval"


def rule_of(step: StepOperator, context: Context) -> Rule:
    """Return what the category of this run asks for."""
    return rule_for(step.profile, request_of(context).category, context["dag_run"].triggering_user_name)


def recorded_approval(context: Context) -> Approval | None:
    """Return what is recorded of this run's approval; the second step goes on with the record of the first."""
    found = pull(context, WAIT_SECOND_APPROVAL, APPROVAL_KEY) or pull(context, WAIT_APPROVAL, APPROVAL_KEY)
    return Approval.model_validate(found) if found else None


class WaitApprovalOperator(StepOperator):
    """Ask for one approval of the plan and look who answers; holds no worker and no lease while it waits.

    Where the category needs none, it says so and ends. An answer that does not count is recorded, and the question comes
    again; a rejection, and no answer in time, fail the step. Leaves in the XCom ``approval`` a
    :class:`nephoran_maintenance.domain.approval.Approval` with every answer so far. The time begins with the plan, so a
    question that comes again does not last longer. Safe to repeat: yes, it asks again.

    :param number: 1 for the first person, 2 for the second; without a need for a second the first skips that step.
    """

    plan_step = PLAN_CHANGES
    """The step that has left the plan that is asked about."""

    def __init__(self, *, number: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.number = number

    def act(self, context: Context) -> Any:
        rule = self.rule(context)
        if rule.needed < self.number:
            approval = self.start(context, rule).model_copy(update={"state": "not needed"})
            self.log.info("Category %s needs no %sapproval", rule.category, "" if self.number == 1 else "second ")
            return self.finish(context, approval)
        decisions.check_rule(rule)
        self.refuse_ended(context)
        approval = self.start(context, rule)
        if len(approval.approvers()) != self.number - 1:
            raise PermanentError(
                "approval-missing",
                f"the first approval is not recorded: approved by {', '.join(approval.approvers()) or 'nobody'}",
                hint=f"Clear {WAIT_APPROVAL} with what follows it, or trigger a new run.",
            )
        self.ask(context, rule, approval)
        return None

    def rule(self, context: Context) -> Rule:
        """Return how many must approve, and whose answers count."""
        return rule_of(self, context)

    def refuse_ended(self, context: Context) -> None:
        """Refuse to ask about a change that was made already."""
        refuse_closed(journal_of(context, self.journals()))

    def question(self, context: Context, rule: Rule, approval: Approval, asked_at: datetime) -> tuple[str, str]:
        """Return headline and text of the question."""
        plan = Plan.model_validate(pull(context, self.plan_step, PLAN_KEY))
        findings = (pull(context, DECIDE_READINESS) or {}).get("findings") or []
        expires_at, reason = self.expires_at(context, rule), context["params"].get("reason")
        text = body(rule, approval, plan, findings, asked_at=asked_at, expires_at=expires_at, reason=reason)
        return subject(rule, approval, plan, expires_at), text

    def resume(self, context: Context, event: dict[str, Any]) -> Any:
        rule = self.rule(context)
        approval = Approval.model_validate(pull(context, self.task_id, APPROVAL_KEY))
        expires_at = self.expires_at(context, rule)
        if event.get("error_type") == "timeout":
            self.record(context, approval.expired())
            raise decisions.expired(approval, expires_at)
        if "error" in event:
            raise PermanentError(
                "approval-missing", f"the question was lost: {event['error']}", hint="Clear this step: it asks again."
            )
        answer = decisions.judge(
            rule,
            approval,
            by=(event.get("responded_by_user") or {}).get("name"),
            at=as_moment(event["responded_at"]),
            chosen=event["chosen_options"],
            expires_at=expires_at,
        )
        self.log.info(
            "%s answered %s%s", answer.by, answer.choice, "" if answer.counts else f": does not count, {answer.why}"
        )
        approval = approval.answered(answer)
        self.record(context, approval)
        if not answer.counts:
            self.ask(context, rule, approval)
        if approval.state == "rejected":
            raise decisions.rejected(answer)
        return self.finish(context, approval)

    def start(self, context: Context, rule: Rule) -> Approval:
        """Return the record that this step goes on with: a new one, or that of the first person."""
        digest = pull(context, self.plan_step, HASH_KEY)
        found = pull(context, WAIT_APPROVAL, APPROVAL_KEY) if self.number > 1 else None
        first = Approval.model_validate(found) if found else None
        if first is not None and first.plan_hash == digest:
            return first
        return Approval(category=rule.category, needed=rule.needed, plan_hash=digest)

    def ask(self, context: Context, rule: Rule, approval: Approval) -> None:
        """Put the question, and wait without a worker for the answer or the end of the time.

        :raises PermanentError: ``approval-expired``.
        """
        expires_at, now = self.expires_at(context, rule), datetime.now(UTC)
        approval = approval.model_copy(update={"expires_at": expires_at})
        if now >= expires_at:
            self.record(context, approval.expired())
            raise decisions.expired(approval, expires_at)
        self.record(context, approval)
        headline, text = self.question(context, rule, approval, now)
        self.log.info("Waiting for %d approvals until %s", approval.missing(), decisions.minute(expires_at))
        options = [approve_option(approval.plan_hash), REJECT]
        ask(context, options=options, subject=headline, body=text, within=expires_at - now)

    def finish(self, context: Context, approval: Approval) -> Any:
        self.record(context, approval)
        result = approval.model_dump(mode="json")
        return finish_step(context, result, [WAIT_SECOND_APPROVAL] if approval.needed < 2 and self.number == 1 else [])

    def record(self, context: Context, approval: Approval) -> None:
        context["ti"].xcom_push(key=APPROVAL_KEY, value=approval.model_dump(mode="json"))

    def expires_at(self, context: Context, rule: Rule) -> datetime:
        """Return when the time for this plan is over."""
        planned_at = moment(pull(context, self.plan_step, PLANNED_AT_KEY))
        return (planned_at or datetime.now(UTC) - timedelta(days=1)) + rule.expires_after


def as_moment(value: Any) -> datetime:
    """Return when an answer was given, as Airflow hands it on: a moment or its text."""
    found = value if isinstance(value, datetime) else moment(value)
    return found or datetime.now(UTC)
