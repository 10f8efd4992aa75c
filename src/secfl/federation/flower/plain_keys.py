"""Throw-away keys of the plain layout: a root, one loopback server certificate, one node key a site."""

from __future__ import annotations

import datetime as dt
import ipaddress
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

__all__ = ["PlainKeys", "make_keys"]

_VALID = dt.timedelta(days=8)


@dataclass(frozen=True, slots=True)
class PlainKeys:
    """Files of a plain federation.

    Attributes:
        root: PEM root certificate; its private key is never written.
        certificate: PEM certificate for 127.0.0.1 and localhost.
        private_key: its PEM key.
        node_private: OpenSSH private key file of each site.
        node_public: OpenSSH public key text of each site.
    """

    root: Path
    certificate: Path
    private_key: Path
    node_private: dict[str, Path]
    node_public: dict[str, str]


def make_keys(directory: Path, sites: Sequence[str]) -> PlainKeys:
    """Draw all keys and write them, readable by the owner only."""
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    root_key, server_key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    now = dt.datetime.now(dt.UTC) - dt.timedelta(minutes=5)
    root_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "SECFL plain layout")])
    base = x509.CertificateBuilder().issuer_name(root_name).not_valid_before(now).not_valid_after(now + _VALID)
    root = (
        base.subject_name(root_name)
        .public_key(root_key.public_key())
        .serial_number(x509.random_serial_number())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(root_key, hashes.SHA256())
    )
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.IPv4Address("127.0.0.1"))]
    certificate = (
        base.subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")]))
        .public_key(server_key.public_key())
        .serial_number(x509.random_serial_number())
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(root_key, hashes.SHA256())
    )
    keys = PlainKeys(directory / "root.pem", directory / "server.pem", directory / "server.key", {}, {})
    keys.root.write_bytes(root.public_bytes(serialization.Encoding.PEM))
    keys.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    _write_private(keys.private_key, server_key, serialization.PrivateFormat.PKCS8)
    for site in sites:
        node_key = ec.generate_private_key(ec.SECP256R1())
        keys.node_private[site] = directory / f"{site}.node"
        _write_private(keys.node_private[site], node_key, serialization.PrivateFormat.OpenSSH)
        keys.node_public[site] = (
            node_key.public_key()
            .public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
            .decode()
        )
    return keys


def _write_private(path: Path, key: ec.EllipticCurvePrivateKey, form: serialization.PrivateFormat) -> None:
    content = key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
