"""Kinds of secrets. All are generated: a policy is read by every party, so a value written into it is none."""

from __future__ import annotations

import ipaddress
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from secfl.policy.fields import Closed, Duration, Name, refuse, text_type, unique

__all__ = ["AsciiSecret", "AuthoritySecret", "BinarySecret", "CertificateSecret", "PrivateKeySecret", "Secret"]

_DNS = text_type(
    r"dns:(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?)(?:\.[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?)*",
    "policy.alternative_name",
    '"dns:" and a host name in lower case, or "ip:" and an address',
)


def _alternative_name(value: str) -> str:
    if not value.startswith("ip:"):
        return _DNS(value)
    try:
        canonical = str(ipaddress.ip_address(value.removeprefix("ip:")))
    except ValueError:
        canonical = ""
    if f"ip:{canonical}" != value:
        raise refuse("policy.alternative_name", '"ip:" and an address in its usual form', "correct the address")
    return value


CommonName = Annotated[
    str,
    AfterValidator(text_type("[A-Za-z0-9](?:[A-Za-z0-9 ._-]{0,62}[A-Za-z0-9])?", "policy.common_name", "a plain name")),
]
AlternativeName = Annotated[str, AfterValidator(_alternative_name)]


class BinarySecret(Closed):
    """Random bytes."""

    name: Name
    kind: Literal["binary"]
    size: Annotated[int, Field(ge=16, le=4096)]


class AsciiSecret(Closed):
    """Random letters and digits; 20 of them hold 119 bits."""

    name: Name
    kind: Literal["ascii"]
    size: Annotated[int, Field(ge=20, le=4096)]


class PrivateKeySecret(Closed):
    """A private key; its public half can be had by format."""

    name: Name
    kind: Literal["private-key"]
    key_type: Literal["P-256", "P-384", "Ed25519"]


class AuthoritySecret(Closed):
    """A self-signed certificate of an authority that issues leaves."""

    name: Name
    kind: Literal["x509-ca"]
    private_key: Name
    common_name: CommonName
    valid_for: Duration = 3650 * 86400


class CertificateSecret(Closed):
    """A leaf certificate."""

    name: Name
    kind: Literal["x509"]
    private_key: Name
    issuer: Name
    common_name: CommonName
    san: Annotated[tuple[AlternativeName, ...], Field(min_length=1, max_length=32), AfterValidator(unique)]
    endpoint: Literal["server", "client"]
    valid_for: Duration


Secret = Annotated[
    BinarySecret | AsciiSecret | PrivateKeySecret | AuthoritySecret | CertificateSecret, Field(discriminator="kind")
]
