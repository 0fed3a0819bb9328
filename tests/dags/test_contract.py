"""What holds for every procedure: identity, documentation, parameters, names of steps, and what parsing may cost."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest
from airflow.dag_processing.dagbag import DagBag
from airflow.serialization.serialized_objects import DagSerialization

from tests.dags.conftest import PROJECT

FILES = sorted(path for path in (PROJECT / "dags").glob("*.py") if not path.name.startswith("_"))
STEMS = {path.stem for path in FILES}
DAGS: dict[str, Any] = dict(DagBag(dag_folder=str(PROJECT / "dags"), load_op_links=False).dags)

SECONDS_TO_PARSE = 2.0
HEAVY = {"kubernetes", "kubernetes_asyncio", "boto3", "botocore", "requests", "httpx", "aiohttp", "gnupg", "websocket"}
VERBS = {
    "check",
    "plan",
    "wait",
    "verify",
    "capture",
    "report",
    "decide",
    "measure",
    "stop",
    "record",
    "apply",
    "rollback",
    "delete",
    "acquire",
    "hold",
    "release",
    "recover",
    "recheck",
}
FRAME = {"hold_lease", "release_lease"}
"""What outlives the report: the lease is given back when the report has closed the journal."""
CHANGING = {"apply", "rollback", "delete", "recover"}
TAGS = {"preflight", "upgrade", "weaviate", "backup", "recovery", "audit"}
RISKS = {"risk/read-only", "risk/changes-system", "risk/destroys-data"}
HEADINGS = (
    "Purpose",
    "When to run, when not",
    "Before you start",
    "Parameters",
    "Steps",
    "Duration and blast radius",
    "Verify",
    "Roll back",
    "If it fails",
)

dags = pytest.mark.parametrize("dag", DAGS.values(), ids=list(DAGS))


def name_of(task_id: str) -> str:
    return task_id.rpartition(".")[2]


def verb_of(task_id: str) -> str:
    return name_of(task_id).partition("_")[0]


def changes(dag: Any) -> bool:
    """Return whether a procedure changes the system."""
    return any(verb_of(task.task_id) in CHANGING for task in dag.tasks)


def defers(task: Any) -> bool:
    """Return whether a step can defer: by the code of its class and of those that it inherits from, in this package."""
    own = [cls for cls in type(task).__mro__ if cls.__module__.startswith("nephoran_maintenance")]
    return any(re.search(r"self\.defer\(|defer_until_free\(self", inspect.getsource(cls)) for cls in own)


# ------------------------------------------------------------------------------------------------------------ the files


def test_every_file_is_one_procedure_of_the_same_name(parsed: dict[str, Any]) -> None:
    backups = {"backup", "backup_freshness", "backup_retention", "backup_verification"}
    assert {"preflight", "rolling_upgrade", "recover_operation", "rollback", *backups} <= STEMS, (
        "the procedures are gone, or the test looks in the wrong folder"
    )
    assert parsed["errors"] == {}
    assert set(parsed["dags"]) == STEMS
    assert set(DAGS) == STEMS


def test_all_files_are_parsed_in_less_than_two_seconds(
    parsed: dict[str, Any], record_property: pytest.RecordProperty
) -> None:
    record_property("parse_seconds", parsed["seconds"])
    print(f"{len(parsed['dags'])} procedures are parsed in {parsed['seconds']:.2f} s of processor time, no network")
    assert parsed["seconds"] < SECONDS_TO_PARSE


def test_parsing_loads_no_client_library(parsed: dict[str, Any]) -> None:
    assert not HEAVY & set(parsed["loaded"])


def test_parsing_with_a_client_library_or_the_network_would_be_noticed(parsed: dict[str, Any]) -> None:
    control = parsed["control"]
    assert control["dags"] == []
    assert "requests" in control["loaded"]
    assert "must not use the network" in str(control["errors"])


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        pytest.param("  name: nephoran\n", "  name: nephoran\n  nmae: x\n", "unknown key", id="unknown key"),
        pytest.param("rate_per_second: 60", "rate_per_second: fast", "probe.rate_per_second", id="wrong type"),
    ],
)
def test_a_bad_profile_is_one_import_error_with_line_and_remedy(
    old: str, new: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (PROJECT / "include" / "profiles" / "nephoran.yaml").read_text(encoding="utf-8")
    assert text.count(old) == 1
    profile = tmp_path / "profile.yaml"
    profile.write_text(text.replace(old, new), encoding="utf-8")
    monkeypatch.setenv("NEPHORAN_PROFILE", str(profile))
    found = DagBag(dag_folder=str(PROJECT / "dags"), load_op_links=False)
    assert found.dags == {}
    assert {Path(name).stem for name in found.import_errors} == STEMS
    for error in found.import_errors.values():
        assert "profile-invalid" in error
        assert expected in error
        assert re.search(r"profile\.yaml, line \d+: key ", error)
        assert "Next: Correct the line" in error


# ------------------------------------------------------------------------------------------------------- the procedures


@dags
def test_survives_serialization(dag: Any) -> None:
    data = DagSerialization.to_dict(dag)
    back = DagSerialization.from_dict(data)
    assert back.dag_id == dag.dag_id
    assert set(back.task_dict) == set(dag.task_dict)
    for task_id, task in dag.task_dict.items():
        assert back.task_dict[task_id].downstream_task_ids == task.downstream_task_ids
        assert back.task_dict[task_id].trigger_rule == task.trigger_rule
    assert {key: param.dump()["value"] for key, param in back.params.items()} == {
        key: param.value for key, param in dag.params.items()
    }


@dags
def test_runs_alone_on_demand_and_never_in_the_past(dag: Any) -> None:
    assert dag.catchup is False
    # Where a run may wait for an approval it must not keep the others out; there the lease lets one change at a time.
    leased = {"wait_approval", "acquire_lease"} <= {task_id.rpartition(".")[2] for task_id in dag.task_ids}
    assert dag.max_active_runs == (16 if leased else 1)
    assert dag.start_date is None
    assert all(task.start_date is None for task in dag.tasks)
    assert not dag.is_paused_upon_creation


@dags
def test_has_known_tags_and_says_its_risk_once(dag: Any) -> None:
    risks = {tag for tag in dag.tags if tag.startswith("risk/")}
    assert len(risks) == 1
    assert risks <= RISKS
    assert (risks == {"risk/read-only"}) is not changes(dag)
    assert dag.tags - risks <= TAGS
    assert dag.tags - risks, "no tag but the risk"


@dags
def test_is_documented_as_a_runbook(dag: Any) -> None:
    text = dag.doc_md
    assert text.strip() == inspect.cleandoc(module_docstring(dag)).strip()
    found = re.findall(r"^\*\*(.+?)\.\*\*", text, flags=re.MULTILINE)
    assert [heading for heading in found if heading in HEADINGS] == list(HEADINGS)
    assert dag.dag_display_name != dag.dag_id
    assert dag.description


def module_docstring(dag: Any) -> str:
    import ast

    return ast.get_docstring(ast.parse(Path(dag.fileloc).read_text(encoding="utf-8")), clean=False) or ""


@dags
def test_the_runbook_names_every_step(dag: Any) -> None:
    steps = dag.doc_md.partition("**Steps.**")[2].partition("**Duration")[0]
    named = set(re.findall(r"`([a-z_.…]+)`", steps))
    missing = {task.task_id for task in dag.tasks if not documented(task.task_id, named)}
    assert not missing, f"steps that the runbook does not explain: {sorted(missing)}"


def documented(task_id: str, named: set[str]) -> bool:
    """Return whether a table names a step, its group, or a name with ``…`` that it begins with."""
    parts = task_id.split(".")
    if set(parts) & named or task_id in named:
        return True
    return any(name.endswith("…") and task_id.startswith(name.removesuffix("…")) for name in named)


@dags
def test_every_parameter_says_what_it_is_and_how_far_it_goes(dag: Any) -> None:
    for name, param in dag.params.items():
        schema = param.schema
        kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        assert schema.get("title"), name
        assert str(param.description or "").endswith((".", "}")), f"{name} needs a sentence"
        for kind in set(kinds) - {"null"}:
            bounds = {
                "string": ("enum", "maxLength", "pattern", "format"),
                "integer": ("maximum",),
                "number": ("maximum",),
                "array": ("items",),
                "object": ("additionalProperties",),
                "boolean": ("type",),
            }[kind]
            assert any(bound in schema for bound in bounds), f"{name} has no bounds"
        param.resolve()


@dags
def test_changes_nothing_by_default(dag: Any) -> None:
    if not changes(dag):
        assert "mode" not in dag.params
        return
    assert dag.params["mode"] == "plan"
    assert dag.params.get_param("mode").schema["enum"] == ["plan", "apply"]
    assert dag.params.get("version") is None
    assert dag.params.get("images", {}) == {}
    assert dag.params.get("operation") is None, "no change has a default target"


# ------------------------------------------------------------------------------------------------------------ the steps


@dags
def test_the_verb_of_a_step_tells_what_it_does(dag: Any) -> None:
    assert {verb_of(task.task_id) for task in dag.tasks} <= VERBS
    for task in dag.tasks:
        assert re.fullmatch(r"[a-z]+(_[a-z0-9]+)+", name_of(task.task_id)), task.task_id


@dags
def test_a_change_is_checked_before_and_verified_after(dag: Any) -> None:
    for task in dag.tasks:
        if verb_of(task.task_id) not in ("apply", "rollback", "recover"):
            continue
        before = {verb_of(name) for name in task.get_flat_relative_ids(upstream=True)}
        after = {verb_of(name) for name in task.get_flat_relative_ids(upstream=False)}
        # A recovery decides by itself, from journals and live objects.
        assert ({"check"} if verb_of(task.task_id) == "recover" else {"check", "decide"}) <= before, task.task_id
        assert "verify" in after, task.task_id
        if verb_of(task.task_id) == "apply":
            assert "record" in before, f"{task.task_id} changes before the journal is written"
            assert any(name.startswith("rollback.") for name in task.get_flat_relative_ids(upstream=False))


@dags
def test_a_change_is_framed_by_the_lease(dag: Any) -> None:
    if not any(verb_of(task.task_id) == "apply" for task in dag.tasks):
        return
    hold, release = dag.get_task("hold_lease"), dag.get_task("release_lease")
    assert release.is_teardown, "it also runs when the run is marked as failed"
    # With a setup that failed Airflow would fail the report too, and a run that was refused the lease had none.
    assert not any(task.is_setup for task in dag.tasks)
    assert release.on_failure_fail_dagrun, "a run that leaves its operation open must be red"
    assert "acquire_lease" in hold.upstream_task_ids
    assert "hold_lease" not in release.get_flat_relative_ids(upstream=True), "it renews until the lease is released"
    assert release.upstream_task_ids == {"report_operation"}
    # A step that is skipped counts as done before the one that skipped it: without both the lease came too early.
    assert {"approve.wait_approval", "approve.wait_second_approval"} <= dag.get_task("acquire_lease").upstream_task_ids
    record = dag.get_task("record_before_state")
    assert record.upstream_task_ids == {"recheck_plan", "protect.verify_stored_files"}
    assert record.trigger_rule == "none_failed_min_one_success", "without a backup that was asked for nothing begins"
    assert dag.get_task("protect.check_request").upstream_task_ids == {"recheck_plan"}
    assert dag.get_task("recheck_plan").upstream_task_ids == {"acquire_lease"}
    for task in dag.tasks:
        if verb_of(task.task_id) in CHANGING - {"recover"}:
            assert "acquire_lease" in task.get_flat_relative_ids(upstream=True), task.task_id


@dags
def test_every_step_leads_to_the_report_and_the_colour_of_the_run(dag: Any) -> None:
    assert dag.leaves == [dag.get_task("verify_outcome")]
    report = dag.get_task("report_operation")
    everything = {task.task_id for task in dag.tasks}
    assert report.get_flat_relative_ids(upstream=True) == everything - {"report_operation", "verify_outcome"} - FRAME
    assert dag.get_task("verify_outcome").get_flat_relative_ids(upstream=True) == everything - {"verify_outcome"}
    assert report.trigger_rule == "all_done"
    assert dag.get_task("verify_outcome").trigger_rule == "all_done"
    assert [task.task_id for task in dag.roots] == ["check_request"]


@dags
def test_a_step_that_waits_is_retried_when_its_deferral_is_lost(dag: Any) -> None:
    waiting = [task for task in dag.tasks if defers(task)]
    assert waiting or dag.dag_id.startswith("backup"), "the test does not recognise a step that defers"
    assert [task.task_id for task in waiting if task.retries < 1] == []


@dags
def test_a_reading_step_is_retried_soon_and_not_for_ever(dag: Any) -> None:
    for task in dag.tasks:
        assert task.retries <= 3, task.task_id
        if task.retries:
            assert task.retry_delay.total_seconds() <= 30, f"{task.task_id} would keep a person waiting"
        if verb_of(task.task_id) in {"check", "plan", "capture", "record", "report", "measure", "stop"}:
            assert task.retries >= 1, f"{task.task_id} fails on the first hiccup of the API server"
    assert dag.get_task("verify_outcome").retries == 0


@dags
def test_a_procedure_acts_as_its_own_account(dag: Any) -> None:
    own = {task.kubernetes_connection_id for task in dag.tasks if not task.task_id.startswith("protect.")}
    assert own == {f"kubernetes_{dag.dag_id}"}


@dags
def test_a_backup_before_a_change_is_made_as_the_account_of_backups(dag: Any) -> None:
    protecting = [task for task in dag.tasks if task.task_id.startswith("protect.")]
    assert bool(protecting) == (dag.dag_id == "rolling_upgrade")
    assert {task.kubernetes_connection_id for task in protecting} <= {"kubernetes_backup"}
