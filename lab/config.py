"""Where one lab lives: its folders, addresses and secrets, all derived from its name and index.

Labs with different indexes share nothing: the address range ``10.(200 + index).0.0/16`` belongs to one lab, as do its
link on the host, its cgroups and its folder ``.lab/<name>``.
"""

from __future__ import annotations

import ipaddress
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from lab.failure import LabError

PROJECT = Path(__file__).resolve().parent.parent

INSIDE = Path("/run/lab")
"""Where the state folder is seen by the lab's own processes: short, because socket paths end at 107 characters."""

KNOWN_LABS = {"demo": 1, "test": 2, "bench": 3}
HIGHEST_INDEX = 15

SERVICE_ADDRESSES = {
    "kubernetes": 1,
    "dns": 10,
    "metrics-server": 11,
    "weaviate": 20,
    "rag-api": 21,
    "llm-processor": 22,
    "nephio-bridge": 23,
    "oran-adaptor": 24,
    "nephoran-operator-controller-manager": 25,
}
"""Host part of the Services whose address is known beforehand. All are below 64, the part of a /22 range that
Kubernetes hands out last, so no other Service gets them first."""

SECRETS = {
    "weaviate-api-key": 20,
    "s3-access-key": 10,
    "s3-secret-key": 20,
    "llm-provider-key": 20,
}
"""Names of the well-known secrets and the number of random bytes in them; other names get 20 bytes."""

SERVICES = {"registry": 5000, "s3": 7070, "llm-provider": 8099, "prometheus": 9090, "kubernetes": 6443}
"""Ports on the node's address."""


@dataclass(frozen=True)
class LabConfig:
    """Describe one lab. Make one by ``LabConfig.named``."""

    name: str
    index: int

    @classmethod
    def named(cls, name: str, *, index: int | None = None) -> LabConfig:
        """Return the lab of that name; an index is needed for names other than demo, test and bench.

        Raises ``LabError`` when the index is missing, out of range or another one than that name always has.
        """
        if not name.isascii() or not name.replace("-", "").isalnum() or name != name.lower() or len(name) > 20:
            raise LabError(f"{name!r} can't name a lab.", hint="Use at most 20 lower-case letters, digits and dashes.")
        known = KNOWN_LABS.get(name)
        chosen = known if index is None else index
        if chosen is None:
            raise LabError(f"The lab {name!r} has no index.", hint=f"Give --index 4 to {HIGHEST_INDEX}.")
        allowed = [known] if known else range(max(KNOWN_LABS.values()) + 1, HIGHEST_INDEX + 1)
        if chosen not in allowed:
            raise LabError(
                f"The lab {name!r} can't have the index {chosen}.",
                hint=f"demo, test and bench have 1, 2 and 3; other names take 4 to {HIGHEST_INDEX}.",
            )
        return cls(name, chosen)

    # Folders and files

    @property
    def home(self) -> Path:
        """Everything of this lab on disk; logs and secrets stay here after ``down``."""
        return PROJECT / ".lab" / self.name

    @property
    def state(self) -> Path:
        """Data of all processes; removed by ``down``."""
        return self.home / "state"

    @property
    def logs(self) -> Path:
        return self.home / "logs"

    @property
    def kubeconfig(self) -> Path:
        """Kubeconfig of the administrator (system:masters): for the lab and tests, never for Airflow."""
        return self.home / "kubeconfig"

    @property
    def audit_log(self) -> Path:
        """The API server's audit log, one JSON event per line."""
        return self.state / "audit.log"

    # Names on the machine

    @property
    def cgroup(self) -> str:
        """Directory in each cgroup hierarchy that holds all processes and pods of the lab."""
        return f"nephoran-lab-{self.index}"

    @property
    def link(self) -> str:
        """Name of the host's end of the link into the lab."""
        return f"nephlab{self.index}"

    @property
    def node_name(self) -> str:
        return f"lab-{self.name}"

    @property
    def context(self) -> str:
        """Name of the kubeconfig's context; tests refuse any other."""
        return f"nephoran-lab-{self.name}"

    # Addresses

    @property
    def pod_subnet(self) -> str:
        return f"10.{200 + self.index}.0.0/24"

    @property
    def service_subnet(self) -> str:
        return f"10.{200 + self.index}.100.0/22"

    @property
    def host_address(self) -> str:
        """The host's end of the link: what the lab sees requests from the host come from."""
        return f"10.{200 + self.index}.255.1"

    @property
    def gateway_address(self) -> str:
        """The lab's end of the link."""
        return f"10.{200 + self.index}.255.2"

    @property
    def node_address(self) -> str:
        """The node, the API server and all services outside the cluster; reachable from the host and from pods."""
        return f"10.{200 + self.index}.0.1"

    def service_address(self, service: str) -> str:
        """Return the fixed ClusterIP of a Service in ``SERVICE_ADDRESSES``."""
        return str(ipaddress.ip_network(self.service_subnet)[SERVICE_ADDRESSES[service]])

    @property
    def kubernetes_url(self) -> str:
        return f"https://{self.node_address}:{SERVICES['kubernetes']}"

    @property
    def registry(self) -> str:
        """``address:port`` as it stands in image names; plain http."""
        return f"{self.node_address}:{SERVICES['registry']}"

    @property
    def s3_endpoint(self) -> str:
        return f"http://{self.node_address}:{SERVICES['s3']}"

    @property
    def prometheus_url(self) -> str:
        return f"http://{self.node_address}:{SERVICES['prometheus']}"

    @property
    def llm_provider_url(self) -> str:
        return f"http://{self.node_address}:{SERVICES['llm-provider']}"

    @property
    def weaviate_url(self) -> str:
        return f"http://{self.service_address('weaviate')}:8080"

    @property
    def llm_processor_url(self) -> str:
        return f"http://{self.service_address('llm-processor')}:8080"

    # Secrets

    def secret_file(self, name: str) -> Path:
        """Return the file (mode 0600) with the secret; it is made at first use and outlives ``down``."""
        path = self.home / "secrets" / name
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not path.exists():
            # Written aside and linked: of two that start at once, both read the value of the first.
            draft = path.with_name(f".{name}.{secrets.token_hex(4)}")
            draft.touch(mode=0o600)
            draft.write_text(secrets.token_hex(SECRETS.get(name, 20)), encoding="ascii")
            try:
                os.link(draft, path)
            except FileExistsError:
                pass
            finally:
                draft.unlink()
        return path

    def secret(self, name: str) -> str:
        """Return the generated secret of that name."""
        return self.secret_file(name).read_text(encoding="ascii")
