"""The cluster for triggers: the same words and errors as the blocking hook, never blocking the loop.

It reads, and replaces one kind of object: the lease, whose renewal is what the run's trigger is for.
"""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Mapping
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Any

from nephoran_maintenance.errors import PermanentError
from nephoran_maintenance.hooks.connections import read_connection_async
from nephoran_maintenance.hooks.kubernetes_rest import (
    CONNECT_TIMEOUT_SECONDS,
    PAGE_SIZE,
    READY_PATH,
    READY_TIMEOUT_SECONDS,
    ClusterSettings,
    JsonObject,
    JsonObjects,
    Request,
    Resource,
    cluster_settings,
    is_refusal,
    is_starting,
    list_items,
    moment_of_header,
    parse_json,
    request_target,
    resource_of,
    resource_path,
    selector_text,
    server_name,
    starting_error,
    status_error,
    unreachable_error,
)
from nephoran_maintenance.settings import FIELD_MANAGER

READ_TIMEOUT = timedelta(seconds=10)


async def read_cluster_settings(connection_id: str) -> ClusterSettings:
    """Read and check a Kubernetes connection without blocking the loop, and have its secrets masked in the logs.

    :raises PermanentError: ``connection-missing`` or ``connection-invalid``.
    """
    from airflow.sdk.log import amask_secret

    _, extra = await read_connection_async(connection_id)
    settings = cluster_settings(connection_id, extra)
    for secret in settings.secrets:
        await amask_secret(secret)
    return settings


