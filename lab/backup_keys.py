"""The OpenPGP keys of a lab: two who can open backups, and the one that signs them.

They are made once, in memory, and outlive ``down`` like the lab's other secrets. Airflow gets the signing key, and, in a
connection of its own, that of the recipient who verifies the backups; the escrow's key it never gets.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.config import LabConfig
from lab.failure import LabError

RECIPIENTS = ("operations", "escrow")
READER = "operations"
"""The recipient who verifies backups in the lab."""
SIGNER = "signer"
PASSPHRASE = "openpgp-signing-passphrase"
KEYS_FOLDER = "keys"
"""Where the public keys are, beside the profile."""


@dataclass(frozen=True)
class LabKey:
    """:param private: armored; the signer's is protected by the secret ``PASSPHRASE``, the recipients' by their file alone."""

    name: str
    fingerprint: str
    public: str
    private: str


def keys(config: LabConfig) -> dict[str, LabKey]:
    """Return the lab's keys by name; the first call makes them."""
    folder = config.home / "secrets" / "openpgp"
    if not folder.exists():
        _make(config, folder)
    return {name: _read(folder, name) for name in (*RECIPIENTS, SIGNER)}


def pins(made: dict[str, LabKey]) -> dict[str, Any]:
    """Return ``recipients`` and ``signers`` of a profile."""
    entries = {
        name: {"name": name, "fingerprint": key.fingerprint, "key_file": f"{KEYS_FOLDER}/{name}.asc"}
        for name, key in made.items()
    }
    return {"recipients": [entries[name] for name in RECIPIENTS], "signers": [entries[SIGNER]]}


def write_public(made: dict[str, LabKey], folder: Path) -> None:
    """Write the public keys below a profile's folder."""
    for name, key in made.items():
        path = folder / KEYS_FOLDER / f"{name}.asc"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(key.public, encoding="ascii")


def _read(folder: Path, name: str) -> LabKey:
    texts = [(folder / f"{name}.{what}").read_text(encoding="ascii") for what in ("fingerprint", "public", "private")]
    return LabKey(name, *texts)


def _make(config: LabConfig, folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    draft = Path(tempfile.mkdtemp(prefix=".openpgp-", dir=folder.parent))  # of mode 0700
    try:
        with private_home() as gpg:
            for name in (*RECIPIENTS, SIGNER):
                _make_one(gpg, draft, name, config.secret(PASSPHRASE) if name == SIGNER else "")
        # Of two that make them at once, the first one's count.
        with contextlib.suppress(OSError):
            draft.rename(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _make_one(gpg: Gpg, folder: Path, name: str, passphrase: str) -> None:
    gpg.run("--quick-generate-key", name, "ed25519", "sign", "never", passphrase=passphrase)
    listing = gpg.run("--with-colons", "--list-keys", f"={name}").decode()
    fingerprint = next(line.split(":")[9] for line in listing.splitlines() if line.startswith("fpr:"))
    if name != SIGNER:
        gpg.run("--quick-add-key", fingerprint, "cv25519", "encr", "never", passphrase=passphrase)
    texts = {
        "fingerprint": fingerprint,
        "public": gpg.run("--armor", "--export", fingerprint).decode("ascii"),
        "private": gpg.run("--armor", "--export-secret-keys", fingerprint, passphrase=passphrase).decode("ascii"),
    }
    for what, text in texts.items():
        path = folder / f"{name}.{what}"
        path.touch(mode=0o600)
        path.write_text(text, encoding="ascii")


@dataclass(frozen=True)
class Gpg:
    """gpg with a home of its own."""

    home: Path

    def run(self, *arguments: str, data: bytes = b"", passphrase: str | None = None) -> bytes:
        """Run gpg and return what it prints; a passphrase goes through a pipe, in front of the data."""
        command = ["gpg", "--homedir", str(self.home), "--batch", "--quiet", "--no-options"]
        if passphrase is not None:
            command += ["--pinentry-mode", "loopback", "--passphrase-fd", "0"]
            data = passphrase.encode() + b"\n" + data
        done = subprocess.run([*command, *arguments], input=data, capture_output=True, check=False)
        if done.returncode != 0:
            raise LabError(f"gpg {arguments[0]} ended with {done.returncode}: {done.stderr.decode(errors='replace')}")
        return done.stdout


@contextmanager
def private_home() -> Iterator[Gpg]:
    """Yield a gpg whose home is in memory; it is taken away with its agent."""
    home = Path(tempfile.mkdtemp(prefix="lab-gpg-", dir="/dev/shm"))
    try:
        # Without it the agent takes seconds to find out how long it can stretch a passphrase.
        (home / "gpg-agent.conf").write_text("s2k-count 65536\n", encoding="ascii")
        yield Gpg(home)
    finally:
        environment = {"PATH": os.environ.get("PATH", os.defpath), "GNUPGHOME": str(home)}
        subprocess.run(["gpgconf", "--kill", "gpg-agent"], env=environment, check=False, capture_output=True)
        shutil.rmtree(home, ignore_errors=True)
