"""Fuzzes one family of parsers: `python -m deep.fuzz --part FAMILY --seed TEXT --count N --failures DIRECTORY`.

The seed fixes every choice except key material.
"""

from __future__ import annotations

import gc
import hashlib
import sys
import traceback
from pathlib import Path

from deep.families import FAMILIES, Target
from deep.mutation import Mutator
from deep.outcome import arguments, report
from secfl.errors import SecflError

__all__ = ["main"]


def _keep(directory: Path, target: Target, data: bytes) -> str:
    directory.mkdir(parents=True, exist_ok=True)
    name = f"{target.name.replace(' ', '-').replace('/', '-')}-{hashlib.sha256(data).hexdigest()[:12]}"
    (directory / name).write_bytes(data)
    (directory / f"{name}.txt").write_text(traceback.format_exc())
    return name


def main() -> int:
    """Run; failures are kept as files and counted."""
    options = arguments(FAMILIES)
    targets = FAMILIES[options.part]()
    gc.freeze()
    accepted = 0
    failures: set[str] = set()
    mutators = [Mutator(target.seeds, f"{options.seed}/{options.first}/{target.name}") for target in targets]
    for target in targets:
        if target.accepts:
            target.take(target.seeds[0])
    for number in range(options.count):
        target, mutator = targets[number % len(targets)], mutators[number % len(targets)]
        accepted += _try(target, mutator.draw(), options.failures, failures)
    return report(options.count, failures, accepted=accepted, targets=len(targets))


def _try(target: Target, data: bytes, directory: Path, failures: set[str]) -> int:
    try:
        target.take(data)
    except SecflError:
        return 0
    except Exception:  # noqa: BLE001 - anything but a refusal is what is looked for
        failures.add(_keep(directory, target, data))
        return 0
    return 1


if __name__ == "__main__":
    sys.exit(main())
