"""The plan: its hash stands for what would be changed, and its difference shows it."""

from __future__ import annotations

import copy
import hashlib
import json
from typing import Any

import pytest

from nephoran_maintenance.domain.patches import record_before
from nephoran_maintenance.domain.plan import Change, Plan, difference, plan_hash
from tests.unit.domain.kubernetes_objects import NEW_IMAGE, OLD_IMAGE, at, container, deployment, template


def state(image: str, **changes: Any) -> dict[str, Any]:
    return record_before(deployment(pod_template=template(container(image=image)), **changes), "rag-api")


def change(component: str = "rag-api", **fields: Any) -> Change:
    base: dict[str, Any] = {
        "component": component,
        "kind": "image",
        "workload": {"kind": "Deployment", "namespace": "ns", "name": component},
        "before": state(OLD_IMAGE),
        "after": state(NEW_IMAGE),
        "digest": "sha256:" + "0" * 64,
        "diff": "the difference",
    }
    return Change(**{**base, **fields})


def plan(*changes: Change, **fields: Any) -> Plan:
    return Plan(**{"procedure": "rolling_upgrade", "system": "nephoran", "changes": changes, **fields})


def test_the_hash_is_sha_256_and_the_same_for_the_same_plan() -> None:
    assert plan_hash(plan(change())) == plan_hash(plan(change()))
    assert len(plan_hash(plan())) == 64


def test_the_hash_survives_json() -> None:
    written = plan(change(), nothing_to_do=("weaviate: already runs",))
    assert plan_hash(Plan.model_validate_json(written.model_dump_json())) == plan_hash(written)


OTHERS = [
    pytest.param(change(before=state("r/rag-api:v0")), id="another state before"),
    pytest.param(change(after=state("r/rag-api:v9")), id="another image"),
    pytest.param(change(digest="sha256:" + "1" * 64), id="another digest"),
    pytest.param(change("llm-processor"), id="another component"),
    pytest.param(change(kind="policy"), id="another kind"),
    pytest.param(change(criticality="may fail"), id="another criticality"),
    pytest.param(change(needs=("weaviate",)), id="other needs"),
    pytest.param(change(before=state(OLD_IMAGE, metadata={"uid": "x"})), id="another object of the same name"),
    pytest.param(change(before=state(OLD_IMAGE, spec={"strategy": {"type": "Recreate"}})), id="another strategy"),
]


@pytest.mark.parametrize("other", OTHERS)
def test_the_hash_changes_with(other: Change) -> None:
    assert plan_hash(plan(other)) != plan_hash(plan(change()))


def test_the_hash_changes_with_order_and_procedure() -> None:
    a, b = change("a"), change("b")
    assert plan_hash(plan(a, b)) != plan_hash(plan(b, a))
    assert plan_hash(plan(a, procedure="other")) != plan_hash(plan(a))


def test_the_hash_does_not_change_with_what_moves_by_itself() -> None:
    scaled = state(OLD_IMAGE, replicas=5, metadata={"generation": 77})
    assert plan_hash(plan(change(before=scaled, diff="shown differently"))) == plan_hash(plan(change()))


def test_the_hash_does_not_change_with_the_order_of_keys() -> None:
    turned = dict(reversed(state(OLD_IMAGE).items()))
    assert plan_hash(plan(change(before=turned))) == plan_hash(plan(change()))


def test_a_state_may_hold_moments() -> None:
    """Clients that read an object into Python make moments of its times; JSON has texts."""
    moment, text = at(0), at(0).isoformat().replace("+00:00", "Z")
    held, written = (plan(change(before={"template": {"a": value}})) for value in (moment, text))
    assert plan_hash(held) == plan_hash(written)


def test_anybody_can_take_the_hash() -> None:
    """It is that of the compact JSON with sorted keys; what moves by itself may be missing in a recorded state."""
    bare = plan(change(before={"template": {"a": 1}}, after={"template": {"a": 2}}, diff=""))
    content = json.loads(bare.model_dump_json(exclude={"changes": {"__all__": {"diff"}}}))
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    assert plan_hash(bare) == hashlib.sha256(text.encode()).hexdigest()


def test_taking_the_hash_changes_nothing() -> None:
    made = plan(change())
    before = copy.deepcopy(made)
    plan_hash(made)
    assert made == before


def test_finds_a_change() -> None:
    made = plan(change(), change(kind="policy"))
    assert made.change("rag-api", "policy") is made.changes[1]
    assert made.change("rag-api", "other") is None


def test_shows_exactly_what_differs() -> None:
    text = difference("rag-api", state(OLD_IMAGE), state(NEW_IMAGE))
    lines = text.splitlines()
    assert lines[:2] == ["--- rag-api now", "+++ rag-api after"]
    changed = [line for line in lines[2:] if line[0] in "+-"]
    assert [line.split()[-2:] for line in changed] == [["image:", OLD_IMAGE], ["image:", NEW_IMAGE]]
    assert [line[0] for line in changed] == ["-", "+"]


def test_shows_four_lines_around_what_differs() -> None:
    before, after = ({"strategy": {}, "template": {f"k{n}": n for n in range(9)}} for _ in range(2))
    after["template"]["k4"] = "new"
    shown = difference("rag-api", before, after).splitlines()[3:]
    assert [line.strip() for line in shown] == [
        *(f"k{n}: {n}" for n in range(4)),
        "-  k4: 4",
        "+  k4: new",
        *(f"k{n}: {n}" for n in range(5, 9)),
    ]


def test_shows_nothing_where_only_what_moves_by_itself_differs() -> None:
    assert difference("rag-api", state(OLD_IMAGE), state(OLD_IMAGE, replicas=9, metadata={"generation": 9})) == ""
