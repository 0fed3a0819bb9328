"""Recovery by hand, with no Airflow running at all.

    python -m nephoran_maintenance status
    python -m nephoran_maintenance recover [--plan]
    python -m nephoran_maintenance rollback OPERATION [--plan]

Reads nothing but the kubeconfig, the profile and the cluster: the journals in the maintenance namespace say what an
operation found, intended and did. It uses the engine that the procedures use, and the same lease and fence. What was done
is reported as the procedures report it, in the same folder.
"""

from __future__ import annotations

import argparse
import getpass
import logging
import os
import socket
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from nephoran_maintenance.domain.journal import Journal, operation_id
from nephoran_maintenance.domain.report import recovery_report
from nephoran_maintenance.engine.recovery import Recovery, Unreadable
from nephoran_maintenance.engine.report_files import keep_report, write_report
from nephoran_maintenance.engine.rolling import AnswerWait, RolloutWait, Wait
from nephoran_maintenance.errors import MaintenanceError, PermanentError
from nephoran_maintenance.hooks.cluster import KubeconfigClusterHook
from nephoran_maintenance.profile import load_profile

POLL_SECONDS = 2.0
GOOD, BAD = 0, 1
TITLES = {"recover_operation": "Recover operations", "rollback": "Roll back an operation"}
"""As the procedures are called in Airflow."""


def main(arguments: Sequence[str] | None = None, *, sleep: Callable[[float], None] = time.sleep) -> int:
    """Run one command; return 0 when nothing is left to do, 1 when something is or the command failed."""
    chosen = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    try:
        return int(chosen.command(_recovery(chosen), chosen, sleep))
    except MaintenanceError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD


def _status(recovery: Recovery, _: argparse.Namespace, __: Callable[[float], None]) -> int:
    lease, now = recovery.leases.look()
    if lease is None or lease.holder is None:
        print(f"lease {recovery.leases.name}: free")
    else:
        standing = {"held": "renewed", "expired": "no longer renewed"}.get(lease.standing("", now or datetime.now(UTC)))
        print(f"lease {lease.name}: {lease.owner()}, token {lease.token}, {standing}")
    found = recovery.find()
    for item in found:
        _show(item.to_dict(), "would")
        if isinstance(item, Unreadable):
            continue
        for entry in item.journal.entries:
            print(f"  {entry.component} {entry.kind}: {entry.step}; the object is {item.conditions[entry.component]}")
    if not found:
        print("no operation is open")
    return GOOD if not found else BAD


def _recover(recovery: Recovery, chosen: argparse.Namespace, sleep: Callable[[float], None]) -> int:
    started_at = datetime.now(UTC)
    rows = [found.to_dict() for found in recovery.find(getattr(chosen, "operation", None))]
    if not rows:
        print("no operation is open")
    left = False
    for row in rows:
        _show(row, "would" if chosen.plan else "will")
        if row["decision"] in ("finish", "undo") and not chosen.plan:
            try:
                journal = _see_through(recovery, row["operation"], sleep)
            except MaintenanceError as error:
                _report(recovery, chosen, row, started_at, str(error))
                if not isinstance(error, PermanentError):
                    raise
                # One that can't be recovered keeps no other from it.
                print(f"error: {error}", file=sys.stderr)
                left = True
            else:
                print(f"{row['operation']} is closed: {journal.outcome}")
                _report(recovery, chosen, row, started_at)
        elif not (row["decision"] == "leave" and recovery.back is False):
            left = True
            if row["decision"] == "stop" and not chosen.plan:
                _report(recovery, chosen, row, started_at, f"it can be neither finished nor undone: {row['reason']}")
    if not chosen.plan and not recovery.back and (holder := recovery.release_abandoned()):
        print(f"released the lease of {holder}, which is over and has left nothing open")
    return BAD if left and not chosen.plan else GOOD


