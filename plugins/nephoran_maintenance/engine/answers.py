"""Whether a pod answers real queries, which is more than being Ready."""

from __future__ import annotations

from nephoran_maintenance.errors import MaintenanceError
from nephoran_maintenance.hooks.cluster import ClusterHook
from nephoran_maintenance.hooks.weaviate_api import WeaviateHook, missing_on


def missing_on_pod(
    cluster: ClusterHook,
    weaviate_connection_id: str,
    *,
    namespace: str,
    pod: str,
    port: int = 8080,
    collection: str = "",
    object_id: str | None = None,
    healthy_nodes: int | None = None,
    api_key: str | None = None,
) -> str:
    """Ask one Weaviate pod, through a forwarded port, what it lacks; empty when it lacks nothing.

    A pod that is not there, or does not answer yet, lacks that. Blocks for a moment: in an event loop call it in a
    thread, and with the key given.

    :raises MaintenanceError: when the cluster can't be asked, or Weaviate refuses the key or the query.
    """
    try:
        with cluster.port_forward(namespace, pod, port) as url:
            weaviate = WeaviateHook(weaviate_connection_id, base_url=url, api_key=api_key)
            return missing_on(weaviate, collection=collection, object_id=object_id, healthy_nodes=healthy_nodes)
    except MaintenanceError as error:
        if error.reference in ("weaviate-unreachable", "weaviate-unavailable"):
            return f"it does not answer: {error.message}"
        if error.reference == "not-found" and error.context.get("name") == pod:
            return "it does not exist"
        raise
