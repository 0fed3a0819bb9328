"""The way of a backup's content: members → tar → zstd → OpenPGP → object store, streaming; nothing in clear on a disk."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import hashlib
import hmac
import json
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import lru_cache
from typing import Any

import msgspec

from nephoran_maintenance.domain.manifest import ArchiveRecord
from nephoran_maintenance.domain.members import Member
from nephoran_maintenance.errors import PermanentError
from nephoran_maintenance.hooks.object_store import BLOCK_BYTES, ObjectStoreHook
from nephoran_maintenance.hooks.openpgp import OpenPgpHook, Passphrase

LEVEL = 2
"""Level 3 makes vectors and text smaller by 1 %, and takes half as much time again."""
THREADS = 2
JOB_BYTES = 1024 * 1024
"""What one thread of zstd works on; its default for this level would take four times the memory."""
LARGE_BLOCK_BYTES = 256 * 1024
_M_MMAP_THRESHOLD = -3
CHECKSUMS_FOLDER = ".checksums"
MEMBERS_OF_A_LIST = 2_000
LARGEST_IN_HEADER_BYTES = 8**11


class ArchiveWriter:
    """Write one source's members as one encrypted object, and beside it the inventory of what is in it.

    The archive holds ``.checksums/00001.sha256`` and so on: lists that ``sha256sum --check`` reads. The inventory
    holds the same members in clear, for the next incremental backup and for a look without keys. The digests in it are
    keyed, for the digest of a short password would give the password away.

    :param digest_key: the same in every backup of a chain, and known to nobody who can read the store.
    """

    def __init__(
        self,
        store: ObjectStoreHook,
        pgp: OpenPgpHook,
        to: Iterable[Any] | Passphrase,
        *,
        digest_key: bytes,
        changed_at: datetime,
    ) -> None:
        self._store, self._pgp = store, pgp
        self._to = to if isinstance(to, Passphrase) else tuple(to)
        self._digest_key = digest_key
        self._changed_at = changed_at

    def write(self, folder: str, name: str, members: Iterable[Member]) -> ArchiveRecord:
        """Store ``<folder>/<name>.tar.zst.gpg`` and ``<folder>/<name>.inventory.zst``, and return what they are.

        Nothing of either stays in the store when a member, gpg or the store fails. Safe to repeat: yes, both keys are
        written again as a whole.

        :raises PermanentError: ``member-invalid`` for a path that leads elsewhere or comes twice, or for content that is
            not as long as was said.
        """
        give_blocks_back()
        inventory = Inventory(self._digest_key)
        before = hashlib.sha256()

        def compressed() -> Iterator[bytes]:
            for block in compress(tar(members, inventory, self._changed_at)):
                before.update(block)
                yield block

        with collecting_only_new(), self._store.uploading(f"{folder}/{name}.tar.zst.gpg") as archive:
            self._pgp.encrypt(compressed(), archive.write, self._to)
        with self._store.uploading(f"{folder}/{name}.inventory.zst") as listing:
            listing.write(inventory.finish())
        if archive.stored is None or listing.stored is None:
            raise PermanentError("member-invalid", f"{name} was not stored", hint="Report this as a defect.")
        return ArchiveRecord(
            key=archive.stored.key.rpartition("/")[2],
            size_bytes=archive.stored.size_bytes,
            sha256=archive.stored.sha256,
            version_id=archive.stored.version_id,
            sha256_before_encryption=before.hexdigest(),
            members=inventory.members,
            member_bytes=inventory.member_bytes,
            inventory_key=listing.stored.key.rpartition("/")[2],
            inventory_sha256=listing.stored.sha256,
            inventory_size_bytes=listing.stored.size_bytes,
            inventory_version_id=listing.stored.version_id,
        )


class Inventory:
    """The members of an archive, one JSON line for each, compressed while they come."""

    def __init__(self, digest_key: bytes) -> None:
        import zstandard

        self._digest_key = digest_key
        self._compressor = zstandard.ZstdCompressor(level=LEVEL).compressobj()
        self._pieces: list[bytes] = []
        self.members = 0
        self.member_bytes = 0

    def add(self, path: str, size_bytes: int, sha256: bytes) -> None:
        line = {"path": path, "size_bytes": size_bytes, "digest": keyed_digest(self._digest_key, sha256)}
        self.members += 1
        self.member_bytes += size_bytes
        if piece := self._compressor.compress(msgspec.json.encode(line) + b"\n"):
            self._pieces.append(piece)

    def finish(self) -> bytes:
        return b"".join(self._pieces) + bytes(self._compressor.flush())


def give_blocks_back() -> None:
    """Have glibc return large blocks to the system as soon as they are free.

    It keeps more and more of them for later otherwise, for each thread: a process of 190 MiB then takes up to 340. Where
    the C library is another one, nothing is changed.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, LARGE_BLOCK_BYTES)


