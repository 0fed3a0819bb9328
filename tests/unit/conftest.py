"""Fixtures that more than one folder uses."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

# before the first import of Airflow, which makes a configuration where this points to
import tests.airflow_home  # noqa: F401
from tests.unit.backup_bucket import BackupBucket, Workshop, workshop_of
from tests.unit.openpgp_keys import KeyMaker, key_maker


@pytest.fixture(scope="session")
def keys() -> Iterator[KeyMaker]:
    with key_maker() as maker:
        yield maker


@pytest.fixture(scope="session")
def workshop(keys: KeyMaker) -> Iterator[Workshop]:
    with workshop_of(keys) as found:
        yield found


@pytest.fixture
def bucket(workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> BackupBucket:
    """An empty bucket for backups, with a profile and connections that lead there."""
    return workshop.bucket(tmp_path, monkeypatch)
