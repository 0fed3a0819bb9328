"""What a backup holds of the monitoring: Grafana's dashboards, and the metrics of the last day."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import ClassVar
from urllib.parse import quote

from nephoran_maintenance.domain.capture import Listing, Served, applicable
from nephoran_maintenance.domain.members import Member
from nephoran_maintenance.domain.pod_files import Seat
from nephoran_maintenance.domain.tsdb import (
    BLOCK,
    META,
    OTHERS,
    RECORD,
    Block,
    block_of,
    blocks_since,
    deleted,
    left_behind,
)
from nephoran_maintenance.engine.sources import Source, json_member, member_of, told
from nephoran_maintenance.engine.tsdb_snapshots import Memory, TsdbSnapshots
from nephoran_maintenance.errors import MaintenanceError, PermanentError
from nephoran_maintenance.hooks.cluster import ClusterHook
from nephoran_maintenance.hooks.object_listing import ObjectLister, forbidden_error
from nephoran_maintenance.hooks.pod_files import PodFiles
from nephoran_maintenance.hooks.prometheus_api import PrometheusHook
from nephoran_maintenance.profile import PrometheusPod

DASHBOARD_LABEL = "grafana_dashboard"
CONFIG_MAPS = Served("", "v1", "configmaps", "ConfigMap", True)
LAST_DAY = timedelta(hours=24)
SNAPSHOT_TIMEOUT = timedelta(minutes=10)
"""Prometheus writes what it has in memory as a block before it answers."""
NO_POD = "the profile names no pod of Prometheus (backup.prometheus)"
NO_SNAPSHOT = ("prometheus-admin-off", "folder-unreachable", "cluster-forbidden")
"""Errors that mean that there is no way to a snapshot here: then the metrics are asked for."""
LONGEST_FOLDER = 200
"""Of the name of a metric in the archive: most file systems take 255 bytes."""


def folder_of_metric(name: str) -> str:
    """Return a metric's name as that of a folder, percent-encoded but for letters, digits and ``_:.-~``."""
    folder = quote(name, safe=":")
    return folder if folder.strip(".") else folder.replace(".", "%2E")


class GrafanaDashboards(Source):
    """The dashboards in ConfigMaps of all namespaces that carry a label, whatever its value.

    :param label: its key; Grafana's sidecar looks for ``grafana_dashboard``.
    """

    name = "grafana-dashboards"

    def __init__(
        self, cluster: ClusterHook, *, label: str = DASHBOARD_LABEL, lister: ObjectLister | None = None
    ) -> None:
        super().__init__()
        self.label = label
        self.lister = lister or ObjectLister(cluster)

    def members(self) -> Iterator[Member]:
        given: set[str] = set()
        for page in self.lister.pages([Listing(CONFIG_MAPS, None, "object", self.label)]):
            for found in page.objects():
                metadata = found["metadata"]
                member = json_member(
                    f"grafana/{metadata['namespace']}/{metadata['name']}.json", applicable(CONFIG_MAPS, found)
                )
                # A list that began again gives the same ones again: the first state of each is kept.
                if member.path not in given:
                    given.add(member.path)
                    yield member
        if error := forbidden_error(self.lister):
            raise error
        self.facts = {"dashboards": len(given), "label": self.label}
        if not given:
            self.absent = f"no ConfigMap of any namespace has the label {self.label}"


class PrometheusExport(Source):
    """The metrics of the last hours by range queries: one file per metric and part of the time, as Prometheus answers.

    Samples are taken every ``step``; what lay between is not in it, and the facts say so.

    :param end: up to this moment.
    :param part: so much time in one file, which is the most that is in memory at once.
    :param reason: why it is this and no snapshot.
    """

    name = "prometheus"
    kind: ClassVar[str] = "range-query export"

    def __init__(
        self,
        prometheus: PrometheusHook,
        *,
        end: datetime,
        duration: timedelta = LAST_DAY,
        step: timedelta = timedelta(seconds=60),
        part: timedelta = timedelta(hours=6),
        reason: str = NO_POD,
    ) -> None:
        super().__init__()
        self.reason = reason
        self.prometheus = prometheus
        self.end = end
        self.duration = duration
        self.step = step
        self.part = part

    def members(self) -> Iterator[Member]:
        names: set[str] = set()
        left_out: set[str] = set()
        size_bytes = files = 0
        start = self.end - self.duration
        while start < self.end:
            # Both ends of a range are in it: the next part begins one step later.
            last = min(start + self.part - self.step, self.end)
            for name in self.prometheus.metric_names(start, last):
                folder = folder_of_metric(name)
                if len(folder) > LONGEST_FOLDER:
                    left_out.add(name)
                    continue
                names.add(name)
                # JSON escapes a string as PromQL does; Prometheus 3 takes any name in this place.
                selector = f"{{__name__={json.dumps(name, ensure_ascii=False)}}}"
                content = self.prometheus.export_range(selector, start, last, self.step)
                files += 1
                size_bytes += len(content)
                yield member_of(f"prometheus/export/{folder}/{start:%Y%m%dT%H%M%SZ}.json", content)
            start += self.part
        self.facts = {
            "kind": self.kind,
            "reason": self.reason,
            "metrics": len(names),
            "metrics_left_out": sorted(left_out),
            "files": files,
            "bytes": size_bytes,
            "from": (self.end - self.duration).isoformat(),
            "until": self.end.isoformat(),
            "step_seconds": self.step.total_seconds(),
        }
        if not names:
            self.absent = "Prometheus has no metrics in that time"


