"""Build the lab's programs from the Go modules in ``lab/tools``, once per machine.

Each program has a small module of its own, so that one program's dependencies never raise another's. Binaries land in
``<cache>/nephoran-maintenance/tools/<digest>/``; the digest covers everything that decides what comes out, so all
clones of the project share them and a changed pin builds anew.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from lab.failure import LabError

OLDEST_GO = (1, 26)
HEARTBEAT_SECONDS = 15.0
"""How often a running build says that it is still running."""

_FOLDER = Path(__file__).resolve().parent / "tools"
_FLAGS = ("-trimpath", "-buildvcs=false", "-pgo=off")
# -pgo=off: Kubernetes ships profiles that double the build time for speed that a lab doesn't need.
_SOURCE_SUFFIXES = (".go", ".mod", ".sum", ".tmpl", ".html", ".json", ".yaml")

ReportStage = Callable[[str], None]


@dataclass(frozen=True)
class GoModule:
    """Name a Go module and what to build from it.

    ``binaries`` maps the name of each binary to its package. ``stamps`` are ``-X`` assignments for the linker.
    ``own_source`` is true for a module whose own source files count, not only its requirements.
    """

    name: str
    folder: Path
    binaries: Mapping[str, str]
    stamps: tuple[str, ...] = ()
    own_source: bool = False

    @property
    def linker_flags(self) -> str:
        return " ".join(["-s", "-w", *(f"-X {stamp}" for stamp in self.stamps)])

    def digest(self) -> str:
        """Return the name of the folder that this module's binaries belong in."""
        content = hashlib.sha256()
        for part in (go_version(), *_FLAGS, self.linker_flags, *(f"{k}={v}" for k, v in sorted(self.binaries.items()))):
            content.update(part.encode() + b"\0")
        for path in self._inputs():
            content.update(str(path.relative_to(self.folder)).encode() + b"\0" + path.read_bytes() + b"\0")
        return content.hexdigest()[:20]

    def _inputs(self) -> list[Path]:
        if not self.own_source:
            return [self.folder / "go.mod", self.folder / "go.sum"]
        return sorted(path for path in self.folder.rglob("*") if path.suffix in _SOURCE_SUFFIXES and path.is_file())


def kubernetes_version() -> str:
    """Return the pinned version, ``v1.36.4``, as the module's requirements have it."""
    found = re.search(r"k8s\.io/kubernetes (v\S+)", (_FOLDER / "kubernetes/go.mod").read_text(encoding="utf-8"))
    if found is None:
        raise LabError("lab/tools/kubernetes/go.mod does not require k8s.io/kubernetes.")
    return found[1]


def modules() -> dict[str, GoModule]:
    """Return the lab's modules by name, the longest build first."""
    kubernetes = [
        "kube-apiserver",
        "kube-controller-manager",
        "kube-scheduler",
        "kubelet",
        "kube-proxy",
        "kubectl",
    ]
    version = kubernetes_version()
    major, minor = version.removeprefix("v").split(".")[:2]
    # Without the stamps /version has an empty major and minor, and clients that read them as numbers break.
    stamps = tuple(
        f"{package}.{variable}={value}"
        for package in ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")
        for variable, value in (
            ("gitVersion", version),
            ("gitMajor", major),
            ("gitMinor", minor),
            ("gitTreeState", "clean"),
        )
    )
    found = [
        GoModule(
            "kubernetes",
            _FOLDER / "kubernetes",
            {name: f"k8s.io/kubernetes/cmd/{name}" for name in kubernetes},
            stamps,
        ),
        GoModule(
            "weaviate",
            _FOLDER / "weaviate",
            {"weaviate-server": "github.com/weaviate/weaviate/cmd/weaviate-server"},
        ),
        GoModule("coredns", _FOLDER / "coredns", {"coredns": "github.com/coredns/coredns"}),
        GoModule(
            "etcd",
            _FOLDER / "etcd",
            {"etcd": "go.etcd.io/etcd/server/v3", "etcdutl": "go.etcd.io/etcd/etcdutl/v3"},
        ),
        GoModule("versitygw", _FOLDER / "versitygw", {"versitygw": "github.com/versity/versitygw/cmd/versitygw"}),
        GoModule(
            "metrics-server",
            _FOLDER / "metrics-server",
            {"metrics-server": "sigs.k8s.io/metrics-server/cmd/metrics-server"},
        ),
    ]
    return {module.name: module for module in found}


