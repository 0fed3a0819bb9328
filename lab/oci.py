"""Write OCI images without Docker: layers, config and manifest in memory, pushed by HTTP or saved as an archive.

The same input gives the same digest: every entry has time zero, owner root and a fixed order. Layers are not
compressed: they travel over loopback only, and compressing a binary of 140 MB costs more than it saves.
"""

from __future__ import annotations

import hashlib
import http.client
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar"
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
VERSION_LABEL = "org.opencontainers.image.version"

_HTTP_TIMEOUT_SECONDS = 60.0


class RegistryError(Exception):
    """Say what the registry answered where another answer was needed."""

    def __init__(self, action: str, status: int, body: bytes) -> None:
        self.status = status
        super().__init__(f"{action}: the registry answered {status}: {body[:200].decode(errors='replace')}")


def digest_of(content: bytes) -> str:
    """Return ``sha256:<hex>`` of the content."""
    return "sha256:" + hashlib.sha256(content).hexdigest()


@dataclass(frozen=True)
class Layer:
    """Hold one uncompressed layer; share the same object between images to hash a big binary only once."""

    content: bytes
    digest: str


@dataclass(frozen=True)
class OciImage:
    """Hold a whole image; ``digest`` is what the kubelet shows as imageID after a pull."""

    layers: tuple[Layer, ...]
    config: bytes
    manifest: bytes

    @property
    def digest(self) -> str:
        return digest_of(self.manifest)


@dataclass(frozen=True)
class File:
    """Describe one file of a layer: content in memory or the path of a file on this machine."""

    content: bytes | Path
    mode: int = 0o755
    uid: int = 0

    def read(self) -> bytes:
        return self.content.read_bytes() if isinstance(self.content, Path) else self.content


def build_layer(
    files: Mapping[str, File | bytes | Path],
    *,
    links: Mapping[str, str] | None = None,
    directories: Mapping[str, int] | None = None,
) -> Layer:
    """Pack files into a layer; parent directories are made.

    ``files`` maps the path inside the image to its content (mode 0755 unless a ``File`` says otherwise), ``links``
    maps a path to the target of a symbolic link, ``directories`` maps an empty directory to its mode (``/tmp``: 0o1777).
    """
    links = links or {}
    wanted = {_inside(name): mode for name, mode in (directories or {}).items()}
    parents = {str(parent) for name in [*files, *links, *wanted] for parent in PurePosixPath(_inside(name)).parents}
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name in sorted((parents | set(wanted)) - {"."}):
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = tarfile.DIRTYPE, wanted.get(name, 0o755)
            archive.addfile(entry)
        for name in sorted(files):
            source = files[name]
            file = source if isinstance(source, File) else File(source)
            content = file.read()
            entry = tarfile.TarInfo(_inside(name))
            entry.mode, entry.uid, entry.size = file.mode, file.uid, len(content)
            archive.addfile(entry, io.BytesIO(content))
        for name in sorted(links):
            entry = tarfile.TarInfo(_inside(name))
            entry.type, entry.linkname = tarfile.SYMTYPE, links[name]
            archive.addfile(entry)
    content = stream.getvalue()
    return Layer(content, digest_of(content))


def build_image(
    layers: Sequence[Layer],
    *,
    entrypoint: Sequence[str],
    arguments: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    labels: Mapping[str, str] | None = None,
    user: str = "",
    working_directory: str = "/",
) -> OciImage:
    """Put layers and a config together; a different label or variable alone gives a different digest."""
    settings: dict[str, object] = {
        "Entrypoint": list(entrypoint),
        "Cmd": list(arguments),
        "Env": [f"{name}={value}" for name, value in sorted({"PATH": "/bin:/usr/bin", **(environment or {})}.items())],
        "Labels": dict(labels or {}),
        "WorkingDir": working_directory,
    }
    if user:
        settings["User"] = user
    config = _canonical(
        {
            "architecture": "amd64",
            "os": "linux",
            "created": "1970-01-01T00:00:00Z",
            "config": settings,
            "rootfs": {"type": "layers", "diff_ids": [layer.digest for layer in layers]},
            "history": [{"created": "1970-01-01T00:00:00Z", "created_by": "lab"} for _ in layers],
        }
    )
    manifest = _canonical(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": _descriptor(CONFIG_TYPE, config, digest_of(config)),
            "layers": [_descriptor(LAYER_TYPE, layer.content, layer.digest) for layer in layers],
        }
    )
    return OciImage(tuple(layers), config, manifest)


