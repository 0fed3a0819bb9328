"""Join a lab's network namespace to the host: one link, and routes to pods and Services over it.

The host's firewall, forwarding and other settings stay as they are: the host is an end of every connection, never a router.
"""

from __future__ import annotations

import ipaddress
import json
import subprocess
from collections.abc import Sequence
from pathlib import Path

from lab.config import LabConfig
from lab.failure import LabError
from lab.packages import SEARCH_PATH

BRIDGE = "lab0"
UPLINK = "uplink"


def enter(supervisor_pid: int, argv: Sequence[str], *, mounts: bool = False) -> list[str]:
    """Return the command that runs ``argv`` in the lab's network namespace, with ``mounts`` in its mount namespace too."""
    namespaces = ["--net", "--mount"] if mounts else ["--net"]
    return ["nsenter", "--target", str(supervisor_pid), *namespaces, "--", *argv]


def attach(config: LabConfig, supervisor_pid: int) -> None:
    """Make the link, the bridge for pods, addresses and routes. Raises ``LabError`` when the range is in use."""
    _refuse_taken_range(config)
    inner = f"""
        link set lo up
        addr add {config.gateway_address}/30 dev {UPLINK}
        link set {UPLINK} up
        link add {BRIDGE} type bridge
        addr add {config.node_address}/{config.pod_subnet.partition("/")[2]} dev {BRIDGE}
        link set {BRIDGE} up
        route add default via {config.host_address}
    """
    outer = f"""
        addr add {config.host_address}/30 dev {config.link}
        link set {config.link} up
        route add {config.pod_subnet} via {config.gateway_address} dev {config.link}
        route add {config.service_subnet} via {config.gateway_address} dev {config.link}
    """
    link = ["ip", "link", "add", config.link, "type", "veth", "peer", "name", UPLINK, "netns", str(supervisor_pid)]
    _run(link)
    _run(["ip", "link", "set", config.link, "alias", str(config.home)])
    _run(enter(supervisor_pid, ["ip", "-batch", "-"]), inner)
    _run(["ip", "-batch", "-"], outer)
    # Pods on one bridge reach a Service only when bridged packets pass iptables too.
    if not Path("/proc/sys/net/bridge").is_dir():
        _run(["modprobe", "br_netfilter"])
    switches = "echo 1 > /proc/sys/net/ipv4/ip_forward && echo 1 > /proc/sys/net/bridge/bridge-nf-call-iptables"
    _run(enter(supervisor_pid, ["sh", "-c", switches]))


def detach(config: LabConfig) -> None:
    """Remove the link and with it the routes. Safe to repeat: yes."""
    if _link(config) is not None:
        try:
            _run(["ip", "link", "delete", config.link])
        except LabError:
            # The kernel may be faster: it removes the link with the namespace at its other end.
            if _link(config) is not None:
                raise


def owner(config: LabConfig) -> str | None:
    """Return the home folder of the lab whose link has this index, None when no link has."""
    link = _link(config)
    return None if link is None else str(link.get("ifalias", ""))


def _link(config: LabConfig) -> dict[str, object] | None:
    shown = subprocess.run(
        ["ip", "-json", "link", "show", "dev", config.link], capture_output=True, text=True, check=False
    )
    found = json.loads(shown.stdout or "[]") if shown.returncode == 0 else []
    return dict(found[0]) if found else None


def _refuse_taken_range(config: LabConfig) -> None:
    """A route of the machine inside the lab's range would send the lab's packets elsewhere."""
    lab_range = ipaddress.IPv4Network(f"10.{200 + config.index}.0.0/16")
    shown = subprocess.run(["ip", "-json", "route", "show"], capture_output=True, text=True, check=True)
    for route in json.loads(shown.stdout or "[]"):
        if route["dst"] != "default" and ipaddress.IPv4Network(route["dst"]).subnet_of(lab_range):
            raise LabError(
                f"The range {lab_range} of the lab {config.name!r} is in use: route to {route['dst']} dev {route.get('dev')}.",
                hint="Choose another lab name and --index.",
            )


def _run(command: Sequence[str], text: str | None = None) -> None:
    done = subprocess.run(
        command, input=text, capture_output=True, text=True, check=False, env={"PATH": SEARCH_PATH, "LC_ALL": "C"}
    )
    if done.returncode != 0:
        raise LabError(f"{' '.join(command[:8])} … failed: {done.stderr.strip()}")
