"""An S3 server in memory: whole objects, multipart uploads, versions; a test says what it refuses."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Callable
from urllib.parse import unquote
from xml.sax.saxutils import escape

from tests.unit.hooks.fake_servers import Received, Reply, Server, connection_json

SECRET = "secret-key-of-test"


class FakeS3:
    """One bucket; lists two keys to a page. ``fail`` answers in its place while it returns something."""

    def __init__(self, bucket: str = "reports") -> None:
        self.bucket = bucket
        self.objects: dict[str, bytes] = {}
        self.versions: dict[tuple[str, str], bytes] = {}
        self.uploads: dict[str, tuple[str, dict[int, bytes]]] = {}
        self.deny = self.may_delete = False
        self.lock: str | None = None
        self.fail: Callable[[Received], Reply | None] = lambda request: None
        self._numbers = itertools.count(1)

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
            return Reply(200, "", {"ETag": '"x"', "x-amz-version-id": self.put(key, data)})
        if request.method == "POST":
            return self.multipart(request, key)
        if request.method == "DELETE":
            if self.may_delete and key in self.objects:
                del self.objects[key]
            elif self.uploads.pop(request.query.get("uploadId", ""), None) is None:
                return self.error(403, "AccessDenied")
            return Reply(204)
        version = request.query.get("versionId")
        found = self.versions.get((key, version)) if version else self.objects.get(key)
        return self.error(404, "NoSuchKey") if found is None else Reply(200, found)

    def put(self, key: str, data: bytes) -> str:
        version = f"v{next(self._numbers)}"
        self.objects[key] = self.versions[key, version] = data
        return version

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
        return Reply(200, body, {"x-amz-version-id": version})

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
        keys = [(key, upload_id) for upload_id, (key, _) in self.uploads.items()]
        if "prefix" in request.query:
            found = "".join(f"<Upload><Key>{escape(k)}</Key><UploadId>{u}</UploadId></Upload>" for k, u in keys)
            return Reply(200, f"<ListMultipartUploadsResult>{found}</ListMultipartUploadsResult>")
        if self.lock is None:
            return self.error(404, "ObjectLockConfigurationNotFoundError")
        rule = f"<Rule><DefaultRetention><Mode>{self.lock}</Mode><Days>90</Days></DefaultRetention></Rule>"
        enabled = "<ObjectLockEnabled>Enabled</ObjectLockEnabled>"
        return Reply(200, f"<ObjectLockConfiguration>{enabled}{rule}</ObjectLockConfiguration>")

    def page(self, request: Received) -> Reply:
        after = request.query.get("continuation-token", "")
        keys = sorted(key for key in self.objects if key.startswith(request.query.get("prefix", "")) and key > after)
        more = len(keys) > 2
        sizes = {key: len(self.objects[key]) for key in keys[:2]}
        entries = "".join(f"<Contents><Key>{escape(k)}</Key><Size>{n}</Size></Contents>" for k, n in sizes.items())
        token = f"<NextContinuationToken>{escape(keys[1])}</NextContinuationToken>" if more else ""
        truncated = "true" if more else "false"
        text = f"<ListBucketResult><IsTruncated>{truncated}</IsTruncated>{token}{entries}</ListBucketResult>"
        return Reply(200, text, {"Content-Type": "application/xml"})

    @staticmethod
    def error(status: int, code: str) -> Reply:
        return Reply(status, f"<Error><Code>{code}</Code><Message>{code}</Message></Error>")


def connection_to(server: Server) -> str:
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
    return connection_json(conn_type="aws", login="access-key", password=SECRET, extra=extra)
