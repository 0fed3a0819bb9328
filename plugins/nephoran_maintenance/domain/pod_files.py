"""Files that lie on a volume of the cluster: from where they can be read, the pod that reads them, what its tar says."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nephoran_maintenance.domain.vantage_point import RECORD_LABEL
from nephoran_maintenance.errors import PermanentError
from nephoran_maintenance.settings import FIELD_MANAGER, OPERATION_LABEL

JsonObject = Mapping[str, Any]

READER = "nephoran-maintenance-reader"
"""Name of the helper pod, one for each namespace: so the right to run something in it can be given for it alone."""
READER_LABELS = {"app.kubernetes.io/managed-by": FIELD_MANAGER, RECORD_LABEL: "reader"}
CONTAINER = "read"
MOUNT_PATH = "/claim"
NOBODY = 65532
LONGEST_READING_SECONDS = 4 * 3600
"""Kubernetes ends the helper pod after this, and a kubelet its streams, by default."""
UNUSED_SECONDS = 60
READING_LOOP = (
    f"sleep {UNUSED_SECONDS}; while grep -qsx tar /proc/[0-9]*/comm; do sleep 2; done"  # busybox has all of it
)
"""A worker that dies takes its stream with it, and tar dies with the stream: then the pod ends by itself."""
SHARED_MODES = frozenset({"ReadWriteMany", "ReadOnlyMany"})
SINGLE_POD_MODE = "ReadWriteOncePod"
SHOWN = 20


@dataclass(frozen=True)
class Seat:
    """A running container that has a folder before it.

    :param path: of the folder, as the container sees it.
    """

    pod: str
    container: str
    path: str


@dataclass(frozen=True)
class Folder:
    """Where a folder is.

    :param seats: containers that see it; a reader pod is needed where none of them can be used.
    :param claim: the claim that it lies on; empty: it lies on none, so only a seat can read it.
    :param claim_path: below the root of the claim, empty for all of it.
    :param node: where a pod that has the claim runs; empty: none has.
    """

    name: str
    namespace: str
    seats: tuple[Seat, ...] = ()
    claim: str = ""
    claim_path: str = ""
    node: str = ""
    identity: JsonObject = field(default_factory=dict)
    """``securityContext`` of a container that has it: user, groups."""


def is_reader(pod: JsonObject) -> bool:
    """Return whether a pod is our helper that reads a claim."""
    labels = pod["metadata"].get("labels") or {}
    return all(labels.get(key) == value for key, value in READER_LABELS.items())


def is_reader_of(pod: JsonObject, operation: str) -> bool:
    """Return whether a pod is the helper of an operation."""
    return is_reader(pod) and pod["metadata"]["labels"].get(OPERATION_LABEL) == operation


def folder_of_claim(name: str, namespace: str, claim: str, path: str, pods: Sequence[JsonObject]) -> Folder:
    """Return where a folder of a claim is, and who sees it.

    :param path: below the claim's root; empty: all of it.
    :param pods: of the namespace.
    """
    users = _users(claim, pods)
    seats = []
    for pod in users:
        for container, mount in _mounts(pod):
            if _claims(pod).get(mount["name"]) != claim or not _runs(pod, container) or mount.get("subPathExpr"):
                continue
            below = _below(path, _clean(mount.get("subPath")))
            if below is not None:
                seats.append(Seat(_name(pod), container, posixpath.join(mount["mountPath"], below).rstrip("/") or "/"))
    return Folder(name, namespace, tuple(seats), claim, _clean(path), _node(users), _identity(users, claim))


def folder_of_workload(
    name: str, namespace: str, container: str, path: str, pods: Sequence[JsonObject], all_pods: Sequence[JsonObject]
) -> Folder:
    """Return where a folder is that a workload's container sees.

    :param path: absolute, as the container sees it.
    :param pods: the workload's.
    :param all_pods: of the namespace: others may have the same claim.
    :raises PermanentError: ``folder-unreachable`` when no pod runs it, or when its pods have a claim of their own each.
    """
    running = [pod for pod in pods if not is_over(pod) and _runs(pod, container)]
    if not running:
        raise unreachable(name, f"no pod in {namespace} runs the container {container}")
    seats = tuple(Seat(_name(pod), container, path) for pod in running)
    places = {_place(pod, container, path) for pod in running}
    if len(places) > 1:
        claims = ", ".join(sorted(claim or "no claim" for claim, _ in places))
        raise unreachable(name, f"its pods do not share it: {path} lies on {claims}; name each claim")
    ((claim, claim_path),) = places
    if not claim:
        return Folder(name, namespace, seats)
    users = _users(claim, all_pods)
    return Folder(name, namespace, seats, claim, claim_path, _node(users), _identity(running, claim))


def node_needed(folder: Folder, claim: JsonObject) -> str:
    """Return the node on which the claim must be mounted; empty: any.

    :raises PermanentError: ``folder-unreachable`` when only one pod may mount it, and one does.
    """
    modes = set((claim.get("status") or {}).get("accessModes") or (claim.get("spec") or {}).get("accessModes") or ())
    if modes & SHARED_MODES or not folder.node:
        return ""
    if modes == {SINGLE_POD_MODE}:
        raise unreachable(
            folder.name, f"the claim {folder.claim} is {SINGLE_POD_MODE} and in use, so no other pod can mount it"
        )
    return folder.node


def reader_pod(folder: Folder, operation: str, *, image: str, node: str, user: int | None) -> dict[str, Any]:
    """Return the helper pod that has a claim before it, read-only, and nothing else.

    :param user: who it runs as; None: as the container that uses the claim, else as nobody. 0 may read everything.
    """
    identity = folder.identity
    who = user if user is not None else int(identity.get("runAsUser") or NOBODY)
    groups = [*(identity.get("supplementalGroups") or ()), *([identity["fsGroup"]] if identity.get("fsGroup") else ())]
    # Not as fsGroup: with it Kubernetes may give every file of the volume to the group.
    security: dict[str, Any] = {"seccompProfile": {"type": "RuntimeDefault"}}
    if groups:
        security["supplementalGroups"] = sorted(set(groups))
    container_security: dict[str, Any] = {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "runAsNonRoot": who != 0,
        "runAsUser": who,
        "runAsGroup": int(identity.get("runAsGroup") or who),
        # Root without any is nobody to files of others.
        "capabilities": {"drop": ["ALL"], **({"add": ["DAC_OVERRIDE"]} if who == 0 else {})},
    }
    spec: dict[str, Any] = {
        "restartPolicy": "Never",
        "activeDeadlineSeconds": LONGEST_READING_SECONDS,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": 1,
        "securityContext": security,
        "containers": [
            {
                "name": CONTAINER,
                "image": image,
                "command": ["sh", "-c", READING_LOOP],
                "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}, "limits": {"memory": "128Mi"}},
                "securityContext": container_security,
                "volumeMounts": [{"name": "claim", "mountPath": MOUNT_PATH, "readOnly": True}],
            }
        ],
        "volumes": [
            {"name": "claim", "persistentVolumeClaim": {"claimName": folder.claim, "readOnly": True}},
        ],
    }
    if node:
        # Where the volume is already; a scheduler might not let it onto a node that is kept for others.
        spec["nodeName"] = node
    labels = {**READER_LABELS, OPERATION_LABEL: operation}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": READER, "namespace": folder.namespace, "labels": labels},
        "spec": spec,
    }


def reader_seat(folder: Folder) -> Seat:
    """Return from where a helper pod sees the folder."""
    return Seat(READER, CONTAINER, posixpath.join(MOUNT_PATH, folder.claim_path).rstrip("/"))


def reader_permissions(namespace: str) -> list[dict[str, str]]:
    """Return what a helper pod in a namespace takes, as SelfSubjectAccessReview attributes."""
    own = {"namespace": namespace, "name": READER}
    return [
        {"verb": "create", "resource": "pods", "namespace": namespace},
        *({"verb": verb, "resource": "pods", **own} for verb in ("get", "delete")),
        # A websocket is asked for as get; newer clusters want create as well.
        *({"verb": verb, "resource": "pods/exec", **own} for verb in ("get", "create")),
    ]


def exec_permission(folder: Folder, seat: Seat) -> dict[str, str]:
    """Return what exec in a pod that has the folder takes."""
    return {"verb": "create", "resource": "pods/exec", "namespace": folder.namespace, "name": seat.pod}


def must_go(pod: JsonObject, operation: str) -> bool:
    """Return whether a helper pod that is there already is left over: it has ended, or is of this operation."""
    labels = pod["metadata"].get("labels") or {}
    return is_over(pod) or labels.get(OPERATION_LABEL) == operation


def why_not_running(pod: JsonObject) -> str:
    """Return why a helper pod does not run yet; empty: it runs."""
    status = pod.get("status") or {}
    for container in status.get("containerStatuses") or ():
        state = container.get("state") or {}
        if "running" in state:
            return ""
        waiting = state.get("waiting") or state.get("terminated") or {}
        if waiting.get("reason"):
            return f"{waiting['reason']} {waiting.get('message') or ''}".strip()
    for condition in status.get("conditions") or ():
        if condition.get("status") == "False" and condition.get("message"):
            return f"{condition.get('reason')}: {condition['message']}"
    return str(status.get("reason") or status.get("phase") or "it has no status")


# -------------------------------------------------------------------------------------------------------- what tar says

_CHANGED = re.compile(
    r"tar: (?P<path>.*): (file changed as we read it|File removed before we read it"
    r"|File shrank by \d+ bytes; padding with zeros|No such file or directory)"
)
_IGNORED = re.compile(r"tar: (?P<path>.*): (socket ignored|door ignored|file is the archive; not dumped)")
_AFTERWARDS = re.compile(
    r"tar: (Exiting with failure status due to previous errors|error exit delayed from previous errors"
    r"|Error is not recoverable: exiting now|Removing leading .*)"
)


@dataclass(frozen=True)
class TarVerdict:
    """What became of a tar.

    :param problem: why its archive is not good; empty: it is.
    :param changed: files that changed or vanished while they were read.
    :param ignored: what can't be in an archive.
    """

    problem: str = ""
    changed: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()


def judge_tar(exit_code: int, complaints: str) -> TarVerdict:
    """Return what a tar's exit status and its words mean, GNU's and busybox's.

    GNU tar ends with 1 when files differ only and with 2 for everything else, busybox with 1 for all; so the words
    decide: one that is not known is a failure.
    """
    changed, ignored, other = [], [], []
    for line in complaints.splitlines():
        found = _CHANGED.fullmatch(line)
        # The folder itself, or a file that may not be read, ends in the same words.
        if found and "can't" not in found["path"] and "Cannot" not in found["path"]:
            changed.append(found["path"])
        elif found := _IGNORED.fullmatch(line):
            ignored.append(found["path"])
        elif line.strip() and not _AFTERWARDS.fullmatch(line):
            other.append(line)
    if exit_code not in (0, 1) or (exit_code == 1 and (other or not changed)):
        said = "; ".join([*other, *changed]) or "nothing"
        return TarVerdict(f"tar ended with {exit_code} and said: {said}")
    return TarVerdict("", tuple(dict.fromkeys(changed)), tuple(ignored))


def shown(paths: Sequence[str]) -> str:
    """Return some paths for a message."""
    more = f" and {len(paths) - SHOWN} more" if len(paths) > SHOWN else ""
    return f"{', '.join(paths[:SHOWN])}{more}"


def unreachable(name: str, problem: str) -> PermanentError:
    """Return the error for a folder that the profile names and nobody can read."""
    return PermanentError(
        "folder-unreachable",
        f"the folder {name}: {problem}",
        context={"folder": name},
        hint="Compare backup in the profile with kubectl get pods,pvc; docs/how-to/back-up-a-system.md says what is needed.",
    )


# ------------------------------------------------------------------------------------------------- what a pod looks like


def _name(pod: JsonObject) -> str:
    return str(pod["metadata"]["name"])


def is_over(pod: JsonObject) -> bool:
    """Return whether all of a pod has ended."""
    return (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed")


def _runs(pod: JsonObject, container: str) -> bool:
    if pod["metadata"].get("deletionTimestamp"):
        return False
    statuses = (pod.get("status") or {}).get("containerStatuses") or ()
    return any(status["name"] == container and "running" in (status.get("state") or {}) for status in statuses)


def _claims(pod: JsonObject) -> dict[str, str]:
    """Return the claims of a pod by the name of the volume."""
    return {
        volume["name"]: volume["persistentVolumeClaim"]["claimName"]
        for volume in pod["spec"].get("volumes") or ()
        if volume.get("persistentVolumeClaim")
    }


def _mounts(pod: JsonObject) -> list[tuple[str, JsonObject]]:
    return [(c["name"], mount) for c in pod["spec"].get("containers") or () for mount in c.get("volumeMounts") or ()]


def _place(pod: JsonObject, container: str, path: str) -> tuple[str, str]:
    """Return claim and path below its root of what a container sees at a path; an empty claim: it is on none."""
    best: JsonObject | None = None
    for name, mount in _mounts(pod):
        if name == container and _below(path, mount["mountPath"]) is not None:
            if best is None or len(mount["mountPath"]) > len(best["mountPath"]):
                best = mount
    claim = _claims(pod).get(best["name"], "") if best else ""
    if best is None or not claim or best.get("subPathExpr"):
        return "", ""
    below = _below(path, best["mountPath"]) or ""
    return claim, _clean(posixpath.join(_clean(best.get("subPath")), below))


def _below(path: str, root: str) -> str | None:
    """Return a path relative to a root that it lies in; None when it lies elsewhere."""
    path, root = _clean(path), _clean(root)
    if not root or path == root:
        return "" if path == root else path
    return path.removeprefix(f"{root}/") if path.startswith(f"{root}/") else None


def _clean(path: str | None) -> str:
    """Return a path without slashes at its ends, doubled ones, and dots."""
    cleaned = posixpath.normpath(path or ".").strip("/")
    return "" if cleaned == "." else cleaned


def _users(claim: str, pods: Sequence[JsonObject]) -> list[JsonObject]:
    """Return the pods that have a claim, but for our helper."""
    return [pod for pod in pods if not is_over(pod) and not is_reader(pod) and claim in _claims(pod).values()]


def _node(users: Sequence[JsonObject]) -> str:
    return next((str(pod["spec"]["nodeName"]) for pod in users if pod["spec"].get("nodeName")), "")


def _identity(users: Sequence[JsonObject], claim: str) -> dict[str, Any]:
    """Return as whom a pod works with the claim: its container's settings over its own."""
    for pod in users:
        of_pod = pod["spec"].get("securityContext") or {}
        for container in pod["spec"].get("containers") or ():
            if any(_claims(pod).get(m["name"]) == claim for m in container.get("volumeMounts") or ()):
                return {**of_pod, **(container.get("securityContext") or {})}
    return {}
