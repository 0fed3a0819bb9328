"""What Weaviate's answers about a backup mean. The states are those of its interface up to 1.39."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

from packaging.version import InvalidVersion, Version

from nephoran_maintenance.errors import PermanentError, TransientError

State = Literal["progressing", "complete", "failed", "cancelled", "stalled"]
RefusalKind = Literal[
    "in-progress", "reindexing", "exists", "module-missing", "backend-not-viable", "base-unusable", "other"
]

AT_WORK = ("STARTED", "TRANSFERRING", "TRANSFERRED", "FINALIZING", "CANCELLING")
CANCELLED = ("CANCELED", "CANCELLED")
INCREMENTAL_SINCE = Version("1.37")
REINDEXING = "runtime-reindex in flight"
"""Words of 1.39 for one reason alone: it rebuilds an index, or, soon after a restart, can't tell yet whether it does."""
TENANTS_NAMED = 1000
"""There may be a million; a manifest has the count of all and the names of so many."""
BACKUP_ID = re.compile(r"[a-z0-9_-]{1,128}")


@dataclass(frozen=True)
class Staged:
    """What of a backup lies in the staging bucket."""

    objects: int
    size_bytes: int


@dataclass(frozen=True)
class BackupVerdict:
    """What is known about one backup.

    :param status: Weaviate's own word; empty when it does not know the backup (yet).
    :param progress: one line for a person.
    :param fingerprint: differs as long as something moves.
    :param message: why it failed or is taken to stand still.
    """

    state: State
    status: str
    progress: str
    fingerprint: str
    message: str = ""


def judge_backup(
    answer: Mapping[str, Any] | None,
    *,
    staged: Staged | None,
    now: datetime,
    progressed_at: datetime,
    no_progress_limit: timedelta,
) -> BackupVerdict:
    """Judge a backup by its status and by what has arrived in the staging bucket.

    A status that is none of the known ones is waited out like work: a newer Weaviate may have one more, and the limit
    on standing still ends it in any case.

    :param answer: the status as Weaviate gave it; None when it does not know the backup, which is so for a moment after
        its start and for ever when it never was.
    :param staged: None: not measured; then only a change of the status is progress.
    :param progressed_at: when the fingerprint changed last.
    """
    status = str((answer or {}).get("status") or "")
    error = str((answer or {}).get("error") or "")
    arrived = "" if staged is None else f", {staged.size_bytes / 2**20:.1f} MiB in {staged.objects} objects staged"
    known = status in (*AT_WORK, *CANCELLED, "SUCCESS", "FAILED")
    word = status or "not known to Weaviate"
    progress = f"{word}{'' if known or not status else ' (an unknown status)'}{arrived}"
    fingerprint = f"{status}/{(answer or {}).get('size')}/{staged}"
    if status == "SUCCESS":
        return BackupVerdict("complete", status, progress, fingerprint)
    if status == "FAILED":
        return BackupVerdict("failed", status, progress, fingerprint, error or "Weaviate gives no reason")
    if status in CANCELLED:
        return BackupVerdict("cancelled", status, progress, fingerprint, error or "it was cancelled")
    standing = now - progressed_at
    if standing >= no_progress_limit:
        message = f"no progress for {standing.total_seconds():.0f} s: {progress}"
        return BackupVerdict("stalled", status, progress, fingerprint, message)
    return BackupVerdict("progressing", status, progress, fingerprint)


def is_reindexing(message: str) -> bool:
    """Return whether a backup was refused, or has failed, because Weaviate may be rebuilding an index."""
    return REINDEXING in message


def reindexing_error(backup_id: str, message: str) -> TransientError:
    """Return the error for a backup that has to wait until no index is rebuilt any more."""
    return TransientError(
        "weaviate-reindexing",
        f"Weaviate makes no backup {backup_id} while an index may be rebuilt: {message}",
        context={"backup": backup_id},
        hint="Try again later: GET /v1/schema/<collection>/indexes says whether each index is ready.",
    )


