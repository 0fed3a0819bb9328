"""The probe against a system and an API server on loopback."""

from __future__ import annotations

import asyncio
import inspect
import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk._shared.module_loading import import_string

from nephoran_maintenance.triggers.probe import ProbeTrigger, append_samples, read_samples
from tests.unit.hooks.fake_servers import FakeCluster, Received, Reply, Server, serving

JOURNALS = "/api/v1/namespaces/maintenance/configmaps"


def known(number: int) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"nephoran/TelecomKnowledge/{number}"))


NUMBERS = {known(number): number for number in range(500)}


def right(request: Received) -> Reply:
    object_id = request.json["object_id"]
    title = f"knowledge-{NUMBERS[object_id]}"
    return Reply(200, {"object_id": object_id, "title": title, "processor_version": "v1", "rag_version": "v2"})


class System:
    """The probed system: answers right until told otherwise, and stops the probe after so many requests."""

    def __init__(self, fake_cluster: FakeCluster) -> None:
        self.fake_cluster = fake_cluster
        self.answer: Callable[[int, Received], Reply] = lambda count, request: right(request)
        self.stop_after = 30
        self.count = 0

    def __call__(self, request: Received) -> Reply:
        self.count += 1
        if self.count == self.stop_after:
            put_journal(self.fake_cluster, {"maintenance.nephoran.com/probe": "stop"})
        return self.answer(self.count, request)


def put_journal(fake_cluster: FakeCluster, annotations: dict[str, str]) -> None:
    fake_cluster.put(JOURNALS, {"kind": "ConfigMap", "metadata": {"name": "op-1", "annotations": annotations}})


@pytest.fixture
def system(fake_cluster: FakeCluster, cluster_server: Server) -> System:
    put_journal(fake_cluster, {})
    return System(fake_cluster)


@pytest.fixture
def system_server(system: System) -> Iterator[Server]:
    with serving(system) as server:
        yield server


def trigger(url: str, folder: Path, **changes: Any) -> ProbeTrigger:
    parameters: dict[str, Any] = {
        "url": f"{url}/process",
        "samples_path": str(folder / "reports" / "probe-samples.jsonl"),
        "kubernetes_connection_id": "kubernetes_test",
        "journal_namespace": "maintenance",
        "journal_name": "op-1",
        "collection": "TelecomKnowledge",
        "known_objects_count": 500,
        "rate_per_second": 150.0,
        "timeout_seconds": 10.0,
        "poll_interval_seconds": 0.01,
    }
    return ProbeTrigger(**{**parameters, **changes})


async def only_event(of: ProbeTrigger) -> dict[str, Any]:
    async def collect() -> list[Any]:
        return [found.payload async for found in of.run()]

    events = await asyncio.wait_for(collect(), 60)
    assert len(events) == 1
    return dict(events[0])


def test_serializes_every_parameter_and_comes_back_the_same(tmp_path: Path) -> None:
    path, parameters = trigger("http://127.0.0.1:1", tmp_path).serialize()
    again = import_string(path)(**parameters)
    assert again.serialize() == (path, parameters)
    assert set(parameters) == set(inspect.signature(ProbeTrigger.__init__).parameters) - {"self"}
    json.dumps(parameters)


async def test_measures_until_the_operation_says_stop(system: System, system_server: Server, tmp_path: Path) -> None:
    found = await only_event(trigger(system_server.url, tmp_path))
    assert found["state"] == "complete"
    assert found["summary"]["stopped_by"] == "operation"
    assert found["summary"]["failed"] == 0
    assert found["summary"]["sent"] == len(system_server.received) >= 30
    samples = read_samples(Path(found["samples"]))
    assert len(samples) == found["summary"]["sent"]
    assert {sample["versions"] for sample in samples} == {"v1/v2"}


async def test_every_request_has_its_own_connection_and_object(
    system: System, system_server: Server, tmp_path: Path
) -> None:
    await only_event(trigger(system_server.url, tmp_path))
    assert len({request.client for request in system_server.received}) == len(system_server.received)
    assert len({request.json["object_id"] for request in system_server.received}) == len(system_server.received)


async def test_ends_at_its_deadline_when_nobody_stops_it(system: System, system_server: Server, tmp_path: Path) -> None:
    system.stop_after = 0
    found = await only_event(trigger(system_server.url, tmp_path, deadline_seconds=0.2))
    assert found["state"] == "complete"
    assert found["summary"]["stopped_by"] == "deadline"


@pytest.mark.parametrize(
    ("reply", "failure"),
    [
        pytest.param(lambda request: Reply(502, "upstream token=abcdefgh broke"), "status 502: upstream", id="status"),
        pytest.param(lambda request: Reply(hang_up=True), "reset: ", id="connection-broken"),
        pytest.param(lambda request: Reply(200, "<html>"), "not-json: ", id="not-json"),
        pytest.param(lambda request: Reply(200, {"object_id": known(1)}), "wrong-object: ", id="wrong-object"),
        pytest.param(
            lambda request: Reply(200, {"object_id": request.json["object_id"], "title": "else"}),
            "wrong-title: ",
            id="wrong-title",
        ),
    ],
)
async def test_names_why_a_request_failed(
    system: System, system_server: Server, tmp_path: Path, reply: Callable[[Received], Reply], failure: str
) -> None:
    system.answer = lambda count, request: reply(request) if count == 10 else right(request)
    found = await only_event(trigger(system_server.url, tmp_path))
    assert found["summary"]["failed"] == 1
    failures = [sample["failure"] for sample in read_samples(Path(found["samples"])) if sample["failure"]]
    assert len(failures) == 1
    assert failures[0].startswith(failure)
    assert "abcdefgh" not in failures[0]


