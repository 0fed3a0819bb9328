"""The workloads of the lab's system as plain manifests: small functions from a variant to a dict."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lab import buckets
from lab.config import LabConfig
from lab.system import images
from lab.system.variants import (
    OPERATOR,
    STATELESS_PORTS,
    SYSTEM_NAMESPACE,
    WEAVIATE,
    Probe,
    Timing,
    Variant,
)

Manifest = dict[str, Any]

MANAGED = {"nephoran.com/lab": "system"}
"""Label of the workloads that the lab deploys, so that a switch of variants finds those of the variant before."""

API_KEY_SECRET = "weaviate-api-key"
BACKUP_SECRET = "weaviate-backup-s3"
WEAVIATE_METRICS_PORT = 2112
SIDECAR_PORT = 9091


def workloads(config: LabConfig, variant: Variant, versions: Mapping[str, str]) -> list[Manifest]:
    """Return every Deployment and StatefulSet; ``versions`` maps each component to its tag."""
    stateless = [_stateless(config, variant, name, versions[name]) for name in STATELESS_PORTS]
    return [
        _weaviate(config, variant, versions[WEAVIATE]),
        *stateless,
        _operator(config, variant, versions["operator"]),
    ]


def services(config: LabConfig, variant: Variant) -> list[Manifest]:
    """Return the Services; those that programs outside the cluster use have addresses known beforehand."""
    found = [
        _service(WEAVIATE, variant.labels(WEAVIATE), [("http", 8080, "http")], config.service_address(WEAVIATE)),
        _headless(
            "weaviate-headless",
            variant.labels(WEAVIATE),
            [("http", 8080), ("gossip", 7000), ("data", 7001), ("raft", 8300), ("raft-rpc", 8301)],
        ),
        _headless("oran-adaptor-peers", variant.labels("oran-adaptor"), [("http", 8082)]),
    ]
    for name, port in STATELESS_PORTS.items():
        found.append(_service(name, variant.labels(name), [("http", port, "http")], config.service_address(name)))
    found.append(
        _service(OPERATOR, variant.labels("operator"), [("http", 8081, "http")], config.service_address(OPERATOR))
    )
    return found


def guards(variant: Variant) -> list[Manifest]:
    """Return the disruption budgets and the autoscaler (whose target the lab's load never reaches)."""
    budgets = [
        _manifest(
            "policy/v1", "PodDisruptionBudget", name, spec={**bound, "selector": {"matchLabels": variant.labels(name)}}
        )
        for name, bound in (
            (WEAVIATE, {"maxUnavailable": 1}),
            ("rag-api", {"minAvailable": 1}),
            ("llm-processor", {"minAvailable": 1}),
            ("oran-adaptor", {"minAvailable": 1}),
        )
    ]
    name = variant.workload_name("rag-api")
    autoscaler = _manifest(
        "autoscaling/v2",
        "HorizontalPodAutoscaler",
        "rag-api",
        spec={
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": name},
            "minReplicas": 2,
            "maxReplicas": 4,
            # It follows a new lower bound at once; the default looks back for five minutes.
            "behavior": {"scaleDown": {"stabilizationWindowSeconds": 0}},
            "metrics": [
                {
                    "type": "Resource",
                    "resource": {"name": "cpu", "target": {"type": "AverageValue", "averageValue": "1500m"}},
                }
            ],
        },
    )
    return [*budgets, autoscaler]


def secrets(config: LabConfig) -> list[Manifest]:
    """Return the Secrets of the system: Weaviate's API key and its access to the staging bucket."""
    return [
        _manifest("v1", "Secret", API_KEY_SECRET, stringData={"api-key": config.secret("weaviate-api-key")}),
        _manifest(
            "v1",
            "Secret",
            BACKUP_SECRET,
            stringData={
                "access-key": buckets.STAGER.name,
                "secret-key": buckets.STAGER.secret(config),
            },
        ),
    ]


def _weaviate(config: LabConfig, variant: Variant, tag: str) -> Manifest:
    timing = variant.weaviate_timing
    port = variant.container_port(WEAVIATE)
    stateful = variant.workload_kind(WEAVIATE) == "StatefulSet"
    container: Manifest = {
        "name": WEAVIATE,
        "image": images.image(config, WEAVIATE, tag),
        # Arguments only, no command: which program runs is the image's business.
        "args": ["--host", "0.0.0.0", "--port", str(port), "--scheme", "http"],
        "ports": [
            {"name": "http", "containerPort": port},
            {"name": "metrics", "containerPort": WEAVIATE_METRICS_PORT},
        ],
        "env": _weaviate_environment(config, variant, stateful=stateful),
        "resources": {"requests": {"cpu": "50m", "memory": "160Mi"}},
        "volumeMounts": [{"name": "data", "mountPath": "/var/lib/weaviate"}],
        "readinessProbe": _http_probe("/v1/.well-known/ready", timing.readiness),
        # A node that replays its log is not dead: the liveness probe waits for this one.
        "startupProbe": _http_probe("/v1/.well-known/live", Probe(0, 2, 3, 60)),
    }
    if variant.policy:
        container["livenessProbe"] = _http_probe("/v1/.well-known/live", timing.liveness)
    template = _template(variant, WEAVIATE, container, timing, metrics_port=WEAVIATE_METRICS_PORT)
    spec: Manifest = {
        "replicas": variant.replicas(WEAVIATE),
        "selector": {"matchLabels": variant.labels(WEAVIATE)},
        "template": template,
    }
    claim = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
    if stateful:
        spec |= {
            "serviceName": "weaviate-headless",
            "podManagementPolicy": "Parallel",
            "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": claim}],
        }
        if variant.policy:
            spec["updateStrategy"] = {"type": "RollingUpdate", "rollingUpdate": {"partition": 0}}
    else:
        # Two processes can't have the data folder open at once, so the old one must go first.
        spec["strategy"] = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}}
        spec["progressDeadlineSeconds"] = timing.progress_deadline_seconds
        template["spec"]["volumes"] = [{"name": "data", "persistentVolumeClaim": {"claimName": "weaviate-pvc"}}]
    return _manifest(
        "apps/v1",
        variant.workload_kind(WEAVIATE),
        variant.workload_name(WEAVIATE),
        spec=spec,
        labels=variant.labels(WEAVIATE),
    )


