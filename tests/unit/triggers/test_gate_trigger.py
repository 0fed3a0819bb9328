"""The gate's trigger against a Prometheus and an API server on loopback, on a clock of its own."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from nephoran_maintenance.domain.gate import QUERIES, Recording, head_line, replay
from nephoran_maintenance.hooks.promql import read_queries
from nephoran_maintenance.profile import Gate
from nephoran_maintenance.triggers.gate import GateTrigger
from nephoran_maintenance.triggers.probe import read_samples
from tests.unit.fake_prometheus import FakePrometheus, down, nothing
from tests.unit.hooks.fake_servers import (
    FakeCluster,
    Received,
    Reply,
    Server,
    connection_json,
    deployment,
    pod,
    serving,
    status_object,
)

BEGUN_AT = datetime(2026, 11, 23, 10, 5, tzinfo=UTC)
PODS = ["rag-api-abc-0", "rag-api-abc-1"]


class Clock:
    """A clock that stands still until somebody waits."""

    def __init__(self) -> None:
        self.at = BEGUN_AT

    def wait(self) -> None:
        self.at += timedelta(seconds=1)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()

    async def pause(trigger: GateTrigger) -> None:
        trigger.check_deadline()
        clock.wait()

    monkeypatch.setattr(GateTrigger, "now", lambda trigger: clock.at)
    monkeypatch.setattr(GateTrigger, "pause", pause)
    return clock


@pytest.fixture
def prometheus(fake_cluster: FakeCluster, cluster_server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    for name in ("rag-api", "llm-processor"):
        fake_cluster.put("/apis/apps/v1/namespaces/ns/deployments", deployment(name))
        for number in range(2):
            fake_cluster.put("/api/v1/namespaces/ns/pods", pod(f"{name}-abc-{number}", name))
    found = FakePrometheus(lambda: [p.rpartition("/")[2] for p in list(fake_cluster.objects) if "/pods/" in p])
    with serving(found) as server:
        connection = connection_json(conn_type="http", host="127.0.0.1", port=server.port)
        monkeypatch.setenv("AIRFLOW_CONN_PROMETHEUS_TEST", connection)
        yield found


def gate(component: str = "rag-api", **settings: Any) -> dict[str, Any]:
    recording = Recording(component, ("error_ratio", "latency_p95"), Gate(**settings), BEGUN_AT)
    place = {"namespace": "ns", "kind": "Deployment"}
    queries = read_queries(component, QUERIES, workload=component, window=timedelta(seconds=60), **place)
    return {"head": head_line(recording), **place, "name": component, "queries": queries}


def trigger(folder: Path, *gates: dict[str, Any], **changes: Any) -> GateTrigger:
    parameters: dict[str, Any] = {
        "connection_id": "kubernetes_test",
        "prometheus_connection_id": "prometheus_test",
        "samples_path": str(folder / "reports" / "gate-samples.jsonl"),
        "gates": list(gates) or [gate()],
    }
    return GateTrigger(**{**parameters, **changes})


async def only_event(of: GateTrigger) -> dict[str, Any]:
    async def collect() -> list[Any]:
        return [found.payload async for found in of.run()]

    events = await asyncio.wait_for(collect(), 60)
    assert len(events) == 1
    assert set(events[0]) == {"state", "message", "reference", "hint", "seconds", "verdicts"}
    return json.loads(json.dumps(events[0], allow_nan=False))  # type: ignore[no-any-return]


def verdict(found: dict[str, Any]) -> tuple[str, str]:
    assert found["state"] == "complete", found
    return found["verdicts"][0]["state"], found["verdicts"][0]["reason"]


async def test_is_open_after_five_minutes_of_good_samples(
    clock: Clock, prometheus: FakePrometheus, tmp_path: Path
) -> None:
    found = await only_event(trigger(tmp_path))
    assert verdict(found) == ("open", "within-limits")
    assert clock.at == BEGUN_AT + timedelta(minutes=5)
    assert found["verdicts"][0]["figures"]["requests_per_second"] == 60.0
    moments = sorted({at for _, at in prometheus.asked})
    assert moments == [(BEGUN_AT + timedelta(seconds=15 * n)).timestamp() for n in range(21)]
    assert len(prometheus.asked) == 21 * len(QUERIES)


async def test_gates_at_work_at_once_share_their_looks_at_the_cluster(
    clock: Clock, prometheus: FakePrometheus, fake_cluster: FakeCluster, tmp_path: Path
) -> None:
    lists: list[str] = []

    def count(request: Received) -> Reply | None:
        if request.method == "GET" and request.path.endswith("/pods"):
            lists.append(request.path)
        return None

    fake_cluster.fail = count
    await only_event(trigger(tmp_path / "alone"))
    alone = len(lists)
    assert alone == 21
    lists.clear()
    found = await asyncio.gather(*(only_event(trigger(tmp_path / f"gate-{number}")) for number in range(4)))
    assert [verdict(one)[0] for one in found] == ["open"] * 4
    assert len(lists) < 2 * alone


async def test_closes_on_a_bad_release_at_the_second_sample(
    clock: Clock, prometheus: FakePrometheus, tmp_path: Path
) -> None:
    prometheus.ratio = 0.2
    found = await only_event(trigger(tmp_path))
    assert verdict(found) == ("closed", "error_ratio")
    assert clock.at == BEGUN_AT + timedelta(seconds=15)
    assert "20.0% of the requests failed, limit 5.0%, in two samples in a row" in found["message"]


async def test_samples_are_kept_and_give_the_same_verdict_again(
    clock: Clock, prometheus: FakePrometheus, tmp_path: Path
) -> None:
    prometheus.seconds = 8.0
    asked = trigger(tmp_path)
    found = await only_event(asked)
    assert verdict(found) == ("closed", "latency_p95")
    head, *samples = lines = read_samples(Path(asked.samples_path))
    again = replay("\n".join(map(json.dumps, lines)))
    assert [result and result.to_dict() for result in again.values()] == found["verdicts"]
    assert head["gate"]["settings"]["interval_seconds"] == 15
    assert [one["at"] for one in samples] == [
        (BEGUN_AT + timedelta(seconds=15 * n)).isoformat() for n in range(len(samples))
    ]
    assert set(samples[0]["pods"]) == set(samples[0]["planned"]) == set(PODS)


async def test_a_restarted_triggerer_makes_up_for_the_moments_that_it_missed(
    clock: Clock, prometheus: FakePrometheus, tmp_path: Path
) -> None:
    first = trigger(tmp_path)

    def stop(request: Received) -> None:
        if len(prometheus.asked) == 4 * len(QUERIES):
            raise_in.cancel()

    prometheus.before = stop  # type: ignore[assignment]
    raise_in = asyncio.create_task(only_event(first))
    with pytest.raises(asyncio.CancelledError):
        await raise_in
    prometheus.before = lambda request: None
    kept = len(read_samples(Path(first.samples_path))) - 1
    assert 0 < kept <= 5
    clock.at += timedelta(seconds=100)
    later = gate()
    later["head"] = head_line(Recording("rag-api", ("error_ratio",), Gate(), clock.at))
    found = await only_event(trigger(tmp_path, later))
    assert verdict(found) == ("open", "within-limits")
    lines = read_samples(Path(first.samples_path))
    assert len(lines) == 22, "one head, and no moment is left out or asked about twice"
    assert found["verdicts"][0]["figures"]["samples"] == 21


async def test_a_verdict_that_the_file_holds_needs_no_further_sample(
    clock: Clock, prometheus: FakePrometheus, tmp_path: Path
) -> None:
    prometheus.ratio = 0.2
    found = await only_event(trigger(tmp_path))
    prometheus.asked.clear()
    assert (await only_event(trigger(tmp_path)))["verdicts"] == found["verdicts"]
    assert prometheus.asked == []


async def test_prometheus_that_is_down_for_one_sample_is_tolerated(
    clock: Clock, prometheus: FakePrometheus, tmp_path: Path
) -> None:
    prometheus.before = lambda request: down(request) if clock.at == BEGUN_AT + timedelta(seconds=60) else None
    found = await only_event(trigger(tmp_path))
    assert verdict(found) == ("open", "within-limits")
    assert (found["verdicts"][0]["figures"]["samples"], found["verdicts"][0]["figures"]["valid_samples"]) == (21, 20)


async def test_prometheus_that_stays_down_is_unknown_as_soon_as_there_is_a_gap(
    clock: Clock, prometheus: FakePrometheus, tmp_path: Path
) -> None:
    prometheus.before = lambda request: down(request) if clock.at > BEGUN_AT + timedelta(seconds=60) else None
    found = await only_event(trigger(tmp_path))
    assert verdict(found) == ("unknown", "no-answer")
    assert "no valid sample for 45 s: Prometheus at 127.0.0.1:" in found["message"]
    assert "answered 503" in found["message"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        pytest.param({"pods": nothing}, "no-series", id="json-metrics"),
        pytest.param({"pods": lambda: PODS[:1]}, "pod-without-series", id="one pod"),
        pytest.param({"number": lambda value: "NaN"}, "not-a-number", id="NaN"),
        pytest.param({"age": 40.0}, "stale", id="stale"),
        pytest.param({"rate": 0.1}, "no-traffic", id="no traffic"),
    ],
)
async def test_what_was_not_measured_is_unknown(
    clock: Clock, prometheus: FakePrometheus, tmp_path: Path, change: dict[str, Any], reason: str
) -> None:
    for name, value in change.items():
        setattr(prometheus, name, value)
    found = await only_event(trigger(tmp_path))
    assert verdict(found) == ("unknown", reason)
    assert clock.at < BEGUN_AT + timedelta(minutes=3)


async def test_an_api_server_that_is_away_for_a_moment_is_tolerated(
    clock: Clock, prometheus: FakePrometheus, fake_cluster: FakeCluster, tmp_path: Path
) -> None:
    fake_cluster.fail = lambda request: (
        status_object(503, "ServiceUnavailable", "starting") if clock.at == BEGUN_AT + timedelta(seconds=30) else None
    )
    assert verdict(await only_event(trigger(tmp_path))) == ("open", "within-limits")


async def test_a_pod_that_was_replaced_is_no_longer_asked_for(
    clock: Clock, prometheus: FakePrometheus, fake_cluster: FakeCluster, tmp_path: Path
) -> None:
    def replace_one(request: Received) -> None:
        if clock.at == BEGUN_AT + timedelta(seconds=90):
            fake_cluster.objects.pop(f"/api/v1/namespaces/ns/pods/{PODS[0]}", None)
            fake_cluster.put("/api/v1/namespaces/ns/pods", pod("rag-api-abc-2", "rag-api"))

    fake_cluster.fail = replace_one  # type: ignore[assignment]
    asked = trigger(tmp_path)
    assert verdict(await only_event(asked)) == ("open", "within-limits")
    planned = [set(line["planned"]) for line in read_samples(Path(asked.samples_path))[1:]]
    assert planned[0] == set(PODS)
    assert planned[-1] == {PODS[1], "rag-api-abc-2"}


async def test_gates_of_the_whole_are_sampled_together_and_one_decides(
    clock: Clock, prometheus: FakePrometheus, tmp_path: Path
) -> None:
    both = gate("rag-api"), gate("llm-processor")
    found = await only_event(trigger(tmp_path / "good", *both))
    assert [one["state"] for one in found["verdicts"]] == ["open", "open"]
    assert clock.at == BEGUN_AT + timedelta(minutes=5)
    clock.at = BEGUN_AT
    series = prometheus.series
    prometheus.series = lambda pod, text: (  # type: ignore[method-assign]
        [] if pod.startswith("llm") else series(pod, text)
    )
    found = await only_event(trigger(tmp_path / "bad", *both))
    assert [(one["component"], one["state"]) for one in found["verdicts"]] == [("llm-processor", "unknown")]


async def test_a_query_that_prometheus_refuses_ends_it(
    clock: Clock, prometheus: FakePrometheus, tmp_path: Path
) -> None:
    prometheus.before = lambda request: Reply(400, {"status": "error", "error": "parse error"})
    found = await only_event(trigger(tmp_path))
    assert (found["state"], found["reference"]) == ("error", "prometheus-query-invalid")


async def test_ends_at_its_deadline(clock: Clock, prometheus: FakePrometheus, tmp_path: Path) -> None:
    found = await only_event(trigger(tmp_path, deadline_at=(BEGUN_AT + timedelta(seconds=50)).isoformat()))
    assert (found["state"], found["verdicts"]) == ("timeout", [])


async def test_says_so_when_samples_can_not_be_kept(clock: Clock, prometheus: FakePrometheus, tmp_path: Path) -> None:
    (tmp_path / "reports").write_text("a file where the folder should be")
    found = await only_event(trigger(tmp_path))
    assert (found["state"], found["reference"]) == ("error", "samples-not-written")
