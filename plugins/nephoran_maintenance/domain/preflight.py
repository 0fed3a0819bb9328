"""The checks of preflight: plain data in, findings out. What could not be read never reaches these functions as good."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from nephoran_maintenance.domain.findings import Finding, Severity
from nephoran_maintenance.domain.pod_failures import has_condition

JsonObject = Mapping[str, Any]

RECENT_RESTART = timedelta(hours=1)
VOLUME_WARN_RATIO = 0.80
VOLUME_BLOCK_RATIO = 0.95
_FACTORS = {
    **{suffix: Decimal(1000) ** power for power, suffix in enumerate("num", start=-3)},
    **{suffix: Decimal(1000) ** power for power, suffix in enumerate(("", "k", "M", "G", "T", "P", "E"))},
    **{suffix: Decimal(1024) ** power for power, suffix in enumerate(("Ki", "Mi", "Gi", "Ti", "Pi", "Ei"), start=1)},
}
_QUANTITY = re.compile(r"([+-]?[0-9.]+(?:[eE][+-]?[0-9]+)?)([A-Za-z]*)")


def quantity(text: object) -> Decimal:
    """Return a Kubernetes quantity (``100m``, ``1Gi``, ``1e3``, ``2``) as a number in its base unit.

    :raises ValueError: when it is none.
    """
    found = _QUANTITY.fullmatch(str(text).strip())
    if found is None or found.group(2) not in _FACTORS:
        raise ValueError(f"{text!r} is no quantity")
    return Decimal(found.group(1)) * _FACTORS[found.group(2)]


def check_pods(pods: Sequence[JsonObject], now: datetime) -> list[Finding]:
    """Every pod must be Ready; pods of finished Jobs don't count. A restart in the last hour warns."""
    findings = []
    counted = 0
    for pod in pods:
        status = pod.get("status") or {}
        phase = status.get("phase")
        if phase == "Succeeded" or (phase == "Failed" and _owned_by_job(pod)):
            continue
        counted += 1
        name = f"Pod/{pod['metadata']['name']}"
        if pod["metadata"].get("deletionTimestamp"):
            findings.append(Finding("pods", "warn", name, "terminating", "Ready", "Wait until it is gone."))
        elif not has_condition(pod, "Ready"):
            reason = _waiting_reason(status)
            observed = f"{phase}, not Ready{f': {reason}' if reason else ''}"
            findings.append(
                Finding("pods", "block", name, observed, "Ready", f"kubectl describe {name.lower()}; mend it first.")
            )
        findings += _restarts(name, status, now)
    if not counted:
        return [
            Finding("pods", "block", "the system", "no pods", "the system's pods", "Check the profile's namespace.")
        ]
    if not any(finding.severity == "block" for finding in findings):
        findings.append(Finding("pods", "pass", f"{counted} pods", "all Ready", "all Ready"))
    return findings


def _owned_by_job(pod: JsonObject) -> bool:
    return any(owner.get("kind") == "Job" for owner in pod["metadata"].get("ownerReferences") or ())


def _waiting_reason(status: JsonObject) -> str:
    for entry in status.get("containerStatuses") or ():
        waiting = (entry.get("state") or {}).get("waiting") or {}
        if waiting.get("reason"):
            return str(waiting["reason"])
    return ""


def _restarts(name: str, status: JsonObject, now: datetime) -> list[Finding]:
    findings = []
    for entry in status.get("containerStatuses") or ():
        ended = ((entry.get("lastState") or {}).get("terminated") or {}).get("finishedAt")
        if entry.get("restartCount") and ended and now - datetime.fromisoformat(ended) < RECENT_RESTART:
            findings.append(
                Finding(
                    "pods",
                    "warn",
                    name,
                    f"container {entry['name']} restarted at {ended}, {entry['restartCount']} times in all",
                    "no restart in the last hour",
                    "Read the log of the container before the restart (kubectl logs --previous).",
                )
            )
    return findings


