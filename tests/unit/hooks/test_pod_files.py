"""Files out of the cluster: real tar on this machine, through a real websocket, by exec and by a helper pod."""

from __future__ import annotations

import itertools
import os
import tracemalloc
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from nephoran_maintenance.domain.pod_files import READER, Folder
from nephoran_maintenance.domain.vantage_point import is_own
from nephoran_maintenance.errors import MaintenanceError, PermanentError, TransientError
from nephoran_maintenance.hooks.cluster import ClusterHook
from nephoran_maintenance.hooks.pod_files import PodFiles
from nephoran_maintenance.profile import FolderReference
from tests.unit.fake_exec import ExecutingCluster, Spoiled
from tests.unit.hooks.fake_servers import Reply, Server, status_object

NS = "ns"
OPERATION = "backup-20261124t023000z-1a2b3c"
FILES = {"a.txt": b"one\n", "deep/er/b.bin": os.urandom(300_000), "empty": b"", "zeros": bytes(70_000), "ü ñ.txt": b"2"}
PODS = f"/api/v1/namespaces/{NS}/pods"


@pytest.fixture
def fake_cluster(tmp_path: Path) -> ExecutingCluster:
    cluster = ExecutingCluster()
    folder = tmp_path / "volume"
    for name, content in FILES.items():
        path = folder / "docs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    cluster.add_claim(NS, "knowledge", folder)
    cluster.add_pod(NS, "rag-api-0", "knowledge", "/data")
    cluster.add_stateful_set(NS, "rag-api")
    return cluster


@pytest.fixture
def files(cluster_server: Server) -> PodFiles:
    clock = itertools.count(step=30)
    return PodFiles(
        ClusterHook("kubernetes_test"),
        OPERATION,
        image="registry.example/tools/busybox:1",
        sleep=lambda seconds: None,
        monotonic=lambda: float(next(clock)),
    )


OF_CLAIM = FolderReference(name="docs", claim="knowledge", path="docs")
OF_WORKLOAD = FolderReference.model_validate(
    {"name": "docs", "workload": {"name": "rag-api"}, "container": "app", "path": "/data/docs"}
)


def read(files: PodFiles, wanted: FolderReference = OF_CLAIM) -> tuple[str, dict[str, bytes]]:
    """Return the way that was taken, and the files."""
    folder = files.find(wanted, NS)
    with files.reading(folder) as reading, files.tar(NS, reading.seat, wanted.name) as tar:
        found = {entry.path: b"".join(entry.chunks) for entry in tar.entries() if entry.info.isreg()}
    return reading.way, found


@pytest.mark.parametrize("wanted", [OF_CLAIM, OF_WORKLOAD], ids=["claim", "workload"])
def test_a_pod_that_has_tar_gives_every_file_as_it_is(
    wanted: FolderReference, files: PodFiles, fake_cluster: ExecutingCluster
) -> None:
    assert read(files, wanted) == ("exec", FILES)
    assert fake_cluster.executed[-1] == ("rag-api-0", ["tar", "-c", "-f", "-", "-C", "/data/docs", "."])
    assert fake_cluster.created == []


def no_tar(cluster: ExecutingCluster) -> None:
    cluster.inside["rag-api-0", "app"].programs = ()


def no_exec(cluster: ExecutingCluster) -> None:
    cluster.allowed = set()


def no_pod(cluster: ExecutingCluster) -> None:
    del cluster.objects[f"{PODS}/rag-api-0"]


@pytest.mark.parametrize(
    ("spoil", "node"),
    [
        pytest.param(no_tar, "node-1", id="no tar"),
        pytest.param(no_exec, "node-1", id="exec not allowed"),
        pytest.param(no_pod, None, id="nobody has it"),
    ],
)
def test_else_a_helper_pod_gives_them_and_is_gone_again(
    spoil: Callable[[ExecutingCluster], None], node: str | None, files: PodFiles, fake_cluster: ExecutingCluster
) -> None:
    spoil(fake_cluster)
    assert read(files) == ("helper pod", FILES)
    (helper,) = fake_cluster.created
    assert helper["spec"].get("nodeName") == node
    assert fake_cluster.helpers() == []


