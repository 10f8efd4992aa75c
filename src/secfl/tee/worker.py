"""Verifier processes: verification apart from the program that asked for it.

The library holds the interpreter's lock while it works and aborts its process should it ever panic. So the manager
verifies in workers: bounded in memory and time, replaced after a crash or a hang, and a failure of any sort is a
refusal (EV-32). Requests and answers are length-prefixed canonical JSON; a worker inherits no descriptor and no
environment.
"""

from __future__ import annotations

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
from secfl.tee.verifier import verify

__all__ = ["VerifierPool", "main"]

_TIMEOUT_SECONDS: Final = 10.0
"""Longest wait for one verification, which takes about 5 ms; a cold start of a worker takes about half a second."""
_QUEUE_SECONDS: Final = 10.0
"""Longest wait for a free worker."""
_MEMORY_BYTES: Final = 512 * 1024 * 1024
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
        request = _request(evidence, collateral, anchor, now)
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
                answer = worker.ask(request, time.monotonic() + self._timeout)
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
    # One child and the two pipes to it.

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-B", "-m", "secfl.tee.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={"LANG": "C.UTF-8"},
            bufsize=0,
        )

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def ask(self, request: bytes, deadline: float) -> bytes:
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None:
            raise UnavailableError("verifier.crashed", "the verifier process has no pipes")
        try:
            _write_all(stdin.fileno(), _frame(request), deadline)
            size = int.from_bytes(_read_exactly(stdout.fileno(), 4, deadline), "big")
            if size > _MAX_FRAME:
                raise UnavailableError("verifier.crashed", "the verifier process answered out of form")
            return _read_exactly(stdout.fileno(), size, deadline)
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
    while True:
        try:
            size = int.from_bytes(_read_exactly(0, 4, None), "big")
        except EOFError:
            return
        _write_all(1, _frame(_serve(_read_exactly(0, size, None))), None)


def _request(evidence: Evidence, collateral: Collateral, anchor: TrustAnchor, now: int) -> bytes:
    return strict_json.encode(
        {
            "collateral": collateral.encode().decode(),
            "domain": anchor.domain,
            "evidence": evidence.encode().decode(),
            "now": now,
            "root": to_base64url(anchor.root_der),
        }
    )


def _serve(request: bytes) -> bytes:
    try:
        document = strict_json.decode(request, max_bytes=_MAX_FRAME)
        verified = verify(
            Evidence.decode(document["evidence"].encode()),
            Collateral.decode(document["collateral"].encode()),
            TrustAnchor(document["domain"], from_base64url(document["root"])),
            document["now"],
        )
    except (EncodingError, FreshnessError, VerificationError) as error:
        failure = {"class": _NAMES[type(error)], "code": error.code, "message": error.message, "hint": error.hint}
        return strict_json.encode({"error": {**failure, "details": dict(error.details)}})
    return strict_json.encode({"verified": verified.to_record()})


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


def _frame(data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + data


def _read_exactly(descriptor: int, size: int, deadline: float | None) -> bytes:
    parts: list[bytes] = []
    while size:
        _wait(descriptor, deadline, writing=False)
        part = os.read(descriptor, min(size, 1 << 16))
        if not part:
            raise EOFError
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _write_all(descriptor: int, data: bytes, deadline: float | None) -> None:
    view = memoryview(data)
    while view:
        _wait(descriptor, deadline, writing=True)
        # A pipe that is ready takes at least this much without blocking (POSIX PIPE_BUF).
        view = view[os.write(descriptor, view[: select.PIPE_BUF]) :]


def _wait(descriptor: int, deadline: float | None, *, writing: bool) -> None:
    if deadline is None:
        return
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT if writing else select.POLLIN)
    if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
        raise UnavailableError("verifier.timeout", "the verifier process took too long", hint="try again")


if __name__ == "__main__":
    main()
