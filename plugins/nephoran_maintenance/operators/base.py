"""What every step of a procedure has in common: its operation, its profile, its view of the cluster."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import AirflowSkipException, DownstreamTasksSkipped
from pydantic import BaseModel, ValidationError

from nephoran_maintenance.airflow_edge import airflow_errors
from nephoran_maintenance.domain.journal import Failure, Journal, operation_id
from nephoran_maintenance.domain.order import in_order
from nephoran_maintenance.domain.quarantine import is_own_failure
from nephoran_maintenance.domain.step_ids import (
    RECORD_BEFORE_STATE,
    alone_step_ids,
    change_step_ids,
    gate_step_id,
    rollback_step_id,
    unneeded_after,
)
from nephoran_maintenance.errors import MaintenanceError, PermanentError
from nephoran_maintenance.profile import SystemProfile, load_profile

if TYPE_CHECKING:
    from airflow.sdk import Context

    from nephoran_maintenance.domain.lease import Lease
    from nephoran_maintenance.hooks.cluster import ClusterHook
    from nephoran_maintenance.hooks.journal_store import JournalStore
    from nephoran_maintenance.hooks.lease_store import HeldLease, LeaseStore
    from nephoran_maintenance.hooks.quarantine_store import QuarantineStore

_Request = TypeVar("_Request", bound=BaseModel)

ERROR_KEY = "error"
LONGEST_ERROR = 4000
NEVER_RAN = (None, "skipped", "upstream_failed", "removed")
"""States of a step that was not begun in this run."""


class StepOperator(BaseOperator):
    """Run one step of a procedure: subclasses implement ``act`` and, when they defer, ``resume``.

    Permanent errors fail the step without a retry, transient ones are retried; both keep their text for the person
    on call.

    :param kubernetes_connection_id: Airflow connection of the procedure's own ServiceAccount.
    """

    _began_with: int | None = None
    """The token that the operation had when this step, or this part of it, began."""

    def __init__(self, *, kubernetes_connection_id: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.kubernetes_connection_id = kubernetes_connection_id

    def execute(self, context: Context) -> Any:
        with self.recorded_errors(context):
            return self.act(context)

    def resume_step(self, context: Context, event: dict[str, Any]) -> Any:
        """Continue after a deferral; name this as ``method_name`` when deferring."""
        with self.recorded_errors(context):
            return self.resume(context, event)

    @contextmanager
    def recorded_errors(self, context: Context) -> Iterator[None]:
        """Leave an error for the report, and in the journal what it is a failure of, and let Airflow see it."""
        self._began_with = None
        with reported_errors(context):
            try:
                yield
            except PermanentError as error:
                self.record_failure(context, error)
                raise

    def blamed(self, error: PermanentError) -> Sequence[str]:
        """Return the components that an error of this step is a failure of."""
        return ()

    def record_failure(self, context: Context, error: PermanentError) -> None:
        """Write into the journal which component has failed, and why: the way back, and a recovery, go by it.

        A step that was aborted or lost its worker writes nothing, so it is no failure of a component. Nor does one whose
        operation was turned back or taken over after it had begun: what it sees is what the other did.
        """
        components = self.blamed(error) if is_own_failure(error.reference) else ()
        token = self._began_with
        if not components or token is None:
            return
        failures = [
            Failure(
                component=component,
                reference=error.reference,
                cause=error.context.get("cause"),
                message=error.message.splitlines()[0],
                at=datetime.now(UTC),
            )
            for component in components
        ]

        def change(journal: Journal) -> Journal:
            for failure in failures:
                journal = journal.failed(failure)
            return journal

        try:
            self.journals().update(operation_of(context), change, token=token)
        except MaintenanceError as problem:
            self.log.warning("The failure could not be written into the journal: %s", problem)

    def act(self, context: Context) -> Any:
        raise NotImplementedError

    def resume(self, context: Context, event: dict[str, Any]) -> Any:
        raise NotImplementedError

    @property
    def profile(self) -> SystemProfile:
        return load_profile()

    def cluster(self) -> ClusterHook:
        from nephoran_maintenance.hooks.cluster import ClusterHook

        return ClusterHook(self.kubernetes_connection_id)

    def journals(self, cluster: ClusterHook | None = None) -> JournalStore:
        from nephoran_maintenance.hooks.journal_store import JournalStore

        profile = self.profile
        return JournalStore(cluster or self.cluster(), profile.namespaces.maintenance, profile.metadata.name)

    def leases(self, cluster: ClusterHook) -> LeaseStore:
        from nephoran_maintenance.hooks.lease_store import LeaseStore

        return LeaseStore(cluster, self.profile)

    def other_operation(self, context: Context) -> str | None:
        """Return the id of the operation that else holds the lease on the system now."""
        lease = self.other_lease(context)
        return None if lease is None else lease.holder

    def other_lease(self, context: Context) -> Lease | None:
        """Return the lease on the system where another operation holds it now."""
        lease, now = self.leases(self.cluster()).look()
        if lease is None or now is None or lease.standing(operation_of(context), now) != "held":
            return None
        return lease

    def quarantine(self, cluster: ClusterHook) -> QuarantineStore:
        from nephoran_maintenance.hooks.quarantine_store import QuarantineStore

        profile = self.profile
        return QuarantineStore(cluster, profile.namespaces.maintenance, profile.metadata.name)

    def held_lease(self, context: Context, cluster: ClusterHook, journal: Journal) -> HeldLease:
        """Return the lease that this operation holds, with the token that its journal bears.

        :raises PermanentError: ``lease-lost`` when a recovery, or the way back of this run, has taken it over.
        """
        lease = self.leases(cluster).hold(operation_of(context))
        journal.owned(lease.token)
        self.begun(journal)
        return lease

    def begun(self, journal: Journal) -> None:
        """Remember in whose hands the operation was when this step began: by that it may say what has failed."""
        if self._began_with is None:
            self._began_with = journal.fencing_token

    def check_switches(self, cluster: ClusterHook, *, forward: bool) -> None:
        """:raises PermanentError: ``switched-off`` when a person has stopped this kind of step."""
        from nephoran_maintenance.hooks.switches import check_switches

        check_switches(cluster, self.profile.namespaces.maintenance, forward=forward)


@contextmanager
def reported_errors(context: Context) -> Iterator[None]:
    """Leave an error's text in the XCom ``error``, where the report finds it, and let Airflow see the error."""
    try:
        with airflow_errors():
            yield
    except (AirflowSkipException, DownstreamTasksSkipped):
        raise
    except Exception as error:
        context["ti"].xcom_push(key=ERROR_KEY, value=str(error)[:LONGEST_ERROR])
        raise


