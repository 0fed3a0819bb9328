"""Start what stands beside the cluster: image registry, object store, LLM provider, Prometheus, metrics-server."""

from __future__ import annotations

import base64
import importlib
import json
import subprocess
import sys
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from types import ModuleType

from lab.buckets import S3_REGION
from lab.config import INSIDE, SERVICES, LabConfig
from lab.control_plane import PKI, service_outside_pods
from lab.failure import LabError
from lab.processes import SupervisorClient
from lab.waiting import http_status, wait_until

SCRAPE_INTERVAL_SECONDS = 2
START_LIMIT = timedelta(seconds=60)

_REGISTRY_PORT_INSIDE = 5001
_METRICS_PORT = 4443
_DISCOVERY_PORT = 9091


def start_registry(config: LabConfig, supervisor: SupervisorClient) -> None:
    """Start the image registry (manifests can be deleted) and its front on ``config.registry``."""
    settings = {
        "version": 0.1,
        "log": {"level": "warn", "accesslog": {"disabled": True}},
        "storage": {
            "filesystem": {"rootdirectory": f"{INSIDE}/registry"},
            "delete": {"enabled": True},
            "maintenance": {"uploadpurging": {"enabled": False}},
        },
        # Without relative addresses it would name its own port, where only the front is meant to ask.
        "http": {"addr": f"127.0.0.1:{_REGISTRY_PORT_INSIDE}", "relativeurls": True, "secret": "lab"},
    }
    (config.state / "registry.json").write_text(json.dumps(settings), encoding="utf-8")
    supervisor.start("registry", ["/usr/bin/docker-registry", "serve", INSIDE / "registry.json"])
    front = ["--address", config.node_address, "--port", str(SERVICES["registry"])]
    front += ["--upstream-port", str(_REGISTRY_PORT_INSIDE)]
    supervisor.start("registry-proxy", [sys.executable, "-m", "lab.registry_proxy", *front])


def start_object_store(config: LabConfig, supervisor: SupervisorClient, tools: Mapping[str, Path]) -> None:
    """Start the S3 server, with versioning available."""
    for folder in ("s3", "s3-versions", "s3-accounts"):
        (config.state / folder).mkdir(exist_ok=True)
    supervisor.start(
        "versitygw",
        [
            tools["versitygw"],
            f"--port={config.node_address}:{SERVICES['s3']}",
            f"--region={S3_REGION}",
            f"--iam-dir={INSIDE}/s3-accounts",
            "--health=/_health",
            "--quiet",
            "posix",
            f"--versioning-dir={INSIDE}/s3-versions",
            f"{INSIDE}/s3",
        ],
        # Not as arguments: the command line of a process can be read by everybody.
        environment={
            "ROOT_ACCESS_KEY_ID": config.secret("s3-access-key"),
            "ROOT_SECRET_ACCESS_KEY": config.secret("s3-secret-key"),
        },
    )


def start_llm_provider(config: LabConfig, supervisor: SupervisorClient) -> None:
    """Start the stand-in for the LLM provider."""
    where = ["--address", config.node_address, "--port", str(SERVICES["llm-provider"])]
    key = ["--key-file", str(config.secret_file("llm-provider-key"))]
    supervisor.start("llm-provider", [sys.executable, "-m", "lab.llm_provider", *where, *key])


def wait_for_services(config: LabConfig, supervisor: SupervisorClient) -> None:
    """Wait until registry, object store and LLM provider answer."""
    for names, url, status in (
        (("registry", "registry-proxy"), f"http://{config.registry}/v2/", 200),
        (("versitygw",), f"{config.s3_endpoint}/_health", 200),
        (("llm-provider",), f"{config.llm_provider_url}/v1/models", 401),
    ):
        _wait_for(supervisor, names, url, status)


def start_prometheus(config: LabConfig, supervisor: SupervisorClient) -> bool:
    """Start Prometheus, its history filled when the system supplies one; return whether it was filled.

    ``lab.system.history.openmetrics(config)`` gives the text. It is asked now, so after the system is deployed it can
    name real pods.
    """
    (config.state / "prometheus").mkdir(exist_ok=True)
    settings = _prometheus_configuration()
    (config.state / "prometheus.json").write_text(json.dumps(settings), encoding="utf-8")
    history = optional_module("lab.system.history")
    if history is not None:
        _fill_history(config, history.openmetrics(config))
    api = ["--api-address", config.node_address, "--api-port", str(SERVICES["kubernetes"])]
    client = ["--pki", str(PKI), "--client", "lab-services", "--port", str(_DISCOVERY_PORT)]
    supervisor.start("pod-discovery", [sys.executable, "-m", "lab.pod_discovery", *api, *client])
    supervisor.start(
        "prometheus",
        [
            "/usr/bin/prometheus",
            f"--config.file={INSIDE}/prometheus.json",
            f"--storage.tsdb.path={INSIDE}/prometheus",
            f"--web.listen-address={config.node_address}:{SERVICES['prometheus']}",
            "--log.level=warn",
        ],
    )
    _wait_for(supervisor, ("prometheus", "pod-discovery"), f"{config.prometheus_url}/-/ready", 200)
    return history is not None


