"""The sealed volume against a plain model: the same random operations must give the same tree, also after a remount."""

from __future__ import annotations

import contextlib
import os
import random
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secfl.errors import EncodingError
from secfl.testing.volume_world import MemoryKeeper, memory_files
from secfl.volume.records import (
    CHUNK_BYTES,
    DIRECTORY,
    FILE,
    ROOT_INODE,
    SYMLINK,
    Changes,
    ChunkRef,
    InodePut,
    decode_changes,
    encode_changes,
)
from secfl.volume.storage import VolumeFiles
from secfl.volume.tree import Inode, NewNode
from secfl.volume.volume import Volume, create_volume, open_volume

KEY = bytes(range(32))
VOLUME_ID = bytes(range(16))

Snapshot = dict[str, bytes | None]


def mount(files: VolumeFiles, keeper: MemoryKeeper) -> Volume:
    return open_volume(files, key=KEY, volume_id=VOLUME_ID, keeper=keeper)


def snapshot(volume: Volume) -> Snapshot:
    """All paths with their bytes; None for a directory."""
    found: Snapshot = {}
    waiting: list[tuple[str, Inode]] = [("", volume.tree.inode(ROOT_INODE))]
    while waiting:
        path, node = waiting.pop()
        for name, number in node.entries.items():
            child, below = volume.tree.inode(number), f"{path}/{name.decode()}"
            if child.kind == DIRECTORY:
                found[below] = None
                waiting.append((below, child))
            elif child.kind == SYMLINK:
                found[below] = child.target
            else:
                found[below] = volume.contents.read(child, 0, child.size + 1)
    return found


@dataclass
class Model:
    """Files as cells that several names can share."""

    names: dict[str, list[bytes] | None] = field(default_factory=dict)

    def snapshot(self) -> Snapshot:
        return {path: None if cell is None else cell[0] for path, cell in self.names.items()}


@dataclass
class Actor:
    """Does one random operation on both sides."""

    random: random.Random
    volume: Volume
    keeper: MemoryKeeper
    files: VolumeFiles
    model: Model = field(default_factory=Model)
    clock: int = 0

    def pick(self) -> str:
        parents = ["", *(path for path, cell in self.model.names.items() if cell is None)]
        return f"{self.random.choice(parents)}/{self.random.choice('abcd')}"

    def place(self, path: str) -> tuple[int, bytes]:
        *parents, name = path[1:].split("/")
        number = ROOT_INODE
        for parent in parents:
            number = self.volume.tree.lookup(number, parent.encode()).number
        return number, name.encode()

    def step(self) -> None:
        self.clock += 1
        action = self.random.choice(
            [
                "create",
                "create",
                "write",
                "write",
                "write",
                "cut",
                "mkdir",
                "remove",
                "rename",
                "link",
                "commit",
                "mount",
            ]
        )
        getattr(self, f"do_{action}")(self.pick())

    def do_create(self, path: str) -> None:
        parent, name = self.place(path)
        new = NewNode(FILE, 0o600)
        if path in self.model.names:
            with pytest.raises(FileExistsError):
                self.volume.tree.create(parent, name, new, now=self.clock)
        else:
            self.volume.tree.create(parent, name, new, now=self.clock)
            self.model.names[path] = [b""]

    def do_mkdir(self, path: str) -> None:
        if path not in self.model.names and path.count("/") < 4:
            self.volume.tree.create(*self.place(path), NewNode(DIRECTORY, 0o700), now=self.clock)
            self.model.names[path] = None

    def do_write(self, path: str) -> None:
        cell = self.model.names.get(path)
        if cell is None:
            return
        offset = self.random.choice([0, 1, 100, CHUNK_BYTES - 3, CHUNK_BYTES, 2 * CHUNK_BYTES + 7, len(cell[0])])
        data = self.random.randbytes(self.random.choice([1, 10, 5000, CHUNK_BYTES, 2 * CHUNK_BYTES + 1]))
        self.volume.contents.write(self.volume.tree.lookup(*self.place(path)), offset, data, now=self.clock)
        old = cell[0].ljust(offset, b"\0")
        cell[0] = old[:offset] + data + old[offset + len(data) :]

    def do_cut(self, path: str) -> None:
        cell = self.model.names.get(path)
        if cell is None:
            return
        size = self.random.choice([0, 1, 50, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 9, 3 * CHUNK_BYTES])
        self.volume.contents.truncate(self.volume.tree.lookup(*self.place(path)), size, now=self.clock)
        cell[0] = cell[0][:size].ljust(size, b"\0")

    def do_remove(self, path: str) -> None:
        if path not in self.model.names:
            return
        directory = self.model.names[path] is None
        if any(other.startswith(f"{path}/") for other in self.model.names):
            with pytest.raises(OSError, match="not empty"):
                self.volume.tree.remove(*self.place(path), directory=True, now=self.clock)
            return
        node = self.volume.tree.remove(*self.place(path), directory=directory, now=self.clock)
        self.volume.dispose(node)
        del self.model.names[path]

    def do_rename(self, path: str) -> None:
        target = self.pick()
        if path not in self.model.names:
            return
        try:
            victim = self.volume.tree.rename(self.place(path), self.place(target), replace=True, now=self.clock)
        except OSError:
            below = any(other.startswith(f"{target}/") for other in self.model.names)
            kinds = {self.model.names[path] is None, self.model.names.get(target, self.model.names[path]) is None}
            assert target.startswith(f"{path}/") or below or len(kinds) == 2
            return
        if victim is not None:
            self.volume.dispose(victim)
        if self.model.names.get(target) is self.model.names[path] is not None:
            return  # two names of one file: POSIX keeps both
        if target != path:
            moved = {other: cell for other, cell in self.model.names.items() if f"{other}/".startswith(f"{path}/")}
            for other in moved:
                del self.model.names[other]
            self.model.names.update({target + other[len(path) :]: cell for other, cell in moved.items()})

    def do_link(self, path: str) -> None:
        target = self.pick()
        cell = self.model.names.get(path)
        if cell is not None and target not in self.model.names:
            node = self.volume.tree.lookup(*self.place(path))
            self.volume.tree.link(node.number, *self.place(target), now=self.clock)
            self.model.names[target] = cell

    def do_commit(self, path: str) -> None:
        self.volume.commit(self.keeper)
        used = sum(len(node.chunks) for node in self.volume.tree.inodes.values())
        capacity, available = self.volume.space
        assert available == capacity - used

    def do_mount(self, path: str) -> None:
        self.volume.commit(self.keeper)
        self.volume = mount(self.files, self.keeper)


