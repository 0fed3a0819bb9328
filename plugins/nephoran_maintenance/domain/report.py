"""The report of an operation, built from recorded facts only. A fact that was not measured says so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Literal

from nephoran_maintenance.domain.approval import Approval
from nephoran_maintenance.domain.findings import RANK, Finding
from nephoran_maintenance.domain.images import ImageReference
from nephoran_maintenance.domain.journal import Journal, JournalEntry
from nephoran_maintenance.domain.lease import Lease
from nephoran_maintenance.domain.plan import difference
from nephoran_maintenance.domain.step_ids import RECOVER_OPERATIONS

NOT_MEASURED = "not measured"
WITH_REPORT = ("recover_operation", "rollback")
"""Procedures that write a report of each operation that they take over."""
PROBE_FIGURES = ("sent", "failed", "longest_gap_seconds", "requests_per_second")
Overall = Literal[
    "succeeded",
    "partly-succeeded",
    "rolled-back",
    "failed",
    "taken-over",
    "planned",
    "refused",
    "not-approved",
    "nothing-to-do",
    "ready",
    "not-ready",
    "backed-up",
    "not-backed-up",
    "cleaned-up",
    "not-cleaned-up",
    "readable",
    "not-readable",
    "not-read",
    "fresh",
    "stale",
]
_WANTED_BACK: dict[str, str] = {
    "rolled-back": "A person wanted it back: every component that was changed is on its recorded template again, verified.",
    "failed": "A person wanted it back, and the way back has not ended: a person must look at the components below.",
}
"""What is said of a way back that no failure was the cause of."""
_SUMMARIES: dict[str, str] = {
    "succeeded": "Every planned change is in place and verified.",
    "rolled-back": "The change failed; every component that was changed is back on its recorded template, verified.",
    "failed": "The change failed, and so did the way back: a person must look at the components below.",
    "taken-over": "This run lost the system: what becomes of the change is decided by who has taken it over.",
    "planned": "This is a plan. Nothing was changed.",
    "refused": "The run was stopped before the first change. Nothing was changed.",
    "not-approved": "The change was rejected, or not approved in time. Nothing was changed.",
    "nothing-to-do": "Everything that was asked for already runs. Nothing was changed.",
    "ready": "Nothing blocks a change.",
    "backed-up": "The backup is complete and signed, and every byte of it was read back.",
    "not-backed-up": "There is no new backup that counts: see the steps that failed.",
    "cleaned-up": "What was past its time and not needed is gone; everything else is there.",
    "not-cleaned-up": "Not everything that was to be deleted is gone: see the steps that failed.",
    "readable": "Everything that was due was decrypted and compared, and nothing was missing.",
    "not-read": "Nothing was decrypted, because no key is here. Manifests, chains and keys were looked at.",
    "not-readable": "A backup could not be read as its manifest says, or the look was not finished: see below.",
    "fresh": "The newest backups are as young as the profile asks for.",
    "stale": "The newest backups are older than the profile asks for, or none counts: see below.",
    "not-ready": "Findings block a change. Nothing was changed; this procedure only reads.",
}


def overall(
    journal: Journal | None,
    *,
    failed: bool,
    planned: bool,
    changes: int | None,
    reads_only: bool,
    approval: Approval | None = None,
    taken_over: bool = False,
) -> Overall:
    """Return how an operation ended.

    :param journal: None when it ended before the first change.
    :param failed: whether any step failed, those of a component apart that may fail and stayed behind.
    :param planned: whether it was to plan only.
    :param changes: number of planned changes; None when there is no plan.
    :param approval: what is recorded of it, when it was asked for.
    :param taken_over: whether somebody else owns the operation now.
    """
    if reads_only:
        return "not-ready" if failed else "ready"
    if journal is None or not any(entry.step not in ("planned", "left-out") for entry in journal.entries):
        if failed:
            ended = approval is not None and approval.state in ("rejected", "expired")
            return "not-approved" if ended else "refused"
        if changes == 0:
            return "nothing-to-do"
        return "planned" if planned else "refused"
    if taken_over and journal.state == "open":
        return "taken-over"
    if journal.begun() and journal.complete() and journal.verified_at and not failed:
        return "partly-succeeded" if journal.behind() else "succeeded"
    if all(entry.step in ("rolled-back", "planned", "left-out") for entry in journal.entries):
        return "rolled-back"
    return "failed"


def build_report(
    *,
    operation_id: str,
    procedure: str,
    title: str,
    system: str,
    how: Overall,
    triggered_by: str,
    started_at: datetime | None,
    ended_at: datetime,
    params: Mapping[str, Any],
    plan: Mapping[str, Any] | None = None,
    plan_hash: str | None = None,
    journal: Journal | None = None,
    health: Mapping[str, Mapping[str, Any]] | None = None,
    functional_test: Sequence[Mapping[str, Any]] = (),
    probe: Mapping[str, Any] | None = None,
    probe_expected: bool = False,
    gates: Sequence[Mapping[str, Any]] = (),
    rollback: Sequence[Mapping[str, Any]] = (),
    findings: Sequence[Mapping[str, Any]] = (),
    failed_steps: Sequence[Mapping[str, Any]] = (),
    recovery: Mapping[str, Any] | None = None,
    approval: Mapping[str, Any] | None = None,
    backup: Mapping[str, Any] | None = None,
    wanted_back: bool = False,
    owner: Lease | None = None,
    gate_seconds: float | None = None,
) -> dict[str, Any]:
    """Return the report as plain data.

    Keys: those of the parameters, with ``overall``, ``summary``, ``seconds`` and ``components``:
    ``[{name, result, image_before, image_after, digest_before, digest_after, ready, desired, seconds, health, policy}]``.

    :param health: by component, what its last step has measured.
    :param gates: ``[{"after", "component", "state", "reason", "message", "figures", "findings", "hint", "samples"}]``; the
        state of one that has no verdict is ``off`` or *not measured*.
    :param gate_seconds: how long a gate judges; 0: they are off; None: the procedure has none.
    :param recovery: what a recovery found, decided and did; see :func:`recovery_facts`.
    :param approval: the fields of :class:`nephoran_maintenance.domain.approval.Approval`; None when it was not asked for.
    :param backup: what was saved before the first change; None: nothing.
    :param wanted_back: whether a person has asked for the way back of an operation.
    :param owner: the lease of who owns the operation now, where it is not its own run any more.
    :param probe_expected: whether a probe was to run; without its result the probe's figures read *not measured*.
    """
    if probe is None and probe_expected:
        probe = {**dict.fromkeys(PROBE_FIGURES, NOT_MEASURED), "failures": []}
    return {
        "operation_id": operation_id,
        "procedure": procedure,
        "title": title,
        "system": system,
        "overall": how,
        "summary": _WANTED_BACK[how] if wanted_back and how in _WANTED_BACK else _summary(how, journal),
        "elsewhere": None if recovery else elsewhere(journal, owner),
        "triggered_by": triggered_by,
        "started_at": started_at.isoformat(timespec="seconds") if started_at else NOT_MEASURED,
        "ended_at": ended_at.isoformat(timespec="seconds"),
        "seconds": round((ended_at - started_at).total_seconds(), 1) if started_at else NOT_MEASURED,
        "params": dict(params),
        "plan": plan,
        "plan_hash": plan_hash,
        "components": _components(plan, journal, health or {}),
        "functional_test": list(functional_test),
        "probe": dict(probe) if probe else None,
        "gates": [dict(gate) for gate in gates],
        "gate_seconds": gate_seconds,
        "rollback": list(rollback),
        "findings": [{**finding, "rank": RANK[finding["severity"]]} for finding in findings],
        "failed_steps": list(failed_steps),
        "recovery": dict(recovery) if recovery else None,
        "approval": dict(approval) if approval else None,
        "backup": dict(backup) if backup else None,
    }


def elsewhere(journal: Journal | None, owner: Lease | None) -> dict[str, str] | None:
    """Return where it is said what became of an operation that its run has lost: ``text`` and ``address``, relative to the page.

    The address is empty where the one that took it over writes no report of it.

    :param owner: the lease of who owns the system now, where that has not said yet what it decided.
    """
    last = journal.takeovers[-1] if journal and journal.takeovers else None
    if journal is None or (last is None and owner is None):
        return None
    by, procedure = (last.by, last.procedure) if last else (owner.holder, owner.procedure) if owner else (None, "")
    procedure = procedure.partition(" ")[0]  # the command line adds who has called it
    state = f"closed: {journal.outcome}" if journal.state == "closed" else "still at work"
    decided = f", which decided to {last.decision} it" if last else ""
    report = f"{procedure}/{journal.operation_id}" if procedure in WITH_REPORT else ""
    where = f"report {report}, once that has ended" if report else f"log of {RECOVER_OPERATIONS} of that {procedure}"
    return {
        "text": f"Operation {journal.operation_id} was taken over by {by}{decided}; it is {state}. "
        f"What becomes of it is in the {where}.",
        "address": f"../../{report}/" if report else "",
    }


def recovery_report(
    journal: Journal,
    row: Mapping[str, Any],
    *,
    procedure: str,
    title: str,
    triggered_by: str,
    started_at: datetime | None,
    ended_at: datetime,
    params: Mapping[str, Any],
    planned: bool,
    wanted_back: bool,
    failed_steps: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """Return the report of a recovery on one operation, under that operation's id; see :func:`build_report`.

    :param row: see :func:`recovery_facts`.
    :param planned: whether it only said what it would do.
    """
    how = overall(journal, failed=bool(failed_steps), planned=False, changes=len(journal.entries), reads_only=False)
    return build_report(
        operation_id=journal.operation_id,
        procedure=procedure,
        title=title,
        system=journal.system,
        how="planned" if planned else how,
        triggered_by=triggered_by,
        started_at=started_at,
        ended_at=ended_at,
        params=params,
        plan=plan_of_journal(journal),
        plan_hash=journal.plan_hash,
        journal=journal,
        rollback=rollback_rows(journal),
        recovery=recovery_facts(journal, row),
        failed_steps=failed_steps,
        wanted_back=wanted_back,
    )


def conclusion(how: Overall, findings: Sequence[Finding]) -> dict[str, Any]:
    """Return the parts of a report that say how a run ended which neither changed nor judged the system."""
    rows = [{**finding.to_dict(), "rank": RANK[finding.severity]} for finding in findings]
    return {"overall": how, "summary": _SUMMARIES[how], "findings": rows}


def recovery_facts(journal: Journal, row: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a recovery found, decided and did with an operation: from its row and its journal.

    Keys: ``operation``, ``procedure``, ``run_id``, ``requested_by``, ``reason_of_run``, ``approved_by``, ``started_at``,
    ``decision``, ``reason``, ``found`` (by component), ``done``, ``takeovers``.

    :param row: ``decision``, ``reason``, ``found`` as the recovery saw them first.
    """
    return {
        "operation": journal.operation_id,
        "procedure": journal.procedure,
        "run_id": journal.run_id,
        "requested_by": journal.requested_by or NOT_MEASURED,
        "reason_of_run": journal.reason,
        "approved_by": [answer.by for answer in journal.approvals],
        "started_at": journal.started_at.isoformat(timespec="seconds"),
        "decision": row["decision"],
        "reason": row["reason"],
        "found": dict(row["found"]),
        "done": f"closed: {journal.outcome}" if journal.state == "closed" else "not closed",
        "takeovers": [takeover.model_dump(mode="json") for takeover in journal.takeovers],
    }


