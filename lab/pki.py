"""Make the lab's certificates and kubeconfigs: two authorities, serving and client certificates, all with P-256 keys."""

from __future__ import annotations

import base64
import ipaddress
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from lab.config import LabConfig

LIFETIME = timedelta(days=30)
"""A lab lives for hours; a month leaves room for a machine whose clock is off."""


@dataclass(frozen=True)
class KeyPair:
    """Hold a certificate and its key as PEM."""

    certificate: bytes
    key: bytes


class Authority:
    """Sign certificates with one CA."""

    def __init__(self, pair: KeyPair) -> None:
        self.pair = pair
        self._certificate = x509.load_pem_x509_certificate(pair.certificate)
        key = serialization.load_pem_private_key(pair.key, password=None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise TypeError("the lab's authorities have elliptic-curve keys")
        self._key = key

    @classmethod
    def create(cls, name: str) -> Authority:
        """Make a new self-signed authority."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = _subject(name, ())
        builder = _builder(subject, subject, key.public_key(), LIFETIME).add_extension(
            x509.BasicConstraints(ca=True, path_length=0), critical=True
        )
        builder = builder.add_extension(_usage(signs_certificates=True), critical=True)
        return cls(_pair(builder.sign(key, hashes.SHA256()), key))

    @classmethod
    def read(cls, folder: Path, name: str) -> Authority:
        """Return the authority saved under that name by ``write``."""
        return cls(KeyPair((folder / f"{name}.crt").read_bytes(), (folder / f"{name}.key").read_bytes()))

    def issue(
        self,
        common_name: str,
        *,
        organizations: Sequence[str] = (),
        server_names: Sequence[str] = (),
        lifetime: timedelta = LIFETIME,
    ) -> KeyPair:
        """Return a client certificate, also fit for serving when ``server_names`` (DNS names or addresses) are given.

        A negative ``lifetime`` gives a certificate that has expired, for tests.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        builder = _builder(_subject(common_name, organizations), self._certificate.subject, key.public_key(), lifetime)
        builder = builder.add_extension(_usage(signs_certificates=False), critical=True)
        purposes = [ExtendedKeyUsageOID.CLIENT_AUTH]
        if server_names:
            purposes.append(ExtendedKeyUsageOID.SERVER_AUTH)
            names = x509.SubjectAlternativeName([_general_name(name) for name in server_names])
            builder = builder.add_extension(names, critical=False)
        builder = builder.add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
        return _pair(builder.sign(self._key, hashes.SHA256()), key)


def write(folder: Path, name: str, pair: KeyPair) -> None:
    """Save ``<name>.crt`` and ``<name>.key`` (mode 0600)."""
    (folder / f"{name}.crt").write_bytes(pair.certificate)
    write_private(folder / f"{name}.key", pair.key)


def write_private(path: Path, content: bytes) -> None:
    """Write a file that nobody else can read, also not for a moment."""
    path.unlink(missing_ok=True)
    path.touch(mode=0o600)
    path.write_bytes(content)


def create_all(config: LabConfig, folder: Path) -> None:
    """Make every certificate, key and kubeconfig of the lab in ``folder``, and the administrator's kubeconfig."""
    folder.mkdir(parents=True, mode=0o700)
    authority = Authority.create(f"lab {config.name}")
    front_proxy = Authority.create(f"lab {config.name} front proxy")
    write(folder, "ca", authority.pair)
    write(folder, "front-proxy-ca", front_proxy.pair)
    write(folder, "front-proxy", front_proxy.issue("front-proxy-client"))
    signing_key = ec.generate_private_key(ec.SECP256R1())
    # The API server reads an EC key in this older form only.
    write_private(folder / "service-account.key", _key_pem(signing_key, serialization.PrivateFormat.TraditionalOpenSSL))
    (folder / "service-account.pub").write_bytes(
        signing_key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    names = ["localhost", "127.0.0.1", config.node_address, config.service_address("kubernetes")]
    names += ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"]
    write(folder, "apiserver", authority.issue("kube-apiserver", server_names=names))
    write(folder, "apiserver-kubelet", authority.issue("kube-apiserver-kubelet-client"))
    node = authority.issue(config.node_name, server_names=[config.node_name, config.node_address])
    write(folder, "kubelet", node)
    metrics_names = ["metrics-server.kube-system.svc", config.node_address]
    write(folder, "metrics-server", authority.issue("metrics-server", server_names=metrics_names))
    clients = {
        "admin": ("lab-admin", ["system:masters"]),
        "controller-manager": ("system:kube-controller-manager", []),
        "scheduler": ("system:kube-scheduler", []),
        "proxy": ("system:kube-proxy", []),
        "node": (f"system:node:{config.node_name}", ["system:nodes"]),
        "lab-services": ("lab-services", ["system:masters"]),
    }
    for name, (user, groups) in clients.items():
        client = authority.issue(user, organizations=groups)
        write(folder, name, client)
        write_private(folder / f"{name}.kubeconfig", kubeconfig(config, authority, client))
    write_private(config.kubeconfig, (folder / "admin.kubeconfig").read_bytes())


def kubeconfig(config: LabConfig, authority: Authority, client: KeyPair) -> bytes:
    """Return a kubeconfig (JSON, which is YAML) whose only context is the lab's."""
    name = config.context
    return json.dumps(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [
                {
                    "name": name,
                    "cluster": {
                        "server": config.kubernetes_url,
                        "certificate-authority-data": _base64(authority.pair.certificate),
                    },
                }
            ],
            "users": [
                {
                    "name": name,
                    "user": {
                        "client-certificate-data": _base64(client.certificate),
                        "client-key-data": _base64(client.key),
                    },
                }
            ],
            "contexts": [{"name": name, "context": {"cluster": name, "user": name}}],
            "current-context": name,
        },
        indent=1,
    ).encode()


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, lifetime: timedelta
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(min(now, now + lifetime) - timedelta(hours=1))
        .not_valid_after(now + lifetime)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _subject(common_name: str, organizations: Sequence[str]) -> x509.Name:
    attributes = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, name) for name in organizations]
    return x509.Name([*attributes, x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _pair(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> KeyPair:
    return KeyPair(certificate.public_bytes(serialization.Encoding.PEM), _key_pem(key))


def _key_pem(
    key: ec.EllipticCurvePrivateKey, form: serialization.PrivateFormat = serialization.PrivateFormat.PKCS8
) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()
