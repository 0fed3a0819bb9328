"""The ids of the steps that more than one module must know, so that none is written twice."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence

COMPONENTS_GROUP = "components"
ROLLBACK_GROUP = "rollback"
PREFLIGHT_GROUP = "preflight"
FUNCTIONAL_TEST_GROUP = "functional_test"
APPROVE_GROUP = "approve"
PROTECT_GROUP = "protect"
CHANGE_KINDS = ("policy", "image")

CHECK_REQUEST = "check_request"
PLAN_CHANGES = "plan_changes"
RECOVER_OPERATIONS = "recover_operations"
WAIT_APPROVAL = f"{APPROVE_GROUP}.wait_approval"
WAIT_SECOND_APPROVAL = f"{APPROVE_GROUP}.wait_second_approval"
ACQUIRE_LEASE = "acquire_lease"
RECHECK_PLAN = "recheck_plan"
HOLD_LEASE = "hold_lease"
RELEASE_LEASE = "release_lease"
RECORD_BEFORE_STATE = "record_before_state"
MEASURE_TRAFFIC = "measure_traffic"
VERIFY_METRICS = "verify_metrics"
DECIDE_ALONE = "decide_alone"
ROLLBACK_ALONE = "rollback_alone"
VERIFY_COMPONENTS = "verify_components"
REPORT_OPERATION = "report_operation"
VERIFY_OUTCOME = "verify_outcome"
WAIT_OPERATION = "wait_operation"
WAIT_WEAVIATE_BACKUP = "wait_weaviate_backup"
RELEASE_STAGING = "release_staging"
RELEASE_READERS = "release_readers"
RECORD_MANIFEST = "record_manifest"
VERIFY_STORED_FILES = "verify_stored_files"
PLAN_DELETIONS = "plan_deletions"
DELETE_BACKUPS = "delete_backups"
PLAN_READING = "plan_reading"
VERIFY_CONTENTS = "verify_contents"
MEASURE_FRESHNESS = "measure_freshness"
DECIDE_READINESS = f"{PREFLIGHT_GROUP}.decide_readiness"
APPLY_TEST_INTENTS = f"{FUNCTIONAL_TEST_GROUP}.apply_test_intents"
WAIT_TEST_INTENTS = f"{FUNCTIONAL_TEST_GROUP}.wait_test_intents"
DELETE_TEST_INTENTS = f"{FUNCTIONAL_TEST_GROUP}.delete_test_intents"
DECIDE_ROLLBACK = f"{ROLLBACK_GROUP}.decide_rollback"

REPORTING_STEPS = frozenset({REPORT_OPERATION, VERIFY_OUTCOME})
"""What runs even when nothing is changed."""


def identifier(component: str) -> str:
    """Return a component's name as it stands in task ids."""
    return component.replace("-", "_")


def change_step_ids(component: str, kind: str | None = None) -> list[str]:
    """Return the ids of the steps that change a component, in their order; of one kind of change when given."""
    prefix = f"{COMPONENTS_GROUP}.{identifier(component)}"
    return [f"{prefix}.{verb}_{k}" for k in CHANGE_KINDS if kind in (None, k) for verb in ("apply", "wait")]


def gate_step_id(component: str) -> str:
    """Return the id of the step that judges a component's metrics after its change."""
    return f"{COMPONENTS_GROUP}.{identifier(component)}.{VERIFY_METRICS}"


def capture_step_id(source: str) -> str:
    """Return the id of the step that captures a source of a backup."""
    return f"capture_{identifier(source)}"


def alone_step_ids(component: str) -> list[str]:
    """Return the ids of the steps that decide about a component that may fail, and take it back alone."""
    prefix = f"{COMPONENTS_GROUP}.{identifier(component)}"
    return [f"{prefix}.{DECIDE_ALONE}", f"{prefix}.{ROLLBACK_ALONE}"]


def unneeded_after(step_id: str | None, chain: Sequence[str], needed: Collection[str]) -> list[str]:
    """Return the steps that follow in the chain and are not needed, up to the first that is.

    Each step skips only what comes right behind it: a step skipped earlier than that would let its successors start
    before their time, because a skipped step counts as done.

    :param step_id: the step that has just been done; None: the chain has not been begun.
    """
    following = chain[chain.index(step_id) + 1 :] if step_id is not None else chain
    return list(itertools.takewhile(lambda step: step not in needed, following))


def rollback_step_id(component: str) -> str:
    """Return the id of the step that takes a component back."""
    return f"{ROLLBACK_GROUP}.rollback_{identifier(component)}"
