"""The log: an append-only chain of entries, of which everything else the manager knows is derived.

An entry has a public part, which anybody may audit, and a sealed part with the secrets of the same step. The chain
covers the sealed part by a salted commitment, so that an auditor follows it without any secret, and a secret of low
entropy cannot be guessed from it. An edited, removed, inserted or moved entry is found before the state is used.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from secfl.crypto import strict_json
from secfl.crypto.aead import open_sealed, seal
from secfl.crypto.transcript import digest256, transcript
from secfl.errors import EncodingError, FreshnessError, VerificationError

__all__ = [
    "MAX_ENTRY",
    "Entry",
    "Event",
    "Log",
    "PublicEntry",
    "Row",
    "chain_hash",
    "commitment_of",
    "genesis_hash",
    "parse_public",
]

MAX_ENTRY = 16 * 1024 * 1024
"""Largest public or sealed part, in bytes; a policy of 1 MiB with its envelope is the largest real one."""
_SALT_BYTES = 32


@dataclass(frozen=True, slots=True)
class Event:
    """One step of the manager: its kind, what everybody may see of it, and what nobody may."""

    kind: str
    public: strict_json.JsonValue
    secret: strict_json.JsonValue = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class Row:
    """An entry as it is stored: untrusted until `Log.load` has read it."""

    sequence: int
    public: bytes
    sealed: bytes
    hash: bytes


@dataclass(frozen=True, slots=True)
class PublicEntry:
    """The parsed public part of an entry."""

    sequence: int
    time: int
    kind: str
    public: strict_json.JsonValue


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry of the verified chain.

    Attributes:
        row: as stored.
        commitment: SHA-256 of salt and sealed plaintext; what a bundle carries instead of the sealed part.
        time: seconds since 1970; never less than that of the entry before.
        event: what happened.
    """

    row: Row
    commitment: bytes
    time: int
    event: Event


def genesis_hash(deployment_id: bytes) -> bytes:
    """The chain's value before its first entry."""
    return digest256("log-genesis", deployment_id)


def chain_hash(previous: bytes, public: bytes, commitment: bytes) -> bytes:
    """The chain's value after an entry."""
    return digest256("log", previous, digest256("leaf", public, commitment))


def commitment_of(opened: bytes) -> bytes:
    """Commit to the opened sealed part (salt, then canonical JSON)."""
    return hashlib.sha256(opened).digest()


def parse_public(data: bytes) -> PublicEntry:
    """Read the public part of an entry.

    Raises:
        EncodingError: `log.malformed`, or a `json` code.
    """
    value = strict_json.decode(data, max_bytes=MAX_ENTRY)
    if not isinstance(value, dict) or set(value) != {"kind", "public", "sequence", "time"}:
        raise EncodingError("log.malformed", "not the public part of a log entry")
    sequence, time, kind = value["sequence"], value["time"], value["kind"]
    if type(sequence) is not int or type(time) is not int or not isinstance(kind, str):
        raise EncodingError("log.malformed", "not the public part of a log entry")
    return PublicEntry(sequence, time, kind, value["public"])


class Log:
    """The chain at its end: appends entries and knows the head."""

    def __init__(self, deployment_id: bytes, key: bytes) -> None:
        """Begin an empty chain.

        Args:
            deployment_id: binds every entry to this deployment.
            key: the store key, 32 bytes.
        """
        self._deployment_id = deployment_id
        self._key = key
        self.length = 0
        self.head = genesis_hash(deployment_id)
        self.time = 0

    def append(self, event: Event, *, now: int, salt: bytes) -> Entry:
        """Add an entry; a clock that was turned back does not move the log's time back.

        Raises:
            EncodingError: `json.not_canonical` for an event that has no canonical form, or `log.too_large`.
            ValueError: the salt has the wrong size.
        """
        if len(salt) != _SALT_BYTES:
            raise ValueError("a salt has 32 bytes")
        time = max(now, self.time)
        public = strict_json.encode({"kind": event.kind, "public": event.public, "sequence": self.length, "time": time})
        opened = salt + strict_json.encode(event.secret)
        if max(len(public), len(opened)) > MAX_ENTRY:
            raise EncodingError("log.too_large", "the entry is too large", expected=MAX_ENTRY)
        commitment = commitment_of(opened)
        head = chain_hash(self.head, public, commitment)
        row = Row(self.length, public, seal(self._key, opened, aad=self._aad(self.length)), head)
        self.length, self.head, self.time = self.length + 1, head, time
        return Entry(row, commitment, time, event)

    def load(self, rows: Iterable[Row]) -> Iterator[Entry]:
        """Verify stored rows one by one and continue the chain from them.

        Raises:
            FreshnessError: `log.removed` or `log.reordered`.
            VerificationError: `log.edited`.
        """
        for row in rows:
            yield self._load(row)

    def _load(self, row: Row) -> Entry:
        try:
            public = parse_public(row.public)
        except EncodingError:
            raise _edited(row.sequence) from None
        if row.sequence != self.length:
            raise FreshnessError("log.removed", "a log entry is missing", expected=self.length, actual=row.sequence)
        if public.sequence != row.sequence:
            raise FreshnessError(
                "log.reordered", "a log entry is not in its place", expected=row.sequence, actual=public.sequence
            )
        try:
            opened = open_sealed(self._key, row.sealed, aad=self._aad(row.sequence))
            secret = strict_json.decode(opened[_SALT_BYTES:], max_bytes=MAX_ENTRY)
        except (VerificationError, EncodingError):
            raise _edited(row.sequence) from None
        commitment = commitment_of(opened)
        head = chain_hash(self.head, row.public, commitment)
        if head != row.hash or public.time < self.time:
            raise _edited(row.sequence)
        self.length, self.head, self.time = self.length + 1, head, public.time
        return Entry(row, commitment, public.time, Event(public.kind, public.public, secret))

    def _aad(self, sequence: int) -> bytes:
        return transcript("log-entry", self._deployment_id, sequence.to_bytes(8, "big"))


def _edited(sequence: int) -> VerificationError:
    return VerificationError("log.edited", "a log entry was changed", entry=sequence)
