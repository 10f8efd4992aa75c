"""One canonical JSON object a packet over a local socket, with descriptors beside it.

SOCK_SEQPACKET keeps the boundaries, so there is no framing to confuse. A packet that does not fit, carries more
descriptors than expected, or is not canonical is an error, and whatever descriptors came with it are closed.
"""

from __future__ import annotations

import array
import fcntl
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass

from secfl import errors
from secfl.crypto import strict_json
from secfl.errors import EncodingError, SecflError, UnavailableError

__all__ = ["MAX_PACKET", "Packet", "describe_error", "pair", "rebuild_error", "receive", "sealed_memory", "send"]

MAX_PACKET = 128 * 1024
"""Largest packet, in bytes: a quote with its certificates needs 10 KiB."""
MAX_DESCRIPTORS = 64
_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


@dataclass(frozen=True, slots=True)
class Packet:
    """What arrived: the object and the descriptors, which the receiver now owns."""

    message: dict[str, strict_json.JsonValue]
    descriptors: tuple[int, ...]


def pair() -> tuple[socket.socket, socket.socket]:
    """Make two connected ends."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def send(end: socket.socket, message: dict[str, strict_json.JsonValue], descriptors: Sequence[int] = ()) -> None:
    """Send one packet.

    Raises:
        UnavailableError: `packet.peer_gone`.
        EncodingError: `packet.too_large` or `json.not_canonical`.
    """
    data = strict_json.encode(message)
    if len(data) > MAX_PACKET:
        raise EncodingError("packet.too_large", "the message does not fit into a packet", actual=len(data))
    try:
        socket.send_fds(end, [data], list(descriptors), socket.MSG_NOSIGNAL)
    except OSError as error:
        raise UnavailableError("packet.peer_gone", "the other end of a local socket is gone") from error


def receive(end: socket.socket, *, descriptors: int = 0) -> Packet | None:
    """Receive one packet with at most `descriptors` descriptors; None when the other end closed.

    Raises:
        UnavailableError: `packet.peer_gone`, also on a socket's time-out.
        EncodingError: `packet.malformed` and the codes of strict JSON.
    """
    size = array.array("i").itemsize
    room = socket.CMSG_SPACE(MAX_DESCRIPTORS * size)
    try:
        data, ancillary, flags, _ = end.recvmsg(MAX_PACKET + 1, room, socket.MSG_CMSG_CLOEXEC)
    except OSError as error:
        raise UnavailableError("packet.peer_gone", "the other end of a local socket is gone") from error
    received = array.array("i")
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            received.frombytes(content[: len(content) - len(content) % size])
    if not data and not received:
        return None
    try:
        truncated = bool(flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC))
        return Packet(_decode(data, too_much=truncated or len(received) > descriptors), tuple(received))
    except EncodingError:
        for descriptor in received:
            os.close(descriptor)
        raise


def describe_error(error: SecflError) -> dict[str, strict_json.JsonValue]:
    """Return the members that carry an error to the other end: class, code and message."""
    return {"class": type(error).__name__, "error": error.code, "message": error.message}


def rebuild_error(message: dict[str, strict_json.JsonValue]) -> SecflError:
    """Return the error that the other end described, to be raised here; an unknown class becomes a `StateError`."""
    known = getattr(errors, str(message.get("class")), None)
    kind: type[SecflError] = errors.StateError
    if isinstance(known, type) and issubclass(known, SecflError) and known is not errors.AppraisalError:
        kind = known
    return kind(str(message.get("error")), str(message.get("message")))


def sealed_memory(name: str, data: bytes) -> int:
    """Return a memory file with this content that nobody can change, positioned at its start; for larger messages."""
    memory = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with os.fdopen(os.dup(memory), "wb") as stream:
        stream.write(data)
    os.lseek(memory, 0, os.SEEK_SET)
    fcntl.fcntl(memory, fcntl.F_ADD_SEALS, _SEALS)
    return memory


def _decode(data: bytes, *, too_much: bool) -> dict[str, strict_json.JsonValue]:
    if too_much:
        raise EncodingError("packet.malformed", "a packet is too large or carries too many descriptors")
    message = strict_json.decode(data, max_bytes=MAX_PACKET)
    if not isinstance(message, dict):
        raise EncodingError("packet.malformed", "a packet holds one object")
    return message
