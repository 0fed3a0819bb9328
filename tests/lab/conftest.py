"""The lab that the tests of this folder share: one real cluster per test run, in the variant ``fast``.

``NEPHORAN_LAB_KEEP=1`` leaves it up afterwards, so that the next run starts at once.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lab.availability import obstacle
from lab.cluster import Cluster
from lab.config import LabConfig
from lab.progress import Progress

VARIANT = "fast"


@dataclass(frozen=True)
class Lab:
    """What a test needs of the lab: its addresses and secrets, and its administrator's hands."""

    config: LabConfig
    cluster: Cluster

    def kubectl(self, *arguments: str, input: str | None = None) -> str:
        return self.cluster.kubectl(*arguments, input=input)

    def get(self, kind: str, name: str = "", namespace: str = "") -> Any:
        """Return an object, or a list when no name is given, as in JSON."""
        where = ("--namespace", namespace) if namespace else ()
        return json.loads(self.kubectl("get", kind, *((name,) if name else ()), *where, "--output=json"))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip every lab test, loudly, on a machine that can't run a lab; under CI that is a failure instead."""
    own = [item for item in items if item.path.is_relative_to(Path(__file__).parent)]
    found = obstacle() if own else None
    if found is None:
        return
    reason, remedy = found
    text = f"LAB TESTS SKIPPED: {reason}. To enable them: {remedy}."
    if os.environ.get("CI"):
        raise pytest.UsageError(f"{text} CI is set, and there they must run.")
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None:
        reporter.write_sep("=", text, red=True, bold=True)
    for item in own:
        item.add_marker(pytest.mark.skip(reason=text))


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    """Return the lab of the tests with the system in it, up; what was down before is down afterwards, unless kept."""
    config = LabConfig.named("test")
    cluster = Cluster(config, progress=Progress())
    keep = os.environ.get("NEPHORAN_LAB_KEEP") == "1" or cluster.running()
    cluster.up(variant=VARIANT, with_extras=["metrics-server"])
    refuse_other_clusters(cluster)
    yield Lab(config, cluster)
    if not keep:
        cluster.down()


def refuse_other_clusters(cluster: Cluster) -> None:
    """End the test run when the administrator's kubeconfig leads anywhere but to the lab."""
    view = json.loads(cluster.kubectl("config", "view", "--minify", "--output=json"))
    server = view["clusters"][0]["cluster"]["server"]
    nodes = json.loads(cluster.kubectl("get", "nodes", "--output=json"))["items"]
    names = [node["metadata"]["name"] for node in nodes]
    config = cluster.config
    if (view["current-context"], server, names) != (config.context, config.kubernetes_url, [config.node_name]):
        pytest.exit(f"Refusing to test on {view['current-context']} at {server} with the nodes {names}.", returncode=1)
