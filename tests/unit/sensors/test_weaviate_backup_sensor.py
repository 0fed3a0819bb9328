"""The Weaviate backup sensor and its triggers, against a Weaviate and a staging bucket on loopback."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

import pytest
from airflow.sdk.exceptions import AirflowException, AirflowFailException, TaskDeferred

from nephoran_maintenance.errors import PermanentError
from nephoran_maintenance.hooks.weaviate_api import WeaviateHook
from nephoran_maintenance.sensors.weaviate_backup import WeaviateBackupSensor
from nephoran_maintenance.triggers.base import PollingTrigger
from nephoran_maintenance.triggers.weaviate_backup import (
    WeaviateBackupTrigger,
    WeaviateEndTrigger,
    WeaviateIdleTrigger,
)
from tests.unit.hooks.fake_servers import Answer, Received, Reply, Server, connection_json, serving

ID = "backup-20261124t023000z-abcdef"
BACKUPS = "/v1/backups/s3"
START = datetime(2026, 11, 24, 2, 30, tzinfo=UTC)


class FakeWeaviate:
    """One Weaviate: ``statuses`` says what each look at a backup finds, the last of them for ever."""

    def __init__(self) -> None:
        self.version = "1.39.0"
        self.statuses: dict[str, list[dict[str, Any] | None]] = {}
        self.created: list[dict[str, Any]] = []
        self.cancelled: list[str] = []
        self.refuse = ""
        self.path = ""
        self.down = 0

    def __call__(self, request: Received) -> Reply:
        if self.down:
            self.down -= 1
            return Reply(503, "")
        if request.path == "/v1/meta":
            return Reply(200, {"version": self.version})
        name = request.path.removeprefix(f"{BACKUPS}/")
        if request.method == "POST" and request.path == BACKUPS:
            if self.refuse:
                return Reply(422, {"error": [{"message": self.refuse}]})
            self.created.append(request.json)
            self.statuses.setdefault(request.json["id"], [{"status": "STARTED"}])
            path = {"path": self.path.format(request.json["id"])} if self.path else {}
            return Reply(200, {"id": request.json["id"], "status": "STARTED", **path})
        if request.method == "DELETE":
            self.cancelled.append(name)
            return Reply(204)
        found = self.statuses.get(name, [None])
        status = found.pop(0) if len(found) > 1 else found[0]
        return Reply(404, "") if status is None else Reply(200, {"id": name, **status})


@pytest.fixture
def serve() -> Iterator[Callable[[Answer], Server]]:
    with ExitStack() as stack:
        yield lambda answer: stack.enter_context(serving(answer))


@pytest.fixture
def weaviate(serve: Callable[[Answer], Server], monkeypatch: pytest.MonkeyPatch) -> FakeWeaviate:
    fake = FakeWeaviate()
    parts = urlsplit(serve(fake).url)
    fields = {
        "conn_type": "http",
        "host": parts.hostname,
        "port": parts.port,
        "schema": "http",
        "password": "weaviate-key",
    }
    monkeypatch.setenv("AIRFLOW_CONN_WEAVIATE_TEST", connection_json(**fields))
    return fake


@pytest.fixture
def staging(serve: Callable[[Answer], Server], monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """A staging bucket: sizes by key."""
    files: dict[str, int] = {}

    def answer(request: Received) -> Reply:
        if request.method == "DELETE":
            del files[request.path.removeprefix("/staging/")]
            return Reply(204)
        kept = {key: size for key, size in files.items() if key.startswith(request.query.get("prefix", ""))}
        found = "".join(f"<Contents><Key>{key}</Key><Size>{size}</Size></Contents>" for key, size in kept.items())
        text = f"<ListBucketResult><IsTruncated>false</IsTruncated>{found}</ListBucketResult>"
        return Reply(200, text, {"Content-Type": "application/xml"})

    extra = {"endpoint_url": serve(answer).url, "region_name": "us-east-1"}
    fields = {"conn_type": "aws", "login": "staging-user", "password": "staging-password", "extra": extra}
    monkeypatch.setenv("AIRFLOW_CONN_STAGING_TEST", connection_json(**fields))
    return files


class FixedClock(WeaviateBackupSensor):
    @staticmethod
    def now() -> datetime:
        return START


def sensor(**changes: Any) -> WeaviateBackupSensor:
    parameters: dict[str, Any] = {
        "task_id": "wait_weaviate_backup",
        "weaviate_connection_id": "weaviate_test",
        "backend": "s3",
        "backup_id": ID,
    }
    return FixedClock(**{**parameters, **changes})


def deferred(made: WeaviateBackupSensor) -> TaskDeferred:
    with pytest.raises(TaskDeferred) as caught:
        made.execute({})
    return caught.value


def trigger(**changes: Any) -> WeaviateBackupTrigger:
    parameters: dict[str, Any] = {
        "connection_id": "weaviate_test",
        "backend": "s3",
        "backup_id": ID,
        "poll_interval_seconds": 0.001,
    }
    return WeaviateBackupTrigger(**{**parameters, **changes})


async def only_event(of: PollingTrigger) -> dict[str, Any]:
    async def collect() -> list[Any]:
        return [found.payload async for found in of.run()]

    [event] = await asyncio.wait_for(collect(), 60)
    json.dumps(event)
    return dict(event)


# ---------------------------------------------------------------------------------------------------------- the sensor


def test_starts_a_backup_of_everything_and_waits_for_it(weaviate: FakeWeaviate) -> None:
    found = deferred(sensor(staging_connection_id="staging_test", staging_bucket="staging"))
    assert weaviate.created == [{"id": ID}]
    assert isinstance(found.trigger, WeaviateBackupTrigger)
    assert (found.method_name, found.trigger.backup_id) == ("conclude", ID)
    assert found.trigger.staging_prefix == f"{ID}/"
    assert found.trigger.deadline_at == (START + timedelta(hours=24)).isoformat()


def test_measures_where_weaviate_says_that_it_writes(weaviate: FakeWeaviate) -> None:
    weaviate.path = "s3://staging/site-1/weaviate/{}"
    found = deferred(sensor(staging_connection_id="staging_test", staging_bucket="staging"))
    assert isinstance(found.trigger, WeaviateBackupTrigger)
    assert found.trigger.staging_prefix == f"site-1/weaviate/{ID}/"


def test_a_backup_into_another_bucket_is_cancelled(weaviate: FakeWeaviate) -> None:
    weaviate.path = "s3://elsewhere/{}"
    with pytest.raises(AirflowFailException, match="weaviate-staging-elsewhere"):
        sensor(staging_connection_id="staging_test", staging_bucket="staging").execute({})
    assert weaviate.cancelled == [ID]


def test_a_repeated_step_finds_the_backup_that_it_has_started(weaviate: FakeWeaviate) -> None:
    weaviate.statuses[ID] = [{"status": "TRANSFERRING", "startedAt": "2026-11-24T02:00:00Z"}]
    found = deferred(sensor())
    assert weaviate.created == []
    assert isinstance(found.trigger, WeaviateBackupTrigger)


def test_a_finished_backup_costs_no_trigger(weaviate: FakeWeaviate) -> None:
    weaviate.statuses[ID] = [{"status": "SUCCESS", "size": 0.5, "startedAt": "a", "completedAt": "b"}]
    found = sensor().execute({})
    assert (found["status"], found["size_gib"], found["weaviate_version"]) == ("SUCCESS", 0.5, "1.39.0")
    assert found["incremental"] == "a full one was asked for"


def test_builds_on_the_base_where_the_server_can(weaviate: FakeWeaviate) -> None:
    deferred(sensor(base_id="base-1"))
    assert weaviate.created == [{"id": ID, "incremental_base_backup_id": "base-1"}]
    answer = {"status": "SUCCESS", "incremental_base_backup_id": "base-1"}
    found = sensor(base_id="base-1").conclude({}, {"state": "complete", "message": "", "answer": answer})
    assert (found["incremental"], found["incremental_base_id"]) == ("yes", "base-1")


def test_makes_a_full_one_where_the_server_can_not_and_says_so(weaviate: FakeWeaviate) -> None:
    weaviate.version = "1.36.4"
    deferred(sensor(base_id="base-1"))
    assert weaviate.created == [{"id": ID}]
    found = sensor(base_id="base-1").conclude({}, {"state": "complete", "message": "", "answer": {"status": "SUCCESS"}})
    assert (found["incremental"], found["incremental_base_id"]) == ("Weaviate 1.36.4 can't: 1.37 can", "")


def test_waits_for_its_turn_while_another_backup_is_under_way(weaviate: FakeWeaviate) -> None:
    weaviate.refuse = "backup nightly-7 already in progress"
    found = deferred(sensor())
    assert isinstance(found.trigger, WeaviateIdleTrigger)
    assert (found.trigger.backup_id, found.method_name) == ("nightly-7", "resume")
    weaviate.refuse = ""
    assert found.kwargs
    with pytest.raises(TaskDeferred) as caught:
        sensor().resume({}, {"state": "complete", "message": ""}, **found.kwargs)
    assert isinstance(caught.value.trigger, WeaviateBackupTrigger)
    assert caught.value.trigger.deadline_at == found.kwargs["deadline_at"]
    assert weaviate.created == [{"id": ID}]


def test_a_turn_that_never_comes_is_named(weaviate: FakeWeaviate) -> None:
    with pytest.raises(AirflowException, match="weaviate-backup-in-progress"):
        sensor().resume({}, {"state": "timeout", "message": "the deadline has passed"}, START.isoformat())
    assert weaviate.cancelled == [], "the other one is not ours to cancel"


@pytest.mark.parametrize(
    ("refusal", "said"),
    [
        ('no backup backend "s3", did you enable the right module?', "ENABLE_MODULES"),
        ("local filesystem backend is not viable for backing up a node cluster", "Use s3"),
        ("could not fetch base backup: not found", "full backup"),
    ],
    ids=["module", "several-nodes", "base"],
)
def test_a_refusal_says_what_to_do(weaviate: FakeWeaviate, refusal: str, said: str) -> None:
    weaviate.refuse = refusal
    with pytest.raises(AirflowFailException, match=said):
        sensor().execute({})


def test_a_backup_that_failed_fails_with_weaviates_reason(weaviate: FakeWeaviate) -> None:
    weaviate.statuses[ID] = [{"status": "FAILED", "error": "shard is read-only"}]
    with pytest.raises(AirflowFailException, match="shard is read-only"):
        sensor().execute({})
    assert weaviate.cancelled == []


REINDEXING = 'backup blocked: runtime-reindex in flight on this shard: shard "a" (collection "Telecom")'


def test_a_weaviate_that_may_be_rebuilding_an_index_is_tried_again(weaviate: FakeWeaviate) -> None:
    weaviate.refuse = REINDEXING
    with pytest.raises(AirflowException, match="weaviate-reindexing") as caught:
        sensor().execute({})
    assert not isinstance(caught.value, AirflowFailException)
    assert (weaviate.created, weaviate.cancelled) == ([], [])


@pytest.mark.parametrize("late", [False, True], ids=["with the status", "a moment later"])
def test_a_backup_that_failed_over_an_index_is_taken_out_of_staging_and_tried_again(
    weaviate: FakeWeaviate, staging: dict[str, int], late: bool
) -> None:
    kept = {f"{ID}-2/node/chunk-1": 1, "other/backup_config.json": 1}
    staging.update({f"{ID}/node/chunk-1": 7, f"{ID}/backup_config.json": 7, f"{ID}/node/backup.json": 7, **kept})
    told = {"status": "FAILED", "error": REINDEXING, "path": f"s3://staging/{ID}"}
    weaviate.statuses[ID] = [{"status": "FAILED"}, told] if late else [told]
    made = sensor(staging_connection_id="staging_test", staging_bucket="staging")
    with pytest.raises(AirflowException, match="weaviate-reindexing") as caught:
        made.execute({})
    assert not isinstance(caught.value, AirflowFailException)
    assert staging == kept


def test_without_the_staging_bucket_a_failed_backup_is_the_end_of_it(weaviate: FakeWeaviate) -> None:
    weaviate.statuses[ID] = [{"status": "FAILED", "error": REINDEXING}]
    with pytest.raises(AirflowFailException, match="weaviate-backup-failed"):
        sensor().execute({})


def test_a_backup_that_failed_for_another_reason_stays_in_staging(
    weaviate: FakeWeaviate, staging: dict[str, int]
) -> None:
    staging[f"{ID}/node/chunk-1"] = 7
    weaviate.statuses[ID] = [{"status": "FAILED", "error": "no space left"}]
    with pytest.raises(AirflowFailException, match="no space left"):
        sensor(staging_connection_id="staging_test", staging_bucket="staging").execute({})
    assert list(staging) == [f"{ID}/node/chunk-1"]


def test_a_backup_that_was_cancelled_is_started_anew_by_a_repeated_step(weaviate: FakeWeaviate) -> None:
    weaviate.statuses[ID] = [{"status": "CANCELED"}]
    deferred(sensor())
    assert weaviate.created == [{"id": ID}]


@pytest.mark.parametrize("state", ["timeout", "stalled", "error"])
def test_what_may_still_be_at_work_is_cancelled(weaviate: FakeWeaviate, state: str) -> None:
    with pytest.raises(AirflowFailException, match=f"is {state}: why; it was cancelled"):
        sensor().conclude({}, {"state": state, "message": "why", "answer": {}})
    assert weaviate.cancelled == [ID]


def test_says_when_it_could_not_be_cancelled(weaviate: FakeWeaviate) -> None:
    weaviate.down = 1
    with pytest.raises(AirflowFailException, match="it could not be cancelled"):
        sensor().conclude({}, {"state": "timeout", "message": "why", "answer": {}})


@pytest.mark.parametrize("state", ["failed", "cancelled"])
def test_what_has_ended_is_not_cancelled(weaviate: FakeWeaviate, state: str) -> None:
    with pytest.raises(AirflowFailException, match="why"):
        sensor().conclude({}, {"state": state, "message": "why", "answer": {}})
    assert weaviate.cancelled == []


def test_a_killed_step_leaves_no_backup_at_work(weaviate: FakeWeaviate) -> None:
    sensor().on_kill()
    assert weaviate.cancelled == [ID]


def test_a_weaviate_that_is_away_is_tried_again(weaviate: FakeWeaviate) -> None:
    weaviate.down = 1
    with pytest.raises(AirflowException) as caught:
        sensor().execute({})
    assert not isinstance(caught.value, AirflowFailException)


# -------------------------------------------------------------------------------------------------------- the triggers


async def test_sees_a_backup_through_all_its_states(weaviate: FakeWeaviate, staging: dict[str, int]) -> None:
    words = ("STARTED", "TRANSFERRING", "TRANSFERRED", "FINALIZING", "SUCCESS")
    weaviate.statuses[ID] = [{"status": word} for word in words]
    staging.update({f"{ID}/node/chunk-1": 2**20, f"{ID}/backup_config.json": 0, "other/chunk": 7})
    event = await only_event(trigger(staging_connection_id="staging_test", staging_bucket="s", staging_prefix=f"{ID}/"))
    assert (event["state"], event["status"]) == ("complete", "SUCCESS")
    assert (event["staged_objects"], event["staged_bytes"]) == (2, 2**20)
    assert event["progress"] == "SUCCESS, 1.0 MiB in 2 objects staged"


async def test_fails_with_weaviates_reason(weaviate: FakeWeaviate) -> None:
    weaviate.statuses[ID] = [{"status": "STARTED"}, {"status": "FAILED", "error": "no space left"}]
    event = await only_event(trigger())
    assert (event["state"], event["message"]) == ("failed", "no space left")


async def test_tells_that_it_was_cancelled(weaviate: FakeWeaviate) -> None:
    weaviate.statuses[ID] = [{"status": "CANCELLING"}, {"status": "CANCELED"}]
    assert (await only_event(trigger()))["state"] == "cancelled"


async def test_stands_still_once_nothing_moves(weaviate: FakeWeaviate) -> None:
    weaviate.statuses[ID] = [{"status": "TRANSFERRING"}]
    event = await only_event(trigger(no_progress_limit_seconds=0.01))
    assert (event["state"], event["status"]) == ("stalled", "TRANSFERRING")


async def test_bytes_that_arrive_are_progress(weaviate: FakeWeaviate, staging: dict[str, int]) -> None:
    """Each look finds more, so a limit that each look alone would exceed is never reached."""
    weaviate.statuses[ID] = [*({"status": "TRANSFERRING"} for _ in range(20)), {"status": "SUCCESS"}]

    class Growing(WeaviateBackupTrigger):
        async def _measure(self, bucket: Any) -> None:
            staging[f"{ID}/{len(staging)}"] = 1
            await super()._measure(bucket)

    made = trigger(no_progress_limit_seconds=0.0005, staging_connection_id="staging_test", staging_bucket="s")
    growing = Growing(**made.serialize()[1])
    ticks = iter(range(1000))
    growing.now = lambda: START + timedelta(microseconds=300 * next(ticks))  # type: ignore[method-assign]
    assert (await only_event(growing))["state"] == "complete"


async def test_a_weaviate_that_restarts_is_waited_for(weaviate: FakeWeaviate) -> None:
    weaviate.statuses[ID] = [{"status": "SUCCESS"}]
    weaviate.down = 5
    assert (await only_event(trigger()))["state"] == "complete"


async def test_a_weaviate_that_stays_away_is_an_error(weaviate: FakeWeaviate) -> None:
    weaviate.down = 1000
    event = await only_event(trigger(read_error_limit=3))
    assert (event["state"], event["reference"]) == ("error", "weaviate-unavailable")


async def test_a_bucket_that_can_not_be_read_does_not_decide(weaviate: FakeWeaviate, monkeypatch: Any) -> None:
    weaviate.statuses[ID] = [{"status": "STARTED"}, {"status": "SUCCESS"}]
    extra = {"endpoint_url": "http://127.0.0.1:9", "config_kwargs": {"retries": {"total_max_attempts": 1}}}
    fields = {"conn_type": "aws", "login": "l", "password": "p-of-staging", "extra": {**extra, "region_name": "r"}}
    monkeypatch.setenv("AIRFLOW_CONN_STAGING_TEST", connection_json(**fields))
    event = await only_event(trigger(staging_connection_id="staging_test", staging_bucket="s"))
    assert (event["state"], event["staged_bytes"]) == ("complete", None)


async def test_the_deadline_ends_the_wait(weaviate: FakeWeaviate) -> None:
    weaviate.statuses[ID] = [{"status": "STARTED"}]
    event = await only_event(trigger(deadline_at="2020-01-01T00:00:00+00:00"))
    assert (event["state"], event["status"]) == ("timeout", "STARTED")


async def test_a_task_that_a_person_ends_cancels_the_backup(weaviate: FakeWeaviate) -> None:
    await trigger().on_kill()
    assert weaviate.cancelled == [ID]


async def test_a_cancellation_that_fails_breaks_nothing(weaviate: FakeWeaviate) -> None:
    weaviate.down = 1
    await trigger().on_kill()
    assert weaviate.cancelled == []


def idle(**changes: Any) -> WeaviateIdleTrigger:
    parameters: dict[str, Any] = {"connection_id": "weaviate_test", "backend": "s3", "backup_id": "nightly-7"}
    return WeaviateIdleTrigger(**{**parameters, "poll_interval_seconds": 0.001, **changes})


@pytest.mark.parametrize("last", [{"status": "SUCCESS"}, {"status": "FAILED"}, {"status": "CANCELED"}, None], ids=str)
async def test_a_turn_comes_however_the_other_one_ends(weaviate: FakeWeaviate, last: dict[str, Any] | None) -> None:
    weaviate.statuses["nightly-7"] = [{"status": "STARTED"}, {"status": "CANCELLING"}, last]
    weaviate.down = 2
    event = await only_event(idle())
    assert (event["state"], len(weaviate.statuses["nightly-7"])) == ("complete", 1)


async def test_the_wait_for_a_turn_has_an_end(weaviate: FakeWeaviate) -> None:
    event = await only_event(idle(deadline_at="2020-01-01T00:00:00+00:00"))
    assert event["state"] == "timeout"


def end(**changes: Any) -> WeaviateEndTrigger:
    parameters: dict[str, Any] = {"connection_id": "weaviate_test", "backend": "s3", "backup_id": ID}
    return WeaviateEndTrigger(**{**parameters, "poll_interval_seconds": 0.001, **changes})


async def test_the_end_of_a_backup_is_brought_about_and_seen_more_than_once(weaviate: FakeWeaviate) -> None:
    words = ("TRANSFERRING", "CANCELLING", "CANCELED")
    weaviate.statuses[ID] = [{"status": word, "path": f"s3://s/{ID}"} for word in words] + [None, None, None]
    event = await only_event(end())
    assert (event["state"], event["path"]) == ("complete", f"s3://s/{ID}")
    assert weaviate.cancelled == [ID], "what is being cancelled is left alone"
    assert len(weaviate.statuses[ID]) == 1, "two more looks came after the end"


async def test_an_end_that_does_not_come_is_told(weaviate: FakeWeaviate) -> None:
    weaviate.statuses[ID] = [{"status": "FINALIZING"}]
    event = await only_event(end(deadline_at="2020-01-01T00:00:00+00:00"))
    assert (event["state"], event["status"]) == ("timeout", "FINALIZING")


# ------------------------------------------------------------------------------------------------------------ the hook


def test_an_id_that_weaviate_would_refuse_is_not_sent(weaviate: FakeWeaviate) -> None:
    with pytest.raises(PermanentError) as caught:
        WeaviateHook("weaviate_test").create_backup("s3", "BKP-1")
    assert caught.value.reference == "weaviate-backup-id-invalid"
    assert weaviate.created == []


def test_an_id_that_exists_is_named(weaviate: FakeWeaviate) -> None:
    weaviate.refuse = f'backup "{ID}" already exists at "s3://staging/{ID}"'
    with pytest.raises(PermanentError) as caught:
        WeaviateHook("weaviate_test").create_backup("s3", ID)
    assert caught.value.reference == "weaviate-backup-exists"


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (Reply(200, [{"id": "a"}]), [{"id": "a"}]),
        (Reply(200, []), []),
        (Reply(500, {"error": [{"message": "not implemented"}]}), None),
        (Reply(405, ""), None),
    ],
    ids=["some", "none", "1.28", "1.24"],
)
def test_lists_the_backups_where_the_server_can(
    serve: Callable[[Answer], Server], reply: Reply, expected: list[dict[str, Any]] | None
) -> None:
    hook = WeaviateHook("weaviate_test", base_url=serve(lambda request: reply).url, api_key="weaviate-key")
    assert hook.backups("s3") == expected


@pytest.mark.parametrize(("status", "expected"), [(204, True), (404, False), (422, False), (405, False)])
def test_a_cancellation_of_nothing_is_no_error(serve: Callable[[Answer], Server], status: int, expected: bool) -> None:
    hook = WeaviateHook("weaviate_test", base_url=serve(lambda request: Reply(status)).url, api_key="weaviate-key")
    assert hook.cancel_backup("s3", ID) is expected