def check_intents(active: int, limit: int, waited: timedelta, groups: Sequence[str]) -> list[Finding]:
    """Fewer than ``limit`` NetworkIntents may be in work, over all groups."""
    where = f"networkintents of {', '.join(groups)}" if groups else "networkintents"
    if not groups:
        return [
            Finding(
                "intents",
                "block",
                where,
                "no served group",
                "at least one group of networkintents",
                "Install the CRDs, or correct intents.groups in the profile.",
            )
        ]
    if active < limit:
        return [Finding("intents", "pass", where, f"{active} in work", f"fewer than {limit} in work")]
    return [
        Finding(
            "intents",
            "block",
            where,
            f"{active} in work after waiting {int(waited.total_seconds())} s",
            f"fewer than {limit} in work",
            "Let the intents finish, or find out why they don't: read .status.phase and the operator's log.",
        )
    ]


def check_rollouts(workloads: Mapping[str, JsonObject]) -> list[Finding]:
    """No component may be rolling or paused, or a DaemonSet whose pods only a person replaces.

    :param workloads: live workload by component.
    """
    findings = []
    for component, workload in workloads.items():
        spec, status, metadata = workload["spec"], workload.get("status") or {}, workload["metadata"]
        wanted = (
            int(status.get("desiredNumberScheduled", 0)) if workload["kind"] == "DaemonSet" else spec.get("replicas", 1)
        )
        name = f"{workload['kind']}/{metadata['name']}"
        problem, hint = "", f"kubectl rollout status {name.lower()}."
        if spec.get("paused"):
            problem, hint = "paused", f"kubectl rollout resume {name.lower()}."
        elif status.get("observedGeneration", 0) < metadata.get("generation", 0):
            problem = "changed and not yet seen by its controller"
        elif workload["kind"] == "Deployment" and (
            status.get("updatedReplicas", 0) < wanted
            or status.get("replicas", 0) > status.get("updatedReplicas", 0)
            or status.get("availableReplicas", 0) < wanted
        ):
            problem = f"{status.get('updatedReplicas', 0)} of {wanted} updated, {status.get('availableReplicas', 0)} available"
        elif workload["kind"] == "StatefulSet":
            partition = ((spec.get("updateStrategy") or {}).get("rollingUpdate") or {}).get("partition", 0)
            if partition:
                problem = f"partition {partition}: left behind by an unfinished change"
            elif status.get("currentRevision") != status.get("updateRevision"):
                problem = "between two revisions"
            elif status.get("readyReplicas", 0) < wanted:
                problem = f"{status.get('readyReplicas', 0)} of {wanted} ready"
        elif workload["kind"] == "DaemonSet" and (spec.get("updateStrategy") or {}).get("type") == "OnDelete":
            problem = "its update strategy is OnDelete: no pod would be replaced"
            hint = "Give it the strategy RollingUpdate, or leave it out."
        elif workload["kind"] == "DaemonSet" and (
            status.get("updatedNumberScheduled", 0) < wanted or status.get("numberAvailable", 0) < wanted
        ):
            problem = (
                f"{status.get('updatedNumberScheduled', 0)} of {wanted} updated, "
                f"{status.get('numberAvailable', 0)} available"
            )
        if problem:
            findings.append(Finding("rollouts", "block", f"{component} ({name})", problem, "rolled out", hint))
        elif not wanted:
            findings.append(
                Finding(
                    "rollouts",
                    "block",
                    f"{component} ({name})",
                    "scaled to zero",
                    "at least one replica",
                    "Scale it up, or leave it out.",
                )
            )
        else:
            severity: Severity = "pass"
            findings.append(Finding("rollouts", severity, f"{component} ({name})", "rolled out", "rolled out"))
            if wanted == 1 and workload["kind"] == "StatefulSet":
                findings.append(
                    Finding(
                        "rollouts",
                        "warn",
                        f"{component} ({name})",
                        "one replica",
                        "at least two for no downtime",
                        "It will be away while its only pod is replaced; the report states the measured gap.",
                    )
                )
    return findings


PLENTY = 10**6
"""How many pods fit where nothing that they need is limited."""
DEFAULT_SURGE = "25%"
"""Of a Deployment that does not say otherwise, as the API server fills it in."""


