"""The fixtures of the hooks' tests serve here too."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

HOOKS_TESTS = Path(__file__).parents[1] / "hooks"
sys.path.insert(0, str(HOOKS_TESTS))

_spec = importlib.util.spec_from_file_location("edge_fixtures", HOOKS_TESTS / "conftest.py")
if _spec is None or _spec.loader is None:
    raise ImportError("the fixtures of the hooks' tests are missing")
_module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_module)
fake_cluster = _module.fake_cluster
cluster_server = _module.cluster_server
