"""Files out of the cluster: a tar of a folder, streamed by exec out of a pod that has it, or out of a helper pod.

Nothing of it is gathered in memory or written to a disk of ours, and a stream that is not whole is an error.
"""

from __future__ import annotations

import logging
import tarfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import IO, Any, cast

from nephoran_maintenance.domain.pod_files import (
    READER,
    Folder,
    Seat,
    TarVerdict,
    exec_permission,
    folder_of_claim,
    folder_of_workload,
    is_over,
    is_reader_of,
    judge_tar,
    must_go,
    node_needed,
    reader_permissions,
    reader_pod,
    reader_seat,
    unreachable,
    why_not_running,
)
from nephoran_maintenance.errors import MaintenanceError, PermanentError, TransientError
from nephoran_maintenance.hooks.cluster import ClusterHook
from nephoran_maintenance.hooks.kubernetes_rest import WORKLOAD_KINDS, JsonObject, JsonObjects
from nephoran_maintenance.hooks.outside_text import excerpt
from nephoran_maintenance.hooks.pod_exec import Ended, ExecStream
from nephoran_maintenance.profile import FolderReference, WorkloadReference

BLOCK_BYTES = 128 * 1024
END_OF_ARCHIVE_BYTES = 2 * tarfile.BLOCKSIZE
START_LIMIT = timedelta(minutes=3)
"""A small image is pulled, and a volume may have to be attached to another node."""
BUSY_LIMIT = timedelta(minutes=10)
GONE_LIMIT = timedelta(minutes=2)
LONGEST_ANSWER_BYTES = 1024 * 1024

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entry:
    """One entry of a tar: what it is, and for a file its content, to be read before the next entry."""

    info: tarfile.TarInfo
    path: str
    chunks: Iterator[bytes]


class TarReading:
    """A tar that is read entry by entry; ``verdict`` says afterwards what its program said.

    :param label: what errors call it.
    """

    def __init__(self, stream: ExecStream, label: str) -> None:
        self._stream, self._label = stream, label
        self._source = _Counted(stream)
        self.verdict = TarVerdict()

    def entries(self) -> Iterator[Entry]:
        """Yield the entries, those that are neither file, folder nor link too.

        :raises PermanentError: ``pod-command-failed`` with what tar said; ``folder-unreachable`` when there is no tar.
        :raises TransientError: ``pod-stream-ended`` when it is not whole, wherever it was cut.
        """
        try:
            archive = tarfile.open(fileobj=cast(IO[bytes], self._source), mode="r|", bufsize=BLOCK_BYTES)  # noqa: SIM115
            while (info := archive.next()) is not None:
                archive.members = []  # type: ignore[attr-defined]  # tarfile keeps them all otherwise (a choice of its own from Python 3.13 on)
                path = info.name.removeprefix("./")
                if path not in (".", ""):
                    yield Entry(info, path, self._chunks(archive, info))
        except (tarfile.TarError, UnicodeError) as error:
            raise self._not_whole(f"{type(error).__name__}: {error}") from error
        self.verdict = self._end()
        if not self._source.has_end_at(archive.offset):
            raise self._not_whole(f"it ends after {self._source.total_bytes} bytes without the end of an archive")

    def _chunks(self, archive: tarfile.TarFile, info: tarfile.TarInfo) -> Iterator[bytes]:
        content = archive.extractfile(info) if info.isreg() else None
        try:
            while content is not None and (block := content.read(BLOCK_BYTES)):
                yield block
        except (tarfile.TarError, UnicodeError) as error:
            raise self._not_whole(f"{info.name} is cut: {error}") from error

    def _end(self) -> TarVerdict:
        """Read what is left, so that the status of tar comes, and return what it means.

        :raises MaintenanceError: what tar says is the cause of whatever else is wrong.
        """
        self._source.drain()
        return self._judged(self._stream.ended)

    def _not_whole(self, problem: str) -> TransientError:
        self._end()
        return TransientError(
            "pod-stream-ended",
            f"the archive of {self._label} is not whole: {problem}",
            context={"folder": self._label},
            hint="Try again. If it stays, look at the pod and at its node.",
        )

    def _judged(self, ended: Ended) -> TarVerdict:
        if ended.exit_code is None or ended.not_started:
            raise unreachable(self._label, f"tar can't be started: {ended.said}")
        verdict = judge_tar(ended.exit_code, ended.complaints)
        if verdict.problem:
            raise PermanentError(
                "pod-command-failed",
                f"{self._label}: {excerpt(verdict.problem)}",
                context={"folder": self._label, "exit_code": ended.exit_code},
                hint="Correct what tar says. Permission denied: give the folder's user in the profile; see "
                "docs/how-to/back-up-a-system.md.",
            )
        return verdict


