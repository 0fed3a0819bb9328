"""Label selectors select what the API server would."""

from __future__ import annotations

from typing import Any

import pytest

from nephoran_maintenance.domain.label_selectors import selects

LABELS = {"app": "rag-api", "tier": "back"}


def expression(key: str, operator: str, *values: str) -> dict[str, Any]:
    return {"matchExpressions": [{"key": key, "operator": operator, **({"values": list(values)} if values else {})}]}


@pytest.mark.parametrize(
    ("selector", "selected"),
    [
        pytest.param({}, True, id="empty"),
        pytest.param({"matchLabels": {"app": "rag-api"}}, True, id="label"),
        pytest.param({"matchLabels": {"app": "rag-api", "tier": "front"}}, False, id="one-label-of-two"),
        pytest.param({"matchLabels": {"zone": "a"}}, False, id="label-missing"),
        pytest.param(expression("app", "In", "rag-api", "other"), True, id="in"),
        pytest.param(expression("app", "In", "other"), False, id="not-in-the-values"),
        pytest.param(expression("zone", "In", "a"), False, id="in-of-a-missing-label"),
        pytest.param(expression("app", "NotIn", "other"), True, id="notin"),
        pytest.param(expression("app", "NotIn", "rag-api"), False, id="notin-but-is"),
        pytest.param(expression("zone", "NotIn", "a"), True, id="notin-of-a-missing-label"),
        pytest.param(expression("app", "Exists"), True, id="exists"),
        pytest.param(expression("zone", "Exists"), False, id="exists-not"),
        pytest.param(expression("zone", "DoesNotExist"), True, id="does-not-exist"),
        pytest.param(expression("app", "DoesNotExist"), False, id="does-not-exist-but-does"),
        pytest.param({"matchLabels": {"app": "rag-api"}, **expression("zone", "Exists")}, False, id="both-must-hold"),
    ],
)
def test_selects(selector: dict[str, Any], selected: bool) -> None:
    assert selects(selector, LABELS) is selected


def test_an_operator_that_kubernetes_does_not_have_is_an_error() -> None:
    with pytest.raises(KeyError):
        selects(expression("app", "Like", "rag"), LABELS)
