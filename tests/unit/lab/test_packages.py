from __future__ import annotations

from pathlib import Path

import pytest

from lab import packages


@pytest.fixture
def policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "policy-rc.d"
    monkeypatch.setattr(packages, "_POLICY", path)
    return path


def test_services_are_forbidden_to_start_only_while_installing(policy: Path) -> None:
    with packages._services_stay_stopped():
        assert policy.stat().st_mode & 0o111
        assert "exit 101" in policy.read_text(encoding="utf-8")
    assert not policy.exists()


def test_the_ban_is_lifted_when_the_installation_fails(policy: Path) -> None:
    with pytest.raises(RuntimeError), packages._services_stay_stopped():
        raise RuntimeError
    assert not policy.exists()


def test_a_policy_of_the_machine_is_left_alone(policy: Path) -> None:
    policy.write_text("mine", encoding="utf-8")
    with packages._services_stay_stopped():
        assert policy.read_text(encoding="utf-8") == "mine"
    assert policy.read_text(encoding="utf-8") == "mine"


def test_names_the_package_of_a_missing_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "PACKAGES", {"there": ("sh",), "absent": ("sh", "no-such-program")})
    assert packages.missing_packages() == ["absent"]
