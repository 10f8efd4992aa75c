"""A verifier process: verification apart from the program that asked for it.

The library holds the interpreter's lock while it works and aborts its process should it ever panic. So the manager
verifies in workers: bounded in memory and time, replaced after a crash or a hang, and a failure of any sort is a
refusal (EV-32). A worker inherits no descriptor and no environment. Requests and answers are length-prefixed; an answer
is canonical JSON, a request a canonical JSON head with the evidence after it.
"""

from __future__ import annotations

import gc
import os
import resource
from typing import Any, Final

from secfl.attestation.claims import VerifiedEvidence
from secfl.attestation.evidence import Evidence
from secfl.crypto import strict_json
from secfl.crypto.encoding import from_base64url
from secfl.errors import EncodingError, FreshnessError, SecflError, VerificationError
from secfl.tee.anchor import TrustAnchor
from secfl.tee.collateral import Collateral
from secfl.tee.verifier import KnownCollateral, verify

__all__ = ["CLASSES", "LENGTH_BYTES", "MAX_FRAME", "frame", "join_request", "main"]

_MEMORY_BYTES: Final = 512 * 1024 * 1024
LENGTH_BYTES: Final = 4
"""Bytes of a length: before a frame, and before the head of a request."""
MAX_FRAME: Final = 8 * 1024 * 1024
"""Largest request or answer, in bytes."""
CLASSES: Final[dict[str, type[SecflError]]] = {
    "encoding": EncodingError,
    "freshness": FreshnessError,
    "verification": VerificationError,
}
"""The errors that a worker answers with, by their name in the answer."""
_NAMES: Final = {cls: name for name, cls in CLASSES.items()}


def frame(data: bytes) -> bytes:
    """Prefix with the length."""
    return len(data).to_bytes(LENGTH_BYTES, "big") + data


def join_request(head: dict[str, Any], blob: bytes) -> bytes:
    """Make a request: `kind`, `now`, and `trust` or None for the trust of the request before; then the evidence."""
    return frame(strict_json.encode(head)) + blob


def main() -> None:
    """Serve requests on standard input until it ends; the entry point of a worker."""
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    server = _Server()
    gc.freeze()  # what the imports made stays
    received = bytearray()
    while (part := os.read(0, 1 << 16)) != b"":
        received += part
        while len(received) >= LENGTH_BYTES:
            end = LENGTH_BYTES + int.from_bytes(received[:LENGTH_BYTES], "big")
            if len(received) < end:
                break
            answer = memoryview(frame(server.answer(bytes(received[LENGTH_BYTES:end]))))
            del received[:end]
            while answer:
                answer = answer[os.write(1, answer) :]


class _Server:
    # The worker's side: keeps the trust that it was given last.

    def __init__(self) -> None:
        self._known = KnownCollateral()
        self._trust: tuple[Collateral, TrustAnchor] | None = None
        self._record: dict[str, str] = {}

    def answer(self, request: bytes) -> bytes:
        start = LENGTH_BYTES + int.from_bytes(request[:LENGTH_BYTES], "big")
        try:
            verified = self._verify(
                strict_json.decode(request[LENGTH_BYTES:start], max_bytes=MAX_FRAME), request[start:]
            )
        except (EncodingError, FreshnessError, VerificationError) as error:
            failure = {"class": _NAMES[type(error)], "code": error.code, "message": error.message, "hint": error.hint}
            return strict_json.encode({"error": {**failure, "details": dict(error.details)}})
        return strict_json.encode({"verified": verified.to_record()})

    def _verify(self, head: dict[str, Any], blob: bytes) -> VerifiedEvidence:
        if head["trust"] is not None:
            # Trust that cannot be read refuses this request and those after it, until there is other trust.
            self._record, self._trust = head["trust"], None
        if self._trust is None:
            collateral = Collateral.decode(self._record["collateral"].encode())
            self._trust = collateral, TrustAnchor(self._record["domain"], from_base64url(self._record["root"]))
        return verify(Evidence(head["kind"], blob), *self._trust, head["now"], check=self._known.check)


if __name__ == "__main__":
    main()
