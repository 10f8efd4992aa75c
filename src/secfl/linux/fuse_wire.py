"""The FUSE kernel protocol's messages: strict decoding of requests, encoding of replies. Pure.

Version 7.31, little-endian, as in the kernel's `fuse.h`. Every request body must have exactly the length of its
structure (plus its names): a body that does not fit means that kernel and server disagree about the protocol, and
guessing would serve wrong bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum, IntFlag

from secfl.errors import EncodingError

__all__ = [
    "MAX_NAME_BYTES",
    "MAX_TRANSFER_BYTES",
    "NANOSECONDS",
    "REQUEST_BYTES",
    "Attributes",
    "Entry",
    "FileSystemSize",
    "InitFlags",
    "InitRequest",
    "Listed",
    "Opcode",
    "Request",
    "SetAttributes",
    "SetAttributesMask",
    "body_name",
    "body_struct",
    "body_two_names",
    "encode_attributes",
    "encode_dirent",
    "encode_entry",
    "encode_init_reply",
    "encode_negative_entry",
    "encode_open",
    "encode_reply_header",
    "forget_pairs",
    "parse_init",
    "parse_request",
    "parse_set_attributes",
]

MAX_TRANSFER_BYTES = 1 << 20
"""Largest read or write: 256 pages, the most that the kernel grants without a changed sysctl."""
REQUEST_BYTES = MAX_TRANSFER_BYTES + 8192
"""Read buffer of a server: a full write plus headers; the kernel refuses smaller buffers."""
MAX_NAME_BYTES = 255
NANOSECONDS = 10**9
_MAJOR = 7
_MINOR = 31
_MIN_KERNEL_MINOR = 31
"""Linux 5.4 (2019); older kernels lack zero-message opendir."""
_MAX_BACKGROUND = 64
_CONGESTION = 48

_HEADER = struct.Struct("<IIQQIIIHH")
_REPLY = struct.Struct("<IiQ")
_ATTRIBUTES = struct.Struct("<6Q10I")
_ENTRY = struct.Struct("<QQQQII")
_ATTRIBUTES_VALID = struct.Struct("<QII")
_DIRENT = struct.Struct("<QQII")
_OPEN = struct.Struct("<QIi")
_INIT = struct.Struct("<IIII")
_INIT_REPLY = struct.Struct("<IIIIHHIIHH32x")
_SET_ATTRIBUTES = struct.Struct("<IIQQQQQQIIIIIIII")
_STATFS = struct.Struct("<QQQQQIII28x")
_FORGET = struct.Struct("<QQ")


class Opcode(IntEnum):
    """Requests that the base understands; every other number is answered with ENOSYS."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    CREATE = 35
    INTERRUPT = 36
    DESTROY = 38
    BATCH_FORGET = 42
    FALLOCATE = 43
    READDIRPLUS = 44
    RENAME2 = 45
    SYNCFS = 50


class InitFlags(IntFlag):
    """Capabilities negotiated at INIT."""

    ASYNC_READ = 1 << 0
    ATOMIC_O_TRUNC = 1 << 3
    BIG_WRITES = 1 << 5
    DO_READDIRPLUS = 1 << 13
    READDIRPLUS_AUTO = 1 << 14
    WRITEBACK_CACHE = 1 << 16
    NO_OPEN = 1 << 17
    PARALLEL_DIROPS = 1 << 18
    MAX_PAGES = 1 << 22
    CACHE_SYMLINKS = 1 << 23
    NO_OPENDIR = 1 << 24


class SetAttributesMask(IntFlag):
    """Which fields of a `SetAttributes` count."""

    MODE = 1 << 0
    UID = 1 << 1
    GID = 1 << 2
    SIZE = 1 << 3
    ATIME = 1 << 4
    MTIME = 1 << 5
    HANDLE = 1 << 6
    ATIME_NOW = 1 << 7
    MTIME_NOW = 1 << 8
    CTIME = 1 << 10


@dataclass(frozen=True, slots=True)
class Request:
    """One request; `body` is a view into the server's buffer and dies with the next request."""

    opcode: int
    unique: int
    node: int
    uid: int
    gid: int
    pid: int
    body: memoryview


