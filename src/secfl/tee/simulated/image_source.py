"""A runtime image as the platform sees it: the hash of the manifest it read, and the data that goes with it.

Only the manifest is hashed at launch; it holds the hash of every chunk, and chunks are checked when they are read. The
manifest is read once, into memory, and the data file stays the one that was opened: nothing is looked up again.
"""

from __future__ import annotations

import os
import stat

from secfl.errors import ConfigError
from secfl.linux.image_server import serve_image
from secfl.volume.image import MAX_SEALED_MANIFEST_BYTES, image_root, open_image

__all__ = ["MeasuredImage"]


class MeasuredImage:
    """An image whose root was computed here."""

    def __init__(self, manifest: int, data: int) -> None:
        """Read the manifest and compute the root; the data descriptor stays the caller's.

        Raises:
            ConfigError: `platform.image_refused`: not a regular file, or too large.
        """
        for descriptor in (manifest, data):
            # A pipe or device could stop the platform for ever.
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise ConfigError("platform.image_refused", "an image consists of regular files")
        self._manifest = _read(manifest)
        self.data = data
        self.root = image_root(self._manifest)

    def serve(self, connection: int) -> None:
        """Answer a mounted FUSE connection until it ends; every chunk is checked against the manifest.

        Raises:
            VerificationError: the codes of `open_image`.
            OSError: the device fails.
        """
        serve_image(connection, open_image(_Reader(self.data), self._manifest, root=self.root))


class _Reader:
    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def pread(self, offset: int, size: int) -> bytes:
        return os.pread(self._descriptor, size, offset)


def _read(descriptor: int) -> bytes:
    parts, offset = [], 0
    while part := os.pread(descriptor, 1 << 20, offset):
        offset += len(part)
        if offset > MAX_SEALED_MANIFEST_BYTES:
            raise ConfigError("platform.image_refused", "the image's manifest is too large")
        parts.append(part)
    return b"".join(parts)
