"""An S3 server in memory: whole objects, multipart uploads, versions; a test says what it refuses."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import format_datetime
from urllib.parse import unquote
from xml.sax.saxutils import escape

from tests.unit.hooks.fake_servers import Received, Reply, Server, connection_json

SECRET = "secret-key-of-test"
UPLOADER = "access-key"
DELETER = "access-key-of-retention"
"""Whose requests may delete; everybody else may take back uploads alone."""
NUMBERS = itertools.count(1)
"""Of versions and uploads: no two servers give the same."""
FIRST_MOMENT = datetime(2020, 1, 1, tzinfo=UTC)


class FakeS3:
    """One bucket. ``fail`` answers in its place while it returns something; a page of a list has ``page_length`` keys."""

    def __init__(self, bucket: str = "reports") -> None:
        self.bucket = bucket
        self.objects: dict[str, bytes] = {}
        self.versions: dict[tuple[str, str], bytes] = {}
        self.uploads: dict[str, tuple[str, dict[int, bytes]]] = {}
        self.page_length = 2
        self.versioned = True
        self.deny = self.may_delete = False
        self.lock: str | None = None
        self.marks: list[tuple[str, str]] = []
        """Keys and versions of deletion marks."""
        self.written_at: dict[str, datetime] = {}
        """By version; what is not named was written at the first moment."""
        self.locks: dict[str, str] = {}
        """By key: ``hold``, or until when it is locked, in ISO 8601."""
        self.deleted: list[str] = []
        """Keys of what was deleted for good, in this order."""
        self.fail: Callable[[Received], Reply | None] = lambda request: None
        self._numbers = NUMBERS

    def __call__(self, request: Received) -> Reply:
        _, bucket, *rest = request.path.split("/", 2)
        key = unquote(rest[0]) if rest else ""
        if self.deny:
            return self.error(403, "AccessDenied")
        if bucket != self.bucket:
            return self.error(404, "NoSuchBucket")
        if (reply := self.fail(request)) is not None:
            return reply
        if not key:
            return self.about_the_bucket(request)
        if request.method == "PUT":
            data = self.decoded(request)
            if number := request.query.get("partNumber"):
                if request.query["uploadId"] not in self.uploads:
                    return self.error(404, "NoSuchUpload")
                self.uploads[request.query["uploadId"]][1][int(number)] = data
                return Reply(200, "", {"ETag": f'"{hashlib.md5(data).hexdigest()}"'})
            return Reply(200, "", {"ETag": '"x"', **self.version_header(self.put(key, data))})
        if request.method == "POST":
            return self.multipart(request, key)
        if request.method == "DELETE":
            return self.delete(request, key)
        version = request.query.get("versionId")
        found = self.versions.get((key, version)) if version else self.objects.get(key)
        if found is None:
            return self.error(404, "NoSuchKey")
        if request.query.keys() & {"retention", "legal-hold"}:
            return self.lock_facts(key, "retention" if "retention" in request.query else "hold")
        return Reply(200, found, {"Last-Modified": format_datetime(FIRST_MOMENT, usegmt=True)})

    def lock_facts(self, key: str, what: str) -> Reply:
        """Tell of a lock as S3 does: nothing in the head of an object, its retention and its legal hold each by itself."""
        lock = self.locks.get(key)
        if lock is None or (lock == "hold") != (what == "hold"):
            return self.error(404, "NoSuchObjectLockConfiguration")
        if what == "hold":
            return Reply(200, "<LegalHold><Status>ON</Status></LegalHold>")
        return Reply(200, f"<Retention><Mode>COMPLIANCE</Mode><RetainUntilDate>{lock}</RetainUntilDate></Retention>")

    def delete(self, request: Received, key: str) -> Reply:
        """Take an upload back; delete a version for good for the one account that may."""
        if upload_id := request.query.get("uploadId"):
            return Reply(204) if self.uploads.pop(upload_id, None) else self.error(404, "NoSuchUpload")
        if self.may_delete and key in self.objects:
            del self.objects[key]
            return Reply(204)
        if f"Credential={DELETER}/" not in request.headers.get("authorization", "") or key in self.locks:
            return self.error(403, "AccessDenied")
        version = request.query.get("versionId")
        if version is None:
            assert not self.versioned, "a deletion without a version deletes nothing for good"
            del self.objects[key]
            return Reply(204)
        if (key, version) in self.marks:
            self.marks.remove((key, version))
            return Reply(204)
        self.versions.pop((key, version), None)
        self.deleted.append(key)
        left = [data for (name, _), data in self.versions.items() if name == key]
        self.objects.pop(key, None)
        if left:
            self.objects[key] = left[-1]
        return Reply(204)

    def hide(self, key: str) -> None:
        """Set a deletion mark, as a deletion without a version does."""
        del self.objects[key]
        self.marks.append((key, f"v{next(self._numbers)}"))

    def put(self, key: str, data: bytes) -> str:
        """Store an object; without versions it takes the place of the one before, which is gone."""
        version = f"v{next(self._numbers)}" if self.versioned else "null"
        self.objects[key] = self.versions[key, version] = data
        return version

    def version_header(self, version: str) -> dict[str, str]:
        return {"x-amz-version-id": version} if self.versioned else {}

    def multipart(self, request: Received, key: str) -> Reply:
        if "uploadId" not in request.query:
            upload_id = f"u{next(self._numbers)}"
            self.uploads[upload_id] = (key, {})
            body = f"<R><Bucket>{self.bucket}</Bucket><Key>{escape(key)}</Key><UploadId>{upload_id}</UploadId></R>"
            return Reply(200, body.replace("R>", "InitiateMultipartUploadResult>"))
        if request.query["uploadId"] not in self.uploads:
            return self.error(404, "NoSuchUpload")
        _, parts = self.uploads.pop(request.query["uploadId"])
        numbers = [int(number) for number in re.findall(rb"<PartNumber>(\d+)<", request.body)]
        assert numbers == sorted(parts)
        version = self.put(key, b"".join(parts[number] for number in numbers))
        body = f"<CompleteMultipartUploadResult><Key>{escape(key)}</Key></CompleteMultipartUploadResult>"
        return Reply(200, body, self.version_header(version))

    @staticmethod
    def decoded(request: Received) -> bytes:
        """Return the body without the chunk framing that botocore adds for its checksum."""
        if "aws-chunked" not in request.headers.get("content-encoding", ""):
            return request.body
        data, rest = b"", request.body
        while True:
            head, _, rest = rest.partition(b"\r\n")
            size = int(head.split(b";")[0], 16)
            if size == 0:
                return data
            data, rest = data + rest[:size], rest[size + 2 :]

    def about_the_bucket(self, request: Received) -> Reply:
        if request.query.get("list-type") == "2":
            return self.page(request)
        if "versions" in request.query:
            return self.version_page(request)
        if "versioning" in request.query:
            status = "<Status>Enabled</Status>" if self.versioned else ""
            return Reply(200, f"<VersioningConfiguration>{status}</VersioningConfiguration>")
        keys = [(key, upload_id) for upload_id, (key, _) in self.uploads.items()]
        if "prefix" in request.query:
            began = f"<Initiated>{FIRST_MOMENT.isoformat()}</Initiated>"
            found = "".join(f"<Upload><Key>{escape(k)}</Key><UploadId>{u}</UploadId>{began}</Upload>" for k, u in keys)
            return Reply(200, f"<ListMultipartUploadsResult>{found}</ListMultipartUploadsResult>")
        if self.lock is None:
            return self.error(404, "ObjectLockConfigurationNotFoundError")
        rule = f"<Rule><DefaultRetention><Mode>{self.lock}</Mode><Days>90</Days></DefaultRetention></Rule>"
        enabled = "<ObjectLockEnabled>Enabled</ObjectLockEnabled>"
        return Reply(200, f"<ObjectLockConfiguration>{enabled}{rule}</ObjectLockConfiguration>")

    def page(self, request: Received) -> Reply:
        after = request.query.get("continuation-token", "")
        keys = sorted(key for key in self.objects if key.startswith(request.query.get("prefix", "")) and key > after)
        more, keys = len(keys) > self.page_length, keys[: self.page_length]
        entries = "".join(self.entry(key) for key in keys)
        token = f"<NextContinuationToken>{escape(keys[-1])}</NextContinuationToken>" if more else ""
        truncated = "true" if more else "false"
        text = f"<ListBucketResult><IsTruncated>{truncated}</IsTruncated>{token}{entries}</ListBucketResult>"
        return Reply(200, text, {"Content-Type": "application/xml"})

    def entry(self, key: str) -> str:
        """Return what a list says of an object."""
        fields = f"<Size>{len(self.objects[key])}</Size><LastModified>{FIRST_MOMENT.isoformat()}</LastModified>"
        return f"<Contents><Key>{escape(key)}</Key>{fields}</Contents>"

    def version_page(self, request: Received) -> Reply:
        """List versions and marks."""
        entries = [("Version", key, version, len(data)) for (key, version), data in self.versions.items()]
        entries += [("DeleteMarker", key, version, 0) for key, version in self.marks]
        chosen = sorted(e for e in entries if e[1].startswith(request.query.get("prefix", "")))
        start = int(request.query.get("version-id-marker", "0"))
        end = start + self.page_length
        text = ""
        for kind, key, version, size in chosen[start:end]:
            at = self.written_at.get(version, FIRST_MOMENT).isoformat()
            fields = f"<Key>{escape(key)}</Key><VersionId>{version}</VersionId><LastModified>{at}</LastModified>"
            text += f"<{kind}>{fields}{f'<Size>{size}</Size>' if kind == 'Version' else ''}</{kind}>"
        if len(chosen) > end:
            text += f"<NextKeyMarker>x</NextKeyMarker><NextVersionIdMarker>{end}</NextVersionIdMarker>"
        truncated = "true" if len(chosen) > end else "false"
        return Reply(200, f"<ListVersionsResult><IsTruncated>{truncated}</IsTruncated>{text}</ListVersionsResult>")

    @staticmethod
    def error(status: int, code: str) -> Reply:
        return Reply(status, f"<Error><Code>{code}</Code><Message>{code}</Message></Error>")


def connection_to(server: Server, login: str = UPLOADER) -> str:
    """Return the JSON of an Airflow connection to a server."""
    extra = {
        "endpoint_url": server.url,
        "region_name": "us-east-1",
        "config_kwargs": {
            "s3": {"addressing_style": "path"},
            # Without it botocore waits between its tries.
            "retries": {"total_max_attempts": 1, "mode": "standard"},
        },
    }
    return connection_json(conn_type="aws", login=login, password=SECRET, extra=extra)
