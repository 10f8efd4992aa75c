"""The attester: whatever gives evidence about the code it runs in."""

from __future__ import annotations

from typing import Protocol

from secfl.attestation.evidence import Evidence

__all__ = ["REPORT_DATA_BYTES", "Attester"]

REPORT_DATA_BYTES = 64


class Attester(Protocol):
    """A platform as seen from inside an enclave."""

    @property
    def kind(self) -> str:
        """The kind of evidence it gives, `sgx` or `tdx`."""
        ...

    @property
    def platform_id(self) -> bytes:
        """What the platform says its id is: unverified, for messages to the operator only."""
        ...

    def collect(self, report_data: bytes) -> Evidence:
        """Get evidence over exactly these 64 bytes.

        Raises:
            EncodingError: `attester.report_data` for another size.
            UnavailableError: `attester.unavailable` when the platform does not answer.
        """
        ...

    def sealing_key(self, label: str) -> bytes:
        """Derive a 32-byte key that only this measurement on this platform gets.

        Raises:
            UnavailableError: `attester.unavailable` when the platform does not answer or has no such keys.
        """
        ...
