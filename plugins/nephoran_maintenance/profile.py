"""The system profile: the only place where names, namespaces, ports and policies of a system are written."""

from __future__ import annotations

import functools
import uuid
from collections.abc import Iterator
from datetime import timedelta
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from nephoran_maintenance.errors import PermanentError
from nephoran_maintenance.settings import profile_path

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""Every DAG file reads the profile when it is parsed; written in C the reading takes a tenth of the time."""

Name = str
WorkloadKind = Literal["Deployment", "StatefulSet", "DaemonSet"]
GateMetric = Literal["error_ratio", "latency_p95"]
CategoryName = Literal["security", "emergency", "minor", "major", "infrastructure"]
Criticality = Literal["must", "may fail"]


class Part(BaseModel):
    """Unknown keys are errors everywhere in the profile."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Metadata(Part):
    name: str


class Connections(Part):
    """Names of Airflow connections; a procedure's own cluster connection is ``kubernetes_<procedure>``."""

    weaviate: str = "weaviate_default"
    prometheus: str = "prometheus_default"
    object_store: str | None = "object_store_reports"
    image_registry: str | None = "image_registry_default"
    object_store_backup: str = "object_store_backup"
    object_store_staging: str = "object_store_staging"
    object_store_retention: str = "object_store_retention"
    openpgp_signing: str = "openpgp_signing"
    openpgp_passphrase: str = "openpgp_passphrase"
    openpgp_decryption: str = "openpgp_decryption"
    alerts: str | None = None


class Namespaces(Part):
    system: str
    monitoring: str
    maintenance: str = "nephoran-maintenance"

    @property
    def of_the_system(self) -> list[str]:
        """Return the namespaces that are looked at and backed up: ours is never among them."""
        return list(dict.fromkeys((self.system, self.monitoring)))


class WorkloadReference(Part):
    """Which object runs a component: by name, or by label selector; the kind may be left to discovery."""

    kind: WorkloadKind | None = None
    name: str | None = None
    selector: dict[str, str] = {}
    namespace: str | None = None

    @model_validator(mode="after")
    def _named_or_selected(self) -> WorkloadReference:
        if not self.name and not self.selector:
            raise ValueError("needs a name or a selector")
        return self


class HttpCheck(Part):
    """Port and path of a health check; what is missing is taken from the live readiness probe."""

    port: int | None = None
    path: str | None = None


class Health(Part):
    http: HttpCheck = HttpCheck()


class Component(Part):
    """One workload of the system."""

    name: Name = Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
    workload: WorkloadReference
    container: str | None = None
    repository: str | None = None
    policy: str = "stateless"
    health: Health = Health()
    needs: tuple[str, ...] = ()
    gate: tuple[GateMetric, ...] = ()
    criticality: Criticality = "must"
    upgrade_by_default: bool = True


class ProbePolicy(Part):
    path: str | None = None
    port: int | str | None = None
    initial_delay_seconds: int | None = Field(None, ge=0, le=3600)
    period_seconds: int | None = Field(None, ge=1, le=3600)
    timeout_seconds: int | None = Field(None, ge=1, le=3600)
    failure_threshold: int | None = Field(None, ge=1, le=100)


class Policy(Part):
    """A rolling-update policy; what is left out stays as it is on the live object."""

    max_surge: int | None = Field(None, ge=0, le=100)
    max_unavailable: int | None = Field(None, ge=0, le=100)
    grace_period_seconds: int | None = Field(None, ge=0, le=3600)
    pre_stop_sleep_seconds: int | None = Field(None, ge=1, le=3600)
    readiness: ProbePolicy | None = None
    liveness: ProbePolicy | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Policy:
        if (self.max_surge is None) != (self.max_unavailable is None):
            raise ValueError("max_surge and max_unavailable belong together")
        if self.max_surge == 0 and self.max_unavailable == 0:
            raise ValueError("max_surge and max_unavailable can't both be 0: nothing could roll")
        if self.pre_stop_sleep_seconds and self.grace_period_seconds is not None:
            if self.grace_period_seconds <= self.pre_stop_sleep_seconds:
                raise ValueError("grace_period_seconds must be longer than pre_stop_sleep_seconds, or draining is cut")
        return self


