"""Where journals rest: one ConfigMap per operation, read and written with optimistic locking."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from nephoran_maintenance.domain.journal import (
    LABELS,
    STATE_LABEL,
    Journal,
    from_config_map,
    is_of_system,
    to_config_map,
)
from nephoran_maintenance.errors import TransientError, UnknownStateError
from nephoran_maintenance.hooks.cluster import ClusterHook

CONFLICT_TRIES = 5
OPEN_JOURNALS = {**LABELS, STATE_LABEL: "open"}
"""Labels of the journals of operations that are neither finished nor undone."""


class JournalStore:
    """Reads and writes the journals of one namespace.

    :param namespace: where journals live; made by the manifests in ``deploy/``.
    :param system: name of the system whose journals are listed; None: all. Systems may share the namespace.
    """

    def __init__(self, cluster: ClusterHook, namespace: str, system: str | None = None) -> None:
        self.cluster = cluster
        self.namespace = namespace
        self.system = system

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

    def update(self, operation_id: str, change: Callable[[Journal], Journal], *, token: int | None = None) -> Journal:
        """Apply a pure change to the stored journal and return what is now stored.

        Somebody else's write in between is no loss: the change is then applied to theirs.

        :param token: the fencing token of the writer, compared in the same replace; None: a write that takes it over.
        :raises PermanentError: ``lease-lost`` when the journal bears another token.
        """
        for attempt in range(CONFLICT_TRIES):
            config_map = self.cluster.get("ConfigMap", operation_id, self.namespace)
            before = from_config_map(config_map)
            after = change(before if token is None else before.owned(token))
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

    def all(self, state: str | None = None) -> list[Journal]:
        """Return every journal, newest first; with a state (``open`` or ``closed``) only those in it.

        :raises UnknownStateError: ``journal-unreadable`` of the first that is damaged.
        """
        journals, errors = self.read_all(state)
        if errors:
            raise errors[0]
        return journals

    def read_all(self, state: str | None = None) -> tuple[list[Journal], list[UnknownStateError]]:
        """Return every journal that can be read, as :meth:`all` does, and the error of each that can't."""
        journals, errors = [], []
        for item in self._list(state):
            try:
                journals.append(from_config_map(item))
            except UnknownStateError as error:
                errors.append(error)
        return sorted(journals, key=lambda journal: journal.started_at, reverse=True), errors

    def open_operations(self) -> list[str]:
        """Return the ids of the operations whose journal is open; one that can't be read counts."""
        return [item["metadata"]["name"] for item in self._list("open")]

    def open_since(self, moment: datetime) -> list[str]:
        """Return the ids of the operations that were under way at a moment or have begun after it, also those that have ended.

        An open journal that can't be read counts.
        """
        found = []
        for item in self._list(None):
            try:
                counts = from_config_map(item).was_open_since(moment)
            except UnknownStateError:
                counts = item["metadata"].get("labels", {}).get(STATE_LABEL) == "open"
            if counts:
                found.append(str(item["metadata"]["name"]))
        return sorted(found)

    def prune(self, keep: int) -> list[str]:
        """Delete the oldest closed journals beyond so many, and return their names. Open ones are never deleted."""
        found = self._list("closed")
        newest = sorted(found, key=lambda item: str(item["metadata"].get("creationTimestamp") or ""), reverse=True)
        gone = [item["metadata"] for item in newest[keep:]]
        for metadata in gone:
            version = metadata["resourceVersion"]
            self.cluster.delete("ConfigMap", metadata["name"], self.namespace, resource_version=version)
        return [metadata["name"] for metadata in gone]

    def _list(self, state: str | None) -> list[dict[str, Any]]:
        labels = {**LABELS, **({STATE_LABEL: state} if state else {})}
        found = self.cluster.list("ConfigMap", self.namespace, labels)
        return [item for item in found if is_of_system(item, self.system)]
