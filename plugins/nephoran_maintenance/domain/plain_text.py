"""Texts of others inside our Markdown. Pure."""

from __future__ import annotations


def plain(text: object) -> str:
    """Return a text of somebody else as it stands, on one line, without a meaning for Markdown."""
    flat = " ".join(str(text).split())
    return "".join(f"\\{letter}" if letter in "\\`*_{}[]<>#|!~" else letter for letter in flat)
