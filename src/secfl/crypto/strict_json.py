"""JSON with one encoding per value.

Signed and hashed documents use this form: sorted keys, no blanks, no floats, no duplicate keys, bounded size and
depth. `decode` refuses whatever `encode` would not have written, unless the caller asks for plain JSON.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from secfl.errors import EncodingError

__all__ = ["MAX_BYTES", "MAX_DEPTH", "JsonValue", "decode", "decode_any", "encode"]

MAX_BYTES = 16 * 1024 * 1024
"""Largest document, in bytes: an audit entry with evidence and policy fits many times over."""
MAX_DEPTH = 32
"""Deepest nesting; ours need 8. Python's parser would recurse without a bound (EV-37)."""
MAX_INTEGER = 2**63 - 1
# Possessive, with an optional closing quote: an unterminated string is one match, so the scan stays linear.
_STRINGS = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
_SCALARS = (str, int, type(None))
_BRACKETS = re.compile(rb"[\[\]{}]")

JsonValue = Any


def encode(value: JsonValue) -> bytes:
    """Encode canonically.

    Raises:
        EncodingError: `json.not_canonical` for floats, non-string keys and other unsupported values.
    """
    _check(value, 0)
    return _ENCODER.encode(value).encode()


def decode(data: bytes, *, max_bytes: int = MAX_BYTES) -> JsonValue:
    """Decode a canonical document; any other spelling of the same value is refused.

    Raises:
        EncodingError: `json.too_large`, `json.malformed`, `json.not_canonical`.
    """
    value = decode_any(data, max_bytes=max_bytes)
    # What was decoded has been checked already.
    if _ENCODER.encode(value).encode() != data:
        raise EncodingError("json.not_canonical", "the document is not in canonical form")
    return value


def decode_any(data: bytes, *, max_bytes: int = MAX_BYTES) -> JsonValue:
    """Decode JSON written by others: any white space and key order, but no duplicate keys and no floats.

    Raises:
        EncodingError: `json.too_large`, `json.malformed`, `json.not_canonical`.
    """
    if len(data) > max_bytes:
        raise EncodingError("json.too_large", "the document is too large", expected=max_bytes, actual=len(data))
    _check_depth(data)
    try:
        value = _DECODER.decode(data.decode("utf-8", "strict"))
    except (ValueError, RecursionError) as error:
        raise EncodingError("json.malformed", "the document is not valid JSON") from error
    _check(value, 0)
    return value


def _check_depth(data: bytes) -> None:
    # Before the parser runs: Python's recurses once a level.
    depth = 0
    for bracket in _BRACKETS.findall(_STRINGS.sub(b"", data)):
        depth += 1 if bracket in b"[{" else -1
        if depth > MAX_DEPTH:
            raise EncodingError("json.too_deep", "the document nests too deeply", expected=MAX_DEPTH)


def _unique(pairs: list[tuple[str, JsonValue]]) -> dict[str, JsonValue]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("duplicate key")
    return result


def _no_float(text: str) -> JsonValue:
    raise ValueError(f"not an integer: {text[:20]}")


def _bounded_int(text: str) -> int:
    if len(text) > 20:
        raise ValueError("integer out of range")
    return int(text)


_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
_DECODER = json.JSONDecoder(
    object_pairs_hook=_unique, parse_float=_no_float, parse_constant=_no_float, parse_int=_bounded_int
)


def _check(value: JsonValue, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise EncodingError("json.too_deep", "the document nests too deeply", expected=MAX_DEPTH)
    if isinstance(value, _SCALARS):
        # By far the most values; the slow tests of abstract types come last.
        _check_scalar(value)
    elif isinstance(value, dict) or isinstance(value, Mapping):  # noqa: SIM101 - the first is the quick one
        _check_mapping(value, depth)
    elif isinstance(value, list | tuple) or (isinstance(value, Sequence) and not isinstance(value, bytes | bytearray)):
        for item in value:
            _check(item, depth + 1)
    else:
        _check_scalar(value)


def _check_mapping(value: Mapping[Any, JsonValue], depth: int) -> None:
    for key, item in value.items():
        if not isinstance(key, str):
            raise EncodingError("json.not_canonical", "a key is not a string")
        if not key.isascii():
            _check_scalar(key)
        # Plain ASCII text needs no further look, and a call for each would cost most of the time.
        if type(item) is not str or not item.isascii():
            _check(item, depth + 1)
        elif depth == MAX_DEPTH:
            raise EncodingError("json.too_deep", "the document nests too deeply", expected=MAX_DEPTH)


def _check_scalar(value: JsonValue) -> None:
    if isinstance(value, str):
        if value.isascii():
            return
        try:
            value.encode("utf-8", "strict")
        except UnicodeEncodeError as error:
            raise EncodingError("json.not_canonical", "a string holds a lone surrogate") from error
    elif isinstance(value, int):
        if not -MAX_INTEGER <= value <= MAX_INTEGER:
            raise EncodingError("json.not_canonical", "an integer is out of range")
    elif value is not None:
        raise EncodingError("json.not_canonical", f"a value of type {type(value).__name__} has no canonical form")
