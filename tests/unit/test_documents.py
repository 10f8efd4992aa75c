"""The documents name only what exists: tests, modules, files."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")])
TEST = re.compile(r"`(test_\w+)`")
MODULE = re.compile(r"`(secfl(?:\.[a-z_0-9]+)+)")
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
DEFINED = re.compile(r"^\s*(?:async )?def (test_\w+)\(", re.MULTILINE)


def all_tests() -> set[str]:
    """Every test function there is."""
    return {name for path in (ROOT / "tests").rglob("test_*.py") for name in DEFINED.findall(path.read_text())}


def exists(module: str) -> bool:
    """Whether a dotted name is a module, or a name that a module's text holds."""
    base = ROOT / "src" / Path(*module.split("."))
    if base.is_dir() or base.with_suffix(".py").exists():
        return True
    above, name = module.rsplit(".", 1)
    path = (ROOT / "src" / Path(*above.split("."))).with_suffix(".py")
    return path.exists() and re.search(rf"^\s*(def|class) {name}\b", path.read_text(), re.MULTILINE) is not None


def test_the_pages_were_found() -> None:
    """The checks below look at something."""
    assert {"README.md", "LIMITATIONS.md", "threat-model.md", "architecture.md"} <= {page.name for page in PAGES}
    assert len(all_tests()) > 200


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_names_only_what_exists(page: Path) -> None:
    """Each test, module and file that a page names is there."""
    text = page.read_text()
    known = all_tests()
    assert not [name for name in TEST.findall(text) if name not in known]
    assert not [name for name in MODULE.findall(text) if not exists(name)]
    targets = [target for target in LINK.findall(text) if "://" not in target]
    assert not [target for target in targets if not (page.parent / target).exists()]


def test_each_promise_names_its_tests() -> None:
    """Every promise of the threat model has at least one test."""
    text = (ROOT / "docs/threat-model.md").read_text()
    sections = re.split(r"^## ", text, flags=re.MULTILINE)
    promises = [section for section in sections if re.match(r"S\d ", section)]
    assert len(promises) == 7
    assert not [section.split("\n")[0] for section in promises if not TEST.search(section)]
