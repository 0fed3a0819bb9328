"""An upgrade request: what it means, and every refusal before anything is changed."""

from __future__ import annotations

from typing import Any

import pytest

from nephoran_maintenance.domain.images import ImageReference
from nephoran_maintenance.domain.upgrade import (
    Running,
    Target,
    UpgradeRequest,
    check_target,
    permissions_for,
    recovery_permissions_for,
    requested_components,
    requested_image,
    version_of_image,
)
from nephoran_maintenance.errors import PermanentError
from nephoran_maintenance.profile import Component, VantagePoint, WorkloadReference, load_profile
from nephoran_maintenance.settings import PROJECT_ROOT

PROFILE = load_profile(PROJECT_ROOT / "include" / "profiles" / "nephoran.yaml")
V1, V2 = "sha256:" + "1" * 64, "sha256:" + "2" * 64
RAG = "r:5000/nephoran/rag-api"


def request(**fields: Any) -> UpgradeRequest:
    return UpgradeRequest(**{"components": ("rag-api",), "version": "v2", **fields})


def component(name: str = "rag-api", **fields: Any) -> Component:
    return Component(name=name, workload=WorkloadReference(name=name), **fields)


def refusal(call: Any, *arguments: Any) -> PermanentError:
    with pytest.raises(PermanentError) as caught:
        call(*arguments)
    assert caught.value.hint, "a refusal names the next action"
    return caught.value


# ---------------------------------------------------------------------------------------------------------- components


def test_the_order_is_the_profiles_whatever_the_order_of_the_request() -> None:
    chosen = requested_components(request(components=("oran-adaptor", "rag-api", "weaviate")), PROFILE)
    assert [c.name for c in chosen] == ["weaviate", "rag-api", "oran-adaptor"]


def test_an_unknown_component_is_refused() -> None:
    error = refusal(requested_components, request(components=("redis",)), PROFILE)
    assert error.reference == "component-unknown"
    assert "'redis'" in error.message


def test_an_image_for_an_unknown_component_is_refused() -> None:
    error = refusal(requested_components, request(images={"redis": "v1"}), PROFILE)
    assert error.reference == "component-unknown"


def test_an_image_for_a_component_that_is_not_chosen_is_refused() -> None:
    error = refusal(requested_components, request(images={"weaviate": "v1"}), PROFILE)
    assert error.reference == "image-for-unchosen-component"
    two = refusal(requested_components, request(images={"weaviate": "v1", "llm-processor": "v1"}), PROFILE)
    assert "llm-processor, weaviate" in two.message


@pytest.mark.parametrize("version", [None, ""])
def test_a_request_for_nothing_is_refused(version: str | None) -> None:
    two = request(components=("rag-api", "llm-processor"), version=version, images={"rag-api": "v2"})
    error = refusal(requested_components, two, PROFILE)
    assert error.reference == "nothing-requested"
    assert "llm-processor" in error.message
    assert "rag-api" not in error.message
    both = refusal(requested_components, request(components=two.components, version=version), PROFILE)
    assert "rag-api, llm-processor" in both.message


def test_an_image_for_every_component_needs_no_version() -> None:
    assert requested_components(request(version=None, images={"rag-api": "v2"}), PROFILE)


# --------------------------------------------------------------------------------------------------------------- images


@pytest.mark.parametrize(
    ("wanted", "image"),
    [
        pytest.param("v2", f"{RAG}:v2", id="a tag"),
        pytest.param(V2, f"{RAG}@{V2}", id="a digest"),
        pytest.param(f"other/rag:v3@{V2}", f"other/rag:v3@{V2}", id="a whole reference"),
    ],
)
def test_only_tag_or_digest_change_unless_a_whole_reference_is_given(wanted: str, image: str) -> None:
    found = requested_image(request(version="v9", images={"rag-api": wanted}), component(), f"{RAG}:v1@{V1}")
    assert str(found) == image


def test_the_profiles_repository_wins_over_the_running_one() -> None:
    found = requested_image(request(), component(repository="registry.example/rag"), f"{RAG}:v1")
    assert str(found) == "registry.example/rag:v2"


@pytest.mark.parametrize(
    ("wanted", "why"),
    [
        ("latest", f"{RAG}:latest has a tag that moves"),
        ("main", f"{RAG}:main has a tag that moves"),
        ("other/rag", "other/rag has no tag"),
        ("other/rag:latest", "other/rag:latest has a tag that moves"),
    ],
)
def test_a_tag_that_moves_is_refused(wanted: str, why: str) -> None:
    error = refusal(requested_image, request(images={"rag-api": wanted}), component(), f"{RAG}:v1")
    assert error.reference == "image-tag-mutable"
    assert why in error.message
    assert error.context == {"component": "rag-api"}


def test_a_tag_that_moves_is_welcome_with_a_digest() -> None:
    wanted = f"{RAG}:latest@{V2}"
    assert str(requested_image(request(images={"rag-api": wanted}), component(), f"{RAG}:v1")) == wanted


