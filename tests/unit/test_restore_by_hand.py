"""docs/how-to/restore-by-hand.md works as it is written: its own commands, real gpg, zstd and tar, a bucket on loopback."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.restore_page import blocks
from tests.unit.backup_bucket import BUCKET, BackupBucket
from tests.unit.hooks.fake_s3 import SECRET, UPLOADER, FakeS3
from tests.unit.hooks.fake_servers import Received, Reply, serving

FILES = {
    "kubernetes/objects/namespaces/nephoran-system/configmaps/settings.json": b'{"a": 1}',
    "again/1/kubernetes/objects/namespaces/nephoran-system/configmaps/settings.json": b'{"a": 2}',
    "empty.json": b"",
}
OF_THE_PERSON = {"AWS_ACCESS_KEY_ID": UPLOADER, "AWS_SECRET_ACCESS_KEY": SECRET}


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


def test_what_a_key_signed_before_its_end_is_compared_and_opened(person: Person, bucket: BackupBucket) -> None:
    ended = bucket.keys.expired
    fetched(person, bucket, person.settings["BACKUP"])
    manifest = person.work / "backup" / "manifest.json"
    options = ("--faked-system-time", "20260101T120000!", "--local-user", ended.fingerprint)
    signature = bucket.keys.gpg(*options, "--armor", "--detach-sign", data=manifest.read_bytes())
    (person.work / "safe" / "signer.asc").write_text(ended.armored, encoding="ascii")
    person.settings["SIGNER"] = ended.fingerprint
    (manifest.parent / "manifest.json.asc").write_bytes(signature)
    done = person.type(*COMPARE)
    assert done.returncode == 0, done.stderr
    assert "EXPKEYSIG" in done.stdout


def test_nothing_is_left_behind(person: Person, bucket: BackupBucket) -> None:
    fetched(person, bucket, person.settings["BACKUP"])
    done = person.type(*COMPARE, *OPEN, *blocks("7. Leave nothing behind"))
    assert done.returncode == 0, done.stderr
    assert not person.work.exists()


def test_files_of_volumes_get_back_what_a_plain_file_does_not_have(person: Person, bucket: BackupBucket) -> None:
    folder = person.work / "plain" / "knowledge-base" / "knowledge-base" / "docs"
    for name, content in {"files/a b.txt": "one", "files/run.sh": "two"}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    lines = [
        ("d", "0755", "empty"),
        ("d", "0555", "sub"),
        ("d", "2770", "sub/inner"),
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
    done = person.type(*blocks("6. Put the files back"))
    assert done.returncode == 0, done.stderr
    files = folder / "files"
    assert (files / "empty").is_dir()
    assert (files / "newest").readlink() == Path("a b.txt")
    assert (files / "sub" / "second.txt").samefile(files / "a b.txt")
    assert [oct((files / name).stat().st_mode & 0o777) for name in ("a b.txt", "run.sh")] == ["0o640", "0o751"]
    folders = [files / name for name in ("empty", "sub", "sub/inner")]
    assert [oct(name.stat().st_mode & 0o7777) for name in folders] == ["0o755", "0o555", "0o2770"]


OF_A_PARENT, BUILT_ON = blocks("An incremental backup needs its parent")
FETCH = blocks("1. Fetch")[1]


def with_parent(person: Person, bucket: BackupBucket, parent: str) -> subprocess.CompletedProcess[str]:
    """Fetch and open an incremental backup, and then what is said to be its parent."""
    child = bucket.add(0.5, "incremental", parent=person.settings["BACKUP"], members={"changed.json": b"1"})
    person.settings["BACKUP"] = child
    there = re.sub(r"(BACKUP)=\S+", rf"\1={parent}", OF_A_PARENT)
    return person.type(FETCH, *COMPARE, *OPEN, there, FETCH, *COMPARE, "echo COMPARED", BUILT_ON, *OPEN)


def test_a_parent_is_opened_in_the_folder_of_its_child(person: Person, bucket: BackupBucket) -> None:
    done = with_parent(person, bucket, person.settings["BACKUP"])
    assert done.returncode == 0, done.stderr
    assert person.plain()["objects/changed.json"] == b"1"
    assert (person.work / "parent" / "plain" / "objects" / "empty.json").exists()


def test_a_backup_that_it_was_not_built_on_is_not_opened_as_the_parent(person: Person, bucket: BackupBucket) -> None:
    done = with_parent(person, bucket, bucket.add(2, members=FILES))
    assert done.returncode != 0
    assert "COMPARED" in done.stdout
    assert list((person.work / "parent" / "plain").iterdir()) == []


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


_FORWARD, SETTINGS, _KEY, LOOK, UPLOAD, RESTORE, WAIT, CLEAR, COUNT = blocks("5. Put Weaviate back")
STAGING = "staging"
CHUNKS = {"full-1": b"one", "incremental-2": b"two"}


@dataclass
class RestoringWeaviate:
    """It restores a backup out of its staging bucket; ``ends`` is how, "" for never, ``collections`` is what it has."""

    s3: FakeS3
    ends: str = "SUCCESS"
    collections: dict[str, int] = field(default_factory=dict)
    asked: int = 0

    def __call__(self, request: Received) -> Reply:
        assert request.headers["authorization"] == "Bearer key-of-weaviate"
        if request.path == "/v1/schema":
            return Reply(
                200, json.dumps({"classes": [{"class": name} for name in self.collections]}, separators=(",", ":"))
            )
        if request.path == "/v1/meta":
            return Reply(200, '{"modules":{"backup-s3":{"bucketName":"staging"}},"version":"1.39.0"}')
        if request.path == "/v1/nodes":
            return Reply(200, '{"nodes":[{"name":"weaviate-0","shards":null}]}')
        if request.path == "/v1/graphql":
            name = str(re.search(r"Aggregate { (\w+)", request.json["query"])[1])  # type: ignore[index]
            return Reply(
                200, f'{{"data":{{"Aggregate":{{"{name}":[{{"meta":{{"count":{self.collections[name]}}}}}]}}}}}}'
            )
        assert request.path == "/v1/backups/s3/incremental-2/restore"
        if request.method == "POST":
            self.s3.put("incremental-2/restore_config.json", b"{}")
            return Reply(200, '{"status":"STARTED"}')
        self.asked += 1
        if self.asked == 1:
            return Reply(503, "")
        if self.asked < 4 or not self.ends:
            return Reply(200, '{"id":"incremental-2","status":"TRANSFERRING"}')
        self.collections = {"Known": 3, "Other": 2}
        reason = "" if self.ends == "SUCCESS" else '"error":"no space left",'
        return Reply(200, f'{{{reason}"id":"incremental-2","status":"{self.ends}"}}')


def of_weaviate(identifier: str) -> dict[str, Any]:
    facts = {
        "backup_id": identifier,
        "base_backup_id": "full-1",
        "collections": ["Known", "Other"],
        "nodes": ["weaviate-0"],
    }
    return {"name": "weaviate", "state": "captured", "archive": {"key": "weaviate.tar.zst.gpg"}, "facts": facts}


@dataclass
class Site:
    """A Weaviate with its staging bucket, and the person who puts it back in a shell in which waiting takes no time."""

    person: Person
    weaviate: RestoringWeaviate
    settings: str

    @property
    def staged(self) -> dict[str, bytes]:
        return self.weaviate.s3.objects

    def type(self, *commands: str) -> subprocess.CompletedProcess[str]:
        return self.person.type(self.settings, "sleep() { SECONDS=$((SECONDS + 600)); }", *commands)


@pytest.fixture
def site(person: Person) -> Iterator[Site]:
    opened_chain(person.work)
    staging = FakeS3(STAGING)
    staging.may_delete = True
    weaviate = RestoringWeaviate(staging)
    assert re.findall(r"(\w+)=", SETTINGS) == ["STAGING", "WEAVIATE_URL"]
    with serving(weaviate) as server, serving(staging) as store:
        yield Site(person, weaviate, f"export STAGING={STAGING} WEAVIATE_URL={server.url} AWS_ENDPOINT_URL={store.url}")


def opened_chain(link: Path) -> None:
    """Make what there is of an incremental backup and its parent once they were opened."""
    lines = ["silent", "show-error", "fail-with-body", 'header = "Authorization: Bearer key-of-weaviate"']
    (link / "weaviate.conf").write_text("\n".join(lines))
    facts = link / "plain" / "weaviate-facts" / "weaviate" / "collections.json"
    facts.parent.mkdir(parents=True)
    measured = {"asked": 1, "objects": 9, "state": "measured"}
    counted: dict[str, Any] = {
        name: {"counted_by": "aggregate", "objects": count, "reachability": measured}
        for name, count in (("Known", 3), ("Other", 2))
    }
    counted["Rented"] = {"counted_by": "nodes", "objects": 7, "reachability": {"state": "not measured"}}
    facts.write_text(json.dumps(counted, separators=(",", ":")))
    for identifier in ("incremental-2", "full-1"):
        files = link / "plain" / "weaviate" / "weaviate" / "backup"
        (files / "weaviate-0" / "Known").mkdir(parents=True)
        (files / "weaviate-0" / "Known" / "chunk-1").write_bytes(CHUNKS[identifier])
        for name in ("backup_config.json", "weaviate-0/backup.json"):
            (files / name).write_text(identifier)
        (link / "backup").mkdir()
        sources = [{"name": "weaviate-facts", "facts": {"collections": {"No": 1}}}, of_weaviate(identifier)]
        (link / "backup" / "manifest.json").write_text(json.dumps({"sources": sources}, indent=2))
        link /= "parent"


def test_every_link_is_staged_and_the_last_one_restored(site: Site) -> None:
    staged: dict[str, bytes] = {}
    site.weaviate.s3.fail = lambda request: staged.update(site.staged) if request.method == "DELETE" else None
    done = site.type(LOOK, UPLOAD, RESTORE, WAIT, CLEAR, COUNT, "echo COMPARED")
    assert done.returncode == 0, done.stderr
    descriptors = {f"{link}/{name}" for link in CHUNKS for name in ("backup_config.json", "weaviate-0/backup.json")}
    chunks = {f"{link}/weaviate-0/Known/chunk-1": content for link, content in CHUNKS.items()}
    assert staged.items() >= chunks.items()
    assert staged.keys() == descriptors | chunks.keys() | {"incremental-2/restore_config.json"}
    assert site.staged.keys() == descriptors
    for said in ("Known: 3 in the backup, 3 now", "Rented has tenants: 7", '"bucketName":"staging"', "COMPARED"):
        assert said in done.stdout


def test_nothing_is_staged_for_a_collection_that_is_there_already(site: Site) -> None:
    site.weaviate.collections = {"Unrelated": 1, "Other": 1}
    done = site.type(LOOK, UPLOAD)
    assert done.returncode != 0
    assert "Other is there already" in done.stderr
    assert site.staged == {}


@pytest.mark.parametrize(
    ("ends", "said"),
    [
        pytest.param("FAILED", "no space left", id="failed"),
        pytest.param("CANCELED", "no space left", id="canceled"),
        pytest.param("", "no end after four hours", id="never ends"),
    ],
)
def test_a_restore_that_comes_to_nothing_stops_and_another_shell_clears_the_bucket(
    ends: str, said: str, site: Site
) -> None:
    site.weaviate.ends = ends
    done = site.type(LOOK, UPLOAD, RESTORE, WAIT, "echo RESTORED")
    assert done.returncode != 0
    assert said in done.stdout + done.stderr
    assert "RESTORED" not in done.stdout
    cleared = site.type(CLEAR)
    assert cleared.returncode == 0, cleared.stderr
    assert {key.rpartition("/")[2] for key in site.staged} == {"backup_config.json", "backup.json"}


def test_a_count_that_differs_stops_it_after_all_were_shown(site: Site) -> None:
    site.weaviate.collections = {"Known": 2, "Other": 2}
    done = site.type(COUNT)
    assert done.returncode != 0
    assert "Known: 3 in the backup, 2 now" in done.stdout
    assert "Other: 2 in the backup, 2 now" in done.stdout
