"""A Weaviate in memory: collections that can be counted, searched and backed up into a bucket."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from tests.unit.hooks.fake_s3 import FakeS3
from tests.unit.hooks.fake_servers import Received, Reply

BACKUPS = "/v1/backups/s3"
ENDS = ("SUCCESS", "FAILED", "CANCELED")


class FakeWeaviate:
    """Collections by name, each with the ids of its objects; ``lost`` ones are not found by vector."""

    def __init__(self) -> None:
        self.collections: dict[str, list[str]] = {}
        self.lost: set[str] = set()
        self.tenants: set[str] = set()
        self.tenant_states: dict[str, dict[str, str]] = {}
        self.named_vectors: set[str] = set()
        self.without_vectors: set[str] = set()
        self.search_limit = 10_000
        self.add_meanwhile = ""

    def __call__(self, request: Received) -> Reply:
        if request.path == "/v1/meta":
            return Reply(200, {"version": "1.39.0"})
        if request.path == "/v1/nodes":
            shards = [{"class": "Tenants", "name": name, "objectCount": 5} for name in ("a", "b")]
            return Reply(200, {"nodes": [{"name": f"weaviate-{n}", "shards": shards} for n in range(2)]})
        if request.path == "/v1/schema":
            classes = [
                {"class": name, "multiTenancyConfig": {"enabled": name in self.tenants}} for name in self.collections
            ]
            if self.add_meanwhile:
                self.collections[self.add_meanwhile] = []
                self.add_meanwhile = ""
            return Reply(200, {"classes": classes})
        if request.path.startswith("/v1/schema/"):
            states = self.tenant_states.get(request.path.split("/")[3], {})
            return Reply(200, [{"name": name, "activityStatus": state} for name, state in states.items()])
        if request.path == "/v1/objects":
            name = request.query["class"]
            ids = self.collections[name][: int(request.query["limit"])]
            return Reply(200, {"objects": [{"id": one, **self.vectors(name, one)} for one in ids]})
        if request.path.startswith("/v1/objects/"):
            _, _, _, name, one = request.path.split("/")
            found = one in self.collections.get(name, ())
            return Reply(200, {"id": one, "properties": {"title": f"title of {one}"}}) if found else Reply(404, "")
        query = request.json["query"]
        name = str(re.search(r"\{ (?:Get|Aggregate) \{ (\w+)", query)[1])  # type: ignore[index]
        if "Aggregate" in query:
            count = len(self.collections[name])
            return Reply(200, {"data": {"Aggregate": {name: [{"meta": {"count": count}}]}}})
        return self.search(name, query)

    def vectors(self, name: str, one: str) -> dict[str, Any]:
        vector = [float(self.collections[name].index(one)), 1.0]
        if name in self.without_vectors:
            return {}
        return {"vectors": {"text": vector}} if name in self.named_vectors else {"vector": vector}

    def search(self, name: str, query: str) -> Reply:
        limit = int(re.search(r"limit: (\d+)", query)[1])  # type: ignore[index]
        if limit > self.search_limit or ("targetVectors" in query) is not (name in self.named_vectors):
            return Reply(200, {"errors": [{"message": "query maximum results exceeded"}]})
        position = float(re.search(r"vector: \[([\d.]+)", query)[1])  # type: ignore[index]
        kept = [one for one in self.collections[name] if one not in self.lost]
        nearest = sorted(kept, key=lambda one: abs(self.collections[name].index(one) - position))[:limit]
        return Reply(200, {"data": {"Get": {name: [{"_additional": {"id": one}} for one in nearest]}}})


class BackedUpWeaviate(FakeWeaviate):
    """It writes its backups into a staging bucket at once; ``refuse`` is why it does not, ``status`` how they end, ``reasons``
    why the next ones fail.

    With a status that is no end it writes no descriptor until it is cancelled, and then as late as Weaviate does: after it
    was asked ``late`` times more. ``folder`` is its own path in the bucket, with a slash at the end.
    """

    def __init__(self, staging: FakeS3) -> None:
        super().__init__()
        self.staging = staging
        self.refuse = ""
        self.status = "SUCCESS"
        self.reasons: list[str] = []
        self.failed: dict[str, str] = {}
        """Why those have failed that did, by id."""
        self.began: dict[str, str] = {}
        self.now: Callable[[], datetime] = lambda: datetime.now(UTC)
        self.asked: list[dict[str, Any]] = []
        self.folder = ""
        self.down = self.keeps_on = False
        self.cancelled: list[str] = []
        self.late = 1
        self.forgets: set[str] = set()
        """Collections that it leaves out of its backups."""
        self.collections = {"TelecomKnowledge": ["id-1", "id-2"]}

    def __call__(self, request: Received) -> Reply:
        if not request.path.startswith("/v1/backups"):
            return super().__call__(request)
        if self.down:
            return Reply(503, "")
        if request.method == "DELETE":
            return self.cancel(request.path.rpartition("/")[2])
        if request.method == "POST":
            if self.refuse:
                return Reply(422, {"error": [{"message": self.refuse}]})
            self.asked.append(request.json)
            return Reply(200, self.back_up(request.json["id"], request.json.get("incremental_base_backup_id", "")))
        backup_id = request.path.rpartition("/")[2]
        there = f"{self.folder}{backup_id}/backup_config.json" in self.staging.objects
        if backup_id in self.cancelled and not there:
            self.late -= 1
            if self.late < 0:
                self.staging.put(f"{self.folder}{backup_id}/backup_config.json", b"{}")
        at_work = backup_id in [asked["id"] for asked in self.asked] and self.status not in ENDS
        known = there or at_work or backup_id in self.cancelled
        return Reply(200, self.answer(backup_id)) if known else Reply(404, "")

    def cancel(self, backup_id: str) -> Reply:
        """End a backup, unless it ``keeps_on``."""
        if self.keeps_on:
            return Reply(500, "")
        self.cancelled.append(backup_id)
        self.status = "CANCELED"
        return Reply(204)

    def back_up(self, backup_id: str, base_id: str) -> dict[str, Any]:
        names = [name for name in self.collections if name not in self.forgets]
        self.failed.pop(backup_id, None)
        if self.reasons:
            self.failed[backup_id] = self.reasons.pop(0)
        active = {
            name: [tenant for tenant, state in self.tenant_states.get(name, {}).items() if state == "ACTIVE"]
            for name in names
        }
        node = {
            "classes": [
                {"name": name, "shards": [{"name": tenant} for tenant in active[name]], "chunks": {"1": active[name]}}
                for name in names
            ]
        }
        whole = {"status": self.answer(backup_id)["status"], "serverVersion": "1.39.0", "baseBackupId": base_id}
        files = {f"weaviate-0/{name}/chunk-1": f"vectors of {name}".encode() * 10 for name in names}
        if self.status not in ENDS:
            self.staging.put(f"{self.folder}{backup_id}/weaviate-0/{names[0]}/chunk-1", b"the first of many")
            return self.answer(backup_id)
        files["weaviate-0/backup.json"] = json.dumps(node).encode()
        files["backup_config.json"] = json.dumps({**whole, "nodes": {"weaviate-0": {"classes": names}}}).encode()
        for name, content in files.items():
            self.staging.put(f"{self.folder}{backup_id}/{name}", content)
        return self.answer(backup_id)

    def answer(self, backup_id: str) -> dict[str, Any]:
        began = self.began.setdefault(backup_id, self.now().isoformat(timespec="milliseconds"))
        times = {"startedAt": began, "completedAt": began}
        path = f"s3://{self.staging.bucket}/{self.folder}{backup_id}"
        error = self.failed.get(backup_id, "") or ("disk full" if self.status == "FAILED" else "")
        status = "FAILED" if error else self.status
        # Like 1.39 it does not say here what it was built on.
        return {"id": backup_id, "status": status, "path": path, "error": error, **times}
