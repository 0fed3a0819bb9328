"""What a capture that is dead for good has left in the cluster: it goes, nothing else does, and it is told when it stays."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowException, AirflowFailException

from nephoran_maintenance.domain.tsdb import OTHERS, RECORD, asking, not_deleted, taken
from nephoran_maintenance.engine.tsdb_snapshots import TsdbSnapshots
from nephoran_maintenance.hooks.cluster import ClusterHook
from nephoran_maintenance.operators.backup_readers import ReleaseReadersOperator
from nephoran_maintenance.operators.backup_sources import SOURCES, Capturing, Notes
from tests.unit.dag_runner import DagRunner
from tests.unit.engine.test_tsdb_snapshot import (
    END,
    LATER,
    MONITORING,
    NEAR,
    NEAR_TOO,
    OURS,
    THEIRS,
    FakePrometheus,
    put,
    snapshots,
)
from tests.unit.hooks.fake_servers import serving
from tests.unit.operators import test_backup
from tests.unit.operators.test_backup import CANARY, SYSTEM, Site, facts_of, with_knowledge_base

site = test_backup.site
STEP = "release_readers"
READ = ["kubernetes-objects", "prometheus", "knowledge-base"]


@pytest.fixture
def data(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The data of a Prometheus in a pod, where a snapshot of somebody else is; the profile names it."""
    folder = tmp_path / "prometheus"
    (folder / "snapshots" / THEIRS).mkdir(parents=True)
    site.cluster.allowed |= {("create", "pods"), ("get", "pods")}
    site.cluster.add_claim(MONITORING, "prometheus-data", folder)
    site.cluster.add_pod(MONITORING, "prometheus-0", "prometheus-data", "/prometheus")
    site.cluster.add_stateful_set(MONITORING, "prometheus")
    wanted = {"prometheus": {"workload": {"name": "prometheus"}, "data_path": "/prometheus"}}
    site.edit_profile(lambda profile: profile["backup"].update(wanted))
    with serving(FakePrometheus(folder)) as server:

        @contextmanager
        def port_forward(self: ClusterHook, namespace: str, pod: str, port: int) -> Iterator[str]:
            yield server.url

        monkeypatch.setattr(ClusterHook, "port_forward", port_forward)
        yield folder


@pytest.fixture
def dead() -> Iterator[list[Any]]:
    """What a process that was killed held: it can't let go of it."""
    held: list[Any] = []
    yield held
    for members in held:
        members.close()


def killed_while_reading(dead: list[Any]) -> Callable[[Any, Any], Any]:
    def read_and_die(step: Any, context: Any) -> Any:
        with step.session() as session:
            members = iter(SOURCES[step.source].make(Capturing(step, context, session)))
            next(members)
            dead.append(members)
        raise AirflowFailException("the worker is gone")

    return read_and_die


def read(site: Site, *sources: str, **replaced: Any) -> DagRunner:
    return site.backup(type="full", include_sources=[*(sources or READ)], replaced=replaced)


def finding(run: DagRunner, check: str) -> dict[str, Any]:
    (found,) = [found for found in run.report["findings"] if found["check"] == check]
    return dict(found)


# --------------------------------------------------------------------------------------------------------- it was killed


def test_the_snapshot_of_a_killed_step_goes_and_that_of_others_stays(site: Site, data: Path, dead: list[Any]) -> None:
    run = read(site, capture_prometheus=killed_while_reading(dead))
    assert run.states["capture_prometheus"] == "failed"
    assert run.states[STEP] == "success"
    assert snapshots(data) == [THEIRS]
    assert run.results[STEP, "return_value"]["removed"] == [f"snapshot of Prometheus: {OURS[:-1]}1"]
    assert OURS[:-1] in finding(run, "readers")["observed"]
    assert run.report["overall"] == "not-backed-up"


