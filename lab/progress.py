"""Show the stage that a long command is in, with the time since it started."""

from __future__ import annotations

import sys
import threading
import time
from typing import TextIO


class Progress:
    """Print one line per stage: ``[ 12.3 s] stage``. Safe to use from several threads."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream if stream is not None else sys.stdout
        self._started = time.monotonic()
        self._lock = threading.Lock()

    @property
    def elapsed_seconds(self) -> float:
        return time.monotonic() - self._started

    def __call__(self, stage: str) -> None:
        with self._lock:
            print(f"[{self.elapsed_seconds:6.1f} s] {stage}", file=self._stream, flush=True)
