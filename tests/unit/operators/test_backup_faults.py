"""Faults of a backup: whatever fails, the run is red with a clear error or ends whole, and nothing half looks whole.

The processes that are killed are real: forked as Airflow's worker does it, with real gpg below them.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from nephoran_maintenance.hooks import object_store
from nephoran_maintenance.hooks.object_listing import ObjectLister
from nephoran_maintenance.hooks.object_store import ObjectStoreHook
from nephoran_maintenance.hooks.openpgp import memory_folder
from nephoran_maintenance.hooks.weaviate_api import WeaviateHook
from nephoran_maintenance.operators.backup_step import BackupStep
from nephoran_maintenance.operators.base import operation_of
from nephoran_maintenance.triggers.base import PollingTrigger
from tests.unit.dag_runner import DagRunner, TaskInstance
from tests.unit.hooks.fake_servers import Received, Reply, connection_json, serving
from tests.unit.hooks.test_object_listing import BUSY, Clock
from tests.unit.operators import test_backup
from tests.unit.operators.test_backup import CANARY, SYSTEM, Site, facts_of, id_of

site = test_backup.site
SESSION = BackupStep.session
CONFIG_MAPS = f"/api/v1/namespaces/{SYSTEM}/configmaps"


@pytest.fixture(autouse=True)
def several_parts(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have archives take several parts, as large ones do."""
    monkeypatch.setattr(object_store, "SMALLEST_PART_BYTES", 1000)
    noise = random.Random(1).randbytes(3000).hex()
    thing = {"metadata": {"name": "noise", "uid": "uid-noise", "namespace": SYSTEM}, "data": {"noise": noise}}
    site.cluster.put(CONFIG_MAPS, {"kind": "Thing", **thing})


def manifests(site: Site) -> list[str]:
    """Return the ids of the backups that exist."""
    return sorted(key.split("/")[1] for key in site.s3.objects if key.endswith("/manifest.json.asc"))


def check_whole(site: Site, identifier: str) -> None:
    """Compare every file of a backup with what its signed manifest says, without the code that wrote it."""
    with tempfile.TemporaryDirectory() as folder:
        signature = Path(folder) / "signature.asc"
        signature.write_bytes(site.stored("manifest.json.asc", identifier))
        site.keys.gpg("--verify", str(signature), "-", data=site.stored("manifest.json", identifier))
    manifest = site.manifest(identifier)
    for source in manifest["sources"]:
        if archive := source.get("archive"):
            for name, version, digest in (
                (archive["key"], archive["version_id"], archive["sha256"]),
                (archive["inventory_key"], archive["inventory_version_id"], archive["inventory_sha256"]),
            ):
                data = site.s3.versions[f"backups/{identifier}/{name}", version]
                assert hashlib.sha256(data).hexdigest() == digest, name
    assert {source["name"] for source in manifest["sources"] if source["required"]} <= {
        source["name"] for source in manifest["sources"] if source["state"] == "captured"
    }
    files = site.opened("kubernetes-objects", identifier)
    live = {
        path.rpartition("/")[2] for path in site.cluster.objects if path.startswith(f"/api/v1/namespaces/{SYSTEM}/")
    }
    assert live == {path.rpartition("/")[2].removesuffix(".json") for path in files if f"/{SYSTEM}/" in path}


def check_nothing_left(site: Site) -> None:
    """No part of an upload, nothing but descriptors in staging, and nothing in clear anywhere."""
    assert site.s3.uploads == {}
    assert {key.rpartition(".")[2] for key in site.staging.objects} <= {"json"}
    stored = [*site.s3.versions.values()]
    stored += [path.read_bytes() for path in site.profile_path.parent.rglob("*") if path.is_file()]
    assert not [data for data in stored if CANARY.encode() in data]


# ------------------------------------------------------------------------------------------------------ bad keys, bad places


