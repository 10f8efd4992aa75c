"""The console: how results, banners and errors look, in text or as JSON.

Results go to standard output, everything else to standard error, so that output can be piped. A result that rests on a
simulated platform always says SIMULATED.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from secfl.errors import AppraisalError, Finding, SecflError

__all__ = ["findings_table", "note", "out", "print_json", "show_error", "simulated_banner", "table"]

out = Console(highlight=False, soft_wrap=True)
note = Console(stderr=True, highlight=False, soft_wrap=True)


def print_json(value: Mapping[str, Any]) -> None:
    """Write one JSON document to standard output."""
    sys.stdout.write(json.dumps(value, indent=2, sort_keys=True) + "\n")


def table(title: str, columns: Iterable[str], rows: Iterable[Iterable[object]]) -> Table:
    """Make a table; every cell is plain text, so that names from outside cannot carry markup."""
    result = Table(title=title, title_justify="left", show_lines=False)
    for column in columns:
        result.add_column(column, overflow="fold")
    for row in rows:
        result.add_row(*(Text(str(cell)) for cell in row))
    return result


def findings_table(findings: Iterable[Finding]) -> Table:
    """Show which rule was not met, what it asks for, what was found and what to change."""
    rows = ((f.rule, f.expected, f.actual, f.remedy) for f in findings)
    return table("refused", ("rule", "expected", "found", "what to change"), rows)


def simulated_banner(console: Console, domain: str) -> None:
    """Say that nothing here is protected by hardware."""
    text = Text.assemble(
        ("SIMULATED", "bold white on red"),
        f"  {domain}\nNo hardware protects this run: root on this machine can read everything.",
    )
    console.print(Panel(text, border_style="red"))


def show_error(error: SecflError, *, as_json: bool = False) -> None:
    """Render an error with its stable code, its findings and the next step."""
    if as_json:
        findings = error.findings if isinstance(error, AppraisalError) else ()
        print_json(
            {
                "error": {
                    "class": type(error).__name__,
                    "code": error.code,
                    "message": error.message,
                    "hint": error.hint,
                    "details": dict(error.details),
                    "findings": [
                        {"rule": f.rule, "expected": f.expected, "actual": f.actual, "remedy": f.remedy}
                        for f in findings
                    ],
                }
            }
        )
        return
    if isinstance(error, AppraisalError):
        note.print(Text.assemble(("refused ", "bold red"), error.code))
        note.print(findings_table(error.findings))
        return
    note.print(Text.assemble(("error ", "bold red"), f"{error.code}: {error.message}"))
    if error.hint:
        note.print(Text.assemble(("next: ", "bold"), error.hint))
