"""Image references and versions: what a tag means, and which way a change goes."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal

from packaging.version import InvalidVersion, Version

from nephoran_maintenance.errors import PermanentError

MUTABLE_TAGS = frozenset({"latest", "stable", "edge", "main", "master", "dev", "develop", "nightly", "head", "canary"})
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_PATH = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*")
_REGISTRY = re.compile(r"(?:[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*|\[[0-9a-fA-F:]+\])(?::[0-9]{1,5})?")

Direction = Literal["same", "upgrade", "downgrade", "unknown"]
WeaviateStep = Literal["same", "patch", "minor", "unknown"]


@dataclass(frozen=True)
class ImageReference:
    """``registry/repository:tag@digest``; registry, tag and digest may be missing."""

    registry: str | None
    repository: str
    tag: str | None = None
    digest: str | None = None

    @classmethod
    def parse(cls, text: str) -> ImageReference:
        """Return the parts of an image name.

        :raises PermanentError: ``image-name-invalid``.
        """
        rest, _, digest = text.partition("@")
        first, slash, remainder = rest.partition("/")
        registry = None
        if slash and ("." in first or ":" in first or first == "localhost"):
            registry, rest = first, remainder
        path, colon, tag = rest.partition(":")
        valid = (
            _PATH.fullmatch(path)
            and (not colon or _TAG.fullmatch(tag))
            and ("@" not in text or _DIGEST.fullmatch(digest))
            and (registry is None or _REGISTRY.fullmatch(registry))
        )
        if not valid:
            raise PermanentError(
                "image-name-invalid",
                f"{text!r} is not an image name; expected registry/repository:tag or …@sha256:<64 hex digits>",
                hint="Correct the image.",
            )
        return cls(registry, path, tag or None, digest or None)

    @property
    def name(self) -> str:
        """Return registry and repository, without tag and digest."""
        return f"{self.registry}/{self.repository}" if self.registry else self.repository

    def with_tag(self, tag: str) -> ImageReference:
        """Return the same repository at a tag, without a digest."""
        return replace(self, tag=tag, digest=None)

    def with_digest(self, digest: str) -> ImageReference:
        """Return the same image pinned to a digest; the tag stays for people to read."""
        return replace(self, digest=digest)

    def __str__(self) -> str:
        return f"{self.name}{f':{self.tag}' if self.tag else ''}{f'@{self.digest}' if self.digest else ''}"


def is_mutable_tag(tag: str) -> bool:
    """Return whether a tag is known to move: the same name, another image tomorrow."""
    return tag.lower() in MUTABLE_TAGS


def is_digest(text: str) -> bool:
    """Return whether a text is a digest, ``sha256:`` and 64 hex digits."""
    return bool(_DIGEST.fullmatch(text))


def is_tag(text: str) -> bool:
    """Return whether a text can be a tag."""
    return bool(_TAG.fullmatch(text))


def digest_of_image_id(image_id: str) -> str | None:
    """Return the digest in a container status' ``imageID``; None when it has none."""
    found = _DIGEST.search(image_id)
    return found.group() if found else None


def _version(tag: str | None) -> Version | None:
    try:
        return Version(tag) if tag else None
    except InvalidVersion:
        return None


def compare_tags(current: str | None, target: str | None) -> Direction:
    """Return which way a change of tags goes; ``unknown`` when one of them is no version."""
    if current is not None and current == target:
        return "same"
    old, new = _version(current), _version(target)
    if old is None or new is None:
        return "unknown"
    return "upgrade" if new > old else "downgrade" if new < old else "same"


def weaviate_step(current: str | None, target: str | None) -> WeaviateStep:
    """Return how far apart two Weaviate versions are; anything but the same minor counts as ``minor``."""
    old, new = _version(current), _version(target)
    if old is None or new is None:
        return "unknown"
    if old == new:
        return "same"
    return "patch" if old.release[:2] == new.release[:2] else "minor"
