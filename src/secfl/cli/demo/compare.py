"""The comparison: the same app, seed and records without any protection, round by round and byte by byte."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from secfl.crypto.transcript import digest256
from secfl.federation.flower.launch import Scalar
from secfl.federation.flower.plain import Round, run_plain

__all__ = ["join_rounds", "model_digest", "plain_rounds"]

Rounds = dict[int, dict[str, float]]


def plain_rounds(
    app: Path,
    records: Mapping[str, Path],
    run_config: Mapping[str, Scalar],
    work: Path,
    *,
    on_round: Callable[[int], None],
) -> tuple[Rounds, Path]:
    """Run plain; returns the evaluation metrics by round, and the model file.

    Raises:
        EngineError: the plain run failed.
    """
    rounds: Rounds = {}

    def progress(entry: Round) -> None:
        if entry.phase == "evaluate":
            rounds[entry.number] = dict(entry.metrics)
            on_round(entry.number)

    nodes = {site: {"data-path": str(folder / "records.npz")} for site, folder in records.items()}
    result = run_plain(app, nodes, run_config, work, on_progress=progress)
    return rounds, result.model


def model_digest(file: Path) -> str:
    """Hash names, types, shapes and bytes of all arrays; the container's own time stamps do not count."""
    fields: list[bytes] = []
    with np.load(file, allow_pickle=False) as arrays:
        for name in sorted(arrays.files):
            array = np.ascontiguousarray(arrays[name])
            fields += [name.encode(), array.dtype.str.encode(), repr(array.shape).encode(), array.tobytes()]
    return digest256("model", *fields).hex()


def join_rounds(confidential: Rounds, plain: Rounds) -> tuple[Sequence[dict[str, Any]], bool]:
    """Put both runs side by side; the flag says whether they agree bit for bit in every metric of every round."""
    rows = [
        {"round": number, "confidential": confidential.get(number, {}), "plain": plain.get(number, {})}
        for number in sorted(set(confidential) | set(plain))
    ]
    return rows, bool(rows) and _bits(confidential) == _bits(plain)


def _bits(rounds: Rounds) -> dict[int, dict[str, str]]:
    # Compared as numbers, 0.0 and -0.0 would be the same and a value that is not a number never.
    return {number: {name: value.hex() for name, value in row.items()} for number, row in rounds.items()}
