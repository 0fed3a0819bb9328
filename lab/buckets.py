"""The buckets of a lab's object store, and who may do what in each."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from xml.sax.saxutils import escape

import httpx

from lab.config import LabConfig
from lab.failure import LabError

S3_REGION = "us-east-1"
REPORTS = "nephoran-reports"
BACKUPS = "nephoran-production-backups"
STAGING = "nephoran-weaviate-staging"
LOCKED_DAYS = 1
"""How long a backup can't be deleted: the lab's own life is shorter."""

_READ = (
    "s3:GetObject",
    "s3:GetObjectVersion",
    "s3:GetObjectRetention",
    "s3:GetObjectLegalHold",
    "s3:ListMultipartUploadParts",
)
_LIST = (
    "s3:ListBucket",
    "s3:ListBucketVersions",
    "s3:ListBucketMultipartUploads",
    "s3:GetBucketLocation",
    "s3:GetBucketVersioning",
    "s3:GetBucketObjectLockConfiguration",
)
_ABORT = ("s3:AbortMultipartUpload",)
_WRITE = ("s3:PutObject", *_ABORT)
_DELETE = ("s3:DeleteObject", "s3:DeleteObjectVersion")


@dataclass(frozen=True)
class Account:
    """Somebody who may use one bucket.

    :param name: the access key, so that policies can be read.
    :param actions: on objects; every account may list.
    """

    name: str
    bucket: str
    actions: tuple[str, ...]

    def secret(self, config: LabConfig) -> str:
        return config.secret(f"s3-{self.name}")


UPLOADER = Account("backup-uploader", BACKUPS, (*_READ, *_WRITE))
RETENTION = Account("backup-retention", BACKUPS, (*_READ, *_DELETE, *_ABORT))
STAGER = Account("weaviate-staging", STAGING, (*_READ, *_WRITE, *_DELETE))
ACCOUNTS = (UPLOADER, RETENTION, STAGER)


def client(config: LabConfig, account: Account | None = None) -> Any:
    """Return a boto3 client of an account, by default of the store's administrator."""
    import boto3
    from botocore.config import Config

    return boto3.client(
        "s3",
        endpoint_url=config.s3_endpoint,
        region_name=S3_REGION,
        aws_access_key_id=account.name if account else config.secret("s3-access-key"),
        aws_secret_access_key=account.secret(config) if account else config.secret("s3-secret-key"),
        config=Config(s3={"addressing_style": "path"}, proxies={}, retries={"total_max_attempts": 2}),
    )


def make_all(config: LabConfig) -> None:
    """Make buckets and accounts: reports versioned, backups versioned and locked, staging plain. Safe to repeat: yes."""
    store = client(config)
    for bucket in (REPORTS, BACKUPS, STAGING):
        _make(store, bucket, locked=bucket == BACKUPS)
    for bucket in (REPORTS, BACKUPS):
        store.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    rule = {"DefaultRetention": {"Mode": "GOVERNANCE", "Days": LOCKED_DAYS}}
    store.put_object_lock_configuration(
        Bucket=BACKUPS, ObjectLockConfiguration={"ObjectLockEnabled": "Enabled", "Rule": rule}
    )
    for account in ACCOUNTS:
        _make_account(config, account)
    for bucket in (BACKUPS, STAGING):
        owners = [account for account in ACCOUNTS if account.bucket == bucket]
        store.put_bucket_policy(Bucket=bucket, Policy=json.dumps(policy(bucket, owners)))


def policy(bucket: str, accounts: Iterable[Account]) -> dict[str, Any]:
    """Return what accounts may do in a bucket."""
    statements = []
    for account in accounts:
        allowed = {"Effect": "Allow", "Principal": {"AWS": [account.name]}}
        statements.append({**allowed, "Action": list(_LIST), "Resource": f"arn:aws:s3:::{bucket}"})
        statements.append({**allowed, "Action": list(account.actions), "Resource": f"arn:aws:s3:::{bucket}/*"})
    return {"Version": "2012-10-17", "Statement": statements}


def _make(store: Any, bucket: str, *, locked: bool) -> None:
    from botocore.exceptions import ClientError

    try:
        store.create_bucket(Bucket=bucket, ObjectLockEnabledForBucket=locked)
    except ClientError as problem:
        if problem.response["Error"]["Code"] not in ("BucketAlreadyOwnedByYou", "BucketAlreadyExists"):
            raise


def _make_account(config: LabConfig, account: Account) -> None:
    """Ask versitygw's own interface, which is signed like S3's."""
    from botocore.auth import S3SigV4Auth
    from botocore.awsrequest import AWSRequest
    from botocore.credentials import Credentials

    fields = {"Access": account.name, "Secret": account.secret(config), "Role": "user"}
    inner = "".join(f"<{name}>{escape(value)}</{name}>" for name, value in fields.items())
    body = f"<Account>{inner}</Account>".encode()
    request = AWSRequest("PATCH", f"{config.s3_endpoint}/create-user", data=body)
    request.headers["X-Amz-Content-SHA256"] = hashlib.sha256(body).hexdigest()
    keys = Credentials(config.secret("s3-access-key"), config.secret("s3-secret-key"))
    S3SigV4Auth(keys, "s3", S3_REGION).add_auth(request)
    with httpx.Client(trust_env=False, timeout=10) as http:
        answer = http.patch(request.url, content=body, headers=dict(request.headers.items()))
    if answer.is_error and answer.status_code != httpx.codes.CONFLICT:
        raise LabError(f"The account {account.name} can't be made: {answer.status_code} {answer.text[:300]}")
