"""Names of backups, and what of the staging bucket nobody needs any more."""

from __future__ import annotations

import pytest

from nephoran_maintenance.domain.backups import left_in_staging

NOW = "incremental-20261124t023000z-aaaaaa"
CHAIN = ["full-20261122t023000z-bbbbbb", "incremental-20261123t023000z-cccccc"]


@pytest.mark.parametrize(
    ("folder", "chain", "expected"),
    [
        pytest.param(
            "full-20261115t023000z-dddddd", CHAIN, {"full-20261115t023000z-dddddd": False}, id="chain is over"
        ),
        pytest.param("full-20261115t023000z-dddddd", [], {"full-20261115t023000z-dddddd": True}, id="may go on"),
        pytest.param(
            "full-20261122t120000z-eeeeee", CHAIN, {"full-20261122t120000z-eeeeee": True}, id="beside the chain"
        ),
        pytest.param("full-20261123t120000z-eeeeee", CHAIN, {}, id="may be at work"),
        pytest.param(CHAIN[0], CHAIN, {}, id="a link"),
        pytest.param(NOW, CHAIN, {}, id="itself"),
        pytest.param("somebody-elses", CHAIN, {}, id="of others"),
    ],
)
def test_only_what_nobody_needs_is_taken_out_of_staging(
    folder: str, chain: list[str], expected: dict[str, bool]
) -> None:
    assert left_in_staging([folder], NOW, chain) == expected
