"""Sealed images as directories: pack a tree of files into one, open one.

An image directory holds two files, `data` and `manifest`. Packing walks by descriptors without following links, so that
a tree that changes underneath cannot lead it elsewhere, and refuses what a data set has no business to contain (FS-08):
devices, sockets, FIFOs, hard links, links that leave the tree. Opening trusts neither file.
"""

from __future__ import annotations

import os
import stat
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from secfl.errors import ConfigError, UnavailableError
from secfl.volume.image import MAX_SEALED_MANIFEST_BYTES, SealedImage, image_root, open_image
from secfl.volume.image_manifest import MAX_ENTRIES, Mode
from secfl.volume.image_writer import ImageWriter

__all__ = [
    "DATA_NAME",
    "DEFAULT_MAX_BYTES",
    "MANIFEST_NAME",
    "FileReader",
    "ImageOutput",
    "PackedImage",
    "open_image_directory",
    "pack_image",
]

DATA_NAME = "data"
MANIFEST_NAME = "manifest"
_PARTIAL_NAME = "manifest.partial"
DEFAULT_MAX_BYTES = 64 << 30
"""Most plaintext of one image unless the caller allows more: stops a sparse file of a terabyte (FS-08)."""
_PIECE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class PackedImage:
    """What packing made.

    Attributes:
        root: 32 bytes that name the content; what a policy pins.
        total_bytes: plaintext bytes of all files.
        files: number of files.
    """

    root: bytes
    total_bytes: int
    files: int


class FileReader:
    """Reads an image's `data` by position; every read is a private copy."""

    def __init__(self, path: Path) -> None:
        """Open the file; a FIFO, device or link that the host put in its place is refused (FS-08).

        Raises:
            UnavailableError: `image.unreadable`.
            ConfigError: `image.not_a_file`.
        """
        try:
            self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError as error:
            raise UnavailableError("image.unreadable", f"{path} cannot be read: {error.strerror}") from error
        if not stat.S_ISREG(os.fstat(self.fd).st_mode):
            os.close(self.fd)
            raise ConfigError("image.not_a_file", f"{path} is not a regular file")
        self._close = weakref.finalize(self, os.close, self.fd)

    def pread(self, offset: int, size: int) -> bytes:
        """Read up to `size` bytes; fewer only at the end of the file."""
        piece = os.pread(self.fd, size, offset)
        while piece and len(piece) < size:
            more = os.pread(self.fd, size - len(piece), offset + len(piece))
            if not more:
                break
            piece += more
        return piece

    def close(self) -> None:
        """Close the file now rather than with its last use."""
        self._close()


class ImageOutput:
    """A new image directory being written; gone again when the `with` block that fills it fails.

    Attributes:
        writer: takes the entries.
    """

    def __init__(self, out_dir: Path, *, mode: Mode, key: bytes | None = None) -> None:
        """Make the directory and an empty image in it.

        Raises:
            ConfigError: `image.exists` or `volume.key_size`.
        """
        # The key is checked before anything is made.
        self.writer = ImageWriter(self._write, mode=mode, key=key)
        try:
            out_dir.mkdir(mode=0o755, parents=True)
        except FileExistsError as error:
            raise ConfigError("image.exists", f"{out_dir} exists already", hint="choose a new directory") from error
        self._directory = out_dir
        self._data = (out_dir / DATA_NAME).open("xb", buffering=_PIECE_BYTES)

    def _write(self, piece: bytes) -> None:
        self._data.write(piece)

    def __enter__(self) -> Self:
        """Begin to write."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the data; remove what a failure left."""
        self._data.close()
        if kind is not None:
            for name in (DATA_NAME, _PARTIAL_NAME, MANIFEST_NAME):
                (self._directory / name).unlink(missing_ok=True)
            self._directory.rmdir()

    def finish(self) -> bytes:
        """Write the manifest last, durably, and give the image's root.

        Raises:
            EncodingError: the codes of `ImageWriter.finish`.
        """
        sealed = self.writer.finish()
        self._data.flush()
        os.fsync(self._data.fileno())
        partial = self._directory / _PARTIAL_NAME
        with partial.open("xb") as file:
            file.write(sealed)
            file.flush()
            os.fsync(file.fileno())
        partial.rename(self._directory / MANIFEST_NAME)
        return image_root(sealed)


def open_image_directory(directory: Path, *, root: bytes, key: bytes | None = None) -> SealedImage:
    """Open an image directory whose content must have the given root.

    Raises:
        UnavailableError: `image.unreadable`.
        VerificationError: the codes of `open_image`; also `volume.root_mismatch` for an over-long manifest.
        ConfigError: `volume.key_size` or `image.not_a_file`.
    """
    manifest = FileReader(directory / MANIFEST_NAME)
    try:
        sealed = manifest.pread(0, MAX_SEALED_MANIFEST_BYTES + 1)
    finally:
        manifest.close()
    return open_image(FileReader(directory / DATA_NAME), sealed, root=root, key=key)


