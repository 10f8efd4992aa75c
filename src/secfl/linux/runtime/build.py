"""Builds the runtime image and states what it measures to.

Everything that runs in an enclave comes from here: loader, native libraries, interpreter, standard library, locked
packages, SECFL itself. Two builds from the same inputs are the same bytes: no times, owners, paths of this machine or
orders of a directory get in. What could run by merely lying somewhere stays out (`.pth`, scripts, found bytecode), and
so do the simulated platform, the test tools and the command line (SC-07).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import secfl
from secfl.attestation.measurement import sgx_measurement, tdx_measurement
from secfl.crypto import strict_json
from secfl.errors import ConfigError
from secfl.linux.images import ImageOutput
from secfl.linux.runtime.bytecode import Source, compile_sources
from secfl.linux.runtime.elf import is_elf
from secfl.linux.runtime.interpreter import Interpreter, own_interpreter
from secfl.linux.runtime.libraries import resolve_libraries, system_directories
from secfl.linux.runtime.packages import locked_files, parse_lock
from secfl.volume.image_manifest import Mode

__all__ = ["ENTRYPOINTS", "ENTRYPOINTS_PATH", "Entrypoint", "Reference", "build_runtime_image"]

ENTRYPOINTS_PATH = "opt/secfl/entrypoints.json"
REFERENCE_NAME = "reference.json"
_PYTHON = "opt/python"
_PIECE_BYTES = 1 << 20
_EMPTY_DIRECTORIES = ("dev", "host", "proc", "run", "sys", "tmp")
_ETC = {
    "etc/passwd": b"root:x:0:0:root:/tmp:/nonexistent\nprogram:x:1000:1000::/tmp:/nonexistent\n"
    b"nobody:x:65534:65534:nobody:/nonexistent:/nonexistent\n",
    "etc/group": b"root:x:0:\nprogram:x:1000:\nnogroup:x:65534:\n",
    "etc/hosts": b"127.0.0.1 localhost\n::1 localhost\n",
    # No DNS: every name that a program may reach is written into its hosts file by the shield.
    "etc/nsswitch.conf": b"passwd: files\ngroup: files\nhosts: files\n",
}
_LEFT_OUT = frozenset({"cli", "testing", "tee/simulated"})
"""Parts of SECFL that no enclave runs; a simulated platform inside an enclave could sign for itself."""
_OWN_SUFFIXES = frozenset({".py", ".html", ".toml", ".yaml", ".typed"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Entrypoint:
    """One way to start the image.

    Attributes:
        argv: program (absolute) and arguments.
        env: the whole environment.
        cwd: working directory.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str]
    cwd: str = "/"


def _python_module(name: str) -> Entrypoint:
    argv = (f"/{_PYTHON}/bin/python3", "-I", "-B", "-m", name)
    return Entrypoint(argv=argv, env={"HOME": "/tmp", "LANG": "C.UTF-8", "PATH": f"/{_PYTHON}/bin"})  # noqa: S108