@pytest.mark.parametrize("seed", range(16))
def test_random_operations_give_the_model_s_tree(seed: int) -> None:
    """After every few of 300 random operations, and after remounts, the volume shows exactly what the model shows."""
    files, keeper = memory_files(), MemoryKeeper()
    keeper.push(*create_volume(files, key=KEY, volume_id=VOLUME_ID, mode=0o700, now=0))
    actor = Actor(random.Random(seed), mount(files, keeper), keeper, files)
    for count in range(300):
        actor.step()
        if count % 10 == 0:
            assert snapshot(actor.volume) == actor.model.snapshot()
    actor.do_mount("")
    assert snapshot(actor.volume) == actor.model.snapshot()


@pytest.mark.parametrize("size", [0, 10, CHUNK_BYTES, CHUNK_BYTES + 1])
def test_cut_bytes_do_not_come_back(size: int) -> None:
    """A file that is cut and grown again between two commits shows zeros, also after a remount."""
    files, keeper = memory_files(), MemoryKeeper()
    keeper.push(*create_volume(files, key=KEY, volume_id=VOLUME_ID, mode=0o700, now=0))
    volume = mount(files, keeper)
    node = volume.tree.create(ROOT_INODE, b"f", NewNode(FILE, 0o600), now=1)
    volume.contents.write(node, 0, b"x" * 3 * CHUNK_BYTES, now=1)
    volume.commit(keeper)
    volume.contents.truncate(node, size, now=2)
    volume.contents.truncate(node, 3 * CHUNK_BYTES, now=3)
    volume.commit(keeper)
    expected = b"x" * size + bytes(3 * CHUNK_BYTES - size)
    assert snapshot(volume) == {"/f": expected}
    assert snapshot(mount(files, keeper)) == {"/f": expected}


