"""The native libraries that a set of ELF files needs, all of them.

Follows NEEDED from file to file, as the loader would: the file's own search path first, then the system's directories.
A library that cannot be found is an error, not a gap to be discovered at run time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from secfl.errors import ConfigError
from secfl.linux.runtime.elf import ElfFile, is_elf, read_elf

__all__ = ["NativeFiles", "resolve_libraries", "system_directories"]

_LD_CONF = Path("/etc/ld.so.conf")
_DEFAULT_DIRECTORIES = ("/lib64", "/usr/lib64", "/lib", "/usr/lib")
_OPTIONAL = ("libgcc_s.so.1", "libnss_files.so.2")
"""Opened by the C library on demand, hence in nobody's NEEDED: thread cancellation, names of users and hosts."""
_MAX_CONF_FILES = 256


@dataclass(frozen=True, slots=True)
class NativeFiles:
    """What must be added to the ELF files themselves.

    Attributes:
        loader: the program loader: its path in the image (absolute) and the file.
        directory: where the loader looks without a cache; the libraries go there.
        libraries: file by library name.
    """

    loader: tuple[str, Path]
    directory: str
    libraries: Mapping[str, Path]


def system_directories() -> tuple[Path, ...]:
    """List the loader's directories on this machine: `ld.so.conf` in its order, then the built-in ones."""
    found: list[Path] = []
    queue = [_LD_CONF]
    for count, conf in enumerate(queue):
        if count > _MAX_CONF_FILES or not conf.is_file():
            continue
        for line in conf.read_text(encoding="utf-8").splitlines():
            text = line.partition("#")[0].strip()
            if text.startswith("include "):
                pattern = text.removeprefix("include ").strip().removeprefix("/")
                queue.extend(sorted(Path("/").glob(pattern)))
            elif text.startswith("/"):
                found.append(Path(text))
    found += map(Path, _DEFAULT_DIRECTORIES)
    return tuple(dict.fromkeys(path for path in found if path.is_dir()))


def resolve_libraries(
    program: Path, objects: Iterable[tuple[Path, str]], *, bundled: Mapping[str, Path], system: Sequence[Path]
) -> NativeFiles:
    """Follow a program and objects (file, path in the image) to every library that is not in the image already.

    Args:
        bundled: files that the image has anyway, by absolute path in it; `$ORIGIN` leads there.

    Raises:
        ConfigError: `runtime.library_missing`, `runtime.elf_malformed` or `runtime.no_loader`.
    """
    head = read_elf(program)
    if head.interpreter is None or not Path(head.interpreter).is_file():
        raise ConfigError("runtime.no_loader", f"{program} names no program loader", hint="use a dynamic interpreter")
    finder = _Finder(head.machine, bundled, system)
    finder.add(program, head, "/")
    for path, place in objects:
        finder.add(path, read_elf(path), place)
    libraries = finder.run()
    libc = libraries.get("libc.so.6")
    if libc is None:
        raise ConfigError("runtime.library_missing", "nothing needs libc.so.6; only glibc systems are supported")
    for name in _OPTIONAL:
        optional = finder.in_system(name)
        if optional is not None:
            libraries[name] = optional
    libraries.pop(Path(head.interpreter).name, None)
    loader = head.interpreter, Path(head.interpreter).resolve()
    return NativeFiles(loader, str(libc.parent), {name: libraries[name].resolve() for name in sorted(libraries)})


class _Finder:
    def __init__(self, machine: int, bundled: Mapping[str, Path], system: Sequence[Path]) -> None:
        self._machine = machine
        self._bundled = bundled
        self._system = system
        self._queue: list[tuple[Path, ElfFile, str]] = []
        self._found: dict[str, Path] = {}
        self.in_system = cache(self._in_system)

    def add(self, path: Path, elf: ElfFile, place: str) -> None:
        self._queue.append((path, elf, place))

    def run(self) -> dict[str, Path]:
        while self._queue:
            path, elf, place = self._queue.pop()
            for name in elf.needed:
                self._need(name, path, elf, place)
        return self._found

    def _need(self, name: str, path: Path, elf: ElfFile, place: str) -> None:
        if name in self._found or "/" in name:
            return
        origin = place.rpartition("/")[0]
        for directory in elf.search:
            expanded = directory.replace("${ORIGIN}", "$ORIGIN").replace("$ORIGIN", origin)
            if _normal(f"{expanded}/{name}") in self._bundled:
                return
        found = self._in_search(name, path, elf) or self.in_system(name)
        if found is None:
            raise ConfigError("runtime.library_missing", f"{path} needs {name}, which is nowhere", library=name)
        self._found[name] = found
        self.add(found, read_elf(found), "/")

    def _in_search(self, name: str, path: Path, elf: ElfFile) -> Path | None:
        for directory in elf.search:
            text = directory.replace("${ORIGIN}", "$ORIGIN").replace("$ORIGIN", str(path.resolve().parent))
            if self._fits(Path(text) / name):
                return Path(text) / name
        return None

    def _in_system(self, name: str) -> Path | None:
        return next((path for path in (directory / name for directory in self._system) if self._fits(path)), None)

    def _fits(self, path: Path) -> bool:
        return path.is_file() and is_elf(path) and read_elf(path).machine == self._machine


def _normal(path: str) -> str:
    parts: list[str] = []
    for part in path.split("/"):
        if part == ".." and parts:
            parts.pop()
        elif part not in ("", ".", ".."):
            parts.append(part)
    return "/" + "/".join(parts)
