"""What the documents say is so: generated text is fresh, links lead somewhere, commands and errors exist."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, get_args, get_origin

import pytest
from pydantic import BaseModel

PROJECT = Path(__file__).resolve().parents[2]
DOCUMENTS = [PROJECT / "README.md", *sorted((PROJECT / "docs").rglob("*.md"))]
ERROR_CLASSES = {"MaintenanceError", "PermanentError", "TransientError", "UnknownStateError"}
LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(#[^)\s]+)?\)")
FENCE = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)


def short_name(path: Path) -> str:
    return str(path.relative_to(PROJECT))


def load_generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_generate", PROJECT / "docs" / "generate.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    # Its dataclass looks itself up by module name.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def anchors(document: Path) -> set[str]:
    """Return the anchors of a document: explicit ones, and headings the way GitHub makes anchors of them."""
    text = document.read_text(encoding="utf-8")
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    made = {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}
    return made | set(re.findall(r'<a id="([^"]+)">', text))


# -- runbooks ---------------------------------------------------------------------------------------------------------


def test_runbooks_are_what_the_dags_say() -> None:
    generator = load_generator()
    written = (PROJECT / "docs" / "runbooks.md").read_text(encoding="utf-8")
    assert written == generator.generated(), "run `make docs`"


def test_every_dag_has_a_runbook() -> None:
    runbooks = (PROJECT / "docs" / "runbooks.md").read_text(encoding="utf-8")
    dags = [path.stem for path in (PROJECT / "dags").glob("*.py")]
    assert dags
    assert all(f'<a id="{dag}"></a>' in runbooks for dag in dags)


# -- links and commands -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("document", DOCUMENTS, ids=short_name)
def test_links_lead_somewhere(document: Path) -> None:
    for target, anchor in LINK.findall(document.read_text(encoding="utf-8")):
        path = (document.parent / target).resolve() if target else document
        assert path.exists(), f"{short_name(document)} links to {target}"
        if anchor and path.suffix == ".md":
            assert anchor[1:] in anchors(path), f"{short_name(document)} links to {target}{anchor}"


def commands() -> Iterator[tuple[Path, str]]:
    for document in DOCUMENTS:
        for block in FENCE.findall(document.read_text(encoding="utf-8")):
            for line in block.splitlines():
                command = line.split("#")[0].strip()
                if command:
                    yield document, command


def make_targets() -> set[str]:
    makefile = (PROJECT / "Makefile").read_text(encoding="utf-8")
    return set(re.findall(r"^([a-z][a-z-]*):", makefile, re.MULTILINE))


def test_make_targets_in_the_documents_exist() -> None:
    mentioned = {word for _, line in commands() for word in re.findall(r"^make ([a-z-]+)", line)}
    for document in DOCUMENTS:
        mentioned |= set(re.findall(r"`make ([a-z-]+)`", document.read_text(encoding="utf-8")))
    assert {"demo", "down", "test"} <= mentioned
    assert mentioned <= make_targets()


def test_every_make_target_is_listed_by_make_help() -> None:
    makefile = (PROJECT / "Makefile").read_text(encoding="utf-8")
    listed = set(re.findall(r"^([a-z][a-z-]*):.*## ", makefile, re.MULTILINE))
    assert make_targets() == listed


def test_lab_commands_in_the_documents_exist() -> None:
    pytest.importorskip("lab.__main__")
    from lab import airflow

    accepted = set(
        re.findall(r"\bup\b|\bdown\b|\bstatus\b|\blogins\b|\bconnect\b", str(airflow.main.__code__.co_consts))
    )
    used = {word for _, line in commands() for word in re.findall(r"-m lab\.airflow (\w+)", line)}
    assert used
    assert used <= accepted
    known = set(re.findall(r'"(\w+)": _\w+', (PROJECT / "lab" / "__main__.py").read_text(encoding="utf-8")))
    used = {word for _, line in commands() for word in re.findall(r"-m lab (\w+)", line)}
    assert used <= known


def test_files_named_in_commands_exist() -> None:
    for document, line in commands():
        for name in re.findall(r"(?:--filename |cp )((?!\.env\b)[\w./-]+)", line):
            assert (PROJECT / name).exists(), f"{short_name(document)}: {line}"


# -- profile ----------------------------------------------------------------------------------------------------------


def profile_keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Return every key of the profile that holds a value: `a.b`, `list[].key`, `mapping.*.key`."""
    for name, field in model.model_fields.items():
        yield from _keys_of(field.annotation, f"{prefix}{name}")


def _keys_of(annotation: Any, name: str) -> Iterator[str]:
    parts = [annotation, *get_args(annotation)]
    inner = next((part for part in parts if isinstance(part, type) and issubclass(part, BaseModel)), None)
    if inner is None:
        yield name
        return
    gap = {tuple: "[]", dict: ".*"}.get(get_origin(annotation) or type(None), "")
    yield from profile_keys(inner, f"{name}{gap}.")


