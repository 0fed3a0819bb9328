"""What the blocking and the asynchronous cluster hook share: kinds, paths, connection settings, errors. No I/O here."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from nephoran_maintenance.errors import MaintenanceError, PermanentError, TransientError
from nephoran_maintenance.hooks.outside_text import excerpt

JsonObject = dict[str, Any]
JsonObjects = list[JsonObject]  # a name for classes whose own method is called list

CONNECT_TIMEOUT_SECONDS = 5.0
READ_TIMEOUT_SECONDS = 30.0
PAGE_SIZE = 500
PATCH_CONTENT_TYPES = {
    "json": "application/json-patch+json",
    "merge": "application/merge-patch+json",
    "strategic": "application/strategic-merge-patch+json",
    "apply": "application/apply-patch+yaml",
}
WORKLOAD_KINDS = ("Deployment", "StatefulSet", "DaemonSet")


@dataclass(frozen=True)
class Resource:
    """One kind of the Kubernetes API; ``group`` is empty for the core group."""

    group: str
    version: str
    plural: str
    kind: str = ""
    namespaced: bool = True

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def label(self) -> str:
        """Return the name that kubectl's ``can-i`` and the API server's messages use."""
        return f"{self.plural}.{self.group}" if self.group else self.plural


def _kinds(group: str, version: str, namespaced: bool, names: Mapping[str, str]) -> dict[str, Resource]:
    return {kind: Resource(group, version, plural, kind, namespaced) for kind, plural in names.items()}


RESOURCES: dict[str, Resource] = {
    **_kinds(
        "",
        "v1",
        True,
        {
            "ConfigMap": "configmaps",
            "Endpoints": "endpoints",
            "Event": "events",
            "LimitRange": "limitranges",
            "PersistentVolumeClaim": "persistentvolumeclaims",
            "Pod": "pods",
            "ResourceQuota": "resourcequotas",
            "Secret": "secrets",
            "Service": "services",
            "ServiceAccount": "serviceaccounts",
        },
    ),
    **_kinds("", "v1", False, {"Namespace": "namespaces", "Node": "nodes", "PersistentVolume": "persistentvolumes"}),
    **_kinds(
        "apps",
        "v1",
        True,
        {
            "ControllerRevision": "controllerrevisions",
            "DaemonSet": "daemonsets",
            "Deployment": "deployments",
            "ReplicaSet": "replicasets",
            "StatefulSet": "statefulsets",
        },
    ),
    **_kinds("batch", "v1", True, {"CronJob": "cronjobs", "Job": "jobs"}),
    **_kinds("policy", "v1", True, {"PodDisruptionBudget": "poddisruptionbudgets"}),
    **_kinds("autoscaling", "v2", True, {"HorizontalPodAutoscaler": "horizontalpodautoscalers"}),
    **_kinds("coordination.k8s.io", "v1", True, {"Lease": "leases"}),
    **_kinds("discovery.k8s.io", "v1", True, {"EndpointSlice": "endpointslices"}),
    **_kinds("networking.k8s.io", "v1", True, {"Ingress": "ingresses", "NetworkPolicy": "networkpolicies"}),
    **_kinds("rbac.authorization.k8s.io", "v1", True, {"Role": "roles", "RoleBinding": "rolebindings"}),
    **_kinds(
        "rbac.authorization.k8s.io",
        "v1",
        False,
        {"ClusterRole": "clusterroles", "ClusterRoleBinding": "clusterrolebindings"},
    ),
    **_kinds("apiextensions.k8s.io", "v1", False, {"CustomResourceDefinition": "customresourcedefinitions"}),
    **_kinds("apiregistration.k8s.io", "v1", False, {"APIService": "apiservices"}),
    **_kinds("storage.k8s.io", "v1", False, {"StorageClass": "storageclasses"}),
    **_kinds("metrics.k8s.io", "v1beta1", False, {"NodeMetrics": "nodes"}),
    **_kinds("metrics.k8s.io", "v1beta1", True, {"PodMetrics": "pods"}),
}


def resource_of(kind: str | Resource) -> Resource:
    """Return the API resource of a kind.

    :raises PermanentError: ``kind-unknown``; custom kinds are given as a :class:`Resource`.
    """
    if isinstance(kind, Resource):
        return kind
    try:
        return RESOURCES[kind]
    except KeyError:
        raise PermanentError(
            "kind-unknown",
            f"{kind!r} is not a kind that the cluster hook knows",
            context={"kind": kind},
            hint="Give custom resources as Resource(group, version, plural).",
        ) from None


def resource_path(
    resource: Resource, namespace: str | None = None, name: str | None = None, subresource: str | None = None
) -> str:
    """Return the path below the API server's address of a collection, an object or its subresource."""
    parts = ["apis", resource.group, resource.version] if resource.group else ["api", resource.version]
    if namespace and resource.namespaced:
        parts += ["namespaces", quote(namespace, safe="")]
    parts.append(resource.plural)
    if name is not None:
        parts.append(quote(name, safe=":"))
    if subresource is not None:
        parts.append(subresource)
    return "/" + "/".join(parts)