def test_a_snapshot_goes_whose_name_the_killed_step_was_not_told(site: Site, data: Path) -> None:
    def asked_and_killed(step: Any, context: Any) -> Any:
        Notes(context).set(RECORD, asking([THEIRS], END))
        put(data, NEAR, LATER)
        raise AirflowFailException("the worker is gone")

    run = read(site, capture_prometheus=asked_and_killed)
    assert run.states[STEP] == "success"
    assert snapshots(data) == sorted([THEIRS, LATER])


def test_the_helper_pod_of_a_killed_step_goes(site: Site, tmp_path: Path, dead: list[Any]) -> None:
    with_knowledge_base(site, tmp_path / "volume")
    run = read(site, capture_knowledge_base=killed_while_reading(dead))
    assert site.cluster.created
    assert site.cluster.helpers() == []
    assert f"helper pod in {SYSTEM}" in finding(run, "readers")["observed"]


def test_both_go_when_both_were_killed(site: Site, data: Path, tmp_path: Path, dead: list[Any]) -> None:
    with_knowledge_base(site, tmp_path / "volume")
    killed = killed_while_reading(dead)
    run = read(site, capture_prometheus=killed, capture_knowledge_base=killed)
    assert len(run.results[STEP, "return_value"]["removed"]) == 2
    assert (snapshots(data), site.cluster.helpers()) == ([THEIRS], [])


def test_what_one_try_has_noted_is_found_although_the_next_one_was_killed_at_its_beginning(
    site: Site, data: Path
) -> None:
    """Airflow deletes what a step has told others when it is tried again."""
    tries = iter(range(2))

    def killed_twice(step: Any, context: Any) -> Any:
        if next(tries) == 0:
            Notes(context).set(RECORD, taken(NEAR))
            put(data, NEAR)
            raise AirflowException("the worker is gone, and the next one comes")
        step = copy.copy(step)
        step.session = gone
        return step.execute(context)

    def gone() -> Any:
        raise AirflowFailException("the worker is gone")

    run = read(site, capture_prometheus=killed_twice)
    assert run.order.count("capture_prometheus") == 2
    assert snapshots(data) == [THEIRS]


