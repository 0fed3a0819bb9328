"""The detector of the benchmark sees whatever goes to a disk, compressed or not."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.written_files import bytes_on_disk, lines_of, traced, written_files

CANARY = "canary-of-the-benchmark"
COMPRESSED = r'"(\265/\375\4X\271\0\0canary"...'

LINES = {
    "write": f"write(5</tmp/data.tar.zst>, {COMPRESSED}, 131072) = 131072",
    "of a deleted file": f"write(5</tmp/data.tar.zst>(deleted), {COMPRESSED}, 131072) = 131072",
    "pwrite64": f"pwrite64(5</tmp/data.tar.zst>, {COMPRESSED}, 131072, 4096) = 131072",
    "writev": f"writev(5</tmp/data.tar.zst>, [{{iov_base={COMPRESSED}, iov_len=131072}}], 1) = 131072",
    "pwritev2": f"pwritev2(5</tmp/data.tar.zst>, [{{iov_base={COMPRESSED}, iov_len=131072}}], 1, 0, 0) = 131072",
    "sendfile": "sendfile(5</tmp/data.tar.zst>, 4<pipe:[1]>, NULL, 131072) = 131072",
    "copy_file_range": "copy_file_range(4</tmp/a>, NULL, 5</tmp/data.tar.zst>, NULL, 131072, 0) = 131072",
    "splice": "splice(4<pipe:[1]>, NULL, 5</tmp/data.tar.zst>, NULL, 131072, 0) = 131072",
    "mmap": "mmap(NULL, 131072, PROT_READ|PROT_WRITE, MAP_SHARED, 5</tmp/data.tar.zst>, 0) = 0x7f3c1c000000",
}


@pytest.mark.parametrize("line", LINES.values(), ids=LINES.keys())
def test_every_call_that_fills_a_file_counts(line: str) -> None:
    files = written_files([line])
    assert (list(files), bytes_on_disk(files)) == (["/tmp/data.tar.zst"], 131072)


@pytest.mark.parametrize(
    "line",
    [
        'write(1<pipe:[7]>, "x", 1) = 1',
        'write(9<TCP:[127.0.0.1:1->127.0.0.1:2]>, "x", 1) = 1',
        'write(5</dev/shm/gpg-1/pubring.kbx>, "x", 1) = 1',
        'write(5</memfd:ring>(deleted), "x", 1) = 1',
        'write(5</tmp/full>, "x", 1) = -1 ENOSPC (No space left on device)',
        "mmap(NULL, 8, PROT_READ, MAP_SHARED, 5</usr/lib/x.so>, 0) = 0x7f",
        "mmap(NULL, 8, PROT_READ|PROT_WRITE, MAP_PRIVATE, 5</usr/lib/x.so>, 0) = 0x7f",
        'openat(AT_FDCWD</srv>, "x", O_RDONLY|O_CLOEXEC) = 5</srv/x>',
    ],
)
def test_what_goes_elsewhere_does_not_count(line: str) -> None:
    assert written_files([line]) == {}


def test_the_probe_of_tempfile_is_known_and_nothing_that_looks_like_it() -> None:
    opened = 'openat(AT_FDCWD</srv>, "/tmp/01rxdhup", O_RDWR|O_CREAT|O_EXCL, 0600) = 3</tmp/01rxdhup>'
    probe = 'write(3</tmp/01rxdhup>, "blat", 4) = 4'
    files = written_files([opened, probe])
    assert (list(files), bytes_on_disk(files)) == (["/tmp/01rxdhup"], 0)
    assert bytes_on_disk(written_files([opened, probe, probe])) == 8
    assert bytes_on_disk(written_files([opened, probe.replace("blat", "text")])) == 4


SPILLS = """
import sys, tempfile, zstandard
packed = zstandard.compress(sys.argv[1].encode() * 10000)
assert sys.argv[1].encode() * 2 not in packed
if sys.argv[2] == "spills":
    with tempfile.TemporaryFile(dir=sys.argv[3]) as file:
        file.write(packed)
sys.stdout.buffer.write(packed)
"""


@pytest.mark.skipif(shutil.which("strace") is None, reason="the benchmark asks for strace too")
@pytest.mark.parametrize("how", ["spills", "streams"])
def test_a_compressed_stream_that_is_spilled_to_a_file_makes_it_red(tmp_path: Path, how: str) -> None:
    trace = tmp_path / "trace"
    command = [sys.executable, "-B", "-c", SPILLS, CANARY, how, str(tmp_path)]
    done = subprocess.run(traced(trace, command), check=True, capture_output=True)
    files = written_files(lines_of(trace))
    assert bytes_on_disk(files) == (len(done.stdout) if how == "spills" else 0)