def request_target(path: str, query: Mapping[str, object] | None = None) -> str:
    """Return path and query of a request; what is None is left out."""
    given = {key: value for key, value in (query or {}).items() if value is not None}
    return path + (f"?{urlencode(given)}" if given else "")


def selector_text(selector: str | Mapping[str, Any] | None) -> str | None:
    """Return a label selector as the API's query text.

    :param selector: text as kubectl takes it, a plain mapping of labels, or the ``{"matchLabels": …,
        "matchExpressions": …}`` of a workload.
    """
    if selector is None or isinstance(selector, str):
        return selector
    if "matchLabels" not in selector and "matchExpressions" not in selector:
        return ",".join(f"{key}={value}" for key, value in sorted(selector.items()))
    terms = [f"{key}={value}" for key, value in sorted((selector.get("matchLabels") or {}).items())]
    for expression in selector.get("matchExpressions") or ():
        key, operator = expression["key"], expression["operator"]
        values = ",".join(sorted(expression.get("values") or ()))
        terms.append(
            {
                "In": f"{key} in ({values})",
                "NotIn": f"{key} notin ({values})",
                "Exists": key,
                "DoesNotExist": f"!{key}",
            }[operator]
        )
    return ",".join(terms)


def list_items(body: JsonObject) -> list[JsonObject]:
    """Return the objects of a list answer, each with the ``apiVersion`` and ``kind`` that the API leaves out."""
    kind = str(body.get("kind", "")).removesuffix("List")
    api_version = body.get("apiVersion", "")
    return [{"apiVersion": api_version, "kind": kind, **item} for item in body.get("items") or []]


def events_about(
    events: Iterable[JsonObject], workload: Mapping[str, Any], pods: Iterable[Mapping[str, Any]]
) -> list[JsonObject]:
    """Return the events that concern a workload, its ReplicaSets or one of these pods."""
    name = workload["metadata"]["name"]
    kind = workload.get("kind")
    pod_names = {pod["metadata"]["name"] for pod in pods}
    chosen = []
    for event in events:
        about = event.get("involvedObject") or {}
        about_kind, about_name = about.get("kind"), about.get("name", "")
        if (
            (about_kind == "Pod" and about_name in pod_names)
            or (about_kind == kind and about_name == name)
            or (kind == "Deployment" and about_kind == "ReplicaSet" and about_name.rpartition("-")[0] == name)
        ):
            chosen.append(event)
    return chosen


# ------------------------------------------------------------------------------------------------ connection settings


@dataclass(frozen=True)
class ClusterSettings:
    """What a connection of type ``kubernetes`` says; made by :func:`cluster_settings`."""

    connection_id: str
    kube_config: JsonObject | None = field(default=None, repr=False)
    kube_config_path: str | None = None
    in_cluster: bool = False
    context: str | None = None
    disable_verify_ssl: bool = False

    @property
    def secrets(self) -> list[str]:
        """Return the secret values in the settings, to be masked in logs and errors."""
        users = (self.kube_config or {}).get("users") or []
        found = []
        for user in users:
            credentials = user.get("user") or {}
            found += [str(credentials[key]) for key in ("token", "password", "client-key-data") if credentials.get(key)]
        return found


def cluster_settings(connection_id: str, extra: Mapping[str, Any]) -> ClusterSettings:
    """Read and check the extra fields of a Kubernetes connection.

    :param extra: the provider's own fields: ``kube_config`` (a kubeconfig as JSON or YAML text, or as an object),
        ``kube_config_path``, ``in_cluster``, ``cluster_context``, ``disable_verify_ssl``, with or without the old
        ``extra__kubernetes__`` prefix. None of the first three means: inside the cluster, else the default kubeconfig.
    :raises PermanentError: ``connection-invalid``, naming the connection, the field and what was expected.
    """
    values = {key.removeprefix("extra__kubernetes__"): value for key, value in extra.items()}
    chosen = [key for key in ("kube_config", "kube_config_path", "in_cluster") if _given(values.get(key))]
    if len(chosen) > 1:
        raise _invalid(connection_id, f"has {' and '.join(chosen)}; only one of them may be set")
    kube_config = values.get("kube_config")
    return ClusterSettings(
        connection_id=connection_id,
        kube_config=_parsed_kube_config(connection_id, kube_config, values.get("cluster_context"))
        if _given(kube_config)
        else None,
        kube_config_path=str(values["kube_config_path"]) if _given(values.get("kube_config_path")) else None,
        in_cluster=_given(values.get("in_cluster")),
        context=values.get("cluster_context") or None,
        disable_verify_ssl=_given(values.get("disable_verify_ssl")),
    )


