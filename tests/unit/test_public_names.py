"""Every module states its public names, sorted."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import secfl

SOURCE = Path(secfl.__file__).parent
MODULES = sorted(path for path in SOURCE.rglob("*.py"))
NAMES = [path.relative_to(SOURCE).as_posix() for path in MODULES]


def stated_names(tree: ast.Module) -> list[str] | None:
    """The names in `__all__`, or None without one."""
    for node in tree.body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        if isinstance(target, ast.Name) and target.id == "__all__" and isinstance(node, ast.Assign | ast.AnnAssign):
            names: list[str] = ast.literal_eval(node.value) if node.value is not None else []
            return names
    return None


def order(name: str) -> tuple[bool, bool, str]:
    """Constants, then classes, then the rest, each by the alphabet."""
    return not name.isupper(), not name[0].isupper(), name


def test_the_modules_were_found() -> None:
    """The checks below look at the whole package."""
    assert len(MODULES) > 100
    assert "errors.py" in NAMES


@pytest.mark.parametrize("path", MODULES, ids=NAMES)
def test_public_names_are_sorted_and_complete(path: Path) -> None:
    """`__all__` is sorted, names what the module defines, and leaves no public function or class out.

    A command is reached through its application object, so its function has no other importer; an `__init__` without
    definitions has nothing to state.
    """
    tree = ast.parse(path.read_text())
    defined = {
        node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
    }
    stated = stated_names(tree)
    if stated is None:
        assert path.name == "__init__.py"
        assert not defined
        return
    assert stated in (sorted(stated), sorted(stated, key=order))
    assert len(set(stated)) == len(stated)
    if path.is_relative_to(SOURCE / "cli"):
        return
    assert {name for name in defined if not name.startswith("_")} <= set(stated)
