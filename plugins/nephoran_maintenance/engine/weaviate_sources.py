"""What a backup holds of Weaviate: facts to compare a restore with, and the files of Weaviate's own backup."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from nephoran_maintenance.domain.members import Member
from nephoran_maintenance.domain.weaviate_backup import chunks_of, shards_in, tenants_left_out
from nephoran_maintenance.engine.sources import Source, json_member, member_of
from nephoran_maintenance.errors import MaintenanceError, PermanentError
from nephoran_maintenance.hooks.staging import StagedFile, StagingBucket
from nephoran_maintenance.hooks.weaviate_api import WeaviateHook
from nephoran_maintenance.profile import KnownObjects

KNOWN_ITEMS_ASKED = 50
VECTORS_ASKED = 20
LARGEST_SEARCH = 10_000
"""Weaviate's own limit of results (QUERY_MAXIMUM_RESULTS); above it only single objects are searched."""
DESCRIPTOR = "backup_config.json"
NODE_DESCRIPTOR = "backup.json"


class WeaviateFacts(Source):
    """Version, nodes, schema, counts, known items with their answers, and how much can be reached by vector.

    A count alone is no health: objects that the vector index has lost are counted, and found by id, all the same. So a
    sample is searched by its own vectors, and where Weaviate's limit allows it one search asks for everything.

    :param known: the profile's known objects; None: none are asked for.
    """

    name = "weaviate-facts"

    def __init__(self, weaviate: WeaviateHook, known: KnownObjects | None = None) -> None:
        super().__init__()
        self.weaviate = weaviate
        self.known = known

    def members(self) -> Iterator[Member]:
        weaviate = self.weaviate
        meta = weaviate.meta()
        schema = weaviate.schema()
        yield json_member("weaviate/meta.json", meta)
        nodes = weaviate.nodes()
        yield json_member("weaviate/nodes.json", nodes)
        yield json_member("weaviate/schema.json", schema)
        collections = {str(found["class"]): self._collection(found, nodes) for found in schema}
        yield json_member("weaviate/collections.json", collections)
        items = self._known_items()
        yield json_member("weaviate/known-items.json", items)
        after = {str(found["class"]) for found in weaviate.schema()}
        self.facts = {
            "version": str(meta.get("version", "")),
            "nodes": len(nodes),
            "collections": {name: found["objects"] for name, found in collections.items()},
            "reachability": {name: found["reachability"] for name, found in collections.items()},
            "known_items": {"asked": len(items), "found": sum(1 for item in items if item["found"])},
            "collections_added_meanwhile": sorted(after - set(collections)),
            "collections_removed_meanwhile": sorted(set(collections) - after),
        }

    def _collection(self, definition: Mapping[str, Any], nodes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        name = str(definition["class"])
        if (definition.get("multiTenancyConfig") or {}).get("enabled"):
            return {
                "objects": _counted_by_nodes(name, nodes),
                "counted_by": "nodes",
                "reachability": {"state": "not measured", "reason": "it has tenants"},
            }
        count = self.weaviate.count(name)
        return {"objects": count, "counted_by": "aggregate", "reachability": self._reachability(name, count)}

    def _reachability(self, name: str, count: int) -> dict[str, Any]:
        try:
            return self._searched(name, count)
        except MaintenanceError as error:
            # A limit of results below ours, or an index that can't be searched: the rest of the facts still count.
            return {"state": "not measured", "reason": error.message}

    def _searched(self, name: str, count: int) -> dict[str, Any]:
        sample = [found for found in self.weaviate.objects(name, VECTORS_ASKED) if _vectors_of(found)]
        if not sample:
            return {"state": "not measured", "reason": "its objects have no vectors" if count else "it is empty"}
        asked = found_itself = 0
        for found in sample:
            for target, vector in _vectors_of(found).items():
                asked += 1
                found_itself += found["id"] in self.weaviate.nearest(name, vector, target=target, limit=1)
        reached: int | None = None
        if count <= LARGEST_SEARCH:
            target, vector = next(iter(_vectors_of(sample[0]).items()))
            reached = len(self.weaviate.nearest(name, vector, target=target, limit=max(1, count)))
        return {"state": "measured", "asked": asked, "found_itself": found_itself, "reached": reached, "objects": count}

    def _known_items(self) -> list[dict[str, Any]]:
        known = self.known
        if known is None:
            return []
        step = max(1, known.count // KNOWN_ITEMS_ASKED)
        items = []
        for number in list(range(0, known.count, step))[:KNOWN_ITEMS_ASKED]:
            item_id = known.id_of(number)
            found = self.weaviate.get_object(known.collection, item_id)
            items.append(
                {
                    "collection": known.collection,
                    "number": number,
                    "id": item_id,
                    "found": found is not None,
                    "properties": (found or {}).get("properties"),
                }
            )
        return items


def _counted_by_nodes(name: str, nodes: Sequence[Mapping[str, Any]]) -> int:
    """Return how many objects the shards of a collection hold; a shard's replicas count once."""
    shards: dict[str, int] = {}
    for node in nodes:
        for shard in node.get("shards") or ():
            if shard.get("class") == name:
                key = str(shard.get("name", ""))
                shards[key] = max(shards.get(key, 0), int(shard.get("objectCount") or 0))
    return sum(shards.values())


def _vectors_of(found: Mapping[str, Any]) -> dict[str, Sequence[float]]:
    """Return an object's vectors by name; the one without a name under an empty one."""
    named = {str(name): vector for name, vector in (found.get("vectors") or {}).items() if vector}
    return {**({"": found["vector"]} if found.get("vector") else {}), **named}


def tenants_of(weaviate: WeaviateHook) -> dict[str, dict[str, str]]:
    """Return by collection the state of each tenant; collections without tenants are left out."""
    definitions = [found for found in weaviate.schema() if (found.get("multiTenancyConfig") or {}).get("enabled")]
    return {str(found["class"]): weaviate.tenants(str(found["class"])) for found in definitions}


class WeaviateFiles(Source):
    """The files of a finished backup of Weaviate, streamed out of the staging bucket.

    :param prefix: where the backup lies in the bucket, with a slash at the end.
    :param live: gives the collections that exist once everything was read; None: they are not compared.
    :param before: those that existed before it began: one that still exists must be in it.
    :param base_id: the backup that it may build on; empty: it must be a full one.
    :param made_at: when Weaviate began it, which an earlier run may have asked for.
    :param tenants: gives by collection the states of its tenants: the facts name those that are not in it.
    :param about: what else the manifest says of it.
    """

    name = "weaviate"

    def __init__(
        self,
        staging: StagingBucket,
        prefix: str,
        *,
        live: Callable[[], Sequence[str]] | None = None,
        before: Sequence[str] = (),
        base_id: str = "",
        made_at: datetime | None = None,
        tenants: Callable[[], Mapping[str, Mapping[str, str]]] | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.staging = staging
        self.prefix = prefix
        self.live = live
        self.before = before
        self.base_id = base_id
        self.made_at = made_at
        self.tenants = tenants
        self.about = dict(about or {})

    def members(self) -> Iterator[Member]:
        keys: set[str] = set()
        size_bytes = 0
        promised: set[str] = set()
        shards: dict[str, set[str]] = {}
        whole: dict[str, Any] | None = None
        for file in self.staging.files(self.prefix):
            key = file.key.removeprefix(self.prefix)
            keys.add(key)
            size_bytes += file.size_bytes
            node, _, name = key.rpartition("/")
            if name not in (DESCRIPTOR, NODE_DESCRIPTOR):
                yield Member(f"weaviate/backup/{key}", file.size_bytes, self.staging.chunks(file))
                continue
            content = b"".join(self.staging.chunks(file))
            descriptor = _parsed(file, content, self.staging)
            yield member_of(f"weaviate/backup/{key}", content)
            if name == NODE_DESCRIPTOR:
                promised.update(chunks_of(node, descriptor))
                for name, found in shards_in(descriptor).items():
                    shards.setdefault(name, set()).update(found)
            elif not node:
                whole = descriptor
        if whole is None:
            raise self._incomplete(f"has {len(keys)} files and no {DESCRIPTOR}, which comes last")
        if (base := str(whole.get("baseBackupId") or "")) not in ("", self.base_id):
            # Made for an earlier try of this run, which found another parent.
            raise self._incomplete(f"builds on {base}, and the chain of this backup on {self.base_id or 'none'}")
        expected = sorted(whole.get("nodes") or {})
        promised.update(f"{node}/{NODE_DESCRIPTOR}" for node in expected)
        if lacking := sorted(promised - keys):
            raise self._incomplete(f"lacks {len(lacking)} files that its descriptors name, the first is {lacking[0]}")
        collections = {
            name for node in (whole.get("nodes") or {}).values() for name in (node or {}).get("classes") or ()
        }
        self.facts = {
            **self.about,
            "files": len(keys),
            "bytes": size_bytes,
            "status": whole.get("status"),
            "server_version": whole.get("serverVersion"),
            "base_backup_id": base,
            "nodes": expected,
            "collections": sorted(collections),
        }
        if base:
            self.facts["incremental"] = "yes"  # Weaviate 1.39 tells it in the descriptor alone
        if self.live is not None:
            missing = set(self.live()) - collections
            if lost := sorted(missing.intersection(self.before)):
                raise self._incomplete(f"lacks the collections {', '.join(lost)}, which were there before it began")
            self.facts["collections_added_meanwhile"] = sorted(missing)
        if self.tenants is not None:
            self.facts["tenants_left_out"] = tenants_left_out(self.tenants(), shards)

    def _incomplete(self, problem: str) -> PermanentError:
        return PermanentError(
            "weaviate-backup-incomplete",
            f"{self.staging.bucket}/{self.prefix} {problem}",
            context={"bucket": self.staging.bucket, "prefix": self.prefix},
            hint="Make a new backup. If it stays, check that the profile's staging bucket is the one that Weaviate writes to, "
            "and that nobody else deletes there.",
        )


def _parsed(file: StagedFile, content: bytes, staging: StagingBucket) -> dict[str, Any]:
    try:
        value = json.loads(content)
    except ValueError:
        value = None
    if isinstance(value, dict):
        return value
    raise PermanentError(
        "weaviate-backup-incomplete",
        f"{staging.url(file.key)} is not the descriptor of a backup",
        context={"bucket": staging.bucket, "key": file.key},
        hint="Make a new backup; what lies there was not written by Weaviate, or is damaged.",
    )
