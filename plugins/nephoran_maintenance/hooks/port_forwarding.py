"""A loopback address for one port of one pod, carried through the API server."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any

CHUNK_BYTES = 64 * 1024


class PortForwarder:
    """Accept connections on 127.0.0.1 and relay each over a forwarding stream of its own.

    Every stream gets a client of its own, because the library opens a stream by exchanging a method of the client it is
    given, which two threads must not do at once (kubernetes 36; needed until the library no longer does).

    :param new_api_client: returns a fresh ``kubernetes`` client.
    """

    def __init__(self, new_api_client: Callable[[], Any], namespace: str, pod: str, port: int) -> None:
        self._new_api_client = new_api_client
        self._namespace = namespace
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
            stream = self._open_stream()
            remote = stream.socket(self._port)
            if not self._remember(remote):
                return
            back = threading.Thread(target=_pump, args=(remote, local), daemon=True)
            back.start()
            _pump(local, remote)
            back.join()
        except OSError:
            pass  # the caller of the forwarded port sees its connection closed
        except Exception as error:
            # edge of the library: it raises ApiException for everything, and there is nobody above a thread
            from kubernetes.client import ApiException

            if not isinstance(error, ApiException):
                raise
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

    def _open_stream(self) -> Any:
        from kubernetes import client
        from kubernetes.stream import portforward

        api = client.CoreV1Api(self._new_api_client())
        return portforward(
            api.connect_get_namespaced_pod_portforward, self._pod, self._namespace, ports=str(self._port)
        )


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
