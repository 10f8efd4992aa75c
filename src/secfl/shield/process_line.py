"""The process line: the shield's end of the control line to one network process.

The process faces the network and may be taken over by what comes from there. So writing waits a bounded time, reading
never waits, both are bounded in size, and what the process reports is plain text by name or an error.
"""

from __future__ import annotations

import select
import socket
import time

from secfl.crypto import strict_json
from secfl.errors import EncodingError, StateError
from secfl.shield.control import MAX_LINE

__all__ = ["ProcessLine"]

_READ = 64 * 1024
_READS = 16
"""Reads in one call, so that a process that reports without end does not hold up the one who listens."""


class ProcessLine:
    """One control line."""

    def __init__(self, name: str, channel: socket.socket, *, patience: float = 5.0) -> None:
        """Take over one end of a stream socket pair.

        Args:
            patience: seconds that the process may leave a message unread before it counts as hung.
        """
        self.name = name
        self._channel = channel
        self._patience = patience
        self._unread = b""

    def tell(self, message: bytes) -> None:
        """Write one message; a process that has ended is not told, its exit is noticed elsewhere.

        Raises:
            StateError: `network.process_hung`.
        """
        deadline = time.monotonic() + self._patience
        poll = select.poll()
        poll.register(self._channel, select.POLLOUT)
        view = memoryview(message)
        while view:
            left = deadline - time.monotonic()
            if left <= 0 or not poll.poll(left * 1000):
                raise StateError("network.process_hung", f"{self.name} does not take messages")
            try:
                view = view[self._channel.send(view, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL) :]
            except BlockingIOError:
                continue
            except (BrokenPipeError, ConnectionResetError):
                return

    def events(self) -> list[dict[str, str]]:
        """Read what the process has reported since the last call; the rest of a long report comes with the next.

        Raises:
            EncodingError: `network.process_malformed`.
        """
        for _ in range(_READS):
            try:
                data = self._channel.recv(_READ, socket.MSG_DONTWAIT)
            except (BlockingIOError, ConnectionResetError):
                break
            if not data:
                break
            self._unread += data
        *lines, self._unread = self._unread.split(b"\n")
        if len(self._unread) > MAX_LINE:
            raise self._malformed()
        return [self._event(line) for line in lines]

    def close(self) -> None:
        """Say that nothing more will come; the process ends.

        Its reports are left unread, not cut off: a reset line would look to the process like a failure.
        """
        try:
            self._channel.shutdown(socket.SHUT_WR)
        except OSError:
            return

    def _event(self, line: bytes) -> dict[str, str]:
        try:
            event = strict_json.decode(line, max_bytes=MAX_LINE)
        except EncodingError as error:
            raise self._malformed() from error
        if not isinstance(event, dict) or not all(isinstance(value, str) for value in event.values()):
            raise self._malformed()
        return event

    def _malformed(self) -> EncodingError:
        return EncodingError("network.process_malformed", f"{self.name} reports something else than events")
