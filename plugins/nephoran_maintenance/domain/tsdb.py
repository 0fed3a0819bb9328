"""A snapshot of Prometheus' data: which of its blocks are wanted, and which snapshot an attempt has left behind."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from nephoran_maintenance.errors import PermanentError, TransientError

BLOCK = re.compile(r"[0-9A-HJKMNP-TV-Z]{26}")
"""A ULID, which Prometheus names each block by."""
SNAPSHOT = re.compile(r"\d{8}T\d{6}Z-[0-9a-f]+")
META = "meta.json"


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

    :param record: what that attempt noted: ``before``, the snapshots that were there, and ``name`` once it knew its own.
    :param there: the snapshots that are there now.
    """
    name = str(record.get("name") or "")
    if name:
        return (name if name in there else None), []
    before = record.get("before")
    new = sorted(set(there) - set(before if isinstance(before, list) else there))
    # It died before it was told the name. Of several new ones some may be another's.
    return (new[0], []) if len(new) == 1 else (None, new)


def not_deleted(name: str, problem: str) -> TransientError:
    """Return the error for a snapshot that stays."""
    return TransientError(
        "tsdb-snapshot-left",
        f"the snapshot {name} of Prometheus could not be deleted: {problem}",
        context={"snapshot": name},
        hint="Delete that folder below snapshots in its data: it keeps the space of old blocks.",
    )
