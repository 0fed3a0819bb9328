"""The profile: the one that comes with the project is right, and a mistake is named by file, line and key."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from nephoran_maintenance.errors import PermanentError
from nephoran_maintenance.profile import SystemProfile, load_profile
from nephoran_maintenance.settings import PROJECT_ROOT, profile_path

SHIPPED = PROJECT_ROOT / "include" / "profiles" / "nephoran.yaml"


def shipped() -> dict[str, Any]:
    data = yaml.safe_load(SHIPPED.read_text(encoding="utf-8"))
    assert isinstance(data, dict)
    return data


def written(folder: Path, text: str) -> Path:
    path = folder / "profile.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def refused(path: Path) -> PermanentError:
    with pytest.raises(PermanentError) as caught:
        load_profile(path)
    return caught.value


def test_the_shipped_profile_is_valid_and_in_upgrade_order() -> None:
    profile = load_profile(SHIPPED)
    chosen = [component.name for component in profile.components if component.upgrade_by_default]
    assert chosen == ["weaviate", "rag-api", "llm-processor", "nephio-bridge", "oran-adaptor"]
    assert profile.components[-1].name == "operator"


def test_the_shipped_policy_for_stateless_components_is_the_documented_one() -> None:
    profile = load_profile(SHIPPED)
    assert profile.policy_of(profile.component("rag-api")) == {
        "max_surge": 1,
        "max_unavailable": 0,
        "grace_period_seconds": 60,
        "pre_stop_sleep_seconds": 15,
        "readiness": {
            "path": "/readyz",
            "initial_delay_seconds": 10,
            "period_seconds": 5,
            "timeout_seconds": 3,
            "failure_threshold": 3,
        },
        "liveness": {
            "path": "/healthz",
            "initial_delay_seconds": 30,
            "period_seconds": 10,
            "timeout_seconds": 5,
            "failure_threshold": 3,
        },
    }


def test_the_shipped_policy_for_weaviate_drains_before_it_stops() -> None:
    profile = load_profile(SHIPPED)
    policy = profile.policy_of(profile.component("weaviate"))
    assert policy["grace_period_seconds"] > policy["pre_stop_sleep_seconds"] > 0
    assert policy["readiness"]["path"] == "/v1/.well-known/ready"


def test_the_shipped_profile_gives_up_after_600_s_and_tests_for_120_s() -> None:
    profile = load_profile(SHIPPED)
    assert profile.rollout.no_progress_limit.total_seconds() == 600
    assert profile.intents.test_timeout_seconds == 120
    assert profile.intents.active_limit == 10


def test_the_shipped_profile_probes_faster_than_50_requests_a_second() -> None:
    probe = load_profile(SHIPPED).probe
    assert probe is not None
    assert probe.rate_per_second >= 50


def test_the_environment_chooses_the_profile(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("NEPHORAN_PROFILE", raising=False)
    assert profile_path() == SHIPPED
    monkeypatch.setenv("NEPHORAN_PROFILE", str(tmp_path / "other.yaml"))
    assert profile_path() == tmp_path / "other.yaml"


def test_an_edited_profile_is_read_again(tmp_path: Path) -> None:
    text = SHIPPED.read_text(encoding="utf-8")
    path = written(tmp_path, text)
    assert load_profile(path).metadata.name == "nephoran"
    written(tmp_path, text.replace("name: nephoran\n", "name: other\n", 1))
    os.utime(path, ns=(1, 1))
    assert load_profile(path).metadata.name == "other"


def test_the_same_profile_is_read_once() -> None:
    assert load_profile(SHIPPED) is load_profile(SHIPPED)


def test_a_missing_profile_is_named(tmp_path: Path) -> None:
    error = refused(tmp_path / "none.yaml")
    assert error.reference == "profile-missing"
    assert "none.yaml" in error.message
    assert "NEPHORAN_PROFILE" in error.hint


MISTAKES = [
    pytest.param(
        "  active_limit: 10",
        "  active_limits: 10",
        "intents.active_limits",
        "expected one of active_limit",
        id="unknown key",
    ),
    pytest.param("needs: [weaviate]", "need: [weaviate]", "components.1.need", "needs", id="unknown key in a list"),
    pytest.param("  active_limit: 10", "  active_limit: many", "intents.active_limit", "integer", id="wrong type"),
    pytest.param("  active_limit: 10", "  active_limit: 0", "intents.active_limit", "greater", id="out of bounds"),
    pytest.param("policy: weaviate", "policy: stateful", "", "stateful", id="policy that is not defined"),
    pytest.param("needs: [weaviate]", "needs: [redis]", "", "redis", id="need that is not defined"),
    pytest.param("needs: [weaviate]", "needs: [llm-processor]", "", "need each other", id="needs in a circle"),
    pytest.param("needs: [weaviate]", "needs: [rag-api]", "", "rag-api → rag-api", id="needs itself"),
    pytest.param(
        "needs: [weaviate]",
        "needs: [weaviate]\n    criticality: may fail",
        "",
        "llm-processor must not fail but needs rag-api",
        id="must needs what may fail",
    ),
    pytest.param(
        "needs: [weaviate]", "criticality: optional", "components.1.criticality", "may fail", id="unknown criticality"
    ),
    pytest.param("  - name: rag-api", "  - name: RAG", "components.1.name", "pattern", id="name Kubernetes refuses"),
    pytest.param("  - name: rag-api", "  - name: weaviate", "", "twice", id="component listed twice"),
    pytest.param("workload: {name: rag-api}", "workload: {}", "components.1.workload", "selector", id="no workload"),
    pytest.param(
        "grace_period_seconds: 60", "grace_period_seconds: 10", "policies.stateless", "longer", id="cut drain"
    ),
    pytest.param("max_surge: 1", "max_surge: 0", "policies.stateless", "both", id="nothing could roll"),
    pytest.param("downtime: zero", "downtime: none", "categories.security.downtime", "zero", id="unknown word"),
    pytest.param("kind: SystemProfile", "kind: Profile", "kind", "SystemProfile", id="another kind"),
]


@pytest.mark.parametrize(("right", "wrong", "key", "said"), MISTAKES)
def test_a_mistake_is_named_by_line_and_key(tmp_path: Path, right: str, wrong: str, key: str, said: str) -> None:
    text = SHIPPED.read_text(encoding="utf-8")
    assert right in text
    changed = text.replace(right, wrong, 1)
    error = refused(written(tmp_path, changed))
    assert error.reference == "profile-invalid"
    assert said in error.message
    assert "docs/reference/profile.md" in error.hint
    assert error.context.get("key", "") == key
    line = error.context["line"]
    assert isinstance(line, int)
    if wrong.startswith("  active_limit"):
        assert changed.splitlines()[line - 1] == wrong


def test_every_mistake_is_counted(tmp_path: Path) -> None:
    text = (
        SHIPPED.read_text(encoding="utf-8").replace("active_limit", "limit").replace("wait_seconds: 600", "wait: 600")
    )
    assert "(1 more)" in refused(written(tmp_path, text)).message


@pytest.mark.parametrize(
    ("text", "said"),
    [
        pytest.param("a: [1\nb: 2\n", "is not YAML", id="no YAML"),
        pytest.param("- a\n", "expected a mapping", id="a list"),
        pytest.param("", "expected a mapping", id="empty"),
    ],
)
def test_a_file_that_is_no_profile_is_named(tmp_path: Path, text: str, said: str) -> None:
    error = refused(written(tmp_path, text))
    assert error.reference == "profile-invalid"
    assert said in error.message


def test_an_unknown_component_is_named_with_the_known_ones() -> None:
    with pytest.raises(PermanentError) as caught:
        load_profile(SHIPPED).component("redis")
    assert caught.value.reference == "component-unknown"
    assert "rag-api" in caught.value.message


def test_a_component_may_live_in_a_namespace_of_its_own() -> None:
    data = shipped()
    data["components"][0]["workload"]["namespace"] = "weaviate"
    profile = SystemProfile.model_validate(data)
    assert profile.namespace_of(profile.component("weaviate")) == "weaviate"
    assert profile.namespace_of(profile.component("rag-api")) == "nephoran-system"


def test_known_objects_have_the_ids_that_the_system_was_filled_with() -> None:
    known = load_profile(SHIPPED).known_objects
    assert known is not None
    # uuid5(NAMESPACE_URL, "nephoran/TelecomKnowledge/0")
    assert known.id_of(0) == "7708d4c0-37a1-5104-841d-80a2d9a01478"


def test_a_probe_without_known_objects_is_refused(tmp_path: Path) -> None:
    data = shipped()
    del data["known_objects"]
    assert "known_objects" in refused(written(tmp_path, yaml.safe_dump(data))).message


def test_a_profile_holds_no_secret() -> None:
    text = SHIPPED.read_text(encoding="utf-8").lower()
    assert not [word for word in ("password", "api_key", "apikey", "token:", "secret:") if word in text]


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"approvers": [""]}, "approvers.0"),
        ({"approvers": ["ada", "ada"]}, "approvers are listed twice: ada"),
        ({"approvers": "ada"}, "approvers"),
        ({"categories": {"urgent": {"window": "any", "approval": "one", "downtime": "zero"}}}, "categories.urgent"),
        (
            {"categories": {"minor": {"window": "any", "approval": "three", "downtime": "zero"}}},
            "categories.minor.approval",
        ),
        (
            {"categories": {"minor": {"window": "any", "approval": "one", "downtime": "zero", "expires_minutes": 0}}},
            "categories.minor.expires_minutes",
        ),
        (
            {
                "categories": {
                    "minor": {"window": "any", "approval": "one", "downtime": "zero", "expires_minutes": 10081}
                }
            },
            "categories.minor.expires_minutes",
        ),
    ],
    ids=["empty name", "twice", "no list", "unknown category", "three persons", "no time", "more than a week"],
)
def test_a_mistake_about_approvals_is_named(tmp_path: Path, changes: dict[str, Any], key: str) -> None:
    error = refused(written(tmp_path, yaml.safe_dump({**shipped(), **changes})))
    assert error.reference == "profile-invalid"
    assert key in error.message
