"""Tell whether a lab can run on this machine, and how to make it able to."""

from __future__ import annotations

import os
import platform
import shutil

from lab.failure import LabError
from lab.packages import missing_packages
from lab.tools import go_program


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
