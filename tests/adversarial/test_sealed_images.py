"""Attacks on sealed images: by the host that stores them, and by those who fill the tree that is packed."""

from __future__ import annotations

import os
import socket
import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from image_world import CONTENT, KEY, Memory, StoredImage, read_all, store
from secfl.crypto.aead import derive_key, seal
from secfl.errors import ConfigError, EncodingError, SecflError, VerificationError
from secfl.linux.images import pack_image
from secfl.volume.image import image_root, open_image
from secfl.volume.image_manifest import MAX_MANIFEST_BYTES, Kind, Mode, decode_manifest

SMALL = {"a": b"alpha" * 9, "b": b"bravo" * 9, "c": b"", "d/e": b"e"}


def _outcome(stored: StoredImage, expected: dict[str, bytes]) -> str:
    """Open and read everything; the code of the refusal. Whatever is read must be right."""
    try:
        image = stored.open()
    except VerificationError as error:
        return error.code
    refused = ""
    for entry in image.entries:
        if entry.kind is Kind.FILE:
            try:
                assert image.read(entry, 0, entry.size) == expected[entry.path]
            except VerificationError as error:
                refused = error.code
    return refused


@pytest.mark.parametrize("mode", Mode)
def test_fs_01_any_changed_byte_of_the_data_is_refused(mode: Mode) -> None:
    """Each byte of the data, flipped alone, makes the read of its file fail and no read wrong."""
    stored = store(mode, SMALL)
    for at in range(len(stored.data)):
        changed = bytearray(stored.data)
        changed[at] ^= 1 << (at % 8)
        assert _outcome(stored.with_data(bytes(changed)), SMALL) == "volume.chunk_invalid", at


@pytest.mark.parametrize("mode", Mode)
def test_fs_01_any_changed_byte_of_the_manifest_is_refused(mode: Mode) -> None:
    """Each byte of the manifest, flipped alone, makes opening fail at the root."""
    stored = store(mode, SMALL)
    for at in range(len(stored.manifest)):
        changed = bytearray(stored.manifest)
        changed[at] ^= 1 << (at % 8)
        assert _outcome(replace(stored, manifest=bytes(changed)), SMALL) == "volume.root_mismatch", at


def test_fs_01_a_changed_encrypted_manifest_is_refused_even_under_its_own_root() -> None:
    """Whoever can set the root still cannot change an encrypted manifest without the key."""
    stored = store(Mode.ENCRYPTED, SMALL)
    for at in range(len(stored.manifest)):
        changed = bytearray(stored.manifest)
        changed[at] ^= 1
        forged = replace(stored, manifest=bytes(changed), root=image_root(bytes(changed)))
        assert _outcome(forged, SMALL) in ("volume.manifest_invalid", "volume.mode_mismatch"), at


@pytest.mark.parametrize("mode", Mode)
def test_fs_01_data_or_manifest_cut_at_any_length_is_refused(mode: Mode) -> None:
    """Truncation anywhere is noticed; sizes come from the manifest alone."""
    stored = store(mode, SMALL)
    for size in range(len(stored.data)):
        assert _outcome(stored.with_data(stored.data[:size]), SMALL) == "volume.chunk_invalid", size
    for size in range(len(stored.manifest)):
        assert _outcome(replace(stored, manifest=stored.manifest[:size]), SMALL) == "volume.root_mismatch", size


@pytest.mark.parametrize("mode", Mode)
def test_fs_01_bytes_after_the_data_are_never_read(mode: Mode) -> None:
    """A longer data file changes nothing."""
    stored = store(mode, SMALL)
    assert read_all(stored.with_data(stored.data + b"more").open()) == SMALL


@pytest.mark.parametrize("mode", Mode)
def test_fs_03_swapped_files_and_chunks_are_refused(mode: Mode) -> None:
    """Stored pieces of equal size do not fit each other's places."""
    stored = store(mode, SMALL)
    size = len(SMALL["a"]) + (16 if mode is Mode.ENCRYPTED else 0)
    first, second, rest = stored.data[:size], stored.data[size : 2 * size], stored.data[2 * size :]
    assert _outcome(stored.with_data(second + first + rest), SMALL) == "volume.chunk_invalid"
    step = 65536 + (16 if mode is Mode.ENCRYPTED else 0)
    chunks = {"f": b"".join(bytes([number]) * 65536 for number in range(3))}
    large = store(mode, chunks)
    mixed = large.data[step : 2 * step] + large.data[:step] + large.data[2 * step :]
    assert _outcome(large.with_data(mixed), chunks) == "volume.chunk_invalid"


