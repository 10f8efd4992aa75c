"""The store: the log's rows in one SQLite file on a disk that the operator owns.

Rules: what `append` returned from is on the disk (write-ahead log, `synchronous=FULL`: one fsync a commit); several
entries go in one transaction or not at all; one process holds the file. After a failed write the store takes no
other, since the memory of the manager is then ahead of its disk. Confidentiality and integrity are the log's business.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from secfl.errors import EncodingError, UnavailableError
from secfl.manager.log import Row

__all__ = ["FORMAT", "MemoryStore", "SqliteStore", "Store"]

FORMAT = b"secfl-manager-store-1"
_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS log (seq INTEGER PRIMARY KEY, public BLOB, sealed BLOB, hash BLOB)",
)


class Store(Protocol):
    """Where rows are kept."""

    def meta(self) -> dict[str, bytes]:
        """Read the unprotected header: deployment id and wrapped store key; empty before the first start."""

    def create(self, meta: dict[str, bytes], rows: Sequence[Row]) -> None:
        """Write header and first rows in one step."""

    def append(self, rows: Sequence[Row]) -> None:
        """Write rows durably, all or none."""

    def rows(self) -> Iterator[Row]:
        """Read all rows in order of their sequence."""


class SqliteStore:
    """A store in one SQLite file."""

    def __init__(self, path: Path) -> None:
        """Open or create the file and take it for this process.

        Raises:
            UnavailableError: `store.unavailable` when it cannot be opened or another process has it.
            EncodingError: `store.unknown_format`.
        """
        self._lock = threading.Lock()
        self._failed = False
        try:
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=1)
            # Exclusive before WAL: no shared-memory file, and a second manager on the same file fails at once.
            self._db.execute("PRAGMA locking_mode=EXCLUSIVE")
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.execute("BEGIN IMMEDIATE")
            for statement in _SCHEMA:
                self._db.execute(statement)
            self._db.execute("COMMIT")
            meta = self.meta()
        except sqlite3.Error as error:
            raise UnavailableError("store.unavailable", f"the store cannot be opened: {error}") from error
        if meta and meta.get("format") != FORMAT:
            raise EncodingError("store.unknown_format", "the store was written by another program")

    def meta(self) -> dict[str, bytes]:
        """Read the header.

        Raises:
            UnavailableError: `store.unavailable`.
        """
        return {str(name): bytes(value) for name, value in self._read("SELECT name, value FROM meta")}

    def create(self, meta: dict[str, bytes], rows: Sequence[Row]) -> None:
        """Write header and first rows in one transaction.

        Raises:
            UnavailableError: `store.write_failed`.
        """
        header = {**meta, "format": FORMAT}
        self._write([("INSERT INTO meta VALUES (?, ?)", list(header.items())), (_INSERT, _values(rows))])

    def append(self, rows: Sequence[Row]) -> None:
        """Write rows in one transaction; they are on the disk when this returns.

        Raises:
            UnavailableError: `store.write_failed`, now and ever after in this process.
        """
        self._write([(_INSERT, _values(rows))])

    def rows(self) -> Iterator[Row]:
        """Read all rows in order of their sequence.

        Raises:
            UnavailableError: `store.unavailable`.
        """
        last = -(2**63)
        while found := self._read(_SELECT, last):
            for sequence, public, sealed, chained in found:
                yield Row(int(sequence), bytes(public), bytes(sealed), bytes(chained))
                last = int(sequence)

    def close(self) -> None:
        """Give the file back."""
        with self._lock:
            self._db.close()

    def _read(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        try:
            with self._lock:
                return self._db.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            raise UnavailableError("store.unavailable", f"the store cannot be read: {error}") from error

    def _write(self, steps: Sequence[tuple[str, Sequence[tuple[object, ...]]]]) -> None:
        with self._lock:
            if self._failed:
                raise UnavailableError("store.write_failed", "an earlier write failed; restart the manager")
            self._failed = True
            try:
                self._db.execute("BEGIN IMMEDIATE")
                for statement, values in steps:
                    self._db.executemany(statement, values)
                self._db.execute("COMMIT")
            except sqlite3.Error as error:
                raise UnavailableError("store.write_failed", f"the store cannot be written: {error}") from error
            self._failed = False


class MemoryStore:
    """A store that lives as long as the process; for tests of what is above it."""

    def __init__(self) -> None:
        self._meta: dict[str, bytes] = {}
        self._rows: list[Row] = []

    def meta(self) -> dict[str, bytes]:
        """Read the header."""
        return dict(self._meta)

    def create(self, meta: dict[str, bytes], rows: Sequence[Row]) -> None:
        """Set header and first rows."""
        self._meta, self._rows = dict(meta), list(rows)

    def append(self, rows: Sequence[Row]) -> None:
        """Add rows."""
        self._rows.extend(rows)

    def rows(self) -> Iterator[Row]:
        """Read all rows."""
        return iter(tuple(self._rows))


_SELECT = "SELECT seq, public, sealed, hash FROM log WHERE seq > ? ORDER BY seq LIMIT 256"
_INSERT = "INSERT INTO log VALUES (?, ?, ?, ?)"


def _values(rows: Sequence[Row]) -> list[tuple[object, ...]]:
    return [(row.sequence, row.public, row.sealed, row.hash) for row in rows]
