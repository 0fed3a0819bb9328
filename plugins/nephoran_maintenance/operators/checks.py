"""The checks of preflight: each reads one subject and leaves findings; none of them stops the run by itself."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from nephoran_maintenance.airflow_edge import standing_of
from nephoran_maintenance.domain import freshness, ownership, preflight
from nephoran_maintenance.domain.findings import Finding
from nephoran_maintenance.domain.intents import IntentKind, count_active, served_kinds
from nephoran_maintenance.domain.quarantine import check_quarantine
from nephoran_maintenance.domain.upgrade import permissions_for, requested_image
from nephoran_maintenance.domain.vantage_point import is_own
from nephoran_maintenance.engine.live import container_name
from nephoran_maintenance.errors import MaintenanceError, PermanentError, TransientError
from nephoran_maintenance.operators.admission import released_from_quarantine, request_of
from nephoran_maintenance.operators.backup_freshness import BACKUP_DAG, newest_backups
from nephoran_maintenance.operators.backup_readiness import can_be_opened, check_backup_keys
from nephoran_maintenance.operators.base import StepOperator

if TYPE_CHECKING:
    from airflow.sdk import Context

Findings = list[Finding]
LONGEST_BACKUP = timedelta(hours=24)
"""As long as Weaviate's own part of a backup is waited for."""


def workloads(step: StepOperator, context: Context) -> dict[str, dict[str, Any]]:
    """Return the live workload of each chosen component."""
    cluster, profile = step.cluster(), step.profile
    chosen = [profile.component(name) for name in request_of(context).components]
    return {c.name: cluster.get_workload(c, profile.namespace_of(c)) for c in chosen}


def check_pods(step: StepOperator, _: Context) -> Findings:
    pods = [pod for pod in step.cluster().list("Pod", step.profile.namespaces.system) if not is_own(pod)]
    return preflight.check_pods(pods, datetime.now(UTC))


def check_rollouts(step: StepOperator, context: Context) -> Findings:
    return preflight.check_rollouts(workloads(step, context))


def check_ownership(step: StepOperator, context: Context) -> Findings:
    chosen = workloads(step, context)
    containers = {name: container_name(w, step.profile.component(name)) for name, w in chosen.items()}
    return ownership.check_ownership(chosen, containers)


def check_capacity(step: StepOperator, context: Context) -> Findings:
    cluster, system = step.cluster(), step.profile.namespaces.system
    policies = {component.name: step.profile.policy_of(component) for component in step.profile.components}
    surges = {
        name: preflight.surge_of(workload, policies[name].get("max_surge"))
        for name, workload in workloads(step, context).items()
        if workload["kind"] == "Deployment"
    }
    nodes = cluster.nodes()
    findings = preflight.check_headroom(nodes, cluster.list("Pod"), surges)
    findings += preflight.check_quotas(cluster.list("ResourceQuota", system), surges)
    summaries = [cluster.node_summary(node["metadata"]["name"]) for node in nodes]
    usage = None if None in summaries else preflight.volume_usage([s for s in summaries if s], system)
    return findings + preflight.check_volumes(cluster.list("PersistentVolumeClaim", system), usage)


def check_disruption(step: StepOperator, _: Context) -> Findings:
    cluster, system = step.cluster(), step.profile.namespaces.system
    findings = preflight.check_disruption_budgets(cluster.list("PodDisruptionBudget", system), drains=False)
    return findings + preflight.check_autoscalers(cluster.list("HorizontalPodAutoscaler", system))