def test_a_claim_that_many_may_mount_is_read_on_any_node(
    files: PodFiles, fake_cluster: ExecutingCluster, tmp_path: Path
) -> None:
    no_tar(fake_cluster)
    fake_cluster.add_claim(NS, "knowledge", tmp_path / "volume", "ReadWriteMany")
    assert read(files)[1] == FILES
    assert "nodeName" not in fake_cluster.created[0]["spec"]


def test_the_helper_pod_may_do_nothing_but_read_the_claim(files: PodFiles, fake_cluster: ExecutingCluster) -> None:
    no_tar(fake_cluster)
    read(files)
    helper = fake_cluster.created[0]
    (container,) = helper["spec"]["containers"]
    security = container["securityContext"]
    assert (security["runAsNonRoot"], security["readOnlyRootFilesystem"], security["allowPrivilegeEscalation"]) == (
        True,
        True,
        False,
    )
    assert security["capabilities"] == {"drop": ["ALL"]}
    assert helper["spec"]["automountServiceAccountToken"] is False
    assert helper["spec"]["activeDeadlineSeconds"] > 0
    assert container["volumeMounts"][0]["readOnly"] is True
    assert helper["spec"]["volumes"] == [
        {"name": "claim", "persistentVolumeClaim": {"claimName": "knowledge", "readOnly": True}}
    ]
    assert helper["metadata"]["labels"]["app.kubernetes.io/managed-by"] == "nephoran-maintenance"
    assert is_own(helper), "no check of the system's pods counts it"


def left_over(cluster: ExecutingCluster, operation: str, phase: str) -> None:
    labels = {
        "app.kubernetes.io/managed-by": "nephoran-maintenance",
        "maintenance.nephoran.com/record": "reader",
        "maintenance.nephoran.com/operation": operation,
    }
    metadata = {"name": READER, "namespace": NS, "uid": "old", "labels": labels}
    cluster.put(PODS, {"kind": "Pod", "metadata": metadata, "spec": {}, "status": {"phase": phase}})


@pytest.mark.parametrize(
    ("operation", "phase"),
    [
        pytest.param(OPERATION, "Running", id="of an earlier try"),
        pytest.param("backup-of-yesterday", "Succeeded", id="of a run that died"),
        pytest.param("backup-of-yesterday", "Failed", id="past its deadline"),
    ],
)
def test_a_helper_pod_that_was_left_is_replaced(
    operation: str, phase: str, files: PodFiles, fake_cluster: ExecutingCluster
) -> None:
    no_tar(fake_cluster)
    left_over(fake_cluster, operation, phase)
    assert read(files) == ("helper pod", FILES)
    assert fake_cluster.helpers() == []


def test_the_helper_pod_of_another_backup_is_left_alone(files: PodFiles, fake_cluster: ExecutingCluster) -> None:
    no_tar(fake_cluster)
    left_over(fake_cluster, "another-backup", "Running")
    with pytest.raises(TransientError) as error:
        read(files)
    assert error.value.reference == "reader-pod-busy"
    assert fake_cluster.helpers()[0]["metadata"]["uid"] == "old"


def test_the_helper_pod_of_a_dead_step_is_released(files: PodFiles, fake_cluster: ExecutingCluster) -> None:
    left_over(fake_cluster, OPERATION, "Running")
    fake_cluster.allowed |= {("create", "pods")}
    assert files.release_helper(NS) == READER
    assert fake_cluster.helpers() == []
    assert files.release_helper(NS) == "", "it can be repeated"


@pytest.mark.parametrize("phase", ["Running", "Succeeded"])
def test_a_helper_pod_of_another_backup_is_not_released(
    phase: str, files: PodFiles, fake_cluster: ExecutingCluster
) -> None:
    left_over(fake_cluster, "another-backup", phase)
    assert files.release_helper(NS) == ""
    assert len(fake_cluster.helpers()) == 1


def test_a_pod_that_has_but_the_name_of_a_helper_is_not_released(
    files: PodFiles, fake_cluster: ExecutingCluster
) -> None:
    left_over(fake_cluster, OPERATION, "Running")
    del fake_cluster.helpers()[0]["metadata"]["labels"]["app.kubernetes.io/managed-by"]
    assert files.release_helper(NS) == ""
    assert len(fake_cluster.helpers()) == 1


