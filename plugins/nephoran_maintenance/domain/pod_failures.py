"""Why a pod can't become ready: what the kubelet and the scheduler say, read from the pod and its events.

One failed attempt never counts: a registry that answers 503 once, or one crash while something else restarts, heals by
itself. The second one does. Where Kubernetes keeps no count of attempts, time stands in for it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from nephoran_maintenance.domain.cluster_events import ClusterEvent, attempts
from nephoran_maintenance.domain.moments import latest, moment

JsonObject = Mapping[str, Any]

FAILED_ATTEMPTS = 2
"""The failed attempt at which it is given up; the first one may be anybody's hiccup."""

UNSCHEDULABLE_PATIENCE = timedelta(seconds=30)
"""Pods on their way out give their room back within their grace period, mostly in less than this."""

VOLUME_PATIENCE = timedelta(seconds=60)
"""The kubelet repeats a mount after 0.5 s and doubles that, so a count says little; cloud disks take up to a minute."""

CONFIG_PATIENCE = timedelta(seconds=5)
"""The kubelet tries twice within a second (seen with 1.36), too soon for a ConfigMap on its way into its cache."""

NO_EVENTS_PATIENCE = timedelta(seconds=60)
"""Without events the kubelet's attempts can't be counted; its second one is 10 to 20 s after its first."""

LONGEST_QUOTE = 400
"""Characters of a foreign message that are repeated."""

PULL_REASONS = frozenset(
    {"ErrImagePull", "ImagePullBackOff", "RegistryUnavailable", "ImageInspectError", "SignatureValidationFailed"}
)
CONFIG_REASONS = frozenset(
    {
        "CreateContainerConfigError",
        "CreateContainerError",
        "RunContainerError",
        "PreCreateHookError",
        "PreStartHookError",
    }
)
NEVER_RAN = frozenset({"StartError", "ContainerCannotRun"})
VOLUME_EVENTS = frozenset({"FailedMount", "FailedAttachVolume", "FailedMapVolume"})

_PULL_TEXT = re.compile(r"pull image|ErrImagePull|ImagePullBackOff")
_VOLUME_TEXT = re.compile(r"persistentvolumeclaim|volume node affinity|persistent volumes? to bind", re.IGNORECASE)


class Cause(StrEnum):
    """Why a rollout failed."""

    IMAGE_PULL = "image-pull"
    BAD_IMAGE_NAME = "bad-image-name"
    CRASH_LOOP = "crash-loop"
    CONFIG_ERROR = "config-error"
    UNSCHEDULABLE = "unschedulable"
    QUOTA = "quota"
    VOLUME = "volume"
    FAILING_PROBE = "failing-probe"
    PROGRESS_DEADLINE = "progress-deadline"
    NO_PROGRESS = "no-progress"
    OUT_OF_MEMORY = "oom"
    SUPERSEDED = "superseded"


@dataclass(frozen=True)
class Failure:
    """Something that will not get better by itself."""

    cause: Cause
    message: str
    pod: str | None = None


def quote(text: object) -> str:
    """Return a foreign message on one line, cut."""
    line = " ".join(str(text or "").split())
    return line if len(line) <= LONGEST_QUOTE else line[: LONGEST_QUOTE - 1] + "…"


def pod_name(pod: JsonObject) -> str:
    """Return the pod's name."""
    return str(pod["metadata"]["name"])


def is_terminating(pod: JsonObject) -> bool:
    """Return whether the pod is being deleted."""
    return bool(pod["metadata"].get("deletionTimestamp"))


def is_finished(pod: JsonObject) -> bool:
    """Return whether the pod has ended for good, such as an evicted one; its controller makes another."""
    return (pod.get("status") or {}).get("phase") in ("Failed", "Succeeded")


def condition_of(item: JsonObject, kind: str) -> JsonObject:
    """Return a condition of an object's status; empty when it has none of this kind."""
    conditions = (item.get("status") or {}).get("conditions") or ()
    return next((condition for condition in conditions if condition.get("type") == kind), {})


def has_condition(item: JsonObject, kind: str) -> bool:
    """Return whether a condition of an object's status is true; one that is not there is not."""
    return condition_of(item, kind).get("status") == "True"


def is_ready(pod: JsonObject) -> bool:
    """Return whether the pod is Ready and stays."""
    return not is_terminating(pod) and not is_finished(pod) and has_condition(pod, "Ready")


