"""A backup that was tampered with is found before anything of it is restored: real gpg on small data."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from nephoran_maintenance.domain.backups import backup_id
from nephoran_maintenance.domain.manifest import Cluster, Manifest, Note, Parent, Recipient, Source
from nephoran_maintenance.domain.members import Member
from nephoran_maintenance.domain.openpgp_keys import PinnedKey
from nephoran_maintenance.errors import PermanentError
from nephoran_maintenance.hooks.archive import ArchiveWriter
from nephoran_maintenance.hooks.backup_store import BackupStore
from nephoran_maintenance.hooks.object_store import ObjectStoreHook
from nephoran_maintenance.hooks.openpgp import OpenPgpHook, SigningKey
from tests.unit.openpgp_keys import SIGNING, KeyMaker

AT = datetime(2026, 11, 24, 2, 30, tzinfo=UTC)
OTHER_DAY = AT - timedelta(days=1)
SOURCES = ("kubernetes", "weaviate")


@dataclass
class Bench:
    """A store in a folder, a worker that signs, and two backups of the same system."""

    keys: KeyMaker
    pgp: OpenPgpHook
    store: ObjectStoreHook
    backups: BackupStore
    key: SigningKey
    root: Path
    ids: list[str] = field(default_factory=list)
    made: Bench | None = None

    def other(self) -> str:
        """Put a second backup into the store, and return its id."""
        assert self.made
        identifier = self.made.ids[1]
        shutil.copytree(self.made.path(identifier, "manifest.json").parent, self.root / "backups" / identifier)
        return identifier

    def make(self, at: datetime, *, to: list[PinnedKey] | None = None, parent: Parent | None = None) -> str:
        named = self.pgp.import_recipients([self.keys.operations, self.keys.escrow], at)
        recipients = self.pgp.import_recipients(to, at) if to else named
        identifier = backup_id("incremental" if parent else "full", at, f"backup-{at.isoformat()}")
        writer = ArchiveWriter(self.store, self.pgp, recipients, digest_key=b"k" * 32, changed_at=at)
        sources = []
        for name in SOURCES:
            content = f"{name} of {at.isoformat()}".encode()
            record = writer.write(self.backups.folder(identifier), name, [Member("a.json", len(content), [content])])
            sources.append(
                Source(name=name, required=True, state="captured", started_at=at, ended_at=at, archive=record)
            )
        pairs = zip((self.keys.operations, self.keys.escrow), named, strict=True)
        manifest = Manifest(
            backup_id=identifier,
            type="incremental" if parent else "full",
            operation_id="backup-1",
            system="nephoran",
            cluster=Cluster(name="lab", uid="uid-1", kubernetes_version="v1.36.4"),
            started_at=at,
            ended_at=at + timedelta(minutes=1),
            sources=tuple(sources),
            encryption="public-key",
            recipients=tuple(
                Recipient(name=pin.name, fingerprint=pin.fingerprint, key_ids=key.encryption_key_ids)
                for pin, key in pairs
            ),
            digest_key_id="id",
            parent=parent,
            tool_version="0",
        )
        self.backups.write_manifest(manifest, self.key)
        return identifier

    def path(self, identifier: str, name: str) -> Path:
        return self.root / "backups" / identifier / name

    def note(self, identifier: str) -> Note:
        return self.backups.read_back(identifier, AT, "backup-1")


@pytest.fixture(scope="module")
def opened(keys: KeyMaker) -> Iterator[tuple[OpenPgpHook, SigningKey]]:
    with pytest.MonkeyPatch.context() as patch, OpenPgpHook() as pgp:
        patch.setenv("AIRFLOW_CONN_OPENPGP_SIGNING", keys.signing_connection())
        yield pgp, pgp.import_signing_key(SIGNING)


@pytest.fixture(scope="module")
def made(keys: KeyMaker, opened: tuple[OpenPgpHook, SigningKey], tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """Two backups, made once; each test gets copies of them."""
    bench = bench_in(tmp_path_factory.mktemp("made"), keys, opened)
    bench.ids = [bench.make(AT), bench.make(OTHER_DAY)]
    return bench


@pytest.fixture
def bench(made: Bench, opened: tuple[OpenPgpHook, SigningKey], tmp_path: Path) -> Bench:
    shutil.copytree(made.path(made.ids[0], "manifest.json").parent, tmp_path / "backups" / made.ids[0])
    bench = bench_in(tmp_path, made.keys, opened)
    bench.made = made
    return bench


def bench_in(folder: Path, keys: KeyMaker, opened: tuple[OpenPgpHook, SigningKey]) -> Bench:
    store = ObjectStoreHook(local_folder=folder)
    return Bench(keys, opened[0], store, BackupStore(store, opened[0], "backups", [keys.signer]), opened[1], folder)


def test_backups_count_after_the_end_of_the_key_that_signed_them(bench: Bench, keys: KeyMaker) -> None:
    """Else every backup would cease to count on one day, and with them the last good one."""
    identifier = bench.make(datetime(2026, 1, 1, 3, tzinfo=UTC))
    then = ("--faked-system-time", "20260101T060000", "--local-user", keys.expired.fingerprint)
    data = bench.path(identifier, "manifest.json").read_bytes()
    signature = keys.gpg(*then, "--armor", "--detach-sign", data=data)
    bench.path(identifier, "manifest.json.asc").write_bytes(signature)
    with OpenPgpHook() as pgp:
        listing = BackupStore(bench.store, pgp, "backups", [keys.signer, keys.expired]).list()
    assert listing.problems == {}
    assert identifier in [backup.backup_id for backup in listing.backups]


@pytest.fixture
def one(made: Bench) -> str:
    return made.ids[0]


def test_a_backup_that_nobody_touched_is_checked(bench: Bench, one: str) -> None:
    note = bench.note(one)
    assert (note.grade, note.files, note.backup_id) == ("checked", 4, one)
    assert note.read_bytes == sum(p.stat().st_size for p in (bench.root / "backups" / one).iterdir() if ".z" in p.name)
    bench.backups.write_note(note, bench.key)
    (known,) = bench.backups.list().backups
    assert (known.backup_id, known.checked_at, known.verified_at) == (one, AT, None)


# ------------------------------------------------------------------------------------------------------ damaged files

ARCHIVE = "kubernetes.tar.zst.gpg"


def flip(bench: Bench, one: str) -> None:
    path = bench.path(one, ARCHIVE)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(bench: Bench, one: str) -> None:
    path = bench.path(one, ARCHIVE)
    path.write_bytes(path.read_bytes()[:-1])


def swap(bench: Bench, one: str) -> None:
    first, second = bench.path(one, ARCHIVE), bench.path(one, "weaviate.tar.zst.gpg")
    data = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(data)


def lose_a_part(bench: Bench, one: str) -> None:
    path = bench.path(one, ARCHIVE)
    data = path.read_bytes()
    path.write_bytes(data[:100] + data[200:])


def swap_parts(bench: Bench, one: str) -> None:
    path = bench.path(one, ARCHIVE)
    data = path.read_bytes()
    path.write_bytes(data[:100] + data[200:300] + data[100:200] + data[300:])


def lose(bench: Bench, one: str) -> None:
    bench.path(one, ARCHIVE).unlink()


def swap_inventories(bench: Bench, one: str) -> None:
    shutil.copy(bench.path(one, "weaviate.inventory.zst"), bench.path(one, "kubernetes.inventory.zst"))


def take_from_another(bench: Bench, one: str) -> None:
    shutil.copy(bench.path(bench.other(), ARCHIVE), bench.path(one, ARCHIVE))


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        pytest.param(flip, "kubernetes.tar.zst.gpg has the SHA-256", id="a bit flipped"),
        pytest.param(cut, "kubernetes.tar.zst.gpg has .* bytes, expected", id="cut"),
        pytest.param(swap, "kubernetes.tar.zst.gpg has .*weaviate.tar.zst.gpg has", id="two swapped"),
        pytest.param(lose, "kubernetes.tar.zst.gpg is missing", id="missing"),
        pytest.param(lose_a_part, "kubernetes.tar.zst.gpg has .* bytes, expected", id="a part missing"),
        pytest.param(swap_parts, "kubernetes.tar.zst.gpg has the SHA-256", id="parts swapped"),
        pytest.param(swap_inventories, "kubernetes.inventory.zst has", id="inventories swapped"),
        pytest.param(take_from_another, "kubernetes.tar.zst.gpg has", id="taken from another backup"),
    ],
)
def test_damage_to_a_file_is_named(damage: Callable[[Bench, str], None], expected: str, bench: Bench, one: str) -> None:
    damage(bench, one)
    with pytest.raises(PermanentError, match=expected) as error:
        bench.note(one)
    assert error.value.reference == "backup-damaged"


@pytest.mark.parametrize(
    ("who", "expected"),
    [
        pytest.param(("operations",), "not encrypted to escrow", id="one is shut out"),
        pytest.param(("operations", "escrow", "stranger"), "also encrypted to", id="one too many"),
        pytest.param(("stranger",), "also encrypted to", id="another one"),
    ],
)
def test_an_archive_for_other_recipients_than_the_manifest_says_is_named(
    who: tuple[str, ...], expected: str, bench: Bench
) -> None:
    makers = {"operations": bench.keys.operations, "escrow": bench.keys.escrow}
    if "stranger" in who:
        makers["stranger"] = bench.keys.stranger
    one = bench.make(OTHER_DAY, to=[makers[name] for name in who])
    with pytest.raises(PermanentError, match=expected) as error:
        bench.note(one)
    assert error.value.reference == "backup-damaged"


# ----------------------------------------------------------------------------------------------------- false manifests


def edit(bench: Bench, one: str) -> None:
    path = bench.path(one, "manifest.json")
    path.write_text(path.read_text(encoding="utf-8").replace('"daily"', '"yearly"'), encoding="utf-8")


def sign_by_another(bench: Bench, one: str) -> None:
    data = bench.path(one, "manifest.json").read_bytes()
    signature = bench.keys.gpg("--local-user", bench.keys.operations.fingerprint, "--armor", "--detach-sign", data=data)
    bench.path(one, "manifest.json.asc").write_bytes(signature)


def replay(bench: Bench, one: str) -> None:
    other = bench.other()
    for name in ("manifest.json", "manifest.json.asc"):
        shutil.copy(bench.path(other, name), bench.path(one, name))


def replay_manifest_alone(bench: Bench, one: str) -> None:
    shutil.copy(bench.path(bench.other(), "manifest.json"), bench.path(one, "manifest.json"))


@pytest.mark.parametrize(
    ("damage", "reference"),
    [
        pytest.param(edit, "openpgp-signature-invalid", id="edited"),
        pytest.param(sign_by_another, "openpgp-signature-invalid", id="signed by another"),
        pytest.param(replay, "manifest-invalid", id="another backup's, with its signature"),
        pytest.param(replay_manifest_alone, "openpgp-signature-invalid", id="another backup's, alone"),
    ],
)
def test_a_false_manifest_is_refused(
    damage: Callable[[Bench, str], None], reference: str, bench: Bench, one: str
) -> None:
    damage(bench, one)
    with pytest.raises(PermanentError) as error:
        bench.note(one)
    assert error.value.reference == reference
    listing = bench.backups.list()
    assert one in listing.problems
    assert one not in {backup.backup_id for backup in listing.backups}


def test_a_whole_backup_under_another_id_is_refused(bench: Bench, one: str) -> None:
    stolen = backup_id("full", OTHER_DAY, "another")
    shutil.copytree(bench.root / "backups" / one, bench.root / "backups" / stolen)
    with pytest.raises(PermanentError, match=f"is the manifest of {one}") as error:
        bench.note(stolen)
    assert error.value.reference == "manifest-invalid"


def test_the_manifest_of_an_earlier_try_does_not_fit_the_later_files(bench: Bench, one: str) -> None:
    names = ("manifest.json", "manifest.json.asc")
    earlier = {name: bench.path(one, name).read_bytes() for name in names}
    assert bench.make(AT) == one
    bench.note(one)
    for name, data in earlier.items():
        bench.path(one, name).write_bytes(data)
    with pytest.raises(PermanentError) as error:
        bench.note(one)
    assert error.value.reference == "backup-damaged"


def test_a_manifest_that_was_signed_before_the_backup_ended_is_refused(bench: Bench) -> None:
    future = bench.make(datetime.now(UTC) + timedelta(days=1))
    with pytest.raises(PermanentError, match="before the backup had ended"):
        bench.note(future)


@pytest.mark.parametrize("name", ["manifest.json", "manifest.json.asc"])
def test_a_backup_without_signed_manifest_does_not_exist(name: str, bench: Bench, one: str) -> None:
    bench.path(one, name).unlink()
    with pytest.raises(PermanentError) as error:
        bench.note(one)
    assert error.value.reference == "backup-not-found"
    assert bench.backups.list().backups == ()


def test_a_backup_of_another_cluster_is_refused(bench: Bench, one: str) -> None:
    bench.backups.read_manifest(one, cluster_uid="uid-1")
    with pytest.raises(PermanentError, match="is of the cluster uid-1, expected uid-2"):
        bench.backups.read_manifest(one, cluster_uid="uid-2")


def test_a_manifest_of_a_signer_that_is_no_longer_pinned_is_refused(bench: Bench, one: str) -> None:
    with OpenPgpHook() as pgp:
        backups = BackupStore(bench.store, pgp, "backups", [bench.keys.operations])
        with pytest.raises(PermanentError) as error:
            backups.read_manifest(one)
    assert error.value.reference == "openpgp-signature-invalid"


def test_nothing_is_signed_with_a_key_that_nobody_would_accept(bench: Bench) -> None:
    bench.backups = BackupStore(bench.store, bench.pgp, "backups", [bench.keys.operations])
    before = sorted(bench.root.rglob("manifest*"))
    with pytest.raises(PermanentError) as error:
        bench.make(OTHER_DAY)
    assert error.value.reference == "openpgp-signer-not-pinned"
    assert sorted(bench.root.rglob("manifest*")) == before


# --------------------------------------------------------------------------------------------------------------- notes


def test_a_note_counts_for_its_own_manifest_only(bench: Bench, one: str) -> None:
    other = bench.other()
    bench.backups.write_note(bench.note(other), bench.key)
    for name in ("checked.json", "checked.json.asc"):
        shutil.copy(bench.path(other, name), bench.path(one, name))
    listing = bench.backups.list()
    assert [backup.backup_id for backup in listing.backups] == [other]
    assert "has a note on another manifest" in listing.problems[one]


def test_a_note_that_was_edited_is_refused(bench: Bench, one: str) -> None:
    bench.backups.write_note(bench.note(one), bench.key)
    path = bench.path(one, "checked.json")
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), "grade": "verified"}), encoding="utf-8")
    assert "signature" in bench.backups.list().problems[one]


def test_a_checked_note_does_not_stand_for_a_verified_one(bench: Bench, one: str) -> None:
    bench.backups.write_note(bench.note(one), bench.key)
    for suffix in ("", ".asc"):
        shutil.copy(bench.path(one, f"checked.json{suffix}"), bench.path(one, f"verified.json{suffix}"))
    assert one in bench.backups.list().problems


def test_a_note_of_one_recipient_does_not_stand_for_another(bench: Bench, one: str) -> None:
    note = bench.note(one).model_copy(update={"grade": "opened", "recipient": "operations"})
    bench.backups.write_note(note, bench.key)
    data = bench.backups.read_manifest(one)[1]
    assert bench.backups.read_note(one, "opened", data, "operations") == note
    assert bench.backups.read_note(one, "opened", data, "escrow") is None
    opened = bench.root / "backups" / "opened" / one
    for name in ("operations.json", "operations.json.asc"):
        shutil.copy(opened / name, opened / name.replace("operations", "escrow"))
    with pytest.raises(PermanentError, match="opened operations in the place of opened escrow"):
        bench.backups.read_note(one, "opened", data, "escrow")
    assert list(bench.backups.folders()) == [one]
