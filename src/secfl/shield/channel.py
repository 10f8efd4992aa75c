"""The sidecar's channel to one gateway: attested mTLS, and the sealed session over it.

A channel belongs to one identity of ours and one certificate of the gateway. When either changes, or the gateway's
lease ends, a new channel is made and the old one ends with its last exchange. There is no way to send a body outside a
sealed session, nor a request over a connection whose peer was not checked in its handshake (NW-01, NW-02, NW-05).
"""

from __future__ import annotations

import asyncio
import hashlib
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import aiohttp
from multidict import CIMultiDict
from yarl import URL

from secfl.crypto import strict_json
from secfl.crypto.hpke import SealingKey
from secfl.errors import EncodingError, FreshnessError, SecflError, UnavailableError, VerificationError
from secfl.protocol.session import OVERHEAD_BYTES, Ends, InitiatorSession, Offer
from secfl.shield.exchange import SEQUENCE_HEADER, SESSION_HEADER, SESSION_PATH
from secfl.shield.identity import (
    Authenticate,
    Identity,
    Peer,
    PeerRules,
    checking_context,
    client_context,
    require_channel,
)
from secfl.shield.listener import Limits
from secfl.shield.upstream import Answer, SocketFactory, client_session, send

__all__ = ["Channel", "ChannelSetup"]