def is_available(pod: JsonObject, minimum: timedelta, now: datetime) -> bool:
    """Return whether the pod has been Ready for ``minReadySeconds``."""
    if not is_ready(pod):
        return False
    ready_at = moment(condition_of(pod, "Ready").get("lastTransitionTime"))
    return not minimum or ready_at is None or now - ready_at >= minimum


def container_statuses(pod: JsonObject) -> list[JsonObject]:
    """Return the statuses of all containers, init containers and sidecars first."""
    status = pod.get("status") or {}
    return [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]


def pod_failure(
    pod: JsonObject, events: Sequence[ClusterEvent], *, now: datetime, since: datetime, at_last: bool = False
) -> Failure | None:
    """Return why a pod that is not ready will not become ready; None while it still may.

    :param events: events of the time since the change, about any object.
    :param since: when the change was made; restarts and series of events from before don't count.
    :param at_last: whether there is no more time to wait for a node or a volume.
    """
    own = [event for event in events if event.concerns(pod)]
    if condition_of(pod, "PodScheduled").get("status") == "False":
        return _unschedulable(pod, own, now, at_last=at_last)
    for status in container_statuses(pod):
        failure = (
            _image_failure(pod, status, own, now, since)
            or _start_failure(pod, status, own, now, since)
            or _crash(pod, status, own, since)
        )
        if failure is not None:
            return failure
    return _volume_failure(pod, own, now, at_last=at_last)


def _unschedulable(pod: JsonObject, events: Sequence[ClusterEvent], now: datetime, *, at_last: bool) -> Failure | None:
    """Fail when the scheduler has found no node for a while and no autoscaler is making one."""
    condition = condition_of(pod, "PodScheduled")
    if condition.get("reason") != "Unschedulable":
        return None
    waited = now - _waiting_since(pod, condition.get("lastTransitionTime"), now)
    scaling = any(event.reason == "TriggeredScaleUp" for event in events)
    if not at_last and (scaling or waited < UNSCHEDULABLE_PATIENCE):
        return None
    text = quote(condition.get("message"))
    volume = _VOLUME_TEXT.search(text) and "Insufficient" not in text
    cause = Cause.VOLUME if volume else Cause.UNSCHEDULABLE
    return Failure(cause, f"pod {pod_name(pod)} fits on no node: {text}", pod_name(pod))


def _waiting_since(pod: JsonObject, transition: object, now: datetime) -> datetime:
    return moment(transition) or moment(pod["metadata"].get("creationTimestamp")) or now


def _waiting(status: JsonObject) -> JsonObject:
    return (status.get("state") or {}).get("waiting") or {}


def _where(pod: JsonObject, status: JsonObject) -> str:
    return f"container {status['name']} of pod {pod_name(pod)}"


def _about(status: JsonObject, events: Sequence[ClusterEvent]) -> list[ClusterEvent]:
    """Return the events about one container, those that name no container included."""
    return [event for event in events if event.container in (status["name"], "")]


def _image_failure(
    pod: JsonObject, status: JsonObject, events: Sequence[ClusterEvent], now: datetime, since: datetime
) -> Failure | None:
    """Fail on an image name that can't be, and on the kubelet's second failed attempt to pull an image."""
    waiting = _waiting(status)
    reason, message = waiting.get("reason"), quote(waiting.get("message"))
    if reason == "InvalidImageName":
        text = f"{_where(pod, status)}: the image name {status.get('image', '')!r} is invalid: {message}"
        return Failure(Cause.BAD_IMAGE_NAME, text, pod_name(pod))
    if reason == "ErrImageNeverPull":
        return Failure(Cause.IMAGE_PULL, f"{_where(pod, status)}: {message or reason}", pod_name(pod))
    if reason not in PULL_REASONS:
        return None
    pulls = [event for event in _about(status, events) if event.reason == "Failed" and "pull image" in event.message]
    started_at = moment((pod.get("status") or {}).get("startTime"))
    unseen = not pulls and started_at is not None and now - started_at >= NO_EVENTS_PATIENCE
    if attempts(pulls, since) < FAILED_ATTEMPTS and not unseen:
        return None
    detail = quote(pulls[-1].message) if pulls else message
    return Failure(Cause.IMAGE_PULL, f"{_where(pod, status)}: {detail or reason}", pod_name(pod))


