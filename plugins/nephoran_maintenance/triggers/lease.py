"""Renew the lease of a living run, and wait for the lease of another one."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import ClassVar

from airflow.sdk.exceptions import AirflowRuntimeError

from nephoran_maintenance.domain.journal import is_of_system
from nephoran_maintenance.domain.lease import PATIENCE, lease_of, refusal, renewed
from nephoran_maintenance.domain.moments import NEVER
from nephoran_maintenance.domain.step_ids import HOLD_LEASE, MEASURE_TRAFFIC, RELEASE_LEASE
from nephoran_maintenance.errors import PermanentError
from nephoran_maintenance.hooks.async_cluster import AsyncClusterHook
from nephoran_maintenance.hooks.journal_store import OPEN_JOURNALS
from nephoran_maintenance.triggers.base import Event, PollingTrigger

AT_WORK = frozenset(
    {"queued", "running", "deferred", "awaiting_input", "restarting", "up_for_retry", "up_for_reschedule"}
)
WAITING = "scheduled"
"""A step that may run as soon as Airflow has a slot for it; one of a paused DAG looks the same."""
BESIDE = frozenset({HOLD_LEASE, MEASURE_TRAFFIC})
"""Steps that stay deferred as long as the run does; they say nothing about whether it moves."""
OVER = frozenset({"success", "failed", "skipped", "upstream_failed", "removed"})


class HoldLeaseTrigger(PollingTrigger):
    """Renew the lease of a run for as long as the run lives.

    The one trigger with a side effect: a worker that renewed would be held for the whole operation, and a run that is
    deleted or marked as failed takes its trigger with it, which is exactly when renewing must end. The event's state is
    ``complete`` when the run released the lease or let it go, ``lost`` when somebody else took it.

    While no other step of the run is at work for as long as the lease lasts (its DAG is paused, say), it is not renewed
    either: half of a change must not stand for ever because nobody unpauses. A step that waits for a slot, and an Airflow
    that can't say how the run stands, get ``PATIENCE`` times as long: a busy Airflow is no dead run, and neither is one
    whose database has a hiccup.

    :param name: of the Lease object.
    :param holder: operation id.
    :param renew_seconds: between two renewals.
    :param duration_seconds: how long the lease lasts.
    """

    parameters: ClassVar[tuple[str, ...]] = (
        "connection_id",
        "namespace",
        "name",
        "holder",
        "dag_id",
        "run_id",
        "renew_seconds",
        "duration_seconds",
    )

    def __init__(
        self,
        *,
        connection_id: str,
        namespace: str,
        name: str,
        holder: str,
        dag_id: str,
        run_id: str,
        renew_seconds: float = 10.0,
        duration_seconds: float = 60.0,
        poll_interval_seconds: float = 1.0,
        read_error_limit: int = 7200,
        deadline_at: str | None = None,
    ) -> None:
        super().__init__(
            poll_interval_seconds=poll_interval_seconds, read_error_limit=read_error_limit, deadline_at=deadline_at
        )
        self.connection_id = connection_id
        self.namespace = namespace
        self.name = name
        self.holder = holder
        self.dag_id = dag_id
        self.run_id = run_id
        self.renew_seconds = renew_seconds
        self.duration_seconds = duration_seconds
        self._at_work_at = NEVER
        self._asked_at: datetime | None = None
        self._states: Mapping[str, str | None] | None = None

    async def watch(self) -> Event:
        async with AsyncClusterHook(self.connection_id) as cluster:
            # Another write to the lease in between, or an API server that is away: the next look tells.
            return await self.until(lambda: self._look(cluster))

    async def _look(self, cluster: AsyncClusterHook) -> Event | None:
        found, now = await cluster.get_at("Lease", self.name, self.namespace)
        lease = lease_of(found)
        if lease.let_go or (lease.holder is None and await self.gives_back()):
            return {"state": "complete", "message": f"the lease {self.name} was given back"}
        if lease.holder != self.holder:
            return {
                "state": "lost",
                "message": f"the lease {self.name} is held by {lease.owner() if lease.holder else 'nobody'}",
            }
        if not lease.due(now, timedelta(seconds=self.renew_seconds)):
            return None
        if self._asked_at is None:
            self._asked_at = now
        if now - self._asked_at >= timedelta(seconds=self.duration_seconds):
            # Seldom, and not at once: the triggerer does nothing else while it waits for the answer, and at the first
            # question of its life it builds what answers, which takes seconds.
            self._asked_at, self._states = now, await self.run_states()
        if self._states is not None and self._states.get(RELEASE_LEASE) in OVER:
            return {"state": "complete", "message": f"the run is over and did not release the lease {self.name}"}
        if self._lives(self._states, now):
            await cluster.replace({**renewed(found, now), "kind": "Lease"})
        return None

    def _lives(self, states: Mapping[str, str | None] | None, now: datetime) -> bool:
        """Return whether the run has moved within the time that it may stand still."""
        others = None if states is None else {state for step, state in states.items() if step not in BESIDE}
        if self._at_work_at is NEVER or (others is not None and AT_WORK & others):
            self._at_work_at = now
        patient = others is None or WAITING in others
        limit = timedelta(seconds=self.duration_seconds * (PATIENCE if patient else 1))
        alive = now - self._at_work_at < limit
        self.log_change(
            "the run is at work"
            if alive
            else f"no step of the run was seen at work for {limit}: the lease is not renewed"
        )
        return alive

    async def gives_back(self) -> bool:
        """Return whether the run itself has given its lease back, as far as Airflow can say."""
        states = await self.run_states()
        return states is None or states.get(RELEASE_LEASE) in AT_WORK | OVER

    async def run_states(self) -> Mapping[str, str | None] | None:
        """Return the state of every step of the run, none of one that was deleted; None when Airflow does not say."""
        try:
            from airflow.sdk.execution_time.comms import GetTaskStates, TaskStatesResult
            from airflow.sdk.execution_time.task_runner import SUPERVISOR_COMMS

            answer = await SUPERVISOR_COMMS.asend(GetTaskStates(dag_id=self.dag_id, run_ids=[self.run_id]))
        except (
            AirflowRuntimeError,
            TimeoutError,
            ImportError,
            AttributeError,
            RuntimeError,
            OSError,
            ValueError,
        ) as error:
            # The supervisor answers with the first whenever its own request has failed: nothing of that ends the run.
            self.log.warning("Airflow does not say how the run stands: %s", error)
            return None
        return answer.task_states.get(self.run_id, {}) if isinstance(answer, TaskStatesResult) else None


class FreeLeaseTrigger(PollingTrigger):
    """Wait until an operation may begin: the lease is free, or its owner is dead and has left nothing open.

    The event's state is ``complete``, ``timeout`` or ``error``; ``waits_for`` says what was waited for last.

    :param name: of the Lease object, which is that of the system.
    :param holder: operation id of who waits.
    """

    parameters: ClassVar[tuple[str, ...]] = ("connection_id", "namespace", "name", "holder")

    def __init__(
        self,
        *,
        connection_id: str,
        namespace: str,
        name: str,
        holder: str,
        poll_interval_seconds: float = 2.0,
        read_error_limit: int = 30,
        deadline_at: str | None = None,
    ) -> None:
        super().__init__(
            poll_interval_seconds=poll_interval_seconds, read_error_limit=read_error_limit, deadline_at=deadline_at
        )
        self.connection_id = connection_id
        self.namespace = namespace
        self.name = name
        self.holder = holder
        self._waits_for = ""

    def empty_event(self) -> Event:
        return {**super().empty_event(), "waits_for": self._waits_for}

    async def watch(self) -> Event:
        async with AsyncClusterHook(self.connection_id) as cluster:
            return await self.until(lambda: self._look(cluster))

    async def _look(self, cluster: AsyncClusterHook) -> Event | None:
        refused = await self._refusal(cluster)
        if refused is None:
            return {"state": "complete", "message": "the system is free"}
        self._waits_for = refused.message
        self.log_change(refused.message)
        return None

    async def _refusal(self, cluster: AsyncClusterHook) -> PermanentError | None:
        found, now = await cluster.get_at("Lease", self.name, self.namespace)
        journals = await cluster.list("ConfigMap", self.namespace, OPEN_JOURNALS)
        left_open = [item["metadata"]["name"] for item in journals if is_of_system(item, self.name)]
        return refusal(lease_of(found), left_open, self.holder, now)
