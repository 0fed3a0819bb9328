"""What of a cluster belongs in a backup, in which form, and what has changed."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nephoran_maintenance.domain.capture import (
    Captured,
    Discovery,
    Link,
    Listing,
    Selection,
    Served,
    applicable,
    canonical,
    captured,
    cluster_role_of,
    concerns,
    difference,
    digest_of,
    files_after,
    is_nephoran_group,
    listings,
    path_of,
    roles_by_reference,
    served_in,
    served_in_lists,
    unreadable_groups,
    why_left_out,
)

SYSTEM = ("nephoran-system", "nephoran-monitoring")
OWN = "nephoran-maintenance"
RBAC = "rbac.authorization.k8s.io"

CONFIG_MAP = Served("", "v1", "configmaps", "ConfigMap", True)
SECRET = Served("", "v1", "secrets", "Secret", True)
SERVICE = Served("", "v1", "services", "Service", True)
INTENT = Served("intent.nephoran.com", "v1alpha1", "networkintents", "NetworkIntent", True)
VOLUME = Served("", "v1", "persistentvolumes", "PersistentVolume", False)
CLUSTER_ROLE = Served(RBAC, "v1", "clusterroles", "ClusterRole", False)
CLUSTER_BINDING = Served(RBAC, "v1", "clusterrolebindings", "ClusterRoleBinding", False)
BINDING = Served(RBAC, "v1", "rolebindings", "RoleBinding", True)


def resource(plural: str, kind: str, *, scope: str = "Namespaced", verbs: tuple[str, ...] = ("list", "get")) -> Any:
    return {"resource": plural, "responseKind": {"kind": kind}, "scope": scope, "verbs": list(verbs)}


def group(name: str, *versions: tuple[str, list[Any]], freshness: str = "Current") -> Any:
    return {
        "metadata": {"name": name} if name else {},
        "versions": [{"version": v, "resources": found, "freshness": freshness} for v, found in versions],
    }


def object_of(name: str = "x", namespace: str | None = "nephoran-system", **fields: Any) -> dict[str, Any]:
    metadata = {"name": name, **({"namespace": namespace} if namespace else {}), **fields.pop("metadata", {})}
    return {"metadata": metadata, **fields}


def owned_by(kind: str, api_version: str = "apps/v1", *, controller: bool = True) -> dict[str, Any]:
    return {"ownerReferences": [{"apiVersion": api_version, "kind": kind, "name": "o", "controller": controller}]}


def labels_of(found: list[Listing]) -> list[str]:
    return [str(listing) for listing in found]


# ------------------------------------------------------------------------------------------------ what the cluster has

AGGREGATED = [
    {
        "items": [
            group(
                "",
                (
                    "v1",
                    [
                        resource("configmaps", "ConfigMap"),
                        resource("pods", "Pod"),
                        resource("events", "Event"),
                        resource("endpoints", "Endpoints"),
                        resource("bindings", "Binding", verbs=("create",)),
                        resource("namespaces", "Namespace", scope="Cluster"),
                        resource("nodes", "Node", scope="Cluster"),
                        resource("persistentvolumes", "PersistentVolume", scope="Cluster"),
                    ],
                ),
            )
        ]
    },
    {
        "items": [
            group("apps", ("v1", [resource("deployments", "Deployment"), resource("replicasets", "ReplicaSet")])),
            group(
                "autoscaling",
                ("v2", [resource("horizontalpodautoscalers", "HorizontalPodAutoscaler")]),
                ("v1", [resource("horizontalpodautoscalers", "HorizontalPodAutoscaler")]),
            ),
            group("events.k8s.io", ("v1", [resource("events", "Event")])),
            group("discovery.k8s.io", ("v1", [resource("endpointslices", "EndpointSlice")])),
            group("coordination.k8s.io", ("v1", [resource("leases", "Lease")])),
            group("metrics.k8s.io", ("v1beta1", [resource("pods", "PodMetrics")])),
            group("nephoran.com", ("v1", [resource("networkintents", "NetworkIntent")])),
            group("intent.nephoran.com", ("v1alpha1", [resource("networkintents", "NetworkIntent")])),
            group("monitoring.nephoran.com", ("v1", [resource("sites", "Site", scope="Cluster")])),
            group("example.com", ("v1", [resource("widgets", "Widget"), resource("gears", "Gear", scope="Cluster")])),
            group("storage.k8s.io", ("v1", [resource("storageclasses", "StorageClass", scope="Cluster")])),
            group(
                "apiextensions.k8s.io",
                ("v1", [resource("customresourcedefinitions", "CustomResourceDefinition", scope="Cluster")]),
            ),
            group(
                RBAC,
                (
                    "v1",
                    [
                        resource("clusterroles", "ClusterRole", scope="Cluster"),
                        resource("clusterrolebindings", "ClusterRoleBinding", scope="Cluster"),
                        resource("roles", "Role"),
                    ],
                ),
            ),
        ]
    },
]


def test_asks_for_everything_that_can_be_applied_again_and_for_nothing_else() -> None:
    assert labels_of(listings(served_in(AGGREGATED), ["a", "b"])) == [
        "customresourcedefinitions.apiextensions.k8s.io",
        "namespaces",
        "storageclasses.storage.k8s.io",
        "persistentvolumes",
        *(
            f"{name} in namespace {namespace}"
            for namespace in ("a", "b")
            for name in (
                "configmaps",
                "deployments.apps",
                "replicasets.apps",
                "horizontalpodautoscalers.autoscaling",
                "endpointslices.discovery.k8s.io",
                "widgets.example.com",
                f"roles.{RBAC}",
                "endpoints",
            )
        ),
        "networkintents.nephoran.com",
        "networkintents.intent.nephoran.com",
        "sites.monitoring.nephoran.com",
        f"clusterrolebindings.{RBAC}",
        f"clusterroles.{RBAC}",
    ]


def test_takes_the_version_that_the_group_prefers() -> None:
    served = {found.label: found.version for found in served_in(AGGREGATED).served}
    assert served["horizontalpodautoscalers.autoscaling"] == "v2"


def test_takes_an_older_version_for_what_the_preferred_one_does_not_have() -> None:
    document = {
        "items": [group("g.io", ("v2", [resource("as", "A")]), ("v1", [resource("as", "A"), resource("bs", "B")]))]
    }
    assert {(f.plural, f.version) for f in served_in([document]).served} == {("as", "v2"), ("bs", "v1")}


@pytest.mark.parametrize(("name", "named"), [("example.com", ["example.com/v1"]), ("metrics.k8s.io", [])])
def test_names_a_group_whose_server_does_not_answer_unless_it_only_measures(name: str, named: list[str]) -> None:
    found = served_in([{"items": [group(name, ("v1", []), freshness="Stale")]}])
    assert unreadable_groups(found) == named


def test_uses_what_a_stale_group_still_tells() -> None:
    found = served_in([{"items": [group("g.io", ("v1", [resource("as", "A")]), freshness="Stale")]}])
    assert (len(found.served), unreadable_groups(found)) == (1, [])


def test_reads_the_older_discovery_too() -> None:
    lists = [
        {
            "groupVersion": "v1",
            "resources": [
                {"name": "pods", "kind": "Pod", "namespaced": True, "verbs": ["list"]},
                {"name": "pods/log", "kind": "Pod", "namespaced": True, "verbs": ["list"]},
                {"name": "nodes", "kind": "Node", "namespaced": False, "verbs": ["list"]},
                {"name": "bindings", "kind": "Binding", "namespaced": True, "verbs": ["create"]},
            ],
        },
        {"groupVersion": "apps/v1", "resources": [{"name": "as", "kind": "A", "namespaced": True, "verbs": ["list"]}]},
    ]
    assert served_in_lists(lists) == Discovery(
        (
            Served("", "v1", "pods", "Pod", True),
            Served("", "v1", "nodes", "Node", False),
            Served("apps", "v1", "as", "A", True),
        )
    )


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("nephoran.com", True),
        ("intent.nephoran.com", True),
        ("a.b.nephoran.com", True),
        ("notnephoran.com", False),
        ("nephoran.com.example", False),
        ("", False),
    ],
)
def test_knows_nephorans_groups(name: str, expected: bool) -> None:
    assert is_nephoran_group(name) is expected


# ------------------------------------------------------------------------------------------------------ what belongs in


def reason(served: Served, found: dict[str, Any], purpose: Any = "object") -> str:
    return why_left_out(Listing(served, None, purpose), found, SYSTEM, OWN)


REPLICA_SET = Served("apps", "v1", "replicasets", "ReplicaSet", True)
JOB = Served("batch", "v1", "jobs", "Job", True)
REVISION = Served("apps", "v1", "controllerrevisions", "ControllerRevision", True)
CLAIM = Served("", "v1", "persistentvolumeclaims", "PersistentVolumeClaim", True)
POLICY = Served("cilium.io", "v2", "ciliumendpoints", "CiliumEndpoint", True)


@pytest.mark.parametrize(
    ("served", "found", "expected"),
    [
        (CONFIG_MAP, object_of(), ""),
        (CONFIG_MAP, object_of("kube-root-ca.crt"), "made in every namespace"),
        (SECRET, object_of("kube-root-ca.crt"), ""),
        (SECRET, object_of(type="Opaque"), ""),
        (SECRET, object_of(type="kubernetes.io/service-account-token"), "a service-account token"),
        (SECRET, object_of(type="helm.sh/release.v1"), ""),
        (REPLICA_SET, object_of(metadata=owned_by("Deployment")), "made by its Deployment"),
        (REPLICA_SET, object_of(), ""),
        (REPLICA_SET, object_of(metadata=owned_by("Deployment", controller=False)), ""),
        (REVISION, object_of(metadata=owned_by("StatefulSet")), "made by its StatefulSet"),
        (JOB, object_of(metadata=owned_by("CronJob", "batch/v1")), "made by its CronJob"),
        (JOB, object_of(), ""),
        (CLAIM, object_of(metadata=owned_by("StatefulSet")), ""),
        (POLICY, object_of(metadata=owned_by("Pod", "v1", controller=False)), "made by its Pod"),
        (CONFIG_MAP, object_of(metadata={"labels": {"app.kubernetes.io/managed-by": OWN}}), "our own"),
        (CONFIG_MAP, object_of(metadata={"labels": {"maintenance.nephoran.com/record": "journal"}}), "our own"),
        (CONFIG_MAP, object_of(metadata={"labels": {"app.kubernetes.io/managed-by": "Helm"}}), ""),
        (CONFIG_MAP, object_of(metadata={"annotations": {"maintenance.nephoran.com/fence": "7"}}), ""),
        (INTENT, object_of(namespace=OWN), "our own"),
        (INTENT, object_of(metadata={"labels": {"maintenance.nephoran.com/operation": "o"}}), "our own"),
        (INTENT, object_of(namespace="elsewhere"), ""),
    ],
)
def test_leaves_out_what_is_made_again_and_what_is_our_own(
    served: Served, found: dict[str, Any], expected: str
) -> None:
    assert reason(served, found) == expected


def test_keeps_the_definitions_of_nephorans_groups_only() -> None:
    definition = Served("apiextensions.k8s.io", "v1", "customresourcedefinitions", "CustomResourceDefinition", False)
    kept = [
        name
        for name in ("nephoran.com", "intent.nephoran.com", "example.com")
        if not reason(definition, object_of(f"things.{name}", None, spec={"group": name}), "crd")
    ]
    assert kept == ["nephoran.com", "intent.nephoran.com"]


def test_keeps_the_systems_namespaces_only() -> None:
    namespace = Served("", "v1", "namespaces", "Namespace", False)
    names = (*SYSTEM, OWN, "default")
    assert [name for name in names if not reason(namespace, object_of(name, None), "namespace")] == list(SYSTEM)


@pytest.mark.parametrize(
    ("claim", "kept"),
    [({"namespace": "nephoran-system"}, True), ({"namespace": "elsewhere"}, False), (None, False)],
    ids=["of the system", "of another", "unclaimed"],
)
def test_keeps_a_record_of_the_systems_volumes_only(claim: Any, kept: bool) -> None:
    assert (reason(VOLUME, object_of("pv", None, spec={"claimRef": claim}), "record") == "") is kept


SUBJECTS = {
    "account": ({"kind": "ServiceAccount", "name": "a", "namespace": "nephoran-system"}, True),
    "account-elsewhere": ({"kind": "ServiceAccount", "name": "a", "namespace": "default"}, False),
    "user": ({"kind": "User", "name": "system:serviceaccount:nephoran-system:a"}, True),
    "user-elsewhere": ({"kind": "User", "name": "system:serviceaccount:nephoran-system-2:a"}, False),
    "group": ({"kind": "Group", "name": "system:serviceaccounts:nephoran-monitoring"}, True),
    "all-accounts": ({"kind": "Group", "name": "system:serviceaccounts"}, False),
    "person": ({"kind": "User", "name": "nephoran-system"}, False),
}


@pytest.mark.parametrize(("subject", "expected"), SUBJECTS.values(), ids=SUBJECTS.keys())
def test_keeps_a_binding_by_its_subjects(subject: dict[str, str], expected: bool) -> None:
    other = {"kind": "User", "name": "somebody"}
    assert concerns({"subjects": [other, subject]}, SYSTEM) is expected
    assert (reason(CLUSTER_BINDING, object_of("b", None, subjects=[subject]), "bindings") == "") is expected


@pytest.mark.parametrize("subjects", [None, []])
def test_a_binding_of_nobody_concerns_nobody(subjects: Any) -> None:
    assert not concerns({"subjects": subjects}, SYSTEM)


@pytest.mark.parametrize(
    ("served", "kind", "expected"),
    [
        (BINDING, "ClusterRole", "r"),
        (CLUSTER_BINDING, "ClusterRole", "r"),
        (BINDING, "Role", None),
        (CONFIG_MAP, "ClusterRole", None),
    ],
)
def test_finds_the_role_that_a_binding_refers_to(served: Served, kind: str, expected: str | None) -> None:
    assert cluster_role_of(served, {"roleRef": {"kind": kind, "name": "r"}}) == expected


def role(name: str, *, labels: dict[str, str] | None = None, selectors: list[Any] | None = None) -> dict[str, Any]:
    found = object_of(name, None, metadata={"labels": labels or {}})
    return {**found, "aggregationRule": {"clusterRoleSelectors": selectors}} if selectors else found


def test_takes_roles_by_reference_and_those_that_an_aggregated_one_is_made_of() -> None:
    roles = [
        role("view", selectors=[{"matchLabels": {"to-view": "true"}}]),
        role("part", labels={"to-view": "true"}),
        role("by-expression", labels={"tier": "b"}),
        role("other"),
        role("custom", selectors=[{"matchExpressions": [{"key": "tier", "operator": "In", "values": ["a", "b"]}]}]),
    ]
    assert [r["metadata"]["name"] for r in roles_by_reference(roles, ["view", "missing"])] == ["part", "view"]
    assert [r["metadata"]["name"] for r in roles_by_reference(roles, ["custom"])] == ["by-expression", "custom"]


def test_roles_that_select_each_other_come_to_an_end() -> None:
    selectors = [{"matchLabels": {"x": "y"}}]
    roles = [role(name, labels={"x": "y"}, selectors=selectors) for name in ("a", "b")]
    assert len(roles_by_reference(roles, ["a"])) == 2


# --------------------------------------------------------------------------------------------------- in which form it is

SERVER_SET = {
    "uid": "u",
    "resourceVersion": "7",
    "generation": 3,
    "creationTimestamp": "2026-01-01T00:00:00Z",
    "deletionTimestamp": "2026-01-02T00:00:00Z",
    "deletionGracePeriodSeconds": 30,
    "selfLink": "/x",
    "managedFields": [{"manager": "kubectl"}],
    **owned_by("NetworkIntent", "nephoran.com/v1"),
}


def test_strips_what_the_server_sets_and_keeps_what_people_set() -> None:
    found = object_of(
        metadata={
            **SERVER_SET,
            "labels": {"app": "x"},
            "annotations": {
                "team": "core",
                "deployment.kubernetes.io/revision": "4",
                "maintenance.nephoran.com/fence": "7",
            },
            "finalizers": ["nephoran.com/cleanup", "kubernetes.io/pvc-protection"],
        },
        data={"a": "b"},
        status={"x": 1},
    )
    before = copy.deepcopy(found)
    assert applicable(CONFIG_MAP, found) == {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": "x",
            "namespace": "nephoran-system",
            "labels": {"app": "x"},
            "annotations": {"team": "core"},
            "finalizers": ["nephoran.com/cleanup"],
        },
        "data": {"a": "b"},
    }
    assert found == before, "what was read must not be changed"


def test_names_the_kind_of_a_list_item_that_carries_none() -> None:
    kept = applicable(INTENT, object_of())
    assert (kept["apiVersion"], kept["kind"]) == ("intent.nephoran.com/v1alpha1", "NetworkIntent")


SPECS: dict[str, tuple[Served, dict[str, Any], dict[str, Any]]] = {
    "service": (
        SERVICE,
        {
            "clusterIP": "10.96.0.7",
            "clusterIPs": ["10.96.0.7"],
            "healthCheckNodePort": 31000,
            "ports": [{"nodePort": 1}],
        },
        {"ports": [{"nodePort": 1}]},
    ),
    "headless-service": (
        SERVICE,
        {"clusterIP": "None", "clusterIPs": ["None"]},
        {"clusterIP": "None", "clusterIPs": ["None"]},
    ),
    "claim": (CLAIM, {"volumeName": "pv-1", "storageClassName": "s"}, {"storageClassName": "s"}),
    "job": (
        JOB,
        {
            "selector": {"matchLabels": {"batch.kubernetes.io/controller-uid": "u"}},
            "template": {
                "metadata": {"labels": {"controller-uid": "u", "job-name": "x", "app": "x"}},
                "spec": {"a": 1},
            },
        },
        {"template": {"metadata": {"labels": {"app": "x"}}, "spec": {"a": 1}}},
    ),
    "job-with-its-own-selector": (
        JOB,
        {"manualSelector": True, "selector": {"matchLabels": {"a": "b"}}},
        {"manualSelector": True, "selector": {"matchLabels": {"a": "b"}}},
    ),
    "stateful-set": (
        Served("apps", "v1", "statefulsets", "StatefulSet", True),
        {
            "volumeClaimTemplates": [
                {"metadata": {"name": "d", "creationTimestamp": None}, "status": {"phase": "Pending"}}
            ]
        },
        {"volumeClaimTemplates": [{"metadata": {"name": "d"}}]},
    ),
}


@pytest.mark.parametrize(("served", "spec", "expected"), SPECS.values(), ids=SPECS.keys())
def test_strips_what_is_assigned_within_a_spec(served: Served, spec: dict[str, Any], expected: dict[str, Any]) -> None:
    found = object_of(spec=spec)
    before = copy.deepcopy(found)
    assert applicable(served, found)["spec"] == expected
    assert found == before, "what was read must not be changed"


def test_strips_a_namespaces_own_finalizer() -> None:
    assert "spec" not in applicable(
        Served("", "v1", "namespaces", "Namespace", False), object_of("n", None, spec={"finalizers": ["kubernetes"]})
    )


def test_strips_the_tokens_that_were_made_for_an_account() -> None:
    account = Served("", "v1", "serviceaccounts", "ServiceAccount", True)
    found = object_of("rag", secrets=[{"name": "rag-token-x7k2p"}, {"name": "registry"}])
    assert applicable(account, found)["secrets"] == [{"name": "registry"}]
    assert "secrets" not in applicable(account, object_of("rag", secrets=[{"name": "rag-token-x7k2p"}]))


def files_of(served: Served, found: dict[str, Any], purpose: Any = "object") -> dict[str, Any]:
    return {file.path: json.loads(file.content) for file in captured(Listing(served, None, purpose), found)}


def test_keeps_the_status_of_a_custom_resource_beside_it() -> None:
    files = files_of(INTENT, object_of(spec={"intent": "i"}, status={"phase": "Deployed"}), "custom")
    path = "namespaces/nephoran-system/networkintents.intent.nephoran.com/x.json"
    assert set(files) == {f"kubernetes/objects/{path}", f"kubernetes/records/{path}"}
    assert "status" not in files[f"kubernetes/objects/{path}"]
    assert files[f"kubernetes/records/{path}"] == {"status": {"phase": "Deployed"}}


def test_keeps_the_owners_of_an_object_beside_it() -> None:
    files = files_of(CONFIG_MAP, object_of(metadata=owned_by("NetworkIntent", "nephoran.com/v1"), status={"a": 1}))
    beside = files["kubernetes/records/namespaces/nephoran-system/configmaps/x.json"]
    assert beside == {"ownerReferences": owned_by("NetworkIntent", "nephoran.com/v1")["ownerReferences"]}


def test_keeps_a_volume_whole_but_only_as_a_record() -> None:
    found = object_of("pv", None, metadata={"uid": "u"}, spec={"claimRef": {}}, status={"phase": "Bound"})
    files = files_of(VOLUME, found, "record")
    assert list(files) == ["kubernetes/records/cluster/persistentvolumes/pv.json"]
    assert files["kubernetes/records/cluster/persistentvolumes/pv.json"] == {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        **found,
    }


@given(st.text(st.characters(exclude_characters="/", exclude_categories=("Cs",)), min_size=1))
def test_every_name_makes_a_file_name_that_fits(name: str) -> None:
    path = path_of(CLUSTER_ROLE, None, name)
    assert len(path.rpartition("/")[2].encode()) <= 255
    assert path.isprintable()
    assert "\\" not in path


def test_long_names_that_differ_only_at_the_end_stay_apart() -> None:
    assert path_of(CLUSTER_ROLE, None, "a" * 300 + "b") != path_of(CLUSTER_ROLE, None, "a" * 300 + "c")
    assert path_of(CLUSTER_ROLE, None, "a\\") != path_of(CLUSTER_ROLE, None, "a")


def test_the_same_name_in_two_groups_stays_apart() -> None:
    other = Served("nephoran.com", "v1", "networkintents", "NetworkIntent", True)
    assert path_of(INTENT, "ns", "x") != path_of(other, "ns", "x")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text(st.characters(exclude_categories=("Cs",))),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(exclude_categories=("Cs",))), inner),
    max_leaves=20,
)


@given(JSON)
def test_canonical_bytes_say_the_same_and_don_t_depend_on_the_order_of_keys(value: Any) -> None:
    def turned(part: Any) -> Any:
        if isinstance(part, dict):
            return {key: turned(part[key]) for key in reversed(part)}
        return [turned(entry) for entry in part] if isinstance(part, list) else part

    assert json.loads(canonical(value)) == value
    assert canonical(turned(value)) == canonical(value)


def test_canonical_bytes_are_those_of_an_independent_writer() -> None:
    value = {"b": [1, 2.5, None, True], "a": {"ü": 'é\n"\\', "z": ""}}
    assert canonical(value) == json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


# ---------------------------------------------------------------------------------------------------- what has changed

DIGESTS = st.dictionaries(st.sampled_from("abcdef"), st.sampled_from("123"))


@given(DIGESTS, DIGESTS)
def test_the_difference_leads_from_the_parent_to_the_current_state(
    parent: dict[str, str], current: dict[str, str]
) -> None:
    found = difference(parent, current)
    rebuilt = {path: value for path, value in parent.items() if path not in found.deleted}
    rebuilt |= {path: current[path] for path in (*found.added, *found.changed)}
    assert rebuilt == current
    assert not set(found.added) & set(parent)
    assert all(parent[path] != current[path] for path in found.changed)


LISTING = Listing(CONFIG_MAP, "nephoran-system", "object")
PASS = st.dictionaries(st.sampled_from("abcde"), st.sampled_from("xyz"))


def config_map(name: str, value: str) -> dict[str, Any]:
    return object_of(name, data={"value": value})


def digests_of(contents: dict[str, str]) -> dict[str, str]:
    files = [file for name, value in contents.items() for file in captured(LISTING, config_map(name, value))]
    return {file.path: file.digest for file in files}


@given(parent=PASS, interrupted=st.lists(PASS, max_size=3), whole=PASS)
def test_a_list_that_begins_again_leaves_exactly_what_its_last_pass_saw(
    parent: dict[str, str], interrupted: list[dict[str, str]], whole: dict[str, str]
) -> None:
    selection = Selection(SYSTEM, OWN, parent=digests_of(parent))
    written: list[Captured] = []
    for number, contents in enumerate([*interrupted, whole]):
        selection.begin(LISTING, again=number > 0)
        for name, value in contents.items():
            written += selection.take(LISTING, config_map(name, value))
    written += selection.end(LISTING)
    assert selection.digests == digests_of(whole)
    assert selection.objects == len(whole)
    assert len(selection.restarted) == len(interrupted)
    names = [file.path for file in written]
    assert len(set(names)) == len(names), "a name comes twice in the archive"
    # What a reader finds who unpacks parent and archive one over the other, and then what came again, in order.
    unpacked = {**selection.parent}
    for number in range(len(interrupted) + 1):
        prefix = f"again/{number}/" if number else "kubernetes/"
        for file in written:
            if file.path.startswith(prefix):
                unpacked[file.path.removeprefix(f"again/{number}/")] = file.digest
    assert {path: unpacked[path] for path in selection.digests} == selection.digests
    # What is in the archive and does not belong is named.
    logical = {name[name.index("kubernetes/") :] for name in names}
    assert set(selection.superseded) == logical - set(selection.digests)


def test_nothing_is_written_when_nothing_has_changed() -> None:
    selection = Selection(SYSTEM, OWN, parent=digests_of({"a": "x", "b": "y"}))
    selection.begin(LISTING, again=False)
    written = [f for name, value in (("a", "x"), ("b", "z")) for f in selection.take(LISTING, config_map(name, value))]
    assert [file.path.rpartition("/")[2] for file in written] == ["b.json"]
    found = selection.difference()
    assert (len(found.changed), found.added, found.deleted) == (1, (), ())


def test_counts_what_was_left_out_once_also_when_the_list_begins_again() -> None:
    selection = Selection(SYSTEM, OWN)
    for again in (False, True):
        selection.begin(LISTING, again=again)
        assert not list(selection.take(LISTING, object_of("kube-root-ca.crt")))
    assert selection.left_out == {"made in every namespace": 1}
    assert selection.restarted == ["configmaps in namespace nephoran-system"]


def test_keeps_endpoints_that_a_person_wrote_and_not_those_of_a_service_that_chooses_pods() -> None:
    selection = Selection(SYSTEM, OWN)
    services = Listing(Served("", "v1", "services", "Service", True), "nephoran-system", "object")
    endpoints = Listing(Served("", "v1", "endpoints", "Endpoints", True), "nephoran-system", "object")
    subsets = [{"addresses": [{"ip": "192.0.2.7"}], "ports": [{"port": 5432}]}]
    names = ("chooses", "by-hand", "of-no-service", "chose-before")
    leader = object_of("leader", metadata={"annotations": {"control-plane.alpha.kubernetes.io/leader": "{}"}})
    written: list[Captured] = []
    for again, spec in ((False, {"selector": {"app": "a"}}), (True, {})):
        selection.begin(services, again=again)
        for found in (
            object_of("chooses", spec={"selector": {"app": "a"}}),
            object_of("by-hand", spec={"ports": []}),
            object_of("chose-before", spec=spec),
        ):
            list(selection.take(services, found))
        list(selection.end(services))
    selection.begin(endpoints, again=False)
    for found in (*(object_of(name, subsets=subsets) for name in names), leader):
        written += selection.take(endpoints, found)
    written += selection.end(endpoints)
    assert sorted(file.path.rpartition("/")[2] for file in written) == [
        "by-hand.json",
        "chose-before.json",
        "of-no-service.json",
    ]
    assert b"192.0.2.7" in written[0].content
    assert selection.left_out == {"made for its Service": 1, "the lock of a leader": 1}


def test_keeps_the_slices_that_a_person_wrote_and_not_those_of_a_controller() -> None:
    selection = Selection(SYSTEM, OWN)
    slices = Listing(Served("discovery.k8s.io", "v1", "endpointslices", "EndpointSlice", True), SYSTEM[0], "object")
    by = "endpointslice.kubernetes.io/managed-by"
    managers = {"chooses": "endpointslice-controller.k8s.io", "mirrors": "endpointslicemirroring-controller.k8s.io"}
    found = [object_of(name, metadata={"labels": {by: manager}}) for name, manager in managers.items()]
    found += [object_of("of-staff", metadata={"labels": {by: "staff"}}), object_of("plain")]
    selection.begin(slices, again=False)
    written = [file.path.rpartition("/")[2] for one in found for file in selection.take(slices, one)]
    assert written == ["of-staff.json", "plain.json"]
    assert selection.left_out == {"made for its Service": 2}


def test_writes_only_the_roles_that_a_kept_binding_refers_to() -> None:
    selection = Selection(SYSTEM, OWN)
    subject = {"kind": "ServiceAccount", "name": "a", "namespace": "nephoran-system"}
    bindings = Listing(CLUSTER_BINDING, None, "bindings")
    of_namespace = Listing(BINDING, "nephoran-system", "object")
    roles = Listing(CLUSTER_ROLE, None, "roles")
    written = []
    for listing, found in (
        (of_namespace, [object_of("b", roleRef={"kind": "ClusterRole", "name": "edit"}, subjects=[])]),
        (
            bindings,
            [
                object_of("ours", None, roleRef={"kind": "ClusterRole", "name": "manager"}, subjects=[subject]),
                object_of("theirs", None, roleRef={"kind": "ClusterRole", "name": "foreign"}, subjects=[]),
            ],
        ),
        (roles, [object_of(name, None) for name in ("edit", "foreign", "manager", "unbound")]),
    ):
        selection.begin(listing, again=False)
        for one in found:
            written += selection.take(listing, one)
        written += selection.end(listing)
    assert [file.path.removeprefix("kubernetes/objects/") for file in written] == [
        f"namespaces/nephoran-system/rolebindings.{RBAC}/b.json",
        f"cluster/clusterrolebindings.{RBAC}/ours.json",
        f"cluster/clusterroles.{RBAC}/edit.json",
        f"cluster/clusterroles.{RBAC}/manager.json",
    ]


def test_a_digest_is_that_of_sha256() -> None:
    assert digest_of(b"") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


# ------------------------------------------------------------------------------------------------------------- a chain


def test_the_files_after_a_chain_are_those_of_its_last_link() -> None:
    full = Link({"a": "1", "b": "1", "again/1/b": "2", "again/2/b": "3", "again/1/c": "1", "d": "1"}, gone=["d"])
    assert files_after([full]) == {"a": "1", "b": "3", "c": "1"}
    second = Link({"a": "2", "e": "1"}, gone=["b"])
    third = Link({"b": "9"}, gone=["e"])
    assert files_after([full, second, third]) == {"a": "2", "b": "9", "c": "1"}
    assert files_after([]) == {}


def test_the_order_in_an_inventory_does_not_matter() -> None:
    files = {"again/10/b": "10", "again/9/b": "9", "b": "0"}
    assert files_after([Link(files)]) == files_after([Link(dict(reversed(files.items())))]) == {"b": "10"}