def test_who_may_make_no_helper_pod_looks_for_none(
    files: PodFiles, fake_cluster: ExecutingCluster, cluster_server: Server
) -> None:
    no_exec(fake_cluster)
    assert files.release_helper(NS) == ""
    assert cluster_server.requests("GET", f"{PODS}/{READER}") == []


def test_a_helper_pod_that_does_not_go_is_an_error(
    files: PodFiles, fake_cluster: ExecutingCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    left_over(fake_cluster, OPERATION, "Running")
    monkeypatch.setattr("nephoran_maintenance.hooks.pod_files.GONE_LIMIT", timedelta())
    fake_cluster.fail = lambda request: Reply(200, {"kind": "Pod"}) if request.method == "DELETE" else None
    with pytest.raises(TransientError, match="is still there") as error:
        files.release_helper(NS)
    assert error.value.reference == "reader-pod-left"


def test_a_helper_pod_that_does_not_start_is_told_and_removed(files: PodFiles, fake_cluster: ExecutingCluster) -> None:
    no_tar(fake_cluster)
    post = fake_cluster._post

    def pulls(request: Any) -> Reply:
        reply = post(request)
        state = {"waiting": {"reason": "ErrImagePull", "message": "no such image"}}
        for helper in fake_cluster.helpers():
            helper["status"] = {"phase": "Pending", "containerStatuses": [{"name": "read", "state": state}]}
        return reply

    fake_cluster._post = pulls  # type: ignore[method-assign]
    with pytest.raises(TransientError, match="ErrImagePull no such image") as error:
        read(files)
    assert error.value.reference == "reader-pod-failed"
    assert fake_cluster.helpers() == []


CUTS = [0, 512, 1000, 200_000, 307_712]


@pytest.mark.parametrize("with_status", [False, True], ids=["without a status", "with a good status"])
@pytest.mark.parametrize("cut", CUTS)
def test_a_stream_that_ends_early_is_never_a_short_archive(
    cut: int, with_status: bool, files: PodFiles, fake_cluster: ExecutingCluster
) -> None:
    fake_cluster.spoiled = Spoiled(cut_after_bytes=cut, with_status=with_status)
    with pytest.raises(TransientError) as error:
        read(files)
    assert error.value.reference == "pod-stream-ended"


def test_a_stream_cut_at_any_block_is_noticed(files: PodFiles, fake_cluster: ExecutingCluster, tmp_path: Path) -> None:
    """The file of zeros looks like the end of an archive; a good status comes all the same."""
    folder = tmp_path / "volume" / "docs"
    for path in folder.iterdir():
        if path.name not in ("zeros", "empty"):
            path.rename(tmp_path / path.name)
    whole = len(b"".join(stream_of(files)))
    ends = [at for at in range(0, whole - 10240, 512 * 7) if is_taken(files, fake_cluster, at)]
    assert ends == []


def stream_of(files: PodFiles) -> Iterator[bytes]:
    command = ["tar", "-c", "-f", "-", "-C", "/data/docs", "."]
    with files.cluster.exec_stream(NS, "rag-api-0", "app", command) as stream:
        yield from stream


def is_taken(files: PodFiles, cluster: ExecutingCluster, cut: int) -> bool:
    cluster.spoiled = Spoiled(cut_after_bytes=cut, with_status=True)
    try:
        read(files)
    except TransientError as error:
        return error.reference != "pod-stream-ended"
    return True


def test_what_tar_says_is_the_error(files: PodFiles) -> None:
    missing = FolderReference(name="docs", claim="knowledge", path="nowhere")
    with pytest.raises(PermanentError, match="nowhere: Cannot open: No such file or directory") as error:
        read(files, missing)
    assert error.value.reference == "pod-command-failed"


def test_a_file_that_changed_is_told_apart_from_a_failure(
    files: PodFiles, fake_cluster: ExecutingCluster, tmp_path: Path
) -> None:
    big = tmp_path / "volume" / "docs" / "aaa.log"
    big.write_bytes(bytes(8_000_000))
    fake_cluster.spoiled = Spoiled(while_running=lambda: os.truncate(big, 10))
    folder = files.find(OF_CLAIM, NS)
    with files.reading(folder) as reading, files.tar(NS, reading.seat, "docs") as tar:
        found = {entry.path: sum(map(len, entry.chunks)) for entry in tar.entries()}
    assert tar.verdict.changed == ("./aaa.log",)
    assert found["aaa.log"] == 8_000_000


def test_a_folder_on_no_claim_is_read_by_exec_only(files: PodFiles, fake_cluster: ExecutingCluster) -> None:
    no_tar(fake_cluster)
    wanted = FolderReference.model_validate(
        {"name": "docs", "workload": {"name": "rag-api"}, "container": "app", "path": "/elsewhere"}
    )
    with pytest.raises(PermanentError, match="the image of rag-api-0 has no tar, and it lies on no claim") as error:
        read(files, wanted)
    assert error.value.reference == "folder-unreachable"


def test_without_an_image_for_the_helper_both_reasons_are_told(files: PodFiles, fake_cluster: ExecutingCluster) -> None:
    no_exec(fake_cluster)
    files.image = None
    with pytest.raises(
        PermanentError, match=r"exec in rag-api-0 is not allowed, and backup\.reader_image names no image"
    ):
        read(files)


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        pytest.param(status_object(403, "Forbidden", 'User "x" cannot'), "cluster-forbidden", id="forbidden"),
        pytest.param(status_object(500, "InternalError", "no kubelet"), "cluster-unavailable", id="no kubelet"),
        pytest.param(Reply(hang_up=True), "cluster-unreachable", id="no answer"),
    ],
)
def test_a_refused_stream_is_an_error_of_the_cluster(
    answer: Reply, reference: str, files: PodFiles, fake_cluster: ExecutingCluster
) -> None:
    fake_cluster.answer_to_exec = answer
    with pytest.raises(MaintenanceError) as error:
        read(files)
    assert error.value.reference == reference


