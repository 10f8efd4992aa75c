"""Attacks on the manager's disk: the operator reads, edits and moves rows of the store."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

import pytest

from secfl.crypto.aead import open_sealed, random_key, seal
from secfl.errors import FreshnessError, SecflError, VerificationError
from secfl.manager.log import Event, Log
from secfl.manager.sealed_store import SealedStore
from secfl.manager.store import SqliteStore

MARKER = "canary-of-a-hospital"
DEPLOYMENT = bytes(16)


class KeySealer:
    """A sealer over a key in memory."""

    def __init__(self) -> None:
        self.key = random_key()

    def seal(self, plaintext: bytes, *, context: bytes) -> bytes:
        """Seal."""
        return seal(self.key, plaintext, aad=context)

    def unseal(self, sealed: bytes, *, context: bytes) -> bytes:
        """Open."""
        return open_sealed(self.key, sealed, aad=context)


class Disk:
    """A store of three entries on a disk."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "manager.sqlite"
        self.sealer = KeySealer()
        self.key = random_key()
        self.log = Log(DEPLOYMENT, self.key)
        rows = [
            self.log.append(Event("noted", {"site": MARKER, "n": n}, {"s": MARKER}), now=n, salt=os.urandom(32)).row
            for n in range(3)
        ]
        file = SqliteStore(self.path)
        store = SealedStore(file, self.sealer)
        store.create(
            {"deployment_id": DEPLOYMENT, "sealed_key": self.sealer.seal(self.key, context=DEPLOYMENT)}, rows[:1]
        )
        store.append(rows[1:])
        file.close()

    def read(self, sealer: KeySealer | None = None) -> list[Event]:
        """Open the store as a manager does."""
        file = SqliteStore(self.path)
        try:
            store = SealedStore(file, sealer or self.sealer)
            return [entry.event for entry in Log(DEPLOYMENT, self.key).load(store.rows())]
        finally:
            file.close()

    def edit(self, *statements: str) -> None:
        """Change the file as its owner can."""
        with sqlite3.connect(self.path) as connection:
            for statement in statements:
                connection.execute(statement)
        connection.close()


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    """A fresh disk."""
    return Disk(tmp_path)


def test_what_was_written_is_read_back(disk: Disk) -> None:
    """The entries come back in order, public and secret parts whole."""
    assert [event.public["n"] for event in disk.read()] == [0, 1, 2]
    assert disk.read()[0].secret == {"s": MARKER}


def test_se_14_no_file_of_the_store_holds_a_readable_word(disk: Disk) -> None:
    """Neither public nor secret parts of an entry can be found in any file of the store."""
    for path in disk.path.parent.iterdir():
        data = path.read_bytes()
        assert MARKER.encode() not in data
        assert b'"kind"' not in data


def test_se_14_another_platform_opens_nothing(disk: Disk) -> None:
    """A copy of the store on a platform with another sealing key gives an error and no row."""
    with pytest.raises(VerificationError):
        disk.read(KeySealer())


@pytest.mark.parametrize("column", ["public", "sealed", "hash"])
def test_pb_20_an_edited_column_is_found(disk: Disk, column: str) -> None:
    """A changed byte in any column of a row ends in an error."""
    disk.edit(f"UPDATE log SET {column} = CAST(substr({column}, 1, 20) || x'00' || substr({column}, 22) AS BLOB)")
    with pytest.raises(SecflError):
        disk.read()


@pytest.mark.parametrize("column", ["public", "sealed", "public, sealed, hash"])
def test_pb_20_rows_cannot_be_swapped(disk: Disk, column: str) -> None:
    """Columns or whole rows that change places are found."""
    names = column.split(", ")
    swap = ", ".join(f"{name} = (SELECT {name} FROM log WHERE seq = 1)" for name in names)
    disk.edit(f"UPDATE log SET {swap} WHERE seq = 2")
    with pytest.raises(SecflError):
        disk.read()


def test_fr_09_a_removed_row_is_found(disk: Disk) -> None:
    """A row that is missing in the middle is found; one at the end is what a remembered head is for."""
    disk.edit("DELETE FROM log WHERE seq = 1")
    with pytest.raises(FreshnessError):
        disk.read()
