"""The procedure ``backup_retention``: what it deletes, for whom it asks, and what nothing makes it delete."""

from __future__ import annotations

from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit.backup_bucket import NOW, BackupBucket
from tests.unit.dag_runner import DagRunner
from tests.unit.hooks.fake_s3 import FakeS3, connection_to
from tests.unit.operators.conftest import Persons

FIRST = "approve.wait_approval"


@pytest.fixture(autouse=True)
def strict_rules(bucket: BackupBucket) -> None:
    """Of what is older than 90 days keep the newest alone; the defaults keep one a day, week, month and year."""
    bucket.edit_profile(
        lambda data: data["backup"]["retention"].update(daily=1, weekly=1, monthly=1, yearly=0, days=90)
    )


def clean_up(dag: Any, mode: str = "apply", *, scheduled: bool = False, persons: Persons | None = None) -> DagRunner:
    run = DagRunner(dag, {"mode": mode}, answer=persons.answer if persons else None)
    if scheduled:
        run.dag_run.run_type, run.dag_run.triggering_user_name = SimpleNamespace(value="scheduled"), None
    run.run()
    assert run.surprises == []
    return run


def table_of(run: DagRunner) -> dict[str, tuple[str, str]]:
    """Return action and reason of each backup from the report's table."""
    (table,) = run.report["tables"]
    return {row[0]: (row[3], row[4]) for row in table["rows"]}


@pytest.fixture
def dag(dags: dict[str, Any]) -> Any:
    return dags["backup_retention"]


def test_a_plan_shows_everything_and_deletes_nothing(bucket: BackupBucket, dag: Any) -> None:
    young, old = bucket.add(1), bucket.add(400)
    older = bucket.add(401)
    before = dict(bucket.s3.objects)
    run = clean_up(dag, "plan")
    assert run.failed() == []
    assert bucket.s3.objects == before
    assert run.report["overall"] == "planned"
    assert (run.states[FIRST], run.states["delete_backups"]) == ("skipped", "skipped")
    assert table_of(run) == {
        young: ("keep", "younger than 90 days, the last checked one with data, the newest"),
        old: ("keep", "daily, weekly, monthly"),
        older: ("delete", "past its time and not needed"),
    }


def test_what_is_past_its_time_goes_with_all_versions_manifest_first(bucket: BackupBucket, dag: Any) -> None:
    kept, gone = {bucket.add(1), bucket.add(400)}, bucket.add(401)
    bucket.note(gone, "checked", NOW)  # a second version
    bucket.s3.page_length = 3
    run = clean_up(dag)
    assert run.failed() == []
    assert bucket.ids() == kept
    assert {key for key, _ in bucket.s3.versions} == set(bucket.s3.objects)
    assert bucket.s3.deleted[0] == f"backups/{gone}/manifest.json.asc"
    assert run.report["overall"] == "cleaned-up"
    assert table_of(run)[gone][0] == "deleted"
    assert clean_up(dag).report["overall"] == "cleaned-up", "there is nothing left to do"


def test_a_scheduled_run_takes_its_mode_from_the_profile(bucket: BackupBucket, dag: Any) -> None:
    bucket.add(1), bucket.add(400)
    gone = bucket.add(401)
    bucket.edit_profile(lambda data: data["backup"]["retention"].update(mode="plan"))
    assert clean_up(dag, scheduled=True).report["overall"] == "planned"
    assert gone in bucket.ids()
    bucket.edit_profile(lambda data: data["backup"]["retention"].update(mode="apply"))
    assert clean_up(dag, "plan", scheduled=True).report["overall"] == "cleaned-up"
    assert gone not in bucket.ids()


def test_the_last_verified_one_stays_and_each_cluster_has_its_own(bucket: BackupBucket, dag: Any) -> None:
    kept = {bucket.add(1), bucket.add(400), bucket.add(500, verified=True), bucket.add(600, cluster="lost")}
    bucket.add(501, verified=True)
    clean_up(dag)
    assert bucket.ids() == kept


