"""Step by step to an intended spec: one ordinal at a time, whatever happens in between."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nephoran_maintenance.domain.stepping import Move, is_ready, next_move, ordinal_of, partition_of, with_partition
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
    assert move(unseen, replicas(OLD, OLD, OLD), strategy=False).action == "wait"


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
    assert ordinal_of(pod("weaviate-prod-12")) == 12


def test_a_pod_on_its_way_out_is_not_ready() -> None:
    assert is_ready(pod("a", ready=True))
    assert not is_ready(pod("a", ready=True, metadata={"deletionTimestamp": stamp(1)}))


class Controller:
    """A StatefulSet controller that is as slow as drawn: it does one thing whenever it gets a turn."""

    def __init__(self, revisions: list[str], ready: list[bool], partition: int) -> None:
        self.workload = stateful_set(replicas=len(revisions), partition=partition)
        self.revisions, self.ready = revisions, ready
        self.least_ready = sum(ready)

    def pods(self) -> list[dict[str, Any]]:
        unready = tuple(n for n, ready in enumerate(self.ready) if not ready)
        return replicas(*self.revisions, unready=unready)

    def turn(self) -> None:
        """Make the lowest unready pod ready, else replace the highest old pod that the partition allows."""
        status = self.workload["status"]
        if status["observedGeneration"] < self.workload["metadata"]["generation"]:
            status["observedGeneration"] = self.workload["metadata"]["generation"]
            return
        for n in range(len(self.ready)):
            if not self.ready[n]:
                self.ready[n] = self.revisions[n] == NEW or self.ready[n]
                if self.ready[n]:
                    return
        if not all(self.ready):
            return  # an old broken pod holds OrderedReady up, kubernetes#67250
        for n in reversed(range(partition_of(self.workload), len(self.ready))):
            if self.revisions[n] != NEW:
                self.revisions[n], self.ready[n] = NEW, False
                self.least_ready = min(self.least_ready, sum(self.ready))
                return

    def make(self, made: Move) -> None:
        if made.action == "replace":
            assert made.ordinal is not None
            self.revisions[made.ordinal], self.ready[made.ordinal] = NEW, False
            return
        partition = 0 if made.action == "settle" else made.partition
        assert partition is not None
        self.workload["spec"]["updateStrategy"]["rollingUpdate"]["partition"] = partition
        self.workload["metadata"]["generation"] += 1


@given(
    st.lists(st.tuples(st.sampled_from([OLD, NEW]), st.booleans()), min_size=1, max_size=4),
    st.integers(0, 4),
    st.lists(st.booleans(), max_size=20),
)
def test_always_arrives_from_wherever_a_dead_run_has_left_it(
    drawn: list[tuple[str, bool]], partition: int, turns: list[bool]
) -> None:
    controller = Controller([revision for revision, _ in drawn], [ready for _, ready in drawn], partition)
    template_as_intended = False
    schedule = iter([*turns, *[True] * 200])
    for _ in range(200):
        strategy = partition_of(controller.workload) == 0
        made = next_move(
            copy.deepcopy(controller.workload),
            controller.pods(),
            template_as_intended=template_as_intended,
            strategy_as_intended=strategy,
        )
        if made.action == "done":
            break
        if made.action == "patch":
            template_as_intended = True
        if made.action != "wait":
            controller.make(made)
        if next(schedule):
            controller.turn()
    else:
        pytest.fail("never done")
    assert controller.revisions == [NEW] * len(drawn)
    assert all(controller.ready)
    assert partition_of(controller.workload) == 0


@given(st.integers(2, 5), st.lists(st.booleans(), max_size=30))
def test_never_has_more_than_one_pod_away(count: int, turns: list[bool]) -> None:
    controller = Controller([OLD] * count, [True] * count, 0)
    schedule = iter([*turns, *[True] * 200])
    template_as_intended = False
    for _ in range(200):
        strategy = partition_of(controller.workload) == 0
        made = next_move(
            controller.workload,
            controller.pods(),
            template_as_intended=template_as_intended,
            strategy_as_intended=strategy,
        )
        if made.action == "done":
            break
        template_as_intended = True
        if made.action != "wait":
            controller.make(made)
        if template_as_intended and next(schedule):
            controller.turn()
    assert controller.least_ready >= count - 1
