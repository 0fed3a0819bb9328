from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest

from lab.http_server import Server

ServeInThread = Callable[[Server], str]


@contextmanager
def _served(server: Server) -> Iterator[None]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def serve() -> Iterator[ServeInThread]:
    """Run a server on loopback until the test ends; gives its URL."""
    with ExitStack() as servers:

        def start(server: Server) -> str:
            servers.enter_context(_served(server))
            return f"http://127.0.0.1:{server.server_port}"

        yield start
