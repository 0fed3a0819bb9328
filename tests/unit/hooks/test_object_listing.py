"""Listing everything that a cluster holds: pages, lists that begin again, an API server that is away, what is forbidden."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

from nephoran_maintenance.domain.capture import Listing, Served
from nephoran_maintenance.errors import PermanentError, TransientError
from nephoran_maintenance.hooks.cluster import ClusterHook
from nephoran_maintenance.hooks.object_listing import AGGREGATED, ObjectLister, Page, ahead, forbidden_error
from tests.unit.hooks.fake_servers import FakeCluster, Received, Reply, Server, status_object

MAPS = Served("", "v1", "configmaps", "ConfigMap", True)
SECRETS = Served("", "v1", "secrets", "Secret", True)
LISTING = Listing(MAPS, "ns", "object")
PATH = "/api/v1/namespaces/ns/configmaps"


class Clock:
    """Time that passes only by sleeping."""

    def __init__(self) -> None:
        self.now = 0.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def lister(cluster_server: Server, clock: Clock) -> ObjectLister:
    return ObjectLister(ClusterHook("kubernetes_test"), sleep=clock.sleep, monotonic=clock.monotonic)


def fill(fake_cluster: FakeCluster, count: int, *, path: str = PATH, characters: int = 0) -> None:
    for number in range(count):
        found = {"metadata": {"name": f"x-{number:04d}"}, "data": {"text": "x" * characters}}
        fake_cluster.put(path, {"kind": "ConfigMap", "apiVersion": "v1", **found})


def names(pages: list[Page]) -> list[str]:
    return [found["metadata"]["name"] for page in pages for found in page.objects()]


def test_lists_every_object_once_page_by_page(
    lister: ObjectLister, fake_cluster: FakeCluster, cluster_server: Server
) -> None:
    fill(fake_cluster, 120)
    pages = list(lister.pages([LISTING]))
    assert names(pages) == [f"x-{number:04d}" for number in range(120)]
    assert [len(page.items) for page in pages] == [50, 70]
    assert [(page.first, page.again, page.last) for page in pages] == [(True, False, False), (False, False, True)]
    assert [request.query["limit"] for request in cluster_server.requests(path=PATH)] == ["50", "500"]


def test_asks_for_fewer_objects_where_they_are_large(
    cluster_server: Server, fake_cluster: FakeCluster, clock: Clock
) -> None:
    fill(fake_cluster, 80, characters=1000)
    lister = ObjectLister(ClusterHook("kubernetes_test"), page_bytes=11_000, sleep=clock.sleep)
    assert [len(page.items) for page in lister.pages([LISTING])] == [50, 10, 10, 10]


def test_an_empty_list_is_a_page_too(lister: ObjectLister) -> None:
    [page] = lister.pages([LISTING])
    assert (page.items, page.first, page.last) == ([], True, True)


def test_begins_a_list_again_that_has_expired_and_says_so(lister: ObjectLister, fake_cluster: FakeCluster) -> None:
    fill(fake_cluster, 120)
    expired: list[Received] = []

    def expire_once(request: Received) -> Reply | None:
        if request.query.get("continue") and not expired:
            expired.append(request)
            return status_object(410, "Expired", "The provided continue parameter is too old")
        return None

    fake_cluster.fail = expire_once
    pages = list(lister.pages([LISTING]))
    begins = [number for number, page in enumerate(pages) if page.first]
    assert [(page.first, page.again) for page in pages] == [(True, False), (True, True)]
    assert names(pages[begins[-1] :]) == [f"x-{number:04d}" for number in range(120)]
    assert lister.restarts == ["configmaps in namespace ns"]


def test_gives_up_on_a_list_that_expires_again_and_again(lister: ObjectLister, fake_cluster: FakeCluster) -> None:
    lister.page_bytes = 1000
    fill(fake_cluster, 120)
    fake_cluster.fail = lambda request: (
        status_object(410, "Expired", "too old") if "continue" in request.query else None
    )
    with pytest.raises(TransientError) as caught:
        list(lister.pages([LISTING]))
    assert caught.value.reference == "list-expired"


BUSY = {
    "429": status_object(429, "TooManyRequests", "slow down"),
    "500": status_object(500, "InternalError", "etcd has no leader"),
    "503": status_object(503, "ServiceUnavailable", "starting"),
    "cut-off": Reply(hang_up=True),
    "not-json": Reply(200, b'{"items": [{"metadata"'),
}


@pytest.mark.parametrize("reply", BUSY.values(), ids=BUSY.keys())
def test_outlives_a_minute_without_an_answer(
    lister: ObjectLister, fake_cluster: FakeCluster, clock: Clock, reply: Reply
) -> None:
    fill(fake_cluster, 60)
    fake_cluster.fail = lambda request: reply if "continue" in request.query and clock.now < 60 else None
    assert len(names(list(lister.pages([LISTING])))) == 60
    assert clock.now >= 60
    assert lister.repeated_requests > 5


def test_gives_up_once_the_outage_has_lasted_too_long(
    lister: ObjectLister, fake_cluster: FakeCluster, clock: Clock
) -> None:
    fake_cluster.fail = lambda request: BUSY["503"]
    with pytest.raises(TransientError) as caught:
        list(lister.pages([LISTING]))
    assert caught.value.reference == "cluster-unavailable"
    assert clock.now <= 100


def test_two_short_outages_are_not_one_long(lister: ObjectLister, fake_cluster: FakeCluster, clock: Clock) -> None:
    lister.outage_limit = timedelta(seconds=3)
    fill(fake_cluster, 120)
    down = iter([True, True, True, False] * 2)
    fake_cluster.fail = lambda request: BUSY["503"] if next(down, False) else None
    assert len(names(list(lister.pages([LISTING])))) == 120
    assert clock.now > 3


def test_names_every_list_that_is_forbidden_and_who_may_not(
    lister: ObjectLister, fake_cluster: FakeCluster, cluster_server: Server
) -> None:
    fill(fake_cluster, 3)
    fill(fake_cluster, 3, path="/api/v1/namespaces/ns/services")
    message = 'secrets is forbidden: User "system:serviceaccount:own:backup" cannot list resource "secrets"'
    allowed = ("configmaps", "services")
    fake_cluster.fail = lambda request: (
        None if request.path.endswith(allowed) else status_object(403, "Forbidden", message)
    )
    services = Served("", "v1", "services", "Service", True)
    asked = [
        LISTING,
        *(Listing(SECRETS, name, "object") for name in ("ns", "other")),
        Listing(services, "ns", "object"),
    ]
    pages = list(lister.pages(asked))
    assert [str(page.listing) for page in pages] == ["configmaps in namespace ns"]
    error = forbidden_error(lister)
    assert isinstance(error, PermanentError)
    for part in ("secrets in namespace ns", "secrets in namespace other", "system:serviceaccount:own:backup"):
        assert part in error.message
    assert cluster_server.received[-1].query["limit"] == "1"


def test_nothing_is_forbidden_where_everything_is_allowed(lister: ObjectLister) -> None:
    list(lister.pages([LISTING]))
    assert forbidden_error(lister) is None


def test_credentials_that_end_meanwhile_end_the_listing(lister: ObjectLister, fake_cluster: FakeCluster) -> None:
    fill(fake_cluster, 60)
    fake_cluster.fail = lambda request: (
        status_object(401, "Unauthorized", "Unauthorized") if "continue" in request.query else None
    )
    with pytest.raises(PermanentError) as caught:
        list(lister.pages([LISTING]))
    assert caught.value.reference == "cluster-unauthorized"


def test_a_resource_that_is_removed_meanwhile_has_no_objects(lister: ObjectLister, fake_cluster: FakeCluster) -> None:
    fill(fake_cluster, 60)
    fake_cluster.fail = lambda request: (
        status_object(404, "NotFound", "the server could not find the requested resource")
        if "continue" in request.query
        else None
    )
    pages = list(lister.pages([LISTING]))
    assert [(page.first, page.again, page.last, len(page.items)) for page in pages] == [
        (True, False, False, 50),
        (True, True, True, 0),
    ]
    assert lister.gone == ["configmaps in namespace ns"]


def test_the_next_page_is_made_while_the_last_one_is_worked_on() -> None:
    made = [threading.Event() for _ in range(3)]

    def numbers() -> Iterator[int]:
        for number, event in enumerate(made):
            event.set()
            yield number

    for number in ahead(numbers()):
        if number < 2:
            assert made[number + 1].wait(10), "it was made only when it was asked for"


def test_what_breaks_in_the_thread_is_raised_where_it_is_read() -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise TransientError("cluster-unavailable", "away")

    with pytest.raises(TransientError, match="away"):
        list(ahead(broken()))


# --------------------------------------------------------------------------------------------------------- discovery


def group_list(name: str, *versions: str, preferred: str) -> dict[str, Any]:
    return {
        "name": name,
        "versions": [{"groupVersion": f"{name}/{version}", "version": version} for version in versions],
        "preferredVersion": {"groupVersion": f"{name}/{preferred}", "version": preferred},
    }


def resource_list(group_version: str, *plurals: str) -> Reply:
    resources = [{"name": name, "kind": name.title(), "namespaced": True, "verbs": ["list"]} for name in plurals]
    return Reply(200, {"kind": "APIResourceList", "groupVersion": group_version, "resources": resources})


def test_reads_aggregated_discovery_in_two_requests(
    lister: ObjectLister, fake_cluster: FakeCluster, cluster_server: Server
) -> None:
    def answer(name: str) -> Reply:
        resource = {
            "resource": "things",
            "responseKind": {"kind": "Thing"},
            "scope": "Namespaced",
            "verbs": ["list"],
        }
        versions = [{"version": "v1", "resources": [resource]}]
        items = [{"metadata": {"name": name}, "versions": versions}]
        return Reply(200, {"kind": "APIGroupDiscoveryList", "items": items})

    fake_cluster.extra = {"/api": answer(""), "/apis": answer("example.com")}
    assert [served.label for served in lister.discover().served] == ["things", "things.example.com"]
    assert [request.headers["accept"] for request in cluster_server.received] == [AGGREGATED] * 2


def test_reads_group_by_group_where_discovery_is_not_aggregated(
    lister: ObjectLister, fake_cluster: FakeCluster
) -> None:
    groups = [
        group_list("apps", "v1beta1", "v1", preferred="v1"),
        group_list("away.example.com", "v1", preferred="v1"),
    ]
    fake_cluster.extra = {
        "/api": Reply(200, {"kind": "APIVersions", "versions": ["v1"]}),
        "/apis": Reply(200, {"kind": "APIGroupList", "groups": groups}),
        "/api/v1": resource_list("v1", "configmaps", "pods/log"),
        "/apis/apps/v1": resource_list("apps/v1", "deployments"),
        "/apis/apps/v1beta1": resource_list("apps/v1beta1", "deployments", "scales"),
        "/apis/away.example.com/v1": status_object(503, "ServiceUnavailable", "no endpoints"),
    }
    found = lister.discover()
    assert [(served.label, served.version) for served in found.served] == [
        ("configmaps", "v1"),
        ("deployments.apps", "v1"),
        ("scales.apps", "v1beta1"),
    ]
    assert found.unreadable == ("away.example.com/v1",)


def test_discovery_outlives_an_api_server_that_starts(
    lister: ObjectLister, fake_cluster: FakeCluster, clock: Clock
) -> None:
    fake_cluster.extra = {
        "/api": Reply(200, {"kind": "APIGroupDiscoveryList", "items": []}),
        "/apis": Reply(200, {"kind": "APIGroupDiscoveryList", "items": []}),
    }
    fake_cluster.fail = lambda request: BUSY["503"] if clock.now < 30 else None
    assert lister.discover().served == ()


def test_discovery_that_is_forbidden_is_an_error(lister: ObjectLister, fake_cluster: FakeCluster) -> None:
    fake_cluster.fail = lambda request: status_object(403, "Forbidden", "no")
    with pytest.raises(PermanentError) as caught:
        lister.discover()
    assert caught.value.reference == "cluster-forbidden"
