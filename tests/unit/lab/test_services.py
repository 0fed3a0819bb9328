from __future__ import annotations

import sys
from pathlib import Path

import pytest

from lab.config import LabConfig
from lab.control_plane import basic_objects
from lab.services import optional_module


def test_a_module_that_the_project_lacks_is_an_absence() -> None:
    assert optional_module("lab.no_such_module") is None
    assert optional_module("lab.services") is sys.modules["lab.services"]


def test_a_module_that_lacks_its_own_imports_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "half_a_module.py").write_text("import no_such_library\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="no_such_library"):
        optional_module("half_a_module")


def test_dns_is_a_service_with_the_address_that_pods_are_told() -> None:
    config = LabConfig.named("demo")
    objects = {(entry["kind"], entry["metadata"]["name"]): entry for entry in basic_objects(config)}  # type: ignore[index]
    service, slices = objects["Service", "kube-dns"], objects["EndpointSlice", "kube-dns-lab"]
    assert service["spec"]["clusterIP"] == config.service_address("dns")  # type: ignore[index]
    assert slices["endpoints"][0]["addresses"] == [config.node_address]  # type: ignore[index]
