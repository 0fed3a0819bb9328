"""The verdict on a rollout: complete, under way, or failed and why. Pure: a look at objects, no clock, no cluster.

It knows what ``kubectl rollout status`` does not say: a rollout that can't succeed is named as soon as the kubelet has
failed for the second time, not when the progress deadline is over. The first failure never counts: one registry answer
of 503, or one crash while another component restarts, heals by itself.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Literal

JsonObject = Mapping[str, Any]

FAILED_ATTEMPTS = 2
"""The failed attempt at which a rollout is given up; the kubelet's first one may be anybody's hiccup."""

UNSCHEDULABLE_GRACE = timedelta(seconds=15)
"""An autoscaler, a volume binder or a pod on its way out may still make room; nothing else needs longer."""

REPEATED_VOLUME_FAILURES = 3
"""FailedMount happens once or twice in healthy starts, while a claim is still being bound."""

PROBE_GRACE = timedelta(seconds=2)


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


@dataclass(frozen=True)
class RolloutVerdict:
    """What a look at a rollout says.

    :param fingerprint: changes if and only if the rollout made progress.
    :param deadline_at: when it will be given up if nothing else happens; None when it is over.
    """

    state: Literal["progressing", "complete", "failed"]
    message: str
    progress: str
    fingerprint: str
    cause: Cause | None = None
    pod: str | None = None
    deadline_at: datetime | None = None


@dataclass(frozen=True)
class _Look:
    """Everything one look has seen."""

    workload: JsonObject
    pods: Sequence[JsonObject]
    events: Sequence[JsonObject]
    container: str
    image: str | None
    now: datetime
    since: datetime
    ordinal: int | None

    @property
    def kind(self) -> str:
        return str(self.workload["kind"])

    @property
    def status(self) -> JsonObject:
        return self.workload.get("status") or {}


def judge_rollout(
    workload: JsonObject,
    pods: Sequence[JsonObject],
    events: Sequence[JsonObject],
    *,
    container: str,
    image: str | None,
    now: datetime,
    since: datetime,
    progressed_at: datetime,
    no_progress_limit: timedelta,
    progress_deadline: timedelta = timedelta(seconds=600),
    ordinal: int | None = None,
) -> RolloutVerdict:
    """Return the verdict on the rollout of a Deployment, StatefulSet or DaemonSet.

    :param pods: all live pods that the workload selects, old and new ones.
    :param events: events about the workload, its ReplicaSets and its pods; those before ``since`` don't count.
    :param container: the container whose image is rolled out.
    :param image: the image that must run; None: what the workload's template says.
    :param since: when the change was made.
    :param progressed_at: when the fingerprint last changed.
    :param no_progress_limit: how long it may stand still.
    :param progress_deadline: how long a pod may take to become ready where the workload has no deadline of its own.
    :param ordinal: of a StatefulSet, only this ordinal and those above it must be done.
    """
    look = _Look(workload, pods, events, container, image, now, since, ordinal)
    new = _new_pods(look)
    updated, ready, wanted, complete = _counts(look, new)
    progress = f"{updated} of {wanted} updated, {ready} ready"
    fingerprint = _fingerprint(look, new, updated, ready)
    observed = int(look.status.get("observedGeneration", 0)) >= int(workload["metadata"].get("generation", 0))

    def verdict(state: Literal["complete", "failed"], message: str, **more: Any) -> RolloutVerdict:
        return RolloutVerdict(state, message, progress, fingerprint, **more)

    if workload["spec"].get("paused"):
        return verdict("failed", "the Deployment is paused: its controller does nothing", cause=Cause.NO_PROGRESS)
    if observed and complete:
        return verdict("complete", progress)
    if observed:
        failure = _failure(look, new)
        if failure is not None:
            cause, pod, message = failure
            return verdict("failed", message, cause=cause, pod=pod)
        late = _late(look, new, progress_deadline)
        if late is not None:
            cause, pod, message = late
            return verdict("failed", message, cause=cause, pod=pod)
    if now - progressed_at >= no_progress_limit:
        pod = next((_name(p) for p in new if not _is_ready(p)), None)
        message = f"no progress for {int((now - progressed_at).total_seconds())} s: {progress}"
        return verdict("failed", message, cause=Cause.NO_PROGRESS, pod=pod)
    message = progress if observed else f"{progress}; the controller has not seen the change yet"
    return RolloutVerdict(
        "progressing", message, progress, fingerprint, deadline_at=_deadline(look, new, progress_deadline)
    )


# ------------------------------------------------------------------------------------------------- pods and counting


def _name(item: JsonObject) -> str:
    return str(item["metadata"]["name"])


def _is_ready(pod: JsonObject) -> bool:
    if pod["metadata"].get("deletionTimestamp"):
        return False
    return _condition(pod, "Ready").get("status") == "True"


def _condition(item: JsonObject, kind: str) -> JsonObject:
    conditions = (item.get("status") or {}).get("conditions") or ()
    return next((dict(c) for c in conditions if c.get("type") == kind), {})


def _ordinal(pod: JsonObject) -> int:
    return int(_name(pod).rpartition("-")[2])


def _image_in_template(item: JsonObject, container: str) -> str | None:
    template = item["spec"].get("template", item)
    containers = template["spec"].get("containers") or ()
    return next((str(c["image"]) for c in containers if c["name"] == container), None)


def _new_pods(look: _Look) -> list[JsonObject]:
    """Return the live pods of the new revision, those that count for the caller's ordinal."""
    alive = [pod for pod in look.pods if not pod["metadata"].get("deletionTimestamp")]
    labels = {id(pod): pod["metadata"].get("labels") or {} for pod in alive}
    if look.kind == "StatefulSet":
        revision = look.status.get("updateRevision")
        first = look.ordinal if look.ordinal is not None else 0
        return [p for p in alive if labels[id(p)].get("controller-revision-hash") == revision and _ordinal(p) >= first]
    if look.kind == "DaemonSet":
        # The update revision of a DaemonSet is not in its status: its newest pods carry it, told by the template.
        generation = str(look.workload["metadata"].get("generation"))
        exact = [p for p in alive if labels[id(p)].get("pod-template-generation") == generation]
        return exact or [p for p in alive if _runs_template(look, p)]
    return [pod for pod in alive if _runs_template(look, pod)]


