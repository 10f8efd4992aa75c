"""The host files of a sealed volume: one directory with `slots` and `journal`.

The directory belongs to the host. Every file is opened relative to it, as a regular file and not through a link, so
that a planted link (FS-08) cannot lead the shield to a file of its own.
"""

from __future__ import annotations

import fcntl
import os
import stat
from pathlib import Path

from secfl.errors import ConfigError, StateError
from secfl.volume.storage import VolumeFiles

__all__ = ["HostDirectory", "HostFile"]

_FLAGS = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


class HostFile:
    """A file below a directory descriptor; implements `secfl.volume.storage.BlockFile`."""

    def __init__(self, directory: int, name: str) -> None:
        """Open or create the file.

        Raises:
            ConfigError: `volume.not_a_file`.
            OSError: what the host answers.
        """
        self._directory = directory
        self._name = name
        self._fd = self._open(_FLAGS | os.O_CREAT, name)

    def size(self) -> int:
        """Return the length in bytes, as the host states it."""
        return os.fstat(self._fd).st_size

    def pread(self, offset: int, size: int) -> bytes:
        """Return a private copy of up to `size` bytes; fewer only at the end of the file.

        Raises:
            OSError: what the host answers.
        """
        parts = []
        while size > 0:
            part = os.pread(self._fd, size, offset)
            if not part:
                break
            parts.append(part)
            offset += len(part)
            size -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def pwrite(self, offset: int, data: bytes) -> None:
        """Write all bytes, growing the file when needed.

        Raises:
            OSError: what the host answers.
        """
        _write_all(self._fd, offset, data)

    def truncate(self, size: int) -> None:
        """Cut the file to `size` bytes.

        Raises:
            OSError: what the host answers.
        """
        if self.size() != size:
            os.ftruncate(self._fd, size)

    def sync(self) -> None:
        """Make everything written so far durable.

        Raises:
            OSError: what the host answers.
        """
        os.fdatasync(self._fd)

    def replace(self, data: bytes) -> None:
        """Replace the whole content atomically and durably.

        Raises:
            OSError: the content is the old one.
            StateError: `volume.journal_failed` when it may be either.
        """
        name = f"{self._name}.new"
        fd = self._open(_FLAGS | os.O_CREAT | os.O_TRUNC, name)
        try:
            _write_all(fd, 0, data)
            os.fsync(fd)
        except OSError:
            os.close(fd)
            os.unlink(name, dir_fd=self._directory)
            raise
        try:
            os.rename(name, self._name, src_dir_fd=self._directory, dst_dir_fd=self._directory)
            os.fsync(self._directory)
        except OSError as error:
            os.close(fd)
            raise StateError("volume.journal_failed", "the host's storage failed at a checkpoint") from error
        os.close(self._fd)
        self._fd = fd

    def fileno(self) -> int:
        """Return the present descriptor; `replace` changes it."""
        return self._fd

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)

    def _open(self, flags: int, name: str) -> int:
        fd = os.open(name, flags, 0o600, dir_fd=self._directory)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise ConfigError("volume.not_a_file", f"{name} of the volume is not a regular file")
        return fd


class HostDirectory:
    """A volume's directory, locked, with its two files open."""

    def __init__(self, path: Path) -> None:
        """Open or create directory and files, and take the lock, which this process and its children keep.

        The lock only saves an operator from a mistake; the freshness service is what stops a second writer (FS-15).

        Raises:
            StateError: `volume.in_use`.
            ConfigError: `volume.not_a_file`.
            OSError: what the host answers.
        """
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._fd)
            raise StateError("volume.in_use", "another process holds this volume open") from None
        self._slots = HostFile(self._fd, "slots")
        self._journal = HostFile(self._fd, "journal")
        os.fsync(self._fd)

    @property
    def files(self) -> VolumeFiles:
        """The files, for `create_volume` and `open_volume`."""
        return VolumeFiles(slots=self._slots, journal=self._journal)

    @property
    def descriptors(self) -> tuple[int, ...]:
        """What a server's process must keep open."""
        return self._fd, self._slots.fileno(), self._journal.fileno()

    def close(self) -> None:
        """Close the files; the lock ends with the last process that keeps it."""
        self._slots.close()
        self._journal.close()
        os.close(self._fd)


def _write_all(fd: int, offset: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view = view[written:]
        offset += written
