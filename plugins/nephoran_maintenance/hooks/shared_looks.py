"""One look at a namespace for all that wait in it: a few lists, however many rollouts are watched.

Airflow's own shared streams (``airflow.triggers.shared_stream``) broadcast each raw event to a queue per trigger and
show a trigger that comes later nothing of what was before; a wait for a rollout needs the present state of one object.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from functools import cached_property
from typing import TypeVar

from nephoran_maintenance.domain.label_selectors import selects
from nephoran_maintenance.hooks.async_cluster import AsyncClusterHook
from nephoran_maintenance.hooks.kubernetes_rest import JsonObject, JsonObjects

_Result = TypeVar("_Result")

SPACING = 10.0
"""A shared look is begun no sooner than this many times the duration of the one before it: at most a tenth of the time is
spent on reading, and a namespace with a thousand workloads is read every few seconds."""


class NamespaceLook:
    """What one look has seen: all workloads of a kind, all pods, and the events when somebody asks for them."""

    def __init__(self, cluster: AsyncClusterHook, namespace: str, workloads: JsonObjects, pods: JsonObjects) -> None:
        self._cluster = cluster
        self._namespace = namespace
        self._workloads = {str(workload["metadata"]["name"]): workload for workload in workloads}
        self._pods = pods
        self._events: asyncio.Future[dict[tuple[str, str], JsonObjects]] | None = None

    def workload(self, name: str) -> JsonObject | None:
        """Return a workload, or None when there was none of this name."""
        return self._workloads.get(name)

    def pods_of(self, workload: JsonObject) -> JsonObjects:
        """Return the pods that a workload selects, of every revision."""
        selector = workload["spec"]["selector"]
        wanted = selector.get("matchLabels") or {}
        # Of the labels wanted, the one that the fewest pods have decides how many are compared.
        sets = [self._by_label.get(pair, []) for pair in wanted.items()]
        candidates = min(sets, key=len) if sets else self._pods
        return [pod for pod in candidates if selects(selector, pod["metadata"].get("labels") or {})]

    async def events_about(self, workload: JsonObject, pods: Iterable[JsonObject]) -> JsonObjects:
        """Return the events about a workload, its ReplicaSets and these pods; the first who asks has them listed."""
        if self._events is None:
            self._events = _observed(asyncio.ensure_future(self._read_events()))
        by_object = await asyncio.shield(self._events)
        kind, name = str(workload["kind"]), str(workload["metadata"]["name"])
        keys = [("Pod", str(pod["metadata"]["name"])) for pod in pods]
        keys += [(kind, name), (f"ReplicaSet of {kind}", name)]
        return [event for key in keys for event in by_object.get(key, ())]

    async def _read_events(self) -> dict[tuple[str, str], JsonObjects]:
        found: dict[tuple[str, str], JsonObjects] = defaultdict(list)
        for event in await self._cluster.list("Event", self._namespace):
            about = event.get("involvedObject") or {}
            kind, name = str(about.get("kind")), str(about.get("name", ""))
            found[kind, name].append(event)
            if kind == "ReplicaSet":
                found["ReplicaSet of Deployment", name.rpartition("-")[0]].append(event)
        return found

    @cached_property
    def _by_label(self) -> dict[tuple[str, str], JsonObjects]:
        found: dict[tuple[str, str], JsonObjects] = defaultdict(list)
        for pod in self._pods:
            for pair in (pod["metadata"].get("labels") or {}).items():
                found[pair].append(pod)
        return found


class SharedLooks:
    """Looks at one namespace through one connection, shared by all who look at the same time; see :func:`shared_looks`."""

    def __init__(self, connection_id: str, namespace: str) -> None:
        self._cluster = AsyncClusterHook(connection_id)
        self._namespace = namespace
        self._waiting: dict[str, asyncio.Future[NamespaceLook]] = {}
        self._locks: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._free_at: dict[str, float] = defaultdict(float)
        self._opening = asyncio.Lock()
        self._open = False
        self.users = 0

    async def open(self) -> None:
        """Read the connection, once. Who comes while another one does it waits for that.

        :raises PermanentError: ``connection-missing`` or ``connection-invalid``.
        """
        async with self._opening:
            if not self._open:
                await self._cluster.__aenter__()
                self._open = True

    async def close(self) -> None:
        """End the looks that nobody waits for any more, and the connection."""
        pending = list(self._waiting.values())
        for look in pending:
            look.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        if self._open:
            await self._cluster.__aexit__(None, None, None)

    async def look(self, kind: str) -> NamespaceLook:
        """Return a look at all workloads of a kind that was begun after this call.

        Everybody who calls before it begins gets the same one.

        :raises MaintenanceError: what the cluster had against it, the same for all who wait for it.
        """
        if kind not in self._waiting:
            self._waiting[kind] = _observed(asyncio.ensure_future(self._next_look(kind)))
        return await asyncio.shield(self._waiting[kind])

    async def find(self, kind: str, name: str) -> JsonObject:
        """Return one workload that a look has not seen.

        :raises PermanentError: ``not-found``.
        """
        return await self._cluster.get(kind, name, self._namespace)

    async def _next_look(self, kind: str) -> NamespaceLook:
        loop = asyncio.get_running_loop()
        async with self._locks[kind]:
            if self.users > 1:
                await asyncio.sleep(max(0.0, self._free_at[kind] - loop.time()))
            del self._waiting[kind]
            begun_at = loop.time()
            try:
                workloads = await self._cluster.list(kind, self._namespace)
                pods = await self._cluster.list("Pod", self._namespace)
            finally:
                self._free_at[kind] = begun_at + SPACING * (loop.time() - begun_at)
        return NamespaceLook(self._cluster, self._namespace, workloads, pods)


_shared: dict[tuple[int, str, str], SharedLooks] = {}


@asynccontextmanager
async def shared_looks(connection_id: str, namespace: str) -> AsyncIterator[SharedLooks]:
    """Share the looks at a namespace with everybody in this event loop who looks at it through the same connection.

    The connection is read by the first and closed by the last.

    :raises PermanentError: on entering: ``connection-missing`` or ``connection-invalid``.
    """
    key = id(asyncio.get_running_loop()), connection_id, namespace
    looks = _shared.setdefault(key, SharedLooks(connection_id, namespace))
    looks.users += 1
    try:
        await looks.open()
        yield looks
    finally:
        looks.users -= 1
        if looks.users == 0:
            del _shared[key]
            await looks.close()


def _observed(future: asyncio.Future[_Result]) -> asyncio.Future[_Result]:
    """Return the future, having seen to it that its error is no surprise when everybody has stopped waiting."""
    future.add_done_callback(lambda done: None if done.cancelled() else done.exception())
    return future