def test_the_process_of_a_step_that_was_marked_failed_is_outlived(
    site: Site, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes on for some seconds: what it takes then goes too."""
    marked: list[Any] = []

    def mark(step: Any, context: Any) -> Any:
        marked.append(Notes(context))
        raise AirflowFailException("marked failed, and still at work")

    def lives_on(seconds: float) -> None:
        if marked:
            marked.pop().set(RECORD, taken(NEAR))
            put(data, NEAR)

    monkeypatch.setattr(ReleaseReadersOperator, "sleep", staticmethod(lives_on))
    run = read(site, capture_prometheus=mark)
    assert marked == []
    assert run.results[STEP, "return_value"]["removed"] == [f"snapshot of Prometheus: {NEAR}"]
    assert snapshots(data) == [THEIRS]


# ------------------------------------------------------------------------------------------------------- it does not go


def refusing(monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """Let so many deletions of a snapshot fail."""
    delete, left = TsdbSnapshots.delete, iter(range(times))

    def refuse(self: TsdbSnapshots, seat: Any, name: str) -> None:
        if next(left, None) is not None:
            raise not_deleted(name, "Read-only file system")
        delete(self, seat, name)

    monkeypatch.setattr(TsdbSnapshots, "delete", refuse)


def test_a_snapshot_that_its_own_step_could_not_delete_goes_after_all(
    site: Site, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusing(monkeypatch, 3)
    run = read(site)
    assert run.failed() == []
    assert run.report["overall"] == "backed-up"
    (found,) = [source for source in site.manifest()["sources"] if source["name"] == "prometheus"]
    assert (found["state"], "Read-only" in found["reason"]) == ("failed", True)
    assert finding(run, "readers")["severity"] == "pass"
    assert snapshots(data) == [THEIRS]


def test_what_stays_is_told_and_makes_the_run_red_and_the_backup_counts(
    site: Site, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusing(monkeypatch, 99)
    run = read(site)
    assert run.failed() == [STEP, "verify_outcome"]
    assert "checked.json.asc" in site.names()
    assert run.report["overall"] == "backed-up"
    found = finding(run, "readers")
    assert (found["severity"], "[tsdb-snapshot-left]" in found["observed"]) == ("warn", True)
    assert [step["task_id"] for step in run.report["failed_steps"]] == [STEP]


def test_the_helper_pod_goes_although_the_snapshot_stays(
    site: Site, data: Path, tmp_path: Path, dead: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with_knowledge_base(site, tmp_path / "volume")
    refusing(monkeypatch, 99)
    killed = killed_while_reading(dead)
    run = read(site, capture_prometheus=killed, capture_knowledge_base=killed)
    assert "[tsdb-snapshot-left]" in run.error(STEP)
    assert site.cluster.helpers() == []


def test_of_several_that_may_be_ours_none_goes_and_all_are_named(site: Site, data: Path) -> None:
    def asked_and_killed(step: Any, context: Any) -> Any:
        Notes(context).set(RECORD, asking([THEIRS], END))
        put(data, NEAR, NEAR_TOO)
        raise AirflowFailException("the worker is gone")

    run = read(site, capture_prometheus=asked_and_killed)
    assert f"{NEAR_TOO} or {NEAR}" in run.error(STEP)
    assert snapshots(data) == sorted([THEIRS, NEAR, NEAR_TOO])


# -------------------------------------------------------------------------------------------------- there is nothing to do


def test_a_good_backup_leaves_nothing_to_it(site: Site, data: Path, tmp_path: Path) -> None:
    with_knowledge_base(site, tmp_path / "volume")
    run = read(site)
    assert run.failed() == []
    places = [f"helper pod in {SYSTEM}", "snapshot of Prometheus"]
    assert sorted(run.results[STEP, "return_value"]["looked_for"]) == places
    assert finding(run, "readers")["observed"] == "nothing is left"
    assert not [data for data in site.s3.objects.values() if CANARY.encode() in data]


@pytest.mark.parametrize(
    "given",
    [
        pytest.param({}, id="type"),
        pytest.param({"type": "full", "include_sources": ["kubernetes-objects"]}, id="scope"),
    ],
)
def test_is_skipped_where_nothing_is_read_from_volumes(site: Site, given: dict[str, Any]) -> None:
    run = site.backup(**given)
    assert (run.failed(), run.states[STEP]) == ([], "skipped")


def test_is_skipped_where_the_reading_was_never_begun(site: Site) -> None:
    site.s3.deny = True
    run = site.backup(type="full")
    assert run.states["capture_prometheus"] == "upstream_failed"
    assert run.states[STEP] == "skipped"


def test_runs_where_one_of_the_two_is_in_the_scope(site: Site, data: Path, dead: list[Any]) -> None:
    run = read(site, "kubernetes-objects", "prometheus", capture_prometheus=killed_while_reading(dead))
    assert run.states["capture_knowledge_base"] == "skipped"
    assert run.states[STEP] == "success"
    assert snapshots(data) == [THEIRS]


# ---------------------------------------------------------------------------------------------- of a run that has vanished


def test_snapshots_that_are_none_of_its_own_are_in_manifest_and_report_and_stay(site: Site, data: Path) -> None:
    put(data, LATER)
    run = read(site)
    assert run.failed() == []
    others = sorted([LATER, THEIRS])
    assert facts_of(site, run, "prometheus")[OTHERS] == {"count": 2, "first": others}
    found = finding(run, "snapshots")
    assert (found["severity"], found["object"]) == ("warn", "prometheus")
    assert all(name in found["observed"] for name in others)
    assert snapshots(data) == others
    for name in others:
        shutil.rmtree(data / "snapshots" / name)
    again = site.backup(type="full", include_sources=[*READ], run_id="the next")
    assert [found for found in again.report["findings"] if found["check"] == "snapshots"] == []
