"""The manifest of a sealed image: a strict binary list of entries. Pure.

Whatever `decode_manifest` accepts, `encode_manifest` writes again byte for byte. Limits hold before anything of that
size is made. Offsets are not stored but follow from the order, so no two files can share bytes.
`docs/formats/sealed-image.md` has the layout.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum

from secfl.errors import EncodingError
from secfl.volume.image_paths import MAX_PATH_BYTES, MAX_TARGET_BYTES, check_path, check_target, fold

__all__ = [
    "CHUNK_BYTES",
    "DIGEST_BYTES",
    "FILE_ID_BYTES",
    "MAX_ENTRIES",
    "MAX_FILE_BYTES",
    "MAX_MANIFEST_BYTES",
    "ImageEntry",
    "Kind",
    "Mode",
    "chunk_count",
    "decode_manifest",
    "encode_manifest",
    "stored_bytes",
]

CHUNK_BYTES = 65536
"""Plaintext bytes of a chunk; the last one of a file is shorter."""
TAG_BYTES = 16
DIGEST_BYTES = 32
FILE_ID_BYTES = 16
MAX_ENTRIES = 1_000_000
MAX_MANIFEST_BYTES = 256 * 1024 * 1024
"""Of the decoded manifest: a million entries with long names, or 500 GB under digests."""
MAX_FILE_BYTES = 1 << 40
_MAX_MODE = 0o777
"""No set-user-id, set-group-id or sticky bits."""
_COUNT = struct.Struct(">I")
_HEAD = struct.Struct(">BHH")
_SIZE = struct.Struct(">Q")
_LENGTH = struct.Struct(">H")


class Mode(IntEnum):
    """How an image's data is protected."""

    AUTHENTICATED = 1
    ENCRYPTED = 2


class Kind(IntEnum):
    """What an entry is."""

    DIRECTORY = 1
    FILE = 2
    SYMLINK = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageEntry:
    """One file, directory or link.

    Attributes:
        path: relative to the image's root, which itself has no entry.
        mode: permission bits.
        size: plaintext bytes of a file.
        offset: where a file's chunks start in `data`.
        target: where a link points.
        file_id: key context of an encrypted file; used for exactly one content.
        digest: SHA-256 of an encrypted file's plaintext, for audit.
        chunk_digests: SHA-256 of each chunk of an authenticated file, one after the other.
    """

    path: str
    kind: Kind
    mode: int
    size: int = 0
    offset: int = 0
    target: str = ""
    file_id: bytes = b""
    digest: bytes = b""
    chunk_digests: bytes = b""


def chunk_count(size: int) -> int:
    """Count the chunks of a file."""
    return (size + CHUNK_BYTES - 1) // CHUNK_BYTES


def stored_bytes(mode: Mode, size: int) -> int:
    """Give how many bytes of `data` a file takes."""
    return size + (TAG_BYTES * chunk_count(size) if mode is Mode.ENCRYPTED else 0)


def encode_manifest(mode: Mode, entries: Iterable[ImageEntry]) -> bytes:
    """Encode entries, which must be in the order and form that `decode_manifest` accepts.

    Raises:
        EncodingError: `image.path`, `image.link`, `image.order`, `image.limit` or `image.malformed`.
    """
    parts = [_encode_entry(mode, entry) for entry in entries]
    body = _COUNT.pack(len(parts)) + b"".join(parts)
    decode_manifest(mode, body)
    return body


def _encode_entry(mode: Mode, entry: ImageEntry) -> bytes:
    path = entry.path.encode("utf-8", "surrogateescape")
    if len(path) > MAX_PATH_BYTES or not 0 <= entry.mode <= _MAX_MODE:
        raise EncodingError("image.limit", "an entry's path or mode is out of range")
    head = _HEAD.pack(entry.kind, entry.mode, len(path)) + path
    if entry.kind is Kind.DIRECTORY:
        return head
    if entry.kind is Kind.SYMLINK:
        target = entry.target.encode("utf-8", "surrogateescape")
        if len(target) > MAX_TARGET_BYTES:
            raise EncodingError("image.limit", "a link's target is too long")
        return head + _LENGTH.pack(len(target)) + target
    if not 0 <= entry.size <= MAX_FILE_BYTES:
        raise EncodingError("image.limit", "a file is too large", path=entry.path)
    content = entry.file_id + entry.digest if mode is Mode.ENCRYPTED else entry.chunk_digests
    return head + _SIZE.pack(entry.size) + content