def plan_of_journal(journal: Journal) -> dict[str, Any]:
    """Return the plan as far as a journal holds it: what each component came from and was to go to."""
    return {
        "changes": [
            {
                "component": entry.component,
                "kind": entry.kind,
                "before": entry.before,
                "after": entry.intended,
                "digest": entry.digest,
                "criticality": entry.criticality,
                "diff": difference(entry.component, entry.before, entry.intended),
            }
            for entry in journal.entries
        ],
        "nothing_to_do": [],
    }


def rollback_rows(journal: Journal) -> list[dict[str, Any]]:
    """Return what went back, in reverse order, as a journal holds it."""
    rows = []
    for component in reversed(list(journal.workloads())):
        back = [entry for entry in journal.entries_of(component) if entry.step in ("rolling-back", "rolled-back")]
        if not back:
            continue
        done = all(entry.step == "rolled-back" for entry in back)
        seconds = max(e.at["rolled-back"] for e in back) - min(e.at["rolling-back"] for e in back) if done else None
        rows.append(
            {
                "component": component,
                "result": "back on its recorded template, verified" if done else "on its way back",
                "seconds": round(seconds.total_seconds(), 1) if seconds is not None else NOT_MEASURED,
            }
        )
    return rows


def _summary(how: Overall, journal: Journal | None) -> str:
    if how == "failed" and journal is not None and journal.complete():
        if journal.verified_at is None:
            return "Every planned change is in place, but nobody has seen everything together to be good: see below."
        return "Every planned change is in place and verified, but another step failed: see below."
    if how == "partly-succeeded" and journal is not None:
        new, behind = journal.changed(), journal.behind()
        return f"New and verified: {', '.join(new)}. Not changed, because the plan says that it may fail: {', '.join(behind)}."
    return _SUMMARIES[how]


