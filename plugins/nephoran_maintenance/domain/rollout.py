"""The verdict on a rollout: complete, under way, or failed and why. Pure: a look at objects, no clock, no cluster.

It knows what ``kubectl rollout status`` does not say: a rollout that can't succeed is named as soon as the kubelet has
failed for the second time, not when the progress deadline is over.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any, Literal

from nephoran_maintenance.domain.cluster_events import ClusterEvent, attempts, events_since
from nephoran_maintenance.domain.moments import latest, moment
from nephoran_maintenance.domain.pod_failures import (
    FAILED_ATTEMPTS,
    Cause,
    Failure,
    condition_of,
    container_statuses,
    is_available,
    is_finished,
    is_ready,
    is_terminating,
    pod_failure,
    pod_name,
    quote,
    unhealthy,
)
from nephoran_maintenance.domain.revisions import current_revision_pods, owned_pods

__all__ = ["Cause", "RolloutVerdict", "judge_rollout"]

JsonObject = Mapping[str, Any]

CLOCK_TOLERANCE = timedelta(seconds=2)
"""Kubernetes writes whole seconds, and its clock is not exactly the one that ``since`` comes from."""

STALE_DEADLINE_TOLERANCE = timedelta(seconds=5)
"""A progress deadline that is over earlier than this before it can be is the one of the rollout before."""

DEADLINE_EXCEEDED = "ProgressDeadlineExceeded"

REFUSAL_PATIENCE = timedelta(seconds=20)
"""How long a controller may be refused its pods; a conflict on a quota object heals at its next try."""


@dataclass(frozen=True)
class RolloutVerdict:
    """What a look at a rollout says.

    :param message: what happens or what went wrong, with names; the same as long as nothing changes.
    :param progress: one line such as ``2 of 3 updated, 1 ready``.
    :param fingerprint: changes if and only if the rollout made progress; a pod that fails again is none.
    :param cause: why it failed; None in every other state.
    :param pod: the pod that failed, or that it waits for.
    :param deadline_at: when it will be given up if nothing else happens; None when it is over.
    """

    state: Literal["progressing", "complete", "failed"]
    message: str
    progress: str
    fingerprint: str
    cause: Cause | None = None
    pod: str | None = None
    deadline_at: datetime | None = None


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

    *Complete* is what the controller's status says of a Deployment or DaemonSet, as for ``kubectl rollout status``, and
    what the pods say of a StatefulSet. *Failed* needs a cause; pods of earlier revisions are never one.

    :param pods: all pods that the workload selects, old and new ones, terminating ones included.
    :param events: events about the workload, its ReplicaSets and its pods; those before ``since`` don't count.
    :param container: the container whose image is rolled out.
    :param image: the image that the template must name; None: whatever it names.
    :param since: when the change was made.
    :param progressed_at: when the fingerprint last changed.
    :param no_progress_limit: how long it may stand still.
    :param progress_deadline: how long it may stand still where the workload has no progress deadline of its own.
    :param ordinal: of a StatefulSet, this ordinal must be done, and those above it that its partition releases; default: all
        that it releases.
    """
    look = _Look(workload, pods, events, now, since, progress_deadline, ordinal)
    fingerprint = look.fingerprint
    deadline_at = min(look.progress_deadline_at, progressed_at + no_progress_limit)

    def failed(failure: Failure) -> RolloutVerdict:
        return RolloutVerdict("failed", failure.message, look.progress, fingerprint, failure.cause, failure.pod)

    superseded = _superseded(workload, container, image)
    if superseded is not None:
        return failed(superseded)
    if look.observed:
        if look.complete:
            return RolloutVerdict("complete", look.progress, look.progress, fingerprint)
        failure = _refused(look) or _failed_pod(look) or _late(look)
        if failure is not None:
            return failed(failure)
    message, pod = _waits_for(look)
    if now - progressed_at >= no_progress_limit:
        text = f"no progress for {no_progress_limit.total_seconds():.0f} s: {look.progress}; {message}"
        return failed(Failure(Cause.NO_PROGRESS, text, pod))
    return RolloutVerdict("progressing", message, look.progress, fingerprint, None, pod, deadline_at)


