"""A listener that bounds what a client can hold before it has said anything useful (NW-10).

Handshakes run beside each other up to a limit, above which the oldest is dropped; each has a deadline. A connection
that stays silent, is slow to finish its header, or does not take its answer, is cut. Connections count per peer and in
all.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from socket import socket
from typing import Any

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from secfl.errors import SecflError
from secfl.shield import exchange

__all__ = ["Answerer", "Connection", "Limits", "Listener"]


@dataclass(frozen=True, slots=True)
class Limits:
    """What one end may cost the other. Sizes in bytes, times in seconds.

    Attributes:
        body: largest body; engines send models in chunks of a few MiB.
        header_seconds: until a header is complete, from its first byte or from the start of the connection.
        body_seconds: until a body is complete, besides what its size takes at `body_rate`; also the longest time in
            which a receiver takes nothing.
        body_rate: bytes per second that a sender must reach.
        handshake_seconds: until TLS is established.
        idle_seconds: until an unused connection is closed; longer than a client keeps it, so that the client does it.
        handshakes: handshakes at a time.
        connections: connections at a time.
        peer_connections: connections at a time of one peer.
        answer_seconds: until the upstream end answers.
    """

    body: int = 64 * 1024 * 1024
    header_seconds: float = 10
    body_seconds: float = 15
    body_rate: int = 64 * 1024
    handshake_seconds: float = 10
    idle_seconds: float = 75
    handshakes: int = 128
    connections: int = 512
    peer_connections: int = 16
    answer_seconds: float = 60


class Connection(RequestHandler):
    """One connection of a client, with its header deadline."""

    def __init__(self, listener: Listener, server: web.Server, limits: Limits) -> None:
        """Made by the listener for each accepted socket."""
        super().__init__(
            server,
            loop=asyncio.get_running_loop(),
            keepalive_timeout=limits.idle_seconds,
            access_log=None,  # type: ignore[arg-type]  # aiohttp takes None for "no log"
            max_line_size=4096,
            max_headers=64,
            max_field_size=8190,
            lingering_time=1.0,
            read_bufsize=1024 * 1024,
            auto_decompress=False,
        )
        self._listener = listener
        self._limits = limits
        self._deadline: asyncio.TimerHandle | None = None
        self._stalled: asyncio.TimerHandle | None = None
        self._busy = False
        self._channel: asyncio.BaseTransport | None = None
        self.leaf = b""
        """SHA-256 of our own certificate on this connection."""
        self.state: Any = None
        """What the owner of the listener keeps for the connection."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start the header deadline and report the connection."""
        super().connection_made(transport)
        self._channel = transport
        self._arm()
        self._listener.opened(self)

    def data_received(self, data: bytes) -> None:
        """Start the header deadline with the first byte of a request."""
        if not self._busy and self._deadline is None:
            self._arm()
        super().data_received(data)

    def pause_writing(self) -> None:
        """The client takes nothing at the moment: give it a deadline."""
        super().pause_writing()
        self._stalled = asyncio.get_running_loop().call_later(self._limits.body_seconds, self.cut)

    def resume_writing(self) -> None:
        """The client goes on reading."""
        super().resume_writing()
        self._release()

    def connection_lost(self, exc: BaseException | None) -> None:
        """Stop the deadlines and report the end."""
        self._disarm()
        self._release()
        self._listener.closed(self)
        super().connection_lost(exc)

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        """Answer what the HTTP parser or a defect refused with a fixed sentence; details stay inside."""
        del request, message
        if status >= 500:
            self.log_exception("a request failed by a defect", exc_info=exc)
        code = "gateway.malformed_request" if status < 500 else "gateway.internal"
        return exchange.refusal_response(status, code, "the request cannot be handled")

    def begin(self) -> None:
        """A complete header has arrived."""
        self._busy = True
        self._disarm()

    def end(self) -> None:
        """The request is answered."""
        self._busy = False

    @property
    def channel(self) -> ssl.SSLObject | None:
        """The TLS object of the connection."""
        value = self._channel.get_extra_info("ssl_object") if self._channel is not None else None
        return value if isinstance(value, ssl.SSLObject) else None

    def cut(self) -> None:
        """Drop the connection at once, whatever it is doing."""
        if isinstance(self._channel, asyncio.WriteTransport):
            self._channel.abort()

    def _arm(self) -> None:
        self._disarm()
        self._deadline = asyncio.get_running_loop().call_later(self._limits.header_seconds, self.cut)

    def _disarm(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _release(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None


Answerer = Callable[[web.BaseRequest, Connection], Awaitable[web.StreamResponse]]
"""What the owner of a listener does with a request whose header is complete."""


class Listener:
    """Accepts on a given socket and serves HTTP/1.1 on each connection."""

    def __init__(
        self,
        listen: socket,
        answer: Answerer,
        *,
        limits: Limits,
        context: ssl.SSLContext | None,
        leaf: bytes = b"",
    ) -> None:
        """Take over a bound and listening socket.

        Args:
            answer: answers one request; an error of ours becomes its refusal.
            context: None only towards the program inside, when the policy gives no certificate.
            leaf: SHA-256 of the certificate in `context`.
        """
        listen.settimeout(0)
        self._listen = listen
        self._limits = limits
        self._context = context
        self._leaf = leaf
        self._answer = answer
        self._server = web.Server(self._handle, handler_cancellation=True)
        self._handshakes: dict[asyncio.Task[None], None] = {}
        self.connections: set[Connection] = set()
        self.on_open: Callable[[Connection], None] | None = None
        """Called for each new connection; may cut it."""

    def replace_context(self, context: ssl.SSLContext, leaf: bytes) -> None:
        """Use a renewed certificate for connections from now on."""
        self._context, self._leaf = context, leaf

    async def run(self) -> None:
        """Accept until cancelled."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                try:
                    client, _ = await loop.sock_accept(self._listen)
                except OSError:
                    # Out of descriptors: those that wait go away by their deadlines.
                    await asyncio.sleep(0.05)
                    continue
                if len(self._handshakes) >= self._limits.handshakes:
                    next(iter(self._handshakes)).cancel()
                task = loop.create_task(self._open(client, self._context, self._leaf))
                self._handshakes[task] = None
                task.add_done_callback(self._handshakes.pop)
        finally:
            await self._stop()

    def opened(self, connection: Connection) -> None:
        """Count a connection and show it to the owner."""
        self.connections.add(connection)
        if len(self.connections) > self._limits.connections:
            connection.cut()
        elif self.on_open is not None:
            self.on_open(connection)

    def closed(self, connection: Connection) -> None:
        """Forget a connection."""
        self.connections.discard(connection)

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        connection = request.protocol
        if not isinstance(connection, Connection):
            raise TypeError("served by another listener")
        connection.begin()
        try:
            return await self._answer(request, connection)
        except SecflError as error:
            return exchange.refusal(error)
        finally:
            connection.end()

    async def _open(self, client: socket, context: ssl.SSLContext | None, leaf: bytes) -> None:
        def build() -> Connection:
            connection = Connection(self, self._server, self._limits)
            connection.leaf = leaf
            return connection

        seconds = {"ssl_handshake_timeout": self._limits.handshake_seconds, "ssl_shutdown_timeout": 2.0}
        loop = asyncio.get_running_loop()
        try:
            # A failed handshake is the client's business: it learns it from TLS, nobody else is disturbed.
            with contextlib.suppress(OSError, ssl.SSLError):
                await loop.connect_accepted_socket(build, client, ssl=context, **(seconds if context else {}))
        except asyncio.CancelledError:
            client.close()
            raise

    async def _stop(self) -> None:
        self._listen.close()
        for task in list(self._handshakes):
            task.cancel()
        for connection in list(self.connections):
            connection.cut()
        await self._server.shutdown(1)