class KnownObjects(Part):
    """Objects that must always be found: id = uuid5(URL namespace, "<prefix>/<collection>/<n>"), title "<title>-<n>"."""

    collection: str
    prefix: str
    title: str
    count: int = Field(ge=1)

    def id_of(self, number: int) -> str:
        return str(uuid.uuid5(uuid.NAMESPACE_URL, f"{self.prefix}/{self.collection}/{number}"))


class ProbeSettings(Part):
    url: str
    rate_per_second: float = Field(60, gt=0, le=1000)
    timeout_seconds: float = Field(5, gt=0, le=60)


class Intents(Part):
    """How NetworkIntents are read, and the text of the functional test."""

    groups: Literal["auto"] | tuple[str, ...] = "auto"
    success: tuple[str, ...]
    failure: tuple[str, ...]
    active_limit: int = Field(10, ge=1)
    wait_seconds: int = Field(600, ge=0, le=7200)
    test_text: str = "deploy AMF with 2 replicas"
    test_namespace: str
    test_target: str = "maintenance-sandbox"
    test_timeout_seconds: int = Field(120, ge=1, le=3600)


class Dependency(Part):
    """Something outside the system that it can't work without."""

    name: str
    url: str
    connection: str | None = None
    reachable: tuple[int, ...] = (200,)


class VantagePoint(Part):
    """What asks the dependencies from inside the system's namespace: an image with a program that prints a status."""

    image: str
    command: tuple[str, ...] = ()


class Category(Part):
    """What a change of one category needs: when it may start, whose approval, and which downtime is accepted."""

    window: Literal["any", "daily", "weekly", "monthly", "quarterly"]
    approval: Literal["none", "one", "two"]
    downtime: Literal["zero", "minimal", "planned"]
    expires_minutes: int = Field(240, ge=1, le=10080)
    """How long after its plan a change can be approved."""
    unknown_metrics: Literal["roll-back", "ask"] = "roll-back"
    """What follows when metrics can't be judged: the way back, or a question to an approver."""
    answer_minutes: int = Field(30, ge=1, le=720)
    """How long that question may stand."""


DEFAULT_CATEGORIES: dict[CategoryName, Category] = {
    "security": Category(window="any", approval="none", downtime="zero"),
    "emergency": Category(window="any", approval="one", downtime="zero"),
    "minor": Category(window="weekly", approval="none", downtime="zero"),
    "major": Category(window="monthly", approval="one", downtime="minimal"),
    "infrastructure": Category(window="quarterly", approval="one", downtime="planned"),
}
"""What holds of a category that the profile does not name."""


class Rollout(Part):
    no_progress_seconds: int = Field(600, ge=10, le=7200)
    progress_deadline_seconds: int = Field(600, ge=10, le=7200)

    @property
    def no_progress_limit(self) -> timedelta:
        return timedelta(seconds=self.no_progress_seconds)

    @property
    def progress_deadline(self) -> timedelta:
        return timedelta(seconds=self.progress_deadline_seconds)


class Gate(Part):
    """How the metrics of a changed component are judged: docs/reference/gates.md says where each default comes from."""

    error_ratio_limit: float = Field(0.05, gt=0, lt=1)
    latency_p95_limit_seconds: float = Field(5, gt=0, le=600)
    interval_seconds: float = Field(15, gt=0, le=300)
    duration_seconds: float = Field(300, ge=0, le=7200)
    minimum_samples: int = Field(20, ge=2, le=1000)
    extension_seconds: float = Field(120, ge=0, le=3600)
    window_seconds: int = Field(60, ge=1, le=3600)
    minimum_requests: int = Field(150, ge=1)
    baseline_seconds: int = Field(900, ge=1, le=86400)

    @model_validator(mode="after")
    def _consistent(self) -> Gate:
        if self.off:
            return self
        if self.window_seconds < self.interval_seconds:
            raise ValueError("window_seconds is shorter than interval_seconds: requests in between would not be seen")
        if self.minimum_samples > self.longest_seconds / self.interval_seconds + 1:
            raise ValueError("duration_seconds and extension_seconds leave no time for minimum_samples")
        return self

    @property
    def off(self) -> bool:
        return self.duration_seconds == 0

    @property
    def longest_seconds(self) -> float:
        return self.duration_seconds + self.extension_seconds


