"""The shapes in which the lab's system can be deployed: pure data, read by the manifests and the seed."""

from __future__ import annotations

from dataclasses import dataclass, replace

from lab.failure import LabError

SYSTEM_NAMESPACE = "nephoran-system"
MONITORING_NAMESPACE = "nephoran-monitoring"
MAINTENANCE_NAMESPACE = "nephoran-maintenance"
SANDBOX_NAMESPACE = "nephoran-sandbox"
"""Where test intents point at; nothing runs in it."""

WEAVIATE = "weaviate"
STATELESS_PORTS = {"rag-api": 8000, "llm-processor": 8080, "nephio-bridge": 8081, "oran-adaptor": 8082}
"""Port of each stateless component's Service, in every layout."""
OPERATOR = "nephoran-operator-controller-manager"
COMPONENTS = (WEAVIATE, *STATELESS_PORTS, "operator")
"""Names under which a version can be chosen, in upgrade order; also the last part of the image's repository."""


@dataclass(frozen=True)
class Probe:
    """Hold the timing of one probe, in seconds and tries as Kubernetes has them."""

    delay_seconds: int
    period_seconds: int
    timeout_seconds: int
    failures: int


@dataclass(frozen=True)
class Timing:
    """Hold everything about a component that is a duration."""

    readiness: Probe
    liveness: Probe
    grace_period_seconds: int
    pre_stop_seconds: int
    progress_deadline_seconds: int


REAL = Timing(Probe(10, 5, 3, 3), Probe(30, 10, 5, 3), 60, 15, 600)
"""The rolling-update policy of the product's profile for stateless components."""
REAL_WEAVIATE = Timing(Probe(3, 5, 3, 3), Probe(30, 10, 5, 3), 60, 15, 600)
"""The same profile's policy for Weaviate."""
FAST = Timing(Probe(0, 1, 1, 3), Probe(5, 5, 2, 3), 10, 3, 30)
"""Short enough for a matrix of tests; a slow start of 20 s still passes.

One second of preStop is not enough: on a busy machine the endpoints forget a pod later than that."""
FAST_WEAVIATE = Timing(Probe(0, 1, 2, 3), Probe(15, 5, 3, 3), 20, 3, 30)


@dataclass(frozen=True)
class Variant:
    """Describe one shape of the system.

    ``policy`` false leaves out what the profile's rolling-update policy would set, as a system that nobody tended.
    ``chart_layout`` is the Helm chart's shape: other workload names, only ``app.kubernetes.io/*`` labels, a sidecar
    before the component's container, other container ports, Weaviate as a Deployment. Services keep name and port.
    """

    name: str
    timing: Timing = REAL
    weaviate_timing: Timing = REAL_WEAVIATE
    policy: bool = True
    chart_layout: bool = False
    weaviate_replicas: int = 3
    json_metrics: bool = False
    knowledge_objects: int = 2000
    other_objects: int = 500

    def workload_name(self, component: str) -> str:
        """Return the workload's name for ``weaviate``, ``rag-api`` … or ``operator``."""
        if component == "operator":
            return OPERATOR
        return f"nephoran-{component}" if self.chart_layout else component

    def workload_kind(self, component: str) -> str:
        """Return ``StatefulSet`` or ``Deployment``."""
        return "StatefulSet" if component == WEAVIATE and not self.chart_layout else "Deployment"

    def container_name(self, component: str) -> str:
        """Return the name of the container that carries the component's image."""
        return "manager" if component == "operator" else component

    def labels(self, component: str) -> dict[str, str]:
        """Return the labels that select the component's pods."""
        if self.chart_layout:
            return {
                "app.kubernetes.io/name": "nephoran-intent-operator",
                "app.kubernetes.io/instance": "nephoran",
                "app.kubernetes.io/component": component,
            }
        if component == "operator":
            return {"app": OPERATOR, "control-plane": "controller-manager"}
        return {"app": component}

    def container_port(self, component: str) -> int:
        """Return the port that the container listens on."""
        if self.chart_layout:
            chart_ports = {"rag-api": 5001, "nephio-bridge": 8082, "oran-adaptor": 8083, WEAVIATE: 8090}
            if component in chart_ports:
                return chart_ports[component]
        return {**STATELESS_PORTS, WEAVIATE: 8080, "operator": 8081}[component]

    def replicas(self, component: str) -> int:
        """Return how many pods the component has."""
        if component == WEAVIATE:
            return self.weaviate_replicas
        return 1 if component in ("nephio-bridge", "operator") else 2


_STANDARD = Variant("standard")
_FAST = replace(
    _STANDARD,
    name="fast",
    timing=FAST,
    weaviate_timing=FAST_WEAVIATE,
    knowledge_objects=500,
    other_objects=100,
)

VARIANTS = {
    variant.name: variant
    for variant in (
        _STANDARD,
        _FAST,
        replace(_FAST, name="no-policy", policy=False),
        replace(_FAST, name="other-layout", chart_layout=True, weaviate_replicas=1),
        replace(_STANDARD, name="weaviate-single", weaviate_replicas=1),
        replace(_FAST, name="json-metrics", json_metrics=True),
    )
}


def variant_named(name: str) -> Variant:
    """Return the variant; raise ``LabError`` naming the known ones."""
    try:
        return VARIANTS[name]
    except KeyError:
        raise LabError(f"There is no variant {name!r}.", hint=f"Choose one of {', '.join(VARIANTS)}.") from None
