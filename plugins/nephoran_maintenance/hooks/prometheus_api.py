"""Prometheus over its HTTP interface."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any

from nephoran_maintenance.errors import PermanentError
from nephoran_maintenance.hooks.connections import read_connection
from nephoran_maintenance.hooks.http_api import (
    DEFAULT_TIMEOUT,
    HttpAnswer,
    base_url_of,
    json_of,
    send,
    unexpected,
)
from nephoran_maintenance.hooks.kubernetes_rest import moment_of_header

if TYPE_CHECKING:
    from airflow.sdk import Connection

SERVICE = "Prometheus"
READY_PATH = "/-/ready"
QUERY_PATH = "/api/v1/query"
RANGE_PATH = "/api/v1/query_range"
SNAPSHOT_PATH = "/api/v1/admin/tsdb/snapshot"


@dataclass(frozen=True)
class Series:
    """One series of an answer: its labels and its samples, oldest first. A value may be NaN."""

    labels: Mapping[str, str]
    samples: list[tuple[datetime, float]]

    @property
    def value(self) -> float:
        """Return the newest value."""
        return self.samples[-1][1]


@dataclass(frozen=True)
class Access:
    """Where a Prometheus is, and what to send with each request."""

    base_url: str
    headers: Mapping[str, str]
    secrets: tuple[str, ...]


class PrometheusHook:
    """Ask one Prometheus.

    :param connection_id: an Airflow connection of type ``http``; login and password are sent as basic authentication,
        a password without a login as a bearer token.
    :param base_url: another address than the connection's, such as that of a forwarded port of one pod.
    """

    def __init__(
        self,
        connection_id: str = "prometheus_default",
        *,
        base_url: str | None = None,
        timeout: timedelta = DEFAULT_TIMEOUT,
    ) -> None:
        self.connection_id = connection_id
        self.base_url = base_url
        self.timeout = timeout

    @cached_property
    def _access(self) -> Access:
        access = access_of(read_connection(self.connection_id))
        return access if self.base_url is None else replace(access, base_url=self.base_url)

    def _get(self, path: str, query: Mapping[str, str] | None = None) -> Any:
        return data_of(self._ask(path, query), path, query or {}, self._access, self.connection_id)

    def _ask(self, path: str, query: Mapping[str, str] | None = None, method: str = "GET") -> HttpAnswer:
        access = self._access
        return send(
            SERVICE,
            method,
            access.base_url + path,
            connection_id=self.connection_id,
            headers=access.headers,
            query=query,
            timeout=self.timeout,
        )

    def ready(self) -> bool:
        """Return whether Prometheus says that it is ready.

        :raises TransientError: ``prometheus-unreachable``.
        """
        return self._ask(READY_PATH).status == 200

    def clock(self) -> datetime | None:
        """Return the moment by the clock of Prometheus, in whole seconds; None when it does not tell.

        :raises TransientError: ``prometheus-unreachable``.
        """
        return moment_of_header(self._ask(READY_PATH).headers.get("Date"))

    def query(self, promql: str, at: datetime | None = None) -> list[Series]:
        """Return the value of each series of an expression at one moment, or now. No series means no data, not zero."""
        return series_of(self._get(QUERY_PATH, query_of(promql, at)))

    def query_range(self, promql: str, start: datetime, end: datetime, step: timedelta) -> list[Series]:
        """Return the values of each series of an expression between two moments."""
        data = self._get(RANGE_PATH, {**_range(start, end), "query": promql, "step": f"{step.total_seconds():g}"})
        return [Series(entry["metric"], [_sample(pair) for pair in entry["values"]]) for entry in data["result"]]

    def export_range(self, promql: str, start: datetime, end: datetime, step: timedelta) -> bytes:
        """Return the answer to a range query as it is, JSON text, without parsing it."""
        query = {**_range(start, end), "query": promql, "step": f"{step.total_seconds():g}"}
        answer = self._ask(RANGE_PATH, query)
        if answer.status != 200 or not answer.body.startswith(b'{"status":"success"'):
            data_of(answer, RANGE_PATH, query, self._access, self.connection_id)
        return answer.body

    def metric_names(self, start: datetime, end: datetime) -> list[str]:
        """Return the names of all metrics that have samples between two moments."""
        return [str(name) for name in self._get("/api/v1/label/__name__/values", _range(start, end))]

    def snapshot(self) -> str:
        """Have Prometheus write a snapshot of all its data beside them, and return its name.

        It holds what is in memory too, and takes no space until the blocks that it shares are gone. Nobody but the caller
        deletes it again.

        :raises PermanentError: ``prometheus-admin-off`` when the admin API is switched off, or kept from us.
        """
        query = {"skip_head": "false"}
        answer = self._ask(SNAPSHOT_PATH, query, "POST")
        off = answer.status == 503 and b"admin APIs disabled" in answer.body
        if off or answer.status in (403, 404, 405):
            why = "it runs without --web.enable-admin-api" if off else f"it answered {answer.status}"
            raise PermanentError(
                "prometheus-admin-off",
                f"Prometheus takes no snapshots: {why}",
                context={"connection": self.connection_id, "status": answer.status},
                hint="Start it with --web.enable-admin-api, and keep others from that path.",
            )
        return str(data_of(answer, SNAPSHOT_PATH, query, self._access, self.connection_id)["name"])

    def targets(self) -> list[dict[str, Any]]:
        """Return the active scrape targets with their health and last error."""
        return list(self._get("/api/v1/targets", {"state": "active"})["activeTargets"])


def access_of(connection: Connection) -> Access:
    """Return the access that an Airflow connection of type ``http`` gives.

    :raises PermanentError: ``connection-invalid``.
    """
    headers: dict[str, str] = {}
    if connection.login and connection.password:
        pair = base64.b64encode(f"{connection.login}:{connection.password}".encode()).decode()
        headers["Authorization"] = f"Basic {pair}"
    elif connection.password:
        headers["Authorization"] = f"Bearer {connection.password}"
    secrets = (connection.password,) if connection.password else ()
    return Access(base_url_of(connection, 9090), headers, secrets)


def query_of(promql: str, at: datetime | None) -> dict[str, str]:
    """Return the parameters of an instant query."""
    return {"query": promql} if at is None else {"query": promql, "time": f"{at.timestamp():.3f}"}


def _range(start: datetime, end: datetime) -> dict[str, str]:
    return {"start": f"{start.timestamp():.3f}", "end": f"{end.timestamp():.3f}"}


def data_of(answer: HttpAnswer, path: str, query: Mapping[str, str], access: Access, connection_id: str | None) -> Any:
    """Return the data in an answer.

    :raises PermanentError: ``prometheus-query-invalid``, ``prometheus-unauthorized``, ``prometheus-rejected``,
        ``not-found``.
    :raises TransientError: ``prometheus-unavailable``.
    """
    if answer.status in (400, 422):
        error = json_of(SERVICE, answer, path, access.base_url, connection_id).get("error", "")
        raise PermanentError(
            "prometheus-query-invalid",
            f"Prometheus refused a query: {error}",
            context={"query": query.get("query", ""), "connection": connection_id},
            hint="Correct the PromQL expression.",
        )
    if not 200 <= answer.status <= 299:
        raise unexpected(SERVICE, answer, path, access.base_url, connection_id, access.secrets)
    return json_of(SERVICE, answer, path, access.base_url, connection_id)["data"]


def series_of(data: Mapping[str, Any]) -> list[Series]:
    """Return the series in the data of an instant query."""
    if data["resultType"] in ("scalar", "string"):
        return [Series({}, [_sample(data["result"])])]
    return [Series(entry["metric"], [_sample(entry["value"])]) for entry in data["result"]]


def _sample(pair: list[Any]) -> tuple[datetime, float]:
    return datetime.fromtimestamp(float(pair[0]), UTC), float(pair[1])
