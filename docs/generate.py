"""Write docs/runbooks.md from the docstrings of the DAGs, which are the runbooks.

    python docs/generate.py           writes the file
    python docs/generate.py --check   ends with 1 when the file is not what would be written

The DAG files are parsed, not imported: neither Airflow nor a profile is needed.
"""

from __future__ import annotations

import ast
import sys
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
DAGS = PROJECT / "dags"
RUNBOOKS = PROJECT / "docs" / "runbooks.md"
SHORT_TEXT = 80

PREFACE = """\
<!-- Written by `make docs` from the docstrings in dags/. Change those, not this file. -->

# Runbooks

What a person on call reads. Each procedure shows the same text beside its graph in the Airflow UI.
"""


@dataclass(frozen=True)
class Parameter:
    """What the trigger form says about one parameter."""

    name: str
    default: str
    description: str


@dataclass(frozen=True)
class Runbook:
    """One DAG: its id, its docstring and the parameters of its trigger form."""

    dag_id: str
    text: str
    parameters: tuple[Parameter, ...]


def read_runbook(path: Path) -> Runbook:
    """Return the runbook of a DAG file; raise ValueError when it has no docstring."""
    module = ast.parse(path.read_text(encoding="utf-8"))
    text = ast.get_docstring(module)
    if not text:
        raise ValueError(f"{path.name} has no docstring, and the docstring is the runbook")
    return Runbook(path.stem, text, tuple(_parameters(module)))


def _parameters(module: ast.Module) -> list[Parameter]:
    """Return the parameters of the `params` of the first `@dag(...)` in the file."""
    decorators = [
        decorator
        for function in module.body
        if isinstance(function, ast.FunctionDef)
        for decorator in function.decorator_list
        if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "dag"
    ]
    params = next((word.value for word in decorators[0].keywords if word.arg == "params"), None) if decorators else None
    if not isinstance(params, ast.Dict):
        return []
    return [
        _parameter(ast.literal_eval(name), param)
        for name, param in zip(params.keys, params.values, strict=True)
        if name is not None and isinstance(param, ast.Call)
    ]


def _parameter(name: str, param: ast.Call) -> Parameter:
    words = {word.arg: word.value for word in param.keywords}
    default = param.args[0] if param.args else words.get("default")
    description = words.get("description")
    return Parameter(
        name,
        _readable_default(default),
        " ".join(str(ast.literal_eval(description)).split()) if description is not None else "",
    )


def _readable_default(default: ast.expr | None) -> str:
    if default is None:
        return "required"
    try:
        value = ast.literal_eval(default)
    except ValueError:
        return "from the profile"
    if value is None or value == "":
        return "none"
    text = str(value)
    return f"`{text}`" if len(text) < SHORT_TEXT else "see the form"


def render(runbooks: list[Runbook]) -> str:
    """Return the whole file as text."""
    index = "\n".join(f"- [`{runbook.dag_id}`](#{runbook.dag_id})" for runbook in runbooks)
    return "\n".join([PREFACE, index, *(_section(runbook) for runbook in runbooks)]).rstrip() + "\n"


def _section(runbook: Runbook) -> str:
    # The docstring's own headings go one level down: a procedure is a section of this page.
    lines = [f"#{line}" if line.startswith("#") else line for line in runbook.text.splitlines()]
    parts = [f'\n<a id="{runbook.dag_id}"></a>\n', "\n".join(lines)]
    if runbook.parameters:
        rows = [
            f"| `{parameter.name}` | {parameter.default} | {parameter.description.replace('|', chr(92) + '|')} |"
            for parameter in runbook.parameters
        ]
        parts.append("\n".join(["", "| parameter | default | meaning |", "|---|---|---|", *rows]))
    return "\n".join(parts)


def generated() -> str:
    """Return what docs/runbooks.md should hold now."""
    return render([read_runbook(path) for path in sorted(DAGS.glob("*.py"))])


def main() -> int:
    """Write or check the file; return the exit code."""
    text = generated()
    if sys.argv[1:] == ["--check"]:
        same = RUNBOOKS.exists() and RUNBOOKS.read_text(encoding="utf-8") == text
        if not same:
            print("docs/runbooks.md is not what the DAGs say. Next: make docs", file=sys.stderr)
        return 0 if same else 1
    RUNBOOKS.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