ENTRYPOINTS: Mapping[str, Entrypoint] = {
    "manager": _python_module("secfl.manager"),
    "shield": _python_module("secfl.shield"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """Reference values of one runtime image; what policies name.

    Attributes:
        image_root: 32 bytes.
        entrypoints: ways to start it, by name.
        packages: version of each third-party package, by name.
        python: version of the interpreter.
        total_bytes: size of all files.
    """

    image_root: bytes
    entrypoints: Mapping[str, Entrypoint]
    packages: Mapping[str, str]
    python: str
    total_bytes: int

    def encode(self) -> bytes:
        """Encode as canonical JSON, the content of `reference.json`.

        Raises:
            EncodingError: `json.not_canonical`.
        """
        return strict_json.encode(
            {
                "entrypoints": {name: self._encode_entrypoint(item) for name, item in self.entrypoints.items()},
                "image_root": self.image_root.hex(),
                "packages": dict(self.packages),
                "python": self.python,
                "total_bytes": self.total_bytes,
            }
        )

    def _encode_entrypoint(self, entrypoint: Entrypoint) -> dict[str, object]:
        start = entrypoint.argv, entrypoint.env, entrypoint.cwd
        return _plain(entrypoint) | {
            "measurements": {
                "sgx": sgx_measurement(self.image_root, *start).hex(),
                "tdx": tdx_measurement(self.image_root, *start).hex(),
            }
        }


def build_runtime_image(
    out_dir: Path,
    *,
    site_packages: Path,
    lock_file: Path,
    entrypoints: Mapping[str, Entrypoint] = ENTRYPOINTS,
    interpreter: Interpreter | None = None,
) -> Reference:
    """Build the image directory with its `reference.json`.

    Args:
        out_dir: a new directory.
        site_packages: where the locked packages are installed.
        lock_file: requirements pinned by version and SHA-256.
        interpreter: what to put in; the running Python's base installation by default.

    Raises:
        ConfigError: `runtime.…` for what does not fit the lock or cannot be found, `image.exists`.
        EncodingError: `image.…` for a file name that an image cannot hold.
    """
    packages = parse_lock(_read_text(lock_file))
    tree = _Tree()
    interpreter = interpreter or own_interpreter()
    _add_interpreter(tree, interpreter)
    packages_place = f"{_PYTHON}/{interpreter.packages_path}"
    for item in locked_files(site_packages, packages):
        tree.add_file(f"{packages_place}/{item.path}", item.file, sha256=item.sha256)
    for file, path in _own_files():
        tree.add_file(f"{packages_place}/{path}", file)
    _add_libraries(tree, interpreter)
    _add_bytecode(tree, interpreter)
    for path, content in _ETC.items():
        tree.add_bytes(path, content)
    plain = {name: _plain(item) for name, item in entrypoints.items()}
    tree.add_bytes(ENTRYPOINTS_PATH, strict_json.encode(plain))
    root, total = tree.write(out_dir)
    reference = Reference(
        image_root=root,
        entrypoints=entrypoints,
        packages={package.name: package.version for package in packages},
        python=interpreter.version,
        total_bytes=total,
    )
    (out_dir / REFERENCE_NAME).write_bytes(reference.encode())
    return reference


def _plain(entrypoint: Entrypoint) -> dict[str, object]:
    return {"argv": list(entrypoint.argv), "env": dict(entrypoint.env), "cwd": entrypoint.cwd}


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError("runtime.lock_unreadable", f"{path} cannot be read") from error


def _own_files() -> Iterator[tuple[Path, str]]:
    top = Path(secfl.__file__).parent
    for file in sorted(top.rglob("*")):
        path = file.relative_to(top)
        parts = path.parts[:-1]
        left_out = any("/".join(parts[:count]) in _LEFT_OUT for count in range(1, len(parts) + 1))
        if file.suffix in _OWN_SUFFIXES and file.is_file() and "__pycache__" not in parts and not left_out:
            yield file, f"secfl/{path.as_posix()}"


def _add_interpreter(tree: _Tree, interpreter: Interpreter) -> None:
    tree.add_file(f"{_PYTHON}/bin/python3", interpreter.program, executable=True)
    for file, path in interpreter.library_files():
        tree.add_file(f"{_PYTHON}/{interpreter.library_path}/{path}", file)


def _add_libraries(tree: _Tree, interpreter: Interpreter) -> None:
    objects = [(file, "/" + path) for path, file in tree.files() if ".so" in Path(path).name and is_elf(file)]
    bundled = {"/" + path: file for path, file in tree.files()}
    native = resolve_libraries(interpreter.program, objects, bundled=bundled, system=system_directories())
    for name, file in native.libraries.items():
        tree.add_file(f"{native.directory.strip('/')}/{name}", file)
    place, file = native.loader
    tree.add_file(place.strip("/"), file, executable=True)


def _add_bytecode(tree: _Tree, interpreter: Interpreter) -> None:
    sources = [Source(file, "/" + path, tree.digest(path)) for path, file in tree.files() if path.endswith(".py")]
    compiled = compile_sources(sources, workers=min(len(os.sched_getaffinity(0)), 8))
    for source, content in zip(sources, compiled, strict=True):
        if content:
            parent, _, name = source.place.strip("/").rpartition("/")
            stem = name.removesuffix(".py")
            tree.add_bytes(f"{parent}/__pycache__/{stem}.{interpreter.cache_tag}.pyc", content)


@dataclass(frozen=True, slots=True)
class _Item:
    file: Path | None
    content: bytes
    sha256: bytes | None
    executable: bool


class _Tree:
    """The files to be; later additions of the same path are an error."""

    def __init__(self) -> None:
        self._items: dict[str, _Item] = {}

    def add_file(self, path: str, file: Path, *, sha256: bytes | None = None, executable: bool = False) -> None:
        self._add(path, _Item(file, b"", sha256, executable))

    def add_bytes(self, path: str, content: bytes) -> None:
        self._add(path, _Item(None, content, None, executable=False))

    def _add(self, path: str, item: _Item) -> None:
        if path in self._items:
            raise ConfigError("runtime.file_twice", "two sources give one file of the image", path=path)
        self._items[path] = item

    def files(self) -> Sequence[tuple[str, Path]]:
        return [(path, item.file) for path, item in sorted(self._items.items()) if item.file is not None]

    def digest(self, path: str) -> bytes | None:
        return self._items[path].sha256

    def write(self, out_dir: Path) -> tuple[bytes, int]:
        directories = set(_EMPTY_DIRECTORIES)
        for path in self._items:
            parts = path.split("/")[:-1]
            directories |= {"/".join(parts[: count + 1]) for count in range(len(parts))}
        total = 0
        with ImageOutput(out_dir, mode=Mode.AUTHENTICATED) as output:
            for path in sorted(directories | self._items.keys(), key=os.fsencode):
                item = self._items.get(path)
                if item is None:
                    output.writer.add_directory(path)
                else:
                    mode = 0o555 if item.executable else 0o444
                    total += output.writer.add_file(path, _content(path, item), mode=mode)
            return output.finish(), total


def _content(path: str, item: _Item) -> Iterator[bytes]:
    if item.file is None:
        yield item.content
        return
    digest = hashlib.sha256()
    with item.file.open("rb") as file:
        while piece := file.read(_PIECE_BYTES):
            digest.update(piece)
            yield piece
    # The digest of the very bytes that went into the image, so there is no gap between check and use.
    if item.sha256 is not None and digest.digest() != item.sha256:
        raise ConfigError(
            "runtime.package_changed",
            "an installed file is not the one that its package shipped",
            hint="install the environment from the lock again",
            path=path,
        )
