"""The value types of the language: names, paths, addresses, hashes, keys, durations.

Each has one spelling. Names are lower-case ASCII, so that no two of them look alike (PB-14); paths are absolute and in
normal form, so that no two of them mean one file (SE-03); hashes and keys are decoded once, here.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Literal, LiteralString, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from secfl.crypto.encoding import from_base64url, from_hex
from secfl.crypto.hpke import PUBLIC_KEY_BYTES
from secfl.crypto.signing import PublicKey
from secfl.errors import EncodingError

__all__ = [
    "AbsolutePath",
    "Affirmed",
    "Argument",
    "Closed",
    "Digest",
    "Duration",
    "EnvironmentName",
    "Loopback",
    "Measurement",
    "Name",
    "Permission",
    "PlatformId",
    "PolicyName",
    "Port",
    "RecipientKey",
    "VerificationKey",
    "refuse",
    "text_type",
    "unique",
]

_NAME = r"[a-z][a-z0-9]*(?:[-._~][a-z0-9]+)*"
_NAME_LENGTH = 63
_LOOKS_LIKE_ID = re.compile(r"[0-9a-f-]{32,}\Z")
_RESERVED_NAMES = frozenset({"all", "any", "anyone", "creator", "everyone", "none", "nobody", "self"})
_SEGMENT = re.compile(r"[A-Za-z0-9_@+~.-]{1,100}\Z")
_MAX_PATH = 255
_MAX_ARGUMENT = 32 * 1024
"""Longest argument or variable, in characters; Linux ends at 128 KiB after secrets are put in."""
_SECONDS = {"h": 3600, "d": 86400}
_MAX_DURATION = 10 * 366 * 86400
_REFUSED_ENVIRONMENT = re.compile(
    r"(?:LD_|PYTHON|GLIBC_|MALLOC_|BASH_FUNC_|SECFL_|DYLD_|GCONV_).*|"
    r"PATH|ENV|BASH_ENV|BASHOPTS|SHELLOPTS|IFS|PS4|CDPATH|PROMPT_COMMAND|LOCPATH|NLSPATH|HOSTALIASES|LOCALDOMAIN|"
    r"RES_OPTIONS|RESOLV_HOST_CONF|OPENSSL_CONF|OPENSSL_MODULES|OPENSSL_ENGINES|NODE_OPTIONS|PERL5LIB|PERL5OPT|RUBYLIB|"
    r"RUBYOPT|JAVA_TOOL_OPTIONS|GETCONF_DIR|TZDIR"
)
"""Variables by which a loader, interpreter, shell or library takes code or files from elsewhere (SE-06)."""

T = TypeVar("T")


class Closed(BaseModel):
    """Base of all parts of a policy: closed, strict and frozen."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


def refuse(rule: LiteralString, expected: str, remedy: str) -> PydanticCustomError:
    """Make the error of a validator; the decoder turns it into a finding."""
    return PydanticCustomError(rule, "{expected}", {"expected": expected, "remedy": remedy})


def text_type(
    pattern: str, rule: LiteralString, expected: str, *, remedy: str = "correct the value"
) -> Callable[[str], str]:
    """Make a check for text that matches as a whole."""
    compiled = re.compile(rf"(?:{pattern})\Z")

    def check(value: str) -> str:
        if not compiled.match(value):
            raise refuse(rule, expected, remedy)
        return value

    return check


def unique(values: tuple[T, ...]) -> tuple[T, ...]:
    """Refuse a list that holds a value twice.

    Raises:
        PydanticCustomError: `policy.repeated`.
    """
    seen: list[T] = []
    for value in values:
        if value in seen:
            raise refuse("policy.repeated", "each entry once", "remove the repeated entry")
        seen.append(value)
    return values


def _name(value: str) -> str:
    if not re.match(rf"{_NAME}\Z", value) or len(value) > _NAME_LENGTH:
        raise refuse(
            "policy.name",
            "a name: lower-case letters and digits, parted by single - . _ or ~, a letter first, at most 63 characters",
            "choose another name",
        )
    if _LOOKS_LIKE_ID.match(value):
        raise refuse("policy.name", "a name that cannot be taken for a hash or id", "choose another name")
    if value in _RESERVED_NAMES:
        raise refuse("policy.name", "a name that is no word of the language", "choose another name")
    return value


def _policy_name(value: str) -> str:
    parts = value.split("/")
    if len(parts) > 2:
        raise refuse("policy.name", "a name, or a party's name, a slash and a name", "remove the further slashes")
    for part in parts:
        _name(part)
    return value


def _path(value: str) -> str:
    wanted = (
        "policy.path",
        "an absolute path without `.`, `..`, empty parts, slash at the end, or characters but A-Z a-z 0-9 _ @ + ~ . -",
        "write the path in its normal form",
    )
    if not value.startswith("/") or value == "/" or len(value) > _MAX_PATH:
        raise refuse(*wanted)
    for part in value[1:].split("/"):
        if part in {".", ".."} or not _SEGMENT.match(part):
            raise refuse(*wanted)
    return value


def _argument(value: str) -> str:
    # A line feed ends a record wherever arguments or variables are listed, logged or quoted (SE-06).
    if "\n" in value or len(value) > _MAX_ARGUMENT:
        raise refuse(
            "policy.argument", f"one line of at most {_MAX_ARGUMENT} characters", "put longer text into a file"
        )
    return value


def _environment_name(value: str) -> str:
    if not re.match(r"[A-Za-z_][A-Za-z0-9_]{0,127}\Z", value):
        raise refuse("policy.environment_name", "letters, digits and _, no digit first", "choose another name")
    if _REFUSED_ENVIRONMENT.fullmatch(value.upper()):
        raise refuse(
            "policy.environment_name",
            "a variable that changes no loader, interpreter or shell",
            "remove it; what it sets belongs into the image or the command",
        )
    return value


