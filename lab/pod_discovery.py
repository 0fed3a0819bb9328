"""Tell Prometheus which pods there are: Debian's build of it has no Kubernetes discovery of its own.

Answers every GET in the form of Prometheus' HTTP discovery, from a fresh list of pods, with the labels
``__meta_kubernetes_*`` that its own discovery would give, so the scrape configuration reads as anywhere else.
"""

from __future__ import annotations

import argparse
import json
import re
import ssl
from http.client import HTTPException, HTTPSConnection
from pathlib import Path
from typing import Any

from lab.http_server import JsonHandler, Server

API_TIMEOUT_SECONDS = 5.0


class Discovery(Server):
    """Ask the API server at ``api`` (address, port) for pods with the client certificate ``<name>.crt`` in ``pki``."""

    def __init__(self, address: tuple[str, int], api: tuple[str, int], pki: Path, name: str) -> None:
        self._api = api
        self._tls = ssl.create_default_context(cafile=str(pki / "ca.crt"))
        self._tls.load_cert_chain(pki / f"{name}.crt", pki / f"{name}.key")
        super().__init__(address, Handler)

    def targets(self) -> list[dict[str, Any]]:
        """Return one target per pod that has an address."""
        connection = HTTPSConnection(*self._api, timeout=API_TIMEOUT_SECONDS, context=self._tls)
        try:
            # Version 0 is answered from the API server's cache.
            connection.request("GET", "/api/v1/pods?resourceVersion=0")
            response = connection.getresponse()
            content = response.read()
        finally:
            connection.close()
        if response.status != 200:
            raise HTTPException(f"the API server answered {response.status}")
        return [target for pod in json.loads(content)["items"] if (target := target_of(pod))]


def target_of(pod: dict[str, Any]) -> dict[str, Any] | None:
    """Return the target of one pod (an object as in JSON); None while it has no address."""
    metadata, status = pod["metadata"], pod.get("status", {})
    if not status.get("podIP"):
        return None
    labels = {
        "__meta_kubernetes_namespace": metadata["namespace"],
        "__meta_kubernetes_pod_name": metadata["name"],
        "__meta_kubernetes_pod_ip": status["podIP"],
        "__meta_kubernetes_pod_phase": status.get("phase", "Unknown"),
    }
    for kind in ("label", "annotation"):
        for key, value in metadata.get(f"{kind}s", {}).items():
            labels[f"__meta_kubernetes_pod_{kind}_{re.sub('[^a-zA-Z0-9_]', '_', key)}"] = value
    return {"targets": [status["podIP"]], "labels": labels}


class Handler(JsonHandler):
    """Answer one request of Prometheus."""

    server: Discovery

    def respond(self) -> None:
        try:
            self.answer(200, self.server.targets())
        except (OSError, HTTPException) as problem:
            # Prometheus keeps the targets it knows when it gets an error.
            self.answer(503, {"error": str(problem)})

    def log_request(self, code: object = "-", size: object = "-") -> None:
        """Log nothing on success: it is asked every second."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="lab.pod_discovery", description="Internal: pods as targets for Prometheus.")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--api-address", required=True)
    parser.add_argument("--api-port", type=int, required=True)
    parser.add_argument("--pki", type=Path, required=True)
    parser.add_argument("--client", required=True, help="name of the client certificate in --pki")
    chosen = parser.parse_args()
    api = (chosen.api_address, chosen.api_port)
    Discovery(("127.0.0.1", chosen.port), api, chosen.pki, chosen.client).serve_forever()


if __name__ == "__main__":
    main()
