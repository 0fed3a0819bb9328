"""What a backup holds of the files on volumes: the knowledge base, folder by folder."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Sequence

from nephoran_maintenance.domain.members import Member
from nephoran_maintenance.domain.pod_files import shown
from nephoran_maintenance.engine.sources import Source, member_of, told
from nephoran_maintenance.errors import PermanentError, TransientError
from nephoran_maintenance.hooks.pod_files import Entry, PodFiles, TarReading, label_of
from nephoran_maintenance.profile import FolderReference

ROOT = "knowledge-base"
LINES_OF_A_LIST = 2_000
KINDS = {tarfile.DIRTYPE: "d", tarfile.SYMTYPE: "l", tarfile.LNKTYPE: "h"}
NOT_CONFIGURED = "the profile names no folder of it (backup.knowledge_base)"


class KnowledgeBase(Source):
    """The files of the knowledge base, as they lie on their volumes.

    Of each folder: ``<name>/files/`` has the files, ``<name>/attributes/`` lists of everything that is in it: kind (``f``
    file, ``d`` folder, ``l`` symbolic link, ``h`` further name of a file), mode, user, group, time, path, and for links
    their target, with tabs between.

    :param folders: what the profile names; none: the source is absent.
    :param namespace: the system's, where a folder says no other.
    """

    name = "knowledge-base"

    def __init__(self, files: PodFiles, folders: Sequence[FolderReference], namespace: str) -> None:
        super().__init__()
        self.files = files
        self.folders = folders
        self.namespace = namespace

    def members(self) -> Iterator[Member]:
        self.facts = {"folders": {}}
        if not self.folders:
            self.absent = NOT_CONFIGURED
        # All of them are found before the first is read: what is wrong in the profile is told at once.
        for wanted, folder in [(one, self.files.find(one, self.namespace)) for one in self.folders]:
            contents = FolderContents(wanted.name)
            with (
                self.files.reading(folder, wanted.user) as reading,
                self.files.tar(folder.namespace, reading.seat, wanted.name) as tar,
            ):
                yield from contents.members(tar)
            self.facts["folders"][wanted.name] = {
                **label_of(reading),
                "namespace": folder.namespace,
                "claim": folder.claim,
                "path": wanted.path,
                **contents.counts,
                **told("changed_meanwhile", tar.verdict.changed),
                **told("left_out", [*contents.left_out, *tar.verdict.ignored]),
            }
            if tar.verdict.changed and not wanted.may_change:
                raise _changing(wanted.name, tar.verdict.changed)
            if not contents.counts["files"]:
                raise _empty(wanted.name)


class FolderContents:
    """What a tar of a folder becomes in the archive: members, and counts once all were given."""

    def __init__(self, name: str) -> None:
        self._root = f"{ROOT}/{name}"
        self._lines: list[str] = []
        self._lists = 0
        self.counts = {"files": 0, "bytes": 0, "folders": 0, "links": 0}
        self.left_out: list[str] = []

    def members(self, tar: TarReading) -> Iterator[Member]:
        for entry in tar.entries():
            yield from self._member(entry)
            if len(self._lines) >= LINES_OF_A_LIST:
                yield self._list()
        if self._lines:
            yield self._list()

    def _member(self, entry: Entry) -> Iterator[Member]:
        info = entry.info
        if not entry.path.isprintable() or "\\" in entry.path:
            raise _unsupported(entry.path)
        if info.isreg():
            kind = "f"
            self.counts["files"] += 1
            self.counts["bytes"] += info.size
        elif info.type in KINDS:
            kind = KINDS[info.type]
            self.counts["folders" if kind == "d" else "links"] += 1
        else:
            self.left_out.append(entry.path)
            return
        target = info.linkname.removeprefix("./") if kind == "h" else info.linkname
        if not target.isprintable():
            raise _unsupported(entry.path)
        fields = [kind, f"{info.mode:04o}", str(info.uid), str(info.gid), f"{info.mtime:.0f}", entry.path.rstrip("/")]
        self._lines.append("\t".join([*fields, target]) + "\n")
        if kind == "f":
            yield Member(f"{self._root}/files/{entry.path}", info.size, entry.chunks)

    def _list(self) -> Member:
        self._lists += 1
        content, self._lines = "".join(self._lines).encode(), []
        return member_of(f"{self._root}/attributes/{self._lists:05}.tsv", content)


def _changing(name: str, paths: Sequence[str]) -> TransientError:
    return TransientError(
        "files-changing",
        f"{len(paths)} files of {name} changed or vanished while they were read: {shown(paths)}",
        context={"folder": name},
        hint="Try again when nobody writes there. Where files always change, set may_change on the folder in the profile.",
    )


def _empty(name: str) -> PermanentError:
    return PermanentError(
        "folder-empty",
        f"there is no file in the folder {name}",
        context={"folder": name},
        hint="Correct the path in the profile, or take the folder out of it.",
    )


def _unsupported(path: str) -> PermanentError:
    return PermanentError(
        "file-name-unsupported",
        f"the name {path!r} has a backslash, or a character that can't be printed",
        context={"path": ascii(path)},
        hint="Rename the file: sha256sum and the lists of a backup could not name it.",
    )
