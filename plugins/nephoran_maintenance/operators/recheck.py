"""With the lease in hand, findings and plan once more: what was approved is what is done."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nephoran_maintenance.domain.findings import Finding, as_table
from nephoran_maintenance.domain.plan import Plan, plan_hash
from nephoran_maintenance.domain.plan_words import differences
from nephoran_maintenance.domain.step_ids import PLAN_CHANGES
from nephoran_maintenance.errors import PermanentError
from nephoran_maintenance.operators.admission import request_of
from nephoran_maintenance.operators.base import journal_of, pull, refuse_closed
from nephoran_maintenance.operators.checks import CHECKS, check_intents, gathered
from nephoran_maintenance.operators.planning import HASH_KEY, PLAN_KEY, PlanUpgradeOperator
from nephoran_maintenance.operators.readiness import refuse_blocking

if TYPE_CHECKING:
    from airflow.sdk import Context

RECHECKS = {**CHECKS, "intents": check_intents}
"""All checks of preflight but that of the dependencies, which sends Jobs into the cluster and waits for them."""


class RecheckPlanOperator(PlanUpgradeOperator):
    """Compute findings and plan again, with the lease in hand and before anything is changed.

    Returns ``{"plan_hash", "findings"}``; the journal is not opened without this result. A finding that blocks, and a plan
    that is another one, fail the step with the difference. An operation whose journal is open already was rechecked
    before it was opened; what is there then is half of its own change, and nothing is compared. Safe to repeat: yes, it
    only reads.
    """

    def act(self, context: Context) -> dict[str, Any]:
        digest = pull(context, PLAN_CHANGES, HASH_KEY)
        journal = journal_of(context, self.journals())
        refuse_closed(journal)
        if journal is not None:
            self.log.info("The journal of plan %s is open: rechecked before", journal.plan_hash)
            return {"plan_hash": journal.plan_hash, "findings": []}
        found = [finding for subject in RECHECKS for finding in self.findings(subject, context)]
        self.log.info("Findings:\n%s", as_table(found))
        refuse_blocking(found)
        plan = self.planned(request_of(context))
        now = plan_hash(plan)
        if now != digest:
            lines = differences(Plan.model_validate(pull(context, PLAN_CHANGES, PLAN_KEY)), plan)
            raise PermanentError(
                "plan-outdated",
                "the plan is another one than before the lease was taken: " + "; ".join(lines),
                context={"planned": digest, "now": now},
                hint="Nothing was changed. Find out who changed it, then trigger a new run.",
            )
        self.log.info("Plan %s still holds", digest)
        return {"plan_hash": now, "findings": [finding.to_dict() for finding in found if finding.severity != "pass"]}

    def findings(self, subject: str, context: Context) -> list[Finding]:
        """Return the findings about one subject; what could not be read is one that blocks."""
        return [
            Finding(**found) for found in gathered(self, subject, lambda: RECHECKS[subject](self, context), context)
        ]
