"""A strict subset of YAML as a tree that remembers its places.

The subset is what a careful author writes anyway: maps with text keys, lists, text, canonical whole numbers, `true`
and `false`. Everything by which two readers of one file could come to two values is refused: duplicate keys, anchors,
aliases, merge keys, tags, directives, further documents, and plain words that one YAML version reads as a number, a
date or nothing. All limits hold before memory is spent (EV-37). The parser is PyYAML's own Python one, fed event by
event: it never builds objects, and it stops at the first event beyond a limit.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import yaml

from secfl.policy.findings import Path, PolicyError, PolicyFinding, Position, path_text, shown
from secfl.policy.text import forbidden_character, is_composed

__all__ = ["MAX_BYTES", "MAX_DEPTH", "MAX_INTEGER", "MAX_NODES", "PlainData", "Tree", "parse_tree"]

MAX_BYTES = 512 * 1024
"""Largest policy, in bytes: a hundred parties (a recipient key is 1.6 kB of text) and services fit."""
MAX_DEPTH = 24
"""Deepest nesting; the language needs 9."""
MAX_NODES = 20_000
"""Most values and keys."""
MAX_INTEGER = 2**63 - 1

PlainData = str | int | bool | tuple["PlainData", ...] | dict[str, "PlainData"]

_INTEGER = re.compile(r"(?:0|-?[1-9][0-9]{0,18})\Z")
_NULLS = frozenset({"", "~", "null", "Null", "NULL"})
_ODD_NUMBER = re.compile(
    r"""(?: [-+]? (?: [0-9][0-9_]* (?:\.[0-9_]*)? | \.[0-9][0-9_]* ) (?:[eE][-+]?[0-9]+)?  # decimal in any spelling
      | [-+]? 0 [xob] [0-9a-fA-F_]+                     # other bases
      | [-+]? [0-9][0-9_]* (?: :[0-5]?[0-9] )+ (?:\.[0-9_]*)?  # base 60
      | [-+]? \.(?:inf|Inf|INF) | \.(?:nan|NaN|NAN)
      | [0-9]{4}-[0-9]{1,2}-[0-9]{1,2} (?: [Tt\ ].* )?    # dates
    )\Z""",
    re.VERBOSE,
)


@dataclass(slots=True)
class Tree:
    """The values of a file, and where each of them starts.

    Attributes:
        source: the name of the file.
        data: text, numbers and truth values in tuples and dicts.
        places: value positions by path.
        keys: positions of map keys by path.
    """

    source: str
    data: PlainData = ""
    places: dict[Path, Position] = field(default_factory=dict)
    keys: dict[Path, Position] = field(default_factory=dict)

    def locate(self, path: Path, *, key: bool = False) -> tuple[Path, Position]:
        """Find the place of a path, or of the nearest value around it."""
        while path not in self.places and path:
            path = path[:-1]
        if key and path in self.keys:
            return path, self.keys[path]
        return path, self.places.get(path, Position(1, 1))


def parse_tree(data: bytes, *, source: str) -> Tree:
    """Parse a file.

    Raises:
        PolicyError: `policy.too_large`, `policy.encoding`, `policy.character`, `policy.syntax`, `policy.too_deep`,
            `policy.too_many_values`, `policy.duplicate_key`, `policy.key`, `policy.anchor`, `policy.tag`,
            `policy.directive`, `policy.several_documents`, `policy.missing_value`, `policy.number`.
    """
    text = _text(data, source)
    try:
        return _Builder(source, text).build()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        place = Position(mark.line + 1, mark.column + 1) if mark else Position(1, 1)
        problem = getattr(error, "problem", None) or "text that is not YAML"
        raise _error(
            "policy.syntax", source, place, (), ("valid YAML", shown(problem), "correct the syntax at this place")
        ) from None


def _error(rule: str, source: str, place: Position, path: Path, words: tuple[str, str, str]) -> PolicyError:
    expected, actual, remedy = words
    return PolicyError(
        [PolicyFinding(rule, source, place.line, place.column, path_text(path), expected, actual, remedy)]
    )


def _text(data: bytes, source: str) -> str:
    start = Position(1, 1)
    if len(data) > MAX_BYTES:
        words = (f"at most {MAX_BYTES} bytes", f"{len(data)} bytes", "split the policy")
        raise _error("policy.too_large", source, start, (), words)
    if data.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")):
        words = ("UTF-8 without a byte-order mark", "a byte-order mark", "save the file as plain UTF-8")
        raise _error("policy.encoding", source, start, (), words)
    try:
        text = data.decode("utf-8", "strict")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        words = ("UTF-8", f"the byte 0x{data[error.start]:02x} out of place", "save the file as UTF-8")
        raise _error("policy.encoding", source, Position(line, 1), (), words) from None
    index = forbidden_character(text)
    if index is not None:
        line_start = text.rfind("\n", 0, index) + 1
        place = Position(text.count("\n", 0, index) + 1, index - line_start + 1)
        words = ("visible characters, blanks and line feeds", f"U+{ord(text[index]):04X}", "remove this character")
        raise _error("policy.character", source, place, (), words)
    if not is_composed(text):
        words = ("text in Unicode's composed form (NFC)", "decomposed characters", "normalise the file to NFC")
        raise _error("policy.character", source, start, (), words)
    return text


class _Builder:
    """Turns the event stream into a tree, one event at a time."""

    def __init__(self, source: str, text: str) -> None:
        self._tree = Tree(source)
        self._nodes = 0
        self._events: Iterator[yaml.Event] = yaml.parse(text, Loader=yaml.SafeLoader)

    def build(self) -> Tree:
        next(self._events)  # stream start
        event = next(self._events)
        if isinstance(event, yaml.StreamEndEvent):
            raise self._refuse("policy.missing_value", event, (), ("a map", "an empty file", "write the policy"))
        if getattr(event, "version", None) or getattr(event, "tags", None):
            raise self._refuse("policy.directive", event, (), ("no directive", "a % line", "remove the % line"))
        self._tree.data = self._value(next(self._events), (), 1)
        next(self._events)  # document end
        event = next(self._events)
        if not isinstance(event, yaml.StreamEndEvent):
            words = ("one document", "a second document", "put each policy into its own file")
            raise self._refuse("policy.several_documents", event, (), words)
        return self._tree

    def _refuse(self, rule: str, event: yaml.Event, path: Path, words: tuple[str, str, str]) -> PolicyError:
        return _error(rule, self._tree.source, _position(event), path, words)

    def _value(self, event: yaml.Event, path: Path, depth: int) -> PlainData:
        self._admit(event, path, depth)
        self._tree.places[path] = _position(event)
        if isinstance(event, yaml.ScalarEvent):
            return self._scalar(event, path)
        if isinstance(event, yaml.SequenceStartEvent):
            items: list[PlainData] = []
            while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
                items.append(self._value(event, (*path, len(items)), depth + 1))
            return tuple(items)
        return self._map(path, depth)

    def _admit(self, event: yaml.Event, path: Path, depth: int) -> None:
        self._nodes += 1
        if self._nodes > MAX_NODES:
            words = (f"at most {MAX_NODES} values", "more", "split the policy")
            raise self._refuse("policy.too_many_values", event, (), words)
        if depth > MAX_DEPTH:
            words = (f"at most {MAX_DEPTH} levels", "deeper nesting", "remove levels")
            raise self._refuse("policy.too_deep", event, (), words)
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            words = ("a value written out", "an anchor or alias", "write the value where it is used")
            raise self._refuse("policy.anchor", event, path, words)
        tag = getattr(event, "tag", None)
        if tag is not None:
            words = ("a value without a tag", f"the tag {shown(tag)}", "remove the tag")
            raise self._refuse("policy.tag", event, path, words)

    def _map(self, path: Path, depth: int) -> PlainData:
        result: dict[str, PlainData] = {}
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            self._admit(event, path, depth + 1)
            name = self._key(event, path)
            here = (*path, name)
            if name in result:
                first = self._tree.keys[here]
                words = ("each key once", f"a second {shown(name)} (the first is in line {first.line})", "keep one")
                raise self._refuse("policy.duplicate_key", event, here, words)
            self._tree.keys[here] = _position(event)
            result[name] = self._value(next(self._events), here, depth + 1)
        return result

    def _key(self, event: yaml.Event, path: Path) -> str:
        if not isinstance(event, yaml.ScalarEvent):
            raise self._refuse("policy.key", event, path, ("a name as key", "a list or map", "use a name"))
        name: str = event.value
        self._check_text(event, name, path)
        if event.style is None and (name in _NULLS or _ODD_NUMBER.match(name) or name in {"true", "false", "<<"}):
            words = ("a name as key", shown(name), "use a name, or put the key in quotes")
            raise self._refuse("policy.key", event, path, words)
        return name

    def _scalar(self, event: yaml.ScalarEvent, path: Path) -> str | int | bool:
        text: str = event.value
        self._check_text(event, text, path)
        if event.style is not None:
            return text
        if text in {"true", "false"}:
            return text == "true"
        if text in _NULLS:
            words = ("a value", "nothing", "write the value, or remove the key; an empty text is written ''")
            raise self._refuse("policy.missing_value", event, path, words)
        if _INTEGER.match(text) and abs(int(text)) <= MAX_INTEGER:
            return int(text)
        if _ODD_NUMBER.match(text):
            words = ("text in quotes or a whole number such as 15", shown(text), "put it in quotes if text is meant")
            raise self._refuse("policy.number", event, path, words)
        return text

    def _check_text(self, event: yaml.Event, text: str, path: Path) -> None:
        # Escapes such as "\u202e" in quoted text bring back what the raw file may not hold.
        index = forbidden_character(text, also="\t")
        if index is not None:
            words = ("visible characters", f"an escaped U+{ord(text[index]):04X}", "remove this character")
            raise self._refuse("policy.character", event, path, words)
        if not is_composed(text):
            words = ("text in Unicode's composed form (NFC)", "decomposed characters", "normalise the text")
            raise self._refuse("policy.character", event, path, words)


def _position(event: yaml.Event) -> Position:
    mark = event.start_mark
    return Position(mark.line + 1, mark.column + 1) if mark else Position(1, 1)
