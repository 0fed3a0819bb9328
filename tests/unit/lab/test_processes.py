from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from lab import config as lab_config
from lab.config import LabConfig
from lab.processes import RECORD_NAME, Process, read_record, wait_gone

LIMIT = timedelta(seconds=10)


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as started:
        yield started
        started.kill()


def test_knows_a_living_process_and_sees_it_end(child: subprocess.Popen[bytes]) -> None:
    process = Process.of(child.pid)
    assert process is not None
    assert process.alive
    assert wait_gone([process], timedelta(0)) == [process]
    process.signal(signal.SIGKILL)
    assert wait_gone([process], LIMIT) == []
    assert Process.of(child.pid) is None, "a zombie has ended"
    assert Process.of(child.pid, ended_too=True) == process


@pytest.mark.parametrize(
    "other",
    [pytest.param({"start_ticks": 1}, id="id used again"), pytest.param({"boot_id": "x"}, id="before a restart")],
)
def test_never_touches_a_stranger_with_the_same_id(child: subprocess.Popen[bytes], other: dict[str, object]) -> None:
    process = Process.of(child.pid)
    assert process is not None
    stranger = replace(process, **other)  # type: ignore[arg-type]
    assert not stranger.alive
    stranger.signal(signal.SIGKILL)
    assert wait_gone([stranger], LIMIT) == []
    assert process.alive


def test_a_name_with_brackets_and_spaces_does_not_confuse(tmp_path: Path) -> None:
    program = tmp_path / "odd ) name (x"
    program.symlink_to(sys.executable)
    with subprocess.Popen([program, "-c", "input()"], stdin=subprocess.PIPE) as started:
        process = Process.of(started.pid)
        assert process is not None
        assert process.start_ticks >= _own().start_ticks
        started.kill()


def test_reads_what_the_supervisor_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lab_config, "PROJECT", tmp_path)
    config = LabConfig.named("demo")
    assert read_record(config) == {}
    config.state.mkdir(parents=True)
    own = _own()
    (config.state / RECORD_NAME).write_text(json.dumps({"supervisor": own.to_dict()}), encoding="utf-8")
    assert read_record(config) == {"supervisor": own}
    (config.state / RECORD_NAME).write_text("{", encoding="utf-8")
    assert read_record(config) == {}, "cut off by a crash"


def _own() -> Process:
    own = Process.of(os.getpid())
    assert own is not None
    return own
