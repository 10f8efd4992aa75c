"""Sealed images, writing: entries in path order in, `data` bytes out, the sealed manifest at the end.

Memory does not grow with file sizes. A file id is drawn afresh for every file, so one key and nonce never seal two
contents. Authenticated images are deterministic: same entries, same bytes; their manifest is therefore not compressed,
since zlib's output differs from build to build.
"""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from secfl.crypto.aead import KEY_BYTES, derive_key, seal
from secfl.errors import ConfigError
from secfl.volume.image import HEADER_BYTES, IMAGE_ID_BYTES, MAGIC, VERSION
from secfl.volume.image_manifest import CHUNK_BYTES, FILE_ID_BYTES, ImageEntry, Kind, Mode, encode_manifest
from secfl.volume.image_paths import check_path, check_target

__all__ = ["ImageWriter"]


class ImageWriter:
    """Builds one image."""

    def __init__(self, write: Callable[[bytes], object], *, mode: Mode, key: bytes | None = None) -> None:
        """Start an image whose data goes to `write`, piece by piece.

        Raises:
            ConfigError: `volume.key_size`: an encrypted image needs a 32-byte key, an authenticated one takes none.
        """
        if (len(key) if key is not None else 0) != (KEY_BYTES if mode is Mode.ENCRYPTED else 0):
            raise ConfigError("volume.key_size", "an encrypted image needs a 32-byte key, another takes none")
        self._write = write
        self._mode = mode
        self._key = key
        self._entries: list[ImageEntry] = []

    def add_directory(self, path: str, *, mode: int = 0o555) -> None:
        """Add a directory.

        Raises:
            EncodingError: `image.path`.
        """
        self._entries.append(ImageEntry(path=check_path(path), kind=Kind.DIRECTORY, mode=mode))

    def add_symlink(self, path: str, target: str) -> None:
        """Add a symbolic link that stays inside the image.

        Raises:
            EncodingError: `image.path` or `image.link`.
        """
        check_target(check_path(path), target)
        self._entries.append(ImageEntry(path=path, kind=Kind.SYMLINK, mode=0o777, target=target))

    def add_file(self, path: str, content: Iterable[bytes], *, mode: int = 0o444) -> int:
        """Add a file from pieces of any size; give its size.

        Raises:
            EncodingError: `image.path`.
        """
        check_path(path)
        size, file_id, digest, digests = 0, b"", hashlib.sha256(), []
        cipher: AESGCM | None = None
        if self._key is not None:
            file_id = os.urandom(FILE_ID_BYTES)
            cipher = AESGCM(derive_key(self._key, "image-file", file_id))
        for index, chunk in enumerate(_chunks(content)):
            size += len(chunk)
            if cipher is None:
                digests.append(hashlib.sha256(chunk).digest())
                self._write(chunk)
            else:
                digest.update(chunk)
                self._write(cipher.encrypt(index.to_bytes(12, "big"), chunk, None))
        content_digest = digest.digest() if cipher else b""
        entry = ImageEntry(path=path, kind=Kind.FILE, mode=mode, size=size, file_id=file_id, digest=content_digest)
        self._entries.append(replace(entry, chunk_digests=b"".join(digests)))
        return size

    def finish(self) -> bytes:
        """Give the sealed manifest; its `image_root` names the image.

        Raises:
            EncodingError: `image.order` when the entries were not added in path order, and the codes of
                `encode_manifest`.
        """
        body = encode_manifest(self._mode, self._entries)
        identity = bytes(IMAGE_ID_BYTES) if self._key is None else os.urandom(IMAGE_ID_BYTES)
        header = (MAGIC + bytes([VERSION, self._mode])).ljust(HEADER_BYTES - IMAGE_ID_BYTES, b"\0") + identity
        if self._key is None:
            return header + body
        return header + seal(derive_key(self._key, "image-manifest", identity), zlib.compress(body), aad=header)


def _chunks(content: Iterable[bytes]) -> Iterator[bytes]:
    pending = bytearray()
    for piece in content:
        pending += piece
        while len(pending) >= CHUNK_BYTES:
            yield bytes(pending[:CHUNK_BYTES])
            del pending[:CHUNK_BYTES]
    if pending:
        yield bytes(pending)
