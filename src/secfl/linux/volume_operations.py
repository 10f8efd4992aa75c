"""The file operations of a sealed volume, as the kernel asks for them.

The volume has one user: every file belongs to the owner of the mount, whoever mounted it before. The kernel is the
only reader and writer of what is served, so it may keep names, attributes and pages as long as it likes; it owns the
size and the times of a file that it has open for writing (writeback cache), and tells them by SETATTR.
"""

from __future__ import annotations

import errno
import stat
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar

from secfl.errors import SecflError
from secfl.linux.fuse_operations import Buffer, Operations
from secfl.linux.fuse_wire import (
    Attributes,
    Entry,
    FileSystemSize,
    InitFlags,
    Listed,
    Request,
    SetAttributes,
    SetAttributesMask,
)
from secfl.volume.records import CHUNK_BYTES, DIRECTORY, FILE, SYMLINK
from secfl.volume.tree import Inode, NewNode
from secfl.volume.volume import Volume

__all__ = ["VolumeOperations"]

_TYPES = {FILE: stat.S_IFREG, DIRECTORY: stat.S_IFDIR, SYMLINK: stat.S_IFLNK}
_BLOCK_BYTES = 4096
_MAX_INODES = 1 << 20
_MAX_TIME = 2**63 - 1
_RENAME_NOREPLACE = 1
_FALLOC_KEEP_SIZE, _FALLOC_PUNCH_HOLE = 1, 2


