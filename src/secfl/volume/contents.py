"""The bytes of a sealed volume's files: chunk buffers in memory over encrypted slots.

A write changes a buffer; `flush` encrypts the buffers into fresh slots. Bytes that were never written, or that lie
behind what a chunk holds, read as zero.
"""

from __future__ import annotations

import errno

from secfl.volume.records import CHUNK_BYTES, MAX_FILE, chunk_count
from secfl.volume.slots import Slots
from secfl.volume.tree import Inode, Tree

__all__ = ["MAX_BUFFERS", "Contents"]

MAX_BUFFERS = 1024
"""Most dirty chunks in memory (64 MiB); above it they are encrypted ahead of the commit."""


class Contents:
    """Reads, writes and cuts files."""

    def __init__(self, tree: Tree, slots: Slots) -> None:
        """Work on one volume's tree and slots."""
        self._tree = tree
        self._slots = slots
        self._buffers: dict[int, dict[int, bytearray]] = {}
        self._held = 0

    def read(self, node: Inode, offset: int, size: int) -> bytes:
        """Return up to `size` bytes; fewer only at the file's end.

        Raises:
            VerificationError: `volume.chunk_damaged`.
            OSError: what the host's file answers.
        """
        end = min(offset + size, node.size)
        parts: list[bytes | bytearray] = []
        while offset < end:
            index, start = divmod(offset, CHUNK_BYTES)
            stop = min(CHUNK_BYTES, start + end - offset)
            piece = self._chunk(node, index)[start:stop]
            parts += (piece, bytes(stop - start - len(piece)))
            offset += stop - start
        return b"".join(parts)

    def write(self, node: Inode, offset: int, data: bytes | memoryview, *, now: int) -> None:
        """Put bytes into the file, growing it when needed.

        Raises:
            OSError: `EFBIG`, `ENOSPC` before anything changed, or what the host's file answers.
            VerificationError: `volume.chunk_damaged` in a chunk that is changed in part.
        """
        end = offset + len(data)
        if end > MAX_FILE:
            raise OSError(errno.EFBIG, "the file would be too large")
        first, last = offset // CHUNK_BYTES, chunk_count(end)
        buffers = self._buffers.get(node.number, {})
        missing = sum(index not in buffers for index in range(first, last))
        if missing > self._slots.available - self._held:
            raise OSError(errno.ENOSPC, "the volume is full")
        at = 0
        for index in range(first, last):
            start = max(0, offset - index * CHUNK_BYTES)
            size = min(CHUNK_BYTES - start, len(data) - at)
            self._put(node, index, start, data[at : at + size])
            at += size
        node.size = max(node.size, end)
        node.mtime = node.ctime = now
        self._tree.change(node)
        if self._held > MAX_BUFFERS:
            self._flush(list(self._buffers))

    def truncate(self, node: Inode, size: int, *, now: int) -> None:
        """Set the file's size; bytes behind it are gone for good.

        Raises:
            OSError: `EFBIG`, or what the host's file answers.
            VerificationError: `volume.chunk_damaged` in the chunk that is cut.
        """
        if size > MAX_FILE:
            raise OSError(errno.EFBIG, "the file would be too large")
        if size < node.size:
            self._cut(node, size)
        node.size = size
        node.mtime = node.ctime = now
        self._tree.change(node)

    def punch(self, node: Inode, offset: int, size: int, *, now: int) -> None:
        """Turn a range into zeros; its whole chunks no longer take up room. The file's size stays.

        Raises:
            OSError: `ENOSPC`, or what the host's file answers.
            VerificationError: `volume.chunk_damaged` in a chunk that is zeroed in part.
        """
        end = min(offset + size, node.size)
        while offset < end:
            index, start = divmod(offset, CHUNK_BYTES)
            stop = min(CHUNK_BYTES, start + end - offset)
            if start == 0 and (stop == CHUNK_BYTES or index * CHUNK_BYTES + stop == node.size):
                self._clear(node, index)
            elif len(self._chunk(node, index)) > start:
                self.write(node, offset, bytes(stop - start), now=now)
            offset += stop - start
        node.mtime = node.ctime = now
        self._tree.change(node)

    def flush(self) -> None:
        """Encrypt the buffers of all files that have a name into slots.

        Raises:
            OSError: `ENOSPC`, or what the host's file answers; what is not written stays buffered.
        """
        self._flush([number for number in self._buffers if self._tree.inodes[number].links])

    def drop(self, node: Inode) -> None:
        """Forget the buffers of a file that goes away."""
        self._held -= len(self._buffers.pop(node.number, {}))

    def _chunk(self, node: Inode, index: int) -> bytes | bytearray:
        buffer = self._buffers.get(node.number, {}).get(index)
        if buffer is not None:
            return buffer
        ref = node.chunks.get(index)
        return self._slots.read(ref) if ref is not None else b""

    def _put(self, node: Inode, index: int, start: int, piece: bytes | memoryview) -> None:
        if start == 0 and len(piece) == CHUNK_BYTES:
            self._hold(node, index, bytearray(piece))
            return
        buffer = self._buffer(node, index)
        if len(buffer) < start:
            buffer.extend(bytes(start - len(buffer)))
        buffer[start : start + len(piece)] = piece

    def _buffer(self, node: Inode, index: int) -> bytearray:
        data = self._chunk(node, index)
        return data if isinstance(data, bytearray) else self._hold(node, index, bytearray(data))

    def _hold(self, node: Inode, index: int, buffer: bytearray) -> bytearray:
        buffers = self._buffers.setdefault(node.number, {})
        self._held += index not in buffers
        buffers[index] = buffer
        return buffer

    def _clear(self, node: Inode, index: int) -> None:
        if self._buffers.get(node.number, {}).pop(index, None) is not None:
            self._held -= 1
        old = self._tree.set_chunk(node, index, None)
        if old is not None:
            self._slots.release(old)

    def _cut(self, node: Inode, size: int) -> None:
        count, tail = chunk_count(size), size % CHUNK_BYTES
        # The cut bytes must not come back when the file grows again, so they leave the stored chunk too.
        if tail and len(self._chunk(node, count - 1)) > tail:
            del self._buffer(node, count - 1)[tail:]
        for ref in self._tree.cut(node, count):
            self._slots.release(ref)
        buffers = self._buffers.get(node.number, {})
        for index in [index for index in buffers if index >= count]:
            del buffers[index]
            self._held -= 1

    def _flush(self, numbers: list[int]) -> None:
        for number in numbers:
            node, buffers = self._tree.inodes[number], self._buffers[number]
            for index in sorted(buffers):
                ref = self._slots.write(buffers[index])
                old = self._tree.set_chunk(node, index, ref)
                if old is not None:
                    self._slots.release(old)
                del buffers[index]
                self._held -= 1
            del self._buffers[number]
