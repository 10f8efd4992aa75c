"""Sealed images in memory, for tests."""

from __future__ import annotations

from dataclasses import dataclass, replace

from secfl.volume.image import SealedImage, image_root, open_image
from secfl.volume.image_manifest import Kind, Mode
from secfl.volume.image_writer import ImageWriter

KEY = bytes(range(32))
CONTENT = {"a.bin": b"alpha" * 20, "empty": b"", "sub/b.bin": b"bravo!" * 20, "sub/big.bin": bytes(65536) + b"tail" * 9}


class Memory:
    """Untrusted storage that a test can change."""

    def __init__(self, data: bytes) -> None:
        self.data = bytearray(data)

    def pread(self, offset: int, size: int) -> bytes:
        return bytes(self.data[offset : offset + size])


@dataclass(frozen=True)
class StoredImage:
    """What the host holds, and what the reader knows."""

    data: bytes
    manifest: bytes
    root: bytes
    key: bytes | None

    def open(self) -> SealedImage:
        return open_image(Memory(self.data), self.manifest, root=self.root, key=self.key)

    def with_data(self, data: bytes) -> StoredImage:
        return replace(self, data=data)


def store(mode: Mode, content: dict[str, bytes] | None = None, key: bytes = KEY) -> StoredImage:
    """Write an image of the given files and their directories."""
    content = CONTENT if content is None else content
    pieces: list[bytes] = []
    used = key if mode is Mode.ENCRYPTED else None
    writer = ImageWriter(pieces.append, mode=mode, key=used)
    directories = {path.rpartition("/")[0] for path in content} - {""}
    for path in sorted(directories | content.keys(), key=str.encode):
        if path in content:
            writer.add_file(path, [content[path]])
        else:
            writer.add_directory(path)
    manifest = writer.finish()
    return StoredImage(b"".join(pieces), manifest, image_root(manifest), used)


def read_all(image: SealedImage) -> dict[str, bytes]:
    """Read every file whole."""
    return {entry.path: image.read(entry, 0, entry.size) for entry in image.entries if entry.kind is Kind.FILE}
