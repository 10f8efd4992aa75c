"""Endorsements: collateral whose signatures, roles, dates and content hold under a trust anchor.

The general verifier accepts TCB information signed by any key under the root, even one that only certifies a
platform. Here every signer has its role, every list is in force, and every TCB level has its full vector, before
a quote is looked at.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

from secfl.crypto import strict_json
from secfl.crypto.encoding import from_hex
from secfl.crypto.x509 import PARSE_ERRORS, touch
from secfl.errors import EncodingError, FreshnessError, VerificationError
from secfl.tee.anchor import TrustAnchor
from secfl.tee.collateral import Collateral

__all__ = ["PCK_CA_ROLES", "Endorsements", "PemChain", "check_collateral", "common_name"]

PCK_CA_ROLES = ("SGX PCK Platform CA", "SGX PCK Processor CA")
_TCB_ROLES = ("SGX TCB Signing",)
_COMPONENTS = 16
_KNOWN_CHAINS = 64
_MAX_LEVELS = 256
_DATE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ\Z")
_FMSPC = re.compile(r"[0-9A-Fa-f]{12}\Z")
_KINDS = {("SGX", "QE"): "sgx", ("TDX", "TD_QE"): "tdx"}
_VERSIONS = {"SGX": 3, "TDX": 3, "QE": 2, "TD_QE": 2}


@dataclass(frozen=True, slots=True)
class Endorsements:
    """What `check_collateral` returns.

    Attributes:
        collateral: the verified document.
        kind: the kind of evidence it is for, `sgx` or `tdx`.
        fmspc: the platform family.
        evaluation_number: the lower TCB evaluation data number of its two parts.
        valid_from: when its last part came into force, Unix seconds.
        expires: when its first part expires, Unix seconds.
        pck_ca_spki: key of the CA whose platforms it covers.
        revoked: serial numbers of that CA's revoked certificates.
    """

    collateral: Collateral
    kind: str
    fmspc: bytes
    evaluation_number: int
    valid_from: int
    expires: int
    pck_ca_spki: bytes
    revoked: frozenset[int]


@dataclass(frozen=True, slots=True)
class PemChain:
    """Certificates in their one PEM spelling, issuer last."""

    certificates: tuple[x509.Certificate, ...]

    @classmethod
    def decode(cls, text: bytes, *, length: int) -> PemChain:
        """Read exactly `length` certificates and nothing else; one more line break at the end is the vendor's habit.

        Raises:
            EncodingError: `chain.malformed`.
        """
        return cls(_read_chain(text, length))


@lru_cache(maxsize=_KNOWN_CHAINS)
def _read_chain(text: bytes, length: int) -> tuple[x509.Certificate, ...]:
    # A machine shows the same chain in every quote; nothing but its bytes decides, and refusals are not kept.
    try:
        certificates = tuple(touch(certificate) for certificate in x509.load_pem_x509_certificates(text))
    except PARSE_ERRORS as error:
        raise EncodingError("chain.malformed", "not a PEM certificate chain") from error
    canonical = b"".join(certificate.public_bytes(Encoding.PEM) for certificate in certificates)
    if len(certificates) != length or text.rstrip(b"\n") != canonical.rstrip(b"\n"):
        raise EncodingError("chain.malformed", "not exactly the expected certificates", expected=length)
    return certificates


def common_name(certificate: x509.Certificate) -> str:
    """The subject's only common name, or an empty text."""
    values = [attribute.value for attribute in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    return values[0] if len(values) == 1 and isinstance(values[0], str) else ""


def check_collateral(collateral: Collateral, anchor: TrustAnchor, now: int) -> Endorsements:
    """Verify collateral under an anchor; do so before storing it and again with every quote.

    Raises:
        EncodingError: `chain.malformed`, `collateral.malformed`, `collateral.tcb_levels`, or a JSON code.
        VerificationError: `collateral.root`, `collateral.role`, `collateral.signature`, `collateral.revoked`,
            `collateral.crl` or `collateral.kind`.
        FreshnessError: `collateral.expired` or `collateral.not_yet_valid`.
    """
    dates = _Dates(now)
    # 1. Signers: issued by this very root, in their role, in force (a PCK key must not sign TCB information).
    tcb_signer = _signer(collateral.tcb_info_issuer_chain, anchor, _TCB_ROLES, dates)
    qe_signer = _signer(collateral.qe_identity_issuer_chain, anchor, _TCB_ROLES, dates)
    pck_ca = _signer(collateral.pck_crl_issuer_chain, anchor, PCK_CA_ROLES, dates)
    root = x509.load_der_x509_certificate(anchor.root_der)
    # 2. Revocation lists: signed by their issuer, in force; no signer is on them.
    root_revoked = _revoked(collateral.root_ca_crl, root, dates)
    if root_revoked & {certificate.serial_number for certificate in (tcb_signer, qe_signer, pck_ca)}:
        raise VerificationError("collateral.revoked", "a collateral signer or the platform CA is revoked")
    revoked = _revoked(collateral.pck_crl, pck_ca, dates)
    # 3. Signatures over the texts as received, before they are parsed.
    tcb_info = _signed(collateral.tcb_info, collateral.tcb_info_signature, tcb_signer)
    qe_identity = _signed(collateral.qe_identity, collateral.qe_identity_signature, qe_signer)
    # 4. Content.
    kind = _KINDS.get((_header(tcb_info, dates), _header(qe_identity, dates)))
    if kind is None:
        raise VerificationError("collateral.kind", "TCB information and QE identity are not of one kind")
    _check_levels(tcb_info, with_tdx=kind == "tdx")
    _check_versions(qe_identity.get("tcbLevels"))
    return Endorsements(
        collateral=collateral,
        kind=kind,
        fmspc=_fmspc(tcb_info),
        evaluation_number=min(_evaluation_number(tcb_info), _evaluation_number(qe_identity)),
        valid_from=dates.latest,
        expires=dates.earliest,
        pck_ca_spki=pck_ca.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
        revoked=revoked,
    )


class _Dates:
    # Checks periods against one point in time and remembers the latest start and the earliest end.

    def __init__(self, now: int) -> None:
        self._now = now
        self.latest = 0
        self.earliest = 2**62

    def check(self, start: datetime, end: datetime | None, what: str) -> None:
        if end is None:
            raise VerificationError("collateral.crl", f"{what} has no end")
        if self._now < start.timestamp():
            raise FreshnessError("collateral.not_yet_valid", f"{what} is dated in the future", now=self._now)
        if self._now > end.timestamp():
            raise FreshnessError(
                "collateral.expired", f"{what} has expired", hint="fetch new collateral", now=self._now
            )
        self.latest = max(self.latest, math.ceil(start.timestamp()))
        self.earliest = min(self.earliest, int(end.timestamp()))


def _signer(chain: str, anchor: TrustAnchor, roles: tuple[str, ...], dates: _Dates) -> x509.Certificate:
    signer, root = PemChain.decode(chain.encode(), length=2).certificates
    if root.public_bytes(Encoding.DER) != anchor.root_der:
        raise VerificationError("collateral.root", "the collateral ends in another root than the trust anchor")
    try:
        signer.verify_directly_issued_by(root)
        is_ca = signer.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (InvalidSignature, *PARSE_ERRORS):
        raise VerificationError("collateral.signature", "a collateral signer is not issued by the root") from None
    expected = [f"{anchor.vendor} {role}" for role in roles]
    if common_name(signer) not in expected or is_ca != (roles == PCK_CA_ROLES):
        raise VerificationError(
            "collateral.role", "a certificate has another role", expected=expected[0], actual=common_name(signer)
        )
    for certificate in (signer, root):
        dates.check(certificate.not_valid_before_utc, certificate.not_valid_after_utc, "a collateral certificate")
    return signer


def _revoked(der: bytes, issuer: x509.Certificate, dates: _Dates) -> frozenset[int]:
    try:
        crl = x509.load_der_x509_crl(der)
        authentic = crl.issuer == issuer.subject and crl.is_signature_valid(issuer.public_key())  # type: ignore[arg-type]
        serials = frozenset(entry.serial_number for entry in crl)
        start, end = crl.last_update_utc, crl.next_update_utc
    except PARSE_ERRORS as error:
        raise VerificationError("collateral.crl", "a revocation list is unreadable") from error
    if not authentic:
        raise VerificationError("collateral.crl", "a revocation list is not signed by its issuer")
    dates.check(start, end, "a revocation list")
    return serials


def _signed(text: str, signature: bytes, signer: x509.Certificate) -> dict[str, Any]:
    key = signer.public_key()
    if not isinstance(key, EllipticCurvePublicKey):
        raise VerificationError("collateral.signature", "a collateral signer has no ECDSA key")
    r, s = (int.from_bytes(half, "big") for half in (signature[:32], signature[32:]))
    try:
        key.verify(encode_dss_signature(r, s), text.encode(), ECDSA(SHA256()))
    except InvalidSignature:
        raise VerificationError("collateral.signature", "a collateral signature does not match") from None
    document = strict_json.decode_any(text.encode())
    if not isinstance(document, dict):
        raise _malformed("not an object")
    return document


def _header(document: dict[str, Any], dates: _Dates) -> str:
    kind = document.get("id")
    if not isinstance(kind, str) or document.get("version") != _VERSIONS.get(kind, -1):
        raise _malformed("an unknown kind or version")
    dates.check(_date(document.get("issueDate")), _date(document.get("nextUpdate")), f"the {kind} document")
    return kind


def _date(text: Any) -> datetime:
    if not isinstance(text, str) or not _DATE.match(text):
        raise _malformed("not a date")
    try:
        return datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    except ValueError as error:
        raise _malformed("not a date") from error


def _fmspc(tcb_info: dict[str, Any]) -> bytes:
    text = tcb_info.get("fmspc")
    if not isinstance(text, str) or not _FMSPC.match(text):
        raise _malformed("no platform family")
    return from_hex(text.lower(), size=6)


def _evaluation_number(document: dict[str, Any]) -> int:
    return _bounded(document.get("tcbEvaluationDataNumber"), 2**31)


def _check_levels(tcb_info: dict[str, Any], *, with_tdx: bool) -> None:
    # EV-24: full vectors only, at least one level, and no level that an earlier one hides.
    vectors = [_vector(level, with_tdx=with_tdx) for level in _levels(tcb_info.get("tcbLevels"))]
    for index, later in enumerate(vectors):
        if any(all(a >= b for a, b in zip(later, earlier, strict=True)) for earlier in vectors[:index]):
            raise EncodingError("collateral.tcb_levels", "TCB levels are not in descending order")
    modules = tcb_info.get("tdxModuleIdentities", []) if with_tdx else []
    if not isinstance(modules, list) or len(modules) > _MAX_LEVELS:
        raise _malformed("TDX modules are not a list")
    for module in modules:
        _check_versions(module.get("tcbLevels") if isinstance(module, dict) else None)


def _check_versions(levels: Any) -> None:
    versions = [_bounded(level["tcb"].get("isvsvn"), 2**16) for level in _levels(levels)]
    if versions != sorted(set(versions), reverse=True):
        raise EncodingError("collateral.tcb_levels", "TCB levels are not in descending order")


def _levels(levels: Any) -> list[dict[str, Any]]:
    if not isinstance(levels, list) or not 0 < len(levels) <= _MAX_LEVELS:
        raise EncodingError("collateral.tcb_levels", "no TCB levels, or too many")
    for level in levels:
        if not isinstance(level, dict) or not isinstance(level.get("tcb"), dict):
            raise EncodingError("collateral.tcb_levels", "a TCB level has no TCB")
        if not isinstance(level.get("tcbStatus"), str):
            raise EncodingError("collateral.tcb_levels", "a TCB level has no status")
    return levels


def _vector(level: dict[str, Any], *, with_tdx: bool) -> list[int]:
    tcb = level["tcb"]
    names = ("sgxtcbcomponents", "tdxtcbcomponents") if with_tdx else ("sgxtcbcomponents",)
    vector = [_bounded(tcb.get("pcesvn"), 2**16)]
    for name in names:
        components = tcb.get(name)
        if not isinstance(components, list) or len(components) != _COMPONENTS:
            raise EncodingError("collateral.tcb_levels", f"{name} has not 16 entries")
        vector += [_bounded(entry.get("svn") if isinstance(entry, dict) else None, 256) for entry in components]
    return vector


def _bounded(value: Any, limit: int) -> int:
    if type(value) is not int or not 0 <= value < limit:
        raise _malformed("a number is missing or out of range")
    return value


def _malformed(message: str) -> EncodingError:
    return EncodingError("collateral.malformed", message)
