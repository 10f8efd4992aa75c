"""The sealer: keeps the store key for a later start of the same code on the same platform.

The operator holds the sealed key beside the store. It opens only where the platform derives the same sealing key, that
is for the same measurement: other code, or another machine, gets nothing (SE-14).
"""

from __future__ import annotations

from typing import Protocol

from secfl.crypto.aead import open_sealed, seal
from secfl.crypto.transcript import transcript
from secfl.errors import VerificationError
from secfl.tee.attester import Attester

__all__ = ["AttesterSealer", "Sealer"]

_LABEL = "manager-store"


class Sealer(Protocol):
    """Seals for a later start."""

    def seal(self, plaintext: bytes, *, context: bytes) -> bytes:
        """Seal; only the same context opens it."""

    def unseal(self, sealed: bytes, *, context: bytes) -> bytes:
        """Open what `seal` made."""


class AttesterSealer:
    """A sealer over the platform's derived key."""

    def __init__(self, attester: Attester) -> None:
        """Derive the key.

        Raises:
            UnavailableError: `attester.unavailable`.
        """
        self._key = attester.sealing_key(_LABEL)

    def seal(self, plaintext: bytes, *, context: bytes) -> bytes:
        """Seal for this measurement on this platform."""
        return seal(self._key, plaintext, aad=transcript(_LABEL, context))

    def unseal(self, sealed: bytes, *, context: bytes) -> bytes:
        """Open what this measurement sealed on this platform.

        Raises:
            VerificationError: `store.sealed_elsewhere`.
        """
        try:
            return open_sealed(self._key, sealed, aad=transcript(_LABEL, context))
        except VerificationError:
            raise VerificationError(
                "store.sealed_elsewhere",
                "the store key was not sealed by this code on this platform",
                hint="start the same image on the same platform, or begin a new deployment",
            ) from None
