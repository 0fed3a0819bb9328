"""Judge a component's metrics after its change, and those of all after the whole; what is not good does not stand."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nephoran_maintenance.domain.gate import (
    BASELINE_QUERIES,
    QUERIES,
    Baseline,
    Recording,
    baseline_of,
    head_line,
    pods_in,
    recordings,
    unmeasured,
    verdicts_of,
)
from nephoran_maintenance.domain.report import NOT_MEASURED
from nephoran_maintenance.errors import PermanentError, TransientError
from nephoran_maintenance.hooks.promql import read_queries
from nephoran_maintenance.operators.base import StepOperator, finish_change_step, operation_of
from nephoran_maintenance.settings import report_folder

if TYPE_CHECKING:
    from airflow.sdk import Context

    from nephoran_maintenance.domain.journal import Journal
    from nephoran_maintenance.hooks.cluster import ClusterHook
    from nephoran_maintenance.profile import Component, SystemProfile

GATE_KEY = "gate"
LONGEST_READING = timedelta(minutes=10)
"""How long reading may take on top of the gate itself, when Prometheus answers slowly."""

Row = dict[str, Any]


class MetricGateSensor(StepOperator):
    """Succeed when the gate is open; fail, so that the change goes back, when it is closed or unknown.

    It reads the metrics before the change (the baseline) and defers; the samples are kept beside the report. Returns,
    and on failure leaves in the XCom ``gate``, one row per component: ``Verdict.to_dict()`` with ``samples``, the name of
    the file. With the profile's ``gate.duration_seconds`` 0 the rows say ``off``; a component whose gate was not decided,
    because another one's was not open, is *not measured*.

    Safe to repeat: yes, it only reads, and goes on with the samples that it has.

    :param component: name of the component in the profile; None: all that have a gate, after the whole.
    """

    def __init__(self, *, component: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.component = component

    def act(self, context: Context) -> Any:
        cluster = self.cluster()
        journal = self.opened(context, cluster)
        if self.profile.gate.off or not self.gated(journal):
            return self.finish(context, journal, [off_row(component.name) for component in self.gated(journal)])
        kept = self.kept(context)
        if kept and (verdicts := verdicts_of(kept.values())) is not None:
            return self.conclude(context, journal, [verdict.to_dict() for verdict in verdicts])
        begun_at, before = datetime.now(UTC), changed_at(journal)
        try:
            gates = [self.gate(cluster, component, begun_at, before) for component in self.gated(journal)]
        except TransientError as error:
            if context["ti"].try_number <= (self.retries or 0):
                raise
            rows = [unmeasured(component.name, error.message).to_dict() for component in self.gated(journal)]
            return self.conclude(context, journal, rows)
        self.wait(context, gates, begun_at)
        return None

    def resume(self, context: Context, event: dict[str, Any]) -> Any:
        journal = self.opened(context, self.cluster())
        if event["state"] == "complete":
            return self.conclude(context, journal, event["verdicts"])
        rows = [unmeasured(component.name, event["message"]).to_dict() for component in self.gated(journal)]
        return self.conclude(context, journal, rows)

    def gated(self, journal: Journal) -> list[Component]:
        """Return the components that are judged: not those that may fail and stayed behind."""
        return [one for one in gated_components(self.profile, self.component) if one.name not in journal.behind()]

    def blamed(self, error: PermanentError) -> Sequence[str]:
        return str(error.context["components"]).split(", ")

    def opened(self, context: Context, cluster: ClusterHook) -> Journal:
        """Return the journal of an operation that goes forward."""
        journal = self.journals(cluster).read(operation_of(context))
        self.check_forward(journal)
        self.begun(journal)
        return journal

    def check_forward(self, journal: Journal) -> None:
        """:raises PermanentError: ``operation-closed`` when the operation is over or on its way back."""
        went = ("rolling-back", "rolled-back", "left-out")
        back = [
            entry.component
            for entry in journal.entries
            if entry.step in went and (journal.turned_back_at or entry.component == self.component)
        ]
        if journal.state == "closed" or back:
            state = f"closed: {journal.outcome}" if journal.state == "closed" else f"on its way back: {back[0]}"
            raise PermanentError(
                "operation-closed",
                f"operation {journal.operation_id} is {state}",
                hint="Trigger a new run instead of clearing this one.",
            )

    def samples_path(self, context: Context) -> Path:
        return report_folder(self.dag_id, operation_of(context)) / samples_name(self.component)

    def kept(self, context: Context) -> dict[str, Recording]:
        """Return what an earlier try has recorded, where this machine can see it."""
        from nephoran_maintenance.triggers.probe import read_samples

        return recordings(read_samples(self.samples_path(context)))

    def gate(self, cluster: ClusterHook, component: Component, begun_at: datetime, before: datetime) -> Row:
        """Return what the trigger needs to know of one component, its baseline included."""
        settings = self.profile.gate
        workload = cluster.get_workload(component, self.profile.namespace_of(component))
        place = {
            "namespace": workload["metadata"]["namespace"],
            "kind": workload["kind"],
            "name": workload["metadata"]["name"],
        }
        names = names_of(component)
        window = timedelta(seconds=settings.window_seconds)
        recording = Recording(
            component.name,
            component.gate,
            settings,
            begun_at,
            self.baseline(component, [name for name in names if name in BASELINE_QUERIES], place, before),
        )
        queries = queries_of(component, names, place, window)
        self.log.info("%s: baseline %s, limits %s", component.name, recording.baseline, recording.limits())
        return {"head": head_line(recording), **place, "queries": queries}

    def baseline(
        self, component: Component, names: Iterable[str], place: Mapping[str, str], before: datetime
    ) -> Baseline:
        """Return the metrics of the time before the operation's first change."""
        from nephoran_maintenance.hooks.prometheus_api import PrometheusHook

        hook, settings = PrometheusHook(self.profile.connections.prometheus), self.profile.gate
        queries = queries_of(component, names, place, timedelta(seconds=settings.baseline_seconds))
        answers = {name: hook.query(promql, before) for name, promql in queries.items()}
        pods = pods_in({name: [(s.labels, s.value) for s in series] for name, series in answers.items()})
        return baseline_of(pods, settings)

    def wait(self, context: Context, gates: list[Row], begun_at: datetime) -> None:
        from nephoran_maintenance.triggers.gate import GateTrigger

        limit = timedelta(seconds=self.profile.gate.longest_seconds) + LONGEST_READING
        self.defer(
            trigger=GateTrigger(
                connection_id=self.kubernetes_connection_id,
                prometheus_connection_id=self.profile.connections.prometheus,
                samples_path=str(self.samples_path(context)),
                gates=gates,
                deadline_at=(begun_at + limit).isoformat(),
            ),
            method_name="resume_step",
            timeout=limit + timedelta(minutes=2),
        )

    def conclude(self, context: Context, journal: Journal, verdicts: Sequence[Mapping[str, Any]]) -> Any:
        """Return the rows when every gate is open.

        :raises PermanentError: ``gate-closed`` or ``gate-unknown``.
        """
        by_name = {verdict["component"]: verdict for verdict in verdicts}
        rows = [
            {**by_name.get(component.name, unmeasured_row(component.name)), "samples": samples_name(self.component)}
            for component in self.gated(journal)
        ]
        for row in rows:
            self.log.info("The gate is %s: %s", row["state"], row["message"])
        if all(row["state"] == "open" for row in rows):
            return self.finish(context, journal, rows)
        context["ti"].xcom_push(key=GATE_KEY, value=rows)
        shut = [row for row in rows if row["state"] == "closed"] or [row for row in rows if row["state"] == "unknown"]
        closed = shut[0]["state"] == "closed"
        text = "; ".join(row["message"] for row in shut)
        raise PermanentError(
            "gate-closed" if closed else "gate-unknown",
            f"the metrics do not let the change stand: {text}" if closed else f"the metrics can't be judged: {text}",
            context={
                "components": ", ".join(row["component"] for row in shut),
                "reason": shut[0]["reason"],
                "samples": shut[0]["samples"],
            },
            hint=shut[0]["hint"],
        )

    def finish(self, context: Context, journal: Journal, rows: list[Row]) -> Any:
        if self.component is None:
            return rows
        return finish_change_step(context, journal, self.profile, self.task_id, rows)