@pytest.mark.parametrize("mode", Mode)
def test_fs_03_pieces_of_another_image_with_the_same_key_are_refused(mode: Mode) -> None:
    """Neither data nor manifest of another image of the same key and tree takes this one's place."""
    ours = store(mode, SMALL)
    theirs = store(mode, {path: bytes(len(content)) for path, content in SMALL.items()})
    assert len(ours.data) == len(theirs.data)
    assert _outcome(ours.with_data(theirs.data), SMALL) == "volume.chunk_invalid"
    assert _outcome(replace(ours, manifest=theirs.manifest), SMALL) == "volume.root_mismatch"


def test_fs_03_another_key_opens_nothing_and_learns_nothing() -> None:
    """A wrong key gives one error without detail."""
    stored = store(Mode.ENCRYPTED)
    with pytest.raises(
        VerificationError, match=r"^volume\.manifest_invalid: the image's manifest cannot be opened$"
    ) as e:
        open_image(Memory(stored.data), stored.manifest, root=stored.root, key=bytes(32))
    assert e.value.__cause__ is None
    assert not e.value.details


def test_fs_01_a_storage_that_changes_its_answer_is_read_once_a_chunk() -> None:
    """The bytes that are checked are the bytes that are returned: one private copy, no second fetch."""

    class Fickle(Memory):
        reads = 0

        def pread(self, offset: int, size: int) -> bytes:
            self.reads += 1
            return super().pread(offset, size)

    stored = store(Mode.AUTHENTICATED)
    reader = Fickle(stored.data)
    image = open_image(reader, stored.manifest, root=stored.root)
    image.read(image.lookup("sub/big.bin"), 0, 1 << 20)
    assert reader.reads == 1


def _plant_fifo(tree: Path) -> None:
    os.mkfifo(tree / "x")


def _plant_socket(tree: Path) -> None:
    here = Path.cwd()
    os.chdir(tree)
    try:
        socket.socket(socket.AF_UNIX).bind("x")
    finally:
        os.chdir(here)


def _plant_hard_link(tree: Path) -> None:
    (tree.parent / "secret").write_text("of somebody else")
    os.link(tree.parent / "secret", tree / "x")


def _plant_sparse_file(tree: Path) -> None:
    with (tree / "x").open("wb") as file:
        file.truncate(1 << 40)


def _plant_link(target: str) -> Callable[[Path], None]:
    return lambda tree: (tree / "x").symlink_to(target)


@pytest.mark.parametrize(
    ("plant", "code"),
    [
        (_plant_fifo, "image.file_kind"),
        (_plant_socket, "image.file_kind"),
        (_plant_hard_link, "image.hard_link"),
        (_plant_sparse_file, "image.too_large"),
        (_plant_link("/etc/passwd"), "image.link"),
        (_plant_link("../secret"), "image.link"),
        (_plant_link("sub/../../secret"), "image.link"),
    ],
    ids=["fifo", "socket", "hard link", "sparse", "absolute", "outside", "through a link"],
)
def test_fs_08_planted_special_files_are_refused(plant: Callable[[Path], None], code: str, tmp_path: Path) -> None:
    """Packing refuses whatever is no plain file, directory or inner link."""
    tree = tmp_path / "tree"
    (tree / "sub").mkdir(parents=True)
    plant(tree)
    with pytest.raises(SecflError) as refusal:
        pack_image(tree, tmp_path / "image", mode=Mode.AUTHENTICATED)
    assert refusal.value.code == code
    assert not (tmp_path / "image").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="making a device node needs root")