@contextmanager
def collecting_only_new() -> Iterator[None]:
    """Have Python's collector look only at what is made inside the block.

    What a task has loaded before stays anyway, and is large: each look at all of it takes 0.1 s, and copies the pages that
    the task's process shares with the one that it was forked from.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def keyed_digest(key: bytes, sha256: bytes) -> str:
    """Return the digest of a content as it may stand in clear."""
    return hmac.new(key, sha256, hashlib.sha256).hexdigest()


def digest_key(passphrase: str, fingerprint: str) -> bytes:
    """Return the key of all digests that stand in clear, from the passphrase of the signing key.

    Another passphrase gives other digests: everything counts as changed once. Stretched by scrypt (16 MiB, some 50 ms),
    so that known content does not help to guess the passphrase.
    """
    return hashlib.scrypt(passphrase.encode(), salt=fingerprint.encode(), n=2**14, r=8, p=1, dklen=32)


def read_inventory(blocks: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """Yield ``{"path", "size_bytes", "digest"}`` of each member of an inventory."""
    import zstandard

    decompressor = zstandard.ZstdDecompressor().decompressobj()
    rest = b""
    for block in blocks:
        *lines, rest = (rest + decompressor.decompress(block)).split(b"\n")
        for line in lines:
            yield json.loads(line)


def compress(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield a zstd stream, with a checksum of its own, of some blocks."""
    import zstandard

    parameters = zstandard.ZstdCompressionParameters.from_level(
        LEVEL, threads=THREADS, job_size=JOB_BYTES, write_checksum=True
    )
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    for block in blocks:
        if piece := compressor.compress(block):
            yield piece
    yield compressor.flush()


def tar(members: Iterable[Member], inventory: Inventory, changed_at: datetime) -> Iterator[bytes]:
    """Yield a tar stream of some members in blocks of some 128 KiB, their checksums at its end; fill the inventory."""
    return _gathered(_tar_pieces(members, inventory, int(changed_at.timestamp())))


def _tar_pieces(members: Iterable[Member], inventory: Inventory, changed_at: int) -> Iterator[bytes]:
    seen: set[str] = set()
    lines: list[str] = []
    lists = 0
    for member in members:
        path = _path(member.path)
        if path in seen:
            raise _invalid(path, "comes twice")
        seen.add(path)
        yield _header(path, member.size_bytes, changed_at)
        digest, size_bytes = hashlib.sha256(), 0
        for chunk in member.chunks:
            digest.update(chunk)
            size_bytes += len(chunk)
            if size_bytes > member.size_bytes:
                break
            yield chunk
        if size_bytes != member.size_bytes:
            raise _invalid(path, f"gave {size_bytes} bytes or more, expected {member.size_bytes}")
        yield _padding(size_bytes)
        inventory.add(path, size_bytes, digest.digest())
        lines.append(f"{digest.hexdigest()}  {path}\n")
        if len(lines) == MEMBERS_OF_A_LIST:
            lists += 1
            yield from _list(lists, lines, changed_at)
            lines = []
    yield from _list(lists + 1, lines, changed_at)
    yield bytes(2 * tarfile.BLOCKSIZE)


def _list(number: int, lines: list[str], changed_at: int) -> Iterator[bytes]:
    text = "".join(lines).encode()
    yield _header(f"{CHECKSUMS_FOLDER}/{number:05}.sha256", len(text), changed_at)
    yield text
    yield _padding(len(text))


def _gathered(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the same bytes in fewer blocks: 66,000 small objects would cost as many calls otherwise."""
    waiting: list[bytes] = []
    size = 0
    for piece in pieces:
        waiting.append(piece)
        size += len(piece)
        if size >= BLOCK_BYTES:
            yield b"".join(waiting)
            waiting, size = [], 0
    if waiting:
        yield b"".join(waiting)


def _header(path: str, size_bytes: int, changed_at: int) -> bytes:
    if path.isascii() and len(path) <= tarfile.LENGTH_NAME and size_bytes < LARGEST_IN_HEADER_BYTES:
        # As tarfile writes it, in an eighth of the time, which counts with 66,000 small objects.
        name, size = path.encode(), b"%011o" % size_bytes
        head, checksum = _plain_header(changed_at)
        checksum += sum(name) + sum(size)
        return b"".join((name, head[len(name) : 124], size, head[135:148], b"%06o\0" % checksum, head[155:]))
    info = tarfile.TarInfo(path)
    info.size, info.mtime, info.mode = size_bytes, changed_at, 0o600
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


@lru_cache(maxsize=1)
def _plain_header(changed_at: int) -> tuple[bytes, int]:
    """Return the header without name and size, and its checksum without theirs."""
    info = tarfile.TarInfo()
    info.mtime, info.mode = changed_at, 0o600
    head = info.tobuf(tarfile.USTAR_FORMAT)
    return head, int(head[148:154], 8) - sum(head[124:135])


def _padding(size_bytes: int) -> bytes:
    return bytes(-size_bytes % tarfile.BLOCKSIZE)


def _path(path: str) -> str:
    parts = path.split("/")
    if any(part in ("", ".", "..") for part in parts) or not path.isprintable() or parts[0] == CHECKSUMS_FOLDER:
        raise _invalid(path, "is no relative path of an archive")
    if "\\" in path:
        # sha256sum writes such names in another way.
        raise _invalid(path, "holds a backslash")
    return path


def _invalid(path: str, problem: str) -> PermanentError:
    return PermanentError(
        "member-invalid",
        f"the member {path!r} {problem}",
        context={"member": path},
        hint="Report this as a defect of the source; nothing of the archive was kept.",
    )
