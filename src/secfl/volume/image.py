"""Sealed images, reading: a read-only tree of files over untrusted storage.

Rules it keeps: the root is checked before anything is parsed; sizes and positions come from the manifest alone, never
from the length of what the host stores; each chunk is copied to private memory and authenticated there before one byte
of it is returned; what fails says which rule, and a failed decryption says nothing more.
"""

from __future__ import annotations

import hashlib
import hmac
import zlib
from collections import OrderedDict
from collections.abc import Mapping
from typing import Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from secfl.crypto.aead import KEY_BYTES, derive_key, open_sealed
from secfl.crypto.transcript import digest256
from secfl.errors import ConfigError, EncodingError, SecflError, VerificationError
from secfl.volume.image_manifest import (
    CHUNK_BYTES,
    DIGEST_BYTES,
    MAX_MANIFEST_BYTES,
    TAG_BYTES,
    ImageEntry,
    Kind,
    Mode,
    decode_manifest,
    stored_bytes,
)

__all__ = [
    "HEADER_BYTES",
    "IMAGE_ID_BYTES",
    "MAGIC",
    "MAX_SEALED_MANIFEST_BYTES",
    "DataReader",
    "SealedImage",
    "image_root",
    "open_image",
]

MAGIC = b"SECFLIMG"
IMAGE_ID_BYTES = 16
HEADER_BYTES = 32
"""Magic 8, format version 1, mode 1, zeros 6, image id 16."""
VERSION = 1
MAX_SEALED_MANIFEST_BYTES = MAX_MANIFEST_BYTES + 65536
_MAX_CIPHERS = 1024
"""Expanded keys kept, one a file: about 1 KiB each."""
_MAX_CHUNKS = 16
"""Checked chunks kept for reads smaller than a chunk: 1 MiB."""


class DataReader(Protocol):
    """Where the image's `data` lies; untrusted."""

    def pread(self, offset: int, size: int) -> bytes:
        """Read up to `size` bytes at `offset` into memory that nobody else can change."""


def image_root(sealed_manifest: bytes) -> bytes:
    """Give the 32-byte root that names an image's whole content; needs no key."""
    return digest256("image-root", sealed_manifest)


def open_image(reader: DataReader, sealed_manifest: bytes, *, root: bytes, key: bytes | None = None) -> SealedImage:
    """Check a manifest against its root and give the image.

    Args:
        key: 32 bytes for an encrypted image, None for an authenticated one. The choice is the caller's, so that a host
            cannot pass off a plain image as an encrypted one.

    Raises:
        VerificationError: `volume.root_mismatch`, `volume.mode_mismatch`, `volume.manifest_invalid`.
        ConfigError: `volume.key_size`.
    """
    if key is not None and len(key) != KEY_BYTES:
        raise ConfigError("volume.key_size", "an image key has 32 bytes", actual=len(key))
    # 1. Root first: nothing unauthenticated reaches a parser.
    if not hmac.compare_digest(image_root(sealed_manifest), root):
        raise VerificationError("volume.root_mismatch", "the image's manifest does not have the required root")
    # 2. The form and the mode that the caller asked for.
    mode = _parse_mode(sealed_manifest[:HEADER_BYTES])
    if (mode is Mode.ENCRYPTED) != (key is not None):
        raise VerificationError("volume.mode_mismatch", "the image is not protected in the required way")
    # 3. Content.
    try:
        entries = decode_manifest(mode, _open_body(sealed_manifest, key))
    except (EncodingError, zlib.error) as error:
        raise VerificationError("volume.manifest_invalid", "the image's manifest breaks the format") from error
    return SealedImage(reader, mode, entries, key)


def _parse_mode(header: bytes) -> Mode:
    if len(header) != HEADER_BYTES or header[:8] != MAGIC or header[8] != VERSION or any(header[10:16]):
        raise VerificationError("volume.manifest_invalid", "this is no sealed image of a known version")
    try:
        mode = Mode(header[9])
    except ValueError as error:
        raise VerificationError("volume.manifest_invalid", "the image has an unknown mode") from error
    if mode is Mode.AUTHENTICATED and any(header[16:]):
        raise VerificationError("volume.manifest_invalid", "an authenticated image has no image id")
    return mode


