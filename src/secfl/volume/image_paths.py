"""Names inside a sealed image: which paths and link targets are allowed. Pure.

A path is relative, `/`-separated UTF-8 without empty, `.` or `..` parts. No two paths may be equal after case folding
and normalisation: a file system or program that folds them would take one for the other (FS-16). A link points inside
the image whatever other links it passes through, because `..` may only lead its target (FS-08).
"""

from __future__ import annotations

import unicodedata

from secfl.errors import EncodingError

__all__ = ["MAX_DEPTH", "MAX_NAME_BYTES", "MAX_PATH_BYTES", "MAX_TARGET_BYTES", "check_path", "check_target", "fold"]

MAX_PATH_BYTES = 4095
"""PATH_MAX of Linux without its NUL."""
MAX_NAME_BYTES = 255
MAX_DEPTH = 64
"""Parts of a path; deeper trees are a way to exhaust those who walk them."""
MAX_TARGET_BYTES = 4095


def check_path(path: str) -> str:
    """Accept a path of an entry.

    Raises:
        EncodingError: `image.path`.
    """
    parts = path.split("/")
    if len(parts) > MAX_DEPTH or len(_utf8(path)) > MAX_PATH_BYTES:
        raise EncodingError("image.path", "a path is too long or too deep")
    for part in parts:
        _check_part(part)
        if part == "..":
            raise EncodingError("image.path", "a path leaves its directory")
    return path


def check_target(path: str, target: str) -> str:
    """Accept the target of the link at `path`.

    Raises:
        EncodingError: `image.link`.
    """
    parts = target.split("/")
    names = parts
    while names and names[0] == "..":
        names = names[1:]
    if len(_utf8(target)) > MAX_TARGET_BYTES or not target:
        raise EncodingError("image.link", "a link's target is empty or too long")
    # The link's own directory is a real one (its parents are directories), so the leading steps up are exact. A later
    # `..` could step out of wherever another link had led.
    if len(parts) - len(names) > path.count("/") or ".." in names:
        raise EncodingError("image.link", "a link points out of the image", path=path)
    try:
        for part in names:
            _check_part(part)
    except EncodingError as error:
        raise EncodingError("image.link", "a link's target is absolute or malformed", path=path) from error
    return target


def fold(path: str) -> str:
    """Give the form under which two paths count as the same."""
    if path.isascii():
        return path.lower()
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", path).casefold())


def _check_part(part: str) -> None:
    if part in ("", ".") or len(_utf8(part)) > MAX_NAME_BYTES:
        raise EncodingError("image.path", "a path has an empty, dotted or over-long part")
    if not part.isprintable() and any(unicodedata.category(char) == "Cc" for char in part):
        raise EncodingError("image.path", "a path holds a control character")


def _utf8(text: str) -> bytes:
    try:
        return text.encode("utf-8", "strict")
    except UnicodeEncodeError as error:
        raise EncodingError("image.path", "a path is not Unicode text") from error
