"""A snapshot of Prometheus: its blocks as they are, nothing of it left behind, and the export where there is no way."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest

from nephoran_maintenance.domain.tsdb import OTHERS, RECORD, asking, deleted, left_behind, taken
from nephoran_maintenance.engine.monitoring_sources import PrometheusExport, PrometheusMetrics
from nephoran_maintenance.engine.tsdb_snapshots import TsdbSnapshots
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
THEIRS = "20261101T000000Z-fedcba9876543210"
OLD, LAST, HEAD = (f"01J{letter}" + "0" * 22 for letter in "ABC")


class FakePrometheus:
    """Writes a snapshot of three blocks: one older than a day, one that reaches into it, and the newest."""

    def __init__(self, data: Path) -> None:
        self.data = data
        self.admin = True
        self.before_answer: Callable[[], None] = lambda: None
        self.taken = 0

    def __call__(self, request: Received) -> Reply:
        if request.path == "/-/ready":
            return Reply(200, "ready", {"Date": format_datetime(END, usegmt=True)})
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
    (folder / "snapshots" / THEIRS / OLD).mkdir(parents=True)
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
    assert snapshots(data) == [THEIRS]


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
    assert snapshots(data) == [THEIRS]


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
    assert snapshots(data) == [THEIRS]


def test_who_stops_reading_leaves_no_snapshot(cluster_server: Server, prometheus: FakePrometheus, data: Path) -> None:
    members = iter(source())
    next(members)
    assert len(snapshots(data)) == 2
    members.close()  # type: ignore[attr-defined]
    assert snapshots(data) == [THEIRS]


@pytest.mark.parametrize("knows_name", [True, False], ids=["after the answer", "before the answer"])
def test_what_a_dead_attempt_left_is_deleted_first(
    knows_name: bool, cluster_server: Server, prometheus: FakePrometheus, data: Path
) -> None:
    left = data / "snapshots" / f"{OURS[:-1]}0"
    shutil.copytree(data / "snapshots" / THEIRS, left)
    memory = {RECORD: taken(left.name) if knows_name else asking([THEIRS], END)}
    seen: list[list[str]] = []
    prometheus.before_answer = lambda: seen.append(snapshots(data))
    read(source(memory))
    assert left.name not in seen[0]
    assert snapshots(data) == [THEIRS]


def test_the_way_to_it_is_noted_before_it_is_taken(
    cluster_server: Server, prometheus: FakePrometheus, data: Path
) -> None:
    memory: dict[str, Any] = {}
    noted: list[Any] = []
    prometheus.before_answer = lambda: noted.append(dict(memory[RECORD]))
    read(source(memory))
    assert noted == [asking([THEIRS], END)]
    assert memory[RECORD] == deleted(f"{OURS[:-1]}1")


def test_what_is_none_of_its_own_is_told_and_stays(
    cluster_server: Server, prometheus: FakePrometheus, data: Path
) -> None:
    found = source()
    read(found)
    assert found.outcome.facts[OTHERS] == {"count": 1, "first": [THEIRS]}
    shutil.rmtree(data / "snapshots" / THEIRS)
    again = source()
    read(again)
    assert OTHERS not in again.outcome.facts


def test_what_is_none_of_its_own_is_told_where_the_metrics_are_exported(
    cluster_server: Server, prometheus: FakePrometheus
) -> None:
    prometheus.admin, memory = False, {}  # type: ignore[var-annotated]
    found = source(memory)
    read(found)
    assert found.outcome.facts[OTHERS] == {"count": 1, "first": [THEIRS]}
    assert memory[RECORD] == deleted(), "none was taken"


def taken_at(at: datetime, number: int = 0) -> str:
    return f"{at:%Y%m%dT%H%M%SZ}-{number:016x}"


NEAR, NEAR_TOO = taken_at(END + timedelta(seconds=1)), taken_at(END, 7)
LATER, BEFORE = taken_at(END + timedelta(minutes=1)), taken_at(END - timedelta(seconds=1))


@pytest.mark.parametrize(
    ("record", "there", "expected"),
    [
        pytest.param(asking(["a"], END), ["a", NEAR], (NEAR, []), id="one that was taken just then"),
        pytest.param(asking(["a"], END), ["a"], (None, []), id="none was taken"),
        pytest.param(asking([NEAR], END), [NEAR], (None, []), id="it was there before"),
        pytest.param(asking([], END), [NEAR, NEAR_TOO], (None, [NEAR_TOO, NEAR]), id="two that were taken just then"),
        pytest.param(asking([], END), [LATER], (None, []), id="one of somebody who came later"),
        pytest.param(asking([], END), [BEFORE], (None, []), id="one of somebody who was earlier"),
        pytest.param(asking([], END), [NEAR, LATER], (NEAR, []), id="ours and one of later"),
        pytest.param(asking([], END), ["99999999T999999Z-0"], (None, []), id="a moment that is none"),
        pytest.param(asking([], None), [NEAR], (None, [NEAR]), id="without a clock nothing is proven"),
        pytest.param(taken(LATER), [NEAR, LATER], (LATER, []), id="its name is known"),
        pytest.param(taken(NEAR), [LATER], (None, []), id="it is gone"),
        pytest.param({}, [NEAR], (None, []), id="nothing was noted"),
    ],
)
def test_only_what_can_be_proven_is_ours(
    record: dict[str, object], there: list[str], expected: tuple[str | None, list[str]]
) -> None:
    assert left_behind(record, there) == expected


# -------------------------------------------------------------------------------------------- after a step that is dead


def snapshots_of(**pod: Any) -> TsdbSnapshots:
    named = {"workload": {"name": "prometheus"}, "data_path": "/prometheus", **pod}
    return TsdbSnapshots(
        PodFiles(ClusterHook("kubernetes_test"), "backup-1"), PrometheusPod.model_validate(named), MONITORING
    )


def put(data: Path, *names: str) -> None:
    for name in names:
        shutil.copytree(data / "snapshots" / THEIRS, data / "snapshots" / name)


@pytest.mark.parametrize("record", [taken(NEAR), asking([THEIRS], END)], ids=["named", "asked for"])
def test_a_snapshot_of_ours_is_released_and_no_other(
    record: dict[str, object], cluster_server: Server, data: Path
) -> None:
    put(data, NEAR, LATER)
    assert snapshots_of().release(record) == NEAR
    assert snapshots(data) == sorted([THEIRS, LATER])
    assert snapshots_of().release(record) == "", "it can be repeated"


@pytest.mark.parametrize("record", [None, deleted(), deleted(NEAR)], ids=["nothing noted", "none taken", "gone"])
def test_where_nothing_is_of_ours_the_cluster_is_not_asked(
    record: dict[str, object] | None, cluster_server: Server, data: Path
) -> None:
    put(data, NEAR)
    assert snapshots_of().release(record) == ""
    assert cluster_server.received == []
    assert NEAR in snapshots(data)


def test_of_several_that_may_be_ours_none_is_released(cluster_server: Server, data: Path) -> None:
    put(data, NEAR, NEAR_TOO)
    with pytest.raises(TransientError, match=f"{NEAR_TOO} or {NEAR}.*can't be told") as error:
        snapshots_of().release(asking([THEIRS], END))
    assert error.value.reference == "tsdb-snapshot-left"
    assert snapshots(data) == sorted([THEIRS, NEAR, NEAR_TOO])


def test_a_pod_that_is_away_is_no_proof_that_nothing_is_left(
    cluster_server: Server, fake_cluster: ExecutingCluster
) -> None:
    del fake_cluster.objects[f"/api/v1/namespaces/{MONITORING}/pods/prometheus-0"]
    with pytest.raises(TransientError, match="no pod") as error:
        snapshots_of().release(taken(NEAR))
    assert error.value.reference == "tsdb-snapshot-left"


def test_to_release_one_takes_no_tar_and_no_more_rights_than_exec(
    cluster_server: Server, fake_cluster: ExecutingCluster, data: Path
) -> None:
    put(data, NEAR)
    fake_cluster.inside["prometheus-0", "app"].programs = ("ls", "rm")
    fake_cluster.allowed = {("create", "pods")}  # the test server asks for no subresource
    assert snapshots_of().release(taken(NEAR)) == NEAR


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
