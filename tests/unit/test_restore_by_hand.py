"""docs/how-to/restore-by-hand.md works as it is written: its own commands, real gpg, zstd and tar, a bucket on loopback."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.unit.backup_bucket import BUCKET, BackupBucket
from tests.unit.hooks.fake_s3 import SECRET, UPLOADER

PAGE = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "restore-by-hand.md"
FILES = {
    "kubernetes/objects/namespaces/nephoran-system/configmaps/settings.json": b'{"a": 1}',
    "again/1/kubernetes/objects/namespaces/nephoran-system/configmaps/settings.json": b'{"a": 2}',
    "empty.json": b"",
}
OF_THE_PERSON = {"AWS_ACCESS_KEY_ID": UPLOADER, "AWS_SECRET_ACCESS_KEY": SECRET}


def blocks(heading: str) -> list[str]:
    section = PAGE.read_text(encoding="utf-8").partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    found = re.findall(r"^```sh\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    assert found, f"the page has no commands below {heading!r}"
    return found


@dataclass
class Person:
    """Somebody who reads the page and types what it says, with settings of their own."""

    settings: dict[str, str]
    work: Path

    def type(self, *scripts: str) -> subprocess.CompletedProcess[str]:
        """Run commands in one shell; the folder of work is there already."""
        first, folders = blocks("What you need")
        named = set(re.findall(r"(\w+)=", first))
        assert named == set(self.settings), "the page and this test name the same settings"
        start = folders.replace('"$(mktemp -d -p /dev/shm restore-XXXXXX)"', f'"{self.work}"')
        assert str(self.work) in start
        script = "\n".join(["set -euo pipefail", start.replace("mkdir ", "mkdir -p "), *scripts])
        environment = {"PATH": os.environ["PATH"], "HOME": str(self.work), **OF_THE_PERSON, **self.settings}
        return subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, check=False)

    def plain(self) -> dict[str, bytes]:
        """Return every file that can be read now."""
        folder = self.work / "plain"
        return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def work() -> Iterator[Path]:
    import tempfile

    # gpg's sockets need a short path.
    folder = Path(tempfile.mkdtemp(prefix="restore-test-", dir="/dev/shm"))
    yield folder
    subprocess.run(["gpgconf", "--homedir", str(folder / "gnupg"), "--kill", "gpg-agent"], check=False)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def person(bucket: BackupBucket, work: Path) -> Person:
    safe = work / "safe"
    safe.mkdir()
    (safe / "signer.asc").write_text(bucket.keys.signer.armored, encoding="ascii")
    (safe / "private.asc").write_text(bucket.keys.private(bucket.keys.operations), encoding="ascii")
    settings = {
        "AWS_ENDPOINT_URL": bucket.server.url,
        "AWS_DEFAULT_REGION": "us-east-1",
        "BUCKET": BUCKET,
        "PREFIX": "backups",
        "BACKUP": bucket.add(1, members=FILES),
        "SIGNER_KEY": str(safe / "signer.asc"),
        "SIGNER": bucket.keys.signer.fingerprint,
        "RECIPIENT_KEY": str(safe / "private.asc"),
    }
    return Person(settings, work)


def fetched(person: Person, bucket: BackupBucket, identifier: str) -> None:
    """Put the files of a backup where the page has them after it was fetched."""
    folder = person.work / "backup"
    folder.mkdir(exist_ok=True)
    for key, data in bucket.s3.objects.items():
        if key.startswith(f"backups/{identifier}/"):
            (folder / key.rpartition("/")[2]).write_bytes(data)


COMPARE, OPEN = blocks("2. Compare before anything is opened"), blocks("3. Open")


@pytest.mark.parametrize("how", ["aws", "curl"])
def test_a_backup_is_fetched_compared_and_opened(how: str, person: Person, bucket: BackupBucket) -> None:
    if how == "aws" and shutil.which("aws") is None:
        pytest.skip("there is no aws here")
    fetch = {"aws": 0, "curl": 1}[how]
    done = person.type(blocks("1. Fetch")[fetch], *COMPARE, *OPEN)
    assert done.returncode == 0, done.stderr
    assert "objects.tar.zst.gpg: OK" in done.stdout
    found = {name.removeprefix("objects/"): data for name, data in person.plain().items() if ".checksums" not in name}
    again = next(name for name in FILES if name.startswith("again/"))
    assert found == {**FILES, again.removeprefix("again/1/"): FILES[again]}, "what came again has taken its place"
    assert SECRET not in done.stdout + done.stderr


def test_nothing_is_left_behind(person: Person, bucket: BackupBucket) -> None:
    fetched(person, bucket, person.settings["BACKUP"])
    done = person.type(*COMPARE, *OPEN, *blocks("6. Leave nothing behind"))
    assert done.returncode == 0, done.stderr
    assert not person.work.exists()


def test_files_of_volumes_get_back_what_a_plain_file_does_not_have(person: Person, bucket: BackupBucket) -> None:
    folder = person.work / "plain" / "knowledge-base" / "knowledge-base" / "docs"
    for name, content in {"files/a b.txt": "one", "files/run.sh": "two"}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    lines = [
        ("d", "0755", "empty"),
        ("f", "0640", "a b.txt"),
        ("f", "0751", "run.sh"),
        ("l", "0777", "newest", "a b.txt"),
        ("h", "0640", "sub/second.txt", "a b.txt"),
    ]
    (folder / "attributes").mkdir()
    table = [
        "\t".join([kind, mode, "1000", "1000", "0", path, *target, *[""] * (1 - len(target))])
        for kind, mode, path, *target in lines
    ]
    (folder / "attributes" / "00001.tsv").write_text("\n".join(table) + "\n")
    done = person.type(*blocks("5. Put the files back"))
    assert done.returncode == 0, done.stderr
    files = folder / "files"
    assert (files / "empty").is_dir()
    assert (files / "newest").readlink() == Path("a b.txt")
    assert (files / "sub" / "second.txt").samefile(files / "a b.txt")
    assert [oct((files / name).stat().st_mode & 0o777) for name in ("a b.txt", "run.sh")] == ["0o640", "0o751"]


def flip(person: Person, bucket: BackupBucket) -> None:
    path = person.work / "backup" / "objects.tar.zst.gpg"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(person: Person, bucket: BackupBucket) -> None:
    path = person.work / "backup" / "objects.tar.zst.gpg"
    path.write_bytes(path.read_bytes()[:-1])


def swap(person: Person, bucket: BackupBucket) -> None:
    folder = person.work / "backup"
    (folder / "objects.inventory.zst").replace(folder / "objects.tar.zst.gpg.old")
    shutil.copy(folder / "objects.tar.zst.gpg", folder / "objects.inventory.zst")


def lose(person: Person, bucket: BackupBucket) -> None:
    (person.work / "backup" / "objects.inventory.zst").unlink()


def replay(person: Person, bucket: BackupBucket) -> None:
    """Put another backup, whole and signed, into its place: its parent, which it names."""
    parent = person.settings["BACKUP"]
    child = bucket.add(0.5, "incremental", parent=parent, members=FILES)
    fetched(person, bucket, child)
    person.settings["BACKUP"] = parent


def edit(person: Person, bucket: BackupBucket) -> None:
    path = person.work / "backup" / "manifest.json"
    path.write_text(path.read_text().replace('"tag": ""', '"tag": "x"'))


def other_signer(person: Person, bucket: BackupBucket) -> None:
    person.settings["SIGNER"] = bucket.keys.operations.fingerprint


def wrong_recipient(person: Person, bucket: BackupBucket) -> None:
    Path(person.settings["RECIPIENT_KEY"]).write_text(bucket.keys.private(bucket.keys.stranger), encoding="ascii")


@pytest.mark.parametrize(
    ("damage", "stops_before"),
    [
        pytest.param(flip, "open", id="bit flip"),
        pytest.param(cut, "open", id="truncation"),
        pytest.param(swap, "open", id="swapped members"),
        pytest.param(lose, "open", id="missing part"),
        pytest.param(replay, "open", id="replayed manifest"),
        pytest.param(edit, "open", id="edited manifest"),
        pytest.param(other_signer, "open", id="another signer"),
        pytest.param(wrong_recipient, "restore", id="wrong recipient"),
    ],
)
def test_damage_stops_it_before_anything_can_be_restored(
    damage: Callable[[Person, BackupBucket], None], stops_before: str, person: Person, bucket: BackupBucket
) -> None:
    fetched(person, bucket, person.settings["BACKUP"])
    damage(person, bucket)
    done = person.type(*COMPARE, "echo COMPARED", *OPEN, "echo OPENED")
    assert done.returncode != 0
    assert ("COMPARED" in done.stdout) == (stops_before == "restore")
    assert "OPENED" not in done.stdout
    assert person.plain() == {}
