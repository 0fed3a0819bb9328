"""Names of modules: Airflow imports a plugin file under its stem, where it would shadow a library of that name."""

from __future__ import annotations

import sys
import warnings
from importlib import metadata
from pathlib import Path

import pytest

from tests.dags.conftest import PROJECT

PACKAGE = PROJECT / "plugins" / "nephoran_maintenance"
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")
INSTALLED = {name for name, owners in metadata.packages_distributions().items() if owners}
# The design names this module; Airflow never sees it, see the test of .airflowignore below.
ALLOWED_IN_THE_PACKAGE = {"profile"}


def collides(stem: str) -> bool:
    return stem in INSTALLED or stem in sys.stdlib_module_names


def test_the_modules_are_found() -> None:
    assert len(MODULES) > 30
    assert collides("kubernetes")
    assert collides("json")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_a_module_is_called_like_no_library(path: Path) -> None:
    assert not collides(path.stem) or path.stem in ALLOWED_IN_THE_PACKAGE


def test_airflows_plugin_scan_imports_only_files_with_names_of_their_own() -> None:
    from airflow.sdk._shared.module_loading import find_path_from_directory

    with warnings.catch_warnings():
        # Airflow 3.3.2 still asks pathspec for its old name of the pattern; a later Airflow makes this needless.
        warnings.simplefilter("ignore", DeprecationWarning)
        found = [Path(name) for name in find_path_from_directory(str(PROJECT / "plugins"), ".airflowignore")]
    scanned = [path for path in found if path.suffix == ".py"]
    assert not [path for path in scanned if PACKAGE in path.parents], "the package would be imported file by file"
    assert not [path.stem for path in scanned if collides(path.stem)]


@pytest.mark.parametrize("path", sorted((PROJECT / "dags").glob("*.py")), ids=lambda path: path.stem)
def test_a_procedure_is_called_like_no_library(path: Path) -> None:
    assert not collides(path.stem)