class _Look:
    """What one look has seen, counted the way that this kind of workload needs."""

    def __init__(
        self,
        workload: JsonObject,
        pods: Sequence[JsonObject],
        events: Sequence[JsonObject],
        now: datetime,
        since: datetime,
        progress_deadline: timedelta,
        ordinal: int | None,
    ) -> None:
        self.workload = workload
        self.kind = str(workload["kind"])
        self.spec: JsonObject = workload["spec"]
        self.status: JsonObject = workload.get("status") or {}
        self.pods = owned_pods(workload, pods)
        self.now = now
        self.since = since.replace(microsecond=0) - CLOCK_TOLERANCE
        self.changed_at = since
        self.events: list[ClusterEvent] = events_since(events, self.since)
        self._progress_deadline = progress_deadline
        self._ordinal = ordinal

    @cached_property
    def observed(self) -> bool:
        """Whether the controller has seen the spec; before, its status speaks of the spec before."""
        seen = int(self.status.get("observedGeneration") or 0)
        return seen >= int(self.workload["metadata"].get("generation") or 0)

    @cached_property
    def ordinals(self) -> list[int]:
        """The ordinals of a StatefulSet that must be done; what the partition holds back can't be."""
        first = int((self.spec.get("ordinals") or {}).get("start") or 0)
        rolling = (self.spec.get("updateStrategy") or {}).get("rollingUpdate") or {}
        released = first + int(rolling.get("partition") or 0)
        lowest = released if self._ordinal is None else self._ordinal
        return [o for o in range(first, first + self.replicas) if o == lowest or o >= max(lowest, released)]

    @cached_property
    def replicas(self) -> int:
        """How many pods the workload wants."""
        if self.kind == "DaemonSet":
            return int(self.status.get("desiredNumberScheduled") or 0)
        wanted = self.spec.get("replicas")
        return 1 if wanted is None else int(wanted)

    @cached_property
    def wanted(self) -> int:
        """How many pods must be of the new revision at the end."""
        return len(self.ordinals) if self.kind == "StatefulSet" else self.replicas

    @cached_property
    def new(self) -> list[JsonObject]:
        """The living pods of the new revision that count."""
        if not self.observed:
            return []
        found = current_revision_pods(self.workload, self.pods)
        living = [pod for pod in found if not is_terminating(pod) and not is_finished(pod)]
        if self.kind != "StatefulSet":
            return living
        names = {f"{self.workload['metadata']['name']}-{ordinal}" for ordinal in self.ordinals}
        return [pod for pod in living if pod_name(pod) in names]

    @cached_property
    def unready(self) -> list[JsonObject]:
        """The new pods that are not ready, oldest first."""
        waiting = [pod for pod in self.new if not is_ready(pod)]
        return sorted(waiting, key=lambda pod: (str(pod["metadata"].get("creationTimestamp")), pod_name(pod)))

    @cached_property
    def updated(self) -> int:
        """How many pods are of the new revision."""
        if not self.observed:
            return 0
        if self.kind == "Deployment":
            return int(self.status.get("updatedReplicas") or 0)
        if self.kind == "DaemonSet":
            return int(self.status.get("updatedNumberScheduled") or 0)
        return len(self.new)

    @cached_property
    def available(self) -> int:
        """How many new pods have been ready for as long as the workload asks."""
        minimum = timedelta(seconds=int(self.spec.get("minReadySeconds") or 0))
        return sum(1 for pod in self.new if is_available(pod, minimum, self.now))

    @cached_property
    def complete(self) -> bool:
        """Whether everything that must be new is new and available, and nothing old is left that should not be."""
        if self.kind == "StatefulSet":
            # Without a revision nothing is known; with no ordinal to do, nothing is left to do.
            return self.available >= self.wanted and bool(self.status.get("updateRevision"))
        if self.kind == "DaemonSet":
            return self.updated >= self.replicas and int(self.status.get("numberAvailable") or 0) >= self.replicas
        total, available = int(self.status.get("replicas") or 0), int(self.status.get("availableReplicas") or 0)
        return self.updated >= self.replicas and total <= self.updated and available >= self.updated

    @cached_property
    def progress(self) -> str:
        """One line for people."""
        ready = sum(1 for pod in self.new if is_ready(pod))
        old = sum(1 for pod in self.pods if not is_terminating(pod) and not is_finished(pod)) - len(self.new)
        text = f"{self.updated} of {self.wanted} updated, {ready} ready"
        return f"{text}, {old} old" if old > 0 and self.kind == "Deployment" and self.observed else text

    @cached_property
    def fingerprint(self) -> str:
        """How far it is: counts of stages, so that neither a restart nor a new name for the same failure moves it."""
        scheduled = sum(1 for pod in self.new if condition_of(pod, "PodScheduled").get("status") == "True")
        started = sum(1 for pod in self.new if _has_started(pod))
        ready = sum(1 for pod in self.new if is_ready(pod))
        leaving = sum(1 for pod in self.pods if is_terminating(pod))
        old = sum(1 for pod in self.pods if not is_finished(pod)) - leaving - len(self.new)
        return (
            f"observed={self.observed} updated={self.updated} scheduled={scheduled} started={started} ready={ready} "
            f"available={self.available} old={old} leaving={leaving}"
        )

    @cached_property
    def deadline(self) -> timedelta:
        """How long the workload may stand still by its own progress deadline."""
        own = self.spec.get("progressDeadlineSeconds")
        return self._progress_deadline if own is None else timedelta(seconds=int(own))

    @cached_property
    def progressing(self) -> JsonObject:
        """A Deployment's condition on its progress, unless it still speaks of the time before the change."""
        condition = condition_of(self.workload, "Progressing")
        updated_at = moment(condition.get("lastUpdateTime"))
        return condition if updated_at is None or updated_at >= self.since else {}

    @cached_property
    def progress_deadline_at(self) -> datetime:
        """When it is late: the progress deadline after the last progress, but not before its pods' own probes allow."""
        last = self.changed_at
        condition = self.progressing
        if condition.get("reason") == DEADLINE_EXCEEDED:
            # This condition was updated when the deadline was over, which is no progress.
            pass
        elif condition:
            last = latest(last, moment(condition.get("lastUpdateTime")))
        else:
            last = latest(
                last,
                *(moment(pod["metadata"].get("creationTimestamp")) for pod in self.new),
                *(moment(condition_of(pod, "Ready").get("lastTransitionTime")) for pod in self.new if is_ready(pod)),
                # When a pod that is on its way out must be gone.
                *(moment(pod["metadata"]["deletionTimestamp"]) for pod in self.pods if is_terminating(pod)),
            )
        return max([last + self.deadline, *(_ready_by(pod) for pod in self.unready)])


