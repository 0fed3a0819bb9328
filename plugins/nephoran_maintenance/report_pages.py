"""The pages of past operations: a list, and each report with its data beside it. They only read.

Who may read a DAG in Airflow may read the reports of its runs; nobody else sees that they exist. A report is looked for
in the local folder first, then in the object store, so that the API server need not share a disk with the workers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Annotated, Any

import jinja2
from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.core_api.security import GetUserDep, get_user, requires_access_dag
from fastapi import Depends, FastAPI, HTTPException, Path, Request, Response

from nephoran_maintenance.errors import MaintenanceError
from nephoran_maintenance.hooks.object_store import ObjectStoreHook
from nephoran_maintenance.profile import SystemProfile, load_profile
from nephoran_maintenance.settings import PROJECT_ROOT, report_folder, reports_root

PROCEDURE = r"^[a-z][a-z0-9_]{0,127}$"
OPERATION = r"^[a-z0-9][a-z0-9-]{0,50}[a-z0-9]$"
GATE_SAMPLES = r"^gate-samples(-[a-z0-9]([-a-z0-9]*[a-z0-9])?)?\.jsonl$"
NEWEST = 50
"""How many operations the list shows: each costs one read of its report."""

PAGE = "text/html; charset=utf-8"
HEADERS = {
    # The pages have no script, and what a report quotes from a cluster must not bring one along.
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'self'",
    "Cache-Control": "no-store",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}

Key = tuple[str, str]
"""Procedure and operation."""

may_read_report = requires_access_dag("GET")

app = FastAPI(
    title="Nephoran maintenance reports",
    dependencies=[Depends(get_user)],
    docs_url=None,
    redoc_url=None,
    openapi_url=None,
)


@app.middleware("http")
async def add_headers(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
    """Send the headers with every answer, refusals included."""
    response = await call_next(request)
    response.headers.update(HEADERS)
    return response


def permitted_procedures(user: GetUserDep) -> set[str]:
    """Return the ids of the DAGs that the user may read."""
    return get_auth_manager().get_authorized_dag_ids(user=user)


# Airflow's check reads the path parameter of this very name.
DagId = Annotated[str, Path(pattern=PROCEDURE)]
Operation = Annotated[str, Path(pattern=OPERATION)]
GateSamples = Annotated[str, Path(pattern=GATE_SAMPLES)]
Permitted = Annotated[set[str], Depends(permitted_procedures)]


@app.get("/reports/")
def list_operations(permitted: Permitted) -> Response:
    """Serve the page that lists the newest operations."""
    profile = load_profile()
    keys = local_keys()
    notice = ""
    try:
        keys |= stored_keys(profile)
    except MaintenanceError as error:
        notice = f"Only reports of the local folder are shown: {error}"
    seen = sorted((key for key in keys if key[0] in permitted), key=moment, reverse=True)
    return page("operations.html.j2", reports=[summary(profile, key) for key in seen[:NEWEST]], notice=notice, all=seen)


@app.get("/reports/{dag_id}/{operation}/", dependencies=[Depends(may_read_report)])
def show_report(dag_id: DagId, operation: Operation) -> Response:
    """Serve the report of one operation."""
    return Response(content_of(dag_id, operation, "report.html"), media_type=PAGE)


@app.get("/reports/{dag_id}/{operation}/report.json", dependencies=[Depends(may_read_report)])
def show_data(dag_id: DagId, operation: Operation) -> Response:
    """Serve the report of one operation as JSON."""
    return Response(content_of(dag_id, operation, "report.json"), media_type="application/json")


@app.get("/reports/{dag_id}/{operation}/probe-samples.jsonl", dependencies=[Depends(may_read_report)])
def show_samples(dag_id: DagId, operation: Operation) -> Response:
    """Serve every request that the probe sent, one JSON object a line."""
    return Response(content_of(dag_id, operation, "probe-samples.jsonl"), media_type="application/x-ndjson")


@app.get("/reports/{dag_id}/{operation}/{name}", dependencies=[Depends(may_read_report)])
def show_gate_samples(dag_id: DagId, operation: Operation, name: GateSamples) -> Response:
    """Serve every sample that a metric gate has judged, one JSON object a line."""
    return Response(content_of(dag_id, operation, name), media_type="application/x-ndjson")


def content_of(procedure: str, operation: str, name: str) -> bytes:
    """Return a file of a report.

    :raises HTTPException: 404 when it is in neither place; 503 when the object store does not answer.
    """
    try:
        return read(load_profile(), (procedure, operation), name)
    except MaintenanceError as error:
        if error.reference == "not-found":
            raise HTTPException(404, f"There is no {name} of {procedure} {operation}.") from error
        raise HTTPException(503, str(error)) from error


def read(profile: SystemProfile, key: Key, name: str) -> bytes:
    """Return a file of a report, local before stored.

    :raises MaintenanceError: ``not-found``, or what the object store had to say.
    """
    path = report_folder(*key) / name
    if path.is_file():
        return path.read_bytes()
    store = object_store(profile)
    if store is None:
        raise MaintenanceError("not-found", f"there is no file {path}")
    return store.get_bytes("/".join((profile.reports.prefix, *key, name)))


def summary(profile: SystemProfile, key: Key) -> Mapping[str, Any]:
    """Return a report for the list; one that can't be read says why instead of disappearing."""
    try:
        report = json.loads(read(profile, key, "report.json"))
        problem = "" if isinstance(report, dict) else "report.json is not an object"
    except (MaintenanceError, OSError, ValueError) as error:
        report, problem = {}, str(error)
    return {"procedure": key[0], "operation": key[1], "report": None if problem else report, "problem": problem}


def local_keys() -> set[Key]:
    """Return the operations that have a report in the local folder."""
    found = {(path.parts[-3], path.parts[-2]) for path in reports_root().glob("*/*/report.json")}
    return {key for key in found if is_key(key)}


def stored_keys(profile: SystemProfile) -> set[Key]:
    """Return the operations that have a report in the object store."""
    store = object_store(profile)
    if store is None:
        return set()
    prefix = f"{profile.reports.prefix}/"
    parts = [key.removeprefix(prefix).split("/") for key in store.list(prefix)]
    found = {(part[0], part[1]) for part in parts if len(part) == 3 and part[2] == "report.json"}
    return {key for key in found if is_key(key)}


def object_store(profile: SystemProfile) -> ObjectStoreHook | None:
    """Return the store that reports are kept in; None when the profile names no bucket."""
    if not profile.reports.bucket:
        return None
    return ObjectStoreHook(profile.connections.object_store, bucket=profile.reports.bucket)


def is_key(key: Key) -> bool:
    """Return whether a procedure and an operation have the shape that their pages ask for."""
    return bool(re.fullmatch(PROCEDURE, key[0]) and re.fullmatch(OPERATION, key[1]))


def moment(key: Key) -> tuple[str, str]:
    """Return the UTC time in an operation's id, to sort by; the id itself where it has none."""
    time = re.search(r"-(\d{8}t\d{6})-[0-9a-f]{6}$", key[1])
    return (time[1] if time else "", key[1])


def page(template: str, **facts: Any) -> Response:
    """Return a page made of a template of ``include/reports``."""
    loader = jinja2.FileSystemLoader(PROJECT_ROOT / "include" / "reports")
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    return Response(environment.get_template(template).render(**facts), media_type=PAGE)