def _runs_template(look: _Look, pod: JsonObject) -> bool:
    """Return whether a pod was made from the live template: what the template says, the pod says too.

    A policy change keeps the image, so the image alone would take the old pods for new ones.
    """
    template = look.workload["spec"]["template"]
    spec, wanted = pod["spec"], template["spec"]
    if look.image is not None and _image_in_template(pod, look.container) not in (look.image, None):
        return False
    if spec.get("terminationGracePeriodSeconds") != wanted.get("terminationGracePeriodSeconds"):
        return False
    own = {c["name"]: c for c in spec.get("containers") or ()}
    for container in wanted.get("containers") or ():
        live = own.get(container["name"])
        if live is None:
            return False
        for field in ("image", "command", "args", "env", "lifecycle", "readinessProbe", "livenessProbe", "startupProbe"):
            if live.get(field) != container.get(field):
                return False
    wanted_labels = (template.get("metadata") or {}).get("labels") or {}
    wanted_notes = (template.get("metadata") or {}).get("annotations") or {}
    labels = pod["metadata"].get("labels") or {}
    notes = pod["metadata"].get("annotations") or {}
    return all(labels.get(k) == v for k, v in wanted_labels.items()) and all(
        notes.get(k) == v for k, v in wanted_notes.items()
    )


