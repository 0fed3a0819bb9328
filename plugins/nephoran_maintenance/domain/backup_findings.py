"""What a report says of the making of a backup: its sources, snapshots that nobody knows, and the staging bucket."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nephoran_maintenance.domain.findings import Finding, Severity
from nephoran_maintenance.domain.manifest import Source
from nephoran_maintenance.domain.tsdb import OTHERS

TENANTS_SHOWN = 20


def source_finding(source: Source) -> Finding:
    """Return what became of a source, and what of it is not in the backup."""
    archive = source.archive
    if archive:
        observed = f"{archive.members} files, {archive.member_bytes} bytes, {archive.size_bytes} bytes stored"
        if kind := source.facts.get("kind"):
            why = source.facts.get("reason")
            observed += f", {kind}{f' because {why}' if why else ''}"
        missing: list[str] = []
        hints: list[str] = []
        if added := source.facts.get("collections_added_meanwhile"):
            missing.append(f"{', '.join(added)}, added while it was made")
            hints.append("The next backup has them.")
        for collection, found in source.facts.get("tenants_left_out", {}).items():
            names = ", ".join(found["names"][:TENANTS_SHOWN])
            states = ", ".join(f"{count} {state}" for state, count in sorted(found["states"].items()))
            more = ", …" if found["count"] > TENANTS_SHOWN else ""
            missing.append(f"{found['count']} tenants of {collection} ({states}): {names}{more}")
        if source.facts.get("tenants_left_out"):
            hints.append(
                "Activate the tenants and make a backup: Weaviate before 1.37 takes in active ones alone, and none "
                "takes in what is offloaded."
            )
        if missing:
            seen = f"{observed}; not in it: {'; '.join(missing)}"
            return Finding("sources", "warn", source.name, seen, "captured", " ".join(hints))
        return Finding("sources", "pass", source.name, observed, "captured")
    severity: Severity = "block" if source.required else "warn"
    return Finding("sources", severity, source.name, f"{source.state}: {source.reason}", "captured", "See its step.")


def snapshot_findings(sources: Sequence[Source]) -> list[Finding]:
    """Return that Prometheus has snapshots that nobody may know of: they keep the space of old blocks."""
    hint = (
        "A backup that vanished may have left them. Unless another backup is at work or somebody needs them, delete "
        "them below snapshots in the data of Prometheus: they keep the space of old blocks."
    )
    findings = []
    for source in sources:
        if others := source.facts.get(OTHERS):
            names = ", ".join(others["first"])
            seen = f"{others['count']} that are none of this backup: {names}"
            findings.append(Finding("snapshots", "warn", source.name, seen, "none but its own", hint))
    return findings


def staging_finding(bucket: str, staged: Mapping[str, Any]) -> Finding:
    """Return whether the staging bucket is clear again.

    :param staged: ``{"seconds", "deleted", "doubt"}``, what the step that clears it has returned.
    """
    lay = f"Weaviate's files lay there for {staged['seconds']} s; {staged['deleted']} were deleted"
    if not (doubt := staged.get("doubt")):
        return Finding("staging bucket", "pass", bucket, lay, "only descriptors stay")
    hint = (
        "See that Weaviate's backup ends, or cancel it (DELETE /v1/backups/s3/<id>); then clear release_staging, "
        "so that no data lies there in clear."
    )
    return Finding("staging bucket", "block", bucket, f"{lay}; {doubt}", "only descriptors stay", hint)
