"""The message: a closed, typed record with exactly one spelling in canonical JSON.

Rules: an unknown field, a missing field, a null, another order or another spelling of the same value is refused; the
size is bounded before anything is parsed. What a decoder accepts encodes to the same bytes again.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, PlainSerializer, ValidationError

from secfl.crypto import strict_json
from secfl.crypto.encoding import from_base64url, to_base64url
from secfl.errors import EncodingError

__all__ = [
    "MAX_MESSAGE",
    "Base64",
    "Digest",
    "Identifier",
    "JsonObject",
    "Message",
    "Name",
    "Nonce",
    "Seconds",
    "UnixTime",
]

MAX_MESSAGE = 256 * 1024
"""Largest ordinary message, in bytes: evidence of 16 KiB and its launch claims fit several times."""
_NAME = re.compile(r"[a-z0-9][a-z0-9._~-]{0,127}(?:/[a-z0-9][a-z0-9._~-]{0,127})?\Z")
_DIGEST = re.compile(r"[0-9a-f]{64}\Z")
_IDENTIFIER = re.compile(r"[0-9a-f]{32}\Z")
_MAX_TIME = 2**40


def _bytes(value: object) -> bytes:
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return from_base64url(value)
    raise ValueError("base64url text is required")


def _matching(pattern: re.Pattern[str], what: str) -> AfterValidator:
    def check(value: str) -> str:
        if not pattern.match(value):
            raise ValueError(f"not {what}")
        return value

    return AfterValidator(check)


def _sized(size: int) -> AfterValidator:
    def check(value: bytes) -> bytes:
        if len(value) != size:
            raise ValueError(f"{size} bytes are required")
        return value

    return AfterValidator(check)


def _time(value: int) -> int:
    if not 0 <= value < _MAX_TIME:
        raise ValueError("out of range")
    return value


Base64 = Annotated[bytes, BeforeValidator(_bytes), PlainSerializer(to_base64url, return_type=str)]
"""Bytes, as base64url text without padding."""
Nonce = Annotated[Base64, _sized(32)]
"""32 random bytes that a verifier chose."""
Digest = Annotated[str, _matching(_DIGEST, "64 lower-case hex digits")]
"""A SHA-256 value."""
Identifier = Annotated[str, _matching(_IDENTIFIER, "32 lower-case hex digits")]
"""16 random bytes that name a lease, a challenge or an instance."""
Name = Annotated[str, _matching(_NAME, "a name")]
"""A policy (`party/thing` or `thing`), party, service, site, volume or secret."""
UnixTime = Annotated[int, AfterValidator(_time)]
"""Seconds since 1970, UTC."""
Seconds = Annotated[int, AfterValidator(_time)]
"""A duration."""
JsonObject = dict[str, Any]
"""A canonical JSON object whose form another module defines."""


class Message(BaseModel):
    """Base of all messages."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", hide_input_in_errors=True)

    def encode(self) -> bytes:
        """Give the one spelling of this message.

        Raises:
            EncodingError: `json.not_canonical` when a free-form member has no canonical form.
        """
        return strict_json.encode(self.model_dump(mode="python", exclude_none=True))

    @classmethod
    def decode(cls, data: bytes, *, max_bytes: int = MAX_MESSAGE) -> Self:
        """Read a message; any other spelling than that of `encode` is refused.

        Raises:
            EncodingError: `json.too_large`, `message.malformed`, `message.not_canonical` or a code of the member.
        """
        if len(data) > max_bytes:
            raise EncodingError("json.too_large", "the document is too large", expected=max_bytes, actual=len(data))
        try:
            message = cls.model_validate_json(data)
        except ValidationError as error:
            # The place and kind of the first fault, never the value: it may be a secret.
            first = error.errors(include_input=False, include_url=False)[0]
            place = ".".join(str(part) for part in first["loc"]) or "document"
            raise EncodingError("message.malformed", f"{cls.__name__}: {place}: {first['msg']}", field=place) from None
        if message.encode() != data:
            raise EncodingError("message.not_canonical", f"{cls.__name__}: not the canonical spelling")
        return message