def _counts(look: _Look, new: Sequence[JsonObject]) -> tuple[int, int, int, bool]:
    """Return updated, ready and wanted pods, and whether the rollout is complete."""
    status, spec = look.status, look.workload["spec"]
    if look.kind == "DaemonSet":
        wanted = int(status.get("desiredNumberScheduled", 0))
        updated, ready = int(status.get("updatedNumberScheduled", 0)), int(status.get("numberAvailable", 0))
        return updated, ready, wanted, updated >= wanted and ready >= wanted
    replicas = int(spec.get("replicas", 1))
    if look.kind == "StatefulSet":
        partition = int((spec.get("updateStrategy") or {}).get("rollingUpdate", {}).get("partition", 0))
        first = look.ordinal if look.ordinal is not None else min(partition, replicas)
        wanted = max(replicas - first, 0)
        counted = [pod for pod in new if _ordinal(pod) >= first]
        ready = sum(1 for pod in counted if _is_ready(pod))
        whole = look.ordinal is not None or int(status.get("readyReplicas", 0)) >= replicas
        return len(counted), ready, wanted, ready >= wanted and whole
    updated = int(status.get("updatedReplicas", 0))
    available = int(status.get("availableReplicas", 0))
    total = int(status.get("replicas", 0))
    done = updated >= replicas and total <= updated and available >= updated
    # The Deployment's own status and the pods must agree; the pods that are on their way out no longer serve.
    return updated, sum(1 for pod in new if _is_ready(pod)), replicas, done


def _fingerprint(look: _Look, new: Sequence[JsonObject], updated: int, ready: int) -> str:
    """Return a text that changes when the rollout moves on, and not when a pod merely fails again."""
    pods = sorted(f"{_name(pod)}/{pod['metadata'].get('uid', '')}/{_is_ready(pod)}" for pod in new)
    gone = len(look.pods) - len(new)
    return f"{look.workload['metadata'].get('generation')}|{updated}|{ready}|{gone}|{','.join(pods)}"


# ------------------------------------------------------------------------------------------------------------ failures

Failure = tuple[Cause, str | None, str]

_QUOTA = re.compile(r"exceeded quota|forbidden: .*quota|LimitRange|maximum (cpu|memory) usage", re.IGNORECASE)
_PULL_REASONS = {"ErrImagePull", "ImagePullBackOff", "RegistryUnavailable", "ImageInspectError", "ErrImageNeverPull"}
_CONFIG_REASONS = {"CreateContainerConfigError", "CreateContainerError", "RunContainerError", "InvalidImageName"}


def _failure(look: _Look, new: Sequence[JsonObject]) -> Failure | None:
    """Return the first reason why this rollout can't succeed as it is, or None."""
    refused = _refused_pods(look)
    if refused is not None:
        return refused
    for pod in sorted(new, key=lambda p: str(p["metadata"].get("creationTimestamp", "")), reverse=True):
        if _is_ready(pod):
            continue
        failure = _unschedulable(look, pod) or _container_failure(look, pod) or _volume_failure(look, pod)
        if failure is not None:
            return failure
    return None


def _refused_pods(look: _Look) -> Failure | None:
    """Return a failure when the controller may not even create pods: quota, limits, admission."""
    condition = _condition(look.workload, "ReplicaFailure")
    message = str(condition.get("message", "")) if condition.get("status") == "True" else ""
    if not message:
        for event in _recent(look, look.events):
            if event.get("reason") == "FailedCreate" and (event.get("involvedObject") or {}).get("kind") != "Pod":
                message = str(event.get("message", ""))
    if not message:
        return None
    if _QUOTA.search(message):
        return Cause.QUOTA, None, f"no pod can be created: {message}"
    return Cause.CONFIG_ERROR, None, f"no pod can be created: {message}"


def _unschedulable(look: _Look, pod: JsonObject) -> Failure | None:
    condition = _condition(pod, "PodScheduled")
    if condition.get("status") != "False" or condition.get("reason") != "Unschedulable":
        return None
    since = _moment(condition.get("lastTransitionTime")) or look.since
    if look.now - since < UNSCHEDULABLE_GRACE:
        return None
    message = str(condition.get("message", ""))
    cause = Cause.VOLUME if "PersistentVolumeClaim" in message or "persistentvolumeclaim" in message else None
    return cause or Cause.UNSCHEDULABLE, _name(pod), f"pod {_name(pod)} fits on no node: {message}"


