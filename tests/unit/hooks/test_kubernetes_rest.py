"""Paths, selectors and event choice of the cluster hooks."""

from __future__ import annotations

from typing import Any

import pytest

from nephoran_maintenance.hooks.kubernetes_rest import (
    Resource,
    events_about,
    list_items,
    resource_of,
    resource_path,
    selector_text,
    server_name,
)
from tests.unit.hooks.fake_servers import deployment, event, pod


@pytest.mark.parametrize(
    ("kind", "namespace", "name", "path"),
    [
        ("Pod", "ns", "p", "/api/v1/namespaces/ns/pods/p"),
        ("Pod", None, None, "/api/v1/pods"),
        ("Node", "ns", "n", "/api/v1/nodes/n"),
        ("Deployment", "ns", None, "/apis/apps/v1/namespaces/ns/deployments"),
        ("Lease", "ns", "l", "/apis/coordination.k8s.io/v1/namespaces/ns/leases/l"),
        ("ClusterRole", None, "system:node", "/apis/rbac.authorization.k8s.io/v1/clusterroles/system:node"),
        (Resource("a.b", "v1alpha1", "things"), "ns", "t", "/apis/a.b/v1alpha1/namespaces/ns/things/t"),
        ("ConfigMap", "ns", "../secrets/s", "/api/v1/namespaces/ns/configmaps/..%2Fsecrets%2Fs"),
    ],
)
def test_paths(kind: Any, namespace: str | None, name: str | None, path: str) -> None:
    assert resource_path(resource_of(kind), namespace, name) == path


@pytest.mark.parametrize(
    ("selector", "text"),
    [
        (None, None),
        ("app=a", "app=a"),
        ({"b": "2", "a": "1"}, "a=1,b=2"),
        ({"matchLabels": {"a": "1"}}, "a=1"),
        (
            {
                "matchLabels": {"a": "1"},
                "matchExpressions": [
                    {"key": "k", "operator": "In", "values": ["y", "x"]},
                    {"key": "l", "operator": "NotIn", "values": ["z"]},
                    {"key": "m", "operator": "Exists"},
                    {"key": "n", "operator": "DoesNotExist"},
                ],
            },
            "a=1,k in (x,y),l notin (z),m,!n",
        ),
    ],
    ids=["none", "text", "labels", "match-labels", "match-expressions"],
)
def test_selectors(selector: Any, text: str | None) -> None:
    assert selector_text(selector) == text


def test_items_of_a_list_carry_their_kind() -> None:
    body = {"kind": "PodList", "apiVersion": "v1", "items": [{"metadata": {"name": "p"}}]}
    assert list_items(body) == [{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}}]
    assert list_items({"kind": "PodList", "apiVersion": "v1", "items": None}) == []


def test_events_about_a_workload_leave_out_its_neighbours() -> None:
    events = [
        event(f"e-{number}", about, "R", "m")
        for number, about in enumerate(
            [
                ("Deployment", "rag"),
                ("Deployment", "rag-api"),
                ("ReplicaSet", "rag-api-5f6d"),
                ("Pod", "rag-api-5f6d-x"),
            ]
        )
    ]
    chosen = events_about(events, deployment("rag-api"), [pod("rag-api-5f6d-x", "rag-api")])
    assert [found["metadata"]["name"] for found in chosen] == ["e-1", "e-2", "e-3"]


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("https://10.201.0.1:6443", "10.201.0.1:6443"),
        ("https://api.example", "api.example:443"),
        ("http://127.0.0.1", "127.0.0.1:80"),
    ],
)
def test_server_name_has_a_port(host: str, name: str) -> None:
    assert server_name(host) == name
