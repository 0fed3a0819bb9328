"""What the benchmarks of a backup measure: a process of its own, which loads what a task loads and backs one source up.

    python -m benchmarks.task files FOLDER
    python -m benchmarks.task objects NAMESPACE... OWN_NAMESPACE

Its connections and the public keys are in the environment. The figures are in the last line.
"""

from __future__ import annotations

import json
import os
import secrets
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from airflow.sdk import BaseSensorOperator  # noqa: F401 (what a task has in memory)

from nephoran_maintenance.domain.members import Member

BUCKET = "bench"
MIB = 2**20
BLOCK_BYTES = 128 * 1024

Figures = dict[str, Any]


def main(kind: str, *arguments: str) -> None:
    """Back up and print the figures."""
    figures = back_up_files(Path(arguments[0])) if kind == "files" else back_up_objects(*arguments)
    print(f"RESULT {json.dumps(figures)}")


def back_up_files(folder: Path) -> Figures:
    """Back every file of a folder up, and read the backup back."""
    return back_up("data", members_of(folder), read_back=True)


def members_of(folder: Path, prefix: str = "") -> Iterator[Member]:
    """Yield every file of a folder as a member."""
    with os.scandir(folder) as found:
        entries = sorted(found, key=lambda entry: entry.name)
    for entry in entries:
        if entry.is_dir():
            yield from members_of(Path(entry.path), f"{prefix}{entry.name}/")
        else:
            yield Member(f"{prefix}{entry.name}", entry.stat().st_size, blocks_of(Path(entry.path)))


def blocks_of(path: Path) -> Iterator[bytes]:
    with path.open("rb", buffering=0) as file:
        while block := file.read(BLOCK_BYTES):
            yield block


def back_up_objects(*namespaces: str) -> Figures:
    """Back the cluster of the connection ``kubernetes_backup`` up; the last namespace is our own."""
    from nephoran_maintenance.engine.sources import KubernetesObjects
    from nephoran_maintenance.hooks.cluster import ClusterHook

    cluster = ClusterHook("kubernetes_backup")
    cluster.server_version()
    source = KubernetesObjects(cluster, namespaces=namespaces[:-1], own_namespace=namespaces[-1])
    content_bytes = 0

    def counted() -> Iterator[Member]:
        nonlocal content_bytes
        for member in source:
            content_bytes += member.size_bytes
            yield member

    figures = back_up(source.name, counted(), facts=lambda: source.outcome.facts)
    return {
        **figures,
        "objects": source.outcome.facts["objects"],
        "content_mib": round(content_bytes / MIB, 1),
        "state": source.outcome.state,
    }


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
        with ThreadPoolExecutor(1) as beside:
            stretched = beside.submit(digest_key, signing.passphrase, signing.fingerprint)
            backups = BackupStore(store, pgp, "backups", [pins["signer"]])
            key = stretched.result()
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


if __name__ == "__main__":
    main(*sys.argv[1:])
