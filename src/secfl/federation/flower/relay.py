"""The loopback relay of the plain layout: it times answers as the gateway does, and does nothing else.

Flower's SuperNode sleeps three seconds after an empty pull and half a second when a reply is not ready at once. The
gateway holds such answers back; the plain layout has no gateway, so a fair comparison needs the same timing. The relay
ends TLS, forwards every request unchanged to the SuperLink over TLS, and checks neither paths nor keys.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from dataclasses import dataclass
from pathlib import Path

from secfl.federation.flower.launch import HOST, GatewayRules

__all__ = ["Relay", "RelayFiles"]

_MAX_HEAD = 64 * 1024
_MAX_BODY = 64 * 1024 * 1024
"""Flower sends objects in pieces of 5 MB."""
_SIGNAL_POLL_SECONDS = 0.02
_CONNECT_POLL_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class RelayFiles:
    """What the relay reads.

    Attributes:
        certificate: PEM chain shown to SuperNodes, also the SuperLink's.
        private_key: its PEM key.
        root_certificate: PEM root that the SuperLink's certificate must lead to.
        pending: file whose change says that messages wait.
        admitted: file that exists once all nodes are registered; requests wait for it.
    """

    certificate: Path
    private_key: Path
    root_certificate: Path
    pending: Path
    admitted: Path


@dataclass(slots=True)
class _Exchange:
    head: bytes
    body: bytes
    path: str

    @property
    def whole(self) -> bytes:
        return self.head + self.body


class _Closed(Exception):  # noqa: N818  # an ordinary end, not an error
    """The other side ended the connection between two messages."""


class Relay:
    """Forwards connections from SuperNodes to one SuperLink."""

    def __init__(self, rules: GatewayRules, files: RelayFiles, superlink_port: int) -> None:
        self._rules = rules
        self._files = files
        self._port = superlink_port
        self._changed = asyncio.Event()
        self._admitted = asyncio.Event()
        self._upstream_tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._upstream_tls.load_verify_locations(files.root_certificate)
        self._server_tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._server_tls.minimum_version = ssl.TLSVersion.TLSv1_3
        self._server_tls.load_cert_chain(files.certificate, files.private_key)

    async def serve(self, port: int) -> None:
        """Listen on loopback until the task is cancelled."""
        server = await asyncio.start_server(self._client, HOST, port, ssl=self._server_tls, limit=_MAX_HEAD)
        async with server, asyncio.TaskGroup() as tasks:
            tasks.create_task(self._watch())
            await server.serve_forever()

    async def _watch(self) -> None:
        last = 0
        while True:
            if not self._admitted.is_set() and self._files.admitted.exists():
                self._admitted.set()
            with contextlib.suppress(FileNotFoundError):
                version = self._files.pending.stat().st_mtime_ns
                if version != last:
                    last = version
                    event, self._changed = self._changed, asyncio.Event()
                    event.set()
            await asyncio.sleep(_SIGNAL_POLL_SECONDS)

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream = _Upstream(self._port, self._upstream_tls)
        try:
            while True:
                request = await _read(reader)
                await self._admitted.wait()
                answer = await self._forward(request, reader, upstream)
                writer.write(answer.whole)
                await writer.drain()
        except (_Closed, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError):
            pass  # a broken or malformed connection ends; Flower opens another
        finally:
            upstream.close()
            writer.close()

    async def _forward(self, request: _Exchange, reader: asyncio.StreamReader, upstream: _Upstream) -> _Exchange:
        hold = self._rules.hold_seconds.get(request.path, 0)
        linger = self._rules.linger_milliseconds.get(request.path, 0)
        changed = self._changed  # taken before asking, so that no signal falls between
        answer = await upstream.ask(request)
        if linger:
            await asyncio.sleep(linger / 1000)
        deadline = asyncio.get_running_loop().time() + hold
        while hold and not answer.body and answer.head.startswith(b"HTTP/1.1 200"):
            left = deadline - asyncio.get_running_loop().time()
            if left <= 0 or reader.at_eof():  # a message must not be fetched for a client that is gone
                break
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(changed.wait(), min(self._rules.repeat_seconds, left))
            changed = self._changed
            answer = await upstream.ask(request)
        return answer


class _Upstream:
    """One connection to the SuperLink, reopened when the SuperLink closed it while idle."""

    def __init__(self, port: int, tls: ssl.SSLContext) -> None:
        self._port = port
        self._tls = tls
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, request: _Exchange) -> _Exchange:
        if self._streams is not None:
            try:
                return await self._exchange(request)
            except (OSError, _Closed, asyncio.IncompleteReadError):
                self.close()
        while self._streams is None:
            try:
                self._streams = await asyncio.open_connection(HOST, self._port, ssl=self._tls, limit=_MAX_HEAD)
            except ConnectionRefusedError:
                await asyncio.sleep(_CONNECT_POLL_SECONDS)  # the SuperLink is still starting
        return await self._exchange(request)

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None

    async def _exchange(self, request: _Exchange) -> _Exchange:
        if self._streams is None:
            raise _Closed
        reader, writer = self._streams
        writer.write(request.whole)
        await writer.drain()
        return await _read(reader)


async def _read(reader: asyncio.StreamReader) -> _Exchange:
    """Read one HTTP/1.1 message whose length is declared; both Flower's client and server send only such."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError as error:
        if not error.partial:
            raise _Closed from None
        raise
    first, *fields = head[:-4].decode("latin-1").split("\r\n")
    length = 0
    for field in fields:
        name, _, value = field.partition(":")
        if name.lower() == "content-length":
            length = int(value)
        elif name.lower() == "transfer-encoding":
            raise ValueError("only messages of declared length are relayed")
    if not 0 <= length <= _MAX_BODY:
        raise ValueError("the message is too large")
    body = await reader.readexactly(length) if length else b""
    parts = first.split(" ")
    return _Exchange(head, body, parts[1] if len(parts) == 3 else "")