def test_a_text_that_is_no_image_is_refused() -> None:
    error = refusal(requested_image, request(version="v 2"), component(), f"{RAG}:v1")
    assert error.reference == "image-name-invalid"


# -------------------------------------------------------------------------------------------------------------- targets


def running(image: str = f"{RAG}:v1", *digests: str, version: str | None = None) -> Running:
    return Running(component="rag-api", image=image, digests=digests or (V1,), version=version)


def target(reference: str = f"{RAG}:v2", digest: str | None = V2, version: str | None = None) -> Target:
    return Target(component="rag-api", reference=reference, digest=digest, version=version)


def test_a_newer_version_is_something_to_do() -> None:
    assert check_target(request(), component(), running(), target())


@pytest.mark.parametrize(
    ("image", "digests", "to_do"),
    [
        pytest.param(f"{RAG}:v2@{V2}", (V2, V2), False, id="pinned and running"),
        pytest.param(f"{RAG}:v2", (V2,), False, id="the same tag without the digest, and running"),
        pytest.param(f"{RAG}@{V2}", (V2,), False, id="the digest without the tag, and running"),
        pytest.param(f"{RAG}:v2", (V1,), True, id="the tag has moved since the pods started"),
        pytest.param(f"{RAG}:v2@{V2}", (V2, V1), True, id="one pod still runs another image"),
        pytest.param(f"{RAG}:v1", (V2,), True, id="the template names another tag"),
        pytest.param(f"other/rag-api:v2@{V2}", (V2,), True, id="from another repository"),
    ],
)
def test_what_already_runs_is_nothing_to_do(image: str, digests: tuple[str, ...], to_do: bool) -> None:
    assert check_target(request(), component(), running(image, *digests), target()) is to_do


def test_an_image_that_the_registry_does_not_have_is_refused() -> None:
    error = refusal(check_target, request(), component(), running(), target(digest=None))
    assert error.reference == "image-missing"
    assert f"{RAG}:v2" in error.message
    assert error.context == {"component": "rag-api"}


def test_a_downgrade_that_was_not_asked_for_is_refused() -> None:
    back = running(f"{RAG}:v3")
    error = refusal(check_target, request(), component(), back, target())
    assert error.reference == "downgrade-refused"
    assert "allow_downgrade" in error.hint
    assert "rag-api: v2 is older than the running v3" in error.message
    assert error.context == {"component": "rag-api"}
    assert check_target(request(allow_downgrade=True), component(), back, target())


def test_tags_that_are_no_versions_are_no_downgrade() -> None:
    assert check_target(request(), component(), running(f"{RAG}:v2-crash"), target())


WEAVIATE = component("weaviate", policy="weaviate")


def check_weaviate(now: str | None, wanted: str | None, **fields: Any) -> bool:
    return check_target(request(**fields), WEAVIATE, running(version=now), target(version=wanted))


def test_weaviate_may_change_its_patch_level_and_its_image() -> None:
    assert check_weaviate("1.39.0", "1.39.2")
    assert check_weaviate("1.39.0", "1.39.0")


@pytest.mark.parametrize(
    ("now", "wanted", "reference"),
    [
        pytest.param("1.39.0", "1.40.0", "weaviate-minor-refused", id="another minor"),
        pytest.param("1.39.0", "1.38.4", "weaviate-minor-refused", id="an older minor"),
        pytest.param("1.39.0", "2.0.0", "weaviate-minor-refused", id="another major"),
        pytest.param("1.39.2", "1.39.0", "weaviate-downgrade-refused", id="an older patch"),
        pytest.param("1.39.0", None, "weaviate-version-unknown", id="the image does not say"),
        pytest.param(None, "1.39.0", "weaviate-version-unknown", id="the server does not say"),
        pytest.param("1.39.0", "custom", "weaviate-version-unknown", id="no version number"),
    ],
)
def test_weaviate_goes_nowhere_that_it_may_not_come_back_from(
    now: str | None, wanted: str | None, reference: str
) -> None:
    with pytest.raises(PermanentError) as caught:
        check_weaviate(now, wanted, allow_downgrade=True)
    assert caught.value.reference == reference
    assert caught.value.hint
    assert caught.value.message.startswith("weaviate: ")
    assert str(now) in caught.value.message
    assert str(wanted) in caught.value.message
    assert caught.value.context == {"component": "weaviate", "running": now, "target": wanted}


@pytest.mark.parametrize(
    ("tag", "labels", "version"),
    [
        pytest.param("1.39.2", {"org.opencontainers.image.version": "0"}, "1.39.2", id="a tag that is a version"),
        pytest.param("v1.39.2", {}, "1.39.2", id="with a letter before it"),
        pytest.param("v2", {"org.opencontainers.image.version": "1.39.0"}, "1.39.0", id="a label for another tag"),
        pytest.param("1.39", {"org.opencontainers.image.version": "1.39.4"}, "1.39.4", id="half a version is a tag"),
        pytest.param(None, {"org.opencontainers.image.version": "1.39.4"}, "1.39.4", id="a digest alone"),
        pytest.param("v2", {}, None, id="nobody says"),
    ],
)
def test_reads_the_version_of_an_image(tag: str | None, labels: dict[str, str], version: str | None) -> None:
    assert version_of_image(ImageReference("r:5000", "weaviate", tag), labels) == version


