"""
# Preflight

**Purpose.** Says whether the system may be changed now, and if not, why and what to do. It only reads.

**When to run, when not.** Before a change, and at any time. It is always allowed, in every window and freeze.

**Before you start.** Nothing.

**Parameters.** The change that is meant, as in `rolling_upgrade`; without a version only the system itself is checked.

**Steps.**

| step | meaning | if it fails |
|---|---|---|
| `check_request` | parameters, profile, cluster and permissions | correct what the message names |
| `preflight.check_…` | one subject each; findings are *pass*, *warn* or *block* | a subject that could not be measured is a *block*; see the log |
| `preflight.decide_readiness` | all findings in one table; any *block* makes the run red | follow the hint of each finding |
| `report_operation` | JSON and HTML report | clear it: it only writes the report again |
| `verify_outcome` | red when any step failed | it is meant to fail: open the report |

**Duration and blast radius.** Seconds; up to ten minutes while it waits for intents in work. Changes nothing; with a
vantage point in the profile a short-lived Job in the system's namespace asks the dependencies.

**Verify.** The result has `approval.ready_for_upgrade`.

**Roll back.** Nothing to roll back.

**If it fails.** A red run means *not now*: read the table in `preflight.decide_readiness`.
"""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import Param, dag

from nephoran_maintenance.groups.preflight import preflight as preflight_group
from nephoran_maintenance.operators.admission import CheckRequestOperator
from nephoran_maintenance.operators.report import ReportOperator, VerifyOutcomeOperator
from nephoran_maintenance.profile import load_profile

PROFILE = load_profile()
COMPONENTS = [component.name for component in PROFILE.components]
DEFAULT_COMPONENTS = [component.name for component in PROFILE.components if component.upgrade_by_default]
CONNECTION = "kubernetes_preflight"
DEFAULTS = {"retries": 2, "retry_delay": timedelta(seconds=3)}


@dag(
    dag_display_name="Preflight",
    description="All findings in one table: may the system be changed now?",
    schedule=None,
    catchup=False,
    max_active_runs=1,
    tags=["preflight", "risk/read-only"],
    doc_md=__doc__,
    default_args=DEFAULTS,
    params={
        "version": Param(
            None,
            type=["null", "string"],
            maxLength=128,
            title="Version (image tag)",
            description="The tag that the chosen components would go to; empty checks the system alone.",
        ),
        "images": Param(
            {},
            type="object",
            additionalProperties={"type": "string"},
            title="Images per component",
            description='Overrides the version for single components: {"rag-api": "v2.1.1"}.',
        ),
        "components": Param(
            DEFAULT_COMPONENTS,
            type="array",
            items={"type": "string", "enum": COMPONENTS},
            examples=COMPONENTS,
            minItems=1,
            uniqueItems=True,
            title="Components",
            description="What would be changed: their surge must fit on the nodes.",
        ),
    },
)
def preflight() -> None:
    check_request = CheckRequestOperator(task_id="check_request", kubernetes_connection_id=CONNECTION)
    report_operation = ReportOperator(task_id="report_operation", kubernetes_connection_id=CONNECTION)
    verify_outcome = VerifyOutcomeOperator(task_id="verify_outcome", kubernetes_connection_id=CONNECTION, retries=0)

    check_request >> preflight_group(kubernetes_connection_id=CONNECTION) >> report_operation >> verify_outcome


preflight()