def start_metrics_server(config: LabConfig, supervisor: SupervisorClient, tools: Mapping[str, Path]) -> None:
    """Start metrics-server; ``metrics_server_objects`` connects it to the API."""
    kubeconfig = f"{PKI}/lab-services.kubeconfig"
    supervisor.start(
        "metrics-server",
        [
            tools["metrics-server"],
            f"--kubeconfig={kubeconfig}",
            f"--authentication-kubeconfig={kubeconfig}",
            f"--authorization-kubeconfig={kubeconfig}",
            f"--bind-address={config.node_address}",
            f"--secure-port={_METRICS_PORT}",
            f"--tls-cert-file={PKI}/metrics-server.crt",
            f"--tls-private-key-file={PKI}/metrics-server.key",
            f"--kubelet-certificate-authority={PKI}/ca.crt",
            "--kubelet-preferred-address-types=InternalIP",
            "--metric-resolution=10s",
            "--kubelet-request-timeout=5s",
        ],
    )


def metrics_server_objects(config: LabConfig) -> list[dict[str, object]]:
    """Return the Service and APIService of metrics-server."""
    authority = base64.b64encode((config.state / "pki" / "ca.crt").read_bytes()).decode()
    ports = {"https": ("TCP", 443, _METRICS_PORT)}
    return [
        *service_outside_pods(config, "metrics-server", "metrics-server", ports),
        {
            "apiVersion": "apiregistration.k8s.io/v1",
            "kind": "APIService",
            "metadata": {"name": "v1beta1.metrics.k8s.io"},
            "spec": {
                "service": {"name": "metrics-server", "namespace": "kube-system"},
                "group": "metrics.k8s.io",
                "version": "v1beta1",
                "caBundle": authority,
                "groupPriorityMinimum": 100,
                "versionPriority": 100,
            },
        },
    ]


def optional_module(name: str) -> ModuleType | None:
    """Import a module of the system, None when the project has none of that name (yet)."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as problem:
        # A module that is there but lacks one of its own imports is an error, not an absence.
        if problem.name is not None and (name == problem.name or name.startswith(f"{problem.name}.")):
            return None
        raise


def _wait_for(supervisor: SupervisorClient, names: tuple[str, ...], url: str, status: int) -> None:
    wait_until(
        f"status {status} from {url}",
        lambda: http_status(url) == status,
        limit=START_LIMIT,
        explain=lambda: supervisor.explain(*names),
    )


def _fill_history(config: LabConfig, text: str) -> None:
    source = config.state / "history.openmetrics"
    source.write_text(text, encoding="utf-8")
    done = subprocess.run(
        ["promtool", "tsdb", "create-blocks-from", "openmetrics", "-q", str(source), str(config.state / "prometheus")],
        capture_output=True,
        text=True,
        check=False,
    )
    source.unlink()
    if done.returncode != 0:
        raise LabError(f"promtool did not take the history: {(done.stderr or done.stdout)[-500:].strip()}")


def _prometheus_configuration() -> dict[str, object]:
    annotation = "__meta_kubernetes_pod_annotation_prometheus_io_"
    label = "__meta_kubernetes_pod_label_"
    return {
        "global": {
            "scrape_interval": f"{SCRAPE_INTERVAL_SECONDS}s",
            "scrape_timeout": f"{SCRAPE_INTERVAL_SECONDS}s",
            "evaluation_interval": f"{SCRAPE_INTERVAL_SECONDS}s",
        },
        "scrape_configs": [
            {
                "job_name": "pods",
                "http_sd_configs": [{"url": f"http://127.0.0.1:{_DISCOVERY_PORT}/", "refresh_interval": "1s"}],
                "relabel_configs": [
                    {"source_labels": [f"{annotation}scrape"], "action": "keep", "regex": "true"},
                    {
                        "source_labels": ["__meta_kubernetes_pod_phase"],
                        "action": "drop",
                        "regex": "Pending|Succeeded|Failed",
                    },
                    {
                        "source_labels": [f"{annotation}path"],
                        "regex": "(.+)",
                        "target_label": "__metrics_path__",
                    },
                    {
                        "source_labels": ["__meta_kubernetes_pod_ip", f"{annotation}port"],
                        "separator": ":",
                        "target_label": "__address__",
                    },
                    {"source_labels": ["__meta_kubernetes_namespace"], "target_label": "namespace"},
                    {"source_labels": ["__meta_kubernetes_pod_name"], "target_label": "pod"},
                    {
                        "source_labels": [f"{label}app_kubernetes_io_name"],
                        "regex": "(.+)",
                        "target_label": "app",
                    },
                    {"source_labels": [f"{label}app"], "regex": "(.+)", "target_label": "app"},
                ],
            }
        ],
    }
