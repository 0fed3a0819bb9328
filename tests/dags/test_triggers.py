"""Every trigger survives the way through the database: what goes in comes out, under a path that can be imported."""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
from typing import Any, get_type_hints

import pytest
from airflow.sdk._shared.module_loading import import_string
from airflow.triggers.base import BaseTrigger

import nephoran_maintenance.triggers
from nephoran_maintenance.triggers.base import PollingTrigger


def concrete_triggers() -> list[type[BaseTrigger]]:
    package = nephoran_maintenance.triggers
    for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        importlib.import_module(module.name)
    found: set[type[BaseTrigger]] = set()
    waiting: list[type[BaseTrigger]] = [BaseTrigger]
    while waiting:
        waiting += (below := waiting.pop().__subclasses__())
        found |= {cls for cls in below if cls.__module__.startswith(package.__name__) and not inspect.isabstract(cls)}
    return sorted(found, key=lambda cls: cls.__name__)


TRIGGERS = concrete_triggers()


def sample(name: str, kind: Any) -> Any:
    """Return a value for a parameter that no default has."""
    text = str(kind)
    if "Mapping" in text:
        return [{"group": name, "version": "v1", "plural": "things", "namespace": "ns", "name": "x"}]
    if "Sequence" in text:
        return [f"{name}-1", f"{name}-2"]
    if kind is bool:
        return True
    if kind is float:
        return 17.25
    if "int" in text:
        return 17
    return f"value of {name}"


def round_trip(cls: type[BaseTrigger]) -> None:
    hints = get_type_hints(cls.__init__)
    names = [name for name in inspect.signature(cls).parameters if name not in ("args", "kwargs")]
    given = {name: sample(name, hints[name]) for name in names}
    path, stored = cls(**given).serialize()
    assert import_string(path) is cls
    assert stored == given, f"{cls.__name__} does not keep what it was given"
    loaded = json.loads(json.dumps(stored))
    assert import_string(path)(**loaded).serialize() == (path, loaded)


def test_all_triggers_are_found() -> None:
    assert {"RolloutTrigger", "ProbeTrigger", "GateTrigger", "IntentTrigger", "AbsenceTrigger"} <= {
        cls.__name__ for cls in TRIGGERS
    }


@pytest.mark.parametrize("cls", TRIGGERS)
def test_comes_back_with_the_same_parameters(cls: type[BaseTrigger]) -> None:
    round_trip(cls)


class Forgetful(PollingTrigger):
    """Leaves a parameter out when it is stored."""

    def __init__(self, *, colour: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.colour = colour

    async def watch(self) -> dict[str, Any]:
        return {}


def test_a_forgotten_parameter_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nephoran_maintenance.triggers.base.Forgetful", Forgetful, raising=False)
    monkeypatch.setattr(Forgetful, "__module__", "nephoran_maintenance.triggers.base")
    with pytest.raises(AssertionError, match="does not keep"):
        round_trip(Forgetful)
