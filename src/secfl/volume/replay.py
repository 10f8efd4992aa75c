"""Rebuilding a tree from the records of a journal.

The records are authentic, so a contradiction in them is a defect of the writer. It is refused all the same: a tree
that does not add up could show a file's bytes under another name.
"""

from __future__ import annotations

from collections import Counter

from secfl.errors import VerificationError
from secfl.volume.records import DIRECTORY, FILE, ROOT_INODE, Changes, InodePut, chunk_count
from secfl.volume.tree import Inode, Tree

__all__ = ["Replay"]


class Replay:
    """A tree in the making."""

    def __init__(self) -> None:
        """Start with nothing."""
        self._tree = Tree()

    def apply(self, changes: Changes) -> None:
        """Apply the next record.

        Raises:
            VerificationError: `volume.inconsistent`.
        """
        _apply(self._tree, changes)

    def finish(self) -> Tree:
        """Check the whole and return it.

        Raises:
            VerificationError: `volume.inconsistent`.
        """
        _require_whole(self._tree)
        for node in self._tree.inodes.values():
            self._tree.adopt(node)
        return self._tree


def _apply(tree: Tree, changes: Changes) -> None:
    if changes.next_inode < tree.next_inode:
        raise _inconsistent("inode numbers go back")
    tree.next_inode = changes.next_inode
    for number, put in changes.inodes.items():
        if put is not None:
            _put(tree, number, put)
        elif tree.inodes.pop(number, None) is None:
            raise _inconsistent("an unknown inode is removed")
    for (parent, name), child in changes.entries.items():
        entries = _node(tree, parent, DIRECTORY).entries
        if child:
            entries[name] = child
        else:
            entries.pop(name, None)
    for (number, index), ref in changes.chunks.items():
        chunks = _node(tree, number, FILE).chunks
        chunks.pop(index, None)
        if ref is not None:
            chunks[index] = ref


def _put(tree: Tree, number: int, put: InodePut) -> None:
    old = tree.inodes.get(number)
    node = Inode(number, *put[:7], target=put.target)
    if old is not None:
        if old.kind != put.kind:
            raise _inconsistent("an inode changes its kind")
        node.entries = old.entries
        node.chunks = {index: ref for index, ref in old.chunks.items() if index < put.keep}
    tree.inodes[number] = node


def _node(tree: Tree, number: int, kind: int) -> Inode:
    node = tree.inodes.get(number)
    if node is None or node.kind != kind:
        raise _inconsistent("an entry or chunk belongs to no such inode")
    return node


def _require_whole(tree: Tree) -> None:
    # Walks down from the root: every inode is reached exactly as often as its link count says, a directory once.
    names: Counter[int] = Counter({ROOT_INODE: 1})
    _node(tree, ROOT_INODE, DIRECTORY).parent = ROOT_INODE
    waiting = [ROOT_INODE]
    while waiting:
        parent = waiting.pop()
        for child in tree.inodes[parent].entries.values():
            node = tree.inodes.get(child)
            if node is None or (node.kind == DIRECTORY and names[child]):
                raise _inconsistent("a name stands for no inode or a directory has two names")
            names[child] += 1
            if node.kind == DIRECTORY:
                node.parent = parent
                waiting.append(child)
    for number, node in tree.inodes.items():
        if names[number] != node.links:
            raise _inconsistent("a link count is not the number of names")
        if any(index >= chunk_count(node.size) for index in node.chunks):
            raise _inconsistent("a chunk lies behind its file's end")


def _inconsistent(reason: str) -> VerificationError:
    return VerificationError(
        "volume.inconsistent",
        f"the volume's records contradict each other: {reason}",
        hint="report this defect and keep the volume's files",
    )
