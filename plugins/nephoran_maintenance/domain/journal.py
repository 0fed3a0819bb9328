"""The journal: what an operation found, what it intends and how far it is. Written before each change."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from nephoran_maintenance.domain.approval import Answer
from nephoran_maintenance.domain.lease import lost
from nephoran_maintenance.errors import UnknownStateError
from nephoran_maintenance.profile import Criticality
from nephoran_maintenance.settings import PREFIX

SCHEMA_VERSION = 1
TAKEOVERS_KEPT = 20
"""Beside the first: a recovery that fails every two minutes writes 300 kB a day otherwise, until nothing fits any more."""
LABELS = {"app.kubernetes.io/managed-by": "nephoran-maintenance", f"{PREFIX}/record": "journal"}
STATE_LABEL = f"{PREFIX}/state"
LONGEST_NAME = 52

Step = Literal["planned", "intended", "applied", "verified", "rolling-back", "rolled-back", "left-out"]
Outcome = Literal["succeeded", "partly-succeeded", "nothing-changed", "rolled-back", "rollback-failed"]
BEGUN: frozenset[str] = frozenset({"intended", "applied", "verified", "rolling-back"})
"""Steps at which an entry may have changed the object, so that a rollback concerns it."""
STANDING: frozenset[Outcome] = frozenset({"succeeded", "partly-succeeded"})
"""Outcomes that left something new behind, which a person may want undone."""


class Workload(BaseModel):
    """Which object an entry is about."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: str
    namespace: str
    name: str


class JournalEntry(BaseModel):
    """One intended change of one object: its exact state before and after."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    component: str
    kind: Literal["policy", "image"]
    workload: Workload
    before: dict[str, Any]
    intended: dict[str, Any]
    digest: str | None = None
    criticality: Criticality = "must"
    needs: tuple[str, ...] = ()
    """All that the component needs, as the plan has it."""
    step: Step = "planned"
    at: dict[Step, datetime] = {}
    """When each step was first reached."""

    def seconds(self) -> float | None:
        """Return the seconds from the intent to the verified result; None when it was not reached."""
        if "intended" not in self.at or "verified" not in self.at:
            return None
        return (self.at["verified"] - self.at["intended"]).total_seconds()


class Failure(BaseModel):
    """Why a component can't stay changed: what one of its own steps saw of it."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    component: str
    reference: str
    """Reference of the error."""
    cause: str | None = None
    """Of a rollout: what kept it from ending."""
    message: str
    at: datetime


