"""The journal: brings entries to the disk in their order, several at once when they come fast.

One fsync serves every entry that arrived while the one before it ran. After a failed write nothing is acknowledged
any more: memory is ahead of the disk, and only a restart brings them together.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from secfl.errors import SecflError, UnavailableError
from secfl.manager.log import Entry, Row
from secfl.manager.store import Store

__all__ = ["Journal"]


class Journal:
    """The only writer of a store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._waiting: list[Row] = []
        self._next: asyncio.Future[None] | None = None
        self._running: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._failure: SecflError | None = None

    def add(self, entries: Sequence[Entry]) -> None:
        """Queue entries; call in the order of the log."""
        if not entries:
            return
        self._waiting.extend(entry.row for entry in entries)
        if self._next is None:
            self._next = asyncio.get_running_loop().create_future()
        if self._task is None:
            self._task = asyncio.create_task(self._write())

    async def durable(self) -> None:
        """Wait until everything queued so far is on the disk.

        Raises:
            UnavailableError: `store.write_failed`.
        """
        pending = self._next or self._running
        if pending is not None:
            await asyncio.shield(pending)
        if self._failure is not None:
            raise self._failure

    async def _write(self) -> None:
        while self._waiting:
            rows, self._waiting = self._waiting, []
            done, self._next = self._next, None
            self._running = done
            try:
                if self._failure is None:
                    await asyncio.to_thread(self._store.append, rows)
            except SecflError as error:
                self._failure = error
            except Exception as error:  # noqa: BLE001 - whatever it was, the rows are not known to be on the disk
                self._failure = UnavailableError("store.write_failed", f"the store failed ({type(error).__name__})")
            self._running = None
            if done is not None:
                done.set_result(None)
        self._task = None
