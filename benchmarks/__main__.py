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
simulated platform: the verification is that of real quotes, but making one on hardware takes longer than here. The last
line of each section says when, from which commit, by which command and beside how much other load it was measured.
"""


def main() -> int:
    """Run the benchmarks that are named, or all; 1 when one fails or misses its goal."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*NAMES, []], metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--quick", action="store_true", help="few repetitions, small files")
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks.md")
    arguments = parser.parse_args()
    console = Console(width=max(120, Console().width))
    sections, good = {}, True
    for name in arguments.names or NAMES:
        before, started = load(), time.monotonic()
        result: Result = importlib.import_module(f"benchmarks.{name}").run(quick=arguments.quick)
        result.remarks.append(_conditions(name, before, time.monotonic() - started, quick=arguments.quick))
        result.show(console)
        sections[name] = result.markdown()
        good &= all(goal.met for goal in result.goals)
    if arguments.write:
        _write(sections)
        console.print(f"written: {PAGE}")
    return 0 if good else 1


def _conditions(name: str, before: str, seconds: float, *, quick: bool) -> str:
    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=False)
        return done.stdout.strip()

    changed = " with changes" if git("status", "--porcelain", "--untracked-files=no", "--", "src") else ""
    return (
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, commit {git('rev-parse', '--short', 'HEAD') or 'none'}{changed}, "
        f"`python -m benchmarks {name}{' --quick' if quick else ''}`, {seconds:.0f} s; "
        f"load average before {before}, after {load()}."
    )


def _write(sections: dict[str, str]) -> None:
    """Replace the sections that were measured; the others keep their figures and their conditions."""
    if PAGE.exists():
        for part in PAGE.read_text(encoding="utf-8").split("\n## ")[1:]:
            name = part.partition("\n")[0]
            sections.setdefault(name, f"## {part.strip()}\n")
    ordered = [sections[name] for name in NAMES if name in sections]
    PAGE.write_text("\n".join([_INTRODUCTION, f"Machine: {describe()}.\n", *ordered]), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
