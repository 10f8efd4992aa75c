"""The forms in which a secret's value is put into text: one function a format, as `placeholders.FORMATS` lists them."""

from __future__ import annotations

import base64

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_der_private_key,
)

from secfl.crypto.encoding import to_base64url
from secfl.crypto.x509 import to_pem
from secfl.errors import StateError
from secfl.policy.model import Policy
from secfl.policy.secret_kinds import AuthoritySecret, CertificateSecret, PrivateKeySecret
from secfl.policy.secret_values import SecretValues

__all__ = ["format_secret"]


def format_secret(policy: Policy, values: SecretValues, name: str, chosen: str) -> bytes:
    """Write a secret in a format.

    Raises:
        StateError: `secret.no_value`, `secret.kind_changed`, `secret.no_format` or `policy.unknown_secret`.
    """
    secret = policy.secret(name)
    stored = values[name]
    if stored.kind != secret.kind:
        # Values of another version of the policy: never read one kind as another.
        raise StateError("secret.kind_changed", "the stored value is of another kind", name=name)
    if isinstance(secret, PrivateKeySecret):
        return _key_format(stored.value, chosen)
    if isinstance(secret, AuthoritySecret | CertificateSecret):
        return _certificate_format(policy, values, secret, chosen)
    return _bytes_format(stored.value, chosen)


def _bytes_format(value: bytes, chosen: str) -> bytes:
    match chosen:
        case "bin" | "plain":
            return value
        case "hex":
            return value.hex().encode()
        case "base64":
            return base64.b64encode(value)
        case "base64url":
            return to_base64url(value).encode()
    raise _no_format(chosen)


def _key_format(der: bytes, chosen: str) -> bytes:
    key = load_der_private_key(der, None)
    if not isinstance(key, Ed25519PrivateKey | EllipticCurvePrivateKey):
        raise _no_format(chosen)
    match chosen:
        case "der":
            return der
        case "pem":
            return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        case "openssh":
            return key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
        case "public-pem":
            return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        case "public-openssh":
            return key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    raise _no_format(chosen)


def _certificate_format(
    policy: Policy, values: SecretValues, secret: AuthoritySecret | CertificateSecret, chosen: str
) -> bytes:
    der = values[secret.name].value
    match chosen:
        case "crt":
            return to_pem(der)
        case "crt-der":
            return der
    if isinstance(secret, CertificateSecret):
        match chosen:
            case "chain":
                return to_pem(der) + format_secret(policy, values, secret.issuer, "crt")
            case "privatekey":
                return format_secret(policy, values, secret.private_key, "pem")
    raise _no_format(chosen)


def _no_format(chosen: str) -> StateError:
    return StateError("secret.no_format", "the secret has no such format", format=chosen)
