"""Hashes over several fields.

Every field is length-prefixed and the whole is labelled, so that no two different inputs give the same bytes: a
concatenation without lengths lets an attacker move a byte from one field to the next.
"""

from __future__ import annotations

import hashlib

__all__ = ["LABEL_PREFIX", "digest256", "digest384", "digest512", "transcript"]

LABEL_PREFIX = b"secfl/v1/"


def transcript(label: str, *fields: bytes) -> bytes:
    """Encode a label and fields without ambiguity: 8-byte big-endian length before each.

    Raises:
        ValueError: the label is empty or not ASCII.
    """
    if not label or not label.isascii():
        raise ValueError("a transcript label is non-empty ASCII")
    head = LABEL_PREFIX + label.encode("ascii")
    parts = [head, *fields]
    return b"".join(len(part).to_bytes(8, "big") + part for part in parts)


def digest256(label: str, *fields: bytes) -> bytes:
    """SHA-256 (32 bytes) of the transcript.

    Raises:
        ValueError: as `transcript`.
    """
    return hashlib.sha256(transcript(label, *fields)).digest()


def digest384(label: str, *fields: bytes) -> bytes:
    """SHA-384 (48 bytes) of the transcript.

    Raises:
        ValueError: as `transcript`.
    """
    return hashlib.sha384(transcript(label, *fields)).digest()


def digest512(label: str, *fields: bytes) -> bytes:
    """SHA-512 (64 bytes) of the transcript.

    Raises:
        ValueError: as `transcript`.
    """
    return hashlib.sha512(transcript(label, *fields)).digest()
