"""Seeded mutation of valid inputs: bytes are flipped, cut, doubled, spliced, and replaced by what parsers fear."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Sequence

__all__ = ["Mutator"]

TEXT_TOKENS = (
    *(b"null", b"true", b"false", b"0", b"-0", b"-1", b"1.0", b"1e999", b"NaN", b"Infinity", b"9" * 25, b'""', b"{}"),
    *(
        b"[]",
        b"[" * 80,
        b'{"a":' * 80,
        b'"\\u0000"',
        b'"\\ud800"',
        b"\xef\xbb\xbf",
        b"\xc0\x80",
        b"\xff",
        b"\r\n",
        b"\t",
    ),
    *(b" ", b",", b":", b"---\n", b"&a ", b"*a", b"<<: ", b"!!python/object:os.system ", b"%YAML 1.2\n", b"? ", b"|\n"),
    *("\uff41".encode(), "e\u0301".encode(), b"../", b"%2e", b"$$SECFL::x$$", b"=", b"-----BEGIN CERTIFICATE-----\n"),
)
NUMBERS = (0, 1, 2, 3, 4, 5, 0x7F, 0x80, 0xFF, 0x100, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
_FORMATS = ("<H", "<I", "<Q", ">H", ">I", ">Q", "B")


class Mutator:
    """Draws inputs from valid seeds; one input in sixteen is noise of its own."""

    def __init__(self, seeds: Sequence[bytes], seed: str) -> None:
        """Keep the seeds.

        Raises:
            ValueError: there is none.
        """
        if not seeds:
            raise ValueError("no valid input to start from")
        self._seeds = seeds
        self.random = random.Random(seed)
        self._edits: Sequence[Callable[[bytearray], None]] = (
            self._flip,
            self._byte,
            self._cut,
            self._double,
            self._insert,
            self._token,
            self._number,
            self._truncate,
            self._splice,
        )

    def draw(self) -> bytes:
        """The next input."""
        if not self.random.randrange(16):
            return self.random.randbytes(self.random.randrange(200))
        data = bytearray(self.random.choice(self._seeds))
        for _ in range(self.random.choice((1, 1, 1, 2, 2, 3, 8))):
            self.random.choice(self._edits)(data)
        return bytes(data)

    def _at(self, data: bytearray) -> int:
        return self.random.randrange(len(data) + 1)

    def _slice(self, data: bytearray) -> slice:
        start = self._at(data)
        return slice(start, start + self.random.choice((1, 2, 4, 8, 16, 64, 500)))

    def _flip(self, data: bytearray) -> None:
        if data:
            data[self.random.randrange(len(data))] ^= 1 << self.random.randrange(8)

    def _byte(self, data: bytearray) -> None:
        if data:
            data[self.random.randrange(len(data))] = self.random.choice((0, 0x20, 0x22, 0x7F, 0x80, 0xFF))

    def _cut(self, data: bytearray) -> None:
        del data[self._slice(data)]

    def _double(self, data: bytearray) -> None:
        part = data[self._slice(data)]
        at = self._at(data)
        data[at:at] = part

    def _insert(self, data: bytearray) -> None:
        at = self._at(data)
        data[at:at] = self.random.randbytes(self.random.randrange(1, 20))

    def _token(self, data: bytearray) -> None:
        at = self._at(data)
        end = at + self.random.choice((0, 0, 1, 4, 16))
        data[at:end] = self.random.choice(TEXT_TOKENS)

    def _number(self, data: bytearray) -> None:
        layout = self.random.choice(_FORMATS)
        width = struct.calcsize(layout)
        at = self._at(data)
        data[at : at + width] = struct.pack(layout, self.random.choice(NUMBERS) % (1 << (8 * width)))

    def _truncate(self, data: bytearray) -> None:
        del data[self._at(data) :]

    def _splice(self, data: bytearray) -> None:
        other = self.random.choice(self._seeds)
        at = self.random.randrange(len(other) + 1)
        data[self._slice(data)] = other[at : at + self.random.choice((4, 16, 64, 300))]
