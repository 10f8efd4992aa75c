"""The gateway: the only open port of a service, through which attested peers reach the program inside.

Each request passes these steps in order: peer (service, policy, lease, revocation), rule, node key, sealed session,
body, admission. Only then does the program see a byte. A peer whose lease lapses or is revoked loses its live
connections within a second, held requests included.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from socket import socket

from aiohttp import web

from secfl.crypto.hpke import SealingKey
from secfl.errors import AuthorizationError, ConfigError, EncodingError, SecflError, UnavailableError
from secfl.protocol.session import MAX_MESSAGE, OVERHEAD_BYTES, Ends
from secfl.shield import control as control_line
from secfl.shield.control import Control, run_service
from secfl.shield.exchange import (
    SEQUENCE_HEADER,
    SESSION_HEADER,
    SESSION_PATH,
    STATUS_HEADER,
    answer_with,
    passing_headers,
    read_body,
    refusal,
    require_plain_request,
)
from secfl.shield.identity import (
    Authenticate,
    Identity,
    Peer,
    PeerRules,
    node_key_header,
    require_channel,
    server_context,
)
from secfl.shield.listener import Connection, Limits, Listener
from secfl.shield.rules import Rules
from secfl.shield.sessions import Sessions, session_headers
from secfl.shield.upstream import Pending, SocketFactory, Upstream

__all__ = ["Gateway", "GatewaySetup", "run_gateway"]

_SWEEP_SECONDS = 0.25
_ADMISSION_POLL = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewaySetup:
    """All that one ingress needs.

    Attributes:
        identity: the enclave's leaf and TLS key.
        sealing_key: the enclave's attested HPKE key.
        study_ca: PEM of the CA that issues the peers' certificates.
        authenticate: the check of a peer's certificate.
        peers: what a peer must be.
        rules: what a peer may ask.
        node_key_header: header that must name the node key of the peer's evidence; None when the engine has none.
        upstream: `address:port` of the program.
        upstream_ca: PEM of the program's own CA; None for plain loopback.
        is_admitted: whether the program knows this site by now.
        pending: the program's signal that something waits for its peers; None when it gives none.
        admission_seconds: how long a peer's request waits for that.
        limits: what a peer may cost.
        clock: Unix time.
    """

    identity: Identity
    sealing_key: SealingKey
    study_ca: bytes
    authenticate: Authenticate
    peers: PeerRules
    rules: Rules
    node_key_header: str | None
    upstream: str
    upstream_ca: bytes | None = None
    is_admitted: Callable[[str], bool]
    pending: Pending | None = None
    admission_seconds: float = 25
    limits: Limits = field(default_factory=Limits)
    clock: Callable[[], float] = time.time


@dataclass(slots=True)
class _Guest:
    """A connection's peer, or why there is none."""

    leaf: bytes
    peer: Peer | None = None
    node_key: str | None = None
    error: SecflError | None = None
    admitted: bool = False


