"""Logistic regression on the UCI heart disease records, in NumPy.

Nothing is estimated from the records before training: scaling uses fixed clinical ranges, so that no statistic leaves
a hospital and held-back records have no influence on the features.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from flwr.app import Array
from numpy.typing import NDArray

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]

COLUMNS = (
    "age", "sex", "cp", "trestbps", "chol", "fbs", "restecg", "thalach", "exang", "oldpeak", "slope", "ca", "thal",
)  # fmt: skip
SCALED = {"age": (54.0, 10.0), "trestbps": (130.0, 20.0), "chol": (240.0, 60.0), "thalach": (140.0, 25.0),
          "oldpeak": (1.0, 1.0), "ca": (1.0, 1.0)}  # fmt: skip
"""Typical value and spread of each measured quantity in adults; a missing value becomes the typical one."""
CODED = {"sex": (1,), "cp": (1, 2, 3, 4), "fbs": (1,), "restecg": (1, 2), "exang": (1,), "slope": (1, 2, 3),
         "thal": (3, 6, 7)}  # fmt: skip
"""Codes that get a column of their own; a missing code leaves all of them at zero."""
OFTEN_MISSING = ("chol", "exang", "slope", "ca", "thal")
"""Whether these were recorded is itself a feature: hospitals differ in what they measure."""

HELD_BACK = 5
"""One record in five of each hospital and class is kept for evaluation."""


def features(records: NDArray[np.float32]) -> Matrix:
    """Turn raw records, with NaN where nothing was recorded, into columns of similar size; the first is constant."""
    columns: list[Vector] = [np.ones(len(records))]
    for index, name in enumerate(COLUMNS):
        raw = records[:, index].astype(np.float64)
        if name in SCALED:
            typical, spread = SCALED[name]
            columns.append((np.nan_to_num(raw, nan=typical) - typical) / spread)
        columns.extend((raw == code).astype(np.float64) for code in CODED.get(name, ()))
        if name in OFTEN_MISSING:
            columns.append(np.isnan(raw).astype(np.float64))
    return np.stack(columns, axis=1)


def load(path: str, seed: int) -> tuple[tuple[Matrix, Vector], tuple[Matrix, Vector]]:
    """Read one hospital's file and split it into training and held-back records, the same way for the same seed."""
    with np.load(Path(path), allow_pickle=False) as archive:
        records, labels = archive["x"], archive["y"].astype(np.float64)
    held = np.zeros(len(labels), dtype=bool)
    generator = np.random.default_rng(seed)
    for label in (0.0, 1.0):
        rows = generator.permutation(np.flatnonzero(labels == label))
        held[rows[: max(1, len(rows) // HELD_BACK)]] = True
    matrix = features(records)
    return (matrix[~held], labels[~held]), (matrix[held], labels[held])


def initial_weights() -> Vector:
    """Start from "no feature matters"."""
    return np.zeros(features(np.zeros((1, len(COLUMNS)), dtype=np.float32)).shape[1])


def as_array(weights: Vector) -> Array:
    """Wrap weights for a message."""
    return Array(np.ascontiguousarray(weights))


def probabilities(weights: Vector, matrix: Matrix) -> Vector:
    """Predict the probability of disease."""
    return np.asarray(1.0 / (1.0 + np.exp(-np.clip(matrix @ weights, -30.0, 30.0))))


def train(weights: Vector, data: tuple[Matrix, Vector], *, steps: int, rate: float, decay: float) -> Vector:
    """Take full-batch gradient steps on the local records."""
    matrix, labels = data
    for _ in range(steps):
        gradient = matrix.T @ (probabilities(weights, matrix) - labels) / len(labels)
        gradient[1:] += decay * weights[1:]
        weights = weights - rate * gradient
    return weights


def area_under_curve(labels: Vector, scores: Vector) -> float:
    """Probability that a random sick person scores above a random healthy one; ties count half."""
    sick, healthy = scores[labels == 1.0], scores[labels == 0.0]
    order = (sick[:, None] > healthy[None, :]).mean() + 0.5 * (sick[:, None] == healthy[None, :]).mean()
    return float(order)


def evaluate(weights: Vector, data: tuple[Matrix, Vector]) -> dict[str, float | int]:
    """Measure loss, accuracy and area under the curve on held-back records."""
    matrix, labels = data
    chance = np.clip(probabilities(weights, matrix), 1e-12, 1.0 - 1e-12)
    return {
        "loss": float(-np.mean(labels * np.log(chance) + (1.0 - labels) * np.log(1.0 - chance))),
        "accuracy": float(np.mean((chance >= 0.5) == (labels == 1.0))),
        "auc": area_under_curve(labels, chance),
        "num-examples": len(labels),
    }
