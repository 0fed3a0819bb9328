"""Where a benchmark's result goes: a file that is committed, and one JSON line at the end of the output."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
DISTRIBUTIONS = ("apache-airflow", "apache-airflow-providers-cncf-kubernetes", "kubernetes", "kubernetes-asyncio")


def machine() -> dict[str, Any]:
    """Return what the figures depend on: processors, memory, kernel."""
    pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    described = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    names = [line.partition(":")[2].strip() for line in described if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.machine(),
        "cores": os.cpu_count(),
        "memory_gib": round(pages * size / 2**30, 1),
        "kernel": platform.release(),
    }


def commit() -> str:
    """Return the commit that is measured, empty outside of git."""
    command = ("git", "rev-parse", "--short", "HEAD")
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=RESULTS.parent).stdout.strip()


def versions() -> dict[str, str]:
    """Return the versions of what was measured, and the commit."""
    return {
        **{name: metadata.version(name) for name in DISTRIBUTIONS},
        "python": platform.python_version(),
        "commit": commit(),
    }


def publish(name: str, figures: Mapping[str, Any]) -> None:
    """Write ``results/<name>.json`` and print the same as one line."""
    result = {
        "benchmark": name,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        **figures,
        "machine": machine(),
        "versions": versions(),
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, separators=(",", ":")))
