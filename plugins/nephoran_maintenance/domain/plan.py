"""The plan: the intended changes with their differences, and the hash that stands for them."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Mapping
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict

from nephoran_maintenance.profile import Criticality

ChangeKind = Literal["policy", "image"]
DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
STRATEGY_NAMES = ("strategy", "updateStrategy")


class Change(BaseModel):
    """One change of one component: exact recorded state before and after."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    component: str
    kind: ChangeKind
    workload: dict[str, str]
    before: dict[str, Any]
    after: dict[str, Any]
    digest: str | None = None
    digest_before: str | None = None
    criticality: Criticality = "must"
    needs: tuple[str, ...] = ()
    """All that the component needs, directly and through others: it is left out when one of them has failed."""
    diff: str = ""


class Plan(BaseModel):
    """What an operation would change, in order."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    procedure: str
    system: str
    changes: tuple[Change, ...] = ()
    nothing_to_do: tuple[str, ...] = ()

    def change(self, component: str, kind: str) -> Change | None:
        """Return one change, or None when the plan has none of this kind for the component."""
        return next((c for c in self.changes if (c.component, c.kind) == (component, kind)), None)


VOLATILE = ("generation", "revision", "replicas")


def plan_hash(plan: Plan) -> str:
    """Return the SHA-256 over what would be changed: the same plan on the same objects has the same hash.

    Left out is what moves without anybody changing the object: generation, revision and replica count.
    """
    content = plan.model_dump(mode="json", exclude={"changes": {"__all__": {"diff"}}})
    for change in content["changes"]:
        for state in (change["before"], change["after"]):
            for field in VOLATILE:
                state.pop(field, None)
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def difference(name: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """Return the unified difference of two recorded states, as YAML; empty when template and strategy are the same."""
    old, new = ({key: state[key] for key in ("strategy", "template")} for state in (before, after))
    lines = difflib.unified_diff(
        yaml.dump(old, Dumper=DUMPER, sort_keys=True).splitlines(),
        yaml.dump(new, Dumper=DUMPER, sort_keys=True).splitlines(),
        f"{name} now",
        f"{name} after",
        lineterm="",
        n=4,
    )
    return "\n".join(lines)
