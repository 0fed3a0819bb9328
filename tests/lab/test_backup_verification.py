"""The deep read in a lab: with a recipient's key every file is decrypted and compared, and a flipped bit turns it red."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from lab import backup_keys, buckets
from lab.airflow_access import DECRYPTION_POOL
from tests.lab.stored_backup import PREFIX, StoredBackup
from tests.lab.test_backup import made

if TYPE_CHECKING:
    from conftest import Lab, Run, Upgrades

DAG = "backup_verification"


@pytest.fixture(scope="module")
def full(lab: Lab, upgrades: Upgrades) -> StoredBackup:
    return made(lab, upgrades, type="full")


def findings(run: Run, check: str) -> dict[str, str]:
    """Return by object how severe each finding of a check is."""
    return {found["object"]: found["severity"] for found in run.report["findings"] if found["check"] == check}


def opened(lab: Lab, backup: StoredBackup) -> dict[str, str] | None:
    """Return the note of operations, without the code that wrote it."""
    key = f"{PREFIX}/opened/{backup.backup_id}/{backup_keys.READER}.json"
    store = buckets.client(lab.config)
    found = store.list_objects_v2(Bucket=buckets.BACKUPS, Prefix=key).get("Contents", ())
    if {entry["Key"] for entry in found} != {key, f"{key}.asc"}:
        return None
    return dict(json.loads(store.get_object(Bucket=buckets.BACKUPS, Key=key)["Body"].read()))


@contextmanager
def flipped(lab: Lab, backup: StoredBackup, name: str) -> Iterator[None]:
    """Flip a bit in the middle of a stored file, below the store: as a disk does it."""
    path = lab.config.state / "s3" / buckets.BACKUPS / PREFIX / backup.backup_id / name

    def flip() -> None:
        with path.open("r+b", buffering=0) as file:
            middle = path.stat().st_size // 2
            file.seek(middle)
            (byte,) = file.read(1)
            file.seek(middle)
            file.write(bytes([byte ^ 1]))

    flip()
    try:
        yield
    finally:
        flip()


def test_every_file_is_decrypted_and_compared_in_the_pool_for_it(
    lab: Lab, upgrades: Upgrades, full: StoredBackup
) -> None:
    run = upgrades.run(DAG, backup=full.backup_id)
    assert run.state == "success", run.explain()
    assert run.report["overall"] == "readable"
    (row,) = run.client.xcom(DAG, run.run_id, "verify_contents", "read")
    archives = [source["archive"] for source in full.manifest["sources"] if source.get("archive")]
    assert (row["backup_id"], row["recipient"], row["archives"], row["problem"]) == (
        full.backup_id,
        backup_keys.READER,
        len(archives),
        "",
    )
    assert row["read_bytes"] == sum(archive["size_bytes"] for archive in archives)
    note = opened(lab, full)
    assert note is not None
    assert (note["backup_id"], note["files"]) == (full.backup_id, len(archives))
    with contextlib.closing(sqlite3.connect(upgrades.airflow.instance.database)) as database:
        query = "select pool from task_instance where run_id = ? and task_id = 'verify_contents'"
        assert database.execute(query, (run.run_id,)).fetchall() == [(DECRYPTION_POOL,)]


def test_a_bit_that_flips_on_the_stores_disk_turns_it_red_and_is_named(lab: Lab, upgrades: Upgrades) -> None:
    small = made(lab, upgrades, type="config-only")
    name = small.sources["kubernetes-objects"]["archive"]["key"]
    with flipped(lab, small, name):
        run = upgrades.run(DAG, backup=small.backup_id)
    assert run.state == "failed"
    assert "[backup-unreadable]" in run.error("verify_contents")
    assert small.backup_id in run.error("verify_contents")
    assert findings(run, "contents")[small.backup_id] == "block"
    assert opened(lab, small) is None
    assert upgrades.run(DAG, backup=small.backup_id).state == "success", "it is whole again"


def test_a_later_version_that_somebody_uploads_takes_nothing_from_the_signed_one(
    lab: Lab, upgrades: Upgrades, full: StoredBackup
) -> None:
    """The manifest names versions: what lies on top of an archive is never read."""
    key = f"{PREFIX}/{full.backup_id}/{full.sources['kubernetes-objects']['archive']['key']}"
    store = buckets.client(lab.config, buckets.UPLOADER)
    content = bytearray(full.content(key.rpartition("/")[2]))
    content[len(content) // 2] ^= 1
    store.put_object(Bucket=buckets.BACKUPS, Key=key, Body=bytes(content))
    run = upgrades.run(DAG, backup=full.backup_id)
    assert run.state == "success", run.explain()
    (row,) = run.client.xcom(DAG, run.run_id, "verify_contents", "read")
    assert row["problem"] == ""
