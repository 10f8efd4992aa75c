"""What a test started must be gone when it ends: processes, mounts and sockets."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["descendants", "nothing_left", "processes_below"]

_PR_SET_CHILD_SUBREAPER = 36
_LIBC = ctypes.CDLL(None, use_errno=True)


def descendants(pid: int) -> set[int]:
    """Find the processes below one, by the kernel's own list."""
    found: set[int] = set()
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            children = {int(child) for child in (task / "children").read_text().split()}
            found |= children.union(*(descendants(child) for child in children))
    return found


def processes_below(pid: int, mark: str) -> set[int]:
    """Those descendants whose command line contains a text."""
    return {found for found in descendants(pid) if mark in _arguments(found)}


def _arguments(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return ""


def _mounts() -> list[str]:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return sorted(" ".join(line.split()[3:5]) for line in lines)


def _reap(pids: set[int]) -> set[int]:
    for pid in pids:
        with suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
    return {pid for pid in pids if Path(f"/proc/{pid}").exists()}


@contextmanager
def nothing_left(place: Path, *, seconds: float = 8.0) -> Iterator[None]:
    """Assert that no process, mount or socket stays behind; orphans become children of this process."""
    assert _LIBC.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
    before, mounts = descendants(os.getpid()), _mounts()
    try:
        yield
        deadline = time.monotonic() + seconds
        while (left := _reap(descendants(os.getpid()) - before)) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not left, {pid: _arguments(pid) for pid in left}
        assert _mounts() == mounts
        assert not [path for path in place.rglob("*") if path.is_socket()]
    finally:
        for pid in descendants(os.getpid()) - before:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + 2.0
        while _reap(descendants(os.getpid()) - before) and time.monotonic() < deadline:
            time.sleep(0.05)
        _LIBC.prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
