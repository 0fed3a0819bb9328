"""Fixtures that more than one folder uses."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator

import pytest

# before the first import of Airflow, which makes a configuration where this points to
os.environ.setdefault("AIRFLOW_HOME", tempfile.mkdtemp(prefix="airflow-home-"))

from tests.unit.openpgp_keys import KeyMaker, key_maker


@pytest.fixture(scope="session")
def keys() -> Iterator[KeyMaker]:
    with key_maker() as maker:
        yield maker
