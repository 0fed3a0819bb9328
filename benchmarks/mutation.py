"""Mutation tests: how many small mistakes in the decisions of ``domain/`` do its unit tests notice?

mutmut makes one change after the other in a copy of the package (another operator, another number, an argument left
out, another word, …) and runs the tests of ``tests/unit/domain`` that reach the changed function. A mutant is *killed*
when one of them fails. Nothing is left out of the count, the wording of messages neither; what is in no function
(constants, tables) is not mutated.

mutmut leaves out decorated functions. In the copy a property is therefore written as a method and an assignment, which
means the same, so that properties are mutated too.

Everything happens in ``.lab/mutation``. A run that was stopped goes on where it was; when the package, its tests or
mutmut have changed it starts over. Survivors are listed in the result; look at one with::

    cd .lab/mutation && ../../.venv/bin/mutmut show NAME
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from mutmut.stats import status_by_exit_code

from benchmarks.results_file import publish

PROJECT = Path(__file__).resolve().parent.parent
WORKSPACE = PROJECT / ".lab" / "mutation"
PACKAGE, TESTS = Path("nephoran_maintenance"), Path("tests/unit/domain")
DECISIONS = ("gate", "order", "plan", "journal", "rollout")
"""The modules that must reach the least ratio each, not only together with the others."""
MODULES = (*DECISIONS, "stepping", "pod_failures", "upgrade", "lease", "recovery")
LEAST_KILLED_RATIO = 0.9
LEFT_OUT = ("test_gate_power.py",)
"""Tests of a benchmark, which need more than the package."""
PROCESSES = 2
PROGRESS_SECONDS = 15
MUTMUT = (sys.executable, "-c", "from mutmut.__main__ import cli; cli()")
"""``python -m mutmut`` imports its main module twice, which it warns of."""

SETTINGS = f"""
[tool.mutmut]
source_paths = ["{PACKAGE}"]
only_mutate = {json.dumps([f"{PACKAGE}/domain/{module}.py" for module in MODULES])}
pytest_add_cli_args_test_selection = ["{TESTS}"]
use_git_change_detection = false
"""
PROPERTY = re.compile(
    r"^    @(cached_property|property)\n    def (\w+)(\(self\).*?)(?=^    [@#\w]|^\S|\Z)", re.M | re.S
)


def main() -> None:
    """Run what has no result yet, publish the figures, fail below the least ratio."""
    prepare()
    run()
    if any("not checked" in statuses(module).values() for module in MODULES):
        sys.exit("not finished: the same command goes on")
    modules = {module: counted(module) for module in MODULES}
    total = with_ratio({key: sum(figures[key] for figures in modules.values()) for key in modules["gate"]})
    publish(
        "mutation",
        {
            "tool": f"mutmut {metadata.version('mutmut')}",
            "total": total,
            "modules": {module: with_ratio(figures) for module, figures in modules.items()},
            "survivors": {module: survivors(module) for module in MODULES},
        },
    )
    low = [module for module in DECISIONS if with_ratio(modules[module])["killed_ratio"] < LEAST_KILLED_RATIO]
    if low or total["killed_ratio"] < LEAST_KILLED_RATIO:
        sys.exit(f"below {LEAST_KILLED_RATIO:.0%}: {', '.join(low) or 'the total'}")


def prepare() -> None:
    """Make the copy that is mutated, unless it is there already for exactly these files."""
    package, tests = dict(files(PROJECT / "plugins" / PACKAGE)), dict(files(PROJECT / TESTS))
    digest = hashlib.sha256(repr((package, tests, SETTINGS, metadata.version("mutmut"))).encode()).hexdigest()
    mark = WORKSPACE / "digest"
    if mark.exists() and mark.read_text(encoding="utf-8") == digest:
        return
    shutil.rmtree(WORKSPACE, ignore_errors=True)
    for root, found in ((PACKAGE, package), (TESTS, tests)):
        for name, text in found.items():
            target = WORKSPACE / root / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(undecorated(text) if root == PACKAGE else text, encoding="utf-8")
    for name in LEFT_OUT:
        (WORKSPACE / TESTS / name).unlink()
    (WORKSPACE / "include").symlink_to(PROJECT / "include")
    settings = (PROJECT / "pyproject.toml").read_text(encoding="utf-8")
    (WORKSPACE / "pyproject.toml").write_text(settings + SETTINGS, encoding="utf-8")
    mark.write_text(digest, encoding="utf-8")


def files(root: Path) -> Iterator[tuple[str, str]]:
    """Yield path and text of each Python file below a folder."""
    for path in sorted(root.rglob("*.py")):
        yield str(path.relative_to(root)), path.read_text(encoding="utf-8")


def undecorated(text: str) -> str:
    """Return a module with each property as a method and an assignment: ``x = property(computed_x)``."""
    written = PROPERTY.sub(
        lambda m: f"    def computed_{m[2]}{m[3].rstrip()}\n\n    {m[2]} = {m[1]}(computed_{m[2]})\n\n", text
    )
    assert not re.search(r"^\s*@(cached_)?property$", written, re.M), "a property that would not be mutated"
    return written


def run() -> None:
    """Let mutmut do what has no result yet, with a line of its progress now and then."""
    command = (*MUTMUT, "run", "--max-children", str(PROCESSES))
    said, next_at = "", 0.0
    # In text mode a carriage return ends a line too, and mutmut's counter uses nothing else.
    with subprocess.Popen(
        command, cwd=WORKSPACE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as mutmut:
        assert mutmut.stdout
        for line in mutmut.stdout:
            said = line.strip() or said
            if time.monotonic() >= next_at:
                print(said, flush=True)
                next_at = time.monotonic() + PROGRESS_SECONDS
    if mutmut.returncode:
        sys.exit(f"mutmut ended with {mutmut.returncode}: {said}")


def statuses(module: str) -> dict[str, str]:
    """Return the status of each mutant of a module by its name, in mutmut's words."""
    kept = WORKSPACE / "mutants" / PACKAGE / "domain" / f"{module}.py.meta"
    codes = json.loads(kept.read_text(encoding="utf-8"))["exit_code_by_key"]
    return {name: status_by_exit_code[code] for name, code in codes.items()}


def counted(module: str) -> dict[str, int]:
    """Return how the mutants of a module ended; what no test reaches has survived."""
    found = Counter(statuses(module).values())
    killed, timeouts = found["killed"], found["timeout"]
    return {
        "mutants": found.total(),
        "killed": killed,
        "timeouts": timeouts,
        "survived": found.total() - killed - timeouts,
    }


def with_ratio(figures: dict[str, int]) -> dict[str, Any]:
    """Return the figures with the share of mutants that a test has failed on; a timeout is none."""
    return {**figures, "killed_ratio": round(figures["killed"] / figures["mutants"], 4)}


def survivors(module: str) -> list[str]:
    """Return the names of the mutants that no test has failed on."""
    return sorted(name for name, status in statuses(module).items() if status != "killed")


if __name__ == "__main__":
    main()
