"""The sealed volume's published vector, rebuilt from plain primitives as `docs/formats/sealed-volume.md` says."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from secfl.testing.volume_world import MemoryKeeper, memory_files
from secfl.volume.records import ROOT_INODE, decode_changes, encode_changes
from secfl.volume.storage import Root
from secfl.volume.volume import open_volume

VECTOR = Path(__file__).parent / "volume" / "sealed-volume.json"


@pytest.fixture(scope="module")
def vector() -> Any:
    loaded = json.loads(VECTOR.read_text())
    assert len(loaded["records"]) == 2
    return loaded


def transcript(label: str, *fields: bytes) -> bytes:
    parts = [f"secfl/v1/{label}".encode(), *fields]
    return b"".join(len(part).to_bytes(8, "big") + part for part in parts)


def derive(key: bytes, label: str, *fields: bytes) -> AESGCM:
    info = transcript(label, *fields)
    return AESGCM(HKDF(algorithm=SHA256(), length=32, salt=None, info=info).derive(key))


def test_the_record_bytes_are_what_the_format_says(vector: Any) -> None:
    """Each record is header, sealed body and tag as specified, and the chain starts with zeros."""
    key, identity, epoch = (bytes.fromhex(vector[name]) for name in ("key", "volume_id", "epoch"))
    previous = bytes(32)
    for sequence, entry in enumerate(vector["records"], 1):
        body, record = bytes.fromhex(entry["body"]), bytes.fromhex(entry["record"])
        header = b"SVJ1" + (len(body) + 16).to_bytes(4, "big") + sequence.to_bytes(8, "big") + epoch
        header += sequence.to_bytes(8, "big") + previous
        aead = derive(key, "volume-journal", identity, epoch)
        sealed = aead.encrypt(sequence.to_bytes(12, "big"), body, transcript("volume-record", identity, header))
        assert record == header + sealed
        previous = hashlib.sha256(transcript("volume-record-tag", identity, header, sealed)).digest()
        assert previous.hex() == entry["tag"]
        assert encode_changes(decode_changes(body)) == body


def test_the_chunk_bytes_are_what_the_format_says(vector: Any) -> None:
    """The chunk's ciphertext and tag follow from key, identity, epoch and counter."""
    key, identity, epoch = (bytes.fromhex(vector[name]) for name in ("key", "volume_id", "epoch"))
    chunk = vector["chunk"]
    aead = derive(key, "volume-data", identity, epoch)
    sealed = aead.encrypt(chunk["counter"].to_bytes(12, "big"), bytes.fromhex(chunk["plaintext"]), None)
    assert sealed.hex() == chunk["ciphertext"] + chunk["tag"]


@pytest.mark.parametrize(("count", "names", "data"), [(1, {b"f", b"l"}, b"hello, volume"), (2, {b"f"}, b"")])
def test_the_vector_opens_as_a_volume(vector: Any, count: int, names: set[bytes], data: bytes) -> None:
    """With the first record the volume shows a file and a link; with both, an empty file."""
    files = memory_files()
    files.slots.pwrite(0, bytes.fromhex(vector["chunk"]["ciphertext"]))
    for entry in vector["records"][:count]:
        files.journal.pwrite(files.journal.size(), bytes.fromhex(entry["record"]))
    keeper = MemoryKeeper(Root(count, bytes.fromhex(vector["records"][count - 1]["tag"])))
    key, identity = bytes.fromhex(vector["key"]), bytes.fromhex(vector["volume_id"])
    volume = open_volume(files, key=key, volume_id=identity, keeper=keeper)
    assert set(volume.tree.inode(ROOT_INODE).entries) == names
    assert volume.contents.read(volume.tree.lookup(ROOT_INODE, b"f"), 0, 100) == data
