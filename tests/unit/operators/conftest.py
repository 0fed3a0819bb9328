"""A system on loopback, a profile and connections that lead to it, and the procedures to run against it."""

from __future__ import annotations

import itertools
import json
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import formatdate
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
import urllib3
import yaml

from nephoran_maintenance.domain.findings import Finding
from nephoran_maintenance.domain.journal import Journal, from_config_map
from nephoran_maintenance.domain.lease import FENCE
from nephoran_maintenance.hooks import connections, image_registry, prometheus_api, weaviate_api
from nephoran_maintenance.hooks.cluster import ClusterHook
from nephoran_maintenance.settings import PROJECT_ROOT
from nephoran_maintenance.triggers.base import PollingTrigger
from tests.unit.dag_runner import DagRunner
from tests.unit.fake_cluster import APPS, JOURNALS, LEASES, Outside, SystemCluster, is_write
from tests.unit.hooks.fake_servers import Received, Server, connection_json, kube_config, serving

COMPONENTS = ["weaviate", "rag-api", "llm-processor"]


Step = Callable[[Any, Any], Any]
SHAPES: dict[str, dict[str, Any]] = {}
"""The procedure by what may fail in it; to read it takes longer than to run it."""


def changes_spec(request: Received) -> bool:
    """Return whether a request patches the spec of a workload."""
    if request.method != "PATCH" or not request.path.startswith(APPS):
        return False
    return not isinstance(request.json, list) or any(o["path"].startswith("/spec") for o in request.json)


def no_findings(step: Any, context: Any) -> list[dict[str, Any]]:
    subject = step.task_id.rpartition("_")[2]
    return [Finding(subject, "pass", "the system", "good", "good").to_dict()]


def nothing(step: Any, context: Any) -> None:
    return None


def passed_before_the_change(dag: Any) -> dict[str, Step]:
    """Return what stands for the steps that have tests of their own: preflight has passed, and the backup is made."""
    checks = {t: no_findings for t in dag.task_ids if t.startswith("preflight.check_")}
    return {**checks, **{t: nothing for t in dag.task_ids if t.startswith("protect.")}}


@dataclass(frozen=True)
class Question:
    """What a step has asked in Airflow's required actions."""

    step: str
    options: list[str]
    subject: str
    body: str


class Persons:
    """Those who answer the questions of a run, in the order of their answers: who, what, and after how long."""

    def __init__(self) -> None:
        self.answers: list[tuple[str | None, str]] = []
        self.questions: list[Question] = []

    def ask(self, *, ti_id: str, options: list[str], params: dict[str, Any], subject: str, body: str) -> None:
        assert params == {}
        # Airflow shows the first question of a step for ever, and takes no answer but one of its options.
        first = next((question for question in self.questions if question.step == ti_id), None)
        if first is not None:
            assert options == first.options
        self.questions.append(Question(ti_id, options, subject, body))

    def answer(self, step: str) -> dict[str, Any]:
        """Return the event of the next answer: ``approve`` and ``reject`` are the options, ``nobody`` is the end of time."""
        who, what = self.answers.pop(0)
        question = self.questions[-1]
        assert question.step == step
        if what == "nobody":
            return {"error": "the response timeout has passed", "error_type": "timeout"}
        options = dict(zip(("approve", "reject"), question.options, strict=True))
        return {
            "chosen_options": [options.get(what, what)],
            "params_input": {},
            "responded_at": datetime.now(UTC),
            "responded_by_user": None if who is None else {"id": f"id of {who}", "name": who},
            "timedout": False,
        }