@dataclass(frozen=True)
class Surge:
    """How many pods a rollout runs beside those that are wanted, and which."""

    workload: JsonObject
    pods: int


def surge_of(deployment: JsonObject, policy_surge: int | None) -> Surge:
    """Return the surge of a Deployment, at most as many as it has replicas; a share of them is rounded up.

    The larger of the live strategy's and the policy's counts: the change goes by the policy, the way back by what was
    there before.

    :param policy_surge: ``max_surge`` of the profile's policy; None: the live strategy stays.
    """
    spec = deployment["spec"]
    replicas = int(spec.get("replicas", 1))
    strategy = spec.get("strategy") or {}
    live: int | str = 0
    if strategy.get("type", "RollingUpdate") == "RollingUpdate":
        live = (strategy.get("rollingUpdate") or {}).get("maxSurge", DEFAULT_SURGE)
    if isinstance(live, str):
        live = math.ceil(Decimal(live.rstrip("%")) * replicas / 100) if live.endswith("%") else int(live)
    return Surge(deployment, min(replicas, max(live, policy_surge or 0)))


def check_headroom(
    nodes: Sequence[JsonObject], pods: Sequence[JsonObject], surges: Mapping[str, Surge]
) -> list[Finding]:
    """The pods that each surge adds must fit on the nodes, one component after the other.

    :param nodes: all nodes.
    :param pods: all pods of all namespaces that are not finished.
    :param surges: by component, only of those that surge.
    """
    free: dict[str, dict[str, Decimal]] = {}
    for node in nodes:
        if node["spec"].get("unschedulable") or any(
            taint["effect"] in ("NoSchedule", "NoExecute") for taint in node["spec"].get("taints") or ()
        ):
            continue
        if not has_condition(node, "Ready"):
            continue
        allocatable = node["status"]["allocatable"]
        free[node["metadata"]["name"]] = {key: quantity(allocatable[key]) for key in ("cpu", "memory", "pods")}
    for pod in pods:
        room = free.get(pod["spec"].get("nodeName", ""))
        if room is not None and (pod.get("status") or {}).get("phase") not in ("Succeeded", "Failed"):
            for key, value in _requests(pod["spec"]).items():
                room[key] -= value
            room["pods"] -= 1
    if not free:
        return [
            Finding("headroom", "block", "nodes", "none is Ready and schedulable", "at least one", "kubectl get nodes.")
        ]
    findings = []
    for component, surge in surges.items():
        needed = {**_requests(surge.workload["spec"]["template"]["spec"]), "pods": Decimal(1)}
        fits = sum(_places(room, needed) for room in free.values()) >= surge.pods
        want = f"{needed['cpu'] * 1000:.0f}m CPU, {needed['memory'] / 2**20:.0f} MiB free on one node"
        want += f" for each of {surge.pods} pods" if surge.pods != 1 else ""
        best = max(free.values(), key=lambda room: room["cpu"])
        seen = f"at most {best['cpu'] * 1000:.0f}m CPU, {best['memory'] / 2**20:.0f} MiB, {best['pods']} pods free"
        if fits:
            findings.append(Finding("headroom", "pass", f"surge of {component}", seen, want))
        else:
            findings.append(
                Finding(
                    "headroom",
                    "block",
                    f"surge of {component}",
                    seen,
                    want,
                    f"Free or add capacity for {surge.pods} more, or lower maxSurge.",
                )
            )
    return findings


