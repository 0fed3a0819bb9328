"""Old state or new state, never between: whatever is killed at whatever write, a later recovery ends in one of them.

A process is killed by an error that nothing catches, raised around one of its writes; what is left are the objects of
the cluster. The recovery is a fresh one that knows nothing else: the command line, or the procedure of another Airflow.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from airflow.sdk.exceptions import AirflowException, AirflowFailException, TaskDeferred

from nephoran_maintenance.__main__ import main
from nephoran_maintenance.domain.gate import unmeasured
from nephoran_maintenance.engine.fencing import turn_back, turn_back_alone
from nephoran_maintenance.engine.live import check_health
from nephoran_maintenance.errors import MaintenanceError, PermanentError
from nephoran_maintenance.hooks.cluster import ClusterHook
from nephoran_maintenance.hooks.journal_store import JournalStore
from nephoran_maintenance.hooks.lease_store import LeaseStore
from nephoran_maintenance.profile import load_profile
from nephoran_maintenance.settings import PROJECT_ROOT
from tests.unit.dag_runner import DagRunner, TaskInstance
from tests.unit.fake_cluster import APPS, JOURNALS, LEASES, copied
from tests.unit.hooks.fake_servers import Reply, kube_config
from tests.unit.operators.conftest import Step, System, changes_spec

TWO = ["weaviate", "rag-api"]
READS = ("GET", "HEAD")


def is_change(method: str, path: str, options: Mapping[str, Any]) -> bool:
    """Return whether a request to the API server writes something."""
    return method not in READS and "selfsubject" not in path and not (options.get("query") or {}).get("dryRun")


class Killed(BaseException):
    """The process is gone: no handler of a step sees this."""


@dataclass
class Killer:
    """Kills the process around its n-th write to the cluster."""

    at: int = 0
    after: bool = True
    writes: list[str] = field(default_factory=list)

    def request(self, hook: ClusterHook, method: str, path: str, about: Any, **options: Any) -> Any:
        if not is_change(method, path, options):
            return self.plain(hook, method, path, about, **options)
        self.writes.append(f"{method} {path.rpartition('/')[2]}")
        if len(self.writes) != self.at:
            return self.plain(hook, method, path, about, **options)
        if self.after:
            with contextlib.suppress(MaintenanceError):  # a write that met another one: it dies all the same
                self.plain(hook, method, path, about, **options)
        raise Killed

    plain: Callable[..., Any] = ClusterHook.request


@contextlib.contextmanager
def killing(at: int, *, after: bool = True) -> Iterator[Killer]:
    """Kill whoever makes the n-th write in this block; with 0 nobody, only count."""
    killer = Killer(at, after)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ClusterHook, "request", lambda hook, *a, **o: killer.request(hook, *a, **o))
        with contextlib.suppress(Killed):
            yield killer


def pass_time(system: System, seconds: float = 120) -> None:
    """Let the last renewal of the lease, if there is one, lie so long back."""
    try:
        spec = system.lease()["spec"]
    except StopIteration:
        return
    spec["renewTime"] = (datetime.now(UTC) - timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def command_line(system: System, *arguments: str) -> int:
    """Recover as a person without Airflow does: a kubeconfig, a profile, and the cluster."""
    config = system.profile_path.with_name("kubeconfig")
    config.write_text(yaml.safe_dump(kube_config(system.server.url)), encoding="utf-8")
    name, *more = arguments
    given = [name, "--kubeconfig", str(config), "--profile", str(system.profile_path), *more]
    return main(given, sleep=lambda seconds: system.cluster.tick())


def recover_by_airflow(
    system: System, *, scheduled: bool = True, replaced: dict[str, Step] | None = None, **params: Any
) -> DagRunner:
    dag = system.dags["recover_operation"]
    runner = DagRunner(dag, params, run_id=f"scheduled__{datetime.now(UTC).isoformat()}", replaced=replaced)
    runner.dag_run.run_type.value = "scheduled" if scheduled else "manual"
    runner.dag_run.run_after = datetime.now(UTC)
    return runner.run()


def roll_back_by_airflow(system: System, *, replaced: dict[str, Step] | None = None, **params: Any) -> DagRunner:
    run_id = f"manual__{datetime.now(UTC).isoformat()}"
    return DagRunner(system.dags["rollback"], params, run_id=run_id, replaced=replaced).run()


def ended_well(system: System, before: dict[str, Any]) -> str:
    """Return ``old`` or ``new``; anything else fails the test."""
    system.cluster.settle()
    assert system.fences() == {}, "an object kept the mark of a dead operation"
    assert not [path for path in system.cluster.objects if "/networkintents/" in path]
    journals = [found for path, found in system.cluster.objects.items() if path.startswith(JOURNALS)]
    heads = [json.loads(found["data"]["journal.json"]) for found in journals if "journal.json" in found["data"]]
    assert {head["state"] for head in heads} <= {"closed"}, heads
    specs = system.specs()
    if specs == before:
        assert {tag for name in TWO for tag in system.cluster.running(name)} == {"v1"}
        return "old"
    new = copied(before)
    for name in TWO:
        image = system.cluster.image(name, "v2")
        new[name]["template"]["spec"]["containers"][1]["image"] = f"{image}@{system.cluster.digest(image)}"
    assert specs == new, "neither the old state nor the new one"
    assert {tag for name in TWO for tag in system.cluster.running(name)} == {"v2"}
    return "new"


def objects_of(system: System) -> dict[str, Any]:
    """Return a copy of everything in the cluster, to begin from once more."""
    return copied(system.cluster.objects)


def put_back(system: System, objects: dict[str, Any]) -> None:
    system.cluster.objects.clear()
    system.cluster.objects.update(copied(objects))
    system.cluster.version += 1000
    system.cluster._at_rest = -1


# ----------------------------------------------------------------------------------------------------------- the table


@contextlib.contextmanager
def photographed(system: System) -> Iterator[list[tuple[str, bytes]]]:
    """Keep what is in the cluster before and after each write of this block, with the name of the write.

    That is all that a process leaves behind that is killed there. What is the same as the picture before it is left out.
    """
    pictures: list[tuple[str, bytes]] = []

    def keep(name: str) -> None:
        objects = pickle.dumps(system.cluster.objects)
        if not pictures or pictures[-1][1] != objects:
            pictures.append((name, objects))

    def request(hook: ClusterHook, method: str, path: str, about: Any, **options: Any) -> Any:
        if not is_change(method, path, options):
            return plain(hook, method, path, about, **options)
        keep(f"before {method} {path.rpartition('/')[2]}")
        try:
            return plain(hook, method, path, about, **options)
        finally:
            keep(f"after {method} {path.rpartition('/')[2]}")

    plain = ClusterHook.request
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ClusterHook, "request", request)
        yield pictures


@pytest.mark.parametrize(
    "good", [pytest.param(True, id="good-version"), pytest.param(False, id="bad-version-goes-back")]
)
def test_killed_before_or_after_any_write_an_operation_is_finished_or_undone(system: System, good: bool) -> None:
    """Every write of an operation on two components, each in a cluster of its own; a fresh command line recovers."""
    if not good:
        system.push("v2-bad", "rag-api")
        system.cluster.behaviour["v2-bad"] = "crash"
    before = system.specs()
    with photographed(system) as pictures:
        system.upgrade(components=TWO, images={} if good else {"rag-api": "v2-bad"})
    assert len(pictures) > 30, "the table is empty"
    ends = []
    for name, objects in pictures:
        put_back(system, pickle.loads(objects))
        pass_time(system)
        assert command_line(system, "recover") == 0, name
        ends.append(ended_well(system, before))
        writes = len(system.writes())
        assert command_line(system, "recover") == 0, "a second recovery has nothing to do"
        assert len(system.writes()) == writes, name
    assert ends[0] == "old"
    if good:
        assert ends[-1] == "new"
        first_new = ends.index("new")
        assert set(ends[first_new:]) == {"new"}, "once everything was seen to be good it stays"
    else:
        assert set(ends) == {"old"}


def test_a_recovery_that_is_killed_at_any_write_is_itself_recovered(system: System) -> None:
    objects, before = objects_of(system), system.specs()
    with killing(0) as counted:
        system.upgrade(components=TWO, run_id="counted")
    put_back(system, objects)
    with killing(counted.writes.index("PATCH rag-api") + 8):
        system.upgrade(components=TWO, run_id="killed")
    assert system.fences(), "it must have died in the middle"
    pass_time(system)
    middle = objects_of(system)
    with killing(0) as recovery:
        assert command_line(system, "recover") == 0
    ended_well(system, before)
    assert len(recovery.writes) > 8
    for number in range(1, len(recovery.writes) + 1):
        put_back(system, middle)
        with killing(number):
            command_line(system, "recover")
        pass_time(system)
        assert command_line(system, "recover") == 0, recovery.writes[number - 1]
        assert ended_well(system, before) == "old"


@pytest.mark.parametrize(
    "task_id", ["components.rag_api.apply_image", "components.rag_api.wait_image", "rollback.rollback_rag_api"]
)
def test_a_step_cleared_while_a_recovery_is_at_work_changes_nothing(system: System, task_id: str) -> None:
    """The journal is open, but in other hands."""
    left_in_the_middle(system)
    pass_time(system)
    store, leases = stores_of(system)
    lease = leases.take("recover-operation-other", "recover_operation", above=1)
    store.update(system.journal().operation_id, lambda journal: journal.fenced(lease.token))
    writes = len(system.writes())
    run = DagRunner(system.dags["rolling_upgrade"], {"mode": "apply", "components": TWO}, run_id="died")
    task = run.dag.get_task(task_id)
    run._try(task, TaskInstance(run, task))
    assert run.states[task_id] == "failed"
    assert "[lease-lost]" in run.error(task_id)
    assert len(system.writes()) == writes


def test_a_run_that_lost_its_operation_says_so_and_where_the_truth_is(system: System) -> None:
    """A recovery is still at work when the run writes its report."""
    before = system.specs()
    operation: list[str] = []

    def taken(step: Any, context: Any) -> Any:
        store, leases = stores_of(system)
        operation.append(system.journal().operation_id)
        pass_time(system)
        lease = leases.take("recover-operation-other", "recover_operation", above=1)
        store.update(operation[0], lambda journal: journal.fenced(lease.token))
        return step.execute(context)

    run = system.upgrade(components=TWO, replaced={"components.rag_api.apply_image": taken})
    assert run.surprises == []
    report = run.report
    assert report["overall"] == "taken-over"
    assert "so did the way back" not in report["summary"]
    assert "taken over by recover-operation-other; it is still at work" in report["elsewhere"]["text"]
    assert report["elsewhere"]["address"] == f"../../recover_operation/{operation[0]}/"
    page = Path(report["report_path"]).read_text(encoding="utf-8")
    assert f'href="../../recover_operation/{operation[0]}/"' in page
    assert "taken over" in page
    assert run.states["verify_outcome"] == "failed"
    pass_time(system)
    assert command_line(system, "recover") == 0
    assert ended_well(system, before) == "old"


def test_a_run_whose_operation_the_next_upgrade_has_taken_over_points_to_its_log(system: System) -> None:
    def recovered(step: Any, context: Any) -> Any:
        pass_time(system)
        system.upgrade(components=TWO, run_id="next", mode="apply", version="v1", allow_downgrade=True)
        return step.execute(context)

    run = system.upgrade(components=TWO, replaced={"components.rag_api.apply_image": recovered})
    told = run.report["elsewhere"]
    assert "it is closed: rolled-back" in told["text"]
    assert "in the log of recover_operations of that rolling_upgrade." in told["text"]
    assert told["address"] == ""
    assert "That report" not in Path(run.report["report_path"]).read_text(encoding="utf-8")


def test_a_run_whose_operation_a_recovery_has_closed_points_to_its_report(system: System) -> None:
    def recovered(step: Any, context: Any) -> Any:
        pass_time(system)
        assert command_line(system, "recover") == 0
        return step.execute(context)

    run = system.upgrade(components=TWO, replaced={"components.rag_api.apply_image": recovered})
    assert run.report["overall"] == "rolled-back"
    assert run.report["elsewhere"]["address"].startswith("../../recover_operation/")
    assert "which decided to undo it; it is closed: rolled-back" in run.report["elsewhere"]["text"]


def reports_of(system: System, procedure: str) -> dict[str, Any]:
    path = system.profile_path.parent / "reports" / procedure / system.journal().operation_id / "report.json"
    assert path.with_name("report.html").exists()
    return dict(json.loads(path.read_text(encoding="utf-8")))


def test_a_recovery_by_command_line_leaves_the_report_that_the_procedure_would(
    system: System, capsys: pytest.CaptureFixture[str]
) -> None:
    left_in_the_middle(system)
    pass_time(system)
    assert command_line(system, "recover", "--plan") == 0
    assert not (system.profile_path.parent / "reports" / "recover_operation").exists(), "a plan did nothing"
    assert command_line(system, "recover") == 0
    report = reports_of(system, "recover_operation")
    assert f"report: {system.profile_path.parent}/reports/recover_operation/" in capsys.readouterr().out
    assert (report["overall"], report["procedure"]) == ("rolled-back", "recover_operation")
    assert report["triggered_by"].endswith(", command line")
    assert report["recovery"]["decision"] == "undo"
    assert report["recovery"]["done"] == "closed: rolled-back"
    assert [row["component"] for row in report["rollback"]] == ["rag-api", "weaviate"]
    assert report["elsewhere"] is None


@pytest.mark.parametrize("by", ["command line", "Airflow"])
def test_a_way_back_that_a_person_wanted_is_no_failed_change(system: System, by: str) -> None:
    run = system.upgrade(components=["rag-api"])
    assert run.report["overall"] == "succeeded"
    assert run.report["elsewhere"] is None
    operation = system.journal().operation_id
    if by == "Airflow":
        assert roll_back_by_airflow(system, mode="apply", operation=operation).failed() == []
    else:
        assert command_line(system, "rollback", operation) == 0
    report = reports_of(system, "rollback")
    assert report["overall"] == "rolled-back"
    assert report["summary"].startswith("A person wanted it back: ")
    assert report["params"]["operation"] == operation


def test_a_recovery_by_command_line_that_failed_is_reported_too(
    system: System, capsys: pytest.CaptureFixture[str]
) -> None:
    left_in_the_middle(system)
    system.cluster.edit("rag-api", lambda w: w["spec"]["template"]["metadata"].update(annotations={"by": "another"}))
    pass_time(system)
    assert command_line(system, "recover") == 1
    report = reports_of(system, "recover_operation")
    assert report["overall"] == "failed"
    assert report["recovery"]["decision"] == "stop"
    assert "can be neither finished nor undone" in report["failed_steps"][0]["error"]


def test_a_bucket_that_can_not_be_written_does_not_undo_the_recovery(
    system: System, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    left_in_the_middle(system)
    system.edit_profile(lambda data: data["reports"].update(bucket="reports"))
    monkeypatch.delenv("AIRFLOW_CONN_OBJECT_STORE_REPORTS", raising=False)
    pass_time(system)
    assert command_line(system, "recover") == 0
    assert "is only in the local folder" in capsys.readouterr().err
    assert reports_of(system, "recover_operation")["overall"] == "rolled-back"


# ------------------------------------------------------------------------------------------------------------- fencing


@contextlib.contextmanager
def stopped_at(chosen: Callable[[str, str, Any], bool], meanwhile: Callable[[], None]) -> Iterator[list[str]]:
    """Stop the one process whose write is chosen, after its checks and before its write; it goes on after ``meanwhile``.

    Yields the writes that were held up.
    """
    held_up: list[str] = []

    def request(hook: ClusterHook, method: str, path: str, about: Any, **options: Any) -> Any:
        if not held_up and method not in READS and chosen(method, path, options.get("body")):
            held_up.append(f"{method} {path}")
            meanwhile()
        return plain(hook, method, path, about, **options)

    plain = ClusterHook.request
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ClusterHook, "request", request)
        yield held_up


def first_change(method: str, path: str, body: Any) -> bool:
    if method != "PATCH" or not path.startswith(APPS) or not isinstance(body, list):
        return False
    return any(operation["path"] == "/spec/template" for operation in body)


def first_intent(method: str, path: str, body: Any) -> bool:
    return method == "PUT" and path.startswith(JOURNALS) and "intended" in body["data"]["progress"]


def closing(method: str, path: str, body: Any) -> bool:
    return method == "PUT" and path.startswith(JOURNALS) and '"state": "closed"' in body["data"]["journal.json"]


@pytest.mark.parametrize("chosen", [first_intent, first_change, closing])
def test_the_late_write_of_a_stopped_owner_is_refused(
    system: System, chosen: Callable[[str, str, Any], bool], capsys: pytest.CaptureFixture[str]
) -> None:
    before = system.specs()
    accepted: list[int] = []

    def meanwhile() -> None:
        pass_time(system)
        assert command_line(system, "recover") == 0
        accepted.append(len(system.cluster.accepted))

    with stopped_at(chosen, meanwhile) as held_up:
        run = system.upgrade(components=TWO)
    assert len(held_up) == 1
    late = [r for r in system.cluster.accepted[accepted[0] :] if changes_spec(r) or r.path.startswith(JOURNALS)]
    # The probe's stop signal is an annotation of the journal, which changes nothing of what it says.
    assert [r.path for r in late if set(r.json) != {"metadata"}] == []
    if chosen is closing:
        # Everything was seen to be good, and the recovery has closed it as that.
        assert ended_well(system, before) == "new"
        assert run.report["overall"] == "succeeded"
        return
    assert ended_well(system, before) == "old"
    assert "[lease-lost]" in run.error("components.weaviate.apply_image")
    assert run.states["verify_outcome"] == "failed"


@pytest.mark.parametrize("alone", [False, True], ids=["the-whole", "alone"])
def test_a_forward_step_that_wakes_after_its_own_run_turned_back_says_nothing_of_the_component(
    system: System, monkeypatch: pytest.MonkeyPatch, alone: bool
) -> None:
    """It was marked as failed by a person; what it then sees of the pods is what the way back did."""
    if alone:
        system.allow_to_fail("rag-api", llm_processor=["weaviate"])
    turned: list[str] = []

    def wakes_late(*arguments: Any, **options: Any) -> Any:
        if turned:
            return healthy(*arguments, **options)
        store, leases = stores_of(system)
        journal = store.all("open")[0]
        turned.append(journal.operation_id)
        if alone:
            turn_back_alone(store.cluster, store, leases, journal, journal.operation_id, "rag-api")
        else:
            turn_back(store.cluster, store, leases, journal, journal.operation_id)
        raise PermanentError("health-check-failed", "rag-api: the pod does not answer")

    healthy = check_health
    monkeypatch.setattr("nephoran_maintenance.operators.rollout.check_health", wakes_late)
    run = system.upgrade(components=["rag-api"])
    assert "[health-check-failed]" in run.error("components.rag_api.wait_image")
    assert system.journal().failures == ()
    assert system.quarantine() == {}
    assert run.report["overall"] == "rolled-back"


def test_a_gate_that_closes_after_the_operation_was_taken_over_says_nothing_of_the_component(system: System) -> None:
    system.with_gates()

    def taken_over(step: Any, context: Any) -> Any:
        with pytest.raises(TaskDeferred):
            step.execute(context)
        pass_time(system)
        assert command_line(system, "recover") == 0
        verdict = unmeasured("rag-api", "x").to_dict()
        return step.resume_step(context, {"state": "complete", "verdicts": [{**verdict, "state": "closed"}]})

    run = system.upgrade(components=["rag-api"], replaced={"components.rag_api.verify_metrics": taken_over})
    assert "[operation-closed]" in run.error("components.rag_api.verify_metrics")
    assert system.journal().failures == ()
    assert system.quarantine() == {}


def first_test_intent(method: str, path: str, body: Any) -> bool:
    return method == "POST" and path.endswith("/networkintents")


def last_test_intent(method: str, path: str, body: Any) -> bool:
    return first_test_intent(method, path, body) and path.startswith("/apis/nephoran.com/")


@pytest.mark.parametrize(
    ("chosen", "made"), [pytest.param(first_test_intent, 1, id="first"), pytest.param(last_test_intent, 2, id="last")]
)
def test_a_test_intent_that_a_stopped_owner_creates_late_is_taken_away_again(
    system: System, chosen: Callable[[str, str, Any], bool], made: int
) -> None:
    """An object that is not there yet can bear no fence."""
    before = system.specs()

    def meanwhile() -> None:
        pass_time(system)
        assert command_line(system, "recover") == 0

    with stopped_at(chosen, meanwhile) as held_up:
        run = system.upgrade(components=TWO)
    assert len(held_up) == 1
    created = [r for r in system.cluster.accepted if first_test_intent(r.method, r.path, None)]
    assert len(created) == made, "the API server takes it, and the step makes no other"
    assert "[lease-lost]" in run.error("functional_test.apply_test_intents")
    assert run.states["verify_outcome"] == "failed"
    assert ended_well(system, before) == "old"


def test_a_test_intent_of_a_worker_that_was_lost_over_it_is_taken_away_by_the_next_try(system: System) -> None:
    """It was stopped before it created the intent, and killed after it."""
    before = system.specs()
    left: list[str] = []

    def stopped_then_killed(step: Any, context: Any) -> Any:
        def meanwhile() -> None:
            pass_time(system)
            assert command_line(system, "recover") == 0

        with pytest.MonkeyPatch.context() as patch, stopped_at(first_test_intent, meanwhile):
            patch.setattr(type(step), "take_away", lambda *_: None)
            with pytest.raises(AirflowFailException):
                step.execute(context)
        left.extend(path for path in system.cluster.objects if "/networkintents/" in path)
        return step.execute(context)

    system.upgrade(
        components=TWO,
        replaced={
            "functional_test.apply_test_intents": stopped_then_killed,
            "functional_test.delete_test_intents": fails,
        },
    )
    assert len(left) == 1
    assert ended_well(system, before) == "old"


def fails(step: Any, context: Any) -> None:
    raise AirflowFailException("the run was marked as failed")


@pytest.mark.parametrize("state", ["closed", "on-its-way-back"])
def test_a_cleared_functional_test_of_an_operation_that_does_not_go_forward_makes_nothing(
    system: System, state: str
) -> None:
    if state == "closed":
        run = system.upgrade(components=["rag-api"])
        assert run.report["overall"] == "succeeded"
    else:
        left_in_the_middle(system)
        store, leases = stores_of(system)
        operation = system.journal().operation_id
        turn_back(store.cluster, store, leases, system.journal(), operation)
        run = DagRunner(system.dags["rolling_upgrade"], {"mode": "apply", "components": TWO}, run_id="died")
    writes = len(system.writes())
    task = run.dag.get_task("functional_test.apply_test_intents")
    run._try(task, TaskInstance(run, task))
    assert "[operation-closed]" in run.error(task.task_id)
    assert len(system.writes()) == writes


@pytest.mark.parametrize("switch", ["stop", "halt"])
def test_a_switch_is_seen_before_test_intents_are_made(system: System, switch: str) -> None:
    before = system.specs()

    def switched(step: Any, context: Any) -> Any:
        system.cluster.put(JOURNALS, {"kind": "ConfigMap", "metadata": {"name": "switches"}, "data": {switch: "on"}})
        return step.execute(context)

    run = system.upgrade(components=TWO, replaced={"functional_test.apply_test_intents": switched})
    assert "[switched-off]" in run.error("functional_test.apply_test_intents")
    assert not [r for r in system.cluster.accepted if first_test_intent(r.method, r.path, None)]
    assert (system.specs() == before) == (switch == "stop"), "halt lets nothing go back either"


def test_a_forward_step_that_still_lives_is_fenced_out_by_the_way_back_of_its_own_run(system: System) -> None:
    before = system.specs()

    def abort() -> None:
        """Mark the running step as failed: the rollback begins while the worker is still at it."""
        store, leases = stores_of(system)
        journal = store.all("open")[0]
        turn_back(store.cluster, store, leases, journal, journal.operation_id)

    with stopped_at(first_change, abort):
        run = system.upgrade(components=["rag-api"])
    assert "[lease-lost]" in run.error("components.rag_api.apply_image")
    assert system.patched() == ["rag-api"], "it was tried"
    assert not [r for r in system.cluster.accepted if changes_spec(r)], "and refused"
    assert run.report["overall"] == "rolled-back"
    assert system.specs() == before


def stores_of(system: System) -> tuple[JournalStore, LeaseStore]:
    """Return journals and lease as the rolling upgrade sees them."""
    cluster = ClusterHook("kubernetes_rolling_upgrade")
    profile = load_profile(system.profile_path)
    return JournalStore(cluster, profile.namespaces.maintenance), LeaseStore(cluster, profile)


def left_in_the_middle(system: System) -> dict[str, Any]:
    """Leave an operation whose owner died while rag-api was changed, and return the specs from before."""
    before = system.specs()
    with killing(16):
        system.upgrade(components=TWO, run_id="died")
    assert system.journal().state == "open"
    assert system.fences() == {"weaviate": "1", "rag-api": "1"}
    return before


def test_of_two_recoveries_at_once_only_one_acts(system: System, capsys: pytest.CaptureFixture[str]) -> None:
    """The first is stopped at each of its writes in turn, for longer than its lease; the second does the work."""
    before = left_in_the_middle(system)
    pass_time(system)
    middle = objects_of(system)
    with killing(0) as recovery:
        assert command_line(system, "recover") == 0
    ended_well(system, before)
    for number in range(1, len(recovery.writes) + 1):
        put_back(system, middle)
        count, accepted = iter(range(1, 1000)), []

        def meanwhile(accepted: list[int] = accepted) -> None:
            pass_time(system)
            assert command_line(system, "recover") == 0
            accepted.append(len(system.cluster.accepted))

        def chosen(*_: Any, number: int = number, count: Iterator[int] = count) -> bool:
            return next(count) == number

        with stopped_at(chosen, meanwhile):
            command_line(system, "recover")
        late = [r for r in system.cluster.accepted[accepted[0] :] if changes_spec(r) or r.path.startswith(JOURNALS)]
        assert late == [], f"write {number}, {recovery.writes[number - 1]}, was let through"
        assert ended_well(system, before) == "old"


def test_a_recovery_that_lives_is_left_to_its_work(system: System, capsys: pytest.CaptureFixture[str]) -> None:
    left_in_the_middle(system)
    pass_time(system)
    store, leases = stores_of(system)
    leases.take("recover-operation-other", "recover_operation")
    before = len(system.writes())
    assert command_line(system, "recover") == 0
    assert "is left: the lease is renewed by recover-operation-other" in capsys.readouterr().out
    assert len(system.writes()) == before
    assert store.open_operations()


# --------------------------------------------------------------------------------------------------- found and decided


def test_a_living_run_is_never_disturbed(system: System) -> None:
    """A recovery runs in the middle of a living operation, and in the middle of its way back."""
    system.cluster.behaviour["v2"] = "crash"
    seen: list[Any] = []

    def recovered(step: Any, context: Any) -> Any:
        run = recover_by_airflow(system)
        seen.append(run.results["recover_operations", "return_value"][0]["decision"])
        return step.execute(context)

    steps = ("components.rag_api.wait_image", "rollback.rollback_rag_api")
    run = system.upgrade(components=["rag-api"], replaced=dict.fromkeys(steps, recovered))
    assert set(seen) == {"leave"}
    assert len(seen) >= 2
    assert run.report["overall"] == "rolled-back"


def test_a_lost_airflow_is_recovered_by_another_one_and_the_report_says_what_was_done(system: System) -> None:
    before = left_in_the_middle(system)
    operation = system.journal().operation_id
    pass_time(system)
    run = recover_by_airflow(system)
    assert run.surprises == []
    assert run.failed() == []
    assert ended_well(system, before) == "old"
    report = run.report
    assert (report["operation_id"], report["overall"]) == (operation, "rolled-back")
    assert Path(report["report_path"]).parent.name == operation
    facts = report["recovery"]
    assert facts["decision"] == "undo"
    assert "its owner is gone" in facts["reason"]
    assert facts["found"] == {"weaviate": "intended", "rag-api": "intended"}
    assert facts["done"] == "closed: rolled-back"
    assert (facts["run_id"], facts["requested_by"]) == ("died", "operator")
    assert facts["takeovers"][0]["by"].startswith("recover-operation-")
    assert [row["component"] for row in report["rollback"]] == ["rag-api", "weaviate"]
    page = Path(report["report_path"]).read_text(encoding="utf-8")
    assert "<h2>Recovery</h2>" in page
    assert "its owner is gone" in page
    assert json.loads(Path(report["report_path"]).with_name("report.json").read_text(encoding="utf-8"))["recovery"]


def lost_once(step: Any, context: Any) -> Any:
    """Do the work of a step in its first try, and lose the worker before Airflow hears of it."""
    if context["ti"].try_number > 1:
        return step.execute(context)
    call = lambda: step.execute(context)  # noqa: E731
    while True:
        try:
            call()
        except TaskDeferred:
            call = lambda: step.resume_step(context, {"state": "timeout"})  # noqa: E731
        else:
            raise AirflowException("the worker is gone")


@pytest.mark.parametrize("procedure", ["recover_operation", "rollback"])
def test_what_a_lost_try_has_done_is_in_the_report_of_the_next(system: System, procedure: str) -> None:
    replaced = {"recover_operations": lost_once}
    if procedure == "rollback":
        operation = system.upgrade(components=TWO).report["operation_id"]
        run = roll_back_by_airflow(system, operation=operation, mode="apply", replaced=replaced)
    else:
        left_in_the_middle(system)
        pass_time(system)
        run = recover_by_airflow(system, replaced=replaced)
    assert run.order.count("recover_operations") == 2
    assert run.failed() == []
    assert run.report["overall"] == "rolled-back"
    assert run.report["recovery"]["decision"] == "undo"


def test_nothing_to_recover_is_green_and_leaves_no_report(system: System) -> None:
    run = recover_by_airflow(system)
    assert run.states == {
        "check_request": "success",
        "recover_operations": "success",
        "report_operation": "skipped",
        "verify_outcome": "success",
    }
    assert system.writes() == []


def test_by_hand_a_recovery_only_says_what_it_would_do(system: System, capsys: pytest.CaptureFixture[str]) -> None:
    left_in_the_middle(system)
    pass_time(system)
    writes = len(system.writes())
    run = recover_by_airflow(system, scheduled=False)
    assert run.report["overall"] == "planned"
    assert run.report["recovery"]["decision"] == "undo"
    assert command_line(system, "recover", "--plan") == 0
    assert "would be undone" in capsys.readouterr().out
    assert command_line(system, "status") == 1
    shown = capsys.readouterr().out
    assert "no longer renewed" in shown
    assert "rag-api image: intended; the object is intended" in shown
    assert len(system.writes()) == writes


def test_the_next_upgrade_recovers_first_and_a_plan_only_reports(system: System) -> None:
    left_in_the_middle(system)
    pass_time(system)
    plan = system.upgrade(mode="plan", run_id="plan")
    assert plan.report["overall"] == "planned"
    assert plan.results["recover_operations", "return_value"][0]["decision"] == "undo"
    assert system.fences(), "a plan changes nothing"
    run = system.upgrade(components=TWO, run_id="next")
    assert run.failed() == []
    assert run.report["overall"] == "succeeded"
    assert system.fences() == {}
    assert {tag for name in TWO for tag in system.cluster.running(name)} == {"v2"}


def test_an_operation_that_could_not_be_recovered_bars_the_next(system: System) -> None:
    left_in_the_middle(system)
    pass_time(system)
    system.cluster.edit("rag-api", lambda w: w["spec"]["template"]["metadata"].update(annotations={"by": "another"}))
    run = system.upgrade(components=["llm-processor"], run_id="next")
    assert "[object-changed-by-others]" in run.error("recover_operations")
    assert run.report["overall"] == "refused"


def test_an_object_in_no_known_state_stops_the_recovery_before_it_touches_anything(
    system: System, capsys: pytest.CaptureFixture[str]
) -> None:
    before = left_in_the_middle(system)
    pass_time(system)
    theirs = copied(system.cluster.spec("rag-api"))
    system.cluster.edit("rag-api", lambda w: w["spec"]["template"]["metadata"].update(annotations={"by": "another"}))
    system.cluster.settle()
    objects = objects_of(system)
    assert command_line(system, "recover") == 1
    assert "needs a person: rag-api is in no state" in capsys.readouterr().out
    run = recover_by_airflow(system)
    assert "[object-changed-by-others]" in run.error("recover_operations")
    assert run.states["verify_outcome"] == "failed", "a person is called"
    assert run.report["recovery"]["decision"] == "stop"
    assert run.report["overall"] == "failed"
    assert objects_of(system) == objects, "nothing at all was written"
    system.cluster.edit("rag-api", lambda w: w.update(spec=theirs))
    assert command_line(system, "recover") == 0
    assert ended_well(system, before) == "old"


def test_somebodys_strategy_on_the_template_that_was_intended_is_not_overwritten(
    system: System, capsys: pytest.CaptureFixture[str]
) -> None:
    before = both_changed(system)
    system.cluster.edit("rag-api", lambda w: w["spec"]["strategy"]["rollingUpdate"].update(maxSurge=3))
    system.cluster.settle()
    objects = objects_of(system)
    assert command_line(system, "recover") == 1
    assert "needs a person: rag-api is in no state" in capsys.readouterr().out
    assert objects_of(system) == objects
    system.cluster.edit("rag-api", lambda w: w["spec"]["strategy"]["rollingUpdate"].update(maxSurge=1))
    assert command_line(system, "recover") == 0
    ended_well(system, before)


def test_a_lease_that_somebody_deleted_does_not_keep_a_recovery_out(system: System) -> None:
    before = left_in_the_middle(system)
    for path in [path for path in system.cluster.objects if path.startswith(LEASES)]:
        del system.cluster.objects[path]
    assert command_line(system, "recover") == 0
    assert ended_well(system, before) == "old"
    assert system.lease()["spec"]["leaseTransitions"] == 2


def test_a_component_that_is_gone_needs_a_person(system: System, capsys: pytest.CaptureFixture[str]) -> None:
    left_in_the_middle(system)
    pass_time(system)
    del system.cluster.objects[f"{APPS}/deployments/rag-api"]
    assert command_line(system, "recover") == 1
    assert "rag-api is not in the cluster" in capsys.readouterr().out


def test_a_recovery_needs_the_component_no_longer_in_the_profile(system: System) -> None:
    before = left_in_the_middle(system)
    pass_time(system)

    def without_rag(data: dict[str, Any]) -> None:
        data["components"] = [c for c in data["components"] if c["name"] not in ("rag-api", "llm-processor")]

    system.edit_profile(without_rag)
    assert command_line(system, "recover") == 0
    assert ended_well(system, before) == "old"


def test_what_was_verified_but_is_no_longer_good_is_undone(system: System) -> None:
    before = system.specs()
    with killing(23):  # everything was seen to be good; it dies before it closes
        system.upgrade(components=TWO)
    assert system.journal().verified_at is not None
    pass_time(system)
    system.cluster.behaviour["v2"] = "unhealthy"
    assert command_line(system, "recover") == 0
    journal = system.journal()
    assert [takeover.decision for takeover in journal.takeovers] == ["finish", "undo"]
    assert "not good any more" in journal.takeovers[-1].reason
    assert ended_well(system, before) == "old"


def both_changed(system: System) -> dict[str, Any]:
    """Leave an operation whose owner died when both components were new, and return the specs from before."""
    before = system.specs()
    with killing(23):
        system.upgrade(components=TWO, run_id="died")
    assert {tag for name in TWO for tag in system.cluster.running(name)} == {"v2"}
    pass_time(system)
    return before


@pytest.mark.parametrize("by_airflow", [False, True], ids=["command-line", "procedure"])
def test_a_component_that_can_not_go_back_keeps_no_other_from_it(
    system: System, capsys: pytest.CaptureFixture[str], by_airflow: bool
) -> None:
    """As in the run's own rollback: rag-api, first in reverse order, is not healthy with its old version either."""
    before = both_changed(system)
    # The new one is not healthy any more, so everything goes back; neither is the old one of rag-api.
    rag = system.cluster.image("rag-api", "v1")
    system.cluster.behaviour["v2"] = "unhealthy"
    healthy = system.cluster._proxy

    def proxy(request: Any) -> Any:
        return Reply(500, "no answer") if "/rag-api-" in request.path else healthy(request)

    system.cluster._proxy = proxy  # type: ignore[method-assign]
    if by_airflow:
        run = recover_by_airflow(system)
        assert "[health-check-failed]" in run.error("recover_operations")
        assert run.report["overall"] == "failed"
    else:
        assert command_line(system, "recover") == 1
        assert "[health-check-failed]" in capsys.readouterr().err
    steps = {entry.component: entry.step for entry in system.journal().entries}
    assert steps == {"weaviate": "rolled-back", "rag-api": "rolling-back"}
    assert system.journal().state == "open", "a person is called, and the next recovery tries again"
    assert system.cluster.running("weaviate") == {"v1"}
    assert rag in str(system.cluster.spec("rag-api")), "its old template is back, only its health is not"
    del system.cluster._proxy
    assert command_line(system, "recover") == 0
    assert ended_well(system, before) == "old"


