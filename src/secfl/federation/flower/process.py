"""A family of forked processes that live and die together.

The parent imports Flower once and forks; each child runs one program. No child outlives the parent (the kernel kills
it), a child that ends is reported to the parent, and stopping means SIGTERM, a grace period, then SIGKILL by id.
"""

from __future__ import annotations

import ctypes
import gc
import os
import select
import signal
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from secfl.errors import SecflError, UnavailableError

__all__ = ["Ended", "Family"]

_GRACE_SECONDS = 2.0
"""Flower's SuperLink waits for open connections much longer than that; nothing of value is left to do then."""
_KEPT_LINES = 40
_CRASH = 70
_PR_SET_PDEATHSIG = 1
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)

OnLine = Callable[[str], None]


@dataclass(slots=True)
class _Child:
    name: str
    output: int
    on_line: OnLine | None
    partial: bytes = b""
    lines: deque[str] = field(default_factory=lambda: deque(maxlen=_KEPT_LINES))


@dataclass(frozen=True, slots=True)
class Ended:
    """A child that is no more.

    Attributes:
        name: the name given at `spawn`.
        status: exit status, or minus the signal that killed it.
        lines: the last lines that it wrote.
    """

    name: str
    status: int
    lines: tuple[str, ...]


class Family:
    """The children of this process; use it only from a main thread that is alone."""

    def __init__(self) -> None:
        self._children: dict[int, _Child] = {}
        self._stopping = False
        self._signal_read, self._signal_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(self._signal_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        for number in _SIGNALS:
            signal.signal(number, self._request_stop)

    @property
    def stopping(self) -> bool:
        """Whether someone asked this process to stop."""
        return self._stopping

    def spawn(self, name: str, program: Callable[[], None], on_line: OnLine | None = None) -> int:
        """Fork a child that runs the program; its output comes to `on_line` and is otherwise dropped.

        Raises:
            UnavailableError: `engine.fork`.
        """
        gc.freeze()
        output, child_output = os.pipe2(os.O_CLOEXEC)
        parent = os.getpid()
        sys.stdout.flush()
        sys.stderr.flush()
        try:
            pid = os.fork()
        except OSError as error:
            raise UnavailableError("engine.fork", "no further process can be started") from error
        if pid == 0:
            self._become(parent, name, program, child_output)
        os.close(child_output)
        os.set_blocking(output, False)
        self._children[pid] = _Child(name, output, on_line)
        return pid

    def wait(self, seconds: float) -> list[Ended]:
        """Wait for output, a signal or the end of a child, at most this long; return the children that ended."""
        watched = {child.output: child for child in self._children.values() if child.output >= 0}
        ready, _, _ = select.select([self._signal_read, *watched], [], [], seconds)
        for descriptor in ready:
            if descriptor == self._signal_read:
                os.read(self._signal_read, 4096)
            else:
                self._read(watched[descriptor])
        return self._reap()

    def stop(self) -> None:
        """End all children: ask, wait a little, then kill."""
        deadline = time.monotonic() + _GRACE_SECONDS
        for pid in self._children:
            os.kill(pid, signal.SIGTERM)
        while self._children and time.monotonic() < deadline:
            self.wait(0.05)
        for pid in self._children:
            os.kill(pid, signal.SIGKILL)
        while self._children:
            self.wait(0.05)

    def processor_seconds(self) -> float:
        """Return the processor time of this process and of its ended children."""
        own = os.times()
        return own.user + own.system + own.children_user + own.children_system

    def _request_stop(self, _number: int, _frame: object) -> None:
        self._stopping = True

    def _reap(self) -> list[Ended]:
        ended: list[Ended] = []
        for pid in list(self._children):
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                child = self._children.pop(pid)
                self._read(child)
                if child.output >= 0:
                    os.close(child.output)
                ended.append(Ended(child.name, os.waitstatus_to_exitcode(status), tuple(child.lines)))
        return ended

    @staticmethod
    def _read(child: _Child) -> None:
        while child.output >= 0:
            try:
                data = os.read(child.output, 65536)
            except BlockingIOError:
                return
            if not data:
                os.close(child.output)
                child.output = -1
                return
            *lines, child.partial = (child.partial + data).split(b"\n")
            child.partial = child.partial[-4096:]
            for raw in lines:
                line = raw[:4096].decode("utf-8", "replace")
                child.lines.append(line)
                if child.on_line is not None:
                    child.on_line(line)

    def _become(self, parent: int, name: str, program: Callable[[], None], output: int) -> None:
        """Turn the forked process into the child; it never returns into the parent's code."""
        status = _CRASH
        try:
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            if os.getppid() != parent:
                os._exit(_CRASH)  # the parent died before the line above took effect
            signal.set_wakeup_fd(-1)
            for number in (*_SIGNALS, signal.SIGCHLD):
                signal.signal(number, signal.SIG_DFL)
            for descriptor in (self._signal_read, self._signal_write):
                os.close(descriptor)
            for child in self._children.values():
                if child.output >= 0:
                    os.close(child.output)
            os.dup2(output, 1)
            os.dup2(output, 2)
            program()
            status = 0
        except SystemExit as exit_:
            status = exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
        except SecflError as error:
            status = error.exit_code
            sys.stderr.write(f"{name}: {error}\n")
        except BaseException:  # noqa: BLE001  # whatever it is, this process must end here
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
