"""Compiled Python that comes out the same every time.

The marshal format with references depends on reference counts and so on what ran before; version 2 has none. The files
are unchecked hash-based (PEP 552), so the interpreter compares no times: in an authenticated image both source and
compiled form are fixed.
"""

from __future__ import annotations

import hashlib
import importlib.util
import marshal
import os
import struct
import sys
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from secfl.errors import ConfigError

__all__ = ["Source", "compile_source", "compile_sources"]

_UNCHECKED_HASH = 0b01
_MARSHAL_VERSION = 2
_FRAME = struct.Struct(">I")
_STATUS_CHANGED = 65


@dataclass(frozen=True, slots=True)
class Source:
    """One source file: where it lies, its absolute path in the image, and its SHA-256 where known."""

    file: Path
    place: str
    sha256: bytes | None


def compile_source(source: bytes, place: str) -> bytes:
    """Compile one file to the content of its `.pyc`; empty when it is no valid program of this Python version.

    Raises:
        ConfigError: `runtime.bytecode`: what was written does not load as what was compiled.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            code = compile(source, place, "exec", dont_inherit=True, optimize=0)
        except (SyntaxError, ValueError):
            # Templates and sources for other versions are data: they are imported by nobody.
            return b""
    packed = marshal.dumps(code, _MARSHAL_VERSION)
    if marshal.loads(packed) != code:  # noqa: S302 - our own bytes of a line above
        raise ConfigError("runtime.bytecode", "compiled code does not survive writing", path=place)
    head = importlib.util.MAGIC_NUMBER + _UNCHECKED_HASH.to_bytes(4, "little")
    return head + importlib.util.source_hash(source) + packed


def compile_sources(sources: Sequence[Source], *, workers: int) -> list[bytes]:
    """Compile many files in forked workers; results are in order.

    Raises:
        ConfigError: `runtime.bytecode` or `runtime.package_changed`.
    """
    results: list[bytes] = [b""] * len(sources)
    running: list[tuple[int, IO[bytes]]] = []
    for worker in range(workers):
        file: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed below, after the child has filled it
        pid = os.fork()
        if not pid:
            _work(sources[worker::workers], file)
        running.append((pid, file))
    statuses = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid, _ in running]
    for worker, (_, file) in enumerate(running):
        with file:
            if statuses[worker] == 0:
                results[worker::workers] = _frames(file)
    if _STATUS_CHANGED in statuses:
        raise ConfigError("runtime.package_changed", "a file changed while the image was built")
    if any(statuses):
        raise ConfigError("runtime.bytecode", "compiling the image's Python files failed")
    return results


def _work(sources: Sequence[Source], file: IO[bytes]) -> None:
    status = 70
    try:
        for source in sources:
            content = source.file.read_bytes()
            if source.sha256 is not None and hashlib.sha256(content).digest() != source.sha256:
                status = _STATUS_CHANGED
                return
            compiled = compile_source(content, source.place)
            file.write(_FRAME.pack(len(compiled)) + compiled)
        file.flush()
        status = 0
    except BaseException:  # noqa: BLE001 - as the interpreter itself does for what nobody catches
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(status)


def _frames(file: IO[bytes]) -> list[bytes]:
    file.seek(0)
    data = file.read()
    frames, at = [], 0
    while at < len(data):
        (size,) = _FRAME.unpack_from(data, at)
        at += _FRAME.size
        frames.append(data[at : at + size])
        at += size
    return frames
