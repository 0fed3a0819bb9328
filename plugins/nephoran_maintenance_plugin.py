"""What this product adds to Airflow's user interface: the reports of operations, below ``/maintenance``.

Every process of Airflow reads this file, each task included. So the pages and the libraries that they need are imported
at the first request only, which nothing but the API server ever gets.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow.plugins_manager import AirflowPlugin

from nephoran_maintenance.airflow_edge import interface_address
from nephoran_maintenance.settings import PAGES_PREFIX

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send


async def pages(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer a request with the pages of reports, imported at the first one."""
    from nephoran_maintenance.report_pages import app

    await app(scope, receive, send)


class NephoranMaintenancePlugin(AirflowPlugin):
    """The pages, and their place in the navigation."""

    name = "nephoran_maintenance"
    fastapi_apps = [{"app": pages, "url_prefix": PAGES_PREFIX, "name": "Maintenance reports"}]
    external_views = [
        {
            "name": "Maintenance",
            "href": interface_address(f"{PAGES_PREFIX}/reports/"),
            "url_route": "maintenance",
            "destination": "nav",
            "nav_top_level": True,
        }
    ]
