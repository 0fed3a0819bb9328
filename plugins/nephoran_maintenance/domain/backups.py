"""Names of backups: types, classes of keeping, ids, and where in the bucket the files of one are."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Literal

from pydantic import ConfigDict, Field, model_validator

from nephoran_maintenance.domain.scope import Scope
from nephoran_maintenance.errors import PermanentError

BackupType = Literal["config-only", "incremental", "full"]
RequestedType = Literal["config-only", "incremental", "full", "auto"]
KeepingClass = Literal["daily", "weekly", "monthly", "yearly"]

MANIFEST = "manifest.json"
CHECKED_NOTE = "checked.json"
VERIFIED_NOTE = "verified.json"
OPENED_FOLDER = "opened"
"""Beside the backups: a note that is written again each month, and locked like the rest, would keep its backup for ever."""
SIGNATURE_SUFFIX = ".asc"
_ID = re.compile(r"(?P<type>config-only|incremental|full)-(?P<at>\d{8}t\d{6}z)-(?P<hash>[0-9a-f]{6})")
_AT = "%Y%m%dt%H%M%Sz"
LONGEST_STAGED = timedelta(hours=24)
"""So long the sensor waits for Weaviate's backup."""


class BackupRequest(Scope):
    """The parameters of a run: what is chosen of the system, and how it is kept.

    :param tag: a word of the person who asks, such as ``before-move``.
    :param keeping: for how long it is meant to be kept; see the rules of retention.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    type: RequestedType = "full"
    tag: str = Field("", max_length=63, pattern=r"^([a-z0-9]([-a-z0-9]*[a-z0-9])?)?$")
    keeping: KeepingClass = "daily"

    @model_validator(mode="after")
    def _nothing_is_built_on_a_part(self) -> BackupRequest:
        if not self.whole and self.type not in ("full", "config-only"):
            raise ValueError(f"include and exclude need the type full or config-only, not {self.type}")
        return self

    @property
    def scope(self) -> Scope:
        return Scope(**self.model_dump(include=set(Scope.model_fields)))


def backup_id(backup_type: BackupType, started_at: datetime, operation_id: str) -> str:
    """Return the id of the backup that an operation makes: the same in every try, valid for Kubernetes and Weaviate."""
    digest = hashlib.sha256(operation_id.encode()).hexdigest()[:6]
    return f"{backup_type}-{started_at.astimezone(UTC).strftime(_AT)}-{digest}"


def started_at_of(identifier: str) -> datetime:
    """Return the moment in a backup's id.

    :raises PermanentError: ``backup-id-invalid``.
    """
    if (found := _ID.fullmatch(identifier)) is not None:
        try:
            return datetime.strptime(found["at"], _AT).replace(tzinfo=UTC)
        except ValueError:
            pass
    raise PermanentError(
        "backup-id-invalid",
        f"{identifier!r} is no id of a backup",
        context={"backup": identifier},
        hint="An id looks like full-20261124t023000z-1a2b3c; list the bucket's backups for those that exist.",
    )


def is_backup_id(identifier: str) -> bool:
    try:
        started_at_of(identifier)
    except PermanentError:
        return False
    return True


def left_in_staging(folders: Iterable[str], own: str, chain: Sequence[str]) -> dict[str, bool]:
    """Return the folders of the staging bucket that a dead run, or a chain that is over, has left there.

    By folder, whether its descriptors must stay: they may be those of the chain that the next backup continues, except
    where they are older than the whole chain that this one continues. What is younger than a day may be at work.

    :param folders: names in the bucket; those that are no ids of backups are somebody else's.
    :param own: the backup that asks.
    :param chain: the backups that it builds on, the full one first; empty: it builds on nothing.
    """
    found = {}
    for folder in folders:
        if folder in chain or not is_backup_id(folder):
            continue
        if started_at_of(own) - started_at_of(folder) >= LONGEST_STAGED:
            found[folder] = not chain or started_at_of(folder) >= started_at_of(chain[0])
    return found


def folder_of(prefix: str, identifier: str) -> str:
    """Return the folder of a backup in its bucket."""
    started_at_of(identifier)
    return f"{prefix}/{identifier}"


def opened_note_of(prefix: str, identifier: str, recipient: str) -> str:
    """Return the key of the note that a recipient has opened a backup."""
    started_at_of(identifier)
    return f"{prefix}/{OPENED_FOLDER}/{identifier}/{recipient}.json"
