"""The gateway's side towards the program: one request, one answer, and how long it waits.

An engine's client that polls sleeps for seconds after an empty answer. Holding that answer back and asking again hides
the sleep; the pace slows down while nothing comes and is brisk again as soon as anything moves.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from socket import socket
from typing import Any

import aiohttp
from multidict import CIMultiDict
from yarl import URL

from secfl.errors import SecflError, UnavailableError
from secfl.protocol.session import OVERHEAD_BYTES
from secfl.shield.exchange import STATUS_HEADER, content, passing_headers, read_body
from secfl.shield.identity import pinned_client_context
from secfl.shield.listener import Limits
from secfl.shield.rules import Permission

__all__ = ["Answer", "Pending", "SocketFactory", "Upstream", "client_session", "send"]

SocketFactory = Callable[[Any], socket]
"""Makes the unconnected socket for an address; gives the shield a socket of the program's network namespace."""

_FASTEST, _SLOWEST, _SLOWDOWN = 0.03, 0.25, 1.25
"""Seconds between two questions on behalf of one held request, and the growth between them."""
_WATCH_SECONDS, _REPEAT_SECONDS = 0.01, 2.0
"""A program's own signal is looked at this often; without a change the question is repeated this often."""
Pending = Callable[[], object]
"""Gives a value that changes when the program has something for its peers."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the other end answered; `inner_status` is what a gateway says the program's status was."""

    status: int
    headers: CIMultiDict[str]
    body: bytes
    inner_status: str | None = None


def client_session(connector: aiohttp.BaseConnector, limits: Limits) -> aiohttp.ClientSession:
    """A client that adds nothing of its own: no proxy, cookie, redirect, decompression or default header."""
    return aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        trust_env=False,
        auto_decompress=False,
        skip_auto_headers=("Accept", "Accept-Encoding", "Content-Type", "User-Agent"),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=5, sock_read=limits.answer_seconds),
        read_bufsize=1024 * 1024,
    )


async def send(
    client: aiohttp.ClientSession, method: str, url: URL, *, headers: CIMultiDict[str], body: bytes, limits: Limits
) -> Answer:
    """Send one request and read the whole answer.

    Raises:
        EncodingError: `gateway.body_too_large` or `gateway.too_slow` for the answer.
        OSError, aiohttp.ClientError: the other end does not answer properly.
    """
    headers = CIMultiDict(headers)
    headers["Content-Length"] = str(len(body))
    async with client.request(method, url, headers=headers, data=content(body), allow_redirects=False) as response:
        # 101 and its kind would leave HTTP, and the rules with it.
        if response.status < 200:
            raise aiohttp.ClientPayloadError("an informational answer ends no exchange")
        answered = await read_body(
            response.content, response.content_length, limits=limits, most=limits.body + OVERHEAD_BYTES
        )
        return Answer(
            response.status,
            passing_headers(response.raw_headers),
            answered,
            inner_status=response.headers.get(STATUS_HEADER),
        )


class Upstream:
    """The program's server in its private network."""

    def __init__(
        self,
        address: str,
        *,
        authority: bytes | None,
        limits: Limits,
        socket_factory: SocketFactory | None = None,
        pending: Pending | None = None,
    ) -> None:
        """Prepare connections to `address:port`.

        Args:
            authority: PEM of the program's own CA; None when the policy names none and loopback is plain.
            pending: the program's own signal that something waits; None when it gives none.

        Raises:
            ConfigError: `tls.authority`.
        """
        context = None if authority is None else pinned_client_context(authority)
        connector = aiohttp.TCPConnector(
            limit=0,
            ssl=context or True,
            # Shorter than the 5 s after which common servers close: a request must not meet a closing connection.
            keepalive_timeout=3,
            use_dns_cache=False,
            socket_factory=socket_factory,
        )
        self._base = f"{'http' if context is None else 'https'}://{address}"
        self._limits = limits
        self._client = client_session(connector, limits)
        self._moved = asyncio.Event()
        self._pending = pending

    async def ask(self, permission: Permission, headers: CIMultiDict[str], body: bytes, *, since: float) -> Answer:
        """Forward a permitted request, letting the answer wait as the rule says.

        Args:
            since: the loop's time at which the client asked: what it has waited already counts, since a message that
                is fetched for a client that gave up is lost.

        Raises:
            UnavailableError: `gateway.upstream_unavailable`.
            EncodingError: as `send`.
        """
        seen = None if self._pending is None else self._pending()
        answer = await self._once(permission, headers, body)
        if permission.linger:
            # A client that asks at fixed steps then finds the consequence of its request at the first step.
            await asyncio.sleep(permission.linger / 1000)
        if permission.hold == 0:
            return answer
        loop = asyncio.get_running_loop()
        until = since + permission.hold
        pause = _FASTEST
        # An empty message of protocol buffers has no bytes: nothing is waiting for this peer.
        while answer.status == 200 and not answer.body and loop.time() + pause < until:
            if self._pending is None:
                pause = await self._paused(pause)
            else:
                seen = await _changed(self._pending, seen)
            answer = await self._once(permission, headers, body)
        if answer.body:
            # Messages for several peers are made together: wake the others.
            self._moved.set()
            self._moved = asyncio.Event()
        return answer

    async def _paused(self, pause: float) -> float:
        moved = self._moved
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(moved.wait(), pause)
        return _FASTEST if moved.is_set() else min(_SLOWEST, pause * _SLOWDOWN)

    async def close(self) -> None:
        """Close all connections."""
        await self._client.close()

    async def _once(self, permission: Permission, headers: CIMultiDict[str], body: bytes) -> Answer:
        url = URL(self._base + permission.target, encoded=True)
        try:
            return await send(self._client, permission.method, url, headers=headers, body=body, limits=self._limits)
        except SecflError:
            raise
        except (OSError, aiohttp.ClientError) as error:
            raise UnavailableError("gateway.upstream_unavailable", "the program does not answer") from error


async def _changed(pending: Pending, seen: object) -> object:
    for _ in range(round(_REPEAT_SECONDS / _WATCH_SECONDS)):
        present = pending()
        if present != seen:
            return present
        await asyncio.sleep(_WATCH_SECONDS)
    return seen
