"""Fixtures of the edge: a cluster on loopback, and the Airflow connection that leads to it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.unit.hooks.fake_servers import FakeCluster, Server, connection_json, kube_config, serving


@pytest.fixture
def fake_cluster() -> FakeCluster:
    return FakeCluster()


@pytest.fixture
def cluster_server(fake_cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with serving(fake_cluster) as server:
        extra = {"kube_config": kube_config(server.url)}
        monkeypatch.setenv("AIRFLOW_CONN_KUBERNETES_TEST", connection_json(conn_type="kubernetes", extra=extra))
        yield server