def decode_manifest(mode: Mode, body: bytes) -> tuple[ImageEntry, ...]:
    """Decode and check the whole list.

    Raises:
        EncodingError: `image.path`, `image.link`, `image.order`, `image.limit` or `image.malformed`.
    """
    if len(body) > MAX_MANIFEST_BYTES:
        raise EncodingError("image.limit", "the manifest is too large", expected=MAX_MANIFEST_BYTES, actual=len(body))
    reader = _Reader(body)
    (count,) = reader.unpack(_COUNT)
    if count > min(MAX_ENTRIES, len(body) // _HEAD.size):
        raise EncodingError("image.limit", "the manifest has too many entries", actual=count)
    entries: list[ImageEntry] = []
    rules = _Rules()
    offset = 0
    for _ in range(count):
        entry = _decode_entry(reader, mode, offset)
        rules.admit(entry)
        entries.append(entry)
        if entry.kind is Kind.FILE:
            offset += stored_bytes(mode, entry.size)
    reader.finish()
    return tuple(entries)


class _Rules:
    """What must hold between the entries."""

    def __init__(self) -> None:
        self._last = b""
        self._directories = {""}
        self._folded: set[str] = set()
        self._file_ids: set[bytes] = set()

    def admit(self, entry: ImageEntry) -> None:
        path = entry.path
        order = path.encode()
        if order <= self._last:
            raise EncodingError("image.order", "paths are not sorted, or one is there twice", path=path)
        self._last = order
        if path.rpartition("/")[0] not in self._directories:
            raise EncodingError("image.order", "an entry's parent is no directory of the image", path=path)
        folded = fold(path)
        if folded in self._folded:
            raise EncodingError("image.path", "two paths differ only in case or normalisation", path=path)
        self._folded.add(folded)
        if entry.kind is Kind.DIRECTORY:
            self._directories.add(path)
        if entry.file_id:
            if entry.file_id in self._file_ids:
                raise EncodingError("image.order", "two files have one file id", path=path)
            self._file_ids.add(entry.file_id)


def _decode_entry(reader: _Reader, mode: Mode, offset: int) -> ImageEntry:
    kind_code, permissions, length = reader.unpack(_HEAD)
    if permissions > _MAX_MODE:
        raise EncodingError("image.limit", "an entry's mode has more than permission bits", mode=permissions)
    path = check_path(reader.text(length))
    if kind_code == Kind.DIRECTORY:
        return ImageEntry(path=path, kind=Kind.DIRECTORY, mode=permissions)
    if kind_code == Kind.SYMLINK:
        target = check_target(path, reader.text(reader.unpack(_LENGTH)[0]))
        return ImageEntry(path=path, kind=Kind.SYMLINK, mode=permissions, target=target)
    if kind_code != Kind.FILE:
        raise EncodingError("image.malformed", "an entry is of an unknown kind", actual=kind_code)
    (size,) = reader.unpack(_SIZE)
    if size > MAX_FILE_BYTES:
        raise EncodingError("image.limit", "a file is too large", path=path)
    file_id = digest = digests = b""
    if mode is Mode.ENCRYPTED:
        file_id, digest = reader.take(FILE_ID_BYTES), reader.take(DIGEST_BYTES)
    else:
        digests = reader.take(DIGEST_BYTES * chunk_count(size))
    return ImageEntry(
        path=path, kind=Kind.FILE, mode=permissions, size=size, offset=offset, file_id=file_id, digest=digest,
        chunk_digests=digests,
    )  # fmt: skip


class _Reader:
    """Takes bytes from the front; never past the end."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, size: int) -> bytes:
        end = self._at + size
        if end > len(self._data):
            raise EncodingError("image.malformed", "the manifest ends too early")
        piece = self._data[self._at : end]
        self._at = end
        return piece

    def unpack(self, layout: struct.Struct) -> tuple[int, ...]:
        return layout.unpack(self.take(layout.size))

    def text(self, size: int) -> str:
        try:
            return self.take(size).decode("utf-8", "strict")
        except UnicodeDecodeError as error:
            raise EncodingError("image.path", "a path is not Unicode text") from error

    def finish(self) -> None:
        if self._at != len(self._data):
            raise EncodingError("image.malformed", "bytes follow the manifest")
