"""OpenPGP keys for tests, made by gpg in memory: who can open, who signs, and keys that must be refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

from nephoran_maintenance.domain.openpgp_keys import PinnedKey
from nephoran_maintenance.hooks.openpgp import memory_folder

PASSPHRASE = "passphrase-of-the-signing-key"
SIGNING = "openpgp_signing"


class KeyMaker:
    """One GNUPGHOME with every private key; keys are made when they are first asked for."""

    def __init__(self, home: Path) -> None:
        self.home = home

    def gpg(self, *arguments: str, data: bytes = b"", fails: bool = False) -> bytes:
        command = ["gpg", "--homedir", str(self.home), "--batch", "--quiet", "--pinentry-mode", "loopback", *arguments]
        done = subprocess.run(command, input=data, capture_output=True, check=False)
        assert (done.returncode != 0) == fails, done.stderr.decode()
        return done.stdout

    def make(
        self, name: str, *, passphrase: str = "", encrypts: bool = True, options: tuple[str, ...] = ()
    ) -> PinnedKey:
        """Make a key, also where another test of this process made one of the same name; with options it ends in a day."""
        secret, until = ["--passphrase", passphrase], "1d" if options else "never"
        new = ["--yes", "--status-fd", "1", "--quick-generate-key", name, "ed25519", "sign", until]
        status = self.gpg(*options, *secret, *new).decode().split()
        fingerprint = status[status.index("KEY_CREATED") + 2]
        if encrypts:
            self.gpg(*options, *secret, "--quick-add-key", fingerprint, "cv25519", "encr", until)
        return self.pin(name, fingerprint)

    def pin(self, name: str, fingerprint: str) -> PinnedKey:
        return PinnedKey(name, fingerprint, self.gpg("--armor", "--export", fingerprint).decode())

    def private(self, pin: PinnedKey, passphrase: str = "") -> str:
        return self.gpg("--passphrase", passphrase, "--armor", "--export-secret-keys", pin.fingerprint).decode()

    def revoke(self, pin: PinnedKey) -> PinnedKey:
        """Revoke a key and return it as its owner gives it out from now on."""
        certificate = (self.home / "openpgp-revocs.d" / f"{pin.fingerprint}.rev").read_text(encoding="utf-8")
        self.gpg("--import", data=certificate.replace(":-----BEGIN", "-----BEGIN").encode())
        return self.pin(pin.name, pin.fingerprint)

    @cached_property
    def operations(self) -> PinnedKey:
        return self.make("operations")

    @cached_property
    def escrow(self) -> PinnedKey:
        return self.make("escrow")

    @cached_property
    def stranger(self) -> PinnedKey:
        return self.make("stranger")

    @cached_property
    def signer(self) -> PinnedKey:
        return self.make("signer", passphrase=PASSPHRASE, encrypts=False)

    @cached_property
    def expired(self) -> PinnedKey:
        return self.make("expired", options=("--faked-system-time", "20260101T000000"))

    @cached_property
    def revoked(self) -> PinnedKey:
        return self.revoke(self.make("revoked"))

    @cached_property
    def only_signs(self) -> PinnedKey:
        return self.make("only-signs", encrypts=False)

    def signing_connection(self, pin: PinnedKey | None = None, passphrase: str = PASSPHRASE) -> str:
        """Return the JSON of an Airflow connection with a signing key."""
        key = self.private(pin or self.signer, passphrase)
        return json.dumps({"conn_type": "generic", "password": passphrase, "extra": {"private_key": key}})


@contextmanager
def key_maker() -> Iterator[KeyMaker]:
    home = Path(tempfile.mkdtemp(prefix="test-keys-", dir=memory_folder(os.environ)))
    try:
        # Without it the agent takes seconds to find out how long it can stretch a passphrase.
        (home / "gpg-agent.conf").write_text("s2k-count 65536\n", encoding="ascii")
        yield KeyMaker(home)
    finally:
        subprocess.run(["gpgconf", "--homedir", str(home), "--kill", "gpg-agent"], check=False)
        shutil.rmtree(home, ignore_errors=True)


def plain(makers: KeyMaker, encrypted: bytes) -> bytes:
    """Return what a recipient reads."""
    return makers.gpg("--decrypt", data=encrypted)