@dataclass
class System:
    """The system under test and what was asked of it."""

    cluster: SystemCluster
    outside: Outside
    server: Server
    profile_path: Path
    dags: dict[str, Any]
    persons: Persons

    def push(self, tag: str, *names: str) -> None:
        """Push an image of each component."""
        for name in names or COMPONENTS:
            image = self.cluster.image(name, tag)
            self.outside.tags[f"nephoran/{name}:{tag}"] = self.cluster.digest(image)

    def edit_profile(self, change: Callable[[dict[str, Any]], None]) -> None:
        data = yaml.safe_load(self.profile_path.read_text(encoding="utf-8"))
        change(data)
        self.profile_path.write_text(yaml.safe_dump(data), encoding="utf-8")

    def upgrade(
        self, *, replaced: dict[str, Step] | None = None, run_id: str = "manual__2026-11-23", **params: Any
    ) -> DagRunner:
        """Run the rolling upgrade to v2, with all that comes before the change passed."""
        dag = self.dags["rolling_upgrade"]
        passed = passed_before_the_change(dag)
        given = {"mode": "apply", "components": COMPONENTS, "version": "v2", **params}
        return DagRunner(
            dag, given, replaced={**passed, **(replaced or {})}, run_id=run_id, answer=self.persons.answer
        ).run()

    def with_probe(self) -> None:
        """Have the traffic measured; most tests don't, because it takes time."""
        url = f"http://{self.cluster.registry}/process"
        self.edit_profile(lambda data: data.update(probe={"url": url, "rate_per_second": 20}))

    def with_gates(self, **settings: Any) -> None:
        """Have the metrics judged, from samples that come fast one after the other."""
        fast = {"interval_seconds": 0.02, "duration_seconds": 0.1, "minimum_samples": 5, "extension_seconds": 0.1}
        self.edit_profile(lambda data: data["gate"].update({**fast, **settings}))
        self.outside.prometheus.age = 0.0

    def allow_to_fail(self, *names: str, **needs: list[str]) -> None:
        """Let components fail, with what else they need, and read the procedure again: its steps depend on it."""
        from airflow.dag_processing.dagbag import DagBag

        def change(data: dict[str, Any]) -> None:
            for component in data["components"]:
                component["needs"] = needs.get(component["name"].replace("-", "_"), component.get("needs", []))
                if component["name"] in names:
                    component["criticality"] = "may fail"

        self.edit_profile(change)
        shape = json.dumps([names, needs])
        if shape not in SHAPES:
            found = DagBag(dag_folder=str(PROJECT_ROOT / "dags" / "rolling_upgrade.py"), load_op_links=False)
            assert not found.import_errors, found.import_errors
            SHAPES[shape] = dict(found.dags)
        self.dags = {**self.dags, **SHAPES[shape]}

    def quarantine(self) -> dict[str, dict[str, Any]]:
        """Return by component what the quarantine says of its version; of each there is at most one."""
        data = self.cluster.objects.get(f"{JOURNALS}/quarantine-nephoran", {}).get("data", {})
        return {version["component"]: version for version in map(json.loads, data.values())}

    def journal(self) -> Journal:
        """Return the only journal."""
        maps = [found for path, found in self.cluster.objects.items() if path.startswith(JOURNALS)]
        stored = [found for found in maps if "journal.json" in found["data"]]
        assert len(stored) == 1
        return from_config_map(stored[0])

    def patched(self) -> list[str]:
        """Return the components whose spec was really patched, in order, each once; the fence is no change of it."""
        return list(dict.fromkeys(r.path.rpartition("/")[2] for r in self.writes() if changes_spec(r)))

    def preflight(self, **params: Any) -> DagRunner:
        return DagRunner(self.dags["preflight"], {"components": COMPONENTS, **params}).run()

    def writes(self) -> list[Received]:
        """Return what was written, the lease apart: to take it changes nothing of the system."""
        return [r for r in self.server.received if is_write(r) and not r.path.startswith(LEASES)]

    def lease(self) -> dict[str, Any]:
        """Return the only lease."""
        return next(found for path, found in self.cluster.objects.items() if path.startswith(LEASES))

    def fences(self) -> dict[str, str]:
        """Return the fence of each component that bears one."""
        marks = {name: self.cluster.workload(name)["metadata"].get("annotations", {}).get(FENCE) for name in COMPONENTS}
        return {name: mark for name, mark in marks.items() if mark is not None}

    def specs(self) -> dict[str, Any]:
        return {name: self.cluster.spec(name) for name in COMPONENTS}


@pytest.fixture(scope="session")
def dags() -> dict[str, Any]:
    from airflow.dag_processing.dagbag import DagBag

    return dict(DagBag(dag_folder=str(PROJECT_ROOT / "dags"), load_op_links=False).dags)


