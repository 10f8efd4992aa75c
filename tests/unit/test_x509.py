"""Certificates of one-level authorities."""

from __future__ import annotations

import warnings
from datetime import UTC, datetime
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256, SHA384
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from secfl.crypto.signing import PublicKey, SigningKey
from secfl.crypto.x509 import (
    MAX_CERTIFICATE_BYTES,
    Authority,
    LeafProfile,
    Usage,
    Validity,
    check_leaf,
    from_pem,
    issue_leaf,
    make_ca,
    to_pem,
    unverified_public_key,
)
from secfl.errors import EncodingError, FreshnessError, SecflError, VerificationError

NOW = 1_790_000_000
PERIOD = Validity(NOW, NOW + 3600)
CA = make_ca(SigningKey.generate_p256(), name="test CA", validity=Validity(NOW - 10, NOW + 86400))
KEY = SigningKey.generate_p256()
PROFILE = LeafProfile("trainer", PERIOD, dns=("trainer.heart.secfl",), ips=("127.0.0.1", "::1"))


def check(leaf: bytes, **changes: Any) -> Any:
    """Check a leaf with good arguments, changed as given."""
    good: dict[str, Any] = {"authority": CA.certificate, "now": NOW, "usage": Usage.SERVER}
    return check_leaf(leaf, **good | changes)


def code_of(leaf: bytes, **changes: Any) -> tuple[type[SecflError], str]:
    """Class and code of the refusal."""
    with pytest.raises(SecflError) as caught:
        check(leaf, **changes)
    return type(caught.value), caught.value.code


def test_an_issued_leaf_is_checked_and_says_what_it_was_issued_with() -> None:
    """Key, names, period and extensions survive."""
    profile = LeafProfile("trainer", PERIOD, dns=("a.secfl",), ips=("10.0.0.1",), extensions={"1.2.3.4": b"\x04\x01x"})
    leaf = check(issue_leaf(CA, KEY.public, profile), name="a.secfl")
    assert (leaf.public, leaf.common_name, leaf.validity) == (KEY.public, "trainer", PERIOD)
    assert (leaf.dns, leaf.ips, leaf.extensions) == (("a.secfl",), ("10.0.0.1",), {"1.2.3.4": b"\x04\x01x"})


def test_an_ed25519_leaf_key_is_possible() -> None:
    """A person's key can be certified too."""
    key = SigningKey.generate()
    assert check(issue_leaf(CA, key.public, PROFILE)).public == key.public


@pytest.mark.parametrize("name", ["trainer.heart.secfl", "127.0.0.1", "::1"])
def test_each_alternative_name_is_accepted(name: str) -> None:
    """DNS names and addresses are found."""
    assert name in (*check(issue_leaf(CA, KEY.public, PROFILE), name=name).dns, *PROFILE.ips)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"name": "other.heart.secfl"}, (VerificationError, "certificate.name")),
        ({"name": "trainer"}, (VerificationError, "certificate.name")),
        ({"usage": Usage.CLIENT}, (VerificationError, "certificate.usage")),
        ({"now": NOW - 1}, (FreshnessError, "certificate.not_yet_valid")),
        ({"now": NOW + 3601}, (FreshnessError, "certificate.expired")),
        ({"now": NOW + 90000}, (FreshnessError, "certificate.expired")),
    ],
)
def test_another_name_use_or_time_is_refused(changes: dict[str, Any], expected: tuple[type[SecflError], str]) -> None:
    """Each property of the caller's question has its own code."""
    profile = LeafProfile("trainer", PERIOD, dns=PROFILE.dns, usages=frozenset({Usage.SERVER}))
    assert code_of(issue_leaf(CA, KEY.public, profile), **changes) == expected


def test_a_leaf_of_another_authority_is_refused() -> None:
    """An authority of the same name with another key is another authority."""
    other = make_ca(SigningKey.generate_p256(), name="test CA", validity=Validity(NOW - 10, NOW + 86400))
    assert code_of(issue_leaf(other, KEY.public, PROFILE)) == (VerificationError, "certificate.issuer")


def test_ev_20_a_leaf_is_no_authority_and_an_authority_no_leaf() -> None:
    """A leaf cannot be pinned as CA, issue leaves, or be replaced by the CA certificate itself."""
    leaf = issue_leaf(CA, KEY.public, PROFILE)
    below = issue_leaf(Authority(KEY, leaf), SigningKey.generate_p256().public, PROFILE)
    assert code_of(below, authority=leaf) == (VerificationError, "certificate.issuer")
    assert code_of(below) == (VerificationError, "certificate.issuer")
    assert code_of(CA.certificate) == (VerificationError, "certificate.form")


