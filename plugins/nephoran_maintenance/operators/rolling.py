"""Bring one workload to an intended spec, move by move, without holding a worker in between."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, NoReturn

from nephoran_maintenance.engine.rolling import AbsenceWait, AnswerWait, Roller, Wait
from nephoran_maintenance.errors import PermanentError
from nephoran_maintenance.operators.base import StepOperator

if TYPE_CHECKING:
    from nephoran_maintenance.domain.journal import JournalEntry
    from nephoran_maintenance.hooks.cluster import ClusterHook
    from nephoran_maintenance.hooks.lease_store import HeldLease
    from nephoran_maintenance.profile import Component

LONGEST_ROLLOUT = timedelta(hours=2)


class WaitingOperator(StepOperator):
    """What the steps share that wait for what the engine names: they defer, and hold no worker."""

    def wait_for(self, wait: Wait, limit: timedelta | None = None) -> NoReturn:
        """Defer until what the engine waits for is there; ``resume`` gets the trigger's event.

        :param limit: look again after this at the latest; default: as long as a rollout, or an answer, may take.
        """
        from nephoran_maintenance.triggers.condition import AbsenceTrigger, WeaviateNodeTrigger
        from nephoran_maintenance.triggers.rollout import RolloutTrigger

        now, limits = datetime.now(UTC), self.profile.rollout
        if isinstance(wait, AnswerWait):
            longest = limit or limits.no_progress_limit
            self.defer(
                trigger=WeaviateNodeTrigger(
                    connection_id=self.kubernetes_connection_id,
                    weaviate_connection_id=self.profile.connections.weaviate,
                    namespace=wait.namespace,
                    pod=wait.pod,
                    deadline_at=(now + longest).isoformat(),
                    **wait.question,
                ),
                method_name="resume_step",
                timeout=longest + timedelta(minutes=1),
            )
        longest = limit or LONGEST_ROLLOUT
        if isinstance(wait, AbsenceWait):
            self.defer(
                trigger=AbsenceTrigger(
                    connection_id=self.kubernetes_connection_id,
                    objects=wait.objects,
                    deadline_at=(now + longest).isoformat(),
                ),
                method_name="resume_step",
                timeout=longest + timedelta(minutes=1),
            )
        self.defer(
            trigger=RolloutTrigger(
                connection_id=self.kubernetes_connection_id,
                namespace=wait.workload.namespace,
                kind=wait.workload.kind,
                name=wait.workload.name,
                container=wait.container,
                image=wait.image,
                ordinal=wait.ordinal,
                since=wait.since.isoformat(),
                no_progress_limit_seconds=limits.no_progress_limit.total_seconds(),
                progress_deadline_seconds=limits.progress_deadline.total_seconds(),
                deadline_at=(now + longest).isoformat(),
            ),
            method_name="resume_step",
            timeout=longest + timedelta(minutes=5),
        )


class RollingOperator(WaitingOperator):
    """What the steps share that change a component: the engine's loop of look and move, a deferral for each wait.

    :param component: name of the component in the profile.
    """

    def __init__(self, *, component: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.component = component

    @property
    def described(self) -> Component:
        return self.profile.component(self.component)

    def roller(self, cluster: ClusterHook, entry: JournalEntry, lease: HeldLease) -> Roller:
        """Return the engine for the workload of a journal's entry."""
        return Roller(cluster, self.profile, self.described, entry.workload, lease, log=self.log)

    def check_event(self, roller: Roller, event: dict[str, Any], container: str) -> None:
        """Raise what a trigger's event has to say, when it is not good news."""
        if event["state"] == "complete":
            return
        if "cause" in event:
            raise roller.failure(roller.workload(), container, event)
        raise PermanentError(
            event.get("reference") or "weaviate-not-answering",
            f"{self.component}: pod {event.get('pod')} is ready but does not answer: {event.get('missing')}",
            context={"component": self.component},
            hint=event.get("hint") or "Look at this pod's log and at /v1/cluster/statistics.",
        )
