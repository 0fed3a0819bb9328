"""The sources of a backup: which types have them, which of them must be there, and how each is made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from nephoran_maintenance.domain.backups import BackupType
from nephoran_maintenance.domain.capture import files_after
from nephoran_maintenance.domain.manifest import Source
from nephoran_maintenance.domain.step_ids import WAIT_WEAVIATE_BACKUP, capture_step_id
from nephoran_maintenance.domain.tsdb import RECORD
from nephoran_maintenance.domain.weaviate_backup import folder_in_bucket
from nephoran_maintenance.operators.base import pull, pull_all

if TYPE_CHECKING:
    from airflow.sdk import Context

    from nephoran_maintenance.domain.scope import Scope
    from nephoran_maintenance.engine.sources import Source as MemberSource
    from nephoran_maintenance.operators.backup_step import BackupStep, Session
    from nephoran_maintenance.profile import SystemProfile

EVERY_TYPE: tuple[BackupType, ...] = ("config-only", "incremental", "full")
WEAVIATE = "weaviate"
KNOWLEDGE_BASE, PROMETHEUS = READERS = ("knowledge-base", "prometheus")
"""What is read from volumes: meanwhile a helper pod, or a snapshot, is in the cluster."""
WITH_DATA: tuple[BackupType, ...] = ("incremental", "full")
OF_THE_SENSOR = ("backup_id", "incremental", "started_at", "completed_at", "staged_objects", "staged_bytes")


@dataclass(frozen=True)
class Capturing:
    """The step that captures a source, in its run."""

    step: BackupStep
    context: Context
    session: Session


class Notes:
    """What a capture notes of what it has in the cluster, for its own next try and for the step that clears up after it.

    Airflow keeps a task's state over its tries and shows it to no other task; an XCom is for others, and is deleted when its
    task is tried again.
    """

    def __init__(self, context: Context) -> None:
        self._state, self._ti = context["task_state_store"], context["ti"]

    def get(self, key: str, default: Any = None) -> Any:
        return self._state.get(key, default)

    def set(self, key: str, value: Any) -> None:
        self._state.set(key, value)
        self._ti.xcom_push(key=key, value=value)

    def tell_again(self, key: str) -> None:
        """Tell others what an earlier try has noted: the first thing that a try does, for it may be its last."""
        if (noted := self.get(key)) is not None:
            self._ti.xcom_push(key=key, value=noted)


MakeSource = Callable[[Capturing], "MemberSource"]


@dataclass(frozen=True)
class SourceKind:
    """:param required: whether a backup of a profile must have it. :param types: which backups have it at all.
    :param notes: the key of what its capture notes; empty: nothing."""

    make: MakeSource
    required: bool | Callable[[SystemProfile], bool]
    types: tuple[BackupType, ...] = EVERY_TYPE
    notes: str = ""

    def is_required(self, profile: SystemProfile) -> bool:
        return self.required if isinstance(self.required, bool) else self.required(profile)


def kubernetes_objects(of: Capturing) -> MemberSource:
    """Return everything of the system that the cluster's API lists."""
    from nephoran_maintenance.engine.sources import KubernetesObjects

    namespaces = of.step.profile.namespaces
    chain = of.step.checked(of.context)["chain"]
    before = files_after(of.session.backups.files_of(link, KubernetesObjects.name) for link in chain)
    return KubernetesObjects(
        of.step.cluster(),
        namespaces=namespaces.of_the_system,
        own_namespace=namespaces.maintenance,
        parent=before if chain else None,
        digest=of.session.digest,
        scope=of.step.request(of.context).scope,
    )


def grafana_dashboards(of: Capturing) -> MemberSource:
    """Return the dashboards of all namespaces."""
    from nephoran_maintenance.engine.monitoring_sources import GrafanaDashboards

    return GrafanaDashboards(of.step.cluster())


def weaviate_facts(of: Capturing) -> MemberSource:
    """Return what a restored Weaviate is compared with."""
    from nephoran_maintenance.engine.weaviate_sources import WeaviateFacts

    return WeaviateFacts(of.step.weaviate(), of.step.profile.known_objects)


def weaviate_files(of: Capturing) -> MemberSource:
    """Return the files of Weaviate's own backup, which the step before has waited for."""
    from nephoran_maintenance.engine.weaviate_sources import WeaviateFiles, tenants_of

    checked = of.step.checked(of.context)
    no_base = checked["no_base"]
    made = pull(of.context, of.step.sibling(WAIT_WEAVIATE_BACKUP))
    staging, weaviate = of.step.staging(), of.step.weaviate()
    return WeaviateFiles(
        staging,
        folder_in_bucket(made["path"], str(staging.bucket), made["backup_id"]),
        live=lambda: [str(found["class"]) for found in weaviate.schema()],
        before=checked["collections"],
        base_id=checked["base_id"],
        made_at=datetime.fromisoformat(made["started_at"]) if made.get("started_at") else None,
        tenants=lambda: tenants_of(weaviate),
        about={**{key: made[key] for key in OF_THE_SENSOR}, **({"incremental": no_base} if no_base else {})},
    )


def prometheus_metrics(of: Capturing) -> MemberSource:
    """Return the metrics of the last day: a snapshot where there is a way to one, else an export."""
    from nephoran_maintenance.engine.monitoring_sources import PrometheusExport, PrometheusMetrics
    from nephoran_maintenance.hooks.prometheus_api import PrometheusHook

    profile = of.step.profile
    connection_id = profile.connections.prometheus
    return PrometheusMetrics(
        PrometheusExport(PrometheusHook(connection_id), end=of.context["dag_run"].run_after),
        of.step.pod_files(of.context),
        profile.backup.prometheus,
        Notes(of.context),
        connection_id=connection_id,
        namespace=profile.namespaces.monitoring,
    )


def knowledge_base(of: Capturing) -> MemberSource:
    """Return the files on volumes that the profile names."""
    from nephoran_maintenance.engine.file_sources import KnowledgeBase

    profile = of.step.profile
    return KnowledgeBase(of.step.pod_files(of.context), profile.backup.knowledge_base, profile.namespaces.system)


SOURCES: dict[str, SourceKind] = {
    "kubernetes-objects": SourceKind(kubernetes_objects, required=True),
    "grafana-dashboards": SourceKind(grafana_dashboards, required=False),
    PROMETHEUS: SourceKind(prometheus_metrics, required=False, types=("full",), notes=RECORD),
    KNOWLEDGE_BASE: SourceKind(
        knowledge_base, required=lambda profile: bool(profile.backup.knowledge_base), types=("full",)
    ),
    "weaviate-facts": SourceKind(weaviate_facts, required=True, types=WITH_DATA),
    WEAVIATE: SourceKind(weaviate_files, required=True, types=WITH_DATA),
}


def captured_sources(context: Context, sibling: Callable[[str], str]) -> tuple[Source, ...]:
    """Return what became of each source that was tried.

    :param sibling: gives the id of a step of the same backup.
    """
    results = pull_all(context, [sibling(capture_step_id(name)) for name in SOURCES])
    return tuple(Source.model_validate(found) for found in results.values())


def sources_of(backup_type: BackupType, scope: Scope | None = None) -> list[str]:
    """Return the names of a backup's sources; None: those of a whole one."""
    names = [name for name, kind in SOURCES.items() if backup_type in kind.types]
    return names if scope is None else scope.chosen("sources", names)
