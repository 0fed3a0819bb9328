"""A command in a container, and what it writes, block by block, over the API server's websocket."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from types import TracebackType
from typing import Any

from nephoran_maintenance.errors import TransientError
from nephoran_maintenance.hooks.outside_text import excerpt

STDOUT, STDERR, STATUS = 1, 2, 3
LONGEST_COMPLAINT_BYTES = 256 * 1024
SILENCE_LIMIT = timedelta(minutes=5)
"""A disk may take long to find the next file, and a busy one to flush a snapshot."""
NOT_STARTED = (126, 127)
"""How a shell or a runtime says that there is no such program."""


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    :param exit_code: None: the container's runtime could not start it.
    :param complaints: what it wrote to standard error, of which only so much is kept.
    """

    exit_code: int | None
    complaints: str
    message: str = ""

    @property
    def not_started(self) -> bool:
        return self.exit_code is None or self.exit_code in NOT_STARTED

    @property
    def said(self) -> str:
        """Return in a few words what was said about it."""
        return excerpt(self.complaints or self.message)


class ExecStream:
    """One command: iterate over what it writes to standard output, then ask :attr:`ended`.

    Nothing is gathered: while nobody reads, the command waits.

    :param open_socket: returns the websocket that the API server carries to the container; what it raises passes.
    :param program: what errors call it.
    :param silence_limit: so long nothing may come at all.
    """

    def __init__(
        self,
        open_socket: Callable[[], Any],
        namespace: str,
        pod: str,
        container: str,
        program: str,
        *,
        silence_limit: timedelta = SILENCE_LIMIT,
    ) -> None:
        self._open_socket = open_socket
        self._namespace, self._pod, self._container = namespace, pod, container
        self._program = program
        self._silence_limit = silence_limit
        self._socket: Any = None
        self._ended: Ended | None = None

    def __enter__(self) -> ExecStream:
        self._socket = self._open_socket()
        # The library's own way to wait asks the socket, which does not know what TLS has read already.
        self._socket.settimeout(self._silence_limit.total_seconds())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._socket is not None:
            with contextlib.suppress(OSError):
                # Not close: it leaves the socket open once the other side has said goodbye (websocket-client 1.9). A command
                # that still runs ends when it writes the next time.
                self._socket.shutdown()

    def __iter__(self) -> Iterator[bytes]:
        """Yield what the command writes to standard output.

        :raises TransientError: ``pod-stream-ended`` when it ends before the status of the command came, or is silent.
        """
        from websocket import ABNF, WebSocketException, WebSocketTimeoutException

        complaints, status = bytearray(), bytearray()
        while True:
            try:
                opcode, frame = self._socket.recv_data_frame(True)
            except WebSocketTimeoutException as error:
                limit = self._silence_limit.total_seconds()
                raise self._broken(f"nothing came for {limit:g} s") from error
            except (WebSocketException, OSError) as error:
                if status:
                    break  # the status is the last that comes; some servers close without a word
                raise self._broken(excerpt(f"{type(error).__name__}: {error}")) from error
            if opcode == ABNF.OPCODE_CLOSE:
                break
            if opcode not in (ABNF.OPCODE_BINARY, ABNF.OPCODE_TEXT) or len(frame.data) < 2:
                continue
            channel, content = frame.data[0], frame.data[1:]
            if channel == STDOUT:
                yield content
            elif channel == STDERR and len(complaints) < LONGEST_COMPLAINT_BYTES:
                complaints += content
            elif channel == STATUS:
                status += content
        if not status:
            raise self._broken("it was closed before the command had ended")
        self._ended = self._parsed(bytes(status), complaints.decode("utf-8", "replace"))

    @property
    def ended(self) -> Ended:
        """Return how the command ended; only once everything was read."""
        if self._ended is None:
            raise self._broken("it was not read to its end")
        return self._ended

    def _parsed(self, status: bytes, complaints: str) -> Ended:
        try:
            value = json.loads(status)
            if value["status"] == "Success":
                return Ended(0, complaints)
            message = str(value.get("message") or "")
            for cause in (value.get("details") or {}).get("causes") or ():
                if cause.get("reason") == "ExitCode":
                    return Ended(int(cause["message"]), complaints, message)
            return Ended(None, complaints, message)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise self._broken(f"its status can't be read: {excerpt(status)}") from error

    def _broken(self, problem: str) -> TransientError:
        return TransientError(
            "pod-stream-ended",
            f"the stream of {self._program} in {self._namespace}/{self._pod} is broken: {problem}",
            context={"pod": f"{self._namespace}/{self._pod}", "container": self._container},
            hint="Try again. If it stays, look at the pod, its node and what is between: proxies end streams that last.",
        )
