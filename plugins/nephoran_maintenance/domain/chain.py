"""Chains of backups: a full one and the incremental ones that build on it, each on the one before."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from nephoran_maintenance.domain.backups import BackupType, KeepingClass, RequestedType
from nephoran_maintenance.domain.manifest import Manifest, Parent
from nephoran_maintenance.errors import PermanentError

SUNDAY = 6
PASSPHRASE = ""
"""Stands for a fingerprint where a passphrase opens a backup."""


@dataclass(frozen=True)
class KnownBackup:
    """What the rules need to know of a backup whose manifest is valid.

    :param locked_until: until when the store refuses to delete it; None: it is not locked.
    :param opened_by: fingerprints of the keys that open it; :data:`PASSPHRASE` where a passphrase does.
    """

    backup_id: str
    type: BackupType
    keeping: KeepingClass
    started_at: datetime
    ended_at: datetime
    manifest_sha256: str = ""
    parent: Parent | None = None
    checked_at: datetime | None = None
    verified_at: datetime | None = None
    locked_until: datetime | None = None
    digest_key_id: str = ""
    cluster_uid: str = ""
    system: str = ""
    opened_by: frozenset[str] = frozenset()
    whole: bool = True
    """False: something was left out by choice, so it counts nowhere as a backup of the system."""

    @property
    def parent_id(self) -> str | None:
        return self.parent.backup_id if self.parent else None

    @property
    def depth(self) -> int:
        return self.parent.depth + 1 if self.parent else 0

    @property
    def holds_data(self) -> bool:
        """Whether it has more than configuration: only then it counts where a backup is asked for."""
        return self.type != "config-only"


def known(
    manifest: Manifest,
    manifest_sha256: str,
    *,
    checked_at: datetime | None = None,
    verified_at: datetime | None = None,
    locked_until: datetime | None = None,
) -> KnownBackup:
    return KnownBackup(
        backup_id=manifest.backup_id,
        type=manifest.type,
        keeping=manifest.keeping,
        started_at=manifest.started_at,
        ended_at=manifest.ended_at,
        manifest_sha256=manifest_sha256,
        parent=manifest.parent,
        checked_at=checked_at,
        verified_at=verified_at,
        locked_until=locked_until,
        digest_key_id=manifest.digest_key_id,
        cluster_uid=manifest.cluster.uid,
        system=manifest.system,
        opened_by=frozenset(recipient.fingerprint for recipient in manifest.recipients) or frozenset({PASSPHRASE}),
        whole=manifest.whole,
    )


def chain_of(backup_id: str, backups: Mapping[str, KnownBackup]) -> tuple[KnownBackup, ...]:
    """Return the links that a backup needs, the full one first and itself last.

    :raises PermanentError: ``chain-broken`` when a link is missing, is another than was built on, is younger than what
        builds on it, or leads round.
    """
    links: list[KnownBackup] = []
    wanted: str | None = backup_id
    while wanted is not None:
        link = backups.get(wanted)
        child = links[-1] if links else None
        if link is None:
            raise _broken(backup_id, f"{wanted} is missing")
        if child and child.parent and child.parent.manifest_sha256 != link.manifest_sha256:
            raise _broken(backup_id, f"{wanted} is not the one that {child.backup_id} was built on")
        if child and link.started_at >= child.started_at:
            raise _broken(backup_id, f"{wanted} is not older than {child.backup_id}, which was built on it")
        if link.type == "config-only" and child:
            raise _broken(backup_id, f"{wanted} is config-only, nothing can be built on it")
        if not link.whole and child:
            raise _broken(backup_id, f"{wanted} leaves something out, nothing can be built on it")
        if child and link.system != child.system:
            raise _broken(backup_id, f"{wanted} is of another system")
        if child and (link.cluster_uid, link.digest_key_id) != (child.cluster_uid, child.digest_key_id):
            raise _broken(backup_id, f"{wanted} is of another cluster or has digests of another key")
        links.append(link)
        wanted = link.parent_id
    links.reverse()
    for position, link in enumerate(links):
        if link.parent and link.parent.depth != position - 1:
            raise _broken(backup_id, f"{link.backup_id} counts {link.parent.depth + 1} links before it, not {position}")
    return tuple(links)


@dataclass(frozen=True)
class Choice:
    """What kind of backup is made, on what it builds, and why."""

    type: BackupType
    parent: Parent | None
    reason: str


def choose(
    requested: RequestedType,
    at: datetime,
    backups: Iterable[KnownBackup],
    *,
    cluster_uid: str,
    system: str,
    digest_key_id: str,
    recipients: Mapping[str, str],
    longest_chain: int,
) -> Choice:
    """Decide the type of a backup, and its parent.

    ``auto`` is full on a Sunday (UTC), when there is nothing to build on, and when the chain has all its links; else
    incremental. A parent is the newest backup with data whose every link has been read back whole and can be opened by
    everybody who opens this one.

    :param recipients: who opens this one: by fingerprint, the name in the profile.
    :raises PermanentError: ``no-parent`` when an incremental backup was asked for and there is nothing to build on.
    """
    if requested in ("config-only", "full"):
        return Choice("full" if requested == "full" else "config-only", None, "asked for")
    parent, reason = find_parent(
        backups, cluster_uid=cluster_uid, system=system, digest_key_id=digest_key_id, recipients=recipients
    )
    if parent is None:
        if requested == "auto":
            return Choice("full", None, reason)
        raise PermanentError(
            "no-parent",
            f"an incremental backup was asked for, and there is nothing to build on: {reason}",
            hint="Make a full one: type=full, or type=auto, which decides by itself.",
        )
    links = parent.depth + 1
    if requested == "auto" and at.astimezone(UTC).weekday() == SUNDAY:
        return Choice("full", None, "it is Sunday")
    if requested == "auto" and links >= longest_chain:
        return Choice("full", None, f"the chain of {parent.backup_id} has {links} links")
    return Choice("incremental", parent, f"builds on {parent.backup_id}, link {links + 1} of its chain")


def find_parent(
    backups: Iterable[KnownBackup],
    *,
    cluster_uid: str,
    system: str,
    digest_key_id: str,
    recipients: Mapping[str, str],
) -> tuple[Parent | None, str]:
    """Return what the next incremental backup builds on, or None and why there is nothing."""
    known_ones = {backup.backup_id: backup for backup in backups}
    reason = "there is no backup with data"
    newest_first = sorted(known_ones.values(), key=lambda backup: backup.started_at, reverse=True)
    for backup in newest_first:
        if not backup.holds_data or not backup.whole:
            continue
        problem = None
        if backup.cluster_uid != cluster_uid:
            problem = "is of another cluster"
        elif backup.system != system:
            problem = f"is of another system, {backup.system}"
        elif backup.digest_key_id != digest_key_id:
            problem = "has digests of another key"
        else:
            try:
                links = chain_of(backup.backup_id, known_ones)
                unread = [link.backup_id for link in links if link.checked_at is None]
                problem = f"is not checked ({unread[0]})" if unread else _shut_out(links, recipients)
            except PermanentError as error:
                problem = error.message
        if problem is None:
            return Parent(backup_id=backup.backup_id, manifest_sha256=backup.manifest_sha256, depth=len(links) - 1), ""
        reason = f"the newest one, {backup.backup_id}, {problem}" if reason.startswith("there is") else reason
    return None, reason


def _shut_out(links: Iterable[KnownBackup], recipients: Mapping[str, str]) -> str | None:
    """Return who would open the next link and could not open these; None when everybody can."""
    for link in links:
        names = [name for fingerprint, name in recipients.items() if fingerprint not in link.opened_by]
        if names:
            return f"can't be opened by {', '.join(names)} ({link.backup_id})"
    return None


def _broken(backup_id: str, problem: str) -> PermanentError:
    return PermanentError(
        "chain-broken",
        f"the chain of {backup_id} is broken: {problem}",
        context={"backup": backup_id},
        hint="Nothing of this chain from the broken link on can be restored. Make a full backup now.",
    )
