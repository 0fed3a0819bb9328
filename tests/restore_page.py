"""The commands of docs/how-to/restore-by-hand.md, as somebody who reads it types them."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).resolve().parents[1] / "docs" / "how-to" / "restore-by-hand.md"


def blocks(heading: str) -> list[str]:
    """Return the commands between a heading and the next one."""
    text = PAGE.read_text(encoding="utf-8")
    section = re.search(rf"^##+ {re.escape(heading)}\n(.*?)(?=^##|\Z)", text, re.MULTILINE | re.DOTALL)
    assert section, f"the page has no heading {heading!r}"
    found = re.findall(r"^```sh\n(.*?)^```", section[1], re.MULTILINE | re.DOTALL)
    assert found, f"the page has no commands below {heading!r}"
    return found
