"""List everything that a cluster holds, page by page, with at most three pages in memory.

The next page is fetched in a thread while the last one is worked on, and a page's objects are parsed one by one, so
memory does not grow with the cluster.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import msgspec

from nephoran_maintenance.domain.capture import Discovery, Listing, Served, served_in, served_in_lists
from nephoran_maintenance.errors import MaintenanceError, PermanentError, TransientError
from nephoran_maintenance.hooks.cluster import Answer, ClusterHook
from nephoran_maintenance.hooks.kubernetes_rest import (
    PAGE_SIZE,
    JsonObject,
    Request,
    Resource,
    parse_json,
    resource_path,
    status_error,
)

Item = TypeVar("Item")
Result = TypeVar("Result")

AGGREGATED = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json"
FIRST_PAGE_OBJECTS = 50
"""An object may have 1.5 MiB; how large these are is known after the first page."""
PAGE_BYTES = 1024 * 1024
OUTAGE_LIMIT = timedelta(seconds=90)
"""A restart of the API server, or a minute without it, does not end a backup."""
RESTART_LIMIT = 5
LONGEST_PAUSE_SECONDS = 5.0


class _ListMetadata(msgspec.Struct):
    continue_token: str = msgspec.field(default="", name="continue")


class _List(msgspec.Struct):
    items: list[msgspec.Raw] | None = None
    metadata: _ListMetadata = msgspec.field(default_factory=_ListMetadata)


_LIST = msgspec.json.Decoder(_List)
_OBJECT = msgspec.json.Decoder(dict[str, Any])


@dataclass(frozen=True)
class Page:
    """One page of a list.

    :param first: the list begins here.
    :param again: it begins again: what it gave before does not count.
    :param last: the list is complete.
    """

    listing: Listing
    items: list[msgspec.Raw]
    first: bool
    again: bool
    last: bool

    def objects(self) -> Iterator[JsonObject]:
        """Yield the objects, each parsed when its turn comes."""
        for item in self.items:
            yield _OBJECT.decode(item)


class ObjectLister:
    """Read what a cluster serves and everything in it.

    ``forbidden`` names the lists that the account may not read, ``gone`` those whose resource was removed meanwhile,
    ``restarts`` those that began again because the server no longer had the state that they had begun with.

    :param outage_limit: so long, in one piece, may the API server be away, busy (429) or failing (5xx).
    :param sleep: waits for seconds.
    """

    def __init__(
        self,
        cluster: ClusterHook,
        *,
        outage_limit: timedelta = OUTAGE_LIMIT,
        page_bytes: int = PAGE_BYTES,
        sleep: Callable[[float], None] = time.sleep,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.cluster = cluster
        self.outage_limit = outage_limit
        self.page_bytes = page_bytes
        self.forbidden: list[str] = []
        self.gone: list[str] = []
        self.restarts: list[str] = []
        self.repeated_requests = 0
        self._sleep = sleep
        self._monotonic = monotonic

    # --------------------------------------------------------------------------------------------------- discovery

    def discover(self) -> Discovery:
        """Return every resource that can be listed, from aggregated discovery or, in older clusters, group by group.

        :raises MaintenanceError: when discovery can't be read at all.
        """
        documents = [self._discovery(path) for path in ("/api", "/apis")]
        if all(document.get("kind") == "APIGroupDiscoveryList" for document in documents):
            return served_in(documents)
        core, groups = documents
        paths = [f"/api/{version}" for version in core.get("versions") or ()]
        for group in groups.get("groups") or ():
            preferred = (group.get("preferredVersion") or {}).get("groupVersion")
            versions = [str(version["groupVersion"]) for version in group.get("versions") or ()]
            paths += [f"/apis/{version}" for version in sorted(versions, key=lambda version: version != preferred)]
        lists, unreadable = [], []
        for path in paths:
            try:
                lists.append(self._discovery(path))
            except MaintenanceError as error:
                # The server of an aggregated API may be away while all others answer.
                if error.reference not in ("cluster-unavailable", "not-found"):
                    raise
                unreadable.append(path.removeprefix("/apis/"))
        return Discovery(served_in_lists(lists).served, tuple(unreadable))

    def _discovery(self, path: str) -> JsonObject:
        about = Request("get", path)

        def ask() -> Answer:
            return self.cluster.request("GET", path, about, accept=AGGREGATED)

        # One group of many may be away for good.
        answer = self._patiently(ask) if path in ("/api", "/apis") else ask()
        return parse_json(answer.body, about, self.cluster.connection_id, self.cluster.server)

    # ------------------------------------------------------------------------------------------------------- lists

    def pages(self, listings: Iterable[Listing]) -> Iterator[Page]:
        """Yield the pages of all lists, one list after the other.

        A list that the account may not read is remembered in ``forbidden``; from then on lists are only tried, so that
        all that is forbidden becomes known, and nothing more is yielded.

        :raises MaintenanceError: when the API server stays away longer than the outage limit, when a list expires again
            and again (``list-expired``), or for any answer but those above.
        """
        yield from ahead(self._pages(listings))

    def _pages(self, listings: Iterable[Listing]) -> Iterator[Page]:
        for listing in listings:
            if self.forbidden:
                self._try(listing)
            else:
                yield from self._pages_of(listing)

    def _pages_of(self, listing: Listing) -> Iterator[Page]:
        limit, token = FIRST_PAGE_OBJECTS, ""
        first, begun, restarts = True, False, 0
        while True:
            answer, page = self._ask(listing, limit, token)
            if answer.status == 403:
                self._remember_forbidden(listing, answer)
                return
            if answer.status == 404:
                self.gone.append(str(listing))
                yield Page(listing, [], first=True, again=begun, last=True)
                return
            if answer.status == 410:
                restarts += 1
                self.restarts.append(str(listing))
                if restarts > RESTART_LIMIT:
                    raise _expired(listing, self.cluster.connection_id)
                first, token = True, ""
                continue
            items, token = page.items or [], page.metadata.continue_token
            yield Page(listing, items, first=first, again=first and begun, last=not token)
            if not token:
                return
            first, begun = False, True
            if items:
                limit = max(1, min(PAGE_SIZE, self.page_bytes * len(items) // len(answer.body)))

    def _ask(self, listing: Listing, limit: int, token: str) -> tuple[Answer, _List]:
        about = Request("list", listing.served.label, listing.namespace)
        path = resource_path(_resource(listing.served), listing.namespace)
        query: Mapping[str, object] = {
            "limit": limit,
            "continue": token or None,
            "labelSelector": listing.selector or None,
        }

        def ask() -> tuple[Answer, _List]:
            answer = self.cluster.request("GET", path, about, query=query, raise_for_status=False)
            if answer.status in (403, 404, 410):
                return answer, _List()
            if not 200 <= answer.status <= 299:
                raise self._error(answer, about)
            return answer, self._parsed(listing, answer)

        return self._patiently(ask)

    def _patiently(self, ask: Callable[[], Result]) -> Result:
        """Ask until it is answered; a transient error is raised once it has lasted for the outage limit."""
        began: float | None = None
        pause_seconds = 0.25
        while True:
            try:
                return ask()
            except TransientError:
                now = self._monotonic()
                began = now if began is None else began
                if now - began >= self.outage_limit.total_seconds():
                    raise
            self.repeated_requests += 1
            # Spread, so that not everybody comes back to a restarted API server at once.
            self._sleep(pause_seconds * random.uniform(0.75, 1.25))
            pause_seconds = min(2 * pause_seconds, LONGEST_PAUSE_SECONDS)

    def _try(self, listing: Listing) -> None:
        answer, _ = self._ask(listing, 1, "")
        if answer.status == 403:
            self._remember_forbidden(listing, answer)

    def _remember_forbidden(self, listing: Listing, answer: Answer) -> None:
        # The error names the account and, for a webhook or a policy, its reason.
        error = self._error(answer, Request("list", listing.served.label, listing.namespace))
        self.forbidden.append(f"{listing}: {error.message}" if not self.forbidden else str(listing))

    def _parsed(self, listing: Listing, answer: Answer) -> _List:
        try:
            return _LIST.decode(answer.body)
        except msgspec.MsgspecError as error:
            raise TransientError(
                "cluster-unavailable",
                f"the API server {self.cluster.server} did not answer list {listing} with a list: {error}",
                context={"connection": self.cluster.connection_id},
                hint="Check that no proxy answers in the API server's place.",
            ) from error

    def _error(self, answer: Answer, about: Request) -> MaintenanceError:
        cluster = self.cluster
        return status_error(
            answer.status, answer.body, about, cluster.connection_id, cluster.server, cluster.settings.secrets
        )


def ahead(items: Iterator[Item]) -> Iterator[Item]:
    """Yield the same items, the next of which is made in a thread while the last one is worked on."""
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="ahead") as pool:
        coming = pool.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = pool.submit(next, items, None)
            yield item


def _resource(served: Served) -> Resource:
    return Resource(served.group, served.version, served.plural, served.kind, served.namespaced)


def _expired(listing: Listing, connection_id: str) -> TransientError:
    return TransientError(
        "list-expired",
        f"the list of {listing} expired {RESTART_LIMIT + 1} times before it was complete",
        context={"connection": connection_id},
        hint="The cluster compacts its storage faster than its objects can be read: look at the load of the API server.",
    )


def forbidden_error(lister: ObjectLister) -> PermanentError | None:
    """Return the error that names every list that the account may not read; None when it may read all."""
    if not lister.forbidden:
        return None
    connection_id = lister.cluster.connection_id
    return PermanentError(
        "cluster-forbidden",
        f"{len(lister.forbidden)} lists of the backup are forbidden: {'; '.join(lister.forbidden)}",
        context={"connection": connection_id},
        hint=f"Give the ServiceAccount of connection {connection_id!r} the verb list on them; the manifests are in deploy/.",
    )
