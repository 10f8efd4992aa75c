"""The simulated vendor: a root of its own, and under it what Intel's does: a platform CA, a TCB signer, lists.

Every certificate says that there is no hardware. The whole state is bytes in and bytes out, and secret: whoever holds
it makes evidence that everyone accepts who named this root.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from secfl.crypto import strict_json
from secfl.crypto.encoding import from_base64url, to_base64url
from secfl.crypto.signing import SigningKey
from secfl.crypto.x509 import Validity
from secfl.errors import EncodingError
from secfl.tee.anchor import SIMULATED_ORGANIZATION, TrustAnchor, simulated_anchor
from secfl.tee.collateral import Collateral
from secfl.tee.simulated.tcb import Statements, qe_identity, tcb_info

__all__ = ["COLLATERAL_SECONDS", "Issuer", "Revocations", "Vendor", "sign_text"]

COLLATERAL_SECONDS = 30 * 24 * 3600
"""How long collateral is valid, as Intel's."""
_CERTIFICATE_SECONDS = 10 * 365 * 24 * 3600
_BACKDATE_SECONDS = 300
"""Certificates and collateral begin a little earlier, for machines whose clocks are behind."""
_MAX_STATE = 64 * 1024
_ROLES = ("root", "pck_ca", "tcb_signer")


@dataclass(frozen=True, slots=True)
class Issuer:
    """A key and its certificate."""

    key: SigningKey
    certificate: x509.Certificate


@dataclass(frozen=True, slots=True)
class Revocations:
    """Serial numbers on the two lists."""

    by_root: frozenset[int] = frozenset()
    by_pck_ca: frozenset[int] = frozenset()


class Vendor:
    """The keys of a simulated vendor."""

    def __init__(self, root: Issuer, pck_ca: Issuer, tcb_signer: Issuer) -> None:
        """Take the three issuers."""
        self.root = root
        self.pck_ca = pck_ca
        self.tcb_signer = tcb_signer

    @classmethod
    def create(cls, now: int) -> Vendor:
        """Make a new vendor, with a root that nobody trusts yet."""
        validity = Validity(now - _BACKDATE_SECONDS, now + _CERTIFICATE_SECONDS)
        root_key = SigningKey.generate_p256()
        root = Issuer(root_key, _certificate(root_key, None, "Root CA", validity, ca=True))
        issuers = []
        for role, ca in (("PCK Platform CA", True), ("TCB Signing", False)):
            key = SigningKey.generate_p256()
            issuers.append(Issuer(key, _certificate(key, root, role, validity, ca=ca)))
        return cls(root, *issuers)

    @property
    def root_der(self) -> bytes:
        """The root certificate, to be given to whoever shall accept this vendor."""
        return self.root.certificate.public_bytes(Encoding.DER)

    def anchor(self) -> TrustAnchor:
        """The trust anchor, whose domain carries the root's fingerprint."""
        return simulated_anchor(self.root_der)

    def certify(
        self,
        key: SigningKey,
        *,
        now: int,
        extensions: Iterable[x509.UnrecognizedExtension],
        role: str = "PCK Certificate",
    ) -> bytes:
        """Issue a platform certificate and give its PEM chain, root last."""
        validity = Validity(now - _BACKDATE_SECONDS, now + _CERTIFICATE_SECONDS // 2)
        leaf = _certificate(key, self.pck_ca, role, validity, extensions=extensions)
        return _pem(leaf, self.pck_ca.certificate, self.root.certificate)

    def collateral(self, kind: str, now: int) -> Collateral:
        """Sign collateral for `sgx` or `tdx`, valid from now for 30 days."""
        return self.endorse(kind, Statements(issued=now - _BACKDATE_SECONDS, expires=now + COLLATERAL_SECONDS))

    def endorse(self, kind: str, statements: Statements, revocations: Revocations | None = None) -> Collateral:
        """Sign these statements and lists."""
        revoked = revocations if revocations is not None else Revocations()
        info, identity = tcb_info(kind, statements), qe_identity(kind, statements)
        signer_chain = _pem(self.tcb_signer.certificate, self.root.certificate).decode()
        return Collateral(
            pck_crl_issuer_chain=_pem(self.pck_ca.certificate, self.root.certificate).decode(),
            root_ca_crl=_crl(self.root, revoked.by_root, statements),
            pck_crl=_crl(self.pck_ca, revoked.by_pck_ca, statements),
            tcb_info_issuer_chain=signer_chain,
            tcb_info=info,
            tcb_info_signature=sign_text(self.tcb_signer.key, info),
            qe_identity_issuer_chain=signer_chain,
            qe_identity=identity,
            qe_identity_signature=sign_text(self.tcb_signer.key, identity),
        )

    def encode(self) -> bytes:
        """Write the whole state, private keys included."""
        issuers = (self.root, self.pck_ca, self.tcb_signer)
        return strict_json.encode(
            {
                role: {
                    "certificate": to_base64url(issuer.certificate.public_bytes(Encoding.DER)),
                    "key": issuer.key.to_pem().decode(),
                }
                for role, issuer in zip(_ROLES, issuers, strict=True)
            }
        )

    @classmethod
    def decode(cls, data: bytes) -> Vendor:
        """Read what `encode` wrote.

        Raises:
            EncodingError: `simulated.vendor_state`, or a JSON, base64 or key code.
        """
        document = strict_json.decode(data, max_bytes=_MAX_STATE)
        try:
            entries = [document[role] for role in _ROLES]
            issuers = [
                Issuer(
                    SigningKey.from_pem(entry["key"].encode()),
                    x509.load_der_x509_certificate(from_base64url(entry["certificate"])),
                )
                for entry in entries
            ]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise EncodingError("simulated.vendor_state", "not the state of a simulated vendor") from error
        return cls(*issuers)


def sign_text(key: SigningKey, text: str) -> bytes:
    """Sign a text with ECDSA and give the 64 raw bytes."""
    r, s = decode_dss_signature(key.sign(text.encode()))
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def _certificate(
    key: SigningKey,
    issuer: Issuer | None,
    role: str,
    validity: Validity,
    *,
    ca: bool = False,
    extensions: Iterable[x509.UnrecognizedExtension] = (),
) -> x509.Certificate:
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, SIMULATED_ORGANIZATION),
            x509.NameAttribute(NameOID.COMMON_NAME, f"Simulated SGX {role}"),
        ]
    )
    signer = issuer.key if issuer is not None else key
    public = key.private.public_key()
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer is not None else subject)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(_time(validity.not_before))
        .not_valid_after(_time(validity.not_after))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=(0 if issuer else 1) if ca else None), critical=True)
        .add_extension(_key_usage(ca=ca), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.private.public_key()), critical=False)
    )
    for extension in extensions:
        builder = builder.add_extension(extension, critical=False)
    return builder.sign(signer.private, SHA256())


def _crl(issuer: Issuer, serials: frozenset[int], statements: Statements) -> bytes:
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer.certificate.subject)
        .last_update(_time(statements.issued))
        .next_update(_time(statements.expires))
        .add_extension(x509.CRLNumber(1), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.key.private.public_key()), critical=False
        )
    )
    for serial in sorted(serials):
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(_time(statements.issued))
        builder = builder.add_revoked_certificate(entry.build())
    return builder.sign(issuer.key.private, SHA256()).public_bytes(Encoding.DER)


def _key_usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        content_commitment=not ca,
        key_cert_sign=ca,
        crl_sign=ca,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(*certificates: x509.Certificate) -> bytes:
    return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in certificates)


def _time(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
