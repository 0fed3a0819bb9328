"""docs/how-to/restore-by-hand.md brings a lost namespace back, and all of Weaviate, by its own commands.

What it says of damaged backups is in the unit tier.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from lab import backup_keys, buckets
from lab.system import seed
from lab.system.variants import variant_named
from lab.tools import ensure_tools
from lab.waiting import wait_until
from nephoran_maintenance.engine.sources import KubernetesObjects
from nephoran_maintenance.hooks.cluster import ClusterHook
from tests.lab.conftest import VARIANT
from tests.lab.stored_backup import PREFIX, StoredBackup
from tests.lab.test_backup import all_objects, made
from tests.restore_page import blocks

if TYPE_CHECKING:
    from conftest import Lab, Upgrades

NAMESPACE = "restore-by-hand"
KINDS = ("serviceaccount", "secret", "configmap", "service", "deployment", "role", "rolebinding")
POD = {"containers": [{"name": "c", "image": "registry.invalid/nothing:v1"}]}
SUBJECT = {"kind": "ServiceAccount", "name": "reader", "namespace": NAMESPACE}
REFERENCE = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "reader"}


def thing(kind: str, name: str, api_version: str = "v1", **fields: Any) -> dict[str, Any]:
    metadata = {"name": name, "namespace": NAMESPACE, "labels": {"app": "restored"}}
    return {"apiVersion": api_version, "kind": kind, "metadata": metadata, **fields}


OBJECTS = [
    thing("ServiceAccount", "reader"),
    thing("Secret", "key", type="Opaque", data={"key": "c2VjcmV0"}),
    thing("ConfigMap", "settings", data={"a": "b"}),
    thing("Service", "web", spec={"selector": {"app": "restored"}, "ports": [{"port": 80, "protocol": "TCP"}]}),
    thing(
        "Deployment",
        "web",
        "apps/v1",
        spec={
            "replicas": 0,
            "selector": {"matchLabels": {"app": "restored"}},
            "template": {"metadata": {"labels": {"app": "restored"}}, "spec": POD},
        },
    ),
    thing(
        "Role",
        "reader",
        "rbac.authorization.k8s.io/v1",
        rules=[{"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}],
    ),
    thing("RoleBinding", "reader", "rbac.authorization.k8s.io/v1", subjects=[SUBJECT], roleRef=REFERENCE),
]


def state(lab: Lab) -> dict[tuple[str, str], dict[str, Any]]:
    """Return what people have set of every object, whatever the server adds."""
    found = {}
    for kind in KINDS:
        for item in lab.get(kind, namespace=NAMESPACE)["items"]:
            name = item["metadata"]["name"]
            if name in ("default", "kube-root-ca.crt"):
                continue
            kept = {key: item.get(key) for key in ("data", "type", "rules", "subjects", "roleRef")}
            spec = dict(item.get("spec") or {})
            for given_by_the_server in ("clusterIP", "clusterIPs"):
                spec.pop(given_by_the_server, None)
            found[kind, name] = {**kept, "spec": spec, "labels": item["metadata"].get("labels")}
    return found


def kubectl_folder() -> Path:
    return ensure_tools(lambda *_: None, ["kubernetes"])["kubectl"].parent


@pytest.fixture
def namespace(lab: Lab) -> Iterator[str]:
    lab.kubectl("create", "namespace", NAMESPACE)
    lab.kubectl("label", "namespace", NAMESPACE, "kept=yes")
    try:
        lab.kubectl(
            "apply",
            "--server-side",
            "--filename=-",
            input=json.dumps({"apiVersion": "v1", "kind": "List", "items": OBJECTS}),
        )
        yield NAMESPACE
    finally:
        lab.kubectl("delete", "namespace", NAMESPACE, "--ignore-not-found", "--wait=true")


def test_a_lost_namespace_comes_back(lab: Lab, namespace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    extra = {"kube_config_path": str(lab.config.kubeconfig)}
    monkeypatch.setenv("AIRFLOW_CONN_ADMINISTRATOR", json.dumps({"conn_type": "kubernetes", "extra": extra}))
    source = KubernetesObjects(
        ClusterHook("administrator"), namespaces=[namespace], own_namespace="nephoran-maintenance"
    )
    for member in source.members():
        path = tmp_path / "plain" / "kubernetes-objects" / member.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"".join(member.chunks))
    before = state(lab)
    assert len(before) == len(OBJECTS)
    lab.kubectl("delete", "namespace", namespace, "--wait=true")

    (commands,) = blocks("4. Put the objects back")
    environment = {
        "PATH": f"{kubectl_folder()}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "WORK": str(tmp_path),
        "KUBECONFIG": str(lab.config.kubeconfig),
    }
    done = subprocess.run(
        ["bash", "-c", f"set -euo pipefail\n{commands}"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert state(lab) == before
    assert lab.get("namespace", namespace)["metadata"]["labels"]["kept"] == "yes"


LARGE = "RestoreByHand"
"""A collection with files of more than 1 MiB: of smaller ones nothing is left out of an incremental backup."""
FORWARD, _, KEY, LOOK, UPLOAD, RESTORE, WAIT, CLEAR, COUNT = blocks("5. Put Weaviate back")
OF_A_PARENT, BUILT_ON = blocks("An incremental backup needs its parent")
FETCH = blocks("1. Fetch")[1]
COMPARE, OPEN = blocks("2. Compare before anything is opened"), blocks("3. Open")
URL = "http://127.0.0.1:18080"
RECORDED = ("curl", "kubectl", "gpg", "sed", "grep")

Contents = dict[str, dict[str, dict[str, dict[str, Any]]]]


def contents(lab: Lab) -> Contents:
    """Return by pod and collection every object by id, as that pod answers: properties, vector, times."""
    pods = lab.get("pods", namespace="nephoran-system")["items"]
    found: Contents = {}
    for pod in pods:
        if pod["metadata"]["labels"].get("app") != "weaviate":
            continue
        with seed.client(lab.config) as weaviate:
            weaviate.base_url = httpx.URL(f"http://{pod['status']['podIP']}:8080")
            names = [entry["class"] for entry in weaviate.get("/v1/schema").raise_for_status().json()["classes"]]
            found[pod["metadata"]["name"]] = {
                name: {entry["id"]: entry for entry in all_objects(weaviate, name)} for name in names
            }
    assert len(found) == 3
    return found


def definitions(lab: Lab) -> dict[str, Any]:
    with seed.client(lab.config) as weaviate:
        return {found["class"]: found for found in weaviate.get("/v1/schema").raise_for_status().json()["classes"]}


def delete_collections(lab: Lab) -> None:
    with seed.client(lab.config) as weaviate:
        for name in definitions(lab):
            weaviate.delete(f"/v1/schema/{name}").raise_for_status()
    assert definitions(lab) == {}


def add(lab: Lab, name: str, numbers: range) -> None:
    source = random.Random(numbers.start)
    objects = [
        {
            "class": name,
            "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"by-hand/{name}/{number}")),
            "vector": [source.uniform(-1, 1) for _ in range(seed.DIMENSIONS)],
            "properties": {"title": f"{number} by hand", "content": f"{source.random()} " * 20},
        }
        for number in numbers
    ]
    with seed.client(lab.config) as weaviate:
        for start in range(0, len(objects), 500):
            body = {"objects": objects[start : start + 500]}
            answer = weaviate.post("/v1/batch/objects", params={"consistency_level": "ALL"}, json=body)
            assert [one["result"].get("errors") for one in answer.raise_for_status().json()] == [None] * len(
                body["objects"]
            )


def staged(lab: Lab) -> set[str]:
    pages = buckets.client(lab.config).get_paginator("list_objects_v2").paginate(Bucket=buckets.STAGING)
    return {entry["Key"] for page in pages for entry in page.get("Contents", ())}


def clear_staging(lab: Lab) -> None:
    for key in staged(lab):
        buckets.client(lab.config).delete_object(Bucket=buckets.STAGING, Key=key)


@dataclass(frozen=True)
class Chain:
    """Two backups, the second one built on the first, and what Weaviate held when they were made."""

    full: StoredBackup
    incremental: StoredBackup
    before: dict[str, Contents]
    definitions: dict[str, Any]


@pytest.fixture(scope="module")
def chain(lab: Lab, upgrades: Upgrades) -> Iterator[Chain]:
    upgrades.prepare()
    try:
        with seed.client(lab.config) as weaviate:
            definition = {**seed.class_definition("IntentPatterns", 3), "class": LARGE}
            texts = [{"name": name, "dataType": ["text"]} for name in ("title", "content")]
            weaviate.post("/v1/schema", json={**definition, "properties": texts}).raise_for_status()
            add(lab, LARGE, range(3000))
            full = made(lab, upgrades, type="full")
            before = {full.backup_id: contents(lab)}
            add(lab, LARGE, range(3000, 3100))
            add(lab, "TelecomKnowledge", range(10))
            gone = seed.object_id("IntentPatterns", 0)
            weaviate.delete(
                f"/v1/objects/IntentPatterns/{gone}", params={"consistency_level": "ALL"}
            ).raise_for_status()
        incremental = made(lab, upgrades, type="incremental")
        before[incremental.backup_id] = contents(lab)
        yield Chain(full, incremental, before, definitions(lab))
    finally:
        wait_for_restores(lab)
        delete_collections(lab)
        seed.seed(lab.config, variant_named(VARIANT))
        clear_staging(lab)


def wait_for_restores(lab: Lab) -> None:
    """Wait until no restore that a test has left is at work."""
    ended = {"SUCCESS", "FAILED", "CANCELED"}
    with seed.client(lab.config) as weaviate:
        for key in staged(lab):
            folder, _, name = key.partition("/")
            if name == "restore_config.json":
                path = f"/v1/backups/s3/{folder}/restore"
                wait_until(
                    f"the end of the restore of {folder}",
                    lambda: weaviate.get(path).json().get("status") in ended,  # noqa: B023
                    limit=timedelta(seconds=60),
                )


def in_memory() -> set[Path]:
    """Return the folders that the page's mktemp has made."""
    return set(Path("/dev/shm").glob("restore-??????"))


