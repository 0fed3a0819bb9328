"""Objects as the API server returns them, cut to what decisions read; every test changes what it is about."""

from __future__ import annotations

import copy
from datetime import UTC, datetime, timedelta
from typing import Any

JsonObject = dict[str, Any]

SINCE = datetime(2026, 11, 23, 10, 0, 0, tzinfo=UTC)
"""When the change was made."""

OLD_IMAGE, NEW_IMAGE = "registry:5000/nephoran/rag-api:v1", "registry:5000/nephoran/rag-api:v2"
PROBE = {"httpGet": {"path": "/readyz", "port": 8000}, "periodSeconds": 5, "failureThreshold": 3, "timeoutSeconds": 3}


def at(seconds: float) -> datetime:
    """Return the moment so many seconds after the change."""
    return SINCE + timedelta(seconds=seconds)


def stamp(seconds: float) -> str:
    """Return that moment as Kubernetes writes it: whole seconds."""
    return at(seconds).strftime("%Y-%m-%dT%H:%M:%SZ")


def container(name: str = "rag-api", image: str = NEW_IMAGE, **fields: Any) -> JsonObject:
    return {"name": name, "image": image, "readinessProbe": copy.deepcopy(PROBE), "resources": {}, **fields}


def template(*containers: JsonObject, grace: int = 60, annotations: JsonObject | None = None) -> JsonObject:
    return {
        "metadata": {"labels": {"app": "rag-api"}, **({"annotations": annotations} if annotations else {})},
        "spec": {
            "containers": list(containers) or [container()],
            "terminationGracePeriodSeconds": grace,
            "restartPolicy": "Always",
            "securityContext": {},
        },
    }


def deployment(*, pod_template: JsonObject | None = None, replicas: int = 2, **changes: Any) -> JsonObject:
    """Return a Deployment of ``replicas`` whose status is that of a finished rollout; ``status`` overrides parts."""
    status = {
        "observedGeneration": 2,
        "replicas": replicas,
        "updatedReplicas": replicas,
        "readyReplicas": replicas,
        "availableReplicas": replicas,
        "conditions": [],
        **changes.pop("status", {}),
    }
    spec = {
        "replicas": replicas,
        "selector": {"matchLabels": {"app": "rag-api"}},
        "template": pod_template or template(),
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
        "progressDeadlineSeconds": 60,
        **changes.pop("spec", {}),
    }
    metadata = {"name": "rag-api", "namespace": "ns", "generation": 2, "uid": "d", **changes.pop("metadata", {})}
    return {"kind": "Deployment", "metadata": metadata, "spec": spec, "status": status, **changes}


def stateful_set(*, replicas: int = 3, partition: int = 0, **changes: Any) -> JsonObject:
    status = {
        "observedGeneration": 2,
        "replicas": replicas,
        "readyReplicas": replicas,
        "currentRevision": "weaviate-old",
        "updateRevision": "weaviate-new",
        **changes.pop("status", {}),
    }
    spec = {
        "replicas": replicas,
        "template": template(container("weaviate")),
        "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": partition}},
        **changes.pop("spec", {}),
    }
    metadata = {"name": "weaviate", "namespace": "ns", "generation": 2, "uid": "s", **changes.pop("metadata", {})}
    return {"kind": "StatefulSet", "metadata": metadata, "spec": spec, "status": status, **changes}


def daemon_set(*, desired: int = 2, pod_template: JsonObject | None = None, **status: Any) -> JsonObject:
    return {
        "kind": "DaemonSet",
        "metadata": {"name": "rag-api", "namespace": "ns", "generation": 2},
        "spec": {"template": pod_template or template(), "updateStrategy": {"type": "RollingUpdate"}},
        "status": {
            "observedGeneration": 2,
            "desiredNumberScheduled": desired,
            "updatedNumberScheduled": desired,
            "numberAvailable": desired,
            **status,
        },
    }


OWNERS = {"pod-template-hash": "ReplicaSet", "controller-revision-hash": "StatefulSet"}


