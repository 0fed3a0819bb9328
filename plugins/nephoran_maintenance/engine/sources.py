"""What a backup is made of: each source gives its members one after the other and tells how it went.

A source is iterated once. It raises what made it fail; ``outcome`` is set in every case.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, ClassVar, Literal

from nephoran_maintenance.domain.capture import (
    Captured,
    Difference,
    Selection,
    canonical,
    digest_of,
    listings,
    unreadable_groups,
)
from nephoran_maintenance.domain.configuration import WITH_PODS, missing_references, pod_spec_of, references_of
from nephoran_maintenance.domain.members import Member
from nephoran_maintenance.domain.pod_files import SHOWN
from nephoran_maintenance.domain.scope import Scope
from nephoran_maintenance.errors import MaintenanceError, TransientError
from nephoran_maintenance.hooks.cluster import ClusterHook
from nephoran_maintenance.hooks.object_listing import ObjectLister, forbidden_error

State = Literal["captured", "absent", "failed"]


@dataclass
class Outcome:
    """How a source went.

    :param message: why it is absent or failed.
    :param facts: what the manifest says of it, as JSON.
    """

    state: State
    message: str = ""
    facts: dict[str, Any] = field(default_factory=dict)


class Source:
    """Members, and an outcome once they were read. Subclasses give :meth:`members` and may set ``absent``."""

    name: ClassVar[str]

    def __init__(self) -> None:
        self.outcome = Outcome("failed", "it was not read to its end")
        self.absent = ""
        """Set by a subclass: why there is nothing to capture."""
        self.facts: dict[str, Any] = {}
        self.made_at: datetime | None = None
        """Set by a subclass: when what it reads was made, where that was before it is read."""

    def members(self) -> Iterator[Member]:
        """Yield the members."""
        raise NotImplementedError

    def __iter__(self) -> Iterator[Member]:
        try:
            yield from self.members()
        except MaintenanceError as error:
            self.outcome = Outcome("failed", error.message, self.facts)
            raise
        self.outcome = Outcome("absent" if self.absent else "captured", self.absent, self.facts)


def member_of(path: str, content: bytes) -> Member:
    """Return a member whose content is in memory already."""
    return Member(path, len(content), (content,))


def told(key: str, names: Sequence[str]) -> dict[str, Any]:
    """Return as a fact how many names there are and the first of them; nothing where there are none."""
    return {key: {"count": len(names), "first": list(names[:SHOWN])}} if names else {}


def json_member(path: str, value: Any) -> Member:
    """Return a member that holds a value as JSON."""
    return member_of(path, canonical(value))


class KubernetesObjects(Source):
    """Every object of the system that can be applied again, and records beside them.

    :param namespaces: the system's.
    :param own_namespace: that of journals, leases and switches, of which nothing is kept.
    :param parent: digests of the backup before, by path: only what differs is given. None: everything.
    :param digest: the digest of a content, of the same kind as those of the parent.
    :param scope: which namespaces and resources are taken in.
    """

    name = "kubernetes-objects"

    def __init__(
        self,
        cluster: ClusterHook,
        *,
        namespaces: Sequence[str],
        own_namespace: str,
        parent: Mapping[str, str] | None = None,
        digest: Callable[[bytes], str] = digest_of,
        lister: ObjectLister | None = None,
        scope: Scope | None = None,
    ) -> None:
        super().__init__()
        self.lister = lister or ObjectLister(cluster)
        self.scope = scope or Scope()
        namespaces = self.scope.chosen("namespaces", namespaces)
        self.selection = Selection(namespaces, own_namespace, parent=parent or {}, digest=digest)
        self.incremental = parent is not None
        self._needs: dict[str, set[tuple[str, str]]] = {}

    @property
    def digests(self) -> Mapping[str, str]:
        """Return the digest of every file that belongs to the backup, by path; complete once it is captured."""
        return self.selection.digests

    @property
    def difference(self) -> Difference:
        """Return what differs from the backup before; complete once it is captured."""
        return self.selection.difference()

    def members(self) -> Iterator[Member]:
        for file in self._files():
            yield member_of(file.path, file.content)

    def _files(self) -> Iterator[Captured]:
        selection, lister = self.selection, self.lister
        discovery = lister.discover()
        if unreadable := unreadable_groups(discovery):
            raise TransientError(
                "discovery-incomplete",
                f"the servers of {', '.join(unreadable)} do not say what they serve, so objects would be missing",
                context={"connection": lister.cluster.connection_id},
                hint="Look at kubectl get apiservices: repair the one that is not available, or remove it.",
            )
        wanted = [
            listing
            for listing in listings(discovery, selection.namespaces, elsewhere=not self.scope.limits("namespaces"))
            if self.scope.chosen("resources", [listing.served.label])
        ]
        for page in lister.pages(wanted):
            if page.first:
                selection.begin(page.listing, again=page.again)
            for found in page.objects():
                served = page.listing.served
                if (served.group, served.kind) in WITH_PODS:
                    needs = self._needs.setdefault(str(found["metadata"]["namespace"]), set())
                    needs |= references_of(pod_spec_of(found))
                yield from selection.take(page.listing, found)
            if page.last:
                yield from selection.end(page.listing)
        if error := forbidden_error(lister):
            raise error
        self.facts = {
            "objects": selection.objects,
            "files": len(selection.digests),
            "lists": len(wanted),
            "left_out": dict(selection.left_out),
            "restarted_lists": list(selection.restarted),
            "superseded": list(selection.superseded),
            "removed_resources": list(lister.gone),
            # Configuration that workloads need and that is nowhere: they would not start after a restore either.
            "missing_references": missing_references(self._needs, selection.digests),
        }
        if self.incremental:
            differs = selection.difference()
            self.facts |= {
                "added": len(differs.added),
                "changed": len(differs.changed),
                # By name: a restore takes away what an earlier link of the chain has brought.
                "deleted": list(differs.deleted),
            }
