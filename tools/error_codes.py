"""Collects the stable error codes from the source and writes or checks `docs/errors.md`."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

from secfl import errors

ROOT = Path(__file__).resolve().parent.parent
CLASSES = {name for name in errors.__all__ if name.endswith("Error")}
HEADER = """# Error codes

Every error has a class, which says what the caller should do, and a stable dotted code, which says what happened.
The class decides the exit code of the command line and the HTTP status of the manager. Written by
`tools/error_codes.py --write`; `make check` compares.

| class | meaning | exit code | HTTP status |
| --- | --- | --: | --: |
"""


def collect() -> dict[str, set[str]]:
    """Codes by class, from every call of an error class whose first argument is a literal, and every finding."""
    found: dict[str, set[str]] = {name: set() for name in CLASSES}
    for path in sorted((ROOT / "src").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or not node.args:
                continue
            first = node.args[0]
            if not isinstance(first, ast.Constant) or not isinstance(first.value, str):
                continue
            if node.func.id in CLASSES:
                found[node.func.id].add(first.value)
            elif node.func.id == "Finding":
                found["AppraisalError"].add(first.value)
    return found


def render() -> str:
    """The whole page."""
    rows = []
    for name in sorted(CLASSES - {"SecflError"}):
        kind = getattr(errors, name)
        meaning = (kind.__doc__ or "").splitlines()[0]
        rows.append(f"| `{name}` | {meaning} | {kind.exit_code} | {kind.http_status} |\n")
    parts = [HEADER, *rows]
    for name, codes in sorted(collect().items()):
        if codes:
            parts.append(f"\n## {name}\n\n" + "".join(f"- `{code}`\n" for code in sorted(codes)))
    return "".join(parts)


def main() -> int:
    """`--write` writes the page; without it the page must be up to date."""
    page = ROOT / "docs/errors.md"
    text = render()
    if "--write" in sys.argv[1:]:
        page.write_text(text)
        return 0
    if not page.exists() or page.read_text() != text:
        print("error: docs/errors.md is out of date; run tools/error_codes.py --write")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
