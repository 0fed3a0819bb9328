"""The pages of past operations: who may read them, and what they show."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

with warnings.catch_warnings():
    # Airflow's API imports things that its own dependencies call deprecated.
    warnings.simplefilter("ignore")
    from airflow.api_fastapi.core_api.security import get_user

    from nephoran_maintenance import report_pages

from nephoran_maintenance.airflow_edge import interface_address
from nephoran_maintenance.engine.report_files import render
from nephoran_maintenance.errors import PermanentError, TransientError

PROCEDURE = "rolling_upgrade"
OPERATION = "rolling-upgrade-20260301t120000-abc123"
PROBE = {"sent": 15000, "failed": 0, "longest_gap_seconds": 0.1, "requests_per_second": 50, "failures": []}
ADDRESS = f"/reports/{PROCEDURE}/{OPERATION}/"


def report(operation: str = OPERATION, **facts: Any) -> dict[str, Any]:
    plain: dict[str, Any] = {
        "operation_id": operation,
        "procedure": PROCEDURE,
        "title": "Rolling upgrade",
        "system": "nephoran",
        "overall": "succeeded",
        "summary": "Every planned change is in place and verified.",
        "triggered_by": "ada",
        "started_at": "2026-03-01T12:00:00+00:00",
        "ended_at": "2026-03-01T12:05:00+00:00",
        "seconds": 300.0,
        "params": {"reason": "<script>alert(1)</script>"},
        "plan": None,
        "plan_hash": None,
        "components": [],
        "functional_test": [],
        "probe": PROBE,
        "gates": [],
        "rollback": [],
        "findings": [],
        "failed_steps": [],
    }
    return plain | facts


def write(root: Path, operation: str = OPERATION, procedure: str = PROCEDURE, **facts: Any) -> None:
    folder = root / procedure / operation
    folder.mkdir(parents=True)
    (folder / "report.json").write_text(json.dumps(report(operation, **facts)))
    (folder / "report.html").write_text(render(report(operation, **facts)))
    for name in ("probe-samples", "gate-samples", "gate-samples-rag-api"):
        (folder / f"{name}.jsonl").write_text('{"ok": true}\n')


class Store:
    """Stands in for the object store: keys with their content, or an error for every call."""

    def __init__(self, content: dict[str, bytes] | None = None, error: Exception | None = None) -> None:
        self.content = content or {}
        self.error = error

    def list(self, prefix: str) -> list[str]:
        if self.error:
            raise self.error
        return [key for key in self.content if key.startswith(prefix)]

    def get_bytes(self, key: str) -> bytes:
        if self.error:
            raise self.error
        if key not in self.content:
            raise PermanentError("not-found", f"there is no object {key}")
        return self.content[key]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NEPHORAN_REPORTS", str(tmp_path / "reports"))
    return tmp_path / "reports"


@pytest.fixture
def logged_in() -> Iterator[None]:
    """Log a user in who may read the procedure's DAG and no other."""
    report_pages.app.dependency_overrides = {
        get_user: lambda: "ada",
        report_pages.may_read_report: lambda: None,
        report_pages.permitted_procedures: lambda: {PROCEDURE},
    }
    yield
    report_pages.app.dependency_overrides = {}


@pytest.fixture
def use_store(monkeypatch: pytest.MonkeyPatch) -> Any:
    return lambda store: monkeypatch.setattr(report_pages, "object_store", lambda profile: store)


async def get(path: str, method: str = "GET") -> httpx.Response:
    transport = httpx.ASGITransport(app=report_pages.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://airflow.test") as client:
        return await client.request(method, path)


@pytest.mark.parametrize(
    "path",
    ["/reports/", ADDRESS, f"{ADDRESS}report.json", f"{ADDRESS}probe-samples.jsonl", f"{ADDRESS}gate-samples.jsonl"],
    ids=str,
)
async def test_refuses_whoever_is_not_logged_in(root: Path, path: str) -> None:
    write(root)
    assert (await get(path)).status_code == 401


async def test_refuses_who_may_not_read_the_dag(root: Path, logged_in: None, monkeypatch: pytest.MonkeyPatch) -> None:
    class Manager:
        def is_authorized_dag(self, *, method: str, details: Any, **rest: Any) -> bool:
            return (method, details.id) != ("GET", PROCEDURE)

    security = "airflow.api_fastapi.core_api.security"
    monkeypatch.setattr(f"{security}.get_auth_manager", Manager)
    monkeypatch.setattr(f"{security}.DagModel.get_team_name", lambda dag_id: None)
    del report_pages.app.dependency_overrides[report_pages.may_read_report]
    write(root)
    write(root, procedure="preflight")
    assert (await get(ADDRESS)).status_code == 403
    assert (await get(ADDRESS.replace(PROCEDURE, "preflight"))).status_code == 200


async def test_serves_a_report_with_its_data_beside_it(root: Path, logged_in: None) -> None:
    write(root)
    page = await get(ADDRESS)
    assert page.status_code == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "Every planned change is in place" in page.text
    assert (await get(f"{ADDRESS}report.json")).json()["operation_id"] == OPERATION
    for name in ("probe-samples", "gate-samples", "gate-samples-rag-api"):
        assert (await get(f"{ADDRESS}{name}.jsonl")).json() == {"ok": True}


async def test_serves_no_script_and_forbids_all(root: Path, logged_in: None) -> None:
    write(root)
    for path in ("/reports/", ADDRESS):
        page = await get(path)
        policy = page.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "script-src" not in policy
        assert "<script" not in page.text
        assert page.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    "path",
    [
        "/reports/rolling_upgrade/..%2f..%2fpasswords.json/",
        "/reports/%2e%2e/operation-1/report.json",
        "/reports/rolling_upgrade/%2e%2e/report.json",
        "/reports/rolling_upgrade/..%5c..%5cx/report.json",
        "/reports/rolling_upgrade/a%00b/",
        "/reports/rolling_upgrade/a%0a/",
        "/reports/Rolling.Upgrade/operation-1/",
        f"{ADDRESS}report.html",
        f"{ADDRESS}gate-samples-..%2f..%2fpasswords.jsonl",
        f"{ADDRESS}gate-samples-.jsonl",
        f"{ADDRESS}..%2f..%2f..%2fairflow.cfg",
    ],
    ids=str,
)
async def test_refuses_to_leave_the_folder_of_reports(root: Path, logged_in: None, path: str) -> None:
    write(root)
    (root / "report.json").write_text("{}")
    (root / PROCEDURE / "report.json").write_text("{}")
    assert (await get(path)).status_code in (404, 422)


