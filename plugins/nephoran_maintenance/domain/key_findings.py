"""What preflight says of the keys that the backup before a change needs."""

from __future__ import annotations

from datetime import datetime

from nephoran_maintenance.domain.findings import Finding, Severity
from nephoran_maintenance.domain.freshness import CHECK
from nephoran_maintenance.domain.openpgp_keys import EXPIRY_WARNING
from nephoran_maintenance.errors import PermanentError


def missing_keys(*, recipients: bool, signers: bool) -> list[Finding]:
    """Return what blocks a backup because the profile names nobody, by whether it does."""
    expected = "at least one, or backup.before_change: none"
    return [
        Finding(CHECK, "block", f"backup.{what}", "the profile names none", expected, hint)
        for what, there, hint in (
            ("recipients", recipients, "Name who can open backups: operations and an escrow."),
            ("signers", signers, "Name whose signature makes a backup."),
        )
        if not there
    ]


def unusable(what: str, error: PermanentError) -> Finding:
    """Return the finding of a key that a backup would refuse."""
    return Finding(CHECK, "block", what, error.message, "a key that can be used", error.hint)


def check_life(
    what: str, ends_at: datetime | None, at: datetime, needed_until: datetime, *, problem: str | None = None
) -> Finding:
    """Return whether a key lives until the backup before a change is made.

    :param problem: why it can't be used now.
    """
    expected = f"usable until the change is backed up, {needed_until:%Y-%m-%d %H:%M} UTC at the latest"
    hint = "Put a renewed public key into the key file; its fingerprint stays the same when only its expiry moves."
    seen = problem or (f"ends at {ends_at:%Y-%m-%d %H:%M} UTC" if ends_at else "never ends")
    severity: Severity = "pass"
    if problem or (ends_at is not None and ends_at <= needed_until):
        severity = "block"
    elif ends_at is not None and ends_at - at < EXPIRY_WARNING:
        severity = "warn"
    return Finding(CHECK, severity, what, seen, expected, "" if severity == "pass" else hint)
