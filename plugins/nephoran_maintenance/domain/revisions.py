"""Which pods of a workload belong to the revision that is being rolled out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

JsonObject = Mapping[str, Any]

REVISION_LABELS = {"Deployment": "pod-template-hash", "DaemonSet": "controller-revision-hash"}
CONTROLLER_LABELS = frozenset(
    {
        "pod-template-hash",
        "controller-revision-hash",
        "pod-template-generation",
        "statefulset.kubernetes.io/pod-name",
        "apps.kubernetes.io/pod-index",
    }
)
"""Labels that controllers put on pods and no template has."""
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
        groups[_label(pod, REVISION_LABELS[workload["kind"]])].append(pod)
    if not groups:
        return []
    template = workload["spec"]["template"]
    fits = {key: min(differences(template, pod) for pod in group) for key, group in groups.items()}
    least = min(fits.values())
    return groups[max((key for key in groups if fits[key] == least), key=lambda key: _newest(groups[key]))]


def _label(pod: JsonObject, name: str) -> str:
    return str((pod["metadata"].get("labels") or {}).get(name) or "")


def _newest(pods: Iterable[JsonObject]) -> str:
    return max(str(pod["metadata"].get("creationTimestamp") or "") for pod in pods)


def differences(template: JsonObject, pod: JsonObject) -> tuple[int, int, int]:
    """Return how far a pod is from a template; the smaller of two such answers is the better fit.

    First what the template says and the pod does not; then what the pod's containers and labels have beyond it (a
    return to a template without a probe leaves pods behind that have one); then annotations beyond it, which come last
    because the network and the kubelet write some of their own.
    """
    metadata, found = template.get("metadata") or {}, pod["metadata"]
    spec, pod_spec = template.get("spec") or {}, pod.get("spec") or {}
    labels = {key: value for key, value in (found.get("labels") or {}).items() if key not in CONTROLLER_LABELS}
    missing = (
        _missing(metadata.get("labels") or {}, labels)
        + _missing(metadata.get("annotations") or {}, found.get("annotations") or {})
        + _missing(spec, pod_spec)
    )
    beyond = _missing(labels, metadata.get("labels") or {}) + sum(
        _missing(pod_spec.get(field) or [], spec.get(field) or []) for field in ("containers", "initContainers")
    )
    return missing, beyond, _missing(found.get("annotations") or {}, metadata.get("annotations") or {})


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
