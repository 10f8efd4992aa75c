"""Authenticated encryption of records: AES-256-GCM with a random nonce in front.

A key seals at most 2**32 records (NIST SP 800-38D §8.3, random 96-bit nonces). A failed opening says nothing else.
"""

from __future__ import annotations

import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from secfl.crypto.transcript import transcript
from secfl.errors import VerificationError

__all__ = ["KEY_BYTES", "derive_key", "open_sealed", "random_key", "seal"]

KEY_BYTES = 32
_NONCE_BYTES = 12
_TAG_BYTES = 16


def random_key() -> bytes:
    """Draw a 32-byte key from the operating system."""
    return os.urandom(KEY_BYTES)


def derive_key(key: bytes, label: str, *context: bytes) -> bytes:
    """Derive a 32-byte key for one purpose (HKDF-SHA-256, RFC 5869).

    Raises:
        ValueError: the parent key is shorter than 32 bytes.
    """
    if len(key) < KEY_BYTES:
        raise ValueError("a parent key has at least 32 bytes")
    return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=None, info=transcript(label, *context)).derive(key)


def seal(key: bytes, plaintext: bytes, *, aad: bytes) -> bytes:
    """Encrypt: 12-byte nonce, ciphertext, 16-byte tag.

    Raises:
        ValueError: the key is not 32 bytes long.
    """
    _require_key(key)
    nonce = os.urandom(_NONCE_BYTES)
    return nonce + AESGCM(key).encrypt(nonce, plaintext, aad)


def open_sealed(key: bytes, sealed: bytes, *, aad: bytes) -> bytes:
    """Decrypt what `seal` made.

    Raises:
        VerificationError: `crypto.open_failed`, whatever the reason.
        ValueError: the key is not 32 bytes long.
    """
    _require_key(key)
    if len(sealed) < _NONCE_BYTES + _TAG_BYTES:
        raise VerificationError("crypto.open_failed", "the sealed data cannot be opened")
    try:
        return AESGCM(key).decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], aad)
    except InvalidTag:
        raise VerificationError("crypto.open_failed", "the sealed data cannot be opened") from None


def _require_key(key: bytes) -> None:
    if len(key) != KEY_BYTES:
        raise ValueError("a record key has 32 bytes")
