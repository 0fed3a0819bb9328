"""Members go in, one encrypted object and an inventory come out, or nothing at all; real gpg, tar and zstd read it."""

from __future__ import annotations

import gc
import hashlib
import io
import os
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path

import pytest
import zstandard

from nephoran_maintenance.domain.members import Member
from nephoran_maintenance.errors import PermanentError
from nephoran_maintenance.hooks import archive
from nephoran_maintenance.hooks.archive import ArchiveWriter, digest_key, keyed_digest, read_inventory
from nephoran_maintenance.hooks.object_store import ObjectStoreHook
from nephoran_maintenance.hooks.openpgp import OpenPgpHook
from tests.unit.openpgp_keys import KeyMaker, plain

AT = datetime(2026, 11, 24, 2, 30, tzinfo=UTC)
FOLDER = "backups/full-20261124t023000z-1a2b3c"
KEY = b"k" * 32
CANARY = b"canary-of-a-password"


def member(path: str, content: bytes, size_bytes: int | None = None) -> Member:
    chunks = [content[start : start + 1000] for start in range(0, len(content), 1000)]
    return Member(path, len(content) if size_bytes is None else size_bytes, chunks)


CONTENTS = {
    "v1/Secret/nephoran-system/weaviate.json": b'{"data": "' + CANARY + b'"}',
    "v1/ConfigMap/nephoran-system/empty.json": b"",
    "a" * 300 + "/ä b.bin": bytes(range(256)) * 2000,
    "exact.bin": b"x" * 512,
}


@pytest.fixture
def store(tmp_path: Path) -> ObjectStoreHook:
    return ObjectStoreHook(local_folder=tmp_path)


@pytest.fixture
def writer(store: ObjectStoreHook, keys: KeyMaker) -> Iterator[ArchiveWriter]:
    with OpenPgpHook() as pgp:
        recipients = pgp.import_recipients([keys.operations, keys.escrow], AT)
        yield ArchiveWriter(store, pgp, recipients, digest_key=KEY, changed_at=AT)


def opened(keys: KeyMaker, store: ObjectStoreHook, name: str) -> tuple[bytes, dict[str, bytes]]:
    """Return the zstd stream and the files of an archive, by other code than that which wrote it."""
    compressed = plain(keys, store.get_bytes(f"{FOLDER}/{name}"))
    done = subprocess.run(["zstd", "-dc"], input=compressed, capture_output=True, check=True)
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as file:
        members = {info.name: file.extractfile(info) for info in file}
        return compressed, {name: found.read() for name, found in members.items() if found}


