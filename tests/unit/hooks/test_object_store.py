"""Reports, samples and backups in a local folder and in an S3 server on loopback."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from nephoran_maintenance.errors import MaintenanceError, PermanentError, TransientError
from nephoran_maintenance.hooks import object_store
from nephoran_maintenance.hooks.object_store import ObjectStoreHook, Stored, part_bytes
from tests.unit.hooks.fake_s3 import FakeS3, connection_to
from tests.unit.hooks.fake_servers import Received, Reply, Server, connection_json, serving

KEY = "reports/rolling_upgrade/op-1/report.json"


@pytest.fixture
def fake_s3() -> FakeS3:
    return FakeS3()


@pytest.fixture
def s3_server(fake_s3: FakeS3, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with serving(fake_s3) as server:
        monkeypatch.setenv("AIRFLOW_CONN_STORE_TEST", connection_to(server))
        yield server


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStoreHook:
    if request.param == "folder":
        return ObjectStoreHook(local_folder=tmp_path)
    request.getfixturevalue("s3_server")
    return ObjectStoreHook("store_test", bucket="reports")


def test_stores_reads_and_lists(store: ObjectStoreHook) -> None:
    assert not store.exists(KEY)
    assert store.put_text(KEY, "{}").endswith(KEY)
    store.put_text(KEY, '{"a": "ä"}')
    for name in ("b", "c", "d"):
        store.put_bytes(f"other/{name}", b"\x00\xff")
    assert store.exists(KEY)
    assert store.get_text(KEY) == '{"a": "ä"}'
    assert store.get_bytes("other/b") == b"\x00\xff"
    assert store.list("other/") == ["other/b", "other/c", "other/d"]


def test_names_an_object_that_is_not_there(store: ObjectStoreHook) -> None:
    with pytest.raises(PermanentError) as error:
        store.get_text(KEY)
    assert error.value.reference == "not-found"
    assert KEY in error.value.message


@pytest.mark.parametrize("key", ["", "/etc/passwd", "a/../../b", "a//b", "."])
def test_refuses_keys_that_lead_elsewhere(store: ObjectStoreHook, key: str) -> None:
    with pytest.raises(PermanentError) as error:
        store.put_text(key, "x")
    assert error.value.reference == "object-key-invalid"


def test_a_folder_never_shows_half_a_file(tmp_path: Path) -> None:
    store = ObjectStoreHook(local_folder=tmp_path)
    store.put_text(KEY, "x" * 100_000)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["report.json"]


def test_missing_bucket_is_named(s3_server: Server) -> None:
    with pytest.raises(PermanentError, match="no bucket 'elsewhere'") as error:
        ObjectStoreHook("store_test", bucket="elsewhere").put_text(KEY, "x")
    assert error.value.reference == "bucket-not-found"


def test_denied_access_is_named_without_the_secret(s3_server: Server, fake_s3: FakeS3) -> None:
    fake_s3.deny = True
    with pytest.raises(PermanentError) as error:
        ObjectStoreHook("store_test", bucket="reports").put_text(KEY, "x")
    assert error.value.reference == "object-store-forbidden"
    assert "secret-key-of-test" not in str(error.value)


def test_a_store_that_is_away_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    extra = {"endpoint_url": "http://127.0.0.1:1", "region_name": "us-east-1"}
    value = connection_json(conn_type="aws", login="access-key", password="secret-key-of-test", extra=extra)
    monkeypatch.setenv("AIRFLOW_CONN_STORE_TEST", value)
    with pytest.raises(MaintenanceError) as error:
        ObjectStoreHook("store_test", bucket="reports").put_text(KEY, "x")
    assert error.value.reference == "object-store-unreachable"


def test_needs_a_place() -> None:
    with pytest.raises(PermanentError) as error:
        ObjectStoreHook()
    assert error.value.reference == "object-store-unconfigured"


# ------------------------------------------------------------------------------------------------------------- uploads

BIG = "backups/one/source.tar.zst.gpg"


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_store, "SMALLEST_PART_BYTES", 1000)


def upload(store: ObjectStoreHook, blocks: Iterable[bytes]) -> Stored:
    with store.uploading(BIG) as target:
        for block in blocks:
            target.write(block)
    assert target.stored
    return target.stored


@pytest.mark.parametrize("count", [0, 1, 3, 40], ids="{} blocks".format)
def test_uploads_block_by_block_and_knows_what_it_stored(count: int, store: ObjectStoreHook, small_parts: None) -> None:
    blocks = [bytes([number]) * 700 for number in range(count)]
    stored = upload(store, blocks)
    data = b"".join(blocks)
    assert b"".join(store.read_blocks(BIG)) == data
    assert (stored.key, stored.size_bytes, stored.sha256) == (BIG, len(data), hashlib.sha256(data).hexdigest())
    if store.connection_id:
        assert stored.version_id
        store.put_bytes(BIG, b"replaced")
        assert b"".join(store.read_blocks(BIG, stored.version_id)) == data


def test_a_block_larger_than_a_part_is_spread_over_several(
    s3_server: Server, fake_s3: FakeS3, small_parts: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_store, "PARTS_OF_A_SIZE", 3)
    data = bytes(number % 251 for number in range(12_345))
    stored = upload(ObjectStoreHook("store_test", bucket="reports"), [data[:1], data[1:]])
    assert fake_s3.objects[BIG] == data
    assert stored.sha256 == hashlib.sha256(data).hexdigest()


def test_an_error_while_uploading_leaves_nothing(store: ObjectStoreHook, small_parts: None, fake_s3: FakeS3) -> None:
    def blocks() -> Iterator[bytes]:
        yield from [b"x" * 700] * 10
        raise ValueError("the source broke")

    with pytest.raises(ValueError, match="the source broke"):
        upload(store, blocks())
    assert not store.exists(BIG)
    assert fake_s3.uploads == {}
    if store.local_folder:
        assert [path for path in store.local_folder.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        pytest.param(FakeS3.error(500, "InternalError"), TransientError, id="500"),
        pytest.param(FakeS3.error(503, "SlowDown"), TransientError, id="slow down"),
        pytest.param(FakeS3.error(403, "AccessDenied"), PermanentError, id="denied"),
        pytest.param(Reply(hang_up=True), TransientError, id="cut off"),
    ],
)
@pytest.mark.parametrize("where", ["second part", "completion"])
def test_a_store_that_fails_on_the_way_is_named_and_keeps_no_half_object(
    where: str, reply: Reply, error: type[MaintenanceError], s3_server: Server, fake_s3: FakeS3, small_parts: None
) -> None:
    def fail(request: Received) -> Reply | None:
        completes = request.method == "POST" and "uploadId" in request.query
        second = request.query.get("partNumber") == "2"
        return reply if (completes if where == "completion" else second) else None

    fake_s3.fail = fail
    with pytest.raises(error):
        upload(ObjectStoreHook("store_test", bucket="reports"), [b"x" * 700] * 10)
    assert fake_s3.objects == {}
    assert fake_s3.uploads == {}


def test_what_a_killed_upload_left_is_taken_away_by_the_next_try(
    s3_server: Server, fake_s3: FakeS3, small_parts: None
) -> None:
    store = ObjectStoreHook("store_test", bucket="reports")
    fake_s3.uploads = {"old": (BIG, {1: b"x"}), "other": (f"{BIG}.other", {1: b"x"})}
    upload(store, [b"x" * 700] * 10)
    assert set(fake_s3.uploads) == {"other"}


def test_the_writer_waits_for_a_slow_store(s3_server: Server, fake_s3: FakeS3, small_parts: None) -> None:
    """No more than two parts are under way and one is being filled, however fast the source is."""
    gate, arrived = threading.Event(), threading.Semaphore(0)

    def fail(request: Received) -> Reply | None:
        if "partNumber" in request.query:
            arrived.release()
            gate.wait(10)
        return None

    fake_s3.fail = fail
    written: list[int] = []

    def fill() -> None:
        with ObjectStoreHook("store_test", bucket="reports").uploading(BIG) as target:
            for number in range(20):
                target.write(b"x" * 1000)
                written.append(number)

    writer = threading.Thread(target=fill)
    writer.start()
    assert arrived.acquire(timeout=10)
    assert arrived.acquire(timeout=10)
    writer.join(0.05)
    assert len(written) <= 3
    gate.set()
    writer.join(10)
    assert len(fake_s3.objects[BIG]) == 20_000


def test_parts_grow_so_that_10000_hold_half_a_tebibyte() -> None:
    sizes = [part_bytes(number) for number in range(1, 10_001)]
    assert sizes == sorted(sizes)
    assert sizes[0] >= 5 * 1024**2, "S3's own smallest part"
    assert max(sizes) * 3 <= 256 * 1024**2, "three of them are in memory at once"
    assert sum(sizes) > 512 * 1024**3


def test_more_parts_than_s3_has_are_refused(
    s3_server: Server, fake_s3: FakeS3, small_parts: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_store, "MOST_PARTS", 3)
    with pytest.raises(PermanentError) as error:
        upload(ObjectStoreHook("store_test", bucket="reports"), [b"x" * 1000] * 5)
    assert error.value.reference == "archive-too-large"
    assert fake_s3.uploads == {}


@pytest.mark.parametrize(("lock", "expected"), [("COMPLIANCE", "COMPLIANCE 90 days"), (None, "none")])
def test_says_how_the_bucket_locks(lock: str | None, expected: str, s3_server: Server, fake_s3: FakeS3) -> None:
    fake_s3.lock = lock
    store = ObjectStoreHook("store_test", bucket="reports")
    assert store.object_lock() == expected
    fake_s3.deny = True
    assert store.object_lock() == "not measured"


def test_reading_an_object_that_is_not_there_or_is_cut_off(s3_server: Server, fake_s3: FakeS3) -> None:
    store = ObjectStoreHook("store_test", bucket="reports")
    with pytest.raises(PermanentError) as error:
        list(store.read_blocks(BIG))
    assert error.value.reference == "not-found"
    fake_s3.objects[BIG] = b"x" * 5000
    fake_s3.fail = lambda request: Reply(200, b"x" * 1000, {"Content-Length": "5000"}, hang_up=True)
    with pytest.raises(TransientError) as cut:
        list(store.read_blocks(BIG))
    assert cut.value.reference == "object-store-unreachable"


def test_content_that_is_not_what_the_store_has_a_checksum_of_is_damage_and_no_bad_connection(
    s3_server: Server, fake_s3: FakeS3
) -> None:
    store = ObjectStoreHook("store_test", bucket="reports")
    fake_s3.fail = lambda request: Reply(200, b"x" * 300_000, {"x-amz-checksum-crc32": "AAAAAA=="})
    blocks: list[bytes] = []
    with pytest.raises(PermanentError) as error:
        blocks.extend(store.read_blocks(BIG))
    assert error.value.reference == "object-damaged"
    assert BIG in error.value.message
    with pytest.raises(PermanentError) as error:
        store.get_bytes(KEY)
    assert error.value.reference == "object-damaged"


def test_a_small_object_that_is_cut_off_is_named_too(s3_server: Server, fake_s3: FakeS3) -> None:
    fake_s3.fail = lambda request: Reply(200, b"x" * 10, {"Content-Length": "50"}, hang_up=True)
    with pytest.raises(TransientError) as error:
        ObjectStoreHook("store_test", bucket="reports").get_bytes(KEY)
    assert error.value.reference == "object-store-unreachable"
