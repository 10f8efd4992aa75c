"""What an ELF file needs at run time: loader, libraries and where it looks for them.

Reads 64-bit little-endian files of this machine, strictly: whatever points outside the file is an error, because a
library that is overlooked here would be missing in the image.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from secfl.errors import ConfigError

__all__ = ["ElfFile", "is_elf", "read_elf"]

_MAGIC = b"\x7fELF\x02\x01\x01"
"""64-bit, little-endian, version 1."""
_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_PROGRAM = struct.Struct("<IIQQQQQQ")
_DYNAMIC = struct.Struct("<qQ")
_MAX_PROGRAMS = 256
_MAX_TABLE_BYTES = 64 << 20
"""Of a dynamic string table; the largest C++ libraries have about 10 MiB."""
_PT_LOAD, _PT_DYNAMIC, _PT_INTERP = 1, 2, 3
_DT_NEEDED, _DT_STRTAB, _DT_STRSZ, _DT_RPATH, _DT_RUNPATH = 1, 5, 10, 15, 29


@dataclass(frozen=True, slots=True)
class ElfFile:
    """One file's needs.

    Attributes:
        machine: ELF machine number; libraries of another one are passed over.
        interpreter: path of the loader, if the file is a program.
        needed: names of the libraries.
        search: directories from RUNPATH or, without one, RPATH; may hold `$ORIGIN`.
    """

    machine: int
    interpreter: str | None
    needed: tuple[str, ...]
    search: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Segment:
    kind: int
    offset: int
    address: int
    size: int


def is_elf(path: Path) -> bool:
    """Tell whether a file begins as one that `read_elf` reads."""
    with path.open("rb") as file:
        return file.read(len(_MAGIC)) == _MAGIC


def read_elf(path: Path) -> ElfFile:
    """Read one file's needs.

    Raises:
        ConfigError: `runtime.elf_malformed`.
    """
    with path.open("rb") as file:
        try:
            return _read(file)
        except (struct.error, ValueError) as error:
            raise ConfigError("runtime.elf_malformed", f"{path} is a malformed ELF file: {error}") from error


def _read(file: BinaryIO) -> ElfFile:
    header = _HEADER.unpack(_at(file, 0, _HEADER.size))
    if header[0][: len(_MAGIC)] != _MAGIC:
        raise ValueError("wrong magic")
    machine, table, entry_size, count = header[2], header[5], header[9], header[10]
    if (count and entry_size != _PROGRAM.size) or count > _MAX_PROGRAMS:
        raise ValueError("wrong program header table")
    segments = [_segment(row) for row in _PROGRAM.iter_unpack(_at(file, table, entry_size * count))]
    interpreter = None
    dynamic: list[tuple[int, int]] = []
    for segment in segments:
        if segment.kind == _PT_INTERP:
            interpreter = _at(file, segment.offset, min(segment.size, 4096)).rstrip(b"\0").decode("ascii")
        elif segment.kind == _PT_DYNAMIC:
            dynamic = list(_DYNAMIC.iter_unpack(_at(file, segment.offset, segment.size)))
    strings = _strings(file, segments, dict(dynamic))
    needed = [_text(strings, value) for tag, value in dynamic if tag == _DT_NEEDED]
    runpath = [_text(strings, value) for tag, value in dynamic if tag == _DT_RUNPATH]
    rpath = [_text(strings, value) for tag, value in dynamic if tag == _DT_RPATH]
    search = [part for line in (runpath or rpath) for part in line.split(":") if part]
    return ElfFile(machine, interpreter, tuple(needed), tuple(search))


def _segment(row: tuple[int, ...]) -> _Segment:
    kind, _flags, offset, address, _physical, size, _memory, _align = row
    return _Segment(kind, offset, address, size)


def _strings(file: BinaryIO, segments: list[_Segment], dynamic: dict[int, int]) -> bytes:
    address, size = dynamic.get(_DT_STRTAB), dynamic.get(_DT_STRSZ)
    if address is None or size is None:
        return b""
    if size > _MAX_TABLE_BYTES:
        raise ValueError("over-long string table")
    for segment in segments:
        if segment.kind == _PT_LOAD and segment.address <= address < segment.address + segment.size:
            return _at(file, segment.offset + address - segment.address, size)
    raise ValueError("string table outside the file")


def _text(strings: bytes, start: int) -> str:
    end = strings.find(b"\0", start)
    if end < 0:
        raise ValueError("string outside the table")
    return strings[start:end].decode("utf-8", "strict")


def _at(file: BinaryIO, offset: int, size: int) -> bytes:
    file.seek(offset)
    data = file.read(size)
    if len(data) != size:
        raise ValueError("reference outside the file")
    return data
