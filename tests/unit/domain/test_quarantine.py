"""Whose fault a failure is, and what the quarantine says of a version."""

from __future__ import annotations

from typing import Any

import pytest

from nephoran_maintenance.domain.journal import Failure, Journal, JournalEntry, Step, Workload
from nephoran_maintenance.domain.quarantine import (
    Quarantined,
    check_quarantine,
    from_data,
    is_of_the_version,
    is_own_failure,
    key_of,
    proven_keys,
    to_data,
    to_quarantine,
)
from nephoran_maintenance.errors import PermanentError
from tests.unit.domain.kubernetes_objects import at

DIGEST = "sha256:" + "2" * 64


def failure(reference: str = "gate-closed", cause: str | None = None, component: str = "rag-api") -> Failure:
    return Failure(component=component, reference=reference, cause=cause, message="it was bad", at=at(5))


def entry(component: str = "rag-api", step: Step = "rolled-back", kind: Any = "image", **more: Any) -> JournalEntry:
    workload = Workload(kind="Deployment", namespace="ns", name=component)
    fields: dict[str, Any] = {"before": {"image": "r:v1"}, "intended": {"image": f"r:v2@{DIGEST}"}, "digest": DIGEST}
    return JournalEntry(component=component, kind=kind, workload=workload, step=step, **{**fields, **more})


def journal(*entries: JournalEntry, failures: tuple[Failure, ...] = (), **changes: Any) -> Journal:
    return Journal(
        operation_id="rolling-upgrade-x",
        procedure="rolling_upgrade",
        run_id="r",
        system="nephoran",
        plan_hash="h",
        started_at=at(0),
        entries=entries,
        failures=failures,
        **changes,
    )


@pytest.mark.parametrize(
    ("reference", "cause", "bad"),
    [
        ("rollout-failed", "crash-loop", True),
        ("rollout-failed", "failing-probe", True),
        ("rollout-failed", "oom", True),
        ("rollout-failed", "config-error", True),
        ("rollout-failed", "image-pull", False),
        ("rollout-failed", "unschedulable", False),
        ("rollout-failed", "quota", False),
        ("rollout-failed", "volume", False),
        ("rollout-failed", None, False),
        ("rollout-timeout", None, False),
        ("health-check-failed", None, True),
        ("restarted-after-ready", None, True),
        ("gate-closed", None, True),
        ("gate-unknown", None, False),
        ("digest-differs", None, False),
        ("pods-not-ready", None, False),
    ],
)
def test_only_a_failure_that_shows_a_bad_version_counts(reference: str, cause: str | None, bad: bool) -> None:
    found = failure(reference, cause)
    assert is_own_failure(reference)
    assert is_of_the_version(found) == bad
    assert bool(to_quarantine(journal(entry(), failures=(found,)))) == bad


@pytest.mark.parametrize(
    "reference",
    ["cluster-unreachable", "lease-lost", "switched-off", "operation-closed", "object-changed-by-others", "conflict"],
)
def test_what_happens_around_a_component_is_no_failure_of_it(reference: str) -> None:
    assert not is_own_failure(reference)


def test_the_causes_are_words_of_the_rollout() -> None:
    from nephoran_maintenance.domain.pod_failures import Cause
    from nephoran_maintenance.domain.quarantine import CAUSES_OF_THE_VERSION

    assert {str(cause.value) for cause in Cause} >= CAUSES_OF_THE_VERSION


@pytest.mark.parametrize(
    "found",
    [
        pytest.param(journal(entry(), entry("weaviate")), id="went back only with others"),
        pytest.param(journal(entry(step="rolling-back"), failures=(failure(),)), id="not back yet"),
        pytest.param(journal(entry(step="planned"), failures=(failure(),)), id="its image was never changed"),
        pytest.param(journal(entry(kind="policy"), failures=(failure(),)), id="only its policy was"),
        pytest.param(journal(entry(digest=None), failures=(failure(),)), id="no digest"),
    ],
)
def test_what_is_not_put_into_quarantine(found: Journal) -> None:
    assert to_quarantine(found) == []


def test_says_what_since_when_why_and_in_which_operation() -> None:
    (held,) = to_quarantine(journal(entry(), entry("weaviate"), failures=(failure(),)))
    assert held == Quarantined(
        component="rag-api",
        digest=DIGEST,
        image=f"r:v2@{DIGEST}",
        since=at(5),
        because="it was bad",
        operation="rolling-upgrade-x",
    )
    assert from_data(to_data([held])) == {key_of("rag-api", DIGEST): held}
    assert ":" not in held.key(), "no valid key of a ConfigMap"


def test_only_what_was_verified_with_the_whole_is_proven() -> None:
    alone = entry("rag-api", "rolled-back", criticality="may fail")
    assert proven_keys(journal(entry("weaviate", "verified"), alone)) == [key_of("weaviate", DIGEST)]
    assert proven_keys(journal(entry("weaviate", "verified"), entry())) == []


def test_a_damaged_entry_bars_everything() -> None:
    with pytest.raises(PermanentError) as caught:
        from_data({"rag-api.x": "{}"})
    assert caught.value.reference == "quarantine-unreadable"


def test_blocks_the_same_version_of_the_same_component_only() -> None:
    (held,) = to_quarantine(journal(entry(), failures=(failure(),)))
    versions = {held.key(): held}
    found = check_quarantine(versions, "rag-api", DIGEST, released=False)
    assert found is not None
    assert found.severity == "block"
    assert found.observed == f"in quarantine since {at(5).isoformat(timespec='seconds')}, because it was bad"
    released = check_quarantine(versions, "rag-api", DIGEST, released=True)
    assert released is not None
    assert released.severity == "warn"
    assert check_quarantine(versions, "weaviate", DIGEST, released=False) is None
    assert check_quarantine(versions, "rag-api", "sha256:" + "3" * 64, released=False) is None
    assert check_quarantine(versions, "rag-api", None, released=False) is None
