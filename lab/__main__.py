"""Command line of the lab: ``python -m lab up|down|status|reset|logs``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from lab.cluster import EXTRAS, Cluster
from lab.config import LabConfig
from lab.failure import LabError
from lab.progress import Progress


def main(arguments: Sequence[str] | None = None) -> int:
    """Do one command; return 0, or 1 when it failed or (for ``status``) the lab is not up, or 130 when interrupted."""
    chosen = _parser().parse_args(arguments)
    try:
        config = LabConfig.named(chosen.name, index=chosen.index)
        return int(_COMMANDS[chosen.command](Cluster(config, progress=Progress()), chosen))
    except (LabError, OSError) as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"interrupted; `python -m lab down --name {chosen.name}` clears away what was started", file=sys.stderr)
        return 130


def _up(cluster: Cluster, chosen: argparse.Namespace) -> int:
    cluster.up(variant=chosen.variant, with_extras=chosen.extras, with_system=not chosen.empty)
    return 0


def _down(cluster: Cluster, _: argparse.Namespace) -> int:
    cluster.down()
    return 0


def _reset(cluster: Cluster, chosen: argparse.Namespace) -> int:
    cluster.reset(variant=chosen.variant)
    return 0


def _status(cluster: Cluster, chosen: argparse.Namespace) -> int:
    status = cluster.status()
    if chosen.json:
        print(json.dumps(status, indent=2))
    else:
        print(f"lab {status['name']} (index {status['index']}): {status['state']}, node {status['node']}")
        for name, entry in sorted(status["processes"].items()):
            state = f"pid {entry['pid']}" if entry["running"] else f"ended with {entry['exit_code']}"
            print(f"  {name:26}{state}{', restarted ' + str(entry['restarts']) if entry['restarts'] else ''}")
        if status["state"] == "up":
            for name, address in status["addresses"].items():
                print(f"  {name:26}{address}")
    return 0 if status["state"] == "up" else 1


def _logs(cluster: Cluster, chosen: argparse.Namespace) -> int:
    folder = cluster.config.logs
    names = [chosen.process] if chosen.process else sorted(path.stem for path in folder.glob("*.log"))
    if not names or not all((folder / f"{name}.log").exists() for name in names):
        raise LabError(f"There is no log of {chosen.process or 'any process'} in {folder}.")
    for name in names:
        print(f"== {folder / name}.log\n{cluster.supervisor.log_tail(name, chosen.lines)}")
    return 0


_COMMANDS = {"up": _up, "down": _down, "reset": _reset, "status": _status, "logs": _logs}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m lab", description="A real single-node Kubernetes with the Nephoran system in it."
    )
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--name", default="demo", help="which lab: demo (default), test, bench or another name")
    common.add_argument(
        "--index", type=int, help="4 to 15, for other names: decides the addresses 10.(200 + index).0.0/16"
    )
    commands = parser.add_subparsers(dest="command", required=True)
    starting = argparse.ArgumentParser(add_help=False)
    starting.add_argument("--variant", default="standard", help="variant of the system (default: standard)")
    up = commands.add_parser("up", parents=[common, starting], help="bring the lab up, or what is missing of it")
    up.add_argument("--with", dest="extras", action="append", default=[], choices=EXTRAS, help="an optional service")
    up.add_argument("--empty", action="store_true", help="only the cluster and its services, without the system")
    commands.add_parser("down", parents=[common], help="take it down; nothing stays but logs and secrets")
    commands.add_parser("reset", parents=[common, starting], help="take it down and bring a new one up")
    status = commands.add_parser("status", parents=[common], help="show processes and addresses; ends with 1 if not up")
    status.add_argument("--json", action="store_true")
    logs = commands.add_parser("logs", parents=[common], help="show the end of the logs of all processes or one")
    logs.add_argument("process", nargs="?")
    logs.add_argument("--lines", type=int, default=20)
    return parser


if __name__ == "__main__":
    sys.exit(main())