def damage(system: System, how: Callable[[dict[str, Any]], None]) -> str:
    """Lay a journal that can't be read beside the one that is open, and return its name."""
    path = next(
        path for path, o in system.cluster.objects.items() if path.startswith(JOURNALS) and "entry-00.json" in o["data"]
    )
    other = copied(system.cluster.objects[path])
    other["metadata"].update(name="a-damaged-one", uid="uid-damaged")
    head = json.loads(other["data"]["journal.json"])
    how(head)
    other["data"]["journal.json"] = json.dumps(head)
    system.cluster.put(JOURNALS, other)
    return "a-damaged-one"


@pytest.mark.parametrize(
    "how",
    [
        pytest.param(lambda head: head.update(schema_version=2), id="of-a-newer-release"),
        pytest.param(lambda head: head.pop("started_at"), id="damaged"),
    ],
)
def test_a_journal_that_can_not_be_read_keeps_no_other_operation_from_its_recovery(
    system: System, capsys: pytest.CaptureFixture[str], how: Callable[[dict[str, Any]], None]
) -> None:
    before = left_in_the_middle(system)
    operation = system.journal().operation_id
    damaged = damage(system, how)
    pass_time(system)
    assert command_line(system, "status") == 1
    assert f"{damaged} (unknown procedure) needs a person" in capsys.readouterr().out
    run = recover_by_airflow(system)
    assert "[journal-unreadable]" in run.error("recover_operations")
    assert damaged in run.error("recover_operations")
    assert run.states["verify_outcome"] == "failed", "a person is called"
    assert run.report["operation_id"] == operation
    assert system.specs() == before
    assert system.fences() == {}
    assert command_line(system, "recover") == 1, "until somebody has looked at it"
    assert damaged in capsys.readouterr().out