def signing_key_has_expired(site: Site, patch: pytest.MonkeyPatch) -> None:
    then = ("--faked-system-time", "20260101T000000")
    pin = site.keys.make("expired-signer", passphrase="a passphrase", encrypts=False, options=then)
    pin_in(site, "signers", pin)
    patch.setenv("AIRFLOW_CONN_OPENPGP_SIGNING", site.keys.signing_connection(pin, "a passphrase"))


def wrong_passphrase(site: Site, patch: pytest.MonkeyPatch) -> None:
    connection = json.loads(site.keys.signing_connection())
    patch.setenv("AIRFLOW_CONN_OPENPGP_SIGNING", json.dumps({**connection, "password": "wrong"}))


def recipient_is_revoked(site: Site, _: pytest.MonkeyPatch) -> None:
    pin_in(site, "recipients", site.keys.revoked)


def pin_in(site: Site, use: str, pin: Any) -> None:
    (site.profile_path.parent / f"{pin.name}.asc").write_text(pin.armored, encoding="ascii")
    entry = {"name": pin.name, "fingerprint": pin.fingerprint, "key_file": f"{pin.name}.asc"}
    site.edit_profile(lambda data: data["backup"][use].append(entry))


def wrong_staging_bucket(site: Site, _: pytest.MonkeyPatch) -> None:
    site.edit_profile(lambda data: data["backup"].update(staging_bucket="elsewhere"))


def staging_keeps_versions(site: Site, _: pytest.MonkeyPatch) -> None:
    site.staging.versioned = True


def staging_keeps_versions_and_does_not_tell(site: Site, _: pytest.MonkeyPatch) -> None:
    """versitygw tells it the owner of the bucket alone."""
    site.staging.versioned = True
    denied = site.staging.error(403, "AccessDenied")
    site.staging.fail = lambda request: denied if "versioning" in request.query else None


def staging_is_denied(site: Site, _: pytest.MonkeyPatch) -> None:
    site.staging.deny = True


def test_a_staging_bucket_that_does_not_tell_and_keeps_no_versions_is_used(site: Site) -> None:
    denied = site.staging.error(403, "AccessDenied")
    site.staging.fail = lambda request: denied if "versioning" in request.query else None
    run = site.backup(type="full")
    assert run.report["overall"] == "backed-up", run.report["failed_steps"]
    assert not [key for key in site.staging.objects if not key.endswith(".json")]


