"""What is wrong with a policy: every finding, each with its place in the file.

A person corrects a file faster when all mistakes are shown at once, so the checks collect findings and one error
carries them all (SV-10). A finding shows a value of the policy only shortened and escaped: a terminal must not be
steered by a hostile file (PB-19).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from secfl.errors import ConfigError

__all__ = ["Path", "PolicyError", "PolicyFinding", "Position", "RuleBreach", "path_text", "shown"]

Path = tuple[str | int, ...]
"""The way to a value: keys and 0-based list positions."""

_SHOWN_CHARACTERS = 60


@dataclass(frozen=True, slots=True)
class Position:
    """A place in the file; both counts start at 1."""

    line: int
    column: int


@dataclass(frozen=True, slots=True)
class RuleBreach:
    """A rule that a value does not meet, before its place in the file is known."""

    rule: str
    path: Path
    expected: str
    actual: str
    remedy: str


@dataclass(frozen=True, slots=True)
class PolicyFinding:
    """A rule that the file does not meet.

    Attributes:
        rule: dotted and stable.
        source: the name of the file, as the caller gave it.
        line: 1-based.
        column: 1-based.
        path: the key, such as `services[0].network.ingress[1].port`; empty for the file as a whole.
        expected: what the language asks for.
        actual: what was found.
        remedy: what to change.
    """

    rule: str
    source: str
    line: int
    column: int
    path: str
    expected: str
    actual: str
    remedy: str

    def __str__(self) -> str:
        """One line, in the form that editors and compilers share."""
        where = f"{self.source}:{self.line}:{self.column}: "
        key = f"{self.path}: " if self.path else ""
        return f"{where}{key}expected {self.expected}, found {self.actual} [{self.rule}]"


class PolicyError(ConfigError):
    """The file is no valid policy; carries every finding."""

    def __init__(self, findings: Sequence[PolicyFinding]) -> None:
        """Take the first finding's rule as the code.

        Raises:
            ValueError: there is no finding.
        """
        if not findings:
            raise ValueError("a policy error needs a finding")
        first = findings[0]
        super().__init__(
            first.rule,
            "; ".join(str(finding) for finding in findings),
            hint=first.remedy,
            source=first.source,
            line=first.line,
            column=first.column,
            key=first.path,
        )
        self.findings = tuple(findings)


def path_text(path: Path) -> str:
    """Write a path as people do: `services[0].command[1]`."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += f".{part}" if text else part
    return text if text.isascii() and text.isprintable() else ascii(text)


def shown(value: object) -> str:
    """Shorten and escape a value for a message."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "a map"
    if isinstance(value, list | tuple):
        return "an empty list" if not value else "a list"
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    text = ascii(value)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}… ({len(str(value))} characters)"
