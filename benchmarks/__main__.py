"""`python -m benchmarks [NAME…] [--quick] [--write]`: run benchmarks, show them, write the results page."""

from __future__ import annotations

import argparse
import importlib
import subprocess
import sys
import time
from datetime import UTC, datetime

from rich.console import Console

from benchmarks import ROOT
from benchmarks.machine import describe, load
from benchmarks.result import Result

NAMES = ("utility", "attest", "network", "volume", "start", "memory", "rounds")
PAGE = ROOT / "docs" / "benchmarks.md"
_INTRODUCTION = """# Benchmarks

Written by `python -m benchmarks --write`; do not edit. `make bench` shows the same on the terminal. Every figure stands
beside a baseline from the same run; compare ratios, since absolute times are this machine's. Evidence comes from the
simulated platform: the verification is that of real quotes, but making one on hardware takes longer than here.
"""


def main() -> int:
    """Run the benchmarks that are named, or all; 1 when one fails or misses its goal."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*NAMES, []], metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--quick", action="store_true", help="few repetitions, small files")
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks.md")
    arguments = parser.parse_args()
    console = Console(width=max(120, Console().width))
    sections, good = [], True
    for name in arguments.names or NAMES:
        before, started = load(), time.monotonic()
        result: Result = importlib.import_module(f"benchmarks.{name}").run(quick=arguments.quick)
        took = time.monotonic() - started
        result.remarks.append(f"Load average before {before}, after {load()}; the benchmark took {took:.0f} s.")
        result.show(console)
        sections.append(result.markdown())
        good &= all(goal.met for goal in result.goals)
    if arguments.write:
        PAGE.write_text("\n".join([_INTRODUCTION, _conditions(), *sections]), encoding="utf-8")
        console.print(f"written: {PAGE}")
    return 0 if good else 1


def _conditions() -> str:
    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=False)
        return done.stdout.strip()

    changed = " with changes" if git("status", "--porcelain", "--untracked-files=no") else ""
    return (
        f"- Date: {datetime.now(UTC):%Y-%m-%d %H:%M} UTC\n"
        f"- Commit: `{git('rev-parse', '--short', 'HEAD') or 'none'}`{changed}\n"
        f"- Machine: {describe()}\n"
        f"- Command: `python -m benchmarks {' '.join(sys.argv[1:])}`\n"
    )


if __name__ == "__main__":
    sys.exit(main())
