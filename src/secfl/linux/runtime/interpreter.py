"""The Python installation that goes into a runtime image: program and standard library.

Works for a build of one's own (pyenv) and for a distribution's Python. Left out is what an enclave never runs: tests,
graphical tools, installers, build files, and start-up hooks of the machine it was built on.
"""

from __future__ import annotations

import os
import platform
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from secfl.errors import ConfigError

__all__ = ["Interpreter", "own_interpreter"]

_LEFT_OUT_TOP = frozenset(
    {"dist-packages", "ensurepip", "idlelib", "lib2to3", "pydoc_data", "site-packages", "sitecustomize.py", "tkinter",
     "turtle.py", "turtledemo", "usercustomize.py"}
)  # fmt: skip
_LEFT_OUT_ANYWHERE = frozenset({"__pycache__", "idle_test", "test", "tests"})
_LEFT_OUT_MODULES = (
    "_ctypes_test", "_curses", "_test", "_tkinter", "_xxtestfuzz", "nis", "ossaudiodev", "readline", "xxlimited",
)  # fmt: skip
"""Beginnings of extension modules' names: tests, terminals, sound, and NIS, which brings RPC and Kerberos along."""
_SUFFIXES = frozenset({".py", ".so", ".txt", ".cfg"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Interpreter:
    """One installation.

    Attributes:
        program: the executable.
        library: directory of the standard library.
        version: such as 3.11.7.
        cache_tag: such as cpython-311.
        packages_name: name of the directory that it searches for packages.
    """

    program: Path
    library: Path
    version: str
    cache_tag: str
    packages_name: str

    @property
    def library_path(self) -> str:
        """Path of the standard library below the prefix, as the program expects it."""
        return "lib/python" + ".".join(self.version.split(".")[:2])

    @property
    def packages_path(self) -> str:
        """Path of third-party packages below the prefix."""
        return f"{self.library_path}/{self.packages_name}"

    def library_files(self) -> Iterator[tuple[Path, str]]:
        """List the standard library's files with their paths below it."""
        for directory, names, files in os.walk(self.library):
            below = Path(directory).relative_to(self.library)
            names[:] = sorted(name for name in names if self._wanted(below, name))
            for name in sorted(files):
                if self._wanted(below, name) and Path(name).suffix in _SUFFIXES:
                    yield Path(directory) / name, (below / name).as_posix()

    @staticmethod
    def _wanted(below: Path, name: str) -> bool:
        top = below == Path()
        if name in _LEFT_OUT_ANYWHERE or (top and (name in _LEFT_OUT_TOP or name.startswith("config-"))):
            return False
        return not (below.name == "lib-dynload" and name.startswith(_LEFT_OUT_MODULES))


def own_interpreter() -> Interpreter:
    """Describe the installation behind the running Python, virtual environment or not.

    Raises:
        ConfigError: `runtime.interpreter_unsupported`.
    """
    tag = sys.implementation.cache_tag
    library = Path(sysconfig.get_path("stdlib"))
    base = Path(sys.base_exec_prefix) / "bin" / f"python{sys.version_info[0]}.{sys.version_info[1]}"
    program = base.resolve()
    if (
        sys.implementation.name != "cpython"
        or tag is None
        or not program.is_file()
        or not (library / "os.py").is_file()
    ):
        raise ConfigError("runtime.interpreter_unsupported", "no CPython installation of the usual layout was found")
    # Debian's site module searches `dist-packages` instead.
    distribution = "dist-packages" in (library / "site.py").read_text(encoding="utf-8")
    return Interpreter(
        program=program,
        library=library,
        version=platform.python_version(),
        cache_tag=tag,
        packages_name="dist-packages" if distribution else "site-packages",
    )
