"""`make deep`: the large counts. Seeded, resumable, each batch a process of its own; writes `docs/assurance.md`.

`--verify` only reads the page and fails when it is missing, malformed, incomplete or reports a failure.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import secrets
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs/assurance.md"
WORK = ROOT / "build/deep"
STATE = WORK / "state.json"
BATCH_SECONDS = 900
KILLED_AT_LEAST = 0.8
"""Share of mutants that tests have to notice; the rest are edits without effect and gaps, listed for a person."""


@dataclass(frozen=True)
class Suite:
    """A part of a module of `tests/deep`: how many, in batches of how many, and what one of them is."""

    module: str
    part: str
    count: int
    batch: int
    unit: str

    @property
    def name(self) -> str:
        """The name on the page."""
        return f"{self.module} {self.part}"


SUITES = (
    Suite("fuzz", "evidence", 120_000, 20_000, "inputs"),
    Suite("fuzz", "json", 120_000, 40_000, "inputs"),
    Suite("fuzz", "manager", 100_000, 20_000, "inputs"),
    Suite("fuzz", "messages", 120_000, 40_000, "inputs"),
    Suite("fuzz", "policy", 100_000, 20_000, "inputs"),
    Suite("fuzz", "quotes", 100_000, 20_000, "inputs"),
    Suite("fuzz", "sessions", 100_000, 20_000, "inputs"),
    Suite("fuzz", "volume", 100_000, 20_000, "inputs"),
    Suite("kills", "enclave", 200, 50, "kills"),
    Suite("kills", "store", 500, 100, "kills"),
    Suite("kills", "volume", 500, 100, "kills"),
    Suite("mutants", "secfl.attestation.appraise", 24, 6, "mutants"),
    Suite("mutants", "secfl.attestation.binding", 12, 6, "mutants"),
    Suite("mutants", "secfl.attestation.challenge", 12, 6, "mutants"),
    Suite("mutants", "secfl.attestation.ear", 12, 6, "mutants"),
    Suite("mutants", "secfl.policy.board", 12, 6, "mutants"),
    Suite("mutants", "secfl.policy.grants", 12, 6, "mutants"),
    Suite("mutants", "secfl.protocol.session", 12, 6, "mutants"),
    Suite("soak", "manager", 4_000, 4_000, "cycles"),
)
ROW = re.compile(r"^\| (\S+ \S+) \| ([\d,]+) (\w+) \| ([^|]*) \| (\d+) \| (\d+) s \|$", re.MULTILINE)
HEAD = re.compile(r"^Commit `([0-9a-f]{40})`, seed `([0-9a-f]+)`, finished (\d{4}-\d\d-\d\d) \(UTC\)\.$", re.MULTILINE)
TEXT = """# Assurance

What the last `make deep` did. It runs counts that are too large for every change: changed inputs for each family of
parsers, real SIGKILLs, changed source, a lasting load. `tools/deep.py` writes this page; `make check` refuses it when
it is missing, incomplete or reports a failure. `make deep` continues where it was stopped; the seed fixes every choice
except key material, which is drawn anew.

- **fuzz**: valid inputs, mutated. Each must be refused with an error of the tree, or be accepted and encode to the same
  bytes or mean the same as the genuine input. "Accepted" counts the second kind.
- **kills**: a process is killed with SIGKILL at a random moment. Afterwards everything that was acknowledged is there,
  nothing is there in part, and no process is left.
- **mutants**: one change in a module that decides; its tests have to notice. At least {share} % must be noticed.
- **soak**: a manager with its store on disk under attestations, renewals, calls and restarts; the state after a restart
  is the state before, and memory stays bounded.

Commit `{commit}`, seed `{seed}`, finished {date} (UTC).

