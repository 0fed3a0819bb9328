"""Findings: the result of each check, and what they say together."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Literal

Severity = Literal["pass", "warn", "block"]
RANK: dict[str, int] = {"block": 0, "warn": 1, "pass": 2}


@dataclass(frozen=True)
class Finding:
    """The result of one check of one object.

    :param check: the subject, such as ``pods``.
    :param severity: *block* stops a change, *warn* is shown, *pass* is proof that it was looked at.
    :param hint: the next action; empty for *pass*.
    """

    check: str
    severity: Severity
    object: str
    observed: str
    expected: str
    hint: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the finding as plain data, for XCom and reports."""
        return asdict(self)


def summary(findings: Sequence[Finding], at: datetime) -> dict[str, Any]:
    """Return what all findings say together.

    Keys: ``id``, ``time`` (ISO 8601, UTC), ``approval`` with ``ready_for_upgrade`` (no finding blocks, and there is at
    least one), ``blocking``, ``warnings``; ``findings``, worst first.
    """
    blocking = sum(1 for finding in findings if finding.severity == "block")
    warnings = sum(1 for finding in findings if finding.severity == "warn")
    time = at.astimezone(UTC).isoformat(timespec="seconds")
    ordered = worst_first(findings)
    text = time + "".join(repr(finding) for finding in ordered)
    return {
        "id": f"preflight-{hashlib.sha256(text.encode()).hexdigest()[:12]}",
        "time": time,
        "approval": {
            "ready_for_upgrade": blocking == 0 and bool(findings),
            "blocking": blocking,
            "warnings": warnings,
        },
        "findings": [finding.to_dict() for finding in ordered],
    }


def worst_first(findings: Sequence[Finding]) -> list[Finding]:
    """Return the findings with the blocking ones first, otherwise in their order."""
    return sorted(findings, key=lambda finding: RANK[finding.severity])


def as_table(findings: Sequence[Finding]) -> str:
    """Return the findings as a text table, worst first, with the hints of those that need an action below it."""
    heads = ("severity", "check", "object", "observed", "expected")
    rows = [(f.severity, f.check, f.object, f.observed, f.expected) for f in worst_first(findings)]
    widths = [max(len(row[column]) for row in (heads, *rows)) for column in range(len(heads))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in (heads, *rows)
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    hints = [
        f"next, {f.check} of {f.object}: {f.hint}" for f in worst_first(findings) if f.hint and f.severity != "pass"
    ]
    return "\n".join(lines + hints)
