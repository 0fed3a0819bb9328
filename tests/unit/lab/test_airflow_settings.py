"""The lab's Airflow: secrets in private files, nothing but loopback, nothing of the surroundings."""

from __future__ import annotations

import configparser
import json
import stat
from pathlib import Path

import pytest

from lab import backup_keys, buckets
from lab.airflow import PROCESSES
from lab.airflow_access import connections, for_lab
from lab.airflow_settings import LOGINS, AirflowInstance
from lab.config import LabConfig

SECRET = "0123456789abcdef0123456789abcdef"


@pytest.fixture
def instance(tmp_path: Path) -> AirflowInstance:
    made = AirflowInstance(home=tmp_path / "airflow", port=18080, secret=SECRET, profile=tmp_path / "profile.yaml")
    made.write()
    return made


def settings_file(instance: AirflowInstance) -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(instance.home / "airflow.cfg")
    return parser


@pytest.mark.parametrize("name", ["airflow.cfg", "passwords.json", "connections.json"])
def test_file_with_secrets_is_readable_by_its_owner_only(instance: AirflowInstance, name: str) -> None:
    assert stat.S_IMODE((instance.home / name).stat().st_mode) == 0o600


def test_connections_stay_private_when_they_are_replaced(instance: AirflowInstance) -> None:
    instance.write_connections({"weaviate_default": {"conn_type": "http", "password": "key"}})
    assert json.loads(instance.connections_file.read_text())["weaviate_default"]["password"] == "key"
    assert stat.S_IMODE(instance.connections_file.stat().st_mode) == 0o600


def test_environment_holds_paths_and_no_secret(instance: AirflowInstance) -> None:
    surroundings = {"PATH": "/bin", "AIRFLOW__CORE__FERNET_KEY": "x", "NEPHORAN_PROFILE": "/other", "PYTHONPATH": "/p"}
    environment = instance.environment(surroundings)
    secrets = [instance.password("admin"), settings_file(instance)["core"]["fernet_key"], SECRET]
    assert not [name for name, value in environment.items() for secret in secrets if secret in value]
    assert environment["NEPHORAN_PROFILE"] == str(instance.profile)
    assert environment["PATH"] == "/bin"
    assert not {"AIRFLOW__CORE__FERNET_KEY", "PYTHONPATH"} & set(environment)


def test_byte_code_is_written_even_if_the_surroundings_forbid_it(instance: AirflowInstance) -> None:
    assert "PYTHONDONTWRITEBYTECODE" not in instance.environment({"PYTHONDONTWRITEBYTECODE": "1"})


def test_listens_on_loopback_only(instance: AirflowInstance) -> None:
    assert settings_file(instance)["api"]["host"] == "127.0.0.1"
    # The log servers would listen everywhere: they must not be started.
    assert all("--skip-serve-logs" in PROCESSES[name] for name in ("scheduler", "triggerer"))


def test_writing_the_settings_again_changes_no_key(instance: AirflowInstance) -> None:
    before = (instance.home / "airflow.cfg").read_text()
    instance.write()
    assert (instance.home / "airflow.cfg").read_text() == before


def test_writing_the_settings_again_keeps_the_connections(instance: AirflowInstance) -> None:
    instance.write_connections({"a": {"conn_type": "http"}})
    instance.write()
    assert list(json.loads(instance.connections_file.read_text())) == ["a"]


def test_two_instances_have_different_passwords(tmp_path: Path) -> None:
    one = AirflowInstance(home=tmp_path / "a", port=1, secret="a" * 32)
    other = AirflowInstance(home=tmp_path / "b", port=2, secret="b" * 32)
    assert one.password("admin") != other.password("admin")
    assert one.password("admin") != one.password("viewer")


