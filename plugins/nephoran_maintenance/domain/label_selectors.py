"""Label selectors, evaluated here: which of many objects in one list a workload means."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def selects(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """Return whether a workload's ``spec.selector`` selects an object with these labels, as the API server would.

    :param selector: ``{"matchLabels": {…}, "matchExpressions": [{"key", "operator", "values"}]}``; an empty one selects
        everything.
    :raises KeyError: for an operator that Kubernetes does not have.
    """
    wanted = selector.get("matchLabels") or {}
    if any(labels.get(key) != value for key, value in wanted.items()):
        return False
    return all(_holds(expression, labels) for expression in selector.get("matchExpressions") or ())


def _holds(expression: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    key, values = expression["key"], expression.get("values") or ()
    return {
        "In": key in labels and labels[key] in values,
        "NotIn": key not in labels or labels[key] not in values,
        "Exists": key in labels,
        "DoesNotExist": key not in labels,
    }[expression["operator"]]
