"""The stand-ins as plain processes: what they answer, how they misbehave, how they end. No cluster is needed."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from lab.system.images import STANDINS
from lab.tools import ensure_module, go_program
from lab.waiting import http_status, wait_until

LIMIT = timedelta(seconds=10)


class Running:
    """One stand-in on a free port of loopback."""

    def __init__(self, component: str, arguments: Sequence[str], environment: Mapping[str, str]) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.process = subprocess.Popen(
            [ensure_module(STANDINS, print)["standin"], component, *arguments],
            env={"HOST": "127.0.0.1", "PORT": str(port), "VERSION": "v1", **environment},
            stdout=subprocess.DEVNULL,
        )

    def wait_alive(self) -> Running:
        wait_until("an answer", lambda: http_status(f"{self.url}/healthz") == 200, limit=LIMIT)
        return self


Start = Callable[..., Running]


@pytest.fixture
def start() -> Iterator[Start]:
    started: list[Running] = []

    def begin(component: str, *, arguments: Sequence[str] = (), **environment: str) -> Running:
        started.append(Running(component, arguments, environment))
        return started[-1]

    yield begin
    for one in started:
        one.process.kill()
        one.process.wait()


class FakeWeaviate:
    """Answer object lookups after a while; remember what was asked and with which key."""

    def __init__(self, delay_seconds: float = 0.0, status: int = 200) -> None:
        self.asked: list[tuple[str, str | None]] = []
        asked = self.asked

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked.append((self.path, self.headers.get("Authorization")))
                time.sleep(delay_seconds)
                self.send_response(status)
                self.end_headers()
                self.wfile.write(json.dumps({"id": "one", "properties": {"title": "knowledge-1"}}).encode())

            def log_message(self, format: str, *arguments: object) -> None:
                return

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def key_file(tmp_path: Path) -> str:
    path = tmp_path / "api-key"
    path.write_text("first\n", encoding="ascii")
    return str(path)


def query(running: Running, object_id: str = "one") -> httpx.Response:
    return httpx.post(
        f"{running.url}/process", json={"query": "what", "object_id": object_id}, trust_env=False, timeout=10
    )


def test_go_code_is_formatted_and_vetted() -> None:
    environment = {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": ""}
    go = go_program()
    vet = subprocess.run(
        [go, "vet", "./..."], cwd=STANDINS.folder, env=environment, capture_output=True, text=True, check=False
    )
    assert vet.returncode == 0, vet.stderr
    wrong = subprocess.run(
        [str(Path(go).resolve().with_name("gofmt")), "-l", "."],
        cwd=STANDINS.folder,
        capture_output=True,
        text=True,
        check=True,
    )
    assert wrong.stdout == ""


def test_query_goes_through_the_whole_chain_once_and_with_the_key(start: Start, key_file: str) -> None:
    weaviate = FakeWeaviate()
    rag = start("rag-api", WEAVIATE_URL=weaviate.url, WEAVIATE_API_KEY_FILE=key_file, VERSION="v2").wait_alive()
    processor = start("llm-processor", RAG_API_URL=rag.url).wait_alive()
    answer = query(processor)
    assert answer.json() == {
        "object_id": "one",
        "title": "knowledge-1",
        "processor_version": "v1",
        "rag_version": "v2",
    }
    assert weaviate.asked == [("/v1/objects/TelecomKnowledge/one?consistency_level=ONE", "Bearer first")]


def test_same_query_is_asked_again_and_a_rotated_key_counts_at_once(start: Start, key_file: str) -> None:
    weaviate = FakeWeaviate()
    rag = start("rag-api", WEAVIATE_URL=weaviate.url, WEAVIATE_API_KEY_FILE=key_file).wait_alive()
    query(rag)
    Path(key_file).write_text("second", encoding="ascii")
    query(rag)
    assert [key for _, key in weaviate.asked] == ["Bearer first", "Bearer second"]


def test_upstream_error_becomes_502_with_its_reason_and_is_not_retried(start: Start, key_file: str) -> None:
    weaviate = FakeWeaviate(status=500)
    rag = start("rag-api", WEAVIATE_URL=weaviate.url, WEAVIATE_API_KEY_FILE=key_file).wait_alive()
    processor = start("llm-processor", RAG_API_URL=rag.url).wait_alive()
    answer = query(processor)
    assert answer.status_code == 502
    assert "weaviate: status 500" in answer.json()["error"]
    assert len(weaviate.asked) == 1
    assert (
        'nephoran_llm_requests_total{model="stand-in",status="error"} 1' in httpx.get(f"{processor.url}/metrics").text
    )


def test_answers_500_to_every_fifth_request_and_stays_ready(start: Start, key_file: str) -> None:
    weaviate = FakeWeaviate()
    rag = start("rag-api", WEAVIATE_URL=weaviate.url, WEAVIATE_API_KEY_FILE=key_file, BEHAVIOUR="errors").wait_alive()
    assert [query(rag).status_code for _ in range(10)] == [200, 200, 200, 200, 500] * 2
    assert http_status(f"{rag.url}/readyz") == 200


def test_cache_is_cleaned_by_age(start: Start, key_file: str) -> None:
    weaviate = FakeWeaviate()
    rag = start("rag-api", WEAVIATE_URL=weaviate.url, WEAVIATE_API_KEY_FILE=key_file).wait_alive()
    query(rag)
    wait_until("the cached embedding", lambda: httpx.get(f"{rag.url}/stats").json()["cache_entries"] == 1, limit=LIMIT)
    young = httpx.post(f"{rag.url}/cache/cleanup", params={"older_than_seconds": 3600}).json()
    assert young == {"older_than_seconds": 3600, "removed": 0, "remaining": 1}
    assert httpx.post(f"{rag.url}/cache/cleanup", params={"older_than_seconds": 0}).json()["removed"] == 1
    assert httpx.post(f"{rag.url}/cache/cleanup").status_code == 400


def test_request_in_work_is_answered_after_the_signal_to_stop(start: Start, key_file: str) -> None:
    weaviate = FakeWeaviate(delay_seconds=1.0)
    rag = start("rag-api", WEAVIATE_URL=weaviate.url, WEAVIATE_API_KEY_FILE=key_file).wait_alive()
    answers: list[httpx.Response] = []
    asking = threading.Thread(target=lambda: answers.append(query(rag)))
    asking.start()
    wait_until("the request at work", lambda: len(weaviate.asked) == 1, limit=LIMIT)
    rag.process.send_signal(signal.SIGTERM)
    wait_until("readyz to say so", lambda: http_status(f"{rag.url}/readyz") == 503, limit=LIMIT)
    late = query(rag)  # a new connection, while the other is still at work
    asking.join()
    assert [late.status_code, answers[0].status_code] == [200, 200]
    assert rag.process.wait(10) == 0


def test_crashing_build_ends_at_start(start: Start) -> None:
    assert start("nephio-bridge", BEHAVIOUR="crash").process.wait(10) == 1


def test_build_that_is_never_ready_lives(start: Start) -> None:
    bridge = start("nephio-bridge", BEHAVIOUR="never-ready").wait_alive()
    assert http_status(f"{bridge.url}/readyz") == 503


def test_slow_start_is_alive_before_it_is_ready(start: Start) -> None:
    bridge = start("nephio-bridge", BEHAVIOUR="slow-start", STARTUP_SECONDS="0.5").wait_alive()
    assert http_status(f"{bridge.url}/readyz") == 503
    wait_until("readiness", lambda: http_status(f"{bridge.url}/readyz") == 200, limit=LIMIT)


def test_metrics_are_json_where_the_variant_says_so(start: Start) -> None:
    processor = start("llm-processor", METRICS_FORMAT="json").wait_alive()
    answer = httpx.get(f"{processor.url}/metrics")
    assert answer.headers["content-type"] == "application/json"
    assert answer.json()['nephoran_llm_requests_total{model="stand-in",status="success"}'] == 0


def test_stand_in_for_weaviate_takes_the_arguments_of_the_real_one(start: Start) -> None:
    one = start("weaviate", BEHAVIOUR="never-ready", arguments=["--host", "0.0.0.0", "--port", "1", "--scheme", "http"])
    wait_until("life", lambda: http_status(f"{one.url}/v1/.well-known/live") == 200, limit=LIMIT)
    assert http_status(f"{one.url}/v1/.well-known/ready") == 503


def test_policies_are_kept_and_deleted(start: Start) -> None:
    adaptor = start("oran-adaptor").wait_alive()
    policy = f"{adaptor.url}/a1-p/policytypes/100/policies/policy-one"
    assert httpx.get(policy).status_code == 404
    assert httpx.put(policy, json={"scope": "x"}).status_code == 201
    assert httpx.put(policy, json={"scope": "y"}).status_code == 200
    assert httpx.get(policy).json() == {"scope": "y"}
    assert [httpx.delete(policy).status_code for _ in range(2)] == [204, 404]


def test_packages_are_listed_with_the_version_that_answers(start: Start) -> None:
    bridge = start("nephio-bridge", VERSION="v3").wait_alive()
    listed = httpx.get(f"{bridge.url}/packages").json()
    assert (listed["version"], len(listed["packages"])) == ("v3", 3)