def test_a_chain_is_never_broken_also_where_a_lock_holds_its_end(bucket: BackupBucket, dag: Any) -> None:
    keep, first, full = bucket.add(1), bucket.add(400), bucket.add(501)
    link = bucket.add(500, "incremental", parent=full)
    locked, bucket.s3.lock = f"backups/{link}/checked.json", "COMPLIANCE"
    bucket.s3.locks[locked] = (NOW + timedelta(days=5)).isoformat()
    run = clean_up(dag)
    assert run.failed() == []
    assert bucket.ids() == {keep, first, full, link}
    assert bucket.s3.deleted == []
    assert "is locked until" in table_of(run)[link][1]
    assert table_of(run)[full] == ("not deleted", f"needed by {link}, which stays")
    bucket.s3.locks = {locked: "hold"}
    assert "is under legal hold" in table_of(clean_up(dag))[link][1]
    bucket.s3.locks = {}
    clean_up(dag)
    assert bucket.ids() == {keep, first}


def test_the_rule_of_the_bucket_locks_what_was_written_lately(bucket: BackupBucket, dag: Any) -> None:
    bucket.add(1), bucket.add(400)
    old = bucket.add(401)
    bucket.s3.lock = "COMPLIANCE"  # for 90 days
    for key, version in bucket.s3.versions:
        if key == f"backups/{old}/manifest.json":
            bucket.s3.written_at[version] = NOW - timedelta(days=89)
    assert "is locked until" in table_of(clean_up(dag))[old][1]
    bucket.s3.written_at = {version: NOW - timedelta(days=91) for version in bucket.s3.written_at}
    clean_up(dag)
    assert old not in bucket.ids()


def test_a_locked_manifest_is_kept_by_the_plan_itself(bucket: BackupBucket, dag: Any) -> None:
    bucket.add(1), bucket.add(400)
    old = bucket.add(401)
    bucket.s3.lock = "COMPLIANCE"
    bucket.s3.locks[f"backups/{old}/manifest.json"] = (NOW + timedelta(days=5)).isoformat()
    assert table_of(clean_up(dag, "plan"))[old] == ("keep", f"locked until {NOW + timedelta(days=5):%Y-%m-%d}")


def test_notes_of_who_has_opened_a_backup_go_with_it_and_do_not_keep_it(bucket: BackupBucket, dag: Any) -> None:
    kept, _, gone = bucket.add(1), bucket.add(400), bucket.add(401)
    for one in (kept, gone):
        bucket.note(one, "opened", NOW, recipient="escrow")
    bucket.s3.lock = "COMPLIANCE"
    note = f"backups/opened/{gone}/escrow.json"
    bucket.s3.locks[note] = (NOW + timedelta(days=5)).isoformat()
    clean_up(dag)
    assert gone not in bucket.ids()
    assert [key for key in bucket.s3.objects if gone in key] == [note]
    assert f"backups/opened/{kept}/escrow.json.asc" in bucket.s3.objects
    bucket.s3.locks = {}
    bucket.add(402)
    clean_up(dag)
    assert note not in bucket.s3.objects


