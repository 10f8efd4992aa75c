"""The channel between a volume's server and the process that reaches the freshness service.

The server has the data key and no network; the shield has the network. One canonical JSON object a packet:

    server -> shield   {"op":"push","volume":hex,"sequence":n,"previous":hex,"tag":hex}
    shield -> server   {"ok":true} or {"error":code,"retry":bool}; retry is false when another writer has the root
    shield -> server   {"op":"stop"}
    server -> shield   {"op":"stopped","sequence":n,"tag":hex} or {"op":"stopped","error":code}, then it ends
    server -> shield   {"op":"failed","code":code}: an operation of the program ended in EIO
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass

from secfl.crypto.encoding import from_hex
from secfl.crypto.strict_json import JsonValue
from secfl.errors import EncodingError, SecflError, StateError, UnavailableError
from secfl.linux import packets
from secfl.volume.storage import Push, Root, RootKeeper

__all__ = ["Answer", "NOT_SEALED", "VolumeProcess", "encode_push", "parse_answer", "parse_push"]

NOT_SEALED = 121
"""Exit status of a server whose last commit was not acknowledged."""
_TAG_BYTES = 32
_MAX_CODE = 100

Message = dict[str, JsonValue]


@dataclass(frozen=True, slots=True)
class Answer:
    """What the shield says to a push: accepted when `error` is empty."""

    error: str
    retry: bool


def encode_push(volume_id: bytes, step: Push) -> Message:
    """Encode a step of the root."""
    return {
        "op": "push",
        "volume": volume_id.hex(),
        "sequence": step.sequence,
        "previous": step.previous.hex(),
        "tag": step.tag.hex(),
    }


def parse_push(message: Message, volume_id: bytes) -> Push:
    """Decode a step of this volume's root.

    Raises:
        EncodingError: `volume.message_malformed` or the codes of hex.
    """
    if set(message) != {"op", "volume", "sequence", "previous", "tag"} or message["volume"] != volume_id.hex():
        raise _malformed()
    sequence, previous, tag = message["sequence"], message["previous"], message["tag"]
    if type(sequence) is not int or sequence < 1 or not isinstance(previous, str) or not isinstance(tag, str):
        raise _malformed()
    return Push(sequence, from_hex(previous, size=_TAG_BYTES), from_hex(tag, size=_TAG_BYTES))


def parse_answer(message: Message) -> Answer:
    """Decode the answer to a push.

    Raises:
        EncodingError: `volume.message_malformed`.
    """
    if message == {"ok": True}:
        return Answer("", retry=False)
    code, retry = message.get("error"), message.get("retry")
    if set(message) != {"error", "retry"} or not isinstance(code, str) or not isinstance(retry, bool) or not code:
        raise _malformed()
    return Answer(code, retry=retry)


class VolumeProcess:
    """A running volume server, as its parent sees it. One thread calls `serve`; any may call `request_stop`."""

    def __init__(self, pid: int, channel: socket.socket, volume_id: bytes) -> None:
        """Take over the parent's end of the channel."""
        self.pid = pid
        self._channel = channel
        self._volume_id = volume_id

    def serve(self, keeper: RootKeeper, failed: Callable[[str], None]) -> Root:
        """Carry pushes to the keeper until the server has stopped, and return the volume's last root.

        Args:
            failed: is told the code of each operation that failed.

        Raises:
            StateError: `volume.not_sealed` when the last state was not acknowledged, or the server was lost.
            EncodingError: the server sent something else than it may.
            UnavailableError: `packet.peer_gone`.
        """
        while True:
            packet = packets.receive(self._channel)
            if packet is None:
                raise StateError("volume.not_sealed", "the volume's server ended without a last commit")
            message = packet.message
            if message.get("op") == "push":
                self._push(keeper, parse_push(message, self._volume_id))
            elif message.get("op") == "failed":
                failed(_code(message, "code"))
            elif message.get("op") == "stopped":
                return _last_root(message)
            else:
                raise _malformed()

    def request_stop(self) -> None:
        """Ask for the last commit; `serve` returns when it is done.

        Raises:
            UnavailableError: `packet.peer_gone`.
        """
        packets.send(self._channel, {"op": "stop"})

    def wait(self) -> int:
        """Reap the server and return its exit status: 0, `NOT_SEALED`, another, or minus the signal's number."""
        _, status = os.waitpid(self.pid, 0)
        return os.waitstatus_to_exitcode(status)

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()

    def _push(self, keeper: RootKeeper, step: Push) -> None:
        try:
            keeper.push(*step)
        except SecflError as error:
            # Only "no answer" is worth a retry; after any other refusal what the program sees is not current.
            retry = isinstance(error, UnavailableError)
            packets.send(self._channel, {"error": error.code, "retry": retry})
        else:
            packets.send(self._channel, {"ok": True})


def _last_root(message: Message) -> Root:
    if set(message) == {"op", "error"}:
        code = _code(message, "error")
        raise StateError("volume.not_sealed", "the last state of the volume was not acknowledged", reason=code)
    sequence, tag = message.get("sequence"), message.get("tag")
    if set(message) != {"op", "sequence", "tag"} or type(sequence) is not int or not isinstance(tag, str):
        raise _malformed()
    return Root(sequence, from_hex(tag, size=_TAG_BYTES))


def _code(message: Message, field: str) -> str:
    code = message.get(field)
    if not isinstance(code, str) or not code or len(code) > _MAX_CODE:
        raise _malformed()
    return code


def _malformed() -> EncodingError:
    return EncodingError("volume.message_malformed", "a message of the volume's channel is malformed")