@pytest.fixture
def memory() -> Iterator[None]:
    """Take away what a page that stopped has left in memory."""
    before = in_memory()
    yield
    for left in in_memory() - before:
        subprocess.run(["gpgconf", "--homedir", str(left / "gnupg"), "--kill", "gpg-agent"], check=False)
        shutil.rmtree(left)


@pytest.fixture
def person(lab: Lab, tmp_path: Path, memory: None) -> dict[str, str]:
    """Return the environment of somebody with the lab's keys; every command line of theirs is written down."""
    keys = backup_keys.keys(lab.config)
    (tmp_path / "signer.asc").write_text(keys[backup_keys.SIGNER].public, encoding="ascii")
    (tmp_path / "private.asc").write_text(keys["operations"].private, encoding="ascii")
    (tmp_path / "private.asc").chmod(0o600)
    recorders = tmp_path / "bin"
    recorders.mkdir()
    path = f"{kubectl_folder()}:{os.environ['PATH']}"
    for name in RECORDED:
        recorder = recorders / name
        program = shutil.which(name, path=path)
        recorder.write_text(f'#!/bin/sh\nprintf \'%s\\n\' "{name} $*" >> {tmp_path}/commands\nexec {program} "$@"\n')
        recorder.chmod(0o755)
    return {
        "PATH": f"{recorders}:{path}",
        "HOME": str(tmp_path),
        "KUBECONFIG": str(lab.config.kubeconfig),
        "AWS_ENDPOINT_URL": lab.config.s3_endpoint,
        "AWS_DEFAULT_REGION": buckets.S3_REGION,
        "AWS_ACCESS_KEY_ID": buckets.UPLOADER.name,
        "AWS_SECRET_ACCESS_KEY": buckets.UPLOADER.secret(lab.config),
        "BUCKET": buckets.BACKUPS,
        "PREFIX": PREFIX,
        "SIGNER_KEY": str(tmp_path / "signer.asc"),
        "SIGNER": keys[backup_keys.SIGNER].fingerprint,
        "RECIPIENT_KEY": str(tmp_path / "private.asc"),
        "STAGING": buckets.STAGING,
        "WEAVIATE_URL": URL,
        "OTHER_ID": buckets.STAGER.name,
        "OTHER_SECRET": buckets.STAGER.secret(lab.config),
    }


