"""Placeholders: `$$SECFL::name[:format][|escape(json)]$$`, where a secret's value is to stand.

Substitution is one pass over the text of the policy: a value that looks like a placeholder is only a value (SE-05). An
unknown name, an unfinished placeholder or a format that does not fit is an error, never an empty or literal text.
Other `$$` pass through. Arguments and variables take single-line text only (SE-06).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType

from secfl.errors import EncodingError

__all__ = ["FORMATS", "Context", "Placeholder", "Shape", "check_format", "parse_template", "substitute"]

_OPENING = re.compile(r"\$\$(?:SECFL|SCONE)::", re.IGNORECASE)
_PLACEHOLDER = re.compile(
    r"\$\$SECFL::(?P<name>[a-z][a-z0-9._~-]{0,62})(?::(?P<format>[a-z][a-z0-9-]{0,30}))?(?P<escape>\|escape\(json\))?\$\$"
)


class Shape(Enum):
    """What a formatted value looks like."""

    BYTES = "bytes"
    LINE = "one line of text"
    LINES = "several lines of text"


class Context(Enum):
    """Where a placeholder stands."""

    ARGUMENT = "an argument"
    ENVIRONMENT = "a variable"
    FILE = "a file"
    TLS_CERTIFICATE = "tls_certificate"
    TLS_KEY = "tls_key"
    TLS_AUTHORITY = "tls_server_ca"


FORMATS: Mapping[str, Mapping[str, Shape]] = MappingProxyType(
    {
        "binary": MappingProxyType(
            {"bin": Shape.BYTES, "hex": Shape.LINE, "base64": Shape.LINE, "base64url": Shape.LINE}
        ),
        "ascii": MappingProxyType({"plain": Shape.LINE}),
        "private-key": MappingProxyType(
            {
                "pem": Shape.LINES,
                "der": Shape.BYTES,
                "openssh": Shape.LINES,
                "public-pem": Shape.LINES,
                "public-openssh": Shape.LINE,
            }
        ),
        "x509-ca": MappingProxyType({"crt": Shape.LINES, "crt-der": Shape.BYTES}),
        "x509": MappingProxyType(
            {"crt": Shape.LINES, "crt-der": Shape.BYTES, "chain": Shape.LINES, "privatekey": Shape.LINES}
        ),
    }
)
"""Legal formats of each kind of secret. Only `ascii` has a default: `plain`."""

_TLS: Mapping[Context, frozenset[tuple[str, str]]] = MappingProxyType(
    {
        Context.TLS_CERTIFICATE: frozenset({("x509", "crt"), ("x509", "chain")}),
        Context.TLS_KEY: frozenset({("x509", "privatekey"), ("private-key", "pem")}),
        Context.TLS_AUTHORITY: frozenset({("x509-ca", "crt")}),
    }
)


@dataclass(frozen=True, slots=True)
class Placeholder:
    """A parsed placeholder."""

    name: str
    format: str | None
    escape_json: bool


def parse_template(text: str) -> tuple[str | Placeholder, ...]:
    """Split a text into literal parts and placeholders.

    Raises:
        EncodingError: `policy.placeholder`.
    """
    parts: list[str | Placeholder] = []
    end = 0
    while opening := _OPENING.search(text, end):
        match = _PLACEHOLDER.match(text, opening.start())
        if not match:
            raise EncodingError(
                "policy.placeholder",
                "an unfinished or misspelt placeholder",
                hint="write $$SECFL::name$$, $$SECFL::name:format$$ or $$SECFL::name:format|escape(json)$$",
            )
        if opening.start() > end:
            parts.append(text[end : opening.start()])
        parts.append(Placeholder(match["name"], match["format"], match["escape"] is not None))
        end = match.end()
    if end < len(text):
        parts.append(text[end:])
    return tuple(parts)


def check_format(placeholder: Placeholder, kind: str, context: Context) -> str:
    """Return the format that a placeholder asks for, when the kind has it and the context can hold it.

    Raises:
        EncodingError: `policy.placeholder_format`.
    """
    formats = FORMATS[kind]
    chosen = placeholder.format or ("plain" if kind == "ascii" else "")
    if chosen not in formats:
        raise _format_error(f"a format of the kind {kind}: {', '.join(formats)}", chosen)
    if context in _TLS:
        if (kind, chosen) not in _TLS[context] or placeholder.escape_json:
            wanted = " or ".join(f"{k} as {f}" for k, f in sorted(_TLS[context]))
            raise _format_error(f"{wanted}, unescaped", chosen)
        return chosen
    shape = formats[chosen]
    if shape is Shape.BYTES and (context is not Context.FILE or placeholder.escape_json):
        raise _format_error("text, as raw bytes stand in files only and unescaped", chosen)
    if shape is Shape.LINES and context is not Context.FILE and not placeholder.escape_json:
        raise _format_error(f"one line of text, as in {context.value}", chosen)
    return chosen


def _format_error(message: str, chosen: str) -> EncodingError:
    return EncodingError(
        "policy.placeholder_format", message, hint="choose another format or place", actual=chosen or None
    )


def substitute(text: str, context: Context, *, kinds: Mapping[str, str], lookup: Callable[[str, str], bytes]) -> bytes:
    """Put the values in, in one pass.

    Args:
        kinds: kind of each secret that may stand here, by name.
        lookup: the value of a secret in a format.

    Raises:
        EncodingError: `policy.placeholder`, `policy.placeholder_unknown`, `policy.placeholder_format` or
            `policy.placeholder_value`.
    """
    result: list[bytes] = []
    for part in parse_template(text):
        if isinstance(part, str):
            result.append(part.encode())
            continue
        if part.name not in kinds:
            raise EncodingError("policy.placeholder_unknown", "no such secret", name=part.name)
        value = lookup(part.name, check_format(part, kinds[part.name], context))
        result.append(json.dumps(value.decode())[1:-1].encode() if part.escape_json else value)
    whole = b"".join(result)
    if context in {Context.ARGUMENT, Context.ENVIRONMENT} and re.search(rb"[\x00\r\n]", whole):
        # The formats exclude this; a second look costs nothing, and a smuggled line would cost a variable (SE-06).
        raise EncodingError("policy.placeholder_value", "an argument or variable holds one line without NUL")
    return whole
