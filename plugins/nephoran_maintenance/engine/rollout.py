"""One look at a rollout, and what its failure means for the person on call."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from nephoran_maintenance.domain.pod_failures import has_condition
from nephoran_maintenance.domain.rollout import RolloutVerdict, judge_rollout
from nephoran_maintenance.errors import MaintenanceError, PermanentError, TransientError
from nephoran_maintenance.hooks.cluster import ClusterHook
from nephoran_maintenance.hooks.evidence import evidence_text
from nephoran_maintenance.hooks.kubernetes_rest import JsonObject

HINTS = {
    "image-pull": "Push the image or correct its tag; check the registry and the pull secret.",
    "bad-image-name": "Correct the image's name.",
    "crash-loop": "Read the container's last log lines above.",
    "config-error": "Create the ConfigMap, Secret or key that the event names.",
    "unschedulable": "Free or add the resources that the event names.",
    "quota": "Raise the namespace's quota, or free what it counts.",
    "volume": "Look at the volume and its claim that the event names.",
    "failing-probe": "Ask the probe's address yourself; read the container's log.",
    "oom": "Raise the container's memory limit, or find out why it needs more.",
}


def look(
    cluster: ClusterHook,
    *,
    namespace: str,
    kind: str,
    name: str,
    container: str,
    image: str | None,
    since: datetime,
    now: datetime,
    no_progress_limit: timedelta,
    progress_deadline: timedelta,
    ordinal: int | None = None,
) -> dict[str, Any]:
    """Judge a rollout once; return the verdict as the trigger's event would be, or with the state ``progressing``."""
    workload = cluster.get(kind, name, namespace)
    pods = cluster.pods_of(workload)
    events = cluster.workload_events(workload, pods) if needs_events(workload, pods) else []
    verdict = judge_rollout(
        workload,
        pods,
        events,
        container=container,
        image=image,
        now=now,
        since=since,
        progressed_at=now,
        no_progress_limit=no_progress_limit,
        progress_deadline=progress_deadline,
        ordinal=ordinal,
    )
    return {**verdict_event(verdict), "seconds": 0.0}


def rollout_error(event: dict[str, Any], evidence: dict[str, Any]) -> MaintenanceError:
    """Return the error for an event that is not ``complete``, with the evidence in its text.

    ``failed`` and ``timeout`` are permanent. An ``error`` (it could not be found out) is transient, so that the step
    looks again, unless the cause is one that a retry does not mend.
    """
    target = f"{evidence['workload']} in namespace {evidence['namespace']}"
    details = evidence_text(evidence)
    context = {key: event.get(key) for key in ("cause", "pod", "progress") if event.get(key)}
    if event["state"] == "failed":
        text = f"{target} could not be rolled out: {event['message']}"
        hint = HINTS.get(str(event.get("cause")), "Look at the pod's events and log lines above.")
        return PermanentError("rollout-failed", _joined(text, details), context=context, hint=hint)
    if event["state"] == "timeout":
        text = f"{target} was not rolled out in time: {event['message']}; {event.get('progress') or 'no state seen'}"
        return PermanentError("rollout-timeout", _joined(text, details), context=context, hint="See what it waits for.")
    text = f"the rollout of {target} could not be watched: {event['message']}"
    permanent = str(event.get("reference")) in PERMANENT_READ_ERRORS
    kind = PermanentError if permanent else TransientError
    return kind(event.get("reference") or "rollout-unknown", text, context=context, hint=event.get("hint") or "")


PERMANENT_READ_ERRORS = {
    "cluster-unauthorized",
    "cluster-forbidden",
    "cluster-untrusted",
    "connection-invalid",
    "connection-missing",
    "not-found",
}


def _joined(text: str, details: str) -> str:
    return f"{text}\n{details}" if details else text


def needs_events(workload: JsonObject, pods: list[JsonObject]) -> bool:
    """Return whether something is not ready or not updated yet, so that the events could say why."""
    status = workload.get("status") or {}
    wanted = (workload.get("spec") or {}).get("replicas")
    if wanted is None:
        wanted = status.get("desiredNumberScheduled", 1)
    updated = status.get("updatedReplicas", status.get("updatedNumberScheduled", 0)) or 0
    ready = sum(1 for pod in pods if has_condition(pod, "Ready"))
    return ready < max(int(wanted), len(pods)) or int(updated) < int(wanted)


def verdict_event(verdict: RolloutVerdict) -> dict[str, Any]:
    """Return a decided verdict in the shape of the trigger's event, without ``seconds``."""
    failed = verdict.state == "failed"
    return {
        "state": verdict.state,
        "cause": str(verdict.cause.value) if verdict.cause is not None else None,
        "message": verdict.message,
        "pod": verdict.pod,
        "progress": verdict.progress,
        "reference": "rollout-failed" if failed else None,
        "hint": "",
    }
