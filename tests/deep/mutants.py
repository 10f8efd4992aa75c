"""Changes one thing in a module and asks whether the module's tests notice.

Each mutant is one edit of the syntax tree: a comparison turned round, `and` for `or`, a condition fixed, a number
changed, a `raise` or a call left out, a constant text changed. A child of a warm process imports the changed module
and runs the tests; a mutant that they pass survives. Survivors are listed for a person to judge, since some edits
change no behaviour.

The texts of messages to people (what an error or a finding says after its code) are not drawn: a test that pins their
wording is worth nothing, so each would be a survivor that tells nothing. Codes, and conditions, numbers and comparisons
inside a message, are drawn.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import copy
import importlib.abc
import importlib.machinery
import importlib.util
import os
import random
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

from deep.outcome import arguments, report

__all__ = ["main"]

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 40
SLOW = "flipped_bit or killed_or_hanging"
"""Tests that take seconds each and look at bytes that no mutant here changes."""
_ATTESTATION = (
    "tests/unit/test_attestation.py",
    "tests/unit/test_attestation_result.py",
    "tests/adversarial/test_evidence.py",
)
_POLICY = (
    "tests/unit/test_policy_board.py",
    "tests/unit/test_policy_secrets.py",
    "tests/adversarial/test_policy_attacks.py",
    "tests/properties/test_policy.py",
)
PARTS: dict[str, tuple[str, ...]] = {
    "secfl.attestation.appraise": _ATTESTATION,
    "secfl.attestation.binding": _ATTESTATION,
    "secfl.attestation.challenge": _ATTESTATION,
    "secfl.attestation.ear": _ATTESTATION,
    "secfl.policy.board": _POLICY,
    "secfl.policy.grants": _POLICY,
    "secfl.protocol.session": ("tests/unit/test_session.py",),
}
"""Modules that decide, with the tests that have to notice."""
_COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}


@dataclass(frozen=True, slots=True)
class Mutant:
    """A changed module: where, what, and the tree."""

    line: int
    what: str
    tree: ast.Module


Edit = Callable[[ast.AST], str | None]


def _compare(node: ast.AST) -> str | None:
    if not isinstance(node, ast.Compare):
        return None
    node.ops[0] = _COMPARISONS[type(node.ops[0])]()
    return "comparison"


def _connect(node: ast.AST) -> str | None:
    if not isinstance(node, ast.BoolOp):
        return None
    node.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
    return "and/or"


def _always(node: ast.AST) -> str | None:
    if not isinstance(node, ast.If | ast.IfExp):
        return None
    node.test = ast.Constant(value=True)
    return "condition true"


def _never(node: ast.AST) -> str | None:
    if not isinstance(node, ast.If | ast.IfExp):
        return None
    node.test = ast.Constant(value=False)
    return "condition false"


def _number(node: ast.AST) -> str | None:
    if not isinstance(node, ast.Constant) or type(node.value) is not int:
        return None
    node.value += 1
    return "number"


def _text(node: ast.AST) -> str | None:
    if not isinstance(node, ast.Constant) or not isinstance(node.value, str | bytes) or not node.value:
        return None
    node.value = node.value[:-1]
    return "text"


def _left_out(node: ast.AST) -> str | None:
    for body in (getattr(node, "body", None), getattr(node, "orelse", None)):
        if isinstance(body, list) and body and isinstance(body[0], ast.Raise):
            body[0] = ast.copy_location(ast.Pass(), body[0])
            return "raise left out"
    return None


def _call_left_out(node: ast.AST) -> str | None:
    body = getattr(node, "body", None)
    for index, statement in enumerate(body if isinstance(body, list) else ()):
        if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
            node.body[index] = ast.copy_location(ast.Pass(), statement)  # type: ignore[attr-defined]
            return "call left out"
    return None


EDITS: Sequence[Edit] = (_compare, _connect, _always, _never, _number, _text, _left_out, _call_left_out)


def _words(tree: ast.Module) -> set[int]:
    """Places of constants that only people read: docstrings, messages and remedies, annotations, `__all__`."""
    skip: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            skip.add(id(node.value))
        elif isinstance(node, ast.FunctionDef):
            skip.update(_message_texts(node))
            if node.returns is not None:
                skip.update(id(below) for below in ast.walk(node.returns))
        elif isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets):
            skip.update(id(below) for below in ast.walk(node))
        elif isinstance(node, ast.arg | ast.AnnAssign) and node.annotation is not None:
            skip.update(id(below) for below in ast.walk(node.annotation))
    return skip


def _messages(call: ast.Call) -> list[ast.expr]:
    # Our errors and findings have their code first; those of Python have none.
    named = [word.value for word in call.keywords if word.arg in {"hint", "message"}]
    if not isinstance(call.func, ast.Name) or not call.func.id.endswith(("Error", "Finding")):
        return named
    return [*call.args[0 if hasattr(builtins, call.func.id) else 1 :], *named]


def _message_texts(function: ast.FunctionDef) -> set[int]:
    nodes = list(ast.walk(function))
    parts = [part for node in nodes if isinstance(node, ast.Call) for part in _messages(node)]
    inside = {id(below) for part in parts for below in ast.walk(part)}
    # A message may be written down first; a variable that is read anywhere else is no message.
    read = [node for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)]
    written = {node.id for node in read if id(node) in inside} - {node.id for node in read if id(node) not in inside}
    for node in nodes:
        if isinstance(node, ast.Assign) and all(isinstance(t, ast.Name) and t.id in written for t in node.targets):
            inside |= {id(below) for below in ast.walk(node.value)}
    return {id(node) for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)} & inside


def mutants(source: str, seed: str, first: int, count: int) -> Iterator[Mutant]:
    """Mutants `first` to `first + count` of all that the module has, in an order that the seed fixes."""
    original = ast.parse(source)
    skip = _words(original)
    places = [
        (index, edit)
        for index, node in enumerate(ast.walk(original))
        if id(node) not in skip
        for edit in EDITS
        if edit(copy.deepcopy(node)) is not None
    ]
    random.Random(seed).shuffle(places)
    for index, edit in places[first : first + count]:
        tree = copy.deepcopy(original)
        node = list(ast.walk(tree))[index]
        what = edit(node) or ""
        yield Mutant(getattr(node, "lineno", 0), what, ast.fix_missing_locations(tree))


class _Changed(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds one module and gives it the changed tree."""

    def __init__(self, name: str, path: Path, tree: ast.Module) -> None:
        self._name, self._path, self._tree = name, path, tree

    def find_spec(self, fullname: str, *_: object) -> importlib.machinery.ModuleSpec | None:
        if fullname != self._name:
            return None
        return importlib.util.spec_from_file_location(fullname, self._path, loader=self)

    def exec_module(self, module: ModuleType) -> None:
        exec(compile(self._tree, str(self._path), "exec"), module.__dict__)


