"""Real gpg: keys that are refused, signatures, streams; and what stays of it afterwards, which is nothing."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from nephoran_maintenance.domain.openpgp_keys import Key, PinnedKey
from nephoran_maintenance.errors import PermanentError
from nephoran_maintenance.hooks.openpgp import PIPE_BYTES, OpenPgpHook, Passphrase, SigningKey, memory_folder, sweep
from tests.unit.openpgp_keys import PASSPHRASE, SIGNING, KeyMaker, plain

BLOCKS = [b"first", b"", b"x" * 3_000_000, b"last"]


def now() -> datetime:
    return datetime.now(UTC)


def children() -> list[str]:
    lists = Path(f"/proc/{os.getpid()}/task").glob("*/children")
    return [pid for found in lists for pid in found.read_text(encoding="utf-8").split()]


def about(pid: str) -> list[bytes]:
    """Return what others can read of a process: its command line and its environment."""
    try:
        return [Path(f"/proc/{pid}/{name}").read_bytes() for name in ("cmdline", "environ")]
    except OSError:
        return []


def agents() -> set[str]:
    """Return the homes of all agents that run."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if words[0].endswith(b"gpg-agent"):
            found.add(b" ".join(words).decode())
    return found


@pytest.fixture
def pgp() -> Iterator[OpenPgpHook]:
    with OpenPgpHook() as hook:
        yield hook


@pytest.fixture
def signing_key(pgp: OpenPgpHook, keys: KeyMaker, monkeypatch: pytest.MonkeyPatch) -> SigningKey:
    monkeypatch.setenv("AIRFLOW_CONN_OPENPGP_SIGNING", keys.signing_connection())
    return pgp.import_signing_key(SIGNING)


def encrypted(pgp: OpenPgpHook, to: list[Key] | Passphrase) -> bytes:
    taken: list[bytes] = []
    pgp.encrypt(BLOCKS, taken.append, to)
    return b"".join(taken)


# ---------------------------------------------------------------------------------------------------------- recipients


def test_each_recipient_can_open_what_was_encrypted_and_the_worker_can_not(pgp: OpenPgpHook, keys: KeyMaker) -> None:
    recipients = pgp.import_recipients([keys.operations, keys.escrow], now())
    data = encrypted(pgp, recipients)
    assert b"x" * 64 not in data
    assert plain(keys, data) == b"".join(BLOCKS)
    assert set(pgp.recipients_of(data[:4096])) == {key_id for key in recipients for key_id in key.encryption_key_ids}
    with pytest.raises(PermanentError) as error:
        pgp.decrypt([data], lambda block: None)
    assert error.value.reference == "openpgp-decryption-failed"


def test_aes_256_and_no_compression_of_its_own(pgp: OpenPgpHook, keys: KeyMaker) -> None:
    data = encrypted(pgp, pgp.import_recipients([keys.operations], now()))
    packets = keys.gpg("--list-packets", "--show-session-key", data=data).decode()
    assert "compressed packet" not in packets
    status = keys.gpg("--status-fd", "1", "--output", "/dev/null", "--decrypt", data=data).decode()
    assert "DECRYPTION_INFO 2 9" in status, "integrity-protected (2) AES256 (9)"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        pytest.param("expired", "has expired", id="expired"),
        pytest.param("revoked", "is revoked", id="revoked"),
        pytest.param("only_signs", "no living subkey for encryption", id="no subkey for encryption"),
    ],
)
def test_refuses_a_recipient_whose_key_can_not_be_encrypted_to(
    name: str, expected: str, pgp: OpenPgpHook, keys: KeyMaker
) -> None:
    pin: PinnedKey = getattr(keys, name)
    with pytest.raises(PermanentError, match=expected) as error:
        pgp.import_recipients([keys.operations, pin], now())
    assert error.value.reference == "openpgp-key-unusable"
    assert pin.name in error.value.message


def test_refuses_a_key_that_is_not_the_pinned_one(pgp: OpenPgpHook, keys: KeyMaker) -> None:
    swapped = PinnedKey("escrow", keys.escrow.fingerprint, keys.operations.armored)
    both = PinnedKey("escrow", keys.escrow.fingerprint, keys.escrow.armored + keys.operations.armored)
    for pin in (swapped, both, PinnedKey("escrow", keys.escrow.fingerprint, "no key")):
        with pytest.raises(PermanentError) as error:
            pgp.import_recipients([pin], now())
        assert error.value.reference == "openpgp-key-not-pinned"


def test_refuses_to_encrypt_to_nobody(pgp: OpenPgpHook) -> None:
    with pytest.raises(PermanentError) as error:
        pgp.import_recipients([], now())
    assert error.value.reference == "openpgp-no-recipients"
    with pytest.raises(PermanentError) as error:
        encrypted(pgp, [])
    assert error.value.reference == "openpgp-no-recipients"


