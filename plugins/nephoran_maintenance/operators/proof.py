"""What a change needs to stand: of each step that judges it, what the step itself has left behind.

The state of a step is no proof. A person can mark one as *success* in Airflow that has measured nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from nephoran_maintenance.domain.gate_question import LET_STAND
from nephoran_maintenance.domain.intents import phase_verdict
from nephoran_maintenance.domain.step_ids import (
    VERIFY_COMPONENTS,
    VERIFY_METRICS,
    WAIT_TEST_INTENTS,
    change_step_ids,
    gate_step_id,
)
from nephoran_maintenance.operators.base import pull, states_of
from nephoran_maintenance.operators.gate_queries import gated_components

if TYPE_CHECKING:
    from airflow.sdk import Context

    from nephoran_maintenance.domain.journal import Journal
    from nephoran_maintenance.profile import SystemProfile

STANDING = ("open", "off", LET_STAND)
"""States of a gate that let a change stand."""
NOT_VERIFIED = "the journal does not say that the change was verified"


@dataclass(frozen=True)
class Unproven:
    """A step that has not left what it leaves when it has gone well."""

    task_id: str
    missing: str


def seen_good(context: Context, journal: Journal) -> bool:
    """Return whether the last look at everything together went well: it succeeded, and its own proof is in the journal."""
    return states_of(context).get(VERIFY_COMPONENTS) == "success" and journal.verified_at is not None


def unproven_steps(context: Context, journal: Journal, profile: SystemProfile) -> list[Unproven]:
    """Return the steps before the last look that a change can't stand without and that have left no proof.

    The proof of a rollout is in the journal, that of a gate its open verdict or a person's answer, that of the functional
    test the phases.
    """
    found = [
        Unproven(change_step_ids(entry.component, entry.kind)[1], NOT_VERIFIED)
        for entry in journal.entries
        if entry.component in journal.changed() and "verified" not in entry.at
    ]
    changed, behind = journal.changed(), journal.behind()
    gates: dict[str, list[str]] = {
        gate_step_id(c.name): [c.name] for c in gated_components(profile) if c.name in changed
    }
    gates[VERIFY_METRICS] = [c.name for c in gated_components(profile) if c.name not in behind]
    for step, components in gates.items():
        states = {row["component"]: row["state"] for row in pull(context, step) or ()}
        judged = [name for name in components if states.get(name) not in STANDING]
        if judged:
            found.append(Unproven(step, f"there is no open verdict on {', '.join(judged)}"))
    tests = pull(context, WAIT_TEST_INTENTS) or ()
    if not tests or any(phase_verdict(test["phase"], profile.intents) != "success" for test in tests):
        found.append(Unproven(WAIT_TEST_INTENTS, "there is no result of the functional test"))
    return found


def marked_steps(context: Context, journal: Journal, profile: SystemProfile) -> list[Unproven]:
    """Return the steps that are called a success and have left nothing at all: a person has marked them."""
    results = [*(gate_step_id(c.name) for c in gated_components(profile)), VERIFY_METRICS, WAIT_TEST_INTENTS]
    found = [Unproven(step, "it has left no result") for step in results if pull(context, step) is None]
    found += [
        Unproven(change_step_ids(entry.component, entry.kind)[1], NOT_VERIFIED)
        for entry in journal.entries
        if "verified" not in entry.at
    ]
    if journal.verified_at is None:
        found.append(
            Unproven(VERIFY_COMPONENTS, "the journal does not say that everything together was seen to be good")
        )
    states = states_of(context)
    return [one for one in found if states.get(one.task_id) == "success"]
