"""The chunk slots of a sealed volume: copy on write, each write under a nonce of its own.

A slot that the acknowledged state may still name is never overwritten: `release` only marks it, and it becomes free
when the root that no longer names it is acknowledged. The data key is fresh for each mount, so a host that puts back
an old state cannot make a counter repeat under one key.
"""

from __future__ import annotations

import errno
import heapq
from collections.abc import Iterable

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from secfl.crypto.aead import derive_key
from secfl.errors import VerificationError
from secfl.volume.records import CHUNK_BYTES, ChunkRef
from secfl.volume.storage import BlockFile

__all__ = ["MAX_SLOTS", "Slots"]

MAX_SLOTS = 1 << 20
"""Most slots of one volume (64 GiB): the table of a full one fits a record and main memory."""
_NONCE_BYTES = 12
_GCM_TAG_BYTES = 16


class Slots:
    """Encrypts chunks into slots, reads them back, and knows which slots are free."""

    def __init__(self, file: BlockFile, *, key: bytes, volume_id: bytes, epoch: bytes, capacity: int) -> None:
        """Start with every slot free; `capacity` is in slots.

        Raises:
            ValueError: the capacity is not between 1 and `MAX_SLOTS`.
        """
        if not 1 <= capacity <= MAX_SLOTS:
            raise ValueError("a volume has between 1 and MAX_SLOTS slots")
        self._file = file
        self._key = key
        self._volume_id = volume_id
        self._epoch = epoch
        self._counter = 0
        self._aeads: dict[bytes, AESGCM] = {}
        self.capacity = capacity
        self._end = 0
        self._free: list[int] = []
        self._fresh: set[int] = set()
        self._pending: list[int] = []
        self._leaving: list[int] = []

    def adopt(self, used: Iterable[int]) -> None:
        """Take the slots of a recovered state as used.

        Raises:
            VerificationError: `volume.inconsistent` when two chunks share a slot or one is out of range.
        """
        taken: set[int] = set()
        for slot in used:
            if slot in taken or slot >= MAX_SLOTS:
                raise VerificationError("volume.inconsistent", "two chunks of the volume claim one slot")
            taken.add(slot)
        self._end = max(taken, default=-1) + 1
        self._free = [slot for slot in range(self._end) if slot not in taken]

    @property
    def available(self) -> int:
        """How many slots can be written before the next commit."""
        return max(0, self.capacity - self._end) + len(self._free)

    def write(self, data: bytes | bytearray) -> ChunkRef:
        """Encrypt one chunk into a free slot.

        Raises:
            OSError: `ENOSPC` when no slot is free, or what the host's file answers; nothing changed then.
        """
        slot = self._take()
        counter = self._counter = self._counter + 1
        sealed = self._aead(self._epoch).encrypt(counter.to_bytes(_NONCE_BYTES, "big"), bytes(data), None)
        try:
            self._file.pwrite(slot * CHUNK_BYTES, sealed[:-_GCM_TAG_BYTES])
        except OSError:
            heapq.heappush(self._free, slot)
            raise
        self._fresh.add(slot)
        return ChunkRef(slot, len(data), counter, self._epoch, sealed[-_GCM_TAG_BYTES:])

    def read(self, ref: ChunkRef) -> bytes:
        """Return the chunk's plaintext.

        Raises:
            VerificationError: `volume.chunk_damaged`.
            OSError: what the host's file answers.
        """
        sealed = self._file.pread(ref.slot * CHUNK_BYTES, ref.length)
        nonce = ref.counter.to_bytes(_NONCE_BYTES, "big")
        try:
            return self._aead(ref.epoch).decrypt(nonce, sealed + ref.tag, None)
        except InvalidTag:
            raise VerificationError("volume.chunk_damaged", "a chunk of the volume is not authentic") from None

    def release(self, ref: ChunkRef) -> None:
        """Give a slot up: at once when no record ever named it, else after the next acknowledgement."""
        if ref.slot in self._fresh:
            self._fresh.remove(ref.slot)
            heapq.heappush(self._free, ref.slot)
        else:
            self._pending.append(ref.slot)

    def sync(self) -> None:
        """Make all written slots durable.

        Raises:
            OSError: what the host's file answers.
        """
        self._file.sync()

    def record_written(self) -> None:
        """Note that a record names the present slots and leaves out the released ones."""
        self._fresh.clear()
        self._leaving += self._pending
        self._pending = []

    def acknowledged(self) -> None:
        """Free the slots that the acknowledged record left out."""
        for slot in self._leaving:
            heapq.heappush(self._free, slot)
        self._leaving = []

    def _take(self) -> int:
        if self._free:
            return heapq.heappop(self._free)
        if self._end >= self.capacity:
            raise OSError(errno.ENOSPC, "the volume is full")
        self._end += 1
        return self._end - 1

    def _aead(self, epoch: bytes) -> AESGCM:
        if epoch not in self._aeads:
            self._aeads[epoch] = AESGCM(derive_key(self._key, "volume-data", self._volume_id, epoch))
        return self._aeads[epoch]
