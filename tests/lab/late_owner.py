"""An owner of an operation that can be stopped between its last check and its write; a process of its own.

    python -m tests.lab.late_owner KUBECONFIG CONTEXT PROFILE DEPLOYMENT OPERATION [--fence-alone]

It takes the lease, writes its journal, stamps the Deployment, passes every check of a change, says ``checked``, waits for
a line, and sends its write. Then it says as JSON what became of it: ``{"sent": [[method, reference]], "error": text}``.
With ``--fence-alone`` the write does not test the version of the object, so that only the fence can refuse it.
"""

from __future__ import annotations

import copy
import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from nephoran_maintenance.domain.journal import Journal, JournalEntry, Workload
from nephoran_maintenance.domain.patches import record_before
from nephoran_maintenance.engine.fencing import stamp
from nephoran_maintenance.engine.rolling import Roller
from nephoran_maintenance.errors import MaintenanceError
from nephoran_maintenance.hooks.cluster import KubeconfigClusterHook
from nephoran_maintenance.hooks.journal_store import JournalStore
from nephoran_maintenance.hooks.lease_store import HeldLease, LeaseStore
from nephoran_maintenance.profile import Component, SystemProfile, WorkloadReference, load_profile

NAMESPACE, CONTAINER, MARK = "default", "nothing", "written-by"


class Watched(KubeconfigClusterHook):
    """Notes each patch of the spec that it sends, and what the API server says to it."""

    fence_alone = False

    def __init__(self, path: Path, context: str) -> None:
        super().__init__(path, context)
        self.sent: list[list[str]] = []

    def patch(self, kind: Any, name: str, namespace: str | None, body: Any, **options: Any) -> Any:
        if not any(operation["path"].startswith("/spec") for operation in body):
            return super().patch(kind, name, namespace, body, **options)
        if self.fence_alone:
            options["resource_version"] = None
        try:
            answer = super().patch(kind, name, namespace, body, **options)
        except MaintenanceError as error:
            self.sent.append([error.reference, error.message])
            raise
        self.sent.append(["accepted", ""])
        return answer


class StoppedLease(HeldLease):
    """Lets itself be stopped once, right after it was seen to be ours."""

    waited = False

    def keep(self) -> None:
        super().keep()
        if not StoppedLease.waited:
            StoppedLease.waited = True
            print("checked", flush=True)
            sys.stdin.readline()


def marked(before: dict[str, Any], by: str) -> dict[str, Any]:
    """Return the recorded state with a mark in its template."""
    after = copy.deepcopy(before)
    after["template"]["metadata"]["annotations"] = {MARK: by}
    return after


def roller(cluster: KubeconfigClusterHook, profile: SystemProfile, workload: Workload, lease: HeldLease) -> Roller:
    reference = WorkloadReference(kind=workload.kind, name=workload.name, namespace=workload.namespace)
    component = Component(name=workload.name, workload=reference, container=CONTAINER)
    return Roller(cluster, profile, component, workload, lease)


def main() -> None:
    path, context, profile_path, name, operation, *options = sys.argv[1:]
    profile = load_profile(Path(profile_path))
    cluster = Watched(Path(path), context)
    cluster.fence_alone = "--fence-alone" in options
    store = JournalStore(cluster, profile.namespaces.maintenance, profile.metadata.name)
    lease = LeaseStore(cluster, profile).take(operation, "rolling_upgrade", store.open_operations)
    workload = Workload(kind="Deployment", namespace=NAMESPACE, name=name)
    before = record_before({**cluster.get("Deployment", name, NAMESPACE), "kind": "Deployment"}, CONTAINER)
    entry = JournalEntry(
        component=name, kind="image", workload=workload, before=before, intended=marked(before, operation)
    )
    journal = store.create(
        Journal(
            operation_id=operation,
            procedure="rolling_upgrade",
            run_id=operation,
            system=profile.metadata.name,
            plan_hash="0" * 64,
            started_at=datetime.now(UTC),
            fencing_token=lease.token,
            entries=(entry,),
        )
    )
    stamp(cluster, journal, lease)
    error = ""
    try:
        stopped = StoppedLease(lease.store, lease.holder, lease.token)
        roller(cluster, profile, workload, stopped).put_in_place(entry.intended, lambda found: None)
    except MaintenanceError as refused:
        error = str(refused)
    print(json.dumps({"sent": cluster.sent, "error": error}), flush=True)


if __name__ == "__main__":
    main()