class PrometheusMetrics(Source):
    """The blocks of a snapshot of Prometheus' data; where there is no way to one, the export in its place.

    The snapshot is taken in the pod that is read, through a forwarded port, and deleted again, whatever happened. One that
    a dead attempt has left is deleted first: its name, or the names that were there before it, are in ``memory``. Others
    stay, and the facts name them.

    :param pod: None: there is only the export.
    :param export: what is made in the snapshot's place.
    :param connection_id: credentials for Prometheus.
    :param namespace: where a workload without one is.
    """

    name = "prometheus"
    kind: ClassVar[str] = "tsdb snapshot"

    def __init__(
        self,
        export: PrometheusExport,
        files: PodFiles,
        pod: PrometheusPod | None,
        memory: Memory,
        *,
        connection_id: str,
        namespace: str,
    ) -> None:
        super().__init__()
        self.export = export
        self.files = files
        self.snapshots = TsdbSnapshots(files, pod, namespace) if pod else None
        self.memory = memory
        self.connection_id = connection_id
        self.log = logging.getLogger(__name__)

    def members(self) -> Iterator[Member]:
        reason = NO_POD
        if self.snapshots is not None:
            try:
                seat = self.snapshots.seat()
                name = self._snapshot(self.snapshots, seat)
            except PermanentError as error:
                if error.reference not in NO_SNAPSHOT:
                    raise
                reason = error.message
            else:
                yield from self._blocks(self.snapshots, seat, name)
                return
        self.export.reason = reason
        yield from self.export.members()
        self.facts, self.absent = {**self.facts, **self.export.facts}, self.export.absent

    def _snapshot(self, snapshots: TsdbSnapshots, seat: Seat) -> str:
        """Take the snapshot and return its name."""
        there = snapshots.there(seat)
        record = self.memory.get(RECORD)
        if isinstance(record, dict):
            mine, _ = left_behind(record, there)
            if mine:
                snapshots.delete(seat, mine)
                there.remove(mine)
        self.facts = told(OTHERS, sorted(there))
        with self.files.cluster.port_forward(snapshots.namespace, seat.pod, snapshots.pod.port) as url:
            address = f"{url}{snapshots.pod.path_prefix}"
            prometheus = PrometheusHook(self.connection_id, base_url=address, timeout=SNAPSHOT_TIMEOUT)
            return snapshots.take(seat, there, self.memory, prometheus)

    def _blocks(self, snapshots: TsdbSnapshots, seat: Seat, name: str) -> Iterator[Member]:
        namespace, whole = snapshots.namespace, snapshots.pod.whole
        place = snapshots.place(seat, name)
        try:
            every = self._described(snapshots, place)
            wanted = blocks_since(every, None if whole else self.export.end - LAST_DAY)
            size_bytes = files = 0
            if wanted:
                with self.files.tar(namespace, place, self.name, [block.name for block in wanted]) as tar:
                    for entry in tar.entries():
                        if entry.info.isreg():
                            files += 1
                            size_bytes += entry.info.size
                            yield Member(f"prometheus/snapshot/{entry.path}", entry.info.size, entry.chunks)
            else:
                self.absent = "Prometheus has no samples of that time"
            self.facts |= {
                "kind": self.kind,
                "snapshot": name,
                "pod": f"{namespace}/{seat.pod}",
                "whole": whole,
                "blocks": [block.name for block in wanted],
                "blocks_left_out": len(every) - len(wanted),
                "samples": sum(block.samples for block in wanted),
                "files": files,
                "bytes": size_bytes,
                "from": wanted[0].from_at.isoformat() if wanted else None,
                "until": max(block.until_at for block in wanted).isoformat() if wanted else None,
            }
        except BaseException:
            # What went wrong is the error; a snapshot that stays as well is deleted by the next attempt, or after all.
            self._delete_quietly(snapshots, seat, name)
            raise
        self._delete(snapshots, seat, name)

    def _described(self, snapshots: TsdbSnapshots, place: Seat) -> Sequence[Block]:
        names = [name for name in snapshots.names(place) if BLOCK.fullmatch(name)]
        if not names:
            return []
        with self.files.tar(snapshots.namespace, place, self.name, [f"{name}/{META}" for name in names]) as tar:
            return [block_of(e.path.partition("/")[0], b"".join(e.chunks)) for e in tar.entries() if e.info.isreg()]

    def _delete(self, snapshots: TsdbSnapshots, seat: Seat, name: str) -> None:
        snapshots.delete(seat, name)
        self.memory.set(RECORD, deleted(name))

    def _delete_quietly(self, snapshots: TsdbSnapshots, seat: Seat, name: str) -> None:
        try:
            self._delete(snapshots, seat, name)
        except MaintenanceError as error:
            self.log.warning("%s", error)
