"""An image registry, over the OCI distribution interface: tags, digests and labels. It reads only."""

from __future__ import annotations

import base64
import re
from datetime import timedelta
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit

from nephoran_maintenance.domain.images import ImageReference
from nephoran_maintenance.errors import PermanentError
from nephoran_maintenance.hooks.connections import read_connection
from nephoran_maintenance.hooks.http_api import HttpAnswer, json_of, send, unexpected

SERVICE = "Image registry"
TIMEOUT = timedelta(seconds=15)
INDEX_TYPES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
MANIFEST_TYPES = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
_CHALLENGE_PART = re.compile(r'(\w+)="([^"]*)"')


class ImageRegistryHook:
    """Ask the registry that an image reference names.

    :param connection_id: an Airflow connection of type ``http`` with login and password, or None for anonymous access.
        Its host limits the credentials to that registry; its schema ``http`` means plain HTTP.
    :param plain_http: talk plain HTTP, whatever the connection says; None leaves it to the connection.
    """

    def __init__(self, connection_id: str | None = None, *, plain_http: bool | None = None) -> None:
        self.connection_id = connection_id
        self.plain_http = plain_http
        self._tokens: dict[tuple[str, str], str] = {}

    @cached_property
    def _settings(self) -> tuple[str | None, str | None, str | None, bool]:
        """Return registry host (None: any), login, password and whether plain HTTP is meant."""
        if self.connection_id is None:
            return None, None, None, bool(self.plain_http)
        connection = read_connection(self.connection_id)
        host = (connection.host or "").strip()
        parts = urlsplit(host if "://" in host else f"//{host}") if host else None
        netloc = parts.netloc if parts else None
        if netloc and ":" not in netloc and connection.port:
            netloc = f"{netloc}:{connection.port}"
        scheme = parts.scheme if parts and parts.scheme else connection.schema
        plain = scheme == "http" if self.plain_http is None else self.plain_http
        return netloc or None, connection.login or None, connection.password or None, plain

    def tags(self, repository: str) -> list[str]:
        """Return all tags of a repository, given with its registry: ``registry.example:5000/nephoran/rag-api``.

        :raises PermanentError: ``not-found`` when the registry has no such repository.
        """
        image = ImageReference.parse(repository)
        path: str | None = f"/v2/{image.repository}/tags/list?n=1000"
        found: list[str] = []
        while path:
            answer = self._get(image, path)
            if not 200 <= answer.status <= 299:
                raise self._unexpected(image, answer, f"the list of tags of {image.repository}")
            found += (
                json_of(SERVICE, answer, "the list of tags", self._url(image, path), self.connection_id)["tags"] or []
            )
            path = _next_page(answer.headers.get("Link", ""))
        return found

    def find_digest(self, reference: str) -> str | None:
        """Return the digest of a reference's tag (or digest), or None when the registry does not have it.

        :raises TransientError: ``image-registry-unreachable`` or ``image-registry-unavailable``.
        """
        image = ImageReference.parse(reference)
        answer = self._manifest(image, "HEAD")
        if answer is None:
            return None
        digest = answer.headers.get("Docker-Content-Digest")
        if digest:
            return str(digest)
        import hashlib

        manifest = self._manifest(image, "GET")
        return f"sha256:{hashlib.sha256(manifest.body).hexdigest()}" if manifest else None

    def digest(self, reference: str) -> str:
        """Return the digest of a reference's tag.

        :raises PermanentError: ``image-not-found`` when the registry does not have it.
        """
        digest = self.find_digest(reference)
        if digest is None:
            raise self._missing(reference)
        return digest

    def config_labels(self, reference: str) -> dict[str, str]:
        """Return the labels in an image's configuration; of the amd64 Linux one when there are several.

        :raises PermanentError: ``image-not-found``.
        """
        image = ImageReference.parse(reference)
        manifest = self._manifest_json(image)
        if "manifests" in manifest:
            entries = manifest["manifests"]
            chosen = next((entry for entry in entries if _is_amd64(entry)), entries[0])
            image = image.with_digest(chosen["digest"])
            manifest = self._manifest_json(image)
        path = f"/v2/{image.repository}/blobs/{manifest['config']['digest']}"
        answer = self._get(image, path)
        if not 200 <= answer.status <= 299:
            raise self._unexpected(image, answer, f"the configuration of {reference}")
        config = json_of(SERVICE, answer, "the configuration", self._url(image, path), self.connection_id)
        return dict((config.get("config") or {}).get("Labels") or {})

    def _manifest_json(self, image: ImageReference) -> dict[str, Any]:
        answer = self._manifest(image, "GET")
        if answer is None:
            raise self._missing(str(image))
        return dict(json_of(SERVICE, answer, "the manifest", self._url(image, ""), self.connection_id))

    def _manifest(self, image: ImageReference, method: str) -> HttpAnswer | None:
        path = f"/v2/{image.repository}/manifests/{image.digest or image.tag or 'latest'}"
        answer = self._get(image, path, method, ", ".join((*INDEX_TYPES, *MANIFEST_TYPES)))
        if answer.status == 404:
            return None
        if not 200 <= answer.status <= 299:
            raise self._unexpected(image, answer, f"the manifest of {image}")
        return answer

    def _missing(self, reference: str) -> PermanentError:
        return PermanentError(
            "image-not-found",
            f"the registry has no image {reference}",
            context={"image": reference},
            hint="Push the image, or correct the version; the hook's tags() lists what is there.",
        )

    def _url(self, image: ImageReference, path: str) -> str:
        registry = image.registry or "docker.io"
        host = "registry-1.docker.io" if registry == "docker.io" else registry
        if registry == "docker.io" and "/" not in image.repository:
            path = path.replace(f"/v2/{image.repository}/", f"/v2/library/{image.repository}/", 1)
        return f"{'http' if self._settings[3] else 'https'}://{host}{path}"

    def _unexpected(self, image: ImageReference, answer: HttpAnswer, action: str) -> Exception:
        password = self._settings[2]
        secrets = (password,) if password else ()
        return unexpected(SERVICE, answer, action, self._url(image, ""), self.connection_id, secrets)

    def _get(self, image: ImageReference, path: str, method: str = "GET", accept: str = "*/*") -> HttpAnswer:
        url = self._url(image, path)
        scope = (urlsplit(url).netloc, image.repository)
        headers = {"Accept": accept}
        if scope in self._tokens:
            headers["Authorization"] = self._tokens[scope]
        answer = self._send(method, url, headers)
        if answer.status == 401 and (authorization := self._authorize(image, answer)):
            self._tokens[scope] = headers["Authorization"] = authorization
            answer = self._send(method, url, headers)
        return answer

    def _send(self, method: str, url: str, headers: dict[str, str]) -> HttpAnswer:
        return send(
            SERVICE,
            method,
            url,
            connection_id=self.connection_id,
            headers=headers,
            timeout=TIMEOUT,
            follow_redirects=True,
        )

    def _authorize(self, image: ImageReference, refused: HttpAnswer) -> str | None:
        """Return an Authorization header for a refused request, or None when there is nothing to offer."""
        host, login, password, _ = self._settings
        ours = bool(login and password) and (host is None or host == image.registry)
        basic = "Basic " + base64.b64encode(f"{login}:{password}".encode()).decode() if ours else None
        scheme, _, parameters = refused.headers.get("WWW-Authenticate", "").partition(" ")
        if scheme.lower() == "basic":
            return basic
        challenge = dict(_CHALLENGE_PART.findall(parameters))
        if scheme.lower() != "bearer" or "realm" not in challenge:
            return None
        query = {"scope": challenge.get("scope", f"repository:{image.repository}:pull")}
        if "service" in challenge:
            query["service"] = challenge["service"]
        answer = send(
            SERVICE,
            "GET",
            challenge["realm"],
            connection_id=self.connection_id,
            headers={"Authorization": basic} if basic else {},
            query=query,
            timeout=TIMEOUT,
        )
        if not 200 <= answer.status <= 299:
            raise self._unexpected(image, answer, "the request for a token")
        token = json_of(SERVICE, answer, "the request for a token", challenge["realm"], self.connection_id)
        return f"Bearer {token.get('token') or token.get('access_token')}"


def _is_amd64(entry: dict[str, Any]) -> bool:
    platform = entry.get("platform") or {}
    return platform.get("os") == "linux" and platform.get("architecture") == "amd64"


def _next_page(link: str) -> str | None:
    """Return the path of the next page from a Link header; a link to another host is not followed."""
    found = re.search(r'<([^>]+)>\s*;\s*rel="?next"?', link)
    if not found:
        return None
    parts = urlsplit(found.group(1))
    return f"{parts.path}?{parts.query}" if parts.query else parts.path