def test_a_punched_range_is_zero_and_gives_its_room_back() -> None:
    """Whole chunks of a hole take up no slot, the rest of the file is untouched, and a remount shows the same."""
    files, keeper = memory_files(), MemoryKeeper()
    keeper.push(*create_volume(files, key=KEY, volume_id=VOLUME_ID, mode=0o700, now=0))
    volume = mount(files, keeper)
    node = volume.tree.create(ROOT_INODE, b"f", NewNode(FILE, 0o600), now=1)
    size = 4 * CHUNK_BYTES + 100
    volume.contents.write(node, 0, b"x" * size, now=1)
    volume.commit(keeper)
    start, length = CHUNK_BYTES - 7, 2 * CHUNK_BYTES + 14
    volume.contents.punch(node, start, length, now=2)
    volume.commit(keeper)
    expected = b"x" * start + bytes(length) + b"x" * (size - start - length)
    assert snapshot(volume) == {"/f": expected}
    assert sorted(node.chunks) == [0, 3, 4]
    volume.contents.punch(node, 3 * CHUNK_BYTES, size, now=3)
    volume.commit(keeper)
    assert sorted(node.chunks) == [0]
    expected = b"x" * start + bytes(size - start)
    assert snapshot(mount(files, keeper)) == {"/f": expected}


def test_journal_stays_bounded_under_endless_commits() -> None:
    """Compaction keeps the journal near its floor however many commits one file sees, and the slots are used again."""
    files, keeper = memory_files(), MemoryKeeper()
    keeper.push(*create_volume(files, key=KEY, volume_id=VOLUME_ID, mode=0o700, now=0))
    volume = mount(files, keeper)
    node = volume.tree.create(ROOT_INODE, b"f", NewNode(FILE, 0o600), now=1)
    for count in range(1500):
        volume.contents.write(node, 0, count.to_bytes(4, "big") * 4000, now=count)
        volume.commit(keeper)
    assert files.journal.size() < 300 * 1024
    assert files.slots.size() <= 3 * CHUNK_BYTES
    assert snapshot(mount(files, keeper)) == {"/f": (1499).to_bytes(4, "big") * 4000}


refs = st.builds(
    ChunkRef,
    st.integers(0, 2**20),
    st.integers(1, CHUNK_BYTES),
    st.integers(0, 2**64 - 1),
    st.binary(min_size=16, max_size=16),
    st.binary(min_size=16, max_size=16),
)
times = st.integers(-(2**63), 2**63 - 1)
files_put = st.builds(
    InodePut,
    st.just(FILE),
    st.integers(0, 0o7777),
    st.integers(1, 65000),
    st.integers(10 * CHUNK_BYTES, 2**40),
    times,
    times,
    times,
    st.integers(0, 10),
    st.just(b""),
)
names = st.binary(min_size=1, max_size=255).filter(
    lambda name: name not in (b".", b"..") and b"/" not in name and b"\0" not in name
)
changes = st.builds(
    Changes,
    st.just(False),
    st.just(2**40),
    st.dictionaries(st.integers(2, 2**40 - 1), st.none() | files_put, max_size=4),
    st.dictionaries(st.tuples(st.integers(1, 99), names), st.integers(0, 2**40), max_size=4),
    st.dictionaries(st.tuples(st.integers(1, 99), st.integers(0, 2**30 - 1)), st.none() | refs, max_size=4),
)


@given(changes)
@settings(max_examples=60, deadline=None)
def test_record_bodies_round_trip(value: Changes) -> None:
    """Whatever the writer can express decodes to the same value and encodes to the same bytes."""
    body = encode_changes(value)
    assert decode_changes(body) == value
    assert encode_changes(decode_changes(body)) == body


@given(changes, st.data())
@settings(max_examples=150, deadline=None)
def test_altered_bodies_decode_to_their_own_value_or_fail(value: Changes, data: st.DataObject) -> None:
    """A changed, cut or extended body is either the one encoding of another value or an `EncodingError`."""
    body = bytearray(encode_changes(value))
    for _ in range(data.draw(st.integers(1, 3))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    raw = bytes(body)[: data.draw(st.integers(0, len(body)))] + data.draw(st.binary(max_size=3))
    with contextlib.suppress(EncodingError):
        assert encode_changes(decode_changes(raw)) == raw


def test_counts_beyond_the_input_are_refused_before_allocation() -> None:
    """A body that announces four billion inodes in 13 bytes is refused at once."""
    with pytest.raises(EncodingError):
        decode_changes(b"\2" + (2).to_bytes(8, "big") + b"\xff" * 4)


def test_random_noise_is_no_record() -> None:
    """Random bytes do not decode."""
    for size in (0, 1, 8, 9, 21, 200):
        with pytest.raises(EncodingError):
            decode_changes(b"\3" + os.urandom(size))
