"""Tell whether a lab can run on this machine, and how to make it able to.

python -m lab.availability      ends with 0: it can · 3: it can't, said loudly · 1: it can't, but under CI it must
"""

from __future__ import annotations

import os
import platform
import shutil
import sys

from lab.failure import LabError
from lab.packages import missing_packages
from lab.tools import go_program

CANNOT = 3


def obstacle() -> tuple[str, str] | None:
    """Return what keeps a lab from running here and what to do about it; None when nothing does."""
    if platform.system() != "Linux":
        return f"this is {platform.system()}, and a lab needs Linux", "use a Debian 12 machine or virtual machine"
    if os.geteuid() != 0:
        return "a lab makes network namespaces, mounts and cgroups, and you are not root", "run the same as root"
    if missing_packages() and shutil.which("apt-get") is None:
        return f"programs of {', '.join(missing_packages())} are missing", "install them"
    try:
        go_program()
    except LabError as error:
        return "Kubernetes is built from source with Go", str(error)
    return None


def main() -> int:
    """Say nothing and return 0 when a lab can run; else say why it can't."""
    found = obstacle()
    if found is None:
        return 0
    reason, remedy = found
    line = "=" * 100
    print(f"{line}\nLAB TESTS SKIPPED: {reason}.\nTo enable them: {remedy}.\n{line}", file=sys.stderr)
    if os.environ.get("CI"):
        print("CI is set, and there they must run: this is a failure.", file=sys.stderr)
        return 1
    return CANNOT


if __name__ == "__main__":
    sys.exit(main())
