"""Which pods of a workload belong to the revision that is being rolled out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

JsonObject = Mapping[str, Any]

REVISION_LABELS = {"Deployment": "pod-template-hash", "DaemonSet": "controller-revision-hash"}
LIST_KEYS = ("name", "mountPath", "containerPort", "key", "topologyKey")
"""Fields that tell the items of a list of objects apart, so that an item added on the way in is no difference."""


def owned_pods(workload: JsonObject, pods: Iterable[JsonObject]) -> list[JsonObject]:
    """Return the pods that the workload's controller made; a selector may match others' pods too."""
    wanted = "ReplicaSet" if workload["kind"] == "Deployment" else workload["kind"]
    return [pod for pod in pods if _owner_kind(pod) in (wanted, None)]


def _owner_kind(pod: JsonObject) -> str | None:
    for owner in pod["metadata"].get("ownerReferences") or ():
        if owner.get("controller"):
            return str(owner["kind"])
    return None


def current_revision_pods(workload: JsonObject, pods: Sequence[JsonObject]) -> list[JsonObject]:
    """Return the pods of the revision that the workload's spec asks for now, terminating and finished ones included.

    A StatefulSet says its revision. A Deployment and a DaemonSet don't, so the pods' own revision labels group them and
    the group that fits the template best is taken. That is also right for a change that keeps the image (a policy),
    for a return to an older revision that still has pods, and where an admission webhook adds to every pod. The caller
    makes sure that the controller has observed the spec.
    """
    status = workload.get("status") or {}
    if workload["kind"] == "StatefulSet":
        revision = status.get("updateRevision")
        return [pod for pod in pods if revision and _label(pod, "controller-revision-hash") == revision]
    updated = status.get("updatedReplicas" if workload["kind"] == "Deployment" else "updatedNumberScheduled")
    if not updated:
        return []
    groups: dict[str, list[JsonObject]] = defaultdict(list)
    for pod in pods:
        groups[_label(pod, REVISION_LABELS[workload["kind"]]) or pod["metadata"]["name"]].append(pod)
    if not groups:
        return []
    template = workload["spec"]["template"]
    fits = {key: min(differences(template, pod) for pod in group) for key, group in groups.items()}
    least = min(fits.values())
    equals = [key for key, count in fits.items() if count == least]
    if least == 0:
        return [pod for key in equals for pod in groups[key]]
    return groups[max(equals, key=lambda key: _newest(groups[key]))]


def _label(pod: JsonObject, name: str) -> str:
    return str((pod["metadata"].get("labels") or {}).get(name) or "")


def _newest(pods: Iterable[JsonObject]) -> str:
    return max(str(pod["metadata"].get("creationTimestamp") or "") for pod in pods)


def differences(template: JsonObject, pod: JsonObject) -> int:
    """Return in how many places a pod is not what a template says. What the template leaves open may be anything."""
    metadata = template.get("metadata") or {}
    return (
        _missing(metadata.get("labels") or {}, pod["metadata"].get("labels") or {})
        + _missing(metadata.get("annotations") or {}, pod["metadata"].get("annotations") or {})
        + _missing(template.get("spec") or {}, pod.get("spec") or {})
    )


def _missing(wanted: Any, found: Any) -> int:
    """Return the number of leaves of ``wanted`` that are not in ``found``; empty values ask for nothing."""
    if isinstance(wanted, Mapping):
        held = found if isinstance(found, Mapping) else {}
        return sum(_missing(value, held.get(key)) for key, value in wanted.items())
    if isinstance(wanted, list):
        return sum(_missing(item, _counterpart(item, found)) for item in wanted)
    if wanted in ("", None):
        return 0
    return 0 if wanted == found else 1


def _counterpart(item: Any, found: Any) -> Any:
    if not isinstance(found, list):
        return None
    if item in found:
        return item
    if isinstance(item, Mapping):
        for key in LIST_KEYS:
            if key in item:
                same = (other for other in found if isinstance(other, Mapping) and other.get(key) == item[key])
                return next(same, None)
    return None