def _places(room: Mapping[str, Decimal], needed: Mapping[str, Decimal]) -> int:
    """Return how many such pods fit into the room of a node; what a pod does not ask for does not limit it."""
    return max(
        0, min(int(room[key] // amount) if amount else PLENTY * (room[key] >= 0) for key, amount in needed.items())
    )


def _requests(spec: JsonObject) -> dict[str, Decimal]:
    """Return what the scheduler counts for a pod: its containers and sidecars, or its largest init container."""
    return _amounts(spec, "requests")


def _amounts(spec: JsonObject, field: str) -> dict[str, Decimal]:
    starting = spec.get("initContainers") or ()
    staying = [*(spec.get("containers") or ()), *(c for c in starting if c.get("restartPolicy") == "Always")]
    total = {}
    for key in ("cpu", "memory"):
        most = max((_amount(container, field, key) for container in starting), default=Decimal(0))
        total[key] = max(sum((_amount(container, field, key) for container in staying), Decimal(0)), most)
        total[key] += quantity((spec.get("overhead") or {}).get(key, 0))
    return total


def _amount(container: JsonObject, field: str, key: str) -> Decimal:
    """Return a container's request or limit; a request that is missing is its limit, as for the API server."""
    resources = container.get("resources") or {}
    found = (resources.get(field) or {}).get(key)
    if found is None and field == "requests":
        found = (resources.get("limits") or {}).get(key)
    return quantity(found or 0)


def check_quotas(quotas: Sequence[JsonObject], surges: Mapping[str, Surge]) -> list[Finding]:
    """A ResourceQuota must leave room for the largest surge."""
    findings = []
    specs = [(surge.workload["spec"]["template"]["spec"], surge.pods) for surge in surges.values()]
    for quota in quotas:
        status = quota.get("status") or {}
        for resource, hard in (status.get("hard") or {}).items():
            field, _, key = resource.rpartition(".")
            if resource in ("pods", "count/pods"):
                needed = Decimal(max((pods for _, pods in specs), default=0))
            elif key in ("cpu", "memory") and field in ("", "requests", "limits"):
                amounts = (_amounts(spec, field or "requests")[key] * pods for spec, pods in specs)
                needed = max(amounts, default=Decimal(0))
            else:
                continue
            left = quantity(hard) - quantity((status.get("used") or {}).get(resource, 0))
            if left < needed:
                findings.append(
                    Finding(
                        "headroom",
                        "block",
                        f"ResourceQuota/{quota['metadata']['name']}",
                        f"{left:f} {resource} left",
                        f"at least {needed:f} {resource} for the surge",
                        "Raise the quota, or free what it counts.",
                    )
                )
    return findings


def check_volumes(claims: Sequence[JsonObject], usage: Mapping[str, float] | None) -> list[Finding]:
    """Every claim must be Bound and have room.

    :param usage: used share of each claim where the kubelet's statistics were available, else None.
    """
    findings = []
    for claim in claims:
        name = f"PersistentVolumeClaim/{claim['metadata']['name']}"
        phase = (claim.get("status") or {}).get("phase")
        if phase != "Bound":
            findings.append(Finding("volumes", "block", name, str(phase), "Bound", f"kubectl describe {name.lower()}."))
            continue
        share = None if usage is None else usage.get(claim["metadata"]["name"])
        if share is None:
            findings.append(Finding("volumes", "pass", name, "Bound, usage not measured", "Bound"))
        else:
            severity: Severity = (
                "block" if share >= VOLUME_BLOCK_RATIO else "warn" if share >= VOLUME_WARN_RATIO else "pass"
            )
            hint = "" if severity == "pass" else "Enlarge the volume, or free space on it."
            findings.append(
                Finding("volumes", severity, name, f"Bound, {share:.0%} used", f"below {VOLUME_WARN_RATIO:.0%}", hint)
            )
    return findings or [Finding("volumes", "pass", "PersistentVolumeClaims", "none", "all Bound")]


def volume_usage(summaries: Sequence[JsonObject], namespace: str) -> dict[str, float]:
    """Return the used share of each claim of a namespace from the kubelets' statistics."""
    usage = {}
    for node in summaries:
        for pod in node.get("pods") or ():
            for volume in pod.get("volume") or ():
                claim = volume.get("pvcRef") or {}
                if claim.get("namespace") == namespace and volume.get("capacityBytes"):
                    usage[claim["name"]] = volume.get("usedBytes", 0) / volume["capacityBytes"]
    return usage


def check_disruption_budgets(budgets: Sequence[JsonObject], *, drains: bool) -> list[Finding]:
    """A budget that allows no disruption blocks a drain; a rollout evicts nobody, so there it only warns."""
    findings = []
    for budget in budgets:
        name = f"PodDisruptionBudget/{budget['metadata']['name']}"
        status = budget.get("status") or {}
        allowed, expected = int(status.get("disruptionsAllowed", 0)), int(status.get("expectedPods", 0))
        if allowed or not expected:
            findings.append(Finding("disruption", "pass", name, f"{allowed} disruptions allowed", "at least 1"))
        else:
            findings.append(
                Finding(
                    "disruption",
                    "block" if drains else "warn",
                    name,
                    f"0 disruptions allowed, {status.get('currentHealthy')} of {expected} healthy",
                    "at least 1",
                    "A rollout is not held back by it; a drain of a node would be.",
                )
            )
    return findings or [Finding("disruption", "pass", "PodDisruptionBudgets", "none", "none that allows nothing")]


def check_autoscalers(autoscalers: Sequence[JsonObject]) -> list[Finding]:
    """An autoscaler that is moving changes replicas under the change's feet; one that has not said blocks as well.

    Kubernetes leaves ``currentReplicas`` out when it is 0; without conditions too, the controller has not looked yet.
    """
    findings = []
    for scaler in autoscalers:
        name = f"HorizontalPodAutoscaler/{scaler['metadata']['name']}"
        status = scaler.get("status") or {}
        current, desired = status.get("currentReplicas"), status.get("desiredReplicas") or 0
        if current is None and status.get("conditions"):
            current = 0
        seen, severity, hint = f"{current} replicas, {desired} desired", "pass", ""
        if current is None:
            seen, severity = "not measured: its controller has not looked at it yet", "block"
            hint = "Wait until kubectl get hpa shows its replicas."
        elif current and not desired:
            seen, severity = f"{current} replicas, desired ones not measured", "warn"
            hint = "It has no metrics, and may begin to move once it gets some (kubectl describe hpa)."
        elif current != desired:
            severity, hint = "block", "Wait until it has settled (kubectl get hpa)."
        findings.append(Finding("disruption", severity, name, seen, "not moving", hint))  # type: ignore[arg-type]
    return findings


def check_permissions(accesses: Sequence[JsonObject], allowed: Sequence[bool], account: str) -> list[Finding]:
    """Everything that the procedure will ask for must be allowed."""
    findings = []
    for access, granted in zip(accesses, allowed, strict=True):
        if granted:
            continue
        resource = f"{access['resource']}.{access['group']}" if access.get("group") else access["resource"]
        where = f" in {access['namespace']}" if access.get("namespace") else ""
        findings.append(
            Finding(
                "permissions",
                "block",
                account,
                f"may not {access['verb']} {resource}{where}",
                f"may {access['verb']} {resource}{where}",
                "Apply the manifests in deploy/ for this procedure's ServiceAccount.",
            )
        )
    return findings or [Finding("permissions", "pass", account, f"all {len(accesses)} granted", "all granted")]


def check_image(component: str, reference: str, digest: str | None) -> Finding:
    """The image must be in the registry."""
    if digest:
        return Finding("images", "pass", f"{component} ({reference})", digest, "in the registry")
    return Finding(
        "images",
        "block",
        f"{component} ({reference})",
        "not in the registry",
        "in the registry",
        "Push the image, or correct the tag.",
    )


def check_dependency(name: str, observed: str, reachable: bool, expected: str, vantage_point: str) -> Finding:
    """A dependency must answer; the finding says from where it was asked."""
    seen = f"{observed} (seen from {vantage_point})"
    if reachable:
        return Finding("dependencies", "pass", name, seen, expected)
    return Finding("dependencies", "block", name, seen, expected, f"Look at {name} and at the network between.")


def check_gate_series(component: str, pods: int) -> Finding:
    """A component with a gate must have series, or its gate will be *unknown* and the change be taken back.

    :param pods: how many pods Prometheus has series of.
    """
    if pods:
        return Finding("gates", "pass", component, f"series of {pods} pods", "series for its gate")
    return Finding(
        "gates",
        "warn",
        component,
        "Prometheus has no series of it: its gate would be unknown, and the change taken back",
        "series for its gate",
        "Look at Prometheus' targets; a component without Prometheus metrics must have no gate in the profile.",
    )
