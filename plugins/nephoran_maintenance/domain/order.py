"""The order of changes: what a component needs comes before it, the profile's listing breaks ties."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from nephoran_maintenance.errors import PermanentError
from nephoran_maintenance.profile import Component


def in_order(components: Sequence[Component], chosen: Collection[str] | None = None) -> list[Component]:
    """Return the chosen components (None: all) in upgrade order.

    Needs count also through components that were not chosen.

    :raises PermanentError: ``components-need-each-other`` when the needs form a circle.
    """
    by_name = {component.name: component for component in components}
    placed: list[Component] = []
    done: set[str] = set()
    left = list(components)
    while left:
        ready = next((c for c in left if set(c.needs) & set(by_name) <= done), None)
        if ready is None:
            raise PermanentError(
                "components-need-each-other",
                f"the components {', '.join(c.name for c in left)} need each other, so none can be first",
                hint="Break the circle in the profile's needs.",
            )
        left.remove(ready)
        done.add(ready.name)
        placed.append(ready)
    return [component for component in placed if chosen is None or component.name in chosen]


def all_needs(components: Sequence[Component], name: str) -> tuple[str, ...]:
    """Return everything that a component needs, directly and through others, in the profile's order."""
    by_name = {component.name: component for component in components}
    found: set[str] = set()
    left = [name]
    while left:
        more = set(by_name[left.pop()].needs) - found
        found |= more
        left += more
    return tuple(component.name for component in components if component.name in found)