def _has_started(pod: JsonObject) -> bool:
    return any(
        (status.get("state") or {}).get("running") or (status.get("lastState") or {}).get("terminated")
        for status in (pod.get("status") or {}).get("containerStatuses") or ()
    )


def _ready_by(pod: JsonObject) -> datetime:
    """Return until when the pod's own probes allow it not to be ready, counted from the start of its containers."""
    containers = [*(pod["spec"].get("initContainers") or ()), *(pod["spec"].get("containers") or ())]
    own = [_probe_time(c.get("startupProbe")) + _first_check(c.get("readinessProbe")) for c in containers]
    started = latest(
        moment(pod["metadata"].get("creationTimestamp")),
        *(
            moment(((status.get("state") or {}).get("running") or {}).get("startedAt"))
            for status in container_statuses(pod)
            if not status.get("restartCount")
        ),
    )
    return started + max(own, default=timedelta())


def _probe_time(probe: JsonObject | None) -> timedelta:
    """Return after how long a startup probe gives up."""
    if not probe:
        return timedelta()
    failures = int(probe.get("failureThreshold", 3))
    return timedelta(seconds=int(probe.get("initialDelaySeconds", 0)) + int(probe.get("periodSeconds", 10)) * failures)


def _first_check(probe: JsonObject | None) -> timedelta:
    """Return how long a readiness probe needs at most to notice a container that is ready."""
    if not probe:
        return timedelta()
    period, successes = int(probe.get("periodSeconds", 10)), int(probe.get("successThreshold", 1))
    timeout = int(probe.get("timeoutSeconds", 1))
    return timedelta(seconds=int(probe.get("initialDelaySeconds", 0)) + period * successes + timeout)