def test_fs_08_a_planted_device_is_refused(tmp_path: Path) -> None:
    """Packing never opens a device."""
    tree = tmp_path / "tree"
    tree.mkdir()
    try:
        os.mknod(tree / "null", 0o20666, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("this account may not make device nodes")
    with pytest.raises(ConfigError, match=r"image\.file_kind"):
        pack_image(tree, tmp_path / "image", mode=Mode.AUTHENTICATED)


def _entry(kind: int, path: bytes, tail: bytes = b"", mode: int = 0o444) -> bytes:
    return struct.pack(">BHH", kind, mode, len(path)) + path + tail


def _link(path: bytes, target: bytes) -> bytes:
    return _entry(3, path, struct.pack(">H", len(target)) + target)


_EMPTY_FILE = struct.pack(">Q", 0)


@pytest.mark.parametrize(
    ("entries", "code"),
    [
        ([_entry(2, b"../x", _EMPTY_FILE)], "image.path"),
        ([_entry(2, b"/etc/x", _EMPTY_FILE)], "image.path"),
        ([_entry(2, b"a/./x", _EMPTY_FILE)], "image.path"),
        ([_entry(2, b"x\0y", _EMPTY_FILE)], "image.path"),
        ([_entry(2, b"\xff", _EMPTY_FILE)], "image.path"),
        ([_entry(2, b"n" * 256, _EMPTY_FILE)], "image.path"),
        ([_entry(2, b"x", _EMPTY_FILE), _entry(2, b"x", _EMPTY_FILE)], "image.order"),
        ([_entry(2, b"y", _EMPTY_FILE), _entry(2, b"x", _EMPTY_FILE)], "image.order"),
        ([_entry(2, b"A", _EMPTY_FILE), _entry(2, b"a", _EMPTY_FILE)], "image.path"),
        ([_entry(2, "e\u0301".encode(), _EMPTY_FILE), _entry(2, "\u00e9".encode(), _EMPTY_FILE)], "image.path"),
        ([_link(b"d", b"e"), _entry(2, b"d/x", _EMPTY_FILE)], "image.order"),
        ([_entry(2, b"d/x", _EMPTY_FILE)], "image.order"),
        ([_link(b"l", b"/etc")], "image.link"),
        ([_link(b"l", b"..")], "image.link"),
        ([_link(b"l", b"")], "image.link"),
        ([_entry(2, b"x", _EMPTY_FILE, mode=0o4755)], "image.limit"),
        ([_entry(2, b"x", struct.pack(">Q", 1 << 62))], "image.limit"),
        ([_entry(9, b"x")], "image.malformed"),
    ],
    ids=[
        "parent", "absolute", "dot", "nul", "not unicode", "long", "twice", "order", "case", "normal form",
        "below a link", "no parent", "absolute link", "link out", "empty link", "set-user-id", "huge", "device",
    ],
)  # fmt: skip
def test_fs_16_hostile_manifests_are_refused(entries: list[bytes], code: str) -> None:
    """What archives are known to smuggle is no manifest."""
    with pytest.raises(EncodingError) as refusal:
        decode_manifest(Mode.AUTHENTICATED, struct.pack(">I", len(entries)) + b"".join(entries))
    assert refusal.value.code == code


def test_fs_16_a_manifest_that_announces_millions_of_entries_is_refused_at_once() -> None:
    """The count is held against the bytes that are there."""
    with pytest.raises(EncodingError, match=r"image\.limit"):
        decode_manifest(Mode.AUTHENTICATED, struct.pack(">I", 2**32 - 1))


def test_fs_16_a_compression_bomb_is_refused() -> None:
    """Even who holds the key cannot make the reader inflate without end."""
    stored = store(Mode.ENCRYPTED, SMALL)
    header = stored.manifest[:32]
    packed = zlib.compress(bytes(MAX_MANIFEST_BYTES + 1), 9)
    manifest = header + seal(derive_key(KEY, "image-manifest", header[16:]), packed, aad=header)
    with pytest.raises(VerificationError, match=r"volume\.manifest_invalid"):
        open_image(Memory(b""), manifest, root=image_root(manifest), key=KEY)


def test_fs_16_names_that_differ_in_case_are_not_packed(tmp_path: Path) -> None:
    """A tree with two spellings of one name is refused."""
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "Model.py").touch()
    (tree / "model.py").touch()
    with pytest.raises(EncodingError, match=r"image\.path"):
        pack_image(tree, tmp_path / "image", mode=Mode.AUTHENTICATED)


def test_the_small_images_hold_what_the_attacks_need() -> None:
    """The attacked images have equal-sized neighbours, an empty file and a file of several chunks."""
    assert len(SMALL["a"]) == len(SMALL["b"])
    assert not SMALL["c"]
    assert len(CONTENT["sub/big.bin"]) > 65536
