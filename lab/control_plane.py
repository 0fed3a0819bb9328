"""Start etcd, the API server, the controllers, the cluster's DNS and the proxy, and apply what every cluster has."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from lab.config import INSIDE, SERVICES, LabConfig
from lab.processes import SupervisorClient

PKI = INSIDE / "pki"
DOMAIN = "cluster.local"
DNS_HEALTH_PORT = 8054
STORAGE_CLASS = "standard"

_READS = ["get", "list", "watch"]

AUDIT_POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [
        # Heartbeats and the control plane's own watches would bury what tests look for.
        {
            "level": "None",
            "resources": [{"group": "coordination.k8s.io", "resources": ["leases"]}],
            "userGroups": ["system:nodes"],
        },
        {
            "level": "None",
            "users": ["system:apiserver", "system:kube-scheduler", "system:kube-proxy", "lab-services"],
            "verbs": _READS,
        },
        {"level": "None", "userGroups": ["system:nodes", "system:serviceaccounts:kube-system"], "verbs": _READS},
        {
            "level": "None",
            "nonResourceURLs": ["/healthz*", "/readyz*", "/livez*", "/openapi*", "/apis*", "/api*", "/version"],
        },
        # The content of a Secret or ConfigMap does not belong in a log.
        {
            "level": "Metadata",
            "resources": [{"group": "", "resources": ["secrets", "configmaps", "serviceaccounts/token"]}],
        },
        {"level": "Metadata", "verbs": _READS},
        {"level": "Request"},
    ],
}


def write_files(config: LabConfig) -> None:
    """Write the files that the programs below read, apart from certificates."""
    (config.state / "audit-policy.json").write_text(json.dumps(AUDIT_POLICY), encoding="utf-8")
    (config.state / "kube-proxy.json").write_text(json.dumps(_proxy_configuration(config)), encoding="utf-8")
    (config.state / "Corefile").write_text(_corefile(config), encoding="utf-8")


def start_storage_and_api(config: LabConfig, supervisor: SupervisorClient, tools: Mapping[str, Path]) -> None:
    """Start etcd and the API server; the API server waits for etcd by itself."""
    supervisor.start(
        "etcd",
        [
            tools["etcd"],
            f"--name={config.node_name}",
            f"--data-dir={INSIDE}/etcd",
            "--listen-client-urls=http://127.0.0.1:2379",
            "--advertise-client-urls=http://127.0.0.1:2379",
            "--listen-peer-urls=http://127.0.0.1:2380",
            "--initial-advertise-peer-urls=http://127.0.0.1:2380",
            f"--initial-cluster={config.node_name}=http://127.0.0.1:2380",
            "--unsafe-no-fsync",
            "--log-level=warn",
        ],
    )
    supervisor.start(
        "kube-apiserver",
        [
            tools["kube-apiserver"],
            f"--advertise-address={config.node_address}",
            f"--secure-port={SERVICES['kubernetes']}",
            "--etcd-servers=http://127.0.0.1:2379",
            f"--service-cluster-ip-range={config.service_subnet}",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            "--allow-privileged=true",
            "--profiling=false",
            f"--client-ca-file={PKI}/ca.crt",
            f"--tls-cert-file={PKI}/apiserver.crt",
            f"--tls-private-key-file={PKI}/apiserver.key",
            f"--kubelet-certificate-authority={PKI}/ca.crt",
            f"--kubelet-client-certificate={PKI}/apiserver-kubelet.crt",
            f"--kubelet-client-key={PKI}/apiserver-kubelet.key",
            # Else logs and exec try to resolve the node's name.
            "--kubelet-preferred-address-types=InternalIP,Hostname",
            f"--service-account-issuer=https://kubernetes.default.svc.{DOMAIN}",
            f"--service-account-key-file={PKI}/service-account.pub",
            f"--service-account-signing-key-file={PKI}/service-account.key",
            f"--requestheader-client-ca-file={PKI}/front-proxy-ca.crt",
            "--requestheader-allowed-names=front-proxy-client",
            "--requestheader-extra-headers-prefix=X-Remote-Extra-",
            "--requestheader-group-headers=X-Remote-Group",
            "--requestheader-username-headers=X-Remote-User",
            f"--proxy-client-cert-file={PKI}/front-proxy.crt",
            f"--proxy-client-key-file={PKI}/front-proxy.key",
            f"--audit-policy-file={INSIDE}/audit-policy.json",
            f"--audit-log-path={INSIDE}/audit.log",
            "--audit-log-maxsize=0",
        ],
    )


def start_controllers(supervisor: SupervisorClient, tools: Mapping[str, Path]) -> None:
    """Start what needs the API server: controller-manager, scheduler, proxy and DNS."""
    supervisor.start(
        "kube-controller-manager",
        [
            tools["kube-controller-manager"],
            f"--kubeconfig={PKI}/controller-manager.kubeconfig",
            f"--authentication-kubeconfig={PKI}/controller-manager.kubeconfig",
            f"--authorization-kubeconfig={PKI}/controller-manager.kubeconfig",
            "--bind-address=127.0.0.1",
            "--leader-elect=false",
            "--use-service-account-credentials=true",
            "--enable-hostpath-provisioner=true",
            f"--root-ca-file={PKI}/ca.crt",
            f"--service-account-private-key-file={PKI}/service-account.key",
            f"--cluster-signing-cert-file={PKI}/ca.crt",
            f"--cluster-signing-key-file={PKI}/ca.key",
        ],
    )
    supervisor.start(
        "kube-scheduler",
        [
            tools["kube-scheduler"],
            f"--kubeconfig={PKI}/scheduler.kubeconfig",
            f"--authentication-kubeconfig={PKI}/scheduler.kubeconfig",
            f"--authorization-kubeconfig={PKI}/scheduler.kubeconfig",
            "--bind-address=127.0.0.1",
            "--leader-elect=false",
        ],
    )
    supervisor.start("kube-proxy", [tools["kube-proxy"], f"--config={INSIDE}/kube-proxy.json"])
    supervisor.start("coredns", [tools["coredns"], "-conf", INSIDE / "Corefile"])


def basic_objects(config: LabConfig) -> list[dict[str, object]]:
    """Return what is applied to every new cluster: DNS, a storage class, and the API server's way to the kubelet."""
    return [
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": "lab-apiserver-to-kubelet"},
            "roleRef": _role("system:kubelet-api-admin"),
            "subjects": [
                {"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": "kube-apiserver-kubelet-client"}
            ],
        },
        {
            "apiVersion": "storage.k8s.io/v1",
            "kind": "StorageClass",
            "metadata": {
                "name": STORAGE_CLASS,
                "annotations": {"storageclass.kubernetes.io/is-default-class": "true"},
            },
            "provisioner": "kubernetes.io/host-path",
            "reclaimPolicy": "Delete",
            "volumeBindingMode": "Immediate",
        },
        *service_outside_pods(config, "kube-dns", "dns", {"dns": ("UDP", 53, 53), "dns-tcp": ("TCP", 53, 53)}),
    ]


