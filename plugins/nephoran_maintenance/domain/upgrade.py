"""What an upgrade request means, and why some requests are refused before anything is changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from nephoran_maintenance.domain.images import (
    ImageReference,
    compare_tags,
    is_digest,
    is_mutable_tag,
    is_tag,
    weaviate_step,
)
from nephoran_maintenance.domain.order import in_order
from nephoran_maintenance.errors import PermanentError
from nephoran_maintenance.profile import CategoryName, Component, SystemProfile

WEAVIATE_POLICY = "weaviate"


class UpgradeRequest(BaseModel):
    """The parameters of a run, as they were checked."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    mode: Literal["plan", "apply"] = "plan"
    components: tuple[str, ...]
    version: str | None = None
    images: dict[str, str] = {}
    category: CategoryName = "minor"
    reason: str | None = None
    allow_downgrade: bool = False
    plan_hash: str | None = Field(None, pattern=r"^[0-9a-f]{64}$")
    release_quarantine: tuple[str, ...] = ()


class Running(BaseModel):
    """What runs now of one component."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    component: str
    image: str
    version: str | None = None
    """Weaviate: what the server itself says; otherwise None."""
    digests: tuple[str, ...] = ()
    """Digests of the images that its pods run."""


class Target(BaseModel):
    """Where one component goes."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    component: str
    reference: str
    """The image with its tag, as it was asked for."""
    digest: str | None = None
    version: str | None = None
    """Weaviate: the version that the tag or the image's label says."""


def requested_components(request: UpgradeRequest, profile: SystemProfile) -> list[Component]:
    """Return the chosen components in upgrade order.

    :raises PermanentError: ``component-unknown``, ``nothing-requested``, ``image-for-unchosen-component``.
    """
    for name in [*request.components, *request.images]:
        profile.component(name)
    unchosen = sorted(set(request.images) - set(request.components))
    if unchosen:
        raise PermanentError(
            "image-for-unchosen-component",
            f"images are given for {', '.join(unchosen)}, which the run does not change",
            hint="Add the component to components, or take its image away.",
        )
    without = [name for name in request.components if name not in request.images]
    if without and not request.version:
        raise PermanentError(
            "nothing-requested",
            f"no version and no image is given for {', '.join(without)}",
            hint="Give version, or an image for each chosen component.",
        )
    return in_order(profile.components, request.components)


def requested_image(request: UpgradeRequest, component: Component, running_image: str) -> ImageReference:
    """Return the image that is asked for: only tag or digest change, unless a whole reference is given.

    :raises PermanentError: ``image-tag-mutable``, ``image-tag-invalid``, ``image-name-invalid``.
    """
    wanted = request.images.get(component.name) or request.version or ""
    base = ImageReference.parse(component.repository or running_image)
    if is_digest(wanted):
        reference = ImageReference(base.registry, base.repository, None, wanted)
    elif is_tag(wanted):
        reference = base.with_tag(wanted)
    else:
        reference = ImageReference.parse(wanted)
    if reference.digest is None and (reference.tag is None or is_mutable_tag(reference.tag)):
        raise PermanentError(
            "image-tag-mutable",
            f"{component.name}: the image {reference} {'has no tag' if reference.tag is None else 'has a tag that moves'}"
            "; expected a tag that always means the same image, or a digest",
            context={"component": component.name},
            hint="Give the tag of a release, such as v2.1.0.",
        )
    return reference


def check_target(request: UpgradeRequest, component: Component, running: Running, target: Target) -> bool:
    """Refuse a target that this procedure must not go to; return whether there is anything to do.

    :returns: False when every running pod already has the target's digest and the template names this image, by its
        digest or by the same tag; then nothing is rolled only to write the digest into the template.
    :raises PermanentError: ``image-missing``, ``downgrade-refused``, ``weaviate-version-unknown``,
        ``weaviate-minor-refused``, ``weaviate-downgrade-refused``.
    """
    reference = ImageReference.parse(target.reference)
    if target.digest is None:
        raise PermanentError(
            "image-missing",
            f"{component.name}: the registry does not have {target.reference}",
            context={"component": component.name},
            hint="Push the image, or correct the tag.",
        )
    current = ImageReference.parse(running.image)
    if component.policy == WEAVIATE_POLICY:
        _check_weaviate(component, running, target)
    elif compare_tags(current.tag, reference.tag) == "downgrade" and not request.allow_downgrade:
        raise PermanentError(
            "downgrade-refused",
            f"{component.name}: {reference.tag} is older than the running {current.tag}",
            context={"component": component.name},
            hint="Set allow_downgrade if an older version is really meant.",
        )
    named = current.name == reference.name and (
        current.digest == target.digest or (current.digest is None and current.tag == reference.tag)
    )
    return not named or any(digest != target.digest for digest in running.digests)


