"""A small study on loopback for network shield tests: a CA, attested enclaves, a gateway, sidecars, a program."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from typing import Any

import aiohttp
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from secfl.attestation.ear import AttestationResult
from secfl.attestation.result_certificate import issue_result, make_study_ca
from secfl.attestation.statement import Isolation, LaunchClaims
from secfl.crypto.hpke import SealingKey
from secfl.crypto.signing import SigningKey
from secfl.crypto.x509 import Authority, Usage, Validity, to_pem
from secfl.protocol.session import Ends, InitiatorSession, Offer
from secfl.shield.channel import ChannelSetup
from secfl.shield.gateway import Gateway, GatewaySetup
from secfl.shield.identity import Identity, PeerRules, attested_peers, client_context, node_key_header
from secfl.shield.listener import Limits
from secfl.shield.rules import Rules
from secfl.shield.sidecar import Sidecar, SidecarSetup

POLICY = hashlib.sha256(b"policy").digest()
STUDY = "heart"
HEADER = "flwr-public-key"


def new_node_key() -> str:
    """A SuperNode key's public half in OpenSSH form."""
    key = ec.generate_private_key(ec.SECP384R1()).public_key()
    return key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


@dataclass
class Enclave:
    """What one attested enclave holds."""

    identity: Identity
    sealing_key: SealingKey
    node_key: str
    site: str
    service: str
    tls: SigningKey

    @property
    def leaf(self) -> bytes:
        return self.identity.leaf_hash


@dataclass
class Study:
    """A study's CA and its enclaves."""

    ca: Authority = field(
        default_factory=lambda: make_study_ca(
            SigningKey.generate_p256(), study=STUDY, validity=Validity(int(time.time()) - 60, int(time.time()) + 7200)
        )
    )

    @property
    def ca_pem(self) -> bytes:
        return to_pem(self.ca.certificate)

    def enclave(
        self,
        service: str,
        *,
        site: str = "cleveland",
        lease: int = 600,
        policy: bytes = POLICY,
        node_key: str | None = None,
    ) -> Enclave:
        """Attest a new enclave."""
        sealing, node_key = SealingKey.generate(), node_key or new_node_key()
        return self._issue(service, site, lease, policy, SigningKey.generate_p256(), sealing, node_key)

    def renew(self, enclave: Enclave, *, lease: int = 600) -> Enclave:
        """Attest an enclave again, with the same keys."""
        return self._issue(
            enclave.service, enclave.site, lease, POLICY, enclave.tls, enclave.sealing_key, enclave.node_key
        )

    def _issue(
        self, service: str, site: str, lease: int, policy: bytes, tls: SigningKey, sealing: SealingKey, node_key: str
    ) -> Enclave:
        now = int(time.time())
        result = AttestationResult(
            trust_domain="simulated:" + "00" * 32,
            tee="tdx",
            measurement=b"\1" * 48,
            platform_id=b"\2" * 16,
            tcb_status="UpToDate",
            tolerated=(),
            evidence_digest=b"\3" * 32,
            vector={"hardware": 32},
            service=f"{STUDY}/{service}",
            node_id=site,
            deployment_id="11" * 16,
            policy_hash=policy,
            tls_spki_digest=hashlib.sha256(tls.public.spki).digest(),
            sealing_key_digest=hashlib.sha256(sealing.public).digest(),
            statement=LaunchClaims(isolation=Isolation.FULL, instance="i1", node_key=node_key),
            issued_at=now,
            expires_at=now + lease,
        )
        leaf = issue_result(self.ca, tls.public, result, dns=(f"{service}.{STUDY}.secfl",))
        return Enclave(Identity(to_pem(leaf), tls.to_pem()), sealing, node_key, site, service, tls)


def listening() -> socket.socket:
    """A listening socket on a free loopback port."""
    listen = socket.create_server(("127.0.0.1", 0), backlog=256)
    listen.settimeout(0)
    return listen


def address_of(listen: socket.socket) -> str:
    host, port = listen.getsockname()[:2]
    return f"{host}:{port}"


