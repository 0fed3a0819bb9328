"""Give a lab's Airflow what it needs to reach the lab: ServiceAccounts with tokens, connections, a profile.

Airflow never gets the administrator's kubeconfig: each procedure has a ServiceAccount of its own from deploy/rbac, and
a token that the API server issued for it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import yaml

from lab import backup_keys, buckets
from lab.airflow_settings import APPROVERS, AirflowInstance
from lab.cluster import Cluster
from lab.config import PROJECT, LabConfig
from lab.system.images import FETCH
from lab.system.profiles import for_variant

MAINTENANCE_NAMESPACE = "nephoran-maintenance"
SYSTEM_NAMESPACE = "nephoran-system"

SERVICE_ACCOUNTS = {
    "kubernetes_preflight": "preflight",
    "kubernetes_rolling_upgrade": "rolling-upgrade",
    "kubernetes_recover_operation": "recover-operation",
    "kubernetes_rollback": "rollback",
    "kubernetes_backup": "backup",
}
"""Airflow connection to the ServiceAccount behind it."""

MANIFESTS = (PROJECT / "deploy" / "rbac", PROJECT / "deploy" / "rbac" / "optional" / "vantage-point.yaml")
"""What is applied; of the optional rights only those that the lab's profile uses."""

DECRYPTION_POOL = "nephoran_decryption"
"""The pool of the steps that decrypt backups: of one slot, so that reading them takes none from a change."""

TOKEN_LIFETIME = timedelta(days=30)
"""As long as a lab may stay up; `python -m lab.airflow connect` issues new ones."""

ReportStage = Callable[[str], None]


def grant_access(
    config: LabConfig,
    instance: AirflowInstance,
    progress: ReportStage = lambda stage: None,
    *,
    variant: str = "standard",
    before_change: str = "full",
) -> None:
    """Apply deploy/rbac to the lab, and write connections and profile for its Airflow, which sees them at once.

    ``variant`` is the shape that the lab's system is deployed in; the profile describes that shape. ``before_change`` is
    what is backed up before a change.
    Safe to repeat: yes; tokens of earlier calls stay valid until they expire.
    """
    cluster = Cluster(config)
    progress("Airflow: ServiceAccounts and their permissions")
    for manifests in MANIFESTS:
        cluster.kubectl("apply", "--server-side", "--filename", str(manifests))
    instance.home.mkdir(parents=True, exist_ok=True)
    instance.write_connections(connections(config, lambda account: issue_token(cluster, account)))
    if instance.profile is not None:
        write_profile(config, instance.profile, variant, before_change=before_change)


def issue_token(cluster: Cluster, service_account: str) -> str:
    """Return a token of a ServiceAccount from the API server's TokenRequest."""
    return cluster.kubectl(
        "create",
        "token",
        service_account,
        f"--namespace={MAINTENANCE_NAMESPACE}",
        f"--duration={TOKEN_LIFETIME.total_seconds():.0f}s",
    ).strip()


def kubeconfig(config: LabConfig, token: str) -> dict[str, Any]:
    """Return a kubeconfig of the lab that authenticates by a token alone."""
    administrator = yaml.safe_load(config.kubeconfig.read_text(encoding="utf-8"))
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": administrator["clusters"][:1],
        "users": [{"name": "service-account", "user": {"token": token}}],
        "contexts": [
            {
                "name": config.context,
                "context": {
                    "cluster": administrator["clusters"][0]["name"],
                    "user": "service-account",
                    "namespace": SYSTEM_NAMESPACE,
                },
            }
        ],
        "current-context": config.context,
    }