@pytest.mark.parametrize(
    ("spoil", "reference"),
    [
        pytest.param(signing_key_has_expired, "openpgp-signing-failed", id="the signing key has expired"),
        pytest.param(wrong_passphrase, "openpgp-signing-failed", id="wrong passphrase of the signing key"),
        pytest.param(recipient_is_revoked, "openpgp-key-unusable", id="a recipient is revoked"),
        pytest.param(wrong_staging_bucket, "bucket-not-found", id="wrong staging bucket"),
        pytest.param(staging_keeps_versions, "staging-versioned", id="staging keeps versions"),
        pytest.param(
            staging_keeps_versions_and_does_not_tell, "staging-versioned", id="staging keeps versions and does not tell"
        ),
        pytest.param(staging_is_denied, "object-store-forbidden", id="staging denied"),
    ],
)
def test_what_a_backup_can_not_end_with_is_refused_at_its_beginning(
    spoil: Callable[[Site, pytest.MonkeyPatch], None], reference: str, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(site, monkeypatch)
    run = site.backup(type="full")
    assert f"[{reference}]" in run.error("check_request")
    assert run.report["overall"] == "not-backed-up"
    assert (site.s3.objects, site.staging.objects, site.weaviate.asked) == ({}, {}, [])


# --------------------------------------------------------------------------------------------------------- the object store


def slow(site: Site, patch: pytest.MonkeyPatch) -> Reply:
    """Answer later than the client waits."""
    connection = json.loads(os.environ["AIRFLOW_CONN_OBJECT_STORE_BACKUP"])
    connection["extra"]["config_kwargs"]["read_timeout"] = 1
    patch.setenv("AIRFLOW_CONN_OBJECT_STORE_BACKUP", json.dumps(connection))
    return Reply(200, "", before=lambda: threading.Event().wait(1.5) and None)


STORE_FAULTS: dict[str, Callable[[Site, pytest.MonkeyPatch], Reply]] = {
    "500": lambda site, _: site.s3.error(500, "InternalError"),
    "503": lambda site, _: site.s3.error(503, "SlowDown"),
    "disk full": lambda site, _: site.s3.error(507, "InsufficientStorage"),
    "cut off": lambda site, _: Reply(hang_up=True),
    "slow": slow,
}


def second_part_of(source: str) -> Callable[[Received], bool]:
    return lambda request: request.query.get("partNumber") == "2" and f"/{source}.tar" in request.path


@pytest.mark.parametrize("fault", STORE_FAULTS)
def test_a_store_that_fails_once_in_the_middle_of_a_part_costs_a_retry(
    fault: str, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    reply, hit = STORE_FAULTS[fault](site, monkeypatch), second_part_of("kubernetes-objects")
    once = iter([reply])
    site.s3.fail = lambda request: next(once, None) if hit(request) else None
    run = site.backup()
    assert run.failed() == []
    assert run.order.count("capture_kubernetes_objects") == 2
    check_whole(site, id_of(run))
    check_nothing_left(site)


@pytest.mark.parametrize("fault", STORE_FAULTS)
def test_a_store_that_fails_for_good_leaves_no_backup_and_nothing_of_it(
    fault: str, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    reply, hit = STORE_FAULTS[fault](site, monkeypatch), second_part_of("weaviate")
    site.weaviate.collections = {f"Collection{number}": [f"id-{number}"] for number in range(40)}
    site.s3.fail = lambda request: reply if hit(request) else None
    run = site.backup(type="full")
    assert "[object-store-un" in run.error("capture_weaviate")
    assert run.report["overall"] == "not-backed-up"
    assert run.states["release_staging"] == "success"
    assert manifests(site) == []
    assert site.staging.objects == {}
    check_nothing_left(site)


@pytest.mark.parametrize("file", ["manifest.json", "manifest.json.asc", "checked.json", "checked.json.asc"])
def test_a_store_that_fails_at_manifest_or_note_leaves_none_that_counts(file: str, site: Site) -> None:
    site.s3.fail = lambda request: (
        site.s3.error(500, "InternalError") if request.method == "PUT" and request.path.endswith(f"/{file}") else None
    )
    run = site.backup()
    assert run.report["overall"] == "not-backed-up"
    assert len(manifests(site)) == file.startswith("checked")
    assert "checked.json.asc" not in site.names()
    site.s3.fail = lambda request: None
    again = site.backup(run_id="another")
    assert again.failed() == []
    assert id_of(again) in manifests(site)
    check_whole(site, id_of(again))


# -------------------------------------------------------------------------------------------------- cluster and Weaviate


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Let the lists' patience take no time, and their pages be small."""
    found, init = Clock(), ObjectLister.__init__

    def in_no_time(self: ObjectLister, cluster: Any) -> None:
        init(self, cluster, page_bytes=1000, sleep=found.sleep, monotonic=found.monotonic)

    monkeypatch.setattr(ObjectLister, "__init__", in_no_time)
    return found


def fill(site: Site) -> None:
    for number in range(120):
        metadata = {"name": f"x-{number:04d}", "uid": f"uid-x-{number}", "namespace": SYSTEM}
        site.cluster.put(CONFIG_MAPS, {"kind": "Thing", "metadata": metadata, "data": {"a": "b"}})


@pytest.mark.parametrize("fault", BUSY)
def test_a_minute_without_the_api_server_costs_nothing_but_time(fault: str, site: Site, clock: Clock) -> None:
    fill(site)
    site.cluster.fail = lambda request: BUSY[fault] if "continue" in request.query and clock.now < 60 else None
    run = site.backup()
    assert run.failed() == []
    assert clock.now >= 60
    check_whole(site, id_of(run))
    check_nothing_left(site)


def test_an_api_server_that_stays_away_ends_the_run_with_nothing_stored(site: Site, clock: Clock) -> None:
    fill(site)
    site.cluster.fail = lambda request: BUSY["503"] if "continue" in request.query else None
    run = site.backup()
    assert "[cluster-unavailable]" in run.error("capture_kubernetes_objects")
    assert manifests(site) == []
    assert [name for name in site.names() if name.startswith("kubernetes-objects")] == []
    check_nothing_left(site)


def test_a_list_that_expires_while_objects_are_deleted_begins_again_and_the_manifest_says_so(
    site: Site, clock: Clock
) -> None:
    fill(site)
    once = iter([True])

    def expire(request: Received) -> Reply | None:
        if "continue" not in request.query or not next(once, False):
            return None
        del site.cluster.objects[f"{CONFIG_MAPS}/x-0001"]
        return Reply(410, {"kind": "Status", "reason": "Expired", "message": "too old"})

    site.cluster.fail = expire
    run = site.backup()
    assert run.failed() == []
    assert facts_of(site, run, "kubernetes-objects")["restarted_lists"] == [f"configmaps in namespace {SYSTEM}"]
    superseded = facts_of(site, run, "kubernetes-objects")["superseded"]
    assert any(path.endswith("/x-0001.json") for path in superseded)
    check_nothing_left(site)


def test_a_collection_that_is_added_during_the_backup_is_named_in_manifest_and_report(site: Site) -> None:
    def later(step: Any, context: Any) -> Any:
        site.weaviate.collections["AddedMeanwhile"] = ["id-3"]
        return step.execute(context)

    run = site.backup(type="full", replaced={"capture_weaviate": later})
    assert run.failed() == []
    assert facts_of(site, run, "weaviate")["collections_added_meanwhile"] == ["AddedMeanwhile"]
    (found,) = [found for found in run.report["findings"] if found["object"] == "weaviate"]
    assert found["severity"] == "warn"
    assert "AddedMeanwhile" in found["observed"]


def test_a_collection_that_weaviate_leaves_out_is_no_backup(site: Site) -> None:
    site.weaviate.collections["Forgotten"] = ["id-3"]
    site.weaviate.forgets = {"Forgotten"}
    run = site.backup(type="full")
    assert "[weaviate-backup-incomplete]" in run.error("capture_weaviate")
    assert "lacks the collections Forgotten" in run.error("capture_weaviate")
    assert (manifests(site), site.staging.objects) == ([], {})


def test_a_collection_that_is_deleted_meanwhile_is_missed_by_nobody(site: Site) -> None:
    site.weaviate.collections["Deleted"] = ["id-3"]

    def later(step: Any, context: Any) -> Any:
        site.weaviate.collections.pop("Deleted", None)
        step = copy.copy(step)
        step.render_template_fields(context)
        return step.execute(context)

    run = site.backup(type="full", replaced={"wait_weaviate_backup": later})
    assert run.failed() == []
    assert facts_of(site, run, "weaviate")["collections_added_meanwhile"] == []


def test_tenants_that_weaviate_leaves_out_are_named_in_manifest_and_report(site: Site) -> None:
    site.weaviate.collections["Customers"] = []
    site.weaviate.tenants = {"Customers"}
    states = {f"tenant-{number:02}": "INACTIVE" for number in range(30)}
    site.weaviate.tenant_states["Customers"] = {**states, "at-work": "ACTIVE", "far-away": "OFFLOADED"}
    run = site.backup(type="full")
    assert run.failed() == []
    left_out = facts_of(site, run, "weaviate")["tenants_left_out"]["Customers"]
    assert (left_out["count"], left_out["states"]) == (31, {"INACTIVE": 30, "OFFLOADED": 1})
    assert left_out["names"] == sorted([*states, "far-away"])
    (found,) = [found for found in run.report["findings"] if found["object"] == "weaviate"]
    assert found["severity"] == "warn"
    assert "31 tenants of Customers (30 INACTIVE, 1 OFFLOADED): far-away, tenant-00" in found["observed"]
    assert "at-work" not in found["observed"]


def test_a_backup_that_fails_sends_an_alert(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.edit_profile(lambda data: data["connections"].update(alerts="alerts"))
    with serving(lambda request: Reply(200, {})) as receiver:
        connection = connection_json(conn_type="http", host=f"{receiver.url}/hook", password="token-of-the-receiver")
        monkeypatch.setenv("AIRFLOW_CONN_ALERTS", connection)
        site.weaviate.status = "FAILED"
        run = site.backup(type="full")
        assert run.states["verify_outcome"] == "failed"
        step = run.dag.get_task("verify_outcome")
        (callback,) = step.on_failure_callback
        callback(run.context(step, TaskInstance(run, step)))
        (request,) = receiver.received
    assert (
        f"Backup of nephoran failed ({operation_of(run.context(step, TaskInstance(run, step)))})"
        in request.json["text"]
    )
    assert "[weaviate-backup-failed]" in request.json["text"]
    assert run.report["report_url"] in request.json["text"]


def test_two_at_once_take_nothing_from_each_other(site: Site) -> None:
    """The second begins and ends while the first one's files of Weaviate lie in staging."""
    inner: list[DagRunner] = []

    def another_first(step: Any, context: Any) -> Any:
        inner.append(site.backup(type="full", run_id="second"))
        return step.execute(context)

    outer = site.backup(type="full", run_id="first", replaced={"capture_weaviate": another_first})
    assert (outer.failed(), inner[0].failed()) == ([], [])
    assert manifests(site) == sorted([id_of(outer), id_of(inner[0])])
    for run in (outer, inner[0]):
        check_whole(site, id_of(run))
        assert b"vectors" in site.opened("weaviate", id_of(run))["weaviate/backup/weaviate-0/TelecomKnowledge/chunk-1"]
    check_nothing_left(site)


# ------------------------------------------------------------------------------------------------------ the staging bucket


@pytest.fixture
def fast_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a minute pass between two looks of a trigger, from the moment at which it began."""

    def now(trigger: PollingTrigger) -> datetime:
        looks = trigger.__dict__.setdefault("looks", itertools.count())
        return datetime.now(UTC) + timedelta(minutes=next(looks))

    monkeypatch.setattr(PollingTrigger, "now", now)


def staging_finding(run: DagRunner) -> dict[str, Any]:
    (found,) = [found for found in run.report["findings"] if found["check"] == "staging bucket"]
    return dict(found)


@pytest.mark.parametrize("folder", ["", "site-1/weaviate/"])
def test_a_backup_that_stands_still_is_cancelled_and_what_weaviate_writes_at_its_end_does_not_stay(
    site: Site, fast_clock: None, folder: str
) -> None:
    site.weaviate.status, site.weaviate.folder = "TRANSFERRING", folder
    run = site.backup(type="full")
    assert "is stalled" in run.error("wait_weaviate_backup")
    assert "it was cancelled" in run.error("wait_weaviate_backup")
    assert site.weaviate.cancelled == [id_of(run)]
    assert site.weaviate.late < 0, "the descriptor came late"
    assert site.staging.objects == {}
    assert staging_finding(run)["severity"] == "pass"


def test_a_weaviate_that_writes_on_is_named_and_what_comes_late_is_cleared(site: Site, fast_clock: None) -> None:
    site.weaviate.status, site.weaviate.keeps_on = "TRANSFERRING", True
    late = iter(["chunk-2", "chunk-3"])

    def writes_on(request: Received) -> None:
        if request.method == "DELETE" and "chunk-" in request.path and (name := next(late, None)):
            site.staging.put(request.path.partition("/")[2].partition("/")[2].rpartition("/")[0] + f"/{name}", b"more")

    site.staging.fail = writes_on
    run = site.backup(type="full")
    assert "it could not be cancelled" in run.error("wait_weaviate_backup")
    found = staging_finding(run)
    assert found["severity"] == "block"
    assert "may still write there: its backup was TRANSFERRING" in found["observed"]
    assert "clear release_staging" in found["hint"]
    assert [key.rpartition("/")[2] for key in site.staging.objects] == ["chunk-3"]

    site.weaviate.keeps_on = False
    run._try(run.dag.get_task("release_staging"), TaskInstance(run, run.dag.get_task("release_staging")))
    assert run.results["release_staging", "return_value"]["doubt"] == ""
    assert site.staging.objects == {}
    assert site.weaviate.cancelled == [id_of(run)]


def test_a_chunk_that_comes_while_it_is_cleared_is_no_clean_bucket(site: Site) -> None:
    site.weaviate.status = "FAILED"
    once = iter([True])

    def writes_on(request: Received) -> None:
        if request.method == "DELETE" and next(once, False):
            # The list has passed it already.
            site.staging.put(f"{request.path.split('/')[2]}/a-node/late/chunk-9", b"late")

    site.staging.fail = writes_on
    run = site.backup(type="full")
    assert staging_finding(run)["severity"] == "block"
    assert "1 objects came while it was cleared" in staging_finding(run)["observed"]
    assert site.staging.objects == {}


@pytest.mark.parametrize("folder", ["", "site-1/weaviate/"])
def test_a_weaviate_that_goes_away_leaves_a_finding_and_no_files(site: Site, fast_clock: None, folder: str) -> None:
    site.weaviate.status, site.weaviate.folder = "TRANSFERRING", folder

    def goes_away(step: Any, context: Any) -> Any:
        step = copy.copy(step)
        step.render_template_fields(context)
        try:
            return step.execute(context)
        finally:
            site.weaviate.down = True

    run = site.backup(type="full", replaced={"wait_weaviate_backup": goes_away})
    assert "could not be cancelled" in run.error("wait_weaviate_backup")
    assert site.staging.objects == {}
    assert staging_finding(run)["severity"] == "block"
    assert "its backup was not known at last" in staging_finding(run)["observed"]


def test_uploads_that_a_killed_weaviate_has_left_are_ended(site: Site) -> None:
    def killed(step: Any, context: Any) -> Any:
        folder = f"{step.backup_id(context)}/weaviate-0"
        site.staging.uploads = {"u-1": (f"{folder}/chunk-2", {1: b"half"}), "u-2": ("other/chunk-1", {})}
        return step.execute(context)

    run = site.backup(type="full", replaced={"capture_weaviate": killed})
    assert run.failed() == []
    assert list(site.staging.uploads) == ["u-2"]


def test_a_path_of_weaviates_own_in_the_bucket_changes_nothing(site: Site) -> None:
    site.weaviate.folder = "site-1/weaviate/"
    site.staging.put("site-1/weaviate/full-20261120t100000z-1a2b3c/weaviate-0/A/chunk-1", b"of a run that died")
    full = site.backup(type="full", run_id="first")
    second = site.backup(type="incremental", run_id="second")
    assert (full.failed(), second.failed()) == ([], [])
    assert site.weaviate.asked[-1] == {"id": id_of(second), "incremental_base_backup_id": id_of(full)}
    assert facts_of(site, second, "weaviate")["incremental"] == "yes"
    folders = {key.removeprefix(site.weaviate.folder).partition("/")[0] for key in site.staging.objects}
    assert folders == {id_of(full), id_of(second)}
    check_nothing_left(site)


# ---------------------------------------------------------------------------------------------------------------- kill -9


class Remembered(DagRunner):
    """A run whose states and results outlive its process, as in Airflow's database."""

    def __init__(self, memory: Path, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.memory = memory
        if memory.exists():
            states, results = json.loads(memory.read_text(encoding="utf-8"))
            self.states, self.results = states, {(step, key): value for step, key, value in results}

    def _decide(self, task: Any) -> None:
        super()._decide(task)
        results = [[step, key, value] for (step, key), value in self.results.items()]
        self.memory.write_text(json.dumps([self.states, results]), encoding="utf-8")


def die() -> None:
    """End this process and all below it as the kernel ends those of a lost machine."""
    os.killpg(0, signal.SIGKILL)


class Moment:
    """The n-th call of a client's method in a step, with some words among its arguments: it dies before it or after it."""

    def __init__(self, when: str, operation: str, words: str = "", *, nth: int = 1, weaviate: bool = False) -> None:
        self.when, self.operation, self.words, self.nth = when, operation, words, nth
        self.weaviate = weaviate

    def arm(self) -> None:
        """Patch this process for good: it is about to die."""
        owner, name = (WeaviateHook, self.operation) if self.weaviate else (ObjectStoreHook, "_call")
        call, calls = getattr(owner, name), itertools.count(1)

        def deadly(hook: Any, *arguments: Any, **named: Any) -> Any:
            hit = self.weaviate or (arguments[0] == self.operation and self.words in str(named.get("Key", "")))
            # Two parts may be under way at once: each has a number of its own.
            now = hit and next(calls) == self.nth
            if now and self.when == "before":
                die()
            answer = call(hook, *arguments, **named)
            if now:
                die()
            return answer

        setattr(owner, name, deadly)


def in_a_process(site: Site, memory: Path, *, type: str, run_id: str, dies: tuple[str, Moment] | None = None) -> int:
    """Run a backup, or what is left of it, in a process of its own; return how that ended."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    code = 3
    try:
        os.setsid()

        def deadly(step: Any, context: Any) -> Any:
            assert dies
            dies[1].arm()
            step = copy.copy(step)
            step.render_template_fields(context)
            return step.execute(context)

        replaced = {dies[0]: deadly} if dies else {}
        run = Remembered(memory, site.dag, {"type": type}, run_id=run_id, replaced=replaced)
        run.run()
        code = 0 if not run.failed() and not run.surprises else 2
        if code:
            print({step: run.error(step) for step in run.failed()}, run.surprises, file=sys.stderr)
    except BaseException:  # noqa: BLE001 (nothing of this process may go on as a second pytest)
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


@pytest.fixture
def memory_of_gpg(site: Site, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder in memory that no other test has homes of gpg in; each step opens gpg itself here, as it does in truth."""
    with tempfile.TemporaryDirectory(prefix="test-faults-", dir=memory_folder(os.environ)) as name:
        monkeypatch.setenv("XDG_RUNTIME_DIR", name)
        monkeypatch.setattr(BackupStep, "session", SESSION)
        yield Path(name)
        assert agents_below(Path(name)) == []


def agents_below(folder: Path) -> list[str]:
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_bytes().decode()
        except OSError:
            continue
        if "gpg-agent" in command and str(folder) in command:
            found.append(entry.name)
    return found


MOMENTS: dict[str, tuple[str, str, Moment]] = {
    "looking into the bucket": ("config-only", "check_request", Moment("after", "list_objects_v2")),
    "a part is up": ("config-only", "capture_kubernetes_objects", Moment("after", "upload_part", nth=2)),
    "before its parts are one": (
        "config-only",
        "capture_kubernetes_objects",
        Moment("before", "complete_multipart_upload"),
    ),
    "between archive and inventory": (
        "config-only",
        "capture_kubernetes_objects",
        Moment("after", "complete_multipart_upload"),
    ),
    "before the manifest": ("config-only", "record_manifest", Moment("before", "put_object", "manifest.json")),
    "between manifest and signature": (
        "config-only",
        "record_manifest",
        Moment("after", "put_object", "manifest.json"),
    ),
    "after the signature": ("config-only", "record_manifest", Moment("after", "put_object", "manifest.json.asc")),
    "reading back": ("config-only", "verify_stored_files", Moment("after", "get_object", "kubernetes-objects.tar")),
    "between note and signature": ("config-only", "verify_stored_files", Moment("after", "put_object", "checked.json")),
    "Weaviate was asked": ("full", "wait_weaviate_backup", Moment("after", "create_backup", weaviate=True)),
    "reading the staging bucket": ("full", "capture_weaviate", Moment("after", "get_object", "chunk-1")),
    "clearing the staging bucket": ("full", "release_staging", Moment("after", "delete_object")),
}
BEFORE_IT_EXISTS = {name for name, (_, step, _) in MOMENTS.items() if step != "verify_stored_files"} - {
    "after the signature"
}


@pytest.mark.parametrize("name", MOMENTS)
def test_a_step_that_is_killed_leaves_nothing_that_looks_whole_and_its_next_try_ends_well(
    name: str, site: Site, memory_of_gpg: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    kind, step, moment = MOMENTS[name]
    memory = tmp_path_factory.mktemp("database") / "run.json"
    ended = in_a_process(site, memory, type=kind, run_id="killed", dies=(step, moment))
    assert os.WIFSIGNALED(ended), "the moment never came"
    assert len(manifests(site)) == (name not in BEFORE_IT_EXISTS)
    assert [key for key in site.s3.objects if key.endswith("checked.json.asc")] == []
    for identifier in manifests(site):
        check_whole(site, identifier)
    assert in_a_process(site, memory, type=kind, run_id="killed") == 0
    (identifier,) = manifests(site)
    check_whole(site, identifier)
    assert "checked.json.asc" in site.names()
    check_nothing_left(site)
    assert list(memory_of_gpg.iterdir()) == [], "a home of gpg is left"


@pytest.mark.parametrize("name", ["a part is up", "between manifest and signature", "reading the staging bucket"])
def test_after_a_run_that_was_killed_for_good_the_next_one_is_whole_and_the_dead_one_is_none(
    name: str, site: Site, memory_of_gpg: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    kind, step, moment = MOMENTS[name]
    folder = tmp_path_factory.mktemp("database")
    ended = in_a_process(site, folder / "dead.json", type=kind, run_id="dead", dies=(step, moment))
    assert os.WIFSIGNALED(ended), "the moment never came"
    assert in_a_process(site, folder / "next.json", type=kind, run_id="next") == 0
    (identifier,) = manifests(site)
    assert identifier == json.loads((folder / "next.json").read_text(encoding="utf-8"))[1][0][2]["backup_id"]
    check_whole(site, identifier)
    assert list(memory_of_gpg.iterdir()) == [], "a home of gpg is left"


def test_a_killed_step_leaves_no_plaintext_in_memory_that_outlives_it(site: Site, memory_of_gpg: Path) -> None:
    """Between the kill and the next run only gpg's home is left: public keys, and the signing key under its passphrase."""
    memory = site.profile_path.parent / "run.json"
    _, step, moment = MOMENTS["a part is up"]
    in_a_process(site, memory, type="config-only", run_id="killed", dies=(step, moment))
    left = b"".join(path.read_bytes() for path in memory_of_gpg.rglob("*") if path.is_file())
    assert left, "the test does not see what is left"
    assert CANARY.encode() not in left
    assert in_a_process(site, memory, type="config-only", run_id="killed") == 0
    assert subprocess.run(["find", str(memory_of_gpg), "-mindepth", "1"], capture_output=True, check=True).stdout == b""
