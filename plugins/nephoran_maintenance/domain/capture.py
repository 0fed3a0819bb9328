"""What of a cluster belongs in a backup, in which form, and what has changed since the backup before.

An object is kept so that it can be applied again: without what the server sets. What is worth knowing but not to be
applied (the status of a custom resource, owners, StorageClasses, PersistentVolumes) lies beside, under ``records/``.

Where the rules come from: the fields that the API conventions call server-set, and the annotations and labels that
Kubernetes' own controllers document (its reference, Well-Known Labels, Annotations and Taints).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from nephoran_maintenance.settings import FIELD_MANAGER, PREFIX

JsonObject = Mapping[str, Any]
Purpose = Literal["object", "custom", "crd", "namespace", "bindings", "roles", "record"]

NEPHORAN_GROUP = "nephoran.com"
RBAC_GROUP = "rbac.authorization.k8s.io"
ROOT = "kubernetes"
AGAIN = "again"
LONGEST_NAME_BYTES = 240
"""A file name may have 255 bytes; an object's name may have 253, and names of roles any number."""

LEFT_OUT_RESOURCES = frozenset(
    {
        ("", "pods"),
        ("", "events"),
        ("", "bindings"),
        ("events.k8s.io", "events"),
        ("coordination.k8s.io", "leases"),
        ("coordination.k8s.io", "leasecandidates"),
    }
)
"""What the cluster makes anew by itself, by group and plural."""

SERVICES, ENDPOINTS = ("", "services"), ("", "endpoints")
ENDPOINT_SLICES = ("discovery.k8s.io", "endpointslices")
"""The cluster makes Endpoints and their slices for the Services that choose pods; those of the others a person wrote."""
SLICE_MANAGER = "endpointslice.kubernetes.io/managed-by"
SLICE_CONTROLLERS = ("endpointslice-controller.k8s.io", "endpointslicemirroring-controller.k8s.io")
LEADER = "control-plane.alpha.kubernetes.io/leader"
"""Marks an Endpoints or a ConfigMap that serves as the lock of a leader."""

COMPUTED_GROUPS = frozenset({"metrics.k8s.io", "custom.metrics.k8s.io", "external.metrics.k8s.io"})
"""Groups whose objects are measured when they are asked for; nothing is stored."""

MADE_BY_THEIR_OWNER = frozenset({("apps", "ReplicaSet"), ("apps", "ControllerRevision"), ("batch", "Job")})
SERVER_SET_METADATA = (
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "selfLink",
    "managedFields",
    "ownerReferences",
)
CONTROLLER_ANNOTATIONS = frozenset(
    {
        "deployment.kubernetes.io/revision",
        "deprecated.daemonset.template.generation",
        "pv.kubernetes.io/bind-completed",
        "pv.kubernetes.io/bound-by-controller",
        "volume.kubernetes.io/selected-node",
        "volume.kubernetes.io/storage-provisioner",
        "volume.beta.kubernetes.io/storage-provisioner",
    }
)
SERVER_SET_FINALIZERS = frozenset(
    {"kubernetes.io/pvc-protection", "kubernetes.io/pv-protection", "foregroundDeletion", "orphan"}
)
JOB_LABELS = ("controller-uid", "job-name", "batch.kubernetes.io/controller-uid", "batch.kubernetes.io/job-name")


# ------------------------------------------------------------------------------------------------ what the cluster has


@dataclass(frozen=True)
class Served:
    """One resource that the cluster serves, in the version that its group prefers."""

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def label(self) -> str:
        """Return the fully qualified name: ``networkintents`` alone is in two groups."""
        return f"{self.plural}.{self.group}" if self.group else self.plural


@dataclass(frozen=True)
class Discovery:
    """What discovery said.

    :param unreadable: groups that are registered but whose server did not answer, with their version.
    """

    served: tuple[Served, ...]
    unreadable: tuple[str, ...] = ()


