"""Judge a component's metrics after its change, and those of all after the whole; what is not good does not stand."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from nephoran_maintenance.domain.approval import minute
from nephoran_maintenance.domain.gate import (
    BASELINE_QUERIES,
    Baseline,
    Recording,
    baseline_of,
    head_line,
    pods_in,
    recordings,
    unmeasured,
    verdicts_of,
)
from nephoran_maintenance.domain.gate_question import (
    ROLL_BACK,
    STAND,
    body,
    in_doubt,
    judge,
    let_stand,
    subject,
    why_back,
)
from nephoran_maintenance.domain.report import NOT_MEASURED
from nephoran_maintenance.errors import PermanentError, TransientError
from nephoran_maintenance.operators.admission import request_of
from nephoran_maintenance.operators.approval import as_moment, rule_of
from nephoran_maintenance.operators.base import StepOperator, finish_change_step, operation_of, pull
from nephoran_maintenance.operators.gate_queries import gated_components, names_of, queries_of
from nephoran_maintenance.operators.questions import ask
from nephoran_maintenance.settings import report_folder

if TYPE_CHECKING:
    from airflow.sdk import Context

    from nephoran_maintenance.domain.journal import Journal
    from nephoran_maintenance.hooks.cluster import ClusterHook
    from nephoran_maintenance.profile import Category, Component

GATE_KEY = "gate"
QUESTION_KEY = "question"
LONGEST_READING = timedelta(minutes=10)
"""How long reading may take on top of the gate itself, when Prometheus answers slowly."""

Row = dict[str, Any]


class MetricGateSensor(StepOperator):
    """Succeed when the gate is open; fail, so that the change goes back, when it is closed or unknown.

    Where the category of the change says so, an approver is asked about an unknown one, within the category's
    ``answer_minutes``; the row of a gate that they let stand says so.

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
        if "state" not in event:
            return self.answered(context, journal, event)
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

        What is unknown is asked a person where the category of the change says so.

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
        if in_doubt(rows) and self.asks(context):
            self.ask(context, rows, datetime.now(UTC))
        raise self.refused(rows)

    def refused(self, rows: Sequence[Row], why: str = "") -> PermanentError:
        """Return the error that takes the change back.

        :param why: what a person who was asked has to do with it.
        """
        shut = [row for row in rows if row["state"] == "closed"] or [row for row in rows if row["state"] == "unknown"]
        closed = shut[0]["state"] == "closed"
        text = "; ".join([*(row["message"] for row in shut), *([why] if why else [])])
        return PermanentError(
            "gate-closed" if closed else "gate-unknown",
            f"the metrics do not let the change stand: {text}" if closed else f"the metrics can't be judged: {text}",
            context={
                "components": ", ".join(row["component"] for row in shut),
                "reason": shut[0]["reason"],
                "samples": shut[0]["samples"],
            },
            hint=shut[0]["hint"],
        )

    # ------------------------------------------------------------------------------------------- what a person is asked

    def asks(self, context: Context) -> bool:
        """Return whether the category of the change has a person decide about metrics that can't be judged."""
        return self.category(context).unknown_metrics == "ask"

    def category(self, context: Context) -> Category:
        return self.profile.category(request_of(context).category)

    def ask(self, context: Context, rows: list[Row], asked_at: datetime, ends_at: datetime | None = None) -> NoReturn:
        """Put the question and wait for its answer without a worker.

        :param ends_at: the end of the time where it was asked before.
        :raises PermanentError: ``gate-unknown`` when nobody may answer, or the time is over.
        """
        rule, unknown = rule_of(self, context), in_doubt(rows)
        until = ends_at or asked_at + timedelta(minutes=self.category(context).answer_minutes)
        if not rule.may_approve():
            raise self.refused(rows, "nobody that the profile names may let it stand")
        if asked_at >= until:
            raise self.refused(rows, why_back(None, until))
        question = {"rows": rows, "asked_at": asked_at.isoformat(), "until": until.isoformat()}
        context["ti"].xcom_push(key=QUESTION_KEY, value=question)
        self.log.info("Asking whether the change stands until %s", minute(until))
        ask(
            context,
            options=[STAND, ROLL_BACK],
            subject=subject(unknown, until),
            body=body(rule, unknown, asked_at, until),
            within=until - asked_at,
        )

    def answered(self, context: Context, journal: Journal, event: Mapping[str, Any]) -> Any:
        """Let the change stand or go back as a person says; ask again after an answer that does not count."""
        question = pull(context, self.task_id, QUESTION_KEY)
        rows, until = question["rows"], datetime.fromisoformat(question["until"])
        if "error" in event:
            raise self.refused(rows, why_back(None, until))
        answer = judge(
            rule_of(self, context),
            by=(event.get("responded_by_user") or {}).get("name"),
            at=as_moment(event["responded_at"]),
            chosen=event["chosen_options"],
            asked_at=datetime.fromisoformat(question["asked_at"]),
        )
        if not answer.counts:
            self.log.warning("The answer of %s does not count: %s", answer.by, answer.why)
            self.ask(context, rows, datetime.now(UTC), until)
        if answer.choice == "reject":
            raise self.refused(rows, why_back(answer, until))
        self.check_forward(journal)
        self.log.warning("%s lets the change stand though its metrics can't be judged", answer.by)
        return self.finish(context, journal, let_stand(rows, answer))

    def finish(self, context: Context, journal: Journal, rows: list[Row]) -> Any:
        if self.component is None:
            return rows
        return finish_change_step(context, journal, self.profile, self.task_id, rows)


def samples_name(component: str | None) -> str:
    """Return the name of a gate's file of samples in the folder of the report."""
    return f"gate-samples-{component}.jsonl" if component else "gate-samples.jsonl"


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
