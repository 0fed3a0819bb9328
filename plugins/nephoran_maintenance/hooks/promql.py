"""The queries of the metric gate, one file each in ``include/promql/<component>/``."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from string import Template

from nephoran_maintenance.errors import PermanentError
from nephoran_maintenance.settings import PROJECT_ROOT

FOLDER = PROJECT_ROOT / "include" / "promql"
POD_NAMES = {
    "Deployment": "{name}-[a-z0-9]+-[a-z0-9]+",
    "StatefulSet": "{name}-[0-9]+",
    "DaemonSet": "{name}-[a-z0-9]+",
}
"""How controllers call their pods, as the regular expression that ``$pods`` stands for."""


def read_queries(
    component: str, names: Iterable[str], *, namespace: str, kind: str, workload: str, window: timedelta
) -> dict[str, str]:
    """Return queries of a component by name, with namespace, pods and window filled in.

    :param window: how far back the queries look, in whole seconds.
    :raises PermanentError: ``gate-queries-missing`` or ``prometheus-query-invalid``.
    """
    values = {
        "namespace": namespace,
        "pods": POD_NAMES[kind].format(name=workload),
        "window": f"{window.total_seconds():.0f}s",
    }
    return {name: _read(component, name, values) for name in names}


def _read(component: str, name: str, values: dict[str, str]) -> str:
    path = FOLDER / component / f"{name}.promql"
    place = path.relative_to(FOLDER.parent.parent)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise PermanentError(
            "gate-queries-missing",
            f"{component} has a gate, and its query {place} can't be read: {error.strerror}",
            context={"component": component},
            hint="Write the query; those of another component are the pattern. Or take the gate out of the profile.",
        ) from error
    try:
        return Template(text).substitute(values)
    except (KeyError, ValueError) as error:
        raise PermanentError(
            "prometheus-query-invalid",
            f"{place} has a placeholder that is none of ${', $'.join(values)}: {error}",
            context={"component": component},
            hint="Correct the PromQL expression.",
        ) from error
