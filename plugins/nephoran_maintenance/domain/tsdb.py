"""A snapshot of Prometheus' data: which of its blocks are wanted, and which snapshot an attempt has left behind."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from nephoran_maintenance.errors import PermanentError, TransientError

BLOCK = re.compile(r"[0-9A-HJKMNP-TV-Z]{26}")
"""A ULID, which Prometheus names each block by."""
SNAPSHOT = re.compile(r"(\d{8}T\d{6}Z)-[0-9a-f]+")
"""Prometheus names each snapshot by the second in which it was asked for one."""
ASKING = timedelta(seconds=30)
"""So long it may take from the look at the clock of Prometheus until it is asked for the snapshot."""
META = "meta.json"
RECORD = "tsdb_snapshot"
"""By this key is noted what there is of our own."""
OTHERS = "other_snapshots"
"""The fact in the manifest that there are snapshots that are none of the backup's."""


@dataclass(frozen=True)
class Block:
    """:param from_at: of its first sample. :param until_at: no sample is as late as this."""

    name: str
    from_at: datetime
    until_at: datetime
    samples: int


def block_of(name: str, meta: bytes) -> Block:
    """Return what a block's ``meta.json`` says.

    :raises PermanentError: ``tsdb-snapshot-invalid``.
    """
    try:
        value = json.loads(meta)
        from_at, until_at = (datetime.fromtimestamp(int(value[key]) / 1000, UTC) for key in ("minTime", "maxTime"))
        return Block(name, from_at, until_at, int((value.get("stats") or {}).get("numSamples") or 0))
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise PermanentError(
            "tsdb-snapshot-invalid",
            f"the block {name} has no {META} that can be read: {type(error).__name__}: {error}",
            context={"block": name},
            hint="Look at the log of Prometheus: a block may be damaged.",
        ) from error


def blocks_since(blocks: Collection[Block], since: datetime | None) -> list[Block]:
    """Return the blocks that have samples of a moment or later, the oldest first; None: all."""
    found = [block for block in blocks if since is None or block.until_at > since]
    return sorted(found, key=lambda block: (block.from_at, block.name))


def checked_snapshot(name: str) -> str:
    """Return the name of a snapshot, which becomes part of a path that is deleted.

    :raises PermanentError: ``tsdb-snapshot-invalid``.
    """
    if SNAPSHOT.fullmatch(name):
        return name
    raise PermanentError(
        "tsdb-snapshot-invalid",
        f"Prometheus calls its snapshot {name[:100]!r}, which is no name of one",
        hint="Check that the profile's pod is a Prometheus, and look into its folder snapshots.",
    )


def left_behind(record: Mapping[str, object], there: Collection[str]) -> tuple[str | None, list[str]]:
    """Return the snapshot that an earlier attempt has left, and those of which it can't be told.

    :param record: what that attempt noted; see :func:`asking`, :func:`taken` and :func:`deleted`.
    :param there: the snapshots that are there now.
    """
    name = str(record.get("name") or "")
    if name:
        return (name if name in there else None), []
    before, asked_at = record.get("before"), record.get("asked_at")
    new = sorted(set(there) - set(before if isinstance(before, list) else there))
    if not asked_at:
        return None, new
    # It died before it was told the name. Of several that were taken just then some may be another's.
    near = [name for name in new if _follows(name, datetime.fromisoformat(str(asked_at)))]
    return (near[0], []) if len(near) == 1 else (None, near)


def asking(there: Collection[str], asked_at: datetime | None) -> dict[str, object]:
    """Return what an attempt notes before it asks for a snapshot.

    :param there: the snapshots that are there already.
    :param asked_at: the moment by the clock of Prometheus; None: it does not tell.
    """
    return {"before": list(there), "name": "", "asked_at": asked_at.isoformat() if asked_at else None}


def taken(name: str) -> dict[str, object]:
    """Return what an attempt notes once it knows the name of its snapshot."""
    return {"name": name}


def deleted(name: str = "") -> dict[str, object]:
    """Return what an attempt notes once its snapshot is gone, or none was taken."""
    return {"name": name, "deleted": True}


def is_deleted(record: Mapping[str, object] | None) -> bool:
    """Return whether by what was noted there is no snapshot of ours."""
    return record is None or bool(record.get("deleted"))


def _follows(name: str, asked_at: datetime) -> bool:
    """Return whether a snapshot was asked for at a moment or soon after it, by its name of whole seconds."""
    found = SNAPSHOT.fullmatch(name)
    try:
        at = datetime.strptime(found[1], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC) if found else None
    except ValueError:
        return False
    return at is not None and -timedelta(seconds=1) < at - asked_at <= ASKING


def not_deleted(name: str, problem: str) -> TransientError:
    """Return the error for a snapshot that stays."""
    return TransientError(
        "tsdb-snapshot-left",
        f"the snapshot {name} of Prometheus could not be deleted: {problem}",
        context={"snapshot": name},
        hint="Delete that folder below snapshots in its data: it keeps the space of old blocks.",
    )
