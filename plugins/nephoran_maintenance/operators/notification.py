"""The alert of a run that ended red: what failed, what to do, and where the report is."""

from __future__ import annotations

import logging
from typing import Any

from nephoran_maintenance.domain.step_ids import REPORT_OPERATION, VERIFY_OUTCOME
from nephoran_maintenance.errors import MaintenanceError
from nephoran_maintenance.operators.base import ERROR_KEY, operation_of, pull, states_of
from nephoran_maintenance.profile import load_profile

LOG = logging.getLogger(__name__)
LONGEST_CAUSE = 1000


def notify_failure(context: Any) -> None:
    """Send an alert about this run to the connection that the profile names, or write it into the log where none is.

    Meant as ``on_failure_callback`` of the step that colours the run, which runs in a worker and knows all the others.
    Never raises: the run is red already.
    """
    text = alert_text(context)
    LOG.error("%s", text)
    connection_id = load_profile().connections.alerts
    if connection_id is None:
        return
    from nephoran_maintenance.hooks.alert_receiver import send_alert

    try:
        send_alert(connection_id, text)
    except MaintenanceError as error:
        LOG.error("The alert could not be sent: %s", error)


def alert_text(context: Any) -> str:
    """Return the alert: procedure, system, first cause and report."""
    failed = [t for t, state in states_of(context).items() if state == "failed" and t != VERIFY_OUTCOME]
    cause = next((found for t in failed if (found := pull(context, t, ERROR_KEY))), "see the log of the run")
    report = pull(context, REPORT_OPERATION) or {}
    title = context["task"].dag.dag_display_name
    where = report.get("report_url") or "no report was written"
    steps = ", ".join(failed) or "none by itself"
    return (
        f"{title} of {load_profile().metadata.name} failed ({operation_of(context)}). Failed steps: {steps}. "
        f"{str(cause)[:LONGEST_CAUSE]} Report: {where}"
    )
