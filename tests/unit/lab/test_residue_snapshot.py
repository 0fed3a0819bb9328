from __future__ import annotations

from dataclasses import fields, replace

from lab.residue import Snapshot

NOTHING = Snapshot(**{entry.name: frozenset() for entry in fields(Snapshot)})


def test_shows_what_came_by_kind() -> None:
    before = replace(NOTHING, links=frozenset({"lo"}))
    after = replace(before, links=frozenset({"lo", "nephlab1"}), mounts=frozenset({"/run/x of tmpfs"}))
    assert after.added_since(before) == {"links": ["nephlab1"], "mounts": ["/run/x of tmpfs"]}
    assert before.added_since(before) == {}


def test_shows_what_went_but_lets_processes_end() -> None:
    before = replace(NOTHING, firewall_rules=frozenset({"-A INPUT"}), processes=frozenset({"1"}))
    assert NOTHING.missing_since(before) == {"firewall_rules": ["-A INPUT"]}
