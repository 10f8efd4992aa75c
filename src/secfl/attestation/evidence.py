"""Evidence as it travels: a kind and the vendor's opaque bytes, in a CMW JSON record (RFC 9999).

Nothing here is believed: these bytes come from an attester that may be the attacker. Only `secfl.tee.verifier` turns
evidence into claims. One evidence has one encoding, and sizes are checked before anything is decoded.
"""

from __future__ import annotations

from dataclasses import dataclass

from secfl.crypto import strict_json
from secfl.crypto.encoding import from_base64url, to_base64url
from secfl.errors import EncodingError

__all__ = ["CMW_EVIDENCE", "KINDS", "MAX_BLOB_BYTES", "Evidence"]

KINDS = {
    "sgx": "application/vnd.secfl.sgx-dcap-quote",
    "tdx": "application/vnd.secfl.tdx-quote",
}
"""Evidence kinds and their media types."""
MAX_BLOB_BYTES = 64 * 1024
"""Largest evidence, in bytes: quotes have about 5 KiB, newest platforms may give more than 8 KiB."""
CMW_EVIDENCE = 4
"""The CMW indicator bit for evidence (RFC 9999)."""
_MAX_RECORD = 4 * MAX_BLOB_BYTES // 3 + 256
_KIND_OF = {media_type: kind for kind, media_type in KINDS.items()}


@dataclass(frozen=True, slots=True)
class Evidence:
    """Unverified evidence of one kind."""

    kind: str
    blob: bytes

    def __post_init__(self) -> None:
        """Refuse unknown kinds and impossible sizes.

        Raises:
            EncodingError: `evidence.kind` or `evidence.size`.
        """
        if self.kind not in KINDS:
            raise EncodingError("evidence.kind", "an unknown kind of evidence", actual=self.kind[:32])
        if not 0 < len(self.blob) <= MAX_BLOB_BYTES:
            raise EncodingError("evidence.size", "empty or oversized evidence", actual=len(self.blob))

    def encode(self) -> bytes:
        """Write the CMW record `[type, value, ind]`."""
        return strict_json.encode([KINDS[self.kind], to_base64url(self.blob), CMW_EVIDENCE])

    @classmethod
    def decode(cls, data: bytes) -> Evidence:
        """Read what `encode` wrote.

        Raises:
            EncodingError: `evidence.malformed`, `evidence.kind`, `evidence.size`, or a JSON or base64 code.
        """
        record = strict_json.decode(data, max_bytes=_MAX_RECORD)
        if not isinstance(record, list) or len(record) != 3:
            raise EncodingError("evidence.malformed", "not a CMW record of type, value and indicator")
        media_type, value, indicator = record
        if not isinstance(media_type, str) or not isinstance(value, str) or indicator is True:
            raise EncodingError("evidence.malformed", "not a CMW record of type, value and indicator")
        if indicator != CMW_EVIDENCE:
            raise EncodingError("evidence.malformed", "the record is not marked as evidence")
        if media_type not in _KIND_OF:
            raise EncodingError("evidence.kind", "an unknown kind of evidence", actual=media_type[:64])
        return cls(_KIND_OF[media_type], from_base64url(value))
