"""Deploy the system into a lab and bring it back to its first state, by kubectl as a person would."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

import yaml

from lab.config import LabConfig
from lab.failure import LabError
from lab.system import images
from lab.system.seed import seed
from lab.system.variants import (
    COMPONENTS,
    MAINTENANCE_NAMESPACE,
    SYSTEM_NAMESPACE,
    WEAVIATE,
    Variant,
    variant_named,
)
from lab.system.workloads import (
    MANAGED,
    Manifest,
    guards,
    secrets,
    services,
    volume_claims,
    workloads,
)
from lab.waiting import wait_until

MANIFESTS = Path(__file__).resolve().parent / "manifests"
FIELD_MANAGER = "nephoran-lab"
ROLLOUT_LIMIT = timedelta(seconds=180)
INTENTS_LIMIT = timedelta(seconds=60)
INTENT_KINDS = ("networkintents.nephoran.com", "networkintents.intent.nephoran.com")
INTENT_SUCCESS = "Deployed"

ReportStage = Callable[[str], None]


class Kubectl(Protocol):
    """What this module needs of ``lab.cluster.Cluster``."""

    def kubectl(self, *arguments: str, input: str | None = None) -> str:
        """Run kubectl as the administrator and return what it printed."""


def deploy(
    config: LabConfig,
    variant: str = "standard",
    versions: Mapping[str, str] | None = None,
    *,
    progress: ReportStage = lambda stage: None,
) -> None:
    """Deploy the system in a variant and return when every pod is ready, the objects are in and the intents deployed.

    ``versions`` maps components (``weaviate``, ``rag-api`` …, ``operator``) to tags. A component that is not in it keeps
    the image that it runs, or starts at ``v1``: so a second ``up`` does not undo an upgrade. Images are pushed first.
    Raises ``LabError`` when something does not become ready. Safe to repeat: yes.
    """
    shape = variant_named(variant)
    cluster = _cluster(config)
    _check_components(versions or {})
    _prepare(config, cluster, shape, progress)
    manifests = workloads(config, shape, {**dict.fromkeys(COMPONENTS, "v1"), **(versions or {})})
    _keep_running_images(cluster, shape, manifests, chosen=set(versions or {}))
    progress(f"system: {len(manifests)} workloads, variant {variant}")
    _apply(cluster, manifests)
    _finish(config, cluster, shape, progress)


def reset(
    config: LabConfig,
    variant: str = "standard",
    versions: Mapping[str, str] | None = None,
    *,
    progress: ReportStage = lambda stage: None,
) -> None:
    """Put the system back to v1 of a variant, whatever a test did to it, and return when it is ready.

    Unlike ``deploy`` it replaces the workloads, so fields that somebody else set are gone too; it removes intents that
    are not the lab's and journals. It does not care for requests: Weaviate's pods go all at once. The objects in it stay
    as long as its shape does.
    ``versions`` puts single components on other tags than v1. Safe to repeat: yes.
    """
    shape = variant_named(variant)
    cluster = _cluster(config)
    _check_components(versions or {})
    _prepare(config, cluster, shape, progress)
    manifests = workloads(config, shape, {**dict.fromkeys(COMPONENTS, "v1"), **(versions or {})})
    present = {_identity(found) for found in _workloads_present(cluster)}
    progress(f"system: back to the first state of variant {variant}")
    known = [manifest for manifest in manifests if _identity(manifest) in present]
    new = [manifest for manifest in manifests if _identity(manifest) not in present]
    if known:
        cluster.kubectl("replace", "--filename", "-", input=_as_text(known))
    if new:
        _apply(cluster, new)
    _remove_old_weaviate_pods(cluster, shape)
    _remove_foreign_objects(cluster)
    _finish(config, cluster, shape, progress)


def status(config: LabConfig) -> dict[str, Any]:
    """Return per workload its kind, image and how many of its pods are ready."""
    report = {}
    for workload in _workloads_present(_cluster(config)):
        containers = workload["spec"]["template"]["spec"]["containers"]
        report[workload["metadata"]["name"]] = {
            "kind": workload["kind"],
            "images": [container["image"] for container in containers],
            "ready": workload["status"].get("readyReplicas", 0),
            "desired": workload["spec"]["replicas"],
        }
    return report


def _cluster(config: LabConfig) -> Kubectl:
    from lab.cluster import Cluster

    return Cluster(config)


def _check_components(versions: Mapping[str, str]) -> None:
    unknown = sorted(set(versions) - set(COMPONENTS))
    if unknown:
        raise LabError(f"No component is called {', '.join(unknown)}.", hint=f"Choose from {', '.join(COMPONENTS)}.")


def _prepare(config: LabConfig, cluster: Kubectl, shape: Variant, progress: ReportStage) -> None:
    """Push the images and apply everything but the workloads, after removing the workloads of other variants."""
    digests = images.push_all(config, progress)
    progress(f"registry: {len(digests)} image tags are there")
    progress("system: namespaces, definitions, access, Services")
    _apply(cluster, [*_file("namespaces.yaml"), *_file("definitions.yaml")])
    definitions = [manifest["metadata"]["name"] for manifest in _file("definitions.yaml")]
    cluster.kubectl("wait", "--for=condition=Established", "--timeout=30s", "customresourcedefinition", *definitions)
    _remove_other_variants(cluster, shape)
    jobs = _file("jobs.yaml", image=images.image(config, "operator", "v1"))
    _apply(
        cluster,
        [
            *_file("access.yaml"),
            *secrets(config),
            *volume_claims(shape),
            *services(config, shape),
            *guards(shape),
            *_file("monitoring.yaml"),
            *jobs,
        ],
    )


def _finish(config: LabConfig, cluster: Kubectl, shape: Variant, progress: ReportStage) -> None:
    """Apply the intents, wait for the rollouts, fill Weaviate, and wait for the intents."""
    _apply(cluster, _file("intents.yaml"))
    # kubectl watches, so each of these costs one connection; together they take as long as the slowest.
    with ThreadPoolExecutor() as pool:
        rollouts = {
            name: pool.submit(wait_for_rollout, cluster, shape.workload_kind(name), shape.workload_name(name))
            for name in COMPONENTS
        }
        rollouts[WEAVIATE].result()
        progress("system: Weaviate is ready")
        counts = seed(config, shape)
        progress("system: " + ", ".join(f"{count} {name}" for name, count in counts.items()))
        for rollout in rollouts.values():
            rollout.result()
    progress("system: every component is ready")
    wanted = {_identity(intent) for intent in _file("intents.yaml") if intent["kind"] == "NetworkIntent"}
    wait_until(
        f"phase {INTENT_SUCCESS} of all NetworkIntents",
        lambda: wanted <= _deployed_intents(cluster),
        limit=INTENTS_LIMIT,
        interval=timedelta(milliseconds=300),
        explain=lambda: f"Deployed are: {sorted(_deployed_intents(cluster))}",
    )
    progress("system: NetworkIntents are deployed")


def wait_for_rollout(cluster: Kubectl, kind: str, name: str) -> None:
    """Return when a workload is rolled out; fail after ``ROLLOUT_LIMIT``, or when its progress deadline is over."""
    workload, where = f"{kind.lower()}/{name}", f"--namespace={SYSTEM_NAMESPACE}"
    limit = f"--timeout={ROLLOUT_LIMIT.total_seconds():.0f}s"
    if kind == "Deployment":
        # A deadline that was over in the rollout before is still written there for a moment, and would count for this.
        cluster.kubectl("wait", workload, where, limit, "--for=condition=Progressing")
    cluster.kubectl("rollout", "status", workload, where, limit)


def _deployed_intents(cluster: Kubectl) -> set[tuple[str, str, str]]:
    found = _list(cluster, ",".join(INTENT_KINDS), "--all-namespaces")
    return {_identity(intent) for intent in found if intent.get("status", {}).get("phase") == INTENT_SUCCESS}


def _keep_running_images(cluster: Kubectl, shape: Variant, manifests: Iterable[Manifest], *, chosen: set[str]) -> None:
    """Put the image that runs now into the manifests of components whose version was not chosen."""
    present = {_identity(found): found for found in _workloads_present(cluster)}
    kept = {
        (shape.workload_kind(name), shape.workload_name(name)): shape.container_name(name)
        for name in COMPONENTS
        if name not in chosen
    }
    for manifest in manifests:
        running = present.get(_identity(manifest))
        container_name = kept.get((manifest["kind"], manifest["metadata"]["name"]))
        if running is None or container_name is None:
            continue
        for container in manifest["spec"]["template"]["spec"]["containers"]:
            for live in running["spec"]["template"]["spec"]["containers"]:
                if container["name"] == live["name"] == container_name:
                    container["image"] = live["image"]


def _remove_other_variants(cluster: Kubectl, shape: Variant) -> None:
    """Delete workloads that this variant does not have; Weaviate with its volumes when it has another shape."""
    wanted = {(shape.workload_kind(name), shape.workload_name(name)) for name in COMPONENTS}
    for workload in _workloads_present(cluster):
        kind, name = workload["kind"], workload["metadata"]["name"]
        weaviate = any(part["name"] == WEAVIATE for part in workload["spec"]["template"]["spec"]["containers"])
        other_size = weaviate and workload["spec"]["replicas"] != shape.weaviate_replicas
        other_selector = workload["spec"]["selector"]["matchLabels"] != shape.labels(_component_of(workload))
        if (kind, name) in wanted and not other_size and not other_selector:
            continue
        _delete(cluster, kind, name)
        if weaviate:
            # Its nodes remember who their peers were: another number of them can't start from the same volumes.
            claims = [claim["metadata"]["name"] for claim in _list(cluster, "persistentvolumeclaims", _IN_SYSTEM)]
            for claim in claims:
                if claim == "weaviate-pvc" or claim.startswith("data-weaviate-"):
                    _delete(cluster, "persistentvolumeclaim", claim)


def _component_of(workload: Manifest) -> str:
    names = {part["name"] for part in workload["spec"]["template"]["spec"]["containers"]}
    return "operator" if "manager" in names else next(iter(names & set(COMPONENTS)))


def _remove_old_weaviate_pods(cluster: Kubectl, shape: Variant) -> None:
    """Delete the Weaviate pods that are not of the wanted revision, all at once.

    The controller would take them one by one, and would wait for those that never get ready.
    """
    if shape.workload_kind(WEAVIATE) != "StatefulSet":
        return
    stateful = _observed_stateful_set(cluster, shape.workload_name(WEAVIATE))
    selector = ",".join(f"{key}={value}" for key, value in shape.labels(WEAVIATE).items())
    wanted = stateful["status"].get("updateRevision")
    old = [
        pod["metadata"]["name"]
        for pod in _list(cluster, "pods", _IN_SYSTEM, f"--selector={selector}")
        if pod["metadata"]["labels"].get("controller-revision-hash") != wanted
    ]
    if old:
        cluster.kubectl("delete", "pod", *old, _IN_SYSTEM, "--ignore-not-found", "--grace-period=5", "--timeout=120s")


def _observed_stateful_set(cluster: Kubectl, name: str) -> Manifest:
    """Return the StatefulSet once its controller has seen its newest generation."""
    found: list[Manifest] = []

    def observed() -> bool:
        found[:] = [json.loads(cluster.kubectl("get", "statefulset", name, _IN_SYSTEM, "--output=json"))]
        return bool(found[0]["status"].get("observedGeneration", 0) >= found[0]["metadata"]["generation"])

    wait_until("the StatefulSet controller's notice", observed, limit=timedelta(seconds=20))
    return found[0]


def _remove_foreign_objects(cluster: Kubectl) -> None:
    """Delete intents that are not the lab's, and what operations left in the maintenance namespace."""
    ours = {_identity(intent) for intent in _file("intents.yaml")}
    for intent in _list(cluster, ",".join(INTENT_KINDS), "--all-namespaces"):
        if _identity(intent) not in ours:
            group = intent["apiVersion"].partition("/")[0]
            namespace = f"--namespace={intent['metadata']['namespace']}"
            # Not waited for: the operator may be what is broken.
            arguments = (f"networkintents.{group}", intent["metadata"]["name"], namespace, "--wait=false")
            cluster.kubectl("delete", "--ignore-not-found", *arguments)
    where = f"--namespace={MAINTENANCE_NAMESPACE}"
    for config_map in _list(cluster, "configmaps", where):
        if config_map["metadata"]["name"] != "kube-root-ca.crt":
            cluster.kubectl("delete", "--ignore-not-found", "configmap", config_map["metadata"]["name"], where)
    cluster.kubectl("delete", "leases.coordination.k8s.io", "--all", where)


