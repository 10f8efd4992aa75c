"""Prints the size of the core and of all that an enclave loads, against the budgets; exits 1 above a budget.

A line is a line of code: blank lines, comments and docstrings do not count, since they make an audit shorter.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from pathlib import Path

import grimp

ROOT = Path(__file__).resolve().parent.parent
CORE = ("secfl.crypto", "secfl.attestation", "secfl.policy", "secfl.volume", "secfl.protocol", "secfl.errors")
ENCLAVES = {
    "manager": ("secfl.manager.__main__", "secfl.tee.worker"),
    "service": ("secfl.shield.__main__", "secfl.linux.gate", "secfl.federation.flower.__main__"),
}
"""Every program that each kind of enclave starts."""
CORE_BUDGET = 6_000
ENCLAVE_BUDGET = 12_000


def code_lines(source: str) -> int:
    """Count the lines that hold code."""
    lines: set[int] = set()
    skip = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in skip:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        body = getattr(node, "body", None)
        if not isinstance(body, list):
            continue
        for statement in body:
            if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
                lines.difference_update(range(statement.lineno, (statement.end_lineno or 0) + 1))
    return len(lines)


def module_path(module: str) -> Path:
    """Where a module's source lies."""
    base = ROOT / "src" / Path(*module.split("."))
    return base.with_suffix(".py") if base.with_suffix(".py").exists() else base / "__init__.py"


def _reached(graph: grimp.ImportGraph, entry: str) -> set[str]:
    return {entry} | graph.find_upstream_modules(entry)


def _packages(module: str) -> list[str]:
    parts = module.split(".")
    return [".".join(parts[: number + 1]) for number in range(len(parts))]


def main() -> int:
    """Print both sums and the third-party packages of the image."""
    graph = grimp.build_graph("secfl", include_external_packages=False)
    count = {module: code_lines(module_path(module).read_text()) for module in graph.modules}
    core = sorted(m for m in count if m.startswith(CORE))
    core_sum = sum(count[m] for m in core)
    print(f"core: {core_sum} lines of code (budget {CORE_BUDGET}) in {len(core)} modules")
    over = core_sum > CORE_BUDGET
    both: set[str] = set()
    for kind, entries in ENCLAVES.items():
        loaded = {name for entry in entries for module in _reached(graph, entry) for name in _packages(module)}
        total = sum(count[m] for m in loaded if m in count)
        print(f"loaded by a {kind} enclave: {total} lines of code (budget {ENCLAVE_BUDGET}) in {len(loaded)} modules")
        over = over or total > ENCLAVE_BUDGET
        both |= loaded
    total = sum(count[m] for m in both if m in count)
    print(f"of both kinds together, which no enclave loads: {total} lines of code in {len(both)} modules")
    lock = (ROOT / "requirements/enclave.lock").read_text()
    packages = re.findall(r"^([a-z0-9-]+)==([^ ;]+)", lock, re.MULTILINE)
    print(f"third-party packages of the runtime image ({len(packages)}): " + ", ".join(f"{n} {v}" for n, v in packages))
    long = {m: n for m in graph.modules if (n := len(module_path(m).read_text().splitlines())) > 400}
    for module, lines in sorted(long.items()):
        print(f"error: {module} has {lines} lines, 400 are allowed")
    return int(over or bool(long))


if __name__ == "__main__":
    sys.exit(main())
