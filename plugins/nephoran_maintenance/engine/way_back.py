"""The way back of one component: its recorded template and strategy return, and are verified."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from nephoran_maintenance.domain.journal import Journal
from nephoran_maintenance.domain.recovery import is_known
from nephoran_maintenance.engine.live import check_health, pod_runs
from nephoran_maintenance.engine.rolling import Roller, Wait
from nephoran_maintenance.errors import UnknownStateError
from nephoran_maintenance.hooks.journal_store import JournalStore


def begin_way_back(roller: Roller, store: JournalStore, journal: Journal) -> Journal:
    """Write into the journal that the component goes back, after a look that it may; return the journal.

    :raises UnknownStateError: ``object-changed-by-others``; then nothing was written.
    """
    component, now = roller.component.name, datetime.now(UTC)
    check_known(roller.workload(), journal, component)
    return store.update(
        journal.operation_id,
        lambda found: found.moved(component, None, "rolling-back", now),
        token=roller.lease.token,
    )


def take_back(roller: Roller, store: JournalStore, journal: Journal) -> Wait | dict[str, Any]:
    """Take the component back as far as that goes now; return what to wait for, or what was measured at the end.

    The result: ``{"component", "result", "seconds", "ready", "desired", "health", "restarts"}``. Safe to repeat: yes,
    it goes on from what is there.
    """
    component = roller.component.name
    begun = [entry for entry in journal.entries_of(component) if entry.step == "rolling-back"]
    before, since = begun[0].before, min(entry.at["rolling-back"] for entry in begun)
    found = roller.roll(before, since, lambda workload: check_known(workload, journal, component))
    if isinstance(found, Wait):
        return found
    pods = [pod for pod in roller.cluster.pods_of(found) if pod_runs(pod, before["container"], before["image"])]
    measured = check_health(roller.cluster, found, pods, roller.component, before["container"])
    now = datetime.now(UTC)
    store.update(
        journal.operation_id,
        lambda found: found.moved(component, None, "rolled-back", now),
        token=roller.lease.token,
    )
    return {
        "component": component,
        "result": "back on its recorded template, verified",
        "seconds": round((now - since).total_seconds(), 1),
        **measured,
    }


def check_known(workload: dict[str, Any], journal: Journal, component: str) -> None:
    """:raises UnknownStateError: ``object-changed-by-others`` when the object is in no state of this operation."""
    entries = journal.entries_of(component)
    if is_known(workload, entries):
        return
    raise UnknownStateError(
        "object-changed-by-others",
        f"{component}: {entries[0].workload.kind}/{entries[0].workload.name} is in no state that this "
        "operation has recorded or intended; it is left alone",
        context={"component": component, "journal": journal.operation_id},
        hint="Page the person who changed it. The recorded state is in the journal's ConfigMap.",
    )
