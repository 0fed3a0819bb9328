"""Step by step to an intended spec: one ordinal at a time, whatever happens in between."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nephoran_maintenance.domain.stepping import (
    Move,
    alive,
    is_ready,
    next_move,
    ordinal_of,
    partition_of,
    with_partition,
)
from tests.unit.domain.kubernetes_objects import deployment, pod, stamp, stateful_set

NEW, OLD = "weaviate-new", "weaviate-old"


def replicas(*revisions: str, unready: tuple[int, ...] = ()) -> list[dict[str, Any]]:
    return [
        pod(f"weaviate-{n}", revision=revision, label="controller-revision-hash", ready=n not in unready)
        for n, revision in enumerate(revisions)
    ]


def move(workload: dict[str, Any], pods: list[dict[str, Any]], *, template: bool = True, strategy: bool = True) -> Move:
    return next_move(workload, pods, template_as_intended=template, strategy_as_intended=strategy)


@pytest.mark.parametrize(("template", "strategy"), [(False, True), (True, False), (False, False)])
def test_a_deployment_is_patched_when_anything_differs(template: bool, strategy: bool) -> None:
    assert move(deployment(), [], template=template, strategy=strategy) == Move("patch")


def test_a_deployment_as_intended_is_waited_for() -> None:
    assert move(deployment(), []) == Move("wait")


def test_a_stateful_set_is_patched_with_every_ordinal_held_back() -> None:
    assert move(stateful_set(), replicas(OLD, OLD, OLD), template=False) == Move("patch", partition=3)


def test_waits_until_the_controller_has_seen_the_patch() -> None:
    unseen = stateful_set(partition=3, status={"observedGeneration": 1, "updateRevision": OLD})
    assert move(unseen, replicas(OLD, OLD, OLD), strategy=False) == Move("wait", 3)
    above = stateful_set(replicas=2, spec={"ordinals": {"start": 5}}, status={"observedGeneration": 1})
    assert move(above, [], strategy=False) == Move("wait", 7)


@pytest.mark.parametrize(
    ("metadata", "status", "expected"),
    [
        pytest.param({}, {}, Move("wait", 0), id="nothing is known"),
        pytest.param({"generation": 1}, {}, Move("wait", 1), id="the controller has seen nothing yet"),
        pytest.param({}, {"observedGeneration": 0}, Move("wait", 0), id="no generation is none unseen"),
    ],
)
def test_what_an_object_does_not_say_has_kubernetes_default(
    metadata: dict[str, Any], status: dict[str, Any], expected: Move
) -> None:
    bare = {"kind": "StatefulSet", "metadata": metadata, "spec": {}}
    assert move(bare | ({"status": status} if status else {}), []) == expected


STEPS = [
    pytest.param(3, (OLD, OLD, OLD), (), Move("open", 2, 2), id="the highest ordinal first"),
    pytest.param(2, (OLD, OLD, OLD), (), Move("wait", 2), id="its pod is about to be replaced"),
    pytest.param(2, (OLD, OLD, NEW), (2,), Move("wait", 2), id="its new pod is not ready"),
    pytest.param(2, (OLD, OLD, NEW), (), Move("open", 1, 1), id="the next one when it is ready"),
    pytest.param(1, (OLD, NEW, NEW), (2,), Move("wait", 2), id="not while one above became unready"),
    pytest.param(0, (NEW, NEW, NEW), (), Move("settle"), id="all are new"),
    pytest.param(2, (OLD, OLD, OLD), (2,), Move("replace", 2, pod="weaviate-2"), id="a broken old pod that blocks"),
    pytest.param(3, (OLD, OLD, OLD), (2,), Move("open", 2, 2), id="a broken old pod held back is opened first"),
    pytest.param(0, (OLD, NEW, NEW), (), Move("wait", 0), id="a partition left at zero by a dead run"),
    pytest.param(3, (NEW, OLD, NEW), (), Move("open", 1, 1), id="a run that died in between"),
    pytest.param(1, (OLD, NEW, NEW), (1, 2), Move("wait", 2), id="the highest of two that start"),
    pytest.param(3, (OLD, NEW, OLD), (1,), Move("wait", 1), id="one that starts below the partition"),
]


@pytest.mark.parametrize(("partition", "revisions", "unready", "expected"), STEPS)
def test_steps_a_stateful_set(
    partition: int, revisions: tuple[str, ...], unready: tuple[int, ...], expected: Move
) -> None:
    workload = stateful_set(partition=partition)
    assert move(workload, replicas(*revisions, unready=unready), strategy=False) == expected


def test_a_missing_and_a_terminating_pod_are_waited_for() -> None:
    assert move(stateful_set(partition=2), replicas(OLD, OLD), strategy=False) == Move("wait", 2)
    pods = replicas(OLD, OLD, OLD)
    pods[2]["metadata"]["deletionTimestamp"] = stamp(1)
    assert move(stateful_set(partition=2), pods, strategy=False) == Move("wait", 2)


def test_a_pod_without_labels_is_an_old_one() -> None:
    pods = replicas(OLD, OLD, OLD)
    del pods[2]["metadata"]["labels"]
    assert move(stateful_set(partition=3), pods, strategy=False) == Move("open", 2, 2)


def test_is_done_when_the_intended_strategy_is_back() -> None:
    assert move(stateful_set(), replicas(NEW, NEW, NEW)) == Move("done")


def test_a_partition_changes_nothing_else_of_a_strategy() -> None:
    strategy = {"type": "RollingUpdate", "rollingUpdate": {"partition": 0, "maxUnavailable": 1}}
    assert with_partition(strategy, 2) == {
        "type": "RollingUpdate",
        "rollingUpdate": {"partition": 2, "maxUnavailable": 1},
    }
    assert strategy["rollingUpdate"]["partition"] == 0  # type: ignore[index]
    assert with_partition({"type": "OnDelete"}, 1) == {"type": "RollingUpdate", "rollingUpdate": {"partition": 1}}


def test_reads_partition_and_ordinal() -> None:
    assert partition_of(stateful_set(partition=2)) == 2
    assert partition_of({"spec": {"updateStrategy": {"type": "OnDelete"}}}) == 0
    assert partition_of({"spec": {}}) == 0
    assert ordinal_of(pod("weaviate-prod-12")) == 12


def test_a_pod_on_its_way_out_is_not_ready() -> None:
    assert is_ready(pod("a", ready=True))
    assert not is_ready(pod("a", ready=True, metadata={"deletionTimestamp": stamp(1)}))
    assert not is_ready({"metadata": {"name": "a"}})
    assert not is_ready({"metadata": {"name": "a"}, "status": {}})


def test_pods_that_have_ended_or_are_on_their_way_out_do_not_count() -> None:
    counting = [pod("a", ready=True), pod("b"), {"metadata": {"name": "c"}}, {"metadata": {}, "status": None}]
    gone = [
        pod("d", metadata={"deletionTimestamp": stamp(1)}),
        pod("e", status={"phase": "Succeeded"}),
        pod("f", status={"phase": "Failed"}),
    ]
    assert alive([*gone, *counting]) == counting


WAY_BACK = [
    pytest.param(3, (NEW, OLD, OLD), (1,), Move("replace", 1, pod="weaviate-1"), id="the broken pod goes first"),
    pytest.param(3, (NEW, NEW, OLD), (1,), Move("wait", 1), id="no other while its successor is not ready"),
    pytest.param(3, (NEW, NEW, OLD), (), Move("open", 2, 2), id="then the others from the top"),
    pytest.param(0, (NEW, OLD, OLD), (0,), Move("wait", 0), id="a pod that stayed and is not ready is waited for"),
]


@pytest.mark.parametrize(("partition", "revisions", "unready", "expected"), WAY_BACK)
def test_on_the_way_back_no_pod_that_answers_goes_while_another_is_broken(
    partition: int, revisions: tuple[str, ...], unready: tuple[int, ...], expected: Move
) -> None:
    workload = stateful_set(partition=partition, status={"currentRevision": NEW})
    assert move(workload, replicas(*revisions, unready=unready), strategy=False) == expected


def test_on_the_way_back_a_pod_below_the_partition_that_is_away_is_waited_for() -> None:
    workload = stateful_set(partition=3, status={"currentRevision": NEW})
    assert move(workload, replicas(NEW, OLD, OLD)[1:], strategy=False) == Move("wait", 0)


def test_on_the_way_forward_an_old_pod_that_is_unready_for_a_moment_releases_nothing() -> None:
    workload = stateful_set(partition=2)
    assert move(workload, replicas(OLD, OLD, NEW, unready=(0, 2)), strategy=False) == Move("wait", 2)


def test_on_the_way_forward_a_pod_below_the_partition_that_is_away_is_opened_in_its_turn() -> None:
    assert move(stateful_set(partition=2), replicas(OLD, OLD, NEW)[1:], strategy=False) == Move("open", 1, 1)
    assert move(stateful_set(partition=1), replicas(OLD, NEW, NEW)[1:], strategy=False) == Move("open", 0, 0)


def test_ordinals_may_start_above_zero() -> None:
    workload = stateful_set(replicas=2, partition=2, spec={"ordinals": {"start": 5}})
    pods = [pod(f"weaviate-{n}", revision=OLD, label="controller-revision-hash", ready=True) for n in (5, 6)]
    assert move(workload, pods, strategy=False) == Move("open", 6, 1)
    assert move(workload, pods, template=False) == Move("patch", partition=2)
    done = stateful_set(replicas=2, spec={"ordinals": {"start": 5}})
    pods = [pod(f"weaviate-{n}", revision=NEW, label="controller-revision-hash", ready=True) for n in (5, 6)]
    assert move(done, pods) == Move("done")


class Controller:
    """A StatefulSet controller with ordered pods that does one thing whenever it gets a turn."""

    def __init__(self, revisions: list[str], ready: list[bool], partition: int, *, current: str) -> None:
        self.generation = self.observed = 1
        self.revisions, self.ready, self.partition, self.current = revisions, ready, partition, current
        self.least_ready = sum(ready)

    def workload(self) -> dict[str, Any]:
        return {
            "kind": "StatefulSet",
            "metadata": {"generation": self.generation},
            "spec": {"replicas": len(self.ready), "updateStrategy": {"rollingUpdate": {"partition": self.partition}}},
            "status": {"observedGeneration": self.observed, "currentRevision": self.current, "updateRevision": NEW},
        }

    def pods(self) -> list[dict[str, Any]]:
        return [
            {
                "metadata": {"name": f"weaviate-{n}", "labels": {"controller-revision-hash": revision}},
                "status": {"conditions": [{"type": "Ready", "status": str(ready)}]},
            }
            for n, (revision, ready) in enumerate(zip(self.revisions, self.ready, strict=True))
        ]

    def turn(self) -> None:
        """Let one new pod become ready, else replace the highest old pod that the partition allows."""
        self.observed = self.generation
        for n, revision in enumerate(self.revisions):
            if revision == NEW and not self.ready[n]:
                self.ready[n] = True
                return
        if not all(self.ready):
            return  # a broken pod holds ordered pods up, kubernetes#67250
        for n in reversed(range(self.partition, len(self.ready))):
            if self.revisions[n] != NEW:
                self.take_away(n)
                return

    def take_away(self, n: int) -> None:
        self.revisions[n], self.ready[n] = NEW if n >= self.partition else self.current, False
        self.least_ready = min(self.least_ready, sum(self.ready))

    def make(self, made: Move) -> None:
        if made.action == "replace":
            assert made.ordinal is not None
            assert not self.ready[made.ordinal], "a pod that answers was deleted"
            self.take_away(made.ordinal)
            return
        partition = 0 if made.action == "settle" else made.partition
        assert partition is not None
        self.partition, self.generation = partition, self.generation + 1

    def run(self, turns: list[bool]) -> None:
        """Move until it is done; the controller gets its turns where ``turns`` says so, and always later on."""
        patched = False
        for look in range(100):
            made = next_move(
                self.workload(), self.pods(), template_as_intended=patched, strategy_as_intended=self.partition == 0
            )
            if made.action == "done":
                return
            patched = True
            if made.action != "wait":
                self.make(made)
            if look >= len(turns) or turns[look]:
                self.turn()
        pytest.fail("never done")


schedules = st.lists(st.booleans(), max_size=12)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=4), st.integers(0, 4), schedules)
def test_the_way_forward_always_arrives_from_wherever_a_dead_run_has_left_it(
    drawn: list[tuple[bool, bool]], partition: int, turns: list[bool]
) -> None:
    revisions = [NEW if new else OLD for new, _ in drawn]
    controller = Controller(revisions, [ready or not new for new, ready in drawn], partition, current=OLD)
    controller.run(turns)
    assert controller.revisions == [NEW] * len(drawn)
    assert all(controller.ready)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=4), st.integers(0, 4), schedules)
def test_the_way_back_always_arrives_whatever_is_broken(
    drawn: list[tuple[bool, bool]], partition: int, turns: list[bool]
) -> None:
    revisions = [NEW if new else OLD for new, _ in drawn]
    controller = Controller(revisions, [ready for _, ready in drawn], partition, current=NEW)
    least = controller.least_ready
    controller.run(turns)
    assert controller.revisions == [NEW] * len(drawn)
    assert all(controller.ready)
    assert controller.least_ready >= min(least, len(drawn) - 1), "a pod that answers went while another was broken"


@given(st.integers(2, 5), schedules)
def test_never_has_more_than_one_pod_away(count: int, turns: list[bool]) -> None:
    controller = Controller([OLD] * count, [True] * count, 0, current=OLD)
    controller.run(turns)
    assert controller.least_ready == count - 1
