"""The tree of a sealed volume in memory: inodes, directories, links, and what changed since the last record.

Outcomes that POSIX knows are `OSError` with its number. Each operation checks everything first and then changes the
state. An inode without a name lives on while the kernel still refers to it, but no record ever holds it.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass, field

from secfl.volume.records import (
    DIRECTORY,
    FILE,
    MAX_FILE,
    MAX_NAME,
    MAX_TARGET,
    ROOT_INODE,
    SYMLINK,
    Changes,
    ChunkRef,
    InodePut,
    chunk_count,
)

__all__ = ["MAX_METADATA", "Inode", "NewNode", "Tree", "require_name"]

MAX_METADATA = 112 * 1024 * 1024
"""Most metadata bytes of a volume: one record can then both remove and set all of it (`MAX_BODY`)."""
MAX_LINKS = 65000
_NODE_COST = 59
_ENTRY_COST = 17
_CHUNK_COST = 61


@dataclass(slots=True)
class Inode:
    """One file, directory or symbolic link; times are in nanoseconds since 1970.

    Attributes:
        keep: how many leading chunk indices of the last record's table are still its own.
        parent: of a directory, for `..` and against cycles.
    """

    number: int
    kind: int
    mode: int
    links: int = 0
    size: int = 0
    atime: int = 0
    mtime: int = 0
    ctime: int = 0
    keep: int = 0
    target: bytes = b""
    parent: int = 0
    entries: dict[bytes, int] = field(default_factory=dict)
    chunks: dict[int, ChunkRef] = field(default_factory=dict)

    def put(self) -> InodePut:
        """Return the attributes as a record holds them."""
        times = (self.atime, self.mtime, self.ctime)
        keep = min(self.keep, chunk_count(self.size)) if self.kind == FILE else 0
        return InodePut(self.kind, self.mode, self.links, self.size, *times, keep, self.target)


@dataclass(frozen=True, slots=True)
class NewNode:
    """What to create."""

    kind: int
    mode: int
    target: bytes = b""


class Tree:
    """All inodes of a volume, with the changes since the last record."""

    def __init__(self) -> None:
        """Start with nothing; `apply` or `plant` gives the root."""
        self.inodes: dict[int, Inode] = {}
        self.next_inode = ROOT_INODE + 1
        self.metadata = 0
        self._dirty_inodes: set[int] = set()
        self._dirty_entries: set[tuple[int, bytes]] = set()
        self._dirty_chunks: set[tuple[int, int]] = set()
        self._recorded: set[int] = set()

    def plant(self, mode: int, now: int) -> None:
        """Make the root directory of a new volume."""
        root = Inode(ROOT_INODE, DIRECTORY, mode, links=1, parent=ROOT_INODE)
        root.atime = root.mtime = root.ctime = now
        self.inodes[ROOT_INODE] = root
        self._dirty_inodes.add(ROOT_INODE)
        self.metadata += _NODE_COST

    def adopt(self, node: Inode) -> None:
        """Count an inode that came from the records."""
        node.keep = chunk_count(MAX_FILE)
        self._recorded.add(node.number)
        self.metadata += _NODE_COST + len(node.target) + _CHUNK_COST * len(node.chunks)
        self.metadata += sum(_ENTRY_COST + len(name) for name in node.entries)

    # -- looking ---------------------------------------------------------------------------------------------------

    def inode(self, number: int) -> Inode:
        """Return an inode.

        Raises:
            OSError: `ENOENT`.
        """
        try:
            return self.inodes[number]
        except KeyError:
            raise OSError(errno.ENOENT, "no such inode") from None

    def directory(self, number: int) -> Inode:
        """Return a directory.

        Raises:
            OSError: `ENOENT`, `ENOTDIR`.
        """
        node = self.inode(number)
        if node.kind != DIRECTORY:
            raise OSError(errno.ENOTDIR, "not a directory")
        return node

    def lookup(self, parent: int, name: bytes) -> Inode:
        """Return what a name stands for.

        Raises:
            OSError: `ENOENT`, `ENOTDIR`, `ENAMETOOLONG`.
        """
        if len(name) > MAX_NAME:
            raise OSError(errno.ENAMETOOLONG, "the name is too long")
        number = self.directory(parent).entries.get(name)
        if number is None:
            raise OSError(errno.ENOENT, "no such file")
        return self.inodes[number]

    # -- changing --------------------------------------------------------------------------------------------------

    def create(self, parent: int, name: bytes, new: NewNode, *, now: int) -> Inode:
        """Make a file, directory or symbolic link.

        Raises:
            OSError: `EEXIST`, `ENOENT`, `ENOTDIR`, `EINVAL`, `ENAMETOOLONG`, `ENOSPC`.
        """
        directory = self._new_name(parent, name)
        if len(new.target) > MAX_TARGET:
            raise OSError(errno.ENAMETOOLONG, "the link's target is too long")
        if (new.kind == SYMLINK) != bool(new.target):
            raise OSError(errno.ENOENT, "a symbolic link needs a target")
        cost = _NODE_COST + len(new.target)
        self._require_room(cost + _ENTRY_COST + len(name))
        number = self.next_inode
        self.next_inode += 1
        node = Inode(number, new.kind, new.mode & 0o7777, target=new.target)
        node.atime = node.mtime = node.ctime = now
        node.size = len(new.target)
        self.inodes[number] = node
        self.metadata += cost
        self._attach(directory, name, node, now)
        return node

    def link(self, number: int, parent: int, name: bytes, *, now: int) -> Inode:
        """Give a file one more name.

        Raises:
            OSError: `EPERM` for a directory, `EMLINK`, and as `create`.
        """
        node = self.inode(number)
        directory = self._new_name(parent, name)
        if node.kind == DIRECTORY:
            raise OSError(errno.EPERM, "a directory has one name")
        if node.links == 0:
            raise OSError(errno.ENOENT, "the file has been removed")
        if node.links >= MAX_LINKS:
            raise OSError(errno.EMLINK, "too many links")
        self._require_room(_ENTRY_COST + len(name))
        self._attach(directory, name, node, now)
        return node

    def remove(self, parent: int, name: bytes, *, directory: bool, now: int) -> Inode:
        """Remove a name (`unlink`, or `rmdir` for a directory) and return what it stood for.

        Raises:
            OSError: `ENOENT`, `EISDIR`, `ENOTDIR`, `ENOTEMPTY`.
        """
        node = self.lookup(parent, name)
        _require_removable(node, directory=directory)
        self._detach(self.inodes[parent], name, node, now)
        return node

    def rename(self, source: tuple[int, bytes], target: tuple[int, bytes], *, replace: bool, now: int) -> Inode | None:
        """Move a name, and return what it replaced.

        Raises:
            OSError: `EEXIST` without `replace`, `EINVAL` into its own subtree, and as `remove`.
        """
        node = self.lookup(*source)
        old_parent, new_parent = self.inodes[source[0]], self.directory(target[0])
        require_name(target[1])
        number = new_parent.entries.get(target[1])
        if number is not None and not replace:
            raise OSError(errno.EEXIST, "the name exists")
        if new_parent.links == 0:
            raise OSError(errno.ENOENT, "the directory has been removed")
        if node.kind == DIRECTORY:
            self._require_outside(new_parent, node)
        victim = self.inodes[number] if number is not None else None
        if victim is node:
            return None
        if victim is not None:
            _require_removable(victim, directory=node.kind == DIRECTORY)
        self._require_room(len(target[1]))
        if victim is not None:
            self._detach(new_parent, target[1], victim, now)
        self._detach(old_parent, source[1], node, now)
        self._attach(new_parent, target[1], node, now)
        return victim

    def change(self, node: Inode) -> None:
        """Note that a node's attributes differ from the last record's."""
        self._dirty_inodes.add(node.number)

    def set_chunk(self, node: Inode, index: int, ref: ChunkRef | None) -> ChunkRef | None:
        """Set or clear one entry of a file's chunk table and return the earlier one."""
        old = node.chunks.pop(index, None)
        if ref is not None:
            node.chunks[index] = ref
        self.metadata += _CHUNK_COST * ((ref is not None) - (old is not None))
        self._dirty_chunks.add((node.number, index))
        self._dirty_inodes.add(node.number)
        return old

    def cut(self, node: Inode, count: int) -> list[ChunkRef]:
        """Drop the chunk table's entries from index `count` on and return them."""
        gone = [index for index in node.chunks if index >= count]
        node.keep = min(node.keep, count)
        self._dirty_inodes.add(node.number)
        self.metadata -= _CHUNK_COST * len(gone)
        return [node.chunks.pop(index) for index in gone]

    def forget(self, node: Inode) -> list[ChunkRef]:
        """Drop an inode that has no name and that the kernel refers to no more; return its chunks."""
        chunks = self.cut(node, 0)
        del self.inodes[node.number]
        self.metadata -= _NODE_COST + len(node.target)
        return chunks

    def nameless(self) -> list[Inode]:
        """Return the inodes that live only through the kernel's references."""
        return [node for node in self.inodes.values() if node.links == 0]

    # -- records ---------------------------------------------------------------------------------------------------

    @property
    def dirty(self) -> bool:
        """Whether a record is due."""
        return bool(self._dirty_inodes or self._dirty_entries)

    def changes(self) -> Changes:
        """Return what differs from the last record."""
        result = Changes(checkpoint=False, next_inode=self.next_inode)
        for number in self._dirty_inodes:
            node = self._living(number)
            if node is not None or number in self._recorded:
                result.inodes[number] = node.put() if node is not None else None
        for parent, name in self._dirty_entries:
            directory = self._living(parent)
            if directory is not None:
                result.entries[parent, name] = directory.entries.get(name, 0)
        for number, index in self._dirty_chunks:
            node = self._living(number)
            if node is not None and (index in node.chunks or index < node.put().keep):
                result.chunks[number, index] = node.chunks.get(index)
        return result

    def checkpoint(self) -> Changes:
        """Return the whole state."""
        result = Changes(checkpoint=True, next_inode=self.next_inode)
        for number in self.inodes:
            node = self._living(number)
            if node is None:
                continue
            result.inodes[number] = node.put()._replace(keep=0)
            result.entries.update({(number, name): child for name, child in node.entries.items()})
            result.chunks.update({(number, index): ref for index, ref in node.chunks.items()})
        return result

    def recorded(self) -> None:
        """Note that a record now holds the present state."""
        for number in self._dirty_inodes:
            node = self._living(number)
            if node is None:
                self._recorded.discard(number)
            else:
                self._recorded.add(number)
                node.keep = chunk_count(MAX_FILE)
        self._dirty_inodes.clear()
        self._dirty_entries.clear()
        self._dirty_chunks.clear()

    def _living(self, number: int) -> Inode | None:
        node = self.inodes.get(number)
        return node if node is not None and node.links > 0 else None

    # -- parts -----------------------------------------------------------------------------------------------------

    def _new_name(self, parent: int, name: bytes) -> Inode:
        directory = self.directory(parent)
        require_name(name)
        if name in directory.entries:
            raise OSError(errno.EEXIST, "the name exists")
        if directory.links == 0:
            raise OSError(errno.ENOENT, "the directory has been removed")
        return directory

    def _require_room(self, more: int) -> None:
        if self.metadata + more > MAX_METADATA:
            raise OSError(errno.ENOSPC, "the volume holds too much metadata")

    def _require_outside(self, directory: Inode, moved: Inode) -> None:
        # A directory moved below itself would leave the tree with its whole content.
        at = directory
        while at.number != ROOT_INODE:
            if at is moved:
                raise OSError(errno.EINVAL, "a directory cannot move into itself")
            at = self.inodes[at.parent]

    def _attach(self, directory: Inode, name: bytes, node: Inode, now: int) -> None:
        directory.entries[name] = node.number
        directory.mtime = directory.ctime = node.ctime = now
        node.links += 1
        if node.kind == DIRECTORY:
            node.parent = directory.number
        self.metadata += _ENTRY_COST + len(name)
        self._dirty_entries.add((directory.number, name))
        self._dirty_inodes.update((directory.number, node.number))

    def _detach(self, directory: Inode, name: bytes, node: Inode, now: int) -> None:
        del directory.entries[name]
        directory.mtime = directory.ctime = node.ctime = now
        node.links -= 1
        self.metadata -= _ENTRY_COST + len(name)
        self._dirty_entries.add((directory.number, name))
        self._dirty_inodes.update((directory.number, node.number))


def require_name(name: bytes) -> None:
    """Refuse what is no file name.

    Raises:
        OSError: `ENAMETOOLONG` or `EINVAL`.
    """
    if len(name) > MAX_NAME:
        raise OSError(errno.ENAMETOOLONG, "the name is too long")
    if not name or name in (b".", b"..") or b"/" in name or b"\0" in name:
        raise OSError(errno.EINVAL, "not a file name")


def _require_removable(node: Inode, *, directory: bool) -> None:
    if directory and node.kind != DIRECTORY:
        raise OSError(errno.ENOTDIR, "not a directory")
    if not directory and node.kind == DIRECTORY:
        raise OSError(errno.EISDIR, "a directory")
    if node.entries:
        raise OSError(errno.ENOTEMPTY, "the directory is not empty")
