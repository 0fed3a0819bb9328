"""The procedure ``backup_verification``: what it reads, what it finds, and what it says where there is no key."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nephoran_maintenance.domain.openpgp_keys import PinnedKey
from tests.unit.backup_bucket import BUCKET, NOW, BackupBucket
from tests.unit.dag_runner import DagRunner
from tests.unit.hooks.fake_servers import Received, Reply, connection_json

SECRET = b"a word that must not be seen anywhere"
FILES = {"objects/one.json": b"1" * 1000, "objects/secret.json": SECRET}


@pytest.fixture
def dag(dags: dict[str, Any]) -> Any:
    return dags["backup_verification"]


@pytest.fixture(autouse=True)
def key_of_operations(bucket: BackupBucket, monkeypatch: pytest.MonkeyPatch) -> None:
    give_key(bucket, monkeypatch, bucket.keys.operations)


def give_key(bucket: BackupBucket, patch: pytest.MonkeyPatch, pin: PinnedKey, name: str = "OPENPGP_DECRYPTION") -> None:
    key = connection_json(conn_type="generic", extra={"private_key": bucket.keys.private(pin)})
    patch.setenv(f"AIRFLOW_CONN_{name}", key)


def verify(dag: Any, **params: Any) -> DagRunner:
    run = DagRunner(dag, params).run()
    assert run.surprises == []
    return run


def warnings_of(run: DagRunner, check: str) -> dict[str, str]:
    return {
        f["object"]: f["observed"] for f in run.report["findings"] if f["check"] == check and f["severity"] != "pass"
    }


def opened(bucket: BackupBucket, identifier: str, recipient: str = "operations") -> dict[str, Any] | None:
    data = bucket.s3.objects.get(f"backups/opened/{identifier}/{recipient}.json")
    return dict(json.loads(data)) if data else None


def test_what_is_due_is_decrypted_compared_and_noted(bucket: BackupBucket, dag: Any, tmp_path: Path) -> None:
    young, due = bucket.add(1, members=FILES), bucket.add(29, members=FILES)
    run = verify(dag)
    assert run.failed() == []
    assert run.report["overall"] == "readable"
    note = opened(bucket, due)
    assert note is not None
    assert (note["grade"], note["recipient"], note["files"]) == ("opened", "operations", 1)
    assert f"backups/opened/{due}/operations.json.asc" in bucket.s3.objects
    assert opened(bucket, young) is None
    who, _ = run.report["tables"]
    assert [(row[0], row[3]) for row in who["rows"]] == [("operations", note["at"][:10]), ("escrow", "no note")]
    assert warnings_of(run, "recipients") == {"escrow": "no note says that it has ever decrypted one"}
    verify(dag)
    assert opened(bucket, young), "the share of the next run"
    left = [json.dumps(list(run.results.values())).encode(), *bucket.s3.objects.values()]
    left += [path.read_bytes() for path in (tmp_path / "reports").rglob("*") if path.is_file()]
    assert not [data for data in left if SECRET in data]


def test_one_can_be_asked_for_and_everything_can(bucket: BackupBucket, dag: Any) -> None:
    first, second = bucket.add(1, members=FILES), bucket.add(2, members=FILES)
    verify(dag, backup=first)
    assert (opened(bucket, first) is not None, opened(bucket, second)) == (True, None)
    run = verify(dag, everything=True)
    assert opened(bucket, second)
    assert len([f for f in run.report["findings"] if f["check"] == "contents"]) == 2
    missing = verify(dag, backup="full-20200101t000000z-aaaaaa")
    assert "[backup-not-found]" in missing.error("plan_reading")


def test_the_escrow_proves_its_key_with_a_connection_of_its_own(
    bucket: BackupBucket, dag: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = bucket.add(1, members=FILES)
    give_key(bucket, monkeypatch, bucket.keys.escrow, "OPENPGP_DECRYPTION_ESCROW")
    run = verify(dag, backup=one, key_connection="openpgp_decryption_escrow")
    assert run.failed() == []
    assert opened(bucket, one, "escrow")
    assert warnings_of(run, "recipients") == {"operations": "no note says that it has ever decrypted one"}
    assert "[parameters-invalid]" in verify(dag, key_connection="kubernetes_backup").error("check_request")


def test_a_disk_that_has_changed_an_archive_is_damage_of_this_backup_and_the_others_are_read(
    bucket: BackupBucket, dag: Any
) -> None:
    """The store gives what its disk has now, and the checksum of what was stored."""
    rotten, good = bucket.add(1, members=FILES), bucket.add(2, members=FILES)

    def rot(request: Received) -> Reply | None:
        key = request.path.partition(f"/{BUCKET}/")[2]
        if request.method != "GET" or not key.endswith(f"{rotten}/objects.tar.zst.gpg"):
            return None
        data = bytearray(bucket.s3.objects[key])
        told = base64.b64encode(zlib.crc32(data).to_bytes(4, "big")).decode()
        data[len(data) // 2] ^= 1
        return Reply(200, bytes(data), {"x-amz-checksum-crc32": told})

    bucket.s3.fail = rot
    run = verify(dag, everything=True)
    assert "[backup-unreadable]" in run.error("verify_contents")
    assert run.order.count("verify_contents") == 1, "to read it again helps nothing"
    problems = {row["backup_id"]: row["problem"] for row in run.results["verify_contents", "read"]}
    assert problems[good] == ""
    assert "is not what was stored" in problems[rotten]
    assert (opened(bucket, rotten), opened(bucket, good) is None) == (None, False)


def test_without_a_key_it_says_not_possible_here(
    bucket: BackupBucket, dag: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = bucket.add(31, members=FILES)
    monkeypatch.delenv("AIRFLOW_CONN_OPENPGP_DECRYPTION")
    run = verify(dag)
    assert run.failed() == []
    assert run.states["verify_contents"] == "skipped"
    assert run.report["overall"] == "not-read"
    said = warnings_of(run, "contents")
    assert said["this worker"].startswith("not possible here: ")
    assert opened(bucket, old) is None


def test_a_backup_that_nobody_here_can_open_becomes_overdue(
    bucket: BackupBucket, dag: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = bucket.add(31, members=FILES)
    give_key(bucket, monkeypatch, bucket.keys.stranger)
    run = verify(dag)
    assert warnings_of(run, "contents") == {old: "last read 31 days ago"}
    asked = verify(dag, backup=old)
    assert "is not encrypted to the key" in asked.error("verify_contents")


def test_a_signer_that_ends_is_told_and_what_an_ended_one_signed_is_read(bucket: BackupBucket, dag: Any) -> None:
    bucket.add(1, members=FILES)
    soon = bucket.keys.make("ends-tomorrow", encrypts=False, options=("--quiet",))  # in a day
    pins = {pin.name: pin for pin in (soon, bucket.keys.expired)}
    for pin in pins.values():
        (bucket.profile_path.parent / f"{pin.name}.asc").write_text(pin.armored, encoding="ascii")
    entries = [{"name": p.name, "fingerprint": p.fingerprint, "key_file": f"{p.name}.asc"} for p in pins.values()]
    bucket.edit_profile(lambda data: data["backup"]["signers"].extend(entries))
    run = verify(dag)
    assert run.failed() == []
    found = warnings_of(run, "keys")
    assert set(found) == {"signer ends-tomorrow"}
    assert found["signer ends-tomorrow"].startswith("ends at ")


def test_all_backups_are_listed_with_their_chains(bucket: BackupBucket, dag: Any) -> None:
    full = bucket.add(5, members=FILES)
    first = bucket.add(4, "incremental", parent=full, members=FILES)
    second = bucket.add(3, "incremental", parent=first, checked=False, members=FILES)
    config, hidden = bucket.add(2, "config-only", members=FILES), bucket.add(1, members=FILES)
    bucket.s3.put(f"backups/{hidden}/manifest.json.asc", b"not a signature")
    _, table = verify(dag).report["tables"]
    rows = {row[0]: row[1:] for row in table["rows"]}
    assert list(rows) == [config, second, first, full, hidden]
    assert rows[full][:3] == ["begins one", "checked", "5.0"]
    assert rows[second][:3] == [f"link 3 of {full}, built on {first}", "not checked", "3.0"]
    assert rows[config][0] == "alone"
    assert rows[hidden][:3] == ["unknown", "does not count", "1.0"]
    assert f"needed by {second}" in rows[first][3]


def flip(bucket: BackupBucket, key: str) -> None:
    data = bytearray(bucket.s3.objects[key])
    data[len(data) // 2] ^= 1
    replace_stored(bucket, key, bytes(data))


def cut(bucket: BackupBucket, key: str) -> None:
    replace_stored(bucket, key, bucket.s3.objects[key][:-20])


def swap(bucket: BackupBucket, key: str) -> None:
    other = next(k for k in bucket.s3.objects if k != key and k.endswith(key.rpartition("/")[2]))
    replace_stored(bucket, key, bucket.s3.objects[other])


def lose(bucket: BackupBucket, key: str) -> None:
    for name, version in list(bucket.s3.versions):
        if name == key:
            del bucket.s3.versions[name, version]
    del bucket.s3.objects[key]


def replace_stored(bucket: BackupBucket, key: str, data: bytes) -> None:
    """Change what the store has under this key in every version, as a broken disk does."""
    bucket.s3.objects[key] = data
    for name, version in bucket.s3.versions:
        if name == key:
            bucket.s3.versions[name, version] = data


@pytest.mark.parametrize("name", ["objects.tar.zst.gpg", "objects.inventory.zst"])
@pytest.mark.parametrize("damage", [flip, cut, swap, lose])
def test_damage_is_found_named_and_does_not_hide_the_rest(
    damage: Callable[[BackupBucket, str], None], name: str, bucket: BackupBucket, dag: Any
) -> None:
    broken, good = bucket.add(30, members=FILES), bucket.add(31, members={"other": b"2"})
    damage(bucket, f"backups/{broken}/{name}")
    run = verify(dag)
    assert run.states["verify_contents"] == "failed"
    assert run.report["overall"] == "not-readable"
    assert "[backup-unreadable]" in run.error("verify_contents")
    assert broken in run.error("verify_contents") or name in run.error("verify_contents")
    assert opened(bucket, broken) is None
    assert opened(bucket, good)
    assert broken in warnings_of(run, "contents")


def test_a_manifest_of_a_stranger_and_a_broken_chain_make_it_red(bucket: BackupBucket, dag: Any) -> None:
    full = bucket.add(2, members=FILES)
    link = bucket.add(1, "incremental", parent=full, members=FILES)
    bucket.s3.put(f"backups/{full}/manifest.json.asc", b"no signature")
    run = verify(dag)
    assert run.states["verify_contents"] == "failed"
    assert set(warnings_of(run, "manifests")) == {full}
    assert set(warnings_of(run, "chains")) == {link}


def test_a_note_that_somebody_else_wrote_does_not_count_and_makes_it_red(bucket: BackupBucket, dag: Any) -> None:
    one = bucket.add(40, members=FILES)
    bucket.note(one, "opened", NOW, recipient="escrow")
    bucket.s3.objects[f"backups/opened/{one}/escrow.json"] += b" "
    run = verify(dag)
    assert set(warnings_of(run, "manifests")) == {one}
    assert run.states["verify_contents"] == "failed"
    assert opened(bucket, one), "it is read all the same"


def test_a_retry_does_not_read_again_what_it_has_noted(bucket: BackupBucket, dag: Any) -> None:
    one, two = bucket.add(30, members=FILES), bucket.add(31, members=FILES)
    archive = f"backups/{one}/objects.tar.zst.gpg"
    tries: list[str] = []

    def fail_once(request: Any) -> Any:
        if request.method == "GET" and request.path.endswith("tar.zst.gpg"):
            tries.append(request.path)
            if request.path.endswith(archive) and len(tries) == 2:
                return bucket.s3.error(503, "SlowDown")
        return None

    bucket.s3.fail = fail_once
    run = verify(dag)
    assert run.failed() == []
    assert [path.rpartition("/backups/")[2].partition("/")[0] for path in tries] == [two, one, one]


def test_a_key_that_is_none_is_named(bucket: BackupBucket, dag: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(
        "AIRFLOW_CONN_OPENPGP_DECRYPTION", connection_json(conn_type="generic", extra={"private_key": "x"})
    )
    assert "[openpgp-decryption-key-invalid]" in verify(dag).error("check_request")