def test_every_key_of_the_profile_has_its_row_and_no_other_has_one() -> None:
    from nephoran_maintenance.profile import SystemProfile

    page = (PROJECT / "docs" / "reference" / "profile.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `([^`]+)` \|", page, re.MULTILINE)) == set(profile_keys(SystemProfile))


# -- gates ------------------------------------------------------------------------------------------------------------

GATES_PAGE = PROJECT / "docs" / "reference" / "gates.md"


def test_every_reason_for_an_unknown_gate_has_its_row() -> None:
    from nephoran_maintenance.domain.gate import HINTS

    unknown = GATES_PAGE.read_text(encoding="utf-8").partition("## Unknown")[2].partition("\n## ")[0]
    assert set(re.findall(r"^\| `([^`]+)` \|", unknown, re.MULTILINE)) == set(HINTS)


def test_the_command_that_replays_a_verdict_works(tmp_path: Path) -> None:
    from datetime import UTC, datetime

    from nephoran_maintenance.domain.gate import Recording, head_line
    from nephoran_maintenance.profile import Gate

    recording = Recording("rag-api", ("error_ratio",), Gate(), datetime(2026, 11, 23, tzinfo=UTC))
    (tmp_path / "gate-samples-rag-api.jsonl").write_text(json.dumps(head_line(recording)), encoding="utf-8")
    (line,) = [line for document, line in commands() if document == GATES_PAGE]
    environment, program, flag, code, name = shlex.split(line)
    assert (environment, program, flag) == ("PYTHONPATH=plugins", ".venv/bin/python", "-c")
    found = subprocess.run(
        [sys.executable, "-c", code, name],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(PROJECT / "plugins")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout == "None\n", "without a sample there is no verdict yet"


# -- errors -----------------------------------------------------------------------------------------------------------


def raised_references() -> dict[str, list[str]]:
    """Return every error reference in the code as a pattern, with the places that use it.

    A reference that is put together at run time (f"{service}-unreachable") becomes a pattern with a gap.
    """
    found: dict[str, list[str]] = {}
    for path in sorted([*(PROJECT / "plugins").rglob("*.py"), *(PROJECT / "dags").rglob("*.py")]):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and node.args and _called(node) in ERROR_CLASSES:
                for pattern in _patterns(node.args[0]):
                    found.setdefault(pattern, []).append(f"{path.name}:{node.lineno}")
    return found


def _called(call: ast.Call) -> str:
    return call.func.id if isinstance(call.func, ast.Name) else getattr(call.func, "attr", "")


def _patterns(reference: ast.expr) -> list[str]:
    if isinstance(reference, ast.Constant) and isinstance(reference.value, str):
        return [re.escape(reference.value)]
    if isinstance(reference, ast.JoinedStr):
        parts = [re.escape(p.value) if isinstance(p, ast.Constant) else "[a-z-]+" for p in reference.values]
        return ["".join(parts)]
    if isinstance(reference, ast.BoolOp):
        return [pattern for value in reference.values for pattern in _patterns(value)]
    if isinstance(reference, ast.IfExp):
        return _patterns(reference.body) + _patterns(reference.orelse)
    return []


REFERENCES = raised_references()
ERRORS_PAGE = PROJECT / "docs" / "reference" / "errors.md"


def documented_errors() -> dict[str, str]:
    """Return reference to text of each entry of the errors page."""
    entries = re.split(r"^### ", ERRORS_PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    return {entry.splitlines()[0].strip(): "\n".join(entry.splitlines()[1:]).strip() for entry in entries}


def test_the_code_raises_errors_with_references() -> None:
    assert len(REFERENCES) > 20


@pytest.mark.parametrize("pattern", sorted(REFERENCES))
def test_error_has_an_entry(pattern: str) -> None:
    assert any(re.fullmatch(pattern, entry) for entry in documented_errors()), f"raised in {REFERENCES[pattern]}"


def test_every_service_has_entries_for_each_way_it_can_fail() -> None:
    hooks = (PROJECT / "plugins" / "nephoran_maintenance" / "hooks").glob("*.py")
    names = {name for path in hooks for name in re.findall(r'^SERVICE = "([^"]+)"', path.read_text("utf-8"), re.M)}
    assert names
    ways = ("unreachable", "untrusted", "unauthorized", "unavailable", "rejected")
    wanted = {f"{name.lower().replace(' ', '-')}-{way}" for name in names for way in ways}
    assert wanted <= set(documented_errors())


@pytest.mark.parametrize("reference", sorted(documented_errors()))
def test_entry_is_of_an_error_that_exists_and_says_what_to_do(reference: str) -> None:
    source = "".join(path.read_text(encoding="utf-8") for path in (PROJECT / "plugins").rglob("*.py"))
    raised = any(re.fullmatch(pattern, reference) for pattern in REFERENCES)
    assert raised or f'"{reference}"' in source, "nothing raises it any more"
    assert "**Do:**" in documented_errors()[reference]
