"""The line between the shield and its network processes: one canonical JSON object a line, both ways.

The shield is the only one at the other end. When it is gone, nobody renews leases any more, so the process ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from socket import socket
from typing import Protocol, TypeVar

from secfl.crypto import strict_json
from secfl.crypto.strict_json import JsonValue
from secfl.errors import EncodingError
from secfl.shield.identity import Identity

__all__ = [
    "MAX_LINE",
    "Control",
    "Message",
    "Service",
    "control_line",
    "identity_update",
    "lease_table",
    "revocations",
    "run_service",
]

MAX_LINE = 1024 * 1024
"""Longest line, in bytes: the leases of some thousand peers."""
Message = Mapping[str, JsonValue]
"""What the shield says."""
PeerName = tuple[str, str]
"""Site and node key: a relaunched site with a new key is another peer."""


class Control:
    """The child's end."""

    def __init__(self, channel: socket) -> None:
        """Take over one end of a stream socket pair."""
        channel.settimeout(0)
        self._channel = channel
        self._writer: asyncio.StreamWriter | None = None

    async def messages(self) -> AsyncIterator[Message]:
        """Yield the shield's messages until it closes its end.

        Raises:
            EncodingError: `control.malformed`.
        """
        reader, self._writer = await asyncio.open_unix_connection(sock=self._channel, limit=MAX_LINE)
        self.report("ready")
        while line := await reader.readline():
            message = strict_json.decode(line.removesuffix(b"\n"), max_bytes=MAX_LINE)
            if not isinstance(message, dict) or not isinstance(message.get("op"), str):
                raise EncodingError("control.malformed", "a control message is an object with an operation")
            yield message

    def report(self, event: str, **values: str) -> None:
        """Tell the shield; a shield that does not listen loses events, it never stops the traffic."""
        writer = self._writer
        if writer is not None and writer.transport.get_write_buffer_size() < MAX_LINE:
            writer.write(strict_json.encode({"event": event, **values}) + b"\n")


class Service(Protocol):
    """What a child serves."""

    async def run(self) -> None:
        """Serve until cancelled."""


Served = TypeVar("Served", bound=Service)


def run_service(make: Callable[[Control], Served], apply: Callable[[Served, Message], None], channel: socket) -> None:
    """Serve while the shield holds its end of the channel; an end of either ends both. For a forked child.

    Args:
        make: makes the service inside the running event loop; it may report on the line.
        apply: does what the shield says.

    Raises:
        SecflError: whatever ended the service, `control.malformed` among others.
    """

    async def serve() -> None:
        line = Control(channel)
        service = make(line)
        await _serve_until_closed(service.run(), line, lambda message: apply(service, message))

    asyncio.run(serve())


async def _serve_until_closed(
    serving: Coroutine[None, None, None], line: Control, apply: Callable[[Message], None]
) -> None:

    async def listen(task: asyncio.Task[None]) -> None:
        async for message in line.messages():
            apply(message)
        task.cancel()

    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(listen(group.create_task(serving)))
    except ExceptionGroup as raised:
        first: Exception = raised
        while isinstance(first, ExceptionGroup):
            first = first.exceptions[0]
        raise first from raised


def control_line(op: str, **values: JsonValue) -> bytes:
    """Write one message of the shield.

    Raises:
        EncodingError: `json.not_canonical`.
    """
    return strict_json.encode({"op": op, **values}) + b"\n"


def identity_update(message: Message) -> Identity:
    """Read `{"op":"identity","certificate":PEM,"key":PEM}`.

    Raises:
        EncodingError: `control.malformed`.
    """
    certificate, key = message.get("certificate"), message.get("key")
    if set(message) != {"op", "certificate", "key"} or not isinstance(certificate, str) or not isinstance(key, str):
        raise _malformed()
    return Identity(certificate.encode(), key.encode())


def lease_table(message: Message) -> dict[PeerName, int]:
    """Read `{"op":"leases","peers":[{"site","node_key","lease_until"}]}`; it replaces the table before.

    Raises:
        EncodingError: `control.malformed`.
    """
    result: dict[PeerName, int] = {}
    for entry in _peers(message, {"lease_until", "node_key", "site"}):
        if not isinstance(entry["lease_until"], int):
            raise _malformed()
        result[_name(entry)] = entry["lease_until"]
    return result


def revocations(message: Message) -> frozenset[PeerName]:
    """Read `{"op":"revoked","peers":[{"site","node_key"}]}`; it replaces the set before.

    Raises:
        EncodingError: `control.malformed`.
    """
    return frozenset(_name(entry) for entry in _peers(message, {"node_key", "site"}))


def _peers(message: Message, fields: set[str]) -> list[dict[str, JsonValue]]:
    peers = message.get("peers")
    if set(message) != {"op", "peers"} or not isinstance(peers, list):
        raise _malformed()
    if not all(isinstance(entry, dict) and set(entry) == fields for entry in peers):
        raise _malformed()
    return peers


def _name(entry: dict[str, JsonValue]) -> PeerName:
    site, node_key = entry["site"], entry["node_key"]
    if not isinstance(site, str) or not isinstance(node_key, str):
        raise _malformed()
    return site, node_key


def _malformed() -> EncodingError:
    return EncodingError("control.malformed", "not a control message of this kind")
