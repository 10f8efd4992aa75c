"""The pool of verifier processes, as the manager's event loop sees it.

A worker gets its next requests while it still works on one, so that neither side waits for the other; it answers in
order. What ends a worker, a crash, a hang or an answer out of form, refuses only the request that it worked on: those
behind it go to a fresh worker.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, Self

from secfl.attestation.claims import VerifiedEvidence
from secfl.attestation.evidence import Evidence
from secfl.crypto import strict_json
from secfl.crypto.encoding import to_base64url
from secfl.errors import EncodingError, SecflError, UnavailableError
from secfl.tee.anchor import TrustAnchor
from secfl.tee.claims_record import claims_from_record
from secfl.tee.collateral import Collateral
from secfl.tee.worker import CLASSES, LENGTH_BYTES, MAX_FRAME, frame, join_request

__all__ = ["VerifierPool"]

_TIMEOUT_SECONDS: Final = 10.0
"""Longest wait for one verification, which takes about 1 ms; a cold start of a worker takes about half a second."""
_QUEUE_SECONDS: Final = 10.0
"""Longest wait for a place at a worker."""
_DEPTH: Final = 4
"""Requests that a worker holds at most, the one it works on among them."""
_READ_BYTES: Final = 1 << 16


class VerifierPool:
    """A few worker processes; implements `verifier.AsyncEvidenceVerifier` for one event loop."""

    def __init__(self, size: int = 1, *, timeout: float = _TIMEOUT_SECONDS) -> None:
        """Prepare `size` places; a worker starts when its place is first used.

        Raises:
            ValueError: the size or the time is not positive.
        """
        if size <= 0 or timeout <= 0:
            raise ValueError("a pool needs a positive size and timeout")
        self._timeout = timeout
        self._closed = False
        self._places = asyncio.Semaphore(size * _DEPTH)
        self._workers: list[_Worker | None] = [None] * size

    async def verify(
        self, evidence: Evidence, collateral: Collateral, anchor: TrustAnchor, now: int
    ) -> VerifiedEvidence:
        """Verify in a worker.

        Raises:
            SecflError: as `verifier.verify`.
            UnavailableError: `verifier.timeout`, `verifier.crashed`, `verifier.busy` or `verifier.closed`.
        """
        if self._closed:
            raise UnavailableError("verifier.closed", "the verifier has been shut down")
        try:
            async with asyncio.timeout(_QUEUE_SECONDS):
                await self._places.acquire()
        except TimeoutError:
            raise UnavailableError("verifier.busy", "no verifier process is free") from None
        try:
            return _answer(await self._ask(evidence, (collateral, anchor), now))
        finally:
            self._places.release()

    async def _ask(self, evidence: Evidence, trust: tuple[Collateral, TrustAnchor], now: int) -> bytes:
        deadline = asyncio.get_running_loop().time() + self._timeout
        while True:
            worker = self._worker()
            request = worker.ask(evidence, trust, now)
            try:
                async with asyncio.timeout_at(deadline):
                    return await request
            except TimeoutError:
                worker.end(UnavailableError("verifier.crashed", "the verifier process was ended", hint="try again"))
                raise UnavailableError(
                    "verifier.timeout", "the verifier process took too long", hint="try again"
                ) from None
            except _Displaced:
                continue

    @property
    def pids(self) -> list[int]:
        """The workers that run."""
        return [worker.pid for worker in self._workers if worker is not None and worker.alive]

    def close(self) -> None:
        """End all workers; who still waits for one gets `verifier.closed`."""
        self._closed = True
        for worker in self._workers:
            if worker is not None:
                worker.end(UnavailableError("verifier.closed", "the verifier has been shut down"))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _worker(self) -> _Worker:
        # Whatever happened to a worker, its place stays: a fresh one starts there when needed.
        if self._closed:
            raise UnavailableError("verifier.closed", "the verifier has been shut down")
        load = [len(worker) if worker is not None and worker.alive else 0 for worker in self._workers]
        place = load.index(min(load))
        worker = self._workers[place]
        if worker is None or not worker.alive:
            worker = self._workers[place] = _Worker(asyncio.get_running_loop())
        return worker


class _Displaced(Exception):  # noqa: N818  # not an error: the request goes to another worker
    """The worker ended while it worked on an earlier request."""


class _Worker:
    # One child, the two pipes to it, the trust that it holds, and those who wait for its answers, in order.

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._trust: tuple[Collateral, TrustAnchor] | None = None
        self._waiting: deque[asyncio.Future[bytes]] = deque()
        self._out, self._in = bytearray(), bytearray()
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-B", "-m", "secfl.tee.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={"LANG": "C.UTF-8"},
            bufsize=0,
        )
        self._ended = self._process.stdin is None or self._process.stdout is None
        if self._process.stdin is not None and self._process.stdout is not None:
            self._write_fd, self._read_fd = self._process.stdin.fileno(), self._process.stdout.fileno()
            os.set_blocking(self._write_fd, False)
            os.set_blocking(self._read_fd, False)
            loop.add_reader(self._read_fd, self._read)

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def alive(self) -> bool:
        return not self._ended and self._process.poll() is None

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, evidence: Evidence, trust: tuple[Collateral, TrustAnchor], now: int) -> asyncio.Future[bytes]:
        # Collateral is three times as large as evidence and hardly ever changes.
        record = None if trust == self._trust else _trust_record(*trust)
        self._trust = trust
        answer: asyncio.Future[bytes] = self._loop.create_future()
        self._waiting.append(answer)
        self._out += frame(join_request({"kind": evidence.kind, "now": now, "trust": record}, evidence.blob))
        self._write()
        return answer

    def end(self, error: SecflError) -> None:
        """Kill the child; the request that it worked on gets the error."""
        if self._ended:
            return
        self._ended = True
        if not self._loop.is_closed():
            self._loop.remove_reader(self._read_fd)
            self._loop.remove_writer(self._write_fd)
        self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        self._process.wait()
        reason: Exception = error  # for the first: the child worked on that one
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_exception(reason)
            reason = _Displaced()

    def _write(self) -> None:
        with self._ends_on_error():
            try:
                while self._out:
                    del self._out[: os.write(self._write_fd, self._out)]
                self._loop.remove_writer(self._write_fd)
            except BlockingIOError:
                self._loop.add_writer(self._write_fd, self._write)

    def _read(self) -> None:
        with self._ends_on_error():
            part = os.read(self._read_fd, _READ_BYTES)
            if not part:
                raise EOFError
            self._in += part
            while len(self._in) >= LENGTH_BYTES:
                end = LENGTH_BYTES + int.from_bytes(self._in[:LENGTH_BYTES], "big")
                if end > MAX_FRAME or not self._waiting:
                    raise _out_of_form()
                if len(self._in) < end:
                    return
                answer = bytes(self._in[LENGTH_BYTES:end])
                del self._in[:end]
                waiting = self._waiting.popleft()
                if not waiting.done():  # who asked may have gone
                    waiting.set_result(answer)

    @contextmanager
    def _ends_on_error(self) -> Iterator[None]:
        try:
            yield
        except BlockingIOError:
            pass  # woken for nothing
        except (OSError, EOFError):
            self.end(UnavailableError("verifier.crashed", "the verifier process ended", hint="try again"))
        except UnavailableError as error:
            self.end(error)


def _trust_record(collateral: Collateral, anchor: TrustAnchor) -> dict[str, str]:
    return {
        "collateral": collateral.encode().decode(),
        "domain": anchor.domain,
        "root": to_base64url(anchor.root_der),
    }


def _answer(data: bytes) -> VerifiedEvidence:
    # EV-36: an answer that is not exactly a result is an error, whatever else it may look like.
    try:
        document: Any = strict_json.decode(data, max_bytes=MAX_FRAME)
        if "error" not in document:
            return claims_from_record(document["verified"])
        error = document["error"]
        cls, code, message, hint = CLASSES[error["class"]], error["code"], error["message"], error["hint"]
        details = dict(error["details"])
    except (EncodingError, KeyError, TypeError, ValueError) as cause:
        raise _out_of_form() from cause
    raise cls(code, message, hint=hint, **details)


def _out_of_form() -> UnavailableError:
    return UnavailableError("verifier.crashed", "the verifier process answered out of form")
