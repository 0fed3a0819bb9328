"""What a backup holds of the monitoring: dashboards and the metrics of the last day."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from urllib.parse import urlsplit

import pytest

from nephoran_maintenance.engine.monitoring_sources import GrafanaDashboards, PrometheusExport
from nephoran_maintenance.engine.sources import Source
from nephoran_maintenance.errors import MaintenanceError
from nephoran_maintenance.hooks.cluster import ClusterHook
from nephoran_maintenance.hooks.prometheus_api import PrometheusHook
from tests.unit.hooks.fake_servers import FakeCluster, Received, Reply, Server, connection_json, serving, status_object

END = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)


def read(source: Source) -> dict[str, bytes]:
    return {member.path: b"".join(member.chunks) for member in source}


class LabelledCluster(FakeCluster):
    """Knows a label selector that is a key alone."""

    def __call__(self, request: Received) -> Reply:
        key = request.query.pop("labelSelector", "")
        reply = super().__call__(request)
        if key and reply.status == 200:
            reply.body["items"] = [one for one in reply.body["items"] if key in (one["metadata"].get("labels") or {})]
        return reply


@pytest.fixture
def fake_cluster() -> FakeCluster:
    return LabelledCluster()


def put(cluster: FakeCluster, name: str, namespace: str, **labels: str) -> None:
    metadata = {"name": name, "namespace": namespace, "labels": labels, "uid": "u"}
    path = f"/api/v1/namespaces/{namespace}/configmaps"
    cluster.put(path, {"kind": "ConfigMap", "apiVersion": "v1", "metadata": metadata, "data": {"a.json": "{}"}})


def test_takes_dashboards_of_all_namespaces_whatever_the_labels_value(
    cluster_server: Server, fake_cluster: FakeCluster
) -> None:
    put(fake_cluster, "one", "nephoran-monitoring", grafana_dashboard="1")
    put(fake_cluster, "two", "anywhere", grafana_dashboard="true")
    put(fake_cluster, "other", "anywhere", app="x")
    source = GrafanaDashboards(ClusterHook("kubernetes_test"))
    files = read(source)
    assert sorted(files) == ["grafana/anywhere/two.json", "grafana/nephoran-monitoring/one.json"]
    kept = json.loads(files["grafana/anywhere/two.json"])
    assert (kept["kind"], kept["data"], "uid" in kept["metadata"]) == ("ConfigMap", {"a.json": "{}"}, False)
    assert source.outcome.facts == {"dashboards": 2, "label": "grafana_dashboard"}
    assert cluster_server.received[0].path == "/api/v1/configmaps"


def test_no_dashboard_is_absent_and_not_captured(cluster_server: Server, fake_cluster: FakeCluster) -> None:
    put(fake_cluster, "other", "anywhere", app="x")
    source = GrafanaDashboards(ClusterHook("kubernetes_test"))
    assert read(source) == {}
    assert (source.outcome.state, "grafana_dashboard" in source.outcome.message) == ("absent", True)


def test_a_list_that_may_not_be_read_fails_the_source(cluster_server: Server, fake_cluster: FakeCluster) -> None:
    fake_cluster.fail = lambda request: status_object(403, "Forbidden", "no")
    source = GrafanaDashboards(ClusterHook("kubernetes_test"))
    with pytest.raises(MaintenanceError):
        read(source)
    assert source.outcome.state == "failed"


class FakePrometheus:
    def __init__(self) -> None:
        self.names = ["up", "nephoran_llm_requests_total"]
        self.ranges: list[dict[str, str]] = []
        self.broken = False

    def __call__(self, request: Received) -> Reply:
        if request.path == "/api/v1/label/__name__/values":
            return Reply(200, {"status": "success", "data": self.names})
        self.ranges.append(request.query)
        if self.broken:
            return Reply(422, {"status": "error", "error": "query processing would load too many samples"})
        return Reply(200, '{"status":"success","data":{"resultType":"matrix","result":[]}}')


@pytest.fixture
def prometheus(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakePrometheus]:
    fake = FakePrometheus()
    with serving(fake) as server:
        parts = urlsplit(server.url)
        fields = {"conn_type": "http", "host": parts.hostname, "port": parts.port, "schema": "http"}
        monkeypatch.setenv("AIRFLOW_CONN_PROMETHEUS_TEST", connection_json(**fields))
        yield fake


def export() -> PrometheusExport:
    return PrometheusExport(PrometheusHook("prometheus_test"), end=END)


def test_exports_every_metric_of_the_last_day(prometheus: FakePrometheus) -> None:
    source = export()
    files = read(source)
    starts = ("20261123T120000Z", "20261123T180000Z", "20261124T000000Z", "20261124T060000Z")
    assert sorted(files) == sorted(
        f"prometheus/export/{name}/{start}.json" for name in prometheus.names for start in starts
    )
    assert all(json.loads(content)["status"] == "success" for content in files.values())
    facts = source.outcome.facts
    assert (facts["kind"], facts["metrics"], facts["step_seconds"]) == ("range-query export", 2, 60.0)


def test_a_metric_of_any_name_is_exported_and_one_that_has_no_file_name_is_told(prometheus: FakePrometheus) -> None:
    odd = ["http.server.duration", 'a "quoted" \\ one', "größe/zwei", ".."]
    prometheus.names = [*odd, "long" * 60]
    source = export()
    folders = {path.split("/")[2] for path in read(source)}
    assert folders == {"http.server.duration", "a%20%22quoted%22%20%5C%20one", "gr%C3%B6%C3%9Fe%2Fzwei", "%2E%2E"}
    asked = {one["query"] for one in prometheus.ranges}
    assert asked == {
        '{__name__="http.server.duration"}',
        '{__name__="a \\"quoted\\" \\\\ one"}',
        '{__name__="größe/zwei"}',
        '{__name__=".."}',
    }
    assert (source.outcome.facts["metrics"], source.outcome.facts["metrics_left_out"]) == (4, ["long" * 60])


def test_no_moment_of_the_day_is_asked_for_twice_and_none_is_left_out(prometheus: FakePrometheus) -> None:
    prometheus.names = ["up"]
    read(export())
    moments = [
        moment
        for asked in prometheus.ranges
        for moment in range(int(float(asked["start"])), int(float(asked["end"])) + 1, int(asked["step"]))
    ]
    assert len(set(moments)) == len(moments)
    assert moments == list(range(int(END.timestamp()) - 86400, int(END.timestamp()), 60))


def test_no_metric_is_absent_and_not_captured(prometheus: FakePrometheus) -> None:
    prometheus.names = []
    source = export()
    assert read(source) == {}
    assert source.outcome.state == "absent"


def test_a_query_that_fails_fails_the_source(prometheus: FakePrometheus) -> None:
    prometheus.broken = True
    source = export()
    with pytest.raises(MaintenanceError, match="too many samples"):
        read(source)
    assert source.outcome.state == "failed"
