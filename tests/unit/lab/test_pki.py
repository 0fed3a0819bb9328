from __future__ import annotations

import json
import socket
import ssl
import threading
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509

from lab import config as lab_config
from lab.config import LabConfig
from lab.pki import Authority, KeyPair, create_all, kubeconfig, write


def names_of(pair: KeyPair) -> tuple[str, str]:
    subject = x509.load_pem_x509_certificate(pair.certificate).subject
    return subject.rfc4514_string(), subject.rdns[-1].rfc4514_string()


def test_certificates_are_accepted_by_a_real_tls_handshake(tmp_path: Path) -> None:
    authority = Authority.create("ca")
    write(tmp_path, "ca", authority.pair)
    write(tmp_path, "server", authority.issue("server", server_names=["127.0.0.1", "name.example"]))
    write(tmp_path, "client", authority.issue("client", organizations=["team"]))
    assert handshake(tmp_path) == (("organizationName", "team"), ("commonName", "client"))


def test_an_expired_client_is_refused(tmp_path: Path) -> None:
    authority = Authority.create("ca")
    write(tmp_path, "ca", authority.pair)
    write(tmp_path, "server", authority.issue("server", server_names=["127.0.0.1"]))
    write(tmp_path, "client", authority.issue("client", lifetime=timedelta(hours=-2)))
    with pytest.raises(ssl.SSLError, match="expired"):
        handshake(tmp_path)


def handshake(folder: Path) -> tuple[tuple[str, str], ...]:
    """Connect client to server over loopback; return the client's subject as the server sees it."""
    server_side = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(folder / "ca.crt"))
    server_side.load_cert_chain(folder / "server.crt", folder / "server.key")
    server_side.verify_mode = ssl.CERT_REQUIRED
    client_side = ssl.create_default_context(cafile=str(folder / "ca.crt"))
    client_side.load_cert_chain(folder / "client.crt", folder / "client.key")
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def connect() -> None:
            try:
                with (
                    socket.create_connection(listener.getsockname(), timeout=10) as raw,
                    client_side.wrap_socket(raw, server_hostname="127.0.0.1") as wrapped,
                ):
                    wrapped.recv(1)
            except OSError:
                pass  # the server's view is what the test looks at

        thread = threading.Thread(target=connect)
        thread.start()
        raw, _ = listener.accept()
        try:
            with raw, server_side.wrap_socket(raw, server_side=True) as wrapped:
                subject = wrapped.getpeercert()["subject"]  # type: ignore[index]
        finally:
            thread.join()
    return tuple(pair for part in subject for pair in part)


def test_writes_everything_privately(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lab_config, "PROJECT", tmp_path)
    config = LabConfig.named("demo")
    config.state.mkdir(parents=True)
    folder = config.state / "pki"
    create_all(config, folder)
    private = [*folder.glob("*.key"), *folder.glob("*.kubeconfig"), config.kubeconfig]
    assert len(private) > 10
    assert {path.stat().st_mode & 0o777 for path in private} == {0o600}
    assert (folder / "service-account.key").read_text(encoding="ascii").startswith("-----BEGIN EC PRIVATE KEY-----")
    node = KeyPair((folder / "node.crt").read_bytes(), b"")
    assert names_of(node) == ("CN=system:node:lab-demo,O=system:nodes", "CN=system:node:lab-demo")


def test_kubeconfig_leads_to_the_lab_and_nowhere_else() -> None:
    config = LabConfig.named("demo")
    authority = Authority.create("ca")
    content = json.loads(kubeconfig(config, authority, authority.issue("me")))
    assert [cluster["cluster"]["server"] for cluster in content["clusters"]] == [config.kubernetes_url]
    assert content["current-context"] == config.context
    assert [context["name"] for context in content["contexts"]] == [config.context]
