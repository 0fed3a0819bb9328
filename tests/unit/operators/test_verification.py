"""The last look at everything, and the functional test: what they find that single steps did not."""

from __future__ import annotations

import copy
from datetime import timedelta
from typing import Any

import pytest

from nephoran_maintenance.operators import functional_test
from tests.unit.fake_cluster import INTENT_GROUPS, digest_of
from tests.unit.operators.conftest import System


def touched(system: System, change: Any) -> Any:
    """Return a step before which the pods of rag-api have changed."""

    def execute(step: Any, context: Any) -> Any:
        for pod in system.cluster.pods_of("rag-api"):
            change(pod["status"], pod["status"]["containerStatuses"][1])
        return step.execute(context)

    return execute


def restarted(status: Any, container: Any) -> None:
    container["restartCount"] += 1


def other_digest(status: Any, container: Any) -> None:
    container["imageID"] = f"r/rag-api@{digest_of('another image')}"


def no_digest(status: Any, container: Any) -> None:
    container["imageID"] = ""


def not_ready(status: Any, container: Any) -> None:
    status["conditions"][1]["status"] = "False"


@pytest.mark.parametrize(
    ("change", "reference", "part"),
    [
        (restarted, "restarted-after-ready", "was restarted 1 times after it was ready"),
        (other_digest, "digest-differs", "planned was sha256:"),
        (no_digest, "digest-differs", "runs None"),
        (not_ready, "health-check-failed", "answers 503"),
    ],
    ids=["restart", "other digest", "digest not measured", "not ready"],
)
def test_the_last_look_takes_everything_back(system: System, change: Any, reference: str, part: str) -> None:
    before = system.specs()
    run = system.upgrade(components=["rag-api"], replaced={"verify_components": touched(system, change)})
    assert f"[{reference}]" in run.error("verify_components")
    assert part in run.error("verify_components")
    assert run.report["overall"] == "rolled-back"
    assert system.specs() == before


def test_a_template_that_others_changed_after_it_was_verified_is_seen(system: System) -> None:
    def execute(step: Any, context: Any) -> Any:
        system.cluster.edit("rag-api", lambda w: w["spec"]["template"]["metadata"].update(annotations={"by": "x"}))
        return step.execute(context)

    run = system.upgrade(components=["rag-api"], replaced={"verify_components": execute})
    assert "[object-changed-by-others]" in run.error("verify_components")
    assert run.report["overall"] == "failed"
    assert system.journal().state == "open"


def test_a_registry_that_gives_out_another_image_than_planned_is_caught_at_once(system: System) -> None:
    system.cluster.digest = lambda image: digest_of("moved") if "v3" in image else digest_of(image)  # type: ignore[method-assign]
    system.outside.tags["nephoran/rag-api:v3"] = digest_of("planned")
    run = system.upgrade(components=["rag-api"], version="v3")
    assert "[digest-differs]" in run.error("components.rag_api.wait_image")
    assert run.report["overall"] == "rolled-back"


def test_pods_with_another_image_than_the_template_are_no_proof(system: System) -> None:
    """An admission webhook that rewrites images: the rollout is complete, but nothing was asked for its health."""
    start = system.cluster._start

    def rewriting(workload: Any, *arguments: Any) -> None:
        workload = copy.deepcopy(workload)
        for container in workload["spec"]["template"]["spec"]["containers"]:
            container["image"] = container["image"].replace(system.cluster.registry, "mirror.example")
        start(workload, *arguments)

    system.cluster._start = rewriting  # type: ignore[method-assign]
    run = system.upgrade(components=["rag-api"])
    assert "[pods-not-ready]" in run.error("components.rag_api.wait_image")
    assert run.report["overall"] != "succeeded"


# ------------------------------------------------------------------------------------------------- the functional test


def test_one_intent_per_served_group_goes_in_and_out_again(system: System) -> None:
    created: list[Any] = []
    system.cluster.before = lambda r: (
        created.append(r.json) if r.method == "POST" and r.path.endswith("/networkintents") else None
    )
    run = system.upgrade(components=["rag-api"])
    assert {body["apiVersion"] for body in created} == {f"{group}/v1" for group in INTENT_GROUPS}
    names = {body["metadata"]["name"] for body in created}
    assert names == {f"test-{run.report['operation_id']}"}
    assert all(body["spec"]["intent"] == "deploy AMF with 2 replicas" for body in created)
    assert not [path for path in system.cluster.objects if "/networkintents/" in path]


def test_a_cluster_without_networkintents_can_not_be_tested(system: System) -> None:
    for path in [path for path in system.cluster.objects if "customresourcedefinitions" in path]:
        del system.cluster.objects[path]
    run = system.upgrade(components=["rag-api"])
    assert "[no-intent-kind]" in run.error("functional_test.apply_test_intents")
    assert run.report["overall"] == "rolled-back"


def test_an_intent_whose_finalizer_does_not_run_is_named(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(functional_test, "DELETION_LIMIT", timedelta())
    system.cluster.keep_intents = True
    run = system.upgrade(components=["rag-api"])
    error = run.error("functional_test.delete_test_intents")
    assert "[test-intent-left]" in error
    assert all(f"networkintents.{group}/test-{run.report['operation_id']}" in error for group in INTENT_GROUPS)
    assert {test["deleted"] for test in run.report["functional_test"]} == {"not measured"}
    assert run.report["overall"] == "rolled-back"


def test_the_deletion_waits_for_the_finalizer(system: System) -> None:
    looks = 0

    def count(request: Any) -> None:
        nonlocal looks
        if request.method == "DELETE" and "/networkintents/" in request.path:
            system.cluster.keep_intents = True
        looks += request.method == "GET" and "/networkintents/" in request.path and system.cluster.keep_intents
        if looks == 6:
            for path in [path for path in system.cluster.objects if "/networkintents/" in path]:
                del system.cluster.objects[path]

    system.cluster.before = count
    run = system.upgrade(components=["rag-api"])
    assert run.report["overall"] == "succeeded"
    assert looks >= 6


def test_an_intent_that_stays_in_work_fails_at_the_limit(system: System, fast_clock: None) -> None:
    system.cluster.intent_phase = "Processing"
    run = system.upgrade(components=["rag-api"])
    assert "[functional-test-failed]" in run.error("functional_test.wait_test_intents")
    assert "is Processing" in run.error("functional_test.wait_test_intents")
    assert "limit_seconds=120" in run.error("functional_test.wait_test_intents")
