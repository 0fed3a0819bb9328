"""What a failed rollout leaves for the person on call: events and last log lines, as far as they can be read."""

from __future__ import annotations

from typing import Any

from nephoran_maintenance.domain.pod_failures import has_condition
from nephoran_maintenance.errors import MaintenanceError
from nephoran_maintenance.hooks.cluster import ClusterHook
from nephoran_maintenance.hooks.kubernetes_rest import JsonObject, events_about
from nephoran_maintenance.hooks.outside_text import excerpt, tail

LOG_LINES = 20
EVENT_LIMIT = 10


def collect_evidence(
    cluster: ClusterHook,
    *,
    namespace: str,
    kind: str,
    name: str,
    pod: str | None = None,
    container: str | None = None,
) -> dict[str, Any]:
    """Read what the cluster says about a workload that failed, and of one pod of it in particular.

    Everything in it is cut and masked. What could not be read is named in ``not_read`` and changes nothing else.

    :param pod: the pod that the verdict names; None: the first that is not ready.
    :param container: whose log lines are wanted.
    :returns: ``{"workload", "namespace", "pod", "container", "node", "container_state", "events": [str, …], "log":
        [str, …], "previous_log": [str, …], "not_read": [str, …]}``, newest events last, fit for an XCom.
    """
    found: dict[str, Any] = {
        "workload": f"{kind} {name}",
        "namespace": namespace,
        "pod": pod,
        "container": container,
        "node": None,
        "container_state": "",
        "events": [],
        "log": [],
        "previous_log": [],
        "not_read": [],
    }
    try:
        workload = cluster.get(kind, name, namespace)
        pods = cluster.pods_of(workload)
        chosen = _chosen(pods, pod)
        if chosen is not None:
            found["pod"] = chosen["metadata"]["name"]
            found["node"] = (chosen.get("spec") or {}).get("nodeName")
            found["container_state"] = _container_state(chosen, container)
        about = [chosen] if chosen is not None else pods
        events = events_about(cluster.list("Event", namespace), workload, about)
        found["events"] = [_event_line(event) for event in sorted(events, key=_event_time)[-EVENT_LIMIT:]]
    except MaintenanceError as error:
        found["not_read"].append(f"state and events: {error.message}")
    if found["pod"] and container:
        for key, previous in (("log", False), ("previous_log", True)):
            try:
                text = cluster.logs(namespace, found["pod"], container, tail_lines=LOG_LINES, previous=previous)
                found[key] = tail(text, LOG_LINES, secrets=cluster.settings.secrets)
            except MaintenanceError as error:
                # A container that never ran, or never restarted, has no such log: the answer is 400 and no news.
                if error.reference not in ("cluster-rejected", "not-found"):
                    found["not_read"].append(f"{key.replace('_', ' ')}: {error.message}")
    return found


def evidence_text(evidence: dict[str, Any]) -> str:
    """Return evidence as the lines that follow an error's message."""
    lines: list[str] = []
    if evidence.get("pod"):
        node = f" on node {evidence['node']}" if evidence.get("node") else ""
        lines.append(f"Pod {evidence['pod']}{node}: {evidence.get('container_state') or 'state unknown'}")
    for title, key in (
        ("Events", "events"),
        (f"Last log lines of container {evidence.get('container')}", "log"),
        ("Last log lines before its restart", "previous_log"),
        ("Could not be read", "not_read"),
    ):
        if evidence.get(key):
            lines.append(f"{title}:")
            lines += [f"  {line}" for line in evidence[key]]
    return "\n".join(lines)


def _chosen(pods: list[JsonObject], name: str | None) -> JsonObject | None:
    if name is not None:
        return next((pod for pod in pods if pod["metadata"]["name"] == name), None)
    newest_first = sorted(pods, key=lambda pod: str(pod["metadata"].get("creationTimestamp", "")), reverse=True)
    return next((pod for pod in newest_first if not has_condition(pod, "Ready")), None)


def _container_state(pod: JsonObject, container: str | None) -> str:
    """Return one line: phase, the container's state with its reason, restarts and how it ended before."""
    status = pod.get("status") or {}
    parts = [str(status.get("phase", "phase unknown"))]
    statuses = [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]
    for entry in statuses:
        if container is not None and entry.get("name") != container:
            continue
        for label, states in (("", entry.get("state")), ("before that ", entry.get("lastState"))):
            for state, detail in (states or {}).items():
                reason = detail.get("reason")
                code = f" with exit code {detail['exitCode']}" if "exitCode" in detail else ""
                because = f" ({reason})" if reason else ""
                message = f": {excerpt(detail['message'])}" if detail.get("message") else ""
                parts.append(f"{label}{entry['name']} {state}{code}{because}{message}")
        parts.append(f"{entry.get('restartCount', 0)} restarts")
    return ", ".join(parts)


def _event_time(event: JsonObject) -> str:
    series = event.get("series") or {}
    return str(
        series.get("lastObservedTime")
        or event.get("lastTimestamp")
        or event.get("eventTime")
        or event.get("metadata", {}).get("creationTimestamp")
        or ""
    )


def _event_line(event: JsonObject) -> str:
    about = event.get("involvedObject") or {}
    count = (event.get("series") or {}).get("count") or event.get("count") or 1
    times = f" ({count} times)" if count > 1 else ""
    what = f"{event.get('type', '')} {event.get('reason', '')}{times}"
    where = f"{about.get('kind', '')} {about.get('name', '')}"
    return f"{_event_time(event)} {what} {where}: {excerpt(str(event.get('message', '')))}"
