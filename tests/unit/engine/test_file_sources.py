"""The knowledge base: files as they lie on their volumes, with what is needed to put them back as they were."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest

from nephoran_maintenance.domain.pod_files import READER
from nephoran_maintenance.engine.file_sources import KnowledgeBase
from nephoran_maintenance.errors import MaintenanceError, PermanentError
from nephoran_maintenance.hooks.cluster import ClusterHook
from nephoran_maintenance.hooks.pod_files import PodFiles
from nephoran_maintenance.profile import FolderReference
from tests.unit.fake_exec import ExecutingCluster, Spoiled
from tests.unit.hooks.fake_servers import Server

SYSTEM = "nephoran-system"


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    folder = tmp_path / "volume"
    (folder / "docs" / "empty folder").mkdir(parents=True)
    (folder / "docs" / "a.txt").write_bytes(b"one")
    (folder / "docs" / "run.sh").write_bytes(b"#!/bin/sh\n")
    (folder / "docs" / "run.sh").chmod(0o751)
    (folder / "docs" / "newest").symlink_to("a.txt")
    os.link(folder / "docs" / "a.txt", folder / "docs" / "b.txt")
    return folder


@pytest.fixture
def fake_cluster(volume: Path) -> ExecutingCluster:
    cluster = ExecutingCluster()
    cluster.add_claim(SYSTEM, "knowledge", volume)
    cluster.add_pod(SYSTEM, "rag-api-0", "knowledge", "/data")
    return cluster


def source(*folders: dict[str, Any]) -> KnowledgeBase:
    files = PodFiles(ClusterHook("kubernetes_test"), "backup-1", image="busybox", sleep=lambda seconds: None)
    return KnowledgeBase(files, [FolderReference.model_validate(folder) for folder in folders], SYSTEM)


def read(of: KnowledgeBase) -> dict[str, bytes]:
    return {member.path: b"".join(member.chunks) for member in of}


DOCS = {"name": "docs", "claim": "knowledge", "path": "docs"}


def test_every_file_is_there_and_a_list_of_what_tar_alone_would_lose(cluster_server: Server, volume: Path) -> None:
    found = source(DOCS)
    files = read(found)
    names = {path for path in files if "/files/" in path}
    # Of a file with two names one is the file, whichever comes first in the folder.
    assert {"knowledge-base/docs/files/run.sh"} < names
    assert len(names) == 2
    lines = [line.split("\t") for line in files["knowledge-base/docs/attributes/00001.tsv"].decode().splitlines()]
    kinds = {fields[5]: (fields[0], fields[1], fields[6]) for fields in lines}
    assert kinds["run.sh"] == ("f", "0751", "")
    assert kinds["empty folder"][0] == "d"
    assert kinds["newest"] == ("l", "0777", "a.txt")
    assert {(kinds[name][0], kinds[name][2]) for name in ("a.txt", "b.txt")} in (
        {("f", ""), ("h", "a.txt")},
        {("f", ""), ("h", "b.txt")},
    )
    assert {fields[4] for fields in lines if fields[5] == "run.sh"} == {
        f"{int((volume / 'docs' / 'run.sh').stat().st_mtime)}"
    }
    facts = found.outcome.facts["folders"]["docs"]
    assert (facts["way"], facts["files"], facts["folders"], facts["links"]) == ("exec", 2, 1, 2)


def test_nothing_in_the_profile_is_absent_and_asks_nobody(cluster_server: Server) -> None:
    found = source()
    assert read(found) == {}
    assert (found.outcome.state, "backup.knowledge_base" in found.outcome.message) == ("absent", True)
    assert cluster_server.received == []


def test_all_folders_are_found_before_the_first_is_read(cluster_server: Server, fake_cluster: ExecutingCluster) -> None:
    missing = {"name": "other", "workload": {"name": "nowhere"}, "path": "/data"}
    with pytest.raises(PermanentError, match="0 workloads"):
        read(source(DOCS, missing))
    assert fake_cluster.executed == []


def test_a_folder_without_a_file_is_an_error(cluster_server: Server) -> None:
    with pytest.raises(PermanentError) as error:
        read(source({**DOCS, "path": "docs/empty folder"}))
    assert error.value.reference == "folder-empty"


def test_what_is_no_file_is_named(cluster_server: Server, volume: Path) -> None:
    os.mkfifo(volume / "docs" / "pipe")
    with socket.socket(socket.AF_UNIX) as door:
        here = Path.cwd()
        os.chdir(volume / "docs")  # the path of a socket may be 107 bytes long
        try:
            door.bind("door")
        finally:
            os.chdir(here)
        found = source(DOCS)
        read(found)
    assert found.outcome.facts["folders"]["docs"]["left_out"] == {"count": 2, "first": ["pipe", "./door"]}


@pytest.mark.parametrize("name", ["back\\slash", "new\nline", b"\xff".decode("utf-8", "surrogateescape")])
def test_a_name_that_no_list_can_hold_is_refused(name: str, cluster_server: Server, volume: Path) -> None:
    (volume / "docs" / name).write_bytes(b"x")
    with pytest.raises(PermanentError) as error:
        read(source(DOCS))
    assert error.value.reference == "file-name-unsupported"


@pytest.mark.parametrize("allowed", [False, True], ids=["refused", "may change"])
def test_a_file_that_changes_meanwhile(
    allowed: bool, cluster_server: Server, fake_cluster: ExecutingCluster, volume: Path
) -> None:
    log = volume / "docs" / "aaa.log"
    log.write_bytes(bytes(8_000_000))
    fake_cluster.spoiled = Spoiled(while_running=lambda: os.truncate(log, 10))
    found = source({**DOCS, "may_change": allowed})
    if allowed:
        read(found)
        assert found.outcome.facts["folders"]["docs"]["changed_meanwhile"] == {"count": 1, "first": ["./aaa.log"]}
        return
    with pytest.raises(MaintenanceError, match=r"1 files of docs changed or vanished .*aaa\.log") as error:
        read(found)
    assert error.value.reference == "files-changing"
    assert found.outcome.state == "failed"


def test_who_stops_reading_leaves_no_helper_pod(cluster_server: Server, fake_cluster: ExecutingCluster) -> None:
    fake_cluster.allowed.discard(("create", "pods"))
    members = iter(source(DOCS))
    next(members)
    assert [helper["metadata"]["name"] for helper in fake_cluster.helpers()] == [READER]
    members.close()  # type: ignore[attr-defined]
    assert fake_cluster.helpers() == []


def test_several_folders_are_read_one_after_the_other(
    cluster_server: Server, fake_cluster: ExecutingCluster, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "x").write_bytes(b"x")
    fake_cluster.add_claim(SYSTEM, "other", other)
    fake_cluster.helper_programs = ("tar",)
    files = read(source(DOCS, {"name": "other", "claim": "other"}))
    assert files["knowledge-base/other/files/x"] == b"x"
    assert [pod["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"] for pod in fake_cluster.created] == [
        "other"
    ]
