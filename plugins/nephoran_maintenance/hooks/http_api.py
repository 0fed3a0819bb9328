"""Plain HTTP to a service outside Kubernetes, with errors that name the service, the address and the next action."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from nephoran_maintenance.errors import MaintenanceError, PermanentError, TransientError
from nephoran_maintenance.hooks.outside_text import excerpt

if TYPE_CHECKING:
    from airflow.sdk import Connection

DEFAULT_TIMEOUT = timedelta(seconds=10)
LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True)
class HttpAnswer:
    """What an HTTP service answered."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode("utf-8", errors="replace")


def base_url_of(connection: Connection, default_port: int | None = None) -> str:
    """Return the address in a connection of type ``http``, without a slash at the end.

    The scheme is the connection's ``schema``, unless the host already carries one; a path in the host is kept.

    :raises PermanentError: ``connection-invalid`` when there is no host.
    """
    host = (connection.host or "").strip()
    if not host:
        raise PermanentError(
            "connection-invalid",
            f"the connection {connection.conn_id!r} has no host",
            context={"connection": connection.conn_id},
            hint="Set the host, the port and http or https as the schema of the connection.",
        )
    parts = urlsplit(host if "://" in host else f"{connection.schema or 'http'}://{host}")
    port = parts.port or connection.port or default_port
    name = f"[{parts.hostname}]" if parts.hostname and ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{name}{f':{port}' if port else ''}{parts.path.rstrip('/')}"


def send(
    service: str,
    method: str,
    url: str,
    *,
    connection_id: str | None,
    headers: Mapping[str, str] | None = None,
    query: Mapping[str, str] | None = None,
    body: object = None,
    timeout: timedelta = DEFAULT_TIMEOUT,
    follow_redirects: bool = False,
) -> HttpAnswer:
    """Send one request, without a retry, and return whatever is answered.

    :param service: the service's name in errors and, in lower case, in their references.
    :param follow_redirects: also to another host, which does not get the Authorization header then.
    :raises TransientError: ``<service>-unreachable`` when there is no answer.
    :raises PermanentError: ``<service>-untrusted`` when the certificate is not trusted.
    """
    import requests

    with requests.Session() as session:
        # A proxy from the environment leads nowhere for a forwarded port of a pod.
        session.trust_env = urlsplit(url).hostname not in LOOPBACK
        try:
            response = session.request(
                method,
                url,
                headers=dict(headers or {}),
                params=dict(query or {}),
                json=body,
                timeout=(min(5.0, timeout.total_seconds()), timeout.total_seconds()),
                allow_redirects=follow_redirects,
                auth=_keep_headers,
            )
        except requests.RequestException as error:
            raise no_answer(service, url, connection_id, error) from error
    return HttpAnswer(response.status_code, response.headers, response.content)


def _keep_headers(request: Any) -> Any:
    """Stand in for an authentication, so that a ~/.netrc does not replace the connection's."""
    return request


def unexpected(
    service: str, answer: HttpAnswer, action: str, url: str, connection_id: str | None, secrets: tuple[str, ...] = ()
) -> MaintenanceError:
    """Return the error for an answer that is not the expected one.

    401 and 403 are ``<service>-unauthorized``, 404 ``not-found``, 429 and 5xx ``<service>-unavailable`` (transient),
    everything else ``<service>-rejected``.
    """
    address = _address(url)
    key = _key(service)
    context = {"server": address, "connection": connection_id, "status": answer.status}
    what = f"{service} at {address} answered {answer.status} to {action}"
    said = excerpt(answer.body, secrets=secrets)
    text = f"{what}: {said}" if said else what
    if answer.status in (401, 403):
        hint = f"Check login and password of the connection {connection_id!r}, and what they may do."
        return PermanentError(f"{key}-unauthorized", text, context=context, hint=hint)
    if answer.status == 404:
        return PermanentError("not-found", text, context=context, hint="Check the name, and that it exists.")
    if answer.status == 429 or answer.status >= 500:
        return TransientError(f"{key}-unavailable", text, context=context, hint=f"Look at the health of {service}.")
    return PermanentError(f"{key}-rejected", text, context=context, hint="Correct what the answer names.")


def json_of(service: str, answer: HttpAnswer, action: str, url: str, connection_id: str | None) -> Any:
    """Return the JSON value of an answer.

    :raises TransientError: ``<service>-unavailable`` when it is something else.
    """
    try:
        return json.loads(answer.body)
    except ValueError as error:
        raise TransientError(
            f"{_key(service)}-unavailable",
            f"{service} at {_address(url)} did not answer {action} with JSON: {excerpt(answer.body)}",
            context={"server": _address(url), "connection": connection_id},
            hint=f"Check that the address is that of {service} and that no proxy answers in its place.",
        ) from error


def no_answer(service: str, url: str, connection_id: str | None, error: Exception) -> MaintenanceError:
    """Return the error for a request that was not answered: ``<service>-untrusted`` or ``<service>-unreachable``."""
    address = _address(url)
    text = excerpt(f"{type(error).__name__}: {error}")
    context = {"server": address, "connection": connection_id}
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return PermanentError(
            f"{_key(service)}-untrusted",
            f"the certificate of {service} at {address} is not trusted: {text}",
            context=context,
            hint="Install its certificate authority where Airflow runs.",
        )
    return TransientError(
        f"{_key(service)}-unreachable",
        f"{service} at {address} does not answer: {text}",
        context=context,
        hint=f"Check from this machine that {address} accepts connections and is the right address.",
    )


def _address(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.hostname}:{parts.port or (443 if parts.scheme == 'https' else 80)}"


def _key(service: str) -> str:
    return service.lower().replace(" ", "-")
