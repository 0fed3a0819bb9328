"""What several benchmarks read beside the procedure: the system's workloads, and Airflow's task states from its database."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

from lab.cluster import Cluster

NAMESPACE = "nephoran-system"
COUNTED_BY_SERVER = "deployment.kubernetes.io/revision"


def workloads(cluster: Cluster) -> list[dict[str, Any]]:
    """Return the system's Deployments and StatefulSets as the API server has them, each with its ``plural``."""
    found = []
    for plural in ("deployments", "statefulsets"):
        items = cluster.get(f"/apis/apps/v1/namespaces/{NAMESPACE}/{plural}")["items"]
        found += [{**item, "plural": plural} for item in items]
    return found


def specs(items: list[dict[str, Any]]) -> dict[str, Any]:
    """Return by name the spec, labels and annotations of workloads, but the revision that the server counts up."""
    found = {}
    for item in items:
        annotations = dict(item["metadata"].get("annotations") or {})
        annotations.pop(COUNTED_BY_SERVER, None)
        labels = item["metadata"].get("labels")
        found[item["metadata"]["name"]] = {"spec": item["spec"], "labels": labels, "annotations": annotations}
    return found


class TaskTable:
    """Reads the tasks of one run from Airflow's database, beside it."""

    def __init__(self, database: Path, run_id: str) -> None:
        self._database = sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=30)
        self._run_id = run_id

    def close(self) -> None:
        self._database.close()

    def state(self, task_id: str) -> str | None:
        """Return the state of one task, None when it has none yet."""
        query = "select state from task_instance where run_id = ? and task_id = ?"
        row = self._database.execute(query, (self._run_id, task_id)).fetchone()
        return row[0] if row else None

    def run_state(self) -> str | None:
        """Return the state of the run itself, None when there is no such run."""
        row = self._database.execute("select state from dag_run where run_id = ?", (self._run_id,)).fetchone()
        return row[0] if row else None

    def states(self) -> dict[str, int]:
        """Return how many tasks are in each state."""
        query = "select coalesce(state, 'none'), count(*) from task_instance where run_id = ? group by 1"
        return dict(self._database.execute(query, (self._run_id,)).fetchall())

    def count(self, state: str) -> int:
        return self.states().get(state, 0)

    def left(self, task_state: str) -> set[int]:
        """Return the map indexes of the tasks that are not in a state."""
        query = "select map_index from task_instance where run_id = ? and map_index >= 0 and coalesce(state, '') != ?"
        return {row[0] for row in self._database.execute(query, (self._run_id, task_state)).fetchall()}
