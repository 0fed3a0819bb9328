"""A small system on loopback: an API server with controllers, and what the system talks to.

The cluster keeps objects with resource versions and generations, applies JSON, merge and strategic patches, and moves
every workload one step with each request, so a rollout takes several looks but no time. What an image does is decided
by its tag.
"""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from tests.unit.fake_prometheus import FakePrometheus, nothing
from tests.unit.hooks.fake_servers import FakeCluster, Received, Reply, status_object

JsonObject = dict[str, Any]

SYSTEM, OWN = "nephoran-system", "nephoran-maintenance"
APPS = f"/apis/apps/v1/namespaces/{SYSTEM}"
PODS = f"/api/v1/namespaces/{SYSTEM}/pods"
LEASES = f"/apis/coordination.k8s.io/v1/namespaces/{OWN}/leases"
JOURNALS = f"/api/v1/namespaces/{OWN}/configmaps"
JOB_LABEL = "batch.kubernetes.io/job-name"
INTENT_GROUPS = ("intent.nephoran.com", "nephoran.com")
PLURALS = {"Deployment": "deployments", "StatefulSet": "statefulsets", "DaemonSet": "daemonsets"}
WRITES = ("POST", "PUT", "PATCH", "DELETE")
REVIEWS = ("selfsubjectaccessreviews", "selfsubjectreviews")
PORTS = {"weaviate": 8080, "rag-api": 8000}


def digest_of(text: str) -> str:
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def copied(data: Any) -> Any:
    """Return a copy in depth; a copy of such plain data is made in a fifth of the time that ``copy.deepcopy`` takes."""
    return pickle.loads(pickle.dumps(data))


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def is_write(request: Received) -> bool:
    """Return whether a request changes something: neither a dry run nor a question about rights."""
    review = request.path.rpartition("/")[2] in REVIEWS
    return request.method in WRITES and not review and "dryRun" not in request.query


