"""What a FUSE file system implements: one method a kernel request, each refused unless a subclass has it.

Methods take decoded values and return values; `secfl.linux.fuse` does the protocol. To refuse, raise
`OSError(errno, text)`: the number goes to the program; `NotImplementedError` is ENOSYS. A `SecflError` reaches the
program as EIO and is reported to `failed`. Any other exception ends the server, and then every access fails: a defect
never gives wrong bytes.

A subclass sets `init_flags` (wanted), `cache_seconds` and implements what it supports. Nodes are numbers chosen by the
subclass; the root is `ROOT_NODE`. Each `lookup`, `create`, `mkdir`, `mknod`, `symlink`, `link` that returns an entry
counts as one reference, which `forget` gives back; READDIRPLUS calls `lookup` for every line that it sends.
Not implementing `open` (or `opendir`) while asking for NO_OPEN (NO_OPENDIR) means zero-message open: the kernel stops
asking, handles are 0, and the page cache is kept across opens. Views passed in (`data`) die when the method returns.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar

from secfl.errors import SecflError
from secfl.linux.fuse_wire import Attributes, Entry, FileSystemSize, InitFlags, Listed, Request, SetAttributes

__all__ = ["ROOT_NODE", "Buffer", "Operations"]

ROOT_NODE = 1
Buffer = bytes | bytearray | memoryview


class Operations:
    """Every operation, refused.

    Raises:
        NotImplementedError: the operation is not there; the program sees `ENOSYS`.
        OSError: any operation, with the number that the program is to see.
    """

    init_flags: ClassVar[InitFlags] = InitFlags(0)
    """Capabilities to ask for; those that the kernel lacks are left out."""
    required_flags: ClassVar[InitFlags] = InitFlags(0)
    """Capabilities without which the file system would be wrong or unsafe."""
    cache_seconds: ClassVar[int] = 0
    """How long the kernel may keep names and attributes without asking again."""
    negative_cache_seconds: ClassVar[int] = 0
    """The same for names that do not exist; 0 for a file system that others change."""
    open_flags: ClassVar[int] = 0
    """FOPEN_ flags of the answer to OPEN and CREATE (2 keeps the page cache across opens)."""

    def failed(self, request: Request, error: SecflError) -> None:
        """Learn that an operation ended in a `SecflError`, of which the program sees only EIO."""

    def lookup(self, node: int, name: bytes) -> Entry | None:
        """Find a name in a directory; None if there is none."""
        raise NotImplementedError

    def forget(self, node: int, count: int) -> None:
        """Give back `count` references to a node; never answered."""

    def getattr(self, node: int) -> Attributes:
        """Give a node's attributes."""
        raise NotImplementedError

    def setattr(self, node: int, change: SetAttributes) -> Attributes:
        """Change a node's attributes, size included."""
        raise NotImplementedError

    def readlink(self, node: int) -> bytes:
        """Give a symbolic link's target."""
        raise NotImplementedError

    def symlink(self, node: int, name: bytes, target: bytes) -> Entry:
        """Make a symbolic link in a directory."""
        raise NotImplementedError

    def mknod(self, node: int, name: bytes, mode: int, device: int) -> Entry:
        """Make a file that is not opened."""
        raise NotImplementedError

    def mkdir(self, node: int, name: bytes, mode: int) -> Entry:
        """Make a directory."""
        raise NotImplementedError

    def unlink(self, node: int, name: bytes) -> None:
        """Remove a name that is no directory."""
        raise NotImplementedError

    def rmdir(self, node: int, name: bytes) -> None:
        """Remove an empty directory."""
        raise NotImplementedError

    def rename(self, source: tuple[int, bytes], target: tuple[int, bytes], flags: int) -> None:
        """Move a name; each side is (directory node, name); flags as `renameat2`."""
        raise NotImplementedError

    def link(self, old_node: int, node: int, name: bytes) -> Entry:
        """Give a node a further name."""
        raise NotImplementedError

    def open(self, node: int, flags: int) -> int:
        """Open a file and give a handle."""
        raise NotImplementedError

    def create(self, node: int, name: bytes, mode: int, flags: int) -> tuple[Entry, int]:
        """Make and open a file."""
        raise NotImplementedError

    def read(self, node: int, handle: int, offset: int, size: int) -> Sequence[Buffer]:
        """Read up to `size` bytes as a sequence of pieces; fewer only at the end of the file."""
        raise NotImplementedError

    def write(self, node: int, handle: int, offset: int, data: memoryview) -> int:
        """Write and give the number of bytes taken."""
        raise NotImplementedError

    def flush(self, node: int, handle: int) -> None:
        """A descriptor is closed; called once a close, after its dirty pages have come."""
        raise NotImplementedError

    def release(self, node: int, handle: int) -> None:
        """The last use of a handle is over."""

    def fsync(self, node: int, handle: int, *, data_only: bool) -> None:
        """Make a file durable."""
        raise NotImplementedError

    def opendir(self, node: int, flags: int) -> int:
        """Open a directory and give a handle."""
        raise NotImplementedError

    def readdir(self, node: int, handle: int, offset: int) -> Iterable[Listed]:
        """List a directory from an offset (0 or a line's `next_offset`), `.` and `..` included if wanted."""
        raise NotImplementedError

    def releasedir(self, node: int, handle: int) -> None:
        """The last use of a directory handle is over."""

    def fsyncdir(self, node: int, handle: int, *, data_only: bool) -> None:
        """Make a directory durable."""
        raise NotImplementedError

    def fallocate(self, node: int, handle: int, offset: int, length: int, mode: int) -> None:
        """Reserve or punch a range."""
        raise NotImplementedError

    def statfs(self) -> FileSystemSize:
        """Give the file system's size."""
        return FileSystemSize()

    def syncfs(self) -> None:
        """Make everything durable."""
        raise NotImplementedError

    def destroy(self) -> None:
        """The file system has been unmounted."""
