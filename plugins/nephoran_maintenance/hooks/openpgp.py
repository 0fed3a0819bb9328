"""OpenPGP by gpg: public keys that are pinned by fingerprint, a signing key that gpg holds in memory only.

Every hook has a GNUPGHOME of its own in a memory-backed folder, and takes it away again with its agent. There is no web
of trust in it: a key is trusted because the profile names its fingerprint, and no other key is ever imported.
"""

from __future__ import annotations

import contextlib
import copy
import fcntl
import logging
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from nephoran_maintenance.domain.openpgp_keys import Key, PinnedKey, Signature, check_recipients, find_key
from nephoran_maintenance.errors import PermanentError, TransientError
from nephoran_maintenance.hooks.connections import read_connection
from nephoran_maintenance.hooks.object_store import BLOCK_BYTES
from nephoran_maintenance.hooks.outside_text import excerpt

PIPE_BYTES = 1024 * 1024
"""What Linux gives anybody; with its usual 64 KiB each process waits for the other all the time."""
_PREFIX = "nephoran-gpg-"
_LOCK = ".lock"
_FULL = "No space left on device"
"""gpg's words, which it says in English here."""
_MEMORY = ("tmpfs", "ramfs")
# The agent keeps no passphrase. It does not measure for a second how long it could stretch one: its copy of the key is
# in memory, in a home of mode 0700 that is gone after the signature.
_AGENT_SETTINGS = "default-cache-ttl 0\nmax-cache-ttl 0\ns2k-count 65536\ndisable-scdaemon\n"
# What is encrypted has been compressed already. In the symmetric case the passphrase is stretched as far as gpg can.
_DATA_OPTIONS = ("--compress-algo", "none", "-z", "0", "--cipher-algo", "AES256")
_STRETCHED = (
    "--s2k-mode",
    "3",
    "--s2k-cipher-algo",
    "AES256",
    "--s2k-digest-algo",
    "SHA512",
    "--s2k-count",
    "65011712",
)


@dataclass(frozen=True)
class Passphrase:
    """The symmetric way for small sites: who has it can read every backup, the worker too."""

    value: str

    def __repr__(self) -> str:
        return "Passphrase(***)"


def read_passphrase(connection_id: str) -> Passphrase:
    """Return the passphrase of a connection, its password.

    :raises PermanentError: ``connection-missing``, or ``openpgp-no-recipients`` when it is empty.
    """
    secret = str(read_connection(connection_id).password or "")
    if not secret:
        raise PermanentError(
            "openpgp-no-recipients",
            f"the connection {connection_id!r} has no passphrase; there is no unencrypted mode",
            context={"connection": connection_id},
            hint="Put the passphrase into the connection's password, or name recipients in the profile.",
        )
    return Passphrase(secret)


