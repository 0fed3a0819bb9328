"""The frame of every operation: take the lease before the first change, renew it beside the chain, give it back."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from airflow.sdk.exceptions import AirflowSkipException

from nephoran_maintenance.domain.step_ids import ACQUIRE_LEASE
from nephoran_maintenance.engine.fencing import stamp
from nephoran_maintenance.errors import MaintenanceError, PermanentError, TransientError
from nephoran_maintenance.operators.base import (
    NEVER_RAN,
    StepOperator,
    journal_of,
    operation_of,
    refuse_closed,
    states_of,
)

if TYPE_CHECKING:
    from airflow.sdk import Context

    from nephoran_maintenance.hooks.journal_store import JournalStore
    from nephoran_maintenance.hooks.lease_store import HeldLease, LeaseStore

LONGEST_HOLD = timedelta(hours=48)
"""Longer than any operation with its backup, which alone may take 24 h. A run that still lives then is renewed for as
long once more: only its end, not a clock, says when renewing ends."""
LONGEST_WAIT = timedelta(hours=2)
"""How long a run with ``if_busy = wait`` waits for another operation; its plan is checked again afterwards."""
LONGEST_WAIT_OF_A_BACKUP = timedelta(hours=1)
"""Then a scheduled backup is made all the same, and says which operation was under way."""


class AcquireLeaseOperator(StepOperator):
    """Take the lease on the system; from here on one operation owns it.

    Leaves the Lease named after the system with this operation as its holder, and a token that every write is fenced
    by. While somebody else has it the step fails with the owner's name, or waits without a worker when the run's
    parameter ``if_busy`` is ``wait``. Returns ``{"lease", "token"}``. Safe to repeat: yes, its own lease gets a new token.
    """

    def act(self, context: Context) -> dict[str, Any]:
        try:
            return self.take(context)
        except PermanentError as error:
            if error.reference not in ("lease-held", "operation-abandoned"):
                raise
            if context["params"].get("if_busy") != "wait":
                raise
            self.log.info("Waiting: %s", error.message)
        defer_until_free(self, context, LONGEST_WAIT)
        return {}

    def resume(self, context: Context, event: dict[str, Any]) -> dict[str, Any]:
        if event["state"] != "complete":
            raise PermanentError(
                "lease-held",
                f"the system did not become free in {LONGEST_WAIT}: {event['waits_for'] or event['message']}",
                hint="Nothing was changed. Find out what that operation waits for, then trigger this one again.",
            )
        return self.act(context)

    def take(self, context: Context) -> dict[str, Any]:
        cluster = self.cluster()
        store, operation = self.journals(cluster), operation_of(context)
        journal = store.find(operation)
        refuse_closed(journal)
        leases = self.leases(cluster)
        lease = leases.take(operation, self.dag_id, store.open_operations)
        if set(store.open_operations()) - {operation}:
            # Somebody began and was gone again between our look and our write.
            leases.release(operation)
            raise self.overtaken()
        if journal is not None:
            self.fence_again(context, lease)
        self.log.info("Lease %s with token %d", leases.name, lease.token)
        return {"lease": leases.name, "token": lease.token}

    def overtaken(self) -> PermanentError:
        return PermanentError(
            "operation-abandoned",
            "another operation was left open while this one took the lease",
            hint="recover_operation takes it up within two minutes; then trigger this run again.",
        )

    def fence_again(self, context: Context, lease: HeldLease) -> None:
        """Bring a journal that this run has already written, and its objects, under the new token."""
        store = self.journals(lease.store.cluster)
        journal = store.update(operation_of(context), lambda found: found.fenced(lease.token))
        stamp(lease.store.cluster, journal, lease)


def defer_until_free(step: StepOperator, context: Context, longest: timedelta) -> None:
    """Wait without a worker until the system is free, then go on with the step's ``resume``."""
    from nephoran_maintenance.triggers.lease import FreeLeaseTrigger

    leases = step.leases(step.cluster())
    step.defer(
        trigger=FreeLeaseTrigger(
            connection_id=step.kubernetes_connection_id,
            namespace=leases.namespace,
            name=leases.name,
            holder=operation_of(context),
            deadline_at=(datetime.now(UTC) + longest).isoformat(),
        ),
        method_name="resume_step",
        timeout=longest + timedelta(minutes=5),
    )


