"""What the lab's small HTTP servers share."""

from __future__ import annotations

import json
import socketserver
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Server(ThreadingHTTPServer):
    """Serve each connection in a thread of its own."""

    daemon_threads = True
    request_queue_size = 64

    def server_bind(self) -> None:
        """Bind without the base class's look-up of a host name: a lab has no name server, it would cost 5 s."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])


class JsonHandler(BaseHTTPRequestHandler):
    """Answer with JSON over kept connections."""

    protocol_version = "HTTP/1.1"

    def respond(self) -> None:
        """Answer one request; ``command`` and ``path`` say which."""
        self.answer(405, {"error": "method not allowed"})

    def do_GET(self) -> None:
        self.respond()

    do_HEAD = do_PUT = do_POST = do_PATCH = do_DELETE = do_GET  # noqa: N815

    def answer(self, status: int, body: object) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
