"""What a sealed volume needs from the world: two host files and the keeper of its root.

Both are untrusted in different ways. The host may return anything from the files, so nothing read from them is used
before it is authentic. The keeper is the attested freshness service: it is believed, but it may be out of reach.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

__all__ = ["BlockFile", "Push", "Root", "RootKeeper", "VolumeFiles"]


class Root(NamedTuple):
    """The newest acknowledged state of a volume: its record's sequence number and 32-byte tag."""

    sequence: int
    tag: bytes


class Push(NamedTuple):
    """One step of the root: the keeper accepts it only when its own tag is `previous` (compare and swap)."""

    sequence: int
    previous: bytes
    tag: bytes


class RootKeeper(Protocol):
    """The freshness service as one volume sees it."""

    def push(self, sequence: int, previous: bytes, tag: bytes) -> None:
        """Return when the step is stable; a step that is already the head is accepted again.

        Raises:
            FreshnessError: another writer has moved the root.
            UnavailableError: no answer; the same step may be pushed again.
        """

    def head(self) -> Root | None:
        """Return the newest stable root; None when this volume never had one.

        Raises:
            UnavailableError: no answer.
        """


class BlockFile(Protocol):
    """One host file; every method may raise `OSError`."""

    def size(self) -> int:
        """Return the length in bytes, as the host states it."""

    def pread(self, offset: int, size: int) -> bytes:
        """Return a private copy of up to `size` bytes; fewer only at the end of the file."""

    def pwrite(self, offset: int, data: bytes) -> None:
        """Write all bytes, growing the file when needed."""

    def truncate(self, size: int) -> None:
        """Cut the file to `size` bytes."""

    def sync(self) -> None:
        """Make everything written so far durable."""

    def replace(self, data: bytes) -> None:
        """Replace the whole content atomically and durably: after a crash the file is the old or the new one.

        Raises:
            OSError: the content is the old one.
            StateError: `volume.journal_failed` when it may be either.
        """


@dataclass(frozen=True, slots=True)
class VolumeFiles:
    """The two host files of one volume."""

    slots: BlockFile
    journal: BlockFile
