"""The audit chain: is this bundle the manager's whole log, unchanged and in order?

The signed head fixes length and hash; every byte of every entry goes into that hash. What an attacker did is told apart
as far as the bundle shows it, each with its own code and exit code (FR-09).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from secfl.crypto import strict_json
from secfl.crypto.encoding import from_base64url, from_hex
from secfl.crypto.signing import PublicKey, verify_envelope
from secfl.errors import EncodingError, SecflError, VerificationError
from secfl.manager.export import BUNDLE_FORMAT, HEAD_PURPOSE
from secfl.manager.log import PublicEntry, chain_hash, genesis_hash, parse_public

__all__ = ["MAX_BUNDLE", "AuditError", "AuditedEntry", "Head", "verify_chain"]

MAX_BUNDLE = 256 * 1024 * 1024
"""Largest bundle, in bytes."""
_EXIT_CODES: Mapping[str, int] = {
    "audit.edited": 20,
    "audit.removed": 21,
    "audit.inserted": 22,
    "audit.reordered": 23,
    "audit.truncated_front": 24,
    "audit.truncated_back": 25,
    "audit.forged": 26,
    "audit.forked": 27,
    "audit.unjustified": 28,
}


class AuditError(VerificationError):
    """The bundle does not hold; each code has an exit code of its own."""

    def __init__(self, code: str, message: str, *, entry: int | None = None, cause: str | None = None) -> None:
        """Name what was found, at which entry, and the code of the error behind it."""
        super().__init__(code, message, entry=entry, cause=cause)
        self.exit_code = _EXIT_CODES[code]


@dataclass(frozen=True, slots=True)
class Head:
    """The signed end of a log."""

    deployment_id: str
    length: int
    head: bytes
    time: int


@dataclass(frozen=True, slots=True)
class AuditedEntry:
    """An entry of the verified chain; `head` is the chain's value after it."""

    entry: PublicEntry
    head: bytes


def verify_chain(data: bytes, *, key: PublicKey) -> tuple[Head, tuple[AuditedEntry, ...]]:
    """Return the head and all entries when they are exactly what the manager signed.

    Args:
        key: the manager's TLS key, as its evidence covers it.

    Raises:
        EncodingError: `audit.malformed`, or a JSON code.
        AuditError: `audit.forged`, `audit.edited`, `audit.removed`, `audit.inserted`, `audit.reordered`,
            `audit.truncated_front` or `audit.truncated_back`.
    """
    head, rows = _read(data, key)
    entries: list[tuple[bytes, bytes, PublicEntry]] = []
    for index, (public, commitment) in enumerate(rows):
        try:
            entries.append((public, commitment, parse_public(public)))
        except EncodingError as error:
            raise AuditError("audit.edited", "an entry was changed", entry=index, cause=error.code) from error
    # 1. The numbers tell what was taken out, put in or moved.
    _check_order([entry.sequence for _, _, entry in entries], head.length)
    # 2. The hash tells whether anything was changed.
    value = genesis_hash(from_hex(head.deployment_id, size=16))
    audited: list[AuditedEntry] = []
    for public, commitment, entry in entries:
        value = chain_hash(value, public, commitment)
        audited.append(AuditedEntry(entry, value))
    if value != head.head:
        raise AuditError("audit.edited", "at least one entry was changed")
    return head, tuple(audited)


def _read(data: bytes, key: PublicKey) -> tuple[Head, list[tuple[bytes, bytes]]]:
    document = strict_json.decode(data, max_bytes=MAX_BUNDLE)
    if not isinstance(document, dict) or set(document) != {"entries", "format", "head"}:
        raise _malformed()
    if document["format"] != BUNDLE_FORMAT or not isinstance(document["entries"], list):
        raise _malformed()
    rows: list[tuple[bytes, bytes]] = []
    for index, row in enumerate(document["entries"]):
        if not isinstance(row, dict) or set(row) != {"commitment", "public"}:
            raise _malformed()
        if not all(isinstance(value, str) for value in row.values()):
            raise _malformed()
        try:
            rows.append((from_base64url(row["public"]), from_hex(row["commitment"], size=32)))
        except EncodingError as error:
            raise AuditError("audit.edited", "an entry was changed", entry=index, cause=error.code) from error
    if not isinstance(document["head"], str):
        raise _malformed()
    return _head(document["head"], key), rows


def _head(text: str, key: PublicKey) -> Head:
    try:
        signed = verify_envelope(from_base64url(text), purpose=HEAD_PURPOSE, keys=[key])
        document = strict_json.decode(signed.payload)
        return Head(
            document["deployment_id"], document["length"], from_hex(document["head"], size=32), document["time"]
        )
    except (SecflError, KeyError, TypeError) as error:
        cause = error.code if isinstance(error, SecflError) else None
        raise AuditError("audit.forged", "the head is not signed by this manager", cause=cause) from error


def _check_order(sequences: Sequence[int], length: int) -> None:
    present = set(sequences)
    if len(present) < len(sequences) or not present <= set(range(length)):
        raise AuditError("audit.inserted", "the bundle holds entries that the manager did not sign")
    missing = sorted(set(range(length)) - present)
    if missing and missing == list(range(missing[0], length)):
        raise AuditError("audit.truncated_back", "the newest entries are missing", entry=missing[0])
    if missing and missing == list(range(missing[-1] + 1)):
        raise AuditError("audit.truncated_front", "the oldest entries are missing", entry=missing[-1])
    if missing:
        raise AuditError("audit.removed", "entries are missing", entry=missing[0])
    if list(sequences) != sorted(sequences):
        raise AuditError("audit.reordered", "entries are not in order")


def _malformed() -> EncodingError:
    return EncodingError("audit.malformed", "not an audit bundle of this format")
