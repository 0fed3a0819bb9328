"""The way back of a backup's content: object store → OpenPGP → zstd → tar, streaming; nothing in clear on a disk."""

from __future__ import annotations

import hashlib
import os
import tarfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import IO

from nephoran_maintenance.domain.manifest import Contents
from nephoran_maintenance.errors import PermanentError
from nephoran_maintenance.hooks.archive import CHECKSUMS_FOLDER
from nephoran_maintenance.hooks.object_store import BLOCK_BYTES

Decrypt = Callable[[Iterable[bytes], Callable[[bytes], object]], None]
"""Decrypts a stream into a sink, as :meth:`nephoran_maintenance.hooks.openpgp.OpenPgpHook.decrypt` does."""


def read_contents(blocks: Iterable[bytes], decrypt: Decrypt) -> Contents:
    """Read an encrypted archive to its end and return what it is; keeps nothing of it.

    What is damaged, or can't be opened, is no error here: the result says it, with gpg's words.
    """
    stored, plain = hashlib.sha256(), hashlib.sha256()
    size_bytes = 0
    failure = ""

    def counted() -> Iterator[bytes]:
        nonlocal size_bytes
        for block in blocks:
            stored.update(block)
            size_bytes += len(block)
            yield block

    source = counted()
    read_end, write_end = os.pipe()  # tarfile wants to read, gpg wants to write
    with ThreadPoolExecutor(1, thread_name_prefix="archive") as reader:
        members = reader.submit(_members, read_end)
        with open(write_end, "wb") as pipe:  # noqa: PTH123 (a pipe has no path)

            def take(block: bytes) -> None:
                plain.update(block)
                pipe.write(block)

            try:
                decrypt(source, take)
            except PermanentError as error:
                if error.reference != "openpgp-decryption-failed":
                    raise
                failure = error.message
    for _ in source:
        pass  # what gpg did not read counts too
    count, member_bytes, problem = members.result()
    return Contents(
        size_bytes=size_bytes,
        sha256=stored.hexdigest(),
        sha256_before_encryption=plain.hexdigest(),
        members=count,
        member_bytes=member_bytes,
        problem=failure or problem,
    )


def _members(read_end: int) -> tuple[int, int, str]:
    """Return how many files a tar.zst stream has, their bytes, and what is wrong with it."""
    import zstandard

    listed: list[str] = []
    count = member_bytes = 0
    problem = ""
    with open(read_end, "rb") as pipe:
        try:
            with (
                zstandard.ZstdDecompressor().stream_reader(pipe, closefd=False) as stream,
                tarfile.open(fileobj=stream, mode="r|") as archive,
            ):
                for info in archive:
                    file = archive.extractfile(info) if info.isreg() else None
                    if file is None:
                        problem = problem or f"{info.name} is no file"
                    elif info.name.startswith(f"{CHECKSUMS_FOLDER}/"):
                        if file.read() != "".join(listed).encode():
                            problem = problem or f"its files differ from the list {info.name}"
                        listed = []
                    else:
                        listed.append(f"{_digest(file)}  {info.name}\n")
                        count += 1
                        member_bytes += info.size
                while stream.read(BLOCK_BYTES):
                    pass
        except (zstandard.ZstdError, tarfile.TarError, OSError, EOFError, UnicodeError) as error:
            problem = problem or f"it can't be read to its end: {type(error).__name__}: {error}"
        while pipe.read(BLOCK_BYTES):
            pass  # or the writer would wait for ever
    if listed and not problem:
        problem = f"{len(listed)} of its files are on no list of checksums"
    return count, member_bytes, problem


def _digest(file: IO[bytes]) -> str:
    digest = hashlib.sha256()
    while block := file.read(BLOCK_BYTES):
        digest.update(block)
    return digest.hexdigest()