def _components(
    plan: Mapping[str, Any] | None, journal: Journal | None, health: Mapping[str, Mapping[str, Any]]
) -> list[dict[str, Any]]:
    rows = []
    changes = (plan or {}).get("changes") or ()
    for name in dict.fromkeys(change["component"] for change in changes):
        own = [change for change in changes if change["component"] == name]
        image = next((change for change in own if change["kind"] == "image"), None)
        policy = any(change["kind"] == "policy" for change in own)
        entries = journal.entries_of(name) if journal else []
        measured = health.get(name) or {}
        seconds = [entry.seconds() for entry in entries]
        before, after = own[0]["before"]["image"], own[-1]["after"]["image"]
        rows.append(
            {
                "name": name,
                "result": _result(entries, journal),
                "image_before": before,
                "image_after": after,
                "digest_before": _digest(before, (image or {}).get("digest_before")),
                "digest_after": _digest(after, (image or {}).get("digest")),
                "ready": measured.get("ready", NOT_MEASURED),
                "desired": measured.get("desired", NOT_MEASURED),
                "seconds": _sum(seconds),
                "health": measured.get("health", NOT_MEASURED),
                "policy": _POLICY_NOTE if policy else None,
                "changed": _changed(entries),
                "failure": _failure(name, journal),
            }
        )
    return rows


