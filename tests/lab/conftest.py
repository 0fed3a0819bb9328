"""The lab that the tests of this folder share: one real cluster per test run, in the variant ``fast``.

``NEPHORAN_LAB_KEEP=1`` leaves it up afterwards, so that the next run starts at once.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from lab.airflow import Airflow
from lab.airflow_access import grant_access, write_profile
from lab.airflow_client import AirflowClient
from lab.availability import obstacle
from lab.cluster import Cluster
from lab.config import LabConfig
from lab.progress import Progress
from lab.registry_proxy import ADMIN_PATH
from lab.system import deployment

VARIANT = "fast"
PROFILE_OF = {"no-policy": "fast", "json-metrics": "fast"}
"""Variants that differ from what the profile wants, or in nothing that it says."""
RUN_LIMIT = timedelta(minutes=15)


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


@contextmanager
def failing_registry(config: LabConfig, repository: str, reference: str) -> Iterator[Callable[[], int]]:
    """Let the registry answer 503 to the next pull of an image; yield what tells how often it still will.

    Disarms whatever was armed before and what is left of it afterwards.
    """
    address = f"http://{config.registry}{ADMIN_PATH}"
    with httpx.Client(trust_env=False) as registry:
        registry.delete(address).raise_for_status()
        arming = {"repository": repository, "reference": reference, "count": 1, "status": 503}
        registry.put(address, params=arming).raise_for_status()
        try:
            yield lambda: sum(failure["left"] for failure in registry.get(address).raise_for_status().json())
        finally:
            registry.delete(address).raise_for_status()


class Upgrades:
    """The rolling upgrade of the lab's own Airflow: set the system up, run the procedure, read what it left behind."""

    limit = RUN_LIMIT

    def __init__(self, lab: Lab, airflow: Airflow) -> None:
        self.lab = lab
        self.airflow = airflow
        self._client = airflow.client()

    @property
    def client(self) -> AirflowClient:
        """A client of the Airflow that runs now: one that was killed may have come back at another port."""
        if self._client.url != self.airflow.instance.url:
            self._client = self.airflow.client()
        return self._client

    def prepare(
        self,
        variant: str = VARIANT,
        versions: Mapping[str, str] | None = None,
        *,
        gate: str = "off",
        may_fail: Collection[str] = (),
        before_change: str = "none",
    ) -> None:
        """Put the system back to v1 of a variant, and the profile to the same; ``for_variant`` has the rest.

        No version is in quarantine any more: tests fail on purpose, and each one begins anew. Nothing is backed up before
        a change: that has tests of its own, and takes longer than most of what is tested here.
        """
        deployment.reset(self.lab.config, variant, versions)
        self.lab.kubectl(
            "delete", "configmap", "quarantine-nephoran", "--namespace=nephoran-maintenance", "--ignore-not-found"
        )
        profile = self.lab.config.home / "profile.yaml"
        write_profile(self.lab.config, profile, PROFILE_OF.get(variant, variant), gate, may_fail, before_change)

    def run(self, dag_id: str = "rolling_upgrade", **params: Any) -> Run:
        """Run a procedure to its end and return how it went."""
        return self.ended(self.start(dag_id, **params), dag_id)

    def start(self, dag_id: str = "rolling_upgrade", **params: Any) -> str:
        """Start a procedure and return the id of its run."""
        self.client.await_dag(dag_id)
        return self.client.trigger(dag_id, params)

    def ended(self, run_id: str, dag_id: str = "rolling_upgrade") -> Run:
        """Return how a run went, once it has ended."""
        state = str(self.client.follow(dag_id, run_id, timeout=RUN_LIMIT)["state"])
        return Run(self.client, dag_id, run_id, state)

    def images(self) -> dict[str, str]:
        """Return by workload the image of its component's container."""
        return {name: found["images"][-1] for name, found in deployment.status(self.lab.config).items()}

    def specs(self) -> dict[str, Any]:
        """Return by workload its whole spec, as the API server has it."""
        found = self.lab.get("deployments,statefulsets", namespace="nephoran-system")["items"]
        return {item["metadata"]["name"]: item["spec"] for item in found}


@dataclass(frozen=True)
class Run:
    """A run of a procedure that has ended."""

    client: AirflowClient
    dag_id: str
    run_id: str
    state: str

    @property
    def report(self) -> dict[str, Any]:
        return dict(self.client.xcom(self.dag_id, self.run_id, "report_operation"))

    @property
    def steps(self) -> dict[str, str | None]:
        return {task.task_id: task.state for task in self.client.task_states(self.dag_id, self.run_id)}

    def error(self, task_id: str) -> str:
        """Return the error that a step has left."""
        return str(self.client.xcom(self.dag_id, self.run_id, task_id, "error"))

    def explain(self) -> str:
        """Return the failed steps with their errors, for the message of an assertion."""
        failed = [task_id for task_id, state in self.steps.items() if state == "failed"]
        return "\n".join(f"{task_id}: {self.error(task_id)}" for task_id in failed) or f"no failed step, {self.state}"


@pytest.fixture(scope="session")
def upgrades(lab: Lab) -> Iterator[Upgrades]:
    """Return the procedures of an Airflow beside the lab; it is stopped afterwards, unless the lab is kept."""
    airflow = Airflow.of_lab(lab.config, Progress())
    # Tests kill workers; Airflow would take five minutes to notice.
    airflow.instance = dataclasses.replace(airflow.instance, heartbeat_timeout_seconds=60)
    grant_access(lab.config, airflow.instance, variant=VARIANT)
    airflow.up()
    yield Upgrades(lab, airflow)
    if os.environ.get("NEPHORAN_LAB_KEEP") != "1":
        airflow.down()
