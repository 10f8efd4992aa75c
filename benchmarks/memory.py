"""Memory of every process of a running confidential federation, sampled while it trains.

Peak is the largest resident set so far (VmHWM), shared pages counted in full. PSS counts a shared page by the number
of its users, so its sum is what the federation takes. Private is what nobody shares.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.federation import confidential, follow, heart_study
from benchmarks.machine import children_of, memory_kib
from benchmarks.result import Result, Table

__all__ = ["run"]

_ROUNDS = 6
_KINDS = (
    ("secfl.manager", "manager"),
    ("secfl.tee.worker", "manager: verifier"),
    ("secfl.linux.gate", "program: gate and first process"),
    ("flower aggregator", "program: engine of the aggregator"),
    ("flower trainer", "program: engine of a trainer"),
    ("secfl.shield", "shield"),
)
_Found = dict[str, list[tuple[int, int, int]]]


def run(*, quick: bool) -> Result:
    """Start the example's federation and look half-way."""
    rounds = 2 if quick else _ROUNDS
    found: _Found = {}

    with TemporaryDirectory(prefix="secfl-bench-") as place:
        base = Path(place)
        base.chmod(0o711)
        study = heart_study(base / "records", rounds)
        (base / "run").mkdir()
        with confidential(base / "run", study) as harness:

            def sample(number: int) -> None:
                if number == max(1, rounds // 2):
                    for kind, used in _processes():
                        found.setdefault(kind, []).append(used)

            follow(harness, sample)
    rows = [_row(kind, uses) for kind, uses in sorted(found.items())]
    rows.append(_row("all", [use for uses in found.values() for use in uses]))
    result = Result("memory", __doc__ or "")
    columns = ("process", "number", "largest peak MiB", "largest PSS MiB", "sum of PSS MiB", "sum of private MiB")
    result.tables.append(Table(f"heart, {len(study.records)} sites on one machine, round {rounds // 2}", columns, rows))
    result.remarks.append(
        "The forked children of a shield share its pages: gateway or sidecar, and one server a volume."
    )
    return result


def _row(kind: str, uses: list[tuple[int, int, int]]) -> tuple[str, ...]:
    peaks, shares, privates = zip(*uses, strict=True)
    values = (max(peaks), max(shares), sum(shares), sum(privates))
    return (kind, str(len(uses)), *(f"{value / 1024:.0f}" for value in values))


def _processes() -> Iterator[tuple[str, tuple[int, int, int]]]:
    """Every process below this one that uses memory, by what it is."""
    for pid in children_of(os.getpid())[1:]:
        used = memory_kib(pid)
        if used[1]:
            yield _kind(pid), used


def _kind(pid: int) -> str:
    command, parent = _command(pid), _command(_parent(pid))
    kind = next((name for mark, name in _KINDS if mark in command), None)
    targets = _targets(pid)
    if kind == "shield" and "secfl.shield" in parent:
        # What it forked: only the network processes wait for many things at once.
        return "shield: gateway or sidecar" if "anon_inode:[eventpoll]" in targets else "shield: volume server"
    if kind is None:
        return "platform: image server" if "data" in targets else "platforms, launches, parties"
    return kind


def _targets(pid: int) -> set[str]:
    """Last parts of the names of a process's open files."""
    found = set()
    with contextlib.suppress(OSError):
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            found.add(descriptor.readlink().name)
    return found


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""
