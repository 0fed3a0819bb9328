"""docker-compose.yaml is valid, pinned, watched, and keeps to loopback and to secret files."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from compose_pydantic.models import ComposeSpecification

PROJECT = Path(__file__).resolve().parents[2]
COMPOSE_TEXT = (PROJECT / "docker-compose.yaml").read_text(encoding="utf-8")
ENV_EXAMPLE = (PROJECT / ".env.example").read_text(encoding="utf-8")
REFERENCE = re.compile(r"(?<!\$)\$\{(?P<name>\w+)(?::[-?](?P<rest>[^}]*))?\}")
RUNS_ONCE = {"init"}


def example_settings() -> dict[str, str]:
    lines = (line for line in ENV_EXAMPLE.splitlines() if line and not line.startswith("#"))
    return dict(line.split("=", 1) for line in lines)


def resolved_compose_file() -> dict[str, Any]:
    """Return the file as Compose would see it with .env.example in force."""
    settings = example_settings()
    text = REFERENCE.sub(lambda found: settings[found["name"]], COMPOSE_TEXT).replace("$$", "$")
    compose: dict[str, Any] = yaml.safe_load(text)
    return compose


COMPOSE = resolved_compose_file()
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]


def test_is_valid_against_the_compose_specification() -> None:
    # The specification leaves every key that starts with x- to the author; the models made from its schema do not.
    ComposeSpecification.model_validate({key: value for key, value in COMPOSE.items() if not key.startswith("x-")})


def test_the_validation_refuses_what_the_specification_does_not_know() -> None:
    broken = {"services": {"a": {"image": "a:1", "helthcheck": {}}}}
    with pytest.raises(ValueError, match="helthcheck"):
        ComposeSpecification.model_validate(broken)


def test_runs_airflows_four_processes_on_postgresql() -> None:
    assert {"api-server", "scheduler", "dag-processor", "triggerer", "postgres"} <= set(SERVICES)


@pytest.mark.parametrize("name", SERVICES)
def test_image_has_a_version_that_does_not_move(name: str) -> None:
    tag = SERVICES[name]["image"].rpartition(":")[2]
    assert re.match(r"\d+\.\d+", tag), f"{name}: {tag} may move"


@pytest.mark.parametrize("name", sorted(set(SERVICES) - RUNS_ONCE))
def test_service_has_a_health_check(name: str) -> None:
    assert SERVICES[name]["healthcheck"]["test"]


@pytest.mark.parametrize("name", SERVICES)
def test_ports_are_published_on_loopback_only(name: str) -> None:
    assert all(port.startswith("127.0.0.1:") for port in SERVICES[name].get("ports", []))


@pytest.mark.parametrize("name", SERVICES)
def test_no_secret_stands_in_an_environment(name: str) -> None:
    for key, value in SERVICES[name].get("environment", {}).items():
        if re.search(r"(PASSWORD|SECRET_KEY|FERNET|JWT|SQL_ALCHEMY_CONN)", key):
            assert key.endswith(("_CMD", "_FILE")), f"{name}: {key} should read a file"
            assert "/run/secrets/" in value or key.endswith("PASSWORDS_FILE")


@pytest.mark.parametrize("name", SERVICES)
def test_mounted_folders_of_the_project_exist(name: str) -> None:
    for volume in SERVICES[name].get("volumes", []):
        source = volume.split(":")[0]
        if source.startswith("./"):
            assert (PROJECT / source).is_dir(), f"{name} mounts {source}"


@pytest.mark.parametrize("name", SERVICES)
def test_named_secrets_and_volumes_are_declared(name: str) -> None:
    service = SERVICES[name]
    wanted = {entry if isinstance(entry, str) else entry["source"] for entry in service.get("secrets", [])}
    assert wanted <= set(COMPOSE["secrets"])
    named = {volume.split(":")[0] for volume in service.get("volumes", []) if not volume.startswith(("./", "/"))}
    assert named <= set(COMPOSE["volumes"])


def test_env_example_names_exactly_the_settings_of_the_file() -> None:
    assert set(example_settings()) == {found["name"] for found in REFERENCE.finditer(COMPOSE_TEXT)}


def test_defaults_in_the_file_are_those_of_env_example() -> None:
    settings = example_settings()
    for found in REFERENCE.finditer(COMPOSE_TEXT):
        if found[0].startswith("${" + found["name"] + ":-"):
            assert settings[found["name"]] == found["rest"]


def test_uses_the_airflow_version_that_the_project_is_tested_with() -> None:
    requirements = (PROJECT / "requirements.in").read_text(encoding="utf-8")
    version = re.search(r"^apache-airflow==(\S+)$", requirements, re.MULTILINE)
    assert version
    assert f"apache/airflow:{version[1]}-python3.11" in ENV_EXAMPLE


def test_the_pool_for_decrypting_is_made_before_anything_starts() -> None:
    command = SERVICES["init"]["command"]
    assert command[:2] == ["bash", "-c"]
    assert "airflow db migrate && airflow pools set nephoran_decryption 1 " in command[2]
