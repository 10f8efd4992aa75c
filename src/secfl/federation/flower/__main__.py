"""The program that the shield launches: one party of a Flower federation.

`python -m secfl.federation.flower aggregator|trainer …`; exit status 0 means that the run ended well (aggregator) or
that the party was asked to stop (trainer).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from secfl.errors import SecflError
from secfl.federation.flower.arguments import parse_arguments
from secfl.federation.flower.contract import check_files, check_version
from secfl.federation.flower.launch import AggregatorLaunch, TrainerLaunch, check_environment

__all__ = ["main"]


def main(arguments: Sequence[str]) -> int:
    """Run a party until it is over; return the exit status."""
    try:
        launch = parse_arguments(arguments)
        check_environment(os.environ)
        # Inside an enclave the measurement covers every file, checked when the image was built; here the version is
        # enough and saves reading all of Flower through the file shield. The plain layout has no measurement.
        if isinstance(launch, str):
            check_files()
        check_version()
        _run(launch)
    except SecflError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return 0


def _run(launch: AggregatorLaunch | TrainerLaunch | str) -> None:
    # Imported only now: a wrong environment must not reach Flower, which reads it on import.
    from secfl.federation.flower.bundle import build, require
    from secfl.federation.flower.process import Family
    from secfl.federation.flower.supervisor import Aggregator, Trainer, run_family

    if isinstance(launch, str):
        from secfl.federation.flower.plain_parties import run_plan

        run_plan(Path(launch))
        return
    bundle = require(build(Path(launch.app_directory)), launch.app_hash)
    bundle.run_config(launch.run_config)
    family = Family()
    if isinstance(launch, TrainerLaunch):
        trainer = Trainer(launch, bundle)
        trainer.start(family)
        run_family(family, {"trainer": trainer}, lambda: False)
        return
    aggregator = Aggregator(launch, bundle)
    aggregator.start(family)

    def step() -> bool:
        aggregator.step()
        return aggregator.finished

    run_family(family, {"superlink": aggregator, "serverapp": aggregator}, step)
    if not aggregator.finished:
        from secfl.errors import EngineError

        raise EngineError("engine.stopped", "the aggregator was stopped before the run ended")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
