"""Text forms of bytes: base64url without padding and lower-case hex, each with exactly one spelling per value."""

from __future__ import annotations

import base64
import binascii
import re

from secfl.errors import EncodingError

__all__ = ["from_base64url", "from_hex", "to_base64url"]

_BASE64URL = re.compile(r"[A-Za-z0-9_-]*\Z")
_HEX = re.compile(r"(?:[0-9a-f]{2})*\Z")


def to_base64url(data: bytes) -> str:
    """Encode without padding (RFC 4648 §5)."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def from_base64url(text: str, *, size: int | None = None) -> bytes:
    """Decode; only the spelling that `to_base64url` gives is accepted.

    Raises:
        EncodingError: `base64.malformed` or `base64.size`.
    """
    if not _BASE64URL.match(text):
        raise EncodingError("base64.malformed", "not base64url without padding")
    try:
        data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except (binascii.Error, ValueError) as error:
        raise EncodingError("base64.malformed", "not base64url without padding") from error
    if to_base64url(data) != text:
        raise EncodingError("base64.malformed", "not the canonical base64url spelling")
    if size is not None and len(data) != size:
        raise EncodingError("base64.size", "wrong number of bytes", expected=size, actual=len(data))
    return data


def from_hex(text: str, *, size: int | None = None) -> bytes:
    """Decode lower-case hex.

    Raises:
        EncodingError: `hex.malformed` or `hex.size`.
    """
    if not _HEX.match(text):
        raise EncodingError("hex.malformed", "not lower-case hex")
    data = bytes.fromhex(text)
    if size is not None and len(data) != size:
        raise EncodingError("hex.size", "wrong number of bytes", expected=size, actual=len(data))
    return data
