"""Properties of the FUSE message decoder: strict about every byte that the kernel sends."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secfl.errors import EncodingError
from secfl.linux.fuse_wire import (
    Attributes,
    Entry,
    Listed,
    Request,
    SetAttributesMask,
    body_name,
    body_two_names,
    encode_dirent,
    encode_entry,
    encode_negative_entry,
    forget_pairs,
    parse_init,
    parse_request,
    parse_set_attributes,
)


def _request(body: bytes, opcode: int = 1) -> bytes:
    return struct.pack("<IIQQIIIHH", 40 + len(body), opcode, 7, 1, 2, 3, 4, 0, 0) + body


def _parsed(body: bytes) -> Request:
    return parse_request(memoryview(_request(body)))


@given(st.binary(max_size=200))
def test_any_bytes_give_a_request_or_an_encoding_error(data: bytes) -> None:
    """A request is what its length field says, or nothing."""
    try:
        request = parse_request(memoryview(data))
    except EncodingError:
        return
    assert int.from_bytes(data[:4], "little") == len(data) == 40 + len(request.body)


@given(st.binary(max_size=64))
def test_bodies_are_decoded_or_refused(body: bytes) -> None:
    """Each body decoder gives a value or one error class."""
    request = _parsed(body)
    for decode in (body_name, body_two_names, forget_pairs, parse_init, parse_set_attributes):
        try:
            decode(request)
        except EncodingError as error:
            assert error.code in ("fuse.malformed", "fuse.version")  # noqa: PT017


@given(st.binary(min_size=1, max_size=40).filter(lambda name: b"\0" not in name))
def test_names_are_exactly_terminated(name: bytes) -> None:
    """One name has one NUL at its end, two have two."""
    assert body_name(_parsed(name + b"\0")) == name
    assert body_two_names(_parsed(name + b"\0x\0")) == (name, b"x")
    for body in (name, name + b"\0\0", b"\0", name + b"\0x", name + b"\0x\0"):
        with pytest.raises(EncodingError, match=r"fuse\.malformed"):
            body_name(_parsed(body))


def test_an_attribute_change_is_decoded_field_by_field() -> None:
    """Fields land where `fuse_setattr_in` has them."""
    body = struct.pack("<IIQQQQQQIIIIIIII", 0x29, 0, 5, 6, 0, 7, 8, 9, 70, 80, 90, 0o644, 0, 10, 11, 0)
    change = parse_set_attributes(_parsed(body))
    assert change.mask == SetAttributesMask.MODE | SetAttributesMask.SIZE | SetAttributesMask.MTIME
    assert (change.handle, change.size, change.mode, change.uid, change.gid) == (5, 6, 0o644, 10, 11)
    assert (change.atime, change.mtime, change.ctime) == (7_000_000_070, 8_000_000_080, 9_000_000_090)


@given(st.binary(min_size=1, max_size=255))
def test_directory_lines_keep_the_kernels_alignment(name: bytes) -> None:
    """Every line is a multiple of eight bytes, with and without its entry."""
    listed = Listed(name, 9, 0o100644, 1)
    entry = encode_entry(Entry(9, Attributes(inode=9, mode=0o100644)), seconds=1)
    assert len(entry) == len(encode_negative_entry(seconds=1)) == 128
    assert len(encode_dirent(listed)) % 8 == len(encode_dirent(listed, entry=entry)) % 8 == 0
