"""The cluster, with kubectl's words: the only blocking code that talks to the Kubernetes API.

Objects go in and come out as plain JSON dictionaries. Every call has a timeout and none is repeated here; every failure
is a :class:`~nephoran_maintenance.errors.MaintenanceError` that names the object, the connection and the next action.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar
from urllib.parse import quote

from nephoran_maintenance.errors import MaintenanceError, PermanentError
from nephoran_maintenance.hooks.kubernetes_rest import (
    CONNECT_TIMEOUT_SECONDS,
    PAGE_SIZE,
    PATCH_CONTENT_TYPES,
    READ_TIMEOUT_SECONDS,
    READY_PATH,
    READY_TIMEOUT_SECONDS,
    RESOURCES,
    WORKLOAD_KINDS,
    ClusterSettings,
    JsonObject,
    JsonObjects,
    Request,
    Resource,
    cluster_settings,
    events_about,
    is_refusal,
    is_starting,
    is_status_object,
    list_items,
    moment_of_header,
    parse_json,
    request_target,
    resource_of,
    resource_path,
    selector_text,
    server_name,
    starting_error,
    status_error,
    unreachable_error,
)
from nephoran_maintenance.settings import FIELD_MANAGER

if TYPE_CHECKING:
    from nephoran_maintenance.hooks.pod_exec import ExecStream
    from nephoran_maintenance.profile import Component

PatchType = Literal["json", "merge", "strategic"]
Result = TypeVar("Result")
Answers = list[bool]


@dataclass(frozen=True)
class Answer:
    """The status and the body of a request that was passed on by the API server."""

    status: int
    body: bytes
    at: datetime | None = None
    """The server's own time; None when it did not say."""

    @property
    def text(self) -> str:
        return self.body.decode("utf-8", errors="replace")


