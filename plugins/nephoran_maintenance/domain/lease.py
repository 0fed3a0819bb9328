"""The lease on the system and the fence around its objects: who may change them, and who no longer may.

The lease alone would be check-then-write: a process that was stopped between the two writes late. So whoever takes the
lease stamps its token on every object in scope, and each write tests that stamp in the same request. The token is the
lease's ``leaseTransitions``: it only grows, and the lease is never deleted.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from nephoran_maintenance.domain.moments import NEVER, moment
from nephoran_maintenance.errors import PermanentError
from nephoran_maintenance.settings import PREFIX

JsonObject = Mapping[str, Any]

FENCE = f"{PREFIX}/fence"
"""Annotation of an object in scope: the token of the operation that may change it."""
LET_GO = f"{PREFIX}/let-go"
"""Annotation of the lease: the holder that ended with its journal open, and renews no more."""
PROCEDURE = f"{PREFIX}/procedure"

_FENCE_PATH = "/metadata/annotations/" + FENCE.replace("~", "~0").replace("/", "~1")

PATIENCE = 10
"""So many durations of the lease a run is believed to live that does not renew it: while its step waits for a slot, while
Airflow does not answer, while its triggerer is started again. 10 minutes with the default of 60 s; Airflow itself gives up a
worker that it has not heard of for 5."""

Standing = Literal["free", "mine", "expired", "held"]


@dataclass(frozen=True)
class Lease:
    """What a Lease object says."""

    name: str
    holder: str | None
    token: int
    procedure: str
    taken_at: datetime
    renewed_at: datetime
    duration: timedelta
    let_go: bool

    def standing(self, me: str, now: datetime) -> Standing:
        """Return how the lease stands for ``me``: an operation id.

        ``mine`` also when it has expired: as long as nobody else took it, its holder may go on. ``expired`` is that of
        somebody else who has not renewed it for its duration, or who let it go.
        """
        if self.holder is None:
            return "free"
        if self.holder == me:
            return "mine"
        return "expired" if self.let_go or now >= self.renewed_at + self.duration else "held"

    def abandoned(self, me: str, now: datetime) -> bool:
        """Return whether it is that of somebody else who is believed to be gone, and not only late."""
        late = self.let_go or now >= self.renewed_at + PATIENCE * self.duration
        return late and self.standing(me, now) == "expired"

    def due(self, now: datetime, renew_after: timedelta) -> bool:
        """Return whether its holder should renew it now."""
        return self.let_go or now >= self.renewed_at + renew_after

    def owner(self) -> str:
        """Return who has it, since when, for people."""
        return f"{self.holder} ({self.procedure}, since {self.taken_at.isoformat(timespec='seconds')})"


def lease_of(found: JsonObject) -> Lease:
    """Return what a Lease object says; what is missing in it reads as never taken."""
    spec, metadata = found.get("spec") or {}, found["metadata"]
    annotations = metadata.get("annotations") or {}
    holder = spec.get("holderIdentity") or None
    return Lease(
        name=metadata["name"],
        holder=holder,
        token=int(spec.get("leaseTransitions") or 0),
        procedure=str(annotations.get(PROCEDURE, "unknown procedure")),
        taken_at=moment(spec.get("acquireTime")) or NEVER,
        renewed_at=moment(spec.get("renewTime")) or NEVER,
        duration=timedelta(seconds=int(spec.get("leaseDurationSeconds") or 0)),
        let_go=holder is not None and annotations.get(LET_GO) == holder,
    )


def new_lease(name: str, namespace: str) -> dict[str, Any]:
    """Return a Lease that nobody holds yet."""
    return {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": {"app.kubernetes.io/managed-by": "nephoran-maintenance"},
        },
        "spec": {"leaseTransitions": 0},
    }


def taken(
    found: JsonObject, me: str, procedure: str, duration: timedelta, now: datetime, *, above: int = 0
) -> dict[str, Any]:
    """Return the Lease taken by ``me`` with the next token; also its own holder gets a new one.

    :param above: a token that is known to have been given out: a Lease that somebody deleted counts on from there.
    """
    lease = copy.deepcopy(dict(found))
    annotations = dict(lease["metadata"].get("annotations") or {})
    annotations.pop(LET_GO, None)
    lease["metadata"]["annotations"] = {**annotations, PROCEDURE: procedure}
    lease["spec"] = {
        **(lease.get("spec") or {}),
        "holderIdentity": me,
        "leaseDurationSeconds": max(1, round(duration.total_seconds())),
        "acquireTime": _text(now),
        "renewTime": _text(now),
        "leaseTransitions": max(lease_of(found).token, above) + 1,
    }
    return lease


def renewed(found: JsonObject, now: datetime) -> dict[str, Any]:
    """Return the Lease renewed by its holder, with the token that it has."""
    lease = copy.deepcopy(dict(found))
    (lease["metadata"].get("annotations") or {}).pop(LET_GO, None)
    lease["spec"]["renewTime"] = _text(now)
    return lease


def released(found: JsonObject) -> dict[str, Any]:
    """Return the Lease without a holder; its token stays."""
    lease = copy.deepcopy(dict(found))
    (lease["metadata"].get("annotations") or {}).pop(LET_GO, None)
    lease["spec"].pop("holderIdentity", None)
    return lease


def let_go(found: JsonObject) -> dict[str, Any]:
    """Return the Lease of a holder that ends with its work undone: still named, but to be taken over at once."""
    lease = copy.deepcopy(dict(found))
    annotations = dict(lease["metadata"].get("annotations") or {})
    lease["metadata"]["annotations"] = {**annotations, LET_GO: lease["spec"]["holderIdentity"]}
    return lease


def refusal(lease: Lease, open_operations: Sequence[str], me: str, now: datetime) -> PermanentError | None:
    """Return why an operation may not begin now; None when it may.

    A living owner is never disturbed. From a dead one the lease may be taken only when it left nothing open: what it
    left open is recovered first.

    :param open_operations: ids of the operations whose journal is open.
    """
    if lease.standing(me, now) == "held":
        return PermanentError(
            "lease-held",
            f"the system is held by {lease.owner()}",
            context={"lease": lease.name, "holder": lease.holder},
            hint="Wait until that operation has ended, or start this one with if_busy = wait.",
        )
    others = sorted(set(open_operations) - {me})
    if others:
        return PermanentError(
            "operation-abandoned",
            f"operation {others[0]} was left open: its changes are neither finished nor undone",
            context={"operation": others[0], "lease": lease.name},
            hint="recover_operation takes it up within two minutes; its report says why when it can't.",
        )
    return None


# ---------------------------------------------------------------------------------------------------------- the fence


def fence_of(found: JsonObject) -> int | None:
    """Return the token that an object is stamped with; None when it has no stamp that can be read."""
    text = str((found["metadata"].get("annotations") or {}).get(FENCE, ""))
    return int(text) if text.isdigit() else None


def fence_test(token: int) -> dict[str, Any]:
    """Return the JSON patch operation that lets a write through only while the object bears this token."""
    return {"op": "test", "path": _FENCE_PATH, "value": str(token)}


def stamp_patch(found: JsonObject, token: int) -> list[dict[str, Any]]:
    """Return the JSON patch that stamps this very object; to be sent with the version that was looked at.

    :raises PermanentError: ``lease-lost`` when a later owner has stamped it.
    """
    stamped = fence_of(found)
    if stamped is not None and stamped > token:
        raise lost(_named(found), f"token {stamped}", token)
    uid = {"op": "test", "path": "/metadata/uid", "value": found["metadata"]["uid"]}
    if found["metadata"].get("annotations"):
        return [uid, {"op": "add", "path": _FENCE_PATH, "value": str(token)}]
    return [uid, {"op": "add", "path": "/metadata/annotations", "value": {FENCE: str(token)}}]


def unstamp_patch(found: JsonObject, token: int) -> list[dict[str, Any]]:
    """Return the JSON patch that takes our stamp away, and only ours."""
    uid = {"op": "test", "path": "/metadata/uid", "value": found["metadata"]["uid"]}
    return [uid, fence_test(token), {"op": "remove", "path": _FENCE_PATH}]


def check_fence(found: JsonObject, token: int) -> None:
    """:raises PermanentError: ``lease-lost`` when the object bears another token than ours, or none."""
    stamped = fence_of(found)
    if stamped != token:
        raise lost(_named(found), "no token" if stamped is None else f"token {stamped}", token)


def lost(what: str, observed: str, token: int) -> PermanentError:
    """Return the error of a process that no longer owns what it was to change."""
    return PermanentError(
        "lease-lost",
        f"{what} has {observed}, this operation holds token {token}: somebody else has taken it over",
        context={"token": token},
        hint="Nothing was changed by this step. kubectl get lease in the maintenance namespace says who owns the system "
        "now; the report of the recovery says what was done.",
    )


def _named(found: JsonObject) -> str:
    return f"{found.get('kind', 'object')}/{found['metadata']['name']}"


def _text(at: datetime) -> str:
    """Return a moment as Kubernetes' MicroTime."""
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