def _given(value: object) -> bool:
    return bool(value) and str(value).strip().lower() not in ("false", "0", "")


def _invalid(connection_id: str, problem: str) -> PermanentError:
    return PermanentError(
        "connection-invalid",
        f"the Kubernetes connection {connection_id!r} {problem}",
        context={"connection": connection_id},
        hint="Store a kubeconfig with a ServiceAccount token in the connection's extra field kube_config, "
        "or the path of one in kube_config_path.",
    )


def _parsed_kube_config(connection_id: str, value: object, context: str | None) -> JsonObject:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            import yaml

            try:
                value = yaml.safe_load(str(value))
            except yaml.YAMLError:
                raise _invalid(connection_id, "has a kube_config that is neither JSON nor YAML") from None
    if not isinstance(value, dict):
        raise _invalid(connection_id, f"has a kube_config that is {type(value).__name__}, expected a kubeconfig object")
    name = context or value.get("current-context")
    if not name:
        raise _invalid(connection_id, "has a kube_config without current-context, and no cluster_context")
    chosen = _named(value, "contexts", name, "context")
    if chosen is None:
        raise _invalid(connection_id, f"has a kube_config without the context {name!r}")
    cluster = _named(value, "clusters", chosen.get("cluster"), "cluster")
    if cluster is None or not cluster.get("server"):
        raise _invalid(connection_id, f"has a kube_config without a server for the cluster {chosen.get('cluster')!r}")
    user = _named(value, "users", chosen.get("user"), "user")
    if not user:
        raise _invalid(connection_id, f"has a kube_config without credentials for the user {chosen.get('user')!r}")
    return value


def _named(config: Mapping[str, Any], section: str, name: object, inner: str) -> JsonObject | None:
    entries = config.get(section)
    for entry in entries if isinstance(entries, list) else ():
        if isinstance(entry, dict) and entry.get("name") == name:
            found = entry.get(inner)
            return found if isinstance(found, dict) else None
    return None


def server_name(host: str) -> str:
    """Return ``host:port`` of the API server's address."""
    parts = urlsplit(host)
    return f"{parts.hostname}:{parts.port or (443 if parts.scheme == 'https' else 80)}"


# ------------------------------------------------------------------------------------------------------------- errors


@dataclass(frozen=True)
class Request:
    """One request to the API server, as the errors name it."""

    verb: str
    what: str
    namespace: str | None = None
    name: str | None = None

    def __str__(self) -> str:
        where = f" in namespace {self.namespace}" if self.namespace else ""
        return f"{self.verb} {self.what}{f' {self.name}' if self.name else ''}{where}"

    def context(self, connection_id: str) -> dict[str, object]:
        values = {"verb": self.verb, "resource": self.what, "namespace": self.namespace, "name": self.name}
        return {**{key: value for key, value in values.items() if value}, "connection": connection_id}


READY_PATH = "/readyz"
"""What everybody may ask, whatever roles there are."""
READY_TIMEOUT_SECONDS = 5.0
_DENIED_USER = re.compile(r'User "([^"]+)"')
_FAILED_TEST = re.compile(r"test(ing)?\b.*(failed|path)|the server rejected our request due to an error in our request")


def status_error(
    status: int, body: str | bytes, request: Request, connection_id: str, server: str, secrets: Sequence[str] = ()
) -> MaintenanceError:
    """Return the error for an answer of the API server that is not a success.

    401 is ``cluster-unauthorized``, 403 ``cluster-forbidden``, 404 ``not-found``, 409 and a failed JSON patch test
    ``conflict`` (transient), 429 and 5xx ``cluster-unavailable`` (transient), everything else ``cluster-rejected``.
    """
    reason, message = _status_message(body, secrets)
    context = request.context(connection_id)
    if status == 401:
        return PermanentError(
            "cluster-unauthorized",
            f"the API server {server} does not accept the credentials of connection {connection_id!r} for {request}: "
            "the token is expired, revoked or of another cluster",
            context=context,
            hint="Create a new token for the connection's ServiceAccount and store it in the connection.",
        )
    if status == 403:
        found = _DENIED_USER.search(message)
        account = found.group(1) if found else None
        if account:
            context["account"] = account
        who = f"{account} " if account else ""
        return PermanentError(
            "cluster-forbidden",
            f"{who}may not {request}: {message or 'no reason given'}",
            context=context,
            hint=f"Give the ServiceAccount of connection {connection_id!r} the verb {request.verb} on {request.what}"
            f"{f' in namespace {request.namespace}' if request.namespace else ''}; the manifests are in deploy/.",
        )
    if status == 404:
        return PermanentError(
            "not-found",
            f"{request.what} {request.name or ''} not found"
            f"{f' in namespace {request.namespace}' if request.namespace else ''}".replace("  ", " "),
            context=context,
            hint="Compare the name and the namespace with the profile and with kubectl get.",
        )
    if status == 409 or (status == 422 and request.verb == "patch" and _FAILED_TEST.search(message)):
        return TransientError(
            "conflict",
            f"could not {request}: {message or reason}",
            context=context,
            hint="Somebody changed the object meanwhile: read it again and decide again.",
        )
    if status == 429 or status >= 500:
        return TransientError(
            "cluster-unavailable",
            f"the API server {server} answered {status} to {request}: {message or reason or 'no reason given'}",
            context=context,
            hint="Try again; if it stays, look at the API server's health and at its admission webhooks.",
        )
    return PermanentError(
        "cluster-rejected",
        f"the API server {server} rejected {request} with {status}: {message or reason or 'no reason given'}",
        context=context,
        hint="Correct the object that the message names.",
    )


