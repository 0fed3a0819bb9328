"""How old the newest backups are: as findings for a change, as metrics, as assets, and as an alarm."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from airflow.sdk import Asset, AssetAlias
from airflow.sdk.exceptions import AirflowSkipException

from nephoran_maintenance.airflow_edge import gauge, standing_of
from nephoran_maintenance.domain.findings import Finding
from nephoran_maintenance.domain.freshness import Newest, check_freshness, check_standing, figures, find_newest
from nephoran_maintenance.domain.report import Overall, conclusion
from nephoran_maintenance.domain.step_ids import MEASURE_FRESHNESS
from nephoran_maintenance.errors import PermanentError
from nephoran_maintenance.operators.backup_readiness import backups_configured, pinned, refuse_unconfigured
from nephoran_maintenance.operators.base import StepOperator, pull, states_of
from nephoran_maintenance.operators.report import FAILED_STATES, ReportOperator

if TYPE_CHECKING:
    from airflow.sdk import Context

    from nephoran_maintenance.profile import SystemProfile

BACKUP_DAG = "backup"
ASSETS = AssetAlias("nephoran_backups")
METRICS = "nephoran.backup"
"""Prefix of the metrics ``checked_age_seconds``, ``verified_age_seconds``, ``rpo_seconds`` and ``fresh`` (1 or 0)."""


def newest_backups(profile: SystemProfile, cluster_uid: str | None) -> Newest:
    """Return the newest backups that count, from signed manifests and notes in the bucket.

    :raises MaintenanceError: when bucket or keys can't be read.
    """
    from nephoran_maintenance.hooks.backup_store import BackupStore
    from nephoran_maintenance.hooks.object_store import ObjectStoreHook
    from nephoran_maintenance.hooks.openpgp import OpenPgpHook

    backup = profile.backup
    with OpenPgpHook() as pgp:
        store = ObjectStoreHook(profile.connections.object_store_backup, bucket=backup.bucket)
        backups = BackupStore(store, pgp, backup.prefix, pinned(backup.signers))
        return find_newest(backups.folders(), backups.known, profile.metadata.name, cluster_uid)


class CheckFreshnessOperator(StepOperator):
    """Refuse a profile without backups. Returns ``{"configured"}``: whether new ones can be made. Safe to repeat: yes."""

    def act(self, context: Context) -> dict[str, Any]:
        refuse_unconfigured(self.profile)
        return {"configured": backups_configured(self.profile)}


class MeasureFreshnessOperator(StepOperator):
    """Measure how old the newest checked and the newest verified backup are, and say so where people look.

    Returns ``{"figures", "findings"}``, also when it fails; sets the metrics ``nephoran.backup.…``, and adds an event with the
    figures to the assets ``nephoran_checked_backup`` and ``nephoran_verified_backup``. Safe to repeat: yes.

    :raises PermanentError: ``backup-stale`` when the newest checked one is older than the objective, or there is none.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(outlets=[ASSETS], **kwargs)

    def act(self, context: Context) -> dict[str, Any]:
        now, profile = datetime.now(UTC), self.profile
        newest = newest_backups(profile, None)
        measured = figures(newest, now)
        findings = check_freshness(newest, now, timedelta(hours=profile.targets.rpo_hours))
        findings += check_standing(standing_of(context["ti"], BACKUP_DAG, now))
        stale = [finding for finding in findings if finding.severity == "block"]
        for name, value in {**measured, "fresh": 0 if stale else 1}.items():
            if isinstance(value, int | float):
                gauge(f"{METRICS}.{name}", value)
        for grade in ("checked", "verified"):
            if measured[f"{grade}_backup"]:
                context["outlet_events"][ASSETS].add(Asset(f"nephoran_{grade}_backup", group="backup"), extra=measured)
        result = {"figures": measured, "findings": [finding.to_dict() for finding in findings]}
        context["ti"].xcom_push(key="return_value", value=result)
        self.log.info("Measured: %s", measured)
        if stale:
            raise PermanentError(
                "backup-stale",
                f"{stale[0].object}: {stale[0].observed}, expected {stale[0].expected}",
                hint=stale[0].hint,
            )
        return result


class ReportFreshnessOperator(ReportOperator):
    """Write the report of a measurement; a scheduled one that found nothing to heed is not worth a page, and is skipped."""

    def act(self, context: Context) -> dict[str, Any]:
        scheduled = context["dag_run"].run_type.value == "scheduled"
        if scheduled and not self.failed(context):
            raise AirflowSkipException("the backups are fresh")
        return super().act(context)

    @staticmethod
    def failed(context: Context) -> bool:
        return any(state in FAILED_STATES for state in states_of(context).values())

    def build(self, context: Context, profile: SystemProfile, operation: str) -> dict[str, Any]:
        report = super().build(context, profile, operation)
        measured = pull(context, MEASURE_FRESHNESS) or {}
        findings = [Finding(**found) for found in measured.get("findings", ())]
        how: Overall = "stale" if self.failed(context) else "fresh"
        rows = [[name, "none" if value is None else value] for name, value in measured.get("figures", {}).items()]
        table = {"title": "Measured", "columns": ["what", "value"], "rows": rows}
        return {**report, **conclusion(how, findings), "tables": [table]}
