"""The machine under the benchmarks: what it is, how busy it is, and what its processes use."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["children_of", "cores", "cpu_seconds", "describe", "drop_cached", "load", "memory_kib", "on_cores"]

_TICKS = os.sysconf("SC_CLK_TCK")


def cores() -> list[int]:
    """The processors that this process may use."""
    return sorted(os.sched_getaffinity(0))


def load() -> str:
    """The load averages now."""
    return " ".join(f"{value:.2f}" for value in os.getloadavg())


def describe() -> str:
    """Processor, cores, memory and kernel in one line."""
    model = next((line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if "model name" in line), "?")
    kib = next(int(line.split()[1]) for line in _lines("/proc/meminfo") if line.startswith("MemTotal"))
    system = f"{platform.system()} {platform.release()}, Python {platform.python_version()}"
    return f"{model}, {len(cores())} cores, {kib / 2**20:.1f} GiB memory, {system}"


@contextmanager
def on_cores(chosen: Iterable[int]) -> Iterator[None]:
    """Run this thread, and what it starts meanwhile, on these processors only."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, chosen)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def children_of(pid: int) -> list[int]:
    """A process and everything below it."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (fields := _stat(int(entry.name))):
            parents.setdefault(int(fields[1]), []).append(int(entry.name))
    found = [pid]
    for process in found:
        found.extend(parents.get(process, ()))
    return found


def cpu_seconds(pids: Iterable[int]) -> float:
    """Processor time of live processes, without that of children they have waited for."""
    return sum(int(fields[11]) + int(fields[12]) for pid in pids if (fields := _stat(pid))) / _TICKS


def memory_kib(pid: int) -> tuple[int, int, int]:
    """Peak resident, proportional and private memory of a process, in KiB; zeros when it has ended."""
    peak = next((int(line.split()[1]) for line in _lines(f"/proc/{pid}/status") if line.startswith("VmHWM")), 0)
    rollup = {line.partition(":")[0]: line.split()[1] for line in _lines(f"/proc/{pid}/smaps_rollup") if ":" in line}
    private = int(rollup.get("Private_Clean", 0)) + int(rollup.get("Private_Dirty", 0))
    return peak, int(rollup.get("Pss", 0)), private


def drop_cached(*files: Path) -> None:
    """Drop the cached pages of these files only; others on the machine keep theirs."""
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def _stat(pid: int) -> list[str]:
    # From the state on: the name before it may hold blanks and brackets.
    return next(iter(_lines(f"/proc/{pid}/stat")), "").rpartition(")")[2].split()


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(errors="replace").splitlines()
    except OSError:
        return []
