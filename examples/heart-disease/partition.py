"""Split `heart4.npz` into one folder a hospital, each with its own `records.npz`.

Usage: python partition.py OUTPUT_DIRECTORY
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

SITES = {"Cleveland": "cleveland", "Hungary": "hungary", "Switzerland": "switzerland", "VA Long Beach": "long-beach"}


def partition(source: Path, target: Path) -> dict[str, Path]:
    """Write every hospital's records below `target`; return the file of each site."""
    files: dict[str, Path] = {}
    with np.load(source, allow_pickle=False) as archive:
        for index, hospital in enumerate(archive["hospitals"]):
            rows = archive["hospital"] == index
            site = SITES[str(hospital)]
            folder = target / site
            folder.mkdir(parents=True, exist_ok=True)
            np.savez(folder / "records.npz", x=archive["x"][rows], y=archive["y"][rows])
            files[site] = folder / "records.npz"
    return files


if __name__ == "__main__":
    for name, file in partition(Path(__file__).with_name("heart4.npz"), Path(sys.argv[1])).items():
        print(f"{name}\t{file}")
