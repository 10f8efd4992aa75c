"""The sealed volume: a file tree on untrusted storage whose newest state the freshness service knows.

A commit (1) encrypts the changed chunks into free slots, (2) makes them durable, (3) appends the journal record and
makes it durable, (4) pushes the record's tag and waits for the acknowledgement, (5) only then frees the slots that the
state before used. So the state that was acknowledged last is always whole on disk, and it is the only one that opens:
an older copy (FS-04), an older part (FS-05) or another branch (FS-15) does not hold the service's tag.
"""

from __future__ import annotations

import errno
import os

from secfl.errors import FreshnessError, SecflError, StateError, VerificationError
from secfl.volume.contents import Contents
from secfl.volume.journal import NO_TAG, Journal, JournalCipher, read_links
from secfl.volume.records import EPOCH_BYTES, Changes, encode_changes
from secfl.volume.replay import Replay
from secfl.volume.slots import MAX_SLOTS, Slots
from secfl.volume.storage import Push, Root, RootKeeper, VolumeFiles
from secfl.volume.tree import Inode, Tree

__all__ = ["MAX_UNACKNOWLEDGED", "Volume", "create_volume", "open_volume"]

MAX_UNACKNOWLEDGED = 1
"""Records that may follow the service's root: a writer starts no commit before the last one is acknowledged."""
_COMPACT_FACTOR = 4
_COMPACT_FLOOR = 256 * 1024
"""A journal below this many bytes is not worth a checkpoint."""


def create_volume(files: VolumeFiles, *, key: bytes, volume_id: bytes, mode: int, now: int) -> Push:
    """Make an empty volume and return its first step; it opens once the keeper has accepted that step.

    The root directory gets `mode`; `now` is in nanoseconds. Whatever the files held is gone: call this only when
    the keeper knows no root for this volume.

    Raises:
        ValueError: the key or the identity has the wrong size.
        OSError: what the host's files answer.
    """
    tree = Tree()
    tree.plant(mode, now)
    files.slots.truncate(0)
    cipher = JournalCipher(key, volume_id)
    journal = Journal(files.journal, cipher, epoch=os.urandom(EPOCH_BYTES), root=Root(0, NO_TAG), size=0)
    return journal.replace(encode_changes(tree.checkpoint()))


def open_volume(
    files: VolumeFiles, *, key: bytes, volume_id: bytes, keeper: RootKeeper, capacity: int = MAX_SLOTS
) -> Volume:
    """Recover the acknowledged state; a record that was written but not yet acknowledged is pushed again.

    Raises:
        FreshnessError: `volume.no_root`, `volume.rolled_back`, `volume.forked`, `volume.service_behind`, or the
            keeper's refusal of the pending step.
        VerificationError: `volume.journal_damaged`, `volume.inconsistent`.
        EncodingError: `volume.record_malformed`.
        UnavailableError: the keeper does not answer.
        OSError: what the host's files answer.
        ValueError: the key or the identity has the wrong size, or the capacity is out of range.
    """
    head = keeper.head()
    if head is None:
        raise FreshnessError(
            "volume.no_root",
            "the freshness service holds no root of this volume",
            hint="create the volume anew, or let the board restore the service's state",
        )
    cipher = JournalCipher(key, volume_id)
    replay, steps, end = Replay(), [], 0
    for link in read_links(files.journal, cipher):
        replay.apply(link.changes)
        steps.append(link.step)
        end = link.end
    damaged = files.journal.size() != end
    pending = _unacknowledged(head, steps, damaged=damaged)
    tree = replay.finish()
    if damaged:
        files.journal.truncate(end)  # a crash cut the last record short; nobody was told that it is durable
    if pending:
        # A killed process leaves what only the page cache holds: durable first, then acknowledged.
        files.slots.sync()
        files.journal.sync()
    for step in pending:
        keeper.push(*step)
    epoch = os.urandom(EPOCH_BYTES)
    slots = Slots(files.slots, key=key, volume_id=volume_id, epoch=epoch, capacity=capacity)
    slots.adopt(ref.slot for node in tree.inodes.values() for ref in node.chunks.values())
    last = steps[-1]
    journal = Journal(files.journal, cipher, epoch=epoch, root=Root(last.sequence, last.tag), size=end)
    return Volume(tree, slots, journal, volume_id)


def _unacknowledged(head: Root, steps: list[Push], *, damaged: bool) -> list[Push]:
    """Find the service's root in the chain and return what follows it."""
    for index, step in enumerate(steps):
        if (step.sequence, step.tag) == head:
            pending = steps[index + 1 :]
            break
        if index == 0 and (step.sequence - 1, step.previous) == head:
            pending = steps  # a checkpoint took the place of the record that the service knows
            break
    else:
        raise _refusal(head, steps, damaged=damaged)
    if len(pending) > MAX_UNACKNOWLEDGED:
        raise _service_behind(head, steps)
    return pending


