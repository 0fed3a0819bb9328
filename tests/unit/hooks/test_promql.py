"""The queries of the gates: all are there, every placeholder is filled in, and a pod's name is recognised."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path

import pytest

from nephoran_maintenance.domain.gate import QUERIES
from nephoran_maintenance.errors import PermanentError
from nephoran_maintenance.hooks import promql
from nephoran_maintenance.hooks.promql import POD_NAMES, read_queries
from nephoran_maintenance.profile import load_profile
from nephoran_maintenance.settings import PROJECT_ROOT

SHIPPED = load_profile(PROJECT_ROOT / "include" / "profiles" / "nephoran.yaml")
GATED = [component.name for component in SHIPPED.components if component.gate]


def queries(component: str, kind: str = "Deployment") -> dict[str, str]:
    window = timedelta(minutes=1)
    return read_queries(component, QUERIES, namespace="ns", kind=kind, workload="rag", window=window)


@pytest.mark.parametrize("component", GATED)
def test_a_component_with_a_gate_has_every_query(component: str) -> None:
    found = queries(component)
    assert set(found) == set(QUERIES)
    for name, text in found.items():
        assert "$" not in text
        assert 'namespace="ns", pod=~"rag-[a-z0-9]+-[a-z0-9]+"' in text
        assert ("[60s]" in text) == (name != "scraped_seconds_ago")
        assert re.search(r"by \(pod(, le)?\)", text)
        assert text.startswith("# ")


def test_no_query_is_left_over() -> None:
    files = {path.relative_to(promql.FOLDER) for path in promql.FOLDER.rglob("*") if path.is_file()}
    assert files == {Path(component) / f"{name}.promql" for component in GATED for name in QUERIES}


@pytest.mark.parametrize(
    ("kind", "pod", "other"),
    [
        ("Deployment", "rag-7d9f8c6b5-x2x4z", "rag-api-7d9f8c6b5-x2x4z"),
        ("StatefulSet", "rag-0", "rag-7d9f8c6b5-x2x4z"),
        ("DaemonSet", "rag-x2x4z", "rag-7d9f8c6b5-x2x4z"),
    ],
)
def test_pods_of_a_workload_are_told_from_those_of_others(kind: str, pod: str, other: str) -> None:
    pattern = POD_NAMES[kind].format(name="rag")
    assert re.fullmatch(pattern, pod)
    assert not re.fullmatch(pattern, other)


def test_a_component_without_queries_is_named() -> None:
    with pytest.raises(PermanentError) as error:
        queries("weaviate")
    assert error.value.reference == "gate-queries-missing"
    assert "include/promql/weaviate/requests.promql" in error.value.message


def test_an_unknown_placeholder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(promql, "FOLDER", tmp_path / "include" / "promql")
    (promql.FOLDER / "rag-api").mkdir(parents=True)
    (promql.FOLDER / "rag-api" / "requests.promql").write_text("rate(x[$interval])")
    with pytest.raises(PermanentError, match=r"none of \$namespace, \$pods, \$window") as error:
        queries("rag-api")
    assert error.value.reference == "prometheus-query-invalid"