class OpenPgpHook:
    """Encrypt, sign and verify with keys of this hook alone; use it as a context manager.

    :raises PermanentError: ``openpgp-no-memory-folder`` or ``openpgp-missing`` on entering.
    :raises TransientError: ``openpgp-no-room``, also while keys are taken in.
    """

    def __init__(self) -> None:
        self._home: Path | None = None
        self._gpg: Any = None
        self._lock: Any = None

    def __enter__(self) -> Self:
        folder = memory_folder(os.environ)
        sweep(folder)
        try:
            self._home = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=folder))  # of mode 0700
            (self._home / "gpg-agent.conf").write_text(_AGENT_SETTINGS, encoding="ascii")
            draft = self._home / f"{_LOCK}.new"
            self._lock = draft.open("w")
            fcntl.flock(self._lock, fcntl.LOCK_EX)
            draft.rename(self._home / _LOCK)  # only now: one that is there and not locked is swept away
            self._gpg = self._client()
        except OSError as error:
            self.close()
            raise _no_room(excerpt(str(error))) from error
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def home(self) -> Path:
        if self._home is None:
            raise PermanentError("openpgp-missing", "gpg is used before it was opened", hint="Report this as a defect.")
        return self._home

    def close(self) -> None:
        """End the agent and remove the home. Safe to repeat: yes."""
        if self._home is None:
            return
        _remove(self._home)
        if self._lock is not None:
            self._lock.close()
        self._home = self._gpg = self._lock = None

    def import_pinned(self, pins: Iterable[PinnedKey]) -> list[Key]:
        """Take public keys in and return them in order.

        :raises PermanentError: ``openpgp-key-not-pinned`` when a file holds another key than its pin says.
        """
        pins = list(pins)
        self.take_in(pins)
        keys = self.keys() if pins else []
        return [find_key(keys, pin) for pin in pins]

    def take_in(self, pins: Iterable[PinnedKey]) -> None:
        """Take public keys in.

        :raises PermanentError: ``openpgp-key-not-pinned`` when a file holds another key than its pin says.
        """
        for pin in pins:
            result = self._import(pin.armored)
            if pin.fingerprint not in result.fingerprints or set(result.fingerprints) != {pin.fingerprint}:
                raise PermanentError(
                    "openpgp-key-not-pinned",
                    f"the key of {pin.name!r} is {', '.join(sorted(set(result.fingerprints))) or 'no OpenPGP key'}, "
                    f"expected {pin.fingerprint} alone",
                    context={"key": pin.name},
                    hint="Ask its owner for the fingerprint over another channel; then correct the file or the pin.",
                )

    def import_recipients(self, pins: Iterable[PinnedKey], at: datetime) -> list[Key]:
        """Take the recipients' keys in, refuse any that can't be encrypted to, and return them.

        :raises PermanentError: ``openpgp-no-recipients``, ``openpgp-key-not-pinned`` or ``openpgp-key-unusable``.
        """
        pins = list(pins)
        keys = self.import_pinned(pins)
        check_recipients(pins, keys, at)
        return keys

    def import_signing_key(self, connection_id: str, recipients: Iterable[Key] = ()) -> SigningKey:
        """Take the signing key of a connection in: extra ``private_key``, armored; its password is the passphrase.

        :raises PermanentError: ``openpgp-signing-key-invalid`` when there is none, when it has no passphrase, or when it
            could decrypt what is encrypted here.
        """
        connection = read_connection(connection_id)
        armored = str(connection.extra_dejson.get("private_key") or "")
        passphrase = str(connection.password or "")
        result = self._import(armored) if armored else None
        found = sorted(set(result.fingerprints)) if result is not None else []
        problem = None
        if result is None or len(found) != 1 or not result.sec_read:
            problem = "holds no OpenPGP private key, or several"
        elif not passphrase or self._unprotected():
            problem = "holds a private key without a passphrase"
        elif found[0] in {key.fingerprint for key in recipients}:
            problem = "holds the private key of a recipient, with which this worker could read every backup"
        if problem:
            raise PermanentError(
                "openpgp-signing-key-invalid",
                f"the connection {connection_id!r} {problem}",
                context={"connection": connection_id},
                hint="Put a key that can only sign, protected by a passphrase, into the connection: "
                "extra private_key, and password.",
            )
        return SigningKey(found[0], passphrase)

    def import_decryption_key(self, connection_id: str) -> DecryptionKey:
        """Take a recipient's private key in: extra ``private_key``, armored; the password is its passphrase, if it has one.

        Never in the hook that signs: whoever writes backups must not be able to read them.

        :raises PermanentError: ``connection-missing``, or ``openpgp-decryption-key-invalid`` when it is no private key.
        """
        connection = read_connection(connection_id)
        armored = str(connection.extra_dejson.get("private_key") or "")
        result = self._import(armored) if armored else None
        found = sorted(set(result.fingerprints)) if result is not None else []
        if result is None or len(found) != 1 or not result.sec_read:
            raise PermanentError(
                "openpgp-decryption-key-invalid",
                f"the connection {connection_id!r} holds no OpenPGP private key, or several",
                context={"connection": connection_id},
                hint="Put one armored private key of a recipient into the extra private_key, its passphrase into password.",
            )
        return DecryptionKey(found[0], str(connection.password or "") or None)

    def _import(self, armored: str) -> Any:
        result = self._gpg.import_keys(armored)
        # A key that could not be written looks like none at all.
        if _FULL in str(result.stderr):
            raise _no_room(_reason(result))
        return result

    def keys(self) -> list[Key]:
        """Return all keys that were taken in."""
        return [_key(entry) for entry in self._gpg.list_keys()]

    def sign(self, data: bytes, key: SigningKey) -> str:
        """Return an armored detached signature.

        :raises PermanentError: ``openpgp-signing-failed``, mostly a wrong passphrase or an expired key.
        """
        options = ["--digest-algo", "SHA512", "--local-user", key.fingerprint]
        result = self._gpg.sign(data, passphrase=key.passphrase, detach=True, clearsign=False, extra_args=options)
        if result.returncode != 0 or not result.data:
            raise PermanentError(
                "openpgp-signing-failed",
                f"gpg does not sign with {key.fingerprint}: {_reason(result)}",
                hint="Check the passphrase in the signing connection, and whether the key has expired.",
            )
        return bytes(result.data).decode("ascii")

    def try_signing(self, key: SigningKey) -> None:
        """Sign something that nobody keeps: a wrong passphrase, or a key that has ended, is known only then.

        :raises PermanentError: as :meth:`sign`.
        """
        self.sign(b"a trial", key)

    def verify(self, data: bytes, signature: str, signers: Iterable[PinnedKey]) -> Signature:
        """Return who signed these bytes and when.

        What a key signed while it lived goes on counting after its end. What a revoked key signed never does: whoever
        has stolen a key dates its signatures back, and only a revocation tells that from a key that has merely ended.

        :raises PermanentError: ``openpgp-signature-invalid`` unless exactly these bytes were signed by a pinned signer.
        """
        expected = {pin.fingerprint for pin in signers}
        file = self.home / "signature.asc"
        file.write_text(signature, encoding="utf-8")
        result = self._gpg.verify_data(str(file), data)
        signer = str(result.pubkey_fingerprint or "")
        counts = result.valid or self._signed_while_it_lived(result)
        if result.returncode != 0 or not counts or signer not in expected:
            raise PermanentError(
                "openpgp-signature-invalid",
                f"the signature is not one of {', '.join(sorted(expected)) or 'no signer'} over these bytes: "
                f"{signer or 'unknown signer'}, {excerpt(str(result.status or 'no signature'))}",
                hint="Trust nothing of this backup; find out who wrote it.",
            )
        return Signature(signer, datetime.fromtimestamp(int(result.sig_timestamp), UTC))

    def _signed_while_it_lived(self, result: Any) -> bool:
        """Return whether a signature, which python-gnupg calls not valid, is a good one of a key that has ended since."""
        if [found["status"] for found in result.problems] != ["signing key has expired"] or not result.sig_timestamp:
            return False
        entry = next((e for e in self._gpg.list_keys() if e["fingerprint"] == result.pubkey_fingerprint), None)
        if entry is None:
            return False
        # The key that signed may be a subkey; both must live. gpg says of a key that has ended not that it is revoked.
        signing = [key_id for key_id, _, fingerprint, *_ in entry["subkeys"] if fingerprint == result.fingerprint]
        keys = [entry, *(entry["subkey_info"][key_id] for key_id in signing)]
        signed_at = datetime.fromtimestamp(int(result.sig_timestamp), UTC)
        ends = [_moment(key.get("expires")) for key in keys]
        revoked = any(str(key.get("trust", "")) in ("r", "i", "d") for key in keys)
        return not revoked and all(end is None or signed_at < end for end in ends)

    def encrypt(self, chunks: Iterable[bytes], sink: Callable[[bytes], object], to: Iterable[Key] | Passphrase) -> None:
        """Encrypt a stream; ``sink`` gets the ciphertext block by block, and gpg waits for it.

        An error of ``chunks`` or of ``sink`` stops the stream and is raised as it is.

        :raises PermanentError: ``openpgp-no-recipients`` or ``openpgp-encryption-failed``.
        """
        if isinstance(to, Passphrase):
            how: dict[str, Any] = {"recipients": None, "symmetric": "AES256", "passphrase": to.value}
            how["extra_args"] = [*_DATA_OPTIONS, *_STRETCHED]
        else:
            fingerprints = [key.fingerprint for key in to]
            if not fingerprints:
                check_recipients([], [], datetime.now(UTC))
            how = {"recipients": fingerprints, "always_trust": True, "extra_args": list(_DATA_OPTIONS)}
        self._stream("encrypt_file", chunks, sink, {"armor": False, **how}, "openpgp-encryption-failed")

    def decrypt(self, chunks: Iterable[bytes], sink: Callable[[bytes], object], passphrase: str | None = None) -> None:
        """Decrypt a stream with a private key, or a passphrase, that was taken in.

        :raises PermanentError: ``openpgp-decryption-failed``, also for changed or cut ciphertext: whatever ``sink`` got
            until then is worthless.
        """
        self._stream("decrypt_file", chunks, sink, {"passphrase": passphrase}, "openpgp-decryption-failed")

    def recipients_of(self, head: bytes) -> tuple[str, ...]:
        """Return the ids of the subkeys that an encrypted stream says it can be opened with.

        :param head: its beginning; a few KiB are enough.
        """
        result = self._gpg.decrypt(head, extra_args=["--list-only"])
        lines = (line.split() for line in str(result.stderr).splitlines())
        return tuple(sorted(words[2] for words in lines if words[:2] == ["[GNUPG:]", "ENC_TO"]))

    def _stream(
        self,
        method: str,
        chunks: Iterable[bytes],
        sink: Callable[[bytes], object],
        how: Mapping[str, Any],
        reference: str,
    ) -> None:
        # A client of its own, as its callback belongs to this one stream; a new one would ask gpg for its version again.
        gpg, flow = copy.copy(self._gpg), _Flow(chunks, sink)
        gpg.buffer_size = BLOCK_BYTES
        gpg.on_data = flow.take
        try:
            result = getattr(gpg, method)(flow, **how)
        except OSError as error:
            # gpg has ended and no longer reads: its own words say why.
            if flow.failure is None:
                raise PermanentError(
                    reference, "gpg ended before the end of the data", hint="Read gpg's words above."
                ) from error
            result = None
        if flow.failure is not None:
            raise flow.failure
        if result is None or result.returncode != 0 or not result.ok:
            raise PermanentError(
                reference,
                f"gpg ended with {getattr(result, 'returncode', None)}: {_reason(result)}",
                hint="What was written so far is not a whole message; the step leaves nothing of it behind.",
            )

    def _client(self) -> Any:
        import gnupg

        class WideGpg(gnupg.GPG):  # type: ignore[misc]
            def _open_subprocess(self, args: Sequence[str], passphrase: bool = False) -> subprocess.Popen[bytes]:
                # By a method of its own, as there is no other way; were it renamed, streams would only be slower.
                process: subprocess.Popen[bytes] = super()._open_subprocess(args, passphrase)
                for pipe in filter(None, (process.stdin, process.stdout)):
                    with contextlib.suppress(OSError):  # where the user has too many such pipes already
                        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
                return process

        # Our errors carry gpg's words; its own lines would alarm where a refusal is what is asked for.
        logging.getLogger("gnupg").setLevel(logging.CRITICAL)
        environment = {"PATH": os.environ.get("PATH", os.defpath), "HOME": str(self.home), "LC_ALL": "C.UTF-8"}
        # --no-options: not the settings of whoever runs the worker. Nothing is fetched from a key server.
        options = ["--no-options", "--no-auto-key-retrieve", "--no-auto-key-locate"]
        try:
            return WideGpg(gnupghome=str(self.home), env=environment, options=options, encoding="utf-8")
        except (OSError, ValueError) as error:
            raise PermanentError(
                "openpgp-missing",
                f"gpg can't be run on this worker: {excerpt(str(error))}",
                hint="Install the Debian package gnupg in the workers' image.",
            ) from error

    def _unprotected(self) -> bool:
        """Return whether the private key signs without a passphrase; the file of the agent does not tell."""
        # python-gnupg hands an empty passphrase on as the first line of the data.
        result = self._gpg.sign(b"\nx", passphrase="", detach=True, clearsign=False)
        return bool(result.data)


