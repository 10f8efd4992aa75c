"""The failure: an error of the tree as JSON, and back.

The class travels, because it says what the caller should do. An error from outside the tree becomes one fixed
sentence: its text may hold a secret.
"""

from __future__ import annotations

from secfl.errors import (
    AppraisalError,
    AuthorizationError,
    ConfigError,
    EncodingError,
    EngineError,
    Finding,
    FreshnessError,
    SecflError,
    StateError,
    UnavailableError,
    VerificationError,
)
from secfl.policy.findings import PolicyError, PolicyFinding
from secfl.protocol.message import Message

__all__ = ["Failure", "FailureBody", "FailureFinding", "decode_failure", "encode_failure"]

_CLASSES: dict[str, type[SecflError]] = {
    cls.__name__: cls
    for cls in (
        AuthorizationError,
        ConfigError,
        EncodingError,
        EngineError,
        FreshnessError,
        StateError,
        UnavailableError,
        VerificationError,
    )
}


_KINDS = frozenset({*_CLASSES, AppraisalError.__name__, SecflError.__name__})


class FailureFinding(Message):
    """A finding as it travels."""

    rule: str
    expected: str
    actual: str
    remedy: str


class FailureBody(Message):
    """The parts of an error."""

    kind: str
    code: str
    message: str
    hint: str | None = None
    details: dict[str, str | int]
    findings: tuple[FailureFinding, ...]


class Failure(Message):
    """The body of a refused request."""

    error: FailureBody


def encode_failure(error: Exception) -> tuple[int, bytes]:
    """Give the HTTP status and the body for an error."""
    if not isinstance(error, SecflError):
        body = FailureBody(
            kind="SecflError", code="internal", message="an internal error; see the log", details={}, findings=()
        )
        return 500, Failure(error=body).encode()
    body = FailureBody(
        kind=next(cls.__name__ for cls in type(error).__mro__ if cls.__name__ in _KINDS),
        code=error.code,
        message=error.message,
        hint=error.hint,
        details={name: value for name, value in error.details.items() if value is not None},
        findings=tuple(
            FailureFinding(rule=f.rule, expected=f.expected, actual=f.actual, remedy=f.remedy) for f in _findings(error)
        ),
    )
    return error.http_status, Failure(error=body).encode()


def decode_failure(data: bytes) -> SecflError:
    """Rebuild the error that a server sent.

    Raises:
        EncodingError: the body is not a failure.
    """
    body = Failure.decode(data).error
    if body.kind == AppraisalError.__name__ and body.findings:
        return AppraisalError([Finding(f.rule, f.expected, f.actual, f.remedy) for f in body.findings])
    return _CLASSES.get(body.kind, SecflError)(body.code, body.message, hint=body.hint, **body.details)


def _findings(error: SecflError) -> tuple[Finding | PolicyFinding, ...]:
    return error.findings if isinstance(error, AppraisalError | PolicyError) else ()
