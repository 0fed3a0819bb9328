"""Send steady requests through the whole system while it is being changed, and measure what its users would see."""

from __future__ import annotations

import asyncio
import json
import os
import threading
import uuid
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar

from nephoran_maintenance.domain.probe import summarise
from nephoran_maintenance.errors import MaintenanceError, PermanentError
from nephoran_maintenance.hooks.async_cluster import AsyncClusterHook
from nephoran_maintenance.hooks.http_probe import HttpProbe
from nephoran_maintenance.settings import PROBE_ANNOTATION, PROBE_STOP
from nephoran_maintenance.triggers.base import Event, PollingTrigger

FLUSH_INTERVAL_SECONDS = 1.0
# Slots that are later than this are left out and counted: sent all at once they would be a load that no user makes.
LATEST_START_SECONDS = 0.25
# Neighbouring numbers are asked for far apart, so that no cache on the way sees a pattern.
STRIDE = 7919
JOURNAL_UNREADABLE_LIMIT_SECONDS = 600.0


class ProbeTrigger(PollingTrigger):
    """Ask for one known object after the other at a fixed rate, until the operation says stop or the time is up.

    The rate does not depend on the answers: a request is sent when its slot comes, whether or not earlier ones were
    answered, each over a new connection. Every sample is written to a file of JSON lines ``{"at", "seconds", "failure",
    "late_seconds", "number", "versions"}``, flushed once a second; after a restart of the triggerer the measurement
    goes on in the same file. What the triggerer itself did not manage is told apart from what the system did, by
    ``late_seconds_max`` and ``skipped``.

    The event: ``{"state": "complete" | "error", "summary": {…}, "samples": path, "message", "reference", "hint",
    "seconds"}``. The summary is that of :func:`~nephoran_maintenance.domain.probe.summarise` with
    ``late_seconds_max``, ``skipped``, ``resumed`` (the triggerer was restarted: a gap may be its own), ``stopped_by``
    (``operation``, ``deadline`` or ``journal-unreadable``) and ``samples`` added.

    :param url: where the system takes requests; gets ``POST {"query": …, "object_id": …}``.
    :param rate_per_second: 60 leaves a margin above the 50 that an upgrade is measured under.
    :param timeout_seconds: a request without an answer after this has failed.
    :param collection: the collection of the known objects.
    :param known_objects_count: how many there are; numbered from 0.
    :param samples_path: the file for the samples; its folder is made when missing.
    :param kubernetes_connection_id: connection through which the operation's journal is read.
    :param journal_namespace: namespace of the journal's ConfigMap.
    :param journal_name: name of it; its annotation ``maintenance.nephoran.com/probe: stop`` ends the probe.
    :param deadline_seconds: the probe ends after this at the latest.
    :param object_name_template: the version 5 UUID of this, in the URL namespace, is the id of the known object.
    :param title_template: the title that it has.
    """

    parameters: ClassVar[tuple[str, ...]] = (
        "url",
        "rate_per_second",
        "timeout_seconds",
        "collection",
        "known_objects_count",
        "samples_path",
        "kubernetes_connection_id",
        "journal_namespace",
        "journal_name",
        "deadline_seconds",
        "query",
        "object_name_template",
        "title_template",
    )

    def __init__(
        self,
        *,
        url: str,
        samples_path: str,
        kubernetes_connection_id: str,
        journal_namespace: str,
        journal_name: str,
        collection: str,
        known_objects_count: int,
        rate_per_second: float = 60.0,
        timeout_seconds: float = 5.0,
        deadline_seconds: float = 6 * 3600.0,
        query: str = "maintenance probe",
        object_name_template: str = "nephoran/{collection}/{number}",
        title_template: str = "knowledge-{number}",
        poll_interval_seconds: float = 1.0,
        read_error_limit: int = 30,
        deadline_at: str | None = None,
    ) -> None:
        super().__init__(
            poll_interval_seconds=poll_interval_seconds, read_error_limit=read_error_limit, deadline_at=deadline_at
        )
        self.url = url
        self.rate_per_second = rate_per_second
        self.timeout_seconds = timeout_seconds
        self.collection = collection
        self.known_objects_count = known_objects_count
        self.samples_path = samples_path
        self.kubernetes_connection_id = kubernetes_connection_id
        self.journal_namespace = journal_namespace
        self.journal_name = journal_name
        self.deadline_seconds = deadline_seconds
        self.query = query
        self.object_name_template = object_name_template
        self.title_template = title_template
        self._unwritten: list[dict[str, Any]] = []
        self._late_seconds_max = 0.0
        self._skipped = 0
        self._resumed = False
        self._file_lock = threading.Lock()

    def empty_event(self) -> Event:
        return {**super().empty_event(), "summary": {}, "samples": self.samples_path}

    async def watch(self) -> Event:
        if not self.url.startswith(("http://", "https://")):
            raise PermanentError(
                "probe-url-invalid",
                f"the probe can't ask {self.url!r}",
                context={"url": self.url},
                hint="Give the profile's probe.url as http://… or https://….",
            )
        path = Path(self.samples_path)
        try:
            earlier = len(await asyncio.to_thread(read_samples, path))
        except OSError as error:
            raise unwritable(path, error) from error
        self._resumed = earlier > 0
        timeout = timedelta(seconds=self.timeout_seconds)
        async with AsyncClusterHook(self.kubernetes_connection_id) as cluster, HttpProbe(self.url, timeout) as probe:
            stop = asyncio.create_task(self._wait_for_stop(cluster))
            writer = asyncio.create_task(self._write_regularly(path))
            try:
                await self._send(probe, earlier, until=lambda: stop.done() or writer.done())
            finally:
                stop.cancel()
                writer.cancel()
                await asyncio.wait({stop, writer})
                failure = None if writer.cancelled() else writer.exception()
                try:
                    # also when the triggerer is stopped: what was measured is not lost
                    await asyncio.to_thread(self._append, path, self._taken())
                except OSError as error:
                    failure = error
        if failure is not None:
            raise unwritable(path, failure) from failure
        summary = await asyncio.to_thread(self._summary, path, stop.result())
        return {"state": "complete", "summary": summary, "message": f"{summary['sent']} requests sent"}

    async def _send(self, probe: HttpProbe, number: int, until: Callable[[], bool]) -> None:
        loop = asyncio.get_running_loop()
        interval_seconds = 1.0 / self.rate_per_second
        first_at = loop.time()
        in_flight: set[asyncio.Task[None]] = set()
        slot = 0
        try:
            while not until():
                due = first_at + slot * interval_seconds
                slot += 1
                await asyncio.sleep(max(0.0, due - loop.time()))
                late_seconds = loop.time() - due
                if late_seconds > LATEST_START_SECONDS:
                    self._late_seconds_max = max(self._late_seconds_max, late_seconds)
                    self._skipped += 1
                    continue
                task = loop.create_task(self._ask(probe, number, due))
                in_flight.add(task)
                task.add_done_callback(in_flight.discard)
                number += 1
            if in_flight:
                await asyncio.wait(in_flight, timeout=self.timeout_seconds + 1.0)
        finally:
            for task in in_flight:
                task.cancel()

    async def _ask(self, probe: HttpProbe, count: int, due: float) -> None:
        number = (count * STRIDE) % self.known_objects_count
        name = self.object_name_template.format(collection=self.collection, number=number)
        object_id = str(uuid.uuid5(uuid.NAMESPACE_URL, name))
        late_seconds = max(0.0, asyncio.get_running_loop().time() - due)
        self._late_seconds_max = max(self._late_seconds_max, late_seconds)
        at = self.now()
        answer = await probe.ask(self.query, object_id, self.title_template.format(number=number))
        sample = {
            "at": at.isoformat(timespec="milliseconds"),
            "seconds": round(answer.seconds, 4),
            "failure": answer.failure,
            "late_seconds": round(late_seconds, 4),
            "number": number,
            "versions": answer.versions,
        }
        self._unwritten.append(sample)

    async def _wait_for_stop(self, cluster: AsyncClusterHook) -> str:
        """Return why the probe is to end: ``operation``, ``deadline`` or ``journal-unreadable``."""
        loop = asyncio.get_running_loop()
        end_at = loop.time() + self.deadline_seconds
        readable_at = loop.time()
        while loop.time() < end_at:
            try:
                journal = await cluster.get("ConfigMap", self.journal_name, self.journal_namespace)
            except MaintenanceError as error:
                # An API server that is away is no reason to stop measuring: that is when it matters.
                self.log_change(f"the journal can't be read: {error.message}")
                if loop.time() - readable_at > JOURNAL_UNREADABLE_LIMIT_SECONDS:
                    return "journal-unreadable"
            else:
                readable_at = loop.time()
                self.log_change("the journal is read")
                if (journal["metadata"].get("annotations") or {}).get(PROBE_ANNOTATION) == PROBE_STOP:
                    return "operation"
            await asyncio.sleep(min(self.poll_interval_seconds, max(0.0, end_at - loop.time())))
        return "deadline"

    async def _write_regularly(self, path: Path) -> None:
        while True:
            await asyncio.sleep(FLUSH_INTERVAL_SECONDS)
            if samples := self._taken():
                await asyncio.to_thread(self._append, path, samples)

    def _taken(self) -> list[dict[str, Any]]:
        taken, self._unwritten = self._unwritten, []
        return taken

    def _append(self, path: Path, samples: list[dict[str, Any]]) -> None:
        # A cancelled task leaves its thread running: the next one must not write into the middle of its lines.
        with self._file_lock:
            append_samples(path, samples)

    def _summary(self, path: Path, stopped_by: str) -> dict[str, Any]:
        return {
            **summarise(read_samples(path)).to_dict(),
            "late_seconds_max": round(self._late_seconds_max, 4),
            "skipped": self._skipped,
            "resumed": self._resumed,
            "stopped_by": stopped_by,
            "samples": self.samples_path,
        }


def unwritable(path: Path, error: BaseException) -> PermanentError:
    """Return the error for a file of samples that can't be read or written."""
    return PermanentError(
        "samples-not-written",
        f"samples can't be kept in {path.name}: {type(error).__name__}",
        context={"file": path.name},
        hint="Check space and permissions of the folder for reports.",
    )


def append_samples(path: Path, samples: list[dict[str, Any]]) -> None:
    """Append samples to a file of JSON lines, which is made when missing; a half-written last line is ended first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(sample, separators=(",", ":")) + "\n" for sample in samples)


def read_samples(path: Path) -> list[dict[str, Any]]:
    """Return the samples of a file, none when it does not exist; a half-written last line is left out."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    samples = []
    for line in lines:
        try:
            samples.append(json.loads(line))
        except ValueError:
            continue
    return samples
