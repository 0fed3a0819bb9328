"""How a workload is brought to an intended spec, one safe move at a time. Pure: the same look gives the same move.

The caller looks, makes the move, waits and looks again, so a worker that dies between two moves loses nothing. A
StatefulSet is stepped by its partition from the highest ordinal down, and the next ordinal is only opened when the
caller has seen the one before it answer. On the way back the broken pod goes first: while it is broken, no other that
answers may go away.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

JsonObject = Mapping[str, Any]


@dataclass(frozen=True)
class Move:
    """The next move.

    ``patch``: put the intended template and strategy in place (a StatefulSet with its partition at ``partition``).
    ``open``: lower the partition to ``partition``, which releases the pod of that ordinal.
    ``replace``: delete ``pod``: it is broken, of an older revision, and its controller never would (kubernetes#67250).
    ``wait``: wait until ``ordinal`` and all that the partition releases above it (None: the whole workload) run the
    intended template.
    ``settle``: every pod runs the intended template; put the intended strategy itself back, partition included.
    ``done``: nothing is left to do.
    """

    action: Literal["patch", "open", "replace", "wait", "settle", "done"]
    ordinal: int | None = None
    partition: int | None = None
    pod: str | None = None


def next_move(
    workload: JsonObject, pods: Sequence[JsonObject], *, template_as_intended: bool, strategy_as_intended: bool
) -> Move:
    """Return the next move that brings a workload to its intended spec.

    :param workload: the live object.
    :param pods: its live pods.
    :param template_as_intended: whether the live ``spec.template`` equals the intended one.
    :param strategy_as_intended: whether the live strategy, partition included, equals the intended one.
    """
    if workload["kind"] != "StatefulSet":
        if not (template_as_intended and strategy_as_intended):
            return Move("patch")
        return Move("wait")
    replicas = int(workload["spec"].get("replicas", 1))
    if not template_as_intended:
        return Move("patch", partition=replicas)
    first = int((workload["spec"].get("ordinals") or {}).get("start") or 0)
    status = workload.get("status", {})
    if status.get("observedGeneration", 0) < workload["metadata"].get("generation", 0):
        return Move("wait", ordinal=first + replicas)
    step = _step(pods, range(first, first + replicas), first + partition_of(workload), status)
    if step is None:
        return Move("done") if strategy_as_intended else Move("settle")
    return replace(step, partition=step.ordinal - first) if step.action == "open" and step.ordinal is not None else step


def _step(pods: Sequence[JsonObject], ordinals: range, released: int, status: JsonObject) -> Move | None:
    """Return the next step of a StatefulSet whose template is as intended; None when every pod is.

    On the way back to the revision that the workload came from, old pods that are not ready go first: they answer
    nobody, and with ordered pods they hold up all others. Then new pods are waited for, then the highest old one goes.

    :param released: the lowest ordinal that the partition lets the controller replace.
    """
    revision = status.get("updateRevision")
    # A pod below the partition that goes away comes back in the current revision. That is the new one only here.
    returning = status.get("currentRevision") == revision
    by_ordinal = {ordinal_of(pod): pod for pod in pods}
    old, away, starting = [], [], []
    for ordinal in reversed(ordinals):
        pod = by_ordinal.get(ordinal)
        if pod is None or pod["metadata"].get("deletionTimestamp"):
            away.append(ordinal)
        elif pod["metadata"].get("labels", {}).get("controller-revision-hash") != revision:
            old.append(ordinal)
        elif not is_ready(pod):
            starting.append(ordinal)
    broken = [ordinal for ordinal in old if not is_ready(by_ordinal[ordinal])]
    for ordinal in broken:
        if returning:
            return Move("replace", ordinal=ordinal, pod=by_ordinal[ordinal]["metadata"]["name"])
    for ordinal in sorted([*starting, *away], reverse=True):
        if ordinal in starting or ordinal >= released or returning:
            return Move("wait", ordinal=ordinal)
    for ordinal in sorted([*old, *away], reverse=True):
        if ordinal < released:
            return Move("open", ordinal=ordinal)
        if ordinal in broken:
            return Move("replace", ordinal=ordinal, pod=by_ordinal[ordinal]["metadata"]["name"])
        return Move("wait", ordinal=ordinal)
    return None


def partition_of(workload: JsonObject) -> int:
    """Return the partition of a StatefulSet; 0 when it has none."""
    return int(workload["spec"].get("updateStrategy", {}).get("rollingUpdate", {}).get("partition", 0))


def with_partition(strategy: JsonObject, partition: int) -> dict[str, Any]:
    """Return a StatefulSet's update strategy with another partition."""
    rolling = {**(strategy.get("rollingUpdate") or {}), "partition": partition}
    return {**strategy, "type": "RollingUpdate", "rollingUpdate": rolling}


def ordinal_of(pod: JsonObject) -> int:
    """Return the ordinal of a StatefulSet's pod, from its name."""
    return int(str(pod["metadata"]["name"]).rpartition("-")[2])


def alive(pods: Iterable[JsonObject]) -> list[JsonObject]:
    """Return the pods that count: an evicted pod stays in the list for ever, and one on its way out answers nobody."""
    return [
        pod
        for pod in pods
        if not pod["metadata"].get("deletionTimestamp")
        and (pod.get("status") or {}).get("phase") not in ("Succeeded", "Failed")
    ]


def is_ready(pod: JsonObject) -> bool:
    """Return whether the pod is Ready and not on its way out."""
    if pod["metadata"].get("deletionTimestamp"):
        return False
    conditions = pod.get("status", {}).get("conditions", ())
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)
