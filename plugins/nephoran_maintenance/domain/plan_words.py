"""Plans in words: what one changes, and in what two of them differ."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

import yaml

from nephoran_maintenance.domain.plan import VOLATILE, Change, Plan

LONGEST_LINES = 12
"""Changed lines that are shown of one change; the report has all of them."""


def in_words(change: Change) -> str:
    """Return what a change does, in one line."""
    if change.kind == "policy":
        return f"{change.component}: rolling-update policy"
    before, after = (_image(state) for state in (change.before, change.after))
    return f"{change.component}: image {before} → {after}"


def changed_lines(diff: str, limit: int = LONGEST_LINES) -> list[str]:
    """Return the changed lines of a unified difference, at most so many."""
    lines = [line for line in diff.splitlines() if line[:1] in "+-" and line[:3] not in ("+++", "---")]
    more = len(lines) - limit
    return lines if more <= 0 else [*lines[:limit], f"… {more} more lines"]


def differences(planned: Plan, now: Plan) -> list[str]:
    """Return in what a plan differs from an earlier one, a line or more per object; empty when nothing differs."""
    found: list[str] = []
    old, new = ({(c.component, c.kind): c for c in plan.changes} for plan in (planned, now))
    for key in dict.fromkeys([*old, *new]):
        if key not in new:
            found.append(f"not needed any more: {in_words(old[key])}")
        elif key not in old:
            lines = ["", *changed_lines(new[key].diff)]
            found.append(f"not planned: {in_words(new[key])}" + "\n".join(lines))
        else:
            found += _differences_of(old[key], new[key])
    if list(old) != list(new) and set(old) == set(new):
        found.append("the order of the changes is another")
    notes = [[*plan.nothing_to_do] for plan in (planned, now)]
    found += [f"now: {note}" for note in notes[1] if note not in notes[0]]
    found += [f"not so any more: {note}" for note in notes[0] if note not in notes[1]]
    if (planned.procedure, planned.system) != (now.procedure, now.system):
        found.append("the plan is of another procedure or system")
    return found


def _differences_of(planned: Change, now: Change) -> list[str]:
    name = f"{now.component}, {now.kind}"
    found = [
        f"{name}: {what} was {old}, is {new}"
        for what, old, new in (
            ("the object", _object(planned), _object(now)),
            ("the digest of the new image", planned.digest, now.digest),
            ("the digest that runs", planned.digest_before, now.digest_before),
            ("its criticality", planned.criticality, now.criticality),
            ("what it needs", ", ".join(planned.needs) or "nothing", ", ".join(now.needs) or "nothing"),
        )
        if old != new
    ]
    for what, old_state, new_state in (
        ("what is there", planned.before, now.before),
        ("what is intended", planned.after, now.after),
    ):
        lines = changed_lines(_state_difference(old_state, new_state))
        if lines:
            found.append(f"{name}: {what} is not what was planned for:\n" + "\n".join(lines))
    return found


def _state_difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    before, after = (
        yaml.safe_dump({k: v for k, v in state.items() if k not in VOLATILE}, sort_keys=True).splitlines()
        for state in (old, new)
    )
    return "\n".join(difflib.unified_diff(before, after, lineterm="", n=0))


def _object(change: Change) -> str:
    return "/".join(change.workload[key] for key in ("kind", "namespace", "name") if key in change.workload)


def _image(state: Mapping[str, Any]) -> str:
    """Return an image without its repository and with a short digest: what a person compares."""
    image = str(state.get("image", ""))
    name, _, digest = image.partition("@")
    short = name.rpartition("/")[2]
    return f"{short}@{digest[:19]}…" if digest else short
