"""Signed envelopes (DSSE): the signature covers the purpose and the exact bytes received, never a re-encoding.

Keys are named by the SHA-256 of their SubjectPublicKeyInfo, so one key has one name whatever file it came from
(PB-02). Ed25519 serves people and parties; ECDSA P-256 serves services, whose TLS key signs their requests.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import (
    ECDSA,
    SECP256R1,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_der_public_key,
    load_pem_private_key,
)

from secfl.crypto import strict_json
from secfl.crypto.encoding import from_base64url, to_base64url
from secfl.errors import AuthorizationError, EncodingError, VerificationError

__all__ = ["PublicKey", "SigningKey", "VerifiedPayload", "verify_envelope"]

_MAX_ENVELOPE = 32 * 1024 * 1024
_KNOWN_KEYS = 512
"""Parsed keys that are kept: the same few keys come with every request."""


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A verification key as DER SubjectPublicKeyInfo; Ed25519 or ECDSA P-256."""

    spki: bytes

    def __post_init__(self) -> None:
        """Refuse other algorithms and any second encoding of the same key.

        Raises:
            EncodingError: `key.unsupported`.
        """
        _load(self.spki)

    @property
    def key_id(self) -> str:
        """SHA-256 of the SubjectPublicKeyInfo, lower-case hex."""
        return hashlib.sha256(self.spki).hexdigest()

    def verify(self, message: bytes, signature: bytes) -> bytes:
        """Return the message when the signature is this key's.

        Raises:
            VerificationError: `signature.invalid`.
        """
        key = _load(self.spki)
        try:
            if isinstance(key, Ed25519PublicKey):
                key.verify(signature, message)
            else:
                key.verify(signature, message, ECDSA(SHA256()))
        except InvalidSignature:
            raise VerificationError("signature.invalid", "the signature does not match", key=self.key_id) from None
        return message


class SigningKey:
    """A private signing key, Ed25519 or ECDSA P-256."""

    def __init__(self, key: Ed25519PrivateKey | EllipticCurvePrivateKey) -> None:
        """Wrap a key of `cryptography`.

        Raises:
            EncodingError: `key.unsupported` for another curve.
        """
        self._key = key
        self.public = PublicKey(key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))

    @classmethod
    def generate(cls) -> SigningKey:
        """Make an Ed25519 key."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def generate_p256(cls) -> SigningKey:
        """Make an ECDSA P-256 key, for TLS."""
        return cls(generate_private_key(SECP256R1()))

    @classmethod
    def from_pem(cls, pem: bytes, *, password: bytes | None = None) -> SigningKey:
        """Read an (encrypted) PKCS#8 PEM file.

        Raises:
            EncodingError: `key.unreadable` or `key.unsupported`.
        """
        try:
            key = load_pem_private_key(pem, password)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            raise EncodingError("key.unreadable", "the private key cannot be read") from None
        if not isinstance(key, Ed25519PrivateKey | EllipticCurvePrivateKey):
            raise EncodingError("key.unsupported", "only Ed25519 and P-256 keys")
        return cls(key)

    @property
    def private(self) -> Ed25519PrivateKey | EllipticCurvePrivateKey:
        """The key of `cryptography`, for certificates and TLS."""
        return self._key

    def to_pem(self) -> bytes:
        """PKCS#8 PEM without encryption; for memory and for files inside encrypted storage only."""
        return self._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    def sign(self, message: bytes) -> bytes:
        """Sign bytes: raw Ed25519, or ECDSA with SHA-256 in DER."""
        if isinstance(self._key, Ed25519PrivateKey):
            return self._key.sign(message)
        return self._key.sign(message, ECDSA(SHA256()))

    def sign_envelope(self, purpose: str, payload: bytes) -> bytes:
        """Make a DSSE envelope with one signature."""
        return strict_json.encode(
            {
                "payload": to_base64url(payload),
                "payloadType": purpose,
                "signatures": [
                    {"keyid": self.public.key_id, "sig": to_base64url(self.sign(_pae(purpose, payload)))},
                ],
            }
        )


@dataclass(frozen=True, slots=True)
class VerifiedPayload:
    """What `verify_envelope` returns: the signed bytes and the key that signed them."""

    payload: bytes
    signer: PublicKey


def verify_envelope(envelope: bytes, *, purpose: str, keys: Iterable[PublicKey]) -> VerifiedPayload:
    """Open an envelope that one of `keys` signed for `purpose`.

    Raises:
        EncodingError: the envelope is malformed.
        AuthorizationError: `signature.unknown_key` when no given key has the signer's id.
        VerificationError: `signature.purpose` or `signature.invalid`.
    """
    document = strict_json.decode(envelope, max_bytes=_MAX_ENVELOPE)
    payload, stated, key_id, signature = _parts(document)
    if stated != purpose:
        raise VerificationError("signature.purpose", "signed for another purpose", expected=purpose, actual=stated)
    for key in keys:
        if key.key_id == key_id:
            key.verify(_pae(purpose, payload), signature)
            return VerifiedPayload(payload, key)
    raise AuthorizationError("signature.unknown_key", "the signing key is not one of the accepted keys", key=key_id)


@lru_cache(maxsize=_KNOWN_KEYS)
def _load(spki: bytes) -> Ed25519PublicKey | EllipticCurvePublicKey:
    try:
        key = load_der_public_key(spki)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise EncodingError("key.unsupported", "not a DER public key") from error
    if isinstance(key, Ed25519PublicKey | EllipticCurvePublicKey):
        good = isinstance(key, Ed25519PublicKey) or isinstance(key.curve, SECP256R1)
        if good and key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) == spki:
            return key
    raise EncodingError("key.unsupported", "only Ed25519 and P-256 keys in their one DER form")


def _parts(document: object) -> tuple[bytes, str, str, bytes]:
    bad = EncodingError("envelope.malformed", "not a signed envelope with exactly one signature")
    if not isinstance(document, dict) or set(document) != {"payload", "payloadType", "signatures"}:
        raise bad
    signatures = document["signatures"]
    if not isinstance(signatures, list) or len(signatures) != 1 or not isinstance(signatures[0], dict):
        raise bad
    if set(signatures[0]) != {"keyid", "sig"}:
        raise bad
    values = (document["payload"], document["payloadType"], signatures[0]["keyid"], signatures[0]["sig"])
    if not all(isinstance(value, str) for value in values):
        raise bad
    return from_base64url(values[0]), values[1], values[2], from_base64url(values[3])


def _pae(purpose: str, payload: bytes) -> bytes:
    # DSSE v1 pre-authentication encoding.
    kind = purpose.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)
