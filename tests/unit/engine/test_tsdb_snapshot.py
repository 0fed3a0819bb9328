"""A snapshot of Prometheus: its blocks as they are, nothing of it left behind, and the export where there is no way."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from nephoran_maintenance.domain.tsdb import left_behind
from nephoran_maintenance.engine.monitoring_sources import RECORD, PrometheusExport, PrometheusMetrics
from nephoran_maintenance.errors import MaintenanceError, PermanentError, TransientError
from nephoran_maintenance.hooks.cluster import ClusterHook
from nephoran_maintenance.hooks.pod_files import PodFiles
from nephoran_maintenance.hooks.prometheus_api import PrometheusHook
from nephoran_maintenance.profile import PrometheusPod
from tests.unit.dag_runner import TaskStateStore
from tests.unit.fake_exec import ExecutingCluster, Spoiled
from tests.unit.hooks.fake_servers import Received, Reply, Server, connection_json, serving

MONITORING = "nephoran-monitoring"
END = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
OURS = "20261124T120000Z-0123456789abcdef"
OTHERS = "20261101T000000Z-fedcba9876543210"
OLD, LAST, HEAD = (f"01J{letter}" + "0" * 22 for letter in "ABC")


class FakePrometheus:
    """Writes a snapshot of three blocks: one older than a day, one that reaches into it, and the newest."""

    def __init__(self, data: Path) -> None:
        self.data = data
        self.admin = True
        self.before_answer: Callable[[], None] = lambda: None
        self.taken = 0

    def __call__(self, request: Received) -> Reply:
        if request.path == "/api/v1/label/__name__/values":
            return Reply(200, {"status": "success", "data": ["up"]})
        if request.method == "GET":
            return Reply(200, '{"status":"success","data":{"resultType":"matrix","result":[]}}')
        assert (request.path, request.query) == ("/api/v1/admin/tsdb/snapshot", {"skip_head": "false"})
        if not self.admin:
            return Reply(503, {"status": "error", "errorType": "unavailable", "error": "admin APIs disabled"})
        self.taken += 1
        name = f"{OURS[:-1]}{self.taken}"
        for block, from_hours, until_hours in ((OLD, 50, 24), (LAST, 30, 6), (HEAD, 6, 0)):
            folder = self.data / "snapshots" / name / block
            (folder / "chunks").mkdir(parents=True)
            (folder / "chunks" / "000001").write_bytes(block.encode() * 1000)
            (folder / "index").write_bytes(b"index of " + block.encode())
            (folder / "meta.json").write_text(json.dumps(meta(block, from_hours, until_hours)))
        self.before_answer()
        return Reply(200, {"status": "success", "data": {"name": name}})


def meta(block: str, from_hours: float, until_hours: float) -> dict[str, Any]:
    from_at, until_at = (END - timedelta(hours=hours) for hours in (from_hours, until_hours))
    times = {"minTime": int(from_at.timestamp() * 1000), "maxTime": int(until_at.timestamp() * 1000)}
    return {"ulid": block, **times, "stats": {"numSamples": 100}, "version": 1}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "prometheus"
    (folder / "snapshots" / OTHERS / OLD).mkdir(parents=True)
    return folder


@pytest.fixture
def fake_cluster(data: Path) -> ExecutingCluster:
    cluster = ExecutingCluster()
    cluster.allowed |= {("create", "pods"), ("get", "pods"), ("create", "pods/exec")}
    cluster.add_claim(MONITORING, "prometheus-data", data)
    cluster.add_pod(MONITORING, "prometheus-0", "prometheus-data", "/prometheus")
    cluster.add_stateful_set(MONITORING, "prometheus")
    return cluster


@pytest.fixture
def prometheus(data: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakePrometheus]:
    fake = FakePrometheus(data)
    with serving(fake) as server:
        fields = {"conn_type": "http", "host": "127.0.0.1", "port": server.port, "schema": "http"}
        monkeypatch.setenv("AIRFLOW_CONN_PROMETHEUS_TEST", connection_json(**fields))

        @contextmanager
        def port_forward(self: ClusterHook, namespace: str, pod: str, port: int) -> Iterator[str]:
            # The stream of a forwarded port has its own tests with a real one.
            assert (namespace, pod, port) == (MONITORING, "prometheus-0", 9090)
            yield server.url

        monkeypatch.setattr(ClusterHook, "port_forward", port_forward)
        yield fake


def source(memory: dict[str, Any] | None = None, **pod: Any) -> PrometheusMetrics:
    named = {"workload": {"name": "prometheus"}, "data_path": "/prometheus", **pod}
    return PrometheusMetrics(
        PrometheusExport(PrometheusHook("prometheus_test"), end=END),
        PodFiles(ClusterHook("kubernetes_test"), "backup-1"),
        PrometheusPod.model_validate(named) if pod.get("workload", True) else None,
        TaskStateStore({} if memory is None else memory),
        connection_id="prometheus_test",
        namespace=MONITORING,
    )


def read(of: PrometheusMetrics) -> dict[str, bytes]:
    return {member.path: b"".join(member.chunks) for member in of}


def snapshots(data: Path) -> list[str]:
    return sorted(path.name for path in (data / "snapshots").iterdir())


@pytest.mark.parametrize(
    ("whole", "expected"), [(False, [LAST, HEAD]), (True, [OLD, LAST, HEAD])], ids=["last day", "whole"]
)
def test_the_blocks_are_there_as_they_are_and_the_snapshot_is_gone(
    whole: bool, expected: list[str], cluster_server: Server, prometheus: FakePrometheus, data: Path
) -> None:
    found = source(whole=whole)
    files = read(found)
    assert {path.split("/")[2] for path in files} == set(expected)
    for block in expected:
        root = f"prometheus/snapshot/{block}"
        assert files[f"{root}/chunks/000001"] == block.encode() * 1000
        assert json.loads(files[f"{root}/meta.json"])["ulid"] == block
    facts = found.outcome.facts
    assert (facts["kind"], facts["blocks"], facts["samples"]) == ("tsdb snapshot", expected, 100 * len(expected))
    assert snapshots(data) == [OTHERS]


def admin_off(prometheus: FakePrometheus, cluster: ExecutingCluster) -> None:
    prometheus.admin = False


def no_tar(prometheus: FakePrometheus, cluster: ExecutingCluster) -> None:
    cluster.inside["prometheus-0", "app"].programs = ("ls", "rm")


def not_allowed(prometheus: FakePrometheus, cluster: ExecutingCluster) -> None:
    cluster.allowed = set()


def no_pod(prometheus: FakePrometheus, cluster: ExecutingCluster) -> None:
    del cluster.objects[f"/api/v1/namespaces/{MONITORING}/pods/prometheus-0"]


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        pytest.param(admin_off, "without --web.enable-admin-api", id="admin API off"),
        pytest.param(no_tar, "has no tar", id="no tar"),
        pytest.param(not_allowed, "takes create pods/exec", id="not allowed"),
        pytest.param(no_pod, "no pod", id="no pod"),
    ],
)
def test_without_a_way_to_a_snapshot_the_metrics_are_exported_and_the_reason_told(
    spoil: Callable[[FakePrometheus, ExecutingCluster], None],
    reason: str,
    cluster_server: Server,
    fake_cluster: ExecutingCluster,
    prometheus: FakePrometheus,
    data: Path,
) -> None:
    spoil(prometheus, fake_cluster)
    found = source()
    assert all(path.startswith("prometheus/export/up/") for path in read(found))
    facts = found.outcome.facts
    assert (facts["kind"], reason in facts["reason"]) == ("range-query export", True)
    assert snapshots(data) == [OTHERS]


def test_where_no_pod_is_named_there_is_the_export(cluster_server: Server, prometheus: FakePrometheus) -> None:
    found = source(workload=None)
    read(found)
    assert "backup.prometheus" in found.outcome.facts["reason"]
    assert cluster_server.received == []


def test_a_broken_stream_is_an_error_and_the_snapshot_is_gone(
    cluster_server: Server, fake_cluster: ExecutingCluster, prometheus: FakePrometheus, data: Path
) -> None:
    fake_cluster.spoiled = Spoiled(cut_after_bytes=700)
    with pytest.raises(TransientError) as error:
        read(source())
    assert error.value.reference == "pod-stream-ended"
    assert snapshots(data) == [OTHERS]


def test_who_stops_reading_leaves_no_snapshot(cluster_server: Server, prometheus: FakePrometheus, data: Path) -> None:
    members = iter(source())
    next(members)
    assert len(snapshots(data)) == 2
    members.close()  # type: ignore[attr-defined]
    assert snapshots(data) == [OTHERS]


@pytest.mark.parametrize("knows_name", [True, False], ids=["after the answer", "before the answer"])
def test_what_a_dead_attempt_left_is_deleted_first(
    knows_name: bool, cluster_server: Server, prometheus: FakePrometheus, data: Path
) -> None:
    left = data / "snapshots" / f"{OURS[:-1]}0"
    shutil.copytree(data / "snapshots" / OTHERS, left)
    memory = {RECORD: {"before": [OTHERS], "name": left.name if knows_name else ""}}
    seen: list[list[str]] = []
    prometheus.before_answer = lambda: seen.append(snapshots(data))
    read(source(memory))
    assert left.name not in seen[0]
    assert snapshots(data) == [OTHERS]


def test_the_way_to_it_is_noted_before_it_is_taken(
    cluster_server: Server, prometheus: FakePrometheus, data: Path
) -> None:
    memory: dict[str, Any] = {}
    noted: list[Any] = []
    prometheus.before_answer = lambda: noted.append(dict(memory[RECORD]))
    read(source(memory))
    assert noted == [{"before": [OTHERS], "name": ""}]


def test_of_several_that_may_be_ours_none_is_deleted() -> None:
    assert left_behind({"before": ["a"], "name": ""}, ["a", "b", "c"]) == (None, ["b", "c"])
    assert left_behind({}, ["a"]) == (None, [])


def test_a_snapshot_that_can_not_be_deleted_is_an_error_that_names_it(
    cluster_server: Server, fake_cluster: ExecutingCluster, prometheus: FakePrometheus
) -> None:
    fake_cluster.spoiled = Spoiled("rm", cut_after_bytes=0)
    run = PodFiles.run

    def fails(self: PodFiles, namespace: str, seat: Any, command: list[str]) -> Any:
        if command[0] == "rm" and "-r" in command:
            return run(self, namespace, seat, ["ls", "/no such folder"])
        return run(self, namespace, seat, command)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PodFiles, "run", fails)
        with pytest.raises(TransientError, match=OURS[:-1]) as error:
            read(source())
    assert error.value.reference == "tsdb-snapshot-left"


@pytest.mark.parametrize("name", ["../..", "", "x; rm"])
def test_a_name_that_leads_elsewhere_is_never_deleted(
    name: str, cluster_server: Server, fake_cluster: ExecutingCluster, prometheus: FakePrometheus
) -> None:
    class Liar(FakePrometheus):
        def __call__(self, request: Received) -> Reply:
            return Reply(200, {"status": "success", "data": {"name": name}})

    prometheus.__class__ = Liar
    with pytest.raises(MaintenanceError) as error:
        read(source())
    assert isinstance(error.value, PermanentError)
    assert error.value.reference == "tsdb-snapshot-invalid"
    assert not [command for _, command in fake_cluster.executed if "-r" in command]
