"""Attacks on the sealed volume's host files, and failures of the host at every write."""

from __future__ import annotations

import errno
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

from secfl.errors import FreshnessError, SecflError, StateError, UnavailableError, VerificationError
from secfl.testing.volume_world import Crash, Fault, FaultKind, MemoryFile, MemoryKeeper, memory_files
from secfl.volume.records import CHUNK_BYTES, FILE, ROOT_INODE
from secfl.volume.storage import Root, VolumeFiles
from secfl.volume.tree import NewNode
from secfl.volume.volume import Volume, create_volume, open_volume

KEY = bytes(range(32))
VOLUME_ID = bytes(range(16))

Contents = dict[bytes, bytes]


def mount(files: VolumeFiles, keeper: MemoryKeeper, *, key: bytes = KEY, volume_id: bytes = VOLUME_ID) -> Volume:
    return open_volume(files, key=key, volume_id=volume_id, keeper=keeper)


def contents(volume: Volume) -> Contents:
    root = volume.tree.inode(ROOT_INODE)
    nodes = {name: volume.tree.inode(number) for name, number in root.entries.items()}
    return {name: volume.contents.read(node, 0, node.size) for name, node in nodes.items()}


def write(volume: Volume, name: bytes, data: bytes) -> None:
    entries = volume.tree.inode(ROOT_INODE).entries
    if name not in entries:
        volume.tree.create(ROOT_INODE, name, NewNode(FILE, 0o600), now=1)
    node = volume.tree.inode(entries[name])
    volume.contents.write(node, 0, data, now=2)
    volume.contents.truncate(node, len(data), now=2)


def copy(files: VolumeFiles) -> VolumeFiles:
    def one(file: object) -> MemoryFile:
        assert isinstance(file, MemoryFile)
        return MemoryFile(Fault(), bytearray(file.data), file.durable)

    return VolumeFiles(slots=one(files.slots), journal=one(files.journal))


def data_of(file: object) -> bytearray:
    assert isinstance(file, MemoryFile)
    return file.data


def new_volume(fault: Fault | None = None) -> tuple[VolumeFiles, MemoryKeeper]:
    files, keeper = memory_files(fault), MemoryKeeper()
    keeper.push(*create_volume(files, key=KEY, volume_id=VOLUME_ID, mode=0o700, now=0))
    return files, keeper


@pytest.fixture
def written() -> tuple[VolumeFiles, MemoryKeeper, VolumeFiles]:
    """A volume with two commits, its service, and a copy of its files from after the first commit."""
    files, keeper = new_volume()
    volume = mount(files, keeper)
    write(volume, b"model", b"first" * 100)
    volume.commit(keeper)
    old = copy(files)
    write(volume, b"model", b"second" * 100)
    write(volume, b"other", b"o" * 70_000)
    volume.commit(keeper)
    return files, keeper, old


Written = tuple[VolumeFiles, MemoryKeeper, VolumeFiles]


def test_fs_04_yesterdays_whole_volume_is_refused(written: Written) -> None:
    """Both files from before the last commit are authentic, and refused by name with what to do."""
    _, keeper, old = written
    with pytest.raises(FreshnessError) as caught:
        mount(old, keeper)
    assert caught.value.code == "volume.rolled_back"
    assert caught.value.hint


def test_fs_05_an_older_journal_under_newer_slots_is_refused(written: Written) -> None:
    """The journal alone from before the last commit is refused."""
    files, keeper, old = written
    with pytest.raises(FreshnessError) as caught:
        mount(VolumeFiles(slots=files.slots, journal=old.journal), keeper)
    assert caught.value.code == "volume.rolled_back"


def test_fs_05_older_slots_under_a_newer_journal_give_errors_only(written: Written) -> None:
    """The slots alone from before the last commit open, but every changed file fails to read: no older byte appears."""
    files, keeper, old = written
    volume = mount(VolumeFiles(slots=old.slots, journal=files.journal), keeper)
    for name in (b"model", b"other"):
        with pytest.raises(VerificationError) as caught:
            volume.contents.read(volume.tree.lookup(ROOT_INODE, name), 0, 10)
        assert caught.value.code == "volume.chunk_damaged"


