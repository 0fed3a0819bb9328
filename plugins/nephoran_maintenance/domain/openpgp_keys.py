"""Which OpenPGP keys may be encrypted to and whose signatures count: those that the profile pins by fingerprint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from nephoran_maintenance.errors import PermanentError

EXPIRY_WARNING = timedelta(days=30)
_STATES = {"r": "is revoked", "e": "has expired", "i": "is invalid", "d": "is disabled"}


@dataclass(frozen=True)
class PinnedKey:
    """A public key as the profile names it: ``operations``, its fingerprint in capitals, its armored text."""

    name: str
    fingerprint: str
    armored: str


@dataclass(frozen=True)
class Key:
    """A public key as gpg sees it now.

    :param validity: gpg's letter: ``e`` expired, ``r`` revoked, ``d`` disabled, ``i`` invalid; others are usable.
    :param capabilities: gpg's letters; a capital ``E`` says that the whole key can be encrypted to now.
    :param encryption_key_ids: the living subkeys that can be encrypted to.
    :param expires_at: when nothing can be encrypted to it any more; None: never.
    :param signs_until: when it can sign nothing any more; None: never.
    """

    fingerprint: str
    validity: str
    capabilities: str
    encryption_key_ids: tuple[str, ...]
    expires_at: datetime | None
    signs_until: datetime | None = None


@dataclass(frozen=True)
class Signature:
    fingerprint: str
    signed_at: datetime


def find_key(keys: Sequence[Key], pin: PinnedKey) -> Key:
    """Return the key of a pin's fingerprint.

    :raises PermanentError: ``openpgp-key-not-pinned``.
    """
    for key in keys:
        if key.fingerprint == pin.fingerprint:
            return key
    raise PermanentError(
        "openpgp-key-not-pinned",
        f"there is no key {pin.fingerprint} for {pin.name!r}",
        context={"key": pin.name},
        hint="Put the public key of this fingerprint into the key file.",
    )


def problem_of(key: Key, at: datetime) -> str | None:
    """Return why a key can't be encrypted to, or None when it can."""
    if key.validity in _STATES:
        return _STATES[key.validity]
    if "D" in key.capabilities:
        return _STATES["d"]
    if key.expires_at is not None and key.expires_at <= at:
        return f"has expired at {key.expires_at.isoformat()}"
    if "E" not in key.capabilities or not key.encryption_key_ids:
        return "has no living subkey for encryption"
    return None


def check_recipients(pins: Sequence[PinnedKey], keys: Sequence[Key], at: datetime) -> None:
    """Refuse to encrypt to nobody, or to a key that nobody may or can use.

    :raises PermanentError: ``openpgp-no-recipients`` or ``openpgp-key-unusable``, naming each such key.
    """
    if not pins:
        raise PermanentError(
            "openpgp-no-recipients",
            "the profile names nobody who can open a backup; there is no unencrypted mode",
            hint="Name at least two recipients in backup.recipients of the profile: operations and an escrow.",
        )
    problems = [
        f"{pin.name} ({pin.fingerprint}) {problem}"
        for pin in pins
        if (problem := problem_of(find_key(keys, pin), at)) is not None
    ]
    if problems:
        raise PermanentError(
            "openpgp-key-unusable",
            f"a recipient's key can't be encrypted to: {'; '.join(problems)}",
            hint="Put a renewed public key into the key file; its fingerprint stays the same when only its expiry moves.",
        )


def expiring(pins: Sequence[PinnedKey], keys: Sequence[Key], at: datetime) -> dict[str, datetime]:
    """Return by name which recipients' keys end within 30 days."""
    found = {pin.name: find_key(keys, pin).expires_at for pin in pins}
    return {name: end for name, end in found.items() if end is not None and end - at < EXPIRY_WARNING}


def signing_ends(pin: PinnedKey, keys: Sequence[Key], at: datetime) -> dict[str, datetime]:
    """Return, named like a recipient in :func:`expiring`, whether the key that signs ends within 30 days."""
    end = find_key(keys, pin).signs_until
    return {f"signer {pin.name}": end} if end is not None and end - at < EXPIRY_WARNING else {}


def check_signer(fingerprint: str, signers: Sequence[PinnedKey]) -> PinnedKey:
    """Return the pin of the key that signs.

    :raises PermanentError: ``openpgp-signer-not-pinned``: nobody would accept what it signs.
    """
    for pin in signers:
        if pin.fingerprint == fingerprint:
            return pin
    raise PermanentError(
        "openpgp-signer-not-pinned",
        f"the signing key {fingerprint} is not among backup.signers of the profile",
        hint="Add its public key to backup.signers, so that its backups are accepted.",
    )
