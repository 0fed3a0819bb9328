"""The ids of steps that several modules must agree on, and which steps are skipped when."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nephoran_maintenance.domain.step_ids import (
    change_step_ids,
    gate_step_id,
    identifier,
    rollback_step_id,
    unneeded_after,
)

CHAIN = ["a.apply", "a.wait", "b.apply", "b.wait", "c.apply", "c.wait"]


def test_a_component_has_its_steps_in_the_order_of_the_change() -> None:
    assert change_step_ids("rag-api") == [
        "components.rag_api.apply_policy",
        "components.rag_api.wait_policy",
        "components.rag_api.apply_image",
        "components.rag_api.wait_image",
    ]
    assert change_step_ids("rag-api", "image") == ["components.rag_api.apply_image", "components.rag_api.wait_image"]
    assert gate_step_id("rag-api") == "components.rag_api.verify_metrics"
    assert rollback_step_id("nephio-bridge") == "rollback.rollback_nephio_bridge"
    assert identifier("weaviate") == "weaviate"


def test_only_what_comes_right_behind_is_skipped() -> None:
    needed = {"b.apply", "b.wait"}
    assert unneeded_after(None, CHAIN, needed) == ["a.apply", "a.wait"]
    assert unneeded_after("b.wait", CHAIN, needed) == ["c.apply", "c.wait"]
    assert unneeded_after("b.apply", CHAIN, needed) == []
    assert unneeded_after(None, CHAIN, set()) == CHAIN


@given(st.sets(st.sampled_from(CHAIN)))
def test_every_unneeded_step_is_skipped_exactly_once_and_no_needed_one_ever(needed: set[str]) -> None:
    skipped = unneeded_after(None, CHAIN, needed)
    for step in CHAIN:
        if step in needed:
            skipped += unneeded_after(step, CHAIN, needed)
    assert sorted(skipped) == sorted(set(CHAIN) - needed)
