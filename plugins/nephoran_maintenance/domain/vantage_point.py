"""A question that is asked from inside the system's namespace: the Job that asks it, and what its answer means."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from nephoran_maintenance.settings import OPERATION_LABEL, PREFIX

JsonObject = Mapping[str, Any]

RECORD_LABEL = f"{PREFIX}/record"
LABELS = {"app.kubernetes.io/managed-by": "nephoran-maintenance", RECORD_LABEL: "vantage-point"}
CONTAINER = "ask"
LONGEST_QUESTION_SECONDS = 60
"""Pulling a small image and one request; a Job that takes longer is ended by Kubernetes."""
KEPT_SECONDS = 120
"""A worker that dies before it deletes the Job leaves it to Kubernetes, which deletes it after this."""
_STATUS = re.compile(r"^[ \t]*([1-5]\d\d)[ \t]*$", re.MULTILINE)


def is_own(pod: JsonObject) -> bool:
    """Return whether a pod is one of ours, that asks a question or reads a claim, and so no part of the system."""
    return RECORD_LABEL in (pod["metadata"].get("labels") or {})


def question_job(
    operation: str, number: int, namespace: str, *, image: str, command: Sequence[str], url: str
) -> dict[str, Any]:
    """Return the Job that asks one address once.

    :param operation: id of the operation; with ``number`` it makes the Job's name, so a repeated step finds its own.
    :param command: program and arguments that get the URL as the last one and print the status; empty: the image's own.
    """
    labels = {**LABELS, OPERATION_LABEL: operation}
    container = {
        "name": CONTAINER,
        "image": image,
        "args": [*command[1:], url],
        "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}, "limits": {"memory": "64Mi"}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "runAsNonRoot": True,
            "runAsUser": 65532,
            "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }
    if command:
        container["command"] = [command[0]]
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": f"{operation}-{number}", "namespace": namespace, "labels": labels},
        "spec": {
            "backoffLimit": 0,
            "activeDeadlineSeconds": LONGEST_QUESTION_SECONDS,
            "ttlSecondsAfterFinished": KEPT_SECONDS,
            "template": {
                "metadata": {"labels": labels},
                "spec": {
                    "restartPolicy": "Never",
                    "automountServiceAccountToken": False,
                    "enableServiceLinks": False,
                    "terminationGracePeriodSeconds": 1,
                    "containers": [container],
                },
            },
        },
    }


def job_end(job: JsonObject) -> str:
    """Return ``Complete`` or ``Failed`` once a Job has ended, an empty text before."""
    for condition in (job.get("status") or {}).get("conditions") or ():
        if condition["type"] in ("Complete", "Failed") and condition["status"] == "True":
            return str(condition["type"])
    return ""


def answered_status(log: str) -> int | None:
    """Return the HTTP status on the last line that holds nothing else; None when there is none (``000``: no answer)."""
    found = _STATUS.findall(log)
    return int(found[-1]) if found else None


def no_answer(log: str, pods: Sequence[JsonObject]) -> str:
    """Return in a few words why there is no status: what the container waits for, how it ended, what it said."""
    said = " ".join(log.split())[:200]
    for pod in pods:
        for status in (pod.get("status") or {}).get("containerStatuses") or ():
            state = status.get("state") or {}
            if waiting := state.get("waiting"):
                return f"no answer: {waiting.get('reason')} {waiting.get('message') or ''}".strip()
            if ended := state.get("terminated"):
                return f"no answer: exit code {ended.get('exitCode')}{f', {said}' if said else ''}"
    if not pods:
        return "no answer: no pod could be made to ask (kubectl get events says why: a quota, an admission rule)"
    return f"no answer: {said}" if said else "no answer: its pod did not end in time"
