"""Finish or undo an operation whose owner is gone, from its journal and the live objects alone.

Works with Airflow and without; nothing here waits. :meth:`Recovery.go_on` is called again after each wait, by whoever
lives: it looks at what is there and goes on from that.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from logging import getLogger
from typing import Any

from nephoran_maintenance.domain.intents import served_kinds, test_intent_name
from nephoran_maintenance.domain.journal import STANDING, Failure, Journal, JournalEntry, Takeover, outcome_of
from nephoran_maintenance.domain.lease import Lease
from nephoran_maintenance.domain.moments import moment
from nephoran_maintenance.domain.recovery import Condition, Judgement, condition_of, judge
from nephoran_maintenance.engine.fencing import close, stamp
from nephoran_maintenance.engine.live import check_digests, check_health, pod_runs, running_digests
from nephoran_maintenance.engine.rolling import AbsenceWait, Roller, Wait
from nephoran_maintenance.engine.way_back import begin_way_back, take_back
from nephoran_maintenance.errors import PermanentError, UnknownStateError
from nephoran_maintenance.hooks.cluster import ClusterHook
from nephoran_maintenance.hooks.journal_store import JournalStore
from nephoran_maintenance.hooks.kubernetes_rest import Resource
from nephoran_maintenance.hooks.lease_store import HeldLease, LeaseStore
from nephoran_maintenance.hooks.switches import check_switches
from nephoran_maintenance.profile import Component, SystemProfile, WorkloadReference

NOT_GOOD = frozenset({"rollout-failed", "health-check-failed", "digest-differs", "pods-not-ready"})
"""What was verified once and is no longer so: then an operation is undone instead of finished."""
NOT_OURS = frozenset({"lease-lost", "lease-held"})


@dataclass(frozen=True)
class Found:
    """An operation that a recovery has looked at, and what is to be done with it."""

    journal: Journal
    conditions: dict[str, Condition]
    judgement: Judgement

    def to_dict(self) -> dict[str, Any]:
        """Return the facts as plain data: ``operation``, ``procedure``, ``decision``, ``reason``, ``found``."""
        return {
            "operation": self.journal.operation_id,
            "procedure": self.journal.procedure,
            "decision": self.judgement.decision,
            "reason": self.judgement.reason,
            "found": dict(self.conditions),
        }


@dataclass(frozen=True)
class Unreadable:
    """An operation whose journal can't be read: damaged, or written by a newer release. A person looks."""

    error: UnknownStateError

    def to_dict(self) -> dict[str, Any]:
        """Return the facts with the keys of :meth:`Found.to_dict`."""
        return {
            "operation": str(self.error.context["journal"]),
            "procedure": "unknown procedure",
            "decision": "stop",
            "reason": self.error.message,
            "found": {},
        }


