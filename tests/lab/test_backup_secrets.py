"""No secret of a lab is seen in a full backup: its own ones and some that are planted, in all that the run leaves or starts."""

from __future__ import annotations

import base64
import contextlib
import json
import secrets
import sqlite3
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from lab import backup_keys, buckets
from lab.airflow import Airflow, session_members
from lab.config import LabConfig
from tests.lab.stored_backup import StoredBackup

if TYPE_CHECKING:
    from conftest import Lab, Run, Upgrades

SYSTEM = "nephoran-system"
PLANTED = 20
SAMPLE_SECONDS = 0.02
TABLES = {
    "XCom": "select key, value from xcom where run_id = ?",
    "rendered fields": "select rendered_fields, k8s_pod_yaml from rendered_task_instance_fields where run_id = ?",
    "parameters": "select conf from dag_run where run_id = ?",
}


@pytest.fixture(scope="module")
def planted(lab: Lab) -> Iterator[dict[str, str]]:
    """Put secrets into the cluster: in Secrets, in a ConfigMap, in an annotation."""
    words = {f"planted {number}": f"planted-{secrets.token_hex(12)}" for number in range(PLANTED)}
    *in_secrets, in_config_map, in_annotation = words.values()
    objects = [
        {"kind": "Secret", "metadata": {"name": f"planted-{number}"}, "stringData": {"value": word}}
        for number, word in enumerate(in_secrets)
    ]
    noted = {"name": "planted", "annotations": {"note": in_annotation}}
    objects.append({"kind": "ConfigMap", "metadata": noted, "data": {"config.ini": f"password = {in_config_map}"}})
    for one in objects:
        one["apiVersion"] = "v1"
        one["metadata"] |= {"namespace": SYSTEM, "labels": {"planted": "yes"}}  # type: ignore[operator]
    listing = json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})
    lab.kubectl("apply", "--server-side", "--filename=-", input=listing)
    yield words
    lab.kubectl("delete", "secret,configmap", "--selector=planted=yes", f"--namespace={SYSTEM}")


def real_secrets(config: LabConfig, airflow: Airflow) -> dict[str, str]:
    """Return the lab's own secrets by name: whatever its connections hold, and what they must not hold."""
    found = {f"key of {account.name}": account.secret(config) for account in buckets.ACCOUNTS}
    for name in ("s3-secret-key", "weaviate-api-key", "llm-provider-key", backup_keys.PASSPHRASE):
        found[name] = config.secret(name)
    for name, key in backup_keys.keys(config).items():
        lines = [line for line in key.private.splitlines() if len(line) == 64]
        found |= {f"private key of {name}, line {number}": line for number, line in enumerate(lines)}
    for name, connection in json.loads(airflow.instance.connections_file.read_text(encoding="utf-8")).items():
        if password := connection.get("password"):
            found[f"password of {name}"] = password
        for user in connection.get("extra", {}).get("kube_config", {}).get("users", ()):
            found[f"token of {name}"] = user["user"]["token"]
    return found


@dataclass
class Watcher:
    """Looks at the processes of an Airflow, and at every command line, again and again while a run is at work."""

    airflow: Airflow
    commands: set[str] = field(default_factory=set)
    environments: set[str] = field(default_factory=set)
    looks: int = 0

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Watcher:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        record = json.loads((self.airflow.instance.home / "processes.json").read_text(encoding="utf-8"))
        sessions = {int(entry["pid"]) for entry in record.values()}
        while not self._stop.wait(SAMPLE_SECONDS):
            own = {process.pid for process in session_members(sessions)}
            for folder in Path("/proc").glob("[0-9]*"):
                # It may end between two looks, or be somebody else's.
                with contextlib.suppress(OSError):
                    command = (folder / "cmdline").read_bytes().decode("latin-1")
                    self.commands.add(command)
                    # An agent has a session of its own.
                    if int(folder.name) in own or "nephoran-gpg-" in command:
                        self.environments.add((folder / "environ").read_bytes().decode("latin-1"))
            self.looks += 1


