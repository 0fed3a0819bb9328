"""The lab's manifests say what the variants promise, and v1 carries the product's own rolling-update policy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from lab.config import LabConfig
from lab.failure import LabError
from lab.services import SCRAPE_INTERVAL_SECONDS
from lab.system import deployment
from lab.system.profiles import GATES, for_variant
from lab.system.variants import COMPONENTS, STATELESS_PORTS, VARIANTS, WEAVIATE, Variant, variant_named
from lab.system.workloads import guards, services, workloads
from nephoran_maintenance.domain.gate import GAP_INTERVALS
from nephoran_maintenance.domain.patches import policy_patch
from nephoran_maintenance.profile import SystemProfile

PROJECT = Path(__file__).resolve().parents[3]
CONFIG = LabConfig.named("unit", index=15)
PROFILE = yaml.safe_load((PROJECT / "include" / "profiles" / "nephoran.yaml").read_text(encoding="utf-8"))


@pytest.fixture(autouse=True)
def _secrets_in_a_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lab.config.PROJECT", tmp_path)


def deployed(variant: Variant, **versions: str) -> dict[str, dict[str, Any]]:
    tags = {**dict.fromkeys(COMPONENTS, "v1"), **versions}
    return dict(zip((WEAVIATE, *STATELESS_PORTS, "operator"), workloads(CONFIG, variant, tags), strict=True))


def container(variant: Variant, component: str) -> dict[str, Any]:
    containers = deployed(variant)[component]["spec"]["template"]["spec"]["containers"]
    (found,) = (entry for entry in containers if entry["name"] == variant.container_name(component))
    return dict(found)


def merged(base: Any, patch: Any) -> Any:
    """Apply what the tests need of a strategic merge: dicts, and lists of things with names."""
    if isinstance(base, dict) and isinstance(patch, dict):
        return {key: merged(base.get(key), patch[key]) if key in patch else base[key] for key in {*base, *patch}}
    if isinstance(base, list) and isinstance(patch, list):
        by_name = {entry["name"]: entry for entry in patch}
        return [merged(entry, by_name.get(entry["name"], {})) for entry in base]
    return patch


@pytest.mark.parametrize("name", sorted(set(VARIANTS) - {"no-policy"}))
@pytest.mark.parametrize("component", COMPONENTS)
def test_v1_already_carries_the_policy_of_its_profile(name: str, component: str) -> None:
    variant = variant_named(name)
    policy = for_variant(PROFILE, name)["policies"][WEAVIATE if component == WEAVIATE else "stateless"]
    workload = deployed(variant)[component]
    patch = policy_patch(workload, variant.container_name(component), policy)
    assert merged(workload, patch) == workload


def test_standard_variant_leaves_the_policies_of_the_products_profile_as_they_are() -> None:
    assert for_variant(PROFILE, "standard")["policies"] == PROFILE["policies"]


@pytest.mark.parametrize("component", COMPONENTS)
def test_no_policy_variant_has_a_policy_to_roll_out(component: str) -> None:
    variant = variant_named("no-policy")
    assert "lifecycle" not in container(variant, component)
    policy = for_variant(PROFILE, "no-policy")["policies"][WEAVIATE if component == WEAVIATE else "stateless"]
    workload = deployed(variant)[component]
    assert merged(workload, policy_patch(workload, variant.container_name(component), policy)) != workload


@pytest.mark.parametrize("gate", GATES)
def test_every_length_of_a_gate_makes_a_valid_profile(gate: str) -> None:
    profile = SystemProfile.model_validate(for_variant(PROFILE, "fast", gate))
    assert profile.gate.off == (gate == "off")
    assert profile.gate.window_seconds >= 2 * SCRAPE_INTERVAL_SECONDS
    assert profile.gate.interval_seconds * GAP_INTERVALS >= 2 * SCRAPE_INTERVAL_SECONDS
    assert profile.gate.minimum_requests <= profile.gate.window_seconds * PROFILE["probe"]["rate_per_second"]
    assert (gate == "real") == (for_variant(PROFILE, "fast", gate)["gate"] == PROFILE["gate"])


def test_other_layout_shares_no_name_label_kind_or_port_with_the_profile() -> None:
    variant = variant_named("other-layout")
    for component, workload in deployed(variant).items():
        labels = workload["spec"]["template"]["metadata"]["labels"]
        assert not [key for key in labels if not key.startswith("app.kubernetes.io/")]
        if component not in (WEAVIATE, "operator"):
            assert workload["metadata"]["name"] == f"nephoran-{component}"
            assert workload["spec"]["template"]["spec"]["containers"][0]["name"] != component
    assert deployed(variant)[WEAVIATE]["kind"] == "Deployment"
    assert container(variant, "rag-api")["ports"][0]["containerPort"] == 5001


@pytest.mark.parametrize("name", sorted(VARIANTS))
def test_services_keep_their_names_ports_and_addresses_in_every_variant(name: str) -> None:
    found = {service["metadata"]["name"]: service["spec"] for service in services(CONFIG, variant_named(name))}
    for component, port in {WEAVIATE: 8080, **STATELESS_PORTS}.items():
        assert found[component]["ports"][0]["port"] == port
        assert found[component]["clusterIP"] == CONFIG.service_address(component)


def test_service_selects_the_pods_of_its_component_only() -> None:
    variant = variant_named("other-layout")
    everything = deployed(variant)
    for service in services(CONFIG, variant):
        selector = service["spec"]["selector"].items()
        chosen = [
            name
            for name, one in everything.items()
            if selector <= one["spec"]["template"]["metadata"]["labels"].items()
        ]
        assert len(chosen) == 1, service["metadata"]["name"]


def test_weaviate_keeps_three_replicas_in_memory_of_each_other() -> None:
    workload = deployed(variant_named("standard"))[WEAVIATE]
    variables = {entry["name"]: entry.get("value") for entry in container(variant_named("standard"), WEAVIATE)["env"]}
    assert workload["spec"]["replicas"] == 3
    assert workload["spec"]["podManagementPolicy"] == "Parallel"
    assert variables["RAFT_JOIN"] == "weaviate-0,weaviate-1,weaviate-2"
    assert variables["AUTHENTICATION_ANONYMOUS_ACCESS_ENABLED"] == "false"


def test_no_secret_value_stands_in_a_workload() -> None:
    values = {CONFIG.secret(name) for name in ("weaviate-api-key", "s3-weaviate-staging")}
    text = str(deployed(variant_named("standard")))
    assert not [value for value in values if value in text]


def test_autoscaler_follows_the_workloads_name() -> None:
    (autoscaler,) = (entry for entry in guards(variant_named("other-layout")) if "Autoscaler" in entry["kind"])
    assert autoscaler["spec"]["scaleTargetRef"]["name"] == "nephoran-rag-api"


def test_unknown_variant_names_the_known_ones() -> None:
    with pytest.raises(LabError, match="standard, fast, no-policy"):
        variant_named("fastest")


def test_unknown_component_is_refused_before_anything_is_asked() -> None:
    with pytest.raises(LabError, match="No component is called raag-api"):
        deployment.deploy(CONFIG, versions={"raag-api": "v2"})


def test_deploying_again_keeps_the_image_that_runs() -> None:
    variant = variant_named("fast")
    running = workloads(CONFIG, variant, {**dict.fromkeys(COMPONENTS, "v1"), "rag-api": "v2"})

    class Kubectl:
        def kubectl(self, *arguments: str, input: str | None = None) -> str:
            return deployment._as_text(running)

    wanted = workloads(CONFIG, variant, dict.fromkeys(COMPONENTS, "v1"))
    deployment._keep_running_images(Kubectl(), variant, wanted, chosen={"llm-processor"})
    tags = {
        one["metadata"]["name"]: one["spec"]["template"]["spec"]["containers"][0]["image"].rpartition(":")[2]
        for one in wanted
    }
    assert tags["rag-api"] == "v2"
    assert tags["llm-processor"] == "v1"
