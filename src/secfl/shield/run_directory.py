"""The run directory: `/run/secfl` of the program, where shield and program exchange public facts by files.

Its content belongs to the program, which may be hostile: everything is opened relative to the directory, without
following links, as regular files, with bounds. Nothing secret is written here after the start.
"""

from __future__ import annotations

import os
import re
import secrets
import stat
from collections.abc import Iterable

from secfl.crypto import strict_json
from secfl.errors import EncodingError, StateError
from secfl.protocol.service import Peer, Progress

__all__ = ["RunDirectory"]

_SITE = re.compile(r"[a-z0-9][a-z0-9._~-]{0,127}\Z")
_MAX_PROGRESS = 64 * 1024 * 1024
_MAX_LINE = 64 * 1024
_MAX_READ = 1024 * 1024
"""Bytes of one call: a program that writes without end costs a bounded amount of the shield's memory."""
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class RunDirectory:
    """The directory by its descriptor."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._offset = 0

    def fileno(self) -> int:
        """Return the descriptor, for a process that shall keep it."""
        return self._descriptor

    def write_peers(self, peers: Iterable[Peer]) -> None:
        """Replace `peers.json` with the live peers that have an engine key.

        Raises:
            StateError: `run_directory.unwritable`: the program filled its memory or put something else in the place.
        """
        document = {
            "peers": [
                {"site": peer.site, "node_key": peer.node_key, "lease_until": peer.lease_until}
                for peer in peers
                if peer.node_key
            ]
        }
        self._replace("peers.json", strict_json.encode(document))

    def is_admitted(self, site: str) -> bool:
        """Tell whether the program has registered this site with its engine."""
        if not _SITE.match(site):
            return False
        try:
            folder = os.open("admitted", _READ | os.O_DIRECTORY, dir_fd=self._descriptor)
        except OSError:
            return False
        try:
            return stat.S_ISREG(os.stat(site, dir_fd=folder, follow_symlinks=False).st_mode)
        except OSError:
            return False
        finally:
            os.close(folder)

    def signature(self, name: str) -> tuple[int, int]:
        """Tell a file's time of change and size, (0, 0) without one: enough to notice that it changed."""
        try:
            state = os.stat(name, dir_fd=self._descriptor, follow_symlinks=False)
        except OSError:
            return 0, 0
        return state.st_mtime_ns, state.st_size

    def new_progress(self) -> list[Progress]:
        """Read complete lines that the program has added to `progress`; call again until nothing more comes.

        Raises:
            EncodingError: `progress.malformed`: a line is no progress message or too long, or the file is too large,
                cut, taken away or no regular file.
        """
        try:
            descriptor = os.open("progress", _READ, dir_fd=self._descriptor)
        except OSError as error:
            if isinstance(error, FileNotFoundError) and self._offset == 0:
                return []
            raise EncodingError("progress.malformed", "the progress file cannot be opened") from error
        try:
            state = os.fstat(descriptor)
            if not stat.S_ISREG(state.st_mode) or not self._offset <= state.st_size <= _MAX_PROGRESS:
                raise EncodingError("progress.malformed", "the progress file is not a regular file, too large or cut")
            data = os.pread(descriptor, _MAX_READ, self._offset)
        finally:
            os.close(descriptor)
        end = data.rfind(b"\n") + 1
        lines = data[:end].split(b"\n")[:-1]
        if any(len(line) > _MAX_LINE for line in lines) or len(data) - end > _MAX_LINE:
            raise EncodingError("progress.malformed", "a progress line is too long")
        messages = [_decode(line) for line in lines]
        self._offset += end
        return messages

    def _replace(self, name: str, data: bytes) -> None:
        temporary = f".{name}.{secrets.token_hex(4)}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            descriptor = os.open(temporary, flags, 0o644, dir_fd=self._descriptor)
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
            os.rename(temporary, name, src_dir_fd=self._descriptor, dst_dir_fd=self._descriptor)
        except OSError as error:
            raise StateError("run_directory.unwritable", f"{name} cannot be written: {error.strerror}") from error


def _decode(line: bytes) -> Progress:
    try:
        return Progress.decode(line)
    except EncodingError as error:
        raise EncodingError("progress.malformed", f"a progress line is malformed: {error.message}") from error