def _start_failure(
    pod: JsonObject, status: JsonObject, events: Sequence[ClusterEvent], now: datetime, since: datetime
) -> Failure | None:
    """Fail on the second attempt to create or start a container: a ConfigMap, Secret or program that is not there."""
    waiting = _waiting(status)
    if waiting.get("reason") not in CONFIG_REASONS:
        return None
    failed = [e for e in _about(status, events) if e.reason == "Failed" and not _PULL_TEXT.search(e.message)]
    started_at = moment((pod.get("status") or {}).get("startTime"))
    unseen = not failed and started_at is not None and now - started_at >= NO_EVENTS_PATIENCE
    lasting = bool(failed) and now - min(event.first_at for event in failed) >= CONFIG_PATIENCE
    repeated = lasting and attempts(failed, since) >= FAILED_ATTEMPTS
    repeated = repeated or int(status.get("restartCount", 0)) >= FAILED_ATTEMPTS
    if not repeated and not unseen:
        return None
    text = f"{_where(pod, status)}: {waiting['reason']}: {quote(waiting.get('message'))}"
    return Failure(Cause.CONFIG_ERROR, text, pod_name(pod))


def _crash(pod: JsonObject, status: JsonObject, events: Sequence[ClusterEvent], since: datetime) -> Failure | None:
    """Fail on the second end of a container since the change, and on the first one that its startup probe made.

    A startup probe that has used up its failures is the pod's own statement that it should have been up by then.
    """
    if _has_done_its_work(status):
        return None
    name = pod_name(pod)
    killed = [e for e in _about(status, events) if e.reason == "Killing" and "probe, will be restarted" in e.message]
    if any("failed startup probe" in event.message for event in killed):
        return Failure(Cause.FAILING_PROBE, f"{_where(pod, status)}: {_probe_text(status, events, killed)}", name)
    state, before = status.get("state") or {}, (status.get("lastState") or {}).get("terminated") or {}
    ended = state.get("terminated") or before
    ended_at = moment(ended.get("finishedAt"))
    if not ended or (ended_at is not None and ended_at < since):
        return None
    restarts = int(status.get("restartCount", 0))
    made_before = latest(moment(pod["metadata"].get("creationTimestamp"))) < since
    waits = _waiting(status).get("reason") == "CrashLoopBackOff"
    if made_before:
        # Restarts from before the change can't be told from those since; waiting after one of now can.
        failed = waits and restarts >= 1
    else:
        failed = restarts + (1 if waits or state.get("terminated") else 0) >= FAILED_ATTEMPTS
    if not failed:
        return None
    times = f"{restarts} restart{'' if restarts == 1 else 's'}"
    if ended.get("reason") == "OOMKilled":
        return Failure(Cause.OUT_OF_MEMORY, f"{_where(pod, status)} was killed for its memory, {times}", name)
    if killed:
        return Failure(Cause.FAILING_PROBE, f"{_where(pod, status)}: {_probe_text(status, events, killed)}", name)
    detail = quote(ended.get("message"))
    if ended.get("reason") in NEVER_RAN:
        return Failure(Cause.CONFIG_ERROR, f"{_where(pod, status)} can't be started: {detail}", name)
    text = f"{_where(pod, status)} ended with exit code {ended.get('exitCode')} ({ended.get('reason')}), {times}"
    return Failure(Cause.CRASH_LOOP, f"{text}: {detail}" if detail else text, name)


def _has_done_its_work(status: JsonObject) -> bool:
    """Return whether this is a container that is meant to end and did: an init container with exit code 0."""
    ended = (status.get("state") or {}).get("terminated") or {}
    return bool(ended) and ended.get("exitCode") == 0 and bool(status.get("ready"))


def _probe_text(status: JsonObject, events: Sequence[ClusterEvent], killed: Sequence[ClusterEvent]) -> str:
    said = unhealthy(_about(status, events))
    return f"{quote(killed[-1].message)}; {said}" if said else quote(killed[-1].message)


def unhealthy(events: Sequence[ClusterEvent]) -> str:
    """Return what the last failed probe among events said; empty when none did."""
    found = [event.message for event in events if event.reason in ("Unhealthy", "ProbeError")]
    return quote(found[-1]) if found else ""


def _volume_failure(pod: JsonObject, events: Sequence[ClusterEvent], now: datetime, *, at_last: bool) -> Failure | None:
    """Fail when a volume could not be mounted or attached for a while and the pod still waits for it."""
    starting = [_waiting(status).get("reason") for status in container_statuses(pod)]
    if starting and not any(reason in ("ContainerCreating", "PodInitializing") for reason in starting):
        return None
    found = [event for event in events if event.reason in VOLUME_EVENTS]
    if not found or (not at_last and now - min(event.first_at for event in found) < VOLUME_PATIENCE):
        return None
    return Failure(Cause.VOLUME, f"pod {pod_name(pod)}: {quote(found[-1].message)}", pod_name(pod))
