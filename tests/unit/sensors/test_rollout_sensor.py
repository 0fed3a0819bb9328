"""The rollout sensor: looks first, defers, and says why a rollout failed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from airflow.sdk._shared.module_loading import import_string
from airflow.sdk.exceptions import AirflowException, AirflowFailException, TaskDeferred

from nephoran_maintenance.errors import PermanentError, TransientError
from nephoran_maintenance.hooks.cluster import ClusterHook
from nephoran_maintenance.hooks.evidence import collect_evidence, evidence_text
from nephoran_maintenance.sensors.rollout import RolloutSensor, rollout_error
from tests.unit.hooks.fake_servers import FakeCluster, Server, deployment, event, pod, status_object

NAMESPACE = "/api/v1/namespaces/ns"
APPS = "/apis/apps/v1/namespaces/ns"
SINCE = "2026-11-23T10:00:00+00:00"


class TaskInstance:
    def __init__(self) -> None:
        self.pushed: dict[str, Any] = {}

    def xcom_push(self, key: str, value: Any) -> None:
        self.pushed[key] = value


class FixedClock(RolloutSensor):
    """The sensor half a minute after the change."""

    @staticmethod
    def now() -> datetime:
        return datetime(2026, 11, 23, 10, 0, 30, tzinfo=UTC)


def sensor(**changes: Any) -> RolloutSensor:
    parameters: dict[str, Any] = {
        "task_id": "wait_rollout",
        "kubernetes_connection_id": "kubernetes_test",
        "namespace": "ns",
        "kind": "Deployment",
        "name": "rag-api",
        "container": "rag-api",
        "image": "r/rag-api:v2",
        "since": SINCE,
    }
    return FixedClock(**{**parameters, **changes})


def context() -> Any:
    return {"ti": TaskInstance()}


def put_rollout(
    fake_cluster: FakeCluster, *, ready: int, state: dict[str, Any] | None = None, restarts: int = 0
) -> None:
    fake_cluster.put(f"{APPS}/deployments", deployment("rag-api", replicas=1, ready=ready))
    found = pod("rag-api-abc-0", "rag-api", ready=bool(ready), state=state, restarts=restarts)
    fake_cluster.put(f"{NAMESPACE}/pods", found)


def put_crash(fake_cluster: FakeCluster) -> None:
    state = {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s restarting failed container"}}
    fake_cluster.put(f"{APPS}/deployments", deployment("rag-api", replicas=1, ready=0))
    found = pod("rag-api-abc-0", "rag-api", ready=False, state=state, restarts=2)
    found["status"]["containerStatuses"][0]["lastState"] = {
        "terminated": {"exitCode": 3, "reason": "Error", "finishedAt": "2026-11-23T10:00:12Z"}
    }
    fake_cluster.put(f"{NAMESPACE}/pods", found)
    fake_cluster.put(
        f"{NAMESPACE}/events", event("e", ("Pod", "rag-api-abc-0"), "BackOff", "Back-off restarting", count=4)
    )
    fake_cluster.logs[("rag-api-abc-0", "rag-api", False)] = "starting\n"
    old = "\n".join(f"line {number}" for number in range(40))
    fake_cluster.logs[("rag-api-abc-0", "rag-api", True)] = f"{old}\napi_key=abcdefghijk\npanic: no configuration\n"


def test_is_retried_unless_told_otherwise() -> None:
    assert sensor().retries == 2
    assert sensor(retries=0).retries == 0


def test_a_finished_rollout_needs_no_trigger(cluster_server: Server, fake_cluster: FakeCluster) -> None:
    put_rollout(fake_cluster, ready=1)
    assert sensor().execute(context())["state"] == "complete"


def test_defers_with_everything_the_trigger_needs(cluster_server: Server, fake_cluster: FakeCluster) -> None:
    put_rollout(fake_cluster, ready=0)
    with pytest.raises(TaskDeferred) as deferred:
        sensor(no_progress_limit=timedelta(seconds=99)).execute(context())
    path, parameters = deferred.value.trigger.serialize()
    assert import_string(path).__name__ == "RolloutTrigger"
    assert parameters["since"] == SINCE
    assert parameters["no_progress_limit_seconds"] == 99.0
    assert parameters["deadline_at"] is not None
    assert deferred.value.method_name == "conclude"
    assert deferred.value.timeout > timedelta(hours=1)


def test_templates_what_a_plan_decides() -> None:
    waiting = sensor(image="{{ params.image }}", name="{{ params.name }}")
    waiting.render_template_fields({"params": {"image": "r/x:v3", "name": "x"}})  # type: ignore[typeddict-item]
    assert (waiting.image, waiting.name) == ("r/x:v3", "x")


def test_a_failed_rollout_is_not_retried_and_shows_its_evidence(
    cluster_server: Server, fake_cluster: FakeCluster
) -> None:
    put_crash(fake_cluster)
    given = context()
    with pytest.raises(AirflowFailException) as error:
        sensor().execute(given)
    text = str(error.value)
    assert "Deployment rag-api in namespace ns could not be rolled out" in text
    assert "exit code 3" in text
    assert "BackOff (4 times) Pod rag-api-abc-0" in text
    assert "panic: no configuration" in text
    assert "line 10" not in text
    assert "abcdefghijk" not in text
    evidence = given["ti"].pushed["evidence"]
    assert evidence["pod"] == "rag-api-abc-0"
    assert evidence["node"] == "node-1"
    assert len(evidence["previous_log"]) == 20
    assert evidence["log"] == ["starting"]
    assert isinstance(error.value.__cause__, PermanentError)
    assert error.value.__cause__.reference == "rollout-failed"
    assert error.value.__cause__.context["cause"] == "crash-loop"


def test_the_triggers_event_ends_it_the_same_way(cluster_server: Server, fake_cluster: FakeCluster) -> None:
    put_rollout(fake_cluster, ready=1)
    complete = {"state": "complete", "cause": None, "message": "", "pod": None, "progress": "1 of 1", "seconds": 3.0}
    assert sensor().conclude(context(), complete) == complete
    failed = {**complete, "state": "failed", "cause": "image-pull", "message": "image r/rag-api:v2 can't be pulled"}
    with pytest.raises(AirflowFailException, match="can't be pulled"):
        sensor().conclude(context(), failed)


@pytest.mark.parametrize(
    ("reference", "kind"),
    [
        ("cluster-unavailable", TransientError),
        ("trigger-broken", TransientError),
        ("cluster-forbidden", PermanentError),
    ],
)
def test_a_rollout_that_could_not_be_watched_is_looked_at_again(reference: str, kind: type[Exception]) -> None:
    found = rollout_error(
        {"state": "error", "message": "no answer", "reference": reference, "hint": "look"},
        {"workload": "Deployment rag-api", "namespace": "ns"},
    )
    assert type(found) is kind
    assert found.reference == reference


def test_an_unreachable_cluster_is_retried(cluster_server: Server, fake_cluster: FakeCluster) -> None:
    fake_cluster.fail = lambda request: status_object(503, "ServiceUnavailable", "starting")
    with pytest.raises(AirflowException) as error:
        sensor().execute(context())
    assert not isinstance(error.value, AirflowFailException)


def test_evidence_survives_a_cluster_that_refuses_it(cluster_server: Server, fake_cluster: FakeCluster) -> None:
    put_crash(fake_cluster)

    def forbid_logs(request: Any) -> Any:
        return status_object(403, "Forbidden", 'User "u" cannot get') if request.path.endswith("/log") else None

    fake_cluster.fail = forbid_logs
    evidence = collect_evidence(
        ClusterHook("kubernetes_test"),
        namespace="ns",
        kind="Deployment",
        name="rag-api",
        container="rag-api",
    )
    assert evidence["pod"] == "rag-api-abc-0"
    assert len(evidence["not_read"]) == 2
    assert "may not get pods/log" in evidence_text(evidence)


def test_evidence_of_a_workload_that_is_gone_is_empty_and_says_so(cluster_server: Server) -> None:
    evidence = collect_evidence(ClusterHook("kubernetes_test"), namespace="ns", kind="Deployment", name="gone")
    assert evidence["events"] == []
    assert evidence["not_read"] == ["state and events: deployments.apps gone not found in namespace ns"]
