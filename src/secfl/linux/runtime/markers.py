"""Environment markers of a lock file: does a line apply to the Python that builds?

Only comparisons joined by `and` are understood, over the few names that our locks use. Anything else is an error: a
marker that is guessed at would leave a package out of the measured image, or let one in.
"""

from __future__ import annotations

import platform
import re
import sys
from collections.abc import Callable, Mapping

from secfl.errors import ConfigError

__all__ = ["marker_applies"]

_COMPARISON = re.compile(r"(?P<name>[a-z_]+)\s*(?P<operator>==|!=|<=|>=|<|>)\s*'(?P<value>[^']*)'\Z")
_VERSION = re.compile(r"\d+(?:\.\d+)*\Z")
_ORDER: Mapping[str, Callable[[tuple[int, ...], tuple[int, ...]], bool]] = {
    "==": lambda left, right: left == right,
    "!=": lambda left, right: left != right,
    "<": lambda left, right: left < right,
    "<=": lambda left, right: left <= right,
    ">": lambda left, right: left > right,
    ">=": lambda left, right: left >= right,
}


def _environment() -> Mapping[str, str]:
    return {
        "implementation_name": sys.implementation.name,
        "platform_machine": platform.machine(),
        "platform_python_implementation": platform.python_implementation(),
        "platform_system": platform.system(),
        "python_full_version": ".".join(map(str, sys.version_info[:3])),
        "python_version": ".".join(map(str, sys.version_info[:2])),
        "sys_platform": sys.platform,
    }


def marker_applies(marker: str) -> bool:
    """Evaluate a marker for this interpreter.

    Raises:
        ConfigError: `runtime.lock_marker`.
    """
    environment = _environment()
    # All parts are looked at, so that one that is not understood is never skipped.
    results = [_compare(part.strip(), environment) for part in re.split(r"\sand\s", marker)]
    return all(results)


def _compare(text: str, environment: Mapping[str, str]) -> bool:
    match = _COMPARISON.match(text)
    actual = environment.get(match["name"]) if match else None
    if match is None or actual is None:
        raise ConfigError("runtime.lock_marker", f"a marker of the lock is not understood: {text[:80]}")
    operator, value = match["operator"], match["value"]
    if match["name"].endswith("version"):
        if not _VERSION.match(value):
            raise ConfigError("runtime.lock_marker", f"a marker of the lock is not understood: {text[:80]}")
        return _ORDER[operator](_version(actual), _version(value))
    if operator not in ("==", "!="):
        raise ConfigError("runtime.lock_marker", f"a marker of the lock is not understood: {text[:80]}")
    return (actual == value) is (operator == "==")


def _version(text: str) -> tuple[int, ...]:
    numbers = tuple(map(int, text.split(".")))
    return numbers + (0,) * (3 - len(numbers))