@pytest.fixture
def system(dags: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[System]:
    """A system whose components run v1, with v2 in the registry."""
    outside = Outside()
    with serving(outside) as around:
        cluster = SystemCluster(f"127.0.0.1:{around.port}")
        with serving(cluster) as server:
            profile = tmp_path / "profile.yaml"
            profile.write_text(profile_text(around), encoding="utf-8")
            monkeypatch.setenv("NEPHORAN_PROFILE", str(profile))
            monkeypatch.setenv("NEPHORAN_REPORTS", str(tmp_path / "reports"))
            extra = {"kube_config": kube_config(server.url)}
            for name in ("PREFLIGHT", "ROLLING_UPGRADE", "RECOVER_OPERATION", "ROLLBACK", "BACKUP"):
                monkeypatch.setenv(
                    f"AIRFLOW_CONN_KUBERNETES_{name}", connection_json(conn_type="kubernetes", extra=extra)
                )
            http = connection_json(conn_type="http", host="127.0.0.1", port=around.port, schema="http")
            monkeypatch.setenv("AIRFLOW_CONN_WEAVIATE_DEFAULT", http)
            monkeypatch.setenv("AIRFLOW_CONN_LLM_PROVIDER", http)
            monkeypatch.setenv("AIRFLOW_CONN_PROMETHEUS_DEFAULT", http)
            monkeypatch.setenv("AIRFLOW_CONN_IMAGE_REGISTRY_DEFAULT", connection_json(conn_type="http"))

            @contextmanager
            def port_forward(self: ClusterHook, namespace: str, pod: str, port: int) -> Iterator[str]:
                self.get("Pod", pod, namespace)
                yield around.url

            # Every step reads its connection and makes its client anew, which takes longer than what it asks.
            new_client, read_connection = ClusterHook._new_api_client, cache(connections.read_connection)
            for module in (connections, image_registry, prometheus_api, weaviate_api):
                monkeypatch.setattr(module, "read_connection", read_connection)
            clients: dict[str, Any] = {}

            def api_client(self: ClusterHook) -> Any:
                if self._given_settings is None and self.connection_id in clients:
                    return clients[self.connection_id]
                client = clients[self.connection_id] = new_client(self)
                client.rest_client.pool_manager = ShortWay(server, client.rest_client.pool_manager)
                return client

            monkeypatch.setattr(ClusterHook, "_new_api_client", api_client)
            # No server here speaks TLS, and reading the machine's certificates takes 20 ms each time.
            monkeypatch.setattr(ssl.SSLContext, "load_default_certs", lambda *arguments: None)
            # The stream of a forwarded port has its own tests with a real one.
            monkeypatch.setattr(ClusterHook, "port_forward", port_forward)
            cluster.add("weaviate", kind="StatefulSet", replicas=3)
            for name in ("rag-api", "llm-processor"):
                cluster.add(name)
            outside.prometheus.pods = lambda: [
                pod["metadata"]["name"] for name in COMPONENTS for pod in cluster.pods_of(name)
            ]
            persons = Persons()
            monkeypatch.setattr("airflow.sdk.execution_time.hitl.upsert_hitl_detail", persons.ask)
            # As for preflight: the checks have tests of their own, and so has their repetition.
            monkeypatch.setattr("nephoran_maintenance.operators.recheck.RECHECKS", {})
            found = System(cluster, outside, server, profile, dags, persons)
            found.push("v1")
            found.push("v2")
            yield found


class ShortWay:
    """In the place of a hook's connection pool: hands requests to the server's function without the way over a socket.

    A run of a procedure sends hundreds, and the way takes longer than the answer. The hooks' own tests take the real one.
    """

    def __init__(self, server: Server, pool: Any) -> None:
        self.server, self.pool = server, pool

    def request(self, method: str, url: str, *, body: bytes | None, headers: dict[str, str], **options: Any) -> Any:
        if not url.startswith(f"{self.server.url}/"):
            return self.pool.request(method, url, body=body, headers=headers, **options)
        parts = urlsplit(url)
        named = {key.lower(): value for key, value in headers.items()}
        query = dict(parse_qsl(parts.query))
        reply = self.server.reply_to(Received(method, parts.path, query, named, body or b"", ("127.0.0.1", 0)))
        if reply.hang_up:
            raise urllib3.exceptions.ProtocolError("Connection aborted.")
        told = {"Date": formatdate(usegmt=True), **reply.headers}
        return SimpleNamespace(status=reply.status, data=reply.encoded(), headers=told)


@pytest.fixture
def fast_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a minute pass between two looks of a trigger."""
    looks = itertools.count()
    monkeypatch.setattr(PollingTrigger, "now", lambda self: datetime.now(UTC) + timedelta(minutes=next(looks)))


@cache
def example_profile() -> str:
    """Return the example profile as JSON, which is read far faster than YAML."""
    text = (PROJECT_ROOT / "include" / "profiles" / "nephoran.yaml").read_text(encoding="utf-8")
    return json.dumps(yaml.safe_load(text))


def profile_text(around: Server) -> str:
    data = json.loads(example_profile())
    del data["probe"]
    data["dependencies"][0]["url"] = f"{around.url}/v1/models"
    data["registry"]["plain_http"] = True
    data["gate"]["duration_seconds"] = 0
    # The keys of a backup are made by gpg; whoever needs some describes them.
    data["backup"]["before_change"] = "none"
    return yaml.safe_dump(data)