def test_says_when_a_key_ends(pgp: OpenPgpHook, keys: KeyMaker) -> None:
    (key,) = pgp.import_recipients([keys.operations], now())
    assert key.expires_at is None
    (key,) = pgp.import_pinned([keys.expired])
    assert key.expires_at == datetime(2026, 1, 2, tzinfo=UTC) + timedelta(seconds=key.expires_at.second)


# ---------------------------------------------------------------------------------------------------------- passphrase


def test_a_passphrase_opens_it_and_stands_in_no_command_line_and_no_environment(
    pgp: OpenPgpHook, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = "correct horse battery staple"
    monkeypatch.setenv("AIRFLOW_CONN_SOMETHING", "another-secret")
    seen: list[bytes] = []

    def blocks() -> Iterator[bytes]:
        yield b"a"
        end = time.monotonic() + 20
        # Between fork and exec the child still has the words of this process.
        while not any(b"--symmetric" in text for text in seen) and time.monotonic() < end:
            seen[:] = [text for pid in children() for text in about(pid)]
        yield b"b"

    taken: list[bytes] = []
    pgp.encrypt(blocks(), taken.append, Passphrase(secret))
    assert any(b"--symmetric" in text for text in seen), "the child was not seen"
    assert not [text for text in seen if secret.encode() in text or b"another-secret" in text]
    opened: list[bytes] = []
    pgp.decrypt([b"".join(taken)], opened.append, secret)
    assert b"".join(opened) == b"ab"
    with pytest.raises(PermanentError):
        pgp.decrypt([b"".join(taken)], opened.append, "wrong")
    assert secret not in repr(Passphrase(secret))


# ------------------------------------------------------------------------------------------------------------- streams


def test_streams_through_wide_pipes(pgp: OpenPgpHook, keys: KeyMaker) -> None:
    """With narrow ones a backup takes a tenth longer, and nothing else tells that python-gnupg opens them otherwise."""
    sizes: list[int] = []

    def blocks() -> Iterator[bytes]:
        for file in Path("/proc/self/fd").iterdir():
            with contextlib.suppress(OSError):
                sizes.append(fcntl.fcntl(int(file.name), fcntl.F_GETPIPE_SZ))
        yield b"x"

    pgp.encrypt(blocks(), lambda block: None, pgp.import_recipients([keys.operations], now()))
    assert sizes.count(PIPE_BYTES) >= 2


def test_an_error_of_the_source_stops_the_stream_and_comes_back_as_it_is(pgp: OpenPgpHook, keys: KeyMaker) -> None:
    def blocks() -> Iterator[bytes]:
        yield b"x" * 2_000_000
        raise ValueError("the source broke")

    recipients = pgp.import_recipients([keys.operations], now())
    with pytest.raises(ValueError, match="the source broke"):
        pgp.encrypt(blocks(), lambda block: None, recipients)


def test_an_error_of_the_sink_stops_the_source(pgp: OpenPgpHook, keys: KeyMaker) -> None:
    produced = 0

    def blocks() -> Iterator[bytes]:
        nonlocal produced
        for _ in range(1000):
            produced += 1
            yield os.urandom(1_000_000)

    def sink(block: bytes) -> None:
        raise OSError("the store broke")

    recipients = pgp.import_recipients([keys.operations], now())
    with pytest.raises(OSError, match="the store broke"):
        pgp.encrypt(blocks(), sink, recipients)
    assert produced < 20, "it went on into nothing"


def test_gpg_that_fails_is_named_with_its_own_words(pgp: OpenPgpHook) -> None:
    unknown = Key("0" * 40, "-", "E", ("0" * 16,), None)
    with pytest.raises(PermanentError) as error:
        encrypted(pgp, [unknown])
    assert error.value.reference == "openpgp-encryption-failed"


@pytest.mark.parametrize("change", ["flip", "cut"])
def test_changed_or_cut_ciphertext_is_not_opened(change: str, pgp: OpenPgpHook) -> None:
    data = bytearray(encrypted(pgp, Passphrase("a passphrase")))
    if change == "flip":
        data[len(data) // 2] ^= 1
    else:
        del data[-100:]
    with pytest.raises(PermanentError) as error:
        pgp.decrypt([bytes(data)], lambda block: None, "a passphrase")
    assert error.value.reference == "openpgp-decryption-failed"


# ---------------------------------------------------------------------------------------------------------- signatures


def test_a_signature_is_of_these_bytes_and_of_a_pinned_signer(
    pgp: OpenPgpHook, keys: KeyMaker, signing_key: SigningKey
) -> None:
    signature = pgp.sign(b"content", signing_key)
    assert signature.startswith("-----BEGIN PGP SIGNATURE-----")
    with OpenPgpHook() as other:
        other.import_pinned([keys.signer, keys.operations])
        found = other.verify(b"content", signature, [keys.signer])
        assert found.fingerprint == keys.signer.fingerprint
        assert abs(found.signed_at - now()) < timedelta(minutes=1)
        for data, text, signers in (
            (b"Content", signature, [keys.signer]),
            (b"content", signature, [keys.operations]),
            (b"content", signature, []),
            (b"content", "", [keys.signer]),
            (b"content", signature.replace("A", "B"), [keys.signer]),
        ):
            with pytest.raises(PermanentError) as error:
                other.verify(data, text, signers)
            assert error.value.reference == "openpgp-signature-invalid"


def signed_then(keys: KeyMaker, pin: PinnedKey, then: str) -> str:
    signer = ("--local-user", pin.fingerprint, "--armor", "--detach-sign")
    return keys.gpg("--faked-system-time", then, *signer, data=b"x").decode()


def test_what_a_key_signed_before_its_end_goes_on_counting(pgp: OpenPgpHook, keys: KeyMaker) -> None:
    early = signed_then(keys, keys.expired, "20260101T060000")
    (key,) = pgp.import_pinned([keys.expired])
    assert key.signs_until == key.expires_at
    assert pgp.verify(b"x", early, [keys.expired]).signed_at == datetime(2026, 1, 1, 6, tzinfo=UTC)
    for data, signers in ((b"y", [keys.expired]), (b"x", [keys.signer])):
        with pytest.raises(PermanentError) as error:
            pgp.verify(data, early, signers)
        assert error.value.reference == "openpgp-signature-invalid"


def test_what_a_key_signed_after_its_end_or_before_it_was_revoked_does_not_count(
    pgp: OpenPgpHook, keys: KeyMaker
) -> None:
    pin = keys.make("ended", encrypts=False, options=("--faked-system-time", "20260101T000000"))
    early = signed_then(keys, pin, "20260101T060000")
    keys.gpg("--faked-system-time", "20260101T070000", "--quick-set-expire", pin.fingerprint, "10d")
    late = signed_then(keys, pin, "20260105T060000")
    pgp.import_pinned([pin])
    pgp.verify(b"x", early, [pin])
    with pytest.raises(PermanentError) as error:
        pgp.verify(b"x", late, [pin])
    assert error.value.reference == "openpgp-signature-invalid"
    pgp.import_pinned([keys.revoke(pin)])
    with pytest.raises(PermanentError) as error:
        pgp.verify(b"x", early, [pin])
    assert error.value.reference == "openpgp-signature-invalid"


def test_a_wrong_passphrase_is_named(pgp: OpenPgpHook, signing_key: SigningKey) -> None:
    with pytest.raises(PermanentError) as error:
        pgp.sign(b"content", SigningKey(signing_key.fingerprint, "wrong"))
    assert error.value.reference == "openpgp-signing-failed"
    assert PASSPHRASE not in str(error.value) + repr(signing_key)


def test_a_signing_key_without_a_passphrase_is_refused(
    pgp: OpenPgpHook, keys: KeyMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    for passphrase in ("", "not-that-of-the-key"):
        monkeypatch.setenv("AIRFLOW_CONN_OPENPGP_SIGNING", keys.signing_connection(keys.only_signs, passphrase))
        with pytest.raises(PermanentError, match="without a passphrase") as error:
            pgp.import_signing_key(SIGNING)
        assert error.value.reference == "openpgp-signing-key-invalid"


def test_a_worker_with_the_private_key_of_a_recipient_is_refused(
    pgp: OpenPgpHook, keys: KeyMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipients = pgp.import_recipients([keys.make("both", passphrase=PASSPHRASE)], now())
    pin = keys.pin("both", recipients[0].fingerprint)
    monkeypatch.setenv("AIRFLOW_CONN_OPENPGP_SIGNING", keys.signing_connection(pin))
    with pytest.raises(PermanentError, match="private key of a recipient"):
        pgp.import_signing_key(SIGNING, recipients)


def test_a_public_key_is_no_signing_key(pgp: OpenPgpHook, keys: KeyMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    for text in (keys.operations.armored, ""):
        value = f'{{"conn_type": "generic", "password": "x", "extra": {{"private_key": {text!r}}}}}'.replace("'", '"')
        monkeypatch.setenv("AIRFLOW_CONN_OPENPGP_SIGNING", value)
        with pytest.raises(PermanentError, match="no OpenPGP private key"):
            pgp.import_signing_key(SIGNING)


def test_gpg_is_started_no_more_often_than_there_is_something_to_do(
    keys: KeyMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each start costs a small backup some 10 ms: its version, two imports of keys and two lists, a trial, the two uses."""
    monkeypatch.setenv("AIRFLOW_CONN_OPENPGP_SIGNING", keys.signing_connection())
    started: list[str] = []
    start = subprocess.Popen.__init__

    def noted(self: Any, args: Any, *rest: Any, **named: Any) -> None:
        started.append(str(args[0]))
        start(self, args, *rest, **named)

    pins = [keys.operations, keys.escrow]
    monkeypatch.setattr(subprocess.Popen, "__init__", noted)
    with OpenPgpHook() as pgp:
        recipients = pgp.import_recipients(pins, now())
        signing = pgp.import_signing_key(SIGNING, recipients)
        pgp.take_in([keys.signer])
        encrypted(pgp, recipients)
        pgp.sign(b"content", signing)
        assert started.count("gpg") == 9


# -------------------------------------------------------------------------------------------------------- what is left


def test_nothing_is_left_no_home_and_no_agent(keys: KeyMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_OPENPGP_SIGNING", keys.signing_connection())
    with OpenPgpHook() as pgp:
        home = pgp.home
        assert home.stat().st_mode & 0o777 == 0o700
        assert home.is_relative_to(memory_folder(os.environ))
        pgp.sign(b"content", pgp.import_signing_key(SIGNING))
        assert [line for line in agents() if str(home) in line], "the test does not see the agent"
    assert not home.exists()
    assert not [line for line in agents() if str(home) in line]


def test_what_a_killed_process_left_is_taken_away_by_the_next(keys: KeyMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_OPENPGP_SIGNING", keys.signing_connection())
    program = (
        "import sys\n"
        "from nephoran_maintenance.hooks.openpgp import OpenPgpHook\n"
        "with OpenPgpHook() as pgp:\n"
        "    pgp.import_signing_key('openpgp_signing')\n"
        "    print(pgp.home, flush=True)\n"
        "    sys.stdin.read()\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3] / "plugins")}
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True
    ) as child:
        assert child.stdout
        home = Path(next(line for line in child.stdout if line.startswith("/")).strip())
        sweep(home.parent)
        assert home.exists(), "the home of a living process was taken away"
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert [line for line in agents() if str(home) in line], "the test does not see the agent"
    with OpenPgpHook():
        assert not home.exists()
    assert not [line for line in agents() if str(home) in line]


def test_a_home_that_is_being_made_is_not_swept_away_by_another_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several steps of a backup start in the same second, and each sweeps first."""
    lock = fcntl.flock

    def late(file: object, operation: int) -> None:
        if not operation & fcntl.LOCK_NB:
            sweep(memory_folder(os.environ))
        lock(file, operation)  # type: ignore[arg-type]

    monkeypatch.setattr(fcntl, "flock", late)
    with OpenPgpHook() as pgp:
        assert pgp.home.is_dir()


def test_a_worker_without_memory_backed_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nephoran_maintenance.hooks.openpgp._mounts", lambda: {Path("/"): "ext4"})
    with pytest.raises(PermanentError) as error:
        memory_folder({"XDG_RUNTIME_DIR": str(tmp_path)})
    assert error.value.reference == "openpgp-no-memory-folder"


@pytest.mark.parametrize("room", ["size=1m,nr_inodes=1", "size=1m,nr_inodes=3", "size=8k", "size=20k"])
def test_a_memory_folder_that_is_full_is_named_and_not_taken_for_a_bad_key(
    room: str, keys: KeyMaker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pin = keys.operations
    program = (
        "import os, sys\n"
        "from datetime import UTC, datetime\n"
        "from nephoran_maintenance.domain.openpgp_keys import PinnedKey\n"
        "from nephoran_maintenance.errors import MaintenanceError\n"
        "from nephoran_maintenance.hooks.openpgp import OpenPgpHook\n"
        "try:\n"
        "    with OpenPgpHook() as pgp:\n"
        f"        pgp.import_recipients([PinnedKey({pin.name!r}, {pin.fingerprint!r}, {pin.armored!r})], datetime.now(UTC))\n"
        "except MaintenanceError as error:\n"
        "    print(error.reference, os.listdir(os.environ['XDG_RUNTIME_DIR']))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3] / "plugins")}
    environment["XDG_RUNTIME_DIR"] = str(tmp_path)
    mount = f'mount -t tmpfs -o {room} none "$1" && exec "$2" -c "$3"'
    apart = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount, "sh", str(tmp_path), sys.executable]
    done = subprocess.run([*apart, program], env=environment, capture_output=True, text=True, check=False)
    if "unshare" in done.stderr or "mount" in done.stderr:
        pytest.skip(f"no small folder can be mounted here: {done.stderr.strip()}")
    assert done.stdout.splitlines()[-1] == "openpgp-no-room []"


def test_a_worker_without_gpg_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PermanentError) as error, OpenPgpHook():
        pass
    assert error.value.reference == "openpgp-missing"