class Recovery:
    """Recovers operations in the name of ``me``.

    :param me: operation id of the recovery; becomes the holder of the lease while it acts.
    :param procedure: what ``kubectl get lease`` shows.
    :param back: undo, also what could be finished or is closed; a person wants it.
    :param weaviate_key: see :class:`~nephoran_maintenance.engine.rolling.Roller`.
    """

    def __init__(
        self,
        cluster: ClusterHook,
        profile: SystemProfile,
        me: str,
        procedure: str,
        *,
        back: bool = False,
        weaviate_key: str | None = None,
        log: Any = None,
    ) -> None:
        self.cluster = cluster
        self.profile = profile
        self.me = me
        self.procedure = procedure
        self.back = back
        self.weaviate_key = weaviate_key
        self.log = log or getLogger(__name__)
        self.store = JournalStore(cluster, profile.namespaces.maintenance, profile.metadata.name)
        self.leases = LeaseStore(cluster, profile)

    # --------------------------------------------------------------------------------------------------------- looking

    def find(self, operation: str | None = None) -> list[Found | Unreadable]:
        """Return every operation that is open, oldest first, or the one that is asked for; writes nothing.

        Those whose journal can't be read come last: they keep nobody from recovering the others.

        :raises PermanentError: ``not-found`` when there is no such operation.
        :raises UnknownStateError: ``journal-unreadable``, of the one that is asked for.
        """
        journals, errors = ([self.store.read(operation)], []) if operation else self.store.read_all("open")
        lease, now = self.leases.look()
        found = [self._look(journal, lease, now) for journal in reversed(journals)]
        return [*found, *(Unreadable(error) for error in errors)]

    def done(self) -> list[dict[str, Any]]:
        """Return what this very recovery has closed already, as :meth:`Found.to_dict` does: an earlier try of it died."""
        closed = [journal for journal in self.store.read_all("closed")[0] if journal.takeovers]
        return [
            {
                "operation": journal.operation_id,
                "procedure": journal.procedure,
                "decision": journal.takeovers[-1].decision,
                "reason": journal.takeovers[-1].reason,
                "found": journal.takeovers[-1].found,
            }
            for journal in closed
            if journal.takeovers[-1].by == self.me
        ]

    def _look(self, journal: Journal, lease: Lease | None, now: datetime | None) -> Found:
        conditions = {
            name: condition_of(self._live(journal.entries_of(name)[0]), journal.entries_of(name))
            for name in journal.workloads()
        }
        return Found(journal, conditions, judge(journal, lease, conditions, me=self.me, now=now, back=self.back))

    def _live(self, entry: JournalEntry) -> dict[str, Any] | None:
        found = self.cluster.find(entry.workload.kind, entry.workload.name, entry.workload.namespace)
        return None if found is None else {**found, "kind": entry.workload.kind}

    # ---------------------------------------------------------------------------------------------------------- acting

    def go_on(self, operation: str) -> Wait | Journal:
        """Finish or undo an operation as far as that goes now; return what to wait for, or its closed journal.

        Takes the lease over, fences journal and objects, decides once more on what it then sees, acts, verifies, deletes
        left-over test intents, takes the fence away, closes the journal and releases the lease. A component that can't go
        back is an error at the end, after all others have gone back. Safe to repeat: yes.

        :raises PermanentError: ``lease-held`` when its owner lives; ``lease-lost`` when another recovery was faster.
        :raises UnknownStateError: ``object-changed-by-others``; then nothing was touched.
        """
        check_switches(self.cluster, self.profile.namespaces.maintenance, forward=False)
        journal = self.store.read(operation)
        if journal.state == "closed" and not (self.back and journal.outcome in STANDING):
            self._release_after(journal)
            return journal
        try:
            return self._go_on(journal)
        except PermanentError as error:
            if error.reference not in NOT_OURS:
                # Somebody else may try at once; this one has said what it could not do.
                self.leases.let_go(self.me)
            raise

    def release_abandoned(self) -> str | None:
        """Release the lease of an operation that died before its first change or after its last; return which it was.

        Nobody waits for its expiry then, and ``kubectl get lease`` names no operation that is over. Safe to repeat: yes.
        """
        lease, now = self.leases.look()
        if lease is None or now is None or not lease.abandoned(self.me, now) or self.store.open_operations():
            return None
        check_switches(self.cluster, self.profile.namespaces.maintenance, forward=False)
        return self.leases.release_abandoned(self.me)

    def _go_on(self, journal: Journal) -> Wait | Journal:
        lease, journal = self._take_over(journal)
        if journal.fencing_token != lease.token:
            self.leases.release(self.me)
            return journal
        stamp(self.cluster, journal, lease)
        journal = self._decide(journal, lease)
        if journal.takeovers[-1].decision == "finish":
            wait, journal = self._look_at_the_whole(journal, lease)
            if wait is not None:
                return wait
        failed: PermanentError | None = None
        for component in journal.to_roll_back() if journal.takeovers[-1].decision == "undo" else ():
            try:
                wait, journal = self._take_back(journal, component, lease)
            except PermanentError as error:
                if error.reference in NOT_OURS:
                    raise
                # As in the run's own rollback: one that can't go back keeps no other from it.
                self.log.error("%s can't go back, the others do: %s", component, error)
                failed = failed or error
                continue
            if wait is not None:
                return wait
        wait = self._delete_test_intents(journal)
        if wait is not None:
            return wait
        if failed is not None:
            raise failed
        return self._close(journal, lease)

    def _take_back(self, journal: Journal, component: str, lease: HeldLease) -> tuple[Wait | None, Journal]:
        """Take one component back as far as that goes now; return what to wait for, and the journal."""
        roller = self._roller(journal.entries_of(component)[0], lease)
        journal = begin_way_back(roller, self.store, journal)
        result = take_back(roller, self.store, journal)
        if isinstance(result, Wait):
            self._check_time(journal, component, result)
            return result, journal
        self.log.info("%s is %s", component, result["result"])
        return None, self.store.read(journal.operation_id)

    def _release_after(self, journal: Journal) -> None:
        """Release the lease that we took for an operation which we have closed, and died before we released it."""
        held, _ = self.leases.look()
        # With another token it is the one that we have taken for the next operation.
        if held is not None and held.holder == self.me and held.token == journal.fencing_token:
            self.leases.release(self.me)

    def _take_over(self, journal: Journal) -> tuple[HeldLease, Journal]:
        """Return the lease, taken over unless it is ours already, and the journal in our hands."""
        held, now = self.leases.look()
        if held is not None and held.holder == self.me and journal.fencing_token == held.token:
            return self.leases.hold(self.me), journal
        self._check_allowed(self._look(journal, held, now))
        others = set(self.store.open_operations()) - {journal.operation_id}
        if journal.state == "closed" and others:
            raise PermanentError(
                "operation-abandoned",
                f"operation {sorted(others)[0]} is open; it comes before one that is closed",
                hint="Let recover_operation take it up, then try again.",
            )
        lease = self.leases.take(self.me, self.procedure, above=journal.fencing_token)
        self.log.info("Took the lease over for %s, token %d", journal.operation_id, lease.token)
        now_here = datetime.now(UTC)

        def change(found: Journal) -> Journal:
            if found.state != journal.state:
                return found  # another recovery has closed it between our look and our taking the lease
            # Opened before the first stamp: whatever dies now leaves an open journal, which the next recovery finds.
            return (found.reopened(now_here) if found.state == "closed" else found).fenced(lease.token)

        return lease, self.store.update(journal.operation_id, change)

    @staticmethod
    def _check_allowed(found: Found) -> None:
        """:raises PermanentError: when the operation is to be left alone, or a person has to look."""
        journal, judgement = found.journal, found.judgement
        if judgement.decision == "stop":
            raise UnknownStateError(
                "object-changed-by-others",
                f"operation {journal.operation_id} can be neither finished nor undone: {judgement.reason}",
                context={"operation": journal.operation_id},
                hint="Page the person who changed it. Both states are in the journal's ConfigMap; put the object into one "
                "of them, and the next recovery goes on.",
            )
        if judgement.decision == "leave":
            raise PermanentError(
                "lease-held",
                f"operation {journal.operation_id} is left alone: {judgement.reason}",
                context={"operation": journal.operation_id},
                hint="To abort a running operation, mark its running step as failed.",
            )

    def _decide(self, journal: Journal, lease: HeldLease) -> Journal:
        """Return the journal with our decision in it, made on objects that nobody else can write to any more."""
        if journal.takeovers and (journal.takeovers[-1].by, journal.takeovers[-1].token) == (self.me, lease.token):
            return journal
        held, now = self.leases.look()
        found = self._look(journal, held, now)
        self._check_allowed(found)
        self.log.info("%s: %s, because %s", journal.operation_id, found.judgement.decision, found.judgement.reason)
        return self._record(journal, lease, found.judgement, found.conditions)

    def _record(
        self, journal: Journal, lease: HeldLease, judgement: Judgement, conditions: dict[str, Condition]
    ) -> Journal:
        now = datetime.now(UTC)
        takeover = Takeover(
            by=self.me,
            procedure=self.procedure,
            token=lease.token,
            at=now,
            decision="finish" if judgement.decision == "finish" else "undo",
            reason=judgement.reason,
            found={name: str(condition) for name, condition in conditions.items()},
        )

        def change(found: Journal) -> Journal:
            changed = found.taken_over(takeover)
            return changed if takeover.decision == "finish" else changed.turned_back(now)

        return self.store.update(journal.operation_id, change, token=lease.token)

    def _look_at_the_whole(self, journal: Journal, lease: HeldLease) -> tuple[Wait | None, Journal]:
        """Look once more at everything that was verified; what is no longer good turns the decision."""
        component = ""
        try:
            for component in journal.changed():
                entry = journal.entries_of(component)[-1]
                roller = self._roller(entry, lease)
                workload, container = roller.workload(), entry.intended["container"]
                wait = roller.rolled_out(workload, entry.intended, journal.takeovers[-1].at)
                if wait is not None:
                    self._check_time(journal, component, wait)
                    return wait, journal
                pods = self.cluster.pods_of(workload)
                own = [pod for pod in pods if pod_runs(pod, container, entry.intended["image"])]
                check_health(self.cluster, workload, own, roller.component, container)
                check_digests(component, running_digests(own, container), entry.digest)
        except PermanentError as error:
            if error.reference not in NOT_GOOD:
                raise
            message = error.message.splitlines()[0]
            failure = Failure(
                component=component,
                reference=error.reference,
                cause=error.context.get("cause"),
                message=message,
                at=datetime.now(UTC),
            )
            journal = self.store.update(journal.operation_id, lambda found: found.failed(failure), token=lease.token)
            reason = f"it was verified, but it is not good any more: {message}"
            return None, self._record(journal, lease, Judgement("undo", reason), self._conditions(journal))
        return None, journal

    def _conditions(self, journal: Journal) -> dict[str, Condition]:
        return self._look(journal, None, None).conditions

    def _check_time(self, journal: Journal, component: str, wait: Wait) -> None:
        """:raises PermanentError: ``rollout-timeout`` when a component takes longer than its pods may, one by one."""
        pods = int(journal.entries_of(component)[0].before.get("replicas") or 1)
        limit = self.profile.rollout.no_progress_limit * (pods + 1)
        since = max(
            journal.takeovers[-1].at,
            *(
                e.at.get("rolling-back", e.at.get("intended", journal.started_at))
                for e in journal.entries_of(component)
            ),
        )
        if datetime.now(UTC) - since > limit:
            raise PermanentError(
                "rollout-timeout",
                f"{component}: not rolled out after {limit}: {wait}",
                context={"operation": journal.operation_id},
                hint="See the pods' events. The next recovery goes on from what is there.",
            )

    def _delete_test_intents(self, journal: Journal) -> Wait | None:
        """Delete the operation's test intents; return what to wait for while their finalizers run."""
        intents, left = self.profile.intents, []
        name = test_intent_name(journal.operation_id)
        for kind in served_kinds(self.cluster.crds(), intents):
            resource = Resource(kind.group, kind.version, kind.plural, "NetworkIntent")
            found = self.cluster.find(resource, name, intents.test_namespace)
            if found is not None and not found["metadata"].get("deletionTimestamp"):
                self.cluster.delete(resource, name, intents.test_namespace)
                found = self.cluster.find(resource, name, intents.test_namespace)
            if found is not None:
                left.append((kind.reference(intents.test_namespace, name), found))
        for reference, found in left:
            asked_at = moment(found["metadata"].get("deletionTimestamp"))
            if asked_at is not None and (datetime.now(UTC) - asked_at).total_seconds() > intents.test_timeout_seconds:
                raise PermanentError(
                    "test-intent-left",
                    f"the test intent networkintents.{reference['group']}/{name} is still there "
                    f"{intents.test_timeout_seconds} s after its deletion: its finalizer has not run",
                    hint="Look at the operator: it takes the finalizer away after it has deleted the A1 policy.",
                )
        return AbsenceWait([reference for reference, _ in left]) if left else None

    def _close(self, journal: Journal, lease: HeldLease) -> Journal:
        """Close the operation after a last look: what went back must be exactly as it was recorded.

        :raises UnknownStateError: ``object-changed-by-others``.
        """
        finished = journal.takeovers[-1].decision == "finish"
        wanted = "intended" if finished else "before"
        conditions = self._conditions(journal)
        touched = journal.changed() if finished else journal.gone_back()
        outcome = outcome_of(journal, verified=True)
        other = sorted(name for name in touched if conditions[name] != wanted)
        if other or outcome is None:
            raise UnknownStateError(
                "object-changed-by-others",
                f"operation {journal.operation_id} can't be closed: {', '.join(other) or journal.progress()} is not as it "
                f"must be, expected {wanted}",
                context={"operation": journal.operation_id},
                hint="Somebody changed it during the recovery; look at its managed fields.",
            )
        lease.keep()
        closed = close(self.cluster, self.store, journal, outcome, lease.token)
        self.leases.release(self.me)
        self.store.prune(self.profile.journals.keep_closed)
        return closed

    def _roller(self, entry: JournalEntry, lease: HeldLease) -> Roller:
        component = described(self.profile, entry)
        return Roller(
            self.cluster,
            self.profile,
            component,
            entry.workload,
            lease,
            weaviate_key=self.weaviate_key,
            log=self.log,
        )


def described(profile: SystemProfile, entry: JournalEntry) -> Component:
    """Return how the profile describes a component; one that it no longer has is described by the journal alone."""
    known = next((component for component in profile.components if component.name == entry.component), None)
    if known is not None:
        return known
    workload = WorkloadReference(
        kind=entry.workload.kind,
        name=entry.workload.name,
        namespace=entry.workload.namespace,
    )
    return Component(name=entry.component, workload=workload, container=entry.before["container"])
