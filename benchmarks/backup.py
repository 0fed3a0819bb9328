"""Benchmark of the way of a backup's content: 880 MiB archived, encrypted and uploaded by ours and by three others.

The same data (float vectors, JSON text, 20,000 small files) goes to the same S3 server on loopback, one after the other and
round by round: the old runbook's ``tar -czf`` and ``gpg --symmetric``, restic, a shell stream to a public key, and ours. Each
round is published whole, and the figures are those of the medians. Ours is timed in a process that has loaded what a
task loads, from the first byte read to the signed manifest; the read-back follows and is reported beside it.

    BENCH_ROUNDS=3 BENCH_SCALE=1 python -m benchmarks.backup

``BENCH_SCALE=0.1`` takes a tenth of the data. A further run of ours under strace tells which files were opened for
writing, and how much went into them: as nothing of ours has to be in a file on a disk, every byte counts as one in clear.
"""

from __future__ import annotations

import json
import os
import random
import secrets
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.pipeline import (
    BUCKET,
    PASSPHRASE,
    PROJECT,
    Environment,
    Figures,
    keys,
    s3_server,
    sampled,
    task,
)
from benchmarks.results_file import publish
from benchmarks.written_files import bytes_on_disk, lines_of, traced, written_files
from lab.failure import LabError
from lab.packages import ensure_packages
from lab.progress import Progress

FOLDER = PROJECT / ".lab" / "bench-backup"
ROUNDS = int(os.environ.get("BENCH_ROUNDS", "3"))
SCALE = float(os.environ.get("BENCH_SCALE", "1"))
MIB = 2**20
PROGRAMS = {name: (name,) for name in ("restic", "strace", "zstd")}
CANARY = b"canary-of-the-benchmark"


def main() -> None:
    """Run the benchmark and publish the figures; nothing of it stays."""
    progress = Progress()
    ensure_packages(progress, PROJECT / ".lab" / "logs" / "apt.log", PROGRAMS)
    shutil.rmtree(FOLDER, ignore_errors=True)
    data = FOLDER / "data"
    try:
        size_mib = round(make_data(data) / MIB, 1)
        progress(f"{size_mib} MiB of data in {sum(1 for path in data.rglob('*') if path.is_file())} files")
        with s3_server(FOLDER) as server, keys() as (home, own):
            environment = {**os.environ, **server, **own, "GNUPGHOME": str(home), "PYTHONPATH": f"plugins:{PROJECT}"}
            rounds: dict[str, list[Figures]] = {name: [] for name in WAYS}
            for number in range(ROUNDS):
                for name, way in WAYS.items():
                    rounds[name].append(way(data, environment))
                    progress(f"round {number + 1}, {name}: {rounds[name][-1]}")
            traced = traced_writes(data, environment)
            progress(f"written files: {traced}")
    finally:
        shutil.rmtree(FOLDER, ignore_errors=True)
    seconds = {name: statistics.median(run["seconds"] for run in found) for name, found in rounds.items()}
    ours = rounds["ours"]
    publish(
        "backup",
        {
            "speedup_ratio": round(seconds["runbook"] / seconds["ours"], 2),
            "ratio_to_restic": round(seconds["restic"] / seconds["ours"], 2),
            "ratio_to_shell_stream": round(seconds["shell stream"] / seconds["ours"], 2),
            "peak_memory_mib": max(run["peak_memory_mib"] for run in ours),
            **traced,
            "read_back_seconds": statistics.median(run["read_back_seconds"] for run in ours),
            "mib_per_second": {name: round(size_mib / value, 1) for name, value in seconds.items()},
            "size_mib": size_mib,
            "rounds": rounds,
            "load_average": round(os.getloadavg()[1], 1),
        },
    )


# ------------------------------------------------------------------------------------------------------------- the data


def make_data(folder: Path) -> int:
    """Write the data set and return its size in bytes: like Weaviate's files, exported text, and many small objects."""
    numbers = random.Random(5)
    (folder / "vectors").mkdir(parents=True)
    exponents = bytes((0x3C, 0x3D, 0x3E, 0xBC, 0xBD, 0xBE)[number % 6] for number in range(256))
    for number in range(int(100 * SCALE)):
        vectors = bytearray(numbers.randbytes(4 * MIB))
        vectors[3::4] = vectors[3::4].translate(exponents)
        (folder / "vectors" / f"segment-{number:03}.db").write_bytes(CANARY + vectors)
    words = [numbers.randbytes(3).hex()[: numbers.randint(2, 6)] for _ in range(20_000)]
    sentences = [" ".join(numbers.choices(words, k=24)) for _ in range(40_000)]
    (folder / "text").mkdir()
    for number in range(int(100 * SCALE)):
        lines, size = [CANARY.decode()], 0
        while size < 4 * MIB:
            text = ". ".join(numbers.choices(sentences, k=8))
            lines.append(json.dumps({"id": numbers.getrandbits(64), "text": text, "score": numbers.random()}))
            size += len(lines[-1])
        (folder / "text" / f"objects-{number:03}.json").write_text("\n".join(lines), encoding="ascii")
    for number in range(int(20_000 * SCALE)):
        place = folder / "small" / f"{number // 1000:02}"
        place.mkdir(parents=True, exist_ok=True)
        text = " ".join(numbers.choices(sentences, k=numbers.randint(10, 40)))
        (place / f"object-{number:05}.json").write_text(CANARY.decode() + text, encoding="ascii")
    os.sync()
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


