"""Sealed images written down byte by byte: the format does not drift."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from image_world import StoredImage, read_all
from secfl.errors import SecflError
from secfl.volume.image import image_root
from secfl.volume.image_manifest import Kind, Mode
from secfl.volume.image_writer import ImageWriter

VECTORS = json.loads((Path(__file__).parent / "image" / "sealed-image.json").read_text(encoding="utf-8"))


def _stored(vector: dict[str, str]) -> StoredImage:
    data, manifest, root = (bytes.fromhex(vector[name]) for name in ("data", "manifest", "root"))
    return StoredImage(data, manifest, root, bytes.fromhex(vector["key"]) if vector.get("key") else None)


def test_the_vectors_cover_both_modes_and_refusals() -> None:
    """The file is not empty by accident."""
    assert {vector["mode"] for vector in VECTORS["valid"]} == {mode.name.lower() for mode in Mode}
    assert len(VECTORS["refused"]) >= 5


@pytest.mark.parametrize("vector", VECTORS["valid"], ids=lambda vector: vector["id"])
def test_a_valid_image_opens_with_the_stated_content(vector: dict[str, str]) -> None:
    """Root, entries and content are as written."""
    stored = _stored(vector)
    assert image_root(stored.manifest) == stored.root
    image = stored.open()
    assert {path: content.hex() for path, content in read_all(image).items()} == VECTORS["files"]
    assert {e.path: e.target for e in image.entries if e.kind is Kind.SYMLINK} == VECTORS["links"]
    assert [e.path for e in image.entries if e.kind is Kind.DIRECTORY] == VECTORS["directories"]


@pytest.mark.parametrize("vector", VECTORS["refused"], ids=lambda vector: vector["id"])
def test_a_refused_image_gives_the_stated_code(vector: dict[str, str]) -> None:
    """Each defect has its code."""
    with pytest.raises(SecflError) as refusal:
        read_all(_stored(vector).open())
    assert refusal.value.code == vector["code"]


def test_the_writer_gives_the_authenticated_vector() -> None:
    """The same entries give the vector's bytes."""
    pieces: list[bytes] = []
    writer = ImageWriter(pieces.append, mode=Mode.AUTHENTICATED)
    for path in sorted([*VECTORS["files"], *VECTORS["links"], *VECTORS["directories"]], key=str.encode):
        if path in VECTORS["files"]:
            writer.add_file(path, [bytes.fromhex(VECTORS["files"][path])])
        elif path in VECTORS["links"]:
            writer.add_symlink(path, VECTORS["links"][path])
        else:
            writer.add_directory(path)
    expected = next(vector for vector in VECTORS["valid"] if vector["mode"] == "authenticated")
    assert writer.finish().hex() == expected["manifest"]
    assert b"".join(pieces).hex() == expected["data"]