def test_when_a_recipient_last_decrypted_is_known_after_the_backup_is_gone(
    bucket: BackupBucket, dags: dict[str, Any], dag: Any
) -> None:
    """Everything goes after 90 days, and a quarter has 92."""
    bucket.add(1), bucket.add(400)
    gone, older = bucket.add(401), bucket.add(402)
    for one, recipient in ((older, "escrow"), (older, "operations"), (gone, "escrow")):
        bucket.note(one, "opened", NOW - timedelta(days=11), recipient=recipient)
    for (key, version), days in {place: 20 if older in place[0] else 11 for place in bucket.s3.versions}.items():
        if "/opened/" in key:
            bucket.s3.written_at[version] = NOW - timedelta(days=days)
    clean_up(dag)
    assert not {gone, older} & bucket.ids()
    left = sorted(key for key in bucket.s3.objects if "/opened/" in key)
    assert left == sorted(
        f"backups/opened/{name}.json{suffix}"
        for name in (f"{gone}/escrow", f"{older}/operations")
        for suffix in ("", ".asc")
    )
    run = DagRunner(dags["backup_verification"], {}).run()
    said = {f["object"]: f["observed"] for f in run.report["findings"] if f["check"] == "recipients"}
    day = f"{NOW - timedelta(days=11):%Y-%m-%d}"
    assert said == dict.fromkeys(("operations", "escrow"), f"last decrypted one at {day}")
    bucket.s3.put(f"backups/opened/{gone}/escrow.json", b"{}")
    run = DagRunner(dags["backup_verification"], {}).run()
    assert [f["object"] for f in run.report["findings"] if f["check"] == "manifests"] == [gone]


def test_what_unfinished_runs_left_goes_when_it_is_old_enough(bucket: BackupBucket, dag: Any) -> None:
    kept = bucket.add(1)
    bucket.s3.put("backups/full-20260101t000000z-aaaaaa/objects.tar.zst.gpg", b"left")
    under_way = bucket.s3.put("backups/full-20260101t000000z-bbbbbb/objects.tar.zst.gpg", b"at work")
    bucket.s3.written_at[under_way] = NOW - timedelta(days=1)
    bucket.s3.put("backups/notes-of-somebody/file", b"not ours")
    bucket.s3.uploads["u"] = ("backups/full-20260101t000000z-cccccc/objects.tar.zst.gpg", {})
    run = clean_up(dag)
    assert bucket.ids() == {kept, "full-20260101t000000z-bbbbbb", "notes-of-somebody"}
    assert bucket.s3.uploads == {}
    assert table_of(run)["full-20260101t000000z-aaaaaa"][0] == "deleted"


def test_a_manifest_that_does_not_count_is_told_and_never_deleted(bucket: BackupBucket, dag: Any) -> None:
    kept, forged, hidden = bucket.add(1), bucket.add(401), bucket.add(402)
    bucket.s3.put(f"backups/{forged}/manifest.json.asc", b"not a signature")
    bucket.s3.hide(f"backups/{hidden}/manifest.json.asc")
    run = clean_up(dag)
    assert bucket.ids() == {kept, forged, hidden}
    (finding,) = [found for found in run.report["findings"] if found["severity"] == "warn"]
    assert finding["object"] == forged


def test_a_note_or_a_manifest_that_does_not_count_is_no_reason_to_break_a_chain(bucket: BackupBucket, dag: Any) -> None:
    """The account that uploads may write both, so one bad byte must not take the last verified chain away."""
    kept, full, other = bucket.add(1), bucket.add(401), bucket.add(395)
    link = bucket.add(400, "incremental", parent=full, verified=True)
    bucket.s3.put(f"backups/{link}/checked.json.asc", b"not a signature")
    run = clean_up(dag)
    assert run.failed() == []
    assert bucket.ids() == {kept, full, link, other}
    assert table_of(run)[full] == ("kept" if run.states["delete_backups"] != "skipped" else "keep", f"needed by {link}")
    bucket.s3.hide(f"backups/{link}/manifest.json.asc")
    run = clean_up(dag)
    assert bucket.ids() == {kept, full, link, other}
    assert f"may be needed by {link}" in table_of(run)[full][1]
    bucket.s3.put(f"backups/{link}/manifest.json.asc", b"not a signature")
    clean_up(dag)
    assert bucket.ids() == {kept, full, link, other}


def approval_needed(bucket: BackupBucket) -> tuple[set[str], set[str]]:
    """Let two go where one may go without a question; return what stays and what goes."""

    def change(data: dict[str, Any]) -> None:
        data["backup"]["retention"].update(approval_above=1)
        data["approvers"] = ["ada"]

    bucket.edit_profile(change)
    return {bucket.add(1), bucket.add(400)}, {bucket.add(401), bucket.add(402)}