def connections(config: LabConfig, token_of: Callable[[str], str]) -> dict[str, dict[str, Any]]:
    """Return every connection that the procedures use, in the shape of Airflow's local filesystem backend."""
    return {
        **{
            connection: {"conn_type": "kubernetes", "extra": {"kube_config": kubeconfig(config, token_of(account))}}
            for connection, account in SERVICE_ACCOUNTS.items()
        },
        "weaviate_default": _http(config.weaviate_url, config.secret("weaviate-api-key")),
        "prometheus_default": _http(config.prometheus_url),
        "llm_provider": _http(config.llm_provider_url, config.secret("llm-provider-key")),
        "image_registry_default": _http(f"http://{config.registry}"),
        "object_store_reports": _s3(config),
        "object_store_backup": _s3(config, buckets.UPLOADER),
        "object_store_retention": _s3(config, buckets.RETENTION),
        "object_store_staging": _s3(config, buckets.STAGER),
        "openpgp_signing": {
            "conn_type": "generic",
            "password": config.secret(backup_keys.PASSPHRASE),
            "extra": {"private_key": backup_keys.keys(config)[backup_keys.SIGNER].private},
        },
        # A lab is a site that may decrypt: operations reads its own backups. The escrow's key stays where it is.
        "openpgp_decryption": {
            "conn_type": "generic",
            "extra": {"private_key": backup_keys.keys(config)[backup_keys.READER].private},
        },
    }


def _s3(config: LabConfig, account: buckets.Account | None = None) -> dict[str, Any]:
    """Return the connection of an account, by default of the store's administrator."""
    return {
        "conn_type": "aws",
        "login": account.name if account else config.secret("s3-access-key"),
        "password": account.secret(config) if account else config.secret("s3-secret-key"),
        "extra": {
            "endpoint_url": config.s3_endpoint,
            "region_name": buckets.S3_REGION,
            # versitygw serves buckets by path; their names as host names would need DNS.
            "config_kwargs": {"s3": {"addressing_style": "path"}},
        },
    }


def _http(url: str, password: str | None = None) -> dict[str, Any]:
    scheme, _, address = url.partition("://")
    host, _, port = address.partition(":")
    connection: dict[str, Any] = {"conn_type": "http", "schema": scheme, "host": host, "port": int(port)}
    if password is not None:
        connection["password"] = password
    return connection


def write_profile(
    config: LabConfig,
    path: Path,
    variant: str = "standard",
    gate: str = "off",
    may_fail: Collection[str] = (),
    before_change: str = "full",
) -> None:
    """Write the product's own profile with the addresses and the shape of this lab in it, and its public keys beside it."""
    profile = yaml.safe_load((PROJECT / "include" / "profiles" / "nephoran.yaml").read_text(encoding="utf-8"))
    path.parent.mkdir(parents=True, exist_ok=True)
    backup_keys.write_public(backup_keys.keys(config), path.parent)
    changed = for_lab(for_variant(profile, variant, gate, may_fail), config)
    changed["backup"]["before_change"] = before_change
    path.write_text(yaml.safe_dump(changed, sort_keys=False), encoding="utf-8")


def for_lab(profile: Mapping[str, Any], config: LabConfig) -> dict[str, Any]:
    """Return the profile with the lab's registry and addresses in the place of the product's examples."""
    changed: dict[str, Any] = copy.deepcopy(dict(profile))
    for component in changed["components"]:
        if component.get("repository"):
            component["repository"] = f"{config.registry}/nephoran/{component['repository'].rpartition('/')[2]}"
    for dependency in changed.get("dependencies", []):
        if dependency["name"] == "llm-provider":
            dependency["url"] = f"{config.llm_provider_url}/v1/models"
    # The probe is sent from outside the cluster, where the Service's name means nothing.
    changed["probe"]["url"] = f"{config.llm_processor_url}/process"
    changed["vantage_point"] = {"image": f"{config.registry}/{':'.join(FETCH)}"}
    changed["registry"] = {"plain_http": True}
    changed["backup"] |= {"bucket": buckets.BACKUPS, "staging_bucket": buckets.STAGING}
    changed["backup"] |= backup_keys.pins(backup_keys.keys(config))
    # A lab begins without any; the backup before each change is its first.
    changed["backup"]["when_stale"] = "warn"
    changed["backup"]["decryption_pool"] = DECRYPTION_POOL
    changed["reports"]["bucket"] = buckets.REPORTS
    # The categories stay: minor, which runs in the lab have unless they ask for another, waits for nobody.
    changed["approvers"] = ["admin", *APPROVERS]
    return changed
