"""What a backup holds of Weaviate, read from a Weaviate and a staging bucket on loopback."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from nephoran_maintenance.engine.sources import Source
from nephoran_maintenance.engine.weaviate_sources import WeaviateFacts, WeaviateFiles
from nephoran_maintenance.errors import MaintenanceError
from nephoran_maintenance.hooks.staging import StagingBucket
from nephoran_maintenance.hooks.weaviate_api import WeaviateHook
from nephoran_maintenance.profile import KnownObjects
from tests.unit.fake_weaviate import FakeWeaviate
from tests.unit.hooks.fake_servers import Answer, Received, Reply, Server, connection_json, serving

PREFIX = "full-20261124t023000z-1a2b3c/"


@pytest.fixture
def serve() -> Iterator[Callable[[Answer], Server]]:
    with ExitStack() as stack:
        yield lambda answer: stack.enter_context(serving(answer))


def read(source: Source) -> dict[str, bytes]:
    return {member.path: b"".join(member.chunks) for member in source}


# --------------------------------------------------------------------------------------------------------------- facts


@pytest.fixture
def weaviate() -> FakeWeaviate:
    fake = FakeWeaviate()
    fake.collections = {"TelecomKnowledge": [f"id-{number}" for number in range(100)], "Empty": []}
    return fake


@pytest.fixture
def hook(weaviate: FakeWeaviate, serve: Callable[[Answer], Server]) -> WeaviateHook:
    return WeaviateHook("weaviate_test", base_url=serve(weaviate).url, api_key="weaviate-key")


def test_tells_version_schema_and_counts(hook: WeaviateHook) -> None:
    source = WeaviateFacts(hook)
    files = read(source)
    assert sorted(files) == [
        f"weaviate/{name}.json" for name in ("collections", "known-items", "meta", "nodes", "schema")
    ]
    assert [found["class"] for found in json.loads(files["weaviate/schema.json"])] == ["TelecomKnowledge", "Empty"]
    assert source.outcome.state == "captured"
    facts = source.outcome.facts
    assert (facts["version"], facts["collections"]) == ("1.39.0", {"TelecomKnowledge": 100, "Empty": 0})


def reachability(hook: WeaviateHook, name: str = "TelecomKnowledge") -> dict[str, Any]:
    source = WeaviateFacts(hook)
    read(source)
    return dict(source.outcome.facts["reachability"][name])


def test_measures_that_everything_can_be_reached(hook: WeaviateHook) -> None:
    found = reachability(hook)
    assert found == {"state": "measured", "asked": 20, "found_itself": 20, "reached": 100, "objects": 100}


def test_notices_objects_that_are_counted_and_can_not_be_reached(hook: WeaviateHook, weaviate: FakeWeaviate) -> None:
    weaviate.lost = {"id-3", "id-60"}
    found = reachability(hook)
    assert (found["found_itself"], found["reached"], found["objects"]) == (19, 98, 100)


def test_searches_by_every_named_vector(hook: WeaviateHook, weaviate: FakeWeaviate) -> None:
    weaviate.named_vectors = {"TelecomKnowledge"}
    assert reachability(hook)["found_itself"] == 20


UNMEASURED = {"empty": ("Empty", "empty"), "no-vectors": ("Bare", "no vectors"), "tenants": ("Tenants", "tenants")}


@pytest.mark.parametrize(("name", "reason"), UNMEASURED.values(), ids=UNMEASURED.keys())
def test_says_why_it_could_not_be_measured(hook: WeaviateHook, weaviate: FakeWeaviate, name: str, reason: str) -> None:
    weaviate.collections |= {"Bare": ["id-1"], "Tenants": []}
    weaviate.without_vectors, weaviate.tenants = {"Bare"}, {"Tenants"}
    found = reachability(hook, name)
    assert (found["state"], reason in found["reason"]) == ("not measured", True)


def test_a_server_that_refuses_the_search_fails_nothing(hook: WeaviateHook, weaviate: FakeWeaviate) -> None:
    weaviate.search_limit = 50
    found = reachability(hook)
    assert (found["state"], "maximum results" in found["reason"]) == ("not measured", True)


def test_counts_the_shards_of_tenants_once_however_many_nodes_hold_them(
    hook: WeaviateHook, weaviate: FakeWeaviate
) -> None:
    weaviate.collections["Tenants"] = []
    weaviate.tenants = {"Tenants"}
    source = WeaviateFacts(hook)
    read(source)
    assert source.outcome.facts["collections"]["Tenants"] == 10


def test_keeps_the_answers_to_known_items(hook: WeaviateHook, weaviate: FakeWeaviate) -> None:
    known = KnownObjects(collection="TelecomKnowledge", prefix="p", title="t", count=500)
    weaviate.collections["TelecomKnowledge"] = [known.id_of(number) for number in range(0, 500, 20)]
    source = WeaviateFacts(hook, known)
    items = json.loads(read(source)["weaviate/known-items.json"])
    assert len(items) == 50
    assert items[0]["properties"] == {"title": f"title of {known.id_of(0)}"}
    assert source.outcome.facts["known_items"] == {"asked": 50, "found": 25}


def test_names_a_collection_that_was_added_meanwhile(hook: WeaviateHook, weaviate: FakeWeaviate) -> None:
    weaviate.add_meanwhile = "New"
    source = WeaviateFacts(hook)
    read(source)
    assert source.outcome.facts["collections_added_meanwhile"] == ["New"]


def test_a_weaviate_that_is_away_fails_the_source(serve: Callable[[Answer], Server]) -> None:
    hook = WeaviateHook("w", base_url=serve(lambda request: Reply(503, "")).url, api_key="weaviate-key")
    source = WeaviateFacts(hook)
    with pytest.raises(MaintenanceError):
        read(source)
    assert source.outcome.state == "failed"


# --------------------------------------------------------------------------------------------------------------- files

DESCRIPTOR = {
    "id": PREFIX.rstrip("/"),
    "status": "SUCCESS",
    "serverVersion": "1.39.0",
    "baseBackupId": "base-1",
    "nodes": {"weaviate-0": {"classes": ["B", "A"]}, "weaviate-1": {"classes": ["A"]}},
}


class FakeBucket:
    """A bucket that lists two keys to a page; ``cut`` shortens what one key gives."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.uploads: list[tuple[str, str]] = []
        self.cut = ""

    def __call__(self, request: Received) -> Reply:
        key = request.path.removeprefix("/staging").lstrip("/")
        if request.method == "DELETE" and (upload_id := request.query.get("uploadId")):
            self.uploads.remove((key, upload_id))
            return Reply(204)
        if request.method == "DELETE":
            del self.objects[key]
            return Reply(204)
        if "uploads" in request.query:
            return self.uploads_page(request.query.get("upload-id-marker", ""))
        if key:
            content = self.objects[key]
            return Reply(200, content[:-1] if key == self.cut else content)
        keys = sorted(one for one in self.objects if one.startswith(request.query.get("prefix", "")))
        keys = [one for one in keys if one > request.query.get("continuation-token", "")]
        found = "".join(
            f"<Contents><Key>{one}</Key><Size>{len(self.objects[one])}</Size></Contents>" for one in keys[:2]
        )
        more = f"<NextContinuationToken>{keys[1]}</NextContinuationToken>" if len(keys) > 2 else ""
        truncated = f"<IsTruncated>{str(bool(more)).lower()}</IsTruncated>"
        text = f"<ListBucketResult>{truncated}{more}{found}</ListBucketResult>"
        return Reply(200, text, {"Content-Type": "application/xml"})

    def uploads_page(self, after: str) -> Reply:
        """List one upload, whatever the prefix is."""
        later = [upload for upload in self.uploads if upload[1] > after]
        text = "".join(f"<Upload><Key>{key}</Key><UploadId>{name}</UploadId></Upload>" for key, name in later[:1])
        more = "".join(
            f"<NextKeyMarker>{key}</NextKeyMarker><NextUploadIdMarker>{name}</NextUploadIdMarker>"
            for key, name in later[:1]
        )
        truncated = f"<IsTruncated>{str(len(later) > 1).lower()}</IsTruncated>"
        return Reply(200, f"<ListMultipartUploadsResult>{truncated}{more}{text}</ListMultipartUploadsResult>")


