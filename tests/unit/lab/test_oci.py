from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest

from lab import oci
from tests.unit.lab.conftest import ServeInThread
from tests.unit.lab.fake_registry import FakeRegistry

FILES = {"/app/run": oci.File(b"program", 0o755), "/etc/note": oci.File(b"text", 0o644)}


def image(version: str = "v1") -> oci.OciImage:
    layer = oci.build_layer(FILES, links={"/bin/sh": "/app/run"}, directories={"/tmp": 0o1777})
    return oci.build_image([layer], entrypoint=["/app/run"], labels={oci.VERSION_LABEL: version})


def test_the_same_input_gives_the_same_digest() -> None:
    assert image().digest == image().digest


def test_another_label_alone_gives_another_digest_on_the_same_layer() -> None:
    first, second = image("v1"), image("v2")
    assert first.digest != second.digest
    assert first.layers[0].digest == second.layers[0].digest


def test_layer_holds_files_links_and_every_parent_directory() -> None:
    layer = oci.build_layer(FILES, links={"/bin/sh": "/app/run"}, directories={"/tmp": 0o1777})
    with tarfile.open(fileobj=io.BytesIO(layer.content)) as archive:
        entries = {entry.name: entry for entry in archive}
    assert list(entries) == ["app", "bin", "etc", "tmp", "app/run", "etc/note", "bin/sh"]
    assert (entries["app/run"].mode, entries["etc/note"].mode, entries["tmp"].mode) == (0o755, 0o644, 0o1777)
    assert entries["bin/sh"].linkname == "/app/run"
    assert {entry.mtime for entry in entries.values()} == {0}


def test_manifest_names_config_and_layers_by_digest_and_size() -> None:
    built = image()
    manifest = json.loads(built.manifest)
    assert manifest["config"]["digest"] == oci.digest_of(built.config)
    assert manifest["layers"][0]["size"] == len(built.layers[0].content)
    assert json.loads(built.config)["config"]["Labels"] == {oci.VERSION_LABEL: "v1"}


def test_push_uploads_once_and_the_tag_resolves(serve: ServeInThread) -> None:
    registry = FakeRegistry()
    url = serve(registry)
    assert oci.push(image(), url, "team/app", "v1") == image().digest
    oci.push(image("v2"), url, "team/app", "v2")
    assert sum(request.startswith("POST") for request in registry.requests) == 3, "the shared layer travels once"
    assert oci.resolve_tag(url, "team/app", "v2") == image("v2").digest
    assert oci.resolve_tag(url, "team/app", "v3") is None


def test_deleted_tag_is_gone_and_deleting_again_does_nothing(serve: ServeInThread) -> None:
    url = serve(FakeRegistry())
    oci.push(image(), url, "team/app", "v1")
    assert oci.delete_tag(url, "team/app", "v1") == image().digest
    assert oci.resolve_tag(url, "team/app", "v1") is None
    assert oci.delete_tag(url, "team/app", "v1") is None


def test_says_what_the_registry_answered(serve: ServeInThread) -> None:
    from lab.http_server import JsonHandler, Server

    with pytest.raises(oci.RegistryError, match="the registry answered 405"):
        oci.push(image(), serve(Server(("127.0.0.1", 0), JsonHandler)), "team/app", "v1")


def test_archive_carries_the_name_for_the_runtime(tmp_path: Path) -> None:
    oci.write_archive(image(), tmp_path / "image.tar", "example.org/app:v1")
    with tarfile.open(tmp_path / "image.tar") as archive:
        names = archive.getnames()
        index = json.load(archive.extractfile("index.json") or io.BytesIO())
    assert index["manifests"][0]["annotations"] == {"io.containerd.image.name": "example.org/app:v1"}
    assert f"blobs/sha256/{image().digest.removeprefix('sha256:')}" in names
