from __future__ import annotations

import subprocess
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from lab import tools
from lab.failure import LabError
from lab.tools import GoModule, ensure_module, modules

PROGRAM = 'package main\n\nvar version = "none"\n\nfunc main() { println(version) }\n'


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        go = tools.go_program()
    except LabError as problem:
        pytest.skip(str(problem))
    # Go's own cache stays: without it each test would build Go's library first.
    own_cache = subprocess.run([go, "env", "GOCACHE"], capture_output=True, text=True, check=True).stdout.strip()
    monkeypatch.setenv("GOCACHE", own_cache)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def module(tmp_path: Path) -> GoModule:
    folder = tmp_path / "hello"
    (folder / "cmd" / "hello").mkdir(parents=True)
    (folder / "go.mod").write_text("module example.org/hello\n\ngo 1.26\n", encoding="utf-8")
    (folder / "go.sum").write_text("", encoding="utf-8")
    (folder / "cmd" / "hello" / "main.go").write_text(PROGRAM, encoding="utf-8")
    binaries = {"greeter": "example.org/hello/cmd/hello"}
    return GoModule("hello", folder, binaries, ("main.version=v7",), own_source=True)


def test_builds_once_with_its_stamps_even_when_asked_twice_at_once(module: GoModule) -> None:
    stages: list[str] = []
    threads = [threading.Thread(target=ensure_module, args=(module, stages.append)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    paths = ensure_module(module, stages.append)
    assert subprocess.run([paths["greeter"]], capture_output=True, text=True, check=True).stderr == "v7\n"
    assert sum(stage.startswith("built hello in ") for stage in stages) == 1


def test_says_why_a_build_failed_and_leaves_nothing(module: GoModule) -> None:
    (module.folder / "cmd/hello/main.go").write_text("package main\n\nfunc main() { nonsense }\n", encoding="utf-8")
    with pytest.raises(LabError, match="undefined: nonsense"):
        ensure_module(module, lambda stage: None)
    assert not [path for path in tools.tools_folder().iterdir() if path.is_dir() and path.name != "logs"]


def test_digest_changes_with_everything_that_decides_the_outcome(module: GoModule) -> None:
    digests = {module.digest(), replace(module, stamps=("main.version=v8",)).digest()}
    digests.add(replace(module, binaries={"other": "example.org/hello/cmd/hello"}).digest())
    (module.folder / "cmd/hello/main.go").write_text(PROGRAM + "\n// more\n", encoding="utf-8")
    digests.add(module.digest())
    (module.folder / "go.sum").write_text("x", encoding="utf-8")
    digests.add(module.digest())
    assert len(digests) == 5
    (module.folder / "README").write_text("not a source", encoding="utf-8")
    assert module.digest() in digests


def test_kubernetes_is_stamped_with_its_pinned_version() -> None:
    stamps = modules()["kubernetes"].stamps
    assert tools.kubernetes_version().startswith("v1.36.")
    for package in ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version"):
        assert f"{package}.gitVersion={tools.kubernetes_version()}" in stamps
        assert f"{package}.gitMinor=36" in stamps


@pytest.mark.parametrize(
    ("package", "name"),
    [("k8s.io/kubernetes/cmd/kubelet", "kubelet"), ("go.etcd.io/etcd/server/v3", "server"), ("v3", "v3")],
)
def test_knows_what_go_names_a_binary(package: str, name: str) -> None:
    assert tools._default_name(package) == name