async def test_a_request_without_an_answer_in_time_has_failed(
    system: System, system_server: Server, tmp_path: Path
) -> None:
    released = threading.Event()
    system.stop_after = 5

    def answer(count: int, request: Received) -> Reply:
        return Reply(200, {}, before=lambda: released.wait(30)) if count == 3 else right(request)

    system.answer = answer
    found = await only_event(trigger(system_server.url, tmp_path, timeout_seconds=1.0))
    released.set()
    failures = [sample["failure"] for sample in read_samples(Path(found["samples"])) if sample["failure"]]
    assert "timeout: no answer within 1 s" in failures


async def test_a_refused_connection_is_a_failed_request(system: System, system_server: Server, tmp_path: Path) -> None:
    found = await only_event(trigger("http://127.0.0.1:1", tmp_path, deadline_seconds=0.1))
    assert found["summary"]["sent"] == found["summary"]["failed"] > 0
    assert read_samples(Path(found["samples"]))[0]["failure"].startswith("refused: ")


async def test_the_rate_does_not_wait_for_answers(system: System, system_server: Server, tmp_path: Path) -> None:
    all_sent = threading.Event()

    def answer(count: int, request: Received) -> Reply:
        if count >= 30:
            all_sent.set()
        return Reply(200, right(request).body, before=lambda: all_sent.wait(30))

    system.answer = answer
    found = await only_event(trigger(system_server.url, tmp_path, timeout_seconds=30.0))
    assert found["summary"]["failed"] == 0


async def test_tells_its_own_delay_from_the_systems(system: System, system_server: Server, tmp_path: Path) -> None:
    system.stop_after = 80
    probe = trigger(system_server.url, tmp_path)

    async def block_the_loop() -> None:
        while system.count < 20:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        time.sleep(0.4)  # noqa: ASYNC251 - this is what a badly written neighbour does

    blocker = asyncio.create_task(block_the_loop())
    found = await only_event(probe)
    await blocker
    assert found["summary"]["late_seconds_max"] >= 0.3
    assert found["summary"]["skipped"] > 0
    assert found["summary"]["failed"] == 0


async def test_an_api_server_that_is_away_does_not_stop_the_measurement(
    system: System, system_server: Server, fake_cluster: FakeCluster, tmp_path: Path
) -> None:
    fake_cluster.fail = lambda request: Reply(hang_up=True)
    system.stop_after = 60
    probe = trigger(system_server.url, tmp_path)

    def answer(count: int, request: Received) -> Reply:
        if count == 50:
            fake_cluster.fail = None
        return right(request)

    system.answer = answer
    found = await only_event(probe)
    assert found["summary"]["stopped_by"] == "operation"
    assert found["summary"]["sent"] >= 60


async def test_ends_when_the_journal_can_not_be_read_for_too_long(
    system: System, system_server: Server, fake_cluster: FakeCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nephoran_maintenance.triggers.probe.JOURNAL_UNREADABLE_LIMIT_SECONDS", 0.05)
    fake_cluster.objects.clear()
    system.stop_after = 0
    found = await only_event(trigger(system_server.url, tmp_path))
    assert found["summary"]["stopped_by"] == "journal-unreadable"


async def test_a_restarted_triggerer_goes_on_in_the_same_file(
    system: System, system_server: Server, tmp_path: Path
) -> None:
    first = trigger(system_server.url, tmp_path)

    async def consume() -> None:
        async for _ in first.run():
            pass

    task = asyncio.create_task(consume())
    while system.count < 15:  # noqa: ASYNC110
        await asyncio.sleep(0.001)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    kept = len(read_samples(Path(first.samples_path)))
    assert kept > 0
    system.stop_after = system.count + 20
    found = await only_event(trigger(system_server.url, tmp_path))
    assert found["summary"]["sent"] == len(read_samples(Path(found["samples"]))) >= kept + 20


async def test_says_so_when_samples_can_not_be_written(
    system: System, system_server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nephoran_maintenance.triggers.probe.FLUSH_INTERVAL_SECONDS", 0.01)
    (tmp_path / "reports").write_text("a file where the folder should be")
    found = await only_event(trigger(system_server.url, tmp_path))
    assert (found["state"], found["reference"]) == ("error", "samples-not-written")


async def test_refuses_an_address_that_is_none(cluster_server: Server, tmp_path: Path) -> None:
    found = await only_event(trigger("llm-processor:8080", tmp_path))
    assert (found["state"], found["reference"]) == ("error", "probe-url-invalid")


def test_a_half_written_last_line_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    append_samples(path, [{"seconds": 0.1}])
    with path.open("a") as file:
        file.write('{"seconds": 0.')
    assert read_samples(path) == [{"seconds": 0.1}]
    append_samples(path, [{"seconds": 0.2}])
    assert read_samples(path) == [{"seconds": 0.1}, {"seconds": 0.2}], "it must not take the next one with it"
