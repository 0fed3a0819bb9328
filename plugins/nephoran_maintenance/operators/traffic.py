"""Steady requests through the whole system while it is changed: the measured proof of no downtime."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from airflow.sdk.exceptions import AirflowSkipException

from nephoran_maintenance.errors import PermanentError
from nephoran_maintenance.operators.base import StepOperator, journal_of, operation_of
from nephoran_maintenance.settings import PROBE_ANNOTATION, PROBE_STOP, report_folder

if TYPE_CHECKING:
    from airflow.sdk import Context

LONGEST_OPERATION = timedelta(hours=6)


class MeasureTrafficOperator(StepOperator):
    """Send requests at the profile's rate until the operation says stop; holds no worker.

    Returns the summary of :func:`nephoran_maintenance.domain.probe.summarise` with ``samples``, the file of all
    samples. Skipped where the profile has no probe. Safe to repeat: yes, it changes nothing.
    """

    def act(self, context: Context) -> None:
        from nephoran_maintenance.triggers.probe import ProbeTrigger

        probe, known = self.profile.probe, self.profile.known_objects
        if probe is None or known is None:
            raise AirflowSkipException("the profile has no probe")
        operation = operation_of(context)
        folder = report_folder(context["dag_run"].dag_id, operation)
        folder.mkdir(parents=True, exist_ok=True)
        self.defer(
            trigger=ProbeTrigger(
                url=probe.url,
                rate_per_second=probe.rate_per_second,
                timeout_seconds=probe.timeout_seconds,
                known_objects_count=known.count,
                collection=known.collection,
                object_name_template=f"{known.prefix}/{{collection}}/{{number}}",
                title_template=f"{known.title}-{{number}}",
                samples_path=str(folder / "probe-samples.jsonl"),
                kubernetes_connection_id=self.kubernetes_connection_id,
                journal_namespace=self.profile.namespaces.maintenance,
                journal_name=operation,
                deadline_seconds=LONGEST_OPERATION.total_seconds(),
            ),
            method_name="resume_step",
            timeout=LONGEST_OPERATION + timedelta(minutes=5),
        )

    def resume(self, context: Context, event: dict[str, Any]) -> dict[str, Any]:
        if event["state"] != "complete":
            raise PermanentError(
                "probe-not-measured",
                f"the probe ended without a result: {event.get('message', event['state'])}",
                context={"operation": operation_of(context)},
                hint="The change itself is not affected; its downtime is not measured. Look at the triggerer's log.",
            )
        return dict(event["summary"])


class StopTrafficOperator(StepOperator):
    """Tell the probe of this operation to stop, whatever happened before. Safe to repeat: yes."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(trigger_rule="all_done", **kwargs)

    def act(self, context: Context) -> str:
        journals = self.journals()
        if journal_of(context, journals) is None:
            raise AirflowSkipException("the operation has no journal, so no probe runs")
        journals.annotate(operation_of(context), {PROBE_ANNOTATION: PROBE_STOP})
        return datetime.now().astimezone().isoformat(timespec="seconds")
