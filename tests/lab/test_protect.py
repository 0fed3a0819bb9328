"""The backup before a change: made and read back before anything is changed, or nothing is changed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any

from lab import buckets
from tests.lab.stored_backup import StoredBackup

if TYPE_CHECKING:
    from conftest import Lab, Run, Upgrades

COMPONENT = "rag-api"


@contextmanager
def denied(lab: Lab, key: str) -> Iterator[None]:
    """Refuse every upload of objects of a name."""
    store = buckets.client(lab.config)
    rights = buckets.policy(buckets.BACKUPS, [buckets.UPLOADER, buckets.RETENTION])
    refusal = {
        "Effect": "Deny",
        "Principal": {"AWS": [buckets.UPLOADER.name]},
        "Action": ["s3:PutObject"],
        "Resource": f"arn:aws:s3:::{buckets.BACKUPS}/*/{key}",
    }
    store.put_bucket_policy(
        Bucket=buckets.BACKUPS, Policy=json.dumps({**rights, "Statement": [*rights["Statement"], refusal]})
    )
    try:
        yield
    finally:
        store.put_bucket_policy(Bucket=buckets.BACKUPS, Policy=json.dumps(rights))


def holder(lab: Lab) -> str | None:
    leases = lab.get("leases.coordination.k8s.io", namespace="nephoran-maintenance")["items"]
    assert leases
    return next((lease["spec"]["holderIdentity"] for lease in leases if "holderIdentity" in lease["spec"]), None)


def journals(lab: Lab) -> list[dict[str, Any]]:
    found = lab.get("configmaps", namespace="nephoran-maintenance")["items"]
    return [json.loads(one["data"]["journal.json"]) for one in found if "journal.json" in one.get("data", {})]


def backup_of(lab: Lab, run: Run) -> str:
    return str(run.client.xcom(run.dag_id, run.run_id, "protect.check_request")["backup_id"])


def test_an_upgrade_makes_a_full_backup_of_what_was_there_before_it(lab: Lab, upgrades: Upgrades) -> None:
    upgrades.prepare(before_change="full")
    run = upgrades.run(mode="apply", version="v2", components=[COMPONENT])
    assert run.state == "success", run.explain()
    report = run.report
    found = StoredBackup(lab.config, backup_of(lab, run))
    manifest = found.manifest
    assert report["backup"]["backup_id"] == found.backup_id
    assert report["backup"]["checked"] == "every byte read back"
    assert (manifest["type"], manifest["tag"]) == ("full", f"pre-{report['operation_id']}")
    assert manifest["operation_id"] == report["operation_id"]
    # The lab's profile names no folder of a knowledge base.
    assert {name for name, source in found.sources.items() if source["state"] != "captured"} == {"knowledge-base"}
    kept = json.loads(
        found.files("kubernetes-objects")[
            f"kubernetes/objects/namespaces/nephoran-system/deployments.apps/{COMPONENT}.json"
        ]
    )
    images = [container["image"] for container in kept["spec"]["template"]["spec"]["containers"]]
    assert any(image.endswith(f"/{COMPONENT}:v1") for image in images), images
    (journal,) = [one for one in journals(lab) if one["operation_id"] == report["operation_id"]]
    checked = json.loads(found.content("checked.json"))
    assert datetime.fromisoformat(checked["at"]) < datetime.fromisoformat(journal["started_at"])
    assert ":v2@sha256:" in upgrades.images()[COMPONENT]


def test_without_a_backup_nothing_is_changed_and_the_lease_is_free_again(lab: Lab, upgrades: Upgrades) -> None:
    upgrades.prepare(before_change="full")
    before = upgrades.specs()
    with denied(lab, "weaviate.tar.zst.gpg"):
        run = upgrades.run(mode="apply", version="v2", components=[COMPONENT])
    assert run.state == "failed"
    assert "[object-store-forbidden]" in run.error("protect.capture_weaviate")
    assert run.report["overall"] == "refused"
    assert run.report["backup"] is None
    assert upgrades.specs() == before
    assert holder(lab) is None
    assert [one for one in journals(lab) if one["operation_id"] == run.report["operation_id"]] == []
    names = StoredBackup(lab.config, backup_of(lab, run)).names()
    assert not [name for name in names if name.startswith(("manifest", "weaviate.tar"))]
    staged = buckets.client(lab.config).list_objects_v2(Bucket=buckets.STAGING, Prefix=backup_of(lab, run))
    assert staged.get("Contents", ()) == ()
