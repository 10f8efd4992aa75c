"""Peak memory of every process of a run, by what it is."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["peak_memory"]

_NAMES = (
    ("secfl.manager", "manager"),
    ("secfl.tee.worker", "verifier worker"),
    ("secfl.shield", "shield"),
    ("secfl.linux.gate", "gate and init"),
    ("flower aggregator", "engine, aggregator"),
    ("flower trainer", "engine, trainer"),
)


def peak_memory() -> list[tuple[str, float]]:
    """Peak resident set (VmHWM) in MiB of all descendants of this process; the largest and the number of each kind."""
    found: dict[str, list[float]] = {}
    for pid in _descendants(os.getpid()):
        try:
            arguments = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            status = Path(f"/proc/{pid}/status").read_text(errors="replace")
        except OSError:
            continue
        peak = next((line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")), None)
        if peak is not None:
            kind = next((name for mark, name in _NAMES if mark in arguments), "platform or party")
            found.setdefault(kind, []).append(int(peak) / 1024)
    return [(f"{kind} ({len(peaks)} processes), largest", max(peaks)) for kind, peaks in sorted(found.items())]


def _descendants(root: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text(errors="replace").rpartition(")")[2].split()[1])
            except OSError:
                continue
            children.setdefault(parent, []).append(int(entry.name))
    found: list[int] = []
    waiting = [root]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return found
