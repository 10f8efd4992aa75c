"""Path rules: which requests an attested peer may send to the program, and which answers wait.

A target is compared only in its one plain spelling. Percent signs, doubled slashes, dot segments, backslashes,
absolute forms, path parameters and queries are refused, never normalised: the program's own router may read them
differently from us, and the difference is the attack.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from secfl.errors import AuthorizationError, ConfigError, EncodingError

__all__ = [
    "MAX_HOLD_SECONDS",
    "MAX_LINGER_MILLISECONDS",
    "MAX_TARGET",
    "METHODS",
    "AllowRule",
    "Permission",
    "Rules",
    "require_plain_target",
]

METHODS = frozenset({"DELETE", "GET", "PATCH", "POST", "PUT"})
"""HEAD cannot carry a sealed answer; CONNECT, OPTIONS and TRACE serve browsers and proxies."""
MAX_TARGET = 2048
"""Longest request target, in characters."""
MAX_HOLD_SECONDS = 25
"""Longest hold: the engine's client gives up after 30 s and a message handed out then would be lost."""
MAX_LINGER_MILLISECONDS = 2000
"""Longest delay of an answer that is not empty."""
_PATH = re.compile(r"/(?:[A-Za-z0-9._~:@+,=-]+/)*(?:[A-Za-z0-9._~:@+,=-]+)?\Z")


def require_plain_target(target: str) -> str:
    """Return a request target that is a path in its one accepted spelling.

    Raises:
        EncodingError: `gateway.target_malformed`.
    """
    segments = target.split("/")
    if len(target) > MAX_TARGET or not _PATH.match(target) or "." in segments or ".." in segments:
        raise EncodingError("gateway.target_malformed", "the request target is not a path in its plain form")
    return target


@dataclass(frozen=True, slots=True)
class AllowRule:
    """One permitted method and path.

    Attributes:
        method: an upper-case method.
        path: the path, or its beginning when `prefix`.
        prefix: whether anything that begins with the path is permitted.
    """

    method: str
    path: str
    prefix: bool

    @classmethod
    def parse(cls, text: str) -> AllowRule:
        """Read `METHOD /path` or `METHOD /beginning*`.

        Raises:
            ConfigError: `rules.malformed`.
        """
        method, _, pattern = text.partition(" ")
        prefix = pattern.endswith("*")
        if method not in METHODS:
            raise ConfigError("rules.malformed", "not `METHOD /path` or `METHOD /path*`", actual=text[:100])
        try:
            path = require_plain_target(pattern.removesuffix("*"))
        except EncodingError as error:
            raise ConfigError("rules.malformed", "not `METHOD /path` or `METHOD /path*`", actual=text[:100]) from error
        return cls(method, path, prefix)

    def covers(self, method: str, path: str) -> bool:
        """Whether method and path match."""
        return method == self.method and (path.startswith(self.path) if self.prefix else path == self.path)


@dataclass(frozen=True, slots=True)
class Permission:
    """A request that the rules permit.

    Attributes:
        method: as received.
        target: the path as received.
        hold: seconds for which an empty answer is kept back, 0 for not at all.
        linger: milliseconds by which every answer is delayed.
    """

    method: str
    target: str
    hold: int
    linger: int


@dataclass(frozen=True, slots=True)
class Rules:
    """The rules of one ingress; without any nothing is permitted.

    Attributes:
        allow: the permitted requests.
        hold: path to seconds for which an empty answer is kept back.
        linger: path to milliseconds by which every answer is delayed.
    """

    allow: tuple[AllowRule, ...]
    hold: Mapping[str, int] = field(default_factory=dict)
    linger: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def parse(
        cls, allow: Sequence[str], *, hold: Mapping[str, int] | None = None, linger: Mapping[str, int] | None = None
    ) -> Rules:
        """Read the policy's texts.

        Raises:
            ConfigError: `rules.malformed` or `rules.wait_out_of_range`.
        """
        holds = _waits(hold, MAX_HOLD_SECONDS)
        lingers = _waits(linger, MAX_LINGER_MILLISECONDS)
        return cls(tuple(AllowRule.parse(text) for text in allow), holds, lingers)

    def authorize(self, method: str, target: str) -> Permission:
        """Return the permission for a request line.

        Raises:
            EncodingError: `gateway.target_malformed`.
            AuthorizationError: `gateway.path_not_allowed`.
        """
        path = require_plain_target(target)
        if not any(rule.covers(method, path) for rule in self.allow):
            raise AuthorizationError("gateway.path_not_allowed", "no rule permits this method and path")
        return Permission(method, path, self.hold.get(path, 0), self.linger.get(path, 0))


def _waits(waits: Mapping[str, int] | None, most: int) -> dict[str, int]:
    result = dict(waits or {})
    for path, wait in result.items():
        AllowRule.parse(f"GET {path}")
        if not 0 < wait <= most:
            raise ConfigError("rules.wait_out_of_range", "an answer may not wait that long", expected=most, actual=wait)
    return result
