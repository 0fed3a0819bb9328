"""Check that the machine has what the lab takes from Debian, and install what is missing without starting services."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from lab.failure import LabError

SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

PACKAGES = {
    "containerd": ("containerd", "containerd-shim-runc-v2", "ctr"),
    "runc": ("runc",),
    "containernetworking-plugins": ("/usr/lib/cni/bridge", "/usr/lib/cni/host-local", "/usr/lib/cni/portmap"),
    "busybox-static": ("busybox",),
    "iptables": ("iptables", "iptables-save"),
    "iproute2": ("ip",),
    "util-linux": ("nsenter", "unshare"),
    "prometheus": ("prometheus", "promtool"),
    "docker-registry": ("docker-registry",),
    "gnupg": ("gpg", "gpgconf"),
}
"""Debian package to the programs that the lab uses from it. What stands in the search path counts, wherever it is from."""

_POLICY = Path("/usr/sbin/policy-rc.d")
_POLICY_TEXT = "#!/bin/sh\n# put here by the Nephoran lab while it installs packages; safe to remove\nexit 101\n"


def missing_packages(wanted: Mapping[str, Sequence[str]] | None = None) -> list[str]:
    """Return the Debian packages of which a program is missing.

    :param wanted: the programs that are needed of each package; None: what the lab needs.
    """
    return [
        package
        for package, programs in (wanted or PACKAGES).items()
        if any(shutil.which(program, path=SEARCH_PATH) is None for program in programs)
    ]


def ensure_packages(
    progress: Callable[[str], None], log: Path, wanted: Mapping[str, Sequence[str]] | None = None
) -> None:
    """Install the missing packages by apt; none of their services is started. Safe to repeat: yes."""
    missing = missing_packages(wanted)
    if not missing:
        return
    if shutil.which("apt-get") is None:
        raise LabError(
            f"Programs of these Debian packages are missing: {', '.join(missing)}.",
            hint="Install them; without apt the lab can't.",
        )
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as output, _services_stay_stopped():
        progress(f"apt: reading package lists (log: {log})")
        # Lists that can't be refreshed may still be good enough, so only the installation decides.
        _apt(["update"], output.fileno())
        progress(f"apt: installing {', '.join(missing)}")
        status = _apt(["install", "--yes", "--no-install-recommends", *missing], output.fileno())
    still_missing = missing_packages(wanted)
    if status != 0 or still_missing:
        raise LabError(
            f"apt could not install {', '.join(still_missing or missing)}.",
            hint=f"Read {log}, install them by hand and try again.",
        )


def _apt(arguments: list[str], output: int) -> int:
    return subprocess.run(
        ["apt-get", "-o", "DPkg::Lock::Timeout=300", *arguments],
        env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        check=False,
    ).returncode


@contextmanager
def _services_stay_stopped() -> Iterator[None]:
    """Forbid package scripts to start services; a policy that is already there is left alone."""
    if _POLICY.exists():
        yield
        return
    _POLICY.write_text(_POLICY_TEXT, encoding="utf-8")
    _POLICY.chmod(0o755)
    try:
        yield
    finally:
        if _POLICY.read_text(encoding="utf-8") == _POLICY_TEXT:
            _POLICY.unlink()