_POLICY_NOTE = (
    "rolling-update policy put in place first; the pods of the earlier policy left under the earlier policy, "
    "so no promise of zero downtime covers that first roll"
)


def _failure(component: str, journal: Journal | None) -> str | None:
    """Return why a component could not stay changed itself; None when it was not the one that failed."""
    failure = journal.failure_of(component) if journal else None
    return failure.message if failure else None


def _changed(entries: Sequence[JournalEntry]) -> dict[str, str]:
    """Return when the first change of a component was begun and the last one verified."""
    begun = [entry.at["intended"] for entry in entries if "intended" in entry.at]
    verified = [entry.at["verified"] for entry in entries if "verified" in entry.at]
    return {
        "began_at": min(begun).isoformat() if begun else NOT_MEASURED,
        "verified_at": max(verified).isoformat() if verified and len(verified) == len(entries) else NOT_MEASURED,
    }


def _result(entries: Sequence[JournalEntry], journal: Journal | None) -> str:
    steps = [entry.step for entry in entries]
    if not steps or journal is None:
        return "not changed"
    name, lacking = entries[0].component, [failure.component for failure in journal.failures]
    if name in journal.behind() and name not in lacking:
        return f"not changed: it needs {', '.join(need for need in entries[0].needs if need in lacking)}, which failed"
    if name in journal.behind():
        back = "rolled back alone and verified" if "rolled-back" in steps else "not changed"
        return f"{back}; it may fail"
    if all(step == "planned" for step in steps):
        return "not changed"
    if all(step == "verified" for step in steps):
        return "changed and verified"
    if all(step == "left-out" for step in steps):
        return "not changed"
    if all(step in ("rolled-back", "planned", "left-out") for step in steps):
        return "rolled back and verified"
    return f"between: {', '.join(steps)}"


def _digest(image: str, recorded: str | None) -> str:
    return recorded or ImageReference.parse(image).digest or NOT_MEASURED


def _sum(seconds: Sequence[float | None]) -> float | str:
    known = [value for value in seconds if value is not None]
    return round(sum(known), 1) if known and len(known) == len(seconds) else NOT_MEASURED