class Takeover(BaseModel):
    """Who took an operation over after its owner was gone, what was found, and what was decided."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    by: str
    procedure: str
    token: int
    at: datetime
    decision: Literal["finish", "undo"]
    reason: str
    found: dict[str, str] = {}
    """By component, in which state its object was."""


class Journal(BaseModel):
    """The record of one operation."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    schema_version: int = SCHEMA_VERSION
    operation_id: str
    procedure: str
    run_id: str
    system: str
    plan_hash: str
    started_at: datetime
    state: Literal["open", "closed"] = "open"
    outcome: Outcome | None = None
    fencing_token: int | None = None
    """The token that the objects in scope bear; a write to this journal by the holder of another is refused."""
    requested_by: str | None = None
    reason: str | None = None
    category: str | None = None
    approvals: tuple[Answer, ...] = ()
    """Who has let it begin, and when."""
    verified_at: datetime | None = None
    """When everything together was seen to be good; without it a recovery undoes."""
    turned_back_at: datetime | None = None
    """When the way back was begun; from then on nothing is changed forward."""
    takeovers: tuple[Takeover, ...] = ()
    failures: tuple[Failure, ...] = ()
    """The first of each component; one that was only taken back because of another has none."""
    closed_at: datetime | None = None
    entries: tuple[JournalEntry, ...] = ()

    def entry(self, component: str, kind: str) -> JournalEntry | None:
        """Return the entry of one change, or None when the plan has none."""
        return next((e for e in self.entries if (e.component, e.kind) == (component, kind)), None)

    def entries_of(self, component: str) -> list[JournalEntry]:
        """Return a component's entries in the order of their changes."""
        return [entry for entry in self.entries if entry.component == component]

    def begun(self) -> list[str]:
        """Return the components that may have been changed, in the order of the changes."""
        return list(dict.fromkeys(entry.component for entry in self.entries if entry.step in BEGUN))

    def was_open_since(self, moment: datetime) -> bool:
        """Return whether the operation was under way at a moment, or at any time after it."""
        return self.state == "open" or (self.closed_at is not None and self.closed_at >= moment)

    def to_roll_back(self) -> list[str]:
        """Return the components that a rollback concerns, in reverse order. What was not begun is not in it."""
        return list(reversed(self.begun()))

    def progress(self) -> str:
        """Return how far each change is, in one line."""
        return ", ".join(f"{entry.component} {entry.kind} is {entry.step}" for entry in self.entries)

    def behind(self) -> list[str]:
        """Return the components that may fail and stay as they were while the others go on.

        Each has failed and is back, or was left out because of one that it needs. None once the whole goes back.
        """
        if self.turned_back_at is not None:
            return []
        stays = {entry.component for entry in self.entries if entry.criticality == "must"}
        stays |= {entry.component for entry in self.entries if entry.step not in ("rolled-back", "left-out")}
        return [name for name in self.workloads() if name not in stays]

    def changed(self) -> list[str]:
        """Return the components that are, or are to become, new: all but those that stay behind."""
        behind = self.behind()
        return [name for name in self.workloads() if name not in behind]

    def gone_back(self) -> list[str]:
        """Return the components that went back with the whole, not one that had gone back alone before."""
        turned_at = self.turned_back_at
        return list(
            dict.fromkeys(
                entry.component
                for entry in self.entries
                if entry.step == "rolled-back" and (turned_at is None or entry.at["rolled-back"] >= turned_at)
            )
        )

    def failure_of(self, component: str) -> Failure | None:
        """Return why a component can't stay changed; None when it has not failed itself."""
        return next((failure for failure in self.failures if failure.component == component), None)

    def complete(self) -> bool:
        """Return whether every intended change is verified, but for those that stay behind; never without any."""
        changed = self.changed()
        return bool(changed) and all(entry.step == "verified" for entry in self.entries if entry.component in changed)

    def workloads(self) -> dict[str, Workload]:
        """Return the object of each component in scope."""
        return {entry.component: entry.workload for entry in self.entries}

    def owned(self, token: int) -> Journal:
        """Return the journal; the guard of a write by the holder of a token.

        :raises PermanentError: ``lease-lost`` when the journal is another holder's.
        """
        if self.fencing_token != token:
            raise lost(f"the journal {self.operation_id}", f"token {self.fencing_token}", token)
        return self

    def fenced(self, token: int) -> Journal:
        """Return the journal in the hands of a newer holder.

        :raises PermanentError: ``lease-lost`` when a still newer one has it.
        """
        if self.fencing_token is not None and self.fencing_token > token:
            raise lost(f"the journal {self.operation_id}", f"token {self.fencing_token}", token)
        return self.model_copy(update={"fencing_token": token})

    def turned_back(self, at: datetime) -> Journal:
        """Return the journal on its way back; the first moment counts."""
        return self if self.turned_back_at else self.model_copy(update={"turned_back_at": at})

    def seen_good(self, at: datetime) -> Journal:
        """Return the journal with everything together seen to be good; the first moment counts."""
        return self if self.verified_at else self.model_copy(update={"verified_at": at})

    def failed(self, failure: Failure) -> Journal:
        """Return the journal with a component's failure; the first of each counts."""
        if self.failure_of(failure.component):
            return self
        return self.model_copy(update={"failures": (*self.failures, failure)})

    def given_up(self, component: str, at: datetime) -> Journal:
        """Return the journal without what is still planned of a component, and of those that need it."""
        left_out = {entry.component for entry in self.entries if component in (entry.component, *entry.needs)}
        return self.model_copy(
            update={
                "entries": tuple(
                    entry.model_copy(update={"step": "left-out", "at": {**entry.at, "left-out": at}})
                    if entry.component in left_out and entry.step == "planned"
                    else entry
                    for entry in self.entries
                )
            }
        )

    def taken_over(self, takeover: Takeover) -> Journal:
        """Return the journal with the record of a recovery: the first one and the last, as a ConfigMap holds 1 MiB."""
        first, later = self.takeovers[:1], (*self.takeovers[1:], takeover)
        return self.model_copy(update={"takeovers": (*first, *later[-TAKEOVERS_KEPT:])})

    def reopened(self, at: datetime) -> Journal:
        """Return a closed journal opened for the way back."""
        changes = {"state": "open", "outcome": None, "closed_at": None}
        return self.model_copy(update=changes).turned_back(at)

    def moved(self, component: str, kind: str | None, step: Step, at: datetime) -> Journal:
        """Return the journal with entries at another step; ``kind`` None means all begun entries of the component."""
        return self.model_copy(
            update={
                "entries": tuple(
                    entry.model_copy(update={"step": step, "at": {**entry.at, step: entry.at.get(step, at)}})
                    if entry.component == component and (entry.kind == kind or (kind is None and entry.step in BEGUN))
                    else entry
                    for entry in self.entries
                )
            }
        )

    def closed(self, outcome: Outcome, at: datetime) -> Journal:
        """Return the journal closed; one that is closed already stays as it is."""
        if self.state == "closed":
            return self
        return self.model_copy(update={"state": "closed", "outcome": outcome, "closed_at": at})


