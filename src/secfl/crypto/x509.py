"""Certificates of one-level authorities: a CA, the leaves it issues, and the check of a leaf against that CA.

The check accepts only what `issue_leaf` writes: P-256 or Ed25519 keys, ECDSA with SHA-256, basic constraints, key
usage and extended key usage present, no unknown critical extension. A leaf is never trusted through a chain found in
a message: the caller names the one CA certificate it has pinned.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum
from functools import lru_cache

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID, NameOID, SignatureAlgorithmOID

from secfl.crypto.signing import PublicKey, SigningKey
from secfl.errors import EncodingError, FreshnessError, VerificationError

__all__ = [
    "MAX_CERTIFICATE_BYTES",
    "PARSE_ERRORS",
    "Authority",
    "LeafProfile",
    "Usage",
    "Validity",
    "VerifiedLeaf",
    "check_leaf",
    "from_pem",
    "issue_leaf",
    "make_ca",
    "to_pem",
    "touch",
    "unverified_public_key",
]

MAX_CERTIFICATE_BYTES = 64 * 1024
"""Largest certificate, in bytes: a leaf that carries an attestation result needs about 6 KiB."""
PARSE_ERRORS = (
    ValueError,
    TypeError,
    OverflowError,
    UnsupportedAlgorithm,
    x509.AttributeNotFound,
    x509.DuplicateExtension,
    x509.ExtensionNotFound,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)
"""What `cryptography` raises for malformed certificates and lists; several do not derive from ValueError, and some
only appear when a member is read, so `touch` reads them all at once."""
_KNOWN_CRITICAL = frozenset(
    {
        ExtensionOID.BASIC_CONSTRAINTS,
        ExtensionOID.KEY_USAGE,
        ExtensionOID.EXTENDED_KEY_USAGE,
        ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
    }
)


class Usage(Enum):
    """What a leaf may be used for."""

    SERVER = "server"
    CLIENT = "client"


_EKU = {Usage.SERVER: ExtendedKeyUsageOID.SERVER_AUTH, Usage.CLIENT: ExtendedKeyUsageOID.CLIENT_AUTH}


@dataclass(frozen=True, slots=True)
class Validity:
    """A closed period in Unix seconds."""

    not_before: int
    not_after: int

    def __post_init__(self) -> None:
        """Refuse an empty period.

        Raises:
            ValueError: the period ends before it begins.
        """
        if self.not_after <= self.not_before:
            raise ValueError("a certificate ends after it begins")


@dataclass(frozen=True, slots=True)
class Authority:
    """A CA: its private key and its DER certificate."""

    key: SigningKey
    certificate: bytes


@dataclass(frozen=True, slots=True)
class LeafProfile:
    """What a leaf certificate says besides its key.

    Attributes:
        common_name: the subject's CN, at most 64 characters.
        validity: the period.
        dns: DNS names of the subject alternative name.
        ips: IP addresses of the subject alternative name, as text.
        usages: extended key usages.
        extensions: further non-critical extensions, dotted OID to DER value.
    """

    common_name: str
    validity: Validity
    dns: tuple[str, ...] = ()
    ips: tuple[str, ...] = ()
    usages: frozenset[Usage] = frozenset({Usage.SERVER, Usage.CLIENT})
    extensions: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class VerifiedLeaf:
    """What `check_leaf` returns."""

    der: bytes
    public: PublicKey
    common_name: str
    dns: tuple[str, ...]
    ips: tuple[str, ...]
    validity: Validity
    extensions: Mapping[str, bytes]


def to_pem(der: bytes) -> bytes:
    """Write one certificate as PEM.

    Raises:
        EncodingError: `certificate.malformed`.
    """
    return _load(der).public_bytes(Encoding.PEM)


def from_pem(pem: bytes) -> bytes:
    """Read exactly one PEM certificate and give its DER form.

    Raises:
        EncodingError: `certificate.malformed`.
    """
    if len(pem) > 2 * MAX_CERTIFICATE_BYTES:
        raise EncodingError("certificate.malformed", "the certificate file is too large")
    try:
        certificates = [touch(certificate) for certificate in x509.load_pem_x509_certificates(pem)]
    except PARSE_ERRORS as error:
        raise EncodingError("certificate.malformed", "not a PEM certificate") from error
    if len(certificates) != 1:
        raise EncodingError("certificate.malformed", "expected exactly one certificate", actual=len(certificates))
    return certificates[0].public_bytes(Encoding.DER)


def touch(certificate: x509.Certificate) -> x509.Certificate:
    """Read every member of a certificate that is parsed lazily, so that malformed and second encodings show now.

    Raises:
        Exception: one of `PARSE_ERRORS`.
    """
    members = ("version", "serial_number", "subject", "issuer", "not_valid_before_utc", "not_valid_after_utc")
    for member in (*members, "signature_hash_algorithm", "extensions"):
        getattr(certificate, member)
    certificate.public_key()
    # The parser takes a BIT STRING with unused bits for the same signature: a second encoding of one certificate.
    if not certificate.public_bytes(Encoding.DER).endswith(b"\0" + certificate.signature):
        raise ValueError("the signature has unused bits")
    return certificate


def unverified_public_key(der: bytes) -> PublicKey:
    """The key in a certificate that nobody checked yet, such as a pinned or a just received one.

    Raises:
        EncodingError: `certificate.malformed`.
    """
    return PublicKey(_spki(_load(der)))


def make_ca(key: SigningKey, *, name: str, validity: Validity) -> Authority:
    """Make a self-signed CA that issues leaves only (path length 0).

    Raises:
        EncodingError: `certificate.name_invalid`.
    """
    subject = _name(name)
    public = key.private.public_key()
    certificate = (
        _builder(subject, subject, validity)
        .public_key(public)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(ca=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .sign(key.private, SHA256())
    )
    return Authority(key, certificate.public_bytes(Encoding.DER))


def issue_leaf(authority: Authority, public: PublicKey, profile: LeafProfile) -> bytes:
    """Issue a DER leaf certificate for a public key.

    Raises:
        EncodingError: `certificate.name_invalid`, or `certificate.malformed` for the authority's own certificate.
        ValueError: the profile has no name or no usage.
    """
    if not (profile.dns or profile.ips) or not profile.usages:
        raise ValueError("a leaf has at least one alternative name and one usage")
    issuer = _load_issuer(authority.certificate)
    key = load_der_public_key(public.spki)
    builder = (
        _builder(_name(profile.common_name), issuer.subject, profile.validity)
        .public_key(key)  # type: ignore[arg-type]  # PublicKey holds only Ed25519 and P-256
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(ca=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([_EKU[u] for u in Usage if u in profile.usages]), critical=False)
        .add_extension(_alternative_names(profile), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)  # type: ignore[arg-type]
        .add_extension(_authority_identifier(issuer), critical=False)
    )
    for oid, value in sorted(profile.extensions.items()):
        builder = builder.add_extension(x509.UnrecognizedExtension(x509.ObjectIdentifier(oid), value), critical=False)
    return builder.sign(authority.key.private, SHA256()).public_bytes(Encoding.DER)


def check_leaf(leaf: bytes, *, authority: bytes, now: int, usage: Usage, name: str | None = None) -> VerifiedLeaf:
    """Return what a leaf says when the pinned authority issued it, it is in force, and it is for this usage and name.

    Args:
        authority: DER of the one CA certificate that the caller trusts.
        name: a DNS name or IP address that the leaf must carry; None when the caller compares another property.

    Raises:
        EncodingError: `certificate.malformed`.
        VerificationError: `certificate.issuer`, `certificate.form`, `certificate.usage` or `certificate.name`.
        FreshnessError: `certificate.expired` or `certificate.not_yet_valid`.
    """
    issuer, subject = _load_issuer(authority), _load(leaf)
    # 1. The pinned CA signed it: nothing below is believed before.
    _check_issuer(issuer, subject)
    # 2. Both are in force.
    for certificate in (issuer, subject):
        _check_validity(certificate, now)
    # 3. It is a leaf of our form, for this use (EV-20: a CA as a leaf, wrong usage, unknown critical extension).
    extensions = _check_form(subject, usage)
    # 4. It names the peer that the caller wants.
    dns, ips = _names(extensions)
    if name is not None and name not in dns and name not in ips:
        raise VerificationError("certificate.name", "the certificate does not carry this name", expected=name)
    return VerifiedLeaf(
        der=leaf,
        public=PublicKey(_spki(subject)),
        common_name=_common_name(subject),
        dns=dns,
        ips=ips,
        validity=_validity(subject),
        extensions={
            extension.oid.dotted_string: extension.value.value
            for extension in extensions
            if isinstance(extension.value, x509.UnrecognizedExtension)
        },
    )


def _check_issuer(issuer: x509.Certificate, subject: x509.Certificate) -> None:
    try:
        constraints = issuer.extensions.get_extension_for_class(x509.BasicConstraints).value
        usage = issuer.extensions.get_extension_for_class(x509.KeyUsage).value
    except PARSE_ERRORS as error:
        raise VerificationError("certificate.issuer", "the pinned authority is not a CA") from error
    if not constraints.ca or not usage.key_cert_sign:
        raise VerificationError("certificate.issuer", "the pinned authority is not a CA")
    for certificate in (issuer, subject):
        if certificate.signature_algorithm_oid != SignatureAlgorithmOID.ECDSA_WITH_SHA256:
            raise VerificationError("certificate.form", "only ECDSA with SHA-256 signatures are accepted")
    try:
        subject.verify_directly_issued_by(issuer)
    except (InvalidSignature, *PARSE_ERRORS):
        raise VerificationError("certificate.issuer", "not issued by the pinned authority") from None


def _check_validity(certificate: x509.Certificate, now: int) -> None:
    validity = _validity(certificate)
    if now < validity.not_before:
        raise FreshnessError("certificate.not_yet_valid", "the certificate is not valid yet", now=now)
    if now > validity.not_after:
        raise FreshnessError("certificate.expired", "the certificate has expired", now=now)


def _check_form(subject: x509.Certificate, usage: Usage) -> x509.Extensions:
    try:
        extensions = subject.extensions
        constraints = extensions.get_extension_for_class(x509.BasicConstraints).value
        key_usage = extensions.get_extension_for_class(x509.KeyUsage).value
        extended = extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except PARSE_ERRORS as error:
        raise VerificationError("certificate.form", "a required extension is missing or unreadable") from error
    if constraints.ca or key_usage.key_cert_sign or not key_usage.digital_signature:
        raise VerificationError("certificate.form", "not a leaf certificate")
    if any(extension.critical and extension.oid not in _KNOWN_CRITICAL for extension in extensions):
        raise VerificationError("certificate.form", "an unknown critical extension")
    if _EKU[usage] not in list(extended):
        raise VerificationError("certificate.usage", "the certificate is not for this use", expected=usage.value)
    return extensions


def _names(extensions: x509.Extensions) -> tuple[tuple[str, ...], tuple[str, ...]]:
    try:
        names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except PARSE_ERRORS as error:
        raise VerificationError("certificate.form", "no alternative name") from error
    dns = tuple(names.get_values_for_type(x509.DNSName))
    ips = tuple(str(address) for address in names.get_values_for_type(x509.IPAddress))
    return dns, ips


def _load(der: bytes) -> x509.Certificate:
    if len(der) > MAX_CERTIFICATE_BYTES:
        raise EncodingError("certificate.malformed", "the certificate is too large")
    try:
        certificate = touch(x509.load_der_x509_certificate(der))
        PublicKey(_spki(certificate))
    except (*PARSE_ERRORS, EncodingError) as error:
        raise EncodingError("certificate.malformed", "not a DER certificate of a supported key") from error
    return certificate


_load_issuer = lru_cache(maxsize=16)(_load)  # the same few authorities issue and check everything


def _spki(certificate: x509.Certificate) -> bytes:
    return certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _validity(certificate: x509.Certificate) -> Validity:
    start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return Validity(int(start.timestamp()), int(end.timestamp()))


def _common_name(certificate: x509.Certificate) -> str:
    values = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    if len(values) != 1 or not isinstance(values[0].value, str):
        raise VerificationError("certificate.form", "the subject has no single common name")
    return values[0].value


def _name(common_name: str) -> x509.Name:
    try:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    except ValueError as error:
        raise EncodingError("certificate.name_invalid", "a common name has 1 to 64 characters") from error


def _alternative_names(profile: LeafProfile) -> x509.SubjectAlternativeName:
    try:
        names: list[x509.GeneralName] = [x509.DNSName(name) for name in profile.dns]
        names += [x509.IPAddress(ipaddress.ip_address(address)) for address in profile.ips]
    except ValueError as error:
        raise EncodingError("certificate.name_invalid", "not a DNS name or IP address") from error
    return x509.SubjectAlternativeName(names)


def _authority_identifier(issuer: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    identifier = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier)


def _builder(subject: x509.Name, issuer: x509.Name, validity: Validity) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.fromtimestamp(validity.not_before, UTC))
        .not_valid_after(datetime.fromtimestamp(validity.not_after, UTC))
    )


def _key_usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        key_cert_sign=ca,
        crl_sign=ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
