"""The snapshots in the data of a Prometheus: what is there, taking one, and deleting it again, whoever was to do so."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from nephoran_maintenance.domain.pod_files import Seat, exec_permission, folder_of_workload, unreachable
from nephoran_maintenance.domain.tsdb import (
    RECORD,
    SNAPSHOT,
    asking,
    checked_snapshot,
    deleted,
    is_deleted,
    left_behind,
    not_deleted,
    taken,
)
from nephoran_maintenance.errors import PermanentError
from nephoran_maintenance.hooks.pod_files import PodFiles
from nephoran_maintenance.hooks.prometheus_api import PrometheusHook
from nephoran_maintenance.profile import PrometheusPod

LABEL = "prometheus"
"""What errors call the folder of the data."""


class Memory(Protocol):
    """Where is noted what a repeated step, and the one that clears up after it, find again."""

    def get(self, key: str, default: Any = None) -> Any: ...

    def set(self, key: str, value: Any) -> None: ...


class TsdbSnapshots:
    """The snapshots of the Prometheus that a profile names, in the pod that has its data.

    :param namespace: where a workload without one is.
    """

    def __init__(self, files: PodFiles, pod: PrometheusPod, namespace: str) -> None:
        self.files = files
        self.pod = pod
        self.namespace = pod.workload.namespace or namespace

    def seat(self, *, to_take: bool = True) -> Seat:
        """Return the container that has the data, once it is known that what is needed there can be done.

        :param to_take: a snapshot is to be taken and read, not deleted alone.
        :raises PermanentError: ``folder-unreachable``.
        """
        pod = self.pod
        own, container = self.files.pods_of(pod.workload, pod.container, self.namespace, LABEL)
        folder = folder_of_workload(LABEL, self.namespace, container, pod.data_path, own, own)
        seat = folder.seats[0]
        wanted = [exec_permission(folder, seat)]
        if to_take:
            wanted += [
                {**exec_permission(folder, seat), "resource": "pods/portforward"},
                {"verb": "get", "resource": "pods", "namespace": self.namespace, "name": seat.pod},
            ]
        allowed = self.files.cluster.can_i(wanted)
        if not all(allowed):
            lacking = [f"{a['verb']} {a['resource']}" for a, ok in zip(wanted, allowed, strict=True) if not ok]
            raise unreachable(LABEL, f"a snapshot in {seat.pod} takes {', '.join(lacking)}")
        for program in ("tar", "ls", "rm") if to_take else ("ls", "rm"):
            if self.files.run(self.namespace, seat, [program, "--help"])[0].not_started:
                raise unreachable(LABEL, f"the image of {seat.pod} has no {program}")
        return seat

    def take(self, seat: Seat, there: list[str], memory: Memory, prometheus: PrometheusHook) -> str:
        """Have a snapshot taken and return its name; what is noted before lets others find it.

        :param there: the snapshots that are there already.
        :param prometheus: leads to that pod and to no other.
        """
        memory.set(RECORD, asking(there, prometheus.clock()))
        try:
            name = prometheus.snapshot()
        except PermanentError:
            memory.set(RECORD, deleted())
            raise
        memory.set(RECORD, taken(checked_snapshot(name)))
        return name

    def release(self, record: Mapping[str, object] | None) -> str:
        """Delete the snapshot that a dead attempt has left, and return its name; empty: there is none.

        :param record: what that attempt has noted.
        :raises TransientError: ``tsdb-snapshot-left`` when it stays, or can't be told from those of others.
        """
        if record is None or is_deleted(record):
            return ""
        try:
            seat = self.seat(to_take=False)
        except PermanentError as error:
            if error.reference != "folder-unreachable":
                raise
            # Its pod may just be restarting.
            raise not_deleted(str(record.get("name") or "without a known name"), error.message) from error
        mine, unsure = left_behind(record, self.there(seat))
        if unsure:
            raise not_deleted(" or ".join(unsure), "which of them is of this backup can't be told")
        if mine:
            self.delete(seat, mine)
        return mine or ""

    def there(self, seat: Seat) -> list[str]:
        """Return the names of all snapshots."""
        place = Seat(seat.pod, seat.container, f"{self.pod.data_path.rstrip('/')}/snapshots")
        return [name for name in self.names(place, missing=True) if SNAPSHOT.fullmatch(name)]

    def place(self, seat: Seat, name: str) -> Seat:
        """Return where a snapshot is."""
        return Seat(seat.pod, seat.container, f"{self.pod.data_path.rstrip('/')}/snapshots/{checked_snapshot(name)}")

    def names(self, place: Seat, *, missing: bool = False) -> list[str]:
        """Return what lies in a folder.

        :param missing: it need not be there.
        :raises PermanentError: ``pod-command-failed``.
        """
        ended, written = self.files.run(self.namespace, place, ["ls", "-1", place.path])
        if ended.exit_code == 0:
            return written.decode("utf-8", "replace").split("\n")
        if missing and "No such file" in ended.complaints:
            return []
        raise PermanentError(
            "pod-command-failed",
            f"ls of {place.path} in {place.pod} ended with {ended.exit_code}: {ended.said}",
            context={"pod": f"{self.namespace}/{place.pod}"},
            hint="Compare backup.prometheus.data_path of the profile with --storage.tsdb.path of that pod.",
        )

    def delete(self, seat: Seat, name: str) -> None:
        """Delete a snapshot.

        :raises TransientError: ``tsdb-snapshot-left``.
        """
        ended, _ = self.files.run(self.namespace, seat, ["rm", "-r", "-f", self.place(seat, name).path])
        if ended.exit_code != 0:
            raise not_deleted(name, f"rm ended with {ended.exit_code}: {ended.said}")
