"""Stand in for an LLM provider outside the cluster: ``GET /v1/models`` answers 401 without the key and 200 with it."""

from __future__ import annotations

import argparse
import hmac
from pathlib import Path

from lab.http_server import JsonHandler, Server

MODELS = {"object": "list", "data": [{"id": "lab-model", "object": "model", "owned_by": "lab"}]}


class Provider(Server):
    """Serve the list of models to whoever sends ``Authorization: Bearer <key>``."""

    def __init__(self, address: tuple[str, int], key: str) -> None:
        self.key = key
        super().__init__(address, Handler)


class Handler(JsonHandler):
    """Answer one request."""

    server: Provider

    def respond(self) -> None:
        sent = self.headers.get("Authorization", "").encode()
        if self.command not in ("GET", "HEAD") or self.path.partition("?")[0] != "/v1/models":
            self.answer(404, {"error": "not found"})
        elif hmac.compare_digest(sent, f"Bearer {self.server.key}".encode()):
            self.answer(200, MODELS)
        else:
            self.answer(401, {"error": {"message": "no valid key", "type": "invalid_request_error"}})


def main() -> None:
    parser = argparse.ArgumentParser(prog="lab.llm_provider", description="Internal: the lab's LLM provider.")
    parser.add_argument("--address", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--key-file", type=Path, required=True)
    chosen = parser.parse_args()
    key = chosen.key_file.read_text(encoding="ascii").strip()
    Provider((chosen.address, chosen.port), key).serve_forever()


if __name__ == "__main__":
    main()
