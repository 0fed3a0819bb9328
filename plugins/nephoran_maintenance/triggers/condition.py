"""Wait for custom resources, for objects to be gone, for Weaviate to be in step: without holding a worker."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, ClassVar

from nephoran_maintenance.domain.vantage_point import job_end
from nephoran_maintenance.engine.answers import missing_on_pod
from nephoran_maintenance.errors import TransientError
from nephoran_maintenance.hooks.async_cluster import AsyncClusterHook, read_cluster_settings
from nephoran_maintenance.hooks.cluster import ClusterHook
from nephoran_maintenance.hooks.kubernetes_rest import JsonObject, Resource
from nephoran_maintenance.hooks.outside_text import excerpt
from nephoran_maintenance.hooks.weaviate_api import read_api_key_async
from nephoran_maintenance.triggers.base import Event, PollingTrigger

ObjectReference = Mapping[str, Any]


class IntentTrigger(PollingTrigger):
    """Wait until each of some objects has reached a final ``.status.phase``.

    The event's state is ``complete`` when all phases are among the good ones, ``failed`` as soon as one is among the
    bad ones or an object has disappeared, else ``timeout`` or ``error``. Its ``objects`` are ``[{"group", "version",
    "plural", "namespace", "name", "phase", "message"}]`` as last seen, on every path.

    :param objects: ``[{"group", "version", "plural", "namespace", "name"}]``.
    """

    parameters: ClassVar[tuple[str, ...]] = ("connection_id", "objects", "success_phases", "failure_phases")

    def __init__(
        self,
        *,
        connection_id: str,
        objects: Sequence[ObjectReference],
        success_phases: Sequence[str],
        failure_phases: Sequence[str],
        poll_interval_seconds: float = 1.0,
        read_error_limit: int = 30,
        deadline_at: str | None = None,
    ) -> None:
        super().__init__(
            poll_interval_seconds=poll_interval_seconds, read_error_limit=read_error_limit, deadline_at=deadline_at
        )
        self.connection_id = connection_id
        self.objects = [dict(reference) for reference in objects]
        self.success_phases = list(success_phases)
        self.failure_phases = list(failure_phases)
        self._seen = [{**reference, "phase": "", "message": ""} for reference in self.objects]

    def empty_event(self) -> Event:
        return {**super().empty_event(), "objects": self._seen}

    async def watch(self) -> Event:
        async with AsyncClusterHook(self.connection_id) as cluster:
            return await self.until(lambda: self._look(cluster))

    async def _look(self, cluster: AsyncClusterHook) -> Event | None:
        self._seen = [observed(ref, await _find(cluster, ref)) for ref in self.objects]
        self.log_change(*(f"{seen['name']} is {seen['phase'] or 'without a phase'}" for seen in self._seen))
        bad = [seen for seen in self._seen if seen["phase"] in self.failure_phases or seen["gone"]]
        if bad:
            return {"state": "failed", "message": "; ".join(describe(seen) for seen in bad)}
        if all(seen["phase"] in self.success_phases for seen in self._seen):
            return {"state": "complete", "message": "; ".join(describe(seen) for seen in self._seen)}
        return None


class AbsenceTrigger(PollingTrigger):
    """Wait until none of some objects exists any more: deleted, with its finalizers run.

    The event's state is ``complete``, ``timeout`` or ``error``; ``remaining`` lists what was still there.

    :param objects: ``[{"group", "version", "plural", "namespace", "name"}]``, each with an optional ``uid``: another
        object of the same name does not count then.
    """

    parameters: ClassVar[tuple[str, ...]] = ("connection_id", "objects")

    def __init__(
        self,
        *,
        connection_id: str,
        objects: Sequence[ObjectReference],
        poll_interval_seconds: float = 1.0,
        read_error_limit: int = 30,
        deadline_at: str | None = None,
    ) -> None:
        super().__init__(
            poll_interval_seconds=poll_interval_seconds, read_error_limit=read_error_limit, deadline_at=deadline_at
        )
        self.connection_id = connection_id
        self.objects = [dict(reference) for reference in objects]
        self._remaining = list(self.objects)

    def empty_event(self) -> Event:
        return {**super().empty_event(), "remaining": self._remaining}

    async def watch(self) -> Event:
        async with AsyncClusterHook(self.connection_id) as cluster:
            return await self.until(lambda: self._look(cluster))

    async def _look(self, cluster: AsyncClusterHook) -> Event | None:
        self._remaining = [ref for ref in self._remaining if _is_same(await _find(cluster, ref), ref.get("uid"))]
        self.log_change(f"{len(self._remaining)} of {len(self.objects)} objects remain")
        if self._remaining:
            return None
        return {"state": "complete", "message": f"all {len(self.objects)} objects are gone"}


class JobsTrigger(PollingTrigger):
    """Wait until each of some Jobs has ended, well or not.

    The event's state is ``complete``, ``timeout`` or ``error``. A Job that is gone has ended.

    :param names: the Jobs, all in one namespace.
    """

    parameters: ClassVar[tuple[str, ...]] = ("connection_id", "namespace", "names")

    def __init__(
        self,
        *,
        connection_id: str,
        namespace: str,
        names: Sequence[str],
        poll_interval_seconds: float = 1.0,
        read_error_limit: int = 30,
        deadline_at: str | None = None,
    ) -> None:
        super().__init__(
            poll_interval_seconds=poll_interval_seconds, read_error_limit=read_error_limit, deadline_at=deadline_at
        )
        self.connection_id = connection_id
        self.namespace = namespace
        self.names = list(names)

    async def watch(self) -> Event:
        async with AsyncClusterHook(self.connection_id) as cluster:
            return await self.until(lambda: self._look(cluster))

    async def _look(self, cluster: AsyncClusterHook) -> Event | None:
        found = [await cluster.find("Job", name, self.namespace) for name in self.names]
        running = sum(1 for job in found if job is not None and not job_end(job))
        self.log_change(f"{running} of {len(self.names)} Jobs are at work")
        return None if running else {"state": "complete", "message": f"all {len(self.names)} Jobs have ended"}


class FewPhasesTrigger(PollingTrigger):
    """Wait until fewer than a limit of objects are in phases that are not final: work that drains.

    The event's state is ``complete``, ``timeout`` or ``error``; ``active`` is the number last seen, None when none was.

    :param resources: ``[{"group", "version", "plural"}]``, counted together over all namespaces, or in one.
    :param final_phases: objects in these are done; an object without a phase is not.
    :param limit: the event comes when fewer than this are active.
    """

    parameters: ClassVar[tuple[str, ...]] = ("connection_id", "resources", "final_phases", "limit", "namespace")

    def __init__(
        self,
        *,
        connection_id: str,
        resources: Sequence[Mapping[str, str]],
        final_phases: Sequence[str],
        limit: int,
        namespace: str | None = None,
        poll_interval_seconds: float = 5.0,
        read_error_limit: int = 30,
        deadline_at: str | None = None,
    ) -> None:
        super().__init__(
            poll_interval_seconds=poll_interval_seconds, read_error_limit=read_error_limit, deadline_at=deadline_at
        )
        self.connection_id = connection_id
        self.resources = [dict(resource) for resource in resources]
        self.final_phases = list(final_phases)
        self.limit = limit
        self.namespace = namespace
        self._active: int | None = None

    def empty_event(self) -> Event:
        return {**super().empty_event(), "active": self._active}

    async def watch(self) -> Event:
        async with AsyncClusterHook(self.connection_id) as cluster:
            return await self.until(lambda: self._look(cluster))

    async def _look(self, cluster: AsyncClusterHook) -> Event | None:
        self._active = await self._count(cluster)
        self.log_change(f"{self._active} active, fewer than {self.limit} wanted")
        return {"state": "complete", "message": f"{self._active} active"} if self._active < self.limit else None

    async def _count(self, cluster: AsyncClusterHook) -> int:
        active = 0
        for resource in self.resources:
            objects = await cluster.list(
                Resource(resource["group"], resource["version"], resource["plural"]), self.namespace
            )
            active += sum(1 for found in objects if phase_of(found) not in self.final_phases)
        return active


class WeaviateNodeTrigger(PollingTrigger):
    """Wait until one Weaviate pod answers a real query and says that the cluster is synchronized.

    It asks that very pod, through a forwarded port, in a thread: ready, an object by its id, ``/v1/cluster/statistics``
    and, if wanted, that so many nodes are healthy. The event's state is ``complete``, ``timeout`` or ``error``; its message says
    what was missing last.

    :param object_id: an object that every replica must have, or None to ask for the schema instead.
    :param healthy_nodes: how many nodes must be HEALTHY; None: not asked.
    """

    parameters: ClassVar[tuple[str, ...]] = (
        "connection_id",
        "weaviate_connection_id",
        "namespace",
        "pod",
        "port",
        "collection",
        "object_id",
        "healthy_nodes",
    )

    def __init__(
        self,
        *,
        connection_id: str,
        namespace: str,
        pod: str,
        weaviate_connection_id: str = "weaviate_default",
        port: int = 8080,
        collection: str = "",
        object_id: str | None = None,
        healthy_nodes: int | None = None,
        poll_interval_seconds: float = 1.0,
        read_error_limit: int = 30,
        deadline_at: str | None = None,
    ) -> None:
        super().__init__(
            poll_interval_seconds=poll_interval_seconds, read_error_limit=read_error_limit, deadline_at=deadline_at
        )
        self.connection_id = connection_id
        self.weaviate_connection_id = weaviate_connection_id
        self.namespace = namespace
        self.pod = pod
        self.port = port
        self.collection = collection
        self.object_id = object_id
        self.healthy_nodes = healthy_nodes
        self._missing = "nothing was asked yet"

    def empty_event(self) -> Event:
        return {**super().empty_event(), "pod": self.pod, "missing": self._missing}

    async def watch(self) -> Event:
        settings = await read_cluster_settings(self.connection_id)
        api_key = await read_api_key_async(self.weaviate_connection_id)
        cluster = ClusterHook(self.connection_id, settings=settings, read_timeout=timedelta(seconds=10))

        def ask() -> str:
            return missing_on_pod(
                cluster,
                self.weaviate_connection_id,
                namespace=self.namespace,
                pod=self.pod,
                port=self.port,
                collection=self.collection,
                object_id=self.object_id,
                healthy_nodes=self.healthy_nodes,
                api_key=api_key,
            )

        async def look() -> Event | None:
            try:
                self._missing = await asyncio.to_thread(ask)
            except TransientError as error:
                self._missing = error.message
                raise
            found = f"{self.pod} answers and is synchronized"
            self.log_change(self._missing or found)
            return None if self._missing else {"state": "complete", "message": found, "missing": ""}

        return await self.until(look)


def phase_of(found: JsonObject) -> str:
    """Return an object's ``.status.phase``, empty when it has none."""
    return str((found.get("status") or {}).get("phase") or "")


def observed(reference: ObjectReference, found: JsonObject | None) -> dict[str, Any]:
    """Return what was seen of an object: its reference with ``phase``, ``message`` and ``gone``."""
    status = (found or {}).get("status") or {}
    message = status.get("message") or status.get("lastMessage") or ""
    for condition in status.get("conditions") or ():
        message = message or condition.get("message", "")
    return {**reference, "phase": phase_of(found or {}), "message": excerpt(str(message)), "gone": found is None}


def describe(seen: Mapping[str, Any]) -> str:
    """Return what was seen of an object as one clause."""
    if seen.get("gone"):
        return f"{seen['plural']} {seen['name']} does not exist"
    text = f"{seen['plural']} {seen['name']} is {seen['phase'] or 'without a phase'}"
    return f"{text}: {seen['message']}" if seen.get("message") else text


async def _find(cluster: AsyncClusterHook, reference: ObjectReference) -> JsonObject | None:
    resource = Resource(reference["group"], reference["version"], reference["plural"])
    return await cluster.find(resource, reference["name"], reference.get("namespace"))


def _is_same(found: JsonObject | None, uid: str | None) -> bool:
    if found is None:
        return False
    return uid is None or found["metadata"].get("uid") == uid
