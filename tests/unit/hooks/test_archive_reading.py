"""Reading an archive back: what was written is found as it was, and whatever was done to it is named."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from datetime import UTC, datetime

import pytest
import zstandard

from nephoran_maintenance.domain.manifest import ArchiveRecord, Contents, compare_contents
from nephoran_maintenance.domain.members import Member
from nephoran_maintenance.errors import PermanentError
from nephoran_maintenance.hooks.archive import Inventory, compress, tar
from nephoran_maintenance.hooks.archive_reading import read_contents
from nephoran_maintenance.hooks.openpgp import OpenPgpHook
from tests.unit.openpgp_keys import KeyMaker

AT = datetime(2026, 11, 24, tzinfo=UTC)
FILES = {"a/one.json": b"1" * 700, "b.bin": bytes(3_000_000), "empty": b""}


def members() -> list[Member]:
    return [Member(path, len(data), [data]) for path, data in FILES.items()]


def written() -> bytes:
    return b"".join(compress(tar(members(), Inventory(b"k" * 32), AT)))


def as_it_is(blocks: Iterable[bytes], sink: Callable[[bytes], object]) -> None:
    """Stand in for gpg where the way behind it is looked at."""
    for block in blocks:
        sink(block)


def read(data: bytes) -> Contents:
    return read_contents([data[start : start + 65536] for start in range(0, len(data), 65536)], as_it_is)


def test_finds_what_was_written() -> None:
    found = read(written())
    assert (found.members, found.member_bytes, found.problem) == (3, 3_000_700, "")
    assert found.sha256 == found.sha256_before_encryption
    assert found.size_bytes == len(written())


def tar_of(files: dict[str, bytes], **kinds: bytes) -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.type = len(data), kinds.get(name, tarfile.REGTYPE)
            archive.addfile(info, io.BytesIO(data))
    return bytes(zstandard.ZstdCompressor().compress(target.getvalue()))


GOOD_LIST = b"4355a46b19d348dc2f57c046f8ef63d4538ebb936000f3c9ee954a27460dd865  a\n"
"""Of a file ``a`` that holds ``1\\n``."""


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        pytest.param(lambda: written()[:-5], "can't be read to its end", id="cut at its end"),
        pytest.param(lambda: written()[:200], "can't be read to its end", id="cut in the middle"),
        pytest.param(lambda: b"not zstd" * 100, "can't be read to its end", id="not zstd"),
        pytest.param(
            lambda: tar_of({"a": b"2\n", ".checksums/00001.sha256": GOOD_LIST}), "differ", id="another content"
        ),
        pytest.param(
            lambda: tar_of({"a": b"1\n", "b": b"", ".checksums/00001.sha256": GOOD_LIST}), "differ", id="one more"
        ),
        pytest.param(lambda: tar_of({".checksums/00001.sha256": GOOD_LIST}), "differ", id="one missing"),
        pytest.param(lambda: tar_of({"a": b"1\n"}), "on no list", id="no list"),
        pytest.param(
            lambda: tar_of({"a": b"1\n", ".checksums/00001.sha256": GOOD_LIST, "b": b""}),
            "on no list",
            id="after the list",
        ),
        pytest.param(lambda: tar_of({"a": b""}, a=tarfile.SYMTYPE), "is no file", id="a link"),
    ],
)
def test_whatever_differs_is_named(data: Callable[[], bytes], expected: str) -> None:
    assert expected in read(data()).problem


def test_the_list_of_this_test_is_right() -> None:
    assert read(tar_of({"a": b"1\n", ".checksums/00001.sha256": GOOD_LIST})).problem == ""


def test_an_error_of_the_store_comes_back_as_it_is() -> None:
    def blocks() -> Iterator[bytes]:
        yield written()[:500]
        raise PermanentError("not-found", "gone")

    with pytest.raises(PermanentError, match="gone"):
        read_contents(blocks(), as_it_is)


def test_what_a_recipient_decrypts_is_whole_and_a_stranger_is_told(keys: KeyMaker) -> None:
    with OpenPgpHook() as pgp:
        encrypted: list[bytes] = []
        pgp.encrypt([written()], encrypted.append, pgp.import_recipients([keys.operations], AT))
    with OpenPgpHook() as pgp:
        pgp._gpg.import_keys(keys.private(keys.operations))
        assert read_contents(encrypted, pgp.decrypt).problem == ""
        flipped = bytearray(b"".join(encrypted))
        flipped[len(flipped) // 2] ^= 1
        assert read_contents([bytes(flipped)], pgp.decrypt).problem != ""
    with OpenPgpHook() as pgp:
        pgp._gpg.import_keys(keys.private(keys.stranger))
        found = read_contents(encrypted, pgp.decrypt)
        assert "secret key" in found.problem.lower()
        assert found.size_bytes == sum(map(len, encrypted)), "all of it was read all the same"


RECORD = ArchiveRecord(
    key="a.tar.zst.gpg",
    size_bytes=10,
    sha256="a" * 64,
    sha256_before_encryption="b" * 64,
    members=3,
    member_bytes=7,
    inventory_key="a.inventory.zst",
    inventory_sha256="c" * 64,
    inventory_size_bytes=1,
)
SEEN = Contents(10, "a" * 64, "b" * 64, 3, 7)


def test_contents_as_the_manifest_says_pass() -> None:
    compare_contents("full-1", RECORD, SEEN)


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        pytest.param(replace(SEEN, size_bytes=9), "bytes 9, expected 10", id="size"),
        pytest.param(replace(SEEN, sha256="d" * 64), "the SHA-256 dd", id="digest"),
        pytest.param(
            replace(SEEN, sha256_before_encryption="d" * 64), "decrypted the SHA-256 dd", id="digest in clear"
        ),
        pytest.param(replace(SEEN, members=2), "files in it 2, expected 3", id="files"),
        pytest.param(replace(SEEN, member_bytes=8), "bytes in its files 8", id="bytes"),
        pytest.param(replace(SEEN, problem="broken"), "broken", id="problem"),
    ],
)
def test_contents_that_differ_are_damage(seen: Contents, expected: str) -> None:
    with pytest.raises(PermanentError, match=expected) as caught:
        compare_contents("full-1", RECORD, seen)
    assert caught.value.reference == "backup-damaged"
