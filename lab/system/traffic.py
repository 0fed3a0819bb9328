"""Send steady queries through the whole chain, independent of the product's own probe, so that each can check the other."""

from __future__ import annotations

import asyncio
import itertools
import json
import threading
import time
from dataclasses import dataclass, field
from types import TracebackType
from urllib.parse import urlsplit

from lab.config import LabConfig
from lab.system.seed import KNOWLEDGE, knowledge_title, object_id

TIMEOUT_SECONDS = 5.0
MOST_FAILURES_KEPT = 20


@dataclass
class Result:
    """What came back: numbers, the longest time between two right answers, and the first failures with their reason."""

    sent: int = 0
    failed: int = 0
    longest_gap_seconds: float = 0.0
    failures: list[str] = field(default_factory=list)


class Traffic:
    """Send queries in the background between enter and exit; ``result`` is complete after the exit.

    Every query is sent when its time has come, whether or not earlier ones are answered, on a connection of its own,
    asks for the next known object and is right only when its title comes back.
    """

    def __init__(self, config: LabConfig, *, rate_per_second: float = 60.0, known_objects: int = 500) -> None:
        self.result = Result()
        address = urlsplit(config.llm_processor_url)
        self._host, self._port = str(address.hostname), int(address.port or 80)
        self._interval = 1.0 / rate_per_second
        self._known_objects = known_objects
        self._stop = threading.Event()
        self._answered_at: list[float] = []
        self._thread = threading.Thread(target=lambda: asyncio.run(self._send()), name="traffic")

    def __enter__(self) -> Traffic:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        moments = sorted(self._answered_at)
        gaps = (after - before for before, after in itertools.pairwise(moments))
        self.result.longest_gap_seconds = max(gaps, default=0.0)

    async def _send(self) -> None:
        started = time.monotonic()
        waiting: set[asyncio.Task[None]] = set()
        while not self._stop.is_set():
            due = started + self.result.sent * self._interval
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            task = asyncio.create_task(self._ask(self.result.sent % self._known_objects))
            waiting.add(task)
            task.add_done_callback(waiting.discard)
            self.result.sent += 1
        await asyncio.gather(*waiting)

    async def _ask(self, number: int) -> None:
        body = {"query": f"what is knowledge {number}", "object_id": object_id(KNOWLEDGE, number)}
        started = time.monotonic()
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                status, content = await self._post(json.dumps(body).encode())
            right = status == "200" and json.loads(content)["title"] == knowledge_title(number)
            reason = f"{status} {content[:200].decode(errors='replace')}"
        except (OSError, ValueError, KeyError) as problem:
            right, reason = False, repr(problem)
        if right:
            self._answered_at.append(time.monotonic())
            return
        self.result.failed += 1
        if len(self.result.failures) < MOST_FAILURES_KEPT:
            after = f"after {time.monotonic() - started:.1f} s"
            self.result.failures.append(f"{time.strftime('%H:%M:%S')} object {number} {after}: {reason}")

    async def _post(self, body: bytes) -> tuple[str, bytes]:
        """Return status and body. By hand: a client library's pool takes the more time the more requests wait."""
        reader, writer = await asyncio.open_connection(self._host, self._port)
        try:
            head = f"POST /process HTTP/1.1\r\nHost: {self._host}\r\nConnection: close\r\n"
            head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
            writer.write(head.encode() + body)
            answer = await reader.read()
        finally:
            writer.close()
        if not answer:
            raise ConnectionError("closed without an answer")
        first, _, rest = answer.partition(b"\r\n")
        return first.split()[1].decode(), rest.partition(b"\r\n\r\n")[2]
