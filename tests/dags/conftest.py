"""Airflow's home must be set before its first import; what parsing costs is measured in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import tests.airflow_home  # noqa: F401

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

def parse(folder):
    before = set(sys.modules)
    started = time.process_time()
    bag = DagBag(dag_folder=folder, load_op_links=False)
    return {
        "seconds": time.process_time() - started,
        "dags": sorted(bag.dags),
        "errors": bag.import_errors,
        "loaded": sorted({name.partition(".")[0] for name in set(sys.modules) - before}),
    }

print("RESULT " + json.dumps({**parse(sys.argv[1]), "control": parse(sys.argv[2])}))
"""


@pytest.fixture(scope="session")
def parsed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a fresh process without network says about all DAG files: ids, import errors, seconds of the processor,
    loaded packages; and, as ``control``, the same about files that do what a DAG file must not do."""
    home, control = tmp_path_factory.mktemp("airflow"), tmp_path_factory.mktemp("control")
    (control / "heavy.py").write_text("# airflow DAG\nimport requests\n", encoding="utf-8")
    (control / "online.py").write_text(
        "# airflow DAG\nimport socket\nsocket.create_connection(('127.0.0.1', 9))\n", encoding="utf-8"
    )
    done = subprocess.run(
        [sys.executable, "-c", PARSE, str(PROJECT / "dags"), str(control)],
        env={
            "PATH": os.environ["PATH"],
            "AIRFLOW_HOME": str(home),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "PYTHONPATH": str(PROJECT / "plugins"),
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
