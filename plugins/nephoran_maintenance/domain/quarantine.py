"""Whose fault a failure is, and the versions that are not tried again before a person says so. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from nephoran_maintenance.domain.findings import Finding
from nephoran_maintenance.domain.journal import Failure, Journal
from nephoran_maintenance.errors import PermanentError

OWN_FAILURES = frozenset(
    {
        "rollout-failed",
        "rollout-timeout",
        "pods-not-ready",
        "health-check-failed",
        "digest-differs",
        "weaviate-not-answering",
        "restarted-after-ready",
        "gate-closed",
        "gate-unknown",
    }
)
"""Errors that say something of the component itself, and nothing of the run, of Airflow or of the API server."""

OF_THE_VERSION = frozenset({"health-check-failed", "restarted-after-ready", "gate-closed"})
"""Those of them that only a version which runs can bring about: it was seen to be bad."""

CAUSES_OF_THE_VERSION = frozenset({"crash-loop", "failing-probe", "oom", "config-error"})
"""Causes of a failed rollout that lie in the version. A registry, a node, a volume or a quota is none of its doing."""

LONGEST_REASON = 300


class Quarantined(BaseModel):
    """A version of a component that was taken back because it was bad."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    component: str
    digest: str
    image: str
    since: datetime
    because: str
    operation: str

    def key(self) -> str:
        """Return the key in the ConfigMap."""
        return key_of(self.component, self.digest)

    def sentence(self) -> str:
        """Return since when and why, in one line."""
        return f"in quarantine since {self.since.isoformat(timespec='seconds')}, because {self.because}"


def key_of(component: str, digest: str) -> str:
    """Return the key of a version: a ConfigMap's keys have no colon."""
    return f"{component}.{digest.replace(':', '-')}"


def is_own_failure(reference: str) -> bool:
    """Return whether an error of a component's step means that the component itself has failed."""
    return reference in OWN_FAILURES


def is_of_the_version(failure: Failure) -> bool:
    """Return whether a failure shows that the version is bad."""
    if failure.reference == "rollout-failed":
        return failure.cause in CAUSES_OF_THE_VERSION
    return failure.reference in OF_THE_VERSION


def to_quarantine(journal: Journal) -> list[Quarantined]:
    """Return the versions that an operation has taken back because they were bad.

    Not those that went back only because another component failed, somebody aborted or something around them was away,
    and not those whose image was never changed.
    """
    found = []
    for failure in journal.failures:
        entry = journal.entry(failure.component, "image")
        if entry is None or entry.digest is None or entry.step != "rolled-back" or not is_of_the_version(failure):
            continue
        found.append(
            Quarantined(
                component=failure.component,
                digest=entry.digest,
                image=str(entry.intended["image"]),
                since=failure.at,
                because=failure.message[:LONGEST_REASON],
                operation=journal.operation_id,
            )
        )
    return found


def proven_keys(journal: Journal) -> list[str]:
    """Return the keys of the versions that an operation has seen to be good: those leave the quarantine."""
    if not journal.complete():
        return []
    return [
        key_of(entry.component, entry.digest) for entry in journal.entries if entry.digest and entry.step == "verified"
    ]


def to_data(versions: Iterable[Quarantined]) -> dict[str, str]:
    """Return the content of the ConfigMap: one JSON text per version."""
    return {version.key(): version.model_dump_json(indent=2) for version in versions}


def from_data(data: Mapping[str, Any]) -> dict[str, Quarantined]:
    """Return the versions in a ConfigMap by key.

    :raises PermanentError: ``quarantine-unreadable``: what can't be read may bar what is asked for.
    """
    found = {}
    for key, text in data.items():
        try:
            found[key] = Quarantined.model_validate(json.loads(text))
        except (ValueError, ValidationError) as error:
            raise PermanentError(
                "quarantine-unreadable",
                f"the entry {key} of the quarantine can't be read: {str(error).splitlines()[0]}",
                hint="Correct or delete this key of the ConfigMap with kubectl.",
            ) from error
    return found


def check_quarantine(
    versions: Mapping[str, Quarantined], component: str, digest: str | None, *, released: bool
) -> Finding | None:
    """Return what the quarantine says of a version that is asked for; None when it is not in it.

    :param released: whether a person asks for this component in spite of it.
    """
    version = versions.get(key_of(component, digest)) if digest else None
    if version is None:
        return None
    return Finding(
        "images",
        "warn" if released else "block",
        f"{component} ({version.image})",
        version.sentence() + ("; a person has released it for this run" if released else ""),
        "a version that has not failed here",
        ""
        if released
        else f"Take another version; or, if it is to be tried again, name {component} in "
        "release_quarantine of a run by hand.",
    )
