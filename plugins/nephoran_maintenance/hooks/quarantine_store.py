"""Where the quarantine rests: one ConfigMap per system beside the switches, so that it outlives Airflow."""

from __future__ import annotations

from collections.abc import Sequence

from nephoran_maintenance.domain.quarantine import Quarantined, from_data, to_data
from nephoran_maintenance.errors import TransientError
from nephoran_maintenance.hooks.cluster import ClusterHook
from nephoran_maintenance.settings import PREFIX


class QuarantineStore:
    """Reads and writes the quarantine of one system: the ConfigMap ``quarantine-<system>``."""

    def __init__(self, cluster: ClusterHook, namespace: str, system: str) -> None:
        self.cluster = cluster
        self.namespace = namespace
        self.name = f"quarantine-{system}"

    def all(self) -> dict[str, Quarantined]:
        """Return every version in quarantine by its key.

        :raises PermanentError: ``quarantine-unreadable``.
        """
        found = self.cluster.find("ConfigMap", self.name, self.namespace)
        return from_data((found or {}).get("data") or {})

    def add(self, versions: Sequence[Quarantined]) -> None:
        """Put versions into quarantine; each has a key of its own, so nobody's write is lost. Safe to repeat: yes."""
        if not versions:
            return
        if self.cluster.find("ConfigMap", self.name, self.namespace) is None:
            try:
                self.cluster.create(
                    {
                        "apiVersion": "v1",
                        "kind": "ConfigMap",
                        "metadata": {
                            "name": self.name,
                            "namespace": self.namespace,
                            "labels": {
                                "app.kubernetes.io/managed-by": "nephoran-maintenance",
                                f"{PREFIX}/record": "quarantine",
                            },
                        },
                        "data": to_data(versions),
                    }
                )
            except TransientError as error:
                if error.reference != "conflict":  # somebody else made it just now
                    raise
            else:
                return
        self._patch({**to_data(versions)})

    def take_out(self, keys: Sequence[str]) -> list[str]:
        """Take versions out, as far as they are in it, and return their keys. Safe to repeat: yes."""
        found = self.cluster.find("ConfigMap", self.name, self.namespace)
        gone = [key for key in keys if key in ((found or {}).get("data") or {})]
        if gone:
            self._patch(dict.fromkeys(gone))
        return gone

    def _patch(self, data: dict[str, str | None]) -> None:
        self.cluster.patch("ConfigMap", self.name, self.namespace, {"data": data}, patch_type="merge")
