"""What the reading of volumes leaves in the cluster when its step is dead for good, and who takes it away."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.sdk.exceptions import AirflowSkipException

from nephoran_maintenance.domain.step_ids import capture_step_id
from nephoran_maintenance.domain.tsdb import RECORD
from nephoran_maintenance.errors import MaintenanceError
from nephoran_maintenance.operators.backup_sources import KNOWLEDGE_BASE, PROMETHEUS, READERS
from nephoran_maintenance.operators.backup_step import BackupStep
from nephoran_maintenance.operators.base import NEVER_RAN, pull, states_of
from nephoran_maintenance.operators.report import FAILED_STATES

if TYPE_CHECKING:
    from airflow.sdk import Context


class ReleaseReadersOperator(BackupStep):
    """Take away what the reading of volumes has left in the cluster: our helper pod, our snapshot of Prometheus.

    The steps that make them take them away themselves; this one does where they were killed or could not. What can't be
    proven to be of this backup stays. A backup is good without it, so the manifest does not wait for it; that something
    stays makes the run red. Returns ``{"looked_for", "removed"}``, both lists. Safe to repeat: yes.
    """

    LOOKS, PAUSE = 6, timedelta(seconds=3)
    """The process of a task that was marked failed goes on until its next heartbeat, 5 s, and for five seconds more."""
    sleep = staticmethod(time.sleep)

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(trigger_rule="all_done", **kwargs)

    def act(self, context: Context) -> dict[str, Any]:
        states = states_of(context)
        steps = {name: self.sibling(capture_step_id(name)) for name in READERS}
        begun = [name for name, step in steps.items() if states.get(step) not in NEVER_RAN]
        if not begun:
            raise AirflowSkipException("nothing was read from volumes")
        left = {what: release for name in begun for what, release in self.left_by(name, context).items()}
        killed = any(states[steps[name]] in FAILED_STATES for name in begun)
        removed: list[str] = []
        for look in range(self.LOOKS if killed and left else 1):
            if look:
                self.sleep(self.PAUSE.total_seconds())
            removed += self.removed(left)
        return {"looked_for": list(left), "removed": removed}

    def left_by(self, source: str, context: Context) -> dict[str, Callable[[], str]]:
        """Return by name what a source may have left, as a call that removes it and says what that was."""
        from nephoran_maintenance.engine.tsdb_snapshots import TsdbSnapshots
        from nephoran_maintenance.hooks.pod_files import namespace_of

        files, backup, namespaces = self.pod_files(context), self.profile.backup, self.profile.namespaces
        if source == KNOWLEDGE_BASE:
            places = {namespace_of(folder, namespaces.system) for folder in backup.knowledge_base}
            return {
                f"helper pod in {place}": functools.partial(files.release_helper, place) for place in sorted(places)
            }
        if backup.prometheus is None:
            return {}
        snapshots = TsdbSnapshots(files, backup.prometheus, namespaces.monitoring)
        step = self.sibling(capture_step_id(PROMETHEUS))
        return {"snapshot of Prometheus": lambda: snapshots.release(pull(context, step, RECORD))}

    def removed(self, left: Mapping[str, Callable[[], str]]) -> list[str]:
        """Remove all that is left and can be removed, and say what that was.

        :raises MaintenanceError: the first, when something could not be removed.
        """
        found, errors = [], []
        for what, release in left.items():
            try:
                if name := release():
                    self.log.warning("Removed what a dead step had left: %s %s", what, name)
                    found.append(f"{what}: {name}")
            except MaintenanceError as error:
                self.log.warning("%s: %s", what, error)
                errors.append(error)
        if errors:
            raise errors[0]
        return found