def served_in(documents: Iterable[JsonObject]) -> Discovery:
    """Read aggregated discovery: the ``APIGroupDiscoveryList`` of ``/api`` and that of ``/apis``.

    Of each resource the first version of its group that serves it counts, as the server orders them by preference.
    What can't be listed is left out.
    """
    served: dict[tuple[str, str], Served] = {}
    unreadable = []
    for document in documents:
        for group in document.get("items") or ():
            name = str((group.get("metadata") or {}).get("name") or "")
            for version in group.get("versions") or ():
                if version.get("freshness") == "Stale" and not version.get("resources"):
                    unreadable.append(f"{name}/{version['version']}")
                for resource in version.get("resources") or ():
                    if "list" in (resource.get("verbs") or ()):
                        found = Served(
                            name,
                            str(version["version"]),
                            str(resource["resource"]),
                            str((resource.get("responseKind") or {}).get("kind", "")),
                            resource.get("scope") == "Namespaced",
                        )
                        served.setdefault((name, found.plural), found)
    return Discovery(tuple(served.values()), tuple(unreadable))


def served_in_lists(lists: Iterable[JsonObject]) -> Discovery:
    """Read the older discovery: one ``APIResourceList`` for each group and version, those preferred first."""
    served: dict[tuple[str, str], Served] = {}
    for document in lists:
        group, _, version = str(document["groupVersion"]).rpartition("/")
        for resource in document.get("resources") or ():
            plural = str(resource["name"])
            if "/" not in plural and "list" in (resource.get("verbs") or ()):
                found = Served(group, version, plural, str(resource["kind"]), bool(resource.get("namespaced")))
                served.setdefault((group, plural), found)
    return Discovery(tuple(served.values()))


def is_nephoran_group(group: str) -> bool:
    """Return whether an API group is one of Nephoran's: ``nephoran.com`` or below it."""
    return group == NEPHORAN_GROUP or group.endswith(f".{NEPHORAN_GROUP}")


# --------------------------------------------------------------------------------------------------- what is asked for


@dataclass(frozen=True)
class Listing:
    """One list to ask for.

    :param namespace: None: all namespaces, or a resource without any.
    :param selector: labels as kubectl takes them.
    """

    served: Served
    namespace: str | None
    purpose: Purpose
    selector: str = ""

    def __str__(self) -> str:
        return f"{self.served.label}{f' in namespace {self.namespace}' if self.namespace else ''}"


CLUSTER_WIDE: tuple[tuple[str, str, Purpose], ...] = (
    ("apiextensions.k8s.io", "customresourcedefinitions", "crd"),
    ("", "namespaces", "namespace"),
    ("storage.k8s.io", "storageclasses", "record"),
    ("", "persistentvolumes", "record"),
)
CLUSTER_ACCESS: tuple[tuple[str, str, Purpose], ...] = (
    (RBAC_GROUP, "clusterrolebindings", "bindings"),
    (RBAC_GROUP, "clusterroles", "roles"),  # last: which of them count is known from the bindings
)


def listings(discovery: Discovery, namespaces: Sequence[str], *, elsewhere: bool = True) -> list[Listing]:
    """Return every list that a backup asks for, in the order in which its objects can be applied again.

    :param namespaces: the system's.
    :param elsewhere: whether custom resources of other namespaces are asked for too.
    """
    by_name = {(served.group, served.plural): served for served in discovery.served}
    custom = [served for served in discovery.served if is_nephoran_group(served.group)]
    allowed = [
        served
        for served in discovery.served
        if served.namespaced
        and not is_nephoran_group(served.group)
        and served.group not in COMPUTED_GROUPS
        and (served.group, served.plural) not in LEFT_OUT_RESOURCES
    ]
    # Last in their namespace: whose they are is known from the Services.
    ordinary = sorted(allowed, key=lambda served: (served.group, served.plural) == ENDPOINTS)

    def cluster_wide(names: Iterable[tuple[str, str, Purpose]]) -> list[Listing]:
        return [
            Listing(by_name[group, plural], None, purpose)
            for group, plural, purpose in names
            if (group, plural) in by_name
        ]

    return [
        *cluster_wide(CLUSTER_WIDE),
        *(Listing(served, namespace, "object") for namespace in namespaces for served in ordinary),
        *(
            Listing(served, namespace, "custom")
            for served in custom
            for namespace in ((None,) if elsewhere or not served.namespaced else namespaces)
        ),
        *cluster_wide(CLUSTER_ACCESS),
    ]


