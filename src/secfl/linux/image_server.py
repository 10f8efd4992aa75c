"""Serves a sealed image as a read-only file system.

Content never changes, so the kernel may keep names, attributes and pages for as long as it likes: after the first read
a file costs what it costs on any disk. A chunk that is not authentic is EIO for the program, and never wrong bytes.
Because nothing changes, several forked servers may answer one mount.
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar

from secfl.errors import SecflError
from secfl.linux.fuse import FuseServer
from secfl.linux.fuse_operations import ROOT_NODE, Operations
from secfl.linux.fuse_wire import Attributes, Entry, FileSystemSize, InitFlags, Listed, Request
from secfl.volume.image import SealedImage
from secfl.volume.image_manifest import ImageEntry, Kind

__all__ = ["ImageOperations", "serve_image"]

_DAY = 86_400
_TYPES = {Kind.DIRECTORY: stat.S_IFDIR, Kind.FILE: stat.S_IFREG, Kind.SYMLINK: stat.S_IFLNK}
_ROOT = ImageEntry(path="", kind=Kind.DIRECTORY, mode=0o555)


class ImageOperations(Operations):
    """One image; node numbers are positions in the manifest.

    Raises:
        OSError: any operation, with the number that the program is to see.
    """

    init_flags: ClassVar[InitFlags] = (
        InitFlags.ASYNC_READ
        | InitFlags.DO_READDIRPLUS
        | InitFlags.READDIRPLUS_AUTO
        | InitFlags.NO_OPEN
        | InitFlags.NO_OPENDIR
        | InitFlags.PARALLEL_DIROPS
        | InitFlags.MAX_PAGES
        | InitFlags.CACHE_SYMLINKS
    )
    required_flags: ClassVar[InitFlags] = InitFlags.NO_OPEN | InitFlags.NO_OPENDIR
    cache_seconds: ClassVar[int] = _DAY
    negative_cache_seconds: ClassVar[int] = _DAY

    def __init__(
        self, image: SealedImage, *, owner: tuple[int, int] = (0, 0), failed: Callable[[SecflError], None] | None = None
    ) -> None:
        """Index the image.

        Args:
            owner: user and group of all files, as numbered inside the user namespace that mounted them.
            failed: told about each read that was not authentic.
        """
        self._image = image
        self._failed = failed
        self._owner = owner
        self._nodes: list[ImageEntry] = [_ROOT, *image.entries]
        self._names: list[dict[bytes, int]] = [{} if e.kind is Kind.DIRECTORY else _NONE for e in self._nodes]
        self._parents: list[int] = [0] * len(self._nodes)
        positions = {"": 0}
        for position, entry in enumerate(image.entries, 1):
            parent, _, name = entry.path.rpartition("/")
            self._parents[position] = positions[parent]
            self._names[positions[parent]][name.encode()] = position
            if entry.kind is Kind.DIRECTORY:
                positions[entry.path] = position

    def failed(self, request: Request, error: SecflError) -> None:  # noqa: ARG002 - the base's signature
        """Pass on what was not authentic."""
        if self._failed is not None:
            self._failed(error)

    def lookup(self, node: int, name: bytes) -> Entry | None:
        """Find a name in a directory; None if there is none."""
        position = self._directory(node).get(name)
        return None if position is None else Entry(position + ROOT_NODE, self._attributes(position))

    def getattr(self, node: int) -> Attributes:
        """Give a node's attributes."""
        return self._attributes(self._position(node))

    def readlink(self, node: int) -> bytes:
        """Give a symbolic link's target."""
        entry = self._nodes[self._position(node)]
        if entry.kind is not Kind.SYMLINK:
            raise OSError(errno.EINVAL, "no symbolic link")
        return entry.target.encode()

    def read(self, node: int, handle: int, offset: int, size: int) -> Sequence[bytes]:  # noqa: ARG002 - as above
        """Read authentic bytes.

        Raises:
            VerificationError: `volume.chunk_invalid`.
        """
        entry = self._nodes[self._position(node)]
        if entry.kind is not Kind.FILE:
            raise OSError(errno.EISDIR, "no file")
        return [self._image.read(entry, offset, size)]

    def readdir(self, node: int, handle: int, offset: int) -> Iterator[Listed]:  # noqa: ARG002 - as above
        """List a directory from an offset."""
        position = self._position(node)
        lines = [(b".", position), (b"..", self._parents[position]), *self._directory(node).items()]
        for number, (name, child) in enumerate(lines[offset:], offset + 1):
            yield Listed(name, child + ROOT_NODE, _TYPES[self._nodes[child].kind], number)

    def statfs(self) -> FileSystemSize:
        """Give the image's size; nothing is free."""
        return FileSystemSize(blocks=self._image.data_bytes // 4096 + 1, files=len(self._nodes))

    def _position(self, node: int) -> int:
        position = node - ROOT_NODE
        if not 0 <= position < len(self._nodes):
            raise OSError(errno.ESTALE, "no such node")
        return position

    def _directory(self, node: int) -> dict[bytes, int]:
        position = self._position(node)
        if self._nodes[position].kind is not Kind.DIRECTORY:
            raise NotADirectoryError(errno.ENOTDIR, "no directory")
        return self._names[position]

    def _attributes(self, position: int) -> Attributes:
        entry = self._nodes[position]
        size = len(entry.target.encode()) if entry.kind is Kind.SYMLINK else entry.size
        uid, gid = self._owner
        return Attributes(
            inode=position + ROOT_NODE, mode=_TYPES[entry.kind] | entry.mode, size=size, uid=uid, gid=gid,
            links=2 if entry.kind is Kind.DIRECTORY else 1,
        )  # fmt: skip


_NONE: dict[bytes, int] = {}
"""Shared by all entries that are no directories."""


def serve_image(fuse_fd: int, image: SealedImage, *, failed: Callable[[SecflError], None] | None = None) -> None:
    """Answer a mounted connection until it is unmounted.

    Raises:
        EncodingError: `fuse.malformed` or `fuse.version`.
        ConfigError: `fuse.capability_missing`.
    """
    FuseServer(fuse_fd, ImageOperations(image, failed=failed)).serve()