class SystemCluster(FakeCluster):
    """The system's cluster.

    ``behaviour`` says by tag what an image does: ``crash``, ``pull`` (it can't be pulled), ``unhealthy`` (Ready, but its
    health check answers 500); every other tag is good. ``digests`` says by image what its name leads to. ``denied`` holds
    pairs of verb and resource that the account may not. ``job_says`` is the log of every Job. ``before`` is called with
    each request before it is answered.
    """

    def __init__(self, registry: str) -> None:
        super().__init__()
        self.registry = registry
        self.behaviour: dict[str, str] = {}
        self.digests: dict[str, str] = {}
        self.denied: set[tuple[str, str]] = set()
        self.before: Callable[[Received], None] = lambda request: None
        self.intent_phase = "Deployed"
        self.keep_intents = False
        self.job_says = "401\n"
        self.made = 0
        self.accepted: list[Received] = []
        """The writes that were done; one that met another write is not among them."""
        self._at_rest = -1
        self._templates: dict[tuple[str, str], JsonObject] = {}
        self.put(
            "/api/v1/nodes",
            {
                "kind": "Node",
                "metadata": {"name": "node-1"},
                "spec": {},
                "status": {
                    "allocatable": {"cpu": "8", "memory": "16Gi", "pods": "110"},
                    "conditions": [{"type": "Ready", "status": "True"}],
                },
            },
        )
        for group in INTENT_GROUPS:
            text = {"type": "object", "required": ["intent"], "properties": {"intent": {"type": "string"}}}
            version = {"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": {}}}
            version["schema"] = {"openAPIV3Schema": {"properties": {"spec": text}}}
            self.put(
                "/apis/apiextensions.k8s.io/v1/customresourcedefinitions",
                {
                    "kind": "CustomResourceDefinition",
                    "metadata": {"name": f"networkintents.{group}"},
                    "spec": {"group": group, "names": {"plural": "networkintents"}, "versions": [version]},
                },
            )

    # ----------------------------------------------------------------------------------------------------- the system

    def image(self, name: str, tag: str) -> str:
        return f"{self.registry}/nephoran/{name}:{tag}"

    def digest(self, image: str) -> str:
        """Return the digest of an image as a node pulls it."""
        if "@" in image:
            return image.partition("@")[2]
        return self.digests.get(image) or digest_of(image)

    def add(
        self, name: str, *, kind: str = "Deployment", replicas: int = 2, tag: str = "v1", policy: bool = True
    ) -> None:
        """Add a workload that is rolled out; ``policy`` says whether it already has the profile's policy."""
        labels = {"app": name}
        container: JsonObject = {
            "name": name,
            "image": self.image(name, tag),
            "ports": [{"name": "http", "containerPort": PORTS.get(name, 8080)}],
            "readinessProbe": {"httpGet": {"path": "/readyz", "port": "http"}},
        }
        spec: JsonObject = {"replicas": replicas, "selector": {"matchLabels": labels}}
        # A container before the named one: nothing may go by position.
        sidecar = {"name": "log-shipper", "image": f"{self.registry}/tools/log-shipper:v7"}
        spec["template"] = {"metadata": {"labels": labels}, "spec": {"containers": [sidecar, container]}}
        if kind == "StatefulSet":
            spec["updateStrategy"] = {"type": "RollingUpdate", "rollingUpdate": {"partition": 0}}
        else:
            spec["strategy"] = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}}
        workload = {
            "apiVersion": "apps/v1",
            "kind": kind,
            "metadata": {"name": name, "namespace": SYSTEM, "labels": labels, "generation": 1, "uid": f"uid-{name}"},
            "spec": spec,
        }
        if policy:
            self.give_policy(workload, container, weaviate=name == "weaviate")
        self.put(f"{APPS}/{PLURALS[kind]}", workload)
        self.settle()

    @staticmethod
    def give_policy(workload: JsonObject, container: JsonObject, *, weaviate: bool) -> None:
        container["lifecycle"] = {"preStop": {"sleep": {"seconds": 15}}}
        path, delay = ("/v1/.well-known/ready", 3) if weaviate else ("/readyz", 10)
        timing = {"periodSeconds": 5, "timeoutSeconds": 3, "failureThreshold": 3}
        get = {"path": path, "port": "http"}
        container["readinessProbe"] = {"httpGet": get, "initialDelaySeconds": delay, **timing}
        if not weaviate:
            timing = {"periodSeconds": 10, "timeoutSeconds": 5, "failureThreshold": 3}
            get = {"path": "/healthz", "port": "http"}
            container["livenessProbe"] = {"httpGet": get, "initialDelaySeconds": 30, **timing}
            rolling = {"maxSurge": 1, "maxUnavailable": 0}
            workload["spec"]["strategy"] = {"type": "RollingUpdate", "rollingUpdate": rolling}
        workload["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] = 60

    def workload(self, name: str) -> JsonObject:
        return next(o for p, o in self.objects.items() if p.startswith(APPS) and p.endswith(f"/{name}"))

    def spec(self, name: str) -> JsonObject:
        """Return a copy of what a rollback must put back exactly."""
        return copied(self.workload(name)["spec"])

    def pods_of(self, name: str) -> list[JsonObject]:
        pods = [o for p, o in self.objects.items() if p.startswith(PODS) and o["metadata"]["labels"].get("app") == name]
        return sorted(pods, key=lambda pod: str(pod["metadata"]["name"]))

    def running(self, name: str) -> set[str]:
        """Return the tags that the pods of a component run."""
        return {tag_of(own(pod, name)["image"]) for pod in self.pods_of(name)}

    def edit(self, name: str, change: Callable[[JsonObject], None]) -> None:
        """Change a workload behind the procedure's back, as another person would."""
        workload = self.workload(name)
        change(workload)
        workload["metadata"]["generation"] += 1
        self.store(workload)

    def store(self, workload: JsonObject) -> None:
        self.put(f"{APPS}/{PLURALS[workload['kind']]}", workload)

    def settle(self) -> None:
        """Let the controllers work until nothing moves any more."""
        for _ in range(200):
            before = self.version
            self.tick()
            if self.version == before:
                return
        raise AssertionError("the controllers do not come to rest")

    # ------------------------------------------------------------------------------------------------- the controllers

    def tick(self) -> None:
        """Move every workload by one step; at rest there is nothing to look at until something is written."""
        if self.version == self._at_rest:
            return
        before = self.version
        for path, found in list(self.objects.items()):
            if path.startswith(APPS) and found["kind"] in PLURALS:
                (self._roll_stateful if found["kind"] == "StatefulSet" else self._roll)(copied(found))
            elif "/networkintents/" in path and not found.get("status"):
                self.put(path.rpartition("/")[0], {**found, "status": {"phase": self.intent_phase}})
            elif "/jobs/" in path and not found.get("status"):
                self._end(path.rpartition("/")[0], found)
        self._at_rest = self.version if self.version == before else -1

    def _roll(self, workload: JsonObject) -> None:
        name, wanted = workload["metadata"]["name"], workload["spec"]["replicas"]
        revision = revision_of(workload)
        pods = self.pods_of(name)
        new = [pod for pod in pods if pod["metadata"]["labels"]["pod-template-hash"] == revision]
        old = [pod for pod in pods if pod not in new]
        ready = [pod for pod in new if is_ready(pod)]
        broken = [pod for pod in old if not is_ready(pod)]
        if len(new) < wanted and len(new) == len(ready) and len(pods) <= wanted:
            self.made += 1
            self._start(workload, f"{name}-{revision}-{self.made}", {"pod-template-hash": revision}, "ReplicaSet")
        elif broken or (old and len(ready) + len(old) > wanted):
            self._stop((broken or old)[0])
        pods = self.pods_of(name)
        new = [pod for pod in pods if pod["metadata"]["labels"]["pod-template-hash"] == revision]
        available = sum(1 for pod in pods if is_ready(pod))
        self._report(
            workload,
            {
                "replicas": len(pods),
                "updatedReplicas": len(new),
                "readyReplicas": available,
                "availableReplicas": available,
                "unavailableReplicas": len(pods) - available,
            },
        )

    def _roll_stateful(self, workload: JsonObject) -> None:
        name, spec = workload["metadata"]["name"], workload["spec"]
        status = workload.get("status") or {}
        update = revision_of(workload)
        current = status.get("currentRevision") or update
        partition = ((spec.get("updateStrategy") or {}).get("rollingUpdate") or {}).get("partition") or 0
        by_ordinal = {int(pod["metadata"]["name"].rpartition("-")[2]): pod for pod in self.pods_of(name)}
        for ordinal in reversed(range(spec["replicas"])):
            pod = by_ordinal.get(ordinal)
            if pod is None:
                wanted = update if ordinal >= partition else current
                template = spec["template"] if wanted == update else self._templates[name, current]
                self._start(
                    {**workload, "spec": {**spec, "template": template}},
                    f"{name}-{ordinal}",
                    {"controller-revision-hash": wanted},
                    "StatefulSet",
                )
                break
            if not is_ready(pod):
                break
            on_delete = (spec.get("updateStrategy") or {}).get("type") == "OnDelete"
            if (
                pod["metadata"]["labels"]["controller-revision-hash"] != update
                and ordinal >= partition
                and not on_delete
            ):
                self._stop(pod)
                break
        pods = self.pods_of(name)
        new = [pod for pod in pods if pod["metadata"]["labels"]["controller-revision-hash"] == update]
        if len(new) == spec["replicas"] and all(is_ready(pod) for pod in new):
            current = update
        self._templates[name, update] = spec["template"]
        self._report(
            workload,
            {
                "replicas": len(pods),
                "updatedReplicas": len(new),
                "readyReplicas": sum(1 for pod in pods if is_ready(pod)),
                "currentRevision": current,
                "updateRevision": update,
            },
        )

    def _report(self, workload: JsonObject, status: JsonObject) -> None:
        status = {"observedGeneration": workload["metadata"]["generation"], "conditions": [], **status}
        if workload.get("status") != status:
            self.store({**workload, "status": status})

    def _start(self, workload: JsonObject, name: str, labels: JsonObject, owner: str) -> None:
        template, own_name = workload["spec"]["template"], workload["metadata"]["name"]
        self.made += 1
        statuses, good = [], True
        for container in template["spec"]["containers"]:
            image = container["image"]
            tag = tag_of(image)
            state: JsonObject = {"state": {"running": {"startedAt": now()}}, "lastState": {}, "restartCount": 0}
            bad = self.behaviour.get(tag)
            if bad == "crash":
                ended = {"exitCode": 3, "reason": "Error", "finishedAt": now()}
                state = {
                    "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s restarting"}},
                    "lastState": {"terminated": ended},
                    "restartCount": 2,
                }
            if bad == "pull":
                message = f"Back-off pulling image {image}: not found"
                state["state"] = {"waiting": {"reason": "ImagePullBackOff", "message": message}}
                self._tell(
                    name, f"uid-{name}-{self.made}", container["name"], "Failed", f"Failed to pull image {image}"
                )
            ready = bad not in ("crash", "pull")
            good = good and ready
            statuses.append(
                {
                    "name": container["name"],
                    "image": image,
                    "imageID": f"{image.partition('@')[0]}@{self.digest(image)}" if ready else "",
                    "ready": ready,
                    **state,
                }
            )
        stamp = now()
        self.put(
            PODS,
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {
                    "name": name,
                    "namespace": SYSTEM,
                    "uid": f"uid-{name}-{self.made}",
                    "labels": {**template["metadata"]["labels"], **labels},
                    "creationTimestamp": stamp,
                    "ownerReferences": [{"kind": owner, "name": own_name, "controller": True}],
                },
                "spec": {**copied(template["spec"]), "nodeName": "node-1"},
                "status": {
                    "phase": "Running" if good else "Pending",
                    "startTime": stamp,
                    "conditions": [
                        {"type": "PodScheduled", "status": "True"},
                        {"type": "Ready", "status": "True" if good else "False", "lastTransitionTime": stamp},
                    ],
                    "containerStatuses": statuses,
                },
            },
        )

    def _tell(self, pod: str, uid: str, container: str, reason: str, message: str) -> None:
        """Let the kubelet say for the second time what goes wrong."""
        about = {"kind": "Pod", "name": pod, "namespace": SYSTEM, "uid": uid}
        about["fieldPath"] = f"spec.containers{{{container}}}"
        event = {"kind": "Event", "metadata": {"name": f"{pod}.{reason}"}, "involvedObject": about, "type": "Warning"}
        stamps = {"firstTimestamp": now(), "lastTimestamp": now()}
        event |= {"reason": reason, "message": message, "count": 2, **stamps}
        self.put(f"/api/v1/namespaces/{SYSTEM}/events", event)

    def _end(self, jobs: str, job: JsonObject) -> None:
        """Let a Job's only pod run to its end."""
        name, template = job["metadata"]["name"], job["spec"]["template"]
        labels = {**template["metadata"]["labels"], JOB_LABEL: name}
        ended = {"name": template["spec"]["containers"][0]["name"], "state": {"terminated": {"exitCode": 0}}}
        self.put(
            PODS,
            {
                "kind": "Pod",
                "metadata": {"name": f"{name}-x", "namespace": SYSTEM, "labels": labels},
                "spec": {**template["spec"], "nodeName": "node-1"},
                "status": {"phase": "Pending", "conditions": [], "containerStatuses": [ended]},
            },
        )
        self.put(jobs, {**job, "status": {"conditions": [{"type": "Complete", "status": "True"}]}})

    def _stop(self, pod: JsonObject) -> None:
        self.version += 1
        del self.objects[f"{PODS}/{pod['metadata']['name']}"]

    # --------------------------------------------------------------------------------------------------- the API server

    def __call__(self, request: Received) -> Reply:
        reply = self._answer(request)
        if is_write(request) and reply.status < 300:
            self.accepted.append(request)
        return reply

    def _answer(self, request: Received) -> Reply:
        self.before(request)
        self.tick()
        if self.fail is not None and (reply := self.fail(request)) is not None:
            return reply
        if request.path.endswith("/selfsubjectaccessreviews"):
            asked = request.json["spec"]["resourceAttributes"]
            resource = "/".join(filter(None, (asked["resource"], asked.get("subresource"))))
            return Reply(201, {**request.json, "status": {"allowed": (asked["verb"], resource) not in self.denied}})
        if "/proxy" in request.path:
            return self._proxy(request)
        return super().__call__(request)

    def _proxy(self, request: Received) -> Reply:
        if request.path.startswith("/api/v1/nodes/"):
            return status_object(403, "Forbidden", "nodes/proxy is forbidden")
        name = request.path.removeprefix(f"{PODS}/").partition(":")[0]
        pod = self.objects.get(f"{PODS}/{name}")
        if pod is None:
            return status_object(404, "NotFound", f'pods "{name}" not found')
        tag = tag_of(own(pod, pod["metadata"]["labels"]["app"])["image"])
        if self.behaviour.get(tag) == "unhealthy":
            return Reply(500, "no answer from upstream")
        return Reply(200 if is_ready(pod) else 503, "ok")

    def _get(self, request: Received) -> Reply:
        folder, _, name = request.path.rpartition("/")
        kinds = (*PLURALS.values(), "configmaps", "networkintents", "jobs", "leases")
        if request.path not in self.objects and folder.rpartition("/")[2] in kinds:
            return status_object(404, "NotFound", f'"{name}" not found')
        return super()._get(request)

    def _log(self, request: Received) -> Reply:
        pod = self.objects.get(request.path.removesuffix("/log"), {"metadata": {}})
        if JOB_LABEL in pod["metadata"].get("labels", {}):
            return Reply(200, self.job_says, {"Content-Type": "text/plain"})
        return super()._log(request)

    def _patch(self, request: Received) -> Reply:
        stored = self.objects.get(request.path)
        if stored is None:
            return status_object(404, "NotFound", "not found")
        patch = request.json
        if isinstance(patch, list):
            changed = copied(stored)
            for operation in patch:
                refused = _json_patch(changed, operation)
                if refused:
                    return status_object(422, "Invalid", refused)
        else:
            given = patch.get("metadata", {}).get("resourceVersion")
            if given is not None and given != stored["metadata"]["resourceVersion"]:
                return status_object(409, "Conflict", "the object has been modified")
            changed = _strategic(stored, patch)
        if changed.get("spec") != stored.get("spec"):
            changed["metadata"]["generation"] = stored["metadata"].get("generation", 0) + 1
        if request.query.get("dryRun"):
            return Reply(200, changed)
        return Reply(200, self.put(request.path.rpartition("/")[0], changed))

    def _delete(self, request: Received) -> Reply:
        if self.keep_intents and "/networkintents/" in request.path and request.path in self.objects:
            return Reply(200, self.objects[request.path])
        self.version += 1
        return super()._delete(request)


