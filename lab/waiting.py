"""Wait for conditions: often enough to lose no time, bounded, with the reason when it took too long."""

from __future__ import annotations

import http.client
import socket
import ssl
import time
from collections.abc import Callable
from datetime import timedelta
from urllib.parse import urlsplit

from lab.failure import LabError

POLL_INTERVAL = timedelta(milliseconds=50)


def wait_until(
    what: str,
    condition: Callable[[], bool],
    *,
    limit: timedelta,
    interval: timedelta = POLL_INTERVAL,
    explain: Callable[[], str] = lambda: "",
) -> None:
    """Return as soon as ``condition()`` is true; raise ``LabError`` with ``explain()`` after ``limit``."""
    deadline = time.monotonic() + limit.total_seconds()
    while not condition():
        if time.monotonic() > deadline:
            reason = explain()
            raise LabError(f"{what} was not reached in {limit.total_seconds():.0f} s. {reason}".rstrip())
        time.sleep(interval.total_seconds())


def accepts_connections(address: str, port: int, *, timeout: timedelta = timedelta(seconds=1)) -> bool:
    """Tell whether something listens there."""
    try:
        socket.create_connection((address, port), timeout.total_seconds()).close()
    except OSError:
        return False
    return True


def http_status(
    url: str, *, tls: ssl.SSLContext | None = None, timeout: timedelta = timedelta(seconds=2)
) -> int | None:
    """GET the URL without any proxy; return its status, None when nobody answers."""
    address = urlsplit(url)
    host, port = address.hostname or "", address.port
    connection = (
        http.client.HTTPSConnection(host, port, timeout=timeout.total_seconds(), context=tls)
        if address.scheme == "https"
        else http.client.HTTPConnection(host, port, timeout=timeout.total_seconds())
    )
    try:
        connection.request("GET", f"{address.path}?{address.query}" if address.query else address.path or "/")
        response = connection.getresponse()
        response.read()
        return response.status
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
