"""The result certificate: a short-lived TLS leaf of a study's own CA that carries the attestation result.

The EAR sits in the id-pe-cmw extension (RFC 9999) and is signed by the same CA key, so that it can be logged and
shown apart from the certificate. Reading checks that the leaf's key is the key that was attested: a certificate for
another key, or with the result of another enclave, is refused.
"""

from __future__ import annotations

import hmac
import re
from dataclasses import dataclass

from secfl.attestation import ear
from secfl.attestation.ear import EAR_PROFILE, AttestationResult
from secfl.crypto import strict_json
from secfl.crypto.encoding import from_base64url, to_base64url
from secfl.crypto.signing import PublicKey, SigningKey
from secfl.crypto.x509 import (
    Authority,
    LeafProfile,
    Usage,
    Validity,
    check_leaf,
    issue_leaf,
    make_ca,
    unverified_public_key,
)
from secfl.errors import EncodingError, VerificationError

__all__ = ["ID_PE_CMW", "ResultCertificate", "issue_result", "make_study_ca", "service_dns_name", "verify_result"]

ID_PE_CMW = "1.3.6.1.5.5.7.1.35"
_CMW_TYPE = f'application/eat+jwt; eat_profile="{EAR_PROFILE}"'
_CMW_RESULTS = 8
"""The CMW indicator bit for attestation results (RFC 9999)."""
_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\Z")
_UTF8STRING = 0x0C
_CLOCK_SKEW = 5
"""Seconds that a peer's clock may be behind."""


@dataclass(frozen=True, slots=True)
class ResultCertificate:
    """What `verify_result` returns: the key, its names and the result that vouches for it."""

    der: bytes
    public: PublicKey
    dns: tuple[str, ...]
    not_after: int
    result: AttestationResult


def service_dns_name(service: str, study: str) -> str:
    """The DNS name of a service, `<service>.<study>.secfl`.

    A study name with slashes becomes one label a part, innermost first.

    Raises:
        EncodingError: `certificate.name_invalid` when a part is no DNS label.
    """
    labels = [service, *reversed(study.split("/")), "secfl"]
    if not all(_LABEL.match(label) for label in labels):
        raise EncodingError("certificate.name_invalid", "service and study names must be DNS labels", actual=service)
    return ".".join(labels)


def make_study_ca(key: SigningKey, *, study: str, validity: Validity) -> Authority:
    """Make the CA of one study; its P-256 key signs the leaves and the results.

    Raises:
        EncodingError: `certificate.name_invalid`.
    """
    return make_ca(key, name=f"{study} study CA"[:64], validity=validity)


def issue_result(authority: Authority, public: PublicKey, result: AttestationResult, *, dns: tuple[str, ...]) -> bytes:
    """Issue a leaf for the attested TLS key, valid exactly as long as the result.

    Args:
        dns: names of the leaf, `service_dns_name` first.

    Raises:
        EncodingError: as `issue_leaf` and `ear.issue`.
        VerificationError: `ear.key_mismatch` when the key is not the attested one.
    """
    _require_attested(public, result)
    record = strict_json.encode([_CMW_TYPE, to_base64url(ear.issue(result, authority.key).encode()), _CMW_RESULTS])
    profile = LeafProfile(
        common_name=dns[0][:64],
        validity=Validity(result.issued_at - _CLOCK_SKEW, result.expires_at),
        dns=dns,
        usages=frozenset({Usage.SERVER, Usage.CLIENT}),
        extensions={ID_PE_CMW: _utf8_string(record)},
    )
    return issue_leaf(authority, public, profile)


def verify_result(
    leaf: bytes, *, authority: bytes, now: int, usage: Usage, name: str | None = None
) -> ResultCertificate:
    """Return the attestation result in a leaf of the pinned study CA.

    Raises:
        EncodingError: `certificate.malformed`, `ear.malformed` or another code of the decoders.
        VerificationError: as `check_leaf` and `ear.verify`, or `ear.missing`, `ear.key_mismatch`.
        FreshnessError: as `check_leaf` and `ear.verify`.
    """
    checked = check_leaf(leaf, authority=authority, now=now, usage=usage, name=name)
    extension = checked.extensions.get(ID_PE_CMW)
    if extension is None:
        raise VerificationError("ear.missing", "the certificate carries no attestation result")
    record = strict_json.decode(_read_utf8_string(extension), max_bytes=2 * ear.MAX_TOKEN_BYTES)
    if not isinstance(record, list) or len(record) != 3 or record[0] != _CMW_TYPE or record[2] != _CMW_RESULTS:
        raise EncodingError("ear.malformed", "the CMW record is not an attestation result of this profile")
    result = ear.verify(_token(record[1]), key=unverified_public_key(authority), now=now)
    _require_attested(checked.public, result)
    return ResultCertificate(leaf, checked.public, checked.dns, checked.validity.not_after, result)


def _token(value: object) -> str:
    if not isinstance(value, str):
        raise EncodingError("ear.malformed", "the CMW record holds no token")
    try:
        return from_base64url(value).decode("ascii")
    except UnicodeDecodeError as error:
        raise EncodingError("ear.malformed", "the token is not ASCII") from error


def _require_attested(public: PublicKey, result: AttestationResult) -> None:
    if not hmac.compare_digest(bytes.fromhex(public.key_id), result.tls_spki_digest):
        raise VerificationError("ear.key_mismatch", "the result vouches for another TLS key")


def _utf8_string(content: bytes) -> bytes:
    size = len(content)
    if size < 0x80:
        return bytes([_UTF8STRING, size]) + content
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes([_UTF8STRING, 0x80 | len(length)]) + length + content


def _read_utf8_string(der: bytes) -> bytes:
    for head in (2, 3, 4, 5):
        if _utf8_string(der[head:]) == der:
            return der[head:]
    raise EncodingError("ear.malformed", "the extension is not a DER UTF8String")
