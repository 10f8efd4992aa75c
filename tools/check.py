"""`make check`: format, lint, types, layers, sizes, documents, tests with branch coverage, README commands."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
STEPS: list[tuple[str, list[str]]] = [
    ("format", [f"{BIN}/ruff", "format", "--check", "."]),
    ("lint", [f"{BIN}/ruff", "check", "."]),
    ("types", [f"{BIN}/mypy", "src", "tests"]),
    ("layers", [f"{BIN}/lint-imports"]),
    ("sizes", [sys.executable, "tools/sizes.py"]),
    ("error codes", [sys.executable, "tools/error_codes.py"]),
    ("attacks", [sys.executable, "tools/attacks.py"]),
    ("assurance", [sys.executable, "tools/deep.py", "--verify"]),
    ("tests", [sys.executable, "-m", "pytest", "--cov", "--cov-report=term:skip-covered"]),
    ("README commands", [sys.executable, "tools/readme.py"]),
]


def main() -> int:
    """Run every step, even after a failure, and sum up."""
    failed: list[str] = []
    for name, command in STEPS:
        print(f"== {name}", flush=True)
        started = time.monotonic()
        if subprocess.run(command, cwd=ROOT, check=False).returncode != 0:
            failed.append(name)
        print(f"== {name}: {'FAILED' if name in failed else 'ok'} in {time.monotonic() - started:.1f} s", flush=True)
    print("make check: " + (f"FAILED: {', '.join(failed)}" if failed else "all passed"))
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