def unreadable_groups(discovery: Discovery) -> list[str]:
    """Return the groups that could hold objects of the system and could not be asked for what they serve."""
    return sorted(name for name in discovery.unreadable if name.partition("/")[0] not in COMPUTED_GROUPS)


# ------------------------------------------------------------------------------------------------------ what belongs in


def why_left_out(listing: Listing, found: JsonObject, namespaces: Sequence[str], own_namespace: str) -> str:
    """Return why an object does not belong in a backup; empty when it does.

    :param namespaces: the system's.
    :param own_namespace: that of journals, leases and switches.
    """
    metadata = found["metadata"]
    labels = metadata.get("labels") or {}
    if metadata.get("namespace") == own_namespace or _is_ours(labels):
        return "our own"
    if listing.purpose == "crd":
        return "" if is_nephoran_group(str(found["spec"]["group"])) else "of another group"
    if listing.purpose == "namespace":
        return "" if metadata["name"] in namespaces else "another namespace"
    if listing.purpose == "bindings":
        return "" if concerns(found, namespaces) else "of other subjects"
    if listing.purpose == "record" and listing.served.plural == "persistentvolumes":
        claim = (found.get("spec") or {}).get("claimRef") or {}
        return "" if claim.get("namespace") in namespaces else "claimed elsewhere or not at all"
    return _made_again(listing.served, found)


def _is_ours(labels: Mapping[str, str]) -> bool:
    managed = labels.get("app.kubernetes.io/managed-by") == FIELD_MANAGER
    return managed or any(key.startswith(f"{PREFIX}/") for key in labels)


def _made_again(served: Served, found: JsonObject) -> str:
    """Return who makes the object again when it is missing."""
    metadata = found["metadata"]
    labels = metadata.get("labels") or {}
    owners = metadata.get("ownerReferences") or ()
    controllers = [owner for owner in owners if owner.get("controller")]
    if controllers and (served.group, served.kind) in MADE_BY_THEIR_OWNER:
        return f"made by its {controllers[0]['kind']}"
    if any((owner.get("apiVersion"), owner.get("kind")) == ("v1", "Pod") for owner in owners):
        return "made by its Pod"
    if (served.group, served.plural) == ("", "secrets") and found.get("type") == "kubernetes.io/service-account-token":
        return "a service-account token"
    if (served.group, served.plural) == ENDPOINT_SLICES and labels.get(SLICE_MANAGER) in SLICE_CONTROLLERS:
        return "made for its Service"
    if (served.group, served.plural) == ENDPOINTS and LEADER in (metadata.get("annotations") or {}):
        return "the lock of a leader"
    if (served.group, served.plural) == ("", "configmaps") and metadata["name"] == "kube-root-ca.crt":
        return "made in every namespace"
    return ""


def concerns(binding: JsonObject, namespaces: Sequence[str]) -> bool:
    """Return whether a binding gives rights to a ServiceAccount of these namespaces, in any way of naming it."""
    for subject in binding.get("subjects") or ():
        kind, name = subject.get("kind"), str(subject.get("name", ""))
        for namespace in namespaces:
            account = kind == "ServiceAccount" and subject.get("namespace") == namespace
            user = kind == "User" and name.startswith(f"system:serviceaccount:{namespace}:")
            if account or user or (kind == "Group" and name == f"system:serviceaccounts:{namespace}"):
                return True
    return False


def cluster_role_of(served: Served, binding: JsonObject) -> str | None:
    """Return the ClusterRole that a RoleBinding or ClusterRoleBinding refers to; None for anything else."""
    if served.group != RBAC_GROUP or served.plural not in ("rolebindings", "clusterrolebindings"):
        return None
    reference = binding.get("roleRef") or {}
    return str(reference["name"]) if reference.get("kind") == "ClusterRole" else None


def roles_by_reference(roles: Iterable[JsonObject], names: Iterable[str]) -> list[JsonObject]:
    """Return the ClusterRoles of these names and, where one is aggregated, those that it is made of."""
    by_name = {str(role["metadata"]["name"]): role for role in roles}
    wanted: set[str] = set()
    waiting = [name for name in names if name in by_name]
    while waiting:
        name = waiting.pop()
        if name in wanted:
            continue
        wanted.add(name)
        selectors = (by_name[name].get("aggregationRule") or {}).get("clusterRoleSelectors") or ()
        waiting += [other for other, role in by_name.items() if any(_selects(chosen, role) for chosen in selectors)]
    return [by_name[name] for name in sorted(wanted)]