# ------------------------------------------------------------------------------------------------------------ the ways


def timed(command: str, environment: Environment) -> Figures:
    """Run a shell command and return how long it took and how much memory it had at most."""
    started = time.monotonic()
    process = subprocess.Popen(["/bin/bash", "-euo", "pipefail", "-c", command], env=environment, cwd=PROJECT)
    peak = sampled(process)
    if process.returncode:
        raise LabError(f"The command ended with {process.returncode}: {command[:80]}…")
    return {"seconds": round(time.monotonic() - started, 2), "peak_memory_mib": round(peak, 1)}


UPLOAD = """
import boto3, os, sys
from boto3.s3.transfer import TransferConfig
client = boto3.client("s3", endpoint_url=os.environ["S3_URL"], region_name=os.environ["AWS_DEFAULT_REGION"])
client.upload_fileobj(sys.stdin.buffer, "bench", sys.argv[1], Config=TransferConfig(multipart_chunksize=16 * 2**20))
"""


def runbook(data: Path, environment: Environment) -> Figures:
    """The old runbook: an archive, an encrypted copy of it, and that uploaded; its passphrase by file here."""
    archive = FOLDER / "runbook.tar.gz"
    (FOLDER / "passphrase").write_text(PASSPHRASE, encoding="ascii")
    command = (
        f"tar -czf {archive} -C {data} . && "
        "gpg --batch --pinentry-mode loopback --symmetric --cipher-algo AES256 --compress-algo 1 --s2k-mode 3 "
        f"--s2k-digest-algo SHA512 --s2k-count 65536 --passphrase-file {FOLDER}/passphrase --output {archive}.gpg "
        f"{archive} && {sys.executable} -c '{UPLOAD}' runbook < {archive}.gpg"
    )
    figures = timed(command, environment)
    for path in (archive, Path(f"{archive}.gpg")):
        path.unlink()
    return figures


def restic(data: Path, environment: Environment) -> Figures:
    """restic into a repository of its own that is made before."""
    repository = f"s3:{environment['S3_URL']}/{BUCKET}/restic-{secrets.token_hex(4)}"
    own = {**environment, "RESTIC_PASSWORD": PASSPHRASE, "RESTIC_REPOSITORY": repository}
    own["RESTIC_CACHE_DIR"] = str(FOLDER / "restic-cache")
    subprocess.run(["restic", "init", "--quiet"], env=own, check=True)
    figures = timed(f"restic backup --quiet {data}", own)
    shutil.rmtree(FOLDER / "restic-cache")
    return figures


def shell_stream(data: Path, environment: Environment) -> Figures:
    """What a shell can do best: everything in one stream, to a public key."""
    command = (
        f"tar -cf - -C {data} . | zstd -3 -T2 --quiet | gpg --batch --trust-model always --compress-algo none -z 0 "
        f"--cipher-algo AES256 --encrypt --recipient operations | {sys.executable} -c '{UPLOAD}' shell-stream"
    )
    return timed(command, environment)


def ours(data: Path, environment: Environment) -> Figures:
    """Ours, in a process that has loaded what a task loads."""
    return task(["files", str(data)], environment)


WAYS: dict[str, Callable[[Path, Environment], Figures]] = {
    "runbook": runbook,
    "restic": restic,
    "shell stream": shell_stream,
    "ours": ours,
}


def traced_writes(data: Path, environment: Environment) -> Figures:
    """Run ours once more under strace, with all of the data, and return what went into files on a disk.

    Returns ``plaintext_bytes_on_disk``: all bytes that were written into files outside of memory-backed folders, whatever they
    are, also those that were taken away again; none of ours has to be there. gpg's home is in memory and not counted. And
    ``files_written_on_disk``: how many files were opened for writing.
    """
    trace = FOLDER / "trace"
    subprocess.run(
        traced(trace, [sys.executable, "-m", "benchmarks.task", "files", str(data)]),
        env={**environment, "PYTHONDONTWRITEBYTECODE": "1"},
        cwd=PROJECT,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    files = written_files(lines_of(trace))
    return {
        "plaintext_bytes_on_disk": bytes_on_disk(files),
        "files_written_on_disk": len(files),
        "names_written": sorted(files)[:20],
    }


if __name__ == "__main__":
    main()