def _container_failure(look: _Look, pod: JsonObject) -> Failure | None:
    status = pod.get("status") or {}
    for entry in [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]:
        waiting = (entry.get("state") or {}).get("waiting") or {}
        ended = (entry.get("state") or {}).get("terminated") or {}
        before = (entry.get("lastState") or {}).get("terminated") or {}
        reason, message = str(waiting.get("reason", "")), str(waiting.get("message", ""))
        where = f"container {entry['name']} of pod {_name(pod)}"
        if reason == "InvalidImageName":
            return Cause.BAD_IMAGE_NAME, _name(pod), f"{where}: {message or 'the image name is invalid'}"
        if reason in _PULL_REASONS:
            attempts = _failed_pulls(look, pod)
            if attempts >= FAILED_ATTEMPTS or reason == "ErrImageNeverPull":
                detail = _pull_message(look, pod) or message
                return Cause.IMAGE_PULL, _name(pod), f"{where}: image {entry.get('image', '')} can't be pulled: {detail}"
        if reason in _CONFIG_REASONS and _count_of(look, pod, {"Failed"}) >= FAILED_ATTEMPTS:
            return Cause.CONFIG_ERROR, _name(pod), f"{where}: {reason}: {message}"
        # The end that the container is waiting after is not among its restarts yet.
        failed_ends = int(entry.get("restartCount", 0)) + (1 if _bad_end(ended) or reason == "CrashLoopBackOff" else 0)
        if _bad_end(ended or before) and failed_ends >= FAILED_ATTEMPTS:
            end = ended or before
            if end.get("reason") == "OOMKilled":
                return Cause.OUT_OF_MEMORY, _name(pod), f"{where} was killed for its memory, {failed_ends} times"
            text = f"{where} ended {failed_ends} times, last with exit code {end.get('exitCode')}"
            return _probed_to_death(look, pod) or (Cause.CRASH_LOOP, _name(pod), text)
    return None


def _bad_end(terminated: JsonObject) -> bool:
    return bool(terminated) and (terminated.get("exitCode") != 0 or terminated.get("reason") == "OOMKilled")


def _probed_to_death(look: _Look, pod: JsonObject) -> Failure | None:
    """Return a probe failure when the kubelet killed the container because of its probe, not the program itself."""
    for event in _recent(look, _about(look, pod)):
        text = str(event.get("message", ""))
        if event.get("reason") == "Killing" and "probe" in text:
            return Cause.FAILING_PROBE, _name(pod), f"pod {_name(pod)}: {text}"
    return None


def _volume_failure(look: _Look, pod: JsonObject) -> Failure | None:
    reasons = {"FailedMount", "FailedAttachVolume", "FailedMapVolume"}
    if _count_of(look, pod, reasons) < REPEATED_VOLUME_FAILURES:
        return None
    last = [event for event in _recent(look, _about(look, pod)) if event.get("reason") in reasons][-1]
    return Cause.VOLUME, _name(pod), f"pod {_name(pod)}: {last.get('message', '')}"


# -------------------------------------------------------------------------------------------------------------- events


def _about(look: _Look, pod: JsonObject) -> list[JsonObject]:
    about = []
    for event in look.events:
        subject = event.get("involvedObject") or event.get("regarding") or {}
        if subject.get("kind") != "Pod" or subject.get("name") != _name(pod):
            continue
        if subject.get("uid") and pod["metadata"].get("uid") and subject["uid"] != pod["metadata"]["uid"]:
            continue
        about.append(event)
    return about


def _recent(look: _Look, events: Sequence[JsonObject]) -> list[JsonObject]:
    """Return the events since the change, oldest first. The API's times have whole seconds, so one is forgiven."""
    since = look.since - timedelta(seconds=1)
    return sorted((e for e in events if (event_time(e) or look.now) >= since), key=lambda e: str(event_time(e)))


def event_time(event: JsonObject) -> datetime | None:
    """Return when an event was last seen, whichever of its fields says so."""
    series = event.get("series") or {}
    for value in (series.get("lastObservedTime"), event.get("lastTimestamp"), event.get("eventTime")):
        if value:
            return _moment(value)
    return _moment((event.get("metadata") or {}).get("creationTimestamp"))


def _moment(value: object) -> datetime | None:
    return datetime.fromisoformat(str(value)) if value else None


def _times(event: JsonObject) -> int:
    return int((event.get("series") or {}).get("count") or event.get("count") or 1)