@dataclass(frozen=True)
class Seen:
    """A full backup that was watched, and every place that it left something in."""

    run: Run
    watcher: Watcher
    places: dict[str, str]
    known: dict[str, str]

    def leaks(self) -> list[str]:
        """Return which secret is where."""
        found = []
        for name, secret in self.known.items():
            forms = {secret, base64.b64encode(secret.encode()).decode(), json.dumps(secret)[1:-1]}
            found += [f"{name} in {place}" for place, text in self.places.items() if any(f in text for f in forms)]
        return found


@pytest.fixture(scope="module")
def seen(lab: Lab, upgrades: Upgrades, planted: dict[str, str]) -> Seen:
    known = {**real_secrets(lab.config, upgrades.airflow), **planted}
    with Watcher(upgrades.airflow) as watcher:
        run = upgrades.run("backup", type="full")
    assert run.state == "success", run.explain()
    return Seen(run, watcher, dict(places(lab, upgrades.airflow, run, watcher)), known)


def places(lab: Lab, airflow: Airflow, run: Run, watcher: Watcher) -> Iterator[tuple[str, str]]:
    """Yield everything that the run has left, by where it is."""
    yield "command lines", "\n".join(watcher.commands)
    yield "environments", "\n".join(watcher.environments)
    for path in airflow.instance.logs.rglob("*"):
        if path.is_file() and (run.run_id in str(path) or path.parent.name == "processes"):
            yield f"log {path.relative_to(airflow.instance.logs)}", path.read_text(encoding="utf-8", errors="replace")
    with contextlib.closing(sqlite3.connect(airflow.instance.database)) as database:
        for name, query in TABLES.items():
            rows = database.execute(query, (run.run_id,)).fetchall()
            yield name, "\n".join(str(value) for row in rows for value in row)
    for path in airflow.instance.home.glob("airflow.db*"):
        yield f"database file {path.name}", path.read_bytes().decode("latin-1")
    store, operation = buckets.client(lab.config), run.report["operation_id"]
    listed = store.list_objects_v2(Bucket=buckets.REPORTS, Prefix=f"reports/backup/{operation}/").get("Contents", ())
    for entry in listed:
        body = store.get_object(Bucket=buckets.REPORTS, Key=entry["Key"])["Body"].read()
        yield f"report {entry['Key']}", body.decode("utf-8")
    backup = StoredBackup(lab.config, str(run.client.xcom("backup", run.run_id, "check_request")["backup_id"]))
    for name in backup.names():
        yield f"bucket {name}", backup.content(name).decode("latin-1")


def test_no_secret_is_seen(seen: Seen) -> None:
    assert seen.leaks() == []


def test_what_was_looked_at_is_there(seen: Seen, lab: Lab, planted: dict[str, str]) -> None:
    """Or the scan would prove nothing: every kind of place has content, children were seen, the secrets were captured."""
    kinds = {place.partition(" ")[0] for place in seen.places}
    assert kinds >= {"command", "environments", "log", "XCom", "rendered", "database", "report", "bucket"}
    steps = {task_id for task_id, state in seen.run.steps.items() if state == "success"}
    logged = {place for place in seen.places if place.startswith("log dag_id=backup/")}
    assert all(any(f"task_id={step}/" in place for place in logged) for step in steps), logged
    identifier = str(seen.run.client.xcom("backup", seen.run.run_id, "check_request")["backup_id"])
    for place, words in {"XCom": identifier, "rendered fields": identifier, "parameters": "full"}.items():
        assert words in seen.places[place], place
    # A signature is made in less time than lies between two looks.
    for words in ("--encrypt", "gpg-agent"):
        assert any(words in command for command in seen.watcher.commands), f"no child with {words} was seen"
    assert "NEPHORAN_PROFILE" in seen.places["environments"]
    assert seen.watcher.looks > 50
    captured = b"".join(StoredBackup(lab.config, identifier).files("kubernetes-objects").values())
    for word in planted.values():
        assert word.encode() in captured or base64.b64encode(word.encode()) in captured


@pytest.mark.parametrize("place", ["XCom", "environments"])
def test_the_scan_sees_a_secret_where_there_is_one(place: str, seen: Seen, planted: dict[str, str]) -> None:
    word = next(iter(planted.values()))
    leaking: dict[str, Any] = {**seen.places, place: seen.places[place] + base64.b64encode(word.encode()).decode()}
    assert Seen(seen.run, seen.watcher, leaking, seen.known).leaks() == [f"planted 0 in {place}"]
