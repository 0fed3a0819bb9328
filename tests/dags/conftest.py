"""Airflow's home must be set before its first import; every DAG is parsed once, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("AIRFLOW_HOME", tempfile.mkdtemp(prefix="airflow-home-"))
os.environ.setdefault("AIRFLOW__CORE__LOAD_EXAMPLES", "False")

PROJECT = Path(__file__).resolve().parents[2]
PARSE = """
import json, socket, sys, time
import airflow.sdk
from airflow.dag_processing.dagbag import DagBag

def refuse(*_, **__):
    raise RuntimeError("parsing must not use the network")

for name in ("connect", "connect_ex", "sendto"):
    setattr(socket.socket, name, refuse)
socket.getaddrinfo = socket.create_connection = refuse
before = set(sys.modules)
started = time.process_time()
bag = DagBag(dag_folder=sys.argv[1], load_op_links=False)
seconds = time.process_time() - started
loaded = sorted({name.partition(".")[0] for name in set(sys.modules) - before})
print("RESULT " + json.dumps({"seconds": seconds, "dags": sorted(bag.dags), "errors": bag.import_errors, "loaded": loaded}))
"""


def parse_apart(folder: Path, home: Path, **environment: str) -> dict[str, Any]:
    """Parse a folder of DAG files in a fresh process without network; the time is that of the processor."""
    done = subprocess.run(
        [sys.executable, "-c", PARSE, str(folder)],
        env={
            "PATH": os.environ["PATH"],
            "AIRFLOW_HOME": str(home),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "PYTHONPATH": str(PROJECT / "plugins"),
            **environment,
        },
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if not lines:
        raise AssertionError(f"parsing ended with {done.returncode}: {done.stderr[-2000:]}")
    return dict(json.loads(lines[-1].removeprefix("RESULT ")))


@pytest.fixture(scope="session")
def parsed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a fresh process says about all DAG files: ids, import errors, seconds of the processor, loaded packages."""
    return parse_apart(PROJECT / "dags", tmp_path_factory.mktemp("airflow"))