class LeaseSettings(Part):
    """How long the lease holds without renewal, and how often it is renewed."""

    duration_seconds: int = Field(60, ge=3, le=3600)
    renew_seconds: float = Field(10, gt=0, le=600)

    @model_validator(mode="after")
    def _renewed_in_time(self) -> LeaseSettings:
        if self.renew_seconds * 3 > self.duration_seconds:
            raise ValueError("renew_seconds must be at most a third of duration_seconds: two renewals may be lost")
        return self

    @property
    def duration(self) -> timedelta:
        return timedelta(seconds=self.duration_seconds)

    @property
    def renew_after(self) -> timedelta:
        return timedelta(seconds=self.renew_seconds)


class Journals(Part):
    keep_closed: int = Field(50, ge=1, le=1000)


class Recovery(Part):
    """What scheduled runs of recover_operation do."""

    mode: Literal["plan", "apply"] = "apply"


class Reports(Part):
    """Where reports are kept: a bucket, and always the local folder as well."""

    bucket: str | None = None
    prefix: str = "reports"


class Registry(Part):
    plain_http: bool = False


class PublicKey(Part):
    """An OpenPGP public key: pinned by its fingerprint, kept in an armored file beside the profile."""

    name: str = Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
    fingerprint: str = Field(pattern=r"^([0-9A-F]{40}|[0-9A-F]{64})$")
    key_file: str

    def armored(self) -> str:
        """Return the key's text; a relative ``key_file`` starts in the profile's folder.

        :raises PermanentError: ``openpgp-key-file-missing``.
        """
        path = profile_path().parent / self.key_file
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise PermanentError(
                "openpgp-key-file-missing",
                f"the public key of {self.name!r} can't be read from {path}: {error}",
                context={"key": self.name},
                hint="Put the armored public key there: gpg --armor --export FINGERPRINT.",
            ) from error


class Retention(Part):
    """How long backups are kept; every bound keeps a slip of the pen from deleting everything.

    :param mode: what scheduled runs of backup_retention do.
    :param leftovers_days: when files without a manifest are of a run that will not finish them any more.
    """

    mode: Literal["plan", "apply"] = "apply"
    days: int = Field(90, ge=7, le=3650)
    daily: int = Field(7, ge=1, le=366)
    weekly: int = Field(5, ge=1, le=260)
    monthly: int = Field(12, ge=1, le=120)
    yearly: int = Field(2, ge=0, le=50)
    approval_above: int = Field(20, ge=1, le=1000)
    leftovers_days: int = Field(7, ge=2, le=365)


class FolderReference(Part):
    """A folder whose files are backed up: on a claim, or as a container of a workload sees it.

    :param path: below the claim's root, empty for all of it; of a workload absolute, as the container sees it.
    :param user: who a helper pod reads it as; None: as the container that uses it.
    :param may_change: files that change while they are read are taken all the same, and the manifest names them.
    """

    name: Name = Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=63)
    claim: str | None = None
    workload: WorkloadReference | None = None
    container: str | None = None
    path: str = Field("", max_length=1024)
    namespace: str | None = None
    user: int | None = Field(None, ge=0, le=2**31 - 1)
    may_change: bool = False

    @model_validator(mode="after")
    def _one_way(self) -> FolderReference:
        if (self.claim is None) == (self.workload is None):
            raise ValueError("needs a claim or a workload, and not both")
        if self.claim is not None and (self.container is not None or self.path.startswith("/")):
            raise ValueError("of a claim the path begins at its root, without a slash, and there is no container")
        if self.workload is not None and not self.path.startswith("/"):
            raise ValueError("of a workload the path is absolute, as its container sees it")
        if self.workload is not None and self.namespace is not None:
            raise ValueError("a workload has a namespace of its own: write it there")
        if ".." in self.path.split("/"):
            raise ValueError("the path leads out of the folder")
        return self


class PrometheusPod(Part):
    """Which pod is the Prometheus whose snapshot is taken, and where its data are.

    :param data_path: ``--storage.tsdb.path``, as the container sees it.
    :param path_prefix: ``--web.route-prefix``, where there is one.
    :param whole: all blocks, in the place of those of the last day.
    """

    workload: WorkloadReference
    container: str | None = None
    data_path: str = Field(pattern=r"^/")
    port: int = Field(9090, ge=1, le=65535)
    path_prefix: str = Field("", pattern=r"^(/[-a-zA-Z0-9_./]*[a-zA-Z0-9])?$")
    whole: bool = False