@dataclass(frozen=True)
class SigningKey:
    """A private key inside gpg and the passphrase that opens it."""

    fingerprint: str
    passphrase: str

    def __repr__(self) -> str:
        return f"SigningKey({self.fingerprint})"


@dataclass(frozen=True)
class DecryptionKey:
    """A recipient's private key inside gpg and the passphrase that opens it, if it has one."""

    fingerprint: str
    passphrase: str | None

    def __repr__(self) -> str:
        return f"DecryptionKey({self.fingerprint})"


class _Flow:
    """A stream through gpg as python-gnupg wants it: a file to read and a callback; keeps the first error of either."""

    def __init__(self, chunks: Iterable[bytes], sink: Callable[[bytes], object]) -> None:
        self._chunks: Iterator[bytes] = iter(chunks)
        self._sink = sink
        self.failure: BaseException | None = None

    def read(self, _size: int) -> bytes:
        if self.failure is not None:
            return b""
        try:
            # An empty chunk would be taken for the end.
            return next((chunk for chunk in self._chunks if chunk), b"")
        except BaseException as error:  # noqa: BLE001 (raised in the thread that waits for gpg)
            self.failure = self.failure or error
            return b""

    def take(self, block: bytes) -> bool:
        if block and self.failure is None:
            try:
                self._sink(block)
            except BaseException as error:  # noqa: BLE001 (the same)
                self.failure = self.failure or error
        return False  # python-gnupg would keep every block otherwise