def _count_of(look: _Look, pod: JsonObject, reasons: set[str]) -> int:
    return sum(_times(event) for event in _recent(look, _about(look, pod)) if event.get("reason") in reasons)


def _pulls(look: _Look, pod: JsonObject) -> list[JsonObject]:
    return [
        event
        for event in _recent(look, _about(look, pod))
        if event.get("reason") == "Failed" and "Failed to pull image" in str(event.get("message", ""))
    ]


def _failed_pulls(look: _Look, pod: JsonObject) -> int:
    return sum(_times(event) for event in _pulls(look, pod))


def _pull_message(look: _Look, pod: JsonObject) -> str:
    found = _pulls(look, pod)
    return str(found[-1].get("message", "")) if found else ""


# ----------------------------------------------------------------------------------------------------------- deadlines


def _late(look: _Look, new: Sequence[JsonObject], progress_deadline: timedelta) -> Failure | None:
    """Return a failure when the progress deadline is over: the Deployment's own, else a computed one."""
    unready = [pod for pod in new if not _is_ready(pod)]
    progressing = _condition(look.workload, "Progressing")
    if progressing.get("status") == "False" and progressing.get("reason") == "ProgressDeadlineExceeded":
        changed = _moment(progressing.get("lastUpdateTime") or progressing.get("lastTransitionTime"))
        if changed is None or changed >= look.since - timedelta(seconds=1):
            return _not_ready(look, unready) or (Cause.PROGRESS_DEADLINE, None, str(progressing.get("message", "")))
    if look.kind == "Deployment":
        return None
    for pod in unready:
        if look.now - _started(look, pod) >= _allowed(look, pod, progress_deadline):
            return _not_ready(look, [pod])
    return None


def _not_ready(look: _Look, unready: Sequence[JsonObject]) -> Failure | None:
    if not unready:
        return None
    pod = unready[0]
    age = int((look.now - _started(look, pod)).total_seconds())
    failed = [e for e in _recent(look, _about(look, pod)) if e.get("reason") == "Unhealthy"]
    if failed:
        return Cause.FAILING_PROBE, _name(pod), f"pod {_name(pod)} is not ready after {age} s: {failed[-1].get('message')}"
    running = any((s.get("state") or {}).get("running") for s in (pod.get("status") or {}).get("containerStatuses") or ())
    if running:
        return Cause.FAILING_PROBE, _name(pod), f"pod {_name(pod)} runs but is not ready after {age} s"
    return Cause.PROGRESS_DEADLINE, _name(pod), f"pod {_name(pod)} does not run after {age} s"


def _started(look: _Look, pod: JsonObject) -> datetime:
    created = _moment(pod["metadata"].get("creationTimestamp"))
    return created or look.since


def _allowed(look: _Look, pod: JsonObject, progress_deadline: timedelta) -> timedelta:
    """Return how long a pod may take to become ready: what its probes allow, at least the progress deadline."""
    own = timedelta()
    for container in pod["spec"].get("containers") or ():
        start = _probe_time(container.get("startupProbe"))
        own = max(own, start + _probe_time(container.get("readinessProbe")))
    return max(own + PROBE_GRACE, progress_deadline)


def _probe_time(probe: JsonObject | None) -> timedelta:
    if not probe:
        return timedelta()
    period, failures = int(probe.get("periodSeconds", 10)), int(probe.get("failureThreshold", 3))
    return timedelta(seconds=int(probe.get("initialDelaySeconds", 0)) + period * failures)


def _deadline(look: _Look, new: Sequence[JsonObject], progress_deadline: timedelta) -> datetime | None:
    """Return when the rollout will be given up if nothing moves; for the log and the report."""
    unready = [pod for pod in new if not _is_ready(pod)]
    if not unready:
        return None
    if look.kind == "Deployment":
        seconds = look.workload["spec"].get("progressDeadlineSeconds")
        progressed = _moment(_condition(look.workload, "Progressing").get("lastUpdateTime"))
        if seconds is not None and progressed is not None:
            return progressed + timedelta(seconds=int(seconds))
    return min(_started(look, pod) + _allowed(look, pod, progress_deadline) for pod in unready)
