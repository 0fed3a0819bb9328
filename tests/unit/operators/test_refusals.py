"""Bad input and a bad environment: one clear error each, a report that says *refused*, and nothing was written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.unit.dag_runner import DagRunner
from tests.unit.fake_cluster import APPS
from tests.unit.hooks.fake_servers import Reply, connection_json, kube_config, status_object
from tests.unit.operators.conftest import System, no_findings

Prepare = Callable[[System, pytest.MonkeyPatch], dict[str, Any]]


def refused_at(run: DagRunner, system: System, step: str) -> str:
    """Return the error of the step that refused; everything around it is as it must be."""
    assert run.surprises == []
    assert run.failed() == [step, "verify_outcome"], {t: run.error(t) for t in run.failed()}
    assert run.report["overall"] == "refused"
    assert [failed["task_id"] for failed in run.report["failed_steps"]] == [step]
    assert system.writes() == [], "a refused run must not write to the cluster"
    error = run.error(step)
    assert run.report["failed_steps"][0]["error"] == error
    assert "Next: " in error, "a refusal names the next action"
    return error


def connect(monkeypatch: pytest.MonkeyPatch, server: str) -> None:
    extra = {"kube_config": kube_config(server)}
    value = connection_json(conn_type="kubernetes", extra=extra)
    monkeypatch.setenv("AIRFLOW_CONN_KUBERNETES_ROLLING_UPGRADE", value)


def unknown_component(system: System, _: pytest.MonkeyPatch) -> dict[str, Any]:
    return {"components": ["rag-api", "rag-appi"]}


def mutable_tag(system: System, _: pytest.MonkeyPatch) -> dict[str, Any]:
    return {"version": "latest"}


def mutable_image(system: System, _: pytest.MonkeyPatch) -> dict[str, Any]:
    return {"images": {"rag-api": f"{system.cluster.registry}/nephoran/rag-api"}}


def nothing_requested(system: System, _: pytest.MonkeyPatch) -> dict[str, Any]:
    return {"version": None}


def image_of_another(system: System, _: pytest.MonkeyPatch) -> dict[str, Any]:
    return {"components": ["weaviate"], "images": {"rag-api": "v2"}}


def wrong_type(system: System, _: pytest.MonkeyPatch) -> dict[str, Any]:
    return {"images": {"rag-api": 2}}


def not_in_the_cluster(system: System, _: pytest.MonkeyPatch) -> dict[str, Any]:
    del system.cluster.objects[f"{APPS}/deployments/rag-api"]
    return {}


def container_not_there(system: System, _: pytest.MonkeyPatch) -> dict[str, Any]:
    system.edit_profile(lambda data: data["components"][1].update(container="rag"))
    return {}


def missing_permission(system: System, _: pytest.MonkeyPatch) -> dict[str, Any]:
    system.cluster.denied = {("patch", "deployments"), ("delete", "pods")}
    return {}


def expired_credentials(system: System, _: pytest.MonkeyPatch) -> dict[str, Any]:
    system.cluster.fail = lambda request: status_object(401, "Unauthorized", "Unauthorized")
    return {}


def unreachable_cluster(system: System, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    connect(monkeypatch, "http://127.0.0.1:1")
    return {}


def starting_api_server(system: System, _: pytest.MonkeyPatch) -> dict[str, Any]:
    system.cluster.fail = lambda request: status_object(503, "ServiceUnavailable", "apiserver is shutting down")
    return {}


def no_connection(system: System, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.delenv("AIRFLOW_CONN_KUBERNETES_ROLLING_UPGRADE")
    return {}


def unknown_key(system: System, _: pytest.MonkeyPatch) -> dict[str, Any]:
    system.edit_profile(lambda data: data["rollout"].update(no_progress_second=5))
    return {}


REQUESTS = [
    (unknown_component, "component-unknown", ["'rag-appi'", "it has weaviate"]),
    (mutable_tag, "image-tag-mutable", ["weaviate:latest", "has a tag that moves"]),
    (mutable_image, "image-tag-mutable", ["rag-api", "has no tag"]),
    (nothing_requested, "nothing-requested", ["weaviate, rag-api, llm-processor"]),
    (image_of_another, "image-for-unchosen-component", ["rag-api"]),
    (wrong_type, "parameters-invalid", ["images.rag-api", "given 2"]),
    (not_in_the_cluster, "component-not-found", ["rag-api", "nephoran-system"]),
    (container_not_there, "container-missing", ["'rag'", "log-shipper, rag-api"]),
    (missing_permission, "permission-missing", ["system:serviceaccount:ns:upgrade", "and 1 more"]),
    (expired_credentials, "cluster-unauthorized", ["kubernetes_rolling_upgrade", "expired"]),
    (unreachable_cluster, "cluster-unreachable", ["127.0.0.1:1", "kubernetes_rolling_upgrade"]),
    (starting_api_server, "cluster-unavailable", ["503", "shutting down"]),
    (no_connection, "connection-missing", ["kubernetes_rolling_upgrade"]),
]


@pytest.mark.parametrize(
    ("prepare", "reference", "parts"), [pytest.param(*row, id=row[0].__name__.replace("_", " ")) for row in REQUESTS]
)
def test_a_bad_request_is_refused_first_of_all(
    system: System, monkeypatch: pytest.MonkeyPatch, prepare: Prepare, reference: str, parts: list[str]
) -> None:
    run = system.upgrade(**prepare(system, monkeypatch))
    error = refused_at(run, system, "check_request")
    assert f"[{reference}]" in error
    for part in parts:
        assert part in error
    assert run.states["plan_changes"] == "upstream_failed"
    tries = run.order.count("check_request")
    transient = reference in ("cluster-unreachable", "cluster-unavailable")
    assert tries == (3 if transient else 1), "only what may go away by itself is tried again"


def test_a_profile_that_became_bad_is_named_by_every_step(system: System) -> None:
    unknown_key(system, pytest.MonkeyPatch())
    run = system.upgrade()
    assert "[profile-invalid]" in run.error("check_request")
    assert "rollout.no_progress_second: unknown key; expected one of no_progress_seconds" in run.error("check_request")
    assert system.writes() == []


def missing_image(system: System) -> dict[str, Any]:
    del system.outside.tags["nephoran/rag-api:v2"]
    return {}


def registry_down(system: System) -> dict[str, Any]:
    system.outside.down.add("v2")
    return {}


def downgrade(system: System) -> dict[str, Any]:
    system.push("v0.9", "rag-api")
    return {"components": ["rag-api"], "version": "v0.9"}


def another_minor_of_weaviate(system: System) -> dict[str, Any]:
    system.push("1.40.0", "weaviate")
    return {"components": ["weaviate"], "version": "1.40.0"}


def older_weaviate(system: System) -> dict[str, Any]:
    system.outside.weaviate_version = "1.39.2"
    return {"components": ["weaviate"], "allow_downgrade": True}


def weaviate_of_unknown_version(system: System) -> dict[str, Any]:
    system.outside.labels = {}
    return {"components": ["weaviate"]}


def weaviate_down(system: System) -> dict[str, Any]:
    system.outside.down.add("v1")
    return {"components": ["weaviate"]}


PLANS = [
    (missing_image, "image-missing", ["rag-api", "the registry does not have", "/nephoran/rag-api:v2"]),
    (registry_down, "image-registry-unavailable", ["503", "the manifest of"]),
    (downgrade, "downgrade-refused", ["rag-api: v0.9 is older than the running v1", "allow_downgrade"]),
    (another_minor_of_weaviate, "weaviate-minor-refused", ["1.39.0", "1.40.0"]),
    (older_weaviate, "weaviate-downgrade-refused", ["1.39.0 is older than the running 1.39.2"]),
    (weaviate_of_unknown_version, "weaviate-version-unknown", ["expected two version numbers"]),
    (weaviate_down, "weaviate-unavailable", ["503"]),
]


@pytest.mark.parametrize(
    ("prepare", "reference", "parts"), [pytest.param(*row, id=row[0].__name__.replace("_", " ")) for row in PLANS]
)
def test_a_target_that_is_not_allowed_is_refused_by_the_plan(
    system: System, prepare: Callable[[System], dict[str, Any]], reference: str, parts: list[str]
) -> None:
    run = system.upgrade(**prepare(system))
    error = refused_at(run, system, "plan_changes")
    assert f"[{reference}]" in error
    for part in parts:
        assert part in error
    assert run.states["record_before_state"] == "upstream_failed"


def test_a_downgrade_that_is_meant_is_planned(system: System) -> None:
    run = system.upgrade(mode="plan", allow_downgrade=True, **downgrade(system))
    assert run.report["overall"] == "planned"


def test_a_registry_that_is_away_once_is_asked_again(system: System) -> None:
    answers = [Reply(503, "once")]
    plain = system.outside._registry
    system.outside._registry = lambda path: answers.pop() if answers else plain(path)  # type: ignore[method-assign]
    run = system.upgrade(mode="plan")
    assert run.report["overall"] == "planned"
    assert run.order.count("plan_changes") == 2
    assert run.report["failed_steps"] == []


def test_a_blocking_finding_ends_the_run_before_the_plan(system: System) -> None:
    def blocking(step: Any, context: Any) -> Any:
        return [{**no_findings(step, context)[0], "severity": "block", "hint": "Wait."}]

    run = system.upgrade(replaced={"preflight.check_pods": blocking})
    error = refused_at(run, system, "preflight.decide_readiness")
    assert "[preflight-blocked]" in error
    assert run.report["findings"][0]["severity"] == "block"


def test_a_run_that_can_not_ask_its_journal_does_not_say_that_nothing_was_changed(
    system: System, fast_clock: None
) -> None:
    """The cluster goes away after the first change: no report may call that refused."""

    def cut(step: Any, context: Any) -> Any:
        try:
            return step.execute(context)
        finally:
            system.cluster.fail = lambda request: status_object(503, "ServiceUnavailable", "gone")

    run = system.upgrade(components=["rag-api"], replaced={"components.rag_api.apply_image": cut})
    assert run.surprises == []
    assert run.states["report_operation"] == "failed"
    assert "[cluster-unavailable]" in run.error("report_operation")
    system.cluster.fail = None
    assert system.journal().state == "open"
