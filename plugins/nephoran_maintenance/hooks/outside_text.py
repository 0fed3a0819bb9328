"""Text that comes from outside, cut and masked before it enters an error, a log line or a report."""

from __future__ import annotations

import re
from collections.abc import Iterable

MASK = "***"
CUT_MARK = " […]"
SHORTEST_SECRET_CHARACTERS = 5
LOOKED_AT_CHARACTERS = 16 * 1024

_SECRET_PATTERNS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL), MASK),
    (re.compile(r"\beyJ[\w-]{8,}\.[\w-]{8,}(?:\.[\w-]*)?"), MASK),
    (re.compile(r"(?i)\b(bearer|basic)\s+[\w.~+/=-]{8,}"), rf"\1 {MASK}"),
    (re.compile(r"(?i)\b([a-z][a-z0-9+.-]{0,20}://[^\s/:@]*):[^\s/@]+@"), rf"\1:{MASK}@"),
    (
        re.compile(
            r"""(?ix) ((?:password|passwd|passphrase|secret|token|api[_-]?key|access[_-]?key|authorization)
            [\w-]{0,40} ["']? \s{0,9} [=:] \s{0,9} ["']?) (?!bearer\s|basic\s|\*\*\*) [^\s"',;}&]{5,}"""
        ),
        rf"\1{MASK}",
    ),
)


def mask(text: str, secrets: Iterable[str | None] = ()) -> str:
    """Replace the given secrets, and everything that looks like one, by asterisks.

    :param secrets: values known to be secret; those shorter than five characters are left alone, as masking them
        would only shred the text.
    """
    for secret in secrets:
        if secret and len(secret) >= SHORTEST_SECRET_CHARACTERS:
            text = text.replace(secret, MASK)
    for pattern, replacement in _SECRET_PATTERNS:
        text = pattern.sub(replacement, text)
    return text


def excerpt(text: str | bytes, limit_characters: int = 300, secrets: Iterable[str | None] = ()) -> str:
    """Return outside text fit for one line of an error: masked, white space folded, cut at the limit."""
    if isinstance(text, bytes):
        text = text[:LOOKED_AT_CHARACTERS].decode("utf-8", errors="replace")
    text = text[:LOOKED_AT_CHARACTERS]  # an answer of megabytes must not cost seconds of matching
    folded = " ".join(mask(text, secrets).split())
    if len(folded) <= limit_characters:
        return folded
    return folded[: limit_characters - len(CUT_MARK)].rstrip() + CUT_MARK


def tail(text: str, lines: int = 20, line_characters: int = 300, secrets: Iterable[str | None] = ()) -> list[str]:
    """Return the last lines of a log, each masked and cut, without trailing white space and empty last lines."""
    masked = mask(text[-LOOKED_AT_CHARACTERS:], secrets).rstrip().splitlines()[-lines:]
    return [
        line if len(line) <= line_characters else line[: line_characters - len(CUT_MARK)] + CUT_MARK
        for line in (line.rstrip() for line in masked)
    ]
