"""
# Rolling upgrade

**Purpose.** Brings the components of a Nephoran system to another image version, one after the other, while the system
goes on answering. Whatever fails, every component that was changed goes back to the exact template it had before; one
that the profile calls *may fail* goes back alone.

**When to run, when not.** In a maintenance window of the chosen category. Not while another operation runs, not while a
component is rolling or paused, and not for another *minor* version of Weaviate: that needs its own procedure, because an
older Weaviate may not read what a newer one has written.

**Before you start.** Push the images to the registry. See that `backup` works: without a new backup nothing is changed. Run `preflight`, then this procedure with `mode = plan`, and read
the difference of each component in the report.

**Parameters.** See the trigger form; the defaults change nothing (`mode = plan`).

**Steps.**

| step | meaning | if it fails |
|---|---|---|
| `check_request` | parameters, profile, cluster and permissions | nothing was changed; correct what the message names |
| `recover_operations` | an operation that was left open is finished or undone first; with `mode = plan` it is only reported | nothing new was changed; its message says what a person must look at |
| `preflight` | all findings in one table; any *block* stops the run, as does a version in quarantine | nothing was changed; follow the hint of each finding |
| `plan_changes` | tags resolved to digests, a server-side dry-run difference per component | nothing was changed; correct what the message names |
| `approve` | by category: nobody is asked, one person, or two; asked again when an answer does not count; holds no lease | rejected or not answered in time: nothing was changed, the run is red and its report says *not-approved*; ask for the reason, then start a new run |
| `acquire_lease` | takes the lease on the system; with `if_busy = wait` it waits for another operation to end | nothing was changed; the message names the owner |
| `hold_lease` | renews the lease for as long as the run lives | the run goes on; its writes are refused once a recovery has taken over |
| `recheck_plan` | findings and plan once more, with the lease in hand: what was approved is what is done | nothing was changed; the message shows the difference; start a new run |
| `protect` | a backup of the whole system, tagged `pre-<operation id>`: encrypted, signed, read back; the steps are those of `backup`; the profile's `backup.before_change` says what is saved | nothing was changed, and the lease is given back; correct what the message names, then start a new run. Only `release_readers` stops no change: it tells of what is left of the backup's making |
| `record_before_state` | the journal: what is there, what is intended | nothing was changed; check the rights on `nephoran-maintenance` |
| `measure_traffic` | steady requests through the whole chain, for as long as anything changes | the run turns red, the change itself is not affected |
| `apply_policy`, `wait_policy` | the profile's rolling-update policy, only where the live object differs | every changed component is rolled back |
| `apply_image`, `wait_image` | the new image; rollout watched, health asked over HTTP; Weaviate one replica at a time | every changed component is rolled back |
| `decide_alone`, `rollback_alone` | only for a component that the profile calls *may fail*: when its rollout, its health or its gate has failed, it alone goes back and is verified; what needs it is left out; the rest goes on | every changed component is rolled back; also when its step was marked as failed by a person, or lost its worker |
| `verify_metrics` | of a component with a `gate`, and once more after the whole: error ratio and p95 latency against limit and baseline, 5 minutes each, ended early by a clear breach | every changed component is rolled back; *unknown* is not good enough either |
| `functional_test` | one NetworkIntent per served API group, always deleted again | every changed component is rolled back |
| `verify_components` | every step that judges the change has left its own result, running image digests equal the plan, no container restarted | every changed component is rolled back |
| `decide_rollback` | keeps the change, or opens the way back | clear it: it decides again from the journal |
| `rollback` | recorded templates put back in reverse order, each one verified | **page a person**: the message names object, expected and observed state |
| `stop_traffic` | ends the measurement | clear it: it only tells the probe to stop |
| `report_operation` | JSON and HTML report; closes the journal | clear it: it only reads and writes the report again |
| `release_lease` | gives the lease back, only when nothing is left to do | the operation is still open: `recover_operation` takes it up within two minutes |
| `verify_outcome` | red when any step failed, also after a good rollback | it is meant to fail: open the report |

**Duration and blast radius.** The backup first: half a minute with little data, as long as Weaviate's own backup and its
upload with much. Then about a minute per component with the default probe delays and grace periods, plus one
per replica of Weaviate, plus 5 minutes (`gate.duration_seconds`) for each gate. At most one pod more, never one less, than wanted of each component.

**Verify.** `report_operation` has a link to the report: failed requests, longest gap, digests before and after,
the verdict of each gate with its figures.

**Roll back.** Automatic on failure. To abort by hand, mark the running step as *failed*: everything changed so far is
rolled back. When the *run* is marked as failed, deleted, or dies with its machine, its own rollback does not run: then
`recover_operation` finishes or undoes the operation.

**If it fails.** Open the report: it says what was changed, what went back and what a person must look at. Only
*failed* needs somebody at once; *refused*, *not-approved* and *rolled-back* left the system as it was. *partly-succeeded*
is red too, because something that was planned is not there: the rest is new and verified, and the report names what stayed
behind and why. *taken-over* says that a recovery is at work on this operation, and links to its report.
A version that was taken back because it was bad is in quarantine: no run tries it again, until a person names its
component in `release_quarantine` of a run by hand.
"""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import Param, TaskGroup, TriggerRule, dag

