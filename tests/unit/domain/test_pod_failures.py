"""Why a pod will not become ready: the exact words, and the moment from which they hold."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from nephoran_maintenance.domain.cluster_events import read_event
from nephoran_maintenance.domain.pod_failures import (
    LONGEST_QUOTE,
    Cause,
    Failure,
    is_available,
    is_finished,
    pod_failure,
    quote,
)
from tests.unit.domain.kubernetes_objects import NEW_IMAGE, at, ended, event, pod, running, waiting

WHERE = "container rag-api of pod new-1"


def failure(found: dict[str, Any], *events: dict[str, Any], now: float = 20, since: float = 0) -> Failure | None:
    return pod_failure(found, [read_event(one) for one in events], now=at(now), since=at(since))


def with_status(*statuses: dict[str, Any], **more: Any) -> dict[str, Any]:
    return pod("new-1", statuses=list(statuses), **more)


# ------------------------------------------------------------------------------------------------------------- helpers


def test_a_foreign_message_is_one_line_and_not_too_long() -> None:
    assert quote(None) == quote("") == ""
    assert quote(" one\n  two ") == "one two"
    assert quote("x" * LONGEST_QUOTE) == "x" * LONGEST_QUOTE
    assert quote("x" * (LONGEST_QUOTE + 1)) == "x" * (LONGEST_QUOTE - 1) + "…"


@pytest.mark.parametrize(("phase", "finished"), [("Failed", True), ("Succeeded", True), ("Running", False)])
def test_a_pod_has_ended_in_two_phases(phase: str, finished: bool) -> None:
    assert is_finished(pod("a", status={"phase": phase})) is finished


def test_a_pod_that_does_not_say_since_when_it_is_ready_counts_as_available() -> None:
    found = pod("a", ready=True)
    del found["status"]["conditions"][1]["lastTransitionTime"]
    assert is_available(found, timedelta(seconds=30), at(0))


# ------------------------------------------------------------------------------------------------------------ scheduling


def unscheduled(message: str = "1 Insufficient cpu", **condition: Any) -> dict[str, Any]:
    found = pod("new-1", statuses=[], scheduled=False)
    found["status"]["conditions"][0] |= {"reason": "Unschedulable", "message": message, **condition}
    return found


def test_waits_for_a_node_from_when_the_scheduler_said_so_else_from_the_pods_beginning() -> None:
    late = unscheduled(lastTransitionTime="2026-11-23T10:00:20Z")
    assert failure(late, now=49) is None
    assert failure(late, now=50) == Failure(
        Cause.UNSCHEDULABLE, "pod new-1 fits on no node: 1 Insufficient cpu", "new-1"
    )
    assert failure(unscheduled(), now=30) is None
    assert failure(unscheduled(), now=31) is not None
    ageless = unscheduled()
    del ageless["metadata"]["creationTimestamp"]
    assert failure(ageless, now=999) is None


def test_a_node_that_is_too_small_is_named_before_a_volume_that_is_elsewhere() -> None:
    text = "1 Insufficient cpu, 1 node(s) had volume node affinity conflict"
    found = failure(unscheduled(text), now=60)
    assert found is not None
    assert found.cause == Cause.UNSCHEDULABLE


# ---------------------------------------------------------------------------------------------------------------- images


def test_an_image_name_that_can_not_be_is_shown() -> None:
    broken = waiting("InvalidImageName", "couldn't parse image name")
    said = f"{WHERE}: the image name {{}} is invalid: couldn't parse image name"
    assert failure(with_status(broken)) == Failure(Cause.BAD_IMAGE_NAME, said.format(repr(NEW_IMAGE)), "new-1")
    del broken["image"]
    assert failure(with_status(broken)) == Failure(Cause.BAD_IMAGE_NAME, said.format("''"), "new-1")


@pytest.mark.parametrize(("message", "said"), [("not present", "not present"), ("", "ErrImageNeverPull")])
def test_an_image_that_may_never_be_pulled_is_said_to_be_so(message: str, said: str) -> None:
    found = failure(with_status(waiting("ErrImageNeverPull", message)))
    assert found == Failure(Cause.IMAGE_PULL, f"{WHERE}: {said}", "new-1")


def test_a_pull_without_events_is_given_up_after_exactly_a_minute() -> None:
    pulling = with_status(waiting("ImagePullBackOff", "Back-off pulling"), created=1)
    assert failure(pulling, now=60) is None
    assert failure(pulling, now=61) == Failure(Cause.IMAGE_PULL, f"{WHERE}: Back-off pulling", "new-1")


def test_an_event_that_names_no_container_may_be_about_any() -> None:
    failed = event("Failed", "Failed to pull image x: gone", container_name="", count=2)
    pulling = with_status(waiting("ErrImagePull"))
    assert failure(pulling, failed) == Failure(Cause.IMAGE_PULL, f"{WHERE}: Failed to pull image x: gone", "new-1")
    assert failure(pulling, event("Failed", "Failed to pull image x", container_name="other", count=2)) is None


# -------------------------------------------------------------------------------------------------------------- starting


CONFIG_ERROR = Failure(Cause.CONFIG_ERROR, f"{WHERE}: CreateContainerConfigError: no such secret", "new-1")


def config_error(**status: Any) -> dict[str, Any]:
    return with_status({**waiting("CreateContainerConfigError", "no such secret"), **status}, created=1)


def test_a_container_that_can_not_be_created_is_given_up_after_a_minute_without_events() -> None:
    assert failure(config_error(), now=60) is None
    assert failure(config_error(), now=61) == CONFIG_ERROR
    once = event("Failed", "Error: no such secret", first=2)
    assert failure(config_error(), once, now=300) is None, "the kubelet says that it was one attempt"
    assert failure(config_error(), {**once, "count": 2}, now=300) == CONFIG_ERROR


def test_a_container_that_was_restarted_twice_and_can_not_be_created_fails() -> None:
    assert failure(config_error(restartCount=2)) == CONFIG_ERROR
    assert failure(config_error(restartCount=1)) is None
    bare = config_error()
    del bare["status"]["containerStatuses"][0]["restartCount"]
    assert failure(bare) is None


# ---------------------------------------------------------------------------------------------------------------- crashes


def crashed(restarts: int = 1, **last: Any) -> dict[str, Any]:
    return waiting("CrashLoopBackOff", restarts=restarts, last={**ended(), **last})


CRASHES = [
    (crashed(), Failure(Cause.CRASH_LOOP, f"{WHERE} ended with exit code 1 (Error), 1 restart", "new-1")),
    (crashed(2, message="no table"),
     Failure(Cause.CRASH_LOOP, f"{WHERE} ended with exit code 1 (Error), 2 restarts: no table", "new-1")),
    (crashed(reason="OOMKilled"),
     Failure(Cause.OUT_OF_MEMORY, f"{WHERE} was killed for its memory, 1 restart", "new-1")),
    (crashed(3, reason="OOMKilled"),
     Failure(Cause.OUT_OF_MEMORY, f"{WHERE} was killed for its memory, 3 restarts", "new-1")),
    (crashed(reason="StartError", message="exec: not found"),
     Failure(Cause.CONFIG_ERROR, f"{WHERE} can't be started: exec: not found", "new-1")),
    ({**running(restarts=1), "state": {"terminated": ended(0, "Completed")}},
     Failure(Cause.CRASH_LOOP, f"{WHERE} ended with exit code 0 (Completed), 1 restart", "new-1")),
]  # fmt: skip


@pytest.mark.parametrize(("status", "expected"), CRASHES)
def test_says_how_a_container_ended(status: dict[str, Any], expected: Failure) -> None:
    assert failure(with_status(status)) == expected


def test_a_status_that_counts_no_restarts_has_none() -> None:
    bare = crashed()
    del bare["restartCount"]
    assert failure(with_status(bare)) is None


def test_an_end_in_the_second_of_the_change_counts_and_one_before_it_does_not() -> None:
    assert failure(with_status(crashed(finishedAt=ended(finished=0)["finishedAt"]))) is not None
    assert failure(with_status(crashed(finishedAt=ended(finished=-1)["finishedAt"]))) is None


def test_of_a_pod_from_before_the_change_only_the_wait_after_a_restart_counts() -> None:
    again = running(restarts=2, last=ended())
    assert failure(with_status(again, created=0)) is not None, "made in the second of the change"
    assert failure(with_status(again, created=-1)) is None
    assert failure(with_status(crashed(1), created=-1)) is not None
    assert failure(with_status(crashed(0), created=-1)) is None


def test_a_container_that_was_stopped_for_another_reason_has_crashed() -> None:
    stopped = event("Killing", "Stopping container rag-api")
    other = event("Other", "Container rag-api failed startup probe, will be restarted")
    found = failure(with_status(crashed()), stopped, other)
    assert found is not None
    assert found.cause == Cause.CRASH_LOOP


@pytest.mark.parametrize(
    ("probe", "status"), [("startup", running()), ("liveness", running(restarts=2, last=ended(137)))]
)
@pytest.mark.parametrize(("reason", "said"), [("Unhealthy", "; 503"), ("ProbeError", "; 503"), ("Other", "")])
def test_says_which_probe_killed_a_container_and_what_it_said(
    probe: str, status: dict[str, Any], reason: str, said: str
) -> None:
    killed = event("Killing", f"Container rag-api failed {probe} probe, will be restarted")
    found = failure(with_status(status), killed, event(reason, "503"))
    text = f"{WHERE}: Container rag-api failed {probe} probe, will be restarted{said}"
    assert found == Failure(Cause.FAILING_PROBE, text, "new-1")


# --------------------------------------------------------------------------------------------------------------- volumes


@pytest.mark.parametrize("reason", ["ContainerCreating", "PodInitializing"])
def test_a_volume_that_is_waited_for_is_named(reason: str) -> None:
    mount = event("FailedMount", "secret not found", container_name="", first=2, last=60)
    starting = with_status(waiting(reason))
    assert failure(starting, mount, now=61) is None
    assert failure(starting, mount, now=62) == Failure(Cause.VOLUME, "pod new-1: secret not found", "new-1")
    assert failure(with_status(running()), mount, now=62) is None
