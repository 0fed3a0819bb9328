"""Where alerts go: a webhook that takes JSON with a text, as chat and on-call systems do."""

from __future__ import annotations

from nephoran_maintenance.hooks.connections import read_connection
from nephoran_maintenance.hooks.http_api import base_url_of, send, unexpected

SERVICE = "Alert receiver"


def send_alert(connection_id: str, text: str) -> None:
    """Send one alert as ``{"text": …}``; a password of the connection is the bearer token.

    :raises MaintenanceError: ``alert-receiver-…``, ``connection-missing`` or ``connection-invalid``.
    """
    connection = read_connection(connection_id)
    url, token = base_url_of(connection), str(connection.password or "")
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    answer = send(SERVICE, "POST", url, connection_id=connection_id, headers=headers, body={"text": text})
    if not 200 <= answer.status < 300:
        raise unexpected(SERVICE, answer, "an alert", url, connection_id, secrets=(token,))