class AsyncClusterHook:
    """Read from one cluster inside an event loop; an asynchronous context manager that keeps one client open.

    ::

        async with AsyncClusterHook("kubernetes_rolling_upgrade") as cluster:
            workload = await cluster.get("Deployment", "rag-api", "nephoran-system")

    :param connection_id: Airflow connection id, of type ``kubernetes``.
    :param read_timeout: how long one answer may take.
    :raises PermanentError: on entering: ``connection-missing`` or ``connection-invalid``.
    """

    def __init__(self, connection_id: str, *, read_timeout: timedelta = READ_TIMEOUT) -> None:
        self.connection_id = connection_id
        self.read_timeout = read_timeout
        self._stack = AsyncExitStack()
        self._api_client: Any = None
        self._settings: ClusterSettings | None = None

    async def __aenter__(self) -> AsyncClusterHook:
        settings = await read_cluster_settings(self.connection_id)
        # The first import of the client libraries takes a second or two: in a thread the loop keeps turning.
        provider = await asyncio.to_thread(
            importlib.import_module, "airflow.providers.cncf.kubernetes.hooks.kubernetes"
        )
        hook = provider.AsyncKubernetesHook(
            config_dict=settings.kube_config,
            connection_extras={"kube_config_path": settings.kube_config_path},
            conn_id=None,
            kubernetes_conn_id=None,
            cluster_context=settings.context,
            in_cluster=settings.in_cluster or None,
        )
        if settings.disable_verify_ssl:
            from kubernetes_asyncio import client

            hook.client_configuration = client.Configuration()
            hook.client_configuration.verify_ssl = False
        try:
            self._api_client = await self._stack.enter_async_context(hook.get_conn())
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise self._unusable(error) from error
        except Exception as error:
            # edge of the library: its ConfigException derives from Exception only
            if type(error).__name__ != "ConfigException":
                raise
            raise self._unusable(error) from error
        self._settings = settings
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    def _unusable(self, error: Exception) -> PermanentError:
        return PermanentError(
            "connection-invalid",
            f"the Kubernetes connection {self.connection_id!r} has no usable kubeconfig: {type(error).__name__}",
            context={"connection": self.connection_id},
            hint="Check the connection's kube_config or kube_config_path with kubectl --kubeconfig.",
        )

    @property
    def server(self) -> str:
        """Return ``host:port`` of the API server."""
        return server_name(self._api_client.configuration.host)

    async def _get(self, path: str, about: Request, query: Mapping[str, object] | None = None) -> JsonObject:
        return (await self._request("GET", path, about, query))[0]

    async def _request(
        self,
        method: str,
        path: str,
        about: Request,
        query: Mapping[str, object] | None = None,
        body: JsonObject | None = None,
    ) -> tuple[JsonObject, datetime]:
        """Return the answer's object and the API server's time of it.

        What the API server refuses counts once it is ready: in its first seconds it knows no roles.
        """
        target = request_target(path, query)
        read_seconds = self.read_timeout.total_seconds()
        status, content, at = await self._send(method, target, about, body, read_seconds)
        if is_refusal(status, content):
            ready = await self._send("GET", READY_PATH, about, None, min(READY_TIMEOUT_SECONDS, read_seconds))
            if is_starting(ready[0]):
                raise starting_error(ready[0], about, self.connection_id, self.server)
            # It may have become ready in between.
            status, content, at = await self._send(method, target, about, body, read_seconds)
        if not 200 <= status <= 299:
            secrets = self._settings.secrets if self._settings else []
            raise status_error(status, content, about, self.connection_id, self.server, secrets)
        return parse_json(content, about, self.connection_id, self.server), at or datetime.now(UTC)

    async def _send(
        self, method: str, target: str, about: Request, body: JsonObject | None, read_seconds: float
    ) -> tuple[int, bytes, datetime | None]:
        import aiohttp

        headers = {"Accept": "application/json", "User-Agent": FIELD_MANAGER}
        await self._api_client.update_params_for_auth(headers, [], ["BearerToken"])
        configuration = self._api_client.configuration
        options: dict[str, Any] = {}
        if configuration.tls_server_name:
            options["server_hostname"] = configuration.tls_server_name
        if configuration.proxy:
            options["proxy"] = configuration.proxy
        if body is not None:
            options["json"] = body
        try:
            async with self._api_client.rest_client.pool_manager.request(
                method,
                configuration.host + target,
                headers=headers,
                timeout=aiohttp.ClientTimeout(
                    total=read_seconds, sock_connect=min(CONNECT_TIMEOUT_SECONDS, read_seconds)
                ),
                allow_redirects=False,
                **options,
            ) as response:
                return response.status, await response.read(), moment_of_header(response.headers.get("Date"))
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise unreachable_error(self.server, self.connection_id, error, about) from error

    async def get(self, kind: str | Resource, name: str, namespace: str | None = None) -> JsonObject:
        """Return one object.

        :raises PermanentError: ``not-found`` when it does not exist; :meth:`find` returns None instead.
        """
        resource = resource_of(kind)
        return await self._get(
            resource_path(resource, namespace, name), Request("get", resource.label, namespace, name)
        )

    async def get_at(
        self, kind: str | Resource, name: str, namespace: str | None = None
    ) -> tuple[JsonObject, datetime]:
        """Return one object and the API server's time of the answer.

        :raises PermanentError: ``not-found`` when it does not exist.
        """
        resource = resource_of(kind)
        about = Request("get", resource.label, namespace, name)
        return await self._request("GET", resource_path(resource, namespace, name), about)

    async def replace(self, body: JsonObject) -> JsonObject:
        """Replace an object of a kind that the hook knows, as it was looked at.

        :raises TransientError: ``conflict`` when the stored object has another resource version.
        """
        resource = resource_of(str(body["kind"]))
        name, namespace = body["metadata"]["name"], body["metadata"].get("namespace")
        about = Request("update", resource.label, namespace, name)
        query = {"fieldManager": FIELD_MANAGER}
        return (await self._request("PUT", resource_path(resource, namespace, name), about, query, body))[0]

    async def find(self, kind: str | Resource, name: str, namespace: str | None = None) -> JsonObject | None:
        """Return one object, or None when it does not exist."""
        try:
            return await self.get(kind, name, namespace)
        except PermanentError as error:
            if error.reference == "not-found":
                return None
            raise

    async def list(
        self,
        kind: str | Resource,
        namespace: str | None = None,
        label_selector: str | Mapping[str, Any] | None = None,
        *,
        field_selector: str | None = None,
    ) -> JsonObjects:
        """Return all objects of a kind in a namespace, or in all namespaces, page by page."""
        resource = resource_of(kind)
        about = Request("list", resource.label, namespace)
        items: JsonObjects = []
        continue_token: str | None = None
        while True:
            query = {
                "labelSelector": selector_text(label_selector) or None,
                "fieldSelector": field_selector,
                "limit": PAGE_SIZE,
                "continue": continue_token,
            }
            body = await self._get(resource_path(resource, namespace), about, query)
            items += list_items(body)
            continue_token = (body.get("metadata") or {}).get("continue") or None
            if continue_token is None:
                return items

    async def list_custom(self, group: str, version: str, plural: str, namespace: str | None = None) -> JsonObjects:
        """Return all objects of a custom kind."""
        return await self.list(Resource(group, version, plural), namespace)

    async def pods_of(self, workload: JsonObject) -> JsonObjects:
        """Return the pods that a workload selects, of every revision."""
        return await self.list("Pod", workload["metadata"]["namespace"], workload["spec"]["selector"])
