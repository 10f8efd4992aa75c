"""Collects the stable error codes from the source and writes or checks `docs/errors.md`."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from secfl import errors

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src/secfl"
CODE = re.compile(r"[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)+")
FILE_ENDINGS = {"html", "json", "py", "secfl", "sock", "sqlite", "toml", "yaml"}
INDIRECT = (
    ("policy/", "ConfigError", r"policy\..+"),
    ("manager/volumes.py", "AuthorizationError", r"(deposit|grant)\.not_owner"),
    ("tee/dcap.py", "VerificationError", r"evidence\..+"),
    ("shield/gateway.py", "UnavailableError", r"gateway\.too_many_connections"),
    ("shield/listener.py", "EncodingError", r"gateway\.malformed_request"),
    ("shield/listener.py", "SecflError", r"gateway\.internal"),
    ("linux/gate.py", "StateError", r"launch\.failed"),
)
"""Modules whose helpers raise or report a code that they are given: path, the class it counts as, the codes."""
CLASSES = {name for name in errors.__all__ if name.endswith("Error")}
HEADER = """# Error codes

Every error has a class, which says what the caller should do, and a stable dotted code, which says what happened.
The class decides the exit code of the command line and the HTTP status of the manager. Written by
`tools/error_codes.py --write`; `make check` compares.

| class | meaning | exit code | HTTP status |
| --- | --- | --: | --: |
"""


def _subclasses(trees: dict[str, ast.Module]) -> dict[str, str]:
    """The error class that each class of the tree, and each class derived from one elsewhere, counts as."""
    counted = {name: name for name in CLASSES} | {"Finding": "AppraisalError"}
    for tree in trees.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                bases = [base.id for base in node.bases if isinstance(base, ast.Name) and base.id in counted]
                if bases and node.name not in counted:
                    counted[node.name] = counted[bases[0]]
    return counted


def _called(tree: ast.Module, counted: dict[str, str]) -> Iterator[tuple[str, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.args:
            first = node.args[0]
            kind = counted.get(node.func.id)
            if kind is not None and isinstance(first, ast.Constant) and isinstance(first.value, str):
                yield kind, first.value


def _written(tree: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and CODE.fullmatch(node.value):
            yield node.lineno, node.value


def collect() -> tuple[dict[str, set[str]], list[str]]:
    """Codes by class, and every literal that looks like a code but has no class.

    A code is the first argument of an error class or of a finding; or a literal in a module whose helpers raise, which
    `INDIRECT` gives a class. A literal whose first word is that of a known code must be one of these or a file's name.
    """
    trees = {path.relative_to(SOURCE).as_posix(): ast.parse(path.read_text()) for path in SOURCE.rglob("*.py")}
    counted = _subclasses(trees)
    found: dict[str, set[str]] = {name: set() for name in CLASSES}
    for tree in trees.values():
        for kind, code in _called(tree, counted):
            found[kind].add(code)
    direct = set().union(*found.values())
    families = {code.split(".")[0] for code in direct}
    homeless: list[str] = []
    for path, tree in sorted(trees.items()):
        kinds = [(kind, codes) for prefix, kind, codes in INDIRECT if path.startswith(prefix)]
        for line, text in _written(tree):
            if text.split(".")[0] not in families or text.split(".")[-1] in FILE_ENDINGS:
                continue
            kind = next((kind for kind, codes in kinds if re.fullmatch(codes, text)), None)
            if kind is not None:
                found[kind].add(text)
            elif text not in direct:
                homeless.append(f"src/secfl/{path}:{line}: {text!r} has no class: name it in INDIRECT")
    return found, [line for line in homeless if line.split("'")[1] not in set().union(*found.values())]


def render(found: dict[str, set[str]]) -> str:
    """The whole page."""
    rows = []
    for name in sorted(CLASSES - {"SecflError"}):
        kind = getattr(errors, name)
        meaning = (kind.__doc__ or "").splitlines()[0]
        rows.append(f"| `{name}` | {meaning} | {kind.exit_code} | {kind.http_status} |\n")
    parts = [HEADER, *rows]
    for name, codes in sorted(found.items()):
        if codes:
            parts.append(f"\n## {name}\n\n" + "".join(f"- `{code}`\n" for code in sorted(codes)))
    return "".join(parts)


def main() -> int:
    """`--write` writes the page; without it the page must be up to date."""
    page = ROOT / "docs/errors.md"
    found, homeless = collect()
    for line in homeless:
        print(f"error: {line}")
    if homeless:
        return 1
    text = render(found)
    if "--write" in sys.argv[1:]:
        page.write_text(text)
        return 0
    if not page.exists() or page.read_text() != text:
        print("error: docs/errors.md is out of date; run tools/error_codes.py --write")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
