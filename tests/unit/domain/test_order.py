"""The order of changes: needs first, then the profile's listing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nephoran_maintenance.domain.order import all_needs, in_order
from nephoran_maintenance.errors import PermanentError
from nephoran_maintenance.profile import Component, WorkloadReference


def component(name: str, *needs: str) -> Component:
    return Component(name=name, workload=WorkloadReference(name=name), needs=needs)


def names(components: list[Component]) -> list[str]:
    return [component.name for component in components]


def test_keeps_the_listing_where_nothing_is_needed() -> None:
    assert names(in_order([component("c"), component("a"), component("b")])) == ["c", "a", "b"]


def test_puts_what_is_needed_first() -> None:
    listed = [component("llm", "rag"), component("rag", "weaviate"), component("bridge"), component("weaviate")]
    assert names(in_order(listed)) == ["bridge", "weaviate", "rag", "llm"]


def test_counts_needs_through_a_component_that_was_not_chosen() -> None:
    listed = [component("llm", "rag"), component("rag", "weaviate"), component("weaviate")]
    assert names(in_order(listed, {"llm", "weaviate"})) == ["weaviate", "llm"]


def test_does_not_depend_on_the_order_of_the_choice() -> None:
    listed = [component("a"), component("b"), component("c")]
    assert names(in_order(listed, ["c", "a"])) == names(in_order(listed, ["a", "c"])) == ["a", "c"]


def test_refuses_a_circle_and_names_it() -> None:
    with pytest.raises(PermanentError) as caught:
        in_order([component("a", "b"), component("b", "a"), component("c")])
    assert caught.value.reference == "components-need-each-other"
    assert "a, b" in caught.value.message
    assert "needs" in caught.value.hint


@st.composite
def listings(draw: st.DrawFn) -> list[Component]:
    count = draw(st.integers(1, 7))
    made = [
        component(f"c{n}", *sorted(draw(st.sets(st.integers(0, n - 1).map(lambda m: f"c{m}"))) if n else ()))
        for n in range(count)
    ]
    return draw(st.permutations(made))


@given(listings())
def test_every_component_comes_once_and_after_what_it_needs(listed: list[Component]) -> None:
    ordered = names(in_order(listed))
    assert sorted(ordered) == sorted(names(listed))
    for each in listed:
        assert all(ordered.index(need) < ordered.index(each.name) for need in each.needs)


@given(listings())
def test_neighbours_only_change_places_for_a_need(listed: list[Component]) -> None:
    ordered = in_order(listed)
    assert names(in_order(ordered)) == names(ordered)


def test_all_needs_go_through_other_components() -> None:
    listed = [component("llm", "rag"), component("bridge"), component("rag", "weaviate"), component("weaviate")]
    assert all_needs(listed, "llm") == ("rag", "weaviate")
    assert all_needs(listed, "weaviate") == ()