def memory_folder(environment: Mapping[str, str]) -> Path:
    """Return a writable folder that never reaches a disk.

    :raises PermanentError: ``openpgp-no-memory-folder``.
    """
    candidates = [Path(name) for name in (environment.get("XDG_RUNTIME_DIR"), "/dev/shm") if name]
    kinds = _mounts()
    for folder in candidates:
        if folder.is_dir() and os.access(folder, os.W_OK) and _kind_of(folder.resolve(), kinds) in _MEMORY:
            return folder
    raise PermanentError(
        "openpgp-no-memory-folder",
        f"none of {', '.join(map(str, candidates))} is a writable tmpfs; the signing key must not touch a disk",
        hint="Mount a tmpfs on /dev/shm in the workers, or set XDG_RUNTIME_DIR to one.",
    )


def _mounts() -> dict[Path, str]:
    text = Path("/proc/self/mounts").read_text(encoding="utf-8")
    return {Path(words[1]): words[2] for words in (line.split() for line in text.splitlines())}


def _kind_of(folder: Path, kinds: Mapping[Path, str]) -> str:
    return next((kinds[path] for path in (folder, *folder.parents) if path in kinds), "")


def _no_room(why: str) -> TransientError:
    return TransientError(
        "openpgp-no-room",
        f"gpg's home can't be written: {why}",
        hint="Look at the room and the inodes of the memory-backed folder, /dev/shm or XDG_RUNTIME_DIR; then run the step again.",
    )