from nephoran_maintenance.domain.order import in_order
from nephoran_maintenance.groups.approval import approval
from nephoran_maintenance.groups.backup import protect
from nephoran_maintenance.groups.component_upgrade import GATE_RETRIES, upgrade_in_order
from nephoran_maintenance.groups.functional_test import functional_test
from nephoran_maintenance.groups.preflight import preflight
from nephoran_maintenance.groups.rollback import rollback
from nephoran_maintenance.operators.admission import CheckRequestOperator
from nephoran_maintenance.operators.lease import AcquireLeaseOperator, HoldLeaseOperator, ReleaseLeaseOperator
from nephoran_maintenance.operators.planning import PlanUpgradeOperator
from nephoran_maintenance.operators.recheck import RecheckPlanOperator
from nephoran_maintenance.operators.recording import RecordBeforeStateOperator
from nephoran_maintenance.operators.recovery import RecoverOperationsOperator
from nephoran_maintenance.operators.report import ReportOperator, VerifyOutcomeOperator
from nephoran_maintenance.operators.traffic import MeasureTrafficOperator, StopTrafficOperator
from nephoran_maintenance.operators.verification import VerifyComponentsOperator
from nephoran_maintenance.profile import load_profile
from nephoran_maintenance.sensors.gate import MetricGateSensor

PROFILE = load_profile()
IN_ORDER = in_order(PROFILE.components)
COMPONENTS = [component.name for component in IN_ORDER]
DEFAULT_COMPONENTS = [component.name for component in IN_ORDER if component.upgrade_by_default]
CONNECTION = "kubernetes_rolling_upgrade"
RUNS_AT_ONCE = 16
"""A run that waits for its approval is one of them, and must not hold up an emergency. That only one of them changes the
system at a time is the lease's work, not Airflow's."""
# Every step here is safe to repeat; the API server may be away for a moment.
DEFAULTS = {"retries": 2, "retry_delay": timedelta(seconds=3)}


