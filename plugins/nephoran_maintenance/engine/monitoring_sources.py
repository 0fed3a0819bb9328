"""What a backup holds of the monitoring: Grafana's dashboards, and the metrics of the last day."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import ClassVar

from nephoran_maintenance.domain.capture import Listing, Served, applicable
from nephoran_maintenance.domain.members import Member
from nephoran_maintenance.engine.sources import Source, json_member, member_of
from nephoran_maintenance.hooks.cluster import ClusterHook
from nephoran_maintenance.hooks.object_listing import ObjectLister, forbidden_error
from nephoran_maintenance.hooks.prometheus_api import PrometheusHook

DASHBOARD_LABEL = "grafana_dashboard"
CONFIG_MAPS = Served("", "v1", "configmaps", "ConfigMap", True)
METRIC = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")


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
    """

    name = "prometheus"
    kind: ClassVar[str] = "range-query export"

    def __init__(
        self,
        prometheus: PrometheusHook,
        *,
        end: datetime,
        duration: timedelta = timedelta(hours=24),
        step: timedelta = timedelta(seconds=60),
        part: timedelta = timedelta(hours=6),
    ) -> None:
        super().__init__()
        self.prometheus = prometheus
        self.end = end
        self.duration = duration
        self.step = step
        self.part = part

    def members(self) -> Iterator[Member]:
        names: set[str] = set()
        size_bytes = files = 0
        start = self.end - self.duration
        while start < self.end:
            # Both ends of a range are in it: the next part begins one step later.
            last = min(start + self.part - self.step, self.end)
            found = [name for name in self.prometheus.metric_names(start, last) if METRIC.fullmatch(name)]
            names.update(found)
            for name in found:
                content = self.prometheus.export_range(f'{{__name__="{name}"}}', start, last, self.step)
                files += 1
                size_bytes += len(content)
                yield member_of(f"prometheus/export/{name}/{start:%Y%m%dT%H%M%SZ}.json", content)
            start += self.part
        self.facts = {
            "kind": self.kind,
            "metrics": len(names),
            "files": files,
            "bytes": size_bytes,
            "from": (self.end - self.duration).isoformat(),
            "until": self.end.isoformat(),
            "step_seconds": self.step.total_seconds(),
        }
        if not names:
            self.absent = "Prometheus has no metrics in that time"
