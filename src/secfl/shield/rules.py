"""Path rules: which requests an attested peer may send to the program, and which empty answers are kept back.

A target is compared only in its one plain spelling. Percent signs, doubled slashes, dot segments, backslashes,
absolute forms and path parameters are refused, never normalised: the program's own router may read them differently
from us, and the difference is the attack. A query is refused unless the rule ends in `?`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from secfl.errors import AuthorizationError, ConfigError, EncodingError

__all__ = ["MAX_HOLD_SECONDS", "MAX_TARGET", "METHODS", "AllowRule", "Permission", "Rules", "split_target"]

METHODS = frozenset({"DELETE", "GET", "PATCH", "POST", "PUT"})
"""HEAD cannot carry a sealed answer; CONNECT, OPTIONS and TRACE serve browsers and proxies."""
MAX_TARGET = 2048
"""Longest request target, in characters."""
MAX_HOLD_SECONDS = 25
"""Longest hold: the engine's client gives up after 30 s and a message handed out then would be lost."""
_PATH = re.compile(r"/(?:[A-Za-z0-9._~:@+,=-]+/)*(?:[A-Za-z0-9._~:@+,=-]+)?\Z")
_QUERY = re.compile(r"[A-Za-z0-9._~:@+,=&%/-]*\Z")


def split_target(target: str) -> tuple[str, str | None]:
    """Return path and query of a request target in its one accepted spelling.

    Raises:
        EncodingError: `gateway.target_malformed`.
    """
    path, mark, query = target.partition("?")
    segments = path.split("/")
    if len(target) > MAX_TARGET or not _PATH.match(path) or "." in segments or ".." in segments:
        raise EncodingError("gateway.target_malformed", "the request target is not in its plain form")
    if mark and not _QUERY.match(query):
        raise EncodingError("gateway.target_malformed", "the query is not in its plain form")
    return path, query if mark else None


@dataclass(frozen=True, slots=True)
class AllowRule:
    """One permitted method and path.

    Attributes:
        method: an upper-case method.
        path: the path, or its beginning when `prefix`.
        prefix: whether anything below the path is permitted too.
        query: whether a query is permitted.
    """

    method: str
    path: str
    prefix: bool
    query: bool

    @classmethod
    def parse(cls, text: str) -> AllowRule:
        """Read `METHOD /path`, `METHOD /path/*`, and either with a final `?` that permits queries.

        Raises:
            ConfigError: `rules.malformed`.
        """
        method, _, pattern = text.partition(" ")
        query = pattern.endswith("?")
        pattern = pattern.removesuffix("?")
        prefix = pattern.endswith("/*")
        path = pattern.removesuffix("*")
        try:
            if method not in METHODS or split_target(path)[1] is not None:
                raise ConfigError("rules.malformed", "not `METHOD /path` or `METHOD /path/*`", actual=text[:100])
        except EncodingError as error:
            raise ConfigError("rules.malformed", "not `METHOD /path` or `METHOD /path/*`", actual=text[:100]) from error
        return cls(method, path, prefix, query)

    def covers(self, method: str, path: str) -> bool:
        """Whether method and path match; the bare prefix itself does not."""
        if method != self.method:
            return False
        return path.startswith(self.path) and path != self.path if self.prefix else path == self.path


@dataclass(frozen=True, slots=True)
class Permission:
    """A request that the rules permit.

    Attributes:
        method: as received.
        target: path and query as received.
        hold: seconds for which an empty answer is kept back, 0 for not at all.
    """

    method: str
    target: str
    hold: int


@dataclass(frozen=True, slots=True)
class Rules:
    """The rules of one ingress; without any nothing is permitted.

    Attributes:
        allow: the permitted requests.
        hold: path to seconds.
    """

    allow: tuple[AllowRule, ...]
    hold: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def parse(cls, allow: Sequence[str], hold: Mapping[str, int] | None = None) -> Rules:
        """Read the policy's texts.

        Raises:
            ConfigError: `rules.malformed` or `rules.hold_too_long`.
        """
        holds = dict(hold or {})
        for path, seconds in holds.items():
            if not 0 < seconds <= MAX_HOLD_SECONDS:
                raise ConfigError("rules.hold_too_long", "a hold lasts 1 to 25 seconds", actual=seconds)
            AllowRule.parse(f"GET {path}")
        return cls(tuple(AllowRule.parse(text) for text in allow), holds)

    def authorize(self, method: str, target: str) -> Permission:
        """Return the permission for a request line.

        Raises:
            EncodingError: `gateway.target_malformed`.
            AuthorizationError: `gateway.path_not_allowed` or `gateway.query_not_allowed`.
        """
        path, query = split_target(target)
        matching = [rule for rule in self.allow if rule.covers(method, path)]
        if not matching:
            raise AuthorizationError("gateway.path_not_allowed", "no rule permits this method and path")
        if query is not None and not any(rule.query for rule in matching):
            raise AuthorizationError("gateway.query_not_allowed", "the rule permits no query")
        return Permission(method, target, self.hold.get(path, 0))
