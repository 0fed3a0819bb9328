"""Weaviate over its REST and GraphQL interface, blocking and for triggers."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Sequence
from datetime import timedelta
from functools import cached_property
from typing import Any
from urllib.parse import quote

from nephoran_maintenance.domain.weaviate_backup import BACKUP_ID, Refusal, refusal_of, reindexing_error
from nephoran_maintenance.errors import MaintenanceError, PermanentError, TransientError
from nephoran_maintenance.hooks.connections import read_connection, read_connection_async
from nephoran_maintenance.hooks.http_api import (
    DEFAULT_TIMEOUT,
    HttpAnswer,
    base_url_of,
    json_of,
    send,
    unexpected,
)
from nephoran_maintenance.hooks.outside_text import excerpt

SERVICE = "Weaviate"
COLLECTION_NAME = re.compile(r"[A-Z][A-Za-z0-9_]*")


class WeaviateHook:
    """Talk to one Weaviate with the API key of an Airflow connection of type ``http``.

    :param connection_id: host, port, ``http`` or ``https`` as schema, the API key as password (none: anonymous).
    :param base_url: talk to this address instead of the connection's, with the connection's key: a forwarded port of
        one pod, for example.
    :param api_key: the key, for code that may not read a connection itself; needs ``base_url``.
    """

    def __init__(
        self,
        connection_id: str = "weaviate_default",
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        timeout: timedelta = DEFAULT_TIMEOUT,
    ) -> None:
        self.connection_id = connection_id
        self.timeout = timeout
        self._given_url = base_url.rstrip("/") if base_url else None
        self._given_key = api_key

    @cached_property
    def _access(self) -> tuple[str, str | None]:
        if self._given_url is not None and self._given_key is not None:
            return self._given_url, self._given_key
        connection = read_connection(self.connection_id)
        return self._given_url or base_url_of(connection, 8080), connection.password or None

    @property
    def base_url(self) -> str:
        return self._access[0]

    def at(self, base_url: str) -> WeaviateHook:
        """Return a hook with the same key for another address."""
        return WeaviateHook(self.connection_id, base_url=base_url, api_key=self._access[1] or "", timeout=self.timeout)

    def _send(self, method: str, path: str, body: object = None) -> HttpAnswer:
        base_url, key = self._access
        return send(
            SERVICE,
            method,
            base_url + path,
            connection_id=self.connection_id,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            body=body,
            timeout=self.timeout,
        )

    def _json(self, method: str, path: str, body: object = None) -> Any:
        return self._accepted(self._send(method, path, body), f"{method} {path}")

    def _accepted(self, answer: HttpAnswer, action: str) -> Any:
        """Return the JSON of an answer that is a success."""
        url, key = self._access
        if not 200 <= answer.status <= 299:
            raise unexpected(SERVICE, answer, action, url, self.connection_id, (key,) if key else ())
        return json_of(SERVICE, answer, action, url, self.connection_id)

    def ready(self) -> bool:
        """Return whether this node says that it is ready; it answers so before it looks at any key.

        :raises TransientError: ``weaviate-unreachable`` when it does not answer at all.
        """
        return self._send("GET", "/v1/.well-known/ready").status == 200

    def meta(self) -> dict[str, Any]:
        """Return ``/v1/meta``: version, modules."""
        return dict(self._json("GET", "/v1/meta"))

    def version(self) -> str:
        """Return the running version, such as ``1.39.0``."""
        return str(self.meta().get("version", ""))

    def statistics(self) -> dict[str, Any]:
        """Return ``/v1/cluster/statistics``: ``synchronized`` and, per node, its RAFT state."""
        return dict(self._json("GET", "/v1/cluster/statistics"))

    def synchronized(self) -> bool:
        """Return whether the whole cluster is synchronized."""
        return is_synchronized(self.statistics())

    def nodes(self) -> list[dict[str, Any]]:
        """Return the nodes with their status, version, shards and object counts."""
        return list(self._json("GET", "/v1/nodes?output=verbose").get("nodes") or [])

    def schema(self) -> list[dict[str, Any]]:
        """Return the definitions of all collections."""
        return list(self._json("GET", "/v1/schema").get("classes") or [])

    def tenants(self, collection: str) -> dict[str, str]:
        """Return the state of every tenant of a collection by name, such as ``ACTIVE`` or, of older servers, ``COLD``."""
        found = self._json("GET", f"/v1/schema/{quote(checked_collection(collection))}/tenants") or []
        return {str(tenant["name"]): str(tenant.get("activityStatus") or "") for tenant in found}

    def graphql(self, query: str) -> dict[str, Any]:
        """Run a GraphQL query and return its ``data``.

        :raises PermanentError: ``weaviate-query-failed`` with the first of its errors.
        """
        return graphql_data(self._json("POST", "/v1/graphql", {"query": query}), self.connection_id)

    def _find(self, path: str) -> dict[str, Any] | None:
        """Return what is below a path, or None when Weaviate has nothing there."""
        try:
            return dict(self._json("GET", path))
        except PermanentError as error:
            if error.reference == "not-found":
                return None
            raise

    def count(self, collection: str) -> int:
        """Return how many objects a collection holds."""
        name = checked_collection(collection)
        data = self.graphql(f"{{ Aggregate {{ {name} {{ meta {{ count }} }} }} }}")
        return int(data["Aggregate"][name][0]["meta"]["count"])

    def get_object(self, collection: str, object_id: str) -> dict[str, Any] | None:
        """Return one object, or None when the collection does not hold it."""
        path = f"/v1/objects/{quote(checked_collection(collection))}/{quote(object_id)}"
        return self._find(path)

    def objects(self, collection: str, limit: int) -> list[dict[str, Any]]:
        """Return some objects of a collection, with their vectors."""
        name = checked_collection(collection)
        answer = self._json("GET", f"/v1/objects?class={quote(name)}&limit={limit}&include=vector")
        return list(answer.get("objects") or [])

    def nearest(self, collection: str, vector: Sequence[float], *, target: str = "", limit: int) -> list[str]:
        """Return the ids of the objects whose vectors are nearest to one, the nearest first.

        :param target: the name of the vector, where the collection has named ones.
        """
        name = checked_collection(collection)
        targets = f", targetVectors: {json.dumps([target])}" if target else ""
        near = f"nearVector: {{vector: {json.dumps(list(vector))}{targets}}}, limit: {limit}"
        found = self.graphql(f"{{ Get {{ {name}({near}) {{ _additional {{ id }} }} }} }}")["Get"][name] or []
        return [str(entry["_additional"]["id"]) for entry in found]

    # ----------------------------------------------------------------------------------------------------- backups

    def create_backup(
        self, backend: str, backup_id: str, *, base_id: str | None = None, cpu_percentage: int | None = None
    ) -> dict[str, Any]:
        """Start a backup of all collections and return Weaviate's first status of it.

        :param backend: ``s3``, ``gcs`` or ``azure``; ``filesystem`` on a single node only.
        :param base_id: the backup to build on, of a server that can (1.37 and newer).
        :param cpu_percentage: how much of the processors it may use, 1 to 80; Weaviate's own default is 50.
        :raises TransientError: ``weaviate-backup-in-progress``, with the other's id as ``other_id`` in the context;
            ``weaviate-reindexing``.
        :raises PermanentError: ``weaviate-backup-exists`` or ``weaviate-backup-refused``.
        """
        checked_backup_id(backup_id)
        body: dict[str, Any] = {"id": backup_id}
        if base_id is not None:
            body["incremental_base_backup_id"] = checked_backup_id(base_id)
        if cpu_percentage is not None:
            body["config"] = {"CPUPercentage": cpu_percentage}
        answer = self._send("POST", f"/v1/backups/{quote(backend)}", body)
        if answer.status == 422:
            raise _backup_refused(refusal_of(_error_message(answer)), backend, backup_id, self.connection_id)
        return dict(self._accepted(answer, f"POST /v1/backups/{backend}"))

    def backup_status(self, backend: str, backup_id: str) -> dict[str, Any] | None:
        """Return the status of a backup, None when Weaviate does not know it."""
        path = f"/v1/backups/{quote(backend)}/{checked_backup_id(backup_id)}"
        return self._find(path)

    def cancel_backup(self, backend: str, backup_id: str) -> bool:
        """Ask Weaviate to end a backup; False when it has none to end. Safe to repeat: yes."""
        path = f"/v1/backups/{quote(backend)}/{checked_backup_id(backup_id)}"
        answer = self._send("DELETE", path)
        if answer.status in (404, 405, 422):  # unknown, older than 1.28, or at its end already
            return False
        if not 200 <= answer.status <= 299:
            self._accepted(answer, f"DELETE {path}")
        return True

    def backups(self, backend: str) -> list[dict[str, Any]] | None:
        """Return the backups that a backend knows; None where the server does not implement it (before 1.34)."""
        answer = self._send("GET", f"/v1/backups/{quote(backend)}")
        if answer.status in (404, 405, 501) or (answer.status >= 500 and b"not implemented" in answer.body):
            return None
        return list(self._accepted(answer, f"GET /v1/backups/{backend}") or [])


class AsyncWeaviate:
    """The same questions inside an event loop: each runs in a thread, so the loop keeps turning.

    Weaviate is asked once a second at most, so a thread costs less than a second client library would. Make one with
    :meth:`connect`.
    """

    def __init__(self, hook: WeaviateHook) -> None:
        self._hook = hook

    @classmethod
    async def connect(cls, connection_id: str = "weaviate_default", *, base_url: str | None = None) -> AsyncWeaviate:
        """Read the connection without blocking the loop."""
        connection, _ = await read_connection_async(connection_id)
        url = base_url or base_url_of(connection, 8080)
        return cls(WeaviateHook(connection_id, base_url=url, api_key=connection.password or ""))

    def at(self, base_url: str) -> AsyncWeaviate:
        """Return the same for another address."""
        return AsyncWeaviate(self._hook.at(base_url))

    async def ready(self) -> bool:
        return await asyncio.to_thread(self._hook.ready)

    async def meta(self) -> dict[str, Any]:
        return await asyncio.to_thread(self._hook.meta)

    async def statistics(self) -> dict[str, Any]:
        return await asyncio.to_thread(self._hook.statistics)

    async def synchronized(self) -> bool:
        return await asyncio.to_thread(self._hook.synchronized)

    async def nodes(self) -> list[dict[str, Any]]:
        return await asyncio.to_thread(self._hook.nodes)

    async def get_object(self, collection: str, object_id: str) -> dict[str, Any] | None:
        return await asyncio.to_thread(self._hook.get_object, collection, object_id)

    async def backup_status(self, backend: str, backup_id: str) -> dict[str, Any] | None:
        return await asyncio.to_thread(self._hook.backup_status, backend, backup_id)

    async def cancel_backup(self, backend: str, backup_id: str) -> bool:
        return await asyncio.to_thread(self._hook.cancel_backup, backend, backup_id)


async def read_api_key_async(connection_id: str) -> str:
    """Return the API key of a connection without blocking the loop; empty for anonymous access."""
    connection, _ = await read_connection_async(connection_id)
    return connection.password or ""


def missing_on(weaviate: WeaviateHook, *, collection: str, object_id: str | None, healthy_nodes: int | None) -> str:
    """Return what one node still lacks to take its part again, or an empty text when it lacks nothing.

    It must be ready, answer a real query (an object by its id, or the schema), be in step with the cluster, and see so
    many healthy nodes.

    :raises MaintenanceError: when the node can't be asked.
    """
    if not weaviate.ready():
        return "it is not ready"
    if object_id is not None:
        if weaviate.get_object(collection, object_id) is None:
            return f"it does not have the object {object_id} of {collection}"
    else:
        weaviate.schema()
    if not weaviate.synchronized():
        return "the cluster is not synchronized"
    if healthy_nodes is not None:
        healthy = sum(1 for node in weaviate.nodes() if node.get("status") == "HEALTHY")
        if healthy < healthy_nodes:
            return f"it sees {healthy} of {healthy_nodes} nodes healthy"
    return ""


def is_synchronized(statistics: dict[str, Any]) -> bool:
    """Return whether ``/v1/cluster/statistics`` says that the cluster is in step."""
    return bool(statistics.get("synchronized"))


def graphql_data(answer: dict[str, Any], connection_id: str) -> dict[str, Any]:
    """Return the ``data`` of a GraphQL answer, which carries its errors under status 200.

    :raises PermanentError: ``weaviate-query-failed``.
    """
    if errors := answer.get("errors"):
        raise PermanentError(
            "weaviate-query-failed",
            f"Weaviate refused a query: {excerpt(str(errors[0].get('message', errors[0])))}",
            context={"connection": connection_id},
            hint="Check that the collection and its properties exist.",
        )
    return dict(answer.get("data") or {})


def checked_collection(name: str) -> str:
    """Return a collection's name, which goes into paths and queries as it is.

    :raises PermanentError: ``weaviate-collection-invalid``.
    """
    if not COLLECTION_NAME.fullmatch(name):
        raise PermanentError(
            "weaviate-collection-invalid",
            f"{name!r} is not the name of a Weaviate collection",
            context={"collection": name},
            hint="A name starts with a capital letter and has letters, digits and underscores only.",
        )
    return name


def checked_backup_id(backup_id: str) -> str:
    """Return a backup's id, which goes into paths as it is.

    :raises PermanentError: ``weaviate-backup-id-invalid``.
    """
    if not BACKUP_ID.fullmatch(backup_id):
        raise PermanentError(
            "weaviate-backup-id-invalid",
            f"{backup_id!r} can't be the id of a Weaviate backup",
            context={"backup": backup_id},
            hint="An id has lower-case letters, digits, underscores and hyphens, at most 128 of them.",
        )
    return backup_id


_BACKUP_HINTS = {
    "module-missing": "Add the module to ENABLE_MODULES, with its bucket, and restart Weaviate.",
    "backend-not-viable": "Use s3, gcs or azure: files on one node are no backup of several.",
    "base-unusable": "Start a full backup: the base is gone from the staging bucket, or was not completed.",
}


def _backup_refused(refusal: Refusal, backend: str, backup_id: str, connection_id: str) -> MaintenanceError:
    context = {"backup": backup_id, "backend": backend, "connection": connection_id}
    said = excerpt(refusal.message)
    if refusal.kind == "reindexing":
        return reindexing_error(backup_id, said)
    if refusal.kind == "in-progress":
        return TransientError(
            "weaviate-backup-in-progress",
            f"Weaviate does one backup at a time, and {refusal.other_id} is under way: {said}",
            context={**context, "other_id": refusal.other_id},
            hint="Wait until it has ended, or cancel it.",
        )
    if refusal.kind == "exists":
        return PermanentError(
            "weaviate-backup-exists",
            f"Weaviate already has a backup {backup_id}: {said}",
            context=context,
            hint="Look at its status; an id can't be used twice.",
        )
    return PermanentError(
        "weaviate-backup-refused",
        f"Weaviate did not start the backup {backup_id}: {said}",
        context={**context, "kind": refusal.kind},
        hint=_BACKUP_HINTS.get(refusal.kind, "Correct what the answer names."),
    )


def _error_message(answer: HttpAnswer) -> str:
    """Return the messages in an error of Weaviate, or whatever else was answered."""
    try:
        body = json.loads(answer.body)
        return "; ".join(str(entry["message"]) for entry in body["error"])
    except (ValueError, KeyError, TypeError):
        return answer.text
