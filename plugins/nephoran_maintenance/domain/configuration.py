"""Where the configuration of a workload lives: the ConfigMaps, Secrets, claims and accounts that its pods refer to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from nephoran_maintenance.domain.capture import ROOT, Served, path_of

JsonObject = Mapping[str, Any]

WITH_PODS = frozenset(  # ReplicaSets and Jobs of a workload's past may need what is rightly gone
    {
        ("apps", "Deployment"),
        ("apps", "StatefulSet"),
        ("apps", "DaemonSet"),
        ("batch", "CronJob"),
    }
)
SERVED = {
    kind: Served("", "v1", plural, kind, True)
    for kind, plural in (
        ("ConfigMap", "configmaps"),
        ("Secret", "secrets"),
        ("PersistentVolumeClaim", "persistentvolumeclaims"),
        ("ServiceAccount", "serviceaccounts"),
    )
}
MADE_IN_EVERY_NAMESPACE = frozenset({("ConfigMap", "kube-root-ca.crt"), ("ServiceAccount", "default")})


def pod_spec_of(workload: JsonObject) -> JsonObject:
    """Return the spec of the pods that a workload makes."""
    spec = workload.get("spec") or {}
    if "jobTemplate" in spec:
        spec = spec["jobTemplate"].get("spec") or {}
    return (spec.get("template") or {}).get("spec") or {}


def references_of(pod_spec: JsonObject) -> set[tuple[str, str]]:
    """Return kind and name of everything that a pod can't start without; what is marked optional is not in it."""
    return {
        (kind, str(reference["name"]))
        for kind, reference in _references(pod_spec)
        if reference.get("name") and not reference.get("optional")
    } - MADE_IN_EVERY_NAMESPACE


def _references(pod_spec: JsonObject) -> Iterator[tuple[str, JsonObject]]:
    yield "ServiceAccount", {"name": pod_spec.get("serviceAccountName") or pod_spec.get("serviceAccount")}
    for volume in pod_spec.get("volumes") or ():
        yield from _of_volume(volume)
    for field in ("initContainers", "containers", "ephemeralContainers"):
        for container in pod_spec.get(field) or ():
            for source in container.get("envFrom") or ():
                yield "ConfigMap", source.get("configMapRef") or {}
                yield "Secret", source.get("secretRef") or {}
            for variable in container.get("env") or ():
                source = variable.get("valueFrom") or {}
                yield "ConfigMap", source.get("configMapKeyRef") or {}
                yield "Secret", source.get("secretKeyRef") or {}


def _of_volume(volume: JsonObject) -> Iterator[tuple[str, JsonObject]]:
    yield "ConfigMap", volume.get("configMap") or {}
    secret = volume.get("secret") or {}
    yield "Secret", {"name": secret.get("secretName"), "optional": secret.get("optional")}
    yield "PersistentVolumeClaim", {"name": (volume.get("persistentVolumeClaim") or {}).get("claimName")}
    for source in (volume.get("projected") or {}).get("sources") or ():
        yield "ConfigMap", source.get("configMap") or {}
        yield "Secret", source.get("secret") or {}


def missing_references(wanted: Mapping[str, Iterable[tuple[str, str]]], paths: Iterable[str]) -> list[str]:
    """Return what workloads need and a backup does not hold, as ``<namespace>: <kind> <name>``, sorted.

    :param wanted: kinds and names by namespace.
    :param paths: of everything that belongs to the backup.
    """
    held = set(paths)
    return sorted(
        f"{namespace}: {kind} {name}"
        for namespace, references in wanted.items()
        for kind, name in references
        if f"{ROOT}/objects/{path_of(SERVED[kind], namespace, name)}" not in held
    )