@pytest.fixture
def persons(monkeypatch: pytest.MonkeyPatch) -> Persons:
    found = Persons()
    monkeypatch.setattr("airflow.sdk.execution_time.hitl.upsert_hitl_detail", found.ask)
    return found


def test_more_than_the_profile_allows_is_asked_for(bucket: BackupBucket, dag: Any, persons: Persons) -> None:
    stays, goes = approval_needed(bucket)
    persons.answers.append(("ada", "approve"))
    run = clean_up(dag, scheduled=True, persons=persons)
    assert run.failed() == []
    assert bucket.ids() == stays
    (question,) = persons.questions
    assert "delete 2 backups" in question.subject
    assert all(name in question.body for name in goes)
    assert run.report["approval"]["state"] == "approved"


@pytest.mark.parametrize("answer", ["reject", "nobody"])
def test_nothing_is_deleted_without_an_approval(answer: str, bucket: BackupBucket, dag: Any, persons: Persons) -> None:
    stays, goes = approval_needed(bucket)
    persons.answers.append(("ada", answer))
    run = clean_up(dag, persons=persons)
    assert bucket.ids() == stays | goes
    assert run.states["delete_backups"] == "upstream_failed"
    assert run.report["overall"] == "not-approved"


def test_an_approval_step_that_was_marked_successful_is_no_approval(bucket: BackupBucket, dag: Any) -> None:
    stays, goes = approval_needed(bucket)
    run = DagRunner(dag, {"mode": "apply"}, replaced={FIRST: lambda step, context: None}).run()
    assert "[approval-missing]" in run.error("delete_backups")
    assert bucket.ids() == stays | goes


def test_only_what_is_on_the_approved_list_and_still_past_its_time_goes(bucket: BackupBucket, dag: Any) -> None:
    bucket.add(1), bucket.add(400)
    gone, verified = bucket.add(401), bucket.add(402)
    bucket.edit_profile(lambda data: data["backup"]["retention"].update(approval_above=20))

    def verify_meanwhile(step: Any, context: Any) -> Any:
        bucket.note(verified, "verified", NOW)
        return step.execute(context)

    run = DagRunner(dag, {"mode": "apply"}, replaced={"delete_backups": verify_meanwhile}).run()
    assert run.surprises == []
    assert gone not in bucket.ids()
    assert verified in bucket.ids()
    assert table_of(run)[verified][0] == "kept"


def test_a_delete_that_is_denied_fails_and_goes_on_when_it_is_repeated(
    bucket: BackupBucket, dag: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = {bucket.add(1), bucket.add(400)}
    bucket.add(401)
    monkeypatch.setenv("AIRFLOW_CONN_OBJECT_STORE_RETENTION", connection_to(bucket.server))
    run = clean_up(dag)
    assert "[object-store-forbidden]" in run.error("delete_backups")
    assert run.report["overall"] == "not-cleaned-up"
    monkeypatch.undo()
    assert kept < bucket.ids()


def test_a_kill_between_two_files_leaves_what_the_next_run_takes(bucket: BackupBucket, dag: Any) -> None:
    kept, gone = {bucket.add(1), bucket.add(400)}, bucket.add(401)
    denied = FakeS3.error(403, "AccessDenied")
    bucket.s3.fail = lambda request: denied if request.method == "DELETE" and bucket.s3.deleted else None
    run = clean_up(dag)
    assert run.states["delete_backups"] == "failed"
    assert f"backups/{gone}/manifest.json.asc" not in bucket.s3.objects
    assert gone in bucket.ids()
    bucket.s3.fail = lambda request: None
    clean_up(dag)
    assert bucket.ids() == kept


def test_without_signers_nothing_is_looked_at(bucket: BackupBucket, dag: Any) -> None:
    bucket.edit_profile(lambda data: data["backup"].update(signers=[]))
    assert "[backup-not-configured]" in clean_up(dag).error("check_request")
