"""The journal of a sealed volume: an append-only, encrypted, hash-chained file of commits.

Each record names its sequence number and the tag of the record before it; its own tag is the SHA-256 of all its bytes.
So one 32-byte tag stands for the whole history, and that is what the freshness service keeps. Rules kept here: a nonce
is used once (a fresh key for each mount, a counter within it, never set back, not even when a write fails); only an
authentic record is decoded; what follows the first record that is not authentic is never read.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from secfl.crypto.aead import derive_key
from secfl.crypto.transcript import digest256, transcript
from secfl.errors import StateError
from secfl.volume.records import EPOCH_BYTES, MAX_BODY, Changes, decode_changes
from secfl.volume.storage import BlockFile, Push, Root

__all__ = ["NO_TAG", "VOLUME_ID_BYTES", "Journal", "JournalCipher", "Link", "read_links"]

VOLUME_ID_BYTES = 16
NO_TAG = bytes(32)
"""What the first record of a volume names as its predecessor."""

_MAGIC = b"SVJ1"
_HEADER = struct.Struct(f">4sIQ{EPOCH_BYTES}sQ32s")
_GCM_TAG_BYTES = 16
_NONCE_BYTES = 12
_MAX_SEQUENCE = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Link:
    """One authentic record: its place in the chain, its meaning, and where the file goes on after it."""

    step: Push
    changes: Changes
    end: int

    @property
    def root(self) -> Root:
        """The root that this record makes."""
        return Root(self.step.sequence, self.step.tag)


class JournalCipher:
    """Seals and opens records of one volume; the keys never leave it."""

    def __init__(self, key: bytes, volume_id: bytes) -> None:
        """Bind the volume's key and identity.

        Raises:
            ValueError: the key has not 32 bytes or the identity not 16.
        """
        if len(volume_id) != VOLUME_ID_BYTES:
            raise ValueError("a volume id has 16 bytes")
        derive_key(key, "volume-journal", volume_id)
        self._key = key
        self._volume_id = volume_id
        self._epochs: dict[bytes, AESGCM] = {}

    def _aead(self, epoch: bytes) -> AESGCM:
        if epoch not in self._epochs:
            self._epochs = {epoch: AESGCM(derive_key(self._key, "volume-journal", self._volume_id, epoch))}
        return self._epochs[epoch]

    def seal(self, root: Root, epoch: bytes, counter: int, body: bytes) -> tuple[bytes, Push]:
        """Make the record that follows `root`; the caller never repeats an epoch's counter."""
        sealed_size = len(body) + _GCM_TAG_BYTES
        header = _HEADER.pack(_MAGIC, sealed_size, root.sequence + 1, epoch, counter, root.tag)
        nonce = counter.to_bytes(_NONCE_BYTES, "big")
        sealed = self._aead(epoch).encrypt(nonce, body, self._associated(header))
        return header + sealed, Push(root.sequence + 1, root.tag, self._tag(header, sealed))

    def open(self, header: bytes, sealed: bytes) -> tuple[Push, bytes] | None:
        """Return the step and the body of a record, or None when it is not authentic."""
        _, _, sequence, epoch, counter, previous = _HEADER.unpack(header)
        try:
            body = self._aead(epoch).decrypt(counter.to_bytes(_NONCE_BYTES, "big"), sealed, self._associated(header))
        except InvalidTag:
            return None
        return Push(sequence, previous, self._tag(header, sealed)), body

    def _associated(self, header: bytes) -> bytes:
        return transcript("volume-record", self._volume_id, header)

    def _tag(self, header: bytes, sealed: bytes) -> bytes:
        return digest256("volume-record-tag", self._volume_id, header, sealed)


def read_links(journal: BlockFile, cipher: JournalCipher) -> Iterator[Link]:
    """Yield the authentic records from the start of the file, and stop before the first that is not.

    A missing piece, a flipped bit, a record of another place or volume all end the chain alike. The caller decides
    with the service's root whether that is a write that a crash cut short or an attack.

    Raises:
        EncodingError: `volume.record_malformed` in an authentic record.
    """
    at = 0
    total = journal.size()
    last: Push | None = None
    while total - at >= _HEADER.size + _GCM_TAG_BYTES:
        header = journal.pread(at, _HEADER.size)
        sealed_size = _sealed_size(header, total - at - _HEADER.size)
        if sealed_size is None:
            return
        sealed = journal.pread(at + _HEADER.size, sealed_size)
        opened = cipher.open(header, sealed) if len(sealed) == sealed_size else None
        if opened is None:
            return
        step, body = opened
        if last is not None and (step.sequence, step.previous) != (last.sequence + 1, last.tag):
            return
        changes = decode_changes(body)
        if changes.checkpoint != (last is None):
            return
        at += _HEADER.size + sealed_size
        last = step
        yield Link(step, changes, at)


def _sealed_size(header: bytes, left: int) -> int | None:
    if len(header) != _HEADER.size:
        return None
    magic, size, sequence, _, _, _ = _HEADER.unpack(header)
    good = magic == _MAGIC and _GCM_TAG_BYTES <= size <= min(left, MAX_BODY + _GCM_TAG_BYTES)
    return size if good and 1 <= sequence <= _MAX_SEQUENCE else None


class Journal:
    """The writing end: appends records, or replaces the file by one checkpoint."""

    def __init__(self, file: BlockFile, cipher: JournalCipher, *, epoch: bytes, root: Root, size: int) -> None:
        """Go on after `root`, whose record ends at byte `size`; `epoch` is fresh for this mount."""
        self._file = file
        self._cipher = cipher
        self._epoch = epoch
        self._counter = 0
        self.root = root
        self.size = size

    def append(self, body: bytes) -> Push:
        """Add one record and make it durable.

        Raises:
            OSError: the host refused; the journal is as before.
            StateError: `volume.journal_failed` when the file's state is unknown now.
        """
        record, step = self._seal(body)
        # What a refused write leaves behind the end is overwritten by the next record, or dropped at the next start.
        self._file.pwrite(self.size, record)
        try:
            self._file.sync()
        except OSError as error:
            # After a failed sync the kernel may have dropped the pages and may report success next time.
            raise StateError(
                "volume.journal_failed",
                "the host's storage failed while a commit was written",
                hint="stop the program, repair the host's storage and mount the volume again",
            ) from error
        self._advance(step, self.size + len(record))
        return step

    def replace(self, body: bytes) -> Push:
        """Put one checkpoint record in the place of the whole file.

        Raises:
            OSError: the host refused; the journal is as before.
            StateError: the file's state is unknown now.
        """
        record, step = self._seal(body)
        self._file.replace(record)
        self._advance(step, len(record))
        return step

    def _seal(self, body: bytes) -> tuple[bytes, Push]:
        self._counter += 1
        return self._cipher.seal(self.root, self._epoch, self._counter, body)

    def _advance(self, step: Push, size: int) -> None:
        self.root = Root(step.sequence, step.tag)
        self.size = size