| suite | run | result | failures | CPU |
| --- | --: | --- | --: | --: |
"""


def _commit() -> str:
    return subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()


def _changed() -> str:
    listing = ["git", "status", "--porcelain", "--", "src", "tests"]
    return subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def _batch(suite: Suite, seed: str, first: int, count: int) -> dict[str, object]:
    command = [sys.executable, "-m", f"deep.{suite.module}", "--part", suite.part, "--seed", seed]
    command += ["--first", str(first), "--count", str(count), "--failures", str(WORK / "failures")]
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT / 'tests'}"}
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, timeout=BATCH_SECONDS, check=False
        )
        if done.returncode == 0:
            result: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
            return result
        reason = f"exit status {done.returncode}"
    except subprocess.TimeoutExpired:
        reason = f"no end within {BATCH_SECONDS} s"
    return {"done": 0, "failures": [f"{suite.name} at {first}: {reason}"], "numbers": {}}


def run(state: dict[str, dict[str, dict[str, object]]], seed: str, chosen: str) -> None:
    """Run what is left of each suite, saving after each batch."""
    for suite in SUITES:
        entry = state["suites"].setdefault(suite.name, {"done": 0, "failures": [], "numbers": {}, "seconds": 0.0})
        while chosen in suite.name and entry["done"] < suite.count and not entry["failures"] and not entry.get("end"):
            count = min(suite.batch, suite.count - entry["done"])
            began = os.times()
            result = _batch(suite, seed, entry["done"], count)
            ended = os.times()
            entry["seconds"] += ended.children_user + ended.children_system
            entry["seconds"] -= began.children_user + began.children_system
            entry["done"] += result["done"]
            entry["failures"] += result["failures"]
            entry["end"] = result["done"] < count
            for name, number in result["numbers"].items():
                largest = name in {"targets", "grown_kib"}
                before = entry["numbers"].get(name, 0)
                entry["numbers"][name] = max(before, number) if largest else before + number
            STATE.write_text(json.dumps(state, indent=1))
            print(
                f"{suite.name}: {entry['done']:,} of {suite.count:,} {suite.unit}, {len(entry['failures'])} failures",
                flush=True,
            )


def render(state: dict[str, object]) -> str:
    """The page."""
    parts = [
        TEXT.format(
            commit=state["commit"], seed=state["seed"], date=datetime.now(UTC).date(), share=int(KILLED_AT_LEAST * 100)
        )
    ]
    for suite in SUITES:
        entry = state["suites"][suite.name]
        numbers = ", ".join(f"{name.replace('_', ' ')} {number:,}" for name, number in sorted(entry["numbers"].items()))
        failures = len(entry["failures"])
        parts.append(
            f"| {suite.name} | {entry['done']:,} {suite.unit} | {numbers} | {failures} | {entry['seconds']:.0f} s |\n"
        )
    survivors = WORK / "failures/survivors.txt"
    if survivors.exists():
        parts.append("\nMutants that no test noticed, for a person to judge:\n\n")
        parts += [f"- `{line}`\n" for line in sorted(set(survivors.read_text().splitlines()))]
    return "".join(parts)


def verify() -> int:
    """Check the page; print what is wrong."""
    if not PAGE.exists():
        print("error: docs/assurance.md is missing; run make deep")
        return 1
    text = PAGE.read_text()
    errors = [] if HEAD.search(text) else ["no line with commit, seed and date"]
    rows = {row[0]: row for row in ROW.findall(text)}
    killed = mutants = 0
    for suite in SUITES:
        row = rows.get(suite.name)
        if row is None:
            errors.append(f"no row for {suite.name}")
            continue
        done = int(row[1].replace(",", ""))
        if row[4] != "0":
            errors.append(f"{suite.name}: {row[4]} failures")
        if done < suite.count:
            errors.append(f"{suite.name}: {done} of {suite.count}")
        if suite.module == "mutants":
            mutants += done
            killed += int(re.findall(r"killed ([\d,]+)", row[3])[0].replace(",", "")) if "killed" in row[3] else 0
    if killed < KILLED_AT_LEAST * mutants:
        errors.append(f"{killed} of {mutants} mutants were noticed")
    for error in errors:
        print(f"error: docs/assurance.md: {error}")
    print(f"assurance: {len(rows)} of {len(SUITES)} suites, {killed} of {mutants} mutants noticed")
    return int(bool(errors))


def main() -> int:
    """Run or verify."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--verify", action="store_true", help="only check the page")
    parser.add_argument("--seed", default="", help="hexadecimal; without it a new one, or that of the run to continue")
    parser.add_argument("--only", default="", help="run only suites whose name contains this")
    options = parser.parse_args()
    if options.verify:
        return verify()
    WORK.mkdir(parents=True, exist_ok=True)
    commit = _commit()
    state = json.loads(STATE.read_text()) if STATE.exists() else {}
    if state.get("commit") != commit or (options.seed and state.get("seed") != options.seed):
        state = {"commit": commit, "seed": options.seed or secrets.token_hex(8), "suites": {}}
        for path in (WORK / "failures").glob("*"):
            path.unlink()
    began = time.monotonic()
    run(state, state["seed"], options.only)
    print(f"seed {state['seed']}, {time.monotonic() - began:.0f} s")
    if any(entry["done"] < 1 and not entry["failures"] for entry in state["suites"].values()):
        print("not all suites have run; the page stays as it is")
        return 1
    if _changed():
        print("src or tests differ from the commit; the page stays as it is")
        return 1
    PAGE.write_text(render(state))
    STATE.unlink()
    return verify()


if __name__ == "__main__":
    sys.exit(main())
