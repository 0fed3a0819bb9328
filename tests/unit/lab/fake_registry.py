"""A registry in memory, as far as pushing, resolving and deleting go."""

from __future__ import annotations

import re
from urllib.parse import parse_qs, urlsplit

from lab import oci
from lab.http_server import JsonHandler, Server


class FakeRegistry(Server):
    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        self.manifests: dict[str, bytes] = {}
        self.tags: dict[str, str] = {}
        self.requests: list[str] = []
        super().__init__(("127.0.0.1", 0), _Handler)


class _Handler(JsonHandler):
    server: FakeRegistry

    def respond(self) -> None:
        path = urlsplit(self.path).path
        self.server.requests.append(f"{self.command} {path}")
        content = self._content()
        if match := re.fullmatch(r"/v2/.+/blobs/uploads/(\d*)", path):
            if self.command == "POST":
                self._empty(202, {"Location": f"{path}1?_state=x"})
            else:
                digest = parse_qs(urlsplit(self.path).query)["digest"][0]
                assert oci.digest_of(content) == digest
                self.server.blobs[digest] = content
                self._empty(201, {})
        elif match := re.fullmatch(r"/v2/.+/blobs/(.+)", path):
            self._empty(200 if match[1] in self.server.blobs else 404, {})
        elif match := re.fullmatch(r"/v2/(.+)/manifests/(.+)", path):
            self._manifest(match[2], content)

    def _manifest(self, reference: str, content: bytes) -> None:
        digest = self.server.tags.get(reference, reference)
        if self.command == "PUT":
            digest = oci.digest_of(content)
            self.server.manifests[digest] = content
            self.server.tags[reference] = digest
            self._empty(201, {"Docker-Content-Digest": digest})
        elif digest not in self.server.manifests:
            self.answer(404, {"errors": [{"code": "MANIFEST_UNKNOWN"}]})
        elif self.command == "DELETE":
            del self.server.manifests[digest]
            self._empty(202, {})
        else:
            body = self.server.manifests[digest]
            self._empty(200, {"Docker-Content-Digest": digest}, body if self.command == "GET" else b"", len(body))

    def _content(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", "0")))

    def _empty(self, status: int, headers: dict[str, str], body: bytes = b"", length: int = 0) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        pass
