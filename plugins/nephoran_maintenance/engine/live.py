"""What the procedures read of live objects, in the words of the profile: container, image, digests, health."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from nephoran_maintenance.domain.images import ImageReference, digest_of_image_id
from nephoran_maintenance.domain.stepping import alive, is_ready
from nephoran_maintenance.errors import PermanentError

if TYPE_CHECKING:
    from nephoran_maintenance.hooks.cluster import ClusterHook
    from nephoran_maintenance.profile import Component

HEALTH_TIMEOUT = timedelta(seconds=5)


def container_name(workload: Mapping[str, Any], component: Component) -> str:
    """Return the name of the component's container: the profile's, else the only one, else the one named like it.

    :raises PermanentError: ``container-ambiguous``, ``container-missing``.
    """
    names = [container["name"] for container in workload["spec"]["template"]["spec"]["containers"]]
    for wanted in (component.container, component.name, workload["metadata"]["name"]):
        if wanted in names:
            return str(wanted)
        if wanted is not None and wanted == component.container:
            raise PermanentError(
                "container-missing",
                f"{component.name}: the workload has no container {wanted!r}; it has {', '.join(names)}",
                context={"component": component.name},
                hint="Correct the container in the profile.",
            )
    if len(names) == 1:
        return str(names[0])
    repository = ImageReference.parse(component.repository).repository if component.repository else component.name
    for container in workload["spec"]["template"]["spec"]["containers"]:
        if ImageReference.parse(container["image"]).repository.rpartition("/")[2] == repository.rpartition("/")[2]:
            return str(container["name"])
    raise PermanentError(
        "container-ambiguous",
        f"{component.name}: none of the containers {', '.join(names)} is called like the component",
        context={"component": component.name},
        hint="Name the container in the profile.",
    )


def pod_runs(pod: Mapping[str, Any], container: str, image: str) -> bool:
    """Return whether a pod's container is meant to run an image."""
    return any(c["name"] == container and c["image"] == image for c in pod["spec"]["containers"])


def running_digests(pods: Sequence[Mapping[str, Any]], container: str) -> dict[str, str | None]:
    """Return by pod the digest of the image that its container runs; None when the status has none."""
    digests: dict[str, str | None] = {}
    for pod in alive(pods):
        statuses = (pod.get("status") or {}).get("containerStatuses") or ()
        status: Mapping[str, Any] = next((s for s in statuses if s["name"] == container), {})
        digests[pod["metadata"]["name"]] = digest_of_image_id(str(status.get("imageID", "")))
    return digests


def check_digests(component: str, digests: Mapping[str, str | None], planned: str | None) -> None:
    """Check that every pod runs the image that the plan resolved; without a planned digest there is nothing to check.

    :raises PermanentError: ``digest-differs``.
    """
    for pod, digest in digests.items():
        if planned and digest != planned:
            raise PermanentError(
                "digest-differs",
                f"{component}: pod {pod} runs {digest}, planned was {planned}",
                context={"component": component, "pod": pod},
                hint="The registry gave out another image than the plan resolved; check who moved the tag.",
            )


def health_endpoint(workload: Mapping[str, Any], component: Component, container: str) -> tuple[int, str]:
    """Return port and path of the health check: the profile's, else those of the live readiness probe.

    :raises PermanentError: ``health-check-unknown`` when neither says.
    """
    spec = next(c for c in workload["spec"]["template"]["spec"]["containers"] if c["name"] == container)
    probe = (spec.get("readinessProbe") or {}).get("httpGet") or {}
    port: Any = component.health.http.port or probe.get("port")
    if isinstance(port, str):
        port = next((p["containerPort"] for p in spec.get("ports") or () if p.get("name") == port), port)
    if port is None and spec.get("ports"):
        port = spec["ports"][0]["containerPort"]
    path = component.health.http.path or probe.get("path")
    if not str(port or "").isdigit() or not path:
        raise PermanentError(
            "health-check-unknown",
            f"{component.name}: neither the profile nor a readiness probe says port and path of a health check",
            context={"component": component.name},
            hint="Write health.http with port and path in the profile.",
        )
    return int(port), str(path)


def check_health(
    cluster: ClusterHook,
    workload: Mapping[str, Any],
    pods: Sequence[Mapping[str, Any]],
    component: Component,
    container: str,
) -> dict[str, Any]:
    """Ask every pod for its health through the API server.

    Returns ``{"ready", "desired", "health", "restarts"}``: counts, a sentence, restart counts by pod.

    :raises PermanentError: ``health-check-failed``, ``pods-not-ready`` when there is no pod to ask.
    """
    port, path = health_endpoint(workload, component, container)
    namespace = workload["metadata"]["namespace"]
    living = alive(pods)
    restarts: dict[str, int] = {}
    for pod in living:
        name = pod["metadata"]["name"]
        status, body = cluster.pod_http_get(namespace, name, port, path, timeout=HEALTH_TIMEOUT)
        if status != 200:
            raise PermanentError(
                "health-check-failed",
                f"{component.name}: pod {name} answers {status} to {path} on port {port}, expected 200: {body[:200]}",
                context={"component": component.name, "pod": name},
                hint="Read the pod's log.",
            )
        restarts[name] = restart_count(pod)
    desired = int(workload["spec"].get("replicas") or (workload.get("status") or {}).get("desiredNumberScheduled", 1))
    ready = sum(1 for pod in living if is_ready(pod))
    if desired and not living:
        raise PermanentError(
            "pods-not-ready",
            f"{component.name}: none of the pods runs the image that is meant, so none could be asked for its health",
            context={"component": component.name},
            hint="Look at the pods' images: an admission webhook may have replaced them.",
        )
    return {
        "ready": ready,
        "desired": desired,
        "health": f"{len(living)} of {len(living)} pods answer 200 to {path}",
        "restarts": restarts,
    }


def restart_count(pod: Mapping[str, Any]) -> int:
    """Return how often the containers of a pod were restarted, all together."""
    return sum(int(s.get("restartCount", 0)) for s in (pod.get("status") or {}).get("containerStatuses") or ())