def service_outside_pods(
    config: LabConfig, name: str, address: str, ports: Mapping[str, tuple[str, int, int]]
) -> list[dict[str, object]]:
    """Return a Service in kube-system and its hand-made endpoints: a process on the node's address.

    ``address`` is a name of ``SERVICE_ADDRESSES``; ``ports`` maps a name to protocol, Service port and process port.
    """
    return [
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": name, "namespace": "kube-system"},
            "spec": {
                "clusterIP": config.service_address(address),
                "ports": [
                    {"name": port, "protocol": protocol, "port": outer, "targetPort": inner}
                    for port, (protocol, outer, inner) in ports.items()
                ],
            },
        },
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": f"{name}-lab",
                "namespace": "kube-system",
                "labels": {
                    "kubernetes.io/service-name": name,
                    "endpointslice.kubernetes.io/managed-by": "lab.nephoran.com",
                },
            },
            "addressType": "IPv4",
            "endpoints": [{"addresses": [config.node_address], "conditions": {"ready": True}}],
            "ports": [
                {"name": port, "protocol": protocol, "port": inner} for port, (protocol, _, inner) in ports.items()
            ],
        },
    ]


def _role(name: str) -> dict[str, object]:
    return {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name}


def _proxy_configuration(config: LabConfig) -> dict[str, object]:
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "iptables",
        "bindAddress": "0.0.0.0",
        "healthzBindAddress": "127.0.0.1:10256",
        "metricsBindAddress": "127.0.0.1:10249",
        "hostnameOverride": config.node_name,
        "clusterCIDR": config.pod_subnet,
        "clientConnection": {"kubeconfig": f"{PKI}/proxy.kubeconfig"},
        # Zero leaves the machine's own connection tracking limits alone.
        "conntrack": {"maxPerCore": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
    }


def _corefile(config: LabConfig) -> str:
    """Answer for the cluster; everything else does not exist, at once, because a lab has no way out."""
    return f"""{DOMAIN}:53 in-addr.arpa:53 ip6.arpa:53 {{
    bind {config.node_address}
    errors
    health 127.0.0.1:{DNS_HEALTH_PORT}
    kubernetes {DOMAIN} in-addr.arpa ip6.arpa {{
        kubeconfig {PKI}/lab-services.kubeconfig
    }}
}}
.:53 {{
    bind {config.node_address}
    template ANY ANY {{
        rcode NXDOMAIN
    }}
}}
"""
