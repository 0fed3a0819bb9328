"""The first step of a procedure: bad input, an unreachable cluster and missing objects end the run here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nephoran_maintenance.domain.approval import check_rule, rule_for
from nephoran_maintenance.domain.gate_question import check_persons
from nephoran_maintenance.domain.intents import served_kinds
from nephoran_maintenance.domain.patches import container_of
from nephoran_maintenance.domain.preflight import check_permissions
from nephoran_maintenance.domain.upgrade import (
    UpgradeRequest,
    permissions_for,
    requested_components,
    requested_image,
)
from nephoran_maintenance.engine.live import container_name
from nephoran_maintenance.errors import PermanentError
from nephoran_maintenance.operators.base import StepOperator, checked_params
from nephoran_maintenance.operators.gate_queries import check_queries

if TYPE_CHECKING:
    from airflow.sdk import Context


def request_of(context: Context) -> UpgradeRequest:
    """Return the run's parameters, checked for their types.

    :raises PermanentError: ``parameters-invalid``, naming the parameter.
    """
    return checked_params(context, UpgradeRequest)


def released_from_quarantine(context: Context, component: str) -> bool:
    """Return whether a person asks for a component in spite of its quarantine: a run by hand that names it."""
    by_hand = context["dag_run"].run_type.value == "manual"
    return by_hand and component in request_of(context).release_quarantine


class CheckRequestOperator(StepOperator):
    """Check parameters, profile, approvers, queries of the gates, cluster, permissions and that every component exists.

    Returns ``{"mode", "components", "cluster_version", "account"}``. Changes nothing. Safe to repeat: yes.
    """

    def act(self, context: Context) -> dict[str, Any]:
        profile = self.profile
        request = request_of(context)
        changing = "mode" in context["params"]
        if changing:
            check_queries(profile)
        if request.mode == "apply":
            rule = rule_for(profile, request.category, context["dag_run"].triggering_user_name)
            check_rule(rule)
            if not profile.gate.off and profile.category(request.category).unknown_metrics == "ask":
                check_persons(rule)
        chosen = [profile.component(name) for name in request.components]
        if changing or request.version or request.images:
            chosen = requested_components(request, profile)
        cluster = self.cluster()
        version, account = cluster.server_version(), cluster.who_am_i()
        groups = [kind.group for kind in served_kinds(cluster.crds(), profile.intents)]
        accesses = permissions_for(profile, groups, changing=changing)
        denied = [f for f in check_permissions(accesses, cluster.can_i(accesses), account) if f.severity == "block"]
        if denied:
            raise PermanentError(
                "permission-missing",
                f"{account} {denied[0].observed}" + (f", and {len(denied) - 1} more" if len(denied) > 1 else ""),
                context={"connection": self.kubernetes_connection_id},
                hint=denied[0].hint,
            )
        for component in chosen:
            workload = cluster.get_workload(component, profile.namespace_of(component))
            if request.images.get(component.name) or request.version:
                container = container_of(workload, container_name(workload, component))
                requested_image(request, component, container["image"])
        names = [component.name for component in chosen]
        self.log.info("Kubernetes %s as %s; components in order: %s", version, account, ", ".join(names))
        return {"mode": request.mode, "components": names, "cluster_version": version, "account": account}
