"""Freshness in procedures: what preflight makes of the bucket, what the hourly run leaves, and the alert of a red one."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest

from nephoran_maintenance.domain.freshness import Standing
from nephoran_maintenance.operators import backup_freshness, checks
from tests.unit.backup_bucket import NOW, BackupBucket, Workshop
from tests.unit.dag_runner import DagRunner
from tests.unit.fake_cluster import SYSTEM
from tests.unit.hooks.fake_servers import Reply, Server, connection_json, serving
from tests.unit.operators.conftest import System

ALERTS = "AIRFLOW_CONN_ALERTS"


@pytest.fixture(autouse=True)
def standing(monkeypatch: pytest.MonkeyPatch) -> list[Standing]:
    """What Airflow says of ``backup``; outside of a worker it can't be asked."""
    said = [Standing(False, False)]
    for module in (checks, backup_freshness):
        monkeypatch.setattr(module, "standing_of", lambda ti, dag_id, at: said[0])
    return said


# ---------------------------------------------------------------------------------------------------------- preflight


@pytest.fixture
def backed_up(system: System, workshop: Workshop, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> BackupBucket:
    """A system whose profile describes backups, with an empty bucket."""
    own, folder = system.profile_path, tmp_path / "bucket"
    folder.mkdir()
    bucket = workshop.bucket(folder, monkeypatch)
    described = workshop.profile(folder)["backup"]
    for use in ("recipients", "signers"):
        for key in described[use]:
            key["key_file"] = str(folder / key["key_file"])
    system.edit_profile(lambda data: data.update(backup=described))
    monkeypatch.setenv("NEPHORAN_PROFILE", str(own))
    system.cluster.put("/api/v1/namespaces", {"metadata": {"name": "kube-system", "uid": "uid-1"}})
    return bucket


def about_backups(run: DagRunner) -> dict[str, tuple[str, str]]:
    found = [finding for finding in run.report["findings"] if finding["check"] == "backup"]
    return {finding["object"]: (finding["severity"], finding["observed"]) for finding in found}


def test_a_profile_without_backups_warns_and_lets_a_change_through(system: System) -> None:
    run = system.preflight()
    assert run.report["overall"] == "ready"
    severity, observed = about_backups(run)["newest checked backup"]
    assert severity == "warn"
    assert observed.startswith("not configured")


def test_a_change_needs_a_checked_backup_younger_than_a_day(system: System, backed_up: BackupBucket) -> None:
    assert about_backups(system.preflight())["newest checked backup"] == ("block", "there is none")
    backed_up.add(0.1, "config-only")
    backed_up.add(0.2, checked=False)
    old = backed_up.add(1.1)
    run = system.preflight()
    assert run.report["overall"] == "not-ready"
    severity, observed = about_backups(run)["newest checked backup"]
    assert (severity, observed.partition(",")[0]) == ("block", old)
    system.edit_profile(lambda data: data["backup"].update(when_stale="warn"))
    assert system.preflight().report["overall"] == "ready"
    system.edit_profile(lambda data: data["backup"].update(when_stale="block"))
    young = backed_up.add(0.5)
    run = system.preflight()
    assert run.surprises == []
    assert run.report["overall"] == "ready"
    severity, observed = about_backups(run)["newest checked backup"]
    assert (severity, observed.partition(",")[0]) == ("pass", young)
    assert about_backups(run)["newest verified backup"][0] == "warn"
    assert system.writes() == []


def test_a_profile_without_recipients_lets_nothing_through_by_that(system: System, backed_up: BackupBucket) -> None:
    backed_up.add(1.1)
    system.edit_profile(lambda data: data["backup"].update(recipients=[], before_change="none"))
    run = system.preflight()
    assert run.report["overall"] == "not-ready"
    found = about_backups(run)
    assert (found["newest checked backup"][0], found["recipients of backups"][0]) == ("block", "warn")
    backed_up.add(0.5)
    assert system.preflight().report["overall"] == "ready"


def test_a_backup_of_another_cluster_lets_nothing_through(system: System, backed_up: BackupBucket) -> None:
    backed_up.add(0.1, cluster="uid-2")
    severity, observed = about_backups(system.preflight())["newest checked backup"]
    assert severity == "block"
    assert "of another cluster" in observed


def test_a_bucket_that_can_not_be_read_blocks(system: System, backed_up: BackupBucket) -> None:
    backed_up.s3.deny = True
    (found,) = about_backups(system.preflight()).values()
    assert found[0] == "block"
    assert found[1].startswith("not measured: ")


def test_a_paused_procedure_and_a_suspended_cron_job_warn(
    system: System, backed_up: BackupBucket, standing: list[Standing]
) -> None:
    backed_up.add(0.1)
    standing[0] = Standing(True, True)
    job = {"metadata": {"name": "weaviate-backup"}, "spec": {"suspend": True}}
    system.cluster.put(f"/apis/batch/v1/namespaces/{SYSTEM}/cronjobs", job)
    run = system.preflight()
    assert run.report["overall"] == "ready"
    said = [f["observed"] for f in run.report["findings"] if f["check"] == "backup" and f["severity"] == "warn"]
    assert {"paused", "its last scheduled run failed", "suspended"} <= set(said)


def test_a_suspended_cron_job_is_found_in_any_namespace_or_told_not_to_be_looked_for(
    system: System, backed_up: BackupBucket
) -> None:
    backed_up.add(0.1)
    for namespace in ("elsewhere", SYSTEM):
        job = {"metadata": {"name": "etcd-backup", "namespace": namespace}, "spec": {"suspend": True}}
        system.cluster.put(f"/apis/batch/v1/namespaces/{namespace}/cronjobs", job)
    found = about_backups(system.preflight())
    assert found["CronJob/elsewhere/etcd-backup"] == found[f"CronJob/{SYSTEM}/etcd-backup"] == ("warn", "suspended")
    assert "CronJobs of other namespaces" not in found
    system.cluster.extra["/apis/batch/v1/cronjobs"] = Reply(403, {"reason": "Forbidden", "message": "may not"})
    run = system.preflight()
    assert run.report["overall"] == "ready"
    found = about_backups(run)
    assert "CronJob/elsewhere/etcd-backup" not in found
    assert found[f"CronJob/{SYSTEM}/etcd-backup"] == ("warn", "suspended")
    assert found["CronJobs of other namespaces"][0] == "warn"


# ------------------------------------------------------------------------------------------------------ the hourly run


class Events:
    """What a step adds to the assets, as Airflow's outlet events take it."""

    def __init__(self) -> None:
        self.added: dict[str, dict[str, Any]] = {}

    def __getitem__(self, outlet: Any) -> Events:
        return self

    def add(self, asset: Any, extra: dict[str, Any]) -> None:
        self.added[asset.name] = extra


@pytest.fixture
def gauges(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    found: dict[str, float] = {}
    monkeypatch.setattr(backup_freshness, "gauge", found.__setitem__)
    return found


def measure(dags: dict[str, Any], events: Events, *, scheduled: bool = False) -> DagRunner:
    def with_events(step: Any, context: Any) -> Any:
        return step.execute({**context, "outlet_events": events})

    run = DagRunner(dags["backup_freshness"], {}, replaced={"measure_freshness": with_events})
    if scheduled:
        run.dag_run.run_type = SimpleNamespace(value="scheduled")
    run.run()
    assert run.surprises == []
    return run


def test_ages_are_metrics_and_events_of_assets(
    bucket: BackupBucket, dags: dict[str, Any], gauges: dict[str, float]
) -> None:
    young, proven, events = bucket.add(0.5), bucket.add(20, verified=True), Events()
    run = measure(dags, events)
    assert run.failed() == []
    assert run.report["overall"] == "fresh"
    assert set(gauges) == {
        f"nephoran.backup.{name}" for name in ("checked_age_seconds", "verified_age_seconds", "rpo_seconds", "fresh")
    }
    since_collection = (datetime.now(UTC) - NOW).total_seconds()
    assert gauges["nephoran.backup.checked_age_seconds"] == pytest.approx(43200 + since_collection, abs=60)
    assert gauges["nephoran.backup.fresh"] == 1
    assert events.added["nephoran_checked_backup"]["checked_backup"] == young
    assert events.added["nephoran_verified_backup"]["verified_backup"] == proven


def test_a_scheduled_run_that_finds_nothing_to_heed_writes_no_report(
    bucket: BackupBucket, dags: dict[str, Any], gauges: dict[str, float]
) -> None:
    bucket.add(0.5)
    run = measure(dags, Events(), scheduled=True)
    assert run.failed() == []
    assert run.states["report_operation"] == "skipped"


def test_a_stale_backup_makes_it_red_with_figures_and_no_event(
    bucket: BackupBucket, dags: dict[str, Any], gauges: dict[str, float]
) -> None:
    events = Events()
    run = measure(dags, events, scheduled=True)
    assert "[backup-stale]" in run.error("measure_freshness")
    assert run.report["overall"] == "stale"
    assert run.states["verify_outcome"] == "failed"
    assert gauges == {"nephoran.backup.fresh": 0}
    assert events.added == {}


# ----------------------------------------------------------------------------------------------------------- the alert


@pytest.fixture
def receiver() -> Iterator[Server]:
    with serving(lambda request: Reply(200, {})) as server:
        yield server


def alert(run: DagRunner) -> None:
    """Call what Airflow calls when the last step has failed."""
    from tests.unit.dag_runner import TaskInstance

    step = run.dag.get_task("verify_outcome")
    (callback,) = step.on_failure_callback
    callback(run.context(step, TaskInstance(run, step)))


@pytest.fixture
def stale(bucket: BackupBucket, dags: dict[str, Any], gauges: dict[str, float]) -> DagRunner:
    return measure(dags, Events(), scheduled=True)


def test_an_alert_says_what_failed_what_to_do_and_where_the_report_is(
    stale: DagRunner, bucket: BackupBucket, receiver: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.edit_profile(lambda data: data["connections"].update(alerts="alerts"))
    token = "token-of-the-receiver"
    monkeypatch.setenv(ALERTS, connection_json(conn_type="http", host=f"{receiver.url}/hook", password=token))
    alert(stale)
    (request,) = receiver.received
    assert (request.method, request.path) == ("POST", "/hook")
    assert request.headers["authorization"] == f"Bearer {token}"
    text = request.json["text"]
    assert "Backup freshness of nephoran failed (backup-freshness-" in text
    assert "[backup-stale]" in text
    assert "Next: Run `backup`" in text
    assert stale.report["report_url"] in text


def test_an_alert_that_can_not_be_sent_is_in_the_log_and_harms_nothing(
    stale: DagRunner, bucket: BackupBucket, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    alert(stale)
    assert "[backup-stale]" in caplog.text
    bucket.edit_profile(lambda data: data["connections"].update(alerts="alerts"))
    monkeypatch.setenv(ALERTS, connection_json(conn_type="http", host="http://127.0.0.1:9"))
    alert(stale)
    assert "[alert-receiver-unreachable]" in caplog.text


def test_every_backup_procedure_sends_an_alert_when_it_is_red(dags: dict[str, Any]) -> None:
    for name in ("backup", "backup_freshness", "backup_retention", "backup_verification"):
        assert dags[name].get_task("verify_outcome").on_failure_callback, name
