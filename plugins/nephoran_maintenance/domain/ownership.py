"""Who else writes a workload: a reconciler that would undo the change is refused, any other owner is named.

The marks are those that the tools themselves put on what they manage: Argo CD's tracking (its documentation, Resource
Tracking), Flux's labels and its switch per object, Config Sync's annotation (its documentation, Managing objects).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from nephoran_maintenance.domain.findings import Finding
from nephoran_maintenance.settings import FIELD_MANAGER

JsonObject = Mapping[str, Any]
CHECK = "ownership"


@dataclass(frozen=True)
class Reconciler:
    """A tool that puts back what somebody else has changed, and how it is recognised.

    :param marks: labels and annotations that it sets; a value of None means any value.
    :param managers: beginnings of its names as a field manager.
    :param off: label or annotation with which a person takes one object out of its care; None: it knows none.
    """

    name: str
    marks: tuple[tuple[str, str | None], ...]
    managers: tuple[str, ...]
    off: tuple[str, str] | None
    remedy: str

    def owns(self, workload: JsonObject) -> bool:
        """Return whether it looks after this object now."""
        metadata = workload["metadata"]
        marks = {**(metadata.get("labels") or {}), **(metadata.get("annotations") or {})}
        if self.off is not None and marks.get(self.off[0]) == self.off[1]:
            return False
        marked = any(key in marks and value in (None, marks[key]) for key, value in self.marks)
        return marked or any(manager.startswith(self.managers) for manager, _ in field_managers(workload))


RECONCILERS = (
    Reconciler(
        "Argo CD",
        (("argocd.argoproj.io/tracking-id", None), ("argocd.argoproj.io/instance", None)),
        ("argocd-",),
        None,
        "Change the image where Argo CD reads it, or take the object out of its Application.",
    ),
    Reconciler(
        "Flux",
        (("kustomize.toolkit.fluxcd.io/name", None), ("helm.toolkit.fluxcd.io/name", None)),
        ("kustomize-controller", "helm-controller"),
        ("kustomize.toolkit.fluxcd.io/reconcile", "disabled"),
        "Change the image where Flux reads it, or annotate the object with kustomize.toolkit.fluxcd.io/reconcile=disabled.",
    ),
    Reconciler(
        "Config Sync",
        (("configmanagement.gke.io/managed", "enabled"),),
        ("configsync.gke.io",),
        ("configmanagement.gke.io/managed", "disabled"),
        "Change the image where Config Sync reads it, or set configmanagement.gke.io/managed: disabled there.",
    ),
)


def check_ownership(workloads: Mapping[str, JsonObject], containers: Mapping[str, str]) -> list[Finding]:
    """Refuse what an active reconciler looks after; name everybody else who has set the image.

    :param workloads: live workload by component.
    :param containers: name of the container that carries the image, by component.
    """
    findings = []
    for component, workload in workloads.items():
        name = f"{component} ({workload['kind']}/{workload['metadata']['name']})"
        reconciler = next((found for found in RECONCILERS if found.owns(workload)), None)
        others = sorted(set(image_owners(workload, containers[component])) - {FIELD_MANAGER})
        expected = "no active reconciler"
        if reconciler is not None:
            text = f"managed by {reconciler.name}, which would undo the change"
            findings.append(Finding(CHECK, "block", name, text, expected, reconciler.remedy))
        elif others:
            hint = "It is taken over; carry the new image over to where it came from, or it comes back with the next deploy."
            findings.append(
                Finding(CHECK, "warn", name, f"the image was last set by {', '.join(others)}", expected, hint)
            )
        else:
            findings.append(Finding(CHECK, "pass", name, "nobody else sets the image", expected))
    return findings


def field_managers(workload: JsonObject) -> Iterator[tuple[str, JsonObject]]:
    """Yield each field manager of an object with the fields that it owns."""
    for entry in workload["metadata"].get("managedFields") or ():
        yield str(entry.get("manager", "")), entry.get("fieldsV1") or {}


def image_owners(workload: JsonObject, container: str) -> Iterator[str]:
    """Yield the field managers that have set the image of one container of the template."""
    key = f"k:{json.dumps({'name': container}, separators=(',', ':'))}"
    for manager, fields in field_managers(workload):
        found: Any = fields
        for part in ("f:spec", "f:template", "f:spec", "f:containers", key):
            found = found.get(part) or {}
        if "f:image" in found:
            yield manager
