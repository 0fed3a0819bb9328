"""Who else writes a workload: reconcilers are refused by name, other owners are named."""

from __future__ import annotations

from typing import Any

import pytest

from nephoran_maintenance.domain.ownership import check_ownership
from tests.unit.domain.kubernetes_objects import deployment

CONTAINERS = {"rag-api": "rag-api"}


def workload(
    labels: dict[str, str] | None = None, annotations: dict[str, str] | None = None, *managers: dict[str, Any]
) -> dict[str, Any]:
    found = deployment()
    metadata = {**found["metadata"], "labels": labels or {}, "annotations": annotations or {}}
    return {**found, "metadata": {**metadata, "managedFields": list(managers)}}


def manager(name: str, container: str = "rag-api", field: str = "f:image") -> dict[str, Any]:
    template = {"f:spec": {"f:containers": {f'k:{{"name":"{container}"}}': {".": {}, field: {}}}}}
    return {"manager": name, "operation": "Update", "fieldsV1": {"f:spec": {"f:template": template}}}


def only(found: dict[str, Any]) -> Any:
    findings = check_ownership({"rag-api": found}, CONTAINERS)
    assert len(findings) == 1
    assert findings[0].severity == "pass" or findings[0].hint
    return findings[0]


@pytest.mark.parametrize(
    ("found", "tool"),
    [
        pytest.param(workload(annotations={"argocd.argoproj.io/tracking-id": "a:b"}), "Argo CD", id="argo-annotation"),
        pytest.param(workload(labels={"argocd.argoproj.io/instance": "a"}), "Argo CD", id="argo-label"),
        pytest.param(
            workload(None, None, manager("argocd-controller", field="f:env")), "Argo CD", id="argo-field-manager"
        ),
        pytest.param(workload(labels={"kustomize.toolkit.fluxcd.io/name": "a"}), "Flux", id="flux-kustomize"),
        pytest.param(workload(labels={"helm.toolkit.fluxcd.io/name": "a"}), "Flux", id="flux-helm"),
        pytest.param(workload(None, None, manager("helm-controller")), "Flux", id="flux-field-manager"),
        pytest.param(
            workload(annotations={"configmanagement.gke.io/managed": "enabled"}), "Config Sync", id="config-sync"
        ),
    ],
)
def test_an_active_reconciler_blocks_by_its_name(found: dict[str, Any], tool: str) -> None:
    finding = only(found)
    assert finding.severity == "block"
    assert tool in finding.observed
    assert tool in finding.hint


@pytest.mark.parametrize(
    "found",
    [
        pytest.param(
            workload({"kustomize.toolkit.fluxcd.io/name": "a"}, {"kustomize.toolkit.fluxcd.io/reconcile": "disabled"}),
            id="flux",
        ),
        pytest.param(workload(None, {"configmanagement.gke.io/managed": "disabled"}), id="config-sync"),
    ],
)
def test_an_object_that_was_taken_out_of_its_care_passes(found: dict[str, Any]) -> None:
    assert only(found).severity == "pass"


@pytest.mark.parametrize("name", ["helm", "kubectl-client-side-apply", "kubectl-edit"])
def test_another_owner_of_the_image_is_named(name: str) -> None:
    finding = only(workload(None, None, manager(name), manager("kube-controller-manager", field="f:env")))
    assert finding.severity == "warn"
    assert finding.observed == f"the image was last set by {name}"


@pytest.mark.parametrize(
    "managers",
    [
        pytest.param([], id="none"),
        pytest.param([manager("nephoran-maintenance")], id="ourselves"),
        pytest.param([manager("helm", container="log-shipper")], id="another-container"),
        pytest.param([manager("helm", field="f:env")], id="another-field"),
        pytest.param([{"manager": "helm"}], id="no-fields"),
    ],
)
def test_nobody_else_passes(managers: list[dict[str, Any]]) -> None:
    assert only(workload(None, None, *managers)).severity == "pass"


def test_every_component_has_its_finding() -> None:
    found = workload(labels={"helm.toolkit.fluxcd.io/name": "a"})
    findings = check_ownership({"rag-api": found, "b": workload()}, {"rag-api": "rag-api", "b": "b"})
    assert [finding.severity for finding in findings] == ["block", "pass"]
    assert findings[0].object.startswith("rag-api (Deployment/")
