"""The sidecar: the one way out of a trainer's private network, to the gateway of one attested service.

The program speaks to it on its own loopback, over TLS when the policy gives a certificate. What goes out goes over
attested mTLS inside a sealed session or not at all; nothing in the environment can redirect it.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from socket import socket

from aiohttp import web
from multidict import CIMultiDict

from secfl.errors import (
    AuthorizationError,
    ConfigError,
    EncodingError,
    FreshnessError,
    SecflError,
    UnavailableError,
    VerificationError,
)
from secfl.shield import control as control_line
from secfl.shield.channel import Channel, ChannelSetup
from secfl.shield.control import run_service
from secfl.shield.exchange import answer_with, passing_headers, read_body, require_plain_request
from secfl.shield.identity import Identity, plain_server_context
from secfl.shield.listener import Connection, Listener
from secfl.shield.rules import METHODS, require_plain_target
from secfl.shield.upstream import Answer, SocketFactory

__all__ = ["Sidecar", "SidecarSetup", "run_sidecar"]

_RENEWED = frozenset({"sidecar.gateway_renewed", "sidecar.session_lost"})
"""Codes after which the request certainly did not reach the program, so that it may be sent again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SidecarSetup:
    """All that one egress needs.

    Attributes:
        channel: the way to the gateway.
        identity: the enclave's leaf and TLS key.
        program_tls: certificate and key shown to the program; None for plain loopback inside its private network.
    """

    channel: ChannelSetup
    identity: Identity
    program_tls: Identity | None


class Sidecar:
    """One egress."""

    def __init__(self, setup: SidecarSetup, listen: socket, *, socket_factory: SocketFactory | None = None) -> None:
        """Prepare to serve on a listening socket inside; needs a running event loop.

        Raises:
            ConfigError: `tls.identity` or `tls.authority`.
            EncodingError: `certificate.malformed`.
        """
        self._setup = setup
        self._identity = setup.identity
        self._socket_factory = socket_factory
        self._limits = setup.channel.limits
        self._channel = self._new_channel()
        self._retiring: set[asyncio.Task[None]] = set()
        context = None if setup.program_tls is None else plain_server_context(setup.program_tls)
        self._listener = Listener(listen, self._answer, limits=self._limits, context=context)

    async def run(self) -> None:
        """Serve until cancelled."""
        try:
            await self._listener.run()
        finally:
            await self._channel.close()

    def update_identity(self, identity: Identity) -> None:
        """Use a renewed certificate from the next request on; exchanges under way end with the old one.

        Raises:
            ConfigError: `tls.identity`.
        """
        self._identity = identity
        self._replace_channel()

    def _new_channel(self) -> Channel:
        return Channel(self._setup.channel, self._identity, socket_factory=self._socket_factory)

    def _replace_channel(self) -> None:
        old, self._channel = self._channel, self._new_channel()
        task = asyncio.get_running_loop().create_task(old.retire())
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    async def _answer(self, request: web.BaseRequest, _: Connection) -> web.Response:
        require_plain_request(request)
        if request.method not in METHODS:
            raise EncodingError("gateway.method_unknown", "this method is not forwarded", actual=request.method[:20])
        require_plain_target(request.raw_path)
        headers = passing_headers(request.raw_headers)
        body = await read_body(request.content, request.content_length, limits=self._limits)
        answer = await self._exchange(request.method, request.raw_path, headers, body)
        return answer_with(answer.status, answer.headers, answer.body)

    async def _exchange(self, method: str, target: str, headers: CIMultiDict[str], body: bytes) -> Answer:
        for _ in range(2):
            if not self._channel.usable:
                self._replace_channel()
            try:
                return await self._channel.request(method, target, headers, body)
            except FreshnessError as error:
                if error.code not in _RENEWED:
                    raise _not_attested(error) from error
            except (AuthorizationError, VerificationError) as error:
                raise _not_attested(error) from error
        raise UnavailableError("sidecar.gateway_unavailable", "the gateway changes its certificate")


def _not_attested(error: SecflError) -> UnavailableError:
    # To the program this is an outage: a client that is told "forbidden" may give up although a renewal is on its way.
    return UnavailableError("sidecar.gateway_not_attested", f"nothing is sent: {error.code}")


def run_sidecar(
    setup: SidecarSetup, listen: socket, control: socket, *, socket_factory: SocketFactory | None = None
) -> None:
    """Serve until the shield closes its end of `control`; to be called in a forked child.

    Raises:
        ConfigError: `tls.identity`, `tls.authority` or `control.unknown`.
        EncodingError: `certificate.malformed` or `control.malformed`.
    """
    run_service(lambda _: Sidecar(setup, listen, socket_factory=socket_factory), _apply, control)


def _apply(sidecar: Sidecar, message: control_line.Message) -> None:
    if message["op"] != "identity":
        raise ConfigError("control.unknown", "no such control message", actual=str(message["op"])[:50])
    sidecar.update_identity(control_line.identity_update(message))