def tools_folder() -> Path:
    """Return the folder that all builds are in; it is made when missing."""
    cache_home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache_home / "nephoran-maintenance" / "tools"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def ensure_tools(progress: ReportStage, names: Iterable[str] | None = None) -> dict[str, Path]:
    """Return the path of each binary, built now where it is missing; ``names`` limits it to some modules.

    A cold build of everything takes some 11 minutes on 2 cores and leaves Go's own caches behind (10 GB).
    Safe to repeat and to run twice at once: the second waits for the first.
    """
    known = modules()
    binaries: dict[str, Path] = {}
    for name in known if names is None else names:
        binaries |= ensure_module(known[name], progress)
    return binaries


def ensure_module(module: GoModule, progress: ReportStage) -> dict[str, Path]:
    """Return the path of each binary of one module, built now where it is missing. Raises ``LabError`` with the log's end."""
    target = tools_folder() / module.digest()
    paths = {name: target / name for name in module.binaries}
    if target.is_dir():
        return paths
    with _only_builder(target.with_suffix(".lock"), module.name, progress):
        if not target.is_dir():
            _build(module, target, progress)
    return paths


def go_program() -> str:
    """Return the path of ``go``; raise ``LabError`` when there is none or it is too old."""
    return _go()[0]


def go_version() -> str:
    """Return what ``go env GOVERSION`` says."""
    return _go()[1]


@cache
def _go() -> tuple[str, str]:
    found = shutil.which("go") or shutil.which("go", path="/usr/local/go/bin:/usr/lib/go/bin")
    wanted = ".".join(map(str, OLDEST_GO))
    if found is None:
        raise LabError("Go was not found.", hint=f"Install Go {wanted} or newer from https://go.dev/dl/.")
    version = subprocess.run(
        [found, "env", "GOVERSION"], cwd=_FOLDER, check=True, capture_output=True, text=True
    ).stdout.strip()
    numbers = re.match(r"go(\d+)\.(\d+)", version)
    if numbers and (int(numbers[1]), int(numbers[2])) < OLDEST_GO:
        raise LabError(f"{found} is {version}.", hint=f"Install Go {wanted} or newer from https://go.dev/dl/.")
    return found, version


@contextmanager
def _only_builder(lock: Path, name: str, progress: ReportStage) -> Iterator[None]:
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress(f"waiting for another build of {name}")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _build(module: GoModule, target: Path, progress: ReportStage) -> None:
    log = tools_folder() / "logs" / f"{module.name}.log"
    log.parent.mkdir(exist_ok=True)
    started = time.monotonic()
    progress(f"building {module.name} (log: {log})")
    with tempfile.TemporaryDirectory(prefix=f".{module.name}-", dir=target.parent) as draft:
        command = [go_program(), "build", *_FLAGS, "-ldflags", module.linker_flags, "-o", f"{draft}/"]
        with log.open("w", encoding="utf-8") as output:
            build = subprocess.Popen(
                [*command, *module.binaries.values()],
                cwd=module.folder,
                env={**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "", "GOWORK": "off"},
                stdout=output,
                stderr=subprocess.STDOUT,
            )
            try:
                while True:
                    try:
                        status = build.wait(HEARTBEAT_SECONDS)
                        break
                    except subprocess.TimeoutExpired:
                        progress(f"building {module.name}: {time.monotonic() - started:.0f} s so far")
            finally:
                if build.poll() is None:
                    build.kill()
                    build.wait()
        if status != 0:
            tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:])
            raise LabError(
                f"Building {module.name} ended with {status}:\n{tail}",
                hint=f"Read {log}; the Go module proxy must be reachable and 10 GB of disk free.",
            )
        for binary, package in module.binaries.items():
            built = Path(draft) / _default_name(package)
            built.rename(built.with_name(binary))
        Path(draft).chmod(0o755)
        # A second name keeps TemporaryDirectory from removing what was built.
        finished = target.with_suffix(".built")
        shutil.rmtree(finished, ignore_errors=True)
        shutil.copytree(draft, finished, copy_function=os.link)
        finished.rename(target)
    progress(f"built {module.name} in {time.monotonic() - started:.0f} s")


def _default_name(package: str) -> str:
    """Return the name that ``go build`` gives a package's binary: its last element that is not a major version."""
    parts = package.rstrip("/").split("/")
    return parts[-2] if re.fullmatch(r"v\d+", parts[-1]) and len(parts) > 1 else parts[-1]
