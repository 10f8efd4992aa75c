"""Sealed images: writing, reading, packing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from image_world import CONTENT, KEY, Memory, read_all, store
from secfl.errors import ConfigError, EncodingError, VerificationError
from secfl.linux.images import open_image_directory, pack_image
from secfl.volume.image import image_root, open_image
from secfl.volume.image_manifest import CHUNK_BYTES, Mode
from secfl.volume.image_writer import ImageWriter


@pytest.mark.parametrize("mode", Mode)
def test_an_image_gives_back_what_was_written(mode: Mode) -> None:
    """Every file reads as written."""
    assert read_all(store(mode).open()) == CONTENT


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize(
    ("offset", "size"),
    [(0, 1), (CHUNK_BYTES - 1, 2), (CHUNK_BYTES, 36), (65530, 1 << 20), (65572, 5), (7, 0), (9**9, 4)],
)
def test_a_range_reads_as_a_slice(mode: Mode, offset: int, size: int) -> None:
    """Ranges behave as slices, across chunks and past the end."""
    image = store(mode).open()
    content = CONTENT["sub/big.bin"]
    for _ in range(2):
        assert image.read(image.lookup("sub/big.bin"), offset, size) == content[offset : offset + size]


def test_an_authenticated_image_is_deterministic() -> None:
    """Same entries, same bytes."""
    assert store(Mode.AUTHENTICATED) == store(Mode.AUTHENTICATED)


def test_an_encrypted_image_never_repeats_a_key_and_nonce() -> None:
    """Two images of one content share no stored chunk."""
    first, second = store(Mode.ENCRYPTED), store(Mode.ENCRYPTED)
    assert first.data[:100] != second.data[:100]
    assert first.root != second.root


def test_an_encrypted_image_shows_no_name_and_no_content() -> None:
    """Neither file of the host holds a name or a piece of content."""
    stored = store(Mode.ENCRYPTED)
    for text in (b"big.bin", b"alpha", b"bravo"):
        assert text not in stored.data + stored.manifest


def test_the_mode_is_the_readers_choice() -> None:
    """A host cannot pass off a plain image as an encrypted one, nor the other way round."""
    plain, sealed = store(Mode.AUTHENTICATED), store(Mode.ENCRYPTED)
    with pytest.raises(VerificationError, match=r"volume\.mode_mismatch"):
        open_image(Memory(plain.data), plain.manifest, root=plain.root, key=KEY)
    with pytest.raises(VerificationError, match=r"volume\.mode_mismatch"):
        open_image(Memory(sealed.data), sealed.manifest, root=sealed.root)


def test_a_key_of_another_size_is_a_mistake_of_the_caller() -> None:
    """Keys have 32 bytes."""
    stored = store(Mode.ENCRYPTED)
    with pytest.raises(ConfigError, match=r"volume\.key_size"):
        open_image(Memory(stored.data), stored.manifest, root=stored.root, key=b"short")
    with pytest.raises(ConfigError, match=r"volume\.key_size"):
        ImageWriter(lambda _: None, mode=Mode.ENCRYPTED)


def test_entries_out_of_order_are_refused() -> None:
    """The writer refuses what the reader would."""
    writer = ImageWriter(lambda _: None, mode=Mode.AUTHENTICATED)
    writer.add_directory("b")
    writer.add_directory("a")
    with pytest.raises(EncodingError, match=r"image\.order"):
        writer.finish()


@pytest.mark.parametrize("mode", Mode)
def test_a_packed_tree_opens_with_its_content(mode: Mode, tmp_path: Path) -> None:
    """Packing keeps files, directories, inner links and the execute bit."""
    source = tmp_path / "source"
    (source / "sub" / "empty").mkdir(parents=True)
    (source / "sub" / "data").write_bytes(os.urandom(200_000))
    (source / "run.sh").write_text("#!")
    (source / "run.sh").chmod(0o750)
    (source / "sub" / "link").symlink_to("../run.sh")
    key = KEY if mode is Mode.ENCRYPTED else None
    packed = pack_image(source, tmp_path / "image", mode=mode, key=key)
    image = open_image_directory(tmp_path / "image", root=packed.root, key=key)
    assert [entry.path for entry in image.entries] == ["run.sh", "sub", "sub/data", "sub/empty", "sub/link"]
    assert image.read(image.lookup("sub/data"), 0, 1 << 20) == (source / "sub" / "data").read_bytes()
    assert image.lookup("run.sh").mode == 0o555
    assert image.lookup("sub/link").target == "../run.sh"
    assert (packed.files, packed.total_bytes) == (2, 200_002)
    assert packed.root == image_root((tmp_path / "image" / "manifest").read_bytes())


def test_packing_twice_gives_the_same_authenticated_image(tmp_path: Path) -> None:
    """Times and owners do not enter an image."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "x").write_text("x")
    first = pack_image(source, tmp_path / "one", mode=Mode.AUTHENTICATED)
    os.utime(source / "x", (1, 1))
    assert pack_image(source, tmp_path / "two", mode=Mode.AUTHENTICATED) == first