def own(pod: JsonObject, name: str) -> JsonObject:
    """Return a pod's container that is called like its component."""
    return next(c for c in pod["spec"]["containers"] if c["name"] == name)


def tag_of(image: str) -> str:
    return image.partition("@")[0].rpartition(":")[2]


def revision_of(workload: JsonObject) -> str:
    text = json.dumps(workload["spec"]["template"], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def is_ready(pod: JsonObject) -> bool:
    return any(c["type"] == "Ready" and c["status"] == "True" for c in pod["status"]["conditions"])


def _json_patch(target: JsonObject, operation: JsonObject) -> str:
    """Apply one operation and return an empty text, or return why it was refused."""
    parts = [part.replace("~1", "/").replace("~0", "~") for part in operation["path"].split("/")[1:]]
    *parents, last = parts
    for part in parents:
        if part not in target:
            return f"error in {operation['op']} for path: '{operation['path']}': missing path"
        target = target[part]
    if operation["op"] == "test":
        same = target.get(last) == operation["value"]
        return "" if same else f"testing value {operation['path']} failed: test failed"
    if operation["op"] == "remove":
        del target[last]
        return ""
    if operation["op"] not in ("add", "replace"):
        raise AssertionError(f"the fake cluster does not know {operation['op']}")
    target[last] = operation["value"]
    return ""


def _strategic(old: Any, new: Any) -> Any:
    """Merge as the API server does with lists of named objects; null removes a field."""
    if isinstance(old, dict) and isinstance(new, dict):
        merged = dict(old)
        for key, value in new.items():
            if value is None:
                merged.pop(key, None)
            else:
                merged[key] = _strategic(old.get(key), value)
        return merged
    if isinstance(new, dict):
        return {key: _strategic(None, value) for key, value in new.items() if value is not None}
    if isinstance(old, list) and isinstance(new, list) and all(isinstance(i, dict) and "name" in i for i in new):
        changes = {item["name"]: item for item in new}
        kept = [_strategic(item, changes.pop(item["name"], {})) for item in old]
        return [*kept, *changes.values()]
    return new


class Outside:
    """The registry, Weaviate, the LLM provider, Prometheus and the entrance of the system, told apart by path.

    ``tags`` holds the digests by ``repository:tag``; one that is missing is not in the registry. ``labels`` are those of
    every image. ``down`` holds the first path segments that answer 503, ``missing`` ids of objects that Weaviate lacks.
    """

    def __init__(self) -> None:
        self.tags: dict[str, str] = {}
        self.labels = {"org.opencontainers.image.version": "1.39.0"}
        self.weaviate_version = "1.39.0"
        self.llm_status = 401
        self.down: set[str] = set()
        self.missing_object = False
        self.missing: set[str] = set()
        self.prometheus = FakePrometheus(nothing)

    def __call__(self, request: Received) -> Reply:
        path = request.path
        if path.split("/")[1] in self.down:
            return Reply(503, "down for maintenance")
        if path.startswith("/v2/"):
            return self._registry(path)
        if path == "/api/v1/query":
            return self.prometheus(request)
        if path == "/v1/models":
            return Reply(self.llm_status, {})
        if path == "/v1/meta":
            return Reply(200, {"version": self.weaviate_version})
        if path == "/v1/cluster/statistics":
            return Reply(200, {"synchronized": True})
        if path == "/v1/nodes":
            return Reply(200, {"nodes": [{"status": "HEALTHY"}] * 3})
        if path.startswith("/v1/objects/"):
            gone = self.missing_object or path.rpartition("/")[2] in self.missing
            return Reply(404, {}) if gone else Reply(200, {"id": path.rpartition("/")[2]})
        if path == "/process":
            asked = request.json["object_id"]
            return Reply(200, {"object_id": asked, "title": "unknown", "rag_version": "v1"})
        return Reply(200, {})

    def _registry(self, path: str) -> Reply:
        repository, _, rest = path.removeprefix("/v2/").partition("/manifests/")
        if rest:
            known = self.tags.get(f"{repository}:{rest}")
            digest = known or (rest if rest in self.tags.values() else None)
            if digest is None:
                return Reply(404, {"errors": [{"code": "MANIFEST_UNKNOWN"}]})
            return Reply(200, {"config": {"digest": digest_of("config")}}, {"Docker-Content-Digest": digest})
        return Reply(200, {"config": {"Labels": self.labels}})
