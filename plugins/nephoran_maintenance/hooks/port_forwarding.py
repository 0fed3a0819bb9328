"""A loopback address for one port of one pod, carried through the API server."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any

from nephoran_maintenance.errors import MaintenanceError

CHUNK_BYTES = 64 * 1024

log = logging.getLogger(__name__)


class PortForwarder:
    """Accept connections on 127.0.0.1 and relay each over a forwarding stream of its own.

    :param open_socket: returns a new websocket that the API server carries to the port.
    """

    def __init__(self, open_socket: Callable[[], Any], pod: str, port: int) -> None:
        self._open_socket = open_socket
        self._pod = pod
        self._port = port
        self._listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._lock = threading.Lock()
        self._open: set[Any] = set()
        self._closed = False
        self.local_port = 0

    def __enter__(self) -> PortForwarder:
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen(16)
        self.local_port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, name=f"port-forward {self._pod}", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._closed = True
            still_open = list(self._open)
        # shutdown, because close alone does not wake a thread that sits in accept
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for end in still_open:
            _close(end)

    def _accept(self) -> None:
        while True:
            try:
                local, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._relay, args=(local,), daemon=True).start()

    def _relay(self, local: socket.socket) -> None:
        remote: Any = None
        try:
            if not self._remember(local):
                return
            remote = self._new_stream().socket(self._port)
            if not self._remember(remote):
                return
            back = threading.Thread(target=_pump, args=(remote, local), daemon=True)
            back.start()
            _pump(local, remote)
            back.join()
        except OSError:
            pass  # the caller of the forwarded port sees its connection closed
        except MaintenanceError as error:
            # As above: there is nobody else above a thread.
            log.info("No stream to port %s of %s: %s", self._port, self._pod, error)
        finally:
            for end in (remote, local):
                if end is not None:
                    _close(end)
                    with self._lock:
                        self._open.discard(end)

    def _remember(self, end: Any) -> bool:
        with self._lock:
            if not self._closed:
                self._open.add(end)
            return not self._closed

    def _new_stream(self) -> Any:
        from kubernetes.stream.ws_client import PortForward

        return PortForward(self._open_socket(), [self._port])


def _pump(source: Any, target: Any) -> None:
    """Copy until the source ends, then say so to the target."""
    with contextlib.suppress(OSError):
        while data := source.recv(CHUNK_BYTES):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)


def _close(end: Any) -> None:
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
    with contextlib.suppress(OSError):
        end.close()