class VolumeOperations(Operations):
    """One volume's files; a commit is the server's business.

    Raises:
        OSError: any operation, with the number that the program is to see.
    """

    init_flags: ClassVar[InitFlags] = (
        InitFlags.ASYNC_READ
        | InitFlags.DO_READDIRPLUS
        | InitFlags.READDIRPLUS_AUTO
        | InitFlags.PARALLEL_DIROPS
        | InitFlags.MAX_PAGES
        | InitFlags.CACHE_SYMLINKS
        | InitFlags.NO_OPEN
    )
    required_flags: ClassVar[InitFlags] = InitFlags.WRITEBACK_CACHE | InitFlags.BIG_WRITES
    cache_seconds: ClassVar[int] = 86400
    negative_cache_seconds: ClassVar[int] = 86400
    open_flags: ClassVar[int] = 2

    def __init__(self, volume: Volume, *, owner: tuple[int, int], report: Callable[[SecflError], None]) -> None:
        """Serve `volume` to `owner` (uid, gid); `report` learns of failed operations."""
        self._volume = volume
        self._uid, self._gid = owner
        self._report = report
        self._references: Counter[int] = Counter()
        self._listings: dict[int, list[Listed]] = {}
        self._next_handle = 1

    # -- looking ---------------------------------------------------------------------------------------------------

    def failed(self, request: Request, error: SecflError) -> None:
        """Hand an error on, of which the program sees only EIO."""
        del request
        self._report(error)

    def lookup(self, node: int, name: bytes) -> Entry | None:
        """Find a name and count the kernel's reference."""
        self._volume.require_usable()
        try:
            return self._entry(self._volume.tree.lookup(node, name))
        except FileNotFoundError:
            return None

    def forget(self, node: int, count: int) -> None:
        """Give references back; a file without name and reference is gone."""
        self._references[node] -= count
        if self._references[node] <= 0:
            del self._references[node]
            if node in self._volume.tree.inodes:
                self._volume.dispose(self._volume.tree.inode(node))

    def getattr(self, node: int) -> Attributes:
        """Give a node's attributes."""
        return self._attributes(self._inode(node))

    def setattr(self, node: int, change: SetAttributes) -> Attributes:
        """Change size, mode or times; the owner is fixed."""
        inode = self._inode(node)
        mask, now = change.mask, time.time_ns()
        other_user = mask & SetAttributesMask.UID and change.uid != self._uid
        if other_user or (mask & SetAttributesMask.GID and change.gid != self._gid):
            raise OSError(errno.EPERM, "a sealed volume has one user")
        if mask & SetAttributesMask.SIZE:
            self._file(node)
            self._volume.contents.truncate(inode, change.size, now=now)
        if mask & SetAttributesMask.MODE:
            inode.mode = change.mode & 0o7777
        if mask & SetAttributesMask.ATIME:
            inode.atime = now if mask & SetAttributesMask.ATIME_NOW else _time(change.atime)
        if mask & SetAttributesMask.MTIME:
            inode.mtime = now if mask & SetAttributesMask.MTIME_NOW else _time(change.mtime)
        inode.ctime = _time(change.ctime) if mask & SetAttributesMask.CTIME else now
        self._volume.tree.change(inode)
        return self._attributes(inode)

    def readlink(self, node: int) -> bytes:
        """Give a symbolic link's target."""
        inode = self._inode(node)
        if inode.kind != SYMLINK:
            raise OSError(errno.EINVAL, "not a symbolic link")
        return inode.target

    def opendir(self, node: int, flags: int) -> int:
        """Open a directory; its listing is taken at the first read."""
        del flags
        self._volume.require_usable()
        self._volume.tree.directory(node)
        self._next_handle += 1
        self._listings[self._next_handle] = []
        return self._next_handle

    def readdir(self, node: int, handle: int, offset: int) -> Iterator[Listed]:
        """List from an offset. A handle keeps the listing of its last rewind, so that removals skip no name."""
        if handle not in self._listings:
            raise OSError(errno.EBADF, "no such directory handle")
        if offset == 0:
            self._listings[handle] = self._listing(self._inode(node))
        return iter(self._listings[handle][offset:])

    def releasedir(self, node: int, handle: int) -> None:
        """Forget a listing."""
        del node
        self._listings.pop(handle, None)

    def statfs(self) -> FileSystemSize:
        """Give room and use."""
        capacity, available = self._volume.space
        blocks = CHUNK_BYTES // _BLOCK_BYTES
        used = len(self._volume.tree.inodes)
        return FileSystemSize(
            blocks=capacity * blocks,
            free=available * blocks,
            files=_MAX_INODES,
            files_free=max(0, _MAX_INODES - used),
            block_bytes=_BLOCK_BYTES,
        )

    # -- names -----------------------------------------------------------------------------------------------------

    def symlink(self, node: int, name: bytes, target: bytes) -> Entry:
        """Make a symbolic link."""
        return self._create(node, name, NewNode(SYMLINK, 0o777, target))

    def mknod(self, node: int, name: bytes, mode: int, device: int) -> Entry:
        """Make a regular file; a volume holds no devices, pipes or sockets."""
        del device
        if not stat.S_ISREG(mode):
            raise OSError(errno.EPERM, "a sealed volume holds files, directories and links only")
        return self._create(node, name, NewNode(FILE, mode & 0o7777))

    def mkdir(self, node: int, name: bytes, mode: int) -> Entry:
        """Make a directory."""
        return self._create(node, name, NewNode(DIRECTORY, mode & 0o7777))

    def create(self, node: int, name: bytes, mode: int, flags: int) -> tuple[Entry, int]:
        """Make and open a file; handles carry nothing."""
        del flags
        return self._create(node, name, NewNode(FILE, mode & 0o7777)), 0

    def link(self, old_node: int, node: int, name: bytes) -> Entry:
        """Give a file one more name."""
        self._volume.require_usable()
        return self._entry(self._volume.tree.link(old_node, node, name, now=time.time_ns()))

    def unlink(self, node: int, name: bytes) -> None:
        """Remove a name that is no directory."""
        self._remove(node, name, directory=False)

    def rmdir(self, node: int, name: bytes) -> None:
        """Remove an empty directory."""
        self._remove(node, name, directory=True)

    def rename(self, source: tuple[int, bytes], target: tuple[int, bytes], flags: int) -> None:
        """Move a name, replacing another unless told not to."""
        self._volume.require_usable()
        if flags & ~_RENAME_NOREPLACE:
            raise OSError(errno.EINVAL, "names cannot be exchanged")
        replace = not flags & _RENAME_NOREPLACE
        victim = self._volume.tree.rename(source, target, replace=replace, now=time.time_ns())
        if victim is not None:
            self._dispose(victim)

    # -- bytes -----------------------------------------------------------------------------------------------------

    def read(self, node: int, handle: int, offset: int, size: int) -> Sequence[Buffer]:
        """Read up to `size` bytes."""
        del handle
        return (self._volume.contents.read(self._file(node), offset, size),)

    def write(self, node: int, handle: int, offset: int, data: memoryview) -> int:
        """Take bytes into the volume's buffers; they are durable after the next commit."""
        del handle
        self._volume.contents.write(self._file(node), offset, data, now=time.time_ns())
        return len(data)

    def fallocate(self, node: int, handle: int, offset: int, length: int, mode: int) -> None:
        """Extend a file or punch a hole; room is not reserved, since chunks are copied on write."""
        del handle
        inode, now = self._file(node), time.time_ns()
        if mode == _FALLOC_KEEP_SIZE | _FALLOC_PUNCH_HOLE:
            self._volume.contents.punch(inode, offset, length, now=now)
        elif mode == 0:
            if offset + length > inode.size:
                self._volume.contents.truncate(inode, offset + length, now=now)
        else:
            raise OSError(errno.EOPNOTSUPP, "only plain allocation and punching holes")

    # -- parts -----------------------------------------------------------------------------------------------------

    def _inode(self, number: int) -> Inode:
        self._volume.require_usable()
        return self._volume.tree.inode(number)

    def _file(self, number: int) -> Inode:
        inode = self._inode(number)
        if inode.kind != FILE:
            raise OSError(errno.EISDIR if inode.kind == DIRECTORY else errno.EINVAL, "not a regular file")
        return inode

    def _create(self, parent: int, name: bytes, new: NewNode) -> Entry:
        self._volume.require_usable()
        if len(self._volume.tree.inodes) >= _MAX_INODES:
            raise OSError(errno.ENOSPC, "the volume holds too many files")
        return self._entry(self._volume.tree.create(parent, name, new, now=time.time_ns()))

    def _remove(self, parent: int, name: bytes, *, directory: bool) -> None:
        self._volume.require_usable()
        self._dispose(self._volume.tree.remove(parent, name, directory=directory, now=time.time_ns()))

    def _dispose(self, inode: Inode) -> None:
        # While the kernel refers to it, a file without a name may still be open, and takes SETATTR from writeback.
        if not self._references[inode.number]:
            self._volume.dispose(inode)

    def _entry(self, inode: Inode) -> Entry:
        attributes = self._attributes(inode)
        self._references[inode.number] += 1
        return Entry(inode.number, attributes)

    def _attributes(self, inode: Inode) -> Attributes:
        return Attributes(
            inode=inode.number,
            mode=_TYPES[inode.kind] | inode.mode,
            size=inode.size,
            links=inode.links,
            uid=self._uid,
            gid=self._gid,
            atime=inode.atime,
            mtime=inode.mtime,
            ctime=inode.ctime,
        )

    def _listing(self, inode: Inode) -> list[Listed]:
        lines = [Listed(b".", inode.number, stat.S_IFDIR, 1), Listed(b"..", inode.parent, stat.S_IFDIR, 2)]
        for offset, (name, number) in enumerate(inode.entries.items(), 3):
            lines.append(Listed(name, number, _TYPES[self._volume.tree.inode(number).kind], offset))
        return lines


def _time(nanoseconds: int) -> int:
    # The wire has unsigned seconds and the volume signed nanoseconds: before 1970 and after 2262 become the limits.
    if nanoseconds > 2**63 * 10**9:
        return 0
    return min(nanoseconds, _MAX_TIME)
