"""The body of a journal record: what one commit changed, byte by byte (`docs/formats/sealed-volume.md`).

The codec is strict: limits come before allocation, lists are strictly ascending, nothing trails, and every value has
one encoding. Bodies are read only after they proved authentic, yet a defect must not become a wrong file system.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

from secfl.errors import EncodingError

__all__ = [
    "CHUNK_BYTES",
    "DIRECTORY",
    "EPOCH_BYTES",
    "FILE",
    "MAX_BODY",
    "MAX_FILE",
    "MAX_NAME",
    "MAX_TARGET",
    "ROOT_INODE",
    "SYMLINK",
    "Changes",
    "ChunkRef",
    "InodePut",
    "chunk_count",
    "decode_changes",
    "encode_changes",
]

CHUNK_BYTES = 65536
"""Plaintext bytes of a full chunk and bytes of a slot."""
EPOCH_BYTES = 16
MAX_BODY = 256 * 1024 * 1024
"""Largest record body in bytes: twice the metadata that a volume may hold."""
MAX_FILE = 1 << 46
"""Largest file in bytes (64 TiB): its chunk indices fit 32 bits."""
MAX_NAME = 255
MAX_TARGET = 4095
ROOT_INODE = 1
FILE, DIRECTORY, SYMLINK = 1, 2, 3

_REMOVED = 0
_CHECKPOINT, _CHANGES = 1, 2
_HEAD = struct.Struct(">BQ")
_COUNT = struct.Struct(">I")
_INODE = struct.Struct(">QB")
_ATTRIBUTES = struct.Struct(">HIQqqqIH")
_ENTRY_HEAD = struct.Struct(">QB")
_ENTRY_TAIL = struct.Struct(">Q")
_CHUNK = struct.Struct(">QIB")
_REF = struct.Struct(">IIQ16s16s")


class ChunkRef(NamedTuple):
    """Where a chunk lies and what proves it: the nonce is `counter` under the key of `epoch`."""

    slot: int
    length: int
    counter: int
    epoch: bytes
    tag: bytes


class InodePut(NamedTuple):
    """The attributes of one inode after the commit.

    Attributes:
        keep: how many leading chunk indices of the earlier table stay valid; the chunks of the record come on top.
        target: where a symbolic link points; empty otherwise.
    """

    kind: int
    mode: int
    links: int
    size: int
    atime: int
    mtime: int
    ctime: int
    keep: int
    target: bytes


@dataclass(slots=True)
class Changes:
    """One record: inodes (None = removed), directory entries (0 = removed), chunks (None = hole)."""

    checkpoint: bool
    next_inode: int
    inodes: dict[int, InodePut | None] = field(default_factory=dict)
    entries: dict[tuple[int, bytes], int] = field(default_factory=dict)
    chunks: dict[tuple[int, int], ChunkRef | None] = field(default_factory=dict)


def chunk_count(size: int) -> int:
    """Return how many chunk indices a file of `size` bytes spans."""
    return -(-size // CHUNK_BYTES)


def encode_changes(changes: Changes) -> bytes:
    """Encode a record body.

    Raises:
        EncodingError: `volume.record_too_large`.
    """
    parts = [_HEAD.pack(_CHECKPOINT if changes.checkpoint else _CHANGES, changes.next_inode)]
    parts.append(_COUNT.pack(len(changes.inodes)))
    for number, put in sorted(changes.inodes.items()):
        parts.append(_encode_inode(number, put))
    parts.append(_COUNT.pack(len(changes.entries)))
    for (parent, name), child in sorted(changes.entries.items()):
        parts += (_ENTRY_HEAD.pack(parent, len(name)), name, _ENTRY_TAIL.pack(child))
    parts.append(_COUNT.pack(len(changes.chunks)))
    for (number, index), ref in sorted(changes.chunks.items(), key=lambda item: item[0]):
        parts.append(_CHUNK.pack(number, index, ref is not None))
        if ref is not None:
            parts.append(_REF.pack(*ref))
    body = b"".join(parts)
    if len(body) > MAX_BODY:
        raise EncodingError("volume.record_too_large", "a commit is too large", expected=MAX_BODY, actual=len(body))
    return body


def _encode_inode(number: int, put: InodePut | None) -> bytes:
    if put is None:
        return _INODE.pack(number, _REMOVED)
    return _INODE.pack(number, put.kind) + _ATTRIBUTES.pack(*put[1:8], len(put.target)) + put.target


def decode_changes(body: bytes) -> Changes:
    """Decode a record body; only what `encode_changes` writes is accepted.

    Raises:
        EncodingError: `volume.record_malformed`.
    """
    if len(body) > MAX_BODY:
        raise _malformed("it is too large")
    reader = _Reader(body)
    kind, next_inode = reader.take(_HEAD)
    if kind not in (_CHECKPOINT, _CHANGES) or next_inode <= ROOT_INODE:
        raise _malformed("its head is not of this format")
    changes = Changes(checkpoint=kind == _CHECKPOINT, next_inode=next_inode)
    for number, put in _ascending(reader, _INODE.size, _decode_inode):
        changes.inodes[number] = put
        _require_inode(number, put, changes)
    for key, child in _ascending(reader, _ENTRY_HEAD.size + 1 + _ENTRY_TAIL.size, _decode_entry):
        changes.entries[key] = child
        if changes.checkpoint and child == 0:
            raise _malformed("a checkpoint removes an entry")
    for place, ref in _ascending(reader, _CHUNK.size, _decode_chunk):
        changes.chunks[place] = ref
        if changes.checkpoint and ref is None:
            raise _malformed("a checkpoint removes a chunk")
    reader.require_end()
    return changes


class _Reader:
    """A cursor over bytes that never runs past their end."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, form: struct.Struct) -> tuple[int, ...]:
        return form.unpack(self.take_bytes(form.size))

    def take_ref(self) -> ChunkRef:
        slot, length, counter, epoch, tag = _REF.unpack(self.take_bytes(_REF.size))
        return ChunkRef(slot, length, counter, epoch, tag)

    def take_bytes(self, size: int) -> bytes:
        data = self._data[self._at : self._at + size]
        if len(data) != size:
            raise _malformed("it ends too early")
        self._at += size
        return data

    def take_count(self, least_bytes: int) -> int:
        (count,) = self.take(_COUNT)
        if count * least_bytes > len(self._data) - self._at:
            raise _malformed("a count exceeds the bytes that are left")
        return count

    def require_end(self) -> None:
        if self._at != len(self._data):
            raise _malformed("bytes follow its end")


