"""Deleting for good in a real object store with versions and locks: what is locked stays whole, the rest goes whole."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from nephoran_maintenance.hooks.object_deletion import DeletingStore

if TYPE_CHECKING:
    from conftest import Lab

FOLDER, FIRST = "backups/one/", "backups/one/manifest.json.asc"


@pytest.fixture
def client(lab: Lab) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=lab.config.s3_endpoint,
        region_name="us-east-1",
        aws_access_key_id=lab.config.secret("s3-access-key"),
        aws_secret_access_key=lab.config.secret("s3-secret-key"),
        config=Config(s3={"addressing_style": "path"}, proxies={}),
    )


@pytest.fixture
def bucket(client: Any) -> Iterator[str]:
    """A locked bucket, empty and gone afterwards."""
    name = f"deletion-{uuid.uuid4().hex[:12]}"
    client.create_bucket(Bucket=name, ObjectLockEnabledForBucket=True)
    yield name
    found = client.list_object_versions(Bucket=name)
    for entry in [*found.get("Versions", ()), *found.get("DeleteMarkers", ())]:
        client.delete_object(Bucket=name, Key=entry["Key"], VersionId=entry["VersionId"])
    client.delete_bucket(Bucket=name)


@pytest.fixture
def store(lab: Lab, client: Any, bucket: str, monkeypatch: pytest.MonkeyPatch) -> DeletingStore:
    connection = {
        "conn_type": "aws",
        "login": lab.config.secret("s3-access-key"),
        "password": lab.config.secret("s3-secret-key"),
        "extra": {
            "endpoint_url": lab.config.s3_endpoint,
            "region_name": "us-east-1",
            "config_kwargs": {"s3": {"addressing_style": "path"}},
        },
    }
    monkeypatch.setenv("AIRFLOW_CONN_RETENTION", json.dumps(connection))
    found = DeletingStore("retention", bucket=bucket)
    for content in (b"old", b"new"):
        for name in ("archive", "manifest.json.asc"):
            found.put_bytes(f"{FOLDER}{name}", content)
    found.put_bytes(f"{FOLDER}hidden", b"x")
    client.delete_object(Bucket=bucket, Key=f"{FOLDER}hidden")
    client.create_multipart_upload(Bucket=bucket, Key=f"{FOLDER}unfinished")
    found.put_bytes("backups/other/archive", b"stays")
    return found


def test_a_lock_keeps_the_whole_folder_and_then_all_of_it_goes(store: DeletingStore, client: Any, bucket: str) -> None:
    everything = store.everything(FOLDER)
    assert len(everything) == 7, "four versions, one that is hidden and its mark, and an upload"
    old = next(one for one in everything if one.key.endswith("archive"))
    where = {"Bucket": bucket, "Key": old.key, "VersionId": old.version_id}
    client.put_object_legal_hold(**where, LegalHold={"Status": "ON"})
    assert store.delete_all(everything, datetime.now(UTC), FIRST) == f"{old.key} is under legal hold"
    client.put_object_legal_hold(**where, LegalHold={"Status": "OFF"})
    until = datetime.now(UTC) + timedelta(seconds=10)
    client.put_object_retention(**where, Retention={"Mode": "GOVERNANCE", "RetainUntilDate": until})
    assert store.delete_all(everything, datetime.now(UTC), FIRST) == f"{old.key} is locked until {until:%Y-%m-%d}"
    assert len(store.everything(FOLDER)) == len(everything)
    with pytest.raises(ClientError, match="object lock"):
        client.delete_object(**where)
    time.sleep(max(0.0, (until - datetime.now(UTC)).total_seconds()) + 1)
    assert store.delete_all(store.everything(FOLDER), datetime.now(UTC), FIRST) == ""
    assert [one.key for one in store.everything("backups/")] == ["backups/other/archive"]


def test_the_rule_of_the_bucket_locks_what_it_holds(store: DeletingStore, client: Any, bucket: str) -> None:
    rule = {"DefaultRetention": {"Mode": "GOVERNANCE", "Days": 1}}
    client.put_object_lock_configuration(
        Bucket=bucket, ObjectLockConfiguration={"ObjectLockEnabled": "Enabled", "Rule": rule}
    )
    locked_until = store.locked_until(f"{FOLDER}archive")
    assert locked_until is not None
    assert timedelta(hours=23) < locked_until - datetime.now(UTC) <= timedelta(days=1)
    assert "is locked until" in store.delete_all(store.everything(FOLDER), datetime.now(UTC), FIRST)
    assert len(store.everything(FOLDER)) == 7
    client.put_object_lock_configuration(Bucket=bucket, ObjectLockConfiguration={"ObjectLockEnabled": "Enabled"})