def _check_weaviate(component: Component, running: Running, target: Target) -> None:
    step = weaviate_step(running.version, target.version)
    context = {"component": component.name, "running": running.version, "target": target.version}
    if step == "unknown":
        raise PermanentError(
            "weaviate-version-unknown",
            f"{component.name}: the running version {running.version!r} and the target's {target.version!r} can't be "
            "compared; expected two version numbers",
            context=context,
            hint="Use a tag that is the Weaviate version, or an image with the label org.opencontainers.image.version.",
        )
    if step == "minor":
        raise PermanentError(
            "weaviate-minor-refused",
            f"{component.name}: from {running.version} to {target.version} is another minor version; this procedure "
            "changes only the patch level, because an older Weaviate may not read what a newer one has written",
            context=context,
            hint="Leave weaviate out; another minor version needs a procedure of its own, with a backup to restore.",
        )
    if compare_tags(running.version, target.version) == "downgrade":
        raise PermanentError(
            "weaviate-downgrade-refused",
            f"{component.name}: {target.version} is older than the running {running.version}",
            context=context,
            hint="Going back to an older Weaviate means restoring a backup that it has written.",
        )


def version_of_image(reference: ImageReference, labels: Mapping[str, str]) -> str | None:
    """Return the version that an image says it has: its tag when that is a full version, else its label."""
    if reference.tag and compare_tags("0.0.1", reference.tag) != "unknown" and reference.tag.count(".") >= 2:
        return reference.tag.removeprefix("v")
    return labels.get("org.opencontainers.image.version")


def permissions_for(profile: SystemProfile, intent_groups: Sequence[str], *, changing: bool) -> list[dict[str, Any]]:
    """Return everything that the procedure will ask the cluster for, as SelfSubjectAccessReview attributes.

    :param intent_groups: the API groups whose NetworkIntents it will read, and test with.
    :param changing: whether it changes the system.
    """
    system, own = profile.namespaces.system, profile.namespaces.maintenance
    reads: Sequence[tuple[str, str, str]] = [
        ("", "pods", ""),
        ("", "events", system),
        ("", "persistentvolumeclaims", system),
        ("", "resourcequotas", system),
        ("apps", "deployments", system),
        ("apps", "statefulsets", system),
        ("apps", "daemonsets", system),
        ("policy", "poddisruptionbudgets", system),
        ("autoscaling", "horizontalpodautoscalers", system),
        ("batch", "cronjobs", system),
        ("batch", "cronjobs", profile.namespaces.monitoring),
        ("", "nodes", ""),
        ("", "configmaps", own),
    ]
    wanted = [{"verb": "list", "group": g, "resource": r, "namespace": n} for g, r, n in reads]
    wanted += [{"verb": "list", "group": group, "resource": "networkintents"} for group in intent_groups]
    wanted += [
        {"verb": "list", "group": "apiextensions.k8s.io", "resource": "customresourcedefinitions"},
        {"verb": "get", "resource": "pods/log", "namespace": system},
        {"verb": "get", "resource": "pods/proxy", "namespace": system},
        {"verb": "create", "resource": "pods/portforward", "namespace": system},
    ]
    if profile.vantage_point is not None:
        wanted += [{"verb": v, "group": "batch", "resource": "jobs", "namespace": system} for v in ("create", "delete")]
    if changing:
        wanted += [access for access in recovery_permissions_for(profile, intent_groups) if access not in wanted]
        wanted += [
            {
                "verb": "create",
                "group": group,
                "resource": "networkintents",
                "namespace": profile.intents.test_namespace,
            }
            for group in intent_groups
        ]
    return wanted


def recovery_permissions_for(profile: SystemProfile, intent_groups: Sequence[str]) -> list[dict[str, Any]]:
    """Return what a recovery will ask the cluster for, beyond reading, as SelfSubjectAccessReview attributes."""
    system, own = profile.namespaces.system, profile.namespaces.maintenance
    return [
        *(
            {"verb": verb, "group": "apps", "resource": resource, "namespace": system}
            for resource in ("deployments", "statefulsets", "daemonsets")
            for verb in ("get", "patch")
        ),
        {"verb": "list", "resource": "pods", "namespace": system},
        {"verb": "delete", "resource": "pods", "namespace": system},
        {"verb": "get", "resource": "pods/proxy", "namespace": system},
        {"verb": "list", "group": "apiextensions.k8s.io", "resource": "customresourcedefinitions"},
        *(
            {"verb": verb, "group": group, "resource": "networkintents", "namespace": profile.intents.test_namespace}
            for group in intent_groups
            for verb in ("get", "delete")
        ),
        *(
            {"verb": verb, "resource": "configmaps", "namespace": own}
            for verb in ("get", "list", "create", "update", "patch", "delete")
        ),
        *(
            {"verb": verb, "group": "coordination.k8s.io", "resource": "leases", "namespace": own}
            for verb in ("get", "create", "update")
        ),
    ]