class Program:
    """The aggregator's program: echoes, and keeps messages for those who poll."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str, bytes]] = []
        self.headers: list[dict[str, str]] = []
        self.waiting = b""

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        body = await request.content.read()
        self.calls.append((request.method, request.raw_path, body))
        self.headers.append({key.lower(): value for key, value in request.headers.items()})
        if request.raw_path.endswith("/pull-messages"):
            content, self.waiting = self.waiting, b""
            return web.Response(body=content, content_type="application/protobuf")
        if request.raw_path.endswith("/missing"):
            return web.Response(status=404, body=b"no such thing")
        if request.raw_path.endswith("/redirect"):
            return web.Response(status=302, headers={"Location": "http://192.0.2.1/"})
        return web.Response(body=body[::-1], headers={"X-Program": "yes"})


@dataclass
class World:
    """A running gateway and program, and ways to reach them."""

    study: Study
    aggregator: Enclave
    trainer: Enclave
    program: Program
    gateway: Gateway
    setup: GatewaySetup
    address: str
    stack: contextlib.AsyncExitStack
    clock: list[float]
    events: list[dict[str, str]]

    async def sidecar(
        self,
        enclave: Enclave | None = None,
        *,
        gateway: str | None = None,
        limits: Limits | None = None,
        listen: socket.socket | None = None,
        program_tls: Identity | None = None,
    ) -> tuple[Sidecar, aiohttp.ClientSession]:
        """Start a sidecar for an enclave and give the program's client to it."""
        enclave = enclave or self.trainer
        setup = SidecarSetup(
            channel=ChannelSetup(
                gateway=gateway or self.address,
                sealing_key=enclave.sealing_key,
                study_ca=self.study.ca_pem,
                authenticate=attested_peers(self.study.ca.certificate, study=STUDY, usage=Usage.SERVER),
                peers=PeerRules(frozenset({"aggregator"}), POLICY),
                limits=limits or Limits(),
                clock=lambda: time.time() + self.clock[0],
            ),
            identity=enclave.identity,
            program_tls=program_tls,
        )
        listen = listen or listening()
        sidecar = Sidecar(setup, listen)
        self.stack.enter_context(background(sidecar.run()))
        client = aiohttp.ClientSession(
            base_url=f"http://{address_of(listen)}", headers={HEADER: node_key_header(enclave.node_key)}
        )
        await self.stack.enter_async_context(client)
        return sidecar, client

    async def intruder(
        self, enclave: Enclave | None = None, *, context: ssl.SSLContext | None = None
    ) -> aiohttp.ClientSession:
        """A client that speaks TLS to the gateway as this enclave, or under a context of its own."""
        enclave = enclave or self.trainer
        context = context or client_context(enclave.identity, self.study.ca_pem)
        client = aiohttp.ClientSession(
            base_url=f"https://{self.address}",
            connector=aiohttp.TCPConnector(ssl=context),
            headers={HEADER: node_key_header(enclave.node_key)},
        )
        return await self.stack.enter_async_context(client)

    async def session(self, client: aiohttp.ClientSession, enclave: Enclave | None = None) -> InitiatorSession:
        """Agree on a sealed session by hand."""
        enclave = enclave or self.trainer
        async with client.get("/.secfl/session") as response:
            key = await response.read()
        offer = Offer(
            enclave.sealing_key,
            Ends(enclave.leaf, self.aggregator.leaf),
            responder_key=key,
            responder_key_hash=hashlib.sha256(self.aggregator.sealing_key.public).digest(),
        )
        async with client.post("/.secfl/session", data=offer.message) as response:
            return offer.finish(await response.read())


@contextlib.contextmanager
def background(coroutine: Any) -> Any:
    """Run a service for the time of a block."""
    task = asyncio.get_running_loop().create_task(coroutine)
    try:
        yield task
    finally:
        task.cancel()


@contextlib.asynccontextmanager
async def world(**changes: Any) -> AsyncIterator[World]:
    """Start a study's aggregator behind its gateway; `changes` replace fields of the gateway's setup."""
    async with contextlib.AsyncExitStack() as stack:
        study, program = Study(), Program()
        aggregator, trainer = study.enclave("aggregator", site="hub"), study.enclave("trainer-cleveland")
        server = web.Server(program.handle)
        upstream = await asyncio.get_running_loop().create_server(server, sock=listening())
        stack.callback(upstream.close)
        clock = [0.0]
        setup = GatewaySetup(
            identity=aggregator.identity,
            sealing_key=aggregator.sealing_key,
            study_ca=study.ca_pem,
            authenticate=attested_peers(study.ca.certificate, study=STUDY, usage=Usage.CLIENT),
            peers=PeerRules(frozenset({"trainer-cleveland"}), POLICY),
            rules=Rules.parse(["POST /v1/fleet/*", "GET /health"], hold={"/v1/fleet/pull-messages": 2}),
            node_key_header=HEADER,
            upstream=address_of(upstream.sockets[0]),
            is_admitted=lambda _: True,
            clock=lambda: time.time() + clock[0],
        )
        setup = replace(setup, **changes)
        listen, events = listening(), list[dict[str, str]]()
        gateway = Gateway(setup, listen)
        gateway.report = lambda event, **values: events.append({"event": event, **values})
        stack.enter_context(background(gateway.run()))
        yield World(study, aggregator, trainer, program, gateway, setup, address_of(listen), stack, clock, events)


def run(scenario: Callable[[World], Any], **changes: Any) -> None:
    """Run a scenario in a world of its own, with a time limit."""

    async def play() -> None:
        async with asyncio.timeout(30), world(**changes) as built:
            await scenario(built)

    asyncio.run(play())


async def code_of(response: aiohttp.ClientResponse) -> str:
    """The stable code of a refusal."""
    return str(json.loads(await response.read())["error"]["code"])
