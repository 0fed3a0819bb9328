"""A sample of the kill matrix (`make bench-kills`), another one each day: real processes are killed in the middle."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from benchmarks.kills import Case, Matrix, cases

if TYPE_CHECKING:
    from tests.lab.conftest import Upgrades

SAMPLE = 2


def todays_cases() -> list[Case]:
    """Return the cases of today: they come round in turn."""
    short = [case for case in cases() if len(case.components) == 2 and not case.default_times]
    first = datetime.now(UTC).date().toordinal() * SAMPLE
    return [short[(first + number) % len(short)] for number in range(SAMPLE)]


@pytest.fixture
def matrix(upgrades: Upgrades) -> Iterator[Matrix]:
    upgrades.airflow.up()
    upgrades.prepare()
    yield Matrix(upgrades.lab.cluster, upgrades.airflow)
    upgrades.airflow.up()
    upgrades.prepare()


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in todays_cases()])
def test_whatever_is_killed_the_system_is_old_or_new(matrix: Matrix, case: Case) -> None:
    row = matrix.run(case)
    assert row is not None, "the moment never came"
    assert row["killed"]
    assert row["ok"], row
