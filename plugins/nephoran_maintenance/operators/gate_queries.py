"""Which components have a gate, and the queries that it needs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING

from nephoran_maintenance.domain.gate import QUERIES
from nephoran_maintenance.hooks.promql import read_queries

if TYPE_CHECKING:
    from nephoran_maintenance.profile import Component, SystemProfile


def gated_components(profile: SystemProfile, component: str | None = None) -> list[Component]:
    """Return the components that a gate judges: one, or all that have one."""
    chosen = profile.components if component is None else (profile.component(component),)
    return [one for one in chosen if one.gate]


def names_of(component: Component) -> list[str]:
    """Return the names of the queries that a component's gate needs."""
    return [name for name, metrics in QUERIES.items() if set(metrics) & set(component.gate)]


def check_queries(profile: SystemProfile) -> None:
    """Check that every gate of a profile has its queries, which is better known before something is changed.

    :raises PermanentError: ``gate-queries-missing`` or ``prometheus-query-invalid``.
    """
    for component in [] if profile.gate.off else gated_components(profile):
        place = {"namespace": profile.namespace_of(component), "kind": "Deployment", "name": component.name}
        queries_of(component, names_of(component), place, timedelta(seconds=profile.gate.window_seconds))


def queries_of(
    component: Component, names: Iterable[str], place: Mapping[str, str], window: timedelta
) -> dict[str, str]:
    """Return queries of a component for its workload.

    :raises PermanentError: ``gate-queries-missing`` or ``prometheus-query-invalid``.
    """
    return read_queries(
        component.name,
        names,
        namespace=place["namespace"],
        kind=place["kind"],
        workload=place["name"],
        window=window,
    )
