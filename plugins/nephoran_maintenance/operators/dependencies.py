"""The check of what the system can't work without: Weaviate, and what is outside the cluster."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from nephoran_maintenance.domain import preflight
from nephoran_maintenance.domain.findings import Finding
from nephoran_maintenance.domain.upgrade import WEAVIATE_POLICY
from nephoran_maintenance.domain.vantage_point import (
    CONTAINER,
    LABELS,
    LONGEST_QUESTION_SECONDS,
    answered_status,
    no_answer,
    question_job,
)
from nephoran_maintenance.engine.live import container_name, health_endpoint
from nephoran_maintenance.errors import MaintenanceError
from nephoran_maintenance.operators.base import StepOperator, operation_of
from nephoran_maintenance.operators.checks import gathered

if TYPE_CHECKING:
    from airflow.sdk import Context

    from nephoran_maintenance.hooks.cluster import ClusterHook
    from nephoran_maintenance.hooks.weaviate_api import WeaviateHook
    from nephoran_maintenance.profile import Dependency

SUBJECT = "dependencies"


class CheckDependenciesOperator(StepOperator):
    """Ask everything that the system depends on and return findings as plain data; none of them stops the run by itself.

    With a vantage point in the profile, what is outside is asked by a Job in the system's namespace, as the system sees
    it; without one it is asked by the Airflow worker, and the finding says so. Weaviate answers an authenticated query
    on one of its own pods. Leaves nothing: the Jobs are deleted, and Kubernetes deletes what a dead worker has left.
    Safe to repeat: yes.
    """

    def act(self, context: Context) -> list[dict[str, Any]]:
        from nephoran_maintenance.triggers.condition import JobsTrigger

        if self.profile.vantage_point is None or not self.profile.dependencies:
            return self.findings(context, self.asked_by_worker)
        cluster, operation = self.cluster(), operation_of(context)
        names = []
        try:
            for job in self.jobs(operation):
                names.append(job["metadata"]["name"])
                if cluster.find("Job", names[-1], self.profile.namespaces.system) is None:
                    cluster.create(job)
        except MaintenanceError as error:
            text = f"not measured: {error.message}"
            return self.findings(context, lambda: [self.finding(d, text, None) for d in self.profile.dependencies])
        self.defer(
            trigger=JobsTrigger(
                connection_id=self.kubernetes_connection_id,
                namespace=self.profile.namespaces.system,
                names=names,
                deadline_at=(datetime.now(UTC) + timedelta(seconds=LONGEST_QUESTION_SECONDS + 30)).isoformat(),
            ),
            method_name="resume_step",
            timeout=timedelta(seconds=LONGEST_QUESTION_SECONDS + 120),
        )
        return []

    def resume(self, context: Context, event: dict[str, Any]) -> list[dict[str, Any]]:
        return self.findings(context, lambda: self.asked_by_jobs(operation_of(context)))

    def findings(self, context: Context, ask: Callable[[], list[Finding]]) -> list[dict[str, Any]]:
        def both() -> list[Finding]:
            return [*ask(), *self.weaviate()]

        return gathered(self, SUBJECT, both, context)

    def jobs(self, operation: str) -> list[dict[str, Any]]:
        """Return one Job per dependency of the profile."""
        point, namespace = self.profile.vantage_point, self.profile.namespaces.system
        if point is None:
            return []
        return [
            question_job(operation, number, namespace, image=point.image, command=point.command, url=dependency.url)
            for number, dependency in enumerate(self.profile.dependencies)
        ]

    def asked_by_worker(self) -> list[Finding]:
        from nephoran_maintenance.hooks.http_api import send

        found = []
        for dependency in self.profile.dependencies:
            try:
                status = send(dependency.name, "GET", dependency.url, connection_id=dependency.connection).status
            except MaintenanceError as error:
                found.append(self.finding(dependency, error.message, None, "the Airflow worker"))
            else:
                found.append(self.finding(dependency, f"status {status}", status, "the Airflow worker"))
        return found

    def asked_by_jobs(self, operation: str) -> list[Finding]:
        """Read what the Jobs have printed, and delete them."""
        cluster, namespace = self.cluster(), self.profile.namespaces.system
        found = []
        for dependency, job in zip(self.profile.dependencies, self.jobs(operation), strict=True):
            name = job["metadata"]["name"]
            pods = cluster.list("Pod", namespace, {**LABELS, "batch.kubernetes.io/job-name": name})
            log = self.log_of(cluster, pods)
            status = answered_status(log)
            observed = f"status {status}" if status is not None else no_answer(log, pods)
            found.append(self.finding(dependency, observed, status))
            cluster.delete("Job", name, namespace)
        return found

    @staticmethod
    def log_of(cluster: ClusterHook, pods: list[dict[str, Any]]) -> str:
        """Return what the question's pod has printed; empty when it has not come so far."""
        for pod in pods:
            try:
                return cluster.logs(pod["metadata"]["namespace"], pod["metadata"]["name"], CONTAINER)
            except MaintenanceError:
                continue
        return ""

    def finding(
        self, dependency: Dependency, observed: str, status: int | None, vantage_point: str | None = None
    ) -> Finding:
        expected = f"status {' or '.join(map(str, dependency.reachable))}"
        point = vantage_point or f"a pod in namespace {self.profile.namespaces.system}"
        return preflight.check_dependency(dependency.name, observed, status in dependency.reachable, expected, point)

    def weaviate(self) -> list[Finding]:
        """Ask one pod of each Weaviate for the first and the last of the known objects, with the API key."""
        from nephoran_maintenance.hooks.weaviate_api import WeaviateHook

        findings = []
        expected = "an answer to an authenticated query"
        for component in self.profile.components:
            if component.policy != WEAVIATE_POLICY:
                continue
            cluster, namespace = self.cluster(), self.profile.namespace_of(component)
            workload = cluster.get_workload(component, namespace)
            pods = cluster.pods_of(workload)
            port = health_endpoint(workload, component, container_name(workload, component))[0]
            if not pods:
                findings.append(
                    preflight.check_dependency("weaviate", "no pod", False, expected, f"namespace {namespace}")
                )
            for pod in pods[:1]:
                name = pod["metadata"]["name"]
                with cluster.port_forward(namespace, name, port) as url:
                    observed, good = self.asked_weaviate(WeaviateHook(self.profile.connections.weaviate, base_url=url))
                findings.append(
                    preflight.check_dependency("weaviate", observed, good, expected, f"pod {namespace}/{name}")
                )
        return findings

    def asked_weaviate(self, weaviate: WeaviateHook) -> tuple[str, bool]:
        known = self.profile.known_objects
        version = f"version {weaviate.version()}"
        if known is None:
            return f"{version}, answers an authenticated query", bool(weaviate.schema())
        for number in (0, known.count - 1):
            if weaviate.get_object(known.collection, known.id_of(number)) is None:
                # The probe would count every request for it as a failure of the change.
                return f"{version}, no object {number} of the {known.count} known ones in {known.collection}", False
        return f"{version}, answers an authenticated query", True