def finish_change_step(
    context: Context, journal: Journal, profile: SystemProfile, step_id: str | None, result: Any
) -> Any:
    """Return a step's result, after skipping the change steps right behind it that the plan does not need."""
    # A profile that was changed since the procedure was read may call for other steps than there are.
    dag = context["task"].dag
    there = dag.task_dict if dag is not None else {}
    chain = [step for c in in_order(profile.components) for step in own_step_ids(c.name) if step in there]
    entries = [entry for entry in journal.entries if entry.component in journal.changed()]
    needed = {step for entry in entries for step in change_step_ids(entry.component, entry.kind)}
    # Whatever was changed of a component, its metrics are judged once, after the last change. The way back alone is
    # opened by the decision before it.
    needed |= {gate_step_id(entry.component) for entry in entries}
    needed |= {alone_step_ids(entry.component)[0] for entry in entries}
    return finish_step(context, result, unneeded_after(step_id, chain, needed))


def own_step_ids(component: str) -> list[str]:
    """Return the ids of all steps that a component's group can have, in their order."""
    return [*change_step_ids(component), gate_step_id(component), *alone_step_ids(component)]


def finish_rollback_step(
    context: Context, concerned: Collection[str], profile: SystemProfile, step_id: str | None, result: Any
) -> Any:
    """Return a step's result, after skipping the rollback steps right behind it of components not concerned."""
    chain = [rollback_step_id(component.name) for component in reversed(in_order(profile.components))]
    needed = {rollback_step_id(name) for name in concerned}
    return finish_step(context, result, unneeded_after(step_id, chain, needed))


def finish_step(context: Context, result: Any, unneeded: list[str]) -> Any:
    """Return a step's result, after skipping other steps where there are any to skip."""
    if not unneeded:
        return result
    context["ti"].xcom_push(key="return_value", value=result)
    raise DownstreamTasksSkipped(tasks=unneeded)


def journal_of(context: Context, store: JournalStore) -> Journal | None:
    """Return the journal of this run, or None when it has none: then it has changed nothing.

    A cluster that can't be asked counts as none where the journal's step was never begun; otherwise a run that was
    refused because of the cluster would end without its report.
    """
    try:
        return store.find(operation_of(context))
    except MaintenanceError:
        if states_of(context).get(RECORD_BEFORE_STATE) in NEVER_RAN:
            return None
        raise


def refuse_closed(journal: Journal | None) -> None:
    """:raises PermanentError: ``operation-closed`` when the run's operation has ended: its steps may not be cleared."""
    if journal is not None and journal.state == "closed":
        raise PermanentError(
            "operation-closed",
            f"operation {journal.operation_id} is closed: {journal.outcome}",
            hint="Trigger a new run instead of clearing this one.",
        )


def checked_params(context: Context, model: type[_Request]) -> _Request:
    """Return the run's parameters as a model of the procedure's.

    :raises PermanentError: ``parameters-invalid``, naming the parameter.
    """
    try:
        return model.model_validate(dict(context["params"]))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise PermanentError(
            "parameters-invalid",
            f"parameter {'.'.join(map(str, first['loc']))}: {first['msg']}; given {first.get('input')!r}",
            hint="Correct the parameter and trigger the run again.",
        ) from None


def operation_of(context: Context) -> str:
    """Return the operation id of this run: the same in every step and every try."""
    run = context["dag_run"]
    return operation_id(run.dag_id, run.run_after, run.run_id)


def mode_of(context: Context, scheduled: str) -> str:
    """Return ``plan`` or ``apply``: a scheduled run takes what the profile says, one by hand its parameter."""
    if context["dag_run"].run_type.value == "scheduled":
        return scheduled
    return str(context["params"].get("mode", "plan"))


def pull(context: Context, task_id: str, key: str = "return_value") -> Any:
    """Return what another step of this run left behind, or None when it left nothing."""
    return context["ti"].xcom_pull(task_ids=task_id, key=key, map_indexes=-1)


def pull_all(context: Context, task_ids: Iterable[str]) -> dict[str, Any]:
    """Return the results of several steps of this run by task id; steps without a result are left out."""
    names = list(task_ids)
    results = context["ti"].xcom_pull(task_ids=names, map_indexes=-1)
    return {name: result for name, result in zip(names, results, strict=True) if result is not None}


def states_of(context: Context) -> dict[str, str | None]:
    """Return the state of every step of this run by task id."""
    ti = context["ti"]
    return dict(ti.get_task_states(dag_id=ti.dag_id, run_ids=[ti.run_id])[ti.run_id])