@pytest.fixture
def config(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> LabConfig:
    monkeypatch.setattr("lab.config.PROJECT", tmp_path)
    config = LabConfig.named("test")
    config.home.mkdir(parents=True)
    cluster = {"name": "lab", "cluster": {"server": config.kubernetes_url, "certificate-authority-data": "Y2E="}}
    administrator = {"user": {"client-key-data": "the administrator's key"}, "name": "admin"}
    config.kubeconfig.write_text(json.dumps({"clusters": [cluster], "users": [administrator]}))
    return config


def test_each_procedure_gets_the_token_of_its_own_serviceaccount(config: LabConfig) -> None:
    made = connections(config, lambda account: f"token of {account}")
    users = {name: made[name]["extra"]["kube_config"]["users"] for name in made if name.startswith("kubernetes_")}
    assert users["kubernetes_preflight"][0]["user"] == {"token": "token of preflight"}
    assert users["kubernetes_rolling_upgrade"][0]["user"] == {"token": "token of rolling-upgrade"}
    assert "administrator" not in json.dumps(made)


def test_each_private_key_is_in_the_one_connection_that_needs_it_and_the_escrows_in_none(config: LabConfig) -> None:
    made = connections(config, lambda account: f"token of {account}")
    keys = backup_keys.keys(config)
    passphrase = config.secret(backup_keys.PASSPHRASE)
    signing = made.pop("openpgp_signing")
    assert (signing["password"], signing["extra"]["private_key"]) == (passphrase, keys["signer"].private)
    assert passphrase not in json.dumps(made)
    assert made.pop("openpgp_decryption")["extra"] == {"private_key": keys["operations"].private}
    assert "PRIVATE KEY BLOCK" not in json.dumps(made)
    files = list((config.home / "secrets").rglob("*.private"))
    assert len(files) == 3
    assert {oct(path.stat().st_mode & 0o777) for path in files} == {"0o600"}
    assert backup_keys.keys(config) == keys


def test_each_account_is_told_apart_by_what_it_may_do() -> None:
    statements = buckets.policy(buckets.BACKUPS, [buckets.UPLOADER, buckets.RETENTION])["Statement"]
    deleting = {s["Principal"]["AWS"][0] for s in statements for action in s["Action"] if "Delete" in action}
    assert deleting == {buckets.RETENTION.name}
    writing = {s["Principal"]["AWS"][0] for s in statements for action in s["Action"] if "Put" in action}
    assert writing == {buckets.UPLOADER.name}
    reading_locks = {"s3:GetObjectRetention", "s3:GetObjectLegalHold"}
    assert reading_locks <= set(buckets.UPLOADER.actions) & set(buckets.RETENTION.actions)
    assert {"s3:DeleteObject", "s3:DeleteObjectVersion", "s3:AbortMultipartUpload"} <= set(buckets.RETENTION.actions)
    assert not [action for account in buckets.ACCOUNTS for action in account.actions if "Bypass" in action]


def test_profile_for_a_lab_keeps_everything_but_addresses(config: LabConfig) -> None:
    import yaml

    from nephoran_maintenance.profile import SystemProfile

    original = yaml.safe_load((Path(__file__).parents[3] / "include/profiles/nephoran.yaml").read_text())
    changed = for_lab(original, config)
    SystemProfile.model_validate(changed)
    assert changed["probe"]["url"].startswith("http://10.202.")
    assert changed["probe"]["rate_per_second"] == original["probe"]["rate_per_second"]
    replaced = {key for key in original if original[key] != changed[key]}
    assert replaced <= {"probe", "dependencies", "registry", "reports", "components", "approvers", "backup"}


def test_a_run_in_a_lab_waits_for_nobody_unless_its_category_asks_for_it(config: LabConfig) -> None:
    import yaml

    from nephoran_maintenance.domain.approval import check_rule, rule_for
    from nephoran_maintenance.profile import SystemProfile

    original = yaml.safe_load((Path(__file__).parents[3] / "include/profiles/nephoran.yaml").read_text())
    profile = SystemProfile.model_validate(for_lab(original, config))
    assert set(profile.approvers) <= set(LOGINS)
    assert rule_for(profile, "minor", "admin").needed == 0
    rule = rule_for(profile, "emergency", "admin")
    check_rule(rule)
    assert rule.may_approve() == ("approver-1", "approver-2")
