"""What a process and its children have written into files on a disk, as strace has seen it.

Looking for a known text in what was written misses it once it is compressed. So every byte counts that goes into a file on a
disk, whatever it is; of ours there is no file that has to be.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

CALLS = "openat,open,creat,write,pwrite64,writev,pwritev,pwritev2,sendfile,copy_file_range,splice,mmap"  # no others fill files
PROBE = '"blat"'
"""The whole content of the file by which Python's tempfile finds out whether it may write to a folder."""

_FILE = r"\d+<(?P<name>[^>]+)>(?:\(deleted\))?"
_WRITTEN = re.compile(rf"p?writev?(?:64|2)?\({_FILE}, (?P<content>.*) = (?P<size>\d+)$")
_SENT = re.compile(rf"sendfile\({_FILE}, .* = (?P<size>\d+)$")
_COPIED = re.compile(rf"(?:copy_file_range|splice)\(\d+<[^>]+>(?:\(deleted\))?, [^,]+, {_FILE}, .* = (?P<size>\d+)$")
_MAPPED = re.compile(rf"mmap\([^,]+, (?P<size>\d+), [^,]*PROT_WRITE[^,]*, [^,]*MAP_SHARED[^,]*, {_FILE}, .* = 0x")
_OPENED = re.compile(rf"(?:openat|open|creat)\(.*(?:O_WRONLY|O_RDWR|creat\().* = {_FILE}$")
_CREATED = re.compile(rf"creat\(.* = {_FILE}$")


@dataclass
class WrittenFile:
    """:param contents: what was written, as strace shows it; cut where it is long."""

    size_bytes: int = 0
    contents: list[str] = field(default_factory=list)

    @property
    def is_probe(self) -> bool:
        return self.size_bytes == len(PROBE) - 2 and [text.partition(", ")[0] for text in self.contents] == [PROBE]


def traced(trace: Path, command: list[str]) -> list[str]:
    """Return a command as strace runs it with all its children; their calls go into files whose names begin alike."""
    return ["strace", "-ff", "-qq", "-y", "-s", "64", "-e", f"trace={CALLS}", "-o", str(trace), *command]


def lines_of(trace: Path) -> Iterable[str]:
    """Yield the lines of every process of a trace."""
    for path in sorted(trace.parent.glob(f"{trace.name}.*")):
        yield from path.read_text("utf-8", "replace").splitlines()


def written_files(lines: Iterable[str]) -> dict[str, WrittenFile]:
    """Return by name what was opened for writing, or written, on a disk; also what was taken away again."""
    found: dict[str, WrittenFile] = {}
    for line in lines:
        for pattern in (_WRITTEN, _SENT, _COPIED, _MAPPED, _OPENED, _CREATED):
            seen = pattern.match(line)
            if seen is None or not on_disk(seen["name"]):
                continue
            file = found.setdefault(seen["name"], WrittenFile())
            parts = seen.groupdict()
            file.size_bytes += int(parts.get("size") or 0)
            if "content" in parts:
                file.contents.append(seen["content"])
            break
    return found


def bytes_on_disk(files: dict[str, WrittenFile]) -> int:
    """Return how much was written that may hold something in clear: everything but Python's probe."""
    return sum(file.size_bytes for file in files.values() if not file.is_probe)


def on_disk(name: str) -> bool:
    """Return whether a file is on a disk: no pipe, no socket, no device, nothing in memory."""
    return name.startswith("/") and not name.startswith(("/dev/", "/proc/", "/sys/", "/memfd:"))
