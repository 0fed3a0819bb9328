"""Moments as Kubernetes writes them."""

from __future__ import annotations

from datetime import UTC, datetime

NEVER = datetime.min.replace(tzinfo=UTC)
"""Earlier than any moment: what a missing timestamp counts as where only the latest matters."""


def moment(text: object) -> datetime | None:
    """Return the aware moment of an RFC 3339 timestamp; None for a missing or unreadable one."""
    if not isinstance(text, str) or not text:
        return None
    try:
        parsed = datetime.fromisoformat(text)
    except ValueError:
        return None
    return parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)


def latest(*moments: datetime | None) -> datetime:
    """Return the latest of some moments; :data:`NEVER` when none is known."""
    return max((found for found in moments if found is not None), default=NEVER)