def _selects(selector: JsonObject, role: JsonObject) -> bool:
    labels = role["metadata"].get("labels") or {}
    wanted = selector.get("matchLabels") or {}
    if not wanted and not selector.get("matchExpressions"):
        return False
    return bool(wanted.items() <= labels.items()) and all(
        _matches(expression, labels) for expression in selector.get("matchExpressions") or ()
    )


def _matches(expression: JsonObject, labels: Mapping[str, str]) -> bool:
    key, values = expression["key"], expression.get("values") or ()
    return {
        "In": labels.get(key) in values,
        "NotIn": labels.get(key) not in values,
        "Exists": key in labels,
        "DoesNotExist": key not in labels,
    }[str(expression["operator"])]


# --------------------------------------------------------------------------------------------------- in which form it is


def applicable(served: Served, found: JsonObject) -> dict[str, Any]:
    """Return an object without what the server sets, so that it can be applied again.

    Node ports and finalizers of the system's own controllers are kept: clients outside rely on the first, and the
    second can't be told from those that a person set.
    """
    kept = {key: value for key, value in found.items() if key not in ("status", "metadata")}
    # The items of a list carry neither.
    kept["apiVersion"], kept["kind"] = served.api_version, served.kind
    kept["metadata"] = _stripped_metadata(found["metadata"])
    strip = _STRIP.get((served.group, served.kind))
    if strip is not None:
        strip(kept)
    return kept


def _stripped_metadata(metadata: JsonObject) -> dict[str, Any]:
    kept = {key: value for key, value in metadata.items() if key not in SERVER_SET_METADATA}
    if annotations := kept.pop("annotations", None):
        own = {
            key: value
            for key, value in annotations.items()
            if key not in CONTROLLER_ANNOTATIONS and not key.startswith(f"{PREFIX}/")
        }
        if own:
            kept["annotations"] = own
    if finalizers := kept.pop("finalizers", None):
        own_finalizers = [name for name in finalizers if name not in SERVER_SET_FINALIZERS]
        if own_finalizers:
            kept["finalizers"] = own_finalizers
    return kept


def _without(value: Any, *keys: str) -> dict[str, Any]:
    return {key: kept for key, kept in (value or {}).items() if key not in keys}


def _strip_service(service: dict[str, Any]) -> None:
    spec = service.get("spec") or {}
    # "None" makes a Service headless: a choice, not an address.
    drop = [] if spec.get("clusterIP") == "None" else ["clusterIP", "clusterIPs"]
    service["spec"] = _without(spec, *drop, "healthCheckNodePort")


def _strip_claim(claim: dict[str, Any]) -> None:
    claim["spec"] = _without(claim.get("spec"), "volumeName")


def _strip_job(job: dict[str, Any]) -> None:
    spec = job.get("spec") or {}
    if spec.get("manualSelector"):
        return
    template = spec.get("template") or {}
    metadata = template.get("metadata") or {}
    stripped = {**_without(template), "metadata": {**metadata, "labels": _without(metadata.get("labels"), *JOB_LABELS)}}
    job["spec"] = {**_without(spec, "selector"), "template": stripped}
    job["metadata"] = {**job["metadata"], "labels": _without(job["metadata"].get("labels"), *JOB_LABELS)}


def _strip_account(account: dict[str, Any]) -> None:
    # Tokens that older clusters made for each account are not kept, so nothing may point at them.
    made = re.compile(re.escape(str(account["metadata"]["name"])) + r"-(token|dockercfg)-[a-z0-9]{5}")
    kept = [entry for entry in account.pop("secrets", None) or () if not made.fullmatch(str(entry.get("name", "")))]
    if kept:
        account["secrets"] = kept


def _strip_namespace(namespace: dict[str, Any]) -> None:
    namespace.pop("spec", None)  # only the server's own finalizer


def _strip_stateful_set(workload: dict[str, Any]) -> None:
    spec = workload.get("spec") or {}
    if claims := spec.get("volumeClaimTemplates"):
        stripped = [
            {**_without(claim, "status"), "metadata": _stripped_metadata(claim["metadata"])} for claim in claims
        ]
        workload["spec"] = {**spec, "volumeClaimTemplates": stripped}


