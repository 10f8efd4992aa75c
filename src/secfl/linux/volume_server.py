"""The process that serves a sealed volume and commits it.

The kernel's requests and the shield's answers come in one loop, so reads go on while a commit waits for the freshness
service. A program's `fsync` is answered only after the acknowledgement; all that arrive during one push are answered
by the next commit. The process holds the volume's key and no network, dies with its parent, and stops in order on
request: last commit, last push, then exit status 0, or `NOT_SEALED`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass

from secfl.errors import ConfigError, SecflError, StateError
from secfl.linux import packets
from secfl.linux.fuse import FuseServer, Reply
from secfl.linux.fuse_mount import fork_server
from secfl.linux.fuse_wire import Opcode, Request, parse_request
from secfl.linux.syscalls import Prctl, prctl
from secfl.linux.volume_channel import NOT_SEALED, VolumeProcess, encode_push, parse_answer
from secfl.linux.volume_operations import VolumeOperations
from secfl.volume.volume import Volume

__all__ = ["CommitPolicy", "VolumeServer", "fork_volume_server"]

_RETRY_SECONDS = 1.0
"""Pause before a step that the service did not answer is pushed again."""


@dataclass(frozen=True, slots=True)
class CommitPolicy:
    """When to commit besides `fsync`, `syncfs` and the orderly stop, which always do.

    Attributes:
        on_close: each `close` waits for a commit (safe, and twenty times slower with many small files).
        on_rename: each `rename` starts a commit, since programs replace checkpoints so; it does not wait, as POSIX
            promises nothing before the directory's `fsync`, and a late failure could not be undone in the kernel.
        interval: most seconds that a change stays uncommitted.
    """

    on_close: bool = False
    on_rename: bool = True
    interval: float = 1.0


class VolumeServer(FuseServer):
    """Serves one volume on one connection."""

    def __init__(
        self, fd: int, volume: Volume, *, channel: socket.socket, policy: CommitPolicy, owner: tuple[int, int]
    ) -> None:
        """Take over a mounted connection and the server's end of the channel."""
        super().__init__(fd, VolumeOperations(volume, owner=owner, report=self._report))
        self._volume = volume
        self._channel = channel
        self._policy = policy
        self._handlers |= {
            Opcode.FLUSH: self._close_file,
            Opcode.FSYNC: self._commit_then_answer,
            Opcode.FSYNCDIR: self._commit_then_answer,
            Opcode.SYNCFS: self._commit_then_answer,
            Opcode.RENAME: self._move,
            Opcode.RENAME2: self._move,
        }
        self._waiting: list[int] = []
        self._answered_by_push: list[int] = []
        self._pushing = False
        self._serving = True
        self._due: float | None = None
        self._failure = ""

    def serve(self) -> None:
        """Answer until the orderly stop or the unmount, and make the last commit.

        Raises:
            StateError: `volume.not_sealed` when the last commit was not acknowledged.
            UnavailableError: `packet.peer_gone` when the shield is gone.
            EncodingError: a message of the kernel or of the shield is malformed.
            ConfigError: `fuse.capability_missing`.
            OSError: the device fails.
        """
        os.set_blocking(self._fd, False)
        poller = select.poll()
        poller.register(self._fd, select.POLLIN)
        poller.register(self._channel, select.POLLIN)
        polled = {self._fd}
        view = memoryview(self._buffer)
        while self._running():
            ready = {fd for fd, _ in poller.poll(self._timeout())}
            if self._fd in ready and not self._serve_one(view):
                self._serving = False
            if self._channel.fileno() in ready:
                self._hear()
            if not self._serving and self._fd in polled:
                polled.remove(self._fd)
                poller.unregister(self._fd)
            self._tick()
        if self._failure or self._volume.dirty or self._volume.in_flight is not None:
            code = self._failure or "volume.not_sealed"
            packets.send(self._channel, {"op": "stopped", "error": code})
            raise StateError("volume.not_sealed", "the last commit was not acknowledged", reason=code)
        root = self._volume.root
        packets.send(self._channel, {"op": "stopped", "sequence": root.sequence, "tag": root.tag.hex()})

    # -- the kernel ------------------------------------------------------------------------------------------------

    def _serve_one(self, view: memoryview) -> bool:
        try:
            size = os.readv(self._fd, [self._buffer])
        except OSError as error:
            if error.errno == errno.ENODEV:
                return False
            # ENOENT: the request was withdrawn; EAGAIN: so was the only one.
            if error.errno in (errno.ENOENT, errno.EINTR, errno.EAGAIN):
                return True
            raise
        answered = self._answer(parse_request(view[:size]))
        if self._due is None and self._volume.dirty:
            self._due = time.monotonic() + self._policy.interval
        return answered

    def _close_file(self, request: Request) -> Reply | None:
        if not self._policy.on_close:
            # The kernel then stops asking; it still writes dirty pages back before it closes a file.
            raise NotImplementedError
        return self._commit_then_answer(request)

    def _move(self, request: Request) -> Reply:
        done = self._rename(request) if request.opcode == Opcode.RENAME else self._rename2(request)
        if self._policy.on_rename:
            self._advance()
        return done

    def _commit_then_answer(self, request: Request) -> Reply | None:
        self._volume.require_usable()
        if not self._volume.dirty and self._volume.in_flight is None:
            return ()
        self._waiting.append(request.unique)
        self._advance()
        return None

    # -- commits ---------------------------------------------------------------------------------------------------

    def _advance(self) -> None:
        """Start the next commit, or push a step again; does nothing while a push waits for its answer."""
        if self._pushing or self._failure:
            return
        step = self._volume.in_flight
        if step is None:
            self._due = None
            try:
                step = self._volume.prepare()
            except OSError as error:
                self._refuse(self._take_waiting(), error.errno or errno.EIO)
                self._due = time.monotonic() + _RETRY_SECONDS
                return
            except SecflError as error:
                self._fail(error)
                return
            waiting = self._take_waiting()
            if step is None:
                self._accept(waiting)
                return
            self._answered_by_push = waiting
        self._pushing = True
        packets.send(self._channel, encode_push(self._volume.volume_id, step))

    def _hear(self) -> None:
        packet = packets.receive(self._channel)
        if packet is None:
            raise StateError("volume.not_sealed", "the process that reaches the freshness service is gone")
        if packet.message == {"op": "stop"}:
            # The program has ended, so its files are closed and all their pages have come.
            self._serving = False
            return
        answer, step = parse_answer(packet.message), self._volume.in_flight
        if not self._pushing or step is None:
            raise StateError("volume.push_pending", "an answer came without a push")
        self._pushing = False
        waiting, self._answered_by_push = self._answered_by_push, []
        if not answer.error:
            self._volume.acknowledge(step)
            self._accept(waiting)
            if self._waiting:
                self._advance()
        elif answer.retry and self._serving:
            # The record stays; whoever waited learns that it is not durable yet, and the step is pushed again.
            self._refuse(waiting + self._take_waiting(), errno.EIO)
            self._due = time.monotonic() + _RETRY_SECONDS
        else:
            self._refuse(waiting, errno.EIO)
            self._fail(StateError(answer.error, "the freshness service refused the volume's new root"))

    def _tick(self) -> None:
        overdue = self._due is not None and time.monotonic() >= self._due
        if overdue or not self._serving:
            self._advance()

    def _fail(self, error: SecflError) -> None:
        self._volume.fail()
        self._failure = error.code
        self._due = None
        self._refuse(self._take_waiting(), errno.EIO)
        self._report(error)

    def _report(self, error: SecflError) -> None:
        packets.send(self._channel, {"op": "failed", "code": error.code})

    def _take_waiting(self) -> list[int]:
        waiting, self._waiting = self._waiting, []
        return waiting

    def _accept(self, waiting: list[int]) -> None:
        for unique in waiting:
            self._reply(unique, 0, ())

    def _refuse(self, waiting: list[int], number: int) -> None:
        for unique in waiting:
            self._reply(unique, number, ())

    # -- the loop --------------------------------------------------------------------------------------------------

    def _running(self) -> bool:
        if self._serving:
            return True
        if self._failure:
            return False
        # An error of the host's storage at the last commit is final too: nobody is left to make room.
        return self._pushing or self._volume.in_flight is not None or (self._volume.dirty and self._due is None)

    def _timeout(self) -> int | None:
        if not self._serving and not self._pushing:
            return 0
        if self._pushing or self._due is None:
            return None
        return max(0, int((self._due - time.monotonic()) * 1000) + 1)


def fork_volume_server(
    fuse_fd: int, volume: Volume, *, policy: CommitPolicy, owner: tuple[int, int], keep: Sequence[int]
) -> VolumeProcess:
    """Serve an open volume in a child that dies with this thread; the caller forgets `volume` afterwards.

    Call it before this process starts threads.

    Args:
        fuse_fd: the mounted connection; the child has its own copy, so the caller closes this one.
        owner: uid and gid that all files belong to.
        keep: the descriptors of the volume's host files.

    Raises:
        OSError: no process or socket is left.
    """
    ours, theirs = packets.pair()

    def serve() -> None:
        # Unprivileged processes may not: then a machine short of memory may stall this server against itself.
        with contextlib.suppress(ConfigError):
            prctl(Prctl.SET_IO_FLUSHER, 1)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        try:
            VolumeServer(fuse_fd, volume, channel=theirs, policy=policy, owner=owner).serve()
        except StateError:
            os._exit(NOT_SEALED)

    pid = fork_server(serve, keep=(fuse_fd, theirs.fileno(), *keep))
    theirs.close()
    return VolumeProcess(pid, ours, volume.volume_id)
