"""The lease in the cluster: one owner at a time, whoever asks at once, and nobody's clock but the server's."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from nephoran_maintenance.errors import PermanentError
from nephoran_maintenance.hooks.cluster import ClusterHook
from nephoran_maintenance.hooks.lease_store import LeaseStore
from nephoran_maintenance.hooks.switches import check_switches
from nephoran_maintenance.profile import load_profile
from tests.unit.fake_cluster import LEASES
from tests.unit.hooks.fake_servers import FakeCluster, Server, connection_json, kube_config, serving

PROFILE = load_profile(Path(__file__).resolve().parents[2] / "include" / "profiles" / "nephoran.yaml")
ME, OTHER = "rolling-upgrade-a", "rolling-upgrade-b"
PATH = f"{LEASES}/nephoran"


class Leases(FakeCluster):
    def _get(self, request: Any) -> Any:
        return super()._get(request) if request.path in self.objects else self.missing(request)

    def missing(self, request: Any) -> Any:
        from tests.unit.hooks.fake_servers import status_object

        return status_object(404, "NotFound", "no lease")


class Lab:
    def __init__(self, cluster: FakeCluster, server: Server) -> None:
        self.cluster, self.server = cluster, server
        self.store = LeaseStore(ClusterHook("kubernetes_test"), PROFILE)

    def pass_time(self, seconds: float) -> None:
        """Let the last renewal lie so many seconds back."""
        spec = self.cluster.objects[PATH]["spec"]
        spec["renewTime"] = (datetime.now(UTC) - timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")

    @property
    def spec(self) -> dict[str, Any]:
        return dict(self.cluster.objects[PATH]["spec"])


@pytest.fixture
def lab(monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    cluster = Leases()
    with serving(cluster) as server:
        extra = {"kube_config": kube_config(server.url)}
        monkeypatch.setenv("AIRFLOW_CONN_KUBERNETES_TEST", connection_json(conn_type="kubernetes", extra=extra))
        yield Lab(cluster, server)


def reference(error: pytest.ExceptionInfo[PermanentError]) -> str:
    return error.value.reference


def test_shows_owner_procedure_and_since_when(lab: Lab) -> None:
    assert lab.store.look() == (None, None)
    assert lab.store.take(ME, "rolling_upgrade", list).token == 1
    lease, now = lab.store.look()
    assert lease is not None
    assert now is not None
    assert (lease.holder, lease.procedure) == (ME, "rolling_upgrade")
    assert abs((now - lease.taken_at).total_seconds()) < 5
    assert lab.spec["leaseDurationSeconds"] == 60


def test_a_second_owner_is_refused_with_the_name_of_the_first(lab: Lab) -> None:
    lab.store.take(ME, "rolling_upgrade", list)
    with pytest.raises(PermanentError, match=ME) as error:
        lab.store.take(OTHER, "rolling_upgrade", list)
    assert reference(error) == "lease-held"
    assert lab.spec["holderIdentity"] == ME


def test_the_lease_of_a_dead_owner_is_taken_over_and_the_dead_one_notices(lab: Lab) -> None:
    mine = lab.store.take(ME, "rolling_upgrade", list)
    lab.pass_time(61)
    assert lab.store.take(OTHER, "recover_operation").token == 2
    with pytest.raises(PermanentError) as error:
        mine.keep()
    assert reference(error) == "lease-lost"
    assert lab.spec["holderIdentity"] == OTHER


def test_what_a_dead_owner_left_open_bars_an_operation_but_not_a_recovery(lab: Lab) -> None:
    lab.store.take(OTHER, "rolling_upgrade", list)
    lab.pass_time(61)
    with pytest.raises(PermanentError, match=OTHER) as error:
        lab.store.take(ME, "rolling_upgrade", lambda: [OTHER])
    assert reference(error) == "operation-abandoned"
    assert lab.store.take(ME, "recover_operation").token == 2


def test_a_living_run_whose_lease_expired_takes_it_again_with_the_same_token(lab: Lab) -> None:
    mine = lab.store.take(ME, "rolling_upgrade", list)
    lab.pass_time(3600)
    mine.keep()
    assert (lab.spec["holderIdentity"], lab.spec["leaseTransitions"]) == (ME, 1)
    with pytest.raises(PermanentError) as error:
        lab.store.take(OTHER, "rolling_upgrade", list)
    assert reference(error) == "lease-held"


def test_is_renewed_only_when_it_is_due(lab: Lab) -> None:
    mine = lab.store.take(ME, "rolling_upgrade", list)
    writes = len(lab.server.requests("PUT"))
    mine.keep()
    assert len(lab.server.requests("PUT")) == writes
    lab.pass_time(12)
    mine.keep()
    assert len(lab.server.requests("PUT")) == writes + 1


def test_taking_it_anew_fences_out_what_held_it_before(lab: Lab) -> None:
    forward = lab.store.take(ME, "rolling_upgrade", list)
    lab.store.take(ME, "rolling_upgrade")
    with pytest.raises(PermanentError) as error:
        forward.keep()
    assert reference(error) == "lease-lost"


def test_release_and_let_go_touch_only_our_own(lab: Lab) -> None:
    lab.store.take(ME, "rolling_upgrade", list)
    assert not lab.store.release(OTHER)
    assert not lab.store.let_go(OTHER)
    assert lab.store.let_go(ME)
    assert lab.store.take(OTHER, "recover_operation").token == 2
    assert lab.store.release(OTHER)
    assert "holderIdentity" not in lab.spec
    assert lab.spec["leaseTransitions"] == 2


def test_of_many_that_ask_at_once_one_gets_it(lab: Lab) -> None:
    def attempt(number: int) -> str:
        store = LeaseStore(ClusterHook("kubernetes_test"), PROFILE)
        try:
            return store.take(f"operation-{number}", "rolling_upgrade", list).holder
        except PermanentError as error:
            return error.reference

    with ThreadPoolExecutor(8) as pool:
        answers = sorted(pool.map(attempt, range(8)))
    assert answers == ["lease-held"] * 7 + [lab.spec["holderIdentity"]]
    assert lab.spec["leaseTransitions"] == 1


@pytest.mark.parametrize(
    ("data", "forward", "back"),
    [
        pytest.param(None, True, True, id="no ConfigMap"),
        pytest.param({}, True, True, id="nothing set"),
        pytest.param({"stop": "off", "halt": "false"}, True, True, id="both off"),
        pytest.param({"stop": "on"}, False, True, id="stop"),
        pytest.param({"halt": "TRUE"}, False, False, id="halt"),
    ],
)
def test_switches(lab: Lab, data: dict[str, str] | None, forward: bool, back: bool) -> None:
    if data is not None:
        lab.cluster.put("/api/v1/namespaces/ns/configmaps", {"metadata": {"name": "switches"}, "data": data})
    cluster = ClusterHook("kubernetes_test")
    for goes_forward, allowed in ((True, forward), (False, back)):
        if allowed:
            check_switches(cluster, "ns", forward=goes_forward)
            continue
        with pytest.raises(PermanentError) as error:
            check_switches(cluster, "ns", forward=goes_forward)
        assert reference(error) == "switched-off"