def by_hand(*extensions: tuple[x509.ExtensionType, bool], algorithm: SHA256 | SHA384) -> bytes:
    """A leaf of the test CA with any extensions."""
    issuer = x509.load_der_x509_certificate(CA.certificate)
    builder = (
        x509.CertificateBuilder()
        .subject_name(issuer.subject)
        .issuer_name(issuer.subject)
        .public_key(KEY.private.public_key())
        .serial_number(7)
        .not_valid_before(datetime.fromtimestamp(NOW, UTC))
        .not_valid_after(datetime.fromtimestamp(NOW + 60, UTC))
    )
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical=critical)
    return builder.sign(CA.key.private, algorithm).public_bytes(Encoding.DER)


CONSTRAINTS = (x509.BasicConstraints(ca=False, path_length=None), True)
USAGE = (
    x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    ),
    True,
)
EXTENDED = (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False)
NAMES = (x509.SubjectAlternativeName([x509.DNSName("a")]), False)
UNKNOWN = (x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3"), b"\x05\x00"), True)
GOOD = (CONSTRAINTS, USAGE, EXTENDED, NAMES)


@pytest.mark.parametrize(
    "extensions",
    [(), GOOD[1:], (GOOD[0], *GOOD[2:]), (*GOOD[:2], NAMES), GOOD[:3], (*GOOD, UNKNOWN)],
    ids=["none", "no constraints", "no usage", "no extended usage", "no names", "unknown critical"],
)
def test_ev_20_a_leaf_of_another_form_is_refused(extensions: tuple[tuple[x509.ExtensionType, bool], ...]) -> None:
    """Every required extension must be there, and no unknown critical one."""
    assert check(by_hand(*GOOD, algorithm=SHA256())).dns == ("a",)
    assert code_of(by_hand(*extensions, algorithm=SHA256())) == (VerificationError, "certificate.form")


def test_another_signature_algorithm_is_refused() -> None:
    """Only ECDSA with SHA-256."""
    assert code_of(by_hand(*GOOD, algorithm=SHA384())) == (VerificationError, "certificate.form")


def test_any_flipped_bit_of_a_leaf_is_refused() -> None:
    """No bit can change unnoticed, not even in the count of unused bits before a signature that ends in a zero."""
    leaf = issue_leaf(CA, KEY.public, PROFILE)
    while leaf[-1] & 1:
        leaf = issue_leaf(CA, KEY.public, PROFILE)
    with warnings.catch_warnings(action="ignore"):
        for bit in range(8 * len(leaf)):
            changed = bytearray(leaf)
            changed[bit // 8] ^= 1 << bit % 8
            with pytest.raises(SecflError):
                check(bytes(changed))


def test_trailing_bytes_and_oversized_certificates_are_refused() -> None:
    """One certificate is exactly its DER bytes."""
    leaf = issue_leaf(CA, KEY.public, PROFILE)
    for bad in (leaf + b"\0", b"", bytes(MAX_CERTIFICATE_BYTES + 1)):
        assert code_of(bad) == (EncodingError, "certificate.malformed")


def test_pem_holds_exactly_one_certificate() -> None:
    """The text form gives the DER bytes back; none or two are refused."""
    pem = to_pem(CA.certificate)
    assert from_pem(pem) == CA.certificate
    for bad in (b"", pem + pem, b"x" * 200_000):
        with pytest.raises(EncodingError, match=r"certificate\.malformed"):
            from_pem(bad)


def test_the_key_of_a_certificate_can_be_read_unverified() -> None:
    """The key of a pinned certificate is read as a public key."""
    assert unverified_public_key(CA.certificate) == CA.key.public
    assert isinstance(unverified_public_key(issue_leaf(CA, KEY.public, PROFILE)), PublicKey)


def test_senseless_requests_are_refused() -> None:
    """Empty periods, nameless leaves and impossible names are errors at issue."""
    with pytest.raises(ValueError, match="ends after"):
        Validity(NOW, NOW)
    with pytest.raises(ValueError, match="alternative name"):
        issue_leaf(CA, KEY.public, LeafProfile("x", PERIOD))
    with pytest.raises(EncodingError, match=r"certificate\.name_invalid"):
        issue_leaf(CA, KEY.public, LeafProfile("x", PERIOD, ips=("not an address",)))
    with pytest.raises(EncodingError, match=r"certificate\.name_invalid"):
        make_ca(KEY, name="x" * 65, validity=PERIOD)
