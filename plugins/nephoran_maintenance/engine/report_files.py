"""Reports as files: written into the local folder, and kept in the object store where the profile names a bucket."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

from nephoran_maintenance.profile import SystemProfile
from nephoran_maintenance.settings import PROJECT_ROOT, report_folder

TEMPLATE = "operation.html.j2"
DATA, PAGE = "report.json", "report.html"


def write_report(procedure: str, report: dict[str, Any]) -> Path:
    """Write a report as page and as data into its folder, and return the path of the page. Safe to repeat: yes."""
    folder = report_folder(procedure, report["operation_id"])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / DATA).write_text(json.dumps(report, indent=2), encoding="utf-8")
    (folder / PAGE).write_text(render(report), encoding="utf-8")
    return folder / PAGE


def keep_report(profile: SystemProfile, page: Path) -> str | None:
    """Store a written report, with the samples of probe and gates, and return the address of the page; None: no bucket.

    :raises PermanentError: when a bucket is configured and can't be written. Safe to repeat: yes, the keys are the same.
    """
    if not profile.reports.bucket:
        return None
    from nephoran_maintenance.hooks.object_store import ObjectStoreHook

    folder = page.parent
    store = ObjectStoreHook(profile.connections.object_store, bucket=profile.reports.bucket)
    key = f"{profile.reports.prefix}/{folder.parent.name}/{folder.name}"
    store.put_text(f"{key}/{DATA}", (folder / DATA).read_text(encoding="utf-8"), content_type="application/json")
    for samples in sorted(folder.glob("*-samples*.jsonl")):
        store.put_bytes(f"{key}/{samples.name}", samples.read_bytes(), content_type="application/x-ndjson")
    return store.put_text(f"{key}/{PAGE}", page.read_text(encoding="utf-8"), content_type="text/html; charset=utf-8")


def render(report: dict[str, Any]) -> str:
    """Return a report as an HTML page that needs nothing else."""
    return str(_environment().get_template(TEMPLATE).render(report=report))


@functools.cache
def _environment() -> Any:
    import jinja2

    loader = jinja2.FileSystemLoader(PROJECT_ROOT / "include" / "reports")
    return jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
