"""Verifier processes: verification apart from the program that asked for it.

The library holds the interpreter's lock while it works and aborts its process should it ever panic. So the manager
verifies in workers: bounded in memory and time, replaced after a crash or a hang, and a failure of any sort is a
refusal (EV-32). Requests and answers are length-prefixed canonical JSON; a worker inherits no descriptor and no
environment.
"""

from __future__ import annotations

import gc
import os
import queue
import resource
import select
import subprocess
import sys
import time
from typing import Any, Final, Self

from secfl.attestation.claims import VerifiedEvidence
from secfl.attestation.evidence import Evidence
from secfl.crypto import strict_json
from secfl.crypto.encoding import from_base64url, to_base64url
from secfl.errors import EncodingError, FreshnessError, SecflError, UnavailableError, VerificationError
from secfl.tee.anchor import TrustAnchor
from secfl.tee.claims_record import claims_from_record
from secfl.tee.collateral import Collateral
from secfl.tee.verifier import KnownCollateral, verify

__all__ = ["VerifierPool", "main"]

_TIMEOUT_SECONDS: Final = 10.0
"""Longest wait for one verification, which takes about 5 ms; a cold start of a worker takes about half a second."""
_QUEUE_SECONDS: Final = 10.0
"""Longest wait for a free worker."""
_MEMORY_BYTES: Final = 512 * 1024 * 1024
_LENGTH_BYTES: Final = 4
_MAX_FRAME: Final = 8 * 1024 * 1024
_CLASSES: Final[dict[str, type[SecflError]]] = {
    "encoding": EncodingError,
    "freshness": FreshnessError,
    "verification": VerificationError,
}
_NAMES: Final = {cls: name for name, cls in _CLASSES.items()}


class VerifierPool:
    """A few worker processes; `verify` may be called from several threads."""

    def __init__(self, size: int = 1, *, timeout: float = _TIMEOUT_SECONDS) -> None:
        """Prepare `size` places; a worker starts when its place is first used.

        Raises:
            ValueError: the size or the time is not positive.
        """
        if size <= 0 or timeout <= 0:
            raise ValueError("a pool needs a positive size and timeout")
        self._timeout = timeout
        self._closed = False
        self._idle: queue.LifoQueue[_Worker | None] = queue.LifoQueue()
        for _ in range(size):
            self._idle.put(None)
        self._size = size

    def verify(self, evidence: Evidence, collateral: Collateral, anchor: TrustAnchor, now: int) -> VerifiedEvidence:
        """Verify in a worker.

        Raises:
            SecflError: as `verifier.verify`.
            UnavailableError: `verifier.timeout`, `verifier.crashed`, `verifier.busy` or `verifier.closed`.
        """
        if self._closed:
            raise UnavailableError("verifier.closed", "the verifier has been shut down")
        try:
            worker = self._idle.get(timeout=_QUEUE_SECONDS)
        except queue.Empty:
            raise UnavailableError("verifier.busy", "no verifier process is free") from None
        # Whatever happens to this worker, its place goes back: a fresh one starts there when needed.
        place: _Worker | None = None
        try:
            worker = worker if worker is not None and worker.alive else _Worker()
            try:
                answer = worker.ask(evidence, (collateral, anchor), now, time.monotonic() + self._timeout)
            except BaseException:
                worker.stop()
                raise
            place = worker
        finally:
            self._idle.put(place)
        return _answer(answer)

    def close(self) -> None:
        """End all workers, waiting for those at work."""
        self._closed = True
        for _ in range(self._size):
            worker = self._idle.get()
            if worker is not None:
                worker.stop()
            self._idle.put(None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Worker:
    # One child, the two pipes to it, and the trust that it holds.

    def __init__(self) -> None:
        self._trust: tuple[Collateral, TrustAnchor] | None = None
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-B", "-m", "secfl.tee.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={"LANG": "C.UTF-8"},
            bufsize=0,
        )
        if self._process.stdin is not None:
            # Writing must not outlast the deadline when the worker does not read.
            os.set_blocking(self._process.stdin.fileno(), False)

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def ask(self, evidence: Evidence, trust: tuple[Collateral, TrustAnchor], now: int, deadline: float) -> bytes:
        # Collateral is three times as large as evidence and hardly ever changes.
        record = None if trust == self._trust else _trust_record(*trust)
        self._trust = trust
        request = strict_json.encode({"evidence": evidence.encode().decode(), "now": now, "trust": record})
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None:
            raise UnavailableError("verifier.crashed", "the verifier process has no pipes")
        try:
            _write_frame(stdin.fileno(), request, deadline)
            return _read_frame(stdout.fileno(), deadline)
        except (BrokenPipeError, EOFError):
            raise UnavailableError("verifier.crashed", "the verifier process ended", hint="try again") from None

    def stop(self) -> None:
        self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        self._process.wait()