_STRIP = {
    ("", "Service"): _strip_service,
    ("", "PersistentVolumeClaim"): _strip_claim,
    ("", "ServiceAccount"): _strip_account,
    ("", "Namespace"): _strip_namespace,
    ("batch", "Job"): _strip_job,
    ("apps", "StatefulSet"): _strip_stateful_set,
}


@dataclass(frozen=True, slots=True)
class Captured:
    """One file of the archive: an object as it is applied again, or a record beside it.

    :param content: canonical bytes.
    """

    path: str
    content: bytes

    @property
    def digest(self) -> str:
        return digest_of(self.content)


def captured(listing: Listing, found: JsonObject) -> Iterator[Captured]:
    """Yield the files that an object becomes: the object itself, and the record beside it where there is one."""
    path = path_of(listing.served, found["metadata"].get("namespace"), str(found["metadata"]["name"]))
    if listing.purpose == "record":
        kept = {"apiVersion": listing.served.api_version, "kind": listing.served.kind, **found}
        kept["metadata"] = _without(found["metadata"], "managedFields", "resourceVersion")
        yield Captured(f"{ROOT}/records/{path}", canonical(kept))
        return
    yield Captured(f"{ROOT}/objects/{path}", canonical(applicable(listing.served, found)))
    beside = {}
    if listing.purpose == "custom" and found.get("status"):
        beside["status"] = found["status"]
    if owners := found["metadata"].get("ownerReferences"):
        beside["ownerReferences"] = owners
    if beside:
        yield Captured(f"{ROOT}/records/{path}", canonical(beside))


def path_of(served: Served, namespace: str | None, name: str) -> str:
    """Return where an object lies: ``namespaces/<namespace>/<plural>.<group>/<name>.json`` or ``cluster/…``.

    A name too long for a file, or with characters that no file should have, is cut and ends in a digest of the whole.
    """
    if len(name.encode()) > LONGEST_NAME_BYTES or "\\" in name or not name.isprintable():
        name, whole = "".join(character for character in name if character.isprintable() and character != "\\"), name
        cut = name.encode()[: LONGEST_NAME_BYTES - 17].decode(errors="ignore")
        name = f"{cut}~{digest_of(whole.encode())[:16]}"
    scope = f"namespaces/{namespace}" if namespace else "cluster"
    return f"{scope}/{served.label}/{name}.json"


_ENCODER = msgspec.json.Encoder(order="deterministic")


def canonical(value: Any) -> bytes:
    """Return the one JSON text of a value: keys in order, no white space, UTF-8."""
    return _ENCODER.encode(value)


