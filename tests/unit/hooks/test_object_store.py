"""Reports and samples in a local folder and in an S3 server on loopback."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from xml.sax.saxutils import escape

import pytest

from nephoran_maintenance.errors import MaintenanceError, PermanentError
from nephoran_maintenance.hooks.object_store import ObjectStoreHook
from tests.unit.hooks.fake_servers import Received, Reply, Server, connection_json, serving

KEY = "reports/rolling_upgrade/op-1/report.json"


class FakeS3:
    """One bucket ``reports``; lists two keys to a page."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.deny = False

    def __call__(self, request: Received) -> Reply:
        _, bucket, *rest = request.path.split("/", 2)
        key = rest[0] if rest else ""
        if self.deny:
            return self.error(403, "AccessDenied")
        if bucket != "reports":
            return self.error(404, "NoSuchBucket")
        if request.method == "PUT":
            self.objects[key] = self.decoded(request)
            return Reply(200, "", {"ETag": '"x"'})
        if not key:
            return self.page(request)
        if key not in self.objects:
            return self.error(404, "NoSuchKey")
        return Reply(200, self.objects[key])

    @staticmethod
    def decoded(request: Received) -> bytes:
        """Return the body without the chunk framing that botocore adds for its checksum."""
        if "aws-chunked" not in request.headers.get("content-encoding", ""):
            return request.body
        size, _, rest = request.body.partition(b"\r\n")
        return rest[: int(size.split(b";")[0], 16)]

    def page(self, request: Received) -> Reply:
        start = int(request.query.get("continuation-token", "0"))
        keys = sorted(key for key in self.objects if key.startswith(request.query.get("prefix", "")))
        more = len(keys) > start + 2
        entries = "".join(f"<Contents><Key>{escape(key)}</Key></Contents>" for key in keys[start : start + 2])
        token = f"<NextContinuationToken>{start + 2}</NextContinuationToken>" if more else ""
        truncated = "true" if more else "false"
        text = f"<ListBucketResult><IsTruncated>{truncated}</IsTruncated>{token}{entries}</ListBucketResult>"
        return Reply(200, text, {"Content-Type": "application/xml"})

    @staticmethod
    def error(status: int, code: str) -> Reply:
        return Reply(status, f"<Error><Code>{code}</Code><Message>{code}</Message></Error>")


@pytest.fixture
def fake_s3() -> FakeS3:
    return FakeS3()


@pytest.fixture
def s3_server(fake_s3: FakeS3, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with serving(fake_s3) as server:
        extra = {
            "endpoint_url": server.url,
            "region_name": "us-east-1",
            "config_kwargs": {"s3": {"addressing_style": "path"}},
        }
        value = connection_json(conn_type="aws", login="access-key", password="secret-key-of-test", extra=extra)
        monkeypatch.setenv("AIRFLOW_CONN_STORE_TEST", value)
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
