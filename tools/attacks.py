"""Compares `docs/attacks.md` with the tests: a row is `tested` exactly when a test carries its id.

A test carries a row in its name, or, for forged evidence, as the row of a defect that
`tests/adversarial/test_evidence.py` presents to the verifier.

`--write` marks the rows that have gained a test; a row that lost its tests is always an error.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from secfl.testing.forge import DEFECTS

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs/attacks.md"
TEST = re.compile(r"^\s*(?:async )?def test_(ev|pb|se|fs|nw|fr|fl|sv|sc)_(\d\d)_", re.MULTILINE)
ROW = re.compile(r"^\| ([A-Z]{2}-\d\d) \| (.+) \| (.+) \|$")


def tested_rows() -> dict[str, int]:
    """How many tests carry each row's id."""
    count: dict[str, int] = {}
    for defect in DEFECTS:
        count[defect.row] = count.get(defect.row, 0) + len(defect.kinds)
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for group, number in TEST.findall(path.read_text()):
            row = f"{group.upper()}-{number}"
            count[row] = count.get(row, 0) + 1
    return count


def main() -> int:
    """Check, or with `--write` bring the page up to date first."""
    tests = tested_rows()
    errors: list[str] = []
    lines: list[str] = []
    rows: set[str] = set()
    for line in PAGE.read_text().splitlines():
        match = ROW.match(line)
        if match is None:
            lines.append(line)
            continue
        row, attack, state = match.groups()
        rows.add(row)
        if row in tests and not state.startswith("tested") and "--write" in sys.argv[1:]:
            state = "tested"
        if state.startswith("tested") != (row in tests):
            errors.append(f"{row}: the page says {state!r}, {tests.get(row, 0)} tests carry the id")
        elif not state.startswith("tested") and not state.startswith("waits for "):
            errors.append(f"{row}: say 'tested' or 'waits for ...'")
        lines.append(f"| {row} | {attack} | {state} |")
    if "--write" in sys.argv[1:]:
        PAGE.write_text("\n".join(lines) + "\n")
    errors += [f"{row}: tested, but not on the page" for row in sorted(set(tests) - rows)]
    for error in errors:
        print(f"error: {error}")
    print(f"attacks: {len(set(tests) & rows)} of {len(rows)} rows tested by {sum(tests.values())} tests")
    return int(bool(errors))


if __name__ == "__main__":
    sys.exit(main())