def pod(
    name: str,
    *,
    revision: str = "new",
    label: str = "pod-template-hash",
    owner: str | None = None,
    image: str = NEW_IMAGE,
    ready: bool = False,
    created: float = 1,
    ready_since: float = 1,
    pod_template: JsonObject | None = None,
    statuses: list[JsonObject] | None = None,
    init_statuses: list[JsonObject] | None = None,
    scheduled: bool = True,
    **changes: Any,
) -> JsonObject:
    """Return a pod made from a template, with what the API server and the kubelet add to it."""
    made = copy.deepcopy(pod_template or template(container(image=image)))
    spec = {**made["spec"], "nodeName": "node-1", "serviceAccountName": "default"}
    for one in spec["containers"]:
        one["volumeMounts"] = [{"name": "kube-api-access-x", "mountPath": "/var/run/secrets"}]
    own = spec["containers"][0]["name"]
    metadata = {
        "name": name,
        "uid": f"uid-{name}",
        "labels": {**made["metadata"]["labels"], label: revision},
        "annotations": {**made["metadata"].get("annotations", {}), "cni.example/ip": "10.0.0.1"},
        "creationTimestamp": stamp(created),
        "ownerReferences": [{"kind": owner or OWNERS[label], "controller": True, "name": "x"}],
        **changes.pop("metadata", {}),
    }
    conditions = [
        {"type": "PodScheduled", "status": "True" if scheduled else "False"},
        {"type": "Ready", "status": "True" if ready else "False", "lastTransitionTime": stamp(ready_since)},
    ]
    status = {
        "phase": "Running" if ready or statuses is None else "Pending",
        "startTime": stamp(created),
        "conditions": conditions,
        "containerStatuses": statuses if statuses is not None else [running(own, ready=ready)],
        **({"initContainerStatuses": init_statuses} if init_statuses else {}),
        **changes.pop("status", {}),
    }
    return {"metadata": metadata, "spec": spec, "status": status, **changes}


def running(
    name: str = "rag-api", *, ready: bool = False, restarts: int = 0, last: JsonObject | None = None
) -> JsonObject:
    return {
        "name": name,
        "ready": ready,
        "restartCount": restarts,
        "state": {"running": {"startedAt": stamp(2)}},
        "lastState": {"terminated": last} if last else {},
    }


def waiting(
    reason: str, message: str = "", *, name: str = "rag-api", restarts: int = 0, last: JsonObject | None = None
) -> JsonObject:
    return {
        "name": name,
        "image": NEW_IMAGE,
        "ready": False,
        "restartCount": restarts,
        "state": {"waiting": {"reason": reason, "message": message}},
        "lastState": {"terminated": last} if last else {},
    }


def ended(code: int = 1, reason: str = "Error", finished: float = 10, message: str = "") -> JsonObject:
    return {"exitCode": code, "reason": reason, "finishedAt": stamp(finished), "message": message}


def event(
    reason: str,
    message: str,
    *,
    about: str = "new-1",
    kind: str = "Pod",
    container_name: str = "rag-api",
    count: int = 1,
    first: float = 2,
    last: float | None = None,
    uid: str | None = None,
) -> JsonObject:
    """Return an event of core v1, as the kubelet and the controllers write them."""
    subject: JsonObject = {"kind": kind, "name": about}
    if kind == "Pod":
        subject["uid"] = uid or f"uid-{about}"
        if container_name:
            subject["fieldPath"] = f"spec.containers{{{container_name}}}"
    return {
        "reason": reason,
        "message": message,
        "type": "Warning",
        "involvedObject": subject,
        "count": count,
        "firstTimestamp": stamp(first),
        "lastTimestamp": stamp(first if last is None else last),
    }


def new_style(old: JsonObject) -> JsonObject:
    """Return an event as events.k8s.io/v1 has it."""
    return {
        "reason": old["reason"],
        "note": old["message"],
        "regarding": old["involvedObject"],
        "eventTime": old["firstTimestamp"],
        "series": {"count": old["count"], "lastObservedTime": old["lastTimestamp"]},
    }
