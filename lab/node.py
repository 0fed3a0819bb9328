"""Start the node: containerd with a sandbox image of our own, CNI, and the kubelet."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from lab import network, oci
from lab.config import INSIDE, LabConfig
from lab.control_plane import DOMAIN, PKI
from lab.failure import LabError
from lab.packages import SEARCH_PATH
from lab.processes import SupervisorClient

RUNTIME_SOCKET = "/run/containerd/containerd.sock"
SANDBOX_IMAGE = "lab.nephoran.com/sandbox:1"
CNI_PROGRAMS = "/usr/lib/cni"

_SANDBOX_SCRIPT = b"""#!/bin/busybox sh
# Holds a pod's namespaces; collects orphans; ends at once when told to.
trap 'exit 0' TERM INT
while :; do
    /bin/busybox sleep 86400 &
    wait $!
done
"""


def write_files(config: LabConfig) -> None:
    """Write the configuration of containerd, CNI and kubelet, and the sandbox image as an archive."""
    state = config.state
    (state / "cni").mkdir()
    hosts = state / "registries" / config.registry
    hosts.mkdir(parents=True)
    (state / "containerd.toml").write_text(_containerd_configuration(), encoding="utf-8")
    (state / "cni" / "10-lab.conflist").write_text(json.dumps(_cni_configuration(config)), encoding="utf-8")
    (state / "kubelet.json").write_text(json.dumps(_kubelet_configuration(config)), encoding="utf-8")
    # Empty: pods ask the cluster's DNS only.
    (state / "resolv.conf").write_text("", encoding="utf-8")
    # Only `server`: with a host too, containerd would ask a second time and hide an answer of 503. The empty table has to
    # be there, or containerd 1.6 refuses the file and takes https.
    (hosts / "hosts.toml").write_text(f'server = "http://{config.registry}"\n[host]\n', encoding="utf-8")
    oci.write_archive(_sandbox_image(), state / "sandbox.tar", SANDBOX_IMAGE)


def start_runtime(supervisor: SupervisorClient) -> None:
    """Start containerd."""
    supervisor.start("containerd", ["/usr/bin/containerd", "--config", INSIDE / "containerd.toml"])


def import_sandbox_image(supervisor_pid: int) -> bool:
    """Give containerd the sandbox image; False while containerd does not answer yet."""
    command = ["ctr", "--address", RUNTIME_SOCKET, "--namespace", "k8s.io", "images", "import"]
    done = subprocess.run(
        network.enter(supervisor_pid, [*command, f"{INSIDE}/sandbox.tar"], mounts=True),
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode == 0


def start_kubelet(config: LabConfig, supervisor: SupervisorClient, tools: Mapping[str, Path]) -> None:
    """Start the kubelet; it registers the node."""
    supervisor.start(
        "kubelet",
        [
            tools["kubelet"],
            f"--config={INSIDE}/kubelet.json",
            f"--kubeconfig={PKI}/node.kubeconfig",
            f"--root-dir={INSIDE}/kubelet",
            f"--hostname-override={config.node_name}",
            f"--node-ip={config.node_address}",
        ],
    )


def _sandbox_image() -> oci.OciImage:
    busybox = shutil.which("busybox", path=SEARCH_PATH)
    if busybox is None:
        raise LabError("busybox was not found.", hint="Install the Debian package busybox-static.")
    layer = oci.build_layer({"/bin/busybox": Path(busybox), "/pause": _SANDBOX_SCRIPT})
    return oci.build_image([layer], entrypoint=["/pause"])


def _containerd_configuration() -> str:
    runtime = 'plugins."io.containerd.grpc.v1.cri"'
    return f"""version = 2
root = "{INSIDE}/containerd"
state = "/run/containerd"
disabled_plugins = [
    "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper",
    "io.containerd.snapshotter.v1.zfs", "io.containerd.tracing.processor.v1.otlp", "io.containerd.internal.v1.tracing",
]
[grpc]
address = "{RUNTIME_SOCKET}"
[{runtime}]
sandbox_image = "{SANDBOX_IMAGE}"
# Without the right to lower scores, every pod would hang in ContainerCreating.
restrict_oom_score_adj = true
# Its profile would stay in the machine's kernel.
disable_apparmor = true
[{runtime}.containerd]
snapshotter = "overlayfs"
default_runtime_name = "runc"
[{runtime}.containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[{runtime}.containerd.runtimes.runc.options]
SystemdCgroup = false
[{runtime}.cni]
bin_dir = "{CNI_PROGRAMS}"
conf_dir = "{INSIDE}/cni"
[{runtime}.registry]
config_path = "{INSIDE}/registries"
"""


def _cni_configuration(config: LabConfig) -> dict[str, object]:
    first = config.node_address.rpartition(".")[0] + ".10"
    return {
        "cniVersion": "0.4.0",
        "name": "lab",
        "plugins": [
            {
                "type": "bridge",
                "bridge": network.BRIDGE,
                "isGateway": True,
                "hairpinMode": True,
                "ipam": {
                    "type": "host-local",
                    "ranges": [[{"subnet": config.pod_subnet, "rangeStart": first, "gateway": config.node_address}]],
                    "routes": [{"dst": "0.0.0.0/0"}],
                },
            }
        ],
    }


def _kubelet_configuration(config: LabConfig) -> dict[str, object]:
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "containerRuntimeEndpoint": f"unix://{RUNTIME_SOCKET}",
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": f"{PKI}/ca.crt"},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": f"{PKI}/kubelet.crt",
        "tlsPrivateKeyFile": f"{PKI}/kubelet.key",
        "clusterDNS": [config.service_address("dns")],
        "clusterDomain": DOMAIN,
        "resolvConf": f"{INSIDE}/resolv.conf",
        "healthzBindAddress": "127.0.0.1",
        "podLogsDir": f"{INSIDE}/pod-logs",
        "volumePluginDir": f"{INSIDE}/volume-plugins",
        # Two kubelets under one root would remove each other's pods.
        "cgroupRoot": f"/{config.cgroup}",
        "cgroupDriver": "cgroupfs",
        "failCgroupV1": False,
        "failSwapOn": False,
        "enforceNodeAllocatable": ["none"],
        "serializeImagePulls": False,
        "registryPullQPS": 0,
        "imageGCHighThresholdPercent": 100,
        "imageMaximumGCAge": "0s",
        "evictionHard": {"memory.available": "50Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
    }
