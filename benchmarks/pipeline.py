"""What both benchmarks of a backup need: an S3 server, keys, the whole way to a signed manifest, and a look at its memory."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from lab.progress import Progress
from lab.services import S3_REGION
from lab.tools import ensure_tools
from lab.waiting import http_status, wait_until
from nephoran_maintenance.domain.members import Member

MIB = 2**20
BUCKET = "bench"
SAMPLE_SECONDS = 0.05
PASSPHRASE = "passphrase-of-the-benchmark"

Environment = dict[str, str]
Figures = dict[str, Any]


def back_up(
    name: str,
    members: Iterable[Member],
    *,
    facts: Callable[[], Mapping[str, Any]] = dict,
    read_back: bool = False,
) -> Figures:
    """Back one source up as the steps of a backup do, in this process.

    Returns ``seconds`` from nothing to the signed manifest, ``cpu_seconds`` in it of this process and its children, and
    ``stored_mib``; with ``read_back`` also ``read_back_seconds``, which come after.

    :param facts: what the manifest says of the source, asked for once its members were read.
    """
    from nephoran_maintenance.domain.backups import backup_id
    from nephoran_maintenance.domain.manifest import Cluster, Manifest, Recipient, Source
    from nephoran_maintenance.domain.openpgp_keys import PinnedKey
    from nephoran_maintenance.hooks.archive import ArchiveWriter, digest_key
    from nephoran_maintenance.hooks.backup_store import BackupStore
    from nephoran_maintenance.hooks.object_store import ObjectStoreHook
    from nephoran_maintenance.hooks.openpgp import OpenPgpHook

    pins = {
        pin: PinnedKey(pin, *json.loads(os.environ[f"BENCH_KEY_{pin.upper()}"])) for pin in ("operations", "signer")
    }
    store = ObjectStoreHook("object_store_bench", bucket=BUCKET)
    store.exists("warm")  # what is loaded and connected for the first call
    at, started, used_before = datetime.now(UTC), time.monotonic(), cpu_seconds()
    identifier = backup_id("full", at, secrets.token_hex(4))
    with OpenPgpHook() as pgp:
        (recipient,) = pgp.import_recipients([pins["operations"]], at)
        signing = pgp.import_signing_key("openpgp_signing", [recipient])
        backups = BackupStore(store, pgp, "backups", [pins["signer"]])
        key = digest_key(signing.passphrase, signing.fingerprint)
        writer = ArchiveWriter(store, pgp, [recipient], digest_key=key, changed_at=at)
        archive = writer.write(backups.folder(identifier), name, members)
        source = Source(
            name=name,
            required=True,
            state="captured",
            started_at=at,
            ended_at=datetime.now(UTC),
            facts=dict(facts()),
            archive=archive,
        )
        manifest = Manifest(
            backup_id=identifier,
            type="full",
            operation_id="bench",
            system="bench",
            cluster=Cluster(name="bench", uid="bench", kubernetes_version="none"),
            started_at=at,
            ended_at=datetime.now(UTC),
            sources=(source,),
            encryption="public-key",
            recipients=(
                Recipient(name="operations", fingerprint=recipient.fingerprint, key_ids=recipient.encryption_key_ids),
            ),
            digest_key_id="bench",
            tool_version="bench",
        )
        backups.write_manifest(manifest, signing)
        written, used = time.monotonic(), cpu_seconds() - used_before
        figures = {
            "seconds": round(written - started, 2),
            "cpu_seconds": round(used, 2),
            "stored_mib": round(archive.size_bytes / MIB, 1),
        }
        if read_back:
            backups.write_note(backups.read_back(identifier, datetime.now(UTC), "bench"), signing)
            figures["read_back_seconds"] = round(time.monotonic() - written, 2)
    return figures


def cpu_seconds() -> float:
    """Return the processor time of this process and of all its children that have ended."""
    return sum(os.times()[:4])


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