class Backup(Part):
    """Where backups go, who can open them, who has signed them, what of volumes is in them, and how long they are kept."""

    bucket: str = Field("nephoran-production-backups", min_length=3, max_length=63)
    prefix: str = Field("backups", pattern=r"^[a-zA-Z0-9][-a-zA-Z0-9_./]*[a-zA-Z0-9]$")
    staging_bucket: str = Field("nephoran-production-staging", min_length=3, max_length=63)
    encryption: Literal["public-key", "passphrase"] = "public-key"
    recipients: tuple[PublicKey, ...] = ()
    signers: tuple[PublicKey, ...] = ()
    longest_chain: int = Field(6, ge=1, le=30)
    before_change: Literal["full", "config-only", "none"] = "full"
    """What a procedure saves before its first change; ``none`` where another product sees to that."""
    when_stale: Literal["block", "warn"] = "block"
    decryption_pool: str = Field("default_pool", min_length=1, max_length=256)
    knowledge_base: tuple[FolderReference, ...] = ()
    reader_image: str | None = None
    prometheus: PrometheusPod | None = None
    retention: Retention = Retention()

    @model_validator(mode="after")
    def _consistent(self) -> Backup:
        for what, keys in (("recipients", self.recipients), ("signers", self.signers)):
            if len({key.name for key in keys}) != len(keys) or len({key.fingerprint for key in keys}) != len(keys):
                raise ValueError(f"{what}: a name or a fingerprint is listed twice")
        folders = [folder.name for folder in self.knowledge_base]
        if len(set(folders)) != len(folders):
            raise ValueError("knowledge_base: a name is listed twice")
        if self.bucket == self.staging_bucket:
            raise ValueError("staging_bucket must be another bucket: what lies there may be deleted")
        return self


class Targets(Part):
    rto_minutes: int = Field(120, gt=0)
    rpo_hours: int = Field(24, gt=0, le=168)


