"""Wait for many rollouts at once; made for `make bench-waits` only."""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import dag

from nephoran_maintenance.sensors.rollout import RolloutSensor

WORKLOADS = 1000
LIMIT = timedelta(hours=2)


@dag(schedule=None, catchup=False, max_active_tasks=2 * WORKLOADS, tags=["benchmark"])
def waits() -> None:
    RolloutSensor.partial(
        task_id="wait",
        kubernetes_connection_id="kubernetes_rolling_upgrade",
        namespace="nephoran-system",
        kind="Deployment",
        container="main",
        no_progress_limit=LIMIT,
        progress_deadline=LIMIT,
        rollout_timeout=LIMIT,
    ).expand(name=[f"waited-{number:04d}" for number in range(WORKLOADS)])


waits()