def _superseded(workload: JsonObject, container: str, image: str | None) -> Failure | None:
    """Fail when the template no longer names the image: somebody else has changed the workload meanwhile."""
    containers = workload["spec"]["template"]["spec"].get("containers") or ()
    live = next((str(c.get("image")) for c in containers if c["name"] == container), None)
    who = f"{workload['kind']} {workload['metadata']['name']}"
    if live is None:
        return Failure(Cause.SUPERSEDED, f"{who} has no container {container!r}")
    if image is None or live == image:
        return None
    return Failure(Cause.SUPERSEDED, f"{who}: container {container} has the image {live}, expected {image}")


def _refused(look: _Look) -> Failure | None:
    """Fail when the controller may not create its pods: a quota, a limit range, admission; from the second try on."""
    missing = look.updated < look.wanted
    created = [event for event in look.events if event.reason == "SuccessfulCreate" and event.kind != "Pod"]
    refusals = [
        event
        for event in look.events
        if event.reason == "FailedCreate"
        and event.kind != "Pod"
        and not any(later.name == event.name and later.last_at > event.last_at for later in created)
    ]
    condition = condition_of(look.workload, "ReplicaFailure")
    standing = condition.get("status") == "True"
    if not missing or not (standing or refusals):
        return None
    if look.kind == "Deployment" and not standing:
        return None
    stood_since = moment(condition.get("lastTransitionTime")) if standing else None
    long = stood_since is not None and look.now - max(stood_since, look.changed_at) >= REFUSAL_PATIENCE
    if attempts(refusals, look.since) < FAILED_ATTEMPTS and not long:
        return None
    text = quote(condition.get("message") if standing else refusals[-1].message)
    quota = "quota" in text.lower()
    return Failure(Cause.QUOTA if quota else Cause.CONFIG_ERROR, f"no pod can be created: {text}")


def _failed_pod(look: _Look) -> Failure | None:
    """Return the first reason why a new pod will not become ready."""
    for pod in look.unready:
        failure = pod_failure(pod, look.events, now=look.now, since=look.since)
        if failure is not None:
            return failure
    return None


def _late(look: _Look) -> Failure | None:
    """Fail when the progress deadline is over and the new pods' own probes don't allow them more time.

    A Deployment's controller says itself when its deadline is over. That can be its word on the rollout before, until
    it sees the first progress, so it counts only when the time for it has come. The others have no deadline of their
    own and get the computed one.
    """
    said = look.progressing.get("reason") == DEADLINE_EXCEEDED
    if look.spec.get("paused") or (look.kind == "Deployment" and not said):
        return None
    if look.now < look.progress_deadline_at - (STALE_DEADLINE_TOLERANCE if said else timedelta()):
        return None
    if not look.unready:
        text = quote(look.progressing.get("message")) if said else f"{look.progress} after {look.deadline}"
        return Failure(Cause.PROGRESS_DEADLINE, text)
    pod = look.unready[0]
    known = pod_failure(pod, look.events, now=look.now, since=look.since, at_last=True)
    if known is not None:
        return known
    message, _ = _waits_for(look)
    runs = _has_started(pod)
    return Failure(
        Cause.FAILING_PROBE if runs else Cause.PROGRESS_DEADLINE, f"past its deadline: {message}", pod_name(pod)
    )


def _waits_for(look: _Look) -> tuple[str, str | None]:
    """Return what is being waited for, in words that only change when it changes, and the pod in question."""
    if not look.observed:
        return "the controller has not seen the change yet", None
    if look.spec.get("paused"):
        return "the Deployment is paused; kubectl rollout resume lets it go on", None
    strategy = (look.spec.get("updateStrategy") or {}).get("type")
    if strategy == "OnDelete" and not look.unready:
        return f"the update strategy is OnDelete: pods are replaced only when deleted ({look.progress})", None
    if not look.unready:
        return look.progress, None
    pod = look.unready[0]
    name = pod_name(pod)
    if condition_of(pod, "PodScheduled").get("status") == "False":
        return f"pod {name} is not scheduled: {quote(condition_of(pod, 'PodScheduled').get('message'))}", name
    for status in container_statuses(pod):
        waiting = (status.get("state") or {}).get("waiting") or {}
        if waiting.get("reason"):
            return f"container {status['name']} of pod {name} waits: {waiting['reason']}", name
    if not _has_started(pod):
        return f"pod {name} is starting", name
    said = unhealthy([event for event in look.events if event.concerns(pod)])
    return f"pod {name} runs and is not ready" + (f": {said}" if said else ""), name
