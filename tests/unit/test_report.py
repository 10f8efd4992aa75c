"""The report: self-contained, escaped, and honest about simulation."""

from __future__ import annotations

import math
import re

import pytest

from secfl.cli.report import RunRecord, curves, render_report

ROUNDS = [
    {"round": n, "confidential": {"auc": 0.5 + n / 10, "loss": 1 / n}, "plain": {"auc": 0.5 + n / 10, "loss": 1 / n}}
    for n in (1, 2, 3)
]


def record(**changes: object) -> RunRecord:
    """A small run."""
    values: dict[str, object] = {
        "title": "Heart",
        "trust_domain": "simulated:" + "ab" * 32,
        "facts": [("policy", "cd" * 32)],
        "refused": [{"who": "rogue", "rule": "appraisal.roots", "expected": "a", "actual": "b", "remedy": "c"}],
        "rounds": ROUNDS,
        "equal": True,
        "timings": [("launch", 1.25)],
        "limits": ["transit"],
    }
    return RunRecord(**{**values, **changes})  # type: ignore[arg-type]


def test_a_simulated_run_says_so_first() -> None:
    """A simulated trust domain puts the banner before everything else, a hardware one none."""
    page = render_report(record())
    assert page.index("SIMULATED") < page.index("<h1>")
    assert "SIMULATED" not in render_report(record(trust_domain="hardware:intel"))


def test_the_page_loads_nothing() -> None:
    """No script and no address to load from stands in the page."""
    page = render_report(record())
    assert "<script" not in page
    assert not re.search(r"""(?:src|href)=["'](?!#)""", page)


def test_names_from_outside_are_inert() -> None:
    """Markup in a name or finding is shown as text."""
    hostile = "<img src=x onerror=alert(1)>"
    page = render_report(
        record(title=hostile, refused=[dict.fromkeys(("who", "rule", "expected", "actual", "remedy"), hostile)])
    )
    assert hostile not in page
    assert page.count("&lt;img") >= 5


def test_a_difference_is_shown_as_one() -> None:
    """Runs that differ are never called equal."""
    assert "Equal bit for bit" in render_report(record())
    assert "Not equal" in render_report(record(equal=False))


def test_curves_are_reproducible_and_need_points() -> None:
    """The same rounds give the same drawing; none is an error."""
    assert curves(ROUNDS, ["auc"]) == curves(ROUNDS, ["auc"])
    with pytest.raises(ValueError, match="nothing"):
        curves([], ["auc"])
    assert math.isclose(ROUNDS[0]["confidential"]["auc"], 0.6)  # type: ignore[index]