@contextmanager
def second_shell(environment: dict[str, str]) -> Iterator[None]:
    """Have a shell open in which the page's port-forwarding runs."""
    shell = subprocess.Popen(
        ["bash", "-c", FORWARD], env=environment, stdout=subprocess.DEVNULL, start_new_session=True
    )

    def answers() -> bool:
        try:
            return httpx.get(f"{URL}/v1/.well-known/ready", trust_env=False).status_code == httpx.codes.OK
        except httpx.HTTPError:
            return False

    try:
        wait_until("an answer through the forwarded port", answers, limit=timedelta(seconds=30))
        assert shell.poll() is None
        yield
    finally:
        os.killpg(shell.pid, signal.SIGTERM)
        shell.wait(timeout=10)


def put_back(environment: dict[str, str], backup: StoredBackup, parent: StoredBackup | None) -> str:
    """Fetch, open and put Weaviate back as the page says, in one shell, and return what it said."""
    script = ["set -euo pipefail", "umask 077", blocks("What you need")[1], FETCH, *COMPARE, *OPEN]
    if parent:
        there = re.sub(r"(BACKUP)=\S+", rf"\1={parent.backup_id}", OF_A_PARENT)
        script += [there, FETCH, *COMPARE, BUILT_ON, *OPEN, 'WORK="${WORK%/parent}"']
    script += ['export AWS_ACCESS_KEY_ID="$OTHER_ID" AWS_SECRET_ACCESS_KEY="$OTHER_SECRET"']
    script += [KEY, LOOK, UPLOAD, RESTORE, WAIT, CLEAR, COUNT, *blocks("7. Leave nothing behind")]
    with second_shell(environment):
        done = subprocess.run(
            ["bash", "-c", "\n".join(script)],
            env={**environment, "BACKUP": backup.backup_id},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout


def found_by_vector(lab: Lab, held: dict[str, dict[str, dict[str, Any]]]) -> None:
    """Search for some objects of each collection by their own vectors: each must be the nearest to itself."""
    with seed.client(lab.config) as weaviate:
        for name, objects in held.items():
            for found in list(objects.values())[:20]:
                near = f"nearVector: {{vector: {json.dumps(found['vector'])}}}, limit: 1"
                query = f"{{ Get {{ {name}({near}) {{ _additional {{ id }} }} }} }}"
                answer = weaviate.post("/v1/graphql", json={"query": query}).raise_for_status().json()
                assert [one["_additional"]["id"] for one in answer["data"]["Get"][name]] == [found["id"]]


@pytest.mark.parametrize("of_a_chain", [pytest.param(False, id="full"), pytest.param(True, id="chain")])
def test_all_of_weaviate_comes_back(
    of_a_chain: bool, lab: Lab, chain: Chain, person: dict[str, str], tmp_path: Path
) -> None:
    backup, parent = (chain.incremental, chain.full) if of_a_chain else (chain.full, None)
    folders = in_memory()
    delete_collections(lab)
    clear_staging(lab)
    said = put_back(person, backup, parent)
    before = chain.before[backup.backup_id]
    after = contents(lab)
    assert {pod: {name: len(found) for name, found in held.items()} for pod, held in after.items()} == {
        pod: {name: len(found) for name, found in held.items()} for pod, held in before.items()
    }
    assert after == before, "every object, vector and time, on every node"
    assert definitions(lab) == chain.definitions
    found_by_vector(lab, after["weaviate-0"])
    for name, held in before["weaviate-0"].items():
        assert f"{name}: {len(held)} in the backup, {len(held)} now" in said
    nodes = ("weaviate-0", "weaviate-1", "weaviate-2")
    descriptors = ("backup_config.json", *(f"{node}/backup.json" for node in nodes))
    links = [link.backup_id for link in (backup, parent) if link]
    assert staged(lab) == {f"{link}/{name}" for link in links for name in descriptors}
    assert in_memory() == folders
    commands = (tmp_path / "commands").read_text()
    assert commands.count("--upload-file") > len(nodes)
    secrets = [lab.config.secret("weaviate-api-key"), person["AWS_SECRET_ACCESS_KEY"], person["OTHER_SECRET"]]
    assert not [secret for secret in secrets if secret in commands]


def test_the_incremental_backup_can_not_do_without_its_parent(chain: Chain) -> None:
    """Else its restore would show nothing of a chain."""
    descriptors = chain.incremental.files("weaviate")
    node = json.loads(descriptors["weaviate/backup/weaviate-0/backup.json"])
    (large,) = (found for found in node["classes"] if found["name"] == LARGE)
    built_on = [shard["incrementalBackupInfo"].get("filesPerBackup", {}) for shard in large["shards"]]
    assert any(found.get(chain.full.backup_id) for found in built_on)
