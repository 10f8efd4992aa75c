"""The contract with one exact Flower release.

The executor, the grid and the gateway's rules speak Flower's internal APIs, which change from release to release. So
the version is pinned, every installed file must be the one that the wheel's RECORD lists, and any other release is
refused before anything starts. A new release means: read its changes, run the contract tests, move the pin.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import sys
from importlib import metadata
from pathlib import Path

from secfl.errors import EngineError

__all__ = ["FLOWER_VERSION", "check_files", "check_version"]

FLOWER_VERSION = "1.41.0"
"""The one release whose internals the contract tests cover."""

_PACKAGE = "flwr"


def check_version() -> str:
    """Return the installed Flower version, which must be the pinned one.

    Raises:
        EngineError: `engine.flower_missing`, `engine.flower_version`.
    """
    return _find(None).version


def check_files(site_packages: Path | None = None) -> int:
    """Compare every Flower file with the hash in its wheel's RECORD; return how many were compared.

    Args:
        site_packages: the directory to look into, such as that of an image being built; None for this interpreter's.

    Raises:
        EngineError: `engine.flower_missing`, `engine.flower_version`, `engine.flower_record`, `engine.flower_modified`.
    """
    distribution = _find(site_packages)
    record = distribution.read_text("RECORD")
    if record is None:
        raise EngineError("engine.flower_record", "the Flower installation has no RECORD", hint="install from a wheel")
    root = Path(str(distribution.locate_file("")))
    listed: set[str] = set()
    for name, digest, _size in csv.reader(record.splitlines()):
        if not name.startswith(f"{_PACKAGE}/") or name.endswith(".pyc"):
            continue  # the installer's own files, and byte code that it may write
        if not digest.startswith("sha256="):
            raise EngineError("engine.flower_record", f"RECORD has no SHA-256 for {name}")
        listed.add(name)
        _compare(root / name, digest.removeprefix("sha256="))
    # A file that the wheel does not have could shadow one that it has.
    for path in (root / _PACKAGE).rglob("*"):
        name = path.relative_to(root).as_posix()
        if path.is_file() and "__pycache__" not in path.parts and name not in listed:
            raise EngineError("engine.flower_modified", f"{name} is not part of the Flower wheel")
    if not listed:
        raise EngineError("engine.flower_record", "RECORD lists no Flower file")
    return len(listed)


def _find(site_packages: Path | None) -> metadata.Distribution:
    path = sys.path if site_packages is None else [str(site_packages)]
    distribution = next(iter(metadata.distributions(name=_PACKAGE, path=path)), None)
    if distribution is None:
        raise EngineError("engine.flower_missing", "Flower is not installed", hint="install secfl[flower]")
    if distribution.version != FLOWER_VERSION:
        raise EngineError(
            "engine.flower_version",
            "another Flower release is installed",
            hint=f"install flwr=={FLOWER_VERSION}",
            expected=FLOWER_VERSION,
            actual=distribution.version,
        )
    return distribution


def _compare(path: Path, expected: str) -> None:
    try:
        digest = hashlib.sha256(path.read_bytes()).digest()
    except OSError as error:
        raise EngineError("engine.flower_modified", f"{path.name} of Flower cannot be read") from error
    if base64.urlsafe_b64encode(digest).rstrip(b"=").decode() != expected:
        raise EngineError("engine.flower_modified", f"{path.name} of Flower is not the wheel's file")
