"""Load the heavy client libraries once per process instead of once per task.

Airflow imports this file at the start of each of its processes when it lies on its path (``$AIRFLOW_HOME/config``).
The LocalExecutor forks its workers from the scheduler, and each worker forks each task: what the scheduler has
imported, no task has to import again. The triggerer would otherwise import in the middle of its event loop and stop
every other trigger for that long. The api-server and the dag-processor need none of it.
"""

from __future__ import annotations

import importlib
import sys

PRELOADED = (
    "airflow.providers.cncf.kubernetes.hooks.kubernetes",
    "kubernetes_asyncio.client",
    "kubernetes_asyncio.config",
    "httpx",
    "requests",
    "boto3",
    "jinja2",
)
"""What the steps of the procedures import inside ``execute``, and the triggers inside ``run``."""


def _preload() -> None:
    if not {"scheduler", "triggerer"} & set(sys.argv[1:2]):
        return
    for module in PRELOADED:
        # A missing library is the task's error to report, not a reason for Airflow not to start.
        try:
            importlib.import_module(module)
        except ImportError:
            continue


_preload()
