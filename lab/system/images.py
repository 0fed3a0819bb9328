"""The images of the lab's system: one stand-in binary and one Weaviate binary under many tags.

A tag's behaviour is a variable in its image config, so that nothing but the image decides how a pod behaves:

* ``v1 v2 v3`` are good. Weaviate's three are the same 1.39.0 binary under different digests.
* ``v2-crash`` ends at start, ``v2-never-ready`` lives and is never ready, ``v2-errors`` is ready and answers every
  fifth request with 500, ``v2-slow-start`` is ready after 20 s.
* ``v2-flaky`` is good; the registry answers 503 to the pull of it that follows an arming of its proxy.
* ``v2-missing`` is pushed nowhere.
* Weaviate's ``v1-minor`` says that it is 1.40.0; only the label differs.

``tools/fetch`` asks an address and prints the status: what the profile's vantage point runs.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from lab import oci
from lab.config import LabConfig
from lab.system.variants import COMPONENTS, WEAVIATE
from lab.tools import GoModule, ensure_module, ensure_tools

WEAVIATE_VERSION = "1.39.0"
WEAVIATE_NEXT_MINOR = "1.40.0"
GOOD_TAGS = ("v1", "v2", "v3")
MISBEHAVIOURS = ("crash", "never-ready", "errors", "slow-start")
FETCH = ("tools/fetch", "v1")
TAG_LABEL = "maintenance.nephoran.com/tag"
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")

STANDINS = GoModule(
    name="standins",
    folder=Path(__file__).resolve().parent.parent / "standins",
    binaries={"standin": "nephoran.com/maintenance/lab/standins"},
    own_source=True,
)

ReportStage = Callable[[str], None]


def repository(component: str) -> str:
    """Return the repository of a component's images, without the registry."""
    return f"nephoran/{component}"


def image(config: LabConfig, component: str, tag: str) -> str:
    """Return the full image name of one tag."""
    return f"{config.registry}/{repository(component)}:{tag}"


def behaviours(component: str) -> dict[str, str]:
    """Return the behaviour of every tag that is pushed for a component."""
    tags = dict.fromkeys((*GOOD_TAGS, "v2-flaky"), "good")
    tags |= {f"v2-{behaviour}": behaviour for behaviour in MISBEHAVIOURS}
    if component == WEAVIATE:
        tags["v1-minor"] = "good"
    return tags


def version_label(component: str, tag: str) -> str:
    """Return what the tag's image says that its version is."""
    if component != WEAVIATE:
        return tag
    return WEAVIATE_NEXT_MINOR if tag == "v1-minor" else WEAVIATE_VERSION


def push_all(config: LabConfig, progress: ReportStage = lambda stage: None) -> dict[str, str]:
    """Build and push every image; return the digest of each ``repository:tag``.

    Builds the binaries first where they are missing. Safe to repeat: yes, and quick when the registry has them; a
    tag that a test deleted is there again.
    """
    standin = ensure_module(STANDINS, progress)["standin"]
    weaviate = ensure_tools(progress, ["weaviate"])["weaviate-server"]
    digests = {}
    for name, tag, built in _images(standin, weaviate):
        if oci.resolve_tag(config.registry, name, tag) != built.digest:
            oci.push(built, config.registry, name, tag)
        digests[f"{name}:{tag}"] = built.digest
    return digests


def push_fresh(config: LabConfig, component: str, tag: str) -> str:
    """Push a good image that no node has pulled yet under a tag, in the place of what was there; return its digest.

    What a node has once pulled it never asks the registry for again, so a failing pull needs an image of its own each
    time. For stand-ins only; ``push_all`` puts the usual image back.
    """
    standin = ensure_module(STANDINS, lambda stage: None)["standin"]
    fresh = _standin_image(_standin_layer(standin), component, tag, "good", {"SERIAL": secrets.token_hex(8)})
    return oci.push(fresh, config.registry, repository(component), tag)


def delete_tag(config: LabConfig, name: str, tag: str) -> str | None:
    """Delete a tag's manifest from the registry (``name`` as in ``nephoran/rag-api``); return the digest it had."""
    return oci.delete_tag(config.registry, name, tag)


def _images(standin: Path, weaviate: Path) -> Iterator[tuple[str, str, oci.OciImage]]:
    base = _standin_layer(standin)
    for component in (*(name for name in COMPONENTS if name != WEAVIATE), "sidecar"):
        for tag, behaviour in behaviours(component).items():
            yield repository(component), tag, _standin_image(base, component, tag, behaviour)
    name, tag = FETCH
    yield name, tag, oci.build_image([base], entrypoint=["/bin/standin", "fetch"], user="65532:65532")
    certificates = {"/etc/ssl/certs/ca-certificates.crt": CERTIFICATES} if CERTIFICATES.exists() else {}
    database = oci.build_layer({"/bin/weaviate": weaviate, **certificates}, directories=_FOLDERS)
    for tag, behaviour in behaviours(WEAVIATE).items():
        good = behaviour == "good"
        yield (
            repository(WEAVIATE),
            tag,
            oci.build_image(
                [database] if good else [database, base],
                # The port is a variable (PORT) for the stand-in and an argument for the real binary.
                entrypoint=["/bin/weaviate"] if good else ["/bin/standin", "weaviate"],
                environment={"BEHAVIOUR": behaviour, "VERSION": tag},
                labels={oci.VERSION_LABEL: version_label(WEAVIATE, tag), TAG_LABEL: tag},
            ),
        )


_FOLDERS = {"/tmp": 0o1777}


def _standin_layer(standin: Path) -> oci.Layer:
    return oci.build_layer({"/bin/standin": standin}, directories=_FOLDERS)


def _standin_image(
    base: oci.Layer, component: str, tag: str, behaviour: str, more: Mapping[str, str] | None = None
) -> oci.OciImage:
    return oci.build_image(
        [base],
        entrypoint=["/bin/standin", component],
        environment={"VERSION": tag, "BEHAVIOUR": behaviour, **(more or {})},
        labels={oci.VERSION_LABEL: version_label(component, tag)},
        user="65532:65532",
    )