def _see_through(recovery: Recovery, operation: str, sleep: Callable[[float], None]) -> Journal:
    """Look again and again until the operation is closed; the engine gives up by itself when nothing moves."""
    said = ""
    while True:
        result = recovery.go_on(operation)
        if isinstance(result, Journal):
            return result
        if (text := _words(result)) != said:
            said = text
            print(f"  waiting for {text}")
        sleep(POLL_SECONDS)


def _report(
    recovery: Recovery, chosen: argparse.Namespace, row: dict[str, Any], started_at: datetime, error: str = ""
) -> None:
    """Write the report of what was done with an operation; one that can't be kept is no reason to call that failed."""
    procedure = _procedure(chosen)
    given = {name: str(value) for name, value in vars(chosen).items() if name in ("operation", "context") and value}
    try:
        report = recovery_report(
            recovery.store.read(row["operation"]),
            row,
            procedure=procedure,
            title=TITLES[procedure],
            triggered_by=f"{_caller()}, command line",
            started_at=started_at,
            ended_at=datetime.now(UTC),
            params=given,
            planned=False,
            wanted_back=recovery.back,
            failed_steps=[{"task_id": chosen.name, "error": error}] if error else [],
        )
        path = write_report(procedure, report)
        print(f"report: {keep_report(recovery.profile, path) or path}")
    except (MaintenanceError, OSError, ImportError) as problem:
        print(f"the report could not be written, or is only in the local folder: {problem}", file=sys.stderr)


def _procedure(chosen: argparse.Namespace) -> str:
    return "rollback" if chosen.name == "rollback" else "recover_operation"


def _caller() -> str:
    return f"{getpass.getuser()}@{socket.gethostname()}"


def _words(wait: Wait) -> str:
    if isinstance(wait, RolloutWait):
        return f"{wait.workload.kind}/{wait.workload.name}: {wait.progress}"
    if isinstance(wait, AnswerWait):
        return f"pod {wait.pod}, which is ready but {wait.missing}"
    return f"{len(wait.objects)} test intents to be gone"


def _show(row: dict[str, Any], would: str) -> None:
    act = {"finish": f"{would} be finished", "undo": f"{would} be undone", "stop": "needs a person", "leave": "is left"}
    print(f"{row['operation']} ({row['procedure']}) {act[row['decision']]}: {row['reason']}")


def _recovery(chosen: argparse.Namespace) -> Recovery:
    now = datetime.now(UTC)
    who = f"{_caller()}:{os.getpid()}:{now.isoformat()}"
    procedure = _procedure(chosen)
    key = chosen.weaviate_key_file.read_text(encoding="utf-8").strip() if chosen.weaviate_key_file else ""
    return Recovery(
        KubeconfigClusterHook(chosen.kubeconfig, chosen.context),
        load_profile(chosen.profile),
        operation_id(procedure, now, who),
        f"{procedure} by {who.partition(':')[0]}",
        back=chosen.name == "rollback",
        weaviate_key=key,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m nephoran_maintenance",
        description="Finish or undo operations whose run is gone. No Airflow is needed.",
    )
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--kubeconfig", type=Path, help="default: KUBECONFIG, else ~/.kube/config")
    common.add_argument("--context", help="default: the kubeconfig's current context")
    common.add_argument("--profile", type=Path, help="default: NEPHORAN_PROFILE, else the one of this project")
    common.add_argument(
        "--weaviate-key-file",
        type=Path,
        help="file with Weaviate's API key: each replica must answer before the next goes; without it Ready is enough",
    )
    commands = parser.add_subparsers(dest="name", required=True)
    status = commands.add_parser("status", parents=[common], help="who holds the lease, which operations are open")
    status.set_defaults(command=_status)
    acting = argparse.ArgumentParser(add_help=False)
    acting.add_argument("--plan", action="store_true", help="only say what would be done")
    recover = commands.add_parser("recover", parents=[common, acting], help="finish or undo what was left open")
    recover.set_defaults(command=_recover)
    rollback = commands.add_parser("rollback", parents=[common, acting], help="undo one operation, also a closed one")
    rollback.add_argument("operation", help="the operation's id")
    rollback.set_defaults(command=_recover)
    return parser


if __name__ == "__main__":
    sys.exit(main())