class SystemProfile(Part):
    """One system, as its operators describe it."""

    apiVersion: Literal["maintenance.nephoran.com/v1"]  # noqa: N815 (Kubernetes' own spelling)
    kind: Literal["SystemProfile"]
    metadata: Metadata
    connections: Connections = Connections()
    namespaces: Namespaces
    components: tuple[Component, ...] = Field(min_length=1)
    policies: dict[str, Policy]
    known_objects: KnownObjects | None = None
    intents: Intents
    dependencies: tuple[Dependency, ...] = ()
    vantage_point: VantagePoint | None = None
    probe: ProbeSettings | None = None
    rollout: Rollout = Rollout()
    gate: Gate = Gate()
    lease: LeaseSettings = LeaseSettings()
    journals: Journals = Journals()
    recovery: Recovery = Recovery()
    registry: Registry = Registry()
    reports: Reports = Reports()
    backup: Backup = Backup()
    targets: Targets = Targets()
    categories: dict[CategoryName, Category] = {}
    approvers: tuple[Annotated[str, Field(min_length=1, max_length=200)], ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> SystemProfile:
        names = [component.name for component in self.components]
        doubled = sorted({name for name in names if names.count(name) > 1})
        if doubled:
            raise ValueError(f"components are listed twice: {', '.join(doubled)}")
        repeated = sorted({name for name in self.approvers if self.approvers.count(name) > 1})
        if repeated:
            raise ValueError(f"approvers are listed twice: {', '.join(repeated)}")
        if self.probe and not self.known_objects:
            raise ValueError("the probe needs known_objects to check its answers")
        may_fail = {component.name for component in self.components if component.criticality == "may fail"}
        for component in self.components:
            unknown = sorted(set(component.needs) - set(names))
            if unknown:
                raise ValueError(f"component {component.name} needs unknown components: {', '.join(unknown)}")
            shaky = sorted(set(component.needs) & may_fail)
            if shaky and component.name not in may_fail:
                raise ValueError(
                    f"component {component.name} must not fail but needs {', '.join(shaky)}, which may fail and then stays "
                    f"as it was; make {component.name} may fail too, or {shaky[0]} must"
                )
            if component.policy not in self.policies:
                raise ValueError(
                    f"component {component.name} has the policy {component.policy!r}, "
                    f"expected one of {', '.join(sorted(self.policies))}"
                )
        try:
            TopologicalSorter({component.name: component.needs for component in self.components}).prepare()
        except CycleError as error:
            raise ValueError(f"components need each other, so none can be first: {' → '.join(error.args[1])}") from None
        return self

    def component(self, name: str) -> Component:
        """Return a component.

        :raises PermanentError: ``component-unknown``.
        """
        for component in self.components:
            if component.name == name:
                return component
        raise PermanentError(
            "component-unknown",
            f"the profile has no component {name!r}; it has {', '.join(c.name for c in self.components)}",
            context={"component": name, "profile": self.metadata.name},
            hint="Correct the name, or add the component to the profile.",
        )

    def category(self, name: CategoryName) -> Category:
        """Return what a change of a category needs."""
        return self.categories.get(name) or DEFAULT_CATEGORIES[name]

    def namespace_of(self, component: Component) -> str:
        """Return the namespace a component lives in."""
        return component.workload.namespace or self.namespaces.system

    def policy_of(self, component: Component) -> dict[str, Any]:
        """Return a component's rolling-update policy; its readiness falls back to the component's health check."""
        return self.policies[component.policy].model_dump(exclude_none=True)


def load_profile(path: str | Path | None = None) -> SystemProfile:
    """Read and check a profile; the same file is read once per change of it.

    :param path: default: ``NEPHORAN_PROFILE``, else the profile that comes with the project.
    :raises PermanentError: ``profile-missing`` or ``profile-invalid``, naming file, line, key and what was expected.
    """
    chosen = Path(path) if path is not None else profile_path()
    try:
        modified = chosen.stat().st_mtime_ns
    except OSError as error:
        raise PermanentError(
            "profile-missing",
            f"the profile {chosen} can't be read: {error.strerror}",
            context={"profile": str(chosen)},
            hint="Set NEPHORAN_PROFILE to a readable profile; include/profiles/nephoran.yaml is the pattern.",
        ) from error
    return _load(str(chosen), modified)


@functools.lru_cache(maxsize=8)
def _load(path: str, _modified: int) -> SystemProfile:
    text = Path(path).read_text(encoding="utf-8")
    try:
        data = yaml.load(text, Loader=LOADER)  # a safe loader
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise _invalid(
            path, mark.line + 1 if mark else 1, "", f"is not YAML: {getattr(error, 'problem', error)}"
        ) from None
    if not isinstance(data, dict):
        raise _invalid(path, 1, "", f"is {type(data).__name__}, expected a mapping")
    try:
        return SystemProfile.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        keys = first["loc"]
        key = ".".join(str(part) for part in keys)
        more = f" ({error.error_count() - 1} more)" if error.error_count() > 1 else ""
        given = f"; given: {first['input']!r}" if not isinstance(first.get("input"), dict | list) else ""
        problem = f"{first['msg']}{given}"
        if first["type"] == "extra_forbidden":
            known = sorted(_model_at(SystemProfile, keys[:-1]).model_fields)
            problem = f"unknown key; expected one of {', '.join(known)}"
        raise _invalid(path, _line_of(yaml.compose(text, Loader=LOADER), keys), key, f"{problem}{more}") from None


def _invalid(path: str, line: int, key: str, problem: str) -> PermanentError:
    what = f"key {key}: {problem}" if key else problem
    return PermanentError(
        "profile-invalid",
        f"the profile {path}, line {line}: {what}",
        context={"profile": path, "line": line, "key": key} if key else {"profile": path, "line": line},
        hint="Correct the line; docs/reference/profile.md has every key.",
    )


def _model_at(model: type[BaseModel], keys: tuple[Any, ...]) -> type[BaseModel]:
    """Return the part of the profile that a key path leads to; names in a mapping and numbers in a list are passed."""
    for key in keys:
        field = model.model_fields.get(str(key))
        if field is not None:
            model = next(_parts(field.annotation), model)
    return model


def _parts(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield the parts in an annotation such as ``tuple[Component, ...]``, ``dict[str, Policy]`` or ``Policy | None``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _parts(argument)


def _line_of(node: Any, keys: tuple[Any, ...]) -> int:
    """Return the line of the deepest part of a key path that the file has."""
    line = 1
    for key in keys:
        if isinstance(node, yaml.MappingNode):
            found = next(((k, v) for k, v in node.value if k.value == str(key)), None)
            if found is None:
                return line
            line, node = found[0].start_mark.line + 1, found[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(key, int) and key < len(node.value):
            node = node.value[key]
            line = node.start_mark.line + 1
        else:
            return line
    return line