def pack_image(
    source_dir: Path, out_dir: Path, *, mode: Mode, key: bytes | None = None, max_bytes: int = DEFAULT_MAX_BYTES
) -> PackedImage:
    """Pack a directory tree; permissions are reduced to read and execute, times and owners are left out.

    Raises:
        ConfigError: `image.exists`, `image.source_unreadable`, `image.file_kind`, `image.hard_link`,
            `image.too_large`, `image.source_changed` or `volume.key_size`.
        EncodingError: `image.path`, `image.link`, `image.order` or `image.limit`.
    """
    try:
        top = os.open(source_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise ConfigError("image.source_unreadable", f"{source_dir} cannot be read: {error.strerror}") from error
    try:
        with ImageOutput(out_dir, mode=mode, key=key) as output:
            return _Packer(top, max_bytes).pack(output)
    except OSError as error:
        raise ConfigError("image.source_unreadable", f"packing failed: {error.strerror}") from error
    finally:
        os.close(top)


class _Packer:
    def __init__(self, top: int, max_bytes: int) -> None:
        self._top = top
        self._left = max_bytes
        self._files = self._bytes = 0

    def pack(self, output: ImageOutput) -> PackedImage:
        found = dict(self._walk(self._top, ""))
        for path in sorted(found, key=os.fsencode):
            self._add(output.writer, path, found[path])
        return PackedImage(output.finish(), self._bytes, self._files)

    def _walk(self, directory: int, prefix: str) -> Iterator[tuple[str, os.stat_result]]:
        """List the tree and refuse what is not allowed before anything is written."""
        with os.scandir(directory) as lines:
            names = [line.name for line in lines]
        for count, name in enumerate(names):
            if count > MAX_ENTRIES:
                raise ConfigError("image.too_large", "a directory has too many entries", path=prefix)
            path = prefix + name
            status = os.stat(name, dir_fd=directory, follow_symlinks=False)
            self._check(path, status)
            yield path, status
            if stat.S_ISDIR(status.st_mode):
                child = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
                try:
                    yield from self._walk(child, path + "/")
                finally:
                    os.close(child)

    def _check(self, path: str, status: os.stat_result) -> None:
        kind = stat.S_IFMT(status.st_mode)
        if kind not in (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK):
            raise ConfigError("image.file_kind", "a device, socket or FIFO cannot be packed", path=path)
        if kind == stat.S_IFREG:
            if status.st_nlink > 1:
                raise ConfigError(
                    "image.hard_link",
                    "a file has a second name, which may lie outside the tree",
                    hint="pack a copy of the tree",
                    path=path,
                )
            self._left -= status.st_size
            if self._left < 0:
                raise ConfigError("image.too_large", "the tree holds more than the allowed bytes", path=path)

    def _add(self, writer: ImageWriter, path: str, status: os.stat_result) -> None:
        if stat.S_ISDIR(status.st_mode):
            writer.add_directory(path)
            return
        directory, name = self._parent(path)
        try:
            if stat.S_ISLNK(status.st_mode):
                writer.add_symlink(path, os.readlink(name, dir_fd=directory))
                return
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
        finally:
            if directory != self._top:
                os.close(directory)
        with os.fdopen(fd, "rb", buffering=0) as file:
            self._require_same(path, status, os.fstat(fd))
            mode = 0o555 if status.st_mode & stat.S_IXUSR else 0o444
            size = writer.add_file(path, _pieces(file.fileno(), status.st_size), mode=mode)
            self._require_same(path, status, os.fstat(fd))
        if size != status.st_size:
            raise ConfigError("image.source_changed", "a file changed while it was packed", path=path)
        self._files += 1
        self._bytes += size

    def _parent(self, path: str) -> tuple[int, str]:
        *directories, name = path.split("/")
        current = self._top
        for part in directories:
            step = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=current)
            if current != self._top:
                os.close(current)
            current = step
        return current, name

    @staticmethod
    def _require_same(path: str, before: os.stat_result, now: os.stat_result) -> None:
        if (before.st_dev, before.st_ino, before.st_size, before.st_mtime_ns) != (
            now.st_dev, now.st_ino, now.st_size, now.st_mtime_ns,
        ):  # fmt: skip
            raise ConfigError("image.source_changed", "a file changed while it was packed", path=path)


def _pieces(fd: int, size: int) -> Iterator[bytes]:
    # One byte more than announced is asked for, so that a file that grows is noticed and never read without end.
    left = size + 1
    while left > 0 and (piece := os.read(fd, min(_PIECE_BYTES, left))):
        left -= len(piece)
        yield piece