def is_refusal(status: int, body: bytes) -> bool:
    """Return whether the API server itself, not a workload behind its proxy, refuses what is asked."""
    return status == 403 and is_status_object(body)


def is_status_object(body: bytes) -> bool:
    """Return whether a body is the API server's own ``Status``, not what something behind its proxy answered."""
    try:
        parsed = json.loads(body)
    except ValueError:
        return False
    return isinstance(parsed, dict) and parsed.get("kind") == "Status"


def is_starting(ready_status: int) -> bool:
    """Return whether the answer to :data:`READY_PATH` is that of an API server in its first seconds.

    It knows no roles then: it answers 403 to what it allows a moment later, at the very first even to this path, which
    everybody may ask. An address that has no such path (404) says nothing.
    """
    return ready_status >= 500 or ready_status == 403


def starting_error(ready_status: int, request: Request, connection_id: str, server: str) -> TransientError:
    """Return the error for what an API server refuses that is not ready."""
    return TransientError(
        "cluster-unavailable",
        f"the API server {server} is not ready ({READY_PATH} answers {ready_status}), so its refusal to {request} counts "
        "for nothing yet",
        context=request.context(connection_id),
        hint="Try again; if it stays, ask its /readyz?verbose what it waits for.",
    )


def _status_message(body: str | bytes, secrets: Sequence[str]) -> tuple[str, str]:
    """Return reason and message of a ``Status`` object, or an excerpt of whatever else was answered."""
    try:
        status = json.loads(body)
    except ValueError:
        return "", excerpt(body, secrets=secrets)
    if not isinstance(status, dict):
        return "", excerpt(body, secrets=secrets)
    return str(status.get("reason", "")), excerpt(str(status.get("message", "")), secrets=secrets)


def unreachable_error(server: str, connection_id: str, cause: BaseException, request: Request) -> MaintenanceError:
    """Return the error for a request that got no answer: no route, no name, refused, timed out or not trusted."""
    text = excerpt(f"{type(cause).__name__}: {cause}")
    context = {"server": server, "connection": connection_id, "request": str(request)}
    if "CERTIFICATE_VERIFY_FAILED" in text or "certificate verify failed" in text:
        return PermanentError(
            "cluster-untrusted",
            f"the certificate of the API server {server} is not signed by the authority in connection "
            f"{connection_id!r}: {text}",
            context=context,
            hint="Put the cluster's own certificate authority into the connection's kubeconfig.",
        )
    return TransientError(
        "cluster-unreachable",
        f"the API server {server} of connection {connection_id!r} does not answer: {text}",
        context=context,
        hint=f"Check from this machine that {server} accepts connections, and that the connection names the right one.",
    )


def moment_of_header(header: str | None) -> datetime | None:
    """Return the moment in a ``Date`` header; None for a missing or unreadable one."""
    if not header:
        return None
    try:
        return parsedate_to_datetime(header).astimezone(UTC)
    except ValueError:
        return None


def parse_json(body: bytes, request: Request, connection_id: str, server: str) -> JsonObject:
    """Return the JSON object of a successful answer.

    :raises TransientError: ``cluster-unavailable`` when something else than the API server answered.
    """
    try:
        value = json.loads(body)
    except ValueError as error:
        raise TransientError(
            "cluster-unavailable",
            f"the answer of {server} to {request} is not JSON: {excerpt(body)}",
            context=request.context(connection_id),
            hint="Check that the connection's server is an API server and no proxy answers in its place.",
        ) from error
    return value if isinstance(value, dict) else {"items": value}