FORBIDDEN = status_object(403, "Forbidden", 'RBAC: role "backup" not found')


@pytest.mark.parametrize("ready", [500, 403])
def test_a_stream_that_an_api_server_refuses_which_just_starts_is_tried_again(
    ready: int, files: PodFiles, fake_cluster: ExecutingCluster
) -> None:
    folder = files.find(OF_CLAIM, NS)
    fake_cluster.ready, fake_cluster.answer_to_exec = ready, FORBIDDEN
    with pytest.raises(TransientError, match=f"/readyz answers {ready}") as error, files.reading(folder):
        pass
    assert error.value.reference == "cluster-unavailable"
    assert fake_cluster.executed == []


def test_a_stream_that_was_refused_is_asked_for_once_more_when_the_api_server_is_ready(
    files: PodFiles, fake_cluster: ExecutingCluster
) -> None:
    """Also the second of a reading: it is asked for as the first was."""
    replies = itertools.cycle([FORBIDDEN, None])

    def refuse_every_other(request: Any) -> None:
        fake_cluster.answer_to_exec = next(replies)

    fake_cluster.fail_first = refuse_every_other  # type: ignore[method-assign]
    assert read(files) == ("exec", FILES)


def test_memory_stays_flat(files: PodFiles, fake_cluster: ExecutingCluster, tmp_path: Path) -> None:
    with (tmp_path / "volume" / "docs" / "large").open("wb") as large:
        large.truncate(64 * 1024 * 1024)
    for number in range(1000):
        (tmp_path / "volume" / "docs" / f"small-{number}").write_bytes(b"x")
    folder = files.find(OF_CLAIM, NS)
    tracemalloc.start()
    try:
        with files.reading(folder) as reading, files.tar(NS, reading.seat, "docs") as tar:
            size = sum(len(chunk) for entry in tar.entries() for chunk in entry.chunks)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert size > 64 * 1024 * 1024
    assert peak < 4 * 1024 * 1024


def test_who_reads_gets_no_more_than_it_takes(files: PodFiles) -> None:
    """Nothing reads ahead of the one who asks: a slow store slows tar down."""
    folder = files.find(OF_CLAIM, NS)
    with files.reading(folder) as reading, files.tar(NS, reading.seat, "docs") as tar:
        assert next(iter(tar.entries())).path
    assert isinstance(folder, Folder)
