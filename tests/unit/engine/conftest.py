"""The fixtures of the hooks' tests serve here too."""

from __future__ import annotations

from tests.unit.hooks.conftest import cluster_server, fake_cluster

__all__ = ["cluster_server", "fake_cluster"]