def volume_claims(variant: Variant) -> list[Manifest]:
    """Return the claims that no StatefulSet makes by itself."""
    if variant.workload_kind(WEAVIATE) == "StatefulSet":
        return []
    claim = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
    return [_manifest("v1", "PersistentVolumeClaim", "weaviate-pvc", spec=claim)]


def _weaviate_environment(config: LabConfig, variant: Variant, *, stateful: bool) -> list[Manifest]:
    replicas = variant.weaviate_replicas
    # A Deployment's pods change their names: one node with a constant name is all that can keep its data.
    own_name: Manifest = (
        {"valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}} if stateful else {"value": "weaviate-0"}
    )
    plain = {
        "PORT": str(variant.container_port(WEAVIATE)),
        "PERSISTENCE_DATA_PATH": "/var/lib/weaviate",
        "DEFAULT_VECTORIZER_MODULE": "none",
        "ENABLE_MODULES": "backup-s3",
        "BACKUP_S3_BUCKET": buckets.STAGING,
        "BACKUP_S3_ENDPOINT": config.s3_endpoint.removeprefix("http://"),
        "BACKUP_S3_USE_SSL": "false",
        "AWS_REGION": "us-east-1",
        "AUTHENTICATION_ANONYMOUS_ACCESS_ENABLED": "false",
        "AUTHENTICATION_APIKEY_ENABLED": "true",
        "AUTHENTICATION_APIKEY_USERS": "nephoran-rag-user",
        "AUTHORIZATION_ADMINLIST_ENABLED": "true",
        "AUTHORIZATION_ADMINLIST_USERS": "nephoran-rag-user",
        "CLUSTER_GOSSIP_BIND_PORT": "7000",
        "CLUSTER_DATA_BIND_PORT": "7001",
        "RAFT_JOIN": ",".join(f"weaviate-{ordinal}" for ordinal in range(replicas)),
        "RAFT_BOOTSTRAP_EXPECT": str(replicas),
        # Between the word that it leaves and the end of its internal server. With the default of 0.2 s, busy peers still
        # send it reads that then wait for a pod that is gone.
        "RAFT_DRAIN_SLEEP": "2s",
        "PROMETHEUS_MONITORING_ENABLED": "true",
        "PROMETHEUS_MONITORING_PORT": str(WEAVIATE_METRICS_PORT),
        "DISABLE_TELEMETRY": "true",
        "LOG_LEVEL": "info",
        "GOMEMLIMIT": "350MiB",
        "GOMAXPROCS": "2",
    }
    if replicas > 1:
        # The name of all nodes, not of the first: that one must find the others too when it comes back.
        plain["CLUSTER_JOIN"] = f"weaviate-headless.{SYSTEM_NAMESPACE}.svc.cluster.local:7000"
    secret = {
        "AUTHENTICATION_APIKEY_ALLOWED_KEYS": (API_KEY_SECRET, "api-key"),
        "AWS_ACCESS_KEY_ID": (BACKUP_SECRET, "access-key"),
        "AWS_SECRET_ACCESS_KEY": (BACKUP_SECRET, "secret-key"),
    }
    return [
        {"name": "CLUSTER_HOSTNAME", **own_name},
        *_plain_environment(plain),
        *(
            {"name": name, "valueFrom": {"secretKeyRef": {"name": owner, "key": key}}}
            for name, (owner, key) in secret.items()
        ),
    ]


def _stateless(config: LabConfig, variant: Variant, name: str, tag: str) -> Manifest:
    environment: dict[str, str] = {"PORT": str(variant.container_port(name))}
    container = _standin_container(config, variant, name, name, tag)
    if name == "llm-processor":
        environment |= {"RAG_API_URL": _cluster_url("rag-api", 8000), "METRICS_ENABLED": "true"}
        if variant.json_metrics:
            environment["METRICS_FORMAT"] = "json"
    if name == "rag-api":
        environment |= {"WEAVIATE_URL": _cluster_url(WEAVIATE, 8080)}
        container["volumeMounts"] = [{"name": "weaviate-api-key", "mountPath": "/secrets/weaviate", "readOnly": True}]
    container["env"] = _plain_environment(environment)
    if name == "oran-adaptor":
        container["env"] += [
            {"name": "PEERS_HOST", "value": f"oran-adaptor-peers.{SYSTEM_NAMESPACE}.svc.cluster.local."},
            {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
        ]
    manifest = _deployment(config, variant, name, container)
    if name == "rag-api":
        volumes = [{"name": "weaviate-api-key", "secret": {"secretName": API_KEY_SECRET}}]
        manifest["spec"]["template"]["spec"]["volumes"] = volumes
    return manifest


def _operator(config: LabConfig, variant: Variant, tag: str) -> Manifest:
    container = _standin_container(config, variant, "operator", "manager", tag)
    container["env"] = _plain_environment({"PORT": "8081", "ORAN_ADAPTOR_URL": _cluster_url("oran-adaptor", 8082)})
    manifest = _deployment(config, variant, "operator", container)
    manifest["spec"]["template"]["spec"] |= {"serviceAccountName": OPERATOR, "automountServiceAccountToken": True}
    return manifest


def _standin_container(config: LabConfig, variant: Variant, component: str, name: str, tag: str) -> Manifest:
    container: Manifest = {
        "name": name,
        "image": images.image(config, component, tag),
        "ports": [{"name": "http", "containerPort": variant.container_port(component)}],
        "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}},
        "securityContext": {"readOnlyRootFilesystem": True, "allowPrivilegeEscalation": False},
        "readinessProbe": _http_probe("/readyz", variant.timing.readiness),
    }
    if variant.policy:
        container["livenessProbe"] = _http_probe("/healthz", variant.timing.liveness)
    return container


def _deployment(config: LabConfig, variant: Variant, component: str, container: Manifest) -> Manifest:
    template = _template(variant, component, container, variant.timing, metrics_port=variant.container_port(component))
    if variant.chart_layout and component != "operator":
        template["spec"]["containers"].insert(0, _sidecar(config))
    spec: Manifest = {
        "replicas": variant.replicas(component),
        "selector": {"matchLabels": variant.labels(component)},
        "template": template,
        "progressDeadlineSeconds": variant.timing.progress_deadline_seconds,
        "strategy": {
            "type": "RollingUpdate",
            "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}
            if variant.policy
            else {"maxSurge": 0, "maxUnavailable": 1},
        },
    }
    name = variant.workload_name(component)
    return _manifest("apps/v1", "Deployment", name, spec=spec, labels=variant.labels(component))


def _sidecar(config: LabConfig) -> Manifest:
    return {
        "name": "log-shipper",
        "image": images.image(config, "sidecar", "v1"),
        "env": _plain_environment({"PORT": str(SIDECAR_PORT)}),
        "ports": [{"name": "shipper", "containerPort": SIDECAR_PORT}],
        "resources": {"requests": {"cpu": "5m", "memory": "8Mi"}},
    }


def _template(variant: Variant, component: str, container: Manifest, timing: Timing, *, metrics_port: int) -> Manifest:
    spec: Manifest = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "containers": [container],
        "terminationGracePeriodSeconds": timing.grace_period_seconds,
    }
    if variant.policy:
        # Native sleep: the images have no shell. The pod goes on answering while the endpoints forget it.
        container["lifecycle"] = {"preStop": {"sleep": {"seconds": timing.pre_stop_seconds}}}
    annotations = {
        "prometheus.io/scrape": "true",
        "prometheus.io/port": str(metrics_port),
        "prometheus.io/path": "/metrics",
    }
    return {"metadata": {"labels": variant.labels(component), "annotations": annotations}, "spec": spec}


def _http_probe(path: str, timing: Probe) -> Manifest:
    return {
        "httpGet": {"path": path, "port": "http"},
        "initialDelaySeconds": timing.delay_seconds,
        "periodSeconds": timing.period_seconds,
        "timeoutSeconds": timing.timeout_seconds,
        "failureThreshold": timing.failures,
    }


def _service(name: str, selector: Mapping[str, str], ports: list[tuple[str, int, str]], address: str) -> Manifest:
    return _manifest(
        "v1",
        "Service",
        name,
        spec={
            "clusterIP": address,
            "selector": dict(selector),
            "ports": [{"name": port_name, "port": port, "targetPort": target} for port_name, port, target in ports],
        },
        labels=dict(selector),
    )


def _headless(name: str, selector: Mapping[str, str], ports: list[tuple[str, int]]) -> Manifest:
    spec = {
        "clusterIP": "None",
        # Weaviate's nodes must find one another before any of them is ready.
        "publishNotReadyAddresses": True,
        "selector": dict(selector),
        "ports": [{"name": port_name, "port": port} for port_name, port in ports],
    }
    return _manifest("v1", "Service", name, spec=spec, labels=dict(selector))


def _cluster_url(service: str, port: int) -> str:
    # The last dot keeps the resolver from trying the search domains first.
    return f"http://{service}.{SYSTEM_NAMESPACE}.svc.cluster.local.:{port}"


def _plain_environment(values: Mapping[str, str]) -> list[Manifest]:
    return [{"name": name, "value": value} for name, value in values.items()]


def _manifest(
    api_version: str,
    kind: str,
    name: str,
    *,
    namespace: str = SYSTEM_NAMESPACE,
    labels: Mapping[str, str] | None = None,
    **fields: Any,
) -> Manifest:
    metadata = {"name": name, "namespace": namespace, "labels": {**MANAGED, **(labels or {})}}
    return {"apiVersion": api_version, "kind": kind, "metadata": metadata, **fields}
