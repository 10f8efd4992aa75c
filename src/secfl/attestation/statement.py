"""Statements of an attester about itself: what a shield says of its launch, what a manager says of its log.

A statement is only as true as the measured code that makes it: its digest is part of the binding, so that changing a
byte of it breaks the evidence. Each has exactly one encoding.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from secfl.crypto import strict_json
from secfl.crypto.encoding import from_hex
from secfl.errors import EncodingError

__all__ = ["MAX_STATEMENT_BYTES", "Isolation", "LaunchClaims", "ManagerClaims", "decode_statement"]

MAX_STATEMENT_BYTES = 64 * 1024
"""Largest statement, in bytes: 256 mounted roots of 200 bytes each fit."""
_MAX_ROOTS = 256
_MAX_TEXT = 512
_ROOT_BYTES = 32
_TOKEN = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}\Z")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,255}\Z")
_TEXT = re.compile(r"[\x20-\x7e]*\Z")


class Isolation(IntEnum):
    """What keeps the program apart from the rest of its enclave; a higher level gives more."""

    NONE = 0
    LANDLOCK = 1
    UNPACKED = 2
    FULL = 3
    ENCLAVE = 4

    @property
    def label(self) -> str:
        """The name used in documents."""
        return self.name.lower()

    @classmethod
    def of(cls, label: str) -> Isolation:
        """Read a label.

        Raises:
            EncodingError: `statement.isolation`.
        """
        for level in cls:
            if level.label == label:
                return level
        raise EncodingError("statement.isolation", "an unknown isolation level", actual=label[:32])


@dataclass(frozen=True, slots=True)
class LaunchClaims:
    """What a shield states about the program it will start or has started.

    Attributes:
        isolation: the level really reached.
        instance: a name drawn at start, so that two instances of one service differ.
        taints: weakening facts, such as `debug-shell`; sorted, without duplicates.
        roots: mounted volume to the 32-byte root it was opened with.
        node_key: the engine's node key as text, empty when the engine has none.
    """

    isolation: Isolation
    instance: str
    taints: tuple[str, ...] = ()
    roots: Mapping[str, bytes] = field(default_factory=dict)
    node_key: str = ""

    def __post_init__(self) -> None:
        """Refuse what has no single encoding.

        Raises:
            EncodingError: `statement.malformed`.
        """
        _require(_TOKEN.match(self.instance) is not None, "the instance id is not a short token")
        _require(list(self.taints) == sorted(set(self.taints)), "taints are sorted and unique")
        _require(all(_TOKEN.match(taint) for taint in self.taints), "a taint is a short token")
        _require(len(self.taints) <= _MAX_ROOTS and len(self.roots) <= _MAX_ROOTS, "too many entries")
        for volume, root in self.roots.items():
            _require(_NAME.match(volume) is not None and len(root) == _ROOT_BYTES, "a root is 32 bytes under a name")
        _require(len(self.node_key) <= _MAX_TEXT and _TEXT.match(self.node_key) is not None, "not a one-line node key")

    def encode(self) -> bytes:
        """Write the one encoding."""
        return strict_json.encode(
            {
                "instance": self.instance,
                "isolation": self.isolation.label,
                "node_key": self.node_key,
                "roots": {volume: root.hex() for volume, root in self.roots.items()},
                "taints": list(self.taints),
                "type": "launch",
            }
        )


@dataclass(frozen=True, slots=True)
class ManagerClaims:
    """What a manager states about itself.

    Attributes:
        isolation: the level really reached.
        instance: a name drawn at start.
        founders: key ids of the parties that founded the deployment, sorted, without duplicates.
        log_length: entries in its log.
        log_head: 32-byte hash of its log's head.
        rollback_protection: how a rollback of its state would be noticed, `none` included.
    """

    isolation: Isolation
    instance: str
    founders: tuple[str, ...]
    log_length: int
    log_head: bytes
    rollback_protection: str

    def __post_init__(self) -> None:
        """Refuse what has no single encoding.

        Raises:
            EncodingError: `statement.malformed`.
        """
        _require(_TOKEN.match(self.instance) is not None, "the instance id is not a short token")
        _require(list(self.founders) == sorted(set(self.founders)), "founders are sorted and unique")
        _require(len(self.founders) <= _MAX_ROOTS, "too many entries")
        _require(all(_is_key_id(founder) for founder in self.founders), "a founder is a key id")
        _require(type(self.log_length) is int and 0 <= self.log_length < 2**63, "not a log length")
        _require(len(self.log_head) == _ROOT_BYTES, "a log head is 32 bytes")
        _require(_TOKEN.match(self.rollback_protection) is not None, "rollback protection is a short token")

    def encode(self) -> bytes:
        """Write the one encoding."""
        return strict_json.encode(
            {
                "founders": list(self.founders),
                "instance": self.instance,
                "isolation": self.isolation.label,
                "log_head": self.log_head.hex(),
                "log_length": self.log_length,
                "rollback_protection": self.rollback_protection,
                "type": "manager",
            }
        )


def decode_statement(data: bytes) -> LaunchClaims | ManagerClaims:
    """Read what `encode` of either class wrote.

    Raises:
        EncodingError: `statement.malformed`, `statement.isolation`, or a JSON or hex code.
    """
    document = strict_json.decode(data, max_bytes=MAX_STATEMENT_BYTES)
    _require(isinstance(document, dict), "not an object")
    kind = _text(document, "type")
    if kind == "launch":
        return _decode_launch(document)
    if kind == "manager":
        return _decode_manager(document)
    raise EncodingError("statement.malformed", "an unknown type of statement")


def _decode_launch(document: dict[str, Any]) -> LaunchClaims:
    _require(set(document) == {"instance", "isolation", "node_key", "roots", "taints", "type"}, "wrong members")
    roots = document["roots"]
    _require(isinstance(roots, dict) and all(isinstance(root, str) for root in roots.values()), "roots are hex text")
    return LaunchClaims(
        isolation=Isolation.of(_text(document, "isolation")),
        instance=_text(document, "instance"),
        taints=_texts(document, "taints"),
        roots={volume: from_hex(root, size=_ROOT_BYTES) for volume, root in roots.items()},
        node_key=_text(document, "node_key"),
    )


def _decode_manager(document: dict[str, Any]) -> ManagerClaims:
    members = {"founders", "instance", "isolation", "log_head", "log_length", "rollback_protection", "type"}
    _require(set(document) == members, "wrong members")
    return ManagerClaims(
        isolation=Isolation.of(_text(document, "isolation")),
        instance=_text(document, "instance"),
        founders=_texts(document, "founders"),
        log_length=document["log_length"],
        log_head=from_hex(_text(document, "log_head"), size=_ROOT_BYTES),
        rollback_protection=_text(document, "rollback_protection"),
    )


def _text(document: dict[str, Any], member: str) -> str:
    value = document.get(member)
    if not isinstance(value, str):
        raise EncodingError("statement.malformed", f"{member} is not text")
    return value


def _texts(document: dict[str, Any], member: str) -> tuple[str, ...]:
    values = document[member]
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise EncodingError("statement.malformed", f"{member} is not a list of texts")
    return tuple(values)


def _is_key_id(text: str) -> bool:
    return len(text) == 64 and all(character in "0123456789abcdef" for character in text)


def _require(good: bool, message: str) -> None:  # noqa: FBT001
    if not good:
        raise EncodingError("statement.malformed", message)