@dataclass(frozen=True)
class Refusal:
    """Why Weaviate did not start a backup.

    :param other_id: the backup or restore that is under way.
    """

    kind: RefusalKind
    message: str
    other_id: str = ""


_IN_PROGRESS = re.compile(r"(?:backup|restore|restoration) (\S+) already in progress")
_REFUSALS: tuple[tuple[RefusalKind, re.Pattern[str]], ...] = (
    ("exists", re.compile(r"backup \S+ already exists")),
    ("module-missing", re.compile(r"did you enable the right module")),
    ("backend-not-viable", re.compile(r"not viable")),
    ("base-unusable", re.compile(r"base backup")),
)


def refusal_of(message: str) -> Refusal:
    """Return what a refusal (status 422) of a new backup says."""
    if is_reindexing(message):
        return Refusal("reindexing", message)
    if found := _IN_PROGRESS.search(message):
        return Refusal("in-progress", message, found.group(1).strip("'\""))
    for kind, pattern in _REFUSALS:
        if pattern.search(message):
            return Refusal(kind, message)
    return Refusal("other", message)


def folder_in_bucket(path: str, bucket: str, backup_id: str) -> str:
    """Return the folder in the staging bucket that a backup was written to, with a slash at its end.

    :param path: as Weaviate names it: ``s3://<bucket>/<folder>``; older versions may name none.
    :raises PermanentError: ``weaviate-staging-elsewhere`` when that is another bucket.
    """
    if not path:
        return f"{backup_id}/"
    place = path.partition("://")[2].strip("/")
    if place.partition("/")[0] != bucket:
        raise PermanentError(
            "weaviate-staging-elsewhere",
            f"Weaviate has written its backup to {path}, and the profile's staging bucket is {bucket!r}",
            context={"backup": backup_id},
            hint="Name the bucket of Weaviate's BACKUP_S3_BUCKET in backup.staging_bucket of the profile.",
        )
    return f"{place.partition('/')[2]}/"


def chunks_of(node: str, descriptor: Mapping[str, Any]) -> list[str]:
    """Return the files that a node's descriptor says it has written, as keys below the backup's folder.

    A descriptor outlives the files that it names: what was read once is deleted from the staging bucket.
    """
    return [
        f"{node}/{collection['name']}/chunk-{number}"
        for collection in descriptor.get("classes") or ()
        for number in collection.get("chunks") or ()
    ]


def shards_in(descriptor: Mapping[str, Any]) -> dict[str, set[str]]:
    """Return by collection the shards that a node's descriptor says it has backed up; each tenant is one."""
    found: dict[str, set[str]] = {}
    for collection in descriptor.get("classes") or ():
        names = found.setdefault(str(collection["name"]), set())
        names.update(str(shard["name"]) for shard in collection.get("shards") or ())
        names.update(str(name) for chunk in (collection.get("chunks") or {}).values() for name in chunk or ())
    return found


def tenants_left_out(
    tenants: Mapping[str, Mapping[str, str]], shards: Mapping[str, set[str]]
) -> dict[str, dict[str, Any]]:
    """Return by collection how many tenants are not in a backup, in which states, and the names of the first of them.

    Weaviate passes over offloaded tenants, and before 1.37 over inactive ones, and says so nowhere. What its descriptors do
    not name is not in it, whatever the state of the tenant is now.

    :param tenants: by collection, the state of each tenant.
    :param shards: by collection, what the descriptors of all nodes name.
    """
    found = {}
    for collection, states in sorted(tenants.items()):
        if missing := sorted(set(states) - shards.get(collection, set())):
            counted = Counter(states[name] or "unknown" for name in missing)
            found[collection] = {"count": len(missing), "states": dict(counted), "names": missing[:TENANTS_NAMED]}
    return found


def is_final(status: str) -> bool:
    """Return whether a backup with this status has ended."""
    return status in (*CANCELLED, "SUCCESS", "FAILED")


def has_incremental(version: str) -> bool:
    """Return whether a Weaviate of this version can build a backup on an earlier one: 1.37 and newer."""
    try:
        return Version(version) >= INCREMENTAL_SINCE
    except InvalidVersion:
        return False
