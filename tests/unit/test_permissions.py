"""The manifests in deploy/rbac grant what the procedures ask for, and nothing that would make them dangerous."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from nephoran_maintenance.domain.capture import CLUSTER_ACCESS, CLUSTER_WIDE
from nephoran_maintenance.domain.pod_files import READER, reader_permissions
from nephoran_maintenance.domain.upgrade import permissions_for, recovery_permissions_for
from nephoran_maintenance.profile import load_profile

PROJECT = Path(__file__).resolve().parents[2]
MANIFESTS = [
    manifest
    for path in sorted((PROJECT / "deploy" / "rbac").glob("*.yaml"))
    for manifest in yaml.safe_load_all(path.read_text(encoding="utf-8"))
]
PROFILE = load_profile(PROJECT / "include" / "profiles" / "nephoran.yaml")
INTENT_GROUPS = ("nephoran.com", "intent.nephoran.com")
RECOVERING = ("recover-operation", "rollback")
ACCOUNTS = ("preflight", "rolling-upgrade", *RECOVERING)


def rules_of(account: str) -> list[tuple[str | None, dict[str, Any]]]:
    """Return the rules of a ServiceAccount, each with its namespace, None for the whole cluster."""
    roles = {
        (manifest["kind"], manifest["metadata"].get("namespace"), manifest["metadata"]["name"]): manifest["rules"]
        for manifest in MANIFESTS
        if manifest["kind"] in ("Role", "ClusterRole")
    }
    found = []
    for binding in MANIFESTS:
        if binding["kind"] in ("RoleBinding", "ClusterRoleBinding") and binding["subjects"][0]["name"] == account:
            namespace = binding["metadata"].get("namespace")
            reference = binding["roleRef"]
            of_role = namespace if reference["kind"] == "Role" else None
            found += [(namespace, rule) for rule in roles[reference["kind"], of_role, reference["name"]]]
    return found


def allows(account: str, access: Mapping[str, str]) -> bool:
    return any(
        namespace in (None, access.get("namespace"))
        and access.get("group", "") in rule["apiGroups"]
        and access["resource"] in rule["resources"]
        and access["verb"] in rule["verbs"]
        for namespace, rule in rules_of(account)
    )


def described(access: Mapping[str, str]) -> str:
    return f"{access['verb']} {access['resource']} in {access.get('namespace') or 'cluster'}"


@pytest.mark.parametrize("access", permissions_for(PROFILE, INTENT_GROUPS, changing=False), ids=described)
def test_preflight_may_do_what_it_will_ask_for(access: dict[str, str]) -> None:
    assert allows("preflight", access)


@pytest.mark.parametrize("account", ["preflight", "rolling-upgrade"])
def test_suspended_backups_can_be_looked_for_in_all_namespaces(account: str) -> None:
    assert allows(account, {"verb": "list", "group": "batch", "resource": "cronjobs"})


@pytest.mark.parametrize("access", permissions_for(PROFILE, INTENT_GROUPS, changing=True), ids=described)
def test_rolling_upgrade_may_do_what_it_will_ask_for(access: dict[str, str]) -> None:
    assert allows("rolling-upgrade", access)


@pytest.mark.parametrize("account", RECOVERING)
@pytest.mark.parametrize("access", recovery_permissions_for(PROFILE, INTENT_GROUPS), ids=described)
def test_a_recovery_may_do_what_it_will_ask_for(access: dict[str, str], account: str) -> None:
    assert allows(account, access)


@pytest.mark.parametrize("account", RECOVERING)
def test_a_recovery_creates_nothing_but_the_lease_and_the_quarantine(account: str) -> None:
    created = {r for _, rule in rules_of(account) if "create" in rule["verbs"] for r in rule["resources"]}
    assert created == {"leases", "configmaps", "selfsubjectaccessreviews", "pods/portforward"}


@pytest.mark.parametrize("account", ACCOUNTS)
def test_no_rule_has_a_wildcard(account: str) -> None:
    for _, rule in rules_of(account):
        assert "*" not in [*rule["apiGroups"], *rule["resources"], *rule["verbs"]]


@pytest.mark.parametrize("account", ACCOUNTS)
@pytest.mark.parametrize("resource", ["secrets", "pods/exec", "pods/attach", "nodes/proxy", "serviceaccounts/token"])
def test_nobody_may_touch_what_leads_to_more(account: str, resource: str) -> None:
    assert not [rule for _, rule in rules_of(account) if resource in rule["resources"]]


def test_preflight_changes_nothing() -> None:
    harmless = {("selfsubjectaccessreviews", "create"), ("pods/portforward", "create")}
    reading = {"get", "list", "watch"}
    for _, rule in rules_of("preflight"):
        for resource in rule["resources"]:
            assert {verb for verb in rule["verbs"] if (resource, verb) not in harmless} <= reading, resource


def test_rolling_upgrade_changes_only_the_systems_and_its_own_namespace() -> None:
    reading = {"get", "list", "watch"}
    harmless = {"selfsubjectaccessreviews", "pods/portforward"}
    changing = {
        namespace
        for namespace, rule in rules_of("rolling-upgrade")
        if not set(rule["verbs"]) <= reading and not set(rule["resources"]) <= harmless
    }
    assert changing == {PROFILE.namespaces.system, PROFILE.namespaces.maintenance}


def test_the_lease_is_never_deleted() -> None:
    access = {
        "verb": "delete",
        "group": "coordination.k8s.io",
        "resource": "leases",
        "namespace": "nephoran-maintenance",
    }
    assert not any(allows(account, access) for account in ACCOUNTS)


# -------------------------------------------------------------------------------------------------------------- backup


def test_a_backup_may_list_everything_in_the_systems_namespaces_and_do_nothing_else_with_it() -> None:
    everything = [(namespace, rule["verbs"]) for namespace, rule in rules_of("backup") if "*" in rule["apiGroups"]]
    namespaces = (PROFILE.namespaces.system, PROFILE.namespaces.monitoring)
    assert sorted(everything) == sorted((namespace, ["list"]) for namespace in namespaces)


def test_a_backup_uses_wildcards_for_listing_only() -> None:
    """``get`` on everything would include pods/exec, which a websocket opens with that verb."""
    for _, rule in rules_of("backup"):
        if "*" in [*rule["apiGroups"], *rule["resources"], *rule["verbs"]]:
            assert rule["verbs"] == ["list"]


def test_a_backup_changes_nothing() -> None:
    for _, rule in rules_of("backup"):
        harmless = {"create"} if rule["resources"] == ["selfsubjectaccessreviews"] else set()
        assert set(rule["verbs"]) - harmless <= {"get", "list", "watch"}


@pytest.mark.parametrize("name", INTENT_GROUPS)
def test_a_backup_may_list_the_custom_resources_of_all_namespaces(name: str) -> None:
    rules = [rule for namespace, rule in rules_of("backup") if namespace is None]
    assert any(name in rule["apiGroups"] and rule["resources"] == ["*"] and "list" in rule["verbs"] for rule in rules)


@pytest.mark.parametrize(("group", "plural"), [(g, p) for g, p, _ in (*CLUSTER_WIDE, *CLUSTER_ACCESS)])
def test_a_backup_may_list_what_has_no_namespace(group: str, plural: str) -> None:
    assert allows("backup", {"verb": "list", "group": group, "resource": plural})


# ------------------------------------------------------------------------------------------------- files out of pods


def optional_rules(name: str) -> list[dict[str, Any]]:
    """Return the rules of an optional manifest, which must be those of the account of backups."""
    path = PROJECT / "deploy" / "rbac" / "optional" / f"{name}.yaml"
    role, binding = yaml.safe_load_all(path.read_text(encoding="utf-8"))
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    assert [subject["name"] for subject in binding["subjects"]] == ["backup"]
    assert role["metadata"]["namespace"] == binding["metadata"]["namespace"]
    return list(role["rules"])


def grants(rules: list[dict[str, Any]], access: Mapping[str, str]) -> bool:
    return any(
        access["resource"] in rule["resources"]
        and access["verb"] in rule["verbs"]
        and access.get("name", "") in rule.get("resourceNames", [access.get("name", "")])
        for rule in rules
    )


@pytest.mark.parametrize("access", reader_permissions(PROFILE.namespaces.system), ids=described)
def test_the_optional_manifest_gives_what_a_helper_pod_takes(access: dict[str, str]) -> None:
    assert grants(optional_rules("knowledge-base"), access)


@pytest.mark.parametrize(("name", "pod"), [("knowledge-base", READER), ("tsdb-snapshot", "prometheus-0")])
def test_exec_is_given_for_one_pod_by_name(name: str, pod: str) -> None:
    rules = optional_rules(name)
    for rule in rules:
        assert "*" not in [*rule["resources"], *rule["verbs"]]
        if rule["resources"] != ["pods"] or rule["verbs"] != ["create"]:
            assert rule["resourceNames"] == [pod]
    assert not grants(rules, {"verb": "create", "resource": "pods/exec", "name": "rag-api-0"})


def test_by_default_a_backup_can_not_exec() -> None:
    assert not [rule for _, rule in rules_of("backup") if "pods/exec" in rule["resources"]]