def loses_its_worker(monkeypatch: pytest.MonkeyPatch, error: type[AirflowException]) -> list[str]:
    """Let the first process that is to release the lease be gone instead; return a list that gets its name."""
    gone: list[str] = []
    release = LeaseStore.release

    def dying(store: LeaseStore, me: str) -> bool:
        if gone:
            return release(store, me)
        gone.append(me)
        raise error("the worker is gone")

    monkeypatch.setattr(LeaseStore, "release", dying)
    return gone


def test_a_recovery_that_died_before_it_gave_the_lease_back_gives_it_back_when_it_is_tried_again(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the closing of the journal and the release of the lease, which is the last write."""
    before = left_in_the_middle(system)
    pass_time(system)
    gone = loses_its_worker(monkeypatch, AirflowException)
    run = recover_by_airflow(system)
    assert run.failed() == []
    assert len(gone) == 1
    assert "holderIdentity" not in system.lease()["spec"]
    assert ended_well(system, before) == "old"


def test_an_upgrade_that_is_refused_gives_back_the_lease_that_it_took_to_recover_another(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = left_in_the_middle(system)
    pass_time(system)
    gone = loses_its_worker(monkeypatch, AirflowFailException)
    run = system.upgrade(components=TWO, run_id="next")
    assert run.report["overall"] == "refused"
    assert gone == [run.report["operation_id"]]
    assert run.states["release_lease"] == "success"
    assert "holderIdentity" not in system.lease()["spec"]
    # What was recovered is beside the report of the run, in its own journal.
    assert ended_well(system, before) == "old"


@pytest.mark.parametrize("by", ["airflow", "command line"])
@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param("recheck_plan", None, id="before its journal was written"),
        pytest.param(None, "report_operation", id="after its journal was closed"),
    ],
)
def test_the_lease_of_an_operation_that_left_nothing_open_is_released_once_nobody_renews_it(
    system: System, by: str, before: str | None, after: str | None
) -> None:
    """Airflow's database is lost: no teardown will ever run."""

    def gone(step: Any, context: Any) -> Any:
        if step.task_id == after:
            step.execute(context)
        raise Killed

    with contextlib.suppress(Killed):
        system.upgrade(components=["rag-api"], run_id="died", replaced={before or after or "": gone})
    holder = system.lease()["spec"]["holderIdentity"]

    def recover() -> None:
        if by == "airflow":
            assert recover_by_airflow(system).failed() == []
        else:
            assert command_line(system, "recover") == 0

    for seconds in (0, 120, 590):
        pass_time(system, seconds)
        recover()
        assert system.lease()["spec"]["holderIdentity"] == holder, "it may still live, and go on where nobody took it"
    pass_time(system, 601)
    token = system.lease()["spec"]["leaseTransitions"]
    recover()
    assert "holderIdentity" not in system.lease()["spec"]
    assert system.lease()["spec"]["leaseTransitions"] == token


def test_a_halt_stops_no_recovery_that_has_nothing_to_do_and_keeps_an_abandoned_lease(system: System) -> None:
    system.cluster.put(JOURNALS, {"kind": "ConfigMap", "metadata": {"name": "switches"}, "data": {"halt": "on"}})
    assert recover_by_airflow(system).failed() == []
    store = LeaseStore(ClusterHook("kubernetes_rolling_upgrade"), load_profile())
    store.take("gone", "rolling_upgrade", list)
    pass_time(system, 601)
    assert "[switched-off]" in recover_by_airflow(system).error("recover_operations")
    assert system.lease()["spec"]["holderIdentity"] == "gone"


def test_a_lease_that_is_taken_while_a_recovery_looks_is_not_released(system: System) -> None:
    store = LeaseStore(ClusterHook("kubernetes_rolling_upgrade"), load_profile())
    store.take("gone", "rolling_upgrade", list)
    pass_time(system, 601)
    look = store.look
    with pytest.MonkeyPatch.context() as patch:

        def late() -> Any:
            found = look()
            patch.undo()
            store.take("next", "rolling_upgrade", list)
            return found

        patch.setattr(store, "look", late)
        assert store.release_abandoned("me") is None
    assert system.lease()["spec"]["holderIdentity"] == "next"


def test_an_update_strategy_on_delete_comes_back_as_it_was(system: System) -> None:
    def on_delete(workload: dict[str, Any]) -> None:
        workload["spec"]["updateStrategy"] = {"type": "OnDelete"}

    system.cluster.edit("weaviate", on_delete)
    system.cluster.settle()
    before = system.specs()
    with killing(11):
        system.upgrade(components=["weaviate"])
    assert system.cluster.spec("weaviate")["updateStrategy"]["type"] == "RollingUpdate"
    assert system.cluster.spec("weaviate")["updateStrategy"]["rollingUpdate"]["partition"] > 0
    pass_time(system)
    assert command_line(system, "recover") == 0
    system.cluster.settle()
    assert system.specs() == before
    assert system.cluster.running("weaviate") == {"v1"}


def test_a_broken_replica_that_holds_up_the_way_back_is_deleted(system: System) -> None:
    before = system.specs()
    system.push("v2-bad", "weaviate")
    system.cluster.behaviour["v2-bad"] = "crash"
    with killing(9):
        system.upgrade(components=["weaviate"], images={"weaviate": "v2-bad"})
    system.cluster.settle()
    assert system.cluster.running("weaviate") == {"v1", "v2-bad"}
    pass_time(system)
    assert command_line(system, "recover") == 0
    assert ended_well(system, before) == "old"


# --------------------------------------------------------------------------------------------- ends that Airflow knows


def test_a_run_marked_as_failed_lets_the_lease_go_and_is_recovered_at_once(system: System) -> None:
    """Airflow skips what is left and runs the teardown alone."""
    before = left_in_the_middle(system)
    run = DagRunner(system.dags["rolling_upgrade"], {}, run_id="died")
    run.states = {task_id: "skipped" for task_id in run.dag.task_ids if task_id != "release_lease"}
    run.states["acquire_lease"] = "success"  # what has ended keeps its state
    run.run()
    assert run.states["release_lease"] == "failed", "the run must not look as if it had ended well"
    assert "[operation-open]" in run.error("release_lease")
    assert command_line(system, "recover") == 0, "without waiting for the lease to run out"
    assert ended_well(system, before) == "old"


def test_a_way_back_that_failed_is_let_go_to_the_recovery(system: System) -> None:
    def others(step: Any, context: Any) -> Any:
        system.cluster.edit("rag-api", lambda w: w["spec"]["template"]["metadata"].update(annotations={"by": "x"}))
        return step.execute(context)

    run = system.upgrade(components=["rag-api"], replaced={"components.rag_api.wait_image": others})
    assert run.report["overall"] == "failed"
    assert run.states["release_lease"] == "failed"
    assert run.states["hold_lease"] == "success", "it ends with the run"
    assert system.lease()["metadata"]["annotations"]["maintenance.nephoran.com/let-go"] == run.report["operation_id"]


def test_a_run_that_was_recovered_meanwhile_ends_red_and_changes_nothing(system: System) -> None:
    before = system.specs()

    def taken_over(step: Any, context: Any) -> Any:
        pass_time(system)
        assert command_line(system, "recover") == 0
        return step.execute(context)

    run = system.upgrade(components=TWO, replaced={"components.rag_api.apply_image": taken_over})
    assert run.surprises == []
    assert "[operation-closed]" in run.error("components.rag_api.apply_image")
    assert run.states["verify_outcome"] == "failed"
    assert run.report["overall"] == "rolled-back"
    assert ended_well(system, before) == "old"


def test_a_step_cleared_in_the_middle_takes_the_lease_again_and_the_run_goes_on(system: System) -> None:
    """Clearing a step clears the setup before it too."""

    def cleared(step: Any, context: Any) -> Any:
        step.dag.get_task("acquire_lease").execute(context)
        assert system.fences() == {"weaviate": "2", "rag-api": "2"}
        return step.execute(context)

    run = system.upgrade(components=TWO, replaced={"components.rag_api.apply_image": cleared})
    assert run.failed() == []
    assert run.report["overall"] == "succeeded"
    assert system.fences() == {}


def test_the_switch_stop_takes_a_running_operation_back_and_halt_keeps_a_recovery_from_acting(system: System) -> None:
    before = system.specs()

    def switched(name: str) -> None:
        system.cluster.put(JOURNALS, {"kind": "ConfigMap", "metadata": {"name": "switches"}, "data": {name: "on"}})

    def stop(step: Any, context: Any) -> Any:
        switched("stop")
        return step.execute(context)

    run = system.upgrade(components=TWO, replaced={"components.rag_api.apply_image": stop})
    assert "[switched-off]" in run.error("components.rag_api.apply_image")
    assert run.report["overall"] == "rolled-back"
    assert system.specs() == before
    del system.cluster.objects[f"{JOURNALS}/switches"]
    with killing(16):
        system.upgrade(components=TWO, run_id="died")
    pass_time(system)
    switched("halt")
    assert command_line(system, "recover") == 1
    del system.cluster.objects[f"{JOURNALS}/switches"]
    assert command_line(system, "recover") == 0
    assert ended_well(system, before) == "old"


# --------------------------------------------------------------------------------------------------------- a busy system


def test_a_second_operation_is_refused_with_the_name_of_the_first(system: System) -> None:
    _, leases = stores_of(system)
    leases.take("rolling-upgrade-of-another-airflow", "rolling_upgrade", list)
    run = system.upgrade()
    assert "[lease-held]" in run.error("acquire_lease")
    assert "rolling-upgrade-of-another-airflow (rolling_upgrade, since " in run.error("acquire_lease")
    assert run.order.count("acquire_lease") == 1
    assert run.report["overall"] == "refused"
    assert system.writes() == []


def test_a_second_operation_that_waits_begins_when_the_first_has_ended(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nephoran_maintenance.triggers.lease import FreeLeaseTrigger

    _, leases = stores_of(system)
    leases.take("rolling-upgrade-of-another-airflow", "rolling_upgrade", list)
    waits: list[str] = []

    async def ended(trigger: FreeLeaseTrigger) -> None:
        waits.append(trigger._waits_for)
        if len(waits) == 3:
            spec = system.lease()["spec"]
            del spec["holderIdentity"]

    monkeypatch.setattr(FreeLeaseTrigger, "pause", ended)
    run = system.upgrade(components=["rag-api"], if_busy="wait")
    assert len(waits) == 3
    assert "is held by rolling-upgrade-of-another-airflow" in waits[0]
    assert run.report["overall"] == "succeeded"


# --------------------------------------------------------------------------------------------------- a wanted way back


def test_an_operation_that_succeeded_is_rolled_back_when_a_person_wants_it(system: System) -> None:
    before = system.specs()
    operation = system.upgrade(components=TWO).report["operation_id"]
    plan = roll_back_by_airflow(system, operation=operation)
    assert plan.report["overall"] == "planned"
    assert system.cluster.running("rag-api") == {"v2"}
    run = roll_back_by_airflow(system, operation=operation, mode="apply")
    assert run.surprises == []
    assert run.failed() == []
    assert run.report["overall"] == "rolled-back"
    assert "a person wants it undone" in run.report["recovery"]["reason"]
    assert ended_well(system, before) == "old"
    again = roll_back_by_airflow(system, operation=operation, mode="apply")
    assert "[rollback-refused]" in again.error("recover_operations")


def test_a_rollback_that_dies_is_gone_on_with_by_a_recovery(system: System) -> None:
    before = system.specs()
    operation = system.upgrade(components=TWO).report["operation_id"]
    new = objects_of(system)
    with killing(0) as counted:
        assert command_line(system, "rollback", operation) == 0
    for number in range(1, len(counted.writes) + 1):
        put_back(system, new)
        with killing(number):
            command_line(system, "rollback", operation)
        pass_time(system)
        assert command_line(system, "recover") == 0
        assert ended_well(system, before) == ("new" if number == 1 else "old"), counted.writes[number - 1]


def test_an_operation_that_was_built_upon_is_not_rolled_back(system: System) -> None:
    operation = system.upgrade(components=["rag-api"]).report["operation_id"]
    system.push("v3", "rag-api")
    system.upgrade(components=["rag-api"], version="v3", run_id="later")
    run = roll_back_by_airflow(system, operation=operation, mode="apply")
    assert "[object-changed-by-others]" in run.error("recover_operations")
    assert system.cluster.running("rag-api") == {"v3"}
    assert system.fences() == {}


def test_a_rollback_without_an_operation_is_refused(system: System) -> None:
    run = roll_back_by_airflow(system, mode="apply")
    assert "[nothing-requested]" in run.error("check_request")


# ------------------------------------------------------------------------------------------------------ the command line


def test_the_command_line_needs_no_airflow(system: System) -> None:
    left_in_the_middle(system)
    pass_time(system)
    config = system.profile_path.with_name("kubeconfig")
    config.write_text(yaml.safe_dump(kube_config(system.server.url)), encoding="utf-8")
    program = (
        "import sys; sys.modules['airflow'] = None\n"
        "from nephoran_maintenance.__main__ import main\n"
        "sys.exit(main(sys.argv[1:], sleep=lambda seconds: None))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "recover", f"--kubeconfig={config}", f"--profile={system.profile_path}"],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(PROJECT_ROOT / "plugins")},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "is closed: rolled-back" in done.stdout


def test_the_command_line_says_what_is_wrong_in_one_line(system: System, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--kubeconfig", "/nowhere", "--profile", str(system.profile_path)]) == 1
    assert "[connection-invalid]" in capsys.readouterr().err
    assert command_line(system, "rollback", "no-such-operation") == 1
    assert "[not-found]" in capsys.readouterr().err