@pytest.mark.parametrize("path", ["/docs", "/redoc", "/openapi.json"], ids=str)
async def test_offers_no_description_of_itself(logged_in: None, path: str) -> None:
    assert (await get(path)).status_code == 404


async def test_only_reads(root: Path, logged_in: None) -> None:
    write(root)
    assert (await get(ADDRESS, "POST")).status_code == 405
    assert (await get(ADDRESS, "DELETE")).status_code == 405


async def test_fetches_from_the_object_store_what_is_not_here(root: Path, logged_in: None, use_store: Any) -> None:
    use_store(Store({f"reports/{PROCEDURE}/{OPERATION}/report.html": b"stored"}))
    assert (await get(ADDRESS)).text == "stored"
    missing = await get(f"{ADDRESS}report.json")
    assert missing.status_code == 404
    assert OPERATION in missing.json()["detail"]


async def test_says_so_when_the_object_store_does_not_answer(root: Path, logged_in: None, use_store: Any) -> None:
    write(root)
    use_store(Store(error=TransientError("object-store-unreachable", "the object store does not answer")))
    assert (await get(ADDRESS)).status_code == 200
    assert (await get(ADDRESS.replace("abc123", "000000"))).status_code == 503
    page = (await get("/reports/")).text
    assert "the object store does not answer" in page
    assert OPERATION in page


async def test_lists_operations_of_both_places_newest_first(root: Path, logged_in: None, use_store: Any) -> None:
    newer, oldest = "rolling-upgrade-20260302t120000-abc123", "rolling-upgrade-20260228t120000-abc123"
    write(root)
    write(root, oldest, overall="rolled-back", probe=PROBE | {"sent": 900, "failed": 7, "longest_gap_seconds": 1.5})
    use_store(Store({f"reports/{PROCEDURE}/{newer}/report.json": json.dumps(report(newer)).encode()}))
    page = (await get("/reports/")).text
    places = [page.index(f'href="{PROCEDURE}/{operation}/"') for operation in (newer, OPERATION, oldest)]
    assert places == sorted(places)
    for shown in ("rolled back", "ada", "2026-03-01 12:00:00 UTC", "300.0 s", "15000", "1.5 s"):
        assert shown in page


async def test_lists_nothing_of_a_dag_that_the_user_may_not_read(root: Path, logged_in: None) -> None:
    write(root, "secret-20260301t120000-abc123", procedure="secret")
    page = (await get("/reports/")).text
    assert "secret" not in page
    assert "No operation has left a report yet" in page


async def test_lists_an_operation_whose_report_is_broken(root: Path, logged_in: None) -> None:
    write(root)
    (root / PROCEDURE / OPERATION / "report.json").write_text('{"overall": ')
    page = await get("/reports/")
    assert page.status_code == 200
    assert OPERATION in page.text
    assert "be read" in page.text


def test_address_keeps_the_path_that_airflow_lives_below(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", "https://tools.example/airflow/")
    assert interface_address("/maintenance/reports/") == "/airflow/maintenance/reports/"
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", "http://127.0.0.1:8080")
    assert interface_address("/maintenance/reports/") == "/maintenance/reports/"


def test_plugin_needs_no_web_framework_before_the_first_request() -> None:
    import subprocess
    import sys

    code = (
        "import sys, nephoran_maintenance_plugin as plugin;"
        "print('nephoran_maintenance.report_pages' in sys.modules, 'airflow.api_fastapi.core_api.security' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=plugin_env())
    assert result.stdout.split()[-2:] == ["False", "False"]


def plugin_env() -> dict[str, str]:
    plugins = Path(report_pages.__file__).parents[1]
    return os.environ | {"PYTHONPATH": str(plugins), "PYTHONWARNINGS": "ignore"}
