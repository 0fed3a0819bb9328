"""The functional test: NetworkIntents that go through the whole system, and are always taken away again."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from airflow.sdk.exceptions import AirflowSkipException

from nephoran_maintenance.domain.intents import IntentKind, phase_of, phase_verdict, sandbox_intent, served_kinds
from nephoran_maintenance.domain.step_ids import APPLY_TEST_INTENTS
from nephoran_maintenance.errors import MaintenanceError, PermanentError, TransientError
from nephoran_maintenance.operators.base import NEVER_RAN, StepOperator, operation_of, refuse_closed, states_of

if TYPE_CHECKING:
    from airflow.sdk import Context

    from nephoran_maintenance.hooks.cluster import ClusterHook
    from nephoran_maintenance.hooks.lease_store import HeldLease

DELETION_LIMIT = timedelta(seconds=120)
NOT_OURS = frozenset({"lease-lost", "operation-closed"})


class IntentOperator(StepOperator):
    """What the three steps share: which test intents this operation has."""

    def references(self, context: Context, cluster: ClusterHook) -> list[tuple[IntentKind, dict[str, Any]]]:
        """Return each served kind with its test intent for this operation."""
        intents, operation = self.profile.intents, operation_of(context)
        return [(kind, sandbox_intent(kind, intents, operation)) for kind in served_kinds(cluster.crds(), intents)]

    def addresses(self, context: Context, cluster: ClusterHook) -> list[dict[str, str]]:
        return [
            kind.reference(body["metadata"]["namespace"], body["metadata"]["name"])
            for kind, body in self.references(context, cluster)
        ]

    @staticmethod
    def find(cluster: ClusterHook, address: dict[str, str]) -> dict[str, Any] | None:
        from nephoran_maintenance.hooks.kubernetes_rest import Resource

        resource = Resource(address["group"], address["version"], address["plural"])
        return cluster.find(resource, address["name"], address["namespace"])

    def delete(self, cluster: ClusterHook, addresses: Sequence[dict[str, str]]) -> None:
        """Delete those test intents that are there."""
        from nephoran_maintenance.hooks.kubernetes_rest import Resource

        for address in addresses:
            if self.find(cluster, address) is None:
                continue
            resource = Resource(address["group"], address["version"], address["plural"])
            cluster.delete(resource, address["name"], address["namespace"])


class ApplyTestIntentsOperator(IntentOperator):
    """Create one NetworkIntent per served API group, in the sandbox.

    Only while the operation is open, goes forward and is ours. What is new has no fence that its creation could test, so
    the lease is looked at once more afterwards: whoever took the operation over between our check and our write has
    looked for left-over intents already, and ours is taken away again. Safe to repeat: yes, the name is the operation's.
    """

    def act(self, context: Context) -> list[dict[str, str]]:
        cluster = self.cluster()
        try:
            lease = self.opened(context, cluster)
            self.check_switches(cluster, forward=True)
            created = self.create(context, cluster, lease)
            lease.keep()
        except PermanentError as error:
            if error.reference in NOT_OURS:
                self.take_away(context, cluster)
            raise
        if not created:
            raise PermanentError(
                "no-intent-kind",
                "the cluster serves no kind of NetworkIntent, so the system can't be tested",
                hint="Install the CRDs, or correct intents.groups in the profile.",
            )
        return created

    def opened(self, context: Context, cluster: ClusterHook) -> HeldLease:
        """Return the lease in our hands.

        :raises PermanentError: ``operation-closed``, ``lease-lost``.
        """
        journal = self.journals(cluster).read(operation_of(context))
        refuse_closed(journal)
        if journal.turned_back_at is not None:
            raise PermanentError(
                "operation-closed",
                f"operation {journal.operation_id} is on its way back since {journal.turned_back_at.isoformat()}",
                hint="Let the rollback end, then trigger a new run instead of clearing this one.",
            )
        return self.held_lease(context, cluster, journal)

    def create(self, context: Context, cluster: ClusterHook, lease: HeldLease) -> list[dict[str, str]]:
        from nephoran_maintenance.hooks.kubernetes_rest import Resource

        created = []
        for kind, body in self.references(context, cluster):
            resource = Resource(kind.group, kind.version, kind.plural, "NetworkIntent")
            namespace, name = body["metadata"]["namespace"], body["metadata"]["name"]
            if cluster.find(resource, name, namespace) is None:
                lease.keep()
                cluster.create(body, kind=resource)
            created.append(kind.reference(namespace, name))
            self.log.info("Created networkintents.%s/%s in %s", kind.group, name, namespace)
        return created

    def take_away(self, context: Context, cluster: ClusterHook) -> None:
        """Delete what this step has created of an operation that is not ours any more, best effort."""
        try:
            self.delete(cluster, self.addresses(context, cluster))
        except MaintenanceError as error:
            self.log.warning("Test intents may be left: %s", error)


class WaitForTestIntentsOperator(IntentOperator):
    """Wait until every test intent has reached a phase that the profile calls a success; holds no worker.

    Returns ``[{"object", "phase", "seconds"}]``; leaves the same in the XCom ``functional_test`` when it fails.
    """

    def act(self, context: Context) -> list[dict[str, Any]]:
        from nephoran_maintenance.triggers.condition import IntentTrigger

        intents, cluster = self.profile.intents, self.cluster()
        addresses = self.addresses(context, cluster)
        seen = [{**address, "phase": phase_of(self.find(cluster, address) or {})} for address in addresses]
        if all(phase_verdict(item["phase"], intents) == "success" for item in seen):
            return self.rows(seen, 0.0)
        limit = timedelta(seconds=intents.test_timeout_seconds)
        self.defer(
            trigger=IntentTrigger(
                connection_id=self.kubernetes_connection_id,
                objects=addresses,
                success_phases=list(intents.success),
                failure_phases=list(intents.failure),
                deadline_at=(datetime.now(UTC) + limit).isoformat(),
            ),
            method_name="resume_step",
            timeout=limit + timedelta(minutes=2),
        )
        return []

    def resume(self, context: Context, event: dict[str, Any]) -> list[dict[str, Any]]:
        rows = self.rows(event["objects"], event["seconds"])
        context["ti"].xcom_push(key="functional_test", value=rows)
        if event["state"] == "complete":
            return rows
        phases = ", ".join(f"{row['object']} is {row['phase'] or 'without a phase'}" for row in rows)
        raise PermanentError(
            "functional-test-failed",
            f"the functional test did not pass: {event['message']}; {phases}",
            context={"state": event["state"], "limit_seconds": self.profile.intents.test_timeout_seconds},
            hint="Read the operator's log for this NetworkIntent.",
        )

    @staticmethod
    def rows(seen: list[dict[str, Any]], seconds: float) -> list[dict[str, Any]]:
        return [
            {"object": f"networkintents.{s['group']}/{s['name']}", "phase": s["phase"], "seconds": round(seconds, 1)}
            for s in seen
        ]


class DeleteTestIntentsOperator(IntentOperator):
    """Delete the operation's test intents and wait until their finalizers are done. Safe to repeat: yes.

    Needs no lease: their name is the operation's, and whoever has taken it over deletes them as well.
    Returns the number of intents that are gone. Skipped when the cluster can't be asked and none was ever created.
    """

    def act(self, context: Context) -> int:
        try:
            return self.take_away(context)
        except MaintenanceError as error:
            if states_of(context).get(APPLY_TEST_INTENTS) in NEVER_RAN:
                raise AirflowSkipException(f"no test intent was created: {error.message}") from error
            raise

    def take_away(self, context: Context) -> int:
        from nephoran_maintenance.triggers.condition import AbsenceTrigger

        cluster = self.cluster()
        self.check_switches(cluster, forward=False)
        addresses = self.addresses(context, cluster)
        self.delete(cluster, addresses)
        left = [address for address in addresses if self.find(cluster, address) is not None]
        if not left:
            return len(addresses)
        self.defer(
            trigger=AbsenceTrigger(
                connection_id=self.kubernetes_connection_id,
                objects=left,
                deadline_at=(datetime.now(UTC) + DELETION_LIMIT).isoformat(),
            ),
            method_name="resume_step",
            timeout=DELETION_LIMIT + timedelta(minutes=2),
        )
        return 0

    def resume(self, context: Context, event: dict[str, Any]) -> int:
        if event["state"] == "complete":
            return len(self.addresses(context, self.cluster()))
        names = ", ".join(f"networkintents.{r['group']}/{r['name']}" for r in event["remaining"])
        kind = TransientError if event["state"] == "error" else PermanentError
        raise kind(
            "test-intent-left",
            f"the test intents {names} are still there after {int(DELETION_LIMIT.total_seconds())} s: their finalizer "
            "has not run",
            hint="Look at the operator: it takes the finalizer away after it has deleted the A1 policy.",
        )