def test_fs_05_a_slot_of_the_same_file_from_before_is_refused(written: Written) -> None:
    """An old ciphertext put into the slot that now holds the file's chunk does not open."""
    files, keeper, old = written
    volume = mount(files, keeper)
    node = volume.tree.lookup(ROOT_INODE, b"model")
    at = node.chunks[0].slot * CHUNK_BYTES
    for slot in range(len(data_of(old.slots)) // CHUNK_BYTES + 1):
        piece = data_of(old.slots)[slot * CHUNK_BYTES : slot * CHUNK_BYTES + node.size]
        if piece and len(piece) == node.size:
            data_of(files.slots)[at : at + node.size] = piece
            with pytest.raises(VerificationError):
                volume.contents.read(node, 0, node.size)


def test_fs_01_a_flip_anywhere_is_an_error_and_never_other_data(written: Written) -> None:
    """One flipped bit at any byte of the journal, or of any slot in use, gives an error and never a wrong byte."""
    files, keeper, _ = written
    expected = contents(mount(copy(files), keeper))
    for position in range(len(data_of(files.journal))):
        damaged = copy(files)
        data_of(damaged.journal)[position] ^= 1 << position % 8
        with pytest.raises(VerificationError) as caught:
            mount(damaged, keeper)
        assert caught.value.code == "volume.journal_damaged"
    used = {ref for node in mount(copy(files), keeper).tree.inodes.values() for ref in node.chunks.values()}
    assert len(used) == 3
    volume = mount(copy(files), keeper)
    places = [
        ref.slot * CHUNK_BYTES + offset
        for ref in used
        for offset in range(0, ref.length, 1 if ref.length < 1000 else 31)
    ]
    host = volume._slots._file
    for position in places:
        data_of(host)[position] ^= 0x10
        with pytest.raises(VerificationError):
            contents(volume)
        data_of(host)[position] ^= 0x10
    assert contents(volume) == expected


def test_fs_13_cut_or_zeroed_slots_are_errors(written: Written) -> None:
    """A slots file that is cut, empty or full of zeros gives errors and never zeros."""
    files, keeper, _ = written
    for content in (b"", bytes(len(data_of(files.slots))), bytes(data_of(files.slots)[:100])):
        damaged = copy(files)
        data_of(damaged.slots)[:] = content
        with pytest.raises(VerificationError):
            contents(mount(damaged, keeper))


def test_fs_01_a_journal_cut_anywhere_is_refused(written: Written) -> None:
    """The acknowledged journal cut at any byte does not open."""
    files, keeper, _ = written
    for size in range(len(data_of(files.journal))):
        damaged = copy(files)
        del data_of(damaged.journal)[size:]
        with pytest.raises((VerificationError, FreshnessError)):
            mount(damaged, keeper)


def test_fs_03_records_and_slots_cannot_be_swapped(written: Written) -> None:
    """Chunks that change places, and records that change places, vanish or come twice, are refused."""
    files, keeper, _ = written
    damaged = copy(files)
    slots = data_of(damaged.slots)
    volume = mount(damaged, keeper)
    one, two = (volume.tree.lookup(ROOT_INODE, name).chunks[0].slot for name in (b"model", b"other"))
    a, b = one * CHUNK_BYTES, two * CHUNK_BYTES
    slots[a : a + 600], slots[b : b + 600] = slots[b : b + 600], slots[a : a + 600]
    with pytest.raises(VerificationError):
        contents(volume)
    damaged = copy(files)
    journal = data_of(damaged.journal)
    ends = [0]
    while ends[-1] < len(journal):
        ends.append(ends[-1] + 72 + int.from_bytes(journal[ends[-1] + 4 : ends[-1] + 8], "big"))
    assert len(ends) == 4
    records = [bytes(journal[start:end]) for start, end in itertools.pairwise(ends)]
    for order in ([0, 2, 1], [1, 2], [0, 2], [2], [0, 1, 1, 2], [0, 0, 1, 2]):
        journal[:] = b"".join(records[index] for index in order)
        with pytest.raises(VerificationError) as caught:
            mount(damaged, keeper)
        assert caught.value.code == "volume.journal_damaged"


def test_fs_03_another_volume_s_files_are_refused(written: Written) -> None:
    """The files do not open under another volume's identity, nor under another key."""
    files, keeper, _ = written
    for key, volume_id in ((KEY, bytes(16)), (bytes(32), VOLUME_ID)):
        with pytest.raises(VerificationError) as caught:
            mount(copy(files), keeper, key=key, volume_id=volume_id)
        assert caught.value.code == "volume.journal_damaged"


def test_fs_04_an_emptied_volume_is_refused(written: Written) -> None:
    """A host that deletes both files does not get a new, empty volume."""
    _, keeper, _ = written
    with pytest.raises(FreshnessError) as caught:
        mount(memory_files(), keeper)
    assert caught.value.code == "volume.rolled_back"


def test_fs_04_a_volume_recreated_under_the_same_key_is_refused(written: Written) -> None:
    """A second genesis of the same volume is another history."""
    _, keeper, _ = written
    files = memory_files()
    create_volume(files, key=KEY, volume_id=VOLUME_ID, mode=0o700, now=0)
    with pytest.raises(FreshnessError):
        mount(files, keeper)


def test_fr_02_a_service_without_a_root_is_no_reason_to_open(written: Written) -> None:
    """When the service has lost the root, the volume does not open: nothing says that it is current."""
    files, _, _ = written
    with pytest.raises(FreshnessError) as caught:
        mount(files, MemoryKeeper())
    assert caught.value.code == "volume.no_root"


def test_fr_02_a_service_that_was_rolled_back_is_noticed() -> None:
    """A service that holds a root from two commits ago cannot have been asked by an honest writer."""
    files, keeper = new_volume()
    volume = mount(files, keeper)
    roots = []
    for number in range(4):
        write(volume, b"f", bytes([number]))
        volume.commit(keeper)
        roots.append(keeper.root)
    for root in roots[:2]:
        with pytest.raises(FreshnessError) as caught:
            mount(copy(files), MemoryKeeper(root))
        assert caught.value.code == "volume.service_behind"


def test_fs_15_of_two_writers_on_copies_one_is_fenced() -> None:
    """Two instances on copies of one volume: the first push wins, the other gets an error and is unusable after it."""
    files, keeper = new_volume()
    theirs = copy(files)
    first, second = mount(files, keeper), mount(theirs, keeper)
    write(first, b"f", b"first")
    first.commit(keeper)
    write(second, b"f", b"second")
    with pytest.raises(FreshnessError):
        second.commit(keeper)
    with pytest.raises(StateError) as failed:
        second.require_usable()
    assert failed.value.code == "volume.failed"
    with pytest.raises(StateError):
        second.commit(keeper)
    with pytest.raises(FreshnessError) as caught:
        mount(theirs, keeper)
    assert caught.value.code == "volume.forked"
    assert contents(mount(files, keeper)) == {b"f": b"first"}


def test_fr_04_a_lost_answer_is_resolved_the_same_way_on_every_start() -> None:
    """The service took the step but its answer was lost: pushing again succeeds, now or after a restart."""
    files, keeper = new_volume()
    volume = mount(files, keeper)
    write(volume, b"f", b"data")
    keeper.lose_answers = True
    with pytest.raises(UnavailableError):
        volume.commit(keeper)
    keeper.lose_answers = False
    assert contents(mount(copy(files), keeper)) == {b"f": b"data"}
    volume.commit(keeper)
    assert keeper.root == volume.root
    assert contents(mount(copy(files), keeper)) == {b"f": b"data"}


def test_an_unacknowledged_record_is_pushed_again_at_the_next_start() -> None:
    """A record that the service never saw is pushed at the next start; without an answer the volume stays shut."""
    files, keeper = new_volume()
    volume = mount(files, keeper)
    write(volume, b"f", b"data")
    keeper.reachable = False
    with pytest.raises(UnavailableError):
        volume.commit(keeper)
    with pytest.raises(UnavailableError):
        mount(copy(files), keeper)
    keeper.reachable = True
    assert contents(mount(files, keeper)) == {b"f": b"data"}
    assert keeper.root == volume.root


def test_a_torn_last_record_is_dropped() -> None:
    """A record that a crash cut short was never acknowledged: the next start drops it and goes on."""
    files, keeper = new_volume()
    volume = mount(files, keeper)
    write(volume, b"f", b"data")
    volume.commit(keeper)
    end = len(data_of(files.journal))
    for tail in (b"S", b"SVJ1", bytes(data_of(files.journal)[-200:]), bytes(4096)):
        torn = copy(files)
        data_of(torn.journal).extend(tail)
        again = mount(torn, keeper)
        assert contents(again) == {b"f": b"data"}
        assert len(data_of(torn.journal)) == end


def test_files_without_a_name_cost_no_commit() -> None:
    """Writing to a file that is unlinked but open pushes nothing, and its room is free again when it goes."""
    files, keeper = new_volume()
    volume = mount(files, keeper)
    write(volume, b"f", b"data")
    node = volume.tree.remove(ROOT_INODE, b"f", directory=False, now=1)
    volume.commit(keeper)
    pushes, (capacity, _) = keeper.pushes, volume.space
    volume.contents.write(node, 0, b"x" * CHUNK_BYTES, now=2)
    volume.commit(keeper)
    assert keeper.pushes == pushes
    assert not volume.dirty
    assert volume.contents.read(node, 0, 1) == b"x"
    volume.dispose(node)
    assert volume.space == (capacity, capacity)


def test_a_nonce_is_never_used_twice() -> None:
    """After a host puts back an old state and the volume is mounted again, no epoch and counter come back."""
    files, keeper = new_volume()
    volume = mount(files, keeper)
    seen = set()
    for number in range(3):
        root = keeper.root
        old = copy(files)
        write(volume, b"f", bytes([number]) * 100)
        keeper.reachable = False
        with pytest.raises(UnavailableError):
            volume.commit(keeper)
        ref = volume.tree.lookup(ROOT_INODE, b"f").chunks[0]
        assert (ref.epoch, ref.counter) not in seen
        seen.add((ref.epoch, ref.counter))
        keeper.reachable, keeper.root = True, root
        files = old
        volume = mount(files, keeper)
    assert len(seen) == 3


# -- every write of a script ------------------------------------------------------------------------------------------


def script() -> Iterator[tuple[Contents, Callable[[Volume], None]]]:
    """Steps that each end in a commit, with what the volume holds after it."""
    big, small = b"B" * (CHUNK_BYTES + 10), b"s" * 100
    yield {b"model": big}, lambda volume: write(volume, b"model", big)

    def replace(volume: Volume) -> None:
        write(volume, b"tmp", small)
        victim = volume.tree.rename((ROOT_INODE, b"tmp"), (ROOT_INODE, b"model"), replace=True, now=3)
        assert victim is not None
        volume.dispose(victim)

    yield {b"model": small}, replace
    yield {b"model": small, b"log": big}, lambda volume: write(volume, b"log", big)

    def compact(volume: Volume) -> None:
        # Makes the next record a checkpoint, as a long journal does.
        volume._journal.size += 1 << 20
        write(volume, b"log", small)

    yield {b"model": small, b"log": small}, compact
    yield {b"model": small, b"log": b"end"}, lambda volume: write(volume, b"log", b"end")


@dataclass
class Run:
    """What one run of the script reached."""

    fault: Fault
    files: VolumeFiles = field(init=False)
    keeper: MemoryKeeper = field(default_factory=MemoryKeeper)
    acknowledged: Contents = field(default_factory=dict)
    attempted: Contents = field(default_factory=dict)
    errors: list[BaseException] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.files, self.keeper = new_volume()
        for file in (self.files.slots, self.files.journal):
            assert isinstance(file, MemoryFile)
            file.fault = self.fault

    def go(self) -> Volume | None:
        try:
            volume = mount(self.files, self.keeper)
            for after, work in script():
                self.attempted = after
                work(volume)
                self.commit(volume)
                self.acknowledged = after
        except (Crash, SecflError) as error:
            self.errors.append(error)
            return None
        return volume

    def commit(self, volume: Volume) -> None:
        try:
            volume.commit(self.keeper)
        except OSError as error:
            # The program sees the error; once the host has room again, the same fsync succeeds.
            self.errors.append(error)
            untouched = mount(copy(self.files), self.keeper)
            assert contents(untouched) == self.acknowledged
            volume.commit(self.keeper)

    def recover(self, *, killed: bool) -> Contents:
        """Mount after a kill or a power loss, and once more after a power loss: the same state must be there."""
        files = restart(self.files, killed=killed)
        found = contents(mount(files, self.keeper))
        assert contents(mount(restart(files, killed=False), self.keeper)) == found
        return found


def restart(files: VolumeFiles, *, killed: bool) -> VolumeFiles:
    slots, journal = files.slots, files.journal
    assert isinstance(slots, MemoryFile)
    assert isinstance(journal, MemoryFile)
    if killed:
        return VolumeFiles(slots=slots.after_kill(), journal=journal.after_kill())
    return VolumeFiles(slots=slots.after_power_loss(), journal=journal.after_power_loss())


def operations() -> list[str]:
    counting = Run(Fault())
    assert counting.go() is not None
    return counting.fault.names


@pytest.mark.parametrize("killed", [True, False], ids=["kill", "power"])
@pytest.mark.parametrize("kind", ["crash_before", "crash_after", "torn"])
def test_fs_11_a_crash_at_every_write_leaves_the_old_or_the_new_state(kind: FaultKind, *, killed: bool) -> None:
    """After a crash at each storage operation the volume holds the acknowledged state or the next one, whole."""
    total = len(operations())
    assert total > 20
    for at in range(1, total + 1):
        run = Run(Fault(at, kind))
        assert run.go() is None
        assert isinstance(run.errors[-1], Crash)
        found = run.recover(killed=killed)
        assert found in (run.acknowledged, run.attempted), f"operation {at}"


@pytest.mark.parametrize("kind", ["enospc", "eio"])
def test_fs_12_a_full_or_failing_disk_at_every_write_is_reported(kind: FaultKind) -> None:
    """At each storage operation the commit reports the error, and the acknowledged state is intact."""
    silent = [at for at, name in enumerate(operations(), 1) if name == "replace" and kind == "enospc"]
    for at in range(1, len(operations()) + 1):
        run = Run(Fault(at, kind))
        volume = run.go()
        if volume is not None:
            assert contents(volume) == {b"model": b"s" * 100, b"log": b"end"}
            assert run.recover(killed=False) == contents(volume)
        else:
            assert isinstance(run.errors[-1], StateError), f"operation {at}"
            assert run.recover(killed=False) == run.acknowledged
        # Nothing but the room-saving checkpoint may fail unseen, and only for want of room.
        assert bool(run.errors) == (at not in silent), f"operation {at}"
    assert len(silent) == (kind == "enospc")


def test_fs_12_a_full_volume_says_so_and_removing_makes_room() -> None:
    """A write beyond the capacity is refused with ENOSPC before anything changes; after a removal it works."""
    files, keeper = new_volume()
    volume = open_volume(files, key=KEY, volume_id=VOLUME_ID, keeper=keeper, capacity=4)
    write(volume, b"a", b"a" * 3 * CHUNK_BYTES)
    volume.commit(keeper)
    with pytest.raises(OSError, match="full") as caught:
        write(volume, b"b", b"b" * 2 * CHUNK_BYTES)
    assert caught.value.errno == errno.ENOSPC
    volume.commit(keeper)
    assert contents(mount(copy(files), keeper)) == {b"a": b"a" * 3 * CHUNK_BYTES, b"b": b""}
    volume.dispose(volume.tree.remove(ROOT_INODE, b"a", directory=False, now=1))
    volume.commit(keeper)
    write(volume, b"b", b"b" * 2 * CHUNK_BYTES)
    volume.commit(keeper)
    assert contents(mount(files, keeper)) == {b"b": b"b" * 2 * CHUNK_BYTES}


def test_fs_11_the_acknowledged_state_is_never_overwritten() -> None:
    """While a push is out, and after a refused commit, every chunk of the acknowledged state still opens."""
    files, keeper = new_volume()
    volume = mount(files, keeper)
    write(volume, b"f", b"1" * 3 * CHUNK_BYTES)
    volume.commit(keeper)
    kept, root = data_of(copy(files).journal), keeper.root
    keeper.reachable = False
    for digit in (b"2", b"3", b"4"):
        write(volume, b"f", digit * 3 * CHUNK_BYTES)
        with pytest.raises(UnavailableError):
            volume.commit(keeper)
        volume.contents.flush()  # as when the program's dirty chunks fill the memory
    assert isinstance(root, Root)
    before = VolumeFiles(slots=copy(files).slots, journal=MemoryFile(Fault(), kept))
    assert contents(mount(before, MemoryKeeper(root))) == {b"f": b"1" * 3 * CHUNK_BYTES}
