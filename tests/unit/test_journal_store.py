"""Journals in the cluster: written once, changed with optimistic locking, never lost to somebody else's write."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from nephoran_maintenance.domain.journal import STATE_LABEL, Journal, JournalEntry, Workload
from nephoran_maintenance.errors import PermanentError, TransientError, UnknownStateError
from nephoran_maintenance.hooks.cluster import ClusterHook
from nephoran_maintenance.hooks.journal_store import CONFLICT_TRIES, OPEN_JOURNALS, JournalStore
from tests.unit.domain.kubernetes_objects import at
from tests.unit.hooks.fake_servers import FakeCluster, Server, connection_json, kube_config, serving, status_object

NAMESPACE = "nephoran-maintenance"
PATH = f"/api/v1/namespaces/{NAMESPACE}/configmaps"
NAME = "rolling-upgrade-20261123t100000-abcdef"


class Lab:
    def __init__(self, cluster: FakeCluster, server: Server) -> None:
        self.cluster, self.server = cluster, server
        self.store = JournalStore(ClusterHook("kubernetes_test"), NAMESPACE)

    @property
    def stored(self) -> dict[str, Any]:
        return self.cluster.objects[f"{PATH}/{NAME}"]


@pytest.fixture
def lab(monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    cluster = FakeCluster()
    with serving(cluster) as server:
        extra = {"kube_config": kube_config(server.url)}
        monkeypatch.setenv("AIRFLOW_CONN_KUBERNETES_TEST", connection_json(conn_type="kubernetes", extra=extra))
        yield Lab(cluster, server)


def journal(name: str = NAME, started: float = 0) -> Journal:
    workload = Workload(kind="Deployment", namespace="ns", name="rag-api")
    entry = JournalEntry(component="rag-api", kind="image", workload=workload, before={"a": 1}, intended={"a": 2})
    return Journal(
        operation_id=name,
        procedure="rolling_upgrade",
        run_id="manual__1",
        system="nephoran",
        plan_hash="h",
        started_at=at(started),
        entries=(entry,),
    )


def applied(found: Journal) -> Journal:
    return found.moved("rag-api", "image", "applied", at(1))


def test_what_is_written_is_read_back(lab: Lab) -> None:
    assert lab.store.create(journal()) == journal()
    assert lab.store.read(NAME) == journal()
    assert lab.store.find("another") is None
    with pytest.raises(PermanentError) as error:
        lab.store.read("another")
    assert error.value.reference == "not-found"


def test_creating_again_returns_what_is_stored_and_writes_nothing(lab: Lab) -> None:
    lab.store.create(journal())
    lab.store.update(NAME, applied)
    writes = len(lab.server.requests("POST")) + len(lab.server.requests("PUT"))
    assert lab.store.create(journal()) == applied(journal())
    assert len(lab.server.requests("POST")) + len(lab.server.requests("PUT")) == writes


def test_an_update_names_the_version_that_it_was_decided_on(lab: Lab) -> None:
    lab.store.create(journal())
    version = lab.stored["metadata"]["resourceVersion"]
    assert lab.store.update(NAME, applied) == applied(journal())
    put = lab.server.requests("PUT")[-1].json
    assert put["metadata"]["resourceVersion"] == version


def test_an_update_that_changes_nothing_writes_nothing(lab: Lab) -> None:
    lab.store.create(journal())
    lab.store.update(NAME, lambda found: found)
    assert lab.server.requests("PUT") == []


def test_a_write_of_somebody_else_in_between_is_kept(lab: Lab) -> None:
    lab.store.create(journal())
    calls = 0

    def change(found: Journal) -> Journal:
        nonlocal calls
        calls += 1
        if calls == 1:
            lab.store.annotate(NAME, {"maintenance.nephoran.com/probe": "stop"})
            lab.store.update(NAME, lambda other: other.model_copy(update={"fencing_token": 7}))
        return applied(found)

    stored = lab.store.update(NAME, change)
    assert calls == 2
    assert stored.fencing_token == 7
    assert stored.entries[0].step == "applied"
    assert lab.stored["metadata"]["annotations"] == {"maintenance.nephoran.com/probe": "stop"}


def test_gives_up_when_every_write_meets_another(lab: Lab) -> None:
    lab.store.create(journal())
    lab.cluster.fail = lambda r: status_object(409, "Conflict", "modified") if r.method == "PUT" else None
    with pytest.raises(TransientError) as error:
        lab.store.update(NAME, applied)
    assert error.value.reference == "conflict"
    assert len(lab.server.requests("PUT")) == CONFLICT_TRIES


@pytest.mark.parametrize(("status", "requests"), [(403, 2), (500, 1)])
def test_any_other_error_is_not_tried_again(lab: Lab, status: int, requests: int) -> None:
    """But for what is forbidden: the hook to the cluster asks once more, in case the API server has just started."""
    lab.store.create(journal())
    lab.cluster.fail = lambda r: status_object(status, "x", "no") if r.method == "PUT" else None
    with pytest.raises((PermanentError, TransientError)):
        lab.store.update(NAME, applied)
    assert len(lab.server.requests("PUT")) == requests


def test_a_damaged_journal_is_an_unknown_state_and_is_not_overwritten(lab: Lab) -> None:
    lab.store.create(journal())
    lab.stored["data"]["journal.json"] = "{"
    with pytest.raises(UnknownStateError) as error:
        lab.store.update(NAME, applied)
    assert error.value.reference == "journal-unreadable"
    assert lab.server.requests("PUT") == []


def test_all_journals_are_listed_newest_first(lab: Lab) -> None:
    lab.store.create(journal("older", 0))
    lab.store.create(journal("newer", 60))
    lab.cluster.put(PATH, {"metadata": {"name": "something-else"}, "data": {}})
    assert [found.operation_id for found in lab.store.all()] == ["newer", "older"]


def test_a_write_with_another_token_is_refused_in_the_same_replace(lab: Lab) -> None:
    lab.store.create(journal().fenced(7))
    assert lab.store.update(NAME, applied, token=7).entries[0].step == "applied"
    lab.store.update(NAME, lambda found: found.fenced(8))
    writes = len(lab.server.requests("PUT"))
    with pytest.raises(PermanentError) as error:
        lab.store.update(NAME, lambda found: found.turned_back(at(2)), token=7)
    assert error.value.reference == "lease-lost"
    assert len(lab.server.requests("PUT")) == writes


def test_an_owner_that_comes_between_look_and_write_wins(lab: Lab) -> None:
    lab.store.create(journal().fenced(7))

    def late(found: Journal) -> Journal:
        if found.fencing_token == 7:
            lab.store.update(NAME, lambda other: other.fenced(8))
        return applied(found)

    with pytest.raises(PermanentError) as error:
        lab.store.update(NAME, late, token=7)
    assert error.value.reference == "lease-lost"
    assert lab.store.read(NAME).entries[0].step == "planned"


def test_the_journal_can_not_be_taken_back_from_a_newer_owner() -> None:
    with pytest.raises(PermanentError) as error:
        journal().fenced(8).fenced(7)
    assert error.value.reference == "lease-lost"


def test_keeps_a_number_of_closed_journals_and_every_open_one(lab: Lab) -> None:
    for number in range(5):
        closed = journal(f"closed-{number}").closed("succeeded", at(1))
        lab.store.create(closed)
        lab.cluster.objects[f"{PATH}/closed-{number}"]["metadata"]["creationTimestamp"] = f"2026-11-2{number}T00:00:00Z"
    lab.store.create(journal("open"))
    assert lab.store.open_operations() == ["open"]
    assert lab.store.prune(2) == ["closed-2", "closed-1", "closed-0"]
    assert {found.operation_id for found in lab.store.all()} == {"closed-3", "closed-4", "open"}
    assert lab.store.prune(2) == []


def test_a_way_back_and_a_verified_whole_are_marked_once(lab: Lab) -> None:
    marked = journal().turned_back(at(1)).turned_back(at(2)).seen_good(at(3)).seen_good(at(4))
    assert (marked.turned_back_at, marked.verified_at) == (at(1), at(3))
    lab.store.create(marked)
    assert lab.store.read(NAME) == marked
    opened = marked.closed("succeeded", at(5)).reopened(at(6))
    assert (opened.state, opened.outcome, opened.closed_at, opened.turned_back_at) == ("open", None, None, at(1))


def test_systems_that_share_the_namespace_do_not_see_each_others_operations(lab: Lab) -> None:
    lab.store.create(journal("our-own"))
    lab.store.create(journal("foreign").model_copy(update={"system": "another"}))
    lab.cluster.put(PATH, {"metadata": {"name": "damaged", "labels": OPEN_JOURNALS}, "data": {}})
    ours = JournalStore(lab.store.cluster, NAMESPACE, "nephoran")
    assert sorted(ours.open_operations()) == ["damaged", "our-own"], "one that can't be read bars everybody"
    assert sorted(lab.store.open_operations()) == ["damaged", "foreign", "our-own"]


def test_tells_what_was_open_at_any_time_since_a_moment(lab: Lab) -> None:
    for name, closed in {"ended-before": 5.0, "ended-after": 15.0, "open": None}.items():
        made = journal(name)
        lab.store.create(made if closed is None else made.closed("succeeded", at(closed)))
    lab.cluster.put(PATH, unreadable("unreadable-open", "open"))
    lab.cluster.put(PATH, unreadable("unreadable-closed", "closed"))
    assert lab.store.open_since(at(10)) == ["ended-after", "open", "unreadable-open"]


def unreadable(name: str, state: str) -> dict[str, Any]:
    labels = {**OPEN_JOURNALS, STATE_LABEL: state}
    return {"kind": "ConfigMap", "metadata": {"name": name, "namespace": NAMESPACE, "labels": labels}, "data": {}}