@dataclass(frozen=True, slots=True)
class InitRequest:
    """What the kernel offers."""

    minor: int
    max_readahead: int
    flags: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Attributes:
    """A node's `stat`; times in nanoseconds."""

    inode: int
    mode: int
    size: int = 0
    links: int = 1
    uid: int = 0
    gid: int = 0
    atime: int = 0
    mtime: int = 0
    ctime: int = 0
    device: int = 0
    blocks: int | None = None
    """512-byte units; computed from the size when absent."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A name's node: the number is the server's, and stays valid until FORGET."""

    node: int
    attributes: Attributes
    generation: int = 0


@dataclass(frozen=True, slots=True)
class Listed:
    """One directory line; `mode` gives the type, `next_offset` (> 0) is where a later call goes on after it."""

    name: bytes
    inode: int
    mode: int
    next_offset: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SetAttributes:
    """A change of attributes; only fields named in `mask` count. Times in nanoseconds."""

    mask: SetAttributesMask
    handle: int
    size: int
    atime: int
    mtime: int
    ctime: int
    mode: int
    uid: int
    gid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FileSystemSize:
    """What `statfs` answers; blocks of `block_bytes`."""

    blocks: int = 0
    free: int = 0
    files: int = 0
    files_free: int = 0
    block_bytes: int = 4096

    def encode(self) -> bytes:
        """Encode as kstatfs."""
        return _STATFS.pack(
            self.blocks, self.free, self.free, self.files, self.files_free, self.block_bytes, MAX_NAME_BYTES,
            self.block_bytes,
        )  # fmt: skip


def parse_request(data: memoryview) -> Request:
    """Split one message of the device.

    Raises:
        EncodingError: `fuse.malformed`.
    """
    if len(data) < _HEADER.size:
        raise EncodingError("fuse.malformed", "a request is shorter than its header")
    length, opcode, unique, node, uid, gid, pid, _extensions, _padding = _HEADER.unpack_from(data)
    if length != len(data):
        raise EncodingError("fuse.malformed", "a request's length field is wrong", expected=length, actual=len(data))
    return Request(opcode, unique, node, uid, gid, pid, data[_HEADER.size :])


def body_struct(request: Request, layout: struct.Struct) -> tuple[int, ...]:
    """Decode a body that is one structure.

    Raises:
        EncodingError: `fuse.malformed`.
    """
    if len(request.body) != layout.size:
        raise EncodingError("fuse.malformed", "a request body has the wrong size", opcode=request.opcode)
    return layout.unpack(request.body)


def body_name(request: Request, skip: int = 0) -> bytes:
    """Decode the one NUL-terminated name after `skip` bytes.

    Raises:
        EncodingError: `fuse.malformed`.
    """
    return _names(request, skip, 1)[0]


def body_two_names(request: Request, skip: int = 0) -> tuple[bytes, bytes]:
    """Decode the two NUL-terminated names after `skip` bytes (for SYMLINK the second is the target).

    Raises:
        EncodingError: `fuse.malformed`.
    """
    first, second = _names(request, skip, 2)
    return first, second


def _names(request: Request, skip: int, count: int) -> list[bytes]:
    body = bytes(request.body[skip:])
    parts = body.split(b"\0")
    if len(parts) != count + 1 or parts[-1] or not all(parts[:-1]) or len(request.body) < skip:
        raise EncodingError("fuse.malformed", "a request's names are malformed", opcode=request.opcode)
    return parts[:-1]


def parse_init(request: Request) -> InitRequest:
    """Decode INIT; newer kernels append fields, which 7.31 does not use.

    Raises:
        EncodingError: `fuse.malformed` or `fuse.version`.
    """
    if len(request.body) < _INIT.size:
        raise EncodingError("fuse.malformed", "INIT is too short")
    major, minor, readahead, flags = _INIT.unpack_from(request.body)
    if major != _MAJOR or minor < _MIN_KERNEL_MINOR:
        raise EncodingError("fuse.version", "the kernel speaks another FUSE protocol", major=major, minor=minor)
    return InitRequest(minor, readahead, flags)


