"""Settings of the tests that search for counterexamples: the same cases everywhere, and few enough for two cores."""

from __future__ import annotations

from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis.configuration import set_hypothesis_home_dir

set_hypothesis_home_dir(Path(__file__).parents[3] / ".lab" / "cache" / "hypothesis")
settings.register_profile(
    "unit",
    max_examples=60,
    deadline=None,  # the machine may be busy with a lab
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("unit")