@pytest.fixture
def bucket() -> FakeBucket:
    fake = FakeBucket()
    fake.objects = {f"{PREFIX}weaviate-0/A/chunk-{number}": bytes([number]) * 100 for number in range(4)}
    node = {"classes": [{"name": "A", "chunks": {str(number): [] for number in range(4)}}, {"name": "B", "chunks": {}}]}
    fake.objects |= {
        f"{PREFIX}weaviate-0/backup.json": json.dumps(node).encode(),
        f"{PREFIX}weaviate-1/backup.json": b"{}",
        f"{PREFIX}backup_config.json": json.dumps(DESCRIPTOR).encode(),
        "other/weaviate-0/chunk-0": b"not ours",
    }
    return fake


@pytest.fixture
def staging(bucket: FakeBucket, serve: Callable[[Answer], Server], monkeypatch: pytest.MonkeyPatch) -> StagingBucket:
    extra = {
        "endpoint_url": serve(bucket).url,
        "region_name": "us-east-1",
        "config_kwargs": {"s3": {"addressing_style": "path"}},
    }
    fields = {"conn_type": "aws", "login": "staging-user", "password": "staging-password", "extra": extra}
    monkeypatch.setenv("AIRFLOW_CONN_STAGING_TEST", connection_json(**fields))
    return StagingBucket("staging_test", bucket="staging")


