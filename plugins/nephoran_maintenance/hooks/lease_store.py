"""Where the lease rests: one Lease object per system, changed with optimistic locking and never deleted.

All moments are the API server's own: two Airflows with clocks apart still agree on who is late.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from nephoran_maintenance.domain.lease import (
    Lease,
    lease_of,
    let_go,
    lost,
    new_lease,
    refusal,
    released,
    renewed,
    taken,
)
from nephoran_maintenance.errors import PermanentError, TransientError
from nephoran_maintenance.hooks.cluster import ClusterHook
from nephoran_maintenance.profile import SystemProfile

CONFLICT_TRIES = 10

Change = Callable[[Mapping[str, Any], datetime], Mapping[str, Any] | None]


class LeaseStore:
    """Reads and writes the lease of one system."""

    def __init__(self, cluster: ClusterHook, profile: SystemProfile) -> None:
        self.cluster = cluster
        self.name = profile.metadata.name
        self.namespace = profile.namespaces.maintenance
        self.settings = profile.lease

    def look(self) -> tuple[Lease | None, datetime | None]:
        """Return the lease and the API server's time; None and None when nobody ever held it. Writes nothing."""
        try:
            found, now = self.cluster.get_at("Lease", self.name, self.namespace)
        except PermanentError as error:
            if error.reference == "not-found":
                return None, None
            raise
        return lease_of(found), now

    def take(
        self,
        me: str,
        procedure: str,
        open_operations: Callable[[], list[str]] | None = None,
        *,
        above: int | None = None,
    ) -> HeldLease:
        """Take the lease with a new token, or take it over from an owner that no longer renews it.

        :param me: operation id, which becomes the holder.
        :param open_operations: asked for what others have left open, which bars an operation from beginning; None: it
            is a recovery that takes it, to close that.
        :param above: the token of the journal that is taken over; the new one is greater, also when somebody has deleted
            the Lease object meanwhile.
        :raises PermanentError: ``lease-held`` with the owner's name, ``operation-abandoned``.
        """

        def change(found: Mapping[str, Any], now: datetime) -> Mapping[str, Any]:
            lease = lease_of(found)
            refused = refusal(lease, open_operations() if open_operations else [], me, now)
            if refused is not None:
                raise refused
            return taken(found, me, procedure, self.settings.duration, now, above=above or 0)

        return HeldLease(self, me, self._write(change).token)

    def hold(self, me: str) -> HeldLease:
        """Return the lease that ``me`` holds, renewed when that is due, also after it had expired.

        :raises PermanentError: ``lease-lost`` when it is not ours any more.
        """

        def change(found: Mapping[str, Any], now: datetime) -> Mapping[str, Any] | None:
            lease = lease_of(found)
            if lease.holder != me:
                raise lost(f"the lease {self.name}", f"the holder {lease.holder or 'nobody'}", lease.token)
            return renewed(found, now) if lease.due(now, self.settings.renew_after) else None

        return HeldLease(self, me, self._write(change).token)

    def release(self, me: str) -> bool:
        """Release the lease; False when it was not ours. Safe to repeat: yes."""
        return self._give_up(me, released)

    def let_go(self, me: str) -> bool:
        """Mark the lease as to be taken over at once; False when it was not ours. Safe to repeat: yes."""
        return self._give_up(me, let_go)

    def release_abandoned(self, me: str) -> str | None:
        """Release the lease of somebody else who is gone; return who that was, None when there is nobody.

        For when no operation is open: it died before its first change, or after its last. Safe to repeat: yes.
        """
        lease, now = self.look()
        if lease is None or now is None or not lease.abandoned(me, now):
            return None
        seen = lease.holder, lease.token

        def still_left(found: Lease, now: datetime) -> bool:
            return (found.holder, found.token) == seen and found.abandoned(me, now)

        return lease.holder if self._change_if(still_left, released) else None

    def _give_up(self, me: str, how: Callable[[Mapping[str, Any]], Mapping[str, Any]]) -> bool:
        lease, _ = self.look()
        if lease is None or lease.holder != me:
            return False
        return self._change_if(lambda found, _: found.holder == me, how)

    def _change_if(
        self, holds: Callable[[Lease, datetime], bool], how: Callable[[Mapping[str, Any]], Mapping[str, Any]]
    ) -> bool:
        """Apply a change as long as something holds of the stored lease; return whether it did."""
        held = True

        def change(found: Mapping[str, Any], now: datetime) -> Mapping[str, Any] | None:
            nonlocal held
            held = holds(lease_of(found), now)
            return how(found) if held else None

        self._write(change)
        return held

    def _write(self, change: Change) -> Lease:
        """Apply a change to the stored lease, made when it is missing, and return what is now stored."""
        for attempt in range(CONFLICT_TRIES):
            try:
                found, now = self.cluster.get_at("Lease", self.name, self.namespace)
            except PermanentError as error:
                if error.reference != "not-found":
                    raise
                self._make()
                continue
            after = change(found, now)
            if after is None or after == found:
                return lease_of(found)
            try:
                return lease_of(self.cluster.replace({**after, "kind": "Lease"}))
            except TransientError as error:
                if error.reference != "conflict" or attempt == CONFLICT_TRIES - 1:
                    raise
        raise AssertionError("unreachable")  # pragma: no cover

    def _make(self) -> None:
        try:
            self.cluster.create(new_lease(self.name, self.namespace))
        except TransientError as error:
            if error.reference != "conflict":  # somebody else was faster, which is as good
                raise


@dataclass(frozen=True)
class HeldLease:
    """The lease in our hands, with the token that every write is fenced by."""

    store: LeaseStore
    holder: str
    token: int

    def keep(self) -> None:
        """Renew the lease when that is due; to be called before each write.

        :raises PermanentError: ``lease-lost`` when somebody took it, or we did ourselves for the way back.
        """
        held = self.store.hold(self.holder)
        if held.token != self.token:
            raise lost(f"the lease {self.store.name}", f"token {held.token}", self.token)
