"""The backup before a change: what it is asked for, and that nothing is changed without it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from airflow.sdk.exceptions import DownstreamTasksSkipped

from nephoran_maintenance.domain.manifest import ArchiveRecord
from nephoran_maintenance.errors import PermanentError
from nephoran_maintenance.operators.base import operation_of
from tests.unit.dag_runner import DagRunner, TaskInstance
from tests.unit.operators.conftest import COMPONENTS, System
from tests.unit.operators.test_backup import broken_step

GROUP = "protect."
RELEASING = ("protect.release_staging", "protect.release_readers")
MADE = {"backup_id": "full-20261123t100000z-1a2b3c", "type": "full", "stored_bytes": 4711, "url": "s3://b/backups/full"}


def steps_of(run: DagRunner) -> dict[str, str]:
    return {step: state for step, state in run.states.items() if step.startswith(GROUP)}


def really(step: Any, context: Any) -> Any:
    return type(step).execute(step, context)


def test_it_comes_before_the_journal_and_the_first_change_and_is_in_the_report(system: System) -> None:
    run = system.upgrade(
        replaced={
            "protect.record_manifest": lambda step, context: MADE,
            "protect.verify_stored_files": lambda step, context: {"grade": "checked"},
        }
    )
    assert run.report["overall"] == "succeeded"
    order = [step for step in run.order if step.startswith(GROUP)]
    assert {"protect.check_request", "protect.capture_weaviate", "protect.verify_stored_files"} <= set(order)
    assert run.order.index("recheck_plan") < min(map(run.order.index, order))
    assert max(map(run.order.index, order)) < run.order.index("record_before_state")
    assert run.report["backup"] == {**MADE, "checked": "every byte read back"}
    assert MADE["backup_id"] in Path(run.report["report_path"]).read_text(encoding="utf-8")


@pytest.mark.parametrize("what", ["full", "config-only"])
def test_it_is_what_the_profile_says_and_named_after_the_operation(system: System, what: str) -> None:
    system.edit_profile(lambda data: data["backup"].update(before_change=what))
    run = DagRunner(system.dags["rolling_upgrade"], {"mode": "apply"})
    step = run.dag.get_task("protect.check_request")
    context = run.context(step, TaskInstance(run, step))
    request = step.request(context)
    assert (request.type, request.tag, request.keeping) == (what, f"pre-{operation_of(context)}", "daily")


def test_a_profile_without_it_skips_the_whole_group_and_nothing_else(system: System) -> None:
    system.edit_profile(lambda data: data["backup"].update(before_change="none"))
    run = system.upgrade(replaced={"protect.check_request": really})
    assert run.failed() == []
    assert run.report["overall"] == "succeeded"
    assert steps_of(run).pop("protect.check_request") == "success"
    assert {state for step, state in steps_of(run).items() if step != "protect.check_request"} == {"skipped"}
    assert run.report["backup"] is None
    assert {tag for name in COMPONENTS for tag in system.cluster.running(name)} == {"v2"}


def test_a_step_that_is_cleared_after_the_change_began_makes_no_backup_of_what_is_half_changed(system: System) -> None:
    system.edit_profile(lambda data: data["backup"].update(before_change="full"))
    run = system.upgrade()
    step = run.dag.get_task("protect.check_request")
    context = run.context(step, TaskInstance(run, step))
    assert "made before" in step.why_not(context)
    with pytest.raises(DownstreamTasksSkipped):
        step.act(context)
    capture = run.dag.get_task("protect.capture_kubernetes_objects")
    with pytest.raises(PermanentError, match="the change has begun") as refused:
        capture.backup_id(run.context(capture, TaskInstance(run, capture)))
    assert refused.value.reference == "backup-not-begun"


def test_to_plan_makes_no_backup(system: System) -> None:
    run = system.upgrade(mode="plan")
    assert set(steps_of(run).values()) == {"skipped"}
    assert run.report["backup"] is None


def test_keys_that_a_backup_would_refuse_are_named_before_anybody_is_asked(system: System) -> None:
    system.edit_profile(lambda data: data.update(approvers=["anna"]))
    system.edit_profile(lambda data: data["backup"].update(before_change="full"))
    run = system.upgrade(replaced={"preflight.check_backup": really}, category="major")
    assert run.report["overall"] == "refused"
    blocking = {found["object"] for found in run.report["findings"] if found["severity"] == "block"}
    assert blocking == {"backup.recipients", "backup.signers"}
    assert run.states["plan_changes"] == "upstream_failed"
    assert system.persons.questions == []


def test_what_is_left_of_its_making_stops_no_change_and_makes_the_run_red(system: System) -> None:
    run = system.upgrade(replaced={"protect.release_readers": broken_step})
    assert {tag for name in COMPONENTS for tag in system.cluster.running(name)} == {"v2"}
    assert run.failed() == ["protect.release_readers", "verify_outcome"]
    assert "Every planned change is in place and verified, but another step failed" in run.report["summary"]
    assert [step["task_id"] for step in run.report["failed_steps"]] == ["protect.release_readers"]


def test_what_is_not_in_it_and_what_may_lie_in_clear_is_in_the_report_of_the_change(system: System) -> None:
    at = "2026-11-23T10:00:00+00:00"
    left_out = {"Intents": {"count": 1, "states": {"COLD": 1}, "names": ["site-7"]}}
    archive = ArchiveRecord(
        key="weaviate.tar.zst.gpg",
        size_bytes=1,
        sha256="0" * 64,
        sha256_before_encryption="0" * 64,
        members=1,
        member_bytes=1,
        inventory_key="weaviate.inventory.zst",
        inventory_sha256="0" * 64,
        inventory_size_bytes=1,
    ).model_dump(mode="json")
    source = {"name": "weaviate", "required": True, "state": "captured", "started_at": at, "ended_at": at}
    staged = {"deleted": 3, "seconds": 700.0, "doubt": "Weaviate may still write there"}
    run = system.upgrade(
        replaced={
            "protect.capture_weaviate": lambda step, context: {
                **source,
                "archive": archive,
                "facts": {"tenants_left_out": left_out},
            },
            "protect.release_staging": lambda step, context: staged,
        }
    )
    rows = {row["check"]: row for row in run.report["findings"] if row["check"] in ("sources", "staging bucket")}
    assert {check: row["severity"] for check, row in rows.items()} == {"sources": "warn", "staging bucket": "block"}
    assert "1 tenants of Intents (1 COLD): site-7" in rows["sources"]["observed"]
    assert "Weaviate may still write there" in rows["staging bucket"]["observed"]
    page = Path(run.report["report_path"]).read_text(encoding="utf-8")
    assert "site-7" in page
    assert "Weaviate may still write there" in page


def test_a_run_that_is_refused_touches_no_bucket(system: System) -> None:
    """The steps that clear up run whatever happened, and find that nothing has begun."""
    run = system.upgrade(components=["rag-api"], version="no-such-tag", replaced=dict.fromkeys(RELEASING, really))
    assert run.report["overall"] == "refused"
    assert {steps_of(run)[step] for step in RELEASING} == {"skipped"}
    assert not set(RELEASING) & set(run.failed())
