"""What all triggers here share: a deadline, tolerated read errors, one event of one shape on every path."""

from __future__ import annotations

import asyncio
import time
from abc import abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from typing import Any, ClassVar

from airflow.triggers.base import BaseTrigger, TriggerEvent

from nephoran_maintenance.errors import MaintenanceError, TransientError
from nephoran_maintenance.hooks.outside_text import excerpt

Event = dict[str, Any]


class PollingTrigger(BaseTrigger):
    """Look at one condition again and again until it is decided, then yield one event and end.

    A subclass lists its parameters in ``parameters``, opens what it reads from in :meth:`watch` and returns its event
    from there. On every other path the event has the state ``timeout`` (the deadline passed) or ``error`` (it could not
    be found out); every event has ``state``, ``message``, ``reference``, ``hint`` and ``seconds``.

    :param poll_interval_seconds: pause between two looks.
    :param read_error_limit: so many reads in a row may fail with a transient error (30 at one per second lets an API
        server restart) before the event says ``error``. A permanent error ends it at once.
    :param deadline_at: moment in ISO 8601 after which the event says ``timeout``; None: no limit.
    """

    parameters: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        *,
        poll_interval_seconds: float = 1.0,
        read_error_limit: int = 30,
        deadline_at: str | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.poll_interval_seconds = poll_interval_seconds
        self.read_error_limit = read_error_limit
        self.deadline_at = deadline_at
        self._last_logged: tuple[object, ...] = ()

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the class path and exactly the parameters of ``__init__``."""
        names = (*self.parameters, "poll_interval_seconds", "read_error_limit", "deadline_at")
        return f"{type(self).__module__}.{type(self).__qualname__}", {name: getattr(self, name) for name in names}

    @abstractmethod
    async def watch(self) -> Event:
        """Return the event once the condition is decided; raise a ``MaintenanceError`` when it can't be."""
        raise NotImplementedError

    async def run(self) -> AsyncIterator[TriggerEvent]:
        started = time.monotonic()
        event: Event
        try:
            event = await self.watch()
        except MaintenanceError as error:
            state = "timeout" if error.reference == "deadline-passed" else "error"
            event = {"state": state, "message": error.message, "reference": error.reference, "hint": error.hint}
        except Exception as error:
            # Edge: whatever breaks here would otherwise fail the step without saying what was being waited for.
            self.log.exception("%s broke", type(self).__name__)
            event = {
                "state": "error",
                "message": excerpt(f"{type(error).__name__}: {error}"),
                "reference": "trigger-broken",
                "hint": "This is a defect: report it with the log of the triggerer.",
            }
        yield TriggerEvent({**self.empty_event(), **event, "seconds": round(time.monotonic() - started, 3)})

    def empty_event(self) -> Event:
        """Return the keys that every event of this trigger has."""
        return {"state": "error", "message": "", "reference": None, "hint": ""}

    # ------------------------------------------------------------------------------------------ for the subclasses

    async def until(self, look: Callable[[], Awaitable[Event | None]]) -> Event:
        """Look again and again, and return the first event of a look; a transient error of a look is counted and passed.

        :raises TransientError: ``deadline-passed``, or the error of a look once there were too many in a row.
        """
        errors = 0
        while True:
            try:
                event = await look()
            except TransientError as error:
                errors += 1
                self.log.warning("Read error %d of at most %d: %s", errors, self.read_error_limit, error)
                if errors > self.read_error_limit:
                    raise
            else:
                errors = 0
                if event is not None:
                    return event
            await self.pause()

    async def pause(self) -> None:
        """Wait for one poll interval.

        :raises TransientError: ``deadline-passed`` when the deadline is reached.
        """
        self.check_deadline()
        await asyncio.sleep(self.poll_interval_seconds)

    def now(self) -> datetime:
        return datetime.now(UTC)

    def check_deadline(self) -> None:
        """:raises TransientError: ``deadline-passed``."""
        if self.deadline_at is not None and self.now() >= datetime.fromisoformat(self.deadline_at):
            raise TransientError(
                "deadline-passed", f"the deadline {self.deadline_at} has passed", hint="Look at what was waited for."
            )

    def log_change(self, *what: object) -> None:
        """Log values when they differ from those logged last."""
        if what != self._last_logged:
            self._last_logged = what
            self.log.info("%s", " · ".join(str(value) for value in what if value))
