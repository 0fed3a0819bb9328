"""Whether backups can be made by what the profile says: who opens them, who signs them, and how long these keys live."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from nephoran_maintenance.domain.key_findings import check_life, missing_keys, unusable
from nephoran_maintenance.domain.openpgp_keys import Key, PinnedKey, check_signer, find_key, problem_of
from nephoran_maintenance.errors import PermanentError

if TYPE_CHECKING:
    from nephoran_maintenance.domain.findings import Finding
    from nephoran_maintenance.hooks.openpgp import OpenPgpHook
    from nephoran_maintenance.profile import PublicKey, SystemProfile

SIGNING_KEY = "signing key"


def pinned(keys: tuple[PublicKey, ...]) -> tuple[PinnedKey, ...]:
    """Return public keys of the profile with the text of their files."""
    return tuple(PinnedKey(key.name, key.fingerprint, key.armored()) for key in keys)


def can_be_opened(profile: SystemProfile) -> bool:
    """Return whether the profile says who opens backups: there is no unencrypted mode."""
    return bool(profile.backup.recipients) or profile.backup.encryption == "passphrase"


def backups_configured(profile: SystemProfile) -> bool:
    """Return whether the profile says who can open backups and who signs them."""
    return bool(profile.backup.signers) and can_be_opened(profile)


def refuse_unconfigured(profile: SystemProfile) -> None:
    """Refuse to judge backups of which none could count. Those that were made count without recipients, too.

    :raises PermanentError: ``backup-not-configured`` when the profile names no signer.
    """
    if not profile.backup.signers:
        raise PermanentError(
            "backup-not-configured",
            "the profile names nobody whose signature makes a backup: backup.signers is empty",
            hint="Describe the backups in the profile first; docs/reference/profile.md has every key.",
        )


def check_backup_keys(profile: SystemProfile, at: datetime, needed_until: datetime) -> list[Finding]:
    """Return whether a backup could be encrypted and signed until a moment: a finding for each of its keys.

    It is what the backup itself would refuse, said before anybody approves the change. No key, and of a connection
    nothing but its name, is in the findings. What can't be read blocks.
    """
    from nephoran_maintenance.hooks.openpgp import OpenPgpHook, read_passphrase

    backup, names = profile.backup, profile.connections
    findings = missing_keys(recipients=can_be_opened(profile), signers=bool(backup.signers))
    with OpenPgpHook() as pgp:
        recipients: list[Key] = []
        if backup.encryption == "passphrase":
            try:
                read_passphrase(names.openpgp_passphrase)
            except PermanentError as error:
                findings.append(unusable("passphrase", error))
        else:
            for key in backup.recipients:
                what = f"recipient {key.name}"
                try:
                    recipients += (found := pgp.import_pinned(pinned((key,))))
                except PermanentError as error:
                    findings.append(unusable(what, error))
                else:
                    problem = problem_of(found[0], at)
                    findings.append(check_life(what, found[0].expires_at, at, needed_until, problem=problem))
        if backup.signers:
            findings.append(check_signing_key(profile, pgp, recipients, at, needed_until))
    return findings


def check_signing_key(
    profile: SystemProfile, pgp: OpenPgpHook, recipients: Sequence[Key], at: datetime, needed_until: datetime
) -> Finding:
    """Return whether the key that is here signs what others accept, by a trial, and until when it does."""
    signers = pinned(profile.backup.signers)
    try:
        pgp.take_in(signers)  # with what its owner has said of it since: that it ends, or is revoked
        signing = pgp.import_signing_key(profile.connections.openpgp_signing, recipients)
        pin = check_signer(signing.fingerprint, signers)
        pgp.try_signing(signing)
        return check_life(SIGNING_KEY, find_key(pgp.keys(), pin).signs_until, at, needed_until)
    except PermanentError as error:
        return unusable(SIGNING_KEY, error)
