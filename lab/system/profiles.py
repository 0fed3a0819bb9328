"""The product's profile as it must read for a variant of the lab's system."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from typing import Any

from lab.system.variants import WEAVIATE, Probe, Timing, variant_named

GATES: dict[str, dict[str, float]] = {
    "off": {"duration_seconds": 0},
    # With a scrape every 2 s: five in each window, and four intervals until a sample is stale.
    "short": {
        "interval_seconds": 4,
        "duration_seconds": 32,
        "minimum_samples": 8,
        "extension_seconds": 16,
        "window_seconds": 10,
    },
    "real": {},
}
"""What of the product's gates is changed. Off is the rule in the lab: each costs its whole duration."""


def for_variant(
    profile: Mapping[str, Any], variant: str, gate: str = "off", may_fail: Collection[str] = ()
) -> dict[str, Any]:
    """Return the profile with the policies, workloads and counts of a variant; addresses stay as they are.

    The policies carry the variant's own timing, so on ``fast`` no policy is left to roll out, and on ``no-policy`` the
    one to roll out is fast.

    :param gate: ``off``, ``short`` or ``real``: how long metrics are judged after each component.
    :param may_fail: components that may fail; nothing that must not may need one of them.
    """
    shape = variant_named(variant)
    changed: dict[str, Any] = copy.deepcopy(dict(profile))
    for name, timing in (("stateless", shape.timing), (WEAVIATE, shape.weaviate_timing)):
        _set_timing(changed["policies"][name], timing)
    for component in changed["components"]:
        name = component["name"]
        if name in may_fail:
            component["criticality"] = "may fail"
        if shape.chart_layout and name != "operator":
            # Found by label, as on any system whose names nobody knows beforehand.
            component["workload"] = {"selector": shape.labels(name)}
            component["container"] = shape.container_name(name)
            component.get("health", {}).get("http", {}).pop("port", None)
    changed["rollout"]["progress_deadline_seconds"] = shape.timing.progress_deadline_seconds
    changed["gate"] |= GATES[gate]
    changed["known_objects"]["count"] = shape.knowledge_objects
    return changed


def _set_timing(policy: dict[str, Any], timing: Timing) -> None:
    policy["grace_period_seconds"] = timing.grace_period_seconds
    policy["pre_stop_sleep_seconds"] = timing.pre_stop_seconds
    for name, probe in (("readiness", timing.readiness), ("liveness", timing.liveness)):
        if policy.get(name):
            policy[name] |= _probe(probe)


def _probe(timing: Probe) -> dict[str, int]:
    return {
        "initial_delay_seconds": timing.delay_seconds,
        "period_seconds": timing.period_seconds,
        "timeout_seconds": timing.timeout_seconds,
        "failure_threshold": timing.failures,
    }
