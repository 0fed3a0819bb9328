"""What a recovery finds and decides, from the journal, the lease and the live objects alone. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from nephoran_maintenance.domain.journal import STANDING, Journal, JournalEntry
from nephoran_maintenance.domain.lease import Lease
from nephoran_maintenance.domain.patches import same_spec, same_strategy, same_template, strategy_of
from nephoran_maintenance.domain.stepping import partition_of, with_partition

Condition = Literal["before", "intended", "between", "unknown", "missing"]
Decision = Literal["leave", "finish", "undo", "stop"]


@dataclass(frozen=True)
class Judgement:
    """What is to be done with an operation, and why.

    ``leave``: nothing. ``finish``: everything is changed and seen to be good, only closing is left. ``undo``: take back
    what was begun, in reverse order. ``stop``: an object is in no known state; a person looks, nothing is touched.
    """

    decision: Decision
    reason: str


def condition_of(workload: Mapping[str, Any] | None, entries: Sequence[JournalEntry]) -> Condition:
    """Return in which state of an operation a component's object is.

    ``between``: it is one that the operation has recorded or intended on the way, such as a StatefulSet whose partition
    was left in the middle.

    :param entries: the component's entries, in their order.
    """
    if workload is None:
        return "missing"
    if same_spec(workload, entries[0].before):
        return "before"
    if same_spec(workload, entries[-1].intended):
        return "intended"
    return "between" if is_known(workload, entries) else "unknown"


def is_known(workload: Mapping[str, Any], entries: Sequence[JournalEntry]) -> bool:
    """Return whether a live object is in, or on its way to, a state that the operation has recorded or intended."""
    return any(is_on_its_way(workload, state) for entry in entries for state in (entry.before, entry.intended))


def is_on_its_way(workload: Mapping[str, Any], state: Mapping[str, Any]) -> bool:
    """Return whether a live object has exactly the template and strategy of a recorded state.

    A Deployment gets both in one write, so a strategy that differs is somebody else's. A StatefulSet is stepped by its
    partition, which may be any; one that is ``OnDelete`` is ``RollingUpdate`` meanwhile.
    """
    if not same_template(workload, state):
        return False
    if same_strategy(workload, state):
        return True
    if workload["kind"] != "StatefulSet":
        return False
    live, recorded = strategy_of(workload), state["strategy"]
    stepped = with_partition(recorded, partition_of(workload))
    if "rollingUpdate" not in recorded and "maxUnavailable" in live.get("rollingUpdate", {}):
        # The API server's default, where it knows this field and nothing was said.
        stepped["rollingUpdate"]["maxUnavailable"] = 1
    return live == stepped


def judge(
    journal: Journal,
    lease: Lease | None,
    conditions: Mapping[str, Condition],
    *,
    me: str,
    now: datetime | None,
    back: bool = False,
) -> Judgement:
    """Return what a recovery does with an operation.

    :param lease: as it stands; None when nobody ever held it.
    :param conditions: by component, see :func:`condition_of`.
    :param me: operation id of the recovery.
    :param now: the API server's time; None only without a lease.
    :param back: a person wants the operation undone, also when it is closed or could be finished.
    """
    if lease is not None and now is not None and lease.standing(me, now) == "held":
        whose = "its own run" if lease.holder == journal.operation_id else lease.owner()
        return Judgement("leave", f"the lease is renewed by {whose}")
    if journal.state == "closed":
        return _judge_closed(journal, conditions) if back else Judgement("leave", f"it is closed: {journal.outcome}")
    lost = [name for name in journal.begun() if conditions[name] in ("unknown", "missing")]
    if lost:
        said = ", ".join(f"{name} is {_WORDS[conditions[name]]}" for name in lost)
        return Judgement("stop", f"{said}; what others did is not overwritten")
    behind = journal.behind()
    whole = all(condition == ("before" if name in behind else "intended") for name, condition in conditions.items())
    if not back and journal.complete() and journal.verified_at and journal.turned_back_at is None and whole:
        without = f" but for {', '.join(behind)}, which may fail" if behind else ""
        return Judgement("finish", f"every change was verified, alone and together{without}; only closing was left")
    if not journal.begun():
        gone = any(entry.step == "rolled-back" for entry in journal.entries)
        return Judgement("undo", "everything was back already" if gone else "nothing had been changed yet")
    if back:
        return Judgement("undo", "a person wants it undone")
    if journal.turned_back_at is not None:
        return Judgement("undo", "the way back had begun")
    return Judgement("undo", f"{_unfinished(journal)}, and its owner is gone")


def _judge_closed(journal: Journal, conditions: Mapping[str, Condition]) -> Judgement:
    if journal.outcome not in STANDING:
        return Judgement("leave", f"it is closed: {journal.outcome}; there is nothing to take back")
    other = [name for name in journal.changed() if conditions[name] != "intended"]
    if other:
        said = ", ".join(f"{name} is {_WORDS[conditions[name]]}" for name in other)
        return Judgement("stop", f"{said}; it has been changed since this operation, or gone back")
    return Judgement("undo", "a person wants it undone")


_WORDS: dict[Condition, str] = {
    "before": "as it was before",
    "intended": "as it was intended",
    "between": "between two of its states",
    "unknown": "in no state that this operation has recorded or intended",
    "missing": "not in the cluster",
}


def _unfinished(journal: Journal) -> str:
    steps = [entry.step for entry in journal.entries]
    if journal.complete():
        return "every change was verified, but not everything together"
    return f"{steps.count('verified')} of {len(steps)} changes were verified"
