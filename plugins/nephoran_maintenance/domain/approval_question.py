"""The question that a person is asked before a change begins: everything that is needed to decide, in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from nephoran_maintenance.domain.approval import REJECT, Approval, Rule, approve_option, minute
from nephoran_maintenance.domain.plain_text import plain
from nephoran_maintenance.domain.plan import Plan
from nephoran_maintenance.domain.plan_words import changed_lines, in_words

MOST_FINDINGS = 20


def subject(rule: Rule, approval: Approval, plan: Plan, expires_at: datetime) -> str:
    """Return the headline of the question."""
    names = ", ".join(dict.fromkeys(change.component for change in plan.changes))
    second = "second approval: " if approval.approvers() else ""
    return f"{second}{rule.category} change of {names} in {plan.system}, until {minute(expires_at)}"


def body(
    rule: Rule,
    approval: Approval,
    plan: Plan,
    findings: Sequence[Mapping[str, Any]],
    *,
    asked_at: datetime,
    expires_at: datetime,
    reason: str | None,
) -> str:
    """Return the text of the question.

    :param findings: those of preflight; the ones to heed are shown.
    """
    heed = [finding for finding in findings if finding["severity"] != "pass"]
    return "\n\n".join(
        [
            _head(rule, approval, asked_at, expires_at, reason),
            _answers(rule, approval),
            f"**Plan** `{approval.plan_hash}`",
            *(_change(change.diff, in_words(change)) for change in plan.changes),
            *(f"* {plain(note)}" for note in plan.nothing_to_do),
            "**Findings to heed**" if heed else "**Findings to heed**: none.",
            *(["\n".join(_finding(finding) for finding in heed[:MOST_FINDINGS])] if heed else []),
            *([f"… and {len(heed) - MOST_FINDINGS} more."] if len(heed) > MOST_FINDINGS else []),
        ]
    )


def _head(rule: Rule, approval: Approval, asked_at: datetime, expires_at: datetime, reason: str | None) -> str:
    minutes = max(0, round((expires_at - asked_at).total_seconds() / 60))
    rows = [
        ("asked for by", plain(rule.requester or "nobody that Airflow knows")),
        ("category", rule.category),
        ("reason", plain(reason) if reason else "none given"),
        ("until", f"{minute(expires_at)}, {minutes // 60} h {minutes % 60} min after this question"),
        ("answers needed", f"{approval.missing()} of {approval.needed}"),
    ]
    if approval.approvers():
        rows.append(("approved already by", ", ".join(map(plain, approval.approvers()))))
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])


def _answers(rule: Rule, approval: Approval) -> str:
    names = [plain(name) for name in rule.may_approve() if name not in approval.approvers()]
    return (
        f"`{approve_option(approval.plan_hash)}` counts from {' or '.join(names)}; `{REJECT}` from every approver and from "
        "the one who asked. Another answer does not count, and the question comes again. Rejected, or not answered in "
        "time, the run ends without a change. Until then it holds no lease: nobody waits for it. Findings and plan are "
        "computed again before the first change."
    )


def _change(diff: str, words: str) -> str:
    lines = changed_lines(diff)
    return "\n".join([f"* {plain(words)}", "", "```diff", *(line.replace("```", "'''") for line in lines), "```"])


def _finding(finding: Mapping[str, Any]) -> str:
    text = f"* {finding['severity']}, {finding['check']} of {plain(finding['object'])}: {plain(finding['observed'])}"
    return f"{text}. {plain(finding['hint'])}" if finding.get("hint") else text
