"""Stand in front of the image registry, so that a test can make it answer an error a counted number of times.

Everything is passed through, except:

* ``PUT /_lab/fail-next?repository=R&reference=T&count=N&status=503&client=containerd`` arms it: the next ``count`` (1)
  GETs or HEADs of a manifest of ``repository`` get ``status`` (503). ``reference`` is a tag or a digest; a tag stands for
  its present digest too; without it any manifest of the repository counts. ``client`` is a part of the User-Agent, by
  default the kubelet's runtime, so that a procedure that reads the registry itself does not use up the count; empty
  means anybody.
* ``GET /_lab/fail-next`` lists what is armed and how many are left; ``DELETE /_lab/fail-next`` disarms.
"""

from __future__ import annotations

import argparse
import http.client
import re
import sys
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from urllib.parse import parse_qs, urlsplit

from lab import oci
from lab.http_server import JsonHandler, Server

ADMIN_PATH = "/_lab/fail-next"
CHUNK_BYTES = 1 << 20
UPSTREAM_TIMEOUT_SECONDS = 60.0

_MANIFEST_PATH = re.compile(r"^/v2/(?P<repository>.+)/manifests/(?P<reference>[^/]+)$")
_NOT_PASSED_ON = {"connection", "keep-alive", "proxy-authorization", "te", "trailer", "transfer-encoding", "upgrade"}


@dataclass
class Failure:
    """Remember what to answer instead of a manifest, and how often still."""

    repository: str
    references: list[str]
    client: str
    status: int
    left: int

    def takes(self, repository: str, reference: str, client: str) -> bool:
        wanted = not self.references or reference in self.references
        return self.left > 0 and repository == self.repository and wanted and self.client in client


class RegistryProxy(Server):
    """Pass requests to the registry at ``upstream`` (address, port) unless a failure is armed for them."""

    def __init__(self, address: tuple[str, int], upstream: tuple[str, int]) -> None:
        self.upstream = upstream
        self._failures: list[Failure] = []
        self._lock = threading.Lock()
        super().__init__(address, Handler)

    def arm(self, failure: Failure) -> None:
        with self._lock:
            self._failures.append(failure)

    def disarm(self) -> None:
        with self._lock:
            self._failures.clear()

    def armed(self) -> list[dict[str, object]]:
        with self._lock:
            return [asdict(failure) for failure in self._failures]

    def failure_for(self, path: str, client: str) -> int | None:
        """Return the status to answer instead, and count it; None when the request is to be passed on."""
        manifest = _MANIFEST_PATH.match(urlsplit(path).path)
        if manifest is None:
            return None
        with self._lock:
            for failure in self._failures:
                if failure.takes(manifest["repository"], manifest["reference"], client):
                    failure.left -= 1
                    return failure.status
        return None


class Handler(JsonHandler):
    """Answer or pass on one request."""

    server: RegistryProxy

    def respond(self) -> None:
        if urlsplit(self.path).path == ADMIN_PATH:
            self._administer()
            return
        status = None
        if self.command in ("GET", "HEAD"):
            status = self.server.failure_for(self.path, self.headers.get("User-Agent", ""))
        if status is not None:
            self.answer(status, {"errors": [{"code": "UNAVAILABLE", "message": "made by the lab"}]})
            return
        self._pass_on()

    def log_message(self, format: str, *arguments: object) -> None:
        client = self.headers.get("User-Agent", "-") if hasattr(self, "headers") else "-"
        print(datetime.now(UTC).isoformat(timespec="milliseconds"), client, format % arguments, file=sys.stderr)

    def _administer(self) -> None:
        query = {name: values[-1] for name, values in parse_qs(urlsplit(self.path).query, True).items()}
        if self.command == "GET":
            self.answer(200, self.server.armed())
        elif self.command == "DELETE":
            self.server.disarm()
            self.answer(200, [])
        elif self.command == "PUT" and query.get("repository"):
            try:
                count, status = int(query.get("count", "1")), int(query.get("status", "503"))
            except ValueError as problem:
                self.answer(400, {"error": str(problem)})
                return
            references = self._both_names(query["repository"], query.get("reference", ""))
            failure = Failure(query["repository"], references, query.get("client", "containerd"), status, count)
            self.server.arm(failure)
            self.answer(200, asdict(failure))
        else:
            self.answer(400, {"error": "PUT with repository, GET or DELETE"})

    def _both_names(self, repository: str, reference: str) -> list[str]:
        if not reference or ":" in reference:
            return [reference] if reference else []
        address, port = self.server.upstream
        digest = oci.resolve_tag(f"http://{address}:{port}", repository, reference)
        return [reference, digest] if digest else [reference]

    def _pass_on(self) -> None:
        upstream = http.client.HTTPConnection(*self.server.upstream, timeout=UPSTREAM_TIMEOUT_SECONDS)
        try:
            try:
                upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
                for name, value in self.headers.items():
                    if name.lower() not in _NOT_PASSED_ON:
                        upstream.putheader(name, value)
                chunked = self.headers.get("Transfer-Encoding", "").lower() == "chunked"
                if chunked:
                    upstream.putheader("Transfer-Encoding", "chunked")
                upstream.endheaders(message_body=self._body(chunked), encode_chunked=chunked)
                response = upstream.getresponse()
            except (OSError, http.client.HTTPException) as problem:
                self.close_connection = True
                self.answer(502, {"errors": [{"code": "UNAVAILABLE", "message": f"registry: {problem}"}]})
                return
            self._return(response)
        finally:
            upstream.close()

    def _body(self, chunked: bool) -> Iterator[bytes]:
        if chunked:
            while size := int(self.rfile.readline().partition(b";")[0], 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return
        left = int(self.headers.get("Content-Length", "0"))
        while left > 0:
            part = self.rfile.read(min(left, CHUNK_BYTES))
            if not part:
                raise ConnectionError("the client stopped in the middle of its body")
            left -= len(part)
            yield part

    def _return(self, response: http.client.HTTPResponse) -> None:
        self.send_response(response.status)
        for name, value in response.getheaders():
            if name.lower() not in _NOT_PASSED_ON and name.lower() not in ("date", "server"):
                self.send_header(name, value)
        has_body = self.command != "HEAD" and response.status not in (204, 304)
        chunked = has_body and response.getheader("Content-Length") is None
        if chunked:
            self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        while has_body and (part := response.read(CHUNK_BYTES)):
            self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part) if chunked else part)
        if chunked:
            self.wfile.write(b"0\r\n\r\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="lab.registry_proxy", description="Internal: the front of the lab's registry."
    )
    parser.add_argument("--address", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--upstream-port", type=int, required=True)
    chosen = parser.parse_args()
    RegistryProxy((chosen.address, chosen.port), ("127.0.0.1", chosen.upstream_port)).serve_forever()


if __name__ == "__main__":
    main()