def test_streams_every_file_of_the_backup_and_no_other(staging: StagingBucket, bucket: FakeBucket) -> None:
    source = WeaviateFiles(staging, PREFIX, base_id="base-1")
    files = read(source)
    expected = {
        f"weaviate/backup/{key.removeprefix(PREFIX)}": content
        for key, content in bucket.objects.items()
        if key.startswith(PREFIX)
    }
    assert files == expected
    facts = source.outcome.facts
    assert (facts["files"], facts["bytes"]) == (7, sum(len(content) for content in expected.values()))
    assert (facts["collections"], facts["base_backup_id"], facts["status"]) == (["A", "B"], "base-1", "SUCCESS")


def test_a_file_that_ends_early_fails_the_source(staging: StagingBucket, bucket: FakeBucket) -> None:
    bucket.cut = f"{PREFIX}weaviate-0/A/chunk-2"
    source = WeaviateFiles(staging, PREFIX, base_id="base-1")
    with pytest.raises(MaintenanceError, match="of which 99 were read"):
        read(source)
    assert source.outcome.state == "failed"


@pytest.mark.parametrize("change", ["missing", "damaged", "empty-bucket"])
def test_a_backup_without_its_descriptor_is_none(staging: StagingBucket, bucket: FakeBucket, change: str) -> None:
    if change == "empty-bucket":
        bucket.objects.clear()
    elif change == "missing":
        del bucket.objects[f"{PREFIX}backup_config.json"]
    else:
        bucket.objects[f"{PREFIX}backup_config.json"] = b"<html>"
    source = WeaviateFiles(staging, PREFIX, base_id="base-1")
    with pytest.raises(MaintenanceError) as caught:
        read(source)
    assert (caught.value.reference, source.outcome.state) == ("weaviate-backup-incomplete", "failed")


@pytest.mark.parametrize("lost", ["weaviate-0/A/chunk-1", "weaviate-1/backup.json"])
def test_a_backup_that_was_cleared_already_is_not_taken_for_whole(
    staging: StagingBucket, bucket: FakeBucket, lost: str
) -> None:
    del bucket.objects[f"{PREFIX}{lost}"]
    source = WeaviateFiles(staging, PREFIX, base_id="base-1")
    with pytest.raises(MaintenanceError, match=f"lacks 1 files .* the first is {lost}"):
        read(source)
    assert source.outcome.state == "failed"


