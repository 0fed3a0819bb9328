"""The end of every procedure: the report, and the colour of the run."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperatorLink

from nephoran_maintenance.airflow_edge import interface_address
from nephoran_maintenance.domain.backup_findings import snapshot_findings, source_finding, staging_finding
from nephoran_maintenance.domain.findings import Finding
from nephoran_maintenance.domain.journal import Journal, outcome_of
from nephoran_maintenance.domain.order import in_order
from nephoran_maintenance.domain.report import NOT_MEASURED, build_report, overall
from nephoran_maintenance.domain.step_ids import (
    COMPONENTS_GROUP,
    DECIDE_READINESS,
    DELETE_TEST_INTENTS,
    MEASURE_TRAFFIC,
    PLAN_CHANGES,
    PROTECT_GROUP,
    RECHECK_PLAN,
    RECORD_MANIFEST,
    RELEASE_STAGING,
    REPORT_OPERATION,
    VERIFY_COMPONENTS,
    VERIFY_METRICS,
    VERIFY_OUTCOME,
    VERIFY_STORED_FILES,
    WAIT_TEST_INTENTS,
    alone_step_ids,
    change_step_ids,
    gate_step_id,
    identifier,
    rollback_step_id,
)
from nephoran_maintenance.engine.fencing import close
from nephoran_maintenance.engine.report_files import keep_report, write_report
from nephoran_maintenance.errors import PermanentError
from nephoran_maintenance.operators.approval import recorded_approval
from nephoran_maintenance.operators.backup_sources import captured_sources
from nephoran_maintenance.operators.base import (
    ERROR_KEY,
    StepOperator,
    journal_of,
    operation_of,
    pull,
    pull_all,
    states_of,
)
from nephoran_maintenance.operators.gate_queries import gated_components
from nephoran_maintenance.operators.planning import HASH_KEY, PLAN_KEY
from nephoran_maintenance.operators.proof import marked_steps, seen_good
from nephoran_maintenance.sensors.gate import GATE_KEY, row_without_verdict
from nephoran_maintenance.settings import PAGES_PREFIX

if TYPE_CHECKING:
    from airflow.sdk import Context

    from nephoran_maintenance.profile import SystemProfile

FAILED_STATES = ("failed", "upstream_failed")


class ReportLink(BaseOperatorLink):
    """The button in the UI that opens the report of this run."""

    name = "Report"

    def get_link(self, operator: Any, *, ti_key: Any) -> str:
        """Return the address; asked once, in the worker at the end of the step, and kept by Airflow."""
        return str(getattr(operator, "report_address", ""))


class ReportOperator(StepOperator):
    """Write the report as JSON and HTML, keep it in the object store, and close the journal.

    Returns the report's figures with ``report_path`` (local HTML file) and ``report_url`` (in the object store).
    Reads recorded facts only; a step that left none reads *not measured*. Safe to repeat: yes, the same keys are
    written again.
    """

    operator_extra_links = (ReportLink(),)

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(trigger_rule="all_done", **kwargs)

    def act(self, context: Context) -> dict[str, Any]:
        profile, operation = self.profile, operation_of(context)
        return self.publish(profile, operation, self.build(context, profile, operation))

    def publish(self, profile: SystemProfile, operation: str, report: dict[str, Any]) -> dict[str, Any]:
        """Write a report as page and data, keep both, and return it with ``report_path`` and ``report_url``."""
        path = write_report(self.dag_id, report)
        self.report_address = interface_address(f"{PAGES_PREFIX}/reports/{self.dag_id}/{operation}/")
        url = keep_report(profile, path) or str(path)
        self.log.info("Report: %s", path)
        return {**report, "plan": None, "report_path": str(path), "report_url": url}

    def build(self, context: Context, profile: SystemProfile, operation: str) -> dict[str, Any]:
        run = context["dag_run"]
        states = states_of(context)
        plan = pull(context, PLAN_CHANGES, PLAN_KEY)
        reads_only = PLAN_CHANGES not in states
        failed = [task_id for task_id, state in states.items() if state in FAILED_STATES]
        journal = None if reads_only else self.close_journal(context)
        marked = [] if journal is None else marked_steps(context, journal, profile)
        allowed = tuple(f"{COMPONENTS_GROUP}.{identifier(name)}." for name in (journal.behind() if journal else ()))
        owner = None if journal is None or journal.state == "closed" else self.other_lease(context)
        findings = list((pull(context, DECIDE_READINESS) or {}).get("findings") or ())
        findings += [found.to_dict() for found in backup_findings(context, profile)]
        rechecked = (pull(context, RECHECK_PLAN) or {}).get("findings") or ()
        findings += [found for found in rechecked if found not in findings]
        backwards = [c.name for c in reversed(in_order(profile.components))]
        alone = pull_all(context, [alone_step_ids(name)[1] for name in backwards])
        rollback = {**alone, **pull_all(context, [rollback_step_id(name) for name in backwards])}
        health = self.health(context, profile, journal, list(rollback.values()))
        tests = pull(context, WAIT_TEST_INTENTS) or pull(context, WAIT_TEST_INTENTS, "functional_test") or []
        gates = [] if journal is None else self.gates(context, profile, journal)
        deleted = pull(context, DELETE_TEST_INTENTS)
        approval = None if reads_only else recorded_approval(context)
        return build_report(
            operation_id=operation,
            procedure=self.dag_id,
            title=self.dag.dag_display_name,
            system=profile.metadata.name,
            how=overall(
                journal,
                failed=bool(marked) or any(not task_id.startswith(allowed) for task_id in failed),
                planned=context["params"].get("mode") == "plan",
                changes=None if plan is None else len(plan["changes"]),
                reads_only=reads_only,
                approval=approval,
                taken_over=owner is not None or (journal is not None and bool(journal.takeovers)),
            ),
            triggered_by=run.triggering_user_name or run.run_type.value,
            started_at=run.start_date,
            ended_at=datetime.now(UTC),
            params=dict(context["params"]),
            plan=plan,
            plan_hash=pull(context, PLAN_CHANGES, HASH_KEY),
            journal=journal,
            health=health,
            functional_test=[{**test, "deleted": "yes" if deleted is not None else "not measured"} for test in tests],
            backup=backup_before_change(context),
            probe=pull(context, MEASURE_TRAFFIC),
            owner=owner,
            probe_expected=journal is not None and profile.probe is not None,
            gates=gates,
            gate_seconds=None if reads_only else profile.gate.duration_seconds,
            approval=approval.model_dump(mode="json") if approval else None,
            rollback=list(rollback.values()),
            findings=[*findings, *(found for gate in gates for found in gate["findings"])],
            failed_steps=[
                {"task_id": task_id, "error": pull(context, task_id, ERROR_KEY) or "see the log of the step"}
                for task_id, state in states.items()
                if state == "failed"
            ]
            + [
                {
                    "task_id": step.task_id,
                    "error": f"not measured: it is marked as success, but {step.missing}. Next: Ask who marked it; "
                    "what nobody has measured does not stand.",
                }
                for step in marked
            ],
        )

    def close_journal(self, context: Context) -> Journal | None:
        """Close the journal with the outcome that its entries tell, and return it; None when there is none.

        One with an entry in between, or without the last look at the whole, stays open: only a closed journal says that
        nothing is left to do.
        """
        store = self.journals()
        journal = journal_of(context, store)
        if journal is None:
            return None
        outcome = outcome_of(journal, seen_good(context, journal))
        if outcome is None or journal.state == "closed":
            return journal
        try:
            lease = self.held_lease(context, store.cluster, journal)
            return close(store.cluster, store, journal, outcome, lease.token)
        except PermanentError as error:
            if error.reference != "lease-lost":
                raise
            self.log.warning("Left to the recovery: %s", error)
            return store.find(journal.operation_id)

    def health(
        self, context: Context, profile: SystemProfile, journal: Journal | None, ways_back: list[dict[str, Any]]
    ) -> dict[str, Any]:
        """Return by component what was measured last of the version that it has now.

        That is the last look, or the steps' own where it was not reached; of what went back, only the way back's.
        """
        steps = {step: c.name for c in profile.components for step in change_step_ids(c.name)}
        forward = pull(context, VERIFY_COMPONENTS) or {
            steps[step]: result for step, result in pull_all(context, steps).items() if "health" in result
        }
        entries = journal.entries if journal else ()
        gone = {entry.component for entry in entries if entry.step in ("rolling-back", "rolled-back")}
        new = {name: result for name, result in forward.items() if name not in gone}
        return {**new, **{row["component"]: row for row in ways_back if row["component"] in gone and "health" in row}}

    def gates(self, context: Context, profile: SystemProfile, journal: Journal) -> list[dict[str, Any]]:
        """Return a row for each metric that was to be judged, after each changed component and after the whole."""
        changed = {entry.component for entry in journal.entries if entry.step != "left-out"}
        behind = journal.behind()
        steps = {gate_step_id(c.name): c.name for c in in_order(gated_components(profile)) if c.name in changed}
        rows = []
        for step, component in {**steps, VERIFY_METRICS: None}.items():
            judged = [c.name for c in gated_components(profile, component) if component or c.name not in behind]
            missing = [row_without_verdict(name, NOT_MEASURED, "the step left no verdict") for name in judged]
            found = pull(context, step) or pull(context, step, GATE_KEY) or missing
            rows += [{"after": component or "the whole", **row} for row in found]
        return rows


def backup_before_change(context: Context) -> dict[str, Any] | None:
    """Return what the group ``protect`` has saved: ``{"backup_id", "type", "stored_bytes", "url", "checked"}``."""
    made = pull(context, f"{PROTECT_GROUP}.{RECORD_MANIFEST}")
    if made is None:
        return None
    note = pull(context, f"{PROTECT_GROUP}.{VERIFY_STORED_FILES}")
    about = {key: made[key] for key in ("backup_id", "type", "stored_bytes", "url")}
    return {**about, "checked": "every byte read back" if note else "not checked"}


def backup_findings(context: Context, profile: SystemProfile) -> list[Finding]:
    """Return what is not as it should be with the backup before a change: what is not in it, and what it left behind."""

    def sibling(step: str) -> str:
        return f"{PROTECT_GROUP}.{step}"

    sources = captured_sources(context, sibling)
    staged = pull(context, sibling(RELEASE_STAGING))
    found = [*map(source_finding, sources), *snapshot_findings(sources)]
    found += [staging_finding(profile.backup.staging_bucket, staged)] if staged else []
    return [finding for finding in found if finding.severity != "pass"]


class VerifyOutcomeOperator(StepOperator):
    """Fail when any step of the run failed, so that the run is red also after a rollback that went well.

    A step that was marked as success without a result counts as failed, and so does a report that nobody has written.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(trigger_rule="all_done", **kwargs)

    def act(self, context: Context) -> str:
        states, report = states_of(context), pull(context, REPORT_OPERATION)
        failed = [t for t, state in states.items() if state in FAILED_STATES and t != VERIFY_OUTCOME]
        named = (row["task_id"] for row in (report or {}).get("failed_steps") or ())
        failed += [task_id for task_id in named if task_id not in failed]
        if report is None and states.get(REPORT_OPERATION) == "success":
            failed.append(REPORT_OPERATION)
        if failed:
            raise PermanentError(
                "procedure-failed",
                f"{len(failed)} steps did not succeed, among them {failed[0]}",
                hint="Open the report of this run; a good rollback keeps the run red on purpose.",
            )
        return "all steps succeeded"
