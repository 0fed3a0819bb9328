"""What a manifest may not say, and what a backup must have to get one."""

from __future__ import annotations

import tomllib
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from nephoran_maintenance.domain.manifest import Manifest, Source, StoredFile, check_complete, compare_files, encoded
from nephoran_maintenance.errors import PermanentError
from nephoran_maintenance.settings import PROJECT_ROOT, VERSION

AT = datetime(2026, 11, 24, 2, 30, tzinfo=UTC)


def archive(name: str = "kubernetes") -> dict[str, Any]:
    return {
        "key": f"{name}.tar.zst.gpg",
        "size_bytes": 10,
        "sha256": "a" * 64,
        "sha256_before_encryption": "b" * 64,
        "members": 1,
        "member_bytes": 5,
        "inventory_key": f"{name}.inventory.zst",
        "inventory_sha256": "c" * 64,
        "inventory_size_bytes": 3,
    }


def source(**changes: Any) -> dict[str, Any]:
    captured = {"name": "kubernetes", "required": True, "state": "captured", "archive": archive()}
    return {**captured, "started_at": AT, "ended_at": AT, **changes}


def manifest(**changes: Any) -> dict[str, Any]:
    return {
        "backup_id": "full-20261124t023000z-1a2b3c",
        "type": "full",
        "operation_id": "backup-1",
        "system": "nephoran",
        "cluster": {"name": "lab", "uid": "u", "kubernetes_version": "v1.36.4"},
        "started_at": AT,
        "ended_at": AT + timedelta(minutes=1),
        "sources": [source()],
        "encryption": "public-key",
        "recipients": [{"name": "operations", "fingerprint": "A" * 40, "key_ids": ["B" * 16]}],
        "digest_key_id": "k",
        "tool_version": "1",
        **changes,
    }


PARENT = {"backup_id": "full-20261123t023000z-1a2b3c", "manifest_sha256": "d" * 64, "depth": 0}
INCREMENTAL = {"backup_id": "incremental-20261124t023000z-1a2b3c", "type": "incremental"}


def test_a_manifest_reads_as_it_was_written() -> None:
    written = Manifest.model_validate(manifest(**INCREMENTAL, parent=PARENT))
    assert Manifest.model_validate_json(encoded(written)) == written
    assert written.depth == 1
    assert [file.key for file in written.files] == ["kubernetes.tar.zst.gpg", "kubernetes.inventory.zst"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        pytest.param({"backup_id": "full"}, "no id of a backup", id="id"),
        pytest.param({"type": "config-only"}, "not the id of a config-only backup", id="another type"),
        pytest.param(INCREMENTAL, "an incremental backup has a parent", id="no parent"),
        pytest.param({"parent": PARENT}, "no other has one", id="a parent too many"),
        pytest.param(
            {**INCREMENTAL, "parent": {**PARENT, "backup_id": INCREMENTAL["backup_id"]}}, "own parent", id="itself"
        ),
        pytest.param({"recipients": []}, "needs them", id="no recipients"),
        pytest.param({"encryption": "passphrase"}, "recipients belong", id="recipients and a passphrase"),
        pytest.param({"sources": []}, "at least 1 item", id="no source"),
        pytest.param({"sources": [source(), source()]}, "listed twice", id="twice"),
        pytest.param({"sources": [source(), source(name="other")]}, "listed twice", id="one file of two sources"),
        pytest.param({"ended_at": AT - timedelta(1)}, "ended before", id="times"),
        pytest.param({"started_at": AT.replace(tzinfo=None)}, "timezone", id="naive"),
        pytest.param({"comment": "x"}, "Extra inputs", id="unknown key"),
        pytest.param({"sources": [source(archive=None)]}, "an archive belongs to captured", id="captured nothing"),
        pytest.param({"sources": [source(state="failed")]}, "an archive belongs to captured", id="failed, captured"),
        pytest.param({"sources": [source(state="absent", archive=None)]}, "without a reason", id="no reason"),
        pytest.param(
            {"sources": [source(archive={**archive(), "key": "../other/x.gpg"})]}, "match pattern", id="leads elsewhere"
        ),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValidationError, match=expected):
        Manifest.model_validate(manifest(**changes))


@pytest.mark.parametrize("state", ["absent", "failed"])
def test_a_required_source_that_is_not_there_fails_the_backup(state: str) -> None:
    lacking = Source.model_validate(source(name="weaviate", state=state, archive=None, reason="no backup module"))
    with pytest.raises(PermanentError, match=f"weaviate {state} \\(no backup module\\)") as error:
        check_complete([Source.model_validate(source()), lacking], "full-20261124t023000z-1a2b3c")
    assert error.value.reference == "backup-incomplete"
    check_complete([lacking.model_copy(update={"required": False})], "full-20261124t023000z-1a2b3c")


def test_the_manifest_names_the_version_of_the_project() -> None:
    project = tomllib.loads((PROJECT_ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["version"] == VERSION


FILES = [StoredFile("a", 3, "1" * 64), StoredFile("b", 4, "2" * 64)]
SEEN = st.one_of(st.none(), st.tuples(st.sampled_from([3, 4]), st.sampled_from(["1" * 64, "2" * 64])))


@given(st.dictionaries(st.sampled_from("abc"), SEEN))
def test_only_exactly_the_files_of_the_manifest_pass(found: dict[str, tuple[int, str] | None]) -> None:
    exactly = found.get("a") == (3, "1" * 64) and found.get("b") == (4, "2" * 64)
    if exactly:
        compare_files("x", FILES, found)
        return
    with pytest.raises(PermanentError) as error:
        compare_files("x", FILES, found)
    assert error.value.reference == "backup-damaged"
