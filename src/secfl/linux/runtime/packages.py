"""The third-party files of a runtime image: what the lock names, as the package shipped it.

Only packages of the lock enter, each at exactly the locked version and with every file as its own RECORD states it. A
package that is missing, unpinned or of another version, and a file that was changed or has no digest, stop the build
(SC-02). Files that no RECORD lists are left out, and so is what would run by lying there: `.pth`, scripts, bytecode
(FS-07).
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from email.parser import HeaderParser
from pathlib import Path, PurePosixPath

from secfl.crypto.encoding import from_base64url
from secfl.errors import ConfigError, EncodingError
from secfl.linux.runtime.markers import marker_applies

__all__ = ["LockedPackage", "PackageFile", "locked_files", "parse_lock"]

_PIN = re.compile(
    r"(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)==(?P<version>[A-Za-z0-9.!+_-]+)"
    r"\s*(?:;(?P<marker>[^#]*?))?\s+(?P<hashes>--hash=\S+(?:\s+--hash=\S+)*)\s*(?:#.*)?\Z"
)
_HASH = re.compile(r"--hash=sha256:[0-9a-f]{64}\Z")
_INSTALLER_FILES = frozenset({"RECORD", "INSTALLER", "REQUESTED", "direct_url.json", "uv_cache.json"})
"""Written by the installer, not by the package: they differ from one environment to the next."""
_BUILD_SUFFIXES = frozenset({".pyi", ".pxd", ".pyx", ".h", ".hpp", ".a", ".pth", ".pyc"})


@dataclass(frozen=True, slots=True)
class LockedPackage:
    """One line of the lock."""

    name: str
    version: str


@dataclass(frozen=True, slots=True)
class PackageFile:
    """One file to copy: where it lies, its path below site-packages, the SHA-256 that it must have."""

    file: Path
    path: str
    sha256: bytes


def parse_lock(text: str) -> tuple[LockedPackage, ...]:
    """Read a hash-locked requirements file; every line pins one version by at least one SHA-256.

    Raises:
        ConfigError: `runtime.lock_unpinned` or `runtime.lock_marker`.
    """
    lines = re.sub(r"\\\n", " ", text).splitlines()
    wanted = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    packages = [package for package in map(_parse_line, wanted) if package is not None]
    if not packages or len({package.name for package in packages}) != len(packages):
        raise ConfigError("runtime.lock_unpinned", "the lock is empty or names a package twice")
    return tuple(packages)


def _parse_line(line: str) -> LockedPackage | None:
    """Read one line; None when its marker is for other interpreters."""
    match = _PIN.match(line)
    hashes = match["hashes"].split() if match else []
    if match is None or not hashes or not all(_HASH.match(word) for word in hashes):
        raise ConfigError(
            "runtime.lock_unpinned",
            f"a line of the lock does not pin a package by version and SHA-256: {line[:80]}",
            hint="write the lock with hashes and without options",
        )
    if match["marker"] is not None and not marker_applies(match["marker"].strip()):
        return None
    return LockedPackage(_canonical(match["name"]), match["version"])


def locked_files(site_packages: Path, packages: tuple[LockedPackage, ...]) -> Iterator[PackageFile]:
    """List the files of the locked packages; the reader of each still has to compare its digest.

    Raises:
        ConfigError: `runtime.package_missing`, `runtime.package_version` or `runtime.package_changed`.
    """
    installed = _installed(site_packages)
    for package in packages:
        directory = installed.get(package.name)
        if directory is None:
            raise ConfigError("runtime.package_missing", f"{package.name} is locked but not installed")
        version = _metadata(directory)[1]
        if version != package.version:
            raise ConfigError(
                "runtime.package_version",
                f"{package.name} is installed as {version}, locked as {package.version}",
                hint="install the environment from the lock",
            )
        yield from _recorded(site_packages, directory)


def _installed(site_packages: Path) -> Mapping[str, Path]:
    found: dict[str, Path] = {}
    for directory in sorted(site_packages.glob("*.dist-info")):
        name = _metadata(directory)[0]
        if name in found:
            raise ConfigError("runtime.package_version", f"{name} is installed twice")
        found[name] = directory
    return found


def _metadata(directory: Path) -> tuple[str, str]:
    try:
        headers = HeaderParser().parsestr((directory / "METADATA").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError("runtime.package_changed", f"{directory.name} has no readable METADATA") from error
    return _canonical(headers.get("Name", "")), headers.get("Version", "")


def _recorded(site_packages: Path, directory: Path) -> Iterator[PackageFile]:
    try:
        text = (directory / "RECORD").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError("runtime.package_changed", f"{directory.name} has no readable RECORD") from error
    for row in csv.reader(text.splitlines()):
        if len(row) != 3:
            raise ConfigError("runtime.package_changed", f"{directory.name} has a malformed RECORD")
        path = PurePosixPath(row[0])
        if path.is_absolute() or ".." in path.parts or not _wanted(path):
            continue
        file = site_packages / path
        if file.is_symlink() or not file.is_file():
            raise ConfigError("runtime.package_changed", "a recorded file is missing or a link", path=str(path))
        yield PackageFile(file, str(path), _digest(row[1], path))


def _wanted(path: PurePosixPath) -> bool:
    if path.suffix in _BUILD_SUFFIXES or "__pycache__" in path.parts or "tests" in path.parts[:-1]:
        return False
    if len(path.parts) > 1 and path.parts[0].endswith(".dist-info"):
        return path.parts[1] not in _INSTALLER_FILES
    # A second copy of these names would run at start-up.
    return str(path) not in ("sitecustomize.py", "usercustomize.py")


def _digest(text: str, path: PurePosixPath) -> bytes:
    try:
        return from_base64url(text.removeprefix("sha256="), size=32)
    except EncodingError as error:
        raise ConfigError("runtime.package_changed", "a file has no recorded SHA-256", path=str(path)) from error


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