def test_tells_which_collections_were_added_meanwhile(staging: StagingBucket) -> None:
    source = WeaviateFiles(
        staging, PREFIX, base_id="base-1", live=lambda: ["A", "C", "B"], about={"incremental": "not said"}
    )
    read(source)
    assert source.outcome.facts["collections_added_meanwhile"] == ["C"]
    assert source.outcome.facts["incremental"] == "yes"


def test_a_collection_of_before_that_is_not_in_it_fails_the_source(staging: StagingBucket) -> None:
    source = WeaviateFiles(
        staging, PREFIX, base_id="base-1", live=lambda: ["A", "B", "C", "New"], before=["A", "C", "Deleted"]
    )
    with pytest.raises(MaintenanceError, match="lacks the collections C, which") as caught:
        read(source)
    assert (caught.value.reference, source.outcome.state) == ("weaviate-backup-incomplete", "failed")


@pytest.mark.parametrize("base_id", ["", "base-2"])
def test_a_backup_that_builds_on_another_than_its_chain_is_not_taken_for_whole(
    staging: StagingBucket, base_id: str
) -> None:
    source = WeaviateFiles(staging, PREFIX, base_id=base_id)
    with pytest.raises(MaintenanceError, match=f"builds on base-1, .* on {base_id or 'none'}") as caught:
        read(source)
    assert (caught.value.reference, source.outcome.state) == ("weaviate-backup-incomplete", "failed")


def test_a_full_backup_in_place_of_an_incremental_one_is_whole(staging: StagingBucket, bucket: FakeBucket) -> None:
    key = f"{PREFIX}backup_config.json"
    bucket.objects[key] = json.dumps({**DESCRIPTOR, "baseBackupId": ""}).encode()
    source = WeaviateFiles(staging, PREFIX, base_id="base-1")
    read(source)
    assert (source.outcome.state, source.outcome.facts["base_backup_id"]) == ("captured", "")


def test_clearing_leaves_the_descriptors_and_other_backups(staging: StagingBucket, bucket: FakeBucket) -> None:
    assert staging.clear(PREFIX) == 4
    assert sorted(bucket.objects) == [
        f"{PREFIX}backup_config.json",
        f"{PREFIX}weaviate-0/backup.json",
        f"{PREFIX}weaviate-1/backup.json",
        "other/weaviate-0/chunk-0",
    ]
    assert staging.clear(PREFIX) == 0
    assert staging.clear(PREFIX, keep_descriptors=False) == 3
    assert sorted(bucket.objects) == ["other/weaviate-0/chunk-0"]


def test_clearing_ends_what_was_not_uploaded_to_its_end(staging: StagingBucket, bucket: FakeBucket) -> None:
    ours = [(f"{PREFIX}weaviate-0/A/chunk-7", "u1"), (f"{PREFIX}weaviate-0/A/chunk-8", "u3")]
    bucket.uploads = sorted([*ours, ("other/weaviate-0/chunk-0", "u2")], key=lambda upload: upload[1])
    assert staging.clear(PREFIX) == 4 + len(ours)
    assert bucket.uploads == [("other/weaviate-0/chunk-0", "u2")]


def test_a_backup_is_found_wherever_weaviate_has_put_it(staging: StagingBucket, bucket: FakeBucket) -> None:
    bucket.objects[f"site/a/{PREFIX}backup_config.json"] = b"{}"
    bucket.uploads = [(f"site/b/{PREFIX}weaviate-0/A/chunk-1", "u1"), (f"not-{PREFIX}chunk-1", "u2")]
    assert staging.folders_of(PREFIX.rstrip("/")) == [PREFIX, f"site/a/{PREFIX}", f"site/b/{PREFIX}"]


def test_tells_how_much_is_staged(staging: StagingBucket) -> None:
    found = staging.usage(f"{PREFIX}weaviate-0/A/chunk")
    assert (found.objects, found.size_bytes) == (4, 400)
