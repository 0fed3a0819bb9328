"""Fill the lab's Weaviate with objects whose ids and titles are known beforehand."""

from __future__ import annotations

import random
import uuid
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import httpx

from lab.config import LabConfig
from lab.failure import LabError
from lab.system.variants import Variant
from lab.waiting import wait_until

KNOWLEDGE = "TelecomKnowledge"
DIMENSIONS = 64
BATCH_SIZE = 500
READY_LIMIT = timedelta(seconds=90)

_TEXT = ["text"]
_LIST = ["text[]"]
CLASSES: dict[str, dict[str, list[str]]] = {
    KNOWLEDGE: {
        "title": _TEXT,
        "content": _TEXT,
        "source": _TEXT,
        "specification": _TEXT,
        "release": _TEXT,
        "domain": _TEXT,
        "keywords": _LIST,
        "networkFunctions": _LIST,
        "interfaces": _LIST,
    },
    "IntentPatterns": {"pattern": _TEXT, "intentType": _TEXT, "parameters": _LIST},
    "NetworkFunctions": {"name": _TEXT, "description": _TEXT, "interfaces": _LIST},
}
"""Class → property → data type, a part of the project's own schema."""

FUNCTIONS = ("AMF", "SMF", "UPF", "NRF", "AUSF", "UDM", "PCF", "NSSF")
INTERFACES = ("N1", "N2", "N3", "N4", "N6", "E2", "A1", "O1")
DOMAINS = ("RAN", "Core", "Transport", "Management")


def object_id(class_name: str, number: int) -> str:
    """Return the id of the n-th object of a class."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"nephoran/{class_name}/{number}"))


def knowledge_title(number: int) -> str:
    """Return the title of the n-th ``TelecomKnowledge`` object."""
    return f"knowledge-{number}"


def expected_counts(variant: Variant) -> dict[str, int]:
    """Return how many objects each class has at least."""
    return {name: variant.knowledge_objects if name == KNOWLEDGE else variant.other_objects for name in CLASSES}


def seed(config: LabConfig, variant: Variant) -> dict[str, int]:
    """Wait until Weaviate's nodes are in step, create missing classes and import missing objects; return the counts.

    Every object is written with consistency level ALL, so each replica has it when this returns.
    Raises ``LabError`` when Weaviate refuses something. Safe to repeat: yes, ids are fixed; complete classes are left alone.
    """
    with client(config) as weaviate:
        wait_until(
            "Weaviate in step on all nodes",
            lambda: in_step(weaviate, variant.weaviate_replicas),
            limit=READY_LIMIT,
            explain=lambda: f"/v1/cluster/statistics answered {_get(weaviate, '/v1/cluster/statistics')}",
        )
        known = {entry["class"] for entry in _checked(weaviate.get("/v1/schema"))["classes"]}
        for name in CLASSES:
            if name not in known:
                _checked(weaviate.post("/v1/schema", json=class_definition(name, variant.weaviate_replicas)))
        for name, wanted in expected_counts(variant).items():
            if count(weaviate, name) < wanted:
                _import(weaviate, name, wanted)
        return {name: count(weaviate, name) for name in CLASSES}


def client(config: LabConfig) -> httpx.Client:
    """Return a client for the lab's Weaviate with its API key."""
    return httpx.Client(
        base_url=config.weaviate_url,
        headers={"Authorization": f"Bearer {config.secret('weaviate-api-key')}"},
        timeout=30,
        trust_env=False,
    )


def in_step(weaviate: httpx.Client, nodes: int) -> bool:
    """Say whether all nodes are known, healthy and synchronized."""
    statistics = _get(weaviate, "/v1/cluster/statistics")
    status = _get(weaviate, "/v1/nodes")
    healthy = [node for node in status.get("nodes") or [] if node.get("status") == "HEALTHY"]
    return bool(statistics.get("synchronized")) and len(statistics.get("statistics") or []) == nodes == len(healthy)


