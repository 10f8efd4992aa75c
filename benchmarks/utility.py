"""What the model of the example is worth: area under the curve on the records that the hospitals held back.

Plain federated averaging in this process, with the example's own code; the confidential run gives the same model.
"""

from __future__ import annotations

import runpy
import statistics
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from benchmarks import ROOT
from benchmarks.result import Goal, Result, Table

__all__ = ["run"]

_EXAMPLE = ROOT / "examples" / "heart-disease"
_ROUNDS, _STEPS, _RATE, _DECAY = 15, 10, 0.5, 0.01
_GOAL = 0.885


def run(*, quick: bool) -> Result:
    """Train with many seeds, each with another split into training and held-back records."""
    seeds = range(5 if quick else 20)
    sys.path.insert(0, str(_EXAMPLE / "app"))
    task = runpy.run_path(str(_EXAMPLE / "app" / "heart" / "task.py"))
    with TemporaryDirectory(prefix="secfl-bench-") as place:
        files = runpy.run_path(str(_EXAMPLE / "partition.py"))["partition"](_EXAMPLE / "heart4.npz", Path(place))
        started = time.perf_counter()
        found = [_train(task, list(files.values()), seed) for seed in seeds]
        seconds = time.perf_counter() - started
    rows = []
    for name, column in (("area under the curve", "auc"), ("accuracy", "accuracy"), ("loss", "loss")):
        values = [each[column] for each in found]
        shown = (statistics.mean(values), statistics.stdev(values), min(values), max(values))
        rows.append((name, *(f"{value:.4f}" for value in shown)))
    result = Result("utility", __doc__ or "")
    title = f"{len(found)} seeds, {_ROUNDS} rounds, all held-back records pooled"
    result.tables.append(Table(title, ("", "mean", "deviation", "least", "most"), rows))
    mean = statistics.mean(each["auc"] for each in found)
    result.goals.append(Goal("mean area under the curve", mean, _GOAL, at_least=True))
    result.remarks.append(f"{seconds / len(found) * 1e3:.0f} ms a seed.")
    return result


def _train(task: dict[str, Any], files: list[Path], seed: int) -> dict[str, float]:
    parts = [task["load"](str(file), seed) for file in files]
    weights = task["initial_weights"]()
    sizes = np.array([len(training[1]) for training, _ in parts])
    for _ in range(_ROUNDS):
        updates = [task["train"](weights, data, steps=_STEPS, rate=_RATE, decay=_DECAY) for data, _ in parts]
        weights = np.average(updates, axis=0, weights=sizes)
    held_back = [part[1] for part in parts]
    pooled = (np.concatenate([part[0] for part in held_back]), np.concatenate([part[1] for part in held_back]))
    measured: dict[str, float] = task["evaluate"](weights, pooled)
    return measured
