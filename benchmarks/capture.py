"""Benchmark of capturing: 1,000, 10,000 and 66,000 objects of 4 KiB mean, read from a real API server into an archive.

A real etcd and kube-apiserver run alone on loopback, without controllers and without a node. The objects are ConfigMaps,
Secrets and custom resources; the account is that of deploy/rbac. Each size is captured by a process of its own, which
loads what a task loads, and whose memory (PSS of it and its children) is sampled from outside. Timed is the whole way:
lists, tar, zstd, OpenPGP to a public key, an S3 server on loopback, up to the signed manifest.

    BENCH_SIZES=1000,10000,66000 python -m benchmarks.capture
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import random
import secrets
import shutil
import ssl
import subprocess
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from http.client import HTTPSConnection
from pathlib import Path
from typing import Any

import yaml
from cryptography.hazmat.primitives import serialization

from benchmarks.pipeline import (
    PROJECT,
    Environment,
    Figures,
    free_ports,
    keys,
    s3_server,
    task,
)
from benchmarks.results_file import publish
from lab.failure import LabError
from lab.pki import Authority, KeyPair, write
from lab.progress import Progress
from lab.tools import ensure_tools
from lab.waiting import wait_until

FOLDER = PROJECT / ".lab" / "bench-capture"
SIZES = tuple(int(size) for size in os.environ.get("BENCH_SIZES", "1000,10000,66000").split(","))
MEAN_BYTES = 4096
SYSTEM, MONITORING, OWN = "nephoran-system", "nephoran-monitoring", "nephoran-maintenance"
WRITERS = 4
ADMINISTRATOR = "administrator-of-the-benchmark"

JsonObject = dict[str, Any]


def main() -> None:
    """Run the benchmark and publish the figures; nothing of it stays."""
    progress = Progress()
    with api_server(progress) as api, s3_server(FOLDER) as server, keys() as (_, own):
        api.apply_access()
        environment = {**os.environ, "PYTHONPATH": f"plugins:{PROJECT}", **server, **own}
        environment["AIRFLOW_CONN_KUBERNETES_BACKUP"] = api.connection_of("backup")
        results = []
        there = 0
        for size in SIZES:
            api.fill(there, size)
            there = size
            progress(f"{size} objects are there")
            results.append(captured(environment, size))
            progress(f"captured: {results[-1]}")
    largest, middle = results[-1], results[-2:][0]
    publish(
        "capture",
        {
            "objects_per_second": largest["objects_per_second"],
            "peak_memory_mib": max(result["peak_memory_mib"] for result in results),
            # 1: the time per object does not grow; the process itself is in all of them.
            "growth_ratio": round(
                (largest["seconds"] / largest["objects"]) / (middle["seconds"] / middle["objects"]), 2
            ),
            "memory_growth_mib": round(largest["peak_memory_mib"] - results[0]["peak_memory_mib"], 1),
            "sizes": results,
        },
    )


def captured(environment: Environment, size: int) -> Figures:
    """Back everything up in a process of its own and return its figures."""
    figures = task(["objects", SYSTEM, MONITORING, OWN], environment)
    assert figures["state"] == "captured"
    assert figures["objects"] >= size
    return {**figures, "objects_per_second": round(figures["objects"] / figures["seconds"])}


# ---------------------------------------------------------------------------------------------------- what is captured


def object_of(number: int) -> tuple[str, JsonObject]:
    """Return the path of the collection and the object of a number: text and random bytes, 4 KiB in the mean."""
    numbers = random.Random(number)
    size = numbers.randint(1024, 2 * MEAN_BYTES - 1024) - 150
    words = [
        f"{numbers.choice(('amf', 'smf', 'upf', 'slice', 'cell'))}-{numbers.getrandbits(40):x}"
        for _ in range(size // 32)
    ]
    text = " ".join(words)
    noise = base64.b64encode(numbers.randbytes((size - len(text)) * 3 // 4)).decode() if size > len(text) else ""
    metadata = {
        "name": f"captured-{number:06d}",
        "namespace": SYSTEM,
        "labels": {"app.kubernetes.io/name": f"captured-{number % 50}", "app.kubernetes.io/part-of": "nephoran"},
    }
    core = f"/api/v1/namespaces/{SYSTEM}"
    if number % 10 == 9:
        path = f"/apis/intent.nephoran.com/v1alpha1/namespaces/{SYSTEM}/networkintents"
        kind, version = "NetworkIntent", "intent.nephoran.com/v1alpha1"
        return path, {
            "apiVersion": version,
            "kind": kind,
            "metadata": metadata,
            "spec": {"intent": text, "noise": noise},
        }
    if number % 10 >= 6:
        encoded = base64.b64encode(text.encode()).decode()[: len(text) // 4 * 4]
        return f"{core}/secrets", {"metadata": metadata, "type": "Opaque", "data": {"text": encoded, "noise": noise}}
    return f"{core}/configmaps", {"metadata": metadata, "data": {"text": text, "noise": noise}}


DEFINITION = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "networkintents.intent.nephoran.com"},
    "spec": {
        "group": "intent.nephoran.com",
        "scope": "Namespaced",
        "names": {"kind": "NetworkIntent", "plural": "networkintents", "singular": "networkintent"},
        "versions": [
            {
                "name": "v1alpha1",
                "served": True,
                "storage": True,
                "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}},
            }
        ],
    },
}


# ------------------------------------------------------------------------------------------------------- the API server


class Api:
    """The administrator's way to the API server."""

    def __init__(self, port: int, authority: Path, token: str) -> None:
        self.port = port
        self.authority = authority
        self._token = token
        self._local = threading.local()

    def send(self, method: str, path: str, body: object = None) -> JsonObject:
        """Send one request over this thread's connection.

        :raises LabError: for any answer but a success; what exists already is one.
        """
        connection = getattr(self._local, "connection", None)
        if connection is None:
            tls = ssl.create_default_context(cafile=str(self.authority))
            connection = self._local.connection = HTTPSConnection("127.0.0.1", self.port, timeout=60, context=tls)
        headers = {"Authorization": f"Bearer {self._token}", "Content-Type": "application/json"}
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        answer = connection.getresponse()
        content = answer.read()
        if not 200 <= answer.status <= 299 and answer.status != 409:
            raise LabError(f"{method} {path}: {answer.status} {content[:300]!r}")
        return dict(json.loads(content)) if content[:1] == b"{" else {}

    def ready(self) -> bool:
        with contextlib.suppress(OSError, LabError):
            self.send("GET", "/readyz")
            return True
        self._local.connection = None
        return False

    def apply_access(self) -> None:
        """Make the namespaces, the definition of the custom resource, and what deploy/rbac gives to a backup."""
        for name in (SYSTEM, MONITORING):
            self.send("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
        self.send("POST", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", DEFINITION)
        folder = PROJECT / "deploy" / "rbac"
        for path in (folder / "00-namespace.yaml", folder / "10-preflight.yaml", folder / "40-backup.yaml"):
            for manifest in yaml.safe_load_all(path.read_text(encoding="utf-8")):
                self.send("POST", collection_of(manifest), manifest)

    def connection_of(self, account: str) -> str:
        """Return an Airflow connection that authenticates as a ServiceAccount."""
        path = f"/api/v1/namespaces/{OWN}/serviceaccounts/{account}/token"
        token = self.send("POST", path, {"spec": {"expirationSeconds": 7200}})["status"]["token"]
        cluster = {
            "server": f"https://127.0.0.1:{self.port}",
            "certificate-authority-data": base64.b64encode(self.authority.read_bytes()).decode(),
        }
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "bench",
            "contexts": [{"name": "bench", "context": {"cluster": "bench", "user": "bench"}}],
            "clusters": [{"name": "bench", "cluster": cluster}],
            "users": [{"name": "bench", "user": {"token": token}}],
        }
        return json.dumps({"conn_type": "kubernetes", "extra": {"kube_config": config}})

    def fill(self, start: int, end: int) -> None:
        """Create the objects of these numbers."""

        def create(number: int) -> None:
            self.send("POST", *object_of(number))

        with ThreadPoolExecutor(WRITERS) as pool:
            for _ in pool.map(create, range(start, end), chunksize=1):
                pass


def collection_of(manifest: Mapping[str, Any]) -> str:
    group, _, version = str(manifest["apiVersion"]).rpartition("/")
    namespace = manifest["metadata"].get("namespace")
    root = f"/apis/{group}/{version}" if group else f"/api/{version}"
    return f"{root}{f'/namespaces/{namespace}' if namespace else ''}/{str(manifest['kind']).lower()}s"


@contextmanager
def api_server(progress: Progress) -> Iterator[Api]:
    """Run etcd and an API server on loopback for the duration of the block."""
    tools = ensure_tools(progress, ("etcd", "kubernetes"))
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True, mode=0o700)
    etcd_port, peer_port, port = free_ports(3)
    administrator = secrets.token_hex(16)
    certificates(FOLDER, administrator)
    etcd = [
        tools["etcd"],
        f"--data-dir={FOLDER}/etcd",
        f"--listen-client-urls=http://127.0.0.1:{etcd_port}",
        f"--advertise-client-urls=http://127.0.0.1:{etcd_port}",
        f"--listen-peer-urls=http://127.0.0.1:{peer_port}",
        f"--initial-advertise-peer-urls=http://127.0.0.1:{peer_port}",
        f"--initial-cluster=default=http://127.0.0.1:{peer_port}",
        "--unsafe-no-fsync",
        "--log-level=warn",
    ]
    api = [
        tools["kube-apiserver"],
        "--bind-address=127.0.0.1",
        "--advertise-address=127.0.0.1",
        f"--secure-port={port}",
        f"--etcd-servers=http://127.0.0.1:{etcd_port}",
        "--service-cluster-ip-range=10.96.0.0/24",
        "--authorization-mode=RBAC",
        "--endpoint-reconciler-type=none",
        "--profiling=false",
        f"--token-auth-file={FOLDER}/tokens.csv",
        f"--tls-cert-file={FOLDER}/apiserver.crt",
        f"--tls-private-key-file={FOLDER}/apiserver.key",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-key-file={FOLDER}/service-account.crt",
        f"--service-account-signing-key-file={FOLDER}/service-account.key",
    ]
    processes = []
    try:
        for argv in (etcd, api):
            with (FOLDER / f"{Path(argv[0]).name}.log").open("wb") as log:
                processes.append(subprocess.Popen(argv, stdout=log, stderr=subprocess.STDOUT))
        found = Api(port, FOLDER / "ca.crt", administrator)
        wait_until("the API server", found.ready, limit=timedelta(minutes=2), interval=timedelta(seconds=0.5))
        yield found
    finally:
        # The API server first: without etcd it lingers for a minute.
        for process in reversed(processes):
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            process.kill()
            process.wait()
        shutil.rmtree(FOLDER, ignore_errors=True)


def certificates(folder: Path, administrator: str) -> None:
    """Write the API server's certificate, the key that signs tokens, and the administrator's token."""
    authority = Authority.create("bench capture")
    write(folder, "ca", KeyPair(authority.pair.certificate, b""))
    write(folder, "apiserver", authority.issue("kube-apiserver", server_names=["127.0.0.1", "localhost"]))
    signing = authority.issue("service-account")
    key = serialization.load_pem_private_key(signing.key, password=None)
    # The API server reads an EC key in this older form only.
    older, plain = serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    pem = key.private_bytes(serialization.Encoding.PEM, older, plain)
    write(folder, "service-account", KeyPair(signing.certificate, pem))
    tokens = folder / "tokens.csv"
    tokens.touch(mode=0o600)
    tokens.write_text(f"{administrator},{ADMINISTRATOR},1,system:masters\n", encoding="utf-8")


if __name__ == "__main__":
    main()