def _survives(name: str, path: Path, mutant: Mutant | None, tests: Sequence[str]) -> bool:
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            signal.alarm(SECONDS)
            silence = os.open(os.devnull, os.O_WRONLY)
            os.dup2(silence, 1)
            os.dup2(silence, 2)
            if mutant is not None:
                sys.meta_path.insert(0, _Changed(name, path, mutant.tree))
            options = [
                "-x",
                "-q",
                "-p",
                "no:cacheprovider",
                "-p",
                "no:randomly",
                "--hypothesis-seed=0",
                "-k",
                f"not ({SLOW})",
            ]
            status = int(pytest.main([*options, *tests]))
        finally:
            os._exit(status)
    return os.waitpid(pid, 0)[1] == 0


def _warm() -> None:
    # What does not depend on the changed module is imported once, before the children part.
    for module in ("aiohttp", "cryptography.x509", "dcap_qvl", "hypothesis.strategies", "numpy", "pydantic", "yaml"):
        with contextlib.suppress(ImportError):
            importlib.import_module(module)


def main() -> int:
    """Run mutants `first` to `first + count` of the part's fixed, shuffled list; fewer when it ends."""
    options = arguments(PARTS)
    tests = [test for test in PARTS[options.part] if (ROOT / test).exists()]
    path = ROOT / "src" / Path(*options.part.split(".")).with_suffix(".py")
    os.chdir(ROOT)
    _warm()
    if not _survives(options.part, path, None, tests):
        return report(0, ["the tests fail without any change"])
    chosen = list(mutants(path.read_text(), options.seed, options.first, options.count))
    survivors = [f"{path.name}:{m.line} {m.what}" for m in chosen if _survives(options.part, path, m, tests)]
    if survivors:
        options.failures.mkdir(parents=True, exist_ok=True)
        with (options.failures / "survivors.txt").open("a") as file:
            file.writelines(f"{line}\n" for line in survivors)
    return report(len(chosen), [], killed=len(chosen) - len(survivors))


if __name__ == "__main__":
    sys.exit(main())