def _port_number(text: str) -> bool:
    return bool(re.match(r"[1-9][0-9]{0,4}\Z", text)) and int(text) <= 65535


def _loopback(value: str) -> str:
    host, _, port = value.rpartition(":")
    if host != "127.0.0.1" or not _port_number(port):
        raise refuse("policy.address", '"127.0.0.1:PORT"', "write an address of the program's own private network")
    return value


def _hex(size: int, rule: LiteralString, expected: str) -> BeforeValidator:
    def check(value: object) -> object:
        if isinstance(value, bytes) and len(value) == size:
            return value
        try:
            return from_hex(value if isinstance(value, str) else "-", size=size)
        except EncodingError:
            raise refuse(rule, expected, "write lower-case hex digits in quotes") from None

    return BeforeValidator(check)


def _measurement(value: object) -> object:
    if isinstance(value, bytes) and len(value) in {32, 48}:
        return value
    try:
        data = from_hex(value if isinstance(value, str) else "-")
    except EncodingError:
        data = b""
    if len(data) not in {32, 48}:
        raise refuse(
            "policy.measurement", "a measurement: 96 hex digits for tdx, 64 for sgx", "list exact measurements"
        )
    return data


def _verification_key(value: object) -> object:
    if isinstance(value, PublicKey):
        return value
    try:
        return PublicKey(from_base64url(value if isinstance(value, str) else "-"))
    except EncodingError:
        raise refuse(
            "policy.signing_key", "an Ed25519 or P-256 public key (base64url of DER)", "paste the party's public key"
        ) from None


def _recipient_key(value: object) -> object:
    if isinstance(value, bytes) and len(value) == PUBLIC_KEY_BYTES:
        return value
    try:
        return from_base64url(value if isinstance(value, str) else "-", size=PUBLIC_KEY_BYTES)
    except EncodingError:
        raise refuse(
            "policy.recipient_key", f"a recipient key: base64url of {PUBLIC_KEY_BYTES} bytes", "paste the party's key"
        ) from None


def _duration(value: object) -> object:
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value
    match = re.match(r"([1-9][0-9]{0,4})([hd])\Z", value) if isinstance(value, str) else None
    seconds = int(match[1]) * _SECONDS[match[2]] if match else 0
    if not 0 < seconds <= _MAX_DURATION:
        raise refuse("policy.duration", 'a duration such as "12h" or "90d", at most ten years', "correct the duration")
    return seconds


def _true(value: object) -> object:
    if value is not True:  # 1 equals True in Python, and would be a second spelling
        raise refuse("policy.value", "true", "write true, or remove the key")
    return value


def _text_schema(pattern: str) -> WithJsonSchema:
    return WithJsonSchema({"type": "string", "pattern": f"^(?:{pattern})$"})


Affirmed = Annotated[Literal[True], BeforeValidator(_true)]
"""The value `true`; its absence is written by leaving the key out."""
Name = Annotated[str, AfterValidator(_name), _text_schema(_NAME)]
"""A name of a party, service, image, volume, secret or site."""
PolicyName = Annotated[str, AfterValidator(_policy_name), _text_schema(f"{_NAME}(?:/{_NAME})?")]
"""A name, or `party/thing` in a party's namespace."""
AbsolutePath = Annotated[str, AfterValidator(_path), _text_schema(r"(?:/[A-Za-z0-9_@+~.-]{1,100})+")]
"""A path in normal form; not the root."""
Argument = Annotated[str, AfterValidator(_argument)]
"""One line of text; placeholders may stand in it."""
EnvironmentName = Annotated[str, AfterValidator(_environment_name), _text_schema("[A-Za-z_][A-Za-z0-9_]{0,127}")]
"""A variable's name."""
Loopback = Annotated[str, AfterValidator(_loopback), _text_schema(r"127\.0\.0\.1:[0-9]{1,5}")]
"""An address in the program's private network."""
Port = Annotated[int, Field(ge=1, le=65535)]
"""A TCP port."""
Permission = Annotated[
    str,
    AfterValidator(
        text_type(
            "0[4-7][0145][0145]", "policy.permission", '"0400" to "0755", written by nobody but the owner (in quotes)'
        )
    ),
]
"""Octal file mode; the owner may read, others may never write."""
Digest = Annotated[bytes, _hex(32, "policy.hash", "a hash: 64 hex digits"), _text_schema("[0-9a-f]{64}")]
"""A SHA-256 value, as bytes."""
PlatformId = Annotated[bytes, _hex(16, "policy.platform", "a platform id: 32 hex digits"), _text_schema("[0-9a-f]{32}")]
"""A PPID, as bytes."""
Measurement = Annotated[bytes, BeforeValidator(_measurement), _text_schema("[0-9a-f]{64}|[0-9a-f]{96}")]
"""MRTD (48 bytes) or MRENCLAVE (32 bytes)."""
VerificationKey = Annotated[PublicKey, BeforeValidator(_verification_key), _text_schema("[A-Za-z0-9_-]+")]
"""A party's signing key, public half."""
RecipientKey = Annotated[bytes, BeforeValidator(_recipient_key), _text_schema("[A-Za-z0-9_-]{1622}")]
"""A party's HPKE public key."""
Duration = Annotated[int, BeforeValidator(_duration), _text_schema("[1-9][0-9]{0,4}[hd]")]
"""A number of seconds, written `"12h"` or `"90d"`."""
