"""A component that may fail goes back alone; a version that was bad is not tried again by itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from airflow.sdk.exceptions import AirflowFailException

from tests.unit.fake_cluster import JOURNALS
from tests.unit.operators.conftest import COMPONENTS, System
from tests.unit.operators.test_gate import bad_release, states
from tests.unit.operators.test_recovery import command_line, killing, objects_of, pass_time, put_back
from tests.unit.operators.test_rolling_upgrade import ALL, broken

RAG, LLM = "components.rag_api", "components.llm_processor"
ALONE = ("decide_alone", "rollback_alone")


def bad(system: System, *names: str, behaviour: str = "crash", tag: str = "v2-bad") -> dict[str, str]:
    """Return the images that bring a bad version of components."""
    system.push(tag, *names)
    system.cluster.behaviour[tag] = behaviour
    return dict.fromkeys(names, tag)


def only_old(system: System, before: dict[str, Any], *old: str) -> None:
    """Check that these components are exactly as before, and all others new."""
    system.cluster.settle()
    now = system.specs()
    for name in COMPONENTS:
        assert (now[name] == before[name]) == (name in old), name
        assert system.cluster.running(name) == ({"v1"} if name in old else {"v2"})
    assert system.fences() == {}


def test_a_component_that_may_fail_goes_back_alone_and_the_rest_goes_on(system: System) -> None:
    system.allow_to_fail("rag-api", llm_processor=["weaviate"])
    before = system.specs()
    run = system.upgrade(images=bad(system, "rag-api"))
    assert run.surprises == []
    only_old(system, before, "rag-api")
    assert [run.states[f"{RAG}.{step}"] for step in ("wait_image", *ALONE)] == ["failed", "success", "success"]
    assert run.results[f"{RAG}.decide_alone", "return_value"]["decision"] == "goes back alone"
    assert {run.states[t] for t in run.states if t.startswith("rollback.rollback_")} == {"skipped"}
    journal = system.journal()
    assert (journal.state, journal.outcome) == ("closed", "partly-succeeded")
    assert [entry.step for entry in journal.entries] == ["verified", "rolled-back", "verified"]
    assert run.states["verify_outcome"] == "failed", "something that was planned is not there: the run is red"
    report = run.report
    assert report["overall"] == "partly-succeeded"
    assert "New and verified: weaviate, llm-processor." in report["summary"]
    assert "may fail: rag-api" in report["summary"]
    rows = {row["name"]: row for row in report["components"]}
    assert [rows[name]["result"] for name in COMPONENTS] == [
        "changed and verified",
        "rolled back alone and verified; it may fail",
        "changed and verified",
    ]
    assert (rows["rag-api"]["ready"], rows["rag-api"]["desired"]) == (2, 2)
    assert "could not be rolled out" in rows["rag-api"]["failure"]
    assert [row["component"] for row in report["rollback"]] == ["rag-api"]
    page = Path(report["report_path"]).read_text(encoding="utf-8")
    assert "partly succeeded" in page
    assert "rolled back alone" in page
    assert set(run.results["verify_components", "return_value"]) == {"weaviate", "llm-processor"}


def test_what_did_not_fail_is_kept_and_its_way_back_never_ran(system: System) -> None:
    system.allow_to_fail("rag-api", "llm-processor")
    run = system.upgrade()
    assert run.failed() == []
    assert run.report["overall"] == "succeeded"
    for group in (RAG, LLM):
        assert [run.states[f"{group}.{step}"] for step in ALONE] == ["success", "skipped"]
        assert run.results[f"{group}.decide_alone", "return_value"]["decision"] == "stays"
    assert system.quarantine() == {}


def test_an_unplanned_component_that_may_fail_costs_no_step(system: System) -> None:
    system.allow_to_fail("rag-api", llm_processor=["weaviate"])
    run = system.upgrade(components=["weaviate", "llm-processor"])
    assert run.failed() == []
    assert not [task for task in run.order if task.startswith(RAG)]


def test_a_procedure_that_was_read_before_the_profile_changed_still_works(system: System) -> None:
    plain = yaml.safe_load(system.profile_path.read_text(encoding="utf-8"))
    system.allow_to_fail("rag-api", llm_processor=["weaviate"])
    system.profile_path.write_text(yaml.safe_dump(plain), encoding="utf-8")
    before = system.specs()
    assert system.upgrade(components=["weaviate"], version="v1", run_id="idle").failed() == []
    run = system.upgrade(images=bad(system, "rag-api"), run_id="bad")
    assert run.surprises == []
    assert "[not-a-failure-of-the-component]" in run.error(f"{RAG}.decide_alone"), "the plan says that it must not fail"
    assert system.specs() == before
    run = system.upgrade(components=["weaviate", "llm-processor"], run_id="good")
    assert run.failed() == []


def test_what_needs_the_failed_one_is_left_out(system: System) -> None:
    system.allow_to_fail("rag-api", "llm-processor")
    before = system.specs()
    run = system.upgrade(images=bad(system, "rag-api"))
    assert run.surprises == []
    only_old(system, before, "rag-api", "llm-processor")
    assert "llm-processor" not in system.patched()
    assert not [task for task in run.order if task.startswith(LLM)]
    assert [entry.step for entry in system.journal().entries] == ["verified", "rolled-back", "left-out"]
    rows = {row["name"]: row for row in run.report["components"]}
    assert rows["llm-processor"]["result"] == "not changed: it needs rag-api, which failed"
    assert run.report["overall"] == "partly-succeeded"
    assert set(system.quarantine()) == {"rag-api"}


def test_when_all_that_may_fail_has_failed_nothing_is_called_new(system: System) -> None:
    system.allow_to_fail("rag-api", llm_processor=["weaviate"])
    before = system.specs()
    run = system.upgrade(components=["rag-api"], images=bad(system, "rag-api"))
    assert system.specs() == before
    assert run.report["overall"] == "rolled-back"
    assert system.journal().outcome == "rolled-back"
    assert run.states["verify_components"] == "skipped"
    assert run.states["verify_outcome"] == "failed"


def test_a_closed_gate_of_it_is_its_own_failure_and_it_is_judged_no_more(system: System) -> None:
    system.allow_to_fail("rag-api", llm_processor=["weaviate"])
    before = system.specs()
    system.with_gates()
    bad_release(system, "rag-api")
    run = system.upgrade()
    only_old(system, before, "rag-api")
    assert "[gate-closed]" in run.error(f"{RAG}.verify_metrics")
    assert states(run.report) == [
        ("rag-api", "rag-api", "closed"),
        ("llm-processor", "llm-processor", "open"),
        ("the whole", "llm-processor", "open"),
    ]
    assert run.report["overall"] == "partly-succeeded"
    assert set(system.quarantine()) == {"rag-api"}


def test_it_fails_but_not_by_itself_everything_goes_back(system: System) -> None:
    """Marked as failed by a person, or its worker lost: that is an abort, and no failure of the component."""
    system.allow_to_fail("rag-api", llm_processor=["weaviate"])
    before = system.specs()
    run = system.upgrade(replaced={f"{RAG}.wait_image": broken(after=False)})
    assert system.specs() == before
    assert "[not-a-failure-of-the-component]" in run.error(f"{RAG}.decide_alone")
    assert run.states[f"{LLM}.apply_image"] == "upstream_failed"
    assert run.report["overall"] == "rolled-back"
    assert system.quarantine() == {}


@pytest.mark.parametrize("step", ["record_before_state", "components.weaviate.wait_image"])
def test_a_failure_before_it_takes_all_back_and_nothing_goes_past_it(system: System, step: str) -> None:
    system.allow_to_fail("rag-api", llm_processor=["weaviate"])
    before = system.specs()
    run = system.upgrade(replaced={step: broken(after=False)})
    assert [run.states[f"{RAG}.{s}"] for s in ALONE] == ["skipped", "skipped"]
    assert run.states[f"{LLM}.apply_image"] == "upstream_failed"
    assert run.states["functional_test.apply_test_intents"] == "upstream_failed"
    assert system.specs() == before
    assert "rag-api" not in system.patched()


def test_the_last_one_may_fail_and_the_first_may_not_be_forgotten(system: System) -> None:
    """Its way back is skipped when something before has failed; the functional test must not take that for good."""
    system.allow_to_fail("llm-processor", "nephio-bridge", "oran-adaptor", "operator")
    run = system.upgrade(replaced={f"{RAG}.wait_image": broken(after=False)})
    assert run.states["functional_test.apply_test_intents"] == "upstream_failed"
    assert run.report["overall"] == "rolled-back"


def test_a_failure_after_it_takes_everything_back_it_too(system: System) -> None:
    system.allow_to_fail("rag-api", llm_processor=["weaviate"])
    before = system.specs()
    run = system.upgrade(replaced={"verify_components": broken(after=False)})
    assert system.specs() == before
    assert [row["component"] for row in run.report["rollback"]] == ALL


def test_a_whole_way_back_after_one_alone_ends_in_the_old_state(system: System) -> None:
    system.allow_to_fail("rag-api", llm_processor=["weaviate"])
    before = system.specs()
    run = system.upgrade(images=bad(system, "rag-api", "llm-processor"))
    assert system.specs() == before
    assert run.report["overall"] == "rolled-back"
    assert {row["result"] for row in run.report["components"]} == {"rolled back and verified"}
    assert system.journal().outcome == "rolled-back"
    assert set(system.quarantine()) == {"rag-api", "llm-processor"}


def test_its_way_back_alone_fails_everything_goes_back(system: System) -> None:
    system.allow_to_fail("rag-api", llm_processor=["weaviate"])
    before = system.specs()
    run = system.upgrade(images=bad(system, "rag-api"), replaced={f"{RAG}.rollback_alone": broken(after=False)})
    assert system.specs() == before
    assert run.states[f"{LLM}.apply_image"] == "upstream_failed"
    assert [row["component"] for row in run.report["rollback"]] == ["rag-api", "weaviate"]


def test_a_forward_step_that_still_lives_is_fenced_out_by_the_way_back_alone(system: System) -> None:
    system.allow_to_fail("rag-api", llm_processor=["weaviate"])
    before = system.specs()
    tried: list[str] = []

    def forward(step: Any, context: Any) -> Any:
        try:
            step.dag.get_task(f"{RAG}.apply_image").execute(context)
        except AirflowFailException as error:
            tried.append(str(error))
        return step.execute(context)

    run = system.upgrade(images=bad(system, "rag-api"), replaced={f"{LLM}.apply_image": forward})
    assert "rag-api is rolled-back" in tried[0]
    only_old(system, before, "rag-api")
    assert run.report["overall"] == "partly-succeeded"
    assert system.journal().fencing_token == 2, "the way back alone has a token of its own"


def test_cleared_after_the_end_the_steps_of_its_own_way_back_change_nothing(system: System) -> None:
    from tests.unit.operators.test_rolling_upgrade import replay

    system.allow_to_fail("rag-api", llm_processor=["weaviate"])
    run = system.upgrade(images=bad(system, "rag-api"))
    writes = len(system.writes())
    assert replay(system, run, f"{RAG}.rollback_alone") == "failed"
    assert "[operation-closed]" in run.error(f"{RAG}.rollback_alone")
    assert len(system.writes()) == writes


# ------------------------------------------------------------------------------------------------------------- recovery


def test_killed_after_any_write_from_its_failure_on_everything_is_old_or_new_without_it(system: System) -> None:
    """From the failure to the end of the run: a recovery ends in an allowed state, with the bad version named."""
    system.allow_to_fail("rag-api", llm_processor=["weaviate"])
    images = bad(system, "rag-api")
    objects, before = objects_of(system), system.specs()
    chosen: dict[str, Any] = {"components": ["rag-api", "llm-processor"], "images": images}
    with killing(0) as counted:
        system.upgrade(**chosen, run_id="counted")
    patches = [n for n, write in enumerate(counted.writes) if write == "PATCH rag-api"]
    ends, named = [], 0
    for number in range(patches[1] + 2, len(counted.writes) + 1):
        put_back(system, objects)
        with killing(number) as killer:
            system.upgrade(**chosen, run_id=f"killed-{number}")
        assert len(killer.writes) == number, "the run was not killed there"
        pass_time(system)
        assert command_line(system, "recover") == 0, killer.writes[-1]
        system.cluster.settle()
        ends.append("new" if system.cluster.running("llm-processor") == {"v2"} else "old")
        if ends[-1] == "old":
            assert system.specs() == before
        else:
            now = system.specs()
            assert now.pop("llm-processor") != before["llm-processor"]
            assert now == {name: spec for name, spec in before.items() if name != "llm-processor"}
        assert system.fences() == {}
        maps = [found for path, found in system.cluster.objects.items() if path.startswith(JOURNALS)]
        (head,) = [json.loads(m["data"]["journal.json"]) for m in maps if "journal.json" in m["data"]]
        assert head["outcome"] == {"old": "rolled-back", "new": "partly-succeeded"}[ends[-1]]
        assert ("rag-api" in system.quarantine()) == bool(head["failures"])
        named += bool(head["failures"])
        assert "llm-processor" not in system.quarantine()
    assert len(ends) - 1 == named, "before the failure was written nobody knows whose it is"
    assert ends[0] == "old"
    assert ends[-1] == "new"
    assert set(ends[ends.index("new") :]) == {"new"}, "once everything was seen to be good it stays"


def test_a_partly_new_operation_can_be_rolled_back_by_hand(system: System) -> None:
    system.allow_to_fail("rag-api", llm_processor=["weaviate"])
    before = system.specs()
    run = system.upgrade(images=bad(system, "rag-api"))
    system.push("v3", "rag-api")
    system.upgrade(components=["rag-api"], version="v3", run_id="later")
    assert command_line(system, "rollback", run.report["operation_id"]) == 0
    assert system.cluster.running("rag-api") == {"v3"}, "what stayed behind is none of this operation's"
    for name in ("weaviate", "llm-processor"):
        assert system.specs()[name] == before[name]


# ----------------------------------------------------------------------------------------------------------- quarantine


def test_a_bad_version_goes_into_quarantine_and_those_taken_back_with_it_do_not(system: System) -> None:
    run = system.upgrade(images=bad(system, "rag-api"))
    held = system.quarantine()
    assert set(held) == {"rag-api"}
    assert held["rag-api"]["digest"] == system.cluster.digest(system.cluster.image("rag-api", "v2-bad"))
    assert held["rag-api"]["operation"] == run.report["operation_id"]
    assert "could not be rolled out" in held["rag-api"]["because"]


@pytest.mark.parametrize(
    ("behaviour", "held"),
    [pytest.param("unhealthy", True, id="bad health"), pytest.param("pull", False, id="registry away")],
)
def test_only_what_the_version_does_itself_counts(system: System, behaviour: str, held: bool) -> None:
    system.upgrade(components=["rag-api"], images=bad(system, "rag-api", behaviour=behaviour))
    assert ("rag-api" in system.quarantine()) == held


def test_an_aborted_or_a_lost_run_puts_nothing_into_quarantine(system: System) -> None:
    system.upgrade(components=["rag-api"], replaced={f"{RAG}.wait_image": broken(after=False)})
    assert system.quarantine() == {}
    with killing(12):
        system.upgrade(components=["rag-api"], run_id="died")
    pass_time(system)
    assert command_line(system, "recover") == 0
    assert system.quarantine() == {}


def again(system: System, *, run_type: str = "manual", **params: Any) -> Any:
    """Ask for the bad version once more, with the real check of the images."""
    from tests.unit.dag_runner import DagRunner
    from tests.unit.operators.conftest import passed_before_the_change

    dag = system.dags["rolling_upgrade"]
    checks = passed_before_the_change(dag)
    del checks["preflight.check_images"]
    given = {"mode": "apply", "components": ["rag-api"], "version": "v2-bad", **params}
    runner = DagRunner(dag, given, replaced=checks, run_id=f"{run_type}__again")
    runner.dag_run.run_type.value = run_type
    return runner.run()


@pytest.mark.parametrize(
    ("run_type", "released"),
    [
        ("scheduled", []),
        ("scheduled", ["rag-api"]),
        ("backfill", ["rag-api"]),
        ("manual", []),
        ("manual", ["weaviate"]),
    ],
)
def test_a_version_in_quarantine_is_not_tried_again_by_itself(
    system: System, run_type: str, released: list[str]
) -> None:
    system.upgrade(components=["rag-api"], images=bad(system, "rag-api"))
    writes = len(system.writes())
    run = again(system, run_type=run_type, release_quarantine=released)
    assert run.report["overall"] == "refused"
    (finding,) = [f for f in run.report["findings"] if f["severity"] == "block"]
    assert finding["observed"].startswith("in quarantine since 20")
    assert "because Deployment rag-api in namespace nephoran-system could not be rolled out" in finding["observed"]
    assert "release_quarantine" in finding["hint"]
    assert len(system.writes()) == writes


def test_a_person_releases_it_and_what_then_proves_good_leaves_the_quarantine(system: System) -> None:
    system.upgrade(components=["rag-api"], images=bad(system, "rag-api"))
    del system.cluster.behaviour["v2-bad"]
    run = again(system, release_quarantine=["rag-api"])
    assert run.report["overall"] == "succeeded"
    assert next(f["observed"] for f in run.report["findings"] if f["severity"] == "warn").endswith("for this run")
    assert system.quarantine() == {}


def test_released_and_bad_again_it_is_held_again(system: System) -> None:
    system.upgrade(components=["rag-api"], images=bad(system, "rag-api"))
    first = system.quarantine()["rag-api"]
    assert again(system, release_quarantine=["rag-api"]).report["overall"] == "rolled-back"
    assert system.quarantine()["rag-api"]["operation"] != first["operation"]


def test_a_version_that_failed_elsewhere_since_preflight_is_refused_before_the_first_change(system: System) -> None:
    """Two runs ask for the same; the second has waited for the first, which failed."""
    images = bad(system, "rag-api")
    system.upgrade(components=["rag-api"], images=images)
    writes = len(system.writes())
    run = system.upgrade(components=["rag-api"], images=images, run_id="second")  # its preflight has passed
    assert "[version-quarantined]" in run.error("record_before_state")
    assert run.report["overall"] == "refused"
    assert len(system.writes()) == writes


def test_a_quarantine_that_cannot_be_read_lets_nothing_through(system: System) -> None:
    system.cluster.put(
        JOURNALS, {"kind": "ConfigMap", "metadata": {"name": "quarantine-nephoran"}, "data": {"rag-api.x": "{"}}
    )
    run = system.upgrade(components=["rag-api"])
    assert "[quarantine-unreadable]" in run.error("record_before_state")
    assert run.report["overall"] == "refused"