def push(image: OciImage, registry_url: str, repository: str, tag: str) -> str:
    """Upload what the registry does not have yet and put the manifest under the tag; return the image's digest.

    ``registry_url`` is ``http://address:5000`` or ``address:5000``; always plain http, never through a proxy.
    Raises ``RegistryError`` on an unexpected answer, ``OSError`` when nobody listens. Safe to repeat: yes.
    """
    with _Registry(registry_url) as registry:
        for layer in image.layers:
            registry.put_blob(repository, layer.content, layer.digest)
        registry.put_blob(repository, image.config, digest_of(image.config))
        registry.call(
            "PUT", f"/v2/{repository}/manifests/{tag}", image.manifest, {"Content-Type": MANIFEST_TYPE}, expected={201}
        )
    return image.digest


def resolve_tag(registry_url: str, repository: str, tag: str) -> str | None:
    """Return the digest that a tag stands for, None when the registry does not have it."""
    with _Registry(registry_url) as registry:
        status, headers, _ = registry.call(
            "HEAD", f"/v2/{repository}/manifests/{tag}", headers={"Accept": MANIFEST_TYPE}, expected={200, 404}
        )
    return headers["docker-content-digest"] if status == 200 else None


def delete_tag(registry_url: str, repository: str, tag: str) -> str | None:
    """Delete the manifest under the tag (and so every tag of that digest); return its digest, None when it was not there."""
    digest = resolve_tag(registry_url, repository, tag)
    if digest is not None:
        with _Registry(registry_url) as registry:
            registry.call("DELETE", f"/v2/{repository}/manifests/{digest}", expected={202, 404})
    return digest


def write_archive(image: OciImage, path: Path, name: str) -> None:
    """Write an OCI archive that ``ctr images import`` takes; ``name`` is the full image name it gets."""
    entry = {
        **_descriptor(MANIFEST_TYPE, image.manifest, image.digest),
        "annotations": {"io.containerd.image.name": name},
    }
    index = _canonical({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": [entry]})
    blobs = {layer.digest: layer.content for layer in image.layers}
    blobs |= {digest_of(image.config): image.config, image.digest: image.manifest}
    with tarfile.open(path, "w") as archive:
        members = {"oci-layout": b'{"imageLayoutVersion":"1.0.0"}', "index.json": index}
        members |= {f"blobs/sha256/{digest.partition(':')[2]}": content for digest, content in blobs.items()}
        for member, content in members.items():
            information = tarfile.TarInfo(member)
            information.size = len(content)
            archive.addfile(information, io.BytesIO(content))


class _Registry:
    """Speak the few calls of the OCI distribution API that pushing needs, over one connection."""

    def __init__(self, url: str) -> None:
        address = urlsplit(url if "//" in url else f"//{url}")
        self._connection = http.client.HTTPConnection(
            address.hostname or "", address.port or 80, timeout=_HTTP_TIMEOUT_SECONDS
        )

    def __enter__(self) -> _Registry:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def call(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        expected: set[int],
    ) -> tuple[int, dict[str, str], bytes]:
        self._connection.request(method, path, body=body, headers=dict(headers or {}))
        response = self._connection.getresponse()
        content = response.read()
        if response.status not in expected:
            raise RegistryError(f"{method} {path}", response.status, content)
        return response.status, {key.lower(): value for key, value in response.getheaders()}, content

    def put_blob(self, repository: str, content: bytes, digest: str) -> None:
        status, _, _ = self.call("HEAD", f"/v2/{repository}/blobs/{digest}", expected={200, 404})
        if status == 200:
            return
        _, headers, _ = self.call("POST", f"/v2/{repository}/blobs/uploads/", expected={202})
        location = urlsplit(headers["location"])
        query = f"{location.query}&digest={digest}" if location.query else f"digest={digest}"
        self.call(
            "PUT",
            f"{location.path}?{query}",
            content,
            {"Content-Type": "application/octet-stream", "Content-Length": str(len(content))},
            expected={201},
        )


def _inside(name: str) -> str:
    return name.strip("/")


def _canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _descriptor(media_type: str, content: bytes, digest: str) -> dict[str, object]:
    return {"mediaType": media_type, "digest": digest, "size": len(content)}
