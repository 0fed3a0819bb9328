"""Wait for the rollout of one workload without holding a worker."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import ClassVar

from nephoran_maintenance.domain.rollout import RolloutVerdict, judge_rollout
from nephoran_maintenance.engine.rollout import needs_events, verdict_event
from nephoran_maintenance.hooks.kubernetes_rest import JsonObject
from nephoran_maintenance.hooks.shared_looks import SharedLooks, shared_looks
from nephoran_maintenance.triggers.base import Event, PollingTrigger


class RolloutTrigger(PollingTrigger):
    """Yield one event when the rollout of a workload is complete, has failed, or can't be judged.

    All rollouts that are waited for in one namespace are read together
    (:mod:`nephoran_maintenance.hooks.shared_looks`), so the cluster is asked no more often for a thousand than for one.

    The event: ``{"state": "complete" | "failed" | "timeout" | "error", "cause": str | None, "message": str, "pod":
    str | None, "progress": str, "reference": str | None, "hint": str, "seconds": float}``. ``cause`` is a value of
    :class:`~nephoran_maintenance.domain.rollout.Cause`, set when the state is ``failed``.

    :param connection_id: Airflow connection of type ``kubernetes``.
    :param kind: Deployment, StatefulSet or DaemonSet.
    :param container: the container whose image is rolled out.
    :param image: the image that must run at the end; None: whatever the workload's template says.
    :param ordinal: of a StatefulSet, wait only for this ordinal and those above it.
    :param since: moment in ISO 8601 when the change was made; older events don't count.
    :param no_progress_limit_seconds: give up after so long without progress.
    :param progress_deadline_seconds: for workloads without a progress deadline of their own.
    """

    parameters: ClassVar[tuple[str, ...]] = (
        "connection_id",
        "namespace",
        "kind",
        "name",
        "container",
        "image",
        "ordinal",
        "since",
        "no_progress_limit_seconds",
        "progress_deadline_seconds",
    )

    def __init__(
        self,
        *,
        connection_id: str,
        namespace: str,
        kind: str,
        name: str,
        container: str,
        since: str,
        image: str | None = None,
        ordinal: int | None = None,
        no_progress_limit_seconds: float = 600.0,
        progress_deadline_seconds: float = 600.0,
        poll_interval_seconds: float = 1.0,
        read_error_limit: int = 30,
        deadline_at: str | None = None,
    ) -> None:
        super().__init__(
            poll_interval_seconds=poll_interval_seconds, read_error_limit=read_error_limit, deadline_at=deadline_at
        )
        self.connection_id = connection_id
        self.namespace = namespace
        self.kind = kind
        self.name = name
        self.container = container
        self.image = image
        self.ordinal = ordinal
        self.since = since
        self.no_progress_limit_seconds = no_progress_limit_seconds
        self.progress_deadline_seconds = progress_deadline_seconds
        self._progress = ""
        self._progressed_at = self.now()
        self._fingerprint: str | None = None

    def empty_event(self) -> Event:
        return {**super().empty_event(), "cause": None, "pod": None, "progress": self._progress}

    async def watch(self) -> Event:
        self._progressed_at = self.now()
        async with shared_looks(self.connection_id, self.namespace) as looks:
            return await self.until(lambda: self._look(looks))

    async def _look(self, looks: SharedLooks) -> Event | None:
        workload, pods, events = await self._read(looks)
        verdict = self._judge(workload, pods, events)
        if verdict.fingerprint != self._fingerprint:
            self._fingerprint, self._progressed_at = verdict.fingerprint, self.now()
            if verdict.state == "failed":
                # It moved since the last look: a limit on standing still must be counted from here.
                verdict = self._judge(workload, pods, events)
        self._progress = verdict.progress
        self.log_change(verdict.state, verdict.progress, verdict.message)
        return None if verdict.state == "progressing" else verdict_event(verdict)

    async def _read(self, looks: SharedLooks) -> tuple[JsonObject, list[JsonObject], list[JsonObject]]:
        look = await looks.look(self.kind)
        workload = look.workload(self.name) or await looks.find(self.kind, self.name)
        pods = look.pods_of(workload)
        events = await look.events_about(workload, pods) if needs_events(workload, pods) else []
        return workload, pods, events

    def _judge(self, workload: JsonObject, pods: list[JsonObject], events: list[JsonObject]) -> RolloutVerdict:
        return judge_rollout(
            workload,
            pods,
            events,
            container=self.container,
            image=self.image,
            now=self.now(),
            since=datetime.fromisoformat(self.since),
            progressed_at=self._progressed_at,
            no_progress_limit=timedelta(seconds=self.no_progress_limit_seconds),
            progress_deadline=timedelta(seconds=self.progress_deadline_seconds),
            ordinal=self.ordinal,
        )
