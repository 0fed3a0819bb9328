"""The fence around the objects of an operation: stamped before the first change, taken away when the journal closes."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from nephoran_maintenance.domain.journal import Journal, Outcome, Workload
from nephoran_maintenance.domain.lease import fence_of, stamp_patch, unstamp_patch
from nephoran_maintenance.domain.quarantine import proven_keys, to_quarantine
from nephoran_maintenance.errors import TransientError
from nephoran_maintenance.hooks.cluster import ClusterHook
from nephoran_maintenance.hooks.journal_store import JournalStore
from nephoran_maintenance.hooks.lease_store import HeldLease, LeaseStore
from nephoran_maintenance.hooks.quarantine_store import QuarantineStore

CONFLICT_TRIES = 10

Patch = Callable[[dict[str, Any]], list[dict[str, Any]] | None]


def stamp(cluster: ClusterHook, journal: Journal, lease: HeldLease) -> None:
    """Stamp every object in scope with the token of our lease; one that is gone has nothing to protect.

    The lease is looked at between reading an object and stamping that very version of it: who took it over meanwhile has
    stamped the object, so ours is refused; who took it over and is done already is seen in the lease.

    :raises PermanentError: ``lease-lost`` when somebody took it over. Safe to repeat: yes.
    """

    def patch(found: dict[str, Any]) -> list[dict[str, Any]] | None:
        if fence_of(found) == lease.token:
            return None
        lease.keep()
        return stamp_patch(found, lease.token)

    for workload in journal.workloads().values():
        _patch(cluster, workload, patch)


def unstamp(cluster: ClusterHook, journal: Journal, token: int) -> None:
    """Take our stamp away from every object in scope, and nobody else's. Safe to repeat: yes."""
    for workload in journal.workloads().values():
        _patch(cluster, workload, lambda found: unstamp_patch(found, token) if fence_of(found) == token else None)


def turn_back(
    cluster: ClusterHook, store: JournalStore, leases: LeaseStore, journal: Journal, me: str
) -> tuple[Journal, HeldLease]:
    """Begin the way back of our own operation, and return its journal and lease.

    The lease gets a new token, so a forward step of this run whose process still lives somewhere is fenced out. Safe to
    repeat: yes; a way back that was begun and is fenced goes on with the token that it has.

    :raises PermanentError: ``lease-lost`` when somebody else owns the operation.
    """
    lease = leases.hold(me)
    if journal.turned_back_at is None or journal.fencing_token != lease.token:
        lease = leases.take(me, journal.procedure, above=journal.fencing_token)
        now = datetime.now(UTC)
        journal = store.update(journal.operation_id, lambda found: found.fenced(lease.token).turned_back(now))
    stamp(cluster, journal, lease)
    return journal, lease


def turn_back_alone(
    cluster: ClusterHook, store: JournalStore, leases: LeaseStore, journal: Journal, me: str, component: str
) -> tuple[Journal, HeldLease]:
    """Begin the way back of one component that may fail, and return the journal of our operation and its lease.

    As :func:`turn_back`, with a token of its own, but the operation goes on: what is still planned of the component, and
    of those that need it, is left out. Safe to repeat: yes.

    :raises PermanentError: ``lease-lost`` when somebody else owns the operation.
    """
    lease = leases.hold(me)
    begun = ("left-out", "rolling-back", "rolled-back")
    going = any(entry.step in begun for entry in journal.entries_of(component))
    if not going or journal.fencing_token != lease.token:
        lease = leases.take(me, journal.procedure, above=journal.fencing_token)
        journal = store.update(journal.operation_id, lambda found: found.fenced(lease.token))
    stamp(cluster, journal, lease)
    now = datetime.now(UTC)
    journal = store.update(journal.operation_id, lambda found: found.given_up(component, now), token=lease.token)
    return journal, lease


def close(cluster: ClusterHook, store: JournalStore, journal: Journal, outcome: Outcome, token: int) -> Journal:
    """Take the fence away, then close the journal: what dies in between is found open and closed by a recovery.

    Before that, versions that were taken back because they were bad go into quarantine; proven ones leave it.

    Safe to repeat: yes.

    :raises PermanentError: ``lease-lost`` when somebody else owns the operation.
    """
    journal.owned(token)
    quarantine = QuarantineStore(cluster, store.namespace, journal.system)
    quarantine.add(to_quarantine(journal))
    quarantine.take_out(proven_keys(journal))
    unstamp(cluster, journal, token)
    now = datetime.now(UTC)
    return store.update(journal.operation_id, lambda found: found.closed(outcome, now), token=token)


def _patch(cluster: ClusterHook, workload: Workload, patch: Patch) -> None:
    """Patch an object as it was looked at; a controller's write in between is looked at first."""
    for attempt in range(CONFLICT_TRIES):
        found = cluster.find(workload.kind, workload.name, workload.namespace)
        operations = None if found is None else patch({**found, "kind": workload.kind})
        if found is None or operations is None:
            return
        version = found["metadata"]["resourceVersion"]
        try:
            cluster.patch(
                workload.kind,
                workload.name,
                workload.namespace,
                operations,
                patch_type="json",
                resource_version=version,
            )
        except TransientError as error:
            if error.reference != "conflict" or attempt == CONFLICT_TRIES - 1:
                raise
        else:
            return
