"""The last look at everything that was changed."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from airflow.sdk.exceptions import AirflowSkipException

from nephoran_maintenance.domain.patches import same_spec
from nephoran_maintenance.domain.step_ids import change_step_ids
from nephoran_maintenance.engine.live import check_digests, check_health, running_digests
from nephoran_maintenance.errors import PermanentError
from nephoran_maintenance.operators.base import StepOperator, operation_of, pull_all
from nephoran_maintenance.operators.proof import unproven_steps

if TYPE_CHECKING:
    from airflow.sdk import Context


class VerifyComponentsOperator(StepOperator):
    """Check all components that are new together: template, image digests of every pod, health, no restart since.

    Before that, that each step which judges the change has left its own result: one that a person has marked has not.
    Returns by component what :func:`nephoran_maintenance.engine.live.check_health` has measured, with ``digests``,
    and writes into the journal that everything was seen to be good: without that a recovery undoes. Safe to repeat: yes.
    """

    def blamed(self, error: PermanentError) -> Sequence[str]:
        return [str(error.context["component"])]

    def act(self, context: Context) -> dict[str, Any]:
        cluster = self.cluster()
        store = self.journals(cluster)
        journal = store.read(operation_of(context))
        lease = self.held_lease(context, cluster, journal)
        names = journal.changed()
        if not names:
            raise AirflowSkipException("no component is new: each of them may fail, and did")
        unproven = unproven_steps(context, journal, self.profile)
        if unproven:
            raise PermanentError(
                "step-without-result",
                f"not measured: {'; '.join(f'{step.task_id}: {step.missing}' for step in unproven)}",
                hint="Nothing: everything goes back. A step that is marked as success has measured nothing; start a new run.",
            )
        earlier = pull_all(context, [change_step_ids(n, k)[1] for n in names for k in ("policy", "image")])
        results: dict[str, Any] = {}
        for name in names:
            component, entry = self.profile.component(name), journal.entries_of(name)[-1]
            workload = cluster.get_workload(component, self.profile.namespace_of(component))
            if not same_spec(workload, entry.intended):
                raise PermanentError(
                    "object-changed-by-others",
                    f"{name}: {entry.workload.kind}/{entry.workload.name} is no longer as this operation left it",
                    context={"component": name},
                    hint="Find out who changed it (kubectl get -o yaml --show-managed-fields).",
                )
            container = entry.intended["container"]
            pods = cluster.pods_of(workload)
            measured = check_health(cluster, workload, pods, component, container)
            digests = running_digests(pods, container)
            check_digests(name, digests, entry.digest)
            if measured["ready"] < measured["desired"]:
                raise PermanentError(
                    "pods-not-ready",
                    f"{name}: {measured['ready']} of {measured['desired']} pods are Ready",
                    context={"component": name},
                    hint="Look at the pods that are not Ready.",
                )
            seen = (earlier.get(change_step_ids(name, entry.kind)[1]) or {}).get("restarts", {})
            for pod, count in measured["restarts"].items():
                if count > seen.get(pod, 0):
                    raise PermanentError(
                        "restarted-after-ready",
                        f"{name}: pod {pod} was restarted {count - seen.get(pod, 0)} times after it was ready",
                        context={"component": name, "pod": pod},
                        hint="Read its log before the restart (kubectl logs --previous).",
                    )
            results[name] = {**measured, "digests": digests}
        now = datetime.now(UTC)
        store.update(journal.operation_id, lambda found: found.seen_good(now), token=lease.token)
        return results
