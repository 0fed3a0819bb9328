"""The question that a person is asked before many backups are deleted at once, in Markdown."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

from nephoran_maintenance.domain.approval import NEEDED, REJECT, Rule, approve_option, minute
from nephoran_maintenance.profile import SystemProfile

MOST_ROWS = 200


def retention_rule(profile: SystemProfile, requester: str | None, *, asks: bool) -> Rule:
    """Return who must let a deletion begin: as many as a change of the infrastructure needs, and at least one.

    A scheduled run was asked for by nobody, so whoever may approve counts.
    """
    category = profile.category("infrastructure")
    needed = max(1, NEEDED[category.approval]) if asks else 0
    return Rule(
        category="infrastructure",
        needed=needed,
        approvers=profile.approvers,
        requester=requester,
        requester_counts=needed < NEEDED["two"] or requester is None,
        expires_after=timedelta(minutes=category.expires_minutes),
    )


def subject(count: int, system: str, expires_at: datetime) -> str:
    """Return the headline of the question."""
    return f"delete {count} backups of {system} for good, until {minute(expires_at)}"


def body(rows: Sequence[Mapping[str, str]], plan_hash: str, rule: Rule, expires_at: datetime, limit: int) -> str:
    """Return the text of the question.

    :param rows: the table of what becomes of each backup.
    :param limit: how many may go without a question.
    """
    goes = [row for row in rows if row["action"] == "delete"]
    cells = (f"`{row['backup']}` | {row['age_days']} | {row['grade']} | {row['reason']}" for row in goes[:MOST_ROWS])
    shown = "\n".join(["| backup | days old | grade | why |", "|---|---|---|---|", *(f"| {row} |" for row in cells)])
    more = (
        f"\n\n… and {len(goes) - MOST_ROWS} more; the log of plan_deletions has all." if len(goes) > MOST_ROWS else ""
    )
    return (
        f"{len(goes)} are past their time, {len(rows) - len(goes)} stay. More than {limit} at once are deleted only when a "
        f"person has looked: a wrong clock or a slip in the profile would look like this.\n\n{shown}{more}\n\n"
        f"`{approve_option(plan_hash)}` counts from {' or '.join(rule.may_approve())}; `{REJECT}` from every approver. "
        f"Not answered until {minute(expires_at)}, nothing is deleted. What is to go is computed again after the "
        "answer, and only what is on both lists is deleted."
    )


def plan_hash(to_delete: Sequence[str]) -> str:
    """Return what tells one list of deletions from another."""
    return hashlib.sha256("\n".join(sorted(to_delete)).encode()).hexdigest()
