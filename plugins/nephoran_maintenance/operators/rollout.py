"""The steps that bring one change of one component into the cluster, and that see it through."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from nephoran_maintenance.domain.journal import Journal, JournalEntry
from nephoran_maintenance.domain.patches import same_spec
from nephoran_maintenance.domain.recovery import is_on_its_way
from nephoran_maintenance.engine.live import check_digests, check_health, pod_runs, running_digests
from nephoran_maintenance.engine.rolling import Wait
from nephoran_maintenance.errors import PermanentError, UnknownStateError
from nephoran_maintenance.operators.base import finish_change_step, operation_of, refuse_closed
from nephoran_maintenance.operators.rolling import RollingOperator

if TYPE_CHECKING:
    from airflow.sdk import Context

    from nephoran_maintenance.hooks.cluster import ClusterHook
    from nephoran_maintenance.hooks.lease_store import HeldLease


class ChangeOperator(RollingOperator):
    """What applying a change and waiting for it share: the journal's entry of this component and kind.

    :param change_kind: ``policy`` or ``image``.
    """

    def __init__(self, *, change_kind: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.change_kind = change_kind

    def blamed(self, error: PermanentError) -> Sequence[str]:
        return [self.component]

    def entry(self, journal: Journal) -> JournalEntry:
        """Return this step's entry.

        :raises PermanentError: ``operation-closed``, ``change-not-planned``.
        """
        entry = journal.entry(self.component, self.change_kind)
        refuse_closed(journal)
        if entry is None:
            raise PermanentError(
                "change-not-planned",
                f"operation {journal.operation_id} plans no {self.change_kind} change of {self.component}",
                hint="Trigger a new run with this component.",
            )
        if entry.step in ("rolling-back", "rolled-back", "left-out"):
            raise PermanentError(
                "operation-closed",
                f"operation {journal.operation_id} is on its way back: {self.component} is {entry.step}",
                hint="Let the rollback end, then trigger a new run instead of clearing this one.",
            )
        if journal.turned_back_at is not None:
            raise PermanentError(
                "operation-closed",
                f"operation {journal.operation_id} is on its way back since {journal.turned_back_at.isoformat()}",
                hint="Let the rollback end, then trigger a new run instead of clearing this one.",
            )
        return entry

    def opened(self, context: Context, cluster: ClusterHook) -> tuple[JournalEntry, HeldLease]:
        """Return this step's entry, and the lease that its writes are fenced by."""
        journal = self.journals(cluster).read(operation_of(context))
        return self.entry(journal), self.held_lease(context, cluster, journal)


class ApplyChangeOperator(ChangeOperator):
    """Change one component: a Deployment or DaemonSet by one patch, a StatefulSet one ordinal after the other.

    The intent is in the journal before anything is changed, and the object is compared first: only one that is as it
    was recorded (or already as intended) is touched. Safe to repeat: yes, it goes on from what is there.
    """

    def act(self, context: Context) -> dict[str, Any]:
        cluster = self.cluster()
        entry, lease = self.opened(context, cluster)
        self.check_switches(cluster, forward=True)
        self.check_known(self.roller(cluster, entry, lease).workload(), entry)
        journal = self.journals(cluster).update(
            operation_of(context),
            lambda journal: (
                journal
                if self.entry(journal).step in ("applied", "verified")
                else journal.moved(self.component, self.change_kind, "intended", datetime.now(UTC))
            ),
            token=lease.token,
        )
        return self.go_on(context, cluster, self.entry(journal), lease)

    def resume(self, context: Context, event: dict[str, Any]) -> dict[str, Any]:
        cluster = self.cluster()
        entry, lease = self.opened(context, cluster)
        self.check_switches(cluster, forward=True)
        self.check_event(self.roller(cluster, entry, lease), event, entry.intended["container"])
        return self.go_on(context, cluster, entry, lease)

    def go_on(self, context: Context, cluster: ClusterHook, entry: JournalEntry, lease: HeldLease) -> dict[str, Any]:
        roller = self.roller(cluster, entry, lease)

        def check_known(workload: dict[str, Any]) -> None:
            self.check_known(workload, entry)

        if entry.workload.kind == "StatefulSet":
            found = roller.roll(entry.intended, entry.at["intended"], check_known)
            if isinstance(found, Wait):
                self.wait_for(found)
        else:
            roller.put_in_place(entry.intended, check_known)
        self.journals(cluster).update(
            operation_of(context),
            lambda journal: (
                journal.moved(self.component, self.change_kind, "applied", datetime.now(UTC))
                if self.entry(journal).step == "intended"
                else journal
            ),
            token=lease.token,
        )
        return {"component": self.component, "change": self.change_kind, "image": entry.intended["image"]}

    def check_known(self, workload: dict[str, Any], entry: JournalEntry) -> None:
        """:raises UnknownStateError: ``object-changed-by-others`` when it is neither as recorded nor as intended."""
        if same_spec(workload, entry.before) or is_on_its_way(workload, entry.intended):
            return
        raise UnknownStateError(
            "object-changed-by-others",
            f"{self.component}: {entry.workload.kind}/{entry.workload.name} is neither as it was recorded before the "
            "change nor as intended",
            context={"component": self.component},
            hint="Find out who changed it (kubectl get -o yaml --show-managed-fields); nothing was changed by this step.",
        )


class WaitForChangeOperator(ChangeOperator):
    """Wait until the change is rolled out, then ask every pod for its health; holds no worker while waiting.

    Returns ``{"component", "change", "ready", "desired", "health", "restarts", "digests", "seconds"}``. Marks the entry
    as verified. Safe to repeat: yes, it only reads and writes the journal.
    """

    def act(self, context: Context) -> Any:
        cluster = self.cluster()
        return self.see_through(context, cluster, *self.opened(context, cluster))

    def resume(self, context: Context, event: dict[str, Any]) -> Any:
        cluster = self.cluster()
        entry, lease = self.opened(context, cluster)
        self.check_event(self.roller(cluster, entry, lease), event, entry.intended["container"])
        return self.see_through(context, cluster, entry, lease)

    def see_through(self, context: Context, cluster: ClusterHook, entry: JournalEntry, lease: HeldLease) -> Any:
        roller = self.roller(cluster, entry, lease)
        workload = roller.workload()
        if not same_spec(workload, entry.intended):
            raise UnknownStateError(
                "object-changed-by-others",
                f"{self.component}: {entry.workload.kind}/{entry.workload.name} is not as it was intended",
                context={"component": self.component},
                hint="Somebody changed it during the rollout; look at its managed fields.",
            )
        wait = roller.rolled_out(workload, entry.intended, entry.at["intended"])
        if wait is not None:
            self.wait_for(wait)
        pods = [
            pod
            for pod in cluster.pods_of(workload)
            if pod_runs(pod, entry.intended["container"], entry.intended["image"])
        ]
        measured = check_health(cluster, workload, pods, self.described, entry.intended["container"])
        digests = running_digests(pods, entry.intended["container"])
        check_digests(self.component, digests, entry.digest)
        journal = self.journals(cluster).update(
            operation_of(context),
            lambda journal: journal.moved(self.component, self.change_kind, "verified", datetime.now(UTC)),
            token=lease.token,
        )
        result = {
            "component": self.component,
            "change": self.change_kind,
            **measured,
            "digests": digests,
            "seconds": self.entry(journal).seconds(),
        }
        return finish_change_step(context, journal, self.profile, self.task_id, result)