class Gateway:
    """One ingress."""

    def __init__(self, setup: GatewaySetup, listen: socket, *, socket_factory: SocketFactory | None = None) -> None:
        """Prepare to serve on a listening socket; needs a running event loop.

        Raises:
            ConfigError: `tls.identity` or `tls.authority`.
            EncodingError: `certificate.malformed`.
        """
        self._setup = setup
        self._sessions = Sessions(setup.sealing_key)
        self._leases: dict[tuple[str, str], int] = {}
        self._revoked: frozenset[tuple[str, str]] = frozenset()
        self._withdrawn: set[tuple[str, str]] = set()
        self._upstream = Upstream(
            setup.upstream,
            authority=setup.upstream_ca,
            limits=setup.limits,
            socket_factory=socket_factory,
            pending=setup.pending,
        )
        context = server_context(setup.identity, setup.study_ca)
        leaf = setup.identity.leaf_hash
        self._listener = Listener(listen, self._answer, limits=setup.limits, context=context, leaf=leaf)
        self._listener.on_open = self._opened
        self.report: Callable[..., None] = lambda *_, **__: None
        """Takes event names and values for the shield."""

    async def run(self) -> None:
        """Serve until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._listener.run())
                group.create_task(self._sweep())
        finally:
            await self._upstream.close()

    def update_identity(self, identity: Identity) -> None:
        """Show a renewed certificate on new connections; live ones stay.

        Raises:
            ConfigError: `tls.identity`.
        """
        self._listener.replace_context(server_context(identity, self._setup.study_ca), identity.leaf_hash)

    def update_leases(self, leases: dict[tuple[str, str], int]) -> None:
        """Take the manager's latest list of peers, by site and node key.

        A peer that the manager listed and lists no more is dropped; one that it never listed may be newer than the
        list and is judged by its certificate.
        """
        self._withdrawn = (self._withdrawn | self._leases.keys()) - leases.keys()
        self._leases = leases
        self._drop_refused()

    def update_revoked(self, revoked: frozenset[tuple[str, str]]) -> None:
        """Take the revoked peers, by site and node key, and drop their connections."""
        self._revoked = revoked
        self._drop_refused()

    def _opened(self, connection: Connection) -> None:
        guest = self._recognize(connection)
        connection.state = guest
        same = sum(1 for other in self._listener.connections if other.state is not None and self._same(other, guest))
        if same > self._setup.limits.peer_connections:
            self.report("connection_refused", code="gateway.too_many_connections", site=_site(guest))
            connection.cut()

    def _recognize(self, connection: Connection) -> _Guest:
        channel = connection.channel
        if channel is None:
            return _Guest(b"", error=AuthorizationError("tls.no_certificate", "no TLS"))
        guest = _Guest(b"")
        try:
            certificate = require_channel(channel)
            guest.leaf = hashlib.sha256(certificate).digest()
            peer = self._setup.authenticate(certificate, int(self._setup.clock()))
            if self._setup.node_key_header is not None:
                guest.node_key = node_key_header(peer.node_key)
            guest.peer = peer
            self._admit(guest)
        except SecflError as error:
            guest.error = error
            self.report("peer_refused", code=error.code, site=_site(guest))
        return guest

    @staticmethod
    def _same(connection: Connection, guest: _Guest) -> bool:
        other: _Guest = connection.state
        if other.peer is None or guest.peer is None:
            return other.leaf == guest.leaf
        return (other.peer.service, other.peer.site) == (guest.peer.service, guest.peer.site)

    def _admit(self, guest: _Guest) -> Peer:
        if guest.error is not None:
            raise guest.error
        if guest.peer is None:
            raise AuthorizationError("tls.no_certificate", "the peer is not known")
        name = (guest.peer.site, guest.peer.node_key)
        if name in self._revoked or name in self._withdrawn:
            raise AuthorizationError("peer.revoked", "the peer was excluded", site=guest.peer.site)
        return self._setup.peers.admit(guest.peer, self._setup.clock(), lease_until=self._leases.get(name))

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP_SECONDS)
            self._drop_refused()

    def _drop_refused(self) -> None:
        for connection in list(self._listener.connections):
            guest: _Guest | None = connection.state
            if guest is None or guest.error is not None:
                continue  # refused at once; the header deadline ends it
            try:
                self._admit(guest)
            except SecflError as error:
                self.report("peer_dropped", code=error.code, site=_site(guest))
                self._sessions.drop(guest.leaf)
                connection.cut()

    async def _answer(self, request: web.BaseRequest, connection: Connection) -> web.Response:
        guest: _Guest = connection.state
        since = asyncio.get_running_loop().time()
        # 1. Who asks: at every request, since a lease ends while a connection lives.
        try:
            peer = self._admit(guest)
        except SecflError as error:
            response = refusal(error)
            response.force_close()
            return response
        # 2. What is asked.
        require_plain_request(request)
        if request.raw_path == SESSION_PATH:
            return await self._agree(request, peer, Ends(guest.leaf, connection.leaf))
        permission = self._setup.rules.authorize(request.method, request.raw_path)
        # 3. In whose name: an attested peer may not speak with another node's key.
        self._require_node_key(request, guest)
        # 4. The sealed body; nothing below is reached with a plain, replayed or changed one.
        session_id, sequence = session_headers(request.headers)
        session = self._sessions.find(session_id, guest.leaf)
        if request.content_length is None:
            raise EncodingError("gateway.length_required", "a sealed body has a length")
        most = self._setup.limits.body + OVERHEAD_BYTES
        sealed = await read_body(request.content, request.content_length, limits=self._setup.limits, most=most)
        body = session.open_request(sequence, request.method, request.raw_path, sealed)
        try:
            # 5. The program must know the peer before it hears it.
            await self._wait_admitted(guest, peer)
            answer = await self._upstream.ask(permission, passing_headers(request.raw_headers), body, since=since)
            content = session.seal_response(sequence, answer.status, answer.body)
        finally:
            session.forget(sequence)
        headers = answer.headers
        headers[SESSION_HEADER] = session_id
        headers[SEQUENCE_HEADER] = str(sequence)
        headers[STATUS_HEADER] = str(answer.status)
        return answer_with(200, headers, content)

    async def _agree(self, request: web.BaseRequest, peer: Peer, ends: Ends) -> web.Response:
        if request.method == "GET":
            return web.Response(body=self._sessions.public_key)
        if request.method != "POST":
            raise AuthorizationError("gateway.path_not_allowed", "no rule permits this method and path")
        message = await read_body(request.content, request.content_length, limits=self._setup.limits, most=MAX_MESSAGE)
        answer = self._sessions.begin(ends, message, initiator_key_hash=peer.sealing_key_hash)
        return web.Response(body=answer)

    def _require_node_key(self, request: web.BaseRequest, guest: _Guest) -> None:
        header = self._setup.node_key_header
        if header is None:
            return
        values = request.headers.getall(header, [])
        expected = (guest.node_key or "").encode()
        if len(values) != 1 or not expected or not hmac.compare_digest(values[0].encode(), expected):
            raise AuthorizationError("gateway.node_key", "not the node key that the peer's evidence names")

    async def _wait_admitted(self, guest: _Guest, peer: Peer) -> None:
        if guest.admitted:
            return
        loop = asyncio.get_running_loop()
        until = loop.time() + self._setup.admission_seconds
        while not self._setup.is_admitted(peer.site):
            if loop.time() >= until:
                raise UnavailableError("gateway.not_admitted", "the program does not know this site yet")
            await asyncio.sleep(_ADMISSION_POLL)
        guest.admitted = True


def _site(guest: _Guest) -> str:
    return "" if guest.peer is None else guest.peer.site


def run_gateway(
    setup: GatewaySetup, listen: socket, control: socket, *, socket_factory: SocketFactory | None = None
) -> None:
    """Serve until the shield closes its end of `control`; to be called in a forked child.

    Raises:
        ConfigError: `tls.identity`, `tls.authority` or `control.unknown`.
        EncodingError: `certificate.malformed` or `control.malformed`.
    """

    def make(line: Control) -> Gateway:
        gateway = Gateway(setup, listen, socket_factory=socket_factory)
        gateway.report = line.report
        return gateway

    run_service(make, _apply, control)


def _apply(gateway: Gateway, message: control_line.Message) -> None:
    match message["op"]:
        case "identity":
            gateway.update_identity(control_line.identity_update(message))
        case "leases":
            gateway.update_leases(control_line.lease_table(message))
        case "revoked":
            gateway.update_revoked(control_line.revocations(message))
        case other:
            raise ConfigError("control.unknown", "no such control message", actual=str(other)[:50])