@dataclass(frozen=True)
class Reading:
    """A folder from where it is read.

    :param way: ``exec`` in a pod that has it, or ``helper pod``.
    :param reason: why it is not the other way.
    """

    seat: Seat
    way: str
    reason: str


class PodFiles:
    """Read folders of pods and claims.

    :param operation: names the helper pod's owner, so that a repeated step knows its own.
    :param image: of the helper pod, with ``sh``, ``sleep``, ``grep`` and ``tar``; None: there is none.
    :param sleep: waits for seconds.
    """

    def __init__(
        self,
        cluster: ClusterHook,
        operation: str,
        *,
        image: str | None = None,
        sleep: Callable[[float], None] = time.sleep,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.cluster = cluster
        self.operation = operation
        self.image = image
        self._sleep = sleep
        self._monotonic = monotonic

    # ------------------------------------------------------------------------------------------------ where a folder is

    def find(self, wanted: FolderReference, namespace: str) -> Folder:
        """Return where a folder of the profile is.

        :raises PermanentError: ``folder-unreachable``, or ``cluster-forbidden``.
        """
        namespace = namespace_of(wanted, namespace)
        pods = self.cluster.list("Pod", namespace)
        if wanted.claim is not None:
            return folder_of_claim(wanted.name, namespace, wanted.claim, wanted.path, pods)
        reference = cast(WorkloadReference, wanted.workload)
        own, container = self.pods_of(reference, wanted.container, namespace, wanted.name)
        return folder_of_workload(wanted.name, namespace, container, wanted.path, own, pods)

    def pods_of(
        self, reference: WorkloadReference, container: str | None, namespace: str, label: str
    ) -> tuple[JsonObjects, str]:
        """Return the pods of a workload and the name of its container, by lists alone: the account may do no more.

        :raises PermanentError: ``folder-unreachable``.
        """
        kinds = (reference.kind,) if reference.kind else WORKLOAD_KINDS
        found = [
            workload
            for kind in kinds
            for workload in self.cluster.list(kind, namespace, reference.selector or None)
            if reference.name in (None, workload["metadata"]["name"])
        ]
        named = reference.name or str(reference.selector)
        if len(found) != 1:
            raise unreachable(label, f"{len(found)} workloads in {namespace} are {named}, expected one")
        workload = found[0]
        containers = [c["name"] for c in workload["spec"]["template"]["spec"]["containers"]]
        if container is None and len(containers) > 1:
            raise unreachable(label, f"{named} has the containers {', '.join(containers)}: name one")
        if container is not None and container not in containers:
            raise unreachable(label, f"{named} has no container {container}, but {', '.join(containers)}")
        return self.cluster.pods_of(workload), container or containers[0]

    # ------------------------------------------------------------------------------------------------- ways to a folder

    @contextmanager
    def reading(self, folder: Folder, user: int | None = None) -> Iterator[Reading]:
        """Give the way to a folder for the duration of the block: a pod that has it and tar, else a helper pod.

        :param user: who the helper pod runs as.
        :raises PermanentError: ``folder-unreachable``, with what stands in both ways.
        """
        seat, why_not = self._own_seat(folder)
        if seat is not None:
            yield Reading(seat, "exec", "its image has tar")
            return
        image = self._image_for(folder, why_not)
        with self._helper(folder, image, user):
            yield Reading(reader_seat(folder), "helper pod", why_not)

    def check(self, folder: Folder) -> None:
        """Look whether there is a way to a folder, as far as that can be seen without going it.

        :raises PermanentError: ``folder-unreachable``, with what stands in both ways.
        """
        if any(self.cluster.can_i(exec_permission(folder, seat) for seat in folder.seats)):
            return
        why_not = "exec in its pods is not allowed" if folder.seats else "no running pod has it"
        self._image_for(folder, why_not)
        node_needed(folder, self._claim(folder))
        wanted = reader_permissions(folder.namespace)
        lacking = [
            f"{access['verb']} {access['resource']}"
            for access, allowed in zip(wanted, self.cluster.can_i(wanted), strict=True)
            if not allowed
        ]
        if lacking:
            raise unreachable(
                folder.name, f"{why_not}, and a helper pod in {folder.namespace} takes {', '.join(lacking)}"
            )

    def _image_for(self, folder: Folder, why_not: str) -> str:
        if not folder.claim:
            raise unreachable(folder.name, f"{why_not}, and it lies on no claim that a helper pod could mount")
        if self.image is None:
            raise unreachable(folder.name, f"{why_not}, and backup.reader_image names no image for a helper pod")
        return self.image

    def _claim(self, folder: Folder) -> JsonObject:
        for claim in self.cluster.list("PersistentVolumeClaim", folder.namespace):
            if claim["metadata"]["name"] == folder.claim:
                return claim
        raise unreachable(folder.name, f"there is no claim {folder.claim} in {folder.namespace}")

    def _own_seat(self, folder: Folder) -> tuple[Seat | None, str]:
        """Return a container that has the folder and tar, or why there is none."""
        why_not = "no running pod has it"
        for seat in folder.seats:
            if self.cluster.can_i([exec_permission(folder, seat)]) != [True]:
                why_not = f"exec in {seat.pod} is not allowed"
                continue
            ended, _ = self.run(folder.namespace, seat, ["tar", "--help"])
            if not ended.not_started:
                return seat, ""
            why_not = f"the image of {seat.pod} has no tar"
        return None, why_not

    @contextmanager
    def _helper(self, folder: Folder, image: str, user: int | None) -> Iterator[None]:
        namespace = folder.namespace
        self.remove_helper(namespace)
        node = node_needed(folder, self._claim(folder))
        try:
            # A create that was answered too late may have been done all the same: it is removed below.
            self.cluster.create(reader_pod(folder, self.operation, image=image, node=node, user=user))
            self._wait_until_running(folder)
            yield
        finally:
            self._remove_quietly(namespace)

    def remove_helper(self, namespace: str) -> None:
        """Remove the helper pod that an earlier try, or a run that died, has left; wait while another one is at work.

        :raises TransientError: ``reader-pod-busy`` when it stays at work for ten minutes.
        """
        end = self._monotonic() + BUSY_LIMIT.total_seconds()
        while (found := self._helper_now(namespace)) is not None:
            if must_go(found, self.operation) or found["metadata"].get("deletionTimestamp"):
                self._delete_helper(found)
            if self._monotonic() >= end:
                raise TransientError(
                    "reader-pod-busy",
                    f"the helper pod {namespace}/{READER} is at work for another backup",
                    context={"pod": f"{namespace}/{READER}"},
                    hint="Wait for that backup. If there is none, delete the pod.",
                )
            if not must_go(found, self.operation):
                self._sleep(2.0)

    def release_helper(self, namespace: str) -> str:
        """Remove the helper pod of this operation, and return its name; empty: there is none.

        :raises TransientError: ``reader-pod-left`` when it stays.
        """
        if self.cluster.can_i([{"verb": "create", "resource": "pods", "namespace": namespace}]) != [True]:
            return ""  # who may make none has none, and may not look for one
        found = self._helper_now(namespace)
        if found is None or not is_reader_of(found, self.operation):
            return ""
        if not self._delete_helper(found):
            raise TransientError(
                "reader-pod-left",
                f"the helper pod {namespace}/{READER} was deleted and is still there",
                context={"pod": f"{namespace}/{READER}"},
                hint="Look at the node that it is on; it ends by itself, and keeps the claim mounted until then.",
            )
        return READER

    def _delete_helper(self, found: JsonObject) -> bool:
        """Delete a helper pod and wait until it is gone; False when it stays."""
        namespace, uid = str(found["metadata"]["namespace"]), str(found["metadata"]["uid"])
        self.cluster.delete("Pod", READER, namespace, uid=uid, grace_period=timedelta(seconds=1))
        return self.cluster.wait_until_gone("Pod", READER, namespace, timeout=GONE_LIMIT, uid=uid, sleep=self._sleep)

    def _remove_quietly(self, namespace: str) -> None:
        """Remove our helper pod; an error of it must not hide how the reading went, and the pod ends by itself."""
        try:
            found = self._helper_now(namespace)
            if found is not None and must_go(found, self.operation):
                self.cluster.delete("Pod", READER, namespace, uid=found["metadata"]["uid"], grace_period=timedelta(0))
        except MaintenanceError as error:
            log.warning("The helper pod %s/%s could not be deleted: %s", namespace, READER, error)

    def _helper_now(self, namespace: str) -> JsonObject | None:
        return self.cluster.find("Pod", READER, namespace)

    def _wait_until_running(self, folder: Folder) -> None:
        end = self._monotonic() + START_LIMIT.total_seconds()
        while True:
            pod = self.cluster.get("Pod", READER, folder.namespace)
            if not (why := why_not_running(pod)):
                return
            if is_over(pod) or self._monotonic() >= end:
                raise TransientError(
                    "reader-pod-failed",
                    f"the helper pod {folder.namespace}/{READER} does not run: {excerpt(why)}",
                    context={"folder": folder.name, "pod": f"{folder.namespace}/{READER}"},
                    hint="Look at backup.reader_image, at the claim, and at what admission rules of the namespace say.",
                )
            self._sleep(0.5)

    # --------------------------------------------------------------------------------------------------------- commands

    @contextmanager
    def tar(self, namespace: str, seat: Seat, label: str, names: Sequence[str] = (".",)) -> Iterator[TarReading]:
        """Start a tar of a folder for the duration of the block.

        :param names: what of the folder, relative to it.
        """
        command = ["tar", "-c", "-f", "-", "-C", seat.path, *names]
        with self.cluster.exec_stream(namespace, seat.pod, seat.container, command) as stream:
            yield TarReading(stream, label)

    def run(self, namespace: str, seat: Seat, command: Sequence[str]) -> tuple[Ended, bytes]:
        """Run a short command and return how it ended and what it wrote, of which only a MiB is kept."""
        written = bytearray()
        with self.cluster.exec_stream(namespace, seat.pod, seat.container, command) as stream:
            for block in stream:
                if len(written) < LONGEST_ANSWER_BYTES:
                    written += block
            return stream.ended, bytes(written)


class _Counted:
    """A stream's blocks as a file for tarfile, which remembers where the last byte is that is not zero."""

    def __init__(self, blocks: ExecStream) -> None:
        self._blocks = iter(blocks)
        self._rest = b""
        self.total_bytes = 0
        self._content_bytes = 0

    def read(self, size: int) -> bytes:
        block = self._rest or self._next()
        piece, self._rest = block[:size], block[size:]
        return piece

    def _next(self) -> bytes:
        block = next(self._blocks, b"")
        if content := len(block.rstrip(b"\0")):
            self._content_bytes = self.total_bytes + content
        self.total_bytes += len(block)
        return block

    def drain(self) -> None:
        """Read what is left, so that the status of the command comes."""
        while self._next():
            pass

    def has_end_at(self, offset: int) -> bool:
        """Return whether an archive ends at an offset: two blocks of zeros, and nothing but zeros behind."""
        return self._content_bytes <= offset and self.total_bytes - offset >= END_OF_ARCHIVE_BYTES


def namespace_of(wanted: FolderReference, default: str) -> str:
    """Return where a folder of the profile is.

    :param default: where one is that does not say.
    """
    return (wanted.workload.namespace if wanted.workload else wanted.namespace) or default


def label_of(reading: Reading) -> dict[str, Any]:
    """Return what the manifest says of a way."""
    return {"way": reading.way, "pod": reading.seat.pod, "reason": reading.reason}