def gated_components(profile: SystemProfile, component: str | None = None) -> list[Component]:
    """Return the components that a gate judges: one, or all that have one."""
    chosen = profile.components if component is None else (profile.component(component),)
    return [one for one in chosen if one.gate]


def samples_name(component: str | None) -> str:
    """Return the name of a gate's file of samples in the folder of the report."""
    return f"gate-samples-{component}.jsonl" if component else "gate-samples.jsonl"


def names_of(component: Component) -> list[str]:
    """Return the names of the queries that a component's gate needs."""
    return [name for name, metrics in QUERIES.items() if set(metrics) & set(component.gate)]


def check_queries(profile: SystemProfile) -> None:
    """Check that every gate of a profile has its queries, which is better known before something is changed.

    :raises PermanentError: ``gate-queries-missing`` or ``prometheus-query-invalid``.
    """
    for component in [] if profile.gate.off else gated_components(profile):
        place = {"namespace": profile.namespace_of(component), "kind": "Deployment", "name": component.name}
        queries_of(component, names_of(component), place, timedelta(seconds=profile.gate.window_seconds))


def queries_of(
    component: Component, names: Iterable[str], place: Mapping[str, str], window: timedelta
) -> dict[str, str]:
    """Return queries of a component for its workload.

    :raises PermanentError: ``gate-queries-missing`` or ``prometheus-query-invalid``.
    """
    return read_queries(
        component.name,
        names,
        namespace=place["namespace"],
        kind=place["kind"],
        workload=place["name"],
        window=window,
    )


def changed_at(journal: Journal) -> datetime:
    """Return when the operation began to change something."""
    return min(
        (entry.at["intended"] for entry in journal.entries if "intended" in entry.at), default=journal.started_at
    )


def off_row(component: str) -> Row:
    return row_without_verdict(component, "off", "the profile's gate.duration_seconds is 0, so no metrics were judged")


def unmeasured_row(component: str) -> Row:
    return row_without_verdict(component, NOT_MEASURED, "another gate was not open before this one was decided")


def row_without_verdict(component: str, state: str, message: str) -> Row:
    """Return the row of a gate that has no verdict, with the keys of one that has."""
    empty: Row = {"reason": None, "figures": {}, "findings": [], "hint": "", "samples": None}
    return {**empty, "component": component, "state": state, "message": f"{component}: {message}"}
