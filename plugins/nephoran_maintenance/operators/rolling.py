"""Bring one workload to an intended spec, move by move, without holding a worker in between."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from nephoran_maintenance.domain.patches import same_spec, same_strategy, same_template, spec_patch
from nephoran_maintenance.domain.stepping import Move, next_move, ordinal_of, with_partition
from nephoran_maintenance.domain.upgrade import WEAVIATE_POLICY
from nephoran_maintenance.errors import PermanentError, TransientError
from nephoran_maintenance.operators.base import StepOperator
from nephoran_maintenance.operators.live import container_name, health_endpoint

if TYPE_CHECKING:
    from nephoran_maintenance.hooks.cluster import ClusterHook
    from nephoran_maintenance.profile import Component

LONGEST_ROLLOUT = timedelta(hours=2)
CONFLICT_TRIES = 5


class RollingOperator(StepOperator):
    """What the steps share that change a component: one loop of look, move, wait.

    Subclasses call :meth:`roll` from ``act`` and ``resume``; it returns once every pod runs the intended template, and
    defers as long as that takes. Whatever dies in between, the next call goes on from what is there.

    :param component: name of the component in the profile.
    """

    def __init__(self, *, component: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.component = component

    @property
    def described(self) -> Component:
        return self.profile.component(self.component)

    def workload(self, cluster: ClusterHook) -> dict[str, Any]:
        """Return the component's live workload."""
        return cluster.get_workload(self.described, self.profile.namespace_of(self.described))

    def roll(
        self,
        cluster: ClusterHook,
        intended: dict[str, Any],
        since: datetime,
        check_known: Callable[[dict[str, Any]], None],
    ) -> dict[str, Any]:
        """Bring the workload to ``intended`` and return it.

        :param intended: recorded state with ``template`` and ``strategy``
            (:func:`nephoran_maintenance.domain.patches.record_before`).
        :param since: when the change was begun: older events of the cluster don't count.
        :param check_known: raises when the live object is in no state of this operation; asked at every look.
        """
        conflicts = 0
        while True:
            workload = self.workload(cluster)
            check_known(workload)
            pods = cluster.pods_of(workload)
            move = next_move(
                workload,
                pods,
                template_as_intended=same_template(workload, intended),
                strategy_as_intended=same_strategy(workload, intended),
            )
            if move.action == "done":
                return workload
            if move.action == "wait":
                if self._rolled_out(cluster, workload, move, intended, since) and workload["kind"] != "StatefulSet":
                    return workload
                continue
            if move.action == "open":
                self._wait_for_answers(cluster, workload, pods, above=move.ordinal)
            if move.action == "settle":
                self._wait_for_answers(cluster, workload, pods, above=-1)
            try:
                self.make(cluster, workload, move, intended)
            except TransientError as error:
                # A controller writes the status of what is rolling all the time: look and decide again.
                conflicts += 1
                if error.reference != "conflict" or conflicts >= CONFLICT_TRIES:
                    raise

    def put_in_place(
        self, cluster: ClusterHook, intended: dict[str, Any], check_known: Callable[[dict[str, Any]], None]
    ) -> None:
        """Put a Deployment's or DaemonSet's intended spec in place; somebody's write in between is looked at first."""
        for attempt in range(CONFLICT_TRIES):
            workload = self.workload(cluster)
            check_known(workload)
            if same_spec(workload, intended):
                return
            try:
                self.make(cluster, workload, Move("patch"), intended)
            except TransientError as error:
                if error.reference != "conflict" or attempt == CONFLICT_TRIES - 1:
                    raise
            else:
                return

    def make(self, cluster: ClusterHook, workload: dict[str, Any], move: Move, intended: dict[str, Any]) -> None:
        """Make one move; a write that was decided on an older version of the object fails and is decided again."""
        kind, name, namespace = workload["kind"], workload["metadata"]["name"], workload["metadata"]["namespace"]
        self.log.info("%s %s: %s", kind, name, move)
        if move.action == "replace":
            pod = cluster.find("Pod", str(move.pod), namespace)
            if pod is not None:
                cluster.delete("Pod", pod["metadata"]["name"], namespace, uid=pod["metadata"]["uid"])
            return
        strategy = intended["strategy"]
        if move.partition is not None:
            strategy = with_partition(strategy, move.partition)
        cluster.patch(
            kind,
            name,
            namespace,
            spec_patch(workload, template=intended["template"], strategy=strategy),
            patch_type="json",
            resource_version=workload["metadata"]["resourceVersion"],
        )

    def _rolled_out(
        self, cluster: ClusterHook, workload: dict[str, Any], move: Move, intended: dict[str, Any], since: datetime
    ) -> bool:
        """Return True when this move's rollout is complete; defer when it is under way, raise when it failed."""
        from nephoran_maintenance.sensors.rollout import look
        from nephoran_maintenance.triggers.rollout import RolloutTrigger

        kind, name, namespace = workload["kind"], workload["metadata"]["name"], workload["metadata"]["namespace"]
        now = datetime.now(UTC)
        container, image = intended["container"], intended["image"]
        limits = self.profile.rollout
        event = look(
            cluster,
            namespace=namespace,
            kind=kind,
            name=name,
            container=container,
            image=image,
            ordinal=move.ordinal,
            since=since,
            now=now,
            no_progress_limit=limits.no_progress_limit,
            progress_deadline=limits.progress_deadline,
        )
        if event["state"] == "complete":
            return True
        if event["state"] != "progressing":
            raise self.rollout_failure(cluster, workload, container, event)
        self.defer(
            trigger=RolloutTrigger(
                connection_id=self.kubernetes_connection_id,
                namespace=namespace,
                kind=kind,
                name=name,
                container=container,
                image=image,
                ordinal=move.ordinal,
                since=since.isoformat(),
                no_progress_limit_seconds=limits.no_progress_limit.total_seconds(),
                progress_deadline_seconds=limits.progress_deadline.total_seconds(),
                deadline_at=(now + LONGEST_ROLLOUT).isoformat(),
            ),
            method_name="resume_step",
            timeout=LONGEST_ROLLOUT + timedelta(minutes=5),
        )
        return False

    def _wait_for_answers(
        self, cluster: ClusterHook, workload: dict[str, Any], pods: list[dict[str, Any]], *, above: int | None
    ) -> None:
        """Defer until the lowest pod above an ordinal answers a real query; only Weaviate is asked.

        Weaviate says *ready* seconds before it can answer; a second replica that goes away in that time loses reads.
        """
        from nephoran_maintenance.triggers.condition import WeaviateNodeTrigger, missing_on_pod

        known = self.profile.known_objects
        if self.described.policy != WEAVIATE_POLICY or above is None:
            return
        released = sorted((pod for pod in pods if ordinal_of(pod) > above), key=ordinal_of)
        if not released:
            return
        pod = released[0]["metadata"]["name"]
        namespace = workload["metadata"]["namespace"]
        port, _ = health_endpoint(workload, self.described, container_name(workload, self.described))
        asked: dict[str, Any] = {
            "collection": known.collection if known else "",
            "object_id": known.id_of(0) if known else None,
            "healthy_nodes": int(workload["spec"].get("replicas", 1)),
        }
        asked |= {"namespace": namespace, "pod": pod, "port": port}
        try:
            missing = missing_on_pod(cluster, self.profile.connections.weaviate, **asked)
        except TransientError as error:
            missing = error.message
        if not missing:
            return
        self.log.info("Pod %s is ready but %s", pod, missing)
        self.defer(
            trigger=WeaviateNodeTrigger(
                connection_id=self.kubernetes_connection_id,
                weaviate_connection_id=self.profile.connections.weaviate,
                deadline_at=(datetime.now(UTC) + self.profile.rollout.no_progress_limit).isoformat(),
                **asked,
            ),
            method_name="resume_step",
            timeout=self.profile.rollout.no_progress_limit + timedelta(minutes=1),
        )

    def rollout_failure(
        self, cluster: ClusterHook, workload: dict[str, Any], container: str, event: dict[str, Any]
    ) -> Exception:
        """Return the error for a rollout that failed, with the pod's events and last log lines in it."""
        from nephoran_maintenance.hooks.evidence import collect_evidence
        from nephoran_maintenance.sensors.rollout import rollout_error

        evidence = collect_evidence(
            cluster,
            namespace=workload["metadata"]["namespace"],
            kind=workload["kind"],
            name=workload["metadata"]["name"],
            pod=event.get("pod"),
            container=container,
        )
        return rollout_error(event, evidence)

    def check_event(self, cluster: ClusterHook, event: dict[str, Any], container: str) -> None:
        """Raise what a trigger's event has to say, when it is not good news."""
        if event["state"] == "complete":
            return
        if "cause" in event:
            raise self.rollout_failure(cluster, self.workload(cluster), container, event)
        raise PermanentError(
            event.get("reference") or "weaviate-not-answering",
            f"{self.component}: pod {event.get('pod')} is ready but does not answer: {event.get('missing')}",
            context={"component": self.component},
            hint=event.get("hint") or "Look at this pod's log and at /v1/cluster/statistics.",
        )