def digest_of(content: bytes) -> str:
    """Return the SHA-256 of bytes, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


# ---------------------------------------------------------------------------------------------------- what has changed


@dataclass(frozen=True)
class Difference:
    """What differs from the backup before, as sorted paths."""

    added: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    deleted: tuple[str, ...] = ()


def difference(parent: Mapping[str, str], current: Mapping[str, str]) -> Difference:
    """Compare the digests of two backups, each by path."""
    return Difference(
        tuple(sorted(current.keys() - parent.keys())),
        tuple(sorted(path for path in current.keys() & parent.keys() if current[path] != parent[path])),
        tuple(sorted(parent.keys() - current.keys())),
    )


@dataclass(frozen=True)
class Link:
    """What one backup of a chain has: the digests of its archive, and which paths no longer belong to it."""

    files: Mapping[str, str]
    gone: Sequence[str] = ()


def files_after(links: Iterable[Link]) -> dict[str, str]:
    """Return by path the digest of everything that belongs to the last backup of a chain.

    :param links: the full one first. A path below ``again/<n>/`` stands for the path itself, the highest number for all.
    """
    state: dict[str, str] = {}
    for link in links:
        passes: dict[str, int] = {}
        for written, digest in link.files.items():
            number, path = 0, written
            if written.startswith(f"{AGAIN}/"):
                _, count, path = written.split("/", 2)
                number = int(count)
            if number >= passes.get(path, 0):
                passes[path], state[path] = number, digest
        for path in link.gone:
            state.pop(path, None)
    return state


@dataclass
class Selection:
    """Which files of a cluster go into this archive, decided object by object while lists stream by.

    A list that has to begin again is told by :meth:`begin`: what it gave before no longer counts, and what it gives
    again the same is not written again. A name can't come twice in an archive, so an object that changed in between is
    written below ``again/<n>/``, where the highest number counts. An object that vanished in between still lies in the
    archive and is in ``superseded``. ``digests`` says, by the path without ``again/<n>/``, what belongs to the backup.

    :param parent: digests of the backup before, by path; empty: everything is written.
    :param digest: the digest of a content, of the same kind as those of the parent.
    """

    namespaces: Sequence[str]
    own_namespace: str
    parent: Mapping[str, str] = field(default_factory=dict)
    digest: Callable[[bytes], str] = digest_of
    digests: dict[str, str] = field(default_factory=dict)
    objects: int = 0
    left_out: dict[str, int] = field(default_factory=dict)
    restarted: list[str] = field(default_factory=list)
    superseded: list[str] = field(default_factory=list)
    _passes: int = 0
    _written: dict[str, str] = field(default_factory=dict)
    _of_list: list[str] = field(default_factory=list)
    _objects_of_list: int = 0
    _left_out_of_list: dict[str, int] = field(default_factory=dict)
    _roles: list[JsonObject] = field(default_factory=list)
    _role_names: set[str] = field(default_factory=set)
    _choosing: set[tuple[str, str]] = field(default_factory=set)
    """The Services that choose pods, by namespace and name."""

    def begin(self, listing: Listing, *, again: bool) -> None:
        """Say that a list begins, or begins again."""
        if again:
            self.restarted.append(str(listing))
            self._passes += 1
            for path in self._of_list:
                del self.digests[path]
            self.objects -= self._objects_of_list
            for reason, count in self._left_out_of_list.items():
                self.left_out[reason] -= count
        else:
            self._passes = 0
            self._written.clear()
        self._of_list, self._objects_of_list, self._left_out_of_list, self._roles = [], 0, {}, []

    def take(self, listing: Listing, found: JsonObject) -> Iterator[Captured]:
        """Yield what of an object is to be written."""
        if listing.purpose == "roles":
            self._roles.append(found)
            return
        made_again = self._made_for_a_service(listing.served, found)
        if reason := why_left_out(listing, found, self.namespaces, self.own_namespace) or made_again:
            for counts in (self.left_out, self._left_out_of_list):
                counts[reason] = counts.get(reason, 0) + 1
            return
        if role := cluster_role_of(listing.served, found):
            self._role_names.add(role)
        yield from self._chosen(listing, found)

    def _made_for_a_service(self, served: Served, found: JsonObject) -> str:
        """Return that the cluster makes an Endpoints again, because its Service chooses pods; remember the Services."""
        kind = (served.group, served.plural)
        if kind not in (SERVICES, ENDPOINTS):
            return ""
        name = (str(found["metadata"].get("namespace")), str(found["metadata"]["name"]))
        if kind == ENDPOINTS:
            return "made for its Service" if name in self._choosing else ""
        # A list that begins again may show another choice.
        self._choosing.discard(name)
        if (found.get("spec") or {}).get("selector"):
            self._choosing.add(name)
        return ""

    def end(self, listing: Listing) -> Iterator[Captured]:
        """Yield what could be decided only once the whole list was seen."""
        for role in roles_by_reference(self._roles, self._role_names):
            yield from self._chosen(listing, role)
        self._roles = []
        self.superseded += sorted(path for path in self._written if path not in self.digests)

    def difference(self) -> Difference:
        """Return what differs from the backup before, once everything was seen."""
        return difference(self.parent, self.digests)

    def _chosen(self, listing: Listing, found: JsonObject) -> Iterator[Captured]:
        self.objects += 1
        self._objects_of_list += 1
        for file in captured(listing, found):
            digest = self.digest(file.content)
            self.digests[file.path] = digest
            self._of_list.append(file.path)
            before = self._written.get(file.path)
            if digest != (before or self.parent.get(file.path)):
                self._written[file.path] = digest
                yield Captured(f"{AGAIN}/{self._passes}/{file.path}", file.content) if before else file
