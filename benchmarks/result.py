"""The result of one benchmark: tables, goals and remarks, shown on a terminal or written as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

__all__ = ["Goal", "Result", "Table", "median", "quantile"]


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of text below column names; the first column names the row."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Goal:
    """A figure and the bound that it should keep.

    Attributes:
        name: what is compared.
        value: what was measured.
        bound: the bound.
        at_least: the bound is a lower one.
    """

    name: str
    value: float
    bound: float
    at_least: bool

    @property
    def met(self) -> bool:
        """Whether the bound is kept."""
        return self.value >= self.bound if self.at_least else self.value <= self.bound

    @property
    def text(self) -> str:
        """The goal in one line."""
        sign = "at least" if self.at_least else "at most"
        return f"{self.name}: {self.value:.3f} (goal {sign} {self.bound:g}: {'met' if self.met else 'MISSED'})"


@dataclass(slots=True)
class Result:
    """What one benchmark found.

    Attributes:
        name: as on the command line.
        about: one sentence on what is measured and how.
        tables: the figures.
        goals: figures with a bound.
        remarks: what a reader must know to judge them.
    """

    name: str
    about: str
    tables: list[Table] = field(default_factory=list)
    goals: list[Goal] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Take the line breaks out of a docstring."""
        self.about = " ".join(self.about.split())

    def show(self, console: Console) -> None:
        """Print for people."""
        console.rule(f"[bold]{self.name}")
        console.print(Text(self.about))
        for table in self.tables:
            shown = RichTable(title=table.title, title_justify="left")
            for index, column in enumerate(table.columns):
                shown.add_column(column, justify="right" if index else "left", overflow="fold")
            for row in table.rows:
                shown.add_row(*(Text(cell) for cell in row))
            console.print(shown)
        for goal in self.goals:
            console.print(Text(goal.text, style="green" if goal.met else "bold red"))
        for remark in self.remarks:
            console.print(Text(f"- {remark}"))

    def markdown(self) -> str:
        """Write as a section of the results page."""
        parts = [f"## {self.name}", self.about]
        for table in self.tables:
            lines = [f"**{table.title}**", "", _row(table.columns), _row(["---", *["--:"] * (len(table.columns) - 1)])]
            parts.append("\n".join([*lines, *(_row(row) for row in table.rows)]))
        bullets = [f"- **{goal.text}**" for goal in self.goals] + [f"- {remark}" for remark in self.remarks]
        if bullets:
            parts.append("\n".join(bullets))
        return "\n\n".join(parts) + "\n"


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of all values do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -int(-share * len(ordered) // 1) - 1))]


def median(values: Sequence[float]) -> float:
    """The middle value."""
    return quantile(values, 0.5)


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
