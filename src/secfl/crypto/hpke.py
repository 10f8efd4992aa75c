"""Sealing to a public key: HPKE (RFC 9180) with the hybrid X25519 + ML-KEM-768 encapsulation.

Medical records must stay secret for decades, so what is recorded today may not fall to a later quantum computer: the
shared key is safe while either of the two mechanisms is.
"""

from __future__ import annotations

import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from secfl.crypto.transcript import transcript
from secfl.errors import EncodingError, VerificationError

__all__ = ["PUBLIC_KEY_BYTES", "SEED_BYTES", "SealingKey", "seal_to"]

_MLKEM_PUBLIC = 1184
_MLKEM_SEED = 64
_X25519 = 32
PUBLIC_KEY_BYTES = _MLKEM_PUBLIC + _X25519
SEED_BYTES = _MLKEM_SEED + _X25519
_SUITE = hpke.Suite(hpke.KEM.MLKEM768_X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)


class SealingKey:
    """A private recipient key; the public half is `public` (ML-KEM-768 key, then X25519 key; 1,216 bytes)."""

    def __init__(self, seed: bytes) -> None:
        """Rebuild from the 96-byte seed (ML-KEM seed, then X25519 scalar).

        Raises:
            EncodingError: `hpke.seed_size`.
        """
        if len(seed) != SEED_BYTES:
            raise EncodingError("hpke.seed_size", "wrong seed size", expected=SEED_BYTES, actual=len(seed))
        mlkem = MLKEM768PrivateKey.from_seed_bytes(seed[:_MLKEM_SEED])
        x25519 = X25519PrivateKey.from_private_bytes(seed[_MLKEM_SEED:])
        self._key = hpke.MLKEM768X25519PrivateKey(mlkem, x25519)
        self.public = mlkem.public_key().public_bytes_raw() + x25519.public_key().public_bytes_raw()

    @staticmethod
    def generate_seed() -> bytes:
        """Draw a seed from the operating system."""
        return os.urandom(SEED_BYTES)

    @classmethod
    def generate(cls) -> SealingKey:
        """Make a key that only this process holds."""
        return cls(cls.generate_seed())

    def open(self, sealed: bytes, *, purpose: str, context: bytes = b"") -> bytes:
        """Open what `seal_to` made for this key, purpose and context.

        Raises:
            VerificationError: `crypto.open_failed`, whatever the reason.
        """
        try:
            return _SUITE.decrypt(sealed, self._key, transcript(purpose, context))
        except (InvalidTag, ValueError):
            raise VerificationError("crypto.open_failed", "the sealed data cannot be opened") from None


def seal_to(public: bytes, plaintext: bytes, *, purpose: str, context: bytes = b"") -> bytes:
    """Seal for the holder of `public`.

    Args:
        purpose: ASCII label; what is sealed for one purpose does not open for another.
        context: bound but not sent.

    Raises:
        EncodingError: `hpke.public_key` when the key has the wrong size or form.
    """
    if len(public) != PUBLIC_KEY_BYTES:
        raise EncodingError("hpke.public_key", "wrong public key size", expected=PUBLIC_KEY_BYTES, actual=len(public))
    try:
        key = hpke.MLKEM768X25519PublicKey(
            MLKEM768PublicKey.from_public_bytes(public[:_MLKEM_PUBLIC]),
            X25519PublicKey.from_public_bytes(public[_MLKEM_PUBLIC:]),
        )
        return _SUITE.encrypt(plaintext, key, transcript(purpose, context))
    except ValueError as error:
        raise EncodingError("hpke.public_key", "not a usable public key") from error
