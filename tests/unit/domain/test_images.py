"""Image names are taken apart and put together exactly, and versions are compared without guessing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nephoran_maintenance.domain.images import (
    ImageReference,
    compare_tags,
    digest_of_image_id,
    is_digest,
    is_mutable_tag,
    is_tag,
    weaviate_step,
)
from nephoran_maintenance.errors import PermanentError

DIGEST = "sha256:" + "0123456789abcdef" * 4

registries = st.sampled_from([None, "localhost", "10.0.0.1:5000", "registry.example", "a.b-c.example:443"])
parts = st.from_regex(r"[a-z0-9]+(?:[._-][a-z0-9]+)?", fullmatch=True).filter(lambda part: part != "localhost")
paths = st.lists(parts, min_size=1, max_size=3).map("/".join)
tags = st.none() | st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}", fullmatch=True)
digests = st.none() | st.text("0123456789abcdef", min_size=64, max_size=64).map(lambda text: f"sha256:{text}")


@given(registries, paths, tags, digests)
def test_every_reference_survives_writing_and_reading(
    registry: str | None, path: str, tag: str | None, digest: str | None
) -> None:
    first = path.partition("/")[0]
    if registry is None and "/" in path and "." in first:
        return  # read as a registry, as docker does
    reference = ImageReference(registry, path, tag, digest)
    assert ImageReference.parse(str(reference)) == reference


@pytest.mark.parametrize(
    ("text", "registry", "repository", "tag"),
    [
        ("nginx", None, "nginx", None),
        ("nginx:1.2", None, "nginx", "1.2"),
        ("library/nginx:1", None, "library/nginx", "1"),
        ("localhost/nginx", "localhost", "nginx", None),
        ("registry:5000/a/b:v1", "registry:5000", "a/b", "v1"),
        ("10.201.0.1:5000/nephoran/rag-api:v2", "10.201.0.1:5000", "nephoran/rag-api", "v2"),
        (f"ghcr.io/a/b:v1@{DIGEST}", "ghcr.io", "a/b", "v1"),
    ],
)
def test_takes_names_apart(text: str, registry: str | None, repository: str, tag: str | None) -> None:
    reference = ImageReference.parse(text)
    assert (reference.registry, reference.repository, reference.tag) == (registry, repository, tag)
    assert reference.digest == (DIGEST if "@" in text else None)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Nginx",
        "nginx:",
        "nginx:ta g",
        "nginx@",
        "nginx@sha256:12",
        "registry:5000/",
        "a//b",
        "nginx:-x",
        "a b",
        "/a",
    ],
)
def test_refuses_what_is_no_image_name(text: str) -> None:
    with pytest.raises(PermanentError) as caught:
        ImageReference.parse(text)
    assert caught.value.reference == "image-name-invalid"
    assert repr(text) in caught.value.message


def test_a_new_tag_drops_the_digest_and_a_digest_keeps_the_tag() -> None:
    reference = ImageReference.parse(f"r:5000/a:v1@{DIGEST}")
    assert str(reference.with_tag("v2")) == "r:5000/a:v2"
    assert str(ImageReference.parse("r:5000/a:v2").with_digest(DIGEST)) == f"r:5000/a:v2@{DIGEST}"
    assert reference.name == "r:5000/a"


@pytest.mark.parametrize("tag", ["latest", "LATEST", "main", "stable", "nightly"])
def test_knows_tags_that_move(tag: str) -> None:
    assert is_mutable_tag(tag)


@pytest.mark.parametrize("tag", ["v1", "1.39.0", "v2-crash", "363bec6", "latest-1"])
def test_takes_other_tags_for_fixed(tag: str) -> None:
    assert not is_mutable_tag(tag)


def test_tells_tags_from_digests() -> None:
    assert is_digest(DIGEST)
    assert not is_digest("sha256:12")
    assert is_tag("v1.2_3-x")
    assert not is_tag("a/b:v1")
    assert not is_tag(DIGEST)


@pytest.mark.parametrize(
    ("current", "target", "direction"),
    [
        ("v1", "v2", "upgrade"),
        ("v2", "v1", "downgrade"),
        ("v9", "v10", "upgrade"),
        ("v1.9.0", "v1.10.0", "upgrade"),
        ("1.0.0-rc.1", "1.0.0", "upgrade"),
        ("v1", "1.0.0", "same"),
        ("v1", "v1", "same"),
        ("abc", "abc", "same"),
        ("v1", "v2-crash", "unknown"),
        ("363bec6", "v1", "unknown"),
        (None, "v1", "unknown"),
        ("v1", None, "unknown"),
        (None, None, "unknown"),
    ],
)
def test_compares_tags(current: str | None, target: str | None, direction: str) -> None:
    assert compare_tags(current, target) == direction


@pytest.mark.parametrize(
    ("current", "target", "step"),
    [
        ("1.39.0", "1.39.0", "same"),
        ("1.39.0", "1.39.2", "patch"),
        ("1.39.2", "1.39.0", "patch"),
        ("1.39.0", "1.40.0", "minor"),
        ("1.39.0", "2.39.0", "minor"),
        ("1.39.0", None, "unknown"),
        ("", "1.39.0", "unknown"),
        ("1.39.0", "v2-crash", "unknown"),
    ],
)
def test_tells_how_far_apart_two_weaviate_versions_are(current: str | None, target: str | None, step: str) -> None:
    assert weaviate_step(current, target) == step


def test_reads_the_digest_of_a_running_container() -> None:
    assert digest_of_image_id(f"registry:5000/a@{DIGEST}") == DIGEST
    assert digest_of_image_id("") is None
