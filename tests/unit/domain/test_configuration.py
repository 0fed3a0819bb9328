"""Where the configuration of a workload lives."""

from __future__ import annotations

from typing import Any

import pytest

from nephoran_maintenance.domain.configuration import missing_references, pod_spec_of, references_of

CASES: dict[str, tuple[dict[str, Any], set[tuple[str, str]]]] = {
    "nothing": ({}, set()),
    "account": ({"serviceAccountName": "operator"}, {("ServiceAccount", "operator")}),
    "default-account": ({"serviceAccountName": "default"}, set()),
    "volumes": (
        {
            "volumes": [
                {"configMap": {"name": "a"}},
                {"secret": {"secretName": "b"}},
                {"persistentVolumeClaim": {"claimName": "c"}},
                {"emptyDir": {}},
            ]
        },
        {("ConfigMap", "a"), ("Secret", "b"), ("PersistentVolumeClaim", "c")},
    ),
    "projected-volume": (
        {
            "volumes": [
                {
                    "projected": {
                        "sources": [
                            {"configMap": {"name": "kube-root-ca.crt"}},
                            {"configMap": {"name": "a"}},
                            {"secret": {"name": "b"}},
                            {"serviceAccountToken": {"path": "token"}},
                        ]
                    }
                }
            ]
        },
        {("ConfigMap", "a"), ("Secret", "b")},
    ),
    "environment": (
        {
            "initContainers": [{"envFrom": [{"configMapRef": {"name": "a"}}, {"secretRef": {"name": "b"}}]}],
            "containers": [
                {
                    "env": [
                        {"name": "plain", "value": "x"},
                        {"name": "c", "valueFrom": {"configMapKeyRef": {"name": "c", "key": "k"}}},
                        {"name": "d", "valueFrom": {"secretKeyRef": {"name": "d", "key": "k"}}},
                        {"name": "f", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                    ]
                }
            ],
        },
        {("ConfigMap", "a"), ("Secret", "b"), ("ConfigMap", "c"), ("Secret", "d")},
    ),
    "optional": (
        {
            "volumes": [
                {"secret": {"secretName": "b", "optional": True}},
                {"configMap": {"name": "a", "optional": True}},
            ],
            "containers": [{"envFrom": [{"secretRef": {"name": "c", "optional": True}}]}],
        },
        set(),
    ),
}


@pytest.mark.parametrize(("pod_spec", "expected"), CASES.values(), ids=CASES.keys())
def test_finds_everything_that_a_pod_can_not_start_without(
    pod_spec: dict[str, Any], expected: set[tuple[str, str]]
) -> None:
    assert references_of(pod_spec) == expected


@pytest.mark.parametrize(
    "spec",
    [{"template": {"spec": {"a": 1}}}, {"jobTemplate": {"spec": {"template": {"spec": {"a": 1}}}}}],
    ids=["deployment", "cron-job"],
)
def test_finds_the_pods_of_a_workload(spec: dict[str, Any]) -> None:
    assert pod_spec_of({"spec": spec}) == {"a": 1}


def test_names_what_a_backup_does_not_hold() -> None:
    wanted = {"ns": {("ConfigMap", "a"), ("Secret", "b")}, "other": {("ConfigMap", "a")}}
    paths = ["kubernetes/objects/namespaces/ns/configmaps/a.json", "kubernetes/records/namespaces/ns/secrets/b.json"]
    assert missing_references(wanted, paths) == ["ns: Secret b", "other: ConfigMap a"]
