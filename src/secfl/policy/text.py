"""Characters that a policy may contain.

People vote on what they read, so nothing may look different from what it is: control, bidirectional, zero-width,
blank-like and unassigned characters are refused wherever they stand, escaped ones too (PB-19), and so is text in
which one letter has two spellings (not NFC).
"""

from __future__ import annotations

import re
import unicodedata

__all__ = ["forbidden_character", "is_composed"]

_PLAIN = re.compile(r"[\n\x20-\x7e]*\Z")
_REFUSED_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp", "Zs"})
_INVISIBLE = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]")
"""Drawn as nothing although Unicode calls them letters or marks."""


def forbidden_character(text: str, *, also: str = "") -> int | None:
    """Return the index of the first refused character, or None.

    Args:
        also: control characters that are allowed here besides the line feed.
    """
    if _PLAIN.match(text):
        return None
    for index, character in enumerate(text):
        if character in "\n " or character in also:
            continue
        if unicodedata.category(character) in _REFUSED_CATEGORIES or _INVISIBLE.match(character):
            return index
    return None


def is_composed(text: str) -> bool:
    """Tell whether the text is in Unicode's composed form (NFC)."""
    return unicodedata.is_normalized("NFC", text)