class WaitOperationOperator(StepOperator):
    """Let a running operation end before a scheduled backup begins, for an hour at most; holds no worker.

    Returns the operation that is still under way, None when there is none. A run by hand does not wait. Takes no lease: a
    backup changes nothing. Safe to repeat: yes.
    """

    def act(self, context: Context) -> str | None:
        other = self.other_operation(context)
        if other is not None and context["dag_run"].run_type.value == "scheduled":
            self.log.info("Waiting for %s to end", other)
            defer_until_free(self, context, LONGEST_WAIT_OF_A_BACKUP)
        return other

    def resume(self, context: Context, event: dict[str, Any]) -> str | None:
        other = self.other_operation(context)
        self.log.info("%s: %s", event["state"], other or "no operation is under way")
        return other


class HoldLeaseOperator(StepOperator):
    """Renew the lease for as long as the run lives, also while its steps are deferred; holds no worker.

    Safe to repeat: yes, it changes nothing but the time of the last renewal.
    """

    def act(self, context: Context) -> None:
        from nephoran_maintenance.triggers.lease import HoldLeaseTrigger

        leases, operation = self.leases(self.cluster()), operation_of(context)
        lease, _ = leases.look()
        if lease is None or lease.holder is None:
            return  # the run is over: a try that was late
        leases.hold(operation)
        self.defer(
            trigger=HoldLeaseTrigger(
                connection_id=self.kubernetes_connection_id,
                namespace=leases.namespace,
                name=leases.name,
                holder=operation,
                dag_id=self.dag_id,
                run_id=context["run_id"],
                renew_seconds=leases.settings.renew_seconds,
                duration_seconds=leases.settings.duration_seconds,
                deadline_at=(datetime.now(UTC) + LONGEST_HOLD).isoformat(),
            ),
            method_name="resume_step",
            timeout=LONGEST_HOLD + timedelta(minutes=5),
        )

    def resume(self, context: Context, event: dict[str, Any]) -> None:
        if event["state"] == "complete":
            return
        if event["state"] == "lost":
            raise PermanentError(
                "lease-lost",
                f"this operation no longer owns the system: {event['message']}",
                context={"operation": operation_of(context)},
                hint="Its further writes are refused. Read the report of the recovery that took it over.",
            )
        if event["state"] == "timeout":
            self.act(context)
            return
        # Tried again: the next try takes the lease up where it is, unless somebody else has it by then.
        raise TransientError(
            "lease-not-renewed",
            f"the lease can't be renewed any more: {event['message']}",
            context={"operation": operation_of(context)},
            hint=event.get("hint") or "Look at the triggerer's log.",
        )


class ReleaseLeaseOperator(StepOperator):
    """Give the lease back, but only when nothing is left to do: the journal is closed, or there is none.

    With an open journal the lease is let go instead, so that a recovery takes it over at once, and the step fails: the
    run must not look as if it had ended well. Also deletes the oldest closed journals beyond the profile's number.
    Safe to repeat: yes.
    """

    def act(self, context: Context) -> str:
        cluster = self.cluster()
        store, operation, leases = self.journals(cluster), operation_of(context), self.leases(cluster)
        if states_of(context).get(ACQUIRE_LEASE) in NEVER_RAN:
            return self.give_back_what_a_recovery_left(operation, leases, store)
        journal = journal_of(context, store)
        if journal is not None and journal.state == "open":
            leases.let_go(operation)
            raise PermanentError(
                "operation-open",
                f"operation {operation} is neither finished nor undone: {journal.progress()}",
                context={"operation": operation},
                hint="recover_operation takes it up within two minutes; its report says what was done, or what a person "
                "must look at.",
            )
        released = leases.release(operation)
        gone = store.prune(self.profile.journals.keep_closed)
        if gone:
            self.log.info("Deleted the oldest closed journals: %s", ", ".join(gone))
        return "released" if released else "was not held any more"

    def give_back_what_a_recovery_left(self, operation: str, leases: LeaseStore, store: JournalStore) -> str:
        """Give back the lease that this run took only to recover others, and kept because its worker died over it.

        Let go while something is still open: then the next recovery takes it over at once.
        """
        try:
            open_operations = store.open_operations()
            given = leases.let_go(operation) if open_operations else leases.release(operation)
        except MaintenanceError as error:
            raise AirflowSkipException(f"the lease was never taken for a change: {error.message}") from error
        if not given:
            raise AirflowSkipException("the lease was never taken")
        return "let go" if open_operations else "released"