def count(weaviate: httpx.Client, class_name: str) -> int:
    """Return the number of objects of a class."""
    query = f"{{ Aggregate {{ {class_name} {{ meta {{ count }} }} }} }}"
    answer = _checked(weaviate.post("/v1/graphql", json={"query": query}))
    if answer.get("errors"):
        raise LabError(f"Weaviate could not count {class_name}: {answer['errors']}")
    return int(answer["data"]["Aggregate"][class_name][0]["meta"]["count"])


def class_definition(name: str, replicas: int) -> dict[str, Any]:
    """Return the definition of one class: vectors from outside, one shard, a replica on up to three nodes."""
    return {
        "class": name,
        "vectorizer": "none",
        "vectorIndexType": "hnsw",
        "vectorIndexConfig": {"distance": "cosine", "ef": 128, "efConstruction": 256, "maxConnections": 32},
        "shardingConfig": {"desiredCount": 1},
        "replicationConfig": {"factor": min(3, replicas)},
        "properties": [{"name": title, "dataType": kind} for title, kind in CLASSES[name].items()],
    }


def objects(class_name: str, wanted: int) -> Iterator[dict[str, Any]]:
    """Yield the first objects of a class; the same number always gives the same object."""
    for number in range(wanted):
        source = random.Random(f"{class_name}/{number}")
        yield {
            "class": class_name,
            "id": object_id(class_name, number),
            "properties": _properties(class_name, number),
            "vector": [round(source.uniform(-1, 1), 6) for _ in range(DIMENSIONS)],
        }


def _properties(class_name: str, number: int) -> dict[str, Any]:
    function = FUNCTIONS[number % len(FUNCTIONS)]
    interfaces = [INTERFACES[number % len(INTERFACES)], INTERFACES[(number * 3 + 1) % len(INTERFACES)]]
    if class_name == "IntentPatterns":
        pattern = f"deploy {function} with {number % 9 + 1} replicas"
        return {"pattern": pattern, "intentType": "deployment", "parameters": ["function", "replicas"]}
    if class_name == "NetworkFunctions":
        return {"name": f"{function}-{number}", "description": f"{function} of site {number}", "interfaces": interfaces}
    return {
        "title": knowledge_title(number),
        "content": f"Section {number}: how {function} uses {' and '.join(interfaces)}. " * 4,
        "source": "3GPP",
        "specification": f"TS 23.{500 + number % 80}",
        "release": f"Rel-{15 + number % 4}",
        "domain": DOMAINS[number % len(DOMAINS)],
        "keywords": [function.lower(), DOMAINS[number % len(DOMAINS)].lower()],
        "networkFunctions": [function],
        "interfaces": interfaces,
    }


def _import(weaviate: httpx.Client, class_name: str, wanted: int) -> None:
    everything = list(objects(class_name, wanted))
    for start in range(0, wanted, BATCH_SIZE):
        batch = everything[start : start + BATCH_SIZE]
        answer = _checked(
            weaviate.post("/v1/batch/objects", params={"consistency_level": "ALL"}, json={"objects": batch})
        )
        refused = [entry["result"]["errors"] for entry in answer if entry.get("result", {}).get("errors")]
        if refused:
            raise LabError(f"Weaviate refused {len(refused)} of {len(batch)} {class_name} objects: {refused[0]}")


def _get(weaviate: httpx.Client, path: str) -> dict[str, Any]:
    """Return the answer's JSON, an empty dict while Weaviate can't give one."""
    try:
        answer = weaviate.get(path)
        return dict(answer.json()) if answer.status_code == httpx.codes.OK else {}
    except (httpx.HTTPError, ValueError):
        return {}


def _checked(answer: httpx.Response) -> Any:
    if answer.status_code >= httpx.codes.BAD_REQUEST:
        raise LabError(
            f"Weaviate answered {answer.status_code} to {answer.request.method} {answer.request.url.path}: {answer.text[:300]}"
        )
    return answer.json()
