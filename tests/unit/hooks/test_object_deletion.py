"""Deleting for good: every version, no lock passed by, the file that makes a backup count first."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import pytest

from nephoran_maintenance.errors import MaintenanceError, PermanentError
from nephoran_maintenance.hooks.object_deletion import DeletingStore
from tests.unit.hooks.fake_s3 import DELETER, FIRST_MOMENT, FakeS3, connection_to
from tests.unit.hooks.fake_servers import Server, serving

FIRST, LATER = "b/one/manifest.json.asc", FIRST_MOMENT + timedelta(days=400)


@pytest.fixture
def s3() -> FakeS3:
    found = FakeS3("backups")
    for content in (b"old", b"new"):
        for key in ("b/one/archive", FIRST, "b/one/notes", "b/other/archive"):
            found.put(key, content)
    found.hide("b/one/notes")
    found.uploads["u"] = ("b/one/big", {})
    return found


@pytest.fixture
def server(s3: FakeS3, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with serving(s3) as running:
        monkeypatch.setenv("AIRFLOW_CONN_RETENTION", connection_to(running, DELETER))
        monkeypatch.setenv("AIRFLOW_CONN_UPLOADER", connection_to(running))
        yield running


@pytest.fixture
def store(server: Server) -> DeletingStore:
    return DeletingStore("retention", bucket="backups")


def test_everything_is_versions_marks_and_unfinished_uploads(store: DeletingStore) -> None:
    found = store.everything("b/one/")
    assert len([one for one in found if one.version_id and not one.is_mark]) == 6
    assert [one.key for one in found if one.is_mark] == ["b/one/notes"]
    assert [one.key for one in found if one.upload_id] == ["b/one/big"]


def test_a_store_that_does_not_tell_whether_it_keeps_versions_is_asked_for_them(
    store: DeletingStore, s3: FakeS3
) -> None:
    """versitygw tells it the owner of the bucket alone, whatever a policy says."""
    denied = FakeS3.error(403, "AccessDenied")
    s3.fail = lambda request: denied if "versioning" in request.query else None
    assert len([one for one in store.everything("b/one/") if one.version_id and not one.is_mark]) == 6
    assert store.delete_all(store.everything("b/one/"), LATER, FIRST) == ""
    assert {key for key, _ in s3.versions} == {"b/other/archive"}
    s3.fail = lambda request: FakeS3.error(500, "InternalError") if "versioning" in request.query else None
    with pytest.raises(MaintenanceError):
        store.everything("b/other/")


def test_all_of_a_folder_goes_and_its_first_file_first(store: DeletingStore, s3: FakeS3) -> None:
    assert store.delete_all(store.everything("b/one/"), LATER, FIRST) == ""
    assert s3.deleted[:2] == [FIRST, FIRST]
    assert set(s3.objects) == {"b/other/archive"}
    assert (s3.marks, s3.uploads) == ([], {})


@pytest.mark.parametrize(
    ("lock", "reason"),
    [
        ("hold", "b/one/archive is under legal hold"),
        ("2021-03-01T00:00:00Z", "b/one/archive is locked until 2021-03-01"),
    ],
)
def test_nothing_of_a_folder_goes_while_anything_in_it_is_locked(
    lock: str, reason: str, store: DeletingStore, s3: FakeS3
) -> None:
    s3.lock, s3.locks = "GOVERNANCE", {"b/one/archive": lock}
    assert store.delete_all(store.everything("b/one/"), LATER, FIRST) == reason
    assert s3.deleted == []
    assert len(s3.uploads) == 1


def test_the_bucket_s_own_rule_locks_also_what_bears_no_lock(store: DeletingStore, s3: FakeS3) -> None:
    s3.lock = "COMPLIANCE"  # 90 days
    found = store.everything("b/one/")
    assert "is locked until 2020-03-31" in store.delete_all(found, FIRST_MOMENT + timedelta(days=89), FIRST)
    assert store.locked_until("b/one/archive") == FIRST_MOMENT + timedelta(days=90)
    assert store.delete_all(found, FIRST_MOMENT + timedelta(days=91), FIRST) == ""


def test_a_bucket_without_versions_is_cleaned_too(store: DeletingStore, s3: FakeS3) -> None:
    s3.versioned = False
    found = store.everything("b/one/")
    assert {one.version_id for one in found} == {None}
    assert store.delete_all(found, LATER, FIRST) == ""
    assert set(s3.objects) == {"b/other/archive"}


def test_the_account_that_uploads_can_delete_nothing(server: Server, s3: FakeS3) -> None:
    uploader = DeletingStore("uploader", bucket="backups")
    with pytest.raises(PermanentError) as error:
        uploader.delete_all(uploader.everything("b/one/"), LATER, FIRST)
    assert error.value.reference == "object-store-forbidden"
    assert s3.deleted == []
