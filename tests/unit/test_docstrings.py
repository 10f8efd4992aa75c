"""Docstrings say what a reader has to know: what each test claims, and what each public function raises."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import secfl

SOURCE = Path(secfl.__file__).parent
MODULES = sorted(path for path in SOURCE.rglob("*.py") if not path.is_relative_to(SOURCE / "cli"))
TESTS = sorted(Path(__file__).parents[1].rglob("test_*.py"))
Function = ast.FunctionDef | ast.AsyncFunctionDef


def raises_itself(function: Function) -> bool:
    """Whether the body raises something new outside of any `try`, whose handlers may keep it, and inner function."""
    waiting: list[ast.AST] = list(function.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Raise) and node.exc is not None:
            return True
        if isinstance(node, ast.Try) and node.handlers:
            waiting += [*node.handlers, *node.orelse, *node.finalbody]
        elif not isinstance(node, Function | ast.Lambda | ast.ClassDef):
            waiting += ast.iter_child_nodes(node)
    return False


def public_functions(tree: ast.Module) -> Iterator[tuple[Function, str]]:
    """Public functions and methods of public classes, each with the docstring of what surrounds it."""
    for node in tree.body:
        if isinstance(node, Function) and not node.name.startswith("_"):
            yield node, ""
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            for below in node.body:
                if isinstance(below, Function) and (below.name == "__init__" or not below.name.startswith("_")):
                    yield below, ast.get_docstring(node) or ""


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_public_functions_say_what_they_raise(path: Path) -> None:
    """A public function that raises has a `Raises:` section, or its class has one for all its methods.

    The command line is left out: there a docstring is the help that a user reads.
    """
    silent = [
        function.name
        for function, around in public_functions(ast.parse(path.read_text()))
        if raises_itself(function) and "Raises:" not in (ast.get_docstring(function) or "") + around
    ]
    assert not silent


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.name)
def test_every_test_states_its_claim(path: Path) -> None:
    """The first paragraph of each test's docstring is a sentence."""
    claims = {
        node.name: (ast.get_docstring(node) or "").split("\n\n")[0]
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, Function) and node.name.startswith("test_")
    }
    assert claims
    assert not [name for name, claim in claims.items() if not claim.endswith((".", "?"))]