def main() -> None:
    """Serve requests on standard input until it ends; the entry point of a worker."""
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    server = _Server()
    gc.freeze()  # what the imports made stays
    while True:
        try:
            request = _read_frame(0, None)
        except EOFError:
            return
        _write_frame(1, server.answer(request), None)


def _trust_record(collateral: Collateral, anchor: TrustAnchor) -> dict[str, str]:
    return {
        "collateral": collateral.encode().decode(),
        "domain": anchor.domain,
        "root": to_base64url(anchor.root_der),
    }


class _Server:
    # The worker's side: keeps the trust that it was given last.

    def __init__(self) -> None:
        self._known = KnownCollateral()
        self._record: dict[str, str] = {}
        self._collateral: Collateral | None = None

    def answer(self, request: bytes) -> bytes:
        try:
            verified = self._verify(strict_json.decode(request, max_bytes=_MAX_FRAME))
        except (EncodingError, FreshnessError, VerificationError) as error:
            failure = {"class": _NAMES[type(error)], "code": error.code, "message": error.message, "hint": error.hint}
            return strict_json.encode({"error": {**failure, "details": dict(error.details)}})
        return strict_json.encode({"verified": verified.to_record()})

    def _verify(self, document: dict[str, Any]) -> VerifiedEvidence:
        if document["trust"] is not None:
            self._record, self._collateral = document["trust"], None
        evidence = Evidence.decode(document["evidence"].encode())
        if self._collateral is None:
            self._collateral = Collateral.decode(self._record["collateral"].encode())
        anchor = TrustAnchor(self._record["domain"], from_base64url(self._record["root"]))
        return verify(evidence, self._collateral, anchor, document["now"], check=self._known.check)


def _answer(data: bytes) -> VerifiedEvidence:
    # EV-36: an answer that is not exactly a result is an error, whatever else it may look like.
    try:
        document: Any = strict_json.decode(data, max_bytes=_MAX_FRAME)
        if "error" not in document:
            return claims_from_record(document["verified"])
        error = document["error"]
        cls, code, message, hint = _CLASSES[error["class"]], error["code"], error["message"], error["hint"]
        details = dict(error["details"])
    except (EncodingError, KeyError, TypeError, ValueError) as cause:
        raise UnavailableError("verifier.crashed", "the verifier process answered out of form") from cause
    raise cls(code, message, hint=hint, **details)


def _read_frame(descriptor: int, deadline: float | None) -> bytes:
    # One side speaks at a time, so whatever follows the frame is out of form.
    data, end = bytearray(), _LENGTH_BYTES
    while len(data) < end:
        _wait(descriptor, deadline, writing=False)
        part = os.read(descriptor, 1 << 16)
        if not part:
            raise EOFError
        data += part
        if len(data) >= _LENGTH_BYTES:
            end = _LENGTH_BYTES + int.from_bytes(data[:_LENGTH_BYTES], "big")
        if end > _MAX_FRAME or len(data) > end:
            raise UnavailableError("verifier.crashed", "the verifier process answered out of form")
    return bytes(data[_LENGTH_BYTES:])


def _write_frame(descriptor: int, data: bytes, deadline: float | None) -> None:
    view = memoryview(len(data).to_bytes(_LENGTH_BYTES, "big") + data)
    while view:
        try:
            view = view[os.write(descriptor, view) :]
        except BlockingIOError:
            _wait(descriptor, deadline, writing=True)


def _wait(descriptor: int, deadline: float | None, *, writing: bool) -> None:
    if deadline is None:
        return
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT if writing else select.POLLIN)
    if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
        raise UnavailableError("verifier.timeout", "the verifier process took too long", hint="try again")


if __name__ == "__main__":
    main()
