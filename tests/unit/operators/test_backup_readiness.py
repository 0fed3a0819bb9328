"""The keys of the backup before a change, as preflight sees them: real gpg, and nothing of a key in what is said."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from nephoran_maintenance.domain.findings import Finding
from nephoran_maintenance.domain.openpgp_keys import PinnedKey
from nephoran_maintenance.operators.backup_readiness import backups_configured, check_backup_keys
from nephoran_maintenance.profile import load_profile
from tests.unit.backup_bucket import BackupBucket
from tests.unit.hooks.fake_servers import connection_json
from tests.unit.openpgp_keys import PASSPHRASE, KeyMaker

SIGNING = "AIRFLOW_CONN_OPENPGP_SIGNING"
EVERYTHING = {"recipient operations", "recipient escrow", "signing key"}
Spoil = Callable[[BackupBucket, pytest.MonkeyPatch], None]


def looked_at(needed: timedelta = timedelta(hours=28)) -> dict[str, Finding]:
    """Return the findings by what they are of."""
    now = datetime.now(UTC)
    found = check_backup_keys(load_profile(), now, now + needed)
    assert {one.check for one in found} == {"backup"}
    return {one.object: one for one in found}


def use(bucket: BackupBucket, use: str, pin: PinnedKey) -> None:
    """Add a key to the recipients or the signers of the profile."""
    (bucket.profile_path.parent / f"{pin.name}.asc").write_text(pin.armored, encoding="ascii")
    entry = {"name": pin.name, "fingerprint": pin.fingerprint, "key_file": f"{pin.name}.asc"}
    bucket.edit_profile(lambda data: data["backup"][use].append(entry))


@pytest.fixture(scope="session")
def ends_tomorrow(keys: KeyMaker) -> PinnedKey:
    return keys.make("ends-tomorrow", options=("--no-options",))


def test_good_keys_pass_and_each_is_named(bucket: BackupBucket) -> None:
    found = looked_at()
    assert {name: (one.severity, one.observed) for name, one in found.items()} == dict.fromkeys(
        EVERYTHING, ("pass", "never ends")
    )
    assert backups_configured(load_profile())


def test_a_key_must_outlive_the_approval_and_the_backup(bucket: BackupBucket, ends_tomorrow: PinnedKey) -> None:
    use(bucket, "recipients", ends_tomorrow)
    found = looked_at()["recipient ends-tomorrow"]
    assert (found.severity, found.observed.partition(" 2")[0]) == ("block", "ends at")
    assert looked_at(timedelta(hours=1))["recipient ends-tomorrow"].severity == "warn"


def test_a_signing_key_must_outlive_them_too(
    bucket: BackupBucket, keys: KeyMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    pin = keys.make("signs-until-tomorrow", passphrase=PASSPHRASE, encrypts=False, options=("--no-options",))
    use(bucket, "signers", pin)
    monkeypatch.setenv(SIGNING, keys.signing_connection(pin))
    assert looked_at()["signing key"].severity == "block"
    assert looked_at(timedelta(hours=1))["signing key"].severity == "warn"


def nobody(bucket: BackupBucket, _: pytest.MonkeyPatch) -> None:
    bucket.edit_profile(lambda data: data["backup"].update(recipients=[], signers=[]))


def has_expired(bucket: BackupBucket, _: pytest.MonkeyPatch) -> None:
    use(bucket, "recipients", bucket.keys.expired)


def is_revoked(bucket: BackupBucket, _: pytest.MonkeyPatch) -> None:
    use(bucket, "recipients", bucket.keys.revoked)


def only_signs(bucket: BackupBucket, _: pytest.MonkeyPatch) -> None:
    use(bucket, "recipients", bucket.keys.only_signs)


def another_key(bucket: BackupBucket, _: pytest.MonkeyPatch) -> None:
    (bucket.profile_path.parent / "escrow.asc").write_text(bucket.keys.stranger.armored, encoding="ascii")


def no_file(bucket: BackupBucket, _: pytest.MonkeyPatch) -> None:
    (bucket.profile_path.parent / "escrow.asc").unlink()


def no_connection(bucket: BackupBucket, patch: pytest.MonkeyPatch) -> None:
    patch.delenv(SIGNING)


def wrong_passphrase(bucket: BackupBucket, patch: pytest.MonkeyPatch) -> None:
    connection = json.loads(bucket.keys.signing_connection())
    patch.setenv(SIGNING, json.dumps({**connection, "password": "no-such-passphrase"}))


def signs_for_nobody(bucket: BackupBucket, patch: pytest.MonkeyPatch) -> None:
    other = bucket.keys.make("signs-for-nobody", passphrase=PASSPHRASE, encrypts=False)
    patch.setenv(SIGNING, bucket.keys.signing_connection(other))


def signer_revoked(bucket: BackupBucket, patch: pytest.MonkeyPatch) -> None:
    """Its owner has said so in the profile's file; the worker's private key is of before."""
    pin = bucket.keys.make("revoked-signer", passphrase=PASSPHRASE, encrypts=False)
    patch.setenv(SIGNING, bucket.keys.signing_connection(pin))
    use(bucket, "signers", bucket.keys.revoke(pin))


def no_passphrase(bucket: BackupBucket, patch: pytest.MonkeyPatch) -> None:
    bucket.edit_profile(lambda data: data["backup"].update(recipients=[], encryption="passphrase"))
    patch.setenv("AIRFLOW_CONN_OPENPGP_PASSPHRASE", connection_json(conn_type="generic", password=""))


@pytest.mark.parametrize(
    ("spoil", "blocking", "said"),
    [
        pytest.param(nobody, {"backup.recipients", "backup.signers"}, "names none", id="nobody"),
        pytest.param(has_expired, {"recipient expired"}, "has expired", id="expired"),
        pytest.param(is_revoked, {"recipient revoked"}, "is revoked", id="revoked"),
        pytest.param(only_signs, {"recipient only-signs"}, "no living subkey", id="can not be encrypted to"),
        pytest.param(another_key, {"recipient escrow"}, "expected", id="another key in the file"),
        pytest.param(no_file, {"recipient escrow"}, "can't be read", id="no key file"),
        pytest.param(no_connection, {"signing key"}, "openpgp_signing", id="no signing key"),
        pytest.param(wrong_passphrase, {"signing key"}, "gpg does not sign", id="wrong passphrase"),
        pytest.param(signs_for_nobody, {"signing key"}, "not among backup.signers", id="signer not pinned"),
        pytest.param(signer_revoked, {"signing key"}, "gpg does not sign", id="signer revoked"),
        pytest.param(no_passphrase, {"passphrase"}, "no unencrypted mode", id="no passphrase"),
    ],
)
def test_whatever_a_backup_would_refuse_blocks_and_gives_no_secret_away(
    spoil: Spoil, blocking: set[str], said: str, bucket: BackupBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(bucket, monkeypatch)
    found = looked_at()
    assert {name for name, one in found.items() if one.severity == "block"} == blocking
    assert all(said in found[name].observed and found[name].hint for name in blocking)
    text = json.dumps([one.to_dict() for one in found.values()])
    for secret in (PASSPHRASE, "no-such-passphrase", "BEGIN PGP", *private_lines(bucket)):
        assert secret not in text


def private_lines(bucket: BackupBucket) -> list[str]:
    """Return lines of the armored signing key."""
    text = json.loads(bucket.keys.signing_connection())["extra"]["private_key"]
    return [line for line in text.splitlines() if len(line) > 40]
