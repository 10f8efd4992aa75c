"""The time of a round: confidential, in Flower's own deployment, and in the same warm layout without protection.

A round is training and evaluation at all sites. Times are between the ends of rounds, so that no start-up counts; the
mean covers everything from the end of the first round to the end of the last.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.federation import Study, compute_study, confidential, follow, heart_study, plain_rounds
from benchmarks.result import Goal, Result, Table, median
from benchmarks.stock import stock_rounds

__all__ = ["run"]

_STOCK_GOAL, _PLAIN_GOAL = 0.5, 1.10
_PASSES = 10_000
"""Passes over 50 000 numbers: above one second on a core of 2024."""
_CONFIDENTIAL, _PLAIN, _STOCK = "confidential", "warm layout, no protection", "Flower's own deployment"
_Layout = Callable[[Study, Path], list[float]]


def run(*, quick: bool) -> Result:
    """Run both studies in their layouts, one after the other."""
    result = Result("rounds", __doc__ or "")
    rounds = 3 if quick else 8
    with TemporaryDirectory(prefix="secfl-bench-") as place:
        base = Path(place)
        base.chmod(0o711)  # the sites' users pass through
        heart = heart_study(base / "heart-records", rounds)
        compute = compute_study(base / "compute-records", rounds, _PASSES)
        found = _measure(heart, base, {_CONFIDENTIAL: _protected, _PLAIN: plain_rounds, _STOCK: stock_rounds})
        result.tables.append(_table("heart, 4 sites: the example, hardly any compute", found))
        ratio = _mean(found[_CONFIDENTIAL]) / _mean(found[_STOCK])
        result.goals.append(Goal("heart: confidential / Flower's own", ratio, _STOCK_GOAL, at_least=False))
        found = _measure(compute, base, {_CONFIDENTIAL: _protected, _PLAIN: plain_rounds})
        result.tables.append(_table("compute, 2 sites: a fixed amount of work each round", found))
        ratio = _mean(found[_CONFIDENTIAL]) / _mean(found[_PLAIN])
        result.goals.append(Goal("compute: confidential / warm layout", ratio, _PLAIN_GOAL, at_least=False))
    result.remarks.append(
        "All sites and the aggregator share this machine's cores; on machines of their own the proxies' time overlaps."
    )
    return result


def _measure(study: Study, base: Path, layouts: dict[str, _Layout]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for name, layout in layouts.items():
        work = base / f"{study.name}-{len(found)}"
        work.mkdir()
        found[name] = [later - earlier for earlier, later in pairwise(layout(study, work))]
    return found


def _protected(study: Study, work: Path) -> list[float]:
    with confidential(work, study) as harness:
        return follow(harness)


def _table(title: str, found: dict[str, list[float]]) -> Table:
    rows = []
    for name, seconds in found.items():
        shown = (_mean(seconds), median(seconds), min(seconds), max(seconds))
        ratio = _mean(found[_CONFIDENTIAL]) / _mean(seconds)
        rows.append((name, str(len(seconds)), *(f"{value:.2f}" for value in shown), f"{ratio:.2f}"))
    return Table(title, ("", "rounds", "mean s", "median s", "least s", "most s", "confidential / this"), rows)


def _mean(seconds: Sequence[float]) -> float:
    return sum(seconds) / len(seconds)
