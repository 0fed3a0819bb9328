"""Kubernetes' events, read the same way in both of their API versions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from nephoran_maintenance.domain.moments import NEVER, moment

JsonObject = Mapping[str, Any]


@dataclass(frozen=True)
class ClusterEvent:
    """One event, possibly seen several times.

    ``count`` is ``series.count`` of events.k8s.io/v1 or ``count`` of core v1; ``container`` is the name in a field path
    such as ``spec.containers{rag-api}``, empty when the event is about the whole pod.
    """

    reason: str
    message: str
    kind: str
    name: str
    uid: str
    container: str
    count: int
    first_at: datetime
    last_at: datetime

    def concerns(self, pod: JsonObject) -> bool:
        """Return whether the event is about this very pod, not one of the same name before it."""
        metadata = pod["metadata"]
        same_uid = not self.uid or not metadata.get("uid") or self.uid == metadata["uid"]
        return self.kind == "Pod" and self.name == metadata["name"] and same_uid


def read_event(event: JsonObject) -> ClusterEvent:
    """Return an event as it is in JSON, of ``v1`` or of ``events.k8s.io/v1``."""
    about = event.get("involvedObject") or event.get("regarding") or {}
    series = event.get("series") or {}
    created_at = moment((event.get("metadata") or {}).get("creationTimestamp"))
    first_at = (
        moment(event.get("firstTimestamp"))
        or moment(event.get("deprecatedFirstTimestamp"))
        or moment(event.get("eventTime"))
        or created_at
    )
    last_at = (
        moment(series.get("lastObservedTime"))
        or moment(event.get("lastTimestamp"))
        or moment(event.get("deprecatedLastTimestamp"))
        or moment(event.get("eventTime"))
        or created_at
    )
    field_path = str(about.get("fieldPath") or "")
    return ClusterEvent(
        reason=str(event.get("reason") or ""),
        message=str(event.get("message") or event.get("note") or ""),
        kind=str(about.get("kind") or ""),
        name=str(about.get("name") or ""),
        uid=str(about.get("uid") or ""),
        container=field_path.partition("{")[2].rstrip("}"),
        count=int(series.get("count") or event.get("count") or event.get("deprecatedCount") or 1),
        first_at=first_at or last_at or NEVER,
        last_at=last_at or first_at or NEVER,
    )


def events_since(events: Iterable[JsonObject], since: datetime) -> list[ClusterEvent]:
    """Return the events that were last seen at or after a moment, oldest first."""
    read = (read_event(event) for event in events)
    return sorted((event for event in read if event.last_at >= since), key=lambda event: event.last_at)


def attempts(events: Iterable[ClusterEvent], since: datetime) -> int:
    """Return how often events happened since a moment; of a series that began earlier only the last time is certain."""
    return sum(event.count if event.first_at >= since else 1 for event in events)