def _refusal(head: Root, steps: list[Push], *, damaged: bool) -> SecflError:
    if damaged:
        return VerificationError(
            "volume.journal_damaged",
            "the volume's journal is not authentic, or the key is another volume's",
            hint="restore the newest copy of both files from before the damage",
        )
    if not steps or head.sequence > steps[-1].sequence:
        return FreshnessError(
            "volume.rolled_back",
            "the volume is older than its acknowledged state",
            hint="restore the newest copy of both files, or let the board reset the volume's root",
            expected=head.sequence,
            actual=steps[-1].sequence if steps else 0,
        )
    if head.sequence < steps[0].sequence:
        return _service_behind(head, steps)
    return FreshnessError(
        "volume.forked",
        "the volume and the freshness service hold different histories",
        hint="another instance has written to a copy of this volume: restore that copy, or let the board decide",
        sequence=head.sequence,
    )


def _service_behind(head: Root, steps: list[Push]) -> FreshnessError:
    return FreshnessError(
        "volume.service_behind",
        "the freshness service's root is older than the volume allows",
        hint="the service's own state was rolled back: do not go on before its operators have restored it",
        expected=steps[-1].sequence,
        actual=head.sequence,
    )


class Volume:
    """An open volume: `tree` and `contents` to work on, `prepare` and `acknowledge` to commit."""

    def __init__(self, tree: Tree, slots: Slots, journal: Journal, volume_id: bytes) -> None:
        """Assemble; `open_volume` is the way to get one."""
        self.volume_id = volume_id
        self.tree = tree
        self.contents = Contents(tree, slots)
        self.in_flight: Push | None = None
        self._slots = slots
        self._journal = journal
        self._failed = False

    @property
    def root(self) -> Root:
        """The newest record, acknowledged or in flight."""
        return self._journal.root

    @property
    def dirty(self) -> bool:
        """Whether a commit would write anything."""
        return self.tree.dirty

    @property
    def space(self) -> tuple[int, int]:
        """Capacity and free room in chunks."""
        return self._slots.capacity, self._slots.available

    def require_usable(self) -> None:
        """Refuse every use after a failure that leaves the stored state unknown, or after another writer took over.

        Raises:
            StateError: `volume.failed`.
        """
        if self._failed:
            raise StateError("volume.failed", "the volume has failed", hint="stop the program and mount it again")

    def fail(self) -> None:
        """Make the volume unusable: another writer holds the root, so what this instance shows is not current."""
        self._failed = True

    def prepare(self) -> Push | None:
        """Write a commit durably and return the step to push; None when nothing changed.

        Raises:
            OSError: the host refused a write (`ENOSPC`): nothing is lost, and a later call may succeed.
            StateError: `volume.failed`, `volume.journal_failed`, `volume.slots_failed`, `volume.push_pending`.
            EncodingError: `volume.record_too_large`.
        """
        self.require_usable()
        if self.in_flight is not None:
            raise StateError("volume.push_pending", "the last commit is not acknowledged yet")
        if not self.tree.dirty:
            return None
        try:
            self.contents.flush()
            changes = self.tree.changes()
            if not (changes.inodes or changes.entries or changes.chunks):
                self.tree.recorded()  # only files without a name changed
                return None
            self._sync_slots()
            step = self._write_record(changes)
        except StateError:
            self._failed = True
            raise
        self.tree.recorded()
        self._slots.record_written()
        self.in_flight = step
        return step

    def acknowledge(self, step: Push) -> None:
        """Note that the service has made `step` the root.

        Raises:
            StateError: `volume.push_pending` for another step than the one in flight.
        """
        if step != self.in_flight:
            raise StateError("volume.push_pending", "another commit is in flight")
        self.in_flight = None
        self._slots.acknowledged()

    def commit(self, keeper: RootKeeper) -> None:
        """Return when everything so far is durable and acknowledged; a step in flight goes first.

        Raises:
            FreshnessError: another writer has moved the root; the volume is unusable now.
            UnavailableError: no acknowledgement; the same call may be made again.
            OSError: as `prepare`.
            StateError: as `prepare`.
        """
        self.require_usable()
        if self.in_flight is not None:
            self._push(keeper, self.in_flight)
        step = self.prepare()
        if step is not None:
            self._push(keeper, step)

    def dispose(self, node: Inode) -> None:
        """Forget a file that has no name, once the kernel refers to it no more."""
        if node.links == 0 and node.number in self.tree.inodes:
            self.contents.drop(node)
            for ref in self.tree.forget(node):
                self._slots.release(ref)

    def _push(self, keeper: RootKeeper, step: Push) -> None:
        try:
            keeper.push(*step)
        except FreshnessError:
            self._failed = True
            raise
        self.acknowledge(step)

    def _sync_slots(self) -> None:
        try:
            self._slots.sync()
        except OSError as error:
            # After a failed sync the kernel may have dropped the pages and may report success next time.
            raise StateError("volume.slots_failed", "the host's storage failed while chunks were written") from error

    def _write_record(self, changes: Changes) -> Push:
        if self._journal.size > max(_COMPACT_FLOOR, _COMPACT_FACTOR * self.tree.metadata):
            try:
                return self._journal.replace(encode_changes(self.tree.checkpoint()))
            except OSError as error:
                # Compaction only saves room: when the host has none for it, the commit goes the ordinary way.
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
        return self._journal.append(encode_changes(changes))
