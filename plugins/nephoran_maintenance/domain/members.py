"""What a source hands to the pipeline: named members of an archive, one after the other, never a whole one in memory."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Member:
    """One file of an archive.

    :param path: its name in the archive, relative, with forward slashes.
    :param size_bytes: how many bytes ``chunks`` gives in total; a tar header needs it before the first of them.
    :param chunks: the content, read once.
    """

    path: str
    size_bytes: int
    chunks: Iterable[bytes]
