"""A writer for the few DER types in a platform certificate's extension."""

from __future__ import annotations

from cryptography.x509 import ObjectIdentifier

__all__ = ["boolean", "enumerated", "integer", "object_id", "octets", "sequence"]


def _tagged(tag: int, content: bytes) -> bytes:
    size = len(content)
    if size < 0x80:
        return bytes([tag, size]) + content
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(length)]) + length + content


def sequence(*parts: bytes) -> bytes:
    """SEQUENCE of encoded values."""
    return _tagged(0x30, b"".join(parts))


def octets(value: bytes) -> bytes:
    """OCTET STRING."""
    return _tagged(0x04, value)


def integer(value: int) -> bytes:
    """INTEGER, not negative.

    Raises:
        ValueError: the value is negative.
    """
    if value < 0:
        raise ValueError("only non-negative integers")
    return _tagged(0x02, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def enumerated(value: int) -> bytes:
    """ENUMERATED below 128."""
    return _tagged(0x0A, bytes([value]))


def boolean(*, value: bool) -> bytes:
    """BOOLEAN."""
    return _tagged(0x01, b"\xff" if value else b"\x00")


def object_id(dotted: str) -> bytes:
    """OBJECT IDENTIFIER.

    Raises:
        ValueError: not a dotted identifier.
    """
    first, second, *rest = (int(part) for part in ObjectIdentifier(dotted).dotted_string.split("."))
    content = bytearray()
    for part in (40 * first + second, *rest):
        groups = [part & 0x7F]
        while part := part >> 7:
            groups.append(0x80 | part & 0x7F)
        content += bytes(reversed(groups))
    return _tagged(0x06, bytes(content))