@dag(
    dag_display_name="Rolling upgrade",
    description="Bring components to another image version with no downtime and a way back",
    schedule=None,
    catchup=False,
    max_active_runs=RUNS_AT_ONCE,
    tags=["upgrade", "risk/changes-system"],
    doc_md=__doc__,
    default_args=DEFAULTS,
    params={
        "mode": Param(
            "plan",
            type="string",
            enum=["plan", "apply"],
            title="Mode",
            description="plan shows exactly what would change and ends; apply changes it.",
        ),
        "version": Param(
            None,
            type=["null", "string"],
            maxLength=128,
            title="Version (image tag)",
            description="The tag that every chosen component goes to, for example v2.1.0. Mutable tags are refused.",
        ),
        "images": Param(
            {},
            type="object",
            additionalProperties={"type": "string"},
            title="Images per component",
            description='Overrides the version for single components: {"rag-api": "v2.1.1"}. A tag, a digest '
            "(sha256:…) or a whole image reference.",
        ),
        "components": Param(
            DEFAULT_COMPONENTS,
            type="array",
            items={"type": "string", "enum": COMPONENTS},
            examples=COMPONENTS,
            minItems=1,
            uniqueItems=True,
            title="Components",
            description="What to upgrade. The order is the profile's, whatever the order here.",
        ),
        "category": Param(
            "minor",
            type="string",
            enum=["security", "emergency", "minor", "major", "infrastructure"],
            title="Category",
            description="The maintenance category of the change: the profile says whose approval each one needs.",
        ),
        "reason": Param(
            None,
            type=["null", "string"],
            maxLength=500,
            title="Reason",
            description="A sentence or a ticket number for the report.",
        ),
        "allow_downgrade": Param(
            False,
            type="boolean",
            title="Allow a downgrade",
            description="Without it, a tag older than the running one is refused. Never applies to Weaviate.",
        ),
        "plan_hash": Param(
            None,
            type=["null", "string"],
            pattern="^[0-9a-f]{64}$",
            title="Hash of the plan",
            description="From the report of a run with mode plan: only exactly this plan is applied.",
        ),
        "release_quarantine": Param(
            [],
            type="array",
            items={"type": "string", "enum": COMPONENTS},
            examples=COMPONENTS,
            uniqueItems=True,
            title="Release from quarantine",
            description="Components whose version is to be tried again although it was taken back before. "
            "Counts only in a run that a person has triggered.",
        ),
        "if_busy": Param(
            "refuse",
            type="string",
            enum=["refuse", "wait"],
            title="If the system is busy",
            description="What to do while another operation owns the system: refuse with its name, or wait up to 2 h.",
        ),
    },
)
def rolling_upgrade() -> None:
    check_request = CheckRequestOperator(task_id="check_request", kubernetes_connection_id=CONNECTION)
    recover_operations = RecoverOperationsOperator(task_id="recover_operations", kubernetes_connection_id=CONNECTION)
    ready = preflight(kubernetes_connection_id=CONNECTION)
    plan_changes = PlanUpgradeOperator(task_id="plan_changes", kubernetes_connection_id=CONNECTION)
    approved = approval(kubernetes_connection_id=CONNECTION)
    acquire_lease = AcquireLeaseOperator(
        task_id="acquire_lease", kubernetes_connection_id=CONNECTION, trigger_rule=TriggerRule.NONE_FAILED
    )
    hold_lease = HoldLeaseOperator(task_id="hold_lease", kubernetes_connection_id=CONNECTION)
    recheck_plan = RecheckPlanOperator(task_id="recheck_plan", kubernetes_connection_id=CONNECTION)
    check_backup, backed_up, release_readers = protect(PROFILE)
    # The profile may say that no backup is made: then the group is skipped, and the plan that was rechecked counts.
    record_before_state = RecordBeforeStateOperator(
        task_id="record_before_state",
        kubernetes_connection_id=CONNECTION,
        trigger_rule=TriggerRule.NONE_FAILED_MIN_ONE_SUCCESS,
    )
    measure_traffic = MeasureTrafficOperator(task_id="measure_traffic", kubernetes_connection_id=CONNECTION)
    with TaskGroup(
        "components", group_display_name="Components", tooltip="One after the other, in the profile's order"
    ):
        settled = upgrade_in_order(IN_ORDER, after=record_before_state, kubernetes_connection_id=CONNECTION)
    tested = functional_test(kubernetes_connection_id=CONNECTION)
    verify_metrics = MetricGateSensor(task_id="verify_metrics", kubernetes_connection_id=CONNECTION, **GATE_RETRIES)
    verify_components = VerifyComponentsOperator(task_id="verify_components", kubernetes_connection_id=CONNECTION)
    undone = rollback(IN_ORDER, kubernetes_connection_id=CONNECTION)
    stop_traffic = StopTrafficOperator(task_id="stop_traffic", kubernetes_connection_id=CONNECTION)
    report_operation = ReportOperator(task_id="report_operation", kubernetes_connection_id=CONNECTION)
    release_lease = ReleaseLeaseOperator(task_id="release_lease", kubernetes_connection_id=CONNECTION)
    verify_outcome = VerifyOutcomeOperator(task_id="verify_outcome", kubernetes_connection_id=CONNECTION, retries=0)

    check_request >> recover_operations >> ready >> plan_changes >> approved >> acquire_lease
    # The second step is skipped a moment before the first has ended: the lease waits for both.
    approved.get_child_by_label("wait_approval") >> acquire_lease >> recheck_plan >> check_backup
    [recheck_plan, backed_up] >> record_before_state
    # From record_before_state through all components: see upgrade_in_order.
    settled >> tested >> verify_metrics
    # The group ends with the deletion, which runs whatever happened: what it waited for must have succeeded too.
    tested.get_child_by_label("wait_test_intents") >> verify_metrics >> verify_components
    verify_components >> undone >> stop_traffic >> report_operation >> release_lease >> verify_outcome
    record_before_state >> measure_traffic >> report_operation
    # Beside the change as well: it tells whether the backup has left anything of its making in the cluster.
    release_readers >> report_operation
    # Beside the chain: it ends when the lease is given back, which the report's closed journal allows.
    acquire_lease >> hold_lease >> verify_outcome
    # A teardown also runs when the run is marked as failed. Its setup would be more than that: with a setup that failed,
    # Airflow fails every step in between whatever its trigger rule, and a refused run would have no report.
    release_lease.as_teardown(on_failure_fail_dagrun=True)


rolling_upgrade()
