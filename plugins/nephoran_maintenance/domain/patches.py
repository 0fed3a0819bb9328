"""What a change does to a workload: the recorded state, the patch towards another one, and whether two are equal."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

JsonObject = Mapping[str, Any]

STRATEGY_FIELD = {"Deployment": "strategy", "StatefulSet": "updateStrategy", "DaemonSet": "updateStrategy"}


def strategy_of(workload: JsonObject) -> dict[str, Any]:
    """Return the rolling-update strategy of a workload, whatever its kind calls it."""
    return copy.deepcopy(dict(workload["spec"].get(STRATEGY_FIELD[workload["kind"]]) or {}))


def container_of(workload: JsonObject, name: str) -> dict[str, Any]:
    """Return the named container of the template; never by position.

    :raises KeyError: when the template has no such container.
    """
    for container in workload["spec"]["template"]["spec"]["containers"]:
        if container["name"] == name:
            return dict(container)
    raise KeyError(name)


def record_before(workload: JsonObject, container: str) -> dict[str, Any]:
    """Return the state that a rollback puts back and a recovery compares with.

    Keys: ``template`` and ``strategy`` (exact), ``container`` and ``image``, and for the record ``replicas``,
    ``revision``, ``generation``, ``uid``. Replicas are never put back: nothing here changes them.
    """
    metadata = workload["metadata"]
    status = workload.get("status", {})
    annotations = metadata.get("annotations") or {}
    return {
        "template": copy.deepcopy(dict(workload["spec"]["template"])),
        "strategy": strategy_of(workload),
        "container": container,
        "image": container_of(workload, container)["image"],
        "replicas": workload["spec"].get("replicas"),
        "revision": annotations.get("deployment.kubernetes.io/revision") or status.get("updateRevision"),
        "generation": metadata.get("generation"),
        "uid": metadata.get("uid"),
    }


def same_template(workload: JsonObject, recorded: JsonObject) -> bool:
    """Return whether the live pod template is exactly the recorded one."""
    return bool(workload["spec"]["template"] == recorded["template"])


def same_strategy(workload: JsonObject, recorded: JsonObject) -> bool:
    """Return whether the live strategy, partition included, is exactly the recorded one."""
    return bool(strategy_of(workload) == recorded["strategy"])


def same_spec(workload: JsonObject, recorded: JsonObject) -> bool:
    """Return whether template and strategy are exactly the recorded ones."""
    return same_template(workload, recorded) and same_strategy(workload, recorded)


def spec_patch(workload: JsonObject, *, template: JsonObject, strategy: JsonObject) -> list[dict[str, Any]]:
    """Return the JSON patch that puts a template and a strategy in place, on this very object only."""
    field = STRATEGY_FIELD[workload["kind"]]
    operations: list[dict[str, Any]] = [
        {"op": "test", "path": "/metadata/uid", "value": workload["metadata"]["uid"]},
    ]
    if workload["spec"]["template"] != template:
        operations.append({"op": "replace", "path": "/spec/template", "value": copy.deepcopy(dict(template))})
    if strategy_of(workload) != strategy:
        operations.append({"op": "add", "path": f"/spec/{field}", "value": copy.deepcopy(dict(strategy))})
    return operations


def with_image(patch: JsonObject, image: str) -> dict[str, Any]:
    """Return a patch of :func:`policy_patch` that changes the image of its one container as well."""
    changed = copy.deepcopy(dict(patch))
    changed["spec"]["template"]["spec"]["containers"][0]["image"] = image
    return changed


def policy_patch(workload: JsonObject, container: str, policy: JsonObject) -> dict[str, Any]:
    """Return the strategic merge patch that gives a workload the profile's rolling-update policy.

    What the policy leaves out stays as it is: an existing probe keeps its handler, and without a probe on the live
    object none is invented here but the policy's own.

    :param policy: ``max_surge``, ``max_unavailable`` (Deployments), ``grace_period_seconds``,
        ``pre_stop_sleep_seconds``, ``readiness`` and ``liveness`` (``path``, ``port``, ``initial_delay_seconds``,
        ``period_seconds``, ``timeout_seconds``, ``failure_threshold``); each may be missing.
    """
    live = container_of(workload, container)
    patched: dict[str, Any] = {"name": container}
    if policy.get("pre_stop_sleep_seconds") is not None:
        sleep = {"sleep": {"seconds": policy["pre_stop_sleep_seconds"]}}
        patched["lifecycle"] = {"preStop": {**dict.fromkeys(_handlers(live, "preStop") - {"sleep"}), **sleep}}
    for name in ("readiness", "liveness"):
        if policy.get(name):
            patched[f"{name}Probe"] = _probe(live.get(f"{name}Probe") or {}, policy[name], _first_port(live))
    template_spec: dict[str, Any] = {"containers": [patched]}
    if policy.get("grace_period_seconds") is not None:
        template_spec["terminationGracePeriodSeconds"] = policy["grace_period_seconds"]
    patch: dict[str, Any] = {"spec": {"template": {"spec": template_spec}}}
    if workload["kind"] == "Deployment" and policy.get("max_surge") is not None:
        rolling = {"maxSurge": policy["max_surge"], "maxUnavailable": policy["max_unavailable"]}
        patch["spec"]["strategy"] = {"type": "RollingUpdate", "rollingUpdate": rolling}
    if workload["kind"] == "StatefulSet":
        patch["spec"]["updateStrategy"] = {"type": "RollingUpdate"}
    return patch


def _handlers(container: JsonObject, hook: str) -> set[str]:
    return set((container.get("lifecycle") or {}).get(hook) or {})


def _first_port(container: JsonObject) -> str | int:
    """Return the port that a probe asks where nothing names one: the port called ``http``, else the first."""
    ports = container.get("ports") or ()
    named = next((str(port["name"]) for port in ports if port.get("name") == "http"), None)
    return named or next((int(port["containerPort"]) for port in ports), "http")


def _probe(live: JsonObject, wanted: JsonObject, port: str | int) -> dict[str, Any]:
    probe: dict[str, Any] = {
        field: wanted[key]
        for key, field in (
            ("initial_delay_seconds", "initialDelaySeconds"),
            ("period_seconds", "periodSeconds"),
            ("timeout_seconds", "timeoutSeconds"),
            ("failure_threshold", "failureThreshold"),
        )
        if wanted.get(key) is not None
    }
    if wanted.get("path"):
        http = dict(live.get("httpGet") or {})
        probe["httpGet"] = {
            **{key: http[key] for key in ("scheme", "httpHeaders", "host") if key in http},
            "path": wanted["path"],
            "port": wanted.get("port") or http.get("port") or port,
        }
        probe.update({other: None for other in ("exec", "tcpSocket", "grpc") if other in live})
    return probe
