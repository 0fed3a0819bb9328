"""What stands around the measured task in both benchmarks of a backup: an S3 server, keys, and a look at its memory."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from lab.failure import LabError
from lab.progress import Progress
from lab.services import S3_REGION
from lab.tools import ensure_tools
from lab.waiting import http_status, wait_until

PROJECT = Path(__file__).resolve().parents[1]
BUCKET = "bench"
SAMPLE_SECONDS = 0.05
PASSPHRASE = "passphrase-of-the-benchmark"

Environment = dict[str, str]
Figures = dict[str, Any]


def task(arguments: Sequence[str], environment: Environment) -> Figures:
    """Run :mod:`benchmarks.task` and return its figures, with ``peak_memory_mib`` of it and of all below it.

    :raises LabError: when it fails.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.task", *arguments],
        env=environment,
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        text=True,
    )
    peaks: list[float] = []
    sampler = threading.Thread(target=lambda: peaks.append(sampled(process)))
    sampler.start()
    assert process.stdout
    lines = process.stdout.read().splitlines()
    sampler.join()
    if process.returncode:
        raise LabError(f"benchmarks.task {' '.join(arguments)} ended with {process.returncode}; see above.")
    found = next(line.removeprefix("RESULT ") for line in lines if line.startswith("RESULT "))
    return {**json.loads(found), "peak_memory_mib": round(peaks[0], 1)}


def sampled(process: subprocess.Popen[Any]) -> float:
    """Return the most memory that a process and all below it had, once it has ended."""
    peak = 0.0
    while process.poll() is None:
        peak = max(peak, tree_pss_mib(process.pid))
        try:
            process.wait(SAMPLE_SECONDS)
        except subprocess.TimeoutExpired:
            continue
    return peak


def tree_pss_mib(pid: int) -> float:
    """Return the memory of a process and of all below it, shared pages divided by those who share them.

    A child that still is what its parent is, between vfork and exec, has its parent's memory and none of its own.
    """
    total, waiting = 0.0, [(pid, b"")]
    while waiting:
        one, parent = waiting.pop()
        with contextlib.suppress(OSError):
            command = Path(f"/proc/{one}/cmdline").read_bytes()
            if command == parent:
                continue
            for line in Path(f"/proc/{one}/smaps_rollup").read_text(encoding="ascii").splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) / 1024
            for task in Path(f"/proc/{one}/task").iterdir():
                children = (task / "children").read_text(encoding="ascii").split()
                waiting += [(int(found), command) for found in children]
    return total


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [int(one.getsockname()[1]) for one in sockets]


@contextmanager
def s3_server(folder: Path) -> Iterator[Environment]:
    """Run versitygw on loopback with one bucket, its files in a folder; yield the environment that leads to it."""
    import boto3

    tools = ensure_tools(Progress(), ["versitygw"])
    (port,) = free_ports(1)
    access, secret = "bench", secrets.token_hex(16)
    for name in ("s3", "s3-accounts"):
        (folder / name).mkdir(parents=True)
    process = subprocess.Popen(
        [
            tools["versitygw"],
            f"--port=127.0.0.1:{port}",
            f"--region={S3_REGION}",
            f"--iam-dir={folder}/s3-accounts",
            "--health=/_health",
            "--quiet",
            "posix",
            f"{folder}/s3",
        ],
        env={**os.environ, "ROOT_ACCESS_KEY_ID": access, "ROOT_SECRET_ACCESS_KEY": secret},
    )
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until("the S3 server", lambda: http_status(f"{url}/_health") == 200, limit=timedelta(seconds=30))
        client = boto3.client(
            "s3", endpoint_url=url, region_name=S3_REGION, aws_access_key_id=access, aws_secret_access_key=secret
        )
        client.create_bucket(Bucket=BUCKET)
        extra = {"endpoint_url": url, "region_name": S3_REGION, "config_kwargs": {"s3": {"addressing_style": "path"}}}
        connection = {"conn_type": "aws", "login": access, "password": secret, "extra": extra}
        yield {
            "S3_URL": url,
            "AWS_ACCESS_KEY_ID": access,
            "AWS_SECRET_ACCESS_KEY": secret,
            "AWS_DEFAULT_REGION": S3_REGION,
            "AIRFLOW_CONN_OBJECT_STORE_BENCH": json.dumps(connection),
        }
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)


@contextmanager
def keys() -> Iterator[tuple[Path, Environment]]:
    """Make a recipient and a signer; yield their home and the environment that ours reads them from."""
    home = Path(tempfile.mkdtemp(prefix="bench-keys-", dir="/dev/shm"))
    gpg = ["gpg", "--homedir", str(home), "--batch", "--quiet", "--pinentry-mode", "loopback"]

    def run(*arguments: str) -> str:
        return subprocess.run([*gpg, *arguments], check=True, capture_output=True, text=True).stdout

    def fingerprint(name: str) -> str:
        listing = run("--with-colons", "--list-keys", f"={name}")
        return next(line.split(":")[9] for line in listing.splitlines() if line.startswith("fpr:"))

    def described(name: str) -> str:
        return json.dumps([fingerprint(name), run("--armor", "--export", fingerprint(name))])

    try:
        run("--passphrase", "", "--quick-generate-key", "operations", "ed25519", "sign", "never")
        run("--passphrase", "", "--quick-add-key", fingerprint("operations"), "cv25519", "encr", "never")
        run("--passphrase", PASSPHRASE, "--quick-generate-key", "signer", "ed25519", "sign", "never")
        private = run("--passphrase", PASSPHRASE, "--armor", "--export-secret-keys", fingerprint("signer"))
        connection: Mapping[str, Any] = {
            "conn_type": "generic",
            "password": PASSPHRASE,
            "extra": {"private_key": private},
        }
        yield (
            home,
            {
                "BENCH_KEY_OPERATIONS": described("operations"),
                "BENCH_KEY_SIGNER": described("signer"),
                "AIRFLOW_CONN_OPENPGP_SIGNING": json.dumps(connection),
            },
        )
    finally:
        subprocess.run(["gpgconf", "--homedir", str(home), "--kill", "gpg-agent"], check=False)
        shutil.rmtree(home, ignore_errors=True)
