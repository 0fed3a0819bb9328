"""Fixtures that more than one folder uses."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

# before the first import of Airflow, which makes a configuration where this points to
import tests.airflow_home  # noqa: F401
from tests.unit.openpgp_keys import KeyMaker, key_maker


@pytest.fixture(scope="session")
def keys() -> Iterator[KeyMaker]:
    with key_maker() as maker:
        yield maker