_K = TypeVar("_K", int, tuple[int, bytes], tuple[int, int])
_V = TypeVar("_V", "InodePut | None", "ChunkRef | None", int)


def _ascending(
    reader: _Reader, least_bytes: int, decode: Callable[[_Reader], tuple[_K, _V]]
) -> Iterator[tuple[_K, _V]]:
    last: _K | None = None
    for _ in range(reader.take_count(least_bytes)):
        key, value = decode(reader)
        if last is not None and key <= last:
            raise _malformed("a list is not strictly ascending")
        last = key
        yield key, value


def _decode_inode(reader: _Reader) -> tuple[int, InodePut | None]:
    number, kind = reader.take(_INODE)
    if kind == _REMOVED:
        return number, None
    mode, links, size, atime, mtime, ctime, keep, target_size = reader.take(_ATTRIBUTES)
    if target_size > MAX_TARGET:
        raise _malformed("a link target is too long")
    target = reader.take_bytes(target_size)
    return number, InodePut(kind, mode, links, size, atime, mtime, ctime, keep, target)


def _require_inode(number: int, put: InodePut | None, changes: Changes) -> None:
    if not ROOT_INODE <= number < changes.next_inode:
        raise _malformed("an inode number is out of range")
    if put is None:
        if changes.checkpoint or number == ROOT_INODE:
            raise _malformed("an inode is removed that may not be")
        return
    if put.kind not in (FILE, DIRECTORY, SYMLINK) or put.mode > 0o7777 or put.links < 1:
        raise _malformed("an inode's kind, mode or link count is out of range")
    if put.kind == FILE:
        good = put.size <= MAX_FILE and not put.target and put.keep <= chunk_count(put.size)
    else:
        good = put.size == len(put.target) and put.keep == 0 and (put.kind == SYMLINK) == bool(put.target)
    if not good or (changes.checkpoint and put.keep):
        raise _malformed("an inode's size, table or target is out of range")
    if (put.kind == DIRECTORY or number == ROOT_INODE) and (put.kind, put.links) != (DIRECTORY, 1):
        raise _malformed("a directory has another number of links than one")


def _decode_entry(reader: _Reader) -> tuple[tuple[int, bytes], int]:
    parent, size = reader.take(_ENTRY_HEAD)
    name = reader.take_bytes(size)
    if not name or name in (b".", b"..") or b"/" in name or b"\0" in name:
        raise _malformed("a name is not a file name")
    (child,) = reader.take(_ENTRY_TAIL)
    return (parent, name), child


def _decode_chunk(reader: _Reader) -> tuple[tuple[int, int], ChunkRef | None]:
    number, index, present = reader.take(_CHUNK)
    if present > 1 or index >= chunk_count(MAX_FILE):
        raise _malformed("a chunk's index or presence is out of range")
    if not present:
        return (number, index), None
    ref = reader.take_ref()
    if not 1 <= ref.length <= CHUNK_BYTES:
        raise _malformed("a chunk's length is out of range")
    return (number, index), ref


def _malformed(reason: str) -> EncodingError:
    return EncodingError("volume.record_malformed", f"a journal record's body is malformed: {reason}")