class ClusterHook:
    """Talk to one cluster with the credentials of one Airflow connection.

    The connection has the type ``kubernetes``; see :func:`~.kubernetes_rest.cluster_settings` for its fields. A token
    given in ``kube_config`` stays in memory.

    :param connection_id: Airflow connection id.
    :param settings: settings that were read before, for code that may not read a connection itself.
    :param read_timeout: how long one answer may take.
    """

    def __init__(
        self,
        connection_id: str,
        *,
        settings: ClusterSettings | None = None,
        read_timeout: timedelta = timedelta(seconds=READ_TIMEOUT_SECONDS),
    ) -> None:
        self.connection_id = connection_id
        self.read_timeout = read_timeout
        self._given_settings = settings

    # -------------------------------------------------------------------------------------------------- connection

    @cached_property
    def settings(self) -> ClusterSettings:
        """Read the connection once.

        :raises PermanentError: ``connection-missing`` or ``connection-invalid``.
        """
        if self._given_settings is not None:
            return self._given_settings
        from nephoran_maintenance.hooks.connections import read_connection

        settings = cluster_settings(self.connection_id, read_connection(self.connection_id).extra_dejson)
        from airflow.sdk.log import mask_secret

        for secret in settings.secrets:
            mask_secret(secret)
        return settings

    @cached_property
    def api_client(self) -> Any:
        """Return the ``kubernetes`` client of the connection, for the little that this hook has no method for."""
        return self._new_api_client()

    def _new_api_client(self) -> Any:
        # Not by the provider's hook: it loads kubernetes_asyncio as well, which costs every task 40 MiB and its time, and
        # without a given configuration it changes the process-wide default, which a second connection would inherit.
        from kubernetes import client, config

        settings = self.settings
        configuration = client.Configuration()
        try:
            if settings.kube_config is not None:
                config.load_kube_config_from_dict(settings.kube_config, settings.context, configuration)
            elif settings.kube_config_path is not None:
                config.load_kube_config(settings.kube_config_path, settings.context, configuration)
            else:
                try:
                    config.load_incluster_config(configuration)
                except config.ConfigException:
                    if settings.in_cluster:
                        raise
                    config.load_kube_config(None, settings.context, configuration)
        except (config.ConfigException, OSError, ValueError, KeyError, TypeError) as error:
            raise PermanentError(
                "connection-invalid",
                f"the Kubernetes connection {self.connection_id!r} has no usable kubeconfig: {type(error).__name__}",
                context={"connection": self.connection_id},
                hint="Check the connection's kube_config or kube_config_path with kubectl --kubeconfig.",
            ) from error
        if settings.disable_verify_ssl:
            configuration.verify_ssl = False
        configuration.socket_options = keepalive_options()
        return client.ApiClient(configuration)

    @property
    def server(self) -> str:
        """Return ``host:port`` of the API server."""
        return server_name(self.api_client.configuration.host)

    # ---------------------------------------------------------------------------------------------------- requests

    def request(
        self,
        method: str,
        path: str,
        about: Request,
        *,
        query: Mapping[str, object] | None = None,
        body: object = None,
        content_type: str = "application/json",
        accept: str = "application/json",
        timeout: timedelta | None = None,
        raise_for_status: bool = True,
    ) -> Answer:
        """Send one request below the API server's address and return its answer.

        What the API server refuses counts once it is ready: in its first seconds it knows no roles.

        :param about: how errors name the request.
        :raises MaintenanceError: see :func:`~.kubernetes_rest.status_error` and
            :func:`~.kubernetes_rest.unreachable_error`.
        """
        target = request_target(path, query)
        headers = {"Accept": accept}
        if body is not None:
            headers["Content-Type"] = content_type
        read_seconds = (timeout or self.read_timeout).total_seconds()
        answer = self._once_ready(
            lambda: self._send(method, target, about, headers, body, read_seconds), about, read_seconds
        )
        if raise_for_status and not 200 <= answer.status <= 299:
            raise self._error_of(answer, about)
        return answer

    def _once_ready(self, ask: Callable[[], Result], about: Request, read_seconds: float) -> Result:
        """Return an answer, that of a second try where the API server itself has refused.

        :raises TransientError: ``cluster-unavailable`` when it refuses because it is starting.
        """
        answer = ask()
        if isinstance(answer, Answer) and is_refusal(answer.status, answer.body):
            ready = self._send("GET", READY_PATH, about, {}, None, min(READY_TIMEOUT_SECONDS, read_seconds))
            if is_starting(ready.status):
                raise starting_error(ready.status, about, self.connection_id, self.server)
            # It may have become ready in between.
            answer = ask()
        return answer

    def _error_of(self, answer: Answer, about: Request) -> MaintenanceError:
        return status_error(answer.status, answer.body, about, self.connection_id, self.server, self.settings.secrets)

    def _send(
        self, method: str, target: str, about: Request, headers: Mapping[str, str], body: object, read_seconds: float
    ) -> Answer:
        import urllib3

        sent = {**headers, "User-Agent": FIELD_MANAGER}
        self.api_client.update_params_for_auth(sent, [], ["BearerToken"])
        try:
            response = self.api_client.rest_client.pool_manager.request(
                method,
                self.api_client.configuration.host + target,
                body=None if body is None else json.dumps(body).encode(),
                headers=sent,
                timeout=urllib3.Timeout(connect=min(CONNECT_TIMEOUT_SECONDS, read_seconds), read=read_seconds),
                retries=False,
                redirect=False,
            )
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise unreachable_error(self.server, self.connection_id, error, about) from error
        return Answer(int(response.status), bytes(response.data), moment_of_header(response.headers.get("Date")))

    def _json(self, method: str, path: str, about: Request, **options: Any) -> JsonObject:
        answer = self.request(method, path, about, **options)
        return parse_json(answer.body, about, self.connection_id, self.server)

    # ------------------------------------------------------------------------------------------------------- verbs

    def get(self, kind: str | Resource, name: str, namespace: str | None = None) -> JsonObject:
        """Return one object.

        :raises PermanentError: ``not-found`` when it does not exist; :meth:`find` returns None instead.
        """
        resource = resource_of(kind)
        about = Request("get", resource.label, namespace, name)
        return self._json("GET", resource_path(resource, namespace, name), about)

    def find(self, kind: str | Resource, name: str, namespace: str | None = None) -> JsonObject | None:
        """Return one object, or None when it does not exist."""
        try:
            return self.get(kind, name, namespace)
        except PermanentError as error:
            if error.reference == "not-found":
                return None
            raise

    def get_at(self, kind: str | Resource, name: str, namespace: str | None = None) -> tuple[JsonObject, datetime]:
        """Return one object and the API server's time of the answer, which all who share it agree on.

        :raises PermanentError: ``not-found`` when it does not exist.
        """
        resource = resource_of(kind)
        about = Request("get", resource.label, namespace, name)
        answer = self.request("GET", resource_path(resource, namespace, name), about)
        return parse_json(answer.body, about, self.connection_id, self.server), answer.at or datetime.now(UTC)

    def list(
        self,
        kind: str | Resource,
        namespace: str | None = None,
        label_selector: str | Mapping[str, Any] | None = None,
        *,
        field_selector: str | None = None,
    ) -> JsonObjects:
        """Return all objects of a kind in a namespace, or in all namespaces, page by page."""
        resource = resource_of(kind)
        about = Request("list", resource.label, namespace)
        items: JsonObjects = []
        continue_token: str | None = None
        while True:
            body = self._json(
                "GET",
                resource_path(resource, namespace),
                about,
                query={
                    "labelSelector": selector_text(label_selector) or None,
                    "fieldSelector": field_selector,
                    "limit": PAGE_SIZE,
                    "continue": continue_token,
                },
            )
            items += list_items(body)
            continue_token = (body.get("metadata") or {}).get("continue") or None
            if continue_token is None:
                return items

    def list_custom(
        self,
        group: str,
        version: str,
        plural: str,
        namespace: str | None = None,
        label_selector: str | Mapping[str, Any] | None = None,
    ) -> JsonObjects:
        """Return all objects of a custom kind."""
        return self.list(Resource(group, version, plural), namespace, label_selector)

    def create(
        self,
        body: JsonObject,
        *,
        kind: str | Resource | None = None,
        namespace: str | None = None,
        dry_run: bool = False,
        field_manager: str = FIELD_MANAGER,
    ) -> JsonObject:
        """Create an object and return it as stored.

        :param kind: needed for custom kinds only, as a :class:`Resource`; otherwise the object's own.
        :param namespace: default: the object's own.
        :raises TransientError: ``conflict`` when an object of this name exists.
        """
        resource, namespace = self._target(body, kind, namespace)
        about = Request("create", resource.label, namespace, body["metadata"].get("name"))
        return self._json(
            "POST", resource_path(resource, namespace), about, body=body, query=_write_query(dry_run, field_manager)
        )

    def replace(
        self,
        body: JsonObject,
        *,
        kind: str | Resource | None = None,
        namespace: str | None = None,
        dry_run: bool = False,
        field_manager: str = FIELD_MANAGER,
    ) -> JsonObject:
        """Replace an object; a ``metadata.resourceVersion`` in it makes the write fail when somebody was faster.

        :raises TransientError: ``conflict`` when the stored object has another resource version.
        """
        resource, namespace = self._target(body, kind, namespace)
        name = body["metadata"]["name"]
        about = Request("update", resource.label, namespace, name)
        path = resource_path(resource, namespace, name)
        return self._json("PUT", path, about, body=body, query=_write_query(dry_run, field_manager))

    def patch(
        self,
        kind: str | Resource,
        name: str,
        namespace: str | None,
        body: object,
        *,
        patch_type: PatchType = "strategic",
        dry_run: bool = False,
        field_manager: str = FIELD_MANAGER,
        resource_version: str | None = None,
        subresource: str | None = None,
    ) -> JsonObject:
        """Patch an object and return it as stored, or with ``dry_run`` as it would be stored.

        :param body: a list of operations for ``json``, a partial object for ``merge`` and ``strategic``.
        :param resource_version: the version that the decision was made on; the write fails when it has changed.
        :raises TransientError: ``conflict`` when the resource version or a ``test`` operation does not match.
        """
        resource = resource_of(kind)
        about = Request("patch", resource.label, namespace, name)
        return self._json(
            "PATCH",
            resource_path(resource, namespace, name, subresource),
            about,
            body=_at_version(body, patch_type, resource_version),
            content_type=PATCH_CONTENT_TYPES[patch_type],
            query=_write_query(dry_run, field_manager),
        )

    def apply(
        self,
        body: JsonObject,
        *,
        kind: str | Resource | None = None,
        namespace: str | None = None,
        force: bool = False,
        dry_run: bool = False,
        field_manager: str = FIELD_MANAGER,
    ) -> JsonObject:
        """Apply an object on the server's side and return it as stored.

        :param force: take over fields that another manager owns.
        """
        resource, namespace = self._target(body, kind, namespace)
        name = body["metadata"]["name"]
        about = Request("patch", resource.label, namespace, name)
        query = {**_write_query(dry_run, field_manager), "force": "true" if force else None}
        return self._json(
            "PATCH",
            resource_path(resource, namespace, name),
            about,
            body=body,
            content_type=PATCH_CONTENT_TYPES["apply"],
            query=query,
        )

    def delete(
        self,
        kind: str | Resource,
        name: str,
        namespace: str | None = None,
        *,
        uid: str | None = None,
        resource_version: str | None = None,
        propagation: Literal["Background", "Foreground", "Orphan"] = "Background",
        grace_period: timedelta | None = None,
        dry_run: bool = False,
    ) -> bool:
        """Delete an object; finalizers may keep it for a while, so look for it afterwards.

        :param uid: delete only the object with this uid.
        :param resource_version: delete it only as it was looked at.
        :returns: False when there was nothing to delete.
        """
        resource = resource_of(kind)
        about = Request("delete", resource.label, namespace, name)
        options: JsonObject = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": propagation}
        given = {"uid": uid, "resourceVersion": resource_version}
        if any(given.values()):
            options["preconditions"] = {key: value for key, value in given.items() if value}
        if grace_period is not None:
            options["gracePeriodSeconds"] = int(grace_period.total_seconds())
        if dry_run:
            options["dryRun"] = ["All"]
        try:
            self.request("DELETE", resource_path(resource, namespace, name), about, body=options)
        except PermanentError as error:
            if error.reference == "not-found":
                return False
            raise
        return True

    def wait_until_gone(
        self,
        kind: str | Resource,
        name: str,
        namespace: str | None = None,
        *,
        timeout: timedelta,
        uid: str | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> bool:
        """Wait until an object is deleted; True when it is gone (or another one has its name), False at the timeout.

        It looks once a second and holds a worker while it does; long waits belong to a trigger.
        """
        end = time.monotonic() + timeout.total_seconds()
        while True:
            found = self.find(kind, name, namespace)
            if found is None or (uid is not None and found["metadata"].get("uid") != uid):
                return True
            if time.monotonic() >= end:
                return False
            sleep(1.0)

    def _target(
        self, body: JsonObject, kind: str | Resource | None, namespace: str | None
    ) -> tuple[Resource, str | None]:
        resource = resource_of(kind if kind is not None else str(body.get("kind", "")))
        return resource, namespace or body.get("metadata", {}).get("namespace")

    # --------------------------------------------------------------------------------------------------- workloads

    def get_workload(self, component: Component, namespace: str) -> JsonObject:
        """Return the live workload of a profile's component; kind and name are discovered when not given.

        A selector is compared with the labels of the workload and with those of its pods.

        :raises PermanentError: ``component-not-found`` or ``component-ambiguous``, with what was looked for.
        """
        reference = component.workload
        kinds = (reference.kind,) if reference.kind else WORKLOAD_KINDS
        if reference.name:
            found = [workload for kind in kinds if (workload := self.find(kind, reference.name, namespace))]
            wanted = f"{' or '.join(kinds)} {reference.name}"
        else:
            selector = dict(reference.selector or {})
            found = [
                workload
                for kind in kinds
                for workload in self.list(kind, namespace)
                if selector and _selected(workload, selector)
            ]
            wanted = f"{' or '.join(kinds)} with the labels {selector_text(selector)}"
        if len(found) == 1:
            return found[0]
        context = {"component": component.name, "namespace": namespace, "connection": self.connection_id}
        if not found:
            raise PermanentError(
                "component-not-found",
                f"component {component.name}: no {wanted} in namespace {namespace}",
                context=context,
                hint="Correct the component's workload in the profile, or install the component.",
            )
        names = ", ".join(f"{workload['kind']} {workload['metadata']['name']}" for workload in found)
        raise PermanentError(
            "component-ambiguous",
            f"component {component.name}: several workloads match {wanted} in namespace {namespace}: {names}",
            context=context,
            hint="Name kind and name of the component's workload in the profile.",
        )

    def pods_of(self, workload: JsonObject) -> JsonObjects:
        """Return the pods that a workload selects, of every revision, finished and terminating ones included."""
        return self.list("Pod", workload["metadata"]["namespace"], workload["spec"]["selector"])

    def events_of(self, namespace: str, names: Iterable[str] | None = None) -> JsonObjects:
        """Return the events of a namespace that concern objects of these names, or all."""
        events = self.list("Event", namespace)
        if names is None:
            return events
        wanted = set(names)
        return [event for event in events if (event.get("involvedObject") or {}).get("name") in wanted]

    def workload_events(self, workload: JsonObject, pods: Iterable[JsonObject] | None = None) -> JsonObjects:
        """Return the events about a workload, its ReplicaSets and its pods."""
        known = self.pods_of(workload) if pods is None else pods
        return events_about(self.list("Event", workload["metadata"]["namespace"]), workload, known)

    def logs(self, namespace: str, pod: str, container: str, *, tail_lines: int = 20, previous: bool = False) -> str:
        """Return the last log lines of a container, unmasked: callers mask what they show.

        :param previous: of the container's run before its last restart.
        """
        query = {"container": container, "tailLines": tail_lines, "previous": "true" if previous else None}
        about = Request("get", "pods/log", namespace, pod)
        path = resource_path(RESOURCES["Pod"], namespace, pod, "log")
        return self.request("GET", path, about, query=query, accept="*/*").text

    # ----------------------------------------------------------------------------------------------------- cluster

    def server_version(self) -> str:
        """Return the API server's version, such as ``v1.36.4``. The cheapest proof that the cluster answers."""
        return str(self._json("GET", "/version", Request("get", "/version")).get("gitVersion", ""))

    def crds(self) -> JsonObjects:
        """Return all CustomResourceDefinitions."""
        return self.list("CustomResourceDefinition")

    def nodes(self) -> JsonObjects:
        """Return all nodes."""
        return self.list("Node")

    def who_am_i(self) -> str:
        """Return the user name that the API server sees, such as ``system:serviceaccount:…``."""
        review = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
        about = Request("create", "selfsubjectreviews.authentication.k8s.io")
        answer = self._json("POST", "/apis/authentication.k8s.io/v1/selfsubjectreviews", about, body=review)
        return str(((answer.get("status") or {}).get("userInfo") or {}).get("username", ""))

    def can_i(self, accesses: Iterable[Mapping[str, str]]) -> Answers:
        """Ask the API server, access by access, whether this connection may do it.

        :param accesses: mappings with ``verb`` and ``resource`` (``pods/log`` and ``pods`` with ``subresource: log``
            mean the same) and, where they apply, ``group``, ``namespace`` and ``name``.
        :returns: one answer for each access, in the same order.
        """
        about = Request("create", "selfsubjectaccessreviews.authorization.k8s.io")
        path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
        allowed = []
        for access in accesses:
            resource, _, subresource = access["resource"].partition("/")
            attributes = {
                "verb": access["verb"],
                "group": access.get("group", ""),
                "resource": resource,
                "subresource": subresource or access.get("subresource", ""),
                "namespace": access.get("namespace", ""),
                "name": access.get("name", ""),
            }
            review = {
                "apiVersion": "authorization.k8s.io/v1",
                "kind": "SelfSubjectAccessReview",
                "spec": {"resourceAttributes": {key: value for key, value in attributes.items() if value}},
            }
            answer = self._json("POST", path, about, body=review)
            allowed.append(bool((answer.get("status") or {}).get("allowed")))
        return allowed

    def node_metrics(self) -> JsonObjects | None:
        """Return the nodes' usage, or None when the cluster serves no metrics."""
        return self._optional(lambda: self.list("NodeMetrics"))

    def pod_metrics(self, namespace: str) -> JsonObjects | None:
        """Return the pods' usage, or None when the cluster serves no metrics."""
        return self._optional(lambda: self.list("PodMetrics", namespace))

    def node_summary(self, node: str) -> JsonObject | None:
        """Return the kubelet's summary (volume usage among other things), or None when it can't be had."""
        path = f"/api/v1/nodes/{quote(node)}/proxy/stats/summary"
        about = Request("get", "nodes/proxy", None, node)
        return self._optional(lambda: self._json("GET", path, about, timeout=timedelta(seconds=10)))

    @staticmethod
    def _optional(read: Callable[[], Result]) -> Result | None:
        try:
            return read()
        except MaintenanceError as error:
            if error.reference in ("not-found", "cluster-unavailable", "cluster-forbidden"):
                return None
            raise

    # -------------------------------------------------------------------------------------------- HTTP to workloads

    def raw_get(self, path: str, *, timeout: timedelta = timedelta(seconds=10)) -> Answer:
        """Get a path below the API server's address, such as ``/readyz``; the status is the caller's to judge.

        :raises MaintenanceError: when the server does not answer, does not know us, or forbids the path.
        """
        return self._passed_on(path, Request("get", path.partition("?")[0]), timeout)

    def pod_http_get(
        self,
        namespace: str,
        pod: str,
        port: int | str,
        path: str = "/",
        *,
        timeout: timedelta = timedelta(seconds=10),
    ) -> tuple[int, str]:
        """Get a path of a pod through the API server and return status and body.

        The API server does not pass an Authorization header on: for authenticated calls use :meth:`port_forward`. A pod
        that can't be reached answers 502 or 503 with the API server's reason as the body.
        """
        answer = self._passed_on(
            f"/api/v1/namespaces/{quote(namespace)}/pods/{quote(pod)}:{port}/proxy/{path.lstrip('/')}",
            Request("get", "pods/proxy", namespace, pod),
            timeout,
        )
        return answer.status, answer.text

    def service_http_get(
        self,
        namespace: str,
        service: str,
        port: int | str,
        path: str = "/",
        *,
        timeout: timedelta = timedelta(seconds=10),
    ) -> tuple[int, str]:
        """Get a path of a Service through the API server and return status and body; see :meth:`pod_http_get`."""
        answer = self._passed_on(
            f"/api/v1/namespaces/{quote(namespace)}/services/{quote(service)}:{port}/proxy/{path.lstrip('/')}",
            Request("get", "services/proxy", namespace, service),
            timeout,
        )
        return answer.status, answer.text

    def _passed_on(self, path: str, about: Request, timeout: timedelta) -> Answer:
        answer = self.request("GET", path, about, accept="*/*", timeout=timeout, raise_for_status=False)
        if answer.status in (401, 403, 404) and is_status_object(answer.body):
            raise self._error_of(answer, about)
        return answer

    # ---------------------------------------------------------------------------------------------- streams to a pod

    @contextmanager
    def port_forward(self, namespace: str, pod: str, port: int) -> Iterator[str]:
        """Make a pod's port reachable on loopback for the duration of the block and yield its URL, without a slash.

        Each connection that is made to it is carried by its own stream through the API server, so the pod is the one
        that was named, whatever a Service or a network policy would choose. One whose stream is refused is closed.

        :raises MaintenanceError: when the pod does not exist or may not be read.
        """
        from nephoran_maintenance.hooks.port_forwarding import PortForwarder

        self.get("Pod", pod, namespace)
        query = [("ports", str(port))]
        with PortForwarder(lambda: self._pod_socket(namespace, pod, "portforward", query), pod, port) as forwarder:
            yield f"http://127.0.0.1:{forwarder.local_port}"

    def exec_stream(self, namespace: str, pod: str, container: str, command: Sequence[str]) -> ExecStream:
        """Return a command in a container, which starts when the stream is entered; see :class:`~.pod_exec.ExecStream`.

        :param command: program and arguments; no shell is between.
        """
        from nephoran_maintenance.hooks.pod_exec import ExecStream

        query = [("container", container), ("stdout", "true"), ("stderr", "true"), ("command", [*command])]
        return ExecStream(
            lambda: self._pod_socket(namespace, pod, "exec", query), namespace, pod, container, command[0]
        )

    def _pod_socket(self, namespace: str, pod: str, subresource: str, query: Sequence[tuple[str, object]]) -> Any:
        """Return a websocket that the API server carries to a pod.

        What the API server refuses counts once it is ready, as in :meth:`request`.

        :raises MaintenanceError: see :meth:`request`.
        """
        about = Request("create", f"pods/{subresource}", namespace, pod)
        path = resource_path(RESOURCES["Pod"], namespace, pod, subresource)
        opened = self._once_ready(
            lambda: self._shake_hands(path, query, about), about, self.read_timeout.total_seconds()
        )
        if isinstance(opened, Answer):
            raise self._error_of(opened, about)
        return opened

    def _shake_hands(self, path: str, query: Sequence[tuple[str, object]], about: Request) -> Any:
        """Return a websocket, or the answer of a server that opens none."""
        from kubernetes.stream import ws_client
        from websocket import WebSocketBadStatusException, WebSocketException

        headers: dict[str, str] = {}
        self.api_client.update_params_for_auth(headers, [], ["BearerToken"])
        configuration = self.api_client.configuration
        try:
            url = ws_client.get_websocket_url(configuration.host + path, query)
            return ws_client.create_websocket(configuration, url, headers)
        except WebSocketBadStatusException as error:
            return Answer(error.status_code, error.resp_body or b"")
        except (WebSocketException, OSError, ValueError) as error:
            raise unreachable_error(self.server, self.connection_id, error, about) from error


class KubeconfigClusterHook(ClusterHook):
    """Talk to one cluster with a kubeconfig, where no Airflow is: the command line of a person on call.

    :param path: kubeconfig; None: ``KUBECONFIG``, else ``~/.kube/config``.
    :param context: default: the kubeconfig's current context.
    """

    def __init__(self, path: Path | None = None, context: str | None = None) -> None:
        self._path = str(path) if path is not None else None
        settings = ClusterSettings(str(path or "kubeconfig"), kube_config_path=self._path, context=context)
        super().__init__(settings.connection_id, settings=settings)

    def _new_api_client(self) -> Any:
        from kubernetes import config

        try:
            return config.new_client_from_config(config_file=self._path, context=self.settings.context)
        except (config.ConfigException, OSError, ValueError, KeyError, TypeError) as error:
            raise PermanentError(
                "connection-invalid",
                f"the kubeconfig {self.connection_id!r} can't be used: {type(error).__name__}: {error}",
                context={"kubeconfig": self.connection_id},
                hint="Check it with kubectl --kubeconfig.",
            ) from error


def keepalive_options() -> list[tuple[int, int, int]]:
    """Return socket options with which a connection that a firewall has dropped is noticed, as the provider sets them."""
    from urllib3.connection import HTTPConnection

    return [
        *HTTPConnection.default_socket_options,
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 120),
        (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 30),
        (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 6),
    ]


def _write_query(dry_run: bool, field_manager: str) -> dict[str, object]:
    return {"dryRun": "All" if dry_run else None, "fieldManager": field_manager}


def _at_version(body: object, patch_type: PatchType, resource_version: str | None) -> object:
    if resource_version is None:
        return body
    if patch_type == "json":
        test = {"op": "test", "path": "/metadata/resourceVersion", "value": resource_version}
        return [test, *_operations(body)]
    partial = dict(body) if isinstance(body, Mapping) else {}
    return {**partial, "metadata": {**partial.get("metadata", {}), "resourceVersion": resource_version}}


def _operations(body: object) -> Sequence[Any]:
    return body if isinstance(body, list) else []


def _selected(workload: JsonObject, selector: Mapping[str, str]) -> bool:
    own = workload["metadata"].get("labels") or {}
    template = ((workload.get("spec") or {}).get("template") or {}).get("metadata") or {}
    return any(selector.items() <= labels.items() for labels in (own, template.get("labels") or {}))
