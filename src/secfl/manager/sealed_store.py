"""The sealed store: every row is encrypted before it reaches the operator's disk, public parts included.

What parties may see is not for the operator: policies, metrics and names of sites stay inside. Only the number, order
and sizes of the rows are visible, and the header with the wrapped key.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from secfl.crypto.aead import derive_key, open_sealed, seal
from secfl.crypto.transcript import transcript
from secfl.errors import VerificationError
from secfl.manager.log import Row
from secfl.manager.sealer import Sealer
from secfl.manager.store import Store

__all__ = ["SealedStore"]


class SealedStore:
    """A store over another one; implements `Store`."""

    def __init__(self, inner: Store, sealer: Sealer) -> None:
        """Take the parts; the key is unwrapped when the first row is written or read."""
        self._inner = inner
        self._sealer = sealer
        self._opened: tuple[bytes, bytes] | None = None

    def meta(self) -> dict[str, bytes]:
        """Read the header.

        Raises:
            UnavailableError: `store.unavailable`.
        """
        return self._inner.meta()

    def create(self, meta: dict[str, bytes], rows: Sequence[Row]) -> None:
        """Write header and first rows in one step.

        Raises:
            UnavailableError: `store.write_failed`.
            VerificationError: `store.incomplete` or `store.sealed_elsewhere`.
        """
        self._open(meta)
        self._inner.create(meta, [self._seal(row) for row in rows])

    def append(self, rows: Sequence[Row]) -> None:
        """Write rows durably, all or none.

        Raises:
            UnavailableError: `store.write_failed`.
            VerificationError: `store.incomplete` or `store.sealed_elsewhere`.
        """
        self._inner.append([self._seal(row) for row in rows])

    def rows(self) -> Iterator[Row]:
        """Read and open all rows in order of their sequence.

        Raises:
            UnavailableError: `store.unavailable`.
            VerificationError: `log.edited`, `store.incomplete` or `store.sealed_elsewhere`.
        """
        for row in self._inner.rows():
            yield self._unseal(row)

    def _open(self, meta: dict[str, bytes] | None = None) -> tuple[bytes, bytes]:
        if self._opened is None:
            header = self._inner.meta() if meta is None else meta
            if not {"deployment_id", "sealed_key"} <= set(header):
                raise VerificationError("store.incomplete", "the store has no key or no deployment id")
            deployment = header["deployment_id"]
            key = self._sealer.unseal(header["sealed_key"], context=deployment)
            self._opened = deployment, derive_key(key, "log-rows", deployment)
        return self._opened

    def _seal(self, row: Row) -> Row:
        deployment, key = self._open()
        return replace(row, public=seal(key, row.public, aad=_aad(deployment, row)))

    def _unseal(self, row: Row) -> Row:
        deployment, key = self._open()
        try:
            return replace(row, public=open_sealed(key, row.public, aad=_aad(deployment, row)))
        except VerificationError:
            raise VerificationError("log.edited", "a log entry was changed", entry=row.sequence) from None


def _aad(deployment: bytes, row: Row) -> bytes:
    return transcript("log-row", deployment, row.sequence.to_bytes(8, "big"), row.hash)
