"""Deleting for good in a real object store with versions and locks: what is locked stays whole, the rest goes whole."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
import pytest
import yaml
from botocore.config import Config
from botocore.exceptions import ClientError

# before the first import of Airflow, which makes a configuration where this points to
import tests.airflow_home  # noqa: F401
from lab import backup_keys, buckets
from lab.airflow_access import connections
from lab.config import LabConfig
from nephoran_maintenance.domain.backups import backup_id
from nephoran_maintenance.domain.manifest import Cluster, Manifest, Recipient, Source
from nephoran_maintenance.domain.openpgp_keys import PinnedKey
from nephoran_maintenance.hooks.backup_store import BackupStore
from nephoran_maintenance.hooks.object_deletion import DeletingStore
from nephoran_maintenance.hooks.object_store import ObjectStoreHook
from nephoran_maintenance.hooks.openpgp import OpenPgpHook, SigningKey
from nephoran_maintenance.settings import PROJECT_ROOT
from tests.unit.backup_bucket import an_archive
from tests.unit.dag_runner import DagRunner

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


# --------------------------------------------------------------------------- the procedure, with the rights of its own


@dataclass(frozen=True)
class Site:
    """What writes backups, as the store's administrator and the lab's signer."""

    backups: BackupStore
    signing: SigningKey


@pytest.fixture
def site(lab: Lab, client: Any, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """The bucket with the rights that the lab gives, and a profile that leads there."""
    with OpenPgpHook() as pgp:
        yield site_in(lab.config, client, bucket, pgp, tmp_path, monkeypatch)


def site_in(
    config: LabConfig, client: Any, bucket: str, pgp: OpenPgpHook, folder: Path, patch: pytest.MonkeyPatch
) -> Site:
    client.put_bucket_policy(Bucket=bucket, Policy=json.dumps(buckets.policy(bucket, [buckets.RETENTION])))
    keys = backup_keys.keys(config)
    backup_keys.write_public(keys, folder)
    profile = yaml.safe_load((PROJECT_ROOT / "include" / "profiles" / "nephoran.yaml").read_text(encoding="utf-8"))
    rules = {"days": 90, "daily": 1, "weekly": 1, "monthly": 1, "yearly": 0}
    profile["backup"] |= {"bucket": bucket, **backup_keys.pins(keys), "retention": rules}
    (folder / "profile.yaml").write_text(yaml.safe_dump(profile), encoding="utf-8")
    patch.setenv("NEPHORAN_PROFILE", str(folder / "profile.yaml"))
    patch.setenv("NEPHORAN_REPORTS", str(folder / "reports"))
    made = connections(config, lambda account: account)
    for name in ("object_store_retention", "object_store_reports", "openpgp_signing"):
        patch.setenv(f"AIRFLOW_CONN_{name.upper()}", json.dumps(made[name]))
    signer = keys[backup_keys.SIGNER]
    store = ObjectStoreHook("object_store_reports", bucket=bucket)
    backups = BackupStore(store, pgp, "backups", [PinnedKey(signer.name, signer.fingerprint, signer.public)])
    return Site(backups, pgp.import_signing_key("openpgp_signing"))


def backed_up(site: Site, days_ago: int) -> str:
    """Write what a backup that ended so long ago has in the bucket: signed, checked by nobody."""
    at = datetime.now(UTC) - timedelta(days=days_ago)
    identifier = backup_id("full", at, at.isoformat())
    site.backups.store.put_bytes(f"backups/{identifier}/objects.tar.zst.gpg", b"x")
    source = Source(name="objects", required=True, state="captured", started_at=at, ended_at=at, archive=an_archive())
    manifest = Manifest(
        backup_id=identifier,
        type="full",
        operation_id="backup-1",
        system="nephoran",
        cluster=Cluster(name="lab", uid="uid-1", kubernetes_version="v1.36.4"),
        started_at=at,
        ended_at=at,
        sources=(source,),
        encryption="public-key",
        recipients=(Recipient(name="operations", fingerprint="A" * 40, key_ids=("1",)),),
        digest_key_id="id",
        tool_version="0",
    )
    site.backups.write_manifest(manifest, site.signing)
    return identifier


def test_the_procedure_deletes_with_its_own_account_what_is_old_and_leaves_what_is_locked(
    site: Site, client: Any, bucket: str
) -> None:
    from airflow.dag_processing.dagbag import DagBag

    dag = DagBag(dag_folder=str(PROJECT_ROOT / "dags" / "backup_retention.py"), load_op_links=False).dags[
        "backup_retention"
    ]
    kept, gone, held = {backed_up(site, 1), backed_up(site, 400)}, backed_up(site, 401), backed_up(site, 402)
    client.create_multipart_upload(Bucket=bucket, Key=f"backups/{gone}/unfinished")
    locked = {"Bucket": bucket, "Key": f"backups/{held}/objects.tar.zst.gpg"}
    client.put_object_legal_hold(**locked, LegalHold={"Status": "ON"})
    try:
        run = DagRunner(dag, {"mode": "apply"}).run()
        assert (run.failed(), run.surprises) == ([], []), [run.error(name) for name in run.failed()]
        done = run.results["delete_backups", "return_value"]
        assert (set(done["deleted"]), set(done["held"])) == ({gone}, {held})
        assert "is under legal hold" in done["held"][held]
        found = client.list_object_versions(Bucket=bucket, Prefix="backups/")
        entries = [*found.get("Versions", ()), *found.get("DeleteMarkers", ())]
        assert {entry["Key"].split("/")[1] for entry in entries} == {*kept, held}
        assert not client.list_multipart_uploads(Bucket=bucket).get("Uploads")
    finally:
        client.put_object_legal_hold(**locked, LegalHold={"Status": "OFF"})
