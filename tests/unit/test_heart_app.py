"""The heart disease example: what its model reaches, that it is deterministic and that nothing leaks into training."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "heart-disease"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The four hospitals' files."""
    made = runpy.run_path(str(EXAMPLE / "partition.py"))["partition"](
        EXAMPLE / "heart4.npz", tmp_path_factory.mktemp("heart")
    )
    assert isinstance(made, dict)
    return made


@pytest.fixture
def task(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """The app's own functions."""
    monkeypatch.syspath_prepend(str(EXAMPLE / "app"))
    found = runpy.run_path(str(EXAMPLE / "app" / "heart" / "task.py"))
    sys.modules.pop("heart", None)
    return found


def test_partition_keeps_every_record_at_its_hospital(folders: dict[str, Path]) -> None:
    """The four hospitals have the numbers of records that UCI publishes."""
    sizes = {site: len(np.load(path, allow_pickle=False)["y"]) for site, path in folders.items()}
    assert sizes == {"cleveland": 303, "hungary": 294, "switzerland": 123, "long-beach": 200}


def test_federated_averaging_reaches_the_reference(folders: dict[str, Path], task: dict[str, object]) -> None:
    """15 rounds over four hospitals give a mean area under the curve of at least 0.885 over 20 seeds."""
    load, train, evaluate = task["load"], task["train"], task["evaluate"]
    assert callable(load)
    assert callable(train)
    assert callable(evaluate)
    scores = []
    for seed in range(20):
        parts = [load(str(path), seed) for path in folders.values()]
        weights = np.zeros(len(parts[0][0][0][0]))
        sizes = np.array([len(training[1]) for training, _ in parts])
        for _ in range(15):
            updates = [train(weights, training, steps=10, rate=0.5, decay=0.01) for training, _ in parts]
            weights = np.average(updates, axis=0, weights=sizes)
        held_back = [part[1] for part in parts]
        pooled = (np.concatenate([d[0] for d in held_back]), np.concatenate([d[1] for d in held_back]))
        scores.append(evaluate(weights, pooled)["auc"])
    assert np.mean(scores) >= 0.885


def test_held_back_records_do_not_touch_training(
    folders: dict[str, Path], task: dict[str, object], tmp_path: Path
) -> None:
    """Changing a held-back record changes no training feature: nothing is fitted before the split."""
    load = task["load"]
    assert callable(load)
    source = np.load(folders["hungary"], allow_pickle=False)
    training, held_back = load(str(folders["hungary"]), 3)
    x = source["x"].copy()
    features = task["features"]
    assert callable(features)
    held, kept = ({row.tobytes() for row in part[0]} for part in (held_back, training))
    only_held = [i for i, row in enumerate(features(x)) if row.tobytes() in held - kept]
    assert len(only_held) > 40
    x[only_held] += 1000.0
    np.savez(tmp_path / "changed.npz", x=x, y=source["y"])
    changed, _ = load(str(tmp_path / "changed.npz"), 3)
    assert np.array_equal(training[0], changed[0])


def test_fl_20_a_pickle_in_the_data_is_not_loaded(task: dict[str, object], tmp_path: Path) -> None:
    """A records file with an object array is refused by NumPy, not unpickled."""
    np.savez(tmp_path / "evil.npz", x=np.array([{"a": 1}], dtype=object), y=np.array([1]))
    load = task["load"]
    assert callable(load)
    with pytest.raises(ValueError, match="allow_pickle"):
        load(str(tmp_path / "evil.npz"), 1)
