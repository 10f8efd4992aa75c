"""What leaves the aggregator about a round: one canonical JSON line a phase, and the signal that messages wait.

Metrics are averaged over the replies, weighted by their number of examples, in the order of site names and with
Flower's own arithmetic, so that equal runs give equal lines. Numbers are written as hexadecimal floats: exact.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from secfl.crypto import strict_json
from secfl.errors import EngineError

__all__ = ["WEIGHT", "PendingSignal", "ProgressWriter", "weighted_mean"]

WEIGHT = "num-examples"
"""Flower's customary name for the weight of a reply."""
_MAX_METRICS = 64
_MAX_LINE = 4096
"""A pipe takes lines of up to this size whole; it also bounds what metric names could carry out (FL-21)."""

Metrics = Mapping[str, float]


def weighted_mean(replies: Sequence[Metrics]) -> dict[str, float]:
    """Average the metrics that every reply has; without usable weights there is no average."""
    weights = [reply.get(WEIGHT, 0.0) for reply in replies]
    total = sum(weights)
    if not total > 0.0:
        return {}
    names = sorted(set.intersection(*(set(reply) for reply in replies)) - {WEIGHT})
    means = dict.fromkeys(names[:_MAX_METRICS], 0.0)
    for reply, weight in zip(replies, weights, strict=True):
        for name in means:
            means[name] += reply[name] * (weight / total)
    return means


class ProgressWriter:
    """Appends lines to the file or pipe that the shield reads."""

    def __init__(self, path: Path) -> None:
        # Opened for reading too: a pipe whose reader is late must not block the run.
        self._descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)

    def write(self, round_number: int, phase: str, metrics: Metrics, sites: Sequence[str]) -> None:
        """Write one line.

        Raises:
            EncodingError: `json.not_canonical`.
            EngineError: `engine.progress_line`, `engine.progress_unread`.
        """
        line = strict_json.encode(
            {
                "round": round_number,
                "phase": phase,
                "metrics": {name: float(value).hex() for name, value in metrics.items()},
                "replies": list(sites),
            }
        )
        if len(line) >= _MAX_LINE:
            raise EngineError("engine.progress_line", "a round's metrics do not fit into a progress line")
        try:
            os.write(self._descriptor, line + b"\n")
        except BlockingIOError as error:
            raise EngineError("engine.progress_unread", "nobody reads the progress pipe") from error

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def __enter__(self) -> Self:
        """Return the writer."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Close the file."""
        self.close()


class PendingSignal:
    """Tells whoever holds empty pulls that messages are complete and waiting: a counter in a file, replaced whole."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._count = 0

    def raise_(self) -> None:
        """Count one more batch of messages.

        Raises:
            EngineError: `engine.pending_file`.
        """
        self._count += 1
        temporary = self._path.with_name(self._path.name + ".new")
        try:
            temporary.write_text(f"{self._count}\n")
            temporary.replace(self._path)
        except OSError as error:
            raise EngineError("engine.pending_file", "the pending signal cannot be written") from error
