"""Names and folders that more than one room of the house uses. No imports of Airflow, no I/O at import."""

from __future__ import annotations

import os
from pathlib import Path

VERSION = "0.1.0"
"""Of this package, as in pyproject.toml."""
PREFIX = "maintenance.nephoran.com"
FIELD_MANAGER = "nephoran-maintenance"
PROBE_ANNOTATION = f"{PREFIX}/probe"
PROBE_STOP = "stop"
OPERATION_LABEL = f"{PREFIX}/operation"
PAGES_PREFIX = "/maintenance"
"""Where this product's pages are in Airflow's user interface."""

PROJECT_ROOT = Path(__file__).resolve().parents[2]


def profile_path() -> Path:
    """Return the profile's file: ``NEPHORAN_PROFILE``, else ``include/profiles/nephoran.yaml``."""
    return Path(os.environ.get("NEPHORAN_PROFILE") or PROJECT_ROOT / "include" / "profiles" / "nephoran.yaml")


def reports_root() -> Path:
    """Return the local folder of all reports: ``NEPHORAN_REPORTS``, else ``reports`` in Airflow's home."""
    home = os.environ.get("NEPHORAN_REPORTS")
    return Path(home) if home else Path(os.environ.get("AIRFLOW_HOME", "~/airflow")).expanduser() / "reports"


def report_folder(procedure: str, operation: str) -> Path:
    """Return the local folder of one operation's report and samples."""
    return reports_root() / procedure / operation