def check_images(step: StepOperator, context: Context) -> Findings:
    from nephoran_maintenance.hooks.image_registry import ImageRegistryHook

    request, profile = request_of(context), step.profile
    registry = ImageRegistryHook(profile.connections.image_registry, plain_http=profile.registry.plain_http or None)
    quarantine = step.quarantine(step.cluster()).all()
    findings = []
    for name, workload in workloads(step, context).items():
        component = profile.component(name)
        container = container_name(workload, component)
        containers = workload["spec"]["template"]["spec"]["containers"]
        running = next(c["image"] for c in containers if c["name"] == container)
        if not (request.images.get(name) or request.version):
            continue
        reference = str(requested_image(request, component, running))
        digest, released = registry.find_digest(reference), released_from_quarantine(context, name)
        held = check_quarantine(quarantine, name, digest, released=released)
        findings += [preflight.check_image(name, reference, digest), *([held] if held else [])]
    return findings or [Finding("images", "pass", "images", "no version was asked for", "in the registry")]


def check_gates(step: StepOperator, context: Context) -> Findings:
    from nephoran_maintenance.domain.gate import REQUESTS
    from nephoran_maintenance.hooks.prometheus_api import PrometheusHook
    from nephoran_maintenance.operators.gate_queries import queries_of

    profile, findings = step.profile, []
    prometheus = PrometheusHook(profile.connections.prometheus)
    for name, workload in workloads(step, context).items():
        component = profile.component(name)
        if component.gate and not profile.gate.off:
            place = {"namespace": profile.namespace_of(component), "kind": workload["kind"]}
            place["name"] = workload["metadata"]["name"]
            window = timedelta(seconds=profile.gate.window_seconds)
            promql = queries_of(component, [REQUESTS], place, window)[REQUESTS]
            findings.append(preflight.check_gate_series(name, len(prometheus.query(promql, datetime.now(UTC)))))
    return findings or [Finding("gates", "pass", "gates", "no chosen component has one", "series for each gate")]


def check_permissions(step: StepOperator, context: Context) -> Findings:
    cluster = step.cluster()
    groups = [kind.group for kind in served_kinds(cluster.crds(), step.profile.intents)]
    accesses = permissions_for(step.profile, groups, changing="mode" in context["params"])
    return preflight.check_permissions(accesses, cluster.can_i(accesses), cluster.who_am_i())


def check_backup(step: StepOperator, context: Context) -> Findings:
    cluster = step.cluster()
    findings = check_cron_jobs(step)
    if step.profile.backup.before_change != "none":
        findings += check_backup_keys(step.profile, datetime.now(UTC), needed_until(step, context))
    if not step.profile.backup.signers:
        return [freshness.not_configured(), *findings]
    # Those that were made count without recipients; to take them out of the profile must not open the way.
    if not can_be_opened(step.profile):
        findings.append(freshness.not_made())
    uid = str(cluster.get("Namespace", "kube-system")["metadata"]["uid"])
    newest = newest_backups(step.profile, uid)
    findings += freshness.check_standing(standing_of(context["ti"], BACKUP_DAG, datetime.now(UTC)))
    rpo, when_stale = timedelta(hours=step.profile.targets.rpo_hours), step.profile.backup.when_stale
    return [*freshness.check_freshness(newest, datetime.now(UTC), rpo, when_stale=when_stale), *findings]


def check_cron_jobs(step: StepOperator) -> Findings:
    """Return the suspended CronJobs of the whole cluster that make backups, or of where they may be listed."""
    cluster, own = step.cluster(), step.profile.namespaces.of_the_system
    try:
        return freshness.check_cron_jobs(cluster.list("CronJob"))
    except PermanentError as error:
        if error.reference != "cluster-forbidden":
            raise
    jobs = [job for name in own for job in cluster.list("CronJob", name)]
    return [*freshness.check_cron_jobs(jobs), freshness.only_listed_in(own)]


def needed_until(step: StepOperator, context: Context) -> datetime:
    """Return until when the keys of the backup before the change must live.

    Counted from the beginning of the run, so that what is approved is not refused by the same check later.
    """
    approvable = timedelta(minutes=step.profile.category(request_of(context).category).expires_minutes)
    began: datetime | None = context["dag_run"].start_date
    return (began or datetime.now(UTC)) + approvable + LONGEST_BACKUP


def check_intents(step: StepOperator, _: Context) -> Findings:
    active, kinds = count_intents(step)
    return preflight.check_intents(
        active, step.profile.intents.active_limit, timedelta(), [kind.group for kind in kinds]
    )


