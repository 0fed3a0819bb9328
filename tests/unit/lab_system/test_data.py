"""Seeded objects and metrics history are the same each time and have the shape that their readers count on."""

from __future__ import annotations

import itertools
import re
import uuid

import pytest

from lab.system.history import history, scrape_labels
from lab.system.seed import CLASSES, DIMENSIONS, class_definition, knowledge_title, object_id, objects

SAMPLE = re.compile(r"^(?P<name>\w+)\{(?P<labels>[^}]*)\} (?P<value>\S+) (?P<moment>\S+)$")
TARGETS = [
    {"app": "llm-processor", "instance": f"10.0.0.{n}:8080", "job": "pods", "namespace": "s", "pod": f"p-{n}"}
    for n in (1, 2)
]


def test_known_objects_have_the_ids_and_titles_of_the_profile() -> None:
    expected = str(uuid.uuid5(uuid.NAMESPACE_URL, "nephoran/TelecomKnowledge/7"))
    found = list(objects("TelecomKnowledge", 8))[7]
    assert (found["id"], found["properties"]["title"]) == (expected, "knowledge-7")
    assert (object_id("TelecomKnowledge", 7), knowledge_title(7)) == (expected, "knowledge-7")


@pytest.mark.parametrize("name", CLASSES)
def test_objects_are_the_same_each_time_and_fill_their_class(name: str) -> None:
    first, again = list(objects(name, 5)), list(objects(name, 5))
    assert first == again
    assert {len(entry["vector"]) for entry in first} == {DIMENSIONS}
    assert all(set(entry["properties"]) == set(CLASSES[name]) for entry in first)


def test_classes_have_as_many_replicas_as_there_are_nodes_and_three_at_most() -> None:
    assert [class_definition("TelecomKnowledge", nodes)["replicationConfig"]["factor"] for nodes in (1, 3, 5)] == [
        1,
        3,
        3,
    ]


def series() -> dict[tuple[str, str], list[tuple[float, float]]]:
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for line in history(TARGETS, ended_at=1_800_000_000.0).splitlines():
        if sample := SAMPLE.match(line):
            moments = found.setdefault((sample["name"], sample["labels"]), [])
            moments.append((float(sample["moment"]), float(sample["value"])))
    return found


def test_history_covers_twenty_minutes_up_to_now_and_never_counts_down() -> None:
    for samples in series().values():
        assert (samples[0][0], samples[-1][0]) == (1_800_000_000.0 - 1200, 1_800_000_000.0)
        assert all(before <= after for before, after in itertools.pairwise(value for _, value in samples))


def test_history_has_the_rate_that_it_is_made_for() -> None:
    total = sum(samples[-1][1] for (name, _), samples in series().items() if name == "nephoran_llm_requests_total")
    assert 3.5 < total / 1200 < 4.5


def test_history_ends_as_the_format_wants() -> None:
    assert history(TARGETS, ended_at=1_800_000_000.0).endswith("# EOF\n")


def test_only_processor_pods_with_an_address_have_history() -> None:
    labels = {"app": "llm-processor"}
    pod = {"metadata": {"name": "p", "namespace": "s", "labels": labels}, "status": {"podIP": "10.0.0.1"}}
    assert scrape_labels(pod) == {
        "app": "llm-processor",
        "instance": "10.0.0.1:8080",
        "job": "pods",
        "namespace": "s",
        "pod": "p",
    }
    assert scrape_labels({**pod, "status": {}}) is None
    assert scrape_labels({**pod, "metadata": {"name": "p", "namespace": "s", "labels": {"app": "rag-api"}}}) is None