# ---------------------------------------------------------------------------------------------------------- permissions


def test_a_procedure_that_only_reads_asks_for_nothing_that_changes() -> None:
    asked = permissions_for(PROFILE, ["nephoran.com"], changing=False)
    changing = {"patch", "update", "create", "delete"}
    assert {a["resource"] for a in asked if a["verb"] in changing} <= {"pods/portforward"}


READS = {
    "list pods": {""},
    "list events": {"nephoran-system"},
    "list persistentvolumeclaims": {"nephoran-system"},
    "list resourcequotas": {"nephoran-system"},
    "list apps/deployments": {"nephoran-system"},
    "list apps/statefulsets": {"nephoran-system"},
    "list apps/daemonsets": {"nephoran-system"},
    "list policy/poddisruptionbudgets": {"nephoran-system"},
    "list autoscaling/horizontalpodautoscalers": {"nephoran-system"},
    "list batch/cronjobs": {"nephoran-system", "nephoran-monitoring"},
    "list nodes": {""},
    "list configmaps": {"nephoran-maintenance"},
    "list nephoran.com/networkintents": {""},
    "list apiextensions.k8s.io/customresourcedefinitions": {""},
    "get pods/log": {"nephoran-system"},
    "get pods/proxy": {"nephoran-system"},
    "create pods/portforward": {"nephoran-system"},
}
"""What a procedure asks for, and in which namespaces; an empty one is the whole cluster."""
RECOVERS = {
    **{
        f"{verb} apps/{resource}": {"nephoran-system"}
        for verb in ("get", "patch")
        for resource in ("deployments", "statefulsets", "daemonsets")
    },
    "list pods": {"nephoran-system"},
    "delete pods": {"nephoran-system"},
    "get pods/proxy": {"nephoran-system"},
    "list apiextensions.k8s.io/customresourcedefinitions": {""},
    "get nephoran.com/networkintents": {"tests"},
    "delete nephoran.com/networkintents": {"tests"},
    **{
        f"{verb} configmaps": {"nephoran-maintenance"}
        for verb in ("get", "list", "create", "update", "patch", "delete")
    },
    **{f"{verb} coordination.k8s.io/leases": {"nephoran-maintenance"} for verb in ("get", "create", "update")},
}
CHANGES = {
    **READS,
    **RECOVERS,
    "list pods": {"", "nephoran-system"},
    "create nephoran.com/networkintents": {"tests"},
}
WITH_TESTS = PROFILE.model_copy(update={"intents": PROFILE.intents.model_copy(update={"test_namespace": "tests"})})


def rights(asked: list[dict[str, Any]]) -> dict[str, set[str]]:
    """Return the namespaces by verb, group and resource; the keys must be those of a SelfSubjectAccessReview."""
    found: dict[str, set[str]] = {}
    for access in asked:
        assert set(access) <= {"verb", "group", "resource", "namespace"}
        group = access.get("group") or ""
        resource = f"{group}/{access['resource']}" if group else access["resource"]
        found.setdefault(f"{access['verb']} {resource}", set()).add(access.get("namespace", ""))
    return found


def test_asks_for_exactly_what_it_does() -> None:
    groups = ["nephoran.com"]
    assert rights(permissions_for(WITH_TESTS, groups, changing=False)) == READS
    assert rights(permissions_for(WITH_TESTS, groups, changing=True)) == CHANGES
    assert rights(recovery_permissions_for(WITH_TESTS, groups)) == RECOVERS


def test_asks_for_a_job_only_where_dependencies_are_looked_at_from_inside() -> None:
    inside = WITH_TESTS.model_copy(update={"vantage_point": VantagePoint(image="r/curl:1")})
    jobs = {"create batch/jobs": {"nephoran-system"}, "delete batch/jobs": {"nephoran-system"}}
    assert rights(permissions_for(inside, ["nephoran.com"], changing=False)) == READS | jobs


def test_a_procedure_that_changes_asks_for_each_right_once() -> None:
    asked = permissions_for(PROFILE, ["nephoran.com", "intent.nephoran.com"], changing=True)
    assert len({tuple(sorted(a.items())) for a in asked}) == len(asked)
    wanted = {(a["verb"], a["resource"], a.get("group", "")) for a in asked}
    assert ("patch", "statefulsets", "apps") in wanted
    assert ("delete", "pods", "") in wanted
    assert ("create", "networkintents", "nephoran.com") in wanted
    assert ("create", "networkintents", "intent.nephoran.com") in wanted
    assert ("update", "configmaps", "") in wanted
