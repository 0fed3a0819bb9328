"""Every tag has an image of its own digest, and its behaviour stands in its config."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lab import oci
from lab.system import images
from lab.system.variants import COMPONENTS, WEAVIATE


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], oci.OciImage]:
    folder = tmp_path_factory.mktemp("binaries")
    (folder / "standin").write_bytes(b"a stand-in")
    (folder / "weaviate").write_bytes(b"a database")
    return {
        (name, tag): image for name, tag, image in images._images(Path(folder / "standin"), Path(folder / "weaviate"))
    }


def settings(image: oci.OciImage) -> dict[str, object]:
    return dict(json.loads(image.config)["config"])


def test_every_tag_has_its_own_digest(built: dict[tuple[str, str], oci.OciImage]) -> None:
    assert len({image.digest for image in built.values()}) == len(built)


@pytest.mark.parametrize("component", COMPONENTS)
def test_every_component_has_every_tag_but_the_missing_one(
    component: str, built: dict[tuple[str, str], oci.OciImage]
) -> None:
    tags = {tag for name, tag in built if name == f"nephoran/{component}"}
    assert {"v1", "v2", "v3", "v2-crash", "v2-never-ready", "v2-errors", "v2-slow-start", "v2-flaky"} <= tags
    assert "v2-missing" not in tags


def test_good_weaviate_images_differ_in_nothing_but_name(built: dict[tuple[str, str], oci.OciImage]) -> None:
    good = [built[images.repository(WEAVIATE), tag] for tag in images.GOOD_TAGS]
    assert len({image.layers for image in good}) == 1
    assert {settings(image)["Labels"]["org.opencontainers.image.version"] for image in good} == {"1.39.0"}  # type: ignore[index]
    assert {tuple(settings(image)["Entrypoint"]) for image in good} == {("/bin/weaviate",)}  # type: ignore[arg-type]


def test_next_minor_of_weaviate_is_told_by_its_label(built: dict[tuple[str, str], oci.OciImage]) -> None:
    labels = settings(built[images.repository(WEAVIATE), "v1-minor"])["Labels"]
    assert labels["org.opencontainers.image.version"] == "1.40.0"  # type: ignore[index]


def test_behaviour_of_a_bad_tag_is_baked_in(built: dict[tuple[str, str], oci.OciImage]) -> None:
    assert "BEHAVIOUR=never-ready" in settings(built["nephoran/rag-api", "v2-never-ready"])["Env"]  # type: ignore[operator]
    assert "VERSION=v2-never-ready" in settings(built["nephoran/rag-api", "v2-never-ready"])["Env"]  # type: ignore[operator]
