"""Bring one workload to an intended spec, move by move, and say what has to be waited for in between.

Nothing here waits: a step of a procedure defers on what :meth:`Roller.roll` returns, the command line looks again after
a pause. Whatever dies in between, the next call goes on from what is there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from logging import getLogger
from typing import Any

from nephoran_maintenance.domain.journal import Workload
from nephoran_maintenance.domain.lease import check_fence, fence_test
from nephoran_maintenance.domain.patches import same_spec, same_strategy, same_template, spec_patch
from nephoran_maintenance.domain.stepping import Move, is_ready, next_move, ordinal_of, with_partition
from nephoran_maintenance.domain.upgrade import WEAVIATE_POLICY
from nephoran_maintenance.engine.answers import missing_on_pod
from nephoran_maintenance.engine.live import container_name, health_endpoint
from nephoran_maintenance.engine.rollout import look, rollout_error
from nephoran_maintenance.errors import MaintenanceError, PermanentError, TransientError
from nephoran_maintenance.hooks.cluster import ClusterHook
from nephoran_maintenance.hooks.evidence import collect_evidence
from nephoran_maintenance.hooks.lease_store import HeldLease
from nephoran_maintenance.profile import Component, SystemProfile

CONFLICT_TRIES = 5

CheckKnown = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class RolloutWait:
    """Wait until a rollout is complete; ``ordinal``: of a StatefulSet only this one and those above it."""

    workload: Workload
    container: str
    image: str
    since: datetime
    ordinal: int | None = None
    progress: str = ""


@dataclass(frozen=True)
class AnswerWait:
    """Wait until one pod of Weaviate answers a real query; ``question`` is what to ask it."""

    namespace: str
    pod: str
    question: dict[str, Any]
    missing: str = ""


@dataclass(frozen=True)
class AbsenceWait:
    """Wait until custom objects are gone, their finalizers run: ``[{"group", "version", "plural", "namespace", "name"}]``."""

    objects: list[dict[str, str]]


Wait = RolloutWait | AnswerWait | AbsenceWait


class Roller:
    """Changes one workload, and nothing else.

    :param component: how the profile describes it.
    :param reference: which object it is.
    :param lease: the lease in the hands of the operation; each write is fenced by its token.
    :param weaviate_key: the API key where no Airflow connection can be read; empty: Weaviate is not asked at all, and a
        replica that is Ready counts as one that answers.
    """

    def __init__(
        self,
        cluster: ClusterHook,
        profile: SystemProfile,
        component: Component,
        reference: Workload,
        lease: HeldLease,
        *,
        weaviate_key: str | None = None,
        log: Any = None,
    ) -> None:
        self.cluster = cluster
        self.profile = profile
        self.component = component
        self.reference = reference
        self.lease = lease
        self.weaviate_key = weaviate_key
        self.log = log or getLogger(__name__)

    def workload(self) -> dict[str, Any]:
        """Return the live object."""
        found = self.cluster.get(self.reference.kind, self.reference.name, self.reference.namespace)
        return {**found, "kind": self.reference.kind}

    def roll(self, intended: dict[str, Any], since: datetime, check_known: CheckKnown) -> dict[str, Any] | Wait:
        """Bring the workload to ``intended`` as far as that goes now.

        Returns the workload once every pod runs the intended template, else what to wait for before the next call.

        :param intended: recorded state with ``template`` and ``strategy``
            (:func:`nephoran_maintenance.domain.patches.record_before`).
        :param since: when the change was begun: older events of the cluster don't count.
        :param check_known: raises when the live object is in no state of this operation; asked at every look.
        :raises PermanentError: ``rollout-failed``, with the pod's events and last log lines.
        """
        conflicts = 0
        moved_at = since
        while True:
            workload = self.workload()
            self.check_ours(workload)
            check_known(workload)
            pods = self.cluster.pods_of(workload)
            move = next_move(
                workload,
                pods,
                template_as_intended=same_template(workload, intended),
                strategy_as_intended=same_strategy(workload, intended),
            )
            if move.action == "done":
                return workload
            if move.action == "wait":
                wait = self.rolled_out(workload, intended, moved_at, move.ordinal)
                if wait is not None:
                    return wait
                if workload["kind"] != "StatefulSet":
                    return workload
                continue
            if move.action in ("open", "settle"):
                answer = self._answers(workload, pods, above=move.ordinal if move.action == "open" else -1)
                if answer is not None:
                    return answer
            try:
                self.make(workload, move, intended)
            except TransientError as error:
                # A controller writes the status of what is rolling all the time: look and decide again.
                conflicts += 1
                if error.reference != "conflict" or conflicts >= CONFLICT_TRIES:
                    raise
            else:
                conflicts = 0
                # The change may have been begun long ago, by a process that died: what was just released is not late.
                moved_at = datetime.now(UTC)

    def put_in_place(self, intended: dict[str, Any], check_known: CheckKnown) -> None:
        """Put a Deployment's or DaemonSet's intended spec in place; somebody's write in between is looked at first."""
        for attempt in range(CONFLICT_TRIES):
            workload = self.workload()
            self.check_ours(workload)
            check_known(workload)
            if same_spec(workload, intended):
                return
            try:
                self.make(workload, Move("patch"), intended)
            except TransientError as error:
                if error.reference != "conflict" or attempt == CONFLICT_TRIES - 1:
                    raise
            else:
                return

    def check_ours(self, workload: dict[str, Any]) -> None:
        """:raises PermanentError: ``lease-lost`` when the object is not fenced for us, with who holds the lease now."""
        try:
            check_fence(workload, self.lease.token)
        except PermanentError:
            self.lease.keep()
            raise

    def make(self, workload: dict[str, Any], move: Move, intended: dict[str, Any]) -> None:
        """Make one move; a write that was decided on an older version of the object fails and is decided again.

        A pod has no fence of its own: it is deleted only as it was looked at, broken and of an older revision.
        """
        self.lease.keep()
        kind, name, namespace = workload["kind"], workload["metadata"]["name"], workload["metadata"]["namespace"]
        self.log.info("%s %s: %s", kind, name, move)
        if move.action == "replace":
            pod = self.cluster.find("Pod", str(move.pod), namespace)
            if pod is not None and not is_ready(pod):
                metadata = pod["metadata"]
                self.cluster.delete(
                    "Pod",
                    metadata["name"],
                    namespace,
                    uid=metadata["uid"],
                    resource_version=metadata["resourceVersion"],
                )
            return
        strategy = intended["strategy"]
        if move.partition is not None:
            strategy = with_partition(strategy, move.partition)
        self.cluster.patch(
            kind,
            name,
            namespace,
            [fence_test(self.lease.token), *spec_patch(workload, template=intended["template"], strategy=strategy)],
            patch_type="json",
            resource_version=workload["metadata"]["resourceVersion"],
        )

    def rolled_out(
        self, workload: dict[str, Any], intended: dict[str, Any], since: datetime, ordinal: int | None = None
    ) -> RolloutWait | None:
        """Return None when the rollout is complete, what to wait for when it is under way; raise when it failed."""
        container, image = intended["container"], intended["image"]
        limits = self.profile.rollout
        event = look(
            self.cluster,
            namespace=self.reference.namespace,
            kind=self.reference.kind,
            name=self.reference.name,
            container=container,
            image=image,
            ordinal=ordinal,
            since=since,
            now=datetime.now(UTC),
            no_progress_limit=limits.no_progress_limit,
            progress_deadline=limits.progress_deadline,
        )
        if event["state"] == "complete":
            return None
        if event["state"] != "progressing":
            raise self.failure(workload, container, event)
        return RolloutWait(self.reference, container, image, since, ordinal, event["progress"])

    def _answers(self, workload: dict[str, Any], pods: list[dict[str, Any]], *, above: int | None) -> AnswerWait | None:
        """Return the lowest pod above an ordinal while it does not answer a real query; only Weaviate is asked.

        Weaviate says *ready* seconds before it can answer; a second replica that goes away in that time loses reads.
        """
        known = self.profile.known_objects
        if self.component.policy != WEAVIATE_POLICY or above is None or self.weaviate_key == "":
            return None
        released = sorted((pod for pod in pods if ordinal_of(pod) > above), key=ordinal_of)
        if not released:
            return None
        pod = released[0]["metadata"]["name"]
        namespace = workload["metadata"]["namespace"]
        port, _ = health_endpoint(workload, self.component, container_name(workload, self.component))
        question: dict[str, Any] = {
            "collection": known.collection if known else "",
            "object_id": known.id_of(0) if known else None,
            "healthy_nodes": int(workload["spec"].get("replicas", 1)),
            "port": port,
        }
        try:
            missing = missing_on_pod(
                self.cluster,
                self.profile.connections.weaviate,
                namespace=namespace,
                pod=pod,
                api_key=self.weaviate_key,
                **question,
            )
        except TransientError as error:
            missing = error.message
        if not missing:
            return None
        self.log.info("Pod %s is ready but %s", pod, missing)
        return AnswerWait(namespace, pod, question, missing)

    def failure(self, workload: dict[str, Any], container: str, event: dict[str, Any]) -> MaintenanceError:
        """Return the error for a rollout that failed, with the pod's events and last log lines in it."""
        evidence = collect_evidence(
            self.cluster,
            namespace=workload["metadata"]["namespace"],
            kind=workload["kind"],
            name=workload["metadata"]["name"],
            pod=event.get("pod"),
            container=container,
        )
        return rollout_error(event, evidence)