def test_what_goes_in_comes_out(writer: ArchiveWriter, store: ObjectStoreHook, keys: KeyMaker) -> None:
    record = writer.write(FOLDER, "kubernetes", [member(path, content) for path, content in CONTENTS.items()])
    compressed, files = opened(keys, store, record.key)
    sums = files.pop(".checksums/00001.sha256").decode()
    assert files == CONTENTS
    assert sums == "".join(f"{hashlib.sha256(data).hexdigest()}  {path}\n" for path, data in CONTENTS.items())
    assert record.sha256_before_encryption == hashlib.sha256(compressed).hexdigest()
    data = store.get_bytes(f"{FOLDER}/{record.key}")
    assert (record.size_bytes, record.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert (record.members, record.member_bytes) == (4, sum(map(len, CONTENTS.values())))


def test_the_inventory_tells_changes_and_gives_no_secret_away(writer: ArchiveWriter, store: ObjectStoreHook) -> None:
    record = writer.write(FOLDER, "kubernetes", [member(path, content) for path, content in CONTENTS.items()])
    data = store.get_bytes(f"{FOLDER}/{record.inventory_key}")
    assert (record.inventory_sha256, record.inventory_size_bytes) == (hashlib.sha256(data).hexdigest(), len(data))
    lines = list(read_inventory(data[start : start + 7] for start in range(0, len(data), 7)))
    assert [(line["path"], line["size_bytes"]) for line in lines] == [(p, len(c)) for p, c in CONTENTS.items()]
    digests = {line["path"]: line["digest"] for line in lines}
    for path, content in CONTENTS.items():
        plain_digest = hashlib.sha256(content)
        assert digests[path] != plain_digest.hexdigest(), "a short password could be guessed from it"
        assert digests[path] == keyed_digest(KEY, plain_digest.digest())
        assert digests[path] != keyed_digest(b"another key", plain_digest.digest())


def test_another_passphrase_or_signing_key_gives_another_digest_key() -> None:
    found = digest_key("passphrase", "A" * 40)
    assert found == digest_key("passphrase", "A" * 40)
    assert len({found, digest_key("Passphrase", "A" * 40), digest_key("passphrase", "B" * 40)}) == 3


def test_nothing_readable_is_stored(writer: ArchiveWriter, store: ObjectStoreHook, tmp_path: Path) -> None:
    writer.write(FOLDER, "kubernetes", [member(path, content) for path, content in CONTENTS.items()])
    archived, inventory = (path.read_bytes() for path in sorted(tmp_path.rglob("*.*"), reverse=True) if path.is_file())
    assert CANARY not in archived
    assert CANARY not in zstandard.ZstdDecompressor().decompressobj().decompress(inventory)


def test_an_archive_of_nothing_is_an_archive(writer: ArchiveWriter, store: ObjectStoreHook, keys: KeyMaker) -> None:
    record = writer.write(FOLDER, "kubernetes", [])
    assert opened(keys, store, record.key)[1] == {".checksums/00001.sha256": b""}
    assert record.members == 0
    assert list(read_inventory([store.get_bytes(f"{FOLDER}/{record.inventory_key}")])) == []


@pytest.mark.parametrize("path", ["a.json", "a" * 100, "a" * 101, "ä.json"], ids=["short", "100", "101", "not ascii"])
@pytest.mark.parametrize("size_bytes", [0, 511, 8**11 - 1, 8**11, 8**12])
def test_headers_are_those_of_tarfile(path: str, size_bytes: int) -> None:
    for changed_at in (0, 1_800_000_000):
        info = tarfile.TarInfo(path)
        info.size, info.mtime, info.mode = size_bytes, changed_at, 0o600
        assert archive._header(path, size_bytes, changed_at) == info.tobuf(tarfile.PAX_FORMAT)


def test_long_lists_of_checksums_are_cut(
    writer: ArchiveWriter, store: ObjectStoreHook, keys: KeyMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "MEMBERS_OF_A_LIST", 2)
    record = writer.write(FOLDER, "kubernetes", [member(f"{number}.json", b"x") for number in range(5)])
    files = opened(keys, store, record.key)[1]
    lists = {name: len(data.splitlines()) for name, data in files.items() if name.startswith(".checksums/")}
    assert list(lists.values()) == [2, 2, 1]


@pytest.mark.parametrize(
    "bad",
    [
        pytest.param([member("a", b"xx", size_bytes=1)], id="longer than said"),
        pytest.param([member("a", b"xx", size_bytes=3)], id="shorter than said"),
        pytest.param([member("a", b"x"), member("a", b"y")], id="twice"),
        pytest.param([member("../a", b"x")], id="leads up"),
        pytest.param([member("/etc/passwd", b"x")], id="absolute"),
        pytest.param([member("a//b", b"x")], id="empty part"),
        pytest.param([member("a\nb", b"x")], id="new line"),
        pytest.param([member("a\\b", b"x")], id="backslash"),
        pytest.param([member(".checksums/00001.sha256", b"x")], id="our own name"),
    ],
)
def test_a_member_that_is_wrong_stops_everything(
    bad: list[Member], writer: ArchiveWriter, tmp_path: Path, store: ObjectStoreHook
) -> None:
    with pytest.raises(PermanentError) as error:
        writer.write(FOLDER, "kubernetes", [member("good", b"x" * 2_000_000), *bad])
    assert error.value.reference == "member-invalid"
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_source_that_breaks_leaves_nothing(writer: ArchiveWriter, tmp_path: Path) -> None:
    def members() -> Iterator[Member]:
        yield member("good", b"x" * 2_000_000)
        raise PermanentError("gone", "the list expired")

    with pytest.raises(PermanentError, match="the list expired"):
        writer.write(FOLDER, "kubernetes", members())
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("breaks", [False, True])
def test_what_was_loaded_before_is_looked_through_for_garbage_again_only_afterwards(
    writer: ArchiveWriter, breaks: bool
) -> None:
    frozen = []

    def members() -> Iterator[Member]:
        frozen.append(gc.get_freeze_count())
        yield member("a.bin", b"content", size_bytes=8 if breaks else 7)

    with pytest.raises(PermanentError) if breaks else nullcontext():
        writer.write(FOLDER, "objects", members())
    assert frozen[0] > 1000
    assert gc.get_freeze_count() == 0


def test_a_source_is_pulled_only_as_fast_as_the_store_takes_it(keys: KeyMaker, store: ObjectStoreHook) -> None:
    """What was taken and is not in the store yet fits into a few blocks, whatever the source could give."""
    stored, ahead = 0, []

    def members() -> Iterator[Member]:
        for number in range(60):
            ahead.append(number * 2**20 - stored)
            yield Member(str(number), 2**20, [os.urandom(2**20)])

    with OpenPgpHook() as pgp:
        recipients = pgp.import_recipients([keys.operations], AT)
        inventory = archive.Inventory(KEY)

        def sink(block: bytes) -> None:
            nonlocal stored
            stored += len(block)

        pgp.encrypt(archive.compress(archive.tar(members(), inventory, AT)), sink, recipients)
    assert max(ahead) < 40 * 2**20
    assert inventory.members == 60