def parse_set_attributes(request: Request) -> SetAttributes:
    """Decode SETATTR.

    Raises:
        EncodingError: `fuse.malformed`.
    """
    values = body_struct(request, _SET_ATTRIBUTES)
    valid, _, handle, size, _owner, atime, mtime, ctime, atime_ns, mtime_ns, ctime_ns, mode, _, uid, gid, _ = values
    return SetAttributes(
        mask=SetAttributesMask(valid),
        handle=handle,
        size=size,
        atime=atime * NANOSECONDS + atime_ns,
        mtime=mtime * NANOSECONDS + mtime_ns,
        ctime=ctime * NANOSECONDS + ctime_ns,
        mode=mode,
        uid=uid,
        gid=gid,
    )


def forget_pairs(request: Request) -> Iterator[tuple[int, int]]:
    """Decode BATCH_FORGET into (node, count).

    Raises:
        EncodingError: `fuse.malformed`.
    """
    body = request.body
    if len(body) < 8 or len(body) != 8 + _FORGET.size * int.from_bytes(body[:4], "little"):
        raise EncodingError("fuse.malformed", "BATCH_FORGET has the wrong size")
    return _FORGET.iter_unpack(body[8:])


def encode_reply_header(unique: int, error: int, payload_bytes: int) -> bytes:
    """Encode the header of a reply; `error` is 0 or a positive errno."""
    return _REPLY.pack(_REPLY.size + payload_bytes, -error, unique)


def encode_init_reply(request: InitRequest, flags: InitFlags) -> bytes:
    """Encode the answer to INIT."""
    readahead = min(request.max_readahead, MAX_TRANSFER_BYTES)
    pages = MAX_TRANSFER_BYTES // 4096
    return _INIT_REPLY.pack(
        _MAJOR, _MINOR, readahead, int(flags), _MAX_BACKGROUND, _CONGESTION, MAX_TRANSFER_BYTES, 1, pages, 0
    )


def _pack_attributes(a: Attributes) -> bytes:
    atime, atime_ns = divmod(a.atime, NANOSECONDS)
    mtime, mtime_ns = divmod(a.mtime, NANOSECONDS)
    ctime, ctime_ns = divmod(a.ctime, NANOSECONDS)
    blocks = (a.size + 511) // 512 if a.blocks is None else a.blocks
    return _ATTRIBUTES.pack(
        a.inode, a.size, blocks, atime, mtime, ctime, atime_ns, mtime_ns, ctime_ns, a.mode, a.links, a.uid, a.gid,
        a.device, 4096, 0,
    )  # fmt: skip


def encode_entry(entry: Entry, *, seconds: int) -> bytes:
    """Encode an entry whose name and attributes the kernel may cache for `seconds`."""
    head = _ENTRY.pack(entry.node, entry.generation, seconds, seconds, 0, 0)
    return head + _pack_attributes(entry.attributes)


def encode_negative_entry(*, seconds: int) -> bytes:
    """Encode "there is no such name", cacheable for `seconds`."""
    return _ENTRY.pack(0, 0, seconds, 0, 0, 0) + bytes(_ATTRIBUTES.size)


def encode_attributes(attributes: Attributes, *, seconds: int) -> bytes:
    """Encode attributes that the kernel may cache for `seconds`."""
    return _ATTRIBUTES_VALID.pack(seconds, 0, 0) + _pack_attributes(attributes)


def encode_open(handle: int, flags: int) -> bytes:
    """Encode the answer to OPEN, OPENDIR and the tail of CREATE."""
    return _OPEN.pack(handle, flags, 0)


def encode_dirent(listed: Listed, *, entry: bytes | None = None) -> bytes:
    """Encode one directory line; `entry` (for READDIRPLUS) goes before it."""
    name = listed.name
    line = _DIRENT.pack(listed.inode, listed.next_offset, len(name), (listed.mode >> 12) & 15)
    return (entry or b"") + line + name + bytes(-len(name) % 8)