def count_intents(step: StepOperator) -> tuple[int, list[IntentKind]]:
    """Return the number of NetworkIntents in work, and the kinds of them that the cluster serves."""
    from nephoran_maintenance.hooks.kubernetes_rest import Resource

    intents, cluster = step.profile.intents, step.cluster()
    kinds = served_kinds(cluster.crds(), intents)
    found = (cluster.list(Resource(kind.group, kind.version, kind.plural)) for kind in kinds)
    return sum(count_active(items, intents) for items in found), kinds


CHECKS: dict[str, Callable[[StepOperator, Context], Findings]] = {
    "pods": check_pods,
    "rollouts": check_rollouts,
    "ownership": check_ownership,
    "capacity": check_capacity,
    "disruption": check_disruption,
    "images": check_images,
    "gates": check_gates,
    "permissions": check_permissions,
    "backup": check_backup,
}


class CheckOperator(StepOperator):
    """Check one subject and return its findings as plain data.

    What can't be measured is a *block*, not an error: the other findings are worth reading too. A transient error is
    retried first. Changes nothing. Safe to repeat: yes.

    :param subject: a key of ``CHECKS``.
    """

    def __init__(self, *, subject: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.subject = subject

    def act(self, context: Context) -> list[dict[str, Any]]:
        return gathered(self, self.subject, lambda: CHECKS[self.subject](self, context), context)


def gathered(step: StepOperator, subject: str, check: Callable[[], Findings], context: Context) -> list[dict[str, Any]]:
    """Return the findings of one check as plain data; what could not be read is one that blocks.

    :raises TransientError: while the step has retries left.
    """
    try:
        findings = check()
    except MaintenanceError as error:
        if isinstance(error, TransientError) and context["ti"].try_number <= (step.retries or 0):
            raise
        findings = [not_measured(subject, error)]
    return [finding.to_dict() for finding in findings]


def not_measured(subject: str, error: MaintenanceError) -> Finding:
    """Return the blocking finding for a subject that could not be read."""
    return Finding(subject, "block", subject, f"not measured: {error.message}", "a measurement", error.hint)


class CheckIntentsOperator(StepOperator):
    """Count the NetworkIntents in work; while there are too many, wait for them, up to the profile's limit."""

    def act(self, context: Context) -> list[dict[str, Any]]:
        from nephoran_maintenance.triggers.condition import FewPhasesTrigger

        intents = self.profile.intents
        active, kinds = count_intents(self)
        if active < intents.active_limit or not kinds or not intents.wait_seconds:
            return self.findings(active, timedelta(), [kind.group for kind in kinds])
        self.log.info("%d intents in work, %d or more block a change: waiting", active, intents.active_limit)
        limit = timedelta(seconds=intents.wait_seconds)
        self.defer(
            trigger=FewPhasesTrigger(
                connection_id=self.kubernetes_connection_id,
                resources=[{"group": k.group, "version": k.version, "plural": k.plural} for k in kinds],
                final_phases=[*intents.success, *intents.failure],
                limit=intents.active_limit,
                deadline_at=(datetime.now(UTC) + limit).isoformat(),
            ),
            method_name="resume_step",
            kwargs={"groups": [kind.group for kind in kinds]},
            timeout=limit + timedelta(minutes=2),
        )
        return []

    def resume_step(self, context: Context, event: dict[str, Any], groups: list[str] | None = None) -> Any:
        if event["active"] is None:
            error = TransientError(event.get("reference") or "intents-not-read", event["message"], hint=event["hint"])
            return [not_measured("intents", error).to_dict()]
        return self.findings(event["active"], timedelta(seconds=event["seconds"]), groups or [])

    def findings(self, active: int, waited: timedelta, groups: list[str]) -> list[dict[str, Any]]:
        limit = self.profile.intents.active_limit
        return [finding.to_dict() for finding in preflight.check_intents(active, limit, waited, groups)]
