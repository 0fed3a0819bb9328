"""NetworkIntents: which kinds a cluster has, which are in work, and the ones that the functional test creates."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from nephoran_maintenance.errors import PermanentError
from nephoran_maintenance.profile import Intents
from nephoran_maintenance.settings import OPERATION_LABEL

JsonObject = Mapping[str, Any]
PLURAL = "networkintents"


@dataclass(frozen=True)
class IntentKind:
    """One served kind of NetworkIntent; always named with its group, since two groups share the plural."""

    group: str
    version: str
    schema: Mapping[str, Any]
    plural: str = PLURAL

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}"

    def reference(self, namespace: str, name: str) -> dict[str, str]:
        """Return the address of an object of this kind."""
        return {
            "group": self.group,
            "version": self.version,
            "plural": self.plural,
            "namespace": namespace,
            "name": name,
        }


def served_kinds(crds: Sequence[JsonObject], intents: Intents) -> list[IntentKind]:
    """Return the NetworkIntent kinds that the cluster serves, one version for each group.

    :param crds: all CustomResourceDefinitions of the cluster.
    """
    kinds = []
    for crd in crds:
        spec = crd["spec"]
        if spec["names"]["plural"] != PLURAL:
            continue
        if intents.groups != "auto" and spec["group"] not in intents.groups:
            continue
        served = [version for version in spec["versions"] if version.get("served")]
        if not served:
            continue
        version = next((v for v in served if v.get("storage")), served[0])
        schema = ((version.get("schema") or {}).get("openAPIV3Schema") or {}).get("properties", {}).get("spec", {})
        kinds.append(IntentKind(spec["group"], version["name"], schema))
    return sorted(kinds, key=lambda kind: kind.group)


def sandbox_intent(kind: IntentKind, intents: Intents, operation: str) -> dict[str, Any]:
    """Return a NetworkIntent that is valid for this kind and harmless: source ``test``, a sandbox as target.

    The shape follows the kind's own schema: one with a text (``spec.intent``) gets the profile's text, cut to what its
    pattern allows; one without gets a scaling intent.

    :raises PermanentError: ``test-intent-impossible`` when the text can't be made to fit the schema.
    """
    properties = kind.schema.get("properties") or {}
    spec: dict[str, Any]
    if "intent" in properties:
        spec = {"intent": _fitting_text(properties["intent"], intents.test_text), "intentType": "deployment"}
    else:
        spec = {
            "intentType": "scaling",
            "namespace": intents.test_namespace,
            "target": intents.test_target,
            "replicas": 1,
        }
    if "source" in properties:
        spec["source"] = "test"
    spec = {key: value for key, value in spec.items() if key in properties or not properties}
    missing = sorted(set(kind.schema.get("required") or ()) - set(spec))
    if missing:
        raise PermanentError(
            "test-intent-impossible",
            f"{PLURAL}.{kind.api_version} requires {', '.join(missing)}, which the functional test can't make up",
            context={"kind": f"{PLURAL}.{kind.group}"},
            hint="Leave this group out in the profile (intents.groups), or extend the functional test.",
        )
    return {
        "apiVersion": kind.api_version,
        "kind": "NetworkIntent",
        "metadata": {
            "name": test_intent_name(operation),
            "namespace": intents.test_namespace,
            "labels": {OPERATION_LABEL: operation},
        },
        "spec": spec,
    }


def test_intent_name(operation: str) -> str:
    """Return the name of an operation's test intents."""
    return f"test-{operation}"


def _fitting_text(schema: JsonObject, text: str) -> str:
    pattern = schema.get("pattern")
    limit = int(schema.get("maxLength", len(text)))
    fitting = text[:limit]
    if pattern and not re.search(pattern, fitting):
        fitting = " ".join(re.sub(r"[^A-Za-z0-9 ]", " ", fitting).split())
    if pattern and not re.search(pattern, fitting):
        raise PermanentError(
            "test-intent-impossible",
            f"the test text {text!r} does not match the intent's pattern {pattern}",
            hint="Change intents.test_text in the profile.",
        )
    return fitting


def phase_of(intent: JsonObject) -> str:
    """Return ``.status.phase``; empty when the controller has not written one."""
    return str((intent.get("status") or {}).get("phase") or "")


def phase_verdict(phase: str, intents: Intents) -> Literal["success", "failure", "waiting"]:
    """Return what a phase means; one that the profile does not know is still waiting."""
    if phase in intents.success:
        return "success"
    return "failure" if phase in intents.failure else "waiting"


def count_active(found: Sequence[JsonObject], intents: Intents) -> int:
    """Return how many intents are in work: neither done nor failed; one without a phase is in work too."""
    return sum(1 for intent in found if phase_verdict(phase_of(intent), intents) == "waiting")
