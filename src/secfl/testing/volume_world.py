"""A world for sealed volumes in memory: host files that fail on demand, and a freshness service.

The files keep apart what is durable and what a crash may lose. A fault strikes at the n-th operation that changes
anything, over both files, so a test can enumerate every point of a script.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from secfl.errors import FreshnessError, UnavailableError
from secfl.volume.journal import NO_TAG
from secfl.volume.storage import Root, VolumeFiles

__all__ = ["Crash", "Fault", "MemoryFile", "MemoryKeeper", "memory_files"]

FaultKind = Literal["crash_before", "crash_after", "torn", "enospc", "eio"]


class Crash(BaseException):
    """The machine stops here; nothing of the program runs on."""


@dataclass(slots=True)
class Fault:
    """Strike at operation number `at`, counted from one; zero means never. `names` lists the operations so far."""

    at: int = 0
    kind: FaultKind = "crash_before"
    names: list[str] = field(default_factory=list)

    def strike(self, name: str, work: Callable[[], None], torn: Callable[[], None]) -> None:
        """Do one operation, or fail in its place.

        Raises:
            OSError: `ENOSPC` or `EIO`, as planned.
        """
        self.names.append(name)
        if len(self.names) != self.at:
            work()
        elif self.kind == "crash_after":
            work()
            raise Crash
        elif self.kind == "torn":
            torn()
            raise Crash
        elif self.kind == "enospc":
            torn()
            raise OSError(errno.ENOSPC, "no room left")
        elif self.kind == "eio":
            raise OSError(errno.EIO, "the disk failed")
        else:
            raise Crash


@dataclass(slots=True)
class MemoryFile:
    """One host file; implements `secfl.volume.storage.BlockFile`."""

    fault: Fault
    data: bytearray = field(default_factory=bytearray)
    durable: bytes = b""

    def size(self) -> int:
        """Return the length in bytes."""
        return len(self.data)

    def pread(self, offset: int, size: int) -> bytes:
        """Return a copy of up to `size` bytes."""
        return bytes(self.data[offset : offset + size])

    def pwrite(self, offset: int, data: bytes) -> None:
        """Write all bytes; a torn write leaves the first half."""
        self.fault.strike("pwrite", lambda: self._put(offset, data), lambda: self._put(offset, data[: len(data) // 2]))

    def truncate(self, size: int) -> None:
        """Cut the file."""
        self.fault.strike("truncate", lambda: self._cut(size), lambda: None)

    def sync(self) -> None:
        """Make the content durable."""
        self.fault.strike("sync", self._settle, lambda: None)

    def replace(self, data: bytes) -> None:
        """Replace the content atomically and durably."""
        self.fault.strike("replace", lambda: self._renew(data), lambda: None)

    def after_kill(self) -> MemoryFile:
        """Return the file as the next start finds it when only the process ended: nothing is lost yet."""
        return MemoryFile(Fault(), bytearray(self.data), self.durable)

    def after_power_loss(self) -> MemoryFile:
        """Return the file as the next start finds it when the machine ended: only what is durable."""
        return MemoryFile(Fault(), bytearray(self.durable), self.durable)

    def _put(self, offset: int, data: bytes) -> None:
        self.data.extend(bytes(max(0, offset - len(self.data))))
        self.data[offset : offset + len(data)] = data

    def _cut(self, size: int) -> None:
        del self.data[size:]

    def _settle(self) -> None:
        self.durable = bytes(self.data)

    def _renew(self, data: bytes) -> None:
        self.data = bytearray(data)
        self.durable = data


def memory_files(fault: Fault | None = None) -> VolumeFiles:
    """Make two empty files under one fault plan."""
    plan = fault or Fault()
    return VolumeFiles(slots=MemoryFile(plan), journal=MemoryFile(plan))


@dataclass(slots=True)
class MemoryKeeper:
    """A freshness service for one volume; implements `secfl.volume.storage.RootKeeper`.

    Attributes:
        reachable: whether it answers.
        lose_answers: whether it accepts a step and then fails to say so.
        delay: seconds that a push takes.
    """

    root: Root | None = None
    reachable: bool = True
    lose_answers: bool = False
    delay: float = 0
    pushes: int = 0

    def push(self, sequence: int, previous: bytes, tag: bytes) -> None:
        """Accept the next step, or the present one again.

        Raises:
            FreshnessError: `counter.conflict`.
            UnavailableError: `counter.unavailable`.
        """
        if not self.reachable:
            raise UnavailableError("counter.unavailable", "no answer")
        time.sleep(self.delay)
        root = self.root or Root(0, NO_TAG)
        if root != (sequence, tag):
            if root != (sequence - 1, previous):
                raise FreshnessError("counter.conflict", "another writer has moved the root")
            self.root = Root(sequence, tag)
            self.pushes += 1
        if self.lose_answers:
            raise UnavailableError("counter.unavailable", "no answer")

    def head(self) -> Root | None:
        """Return the newest root.

        Raises:
            UnavailableError: `counter.unavailable`.
        """
        if not self.reachable:
            raise UnavailableError("counter.unavailable", "no answer")
        return self.root