def sweep(folder: Path) -> None:
    """Remove the homes of hooks whose process is gone: killed, they could not do it themselves."""
    for home in folder.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError), (home / _LOCK).open("r") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove(home)


def _remove(home: Path) -> None:
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        subprocess.run(
            ("gpgconf", "--homedir", str(home), "--kill", "gpg-agent"),
            env={"PATH": os.environ.get("PATH", os.defpath), "HOME": str(home)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=10,
            check=False,
        )
    # An agent that did not listen notices that its home is gone, and ends.
    shutil.rmtree(home, ignore_errors=True)


def _key(entry: Mapping[str, Any]) -> Key:
    subkeys = entry.get("subkey_info", {})
    usable = [
        str(key_id)
        for key_id, info in {entry["keyid"]: entry, **subkeys}.items()
        if "e" in str(info.get("cap", "")) and str(info.get("trust", "")) not in ("e", "r", "i", "d")
    ]
    ends = [
        _moment(info.get("expires")) for key_id, info in {entry["keyid"]: entry, **subkeys}.items() if key_id in usable
    ]
    primary_ends = _moment(entry.get("expires"))
    # A key opens and closes as long as it and one of its subkeys live.
    last = None if None in ends else max((end for end in ends if end), default=None)
    return Key(
        fingerprint=str(entry["fingerprint"]),
        validity=str(entry["trust"]),
        capabilities=str(entry["cap"]),
        encryption_key_ids=tuple(sorted(usable)),
        expires_at=min((end for end in (primary_ends, last) if end is not None), default=None),
        signs_until=_signs_until(entry),
    )


def _signs_until(entry: Mapping[str, Any]) -> datetime | None:
    """Return when the last of a key that can sign ends; None: never."""
    able = [info for info in (entry, *entry.get("subkey_info", {}).values()) if "s" in str(info.get("cap", ""))]
    # One that has ended counts only where no other is left.
    living = [info for info in able if str(info.get("trust", "")) not in ("e", "r", "i", "d")] or able
    ends = [_moment(info.get("expires")) for info in living]
    last = None if None in ends else max((end for end in ends if end), default=None)
    return min((end for end in (_moment(entry.get("expires")), last) if end is not None), default=None)


def _moment(text: object) -> datetime | None:
    return datetime.fromtimestamp(int(str(text)), UTC) if text else None


def _reason(result: Any) -> str:
    """Return gpg's own words without its status lines."""
    lines = str(getattr(result, "stderr", "")).splitlines()
    return excerpt(" ".join(line for line in lines if not line.startswith("[GNUPG:]")) or "no reason given")
