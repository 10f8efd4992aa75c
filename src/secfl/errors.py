"""The error tree.

The class says what the caller should do; the dotted `code` is stable and is what programs compare. A message names
the rule, the value and what to change. It never holds a secret, and a failed decryption carries no detail at all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = [
    "AppraisalError",
    "AuthorizationError",
    "ConfigError",
    "EncodingError",
    "EngineError",
    "Finding",
    "FreshnessError",
    "SecflError",
    "StateError",
    "UnavailableError",
    "VerificationError",
]

Detail = str | int | None


class SecflError(Exception):
    """Base of all errors that SECFL raises on purpose."""

    exit_code = 1
    http_status = 500

    def __init__(self, code: str, message: str, *, hint: str | None = None, **details: Detail) -> None:
        """Keep the parts apart, so that an edge can render them.

        Args:
            code: dotted and stable, listed in `docs/errors.md`.
            message: one sentence for a person.
            hint: what to do next.
            details: further values by name; never secret.
        """
        super().__init__(f"{code}: {message}" + (f" ({hint})" if hint else ""))
        self.code = code
        self.message = message
        self.hint = hint
        self.details: Mapping[str, Detail] = details


class EncodingError(SecflError):
    """The bytes are not of the required form: correct the input."""

    exit_code = 10
    http_status = 400


class VerificationError(SecflError):
    """The input is not authentic: discard it."""

    exit_code = 11
    http_status = 403


class FreshnessError(SecflError):
    """The input is authentic but old, replayed, forked or rolled back: do not go on."""

    exit_code = 12
    http_status = 409


@dataclass(frozen=True, slots=True)
class Finding:
    """One rule that an input does not meet.

    Attributes:
        rule: the rule's dotted name; also the stable code of this finding.
        expected: what the policy asks for.
        actual: what was found.
        remedy: what to change so that the rule holds.
    """

    rule: str
    expected: str
    actual: str
    remedy: str


class AppraisalError(SecflError):
    """The evidence is authentic but this policy does not accept it; carries every finding."""

    exit_code = 13
    http_status = 403

    def __init__(self, findings: Sequence[Finding]) -> None:
        """Take the first finding's rule as the code.

        Raises:
            ValueError: there is no finding.
        """
        if not findings:
            raise ValueError("an appraisal error needs a finding")
        first = findings[0]
        text = "; ".join(f"{f.rule}: expected {f.expected}, found {f.actual}" for f in findings)
        super().__init__(first.rule, text, hint=first.remedy)
        self.findings = tuple(findings)


class AuthorizationError(SecflError):
    """The caller is known but may not do this."""

    exit_code = 14
    http_status = 403


class StateError(SecflError):
    """The operation does not fit the present state: look at the state, then decide."""

    exit_code = 15
    http_status = 409


class UnavailableError(SecflError):
    """A peer or resource does not answer: the only error worth a retry."""

    exit_code = 16
    http_status = 503


class ConfigError(SecflError):
    """A file, key or argument of the user is wrong: correct it."""

    exit_code = 17
    http_status = 400


class EngineError(SecflError):
    """The federated-learning engine or the app failed."""

    exit_code = 18
    http_status = 500
