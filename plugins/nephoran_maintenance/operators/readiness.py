"""The decision over all findings of preflight."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from nephoran_maintenance.domain.findings import Finding, as_table, summary
from nephoran_maintenance.errors import PermanentError
from nephoran_maintenance.operators.base import StepOperator, pull_all

if TYPE_CHECKING:
    from airflow.sdk import Context


class DecideReadinessOperator(StepOperator):
    """Bring all findings together; any *block* fails the step, as does a check that left no result.

    Leaves the summary of :func:`nephoran_maintenance.domain.findings.summary` in XCom, also when it fails.

    :param check_task_ids: the steps whose findings count.
    """

    def __init__(self, *, check_task_ids: Sequence[str], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.check_task_ids = list(check_task_ids)

    def act(self, context: Context) -> dict[str, Any]:
        results = pull_all(context, self.check_task_ids)
        findings = [Finding(**finding) for task_id in self.check_task_ids for finding in results.get(task_id, ())]
        findings += [
            Finding(
                check=task_id.rpartition(".")[2].removeprefix("check_"),
                severity="block",
                object=task_id,
                observed="not measured",
                expected="a result",
                hint=f"Read the log of {task_id}, mend the cause and clear the step.",
            )
            for task_id in self.check_task_ids
            if task_id not in results
        ]
        outcome = summary(findings, datetime.now(UTC))
        context["ti"].xcom_push(key="return_value", value=outcome)
        self.log.info("Findings of preflight:\n%s", as_table(findings))
        refuse_blocking(findings)
        if not findings:
            raise PermanentError(
                "preflight-blocked",
                "the system is not ready for a change: no check has found anything at all",
                context={"blocking": 0},
                hint="Read the logs of the checks.",
            )
        return outcome


def refuse_blocking(findings: Sequence[Finding]) -> None:
    """:raises PermanentError: ``preflight-blocked`` when any finding blocks, with the first one."""
    blocking = [finding for finding in findings if finding.severity == "block"]
    if blocking:
        first = blocking[0]
        raise PermanentError(
            "preflight-blocked",
            f"the system is not ready for a change: {len(blocking)} blocking "
            f"finding{'s' if len(blocking) > 1 else ''}; first {first.check} of {first.object}: "
            f"observed {first.observed}, expected {first.expected}",
            context={"blocking": len(blocking)},
            hint=first.hint,
        )