_POOL_SECONDS = 30
"""Shorter than the gateway's idle time, so that it is us who close."""
_POOL_SIZE = 12
"""Connections at a time, below what a gateway grants one peer, so that a renewal has room beside the old ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelSetup:
    """The way to one gateway.

    Attributes:
        gateway: `address:port` of the gateway; untrusted.
        sealing_key: the enclave's attested HPKE key.
        study_ca: PEM of the CA that issues the gateway's certificate.
        authenticate: the check of the gateway's certificate.
        peers: what the gateway must be.
        limits: bounds of one exchange.
        clock: Unix time.
    """

    gateway: str
    sealing_key: SealingKey
    study_ca: bytes
    authenticate: Authenticate
    peers: PeerRules
    limits: Limits = field(default_factory=Limits)
    clock: Callable[[], float] = time.time


class Channel:
    """Connections to one gateway under one identity."""

    def __init__(self, setup: ChannelSetup, identity: Identity, *, socket_factory: SocketFactory | None = None) -> None:
        """Prepare; nothing is sent yet.

        Raises:
            ConfigError: `tls.identity` or `tls.authority`.
            EncodingError: `certificate.malformed`.
        """
        self._setup = setup
        self._own_leaf = identity.leaf_hash
        context = checking_context(client_context(identity, setup.study_ca), self._check)
        connector = aiohttp.TCPConnector(
            limit=_POOL_SIZE,
            ssl=context,
            keepalive_timeout=_POOL_SECONDS,
            use_dns_cache=False,
            socket_factory=socket_factory,
        )
        self._client = client_session(connector, setup.limits)
        self._base = f"https://{setup.gateway}"
        self._leaf = b""
        self._peer: Peer | None = None
        self._session: InitiatorSession | None = None
        self._agreeing = asyncio.Lock()
        self._refused: SecflError | None = None
        self._users = 0
        self.stale = False
        """Whether a new channel is due; exchanges under way still end here."""

    @property
    def usable(self) -> bool:
        """Whether a request may start here now: the gateway's lease runs and the session has room."""
        lapsed = self._peer is not None and self._setup.clock() >= self._peer.lease_until
        exhausted = self._session is not None and self._session.exhausted
        return not (self.stale or lapsed or exhausted)

    async def request(self, method: str, target: str, headers: CIMultiDict[str], body: bytes) -> Answer:
        """Exchange one request for the program's answer, or for the gateway's refusal.

        Raises:
            UnavailableError: `sidecar.gateway_unavailable`; the request may be tried again.
            VerificationError, AuthorizationError, FreshnessError: the gateway is not the attested one.
            EncodingError: `session.malformed` or a limit's code.
        """
        self._users += 1
        try:
            session = self._session or await self._agree()
            return await self._sealed(session, method, target, headers=headers, body=body)
        except (OSError, aiohttp.ClientError) as error:
            raise self._translate(error) from error
        finally:
            self._users -= 1
            if self.stale and self._users == 0:
                await self._client.close()

    async def retire(self) -> None:
        """Take no new request; close when the last one is done."""
        self.stale = True
        if self._users == 0:
            await self._client.close()

    async def close(self) -> None:
        """Close all connections."""
        self.stale = True
        await self._client.close()

    def _check(self, channel: ssl.SSLObject) -> None:
        try:
            certificate = require_channel(channel)
            now = self._setup.clock()
            peer = self._setup.peers.admit(self._setup.authenticate(certificate, int(now)), now)
        except SecflError as error:
            self._refused = error
            raise
        leaf = hashlib.sha256(certificate).digest()
        if self._leaf and leaf != self._leaf:
            # The gateway renewed its certificate, or somebody else answers: agree anew with whoever it is.
            self.stale = True
            self._refused = FreshnessError("sidecar.gateway_renewed", "the gateway shows another certificate")
            raise self._refused
        self._leaf, self._peer = leaf, peer

    async def _agree(self) -> InitiatorSession:
        async with self._agreeing:
            if self._session is not None:
                return self._session
            # 1. The gateway's sealing key, believed only if its attestation result names it.
            key = await self._plain("GET", b"")
            if self._peer is None:
                raise VerificationError("tls.no_certificate", "the gateway's certificate was not checked")
            # 2. A secret from each end, sealed to the other's attested key.
            offer = Offer(
                self._setup.sealing_key,
                Ends(self._own_leaf, self._leaf),
                responder_key=key,
                responder_key_hash=self._peer.sealing_key_hash,
            )
            self._session = offer.finish(await self._plain("POST", offer.message))
            return self._session

    async def _plain(self, method: str, body: bytes) -> bytes:
        """One message of the agreement; these are sealed in themselves."""
        url = URL(self._base + SESSION_PATH, encoded=True)
        headers: CIMultiDict[str] = CIMultiDict()
        answer = await send(self._client, method, url, headers=headers, body=body, limits=self._setup.limits)
        if answer.status != 200:
            self.stale = True
            raise UnavailableError("sidecar.refused", f"the gateway refuses this enclave: {_code(answer.body)}")
        return answer.body

    async def _sealed(
        self, session: InitiatorSession, method: str, target: str, *, headers: CIMultiDict[str], body: bytes
    ) -> Answer:
        sequence, sealed = session.seal_request(method, target, body)
        try:
            headers = CIMultiDict(headers)
            headers[SESSION_HEADER] = session.session_id
            headers[SEQUENCE_HEADER] = str(sequence)
            url = URL(self._base + target, encoded=True)
            answer = await send(self._client, method, url, headers=headers, body=sealed, limits=self._setup.limits)
            if answer.status != 200:
                return self._refusal(answer)
            status = _inner_status(answer)
            return Answer(status, answer.headers, session.open_response(sequence, status, answer.body))
        finally:
            session.forget(sequence)

    def _refusal(self, answer: Answer) -> Answer:
        code = _code(answer.body)
        if code == "session.unknown":
            # The gateway was restarted; it has not looked at the request.
            self.stale = True
            raise FreshnessError("sidecar.session_lost", "the gateway does not know the session")
        if code.startswith(("peer.", "session.", "tls.")):
            # A matter between the two ends, which a renewed lease may settle: the program is to try again.
            raise UnavailableError("sidecar.refused", f"the gateway refuses this enclave: {code}")
        return answer

    def _translate(self, error: Exception) -> SecflError:
        # Only while connecting is it certain that nothing was sent; later failures are the program's to repeat.
        if isinstance(error, aiohttp.ClientConnectorError | aiohttp.ClientConnectorCertificateError):
            refused, self._refused = self._refused, None
            if refused is not None:
                return refused
        return UnavailableError("sidecar.gateway_unavailable", "the gateway does not answer", kind=type(error).__name__)


def _inner_status(answer: Answer) -> int:
    text = answer.inner_status or ""
    if len(text) != 3 or not text.isdecimal() or not 200 <= int(text) <= 599 or len(answer.body) < OVERHEAD_BYTES:
        raise EncodingError("session.malformed", "the answer is not sealed")
    return int(text)


def _code(body: bytes) -> str:
    try:
        value = strict_json.decode(body, max_bytes=4096)["error"]["code"]
    except (EncodingError, KeyError, TypeError):
        return "unreadable"
    return str(value)[:100]
