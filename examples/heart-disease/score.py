"""Score a trained model on the records that the hospitals held back, all hospitals together.

Usage: python score.py MODEL_FILE PARTITION_DIRECTORY [SEED]
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).with_name("app")))

from heart import task


def score(model: Path, partition: Path, seed: int) -> dict[str, float | int]:
    """Return loss, accuracy, area under the curve and number of records over the held-back fifth of every hospital."""
    with np.load(model, allow_pickle=False) as archive:
        weights = archive["weights"]
    held_back = [task.load(str(file), seed)[1] for file in sorted(partition.glob("*/records.npz"))]
    matrix = np.concatenate([part[0] for part in held_back])
    labels = np.concatenate([part[1] for part in held_back])
    return task.evaluate(weights, (matrix, labels))


if __name__ == "__main__":
    for name, value in score(Path(sys.argv[1]), Path(sys.argv[2]), int((*sys.argv, "7")[3])).items():
        print(f"{name}\t{value:.6g}")