def _open_body(sealed_manifest: bytes, key: bytes | None) -> bytes:
    header, payload = sealed_manifest[:HEADER_BYTES], sealed_manifest[HEADER_BYTES:]
    if key is None:
        return payload
    try:
        packed = open_sealed(derive_key(key, "image-manifest", header[16:]), payload, aad=header)
    except SecflError:
        raise VerificationError("volume.manifest_invalid", "the image's manifest cannot be opened") from None
    inflater = zlib.decompressobj()
    body = inflater.decompress(packed, MAX_MANIFEST_BYTES)
    # An unfinished stream is a bomb beyond the limit; spare input would be a second encoding of one manifest.
    if not inflater.eof or inflater.unconsumed_tail or inflater.unused_data:
        raise EncodingError("image.malformed", "the manifest's compression is malformed")
    return body


class SealedImage:
    """An opened image."""

    def __init__(self, reader: DataReader, mode: Mode, entries: tuple[ImageEntry, ...], key: bytes | None) -> None:
        """Take what `open_image` has checked; only it calls this."""
        self._reader = reader
        self._key = key
        self._by_path: Mapping[str, ImageEntry] = {entry.path: entry for entry in entries}
        self._ciphers: OrderedDict[bytes, AESGCM] = OrderedDict()
        self._chunks: OrderedDict[tuple[int, int], bytes] = OrderedDict()
        self.mode = mode
        self.entries = entries
        """All entries, sorted by path; the root directory has none."""

    @property
    def data_bytes(self) -> int:
        """Bytes of `data` that the image uses."""
        files = (entry.size for entry in self.entries if entry.kind is Kind.FILE)
        return sum(stored_bytes(self.mode, size) for size in files)

    def lookup(self, path: str) -> ImageEntry:
        """Find an entry; links are not followed.

        Raises:
            ConfigError: `image.not_found`.
        """
        entry = self._by_path.get(path)
        if entry is None:
            raise ConfigError("image.not_found", "the image has no such entry", path=path)
        return entry

    def read(self, entry: ImageEntry, offset: int, size: int) -> bytes:
        """Read authentic bytes of a file; fewer than `size` only at its end.

        Raises:
            VerificationError: `volume.chunk_invalid`: a stored chunk is missing, changed or misplaced.
            ValueError: the entry is no file, or the range is negative.
        """
        if entry.kind is not Kind.FILE or offset < 0 or size < 0:
            raise ValueError("a read names a file and a range")
        end = min(offset + size, entry.size)
        if offset >= end:
            return b""
        first, last = offset // CHUNK_BYTES, (end - 1) // CHUNK_BYTES
        chunks = self._kept(entry, first) if first == last else self._fetch(entry, first, last)
        start = offset - first * CHUNK_BYTES
        whole = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        return whole if start == 0 and end - offset == len(whole) else whole[start : start + end - offset]

    def _kept(self, entry: ImageEntry, index: int) -> list[bytes]:
        place = (entry.offset, index)
        chunk = self._chunks.get(place)
        if chunk is None:
            (chunk,) = self._fetch(entry, index, index)
            self._chunks[place] = chunk
            if len(self._chunks) > _MAX_CHUNKS:
                self._chunks.popitem(last=False)
        return [chunk]

    def _fetch(self, entry: ImageEntry, first: int, last: int) -> list[bytes]:
        step = CHUNK_BYTES + (TAG_BYTES if self._key is not None else 0)
        stop = min((last + 1) * step, stored_bytes(self.mode, entry.size))
        stored = self._reader.pread(entry.offset + first * step, stop - first * step)
        if len(stored) != stop - first * step:
            raise VerificationError("volume.chunk_invalid", "a chunk of the image is not authentic")
        view = memoryview(stored)
        return [
            self._check(entry, index, view[(index - first) * step : (index - first + 1) * step])
            for index in range(first, last + 1)
        ]

    def _check(self, entry: ImageEntry, index: int, stored: memoryview) -> bytes:
        if self._key is None:
            digest = entry.chunk_digests[index * DIGEST_BYTES : (index + 1) * DIGEST_BYTES]
            if not hmac.compare_digest(hashlib.sha256(stored).digest(), digest):
                raise VerificationError("volume.chunk_invalid", "a chunk of the image is not authentic")
            return bytes(stored)
        try:
            return self._cipher(entry.file_id).decrypt(index.to_bytes(12, "big"), stored, None)
        except InvalidTag:
            raise VerificationError("volume.chunk_invalid", "a chunk of the image is not authentic") from None

    def _cipher(self, file_id: bytes) -> AESGCM:
        cipher = self._ciphers.get(file_id)
        if cipher is None:
            assert self._key is not None  # `_check` asks for ciphers of encrypted images only
            cipher = AESGCM(derive_key(self._key, "image-file", file_id))
            self._ciphers[file_id] = cipher
            if len(self._ciphers) > _MAX_CIPHERS:
                self._ciphers.popitem(last=False)
        return cipher
