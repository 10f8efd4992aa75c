"""The attester on the simulated platform: a client of the descriptor that the platform left open.

One canonical JSON object a packet, one answer a request. The answers come from the platform and are therefore only
carried: whoever relies on a quote verifies it.
"""

from __future__ import annotations

import socket
import threading
from typing import Any

from secfl.attestation.evidence import KINDS, Evidence
from secfl.crypto import strict_json
from secfl.crypto.encoding import from_base64url, from_hex
from secfl.errors import EncodingError, UnavailableError
from secfl.tee.attester import REPORT_DATA_BYTES

__all__ = ["MAX_PACKET_BYTES", "PlatformSocketAttester"]

MAX_PACKET_BYTES = 128 * 1024
"""Longest packet either way; a quote has about 5 KiB."""
_TIMEOUT_SECONDS = 10.0


class PlatformSocketAttester:
    """Implements `Attester` over a SOCK_SEQPACKET descriptor; usable from several threads."""

    def __init__(self, descriptor: int) -> None:
        """Take the descriptor over and ask the platform who it is.

        Raises:
            UnavailableError: `attester.unavailable`.
        """
        try:
            self._socket = socket.socket(fileno=descriptor)
        except OSError as error:
            raise UnavailableError("attester.unavailable", "no platform is at this descriptor") from error
        self._socket.settimeout(_TIMEOUT_SECONDS)
        self._lock = threading.Lock()
        info = self._ask({"op": "info"}, "kind", "platform_id")
        try:
            self._kind, self._platform_id = info["kind"], from_hex(info["platform_id"], size=16)
        except EncodingError as error:
            raise _unavailable("the platform's id is malformed") from error
        if self._kind not in KINDS:
            raise _unavailable("the platform gives an unknown kind of evidence")

    @property
    def kind(self) -> str:
        """The kind of evidence it gives."""
        return self._kind

    @property
    def platform_id(self) -> bytes:
        """What the platform says its id is."""
        return self._platform_id

    def collect(self, report_data: bytes) -> Evidence:
        """Get evidence over these 64 bytes.

        Raises:
            EncodingError: `attester.report_data`.
            UnavailableError: `attester.unavailable`.
        """
        if len(report_data) != REPORT_DATA_BYTES:
            raise EncodingError("attester.report_data", "report data has 64 bytes", actual=len(report_data))
        answer = self._ask({"op": "quote", "report_data": report_data.hex()}, "quote")
        try:
            return Evidence(self._kind, from_base64url(answer["quote"]))
        except EncodingError as error:
            raise _unavailable("the platform's quote is malformed") from error

    def sealing_key(self, label: str) -> bytes:
        """Derive the key for this label, measurement and platform.

        Raises:
            UnavailableError: `attester.unavailable`.
        """
        answer = self._ask({"op": "seal_key", "label": label}, "key")
        try:
            return from_base64url(answer["key"], size=32)
        except EncodingError as error:
            raise _unavailable("the platform's key is malformed") from error

    def close(self) -> None:
        """Close the descriptor."""
        self._socket.close()

    def _ask(self, request: dict[str, str], *members: str) -> dict[str, str]:
        packet = strict_json.encode(request)
        try:
            with self._lock:
                self._socket.send(packet)
                answer = self._socket.recv(MAX_PACKET_BYTES + 1)
            document: Any = strict_json.decode(answer, max_bytes=MAX_PACKET_BYTES)
        except (OSError, EncodingError) as error:
            # The exchange may be half done; a late answer must not be taken for the next one's.
            self._socket.close()
            raise _unavailable("the platform does not answer") from error
        if not isinstance(document, dict) or set(document) != set(members):
            code = document.get("error") if isinstance(document, dict) else None
            raise _unavailable("the platform refused the request", reason=code if isinstance(code, str) else None)
        if not all(isinstance(value, str) for value in document.values()):
            raise _unavailable("the platform's answer is malformed")
        return document


def _unavailable(message: str, *, reason: str | None = None) -> UnavailableError:
    return UnavailableError("attester.unavailable", message, reason=reason)
