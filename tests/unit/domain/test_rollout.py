"""The verdict on a rollout: what completes it, what fails it early and by which name, and what must not."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest

from nephoran_maintenance.domain.rollout import Cause, RolloutVerdict, judge_rollout
from tests.unit.domain.kubernetes_objects import (
    NEW_IMAGE,
    OLD_IMAGE,
    SINCE,
    at,
    container,
    daemon_set,
    deployment,
    ended,
    event,
    new_style,
    pod,
    running,
    stamp,
    stateful_set,
    template,
    waiting,
)

ROLLING = {"updatedReplicas": 1, "replicas": 3, "availableReplicas": 2}
"""A Deployment of two with its first new pod, which is not ready."""


def judge(
    workload: dict[str, Any],
    pods: list[dict[str, Any]],
    events: list[dict[str, Any]] | None = None,
    *,
    now: float = 20,
    image: str | None = NEW_IMAGE,
    ordinal: int | None = None,
    progressed_at: datetime | None = None,
    since: datetime = SINCE,
    no_progress_seconds: float = 600,
    progress_deadline_seconds: float = 60,
) -> RolloutVerdict:
    return judge_rollout(
        workload,
        pods,
        events or [],
        container=workload["spec"]["template"]["spec"]["containers"][0]["name"],
        image=image,
        now=at(now),
        since=since,
        progressed_at=progressed_at or at(now),
        no_progress_limit=timedelta(seconds=no_progress_seconds),
        progress_deadline=timedelta(seconds=progress_deadline_seconds),
        ordinal=ordinal,
    )


def old(name: str, **changes: Any) -> dict[str, Any]:
    return pod(name, revision="old", image=OLD_IMAGE, ready=True, created=-3600, ready_since=-3600, **changes)


def surge(*new: dict[str, Any]) -> list[dict[str, Any]]:
    return [old("old-1"), old("old-2"), *new]


# ------------------------------------------------------------------------------------------------------------ complete


def test_a_deployment_is_complete_when_all_pods_are_new_and_available() -> None:
    verdict = judge(deployment(), [pod("new-1", ready=True), pod("new-2", ready=True)])
    assert (verdict.state, verdict.cause, verdict.deadline_at) == ("complete", None, None)
    assert verdict.progress == "2 of 2 updated, 2 ready"


@pytest.mark.parametrize(
    "status",
    [
        pytest.param({"updatedReplicas": 1}, id="one is not updated"),
        pytest.param({"replicas": 3}, id="an old one is left"),
        pytest.param({"availableReplicas": 1}, id="one is not available"),
        pytest.param({"updatedReplicas": None, "replicas": None, "availableReplicas": None}, id="empty status"),
        pytest.param({"observedGeneration": 1}, id="the status is that of the spec before"),
    ],
)
def test_a_deployment_is_not_complete_when(status: dict[str, Any]) -> None:
    assert judge(deployment(status=status), [pod("new-1", ready=True)]).state == "progressing"


def test_a_status_of_the_spec_before_proves_nothing_in_either_direction() -> None:
    broken = pod("new-1", statuses=[waiting("CrashLoopBackOff", restarts=5, last=ended())])
    verdict = judge(deployment(status={"observedGeneration": 1}), [broken])
    assert verdict.state == "progressing"
    assert "not seen the change" in verdict.message


def test_a_deployment_scaled_to_zero_is_complete() -> None:
    assert judge(deployment(replicas=0), []).state == "complete"


def test_an_old_pod_that_is_terminating_does_not_hold_a_deployment_up() -> None:
    leaving = old("old-1", metadata={"deletionTimestamp": stamp(5)})
    assert judge(deployment(), [leaving, pod("new-1", ready=True), pod("new-2", ready=True)]).state == "complete"


def test_a_deployment_of_no_stated_size_wants_one_pod() -> None:
    verdict = judge(deployment(replicas=1, spec={"replicas": None}), [pod("new-1", ready=True)])
    assert (verdict.state, verdict.progress) == ("complete", "1 of 1 updated, 1 ready")
    assert judge(deployment(replicas=1, status={"availableReplicas": None}), []).state == "progressing"


def test_a_generation_that_is_not_stated_is_the_first_one_of_all() -> None:
    first = deployment(metadata={"generation": 1}, status={"observedGeneration": None})
    assert judge(first, []).state == "progressing"
    assert judge(deployment(metadata={"generation": None}, status={"observedGeneration": None}), []).state == "complete"


def test_a_daemon_set_is_complete_when_every_node_has_a_new_available_pod() -> None:
    assert judge(daemon_set(), []).state == "complete"
    assert judge(daemon_set(updatedNumberScheduled=1), []).state == "progressing"
    assert judge(daemon_set(numberAvailable=1), []).state == "progressing"
    assert judge(daemon_set(desired=1, numberAvailable=None), []).state == "progressing"
    assert judge(daemon_set(desired=1, updatedNumberScheduled=None), []).progress == "0 of 1 updated, 0 ready"
    nothing = {"desiredNumberScheduled": None, "updatedNumberScheduled": None, "numberAvailable": None}
    assert judge(daemon_set(**nothing), []).state == "complete"


def replicas(*revisions: str, ready: bool = True) -> list[dict[str, Any]]:
    return [
        pod(f"weaviate-{ordinal}", revision=revision, label="controller-revision-hash", ready=ready)
        for ordinal, revision in enumerate(revisions)
    ]


NEW, OLD = "weaviate-new", "weaviate-old"


@pytest.mark.parametrize(
    ("revisions", "ordinal", "partition", "state"),
    [
        pytest.param((NEW, NEW, NEW), None, 0, "complete", id="all new"),
        pytest.param((OLD, NEW, NEW), None, 0, "progressing", id="the last one is old"),
        pytest.param((OLD, OLD, NEW), 2, 2, "complete", id="only the highest ordinal is asked for"),
        pytest.param((OLD, OLD, NEW), 1, 1, "progressing", id="the next ordinal is old"),
        pytest.param((OLD, OLD, NEW), None, 2, "complete", id="the partition says how far"),
        pytest.param((OLD, OLD, OLD), 3, 3, "complete", id="nothing is asked for"),
        pytest.param((OLD, NEW, OLD), 1, 3, "complete", id="those above are held back by the partition"),
        pytest.param((OLD, OLD, NEW), 1, 3, "progressing", id="the ordinal itself counts even when held back"),
        pytest.param((OLD, NEW, OLD), 1, 2, "progressing", id="the first one that the partition releases is old"),
        pytest.param((OLD, NEW), None, 0, "progressing", id="a pod is missing"),
    ],
)
def test_a_stateful_set_is_complete_from_its_ordinal_up(
    revisions: tuple[str, ...], ordinal: int | None, partition: int, state: str
) -> None:
    verdict = judge(stateful_set(partition=partition), replicas(*revisions), ordinal=ordinal)
    assert verdict.state == state


def test_a_stateful_set_needs_its_new_pods_ready() -> None:
    assert judge(stateful_set(), replicas(NEW, NEW, NEW, ready=False)).state == "progressing"


def test_a_terminating_pod_of_a_stateful_set_does_not_count_as_new() -> None:
    pods = replicas(NEW, NEW, NEW)
    pods[2]["metadata"]["deletionTimestamp"] = stamp(3)
    assert judge(stateful_set(), pods).state == "progressing"


def test_a_stateful_set_counts_from_its_first_ordinal() -> None:
    workload = stateful_set(replicas=2, spec={"ordinals": {"start": 5}})
    pods = [pod(f"weaviate-{n}", revision=NEW, label="controller-revision-hash", ready=True) for n in (5, 6)]
    assert judge(workload, pods).state == "complete"
    assert judge(workload, pods[:1]).state == "progressing"


def test_a_stateful_set_without_a_revision_in_its_status_is_not_complete() -> None:
    assert judge(stateful_set(replicas=0, status={"updateRevision": ""}), []).state == "progressing"


def test_ready_for_less_than_min_ready_seconds_is_not_available() -> None:
    workload = stateful_set(spec={"minReadySeconds": 30})
    assert judge(workload, replicas(NEW, NEW, NEW), now=20).state == "progressing"
    assert judge(workload, replicas(NEW, NEW, NEW), now=31).state == "complete"
    assert judge(stateful_set(), replicas(NEW, NEW, NEW), now=1).state == "complete", "no time is asked for"


def test_pods_of_another_owner_with_the_same_labels_do_not_count() -> None:
    job = pod("job-1", revision="new", owner="Job", statuses=[waiting("InvalidImageName")])
    assert judge(deployment(status=ROLLING), surge(job)).state == "progressing"


# ------------------------------------------------------------------------------------------------- what a verdict says


def test_says_how_far_it_is_and_what_it_waits_for() -> None:
    assert judge(deployment(status=ROLLING), surge(pod("new-1"))) == RolloutVerdict(
        "progressing",
        "pod new-1 runs and is not ready",
        "1 of 2 updated, 0 ready, 2 old",
        "observed=True updated=1 scheduled=1 started=1 ready=0 available=0 old=2 leaving=0",
        None,
        "new-1",
        at(61),
    )


def test_counts_each_pod_once_at_each_stage() -> None:
    leaving = old("old-1", metadata={"deletionTimestamp": stamp(5)})
    evicted = old("old-3", status={"phase": "Failed"})
    verdict = judge(
        deployment(status=ROLLING), [leaving, old("old-2"), evicted, pod("new-1", ready=True), pod("new-2")]
    )
    assert verdict.progress == "1 of 2 updated, 1 ready, 1 old"
    assert verdict.fingerprint == ("observed=True updated=1 scheduled=2 started=2 ready=1 available=1 old=1 leaving=1")


def test_a_verdict_at_the_end_has_progress_and_fingerprint_too() -> None:
    done = judge(deployment(), [pod("new-1", ready=True), pod("new-2", ready=True)])
    assert (done.message, done.progress) == ("2 of 2 updated, 2 ready", "2 of 2 updated, 2 ready")
    assert done.fingerprint.startswith("observed=True updated=2")
    failed = judge(deployment(status=ROLLING), surge(pod("new-1", statuses=[waiting("InvalidImageName")])))
    assert failed.progress == "1 of 2 updated, 0 ready, 2 old"
    assert failed.fingerprint.startswith("observed=True updated=1")


def test_what_it_waits_for() -> None:
    def message(*new: dict[str, Any], events: tuple[dict[str, Any], ...] = (), **status: Any) -> str:
        return judge(deployment(status={**ROLLING, **status}), surge(*new), list(events)).message

    assert message(updatedReplicas=0) == "0 of 2 updated, 0 ready, 2 old"
    assert message(unscheduled()) == "pod new-1 is not scheduled: 0/1 nodes are available: 1 Insufficient cpu."
    assert message(pod("new-1", statuses=[])) == "pod new-1 is starting"
    said = event("Unhealthy", "Readiness probe failed: 503")
    assert message(pod("new-1"), events=(said,)) == "pod new-1 runs and is not ready: Readiness probe failed: 503"
    assert message(pod("new-a", created=9), pod("new-b", created=1)) == "pod new-b runs and is not ready", "the oldest"


def test_before_the_controller_has_seen_the_change_nothing_is_updated() -> None:
    unseen = judge(deployment(status={"observedGeneration": 1}), [pod("new-1", ready=True)])
    assert unseen.progress == "0 of 2 updated, 0 ready"


def test_the_pods_of_a_stateful_set_that_stay_are_not_called_old() -> None:
    assert judge(stateful_set(), replicas(OLD, OLD, NEW)).progress == "1 of 3 updated, 1 ready"


# -------------------------------------------------------------------------------------------------------- image pulling


def pull_failed(count: int = 1, why: str = "manifest unknown: not found", **more: Any) -> dict[str, Any]:
    return event("Failed", f'Failed to pull image "{NEW_IMAGE}": {why}', count=count, last=14, **more)


def pulling(reason: str = "ImagePullBackOff", **more: Any) -> dict[str, Any]:
    return pod("new-1", statuses=[waiting(reason, f'Back-off pulling image "{NEW_IMAGE}"')], **more)


@pytest.mark.parametrize("reason", ["ErrImagePull", "ImagePullBackOff", "RegistryUnavailable"])
def test_fails_on_the_second_failed_pull(reason: str) -> None:
    verdict = judge(deployment(status=ROLLING), surge(pulling(reason)), [pull_failed(2)])
    assert (verdict.state, verdict.cause, verdict.pod) == ("failed", Cause.IMAGE_PULL, "new-1")
    assert "manifest unknown" in verdict.message


def test_one_failed_pull_passes() -> None:
    other = event("Failed", "Error: ErrImagePull"), event("BackOff", "Back-off pulling image", count=3, last=18)
    verdict = judge(deployment(status=ROLLING), surge(pulling()), [pull_failed(1), *other])
    assert verdict.state == "progressing"
    assert "ImagePullBackOff" in verdict.message


def test_two_pulls_that_failed_for_different_reasons_are_two() -> None:
    events = [pull_failed(why="503 Service Unavailable"), pull_failed(why="not found", first=13)]
    assert judge(deployment(status=ROLLING), surge(pulling()), events).cause == Cause.IMAGE_PULL


def test_counts_the_attempts_of_events_of_the_newer_api() -> None:
    assert judge(deployment(status=ROLLING), surge(pulling()), [new_style(pull_failed(2))]).cause == Cause.IMAGE_PULL
    assert judge(deployment(status=ROLLING), surge(pulling()), [new_style(pull_failed(1))]).state == "progressing"


def test_one_failed_pull_of_each_of_two_containers_passes() -> None:
    both = pod("new-1", statuses=[waiting("ErrImagePull"), waiting("ErrImagePull", name="proxy")])
    events = [pull_failed(), pull_failed(container_name="proxy")]
    assert judge(deployment(status=ROLLING), surge(both), events).state == "progressing"


def test_a_failed_pull_of_each_of_two_pods_passes() -> None:
    pods = surge(pulling(), pod("new-2", statuses=[waiting("ErrImagePull")]))
    assert judge(deployment(status=ROLLING), pods, [pull_failed(), pull_failed(about="new-2")]).state == "progressing"


def test_pulls_that_failed_before_and_then_worked_pass() -> None:
    assert judge(deployment(status=ROLLING), surge(pod("new-1")), [pull_failed(2)]).state == "progressing"


def test_events_of_an_earlier_pod_of_the_same_name_do_not_count() -> None:
    workload = stateful_set(spec={"template": template(container("weaviate"))})
    pods = replicas(OLD, OLD, NEW, ready=False)
    pods[2]["status"]["containerStatuses"] = [waiting("ErrImagePull", name="weaviate")]
    other = pull_failed(5, about="weaviate-2", uid="earlier", container_name="weaviate")
    own = pull_failed(2, about="weaviate-2", container_name="weaviate")
    assert judge(workload, pods, [other], ordinal=2).state == "progressing"
    assert judge(workload, pods, [own], ordinal=2).cause == Cause.IMAGE_PULL


def test_events_from_before_the_change_do_not_count() -> None:
    earlier = pull_failed(5, first=-300)
    earlier["lastTimestamp"] = stamp(-60)
    assert judge(deployment(status=ROLLING), surge(pulling()), [earlier]).state == "progressing"


def test_of_a_series_that_began_before_the_change_only_the_last_time_counts() -> None:
    assert judge(deployment(status=ROLLING), surge(pulling()), [pull_failed(9, first=-300)]).state == "progressing"


def test_a_pod_created_in_the_same_second_as_the_change_counts_although_its_time_is_cut() -> None:
    since = at(0.9)
    events = [pull_failed(2, first=0)]
    assert judge(deployment(status=ROLLING), surge(pulling(created=0)), events, since=since).cause == Cause.IMAGE_PULL


def test_without_any_event_a_pull_is_given_up_after_a_minute() -> None:
    assert judge(deployment(status=ROLLING), surge(pulling()), now=60).state == "progressing"
    assert judge(deployment(status=ROLLING), surge(pulling()), now=62).cause == Cause.IMAGE_PULL


def test_an_image_that_may_never_be_pulled_fails_at_once() -> None:
    assert judge(deployment(status=ROLLING), surge(pulling("ErrImageNeverPull"))).cause == Cause.IMAGE_PULL


def test_an_init_container_is_looked_at_too() -> None:
    broken = pod("new-1", statuses=[waiting("PodInitializing")], init_statuses=[waiting("ErrImagePull", name="setup")])
    events = [event("Failed", "Failed to pull image x", container_name="", count=2)]
    events[0]["involvedObject"]["fieldPath"] = "spec.initContainers{setup}"
    verdict = judge(deployment(status=ROLLING), surge(broken), events)
    assert verdict.cause == Cause.IMAGE_PULL
    assert "container setup of pod new-1" in verdict.message


def test_an_invalid_image_name_fails_at_once() -> None:
    broken = pod("new-1", statuses=[waiting("InvalidImageName", "couldn't parse image name")])
    verdict = judge(deployment(status=ROLLING), surge(broken))
    assert (verdict.cause, verdict.pod) == (Cause.BAD_IMAGE_NAME, "new-1")


# ------------------------------------------------------------------------------------------------- starting and crashing


@pytest.mark.parametrize("reason", ["CreateContainerConfigError", "CreateContainerError", "RunContainerError"])
def test_a_container_that_can_not_be_created_fails_on_the_second_attempt(reason: str) -> None:
    broken = pod("new-1", statuses=[waiting(reason, 'configmap "x" not found')])
    failed = event("Failed", 'Error: configmap "x" not found', count=2)
    assert judge(deployment(status=ROLLING), surge(broken), [{**failed, "count": 1}]).state == "progressing"
    verdict = judge(deployment(status=ROLLING), surge(broken), [failed])
    assert verdict.cause == Cause.CONFIG_ERROR
    assert 'configmap "x" not found' in verdict.message


def test_two_attempts_within_a_second_are_one() -> None:
    broken = pod("new-1", statuses=[waiting("CreateContainerConfigError")])
    failed = event("Failed", 'Error: configmap "x" not found', count=2, first=2)
    assert judge(deployment(status=ROLLING), surge(broken), [failed], now=6).state == "progressing"
    assert judge(deployment(status=ROLLING), surge(broken), [failed], now=7).cause == Cause.CONFIG_ERROR


def test_failed_pulls_are_not_attempts_to_create_a_container() -> None:
    broken = pod("new-1", statuses=[waiting("CreateContainerConfigError")])
    events = [
        pull_failed(1),
        event("Failed", "Error: ErrImagePull"),
        event("Failed", "Error: ImagePullBackOff", count=2),
    ]
    assert judge(deployment(status=ROLLING), surge(broken), events).state == "progressing"


CRASHES = [
    pytest.param(waiting("CrashLoopBackOff", restarts=1, last=ended()), True, id="backing off after the second end"),
    pytest.param(running(restarts=2, last=ended()), True, id="running for the third time"),
    pytest.param(
        {**running(restarts=1), "state": {"terminated": ended()}, "lastState": {}}, True, id="has just ended again"
    ),
    pytest.param(waiting("CrashLoopBackOff", restarts=1, last=ended(0, "Completed")), True, id="ends with exit code 0"),
    pytest.param(running(restarts=1, last=ended()), False, id="restarted once"),
    pytest.param({**running(), "state": {"terminated": ended()}}, False, id="ended once"),
    pytest.param(waiting("CrashLoopBackOff", restarts=0, last=ended()), False, id="backing off after the first end"),
]


@pytest.mark.parametrize(("status", "fails"), CRASHES)
def test_a_crash_fails_on_the_second_end(status: dict[str, Any], fails: bool) -> None:
    verdict = judge(deployment(status=ROLLING), surge(pod("new-1", statuses=[status])))
    assert (verdict.state, verdict.cause) == (("failed", Cause.CRASH_LOOP) if fails else ("progressing", None))


def test_names_the_exit_code_and_the_last_words_of_a_crash() -> None:
    status = waiting("CrashLoopBackOff", restarts=1, last=ended(7, message="no such table\n"))
    verdict = judge(deployment(status=ROLLING), surge(pod("new-1", statuses=[status])))
    assert "exit code 7" in verdict.message
    assert verdict.message.endswith("no such table")


def test_a_container_killed_for_its_memory_is_named_so() -> None:
    status = waiting("CrashLoopBackOff", restarts=1, last=ended(137, "OOMKilled"))
    assert judge(deployment(status=ROLLING), surge(pod("new-1", statuses=[status]))).cause == Cause.OUT_OF_MEMORY


def test_a_program_that_is_not_in_the_image_is_a_config_error() -> None:
    status = waiting("CrashLoopBackOff", restarts=1, last=ended(128, "StartError", message="exec: no such file"))
    assert judge(deployment(status=ROLLING), surge(pod("new-1", statuses=[status]))).cause == Cause.CONFIG_ERROR


def test_a_crashing_sidecar_fails_the_rollout_too() -> None:
    both = [running(), waiting("CrashLoopBackOff", name="proxy", restarts=1, last=ended())]
    verdict = judge(deployment(status=ROLLING), surge(pod("new-1", statuses=both)))
    assert verdict.cause == Cause.CRASH_LOOP
    assert "container proxy" in verdict.message


def test_an_init_container_that_did_its_work_is_no_crash() -> None:
    done = {"name": "setup", "ready": True, "restartCount": 3, "state": {"terminated": ended(0, "Completed")}}
    broken = pod("new-1", init_statuses=[done])
    assert judge(deployment(status=ROLLING), surge(broken)).state == "progressing"


def test_a_crash_of_an_old_pod_is_no_failure_of_the_new_revision() -> None:
    crashing = old("old-1")
    crashing["status"] = pod("x", statuses=[waiting("CrashLoopBackOff", restarts=9, last=ended())])["status"]
    assert judge(deployment(status=ROLLING), [crashing, old("old-2"), pod("new-1")]).state == "progressing"


def test_restarts_from_before_the_change_do_not_count_on_a_pod_that_stayed() -> None:
    workload = deployment(pod_template=template(container(image=OLD_IMAGE)), status=ROLLING)
    stayed = old("old-1")
    stayed["status"] = pod("x", statuses=[running(restarts=7, last=ended(finished=-900))])["status"]
    assert judge(workload, [stayed], image=OLD_IMAGE).state == "progressing"
    stayed["status"] = pod("x", statuses=[running(restarts=8, last=ended(finished=5))])["status"]
    assert judge(workload, [stayed], image=OLD_IMAGE).state == "progressing"
    stayed["status"] = pod("x", statuses=[waiting("CrashLoopBackOff", restarts=9, last=ended(finished=9))])["status"]
    assert judge(workload, [stayed], image=OLD_IMAGE).cause == Cause.CRASH_LOOP


def test_a_ready_pod_with_restarts_is_not_judged() -> None:
    ready = pod("new-1", ready=True, statuses=[running(ready=True, restarts=2, last=ended())])
    assert judge(deployment(status=ROLLING), surge(ready)).state == "progressing"


def test_an_evicted_pod_is_not_judged_because_another_takes_its_place() -> None:
    evicted = pod("new-1", status={"phase": "Failed", "reason": "Evicted"}, statuses=[waiting("InvalidImageName")])
    assert judge(deployment(status=ROLLING), surge(evicted)).state == "progressing"


def test_a_container_that_its_startup_probe_has_killed_fails_at_once() -> None:
    events = [
        event("Unhealthy", "Startup probe failed: HTTP probe failed with statuscode: 503", count=12, last=18),
        event("Killing", "Container rag-api failed startup probe, will be restarted", first=19),
    ]
    verdict = judge(deployment(status=ROLLING), surge(pod("new-1")), events)
    assert (verdict.cause, verdict.pod) == (Cause.FAILING_PROBE, "new-1")
    assert "statuscode: 503" in verdict.message


def test_a_container_that_its_liveness_probe_has_killed_fails_at_the_second_time() -> None:
    killed = event("Killing", "Container rag-api failed liveness probe, will be restarted", first=12)
    once, twice = running(restarts=1, last=ended(137)), running(restarts=2, last=ended(137))
    assert judge(deployment(status=ROLLING), surge(pod("new-1", statuses=[once])), [killed]).state == "progressing"
    verdict = judge(deployment(status=ROLLING), surge(pod("new-1", statuses=[twice])), [killed])
    assert verdict.cause == Cause.FAILING_PROBE


# ------------------------------------------------------------------------------------------- scheduling, quota, volumes


def unscheduled(message: str = "0/1 nodes are available: 1 Insufficient cpu.", since: float = 1) -> dict[str, Any]:
    found = pod("new-1", statuses=[], scheduled=False)
    found["status"]["conditions"][0] |= {
        "reason": "Unschedulable",
        "message": message,
        "lastTransitionTime": stamp(since),
    }
    return found


def test_a_pod_that_fits_nowhere_fails_after_half_a_minute() -> None:
    assert judge(deployment(status=ROLLING), surge(unscheduled()), now=30).state == "progressing"
    verdict = judge(deployment(status=ROLLING), surge(unscheduled()), now=31)
    assert (verdict.cause, verdict.pod) == (Cause.UNSCHEDULABLE, "new-1")
    assert "Insufficient cpu" in verdict.message


def test_a_pod_that_fits_nowhere_waits_for_an_autoscaler_that_makes_a_node() -> None:
    scaling = event("TriggeredScaleUp", "pod triggered scale-up", container_name="")
    assert judge(deployment(status=ROLLING), surge(unscheduled()), [scaling], now=59).state == "progressing"


def test_a_pod_that_is_held_back_by_a_gate_is_not_unschedulable() -> None:
    held = unscheduled()
    held["status"]["conditions"][0]["reason"] = "SchedulingGated"
    assert judge(deployment(status=ROLLING), surge(held), now=59).state == "progressing"


@pytest.mark.parametrize(
    "message",
    [
        "pod has unbound immediate PersistentVolumeClaims",
        'persistentvolumeclaim "data" not found',
        "1 node(s) had volume node affinity conflict",
    ],
)
def test_a_pod_without_its_volume_is_named_so(message: str) -> None:
    verdict = judge(deployment(status=ROLLING), surge(unscheduled(message)), now=40)
    assert verdict.cause == Cause.VOLUME


def replica_failure(message: str, since: float = 1) -> dict[str, Any]:
    condition = {"type": "ReplicaFailure", "status": "True", "message": message, "lastTransitionTime": stamp(since)}
    return {"updatedReplicas": 0, "replicas": 2, "availableReplicas": 2, "conditions": [condition]}


QUOTA = 'pods "rag-api-7d-x" is forbidden: exceeded quota: compute, requested: cpu=1, used: cpu=4, limited: cpu=4'


def refused(message: str = QUOTA, *, count: int = 1, last: float = 3) -> dict[str, Any]:
    return event(
        "FailedCreate", f"Error creating: {message}", about="rag-api-7d", kind="ReplicaSet", count=count, last=last
    )


def test_a_quota_that_refuses_the_pod_twice_fails() -> None:
    workload = deployment(status=replica_failure(QUOTA))
    assert judge(workload, surge(), [refused()]).state == "progressing"
    verdict = judge(workload, surge(), [refused(), refused(QUOTA.replace("-x", "-y"))])
    assert verdict.cause == Cause.QUOTA
    assert "exceeded quota: compute" in verdict.message


def test_a_quota_that_refuses_for_a_while_fails_without_events() -> None:
    workload = deployment(status=replica_failure(QUOTA))
    assert judge(workload, surge(), now=20).state == "progressing"
    assert judge(workload, surge(), now=21).cause == Cause.QUOTA


def test_a_refusal_from_before_the_change_is_counted_from_the_change() -> None:
    assert judge(deployment(status=replica_failure(QUOTA, since=-900)), surge(), now=5).state == "progressing"


def test_a_refusal_that_was_overcome_passes() -> None:
    created = event("SuccessfulCreate", "Created pod: rag-api-7d-z", about="rag-api-7d", kind="ReplicaSet", first=8)
    rolling = deployment(status=ROLLING)
    assert judge(rolling, surge(pod("new-1")), [refused(count=3), created]).state == "progressing"


def test_another_refusal_than_a_quota_is_a_config_error() -> None:
    text = 'pods "rag-api-7d-x" is forbidden: violates PodSecurity "restricted:latest"'
    verdict = judge(deployment(status=replica_failure(text)), surge(), [refused(text, count=2)])
    assert verdict.cause == Cause.CONFIG_ERROR


def test_a_stateful_set_that_may_not_create_its_pod_fails_by_its_events() -> None:
    text = f"create Pod weaviate-2 in StatefulSet weaviate failed error: {QUOTA}"
    once = event("FailedCreate", text, about="weaviate", kind="StatefulSet")
    pods = replicas(OLD, OLD)
    assert judge(stateful_set(), pods, [once], ordinal=2).state == "progressing"
    assert judge(stateful_set(), pods, [{**once, "count": 2}], ordinal=2).cause == Cause.QUOTA


def test_a_refusal_counts_until_the_same_controller_has_created_a_pod_later() -> None:
    def cause(*others: dict[str, Any], refusal: dict[str, Any] | None = None) -> Cause | None:
        text = f"create Pod weaviate-2 in StatefulSet weaviate failed error: {QUOTA}"
        twice = event("FailedCreate", text, about="weaviate", kind="StatefulSet", count=2, last=3)
        return judge(stateful_set(), replicas(OLD, OLD), [refusal or twice, *others], ordinal=2).cause

    def created(about: str = "weaviate", kind: str = "StatefulSet", first: float = 4) -> dict[str, Any]:
        return event("SuccessfulCreate", "create Pod", about=about, kind=kind, first=first)

    assert cause(created()) is None
    assert cause(created(first=3)) == Cause.QUOTA
    assert cause(created(about="other")) == Cause.QUOTA
    assert cause(created(kind="Pod")) == Cause.QUOTA
    assert cause(event("Other", "something else", about="weaviate", kind="StatefulSet", first=9)) == Cause.QUOTA
    assert cause(refusal=event("FailedCreate", QUOTA, about="weaviate-2", count=9)) is None
    assert cause(refusal=event("Other", QUOTA, about="weaviate", kind="StatefulSet", count=9)) is None


def test_a_deployment_is_refused_only_while_its_controller_says_so() -> None:
    assert judge(deployment(status=ROLLING), surge(), [refused(count=9)]).state == "progressing"


def test_a_refusal_is_no_failure_when_no_pod_is_missing() -> None:
    status = {**replica_failure(QUOTA), "updatedReplicas": 2, "availableReplicas": 1}
    assert judge(deployment(status=status), [pod("new-1")], [refused(count=9)], now=40).state == "progressing"


def test_a_volume_that_can_not_be_mounted_for_a_minute_fails() -> None:
    starting = pod("new-1", statuses=[waiting("ContainerCreating")])
    text = 'MountVolume.SetUp failed for volume "config": secret "x" not found'
    events = [event("FailedMount", text, container_name="", count=8, first=2, last=58)]
    assert judge(deployment(status=ROLLING), surge(starting), events, now=61).state == "progressing"
    verdict = judge(deployment(status=ROLLING), surge(starting), events, now=62)
    assert verdict.cause == Cause.VOLUME
    assert 'secret "x" not found' in verdict.message


def test_a_mount_that_worked_after_a_while_is_no_failure_of_a_pod_that_runs() -> None:
    events = [event("FailedMount", "timed out", container_name="", count=9, first=2, last=30)]
    assert judge(deployment(status=ROLLING), surge(pod("new-1")), events, now=80).state == "progressing"


# ----------------------------------------------------------------------------------------------------------- deadlines


def progressing(reason: str, updated: float, message: str = "") -> dict[str, Any]:
    status = "False" if reason == "ProgressDeadlineExceeded" else "True"
    return {
        "type": "Progressing",
        "status": status,
        "reason": reason,
        "lastUpdateTime": stamp(updated),
        "message": message,
    }


def late(updated: float = 61) -> dict[str, Any]:
    return {**ROLLING, "conditions": [progressing("ProgressDeadlineExceeded", updated, 'ReplicaSet "x" has timed out')]}


def test_a_running_pod_that_is_not_ready_at_the_progress_deadline_has_a_failing_probe() -> None:
    said = event("Unhealthy", "Readiness probe failed: HTTP probe failed with statuscode: 503", count=11, last=59)
    verdict = judge(deployment(status=late()), surge(pod("new-1")), [said], now=62)
    assert (verdict.cause, verdict.pod) == (Cause.FAILING_PROBE, "new-1")
    assert "statuscode: 503" in verdict.message


def test_a_pod_that_does_not_run_at_the_progress_deadline_is_late() -> None:
    starting = pod("new-1", statuses=[waiting("ContainerCreating")])
    assert judge(deployment(status=late()), surge(starting), now=62).cause == Cause.PROGRESS_DEADLINE


def test_what_is_known_is_named_at_the_deadline_without_more_patience() -> None:
    scaling = event("TriggeredScaleUp", "pod triggered scale-up", container_name="")
    late_pod = unscheduled(since=50)
    assert judge(deployment(status=late()), surge(late_pod), [scaling], now=62).cause == Cause.UNSCHEDULABLE
    mount = event("FailedMount", 'secret "x" not found', container_name="", count=6, first=50, last=60)
    starting = pod("new-1", statuses=[waiting("ContainerCreating")])
    assert judge(deployment(status=late()), surge(starting), [mount], now=62).cause == Cause.VOLUME


def test_a_progress_deadline_without_a_new_pod_keeps_the_controllers_words() -> None:
    verdict = judge(deployment(status={**late(), "updatedReplicas": 0}), surge(), now=62)
    assert verdict.cause == Cause.PROGRESS_DEADLINE
    assert "timed out" in verdict.message


@pytest.mark.parametrize(
    ("updated", "now"),
    [
        pytest.param(-30, 10, id="the condition is older than the change"),
        pytest.param(0, 10, id="the condition is from the second of the change"),
        pytest.param(5, 10, id="the deadline can't be over yet"),
    ],
)
def test_the_deadline_of_the_rollout_before_does_not_fail_the_next(updated: float, now: float) -> None:
    assert judge(deployment(status=late(updated)), surge(pod("new-1")), now=now).state == "progressing"


@pytest.mark.parametrize(("now", "state"), [(54, "progressing"), (55, "failed")])
def test_the_controllers_word_counts_a_little_before_the_deadline_is_over_here(now: float, state: str) -> None:
    assert judge(deployment(status=late(now)), surge(pod("new-1")), now=now).state == state


def test_a_paused_deployment_is_never_late() -> None:
    assert judge(deployment(status=late(), spec={"paused": True}), surge(pod("new-1")), now=99).state == "progressing"


def test_one_restart_is_no_crash_at_the_deadline_either() -> None:
    once = pod("new-1", statuses=[running(restarts=1, last=ended())])
    assert judge(deployment(status=late()), surge(once), now=62).cause == Cause.FAILING_PROBE


def test_a_workload_has_its_own_progress_deadline() -> None:
    workload = deployment(status=ROLLING, spec={"progressDeadlineSeconds": 120})
    assert judge(workload, surge(pod("new-1", created=1))).deadline_at == at(121)


@pytest.mark.parametrize(
    ("updated", "deadline"),
    [
        pytest.param(-30, 65, id="from before the change: the newest pod counts"),
        pytest.param(-3, 65, id="just before the change"),
        pytest.param(-2, 60, id="from the second of the change: never before it"),
        pytest.param(7, 67, id="of this rollout"),
    ],
)
def test_the_deadline_counts_from_the_last_progress(updated: float, deadline: float) -> None:
    status = {**ROLLING, "conditions": [progressing("ReplicaSetUpdated", updated)]}
    assert judge(deployment(status=status), surge(pod("new-1", created=5))).deadline_at == at(deadline)


STARTUP = {"startupProbe": {"periodSeconds": 10, "failureThreshold": 30}}
ALLOWED = [
    # the containers of the pod, their statuses (None: one that runs since second 2), until when it may take
    ([{"startupProbe": {"httpGet": {}}}], None, 2 + 30),
    ([{"startupProbe": {"initialDelaySeconds": 7, "periodSeconds": 4, "failureThreshold": 5}}], None, 2 + 27),
    ([{"readinessProbe": {"httpGet": {}}}], None, 2 + 11),
    ([{"readinessProbe": {"initialDelaySeconds": 7, "periodSeconds": 4, "successThreshold": 3, "timeoutSeconds": 2}}],
     None, 2 + 21),
    ([{"startupProbe": {"httpGet": {}}, "readinessProbe": {"httpGet": {}}}], None, 2 + 41),
    ([{"startupProbe": {"httpGet": {}}}, STARTUP], None, 2 + 300),
    ([STARTUP], [waiting("ContainerCreating")], 1 + 300),
    ([STARTUP], [running(restarts=1)], 1 + 300),
    ([{}], None, 2 + 0),
]  # fmt: skip


@pytest.mark.parametrize(
    ("containers", "statuses", "until"),
    ALLOWED,
    ids=["startup-defaults", "startup", "readiness-defaults", "readiness", "one-after-the-other", "the-slowest",
         "counted-from-the-pod", "not-from-a-restart", "no-probe"],
)  # fmt: skip
@pytest.mark.parametrize("where", ["containers", "initContainers"])
def test_a_pod_is_not_late_while_its_own_probes_allow_it(
    where: str, containers: list[dict[str, Any]], statuses: list[dict[str, Any]] | None, until: float
) -> None:
    made = template(container(readinessProbe=None))
    made["spec"][where] = [{"name": f"c{n}", **fields} for n, fields in enumerate(containers)]
    starting = pod("new-1", pod_template=made, statuses=statuses)
    workload = deployment(pod_template=made, status=ROLLING, spec={"progressDeadlineSeconds": 0})
    assert judge(workload, surge(starting), image=None, now=1).deadline_at == at(until)


def test_a_slow_start_passes_as_long_as_the_startup_probe_allows_it() -> None:
    slow = template(container(startupProbe={"periodSeconds": 10, "failureThreshold": 30}))
    starting = pod("new-1", pod_template=slow)
    workload = deployment(pod_template=slow, status=late())
    assert judge(workload, surge(starting), now=300).state == "progressing"
    assert judge(workload, surge(starting), now=311).cause == Cause.FAILING_PROBE


def test_a_slow_start_passes_as_long_as_the_delay_of_the_readiness_probe_allows_it() -> None:
    slow = template(container(readinessProbe={"initialDelaySeconds": 120, "periodSeconds": 10}))
    workload = deployment(pod_template=slow, status=late())
    assert judge(workload, surge(pod("new-1", pod_template=slow)), now=115).state == "progressing"
    assert judge(workload, surge(pod("new-1", pod_template=slow)), now=134).cause == Cause.FAILING_PROBE


def test_a_stateful_set_has_the_given_progress_deadline() -> None:
    pods = replicas(OLD, OLD, NEW, ready=False)
    assert judge(stateful_set(), pods, now=60, ordinal=2).state == "progressing"
    verdict = judge(stateful_set(), pods, now=61, ordinal=2)
    assert (verdict.cause, verdict.pod) == (Cause.FAILING_PROBE, "weaviate-2")


def test_each_ready_pod_of_a_stateful_set_moves_its_deadline() -> None:
    pods = replicas(OLD, OLD, NEW)
    pods[2]["status"]["conditions"][1]["lastTransitionTime"] = stamp(50)
    assert judge(stateful_set(), pods, now=109, ordinal=1).state == "progressing"
    verdict = judge(stateful_set(), pods, now=110, ordinal=1)
    assert (verdict.cause, verdict.message) == (Cause.PROGRESS_DEADLINE, "1 of 2 updated, 1 ready after 0:01:00")


def test_a_replica_that_leaves_within_its_grace_period_moves_the_deadline_too() -> None:
    pods = replicas(OLD, OLD, NEW)
    pods[1]["metadata"]["deletionTimestamp"] = stamp(110)
    assert judge(stateful_set(), pods, now=169, ordinal=1).state == "progressing"
    assert judge(stateful_set(), pods, now=170, ordinal=1).cause == Cause.PROGRESS_DEADLINE


def test_gives_up_after_the_limit_without_progress() -> None:
    workload = deployment(status=ROLLING, spec={"progressDeadlineSeconds": 3600})
    arguments: dict[str, Any] = {"progressed_at": at(0)}
    assert judge(workload, surge(pod("new-1")), now=599, **arguments).state == "progressing"
    verdict = judge(workload, surge(pod("new-1")), now=600, **arguments)
    assert (verdict.cause, verdict.pod) == (Cause.NO_PROGRESS, "new-1")
    assert "no progress for 600 s" in verdict.message


def test_a_controller_that_does_not_look_is_given_up_after_the_limit() -> None:
    verdict = judge(deployment(status={"observedGeneration": 1}), [], now=600, progressed_at=at(0))
    assert verdict.cause == Cause.NO_PROGRESS
    assert "the controller has not seen the change" in verdict.message


def test_a_paused_deployment_waits_and_says_so() -> None:
    workload = deployment(status={"updatedReplicas": 0}, spec={"paused": True})
    verdict = judge(workload, surge())
    assert verdict.state == "progressing"
    assert "paused" in verdict.message
    assert judge(workload, surge(), now=600, progressed_at=at(0)).cause == Cause.NO_PROGRESS


def test_says_when_pods_are_only_replaced_by_hand() -> None:
    workload = stateful_set(spec={"updateStrategy": {"type": "OnDelete"}})
    assert "OnDelete" in judge(workload, replicas(OLD, OLD, OLD)).message


def test_says_when_it_will_be_given_up() -> None:
    status = {**ROLLING, "conditions": [progressing("ReplicaSetUpdated", 10)]}
    assert judge(deployment(status=status), surge(pod("new-1"))).deadline_at == at(70)
    close = judge(deployment(status=status), surge(pod("new-1")), no_progress_seconds=30)
    assert close.deadline_at == at(50)


def test_an_image_that_somebody_else_has_put_in_the_template_ends_the_wait() -> None:
    other = deployment(pod_template=template(container(image="registry:5000/nephoran/rag-api:v9")))
    verdict = judge(other, [])
    assert verdict.cause == Cause.SUPERSEDED
    assert verdict.message == (
        f"Deployment rag-api: container rag-api has the image registry:5000/nephoran/rag-api:v9, expected {NEW_IMAGE}"
    )


def test_a_container_that_is_gone_from_the_template_ends_the_wait() -> None:
    verdict = judge_rollout(
        deployment(),
        [],
        [],
        container="other",
        image=None,
        now=at(1),
        since=SINCE,
        progressed_at=SINCE,
        no_progress_limit=timedelta(seconds=600),
    )
    assert (verdict.cause, verdict.message) == (Cause.SUPERSEDED, "Deployment rag-api has no container 'other'")


# ------------------------------------------------------------------------------------------ which pods are the new ones


BROKEN = [waiting("CrashLoopBackOff", restarts=4, last=ended())]


def test_a_policy_change_that_keeps_the_image_tells_old_pods_from_new_ones() -> None:
    before = template(container(), grace=30)
    after = template(container(lifecycle={"preStop": {"sleep": {"seconds": 15}}}))
    crashing = pod("old-1", revision="old", pod_template=before, statuses=BROKEN, created=-99)
    workload = deployment(pod_template=after, status=ROLLING)
    assert judge(workload, [crashing, pod("new-1", pod_template=after)]).state == "progressing"
    broken = pod("new-1", pod_template=after, statuses=BROKEN)
    good = pod("old-1", revision="old", pod_template=before, ready=True, created=-99)
    assert judge(workload, [good, broken]).cause == Cause.CRASH_LOOP


def test_a_return_to_a_template_without_a_probe_takes_the_pods_with_it_for_old_ones() -> None:
    plain = template(container())
    probed = template(container(livenessProbe={"periodSeconds": 5}))
    workload = deployment(pod_template=plain, status=ROLLING)
    stayed = pod("was-1", revision="was", pod_template=plain, ready=True, created=-99)
    crashing = pod("bad-1", revision="bad", pod_template=probed, statuses=BROKEN, created=-9)
    assert judge(workload, [stayed, crashing]).state == "progressing"


def test_a_return_to_a_template_without_an_annotation_takes_the_pods_with_it_for_old_ones() -> None:
    plain, noted = template(), template(annotations={"kubectl.kubernetes.io/restartedAt": "now"})
    workload = deployment(pod_template=plain, status=ROLLING)
    stayed = pod("was-1", revision="was", pod_template=plain, ready=True, created=-99)
    crashing = pod("bad-1", revision="bad", pod_template=noted, statuses=BROKEN, created=-9)
    assert judge(workload, [stayed, crashing]).state == "progressing"


def test_before_the_first_new_pod_no_pod_is_new() -> None:
    crashing = old("old-1")
    crashing["status"]["conditions"][1]["status"] = "False"
    crashing["status"]["containerStatuses"] = BROKEN
    status = {"updatedReplicas": 0, "replicas": 2}
    assert judge(deployment(status=status), [crashing, old("old-2")]).state == "progressing"


def test_an_admission_webhook_that_rewrites_every_pod_hides_no_failure() -> None:
    rewritten = pod("new-1", image="mirror/rag-api:v2", statuses=BROKEN)
    before = old("old-1")
    before["spec"]["containers"][0] |= {"image": "mirror/rag-api:v1"}
    for each in (before, rewritten):
        each["spec"]["containers"].append({"name": "injected", "image": "mesh"})
    verdict = judge(deployment(status=ROLLING), [before, rewritten])
    assert (verdict.cause, verdict.pod) == (Cause.CRASH_LOOP, "new-1")


def test_a_daemon_sets_new_pods_are_told_by_its_template() -> None:
    label = {"label": "controller-revision-hash", "owner": "DaemonSet"}
    before = pod("old-1", revision="1", image=OLD_IMAGE, statuses=BROKEN, created=-99, **label)
    workload = daemon_set(updatedNumberScheduled=1)
    assert judge(workload, [before, pod("new-1", revision="2", **label)]).state == "progressing"
    verdict = judge(workload, [before, pod("new-1", revision="2", statuses=BROKEN, **label)])
    assert (verdict.cause, verdict.pod) == (Cause.CRASH_LOOP, "new-1")


# ---------------------------------------------------------------------------------------------------------- fingerprint


def fingerprint(*new: dict[str, Any], status: dict[str, Any] | None = None, now: float = 20) -> str:
    return judge(deployment(status=status or ROLLING), surge(*new), now=now).fingerprint


@pytest.mark.parametrize(
    ("earlier", "later"),
    [
        pytest.param(unscheduled(), pod("new-1", statuses=[waiting("ContainerCreating")]), id="scheduled"),
        pytest.param(pod("new-1", statuses=[waiting("ContainerCreating")]), pod("new-1"), id="started"),
        pytest.param(pod("new-1"), pod("new-1", ready=True), id="ready"),
    ],
)
def test_the_fingerprint_changes_when_a_pod_gets_further(earlier: dict[str, Any], later: dict[str, Any]) -> None:
    assert fingerprint(earlier) != fingerprint(later)


def test_the_fingerprint_changes_when_an_old_pod_leaves_and_when_it_is_gone() -> None:
    leaving = old("old-1", metadata={"deletionTimestamp": stamp(5)})
    steps = [
        judge(deployment(status=ROLLING), [*first, old("old-2"), pod("new-1")]).fingerprint
        for first in ([old("old-1")], [leaving], [])
    ]
    assert len(set(steps)) == 3


def test_the_fingerprint_stays_when_only_time_passes_or_the_same_thing_fails_again() -> None:
    once, twice = waiting("ErrImagePull"), waiting("ImagePullBackOff")
    assert fingerprint(pod("new-1", statuses=[once])) == fingerprint(pod("new-1", statuses=[twice]), now=40)
    first, second = running(restarts=1, last=ended()), waiting("CrashLoopBackOff", restarts=1, last=ended())
    assert fingerprint(pod("new-1", statuses=[first])) == fingerprint(pod("new-1", statuses=[second]))


def test_the_fingerprint_changes_when_the_controller_sees_the_change() -> None:
    assert fingerprint(status={**ROLLING, "observedGeneration": 1}) != fingerprint()


def test_a_verdict_does_not_depend_on_the_order_of_pods_and_events() -> None:
    pods = surge(pod("new-1", statuses=BROKEN), pod("new-2", statuses=[waiting("ErrImagePull")]))
    events = [pull_failed(2, about="new-2"), refused()]
    forward = judge(deployment(status=ROLLING), pods, events)
    assert forward == judge(deployment(status=ROLLING), pods[::-1], events[::-1])
