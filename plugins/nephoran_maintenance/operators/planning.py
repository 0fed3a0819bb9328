"""The plan: tags become digests, a server-side dry run shows each difference."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from airflow.sdk.exceptions import DownstreamTasksSkipped

from nephoran_maintenance.domain.images import ImageReference
from nephoran_maintenance.domain.order import all_needs
from nephoran_maintenance.domain.patches import policy_patch, record_before, same_spec, with_image
from nephoran_maintenance.domain.plan import Change, Plan, difference, plan_hash
from nephoran_maintenance.domain.plan_words import in_words
from nephoran_maintenance.domain.step_ids import REPORTING_STEPS
from nephoran_maintenance.domain.upgrade import (
    WEAVIATE_POLICY,
    Running,
    Target,
    UpgradeRequest,
    check_target,
    requested_components,
    requested_image,
    version_of_image,
)
from nephoran_maintenance.engine.live import container_name, running_digests
from nephoran_maintenance.errors import PermanentError
from nephoran_maintenance.operators.admission import request_of
from nephoran_maintenance.operators.base import StepOperator

if TYPE_CHECKING:
    from airflow.sdk import Context

    from nephoran_maintenance.hooks.cluster import ClusterHook
    from nephoran_maintenance.hooks.image_registry import ImageRegistryHook
    from nephoran_maintenance.profile import Component

PLAN_KEY = "plan"
HASH_KEY = "plan_hash"
PLANNED_AT_KEY = "planned_at"


class PlanUpgradeOperator(StepOperator):
    """Compute what the run would change and leave it in the XComs ``plan`` and ``plan_hash``.

    In plan mode, and when there is nothing to do, it skips all steps but the report.
    Changes nothing: differences come from the API server's dry run. Safe to repeat: yes.
    """

    def act(self, context: Context) -> Any:
        request = request_of(context)
        plan = self.planned(request)
        for change in plan.changes:
            self.log.info("%s, %s:\n%s", change.component, change.kind, change.diff)
        for note in plan.nothing_to_do:
            self.log.info("%s", note)
        digest = plan_hash(plan)
        context["ti"].xcom_push(key=PLAN_KEY, value=json.loads(plan.model_dump_json()))
        context["ti"].xcom_push(key=HASH_KEY, value=digest)
        context["ti"].xcom_push(key=PLANNED_AT_KEY, value=datetime.now(UTC).isoformat())
        self.log.info("Plan %s: %d changes", digest, len(plan.changes))
        if request.plan_hash not in (None, digest):
            raise other_plan(plan, digest, str(request.plan_hash))
        if request.mode == "plan" or not plan.changes:
            downstream = sorted(self.get_flat_relative_ids(upstream=False))
            raise DownstreamTasksSkipped(tasks=[step for step in downstream if step not in REPORTING_STEPS])

    def planned(self, request: UpgradeRequest) -> Plan:
        """Return the plan for the live objects."""
        profile, cluster, registry = self.profile, self.cluster(), self.registry()
        changes: list[Change] = []
        idle: list[str] = []
        for component in requested_components(request, profile):
            own, note = self.changes_of(cluster, registry, request, component)
            changes += own
            idle += [note] if note else []
        return Plan(
            procedure=self.dag_id, system=profile.metadata.name, changes=tuple(changes), nothing_to_do=tuple(idle)
        )

    def changes_of(
        self, cluster: ClusterHook, registry: ImageRegistryHook, request: UpgradeRequest, component: Component
    ) -> tuple[list[Change], str | None]:
        """Return the changes that bring one component where the request wants it, or why there are none."""
        profile = self.profile
        workload = cluster.get_workload(component, profile.namespace_of(component))
        container = container_name(workload, component)
        before = record_before(workload, container)
        reference = requested_image(request, component, before["image"])
        running, target = self.look(cluster, registry, workload, component, container, reference)
        if not check_target(request, component, running, target):
            return [], f"{component.name}: {reference} ({target.digest}) already runs; nothing to do"
        about = {
            "kind": workload["kind"],
            "namespace": workload["metadata"]["namespace"],
            "name": workload["metadata"]["name"],
        }
        changes: list[Change] = []
        fixed: dict[str, Any] = {
            "component": component.name,
            "workload": about,
            "criticality": component.criticality,
            "needs": all_needs(profile.components, component.name),
        }
        patch = policy_patch(workload, container, profile.policy_of(component))
        with_policy = self.as_stored(cluster, workload, patch)
        state = before
        if not same_spec(with_policy, before):
            after = record_before(with_policy, container)
            changes.append(
                Change(
                    **fixed,
                    kind="policy",
                    before=before,
                    after=after,
                    diff=difference(component.name, before, after),
                )
            )
            state = after
        pinned = str(reference.with_digest(target.digest or ""))
        after = record_before(self.as_stored(cluster, workload, with_image(patch, pinned)), container)
        if after["template"] != state["template"]:
            changes.append(
                Change(
                    **fixed,
                    kind="image",
                    before=state,
                    after=after,
                    digest=target.digest,
                    digest_before=running.digests[0] if len(running.digests) == 1 else None,
                    diff=difference(component.name, state, after),
                )
            )
        return changes, None

    def look(
        self,
        cluster: ClusterHook,
        registry: ImageRegistryHook,
        workload: dict[str, Any],
        component: Component,
        container: str,
        reference: ImageReference,
    ) -> tuple[Running, Target]:
        """Return what runs and where the request leads, read from the cluster, the registry and Weaviate itself."""
        from nephoran_maintenance.hooks.weaviate_api import WeaviateHook

        image = record_before(workload, container)["image"]
        digests = {digest for digest in running_digests(cluster.pods_of(workload), container).values() if digest}
        digest = registry.find_digest(str(reference))
        weaviate = component.policy == WEAVIATE_POLICY
        version = WeaviateHook(self.profile.connections.weaviate).version() if weaviate else None
        labels = registry.config_labels(str(reference)) if weaviate and digest else {}
        return (
            Running(component=component.name, image=image, version=version, digests=tuple(sorted(digests))),
            Target(
                component=component.name,
                reference=str(reference),
                digest=digest,
                version=version_of_image(reference, labels) if weaviate else None,
            ),
        )

    def as_stored(self, cluster: ClusterHook, workload: dict[str, Any], patch: dict[str, Any]) -> dict[str, Any]:
        """Return the object as the API server would store it."""
        metadata = workload["metadata"]
        stored = cluster.patch(
            workload["kind"], metadata["name"], metadata["namespace"], patch, patch_type="strategic", dry_run=True
        )
        return {**stored, "kind": workload["kind"]}

    def registry(self) -> ImageRegistryHook:
        from nephoran_maintenance.hooks.image_registry import ImageRegistryHook

        return ImageRegistryHook(
            self.profile.connections.image_registry, plain_http=self.profile.registry.plain_http or None
        )


def other_plan(plan: Plan, digest: str, wanted: str) -> PermanentError:
    """Return the error for a plan that is not the one whose hash was given."""
    words = [*map(in_words, plan.changes), *plan.nothing_to_do]
    return PermanentError(
        "plan-hash-differs",
        f"the run was asked for with the plan {wanted}, and the plan is {digest} now: {'; '.join(words)}",
        hint="Nothing was changed. Compare with the report of the plan that was meant, run mode=plan again, and give the "
        "hash that its report shows.",
    )
