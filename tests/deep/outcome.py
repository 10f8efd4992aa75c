"""What a suite tells `tools/deep.py`: one JSON object on the last line of standard output."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Collection
from pathlib import Path

__all__ = ["arguments", "report"]


def arguments(parts: Collection[str]) -> argparse.Namespace:
    """Read the part, the seed, the count, the number to start at and the directory for failures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--part", choices=sorted(parts), required=True)
    parser.add_argument("--seed", required=True)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--failures", type=Path, required=True)
    return parser.parse_args()


def report(done: int, failures: Collection[str], **numbers: int) -> int:
    """Write the result and give the exit status."""
    sys.stdout.write(json.dumps({"done": done, "failures": sorted(failures), "numbers": numbers}) + "\n")
    sys.stdout.flush()
    return 0