def outcome_of(journal: Journal, verified: bool) -> Outcome | None:
    """Return the outcome that a journal's entries tell; None while something is left to do.

    :param verified: whether the last look at everything together went well.
    """
    steps = {entry.step for entry in journal.entries} - {"planned", "left-out"}
    if journal.complete():
        return ("partly-succeeded" if journal.behind() else "succeeded") if verified else None
    if not steps:
        return "nothing-changed"
    return "rolled-back" if steps == {"rolled-back"} else None


def operation_id(procedure: str, at: datetime, run_id: str) -> str:
    """Return the id of the operation of a run: a valid Kubernetes name of at most 52 characters.

    :param at: moment of the run that never changes, ``run_after`` of the DAG run.
    """
    stamp = at.astimezone(UTC).strftime("%Y%m%dt%H%M%S")
    suffix = f"{stamp}-{hashlib.sha256(run_id.encode()).hexdigest()[:6]}"
    name = procedure.lower().replace("_", "-")[: LONGEST_NAME - len(suffix) - 1].rstrip("-")
    return f"{name}-{suffix}"


def to_config_map(journal: Journal, namespace: str) -> dict[str, Any]:
    """Return the ConfigMap that holds a journal: a summary for kubectl, the entries as one JSON text each."""
    data = {
        "journal.json": json.dumps(journal.model_dump(mode="json", exclude={"entries"}), indent=2),
        "progress": "\n".join(f"{e.component} {e.kind}: {e.step}" for e in journal.entries),
    }
    for number, entry in enumerate(journal.entries):
        data[f"entry-{number:02d}.json"] = entry.model_dump_json()
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": journal.operation_id,
            "namespace": namespace,
            "labels": {**LABELS, STATE_LABEL: journal.state, f"{PREFIX}/procedure": journal.procedure},
        },
        "data": data,
    }


def is_of_system(config_map: Mapping[str, Any], system: str | None) -> bool:
    """Return whether a journal is one of a system's; one that can't be read counts, so that nobody overlooks it."""
    try:
        return system is None or json.loads(config_map["data"]["journal.json"])["system"] == system
    except (KeyError, TypeError, ValueError):
        return True


def from_config_map(config_map: Mapping[str, Any]) -> Journal:
    """Return the journal in a ConfigMap.

    :raises UnknownStateError: ``journal-unreadable`` when it is damaged or of another schema.
    """
    name = config_map["metadata"]["name"]
    data = config_map.get("data") or {}
    try:
        head = json.loads(data["journal.json"])
        entries = [json.loads(data[key]) for key in sorted(data) if key.startswith("entry-")]
        if head.get("schema_version") != SCHEMA_VERSION:
            raise ValueError(f"schema version {head.get('schema_version')}, expected {SCHEMA_VERSION}")
        return Journal.model_validate({**head, "entries": entries})
    except (KeyError, ValueError, ValidationError) as error:
        raise UnknownStateError(
            "journal-unreadable",
            f"the journal {name} can't be read: {str(error).splitlines()[0]}",
            context={"journal": name},
            hint="Nothing was changed by this step. Read the ConfigMap with kubectl and compare the objects by hand.",
        ) from error
