"""Where journals rest: one ConfigMap per operation, read and written with optimistic locking."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from nephoran_maintenance.domain.journal import LABELS, Journal, from_config_map, to_config_map
from nephoran_maintenance.errors import TransientError
from nephoran_maintenance.hooks.cluster import ClusterHook

CONFLICT_TRIES = 5


class JournalStore:
    """Reads and writes the journals of one namespace.

    :param namespace: where journals live; made by the manifests in ``deploy/``.
    """

    def __init__(self, cluster: ClusterHook, namespace: str) -> None:
        self.cluster = cluster
        self.namespace = namespace

    def create(self, journal: Journal) -> Journal:
        """Write a new journal, or return the stored one when this operation already has it.

        Safe to repeat: yes, the name is the operation's.
        """
        stored = self.find(journal.operation_id)
        if stored is not None:
            return stored
        self.cluster.create(to_config_map(journal, self.namespace))
        return journal

    def find(self, operation_id: str) -> Journal | None:
        """Return the journal of an operation, or None when it has none: then it has changed nothing."""
        config_map = self.cluster.find("ConfigMap", operation_id, self.namespace)
        return None if config_map is None else from_config_map(config_map)

    def read(self, operation_id: str) -> Journal:
        """Return the journal of an operation.

        :raises PermanentError: ``not-found`` when it does not exist.
        """
        return from_config_map(self.cluster.get("ConfigMap", operation_id, self.namespace))

    def update(self, operation_id: str, change: Callable[[Journal], Journal]) -> Journal:
        """Apply a pure change to the stored journal and return what is now stored.

        Somebody else's write in between is no loss: the change is then applied to theirs.
        """
        for attempt in range(CONFLICT_TRIES):
            config_map = self.cluster.get("ConfigMap", operation_id, self.namespace)
            before = from_config_map(config_map)
            after = change(before)
            if after == before:
                return before
            body = to_config_map(after, self.namespace)
            stored = config_map["metadata"]
            body["metadata"]["resourceVersion"] = stored["resourceVersion"]
            body["metadata"]["annotations"] = {
                **stored.get("annotations", {}),
                **body["metadata"].get("annotations", {}),
            }
            try:
                self.cluster.replace(body)
            except TransientError as error:
                if error.reference != "conflict" or attempt == CONFLICT_TRIES - 1:
                    raise
            else:
                return after
        raise AssertionError("unreachable")  # pragma: no cover

    def annotate(self, operation_id: str, annotations: Mapping[str, str]) -> None:
        """Set annotations of a journal's ConfigMap; triggers read them as signals."""
        self.cluster.patch(
            "ConfigMap",
            operation_id,
            self.namespace,
            {"metadata": {"annotations": dict(annotations)}},
            patch_type="merge",
        )

    def all(self) -> list[Journal]:
        """Return every journal, newest first."""
        journals = [from_config_map(item) for item in self.cluster.list("ConfigMap", self.namespace, LABELS)]
        return sorted(journals, key=lambda journal: journal.started_at, reverse=True)
