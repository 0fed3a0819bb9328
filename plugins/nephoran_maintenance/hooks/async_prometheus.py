"""Prometheus for triggers: the same answers and errors as the blocking hook, never blocking the loop."""

from __future__ import annotations

import asyncio
import importlib
from datetime import datetime, timedelta
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

from nephoran_maintenance.hooks.connections import read_connection_async
from nephoran_maintenance.hooks.http_api import DEFAULT_TIMEOUT, LOOPBACK, HttpAnswer, no_answer
from nephoran_maintenance.hooks.prometheus_api import (
    QUERY_PATH,
    SERVICE,
    Access,
    Series,
    access_of,
    data_of,
    query_of,
    series_of,
)


class AsyncPrometheusHook:
    """Ask one Prometheus inside an event loop; an asynchronous context manager that keeps one client open.

    :param connection_id: as for :class:`~nephoran_maintenance.hooks.prometheus_api.PrometheusHook`.
    :param timeout: how long one answer may take.
    :raises PermanentError: on entering: ``connection-missing`` or ``connection-invalid``.
    """

    def __init__(self, connection_id: str = "prometheus_default", *, timeout: timedelta = DEFAULT_TIMEOUT) -> None:
        self.connection_id = connection_id
        self.timeout = timeout
        self._access: Access
        self._client: Any = None

    async def __aenter__(self) -> AsyncPrometheusHook:
        connection, _ = await read_connection_async(self.connection_id)
        self._access = access_of(connection)
        httpx = await asyncio.to_thread(importlib.import_module, "httpx")
        # In a thread, because a client reads all certificate authorities when it is made.
        self._client = await asyncio.to_thread(
            httpx.AsyncClient,
            headers=dict(self._access.headers),
            timeout=self.timeout.total_seconds(),
            trust_env=urlsplit(self._access.base_url).hostname not in LOOPBACK,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.aclose()

    async def query(self, promql: str, at: datetime | None = None) -> list[Series]:
        """Return the value of each series of an expression at one moment, or now. No series means no data, not zero.

        :raises MaintenanceError: as the blocking hook does.
        """
        import httpx

        url, query = self._access.base_url + QUERY_PATH, query_of(promql, at)
        try:
            response = await self._client.get(url, params=query)
        except httpx.HTTPError as error:
            raise no_answer(SERVICE, url, self.connection_id, error) from error
        answer = HttpAnswer(response.status_code, response.headers, response.content)
        return series_of(data_of(answer, QUERY_PATH, query, self._access, self.connection_id))