_IN_SYSTEM = f"--namespace={SYSTEM_NAMESPACE}"


def _apply(cluster: Kubectl, manifests: list[Manifest]) -> None:
    arguments = ("--server-side", "--force-conflicts", f"--field-manager={FIELD_MANAGER}", "--filename", "-")
    cluster.kubectl("apply", *arguments, input=_as_text(manifests))


def _delete(cluster: Kubectl, kind: str, name: str, *options: str) -> None:
    cluster.kubectl("delete", "--ignore-not-found", kind.lower(), name, _IN_SYSTEM, "--timeout=120s", *options)


def _workloads_present(cluster: Kubectl) -> list[Manifest]:
    selector = ",".join(f"{key}={value}" for key, value in MANAGED.items())
    return _list(cluster, "deployments.apps,statefulsets.apps", _IN_SYSTEM, f"--selector={selector}")


def _list(cluster: Kubectl, kinds: str, *options: str) -> list[Manifest]:
    return list(json.loads(cluster.kubectl("get", kinds, *options, "--output=json"))["items"])


def _identity(manifest: Manifest) -> tuple[str, str, str]:
    """Return what tells two objects apart: group and kind, namespace, name."""
    group = manifest["apiVersion"].rpartition("/")[0]
    metadata = manifest["metadata"]
    return f"{manifest['kind']}.{group}", metadata.get("namespace", ""), metadata["name"]


def _file(name: str, **values: str) -> list[Manifest]:
    """Read one of the manifests, with ``{name}`` replaced by a value for each of ``values``."""
    text = (MANIFESTS / name).read_text(encoding="utf-8")
    for placeholder, value in values.items():
        text = text.replace(f"{{{placeholder}}}", value)
    return [manifest for manifest in yaml.safe_load_all(text) if manifest]


def _as_text(manifests: list[Manifest]) -> str:
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": manifests})
