"""What docs/how-to/restore-by-hand.md says of kubectl brings a lost namespace back, by its own commands.

What comes before it, fetching and opening a backup, is in the unit tier.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from lab.tools import ensure_tools
from nephoran_maintenance.engine.sources import KubernetesObjects
from nephoran_maintenance.hooks.cluster import ClusterHook

if TYPE_CHECKING:
    from conftest import Lab

PAGE = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "restore-by-hand.md"
NAMESPACE = "restore-by-hand"
KINDS = ("serviceaccount", "secret", "configmap", "service", "deployment", "role", "rolebinding")
POD = {"containers": [{"name": "c", "image": "registry.invalid/nothing:v1"}]}
SUBJECT = {"kind": "ServiceAccount", "name": "reader", "namespace": NAMESPACE}
REFERENCE = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "reader"}


def thing(kind: str, name: str, api_version: str = "v1", **fields: Any) -> dict[str, Any]:
    metadata = {"name": name, "namespace": NAMESPACE, "labels": {"app": "restored"}}
    return {"apiVersion": api_version, "kind": kind, "metadata": metadata, **fields}


OBJECTS = [
    thing("ServiceAccount", "reader"),
    thing("Secret", "key", type="Opaque", data={"key": "c2VjcmV0"}),
    thing("ConfigMap", "settings", data={"a": "b"}),
    thing("Service", "web", spec={"selector": {"app": "restored"}, "ports": [{"port": 80, "protocol": "TCP"}]}),
    thing(
        "Deployment",
        "web",
        "apps/v1",
        spec={
            "replicas": 0,
            "selector": {"matchLabels": {"app": "restored"}},
            "template": {"metadata": {"labels": {"app": "restored"}}, "spec": POD},
        },
    ),
    thing(
        "Role",
        "reader",
        "rbac.authorization.k8s.io/v1",
        rules=[{"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}],
    ),
    thing("RoleBinding", "reader", "rbac.authorization.k8s.io/v1", subjects=[SUBJECT], roleRef=REFERENCE),
]


def state(lab: Lab) -> dict[tuple[str, str], dict[str, Any]]:
    """Return what people have set of every object, whatever the server adds."""
    found = {}
    for kind in KINDS:
        for item in lab.get(kind, namespace=NAMESPACE)["items"]:
            name = item["metadata"]["name"]
            if name in ("default", "kube-root-ca.crt"):
                continue
            kept = {key: item.get(key) for key in ("data", "type", "rules", "subjects", "roleRef")}
            spec = dict(item.get("spec") or {})
            for given_by_the_server in ("clusterIP", "clusterIPs"):
                spec.pop(given_by_the_server, None)
            found[kind, name] = {**kept, "spec": spec, "labels": item["metadata"].get("labels")}
    return found


@pytest.fixture
def namespace(lab: Lab) -> Iterator[str]:
    lab.kubectl("create", "namespace", NAMESPACE)
    lab.kubectl("label", "namespace", NAMESPACE, "kept=yes")
    try:
        lab.kubectl(
            "apply",
            "--server-side",
            "--filename=-",
            input=json.dumps({"apiVersion": "v1", "kind": "List", "items": OBJECTS}),
        )
        yield NAMESPACE
    finally:
        lab.kubectl("delete", "namespace", NAMESPACE, "--ignore-not-found", "--wait=true")


def test_a_lost_namespace_comes_back(lab: Lab, namespace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    extra = {"kube_config_path": str(lab.config.kubeconfig)}
    monkeypatch.setenv("AIRFLOW_CONN_ADMINISTRATOR", json.dumps({"conn_type": "kubernetes", "extra": extra}))
    source = KubernetesObjects(
        ClusterHook("administrator"), namespaces=[namespace], own_namespace="nephoran-maintenance"
    )
    for member in source.members():
        path = tmp_path / "plain" / "kubernetes-objects" / member.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"".join(member.chunks))
    before = state(lab)
    assert len(before) == len(OBJECTS)
    lab.kubectl("delete", "namespace", namespace, "--wait=true")

    section = PAGE.read_text(encoding="utf-8").partition("\n## 4. Put the objects back\n")[2].partition("\n## ")[0]
    (commands,) = re.findall(r"^```sh\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    tools = ensure_tools(lambda *_: None, ["kubernetes"])["kubectl"].parent
    environment = {
        "PATH": f"{tools}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "WORK": str(tmp_path),
        "KUBECONFIG": str(lab.config.kubeconfig),
    }
    done = subprocess.run(
        ["bash", "-c", f"set -euo pipefail\n{commands}"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert state(lab) == before
    assert lab.get("namespace", namespace)["metadata"]["labels"]["kept"] == "yes"
