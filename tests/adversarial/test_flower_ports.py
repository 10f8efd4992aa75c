"""An unmodified SuperLink behind the gateway: what it would do for anybody, and what each role can still reach."""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from flwr.proto import control_pb2, fleet_pb2, runtime_pb2
from flwr.proto.node_pb2 import Node
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

import network_world as nw
from secfl.crypto.signing import SigningKey
from secfl.crypto.x509 import Authority, LeafProfile, Usage, Validity, issue_leaf, make_ca, to_pem
from secfl.federation.flower.control import Control
from secfl.federation.flower.runtime import Endpoint
from secfl.shield.identity import Identity, client_context
from secfl.shield.rules import Rules

pytestmark = pytest.mark.slow

PROTOBUF = {"Content-Type": "application/protobuf"}
PROBES = [
    ("GET", "/docs", b""),
    ("GET", "/openapi.json", b""),
    ("GET", "/health", b""),
    ("POST", "/v1/control/register-node", control_pb2.RegisterNodeRequest(public_key=b"x").SerializeToString()),
    ("POST", "/v1/control/start-run", control_pb2.StartRunRequest().SerializeToString()),
    ("POST", "/v1/control/list-nodes", control_pb2.ListNodesRequest().SerializeToString()),
    ("POST", "/v1/runtime/acquire-task", runtime_pb2.AcquireTaskRequest().SerializeToString()),
    ("POST", "/v1/runtime/pull-task-input", b""),
    ("POST", "/v1/fleet/register-node", fleet_pb2.RegisterNodeFleetRequest().SerializeToString()),
]


@dataclass
class SuperLink:
    """A running SuperLink and the keys of its private network."""

    port: int
    ca: Authority
    world: nw.World
    node_key: ec.EllipticCurvePrivateKey

    @property
    def ca_pem(self) -> bytes:
        return to_pem(self.ca.certificate)

    def direct(self) -> ssl.SSLContext:
        return ssl.create_default_context(cadata=self.ca_pem.decode())


def loopback_leaf(ca: Authority) -> Identity:
    key = SigningKey.generate_p256()
    validity = Validity(int(time.time()) - 60, int(time.time()) + 3600)
    profile = LeafProfile("localhost", validity, ("localhost",), ("127.0.0.1",), frozenset({Usage.SERVER}))
    return Identity(to_pem(issue_leaf(ca, key.public, profile)), key.to_pem())


@contextlib.asynccontextmanager
async def superlink(directory: Path) -> AsyncIterator[SuperLink]:
    """Start `flower-superlink` as the supervisor does, and a gateway before it."""
    validity = Validity(int(time.time()) - 60, int(time.time()) + 3600)
    ca = make_ca(SigningKey.generate_p256(), name="loopback", validity=validity)
    leaf = loopback_leaf(ca)
    files = {"ca.pem": to_pem(ca.certificate), "server.pem": leaf.certificate, "server.key": leaf.key}
    for name, content in {**files, "secret": os.urandom(32)}.items():
        (directory / name).write_bytes(content)
    with nw.listening() as free:
        port = int(free.getsockname()[1])
    program = Path(sys.executable).with_name("flower-superlink")
    arguments = ["--ssl-ca-certfile", "ca.pem", "--ssl-certfile", "server.pem", "--ssl-keyfile", "server.key"]
    arguments += ["--host", "127.0.0.1", "--port", str(port), "--isolation", "process", "--enable-supernode-auth"]
    arguments += ["--superexec-auth-secret-file", "secret", "--disable-runtime-dependency-installation"]
    environment = {"PATH": os.environ["PATH"], "FLWR_HOME": str(directory / "home"), "FLWR_TELEMETRY_ENABLED": "0"}
    environment["FLWR_DISABLE_UPDATE_CHECK"] = "1"
    process = await asyncio.create_subprocess_exec(
        program, *arguments, cwd=directory, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        async with nw.world(
            upstream=f"127.0.0.1:{port}",
            upstream_ca=to_pem(ca.certificate),
            rules=Rules.parse(
                ["POST /v1/fleet/activate-node", "POST /v1/fleet/pull-messages"],
                hold={"/v1/fleet/pull-messages": 2},
            ),
        ) as world:
            node_key = ec.generate_private_key(ec.SECP384R1())
            public = node_key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
            world.trainer = world.study.enclave("trainer-cleveland", node_key=public)
            running = SuperLink(port, ca, world, node_key)
            endpoint = Endpoint("127.0.0.1", port, running.direct(), "flwr")
            control = Control(endpoint)
            await asyncio.to_thread(control.wait_ready)
            pem = node_key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
            await asyncio.to_thread(control.register, pem)
            yield running
    finally:
        process.kill()
        await process.wait()


def fleet_client(link: SuperLink, address: str, key: ec.EllipticCurvePrivateKey) -> FleetHttpClient:
    """The very client of a SuperNode."""
    return FleetHttpClient.from_server_address(
        address,
        insecure=False,
        root_certificates=link.ca_pem,
        interceptors=[NodeAuthHttpInterceptor(key, key.public_key())],
    )


def test_fl_27_only_the_fleet_api_of_the_own_node_is_reachable(tmp_path: Path) -> None:
    """A SuperNode's own client works through the shield; control, runtime, documentation and other keys do not."""

    async def scenario() -> None:
        async with asyncio.timeout(100), superlink(tmp_path) as link:
            listen = nw.listening()
            leaf = loopback_leaf(link.ca)
            await link.world.sidecar(listen=listen, program_tls=leaf)
            await supernode_is_served(link, nw.address_of(listen))
            await trainer_program_is_refused(link, nw.address_of(listen))
            await attested_trainer_is_refused(link)
            await stranger_is_refused(link)
            await without_the_gateway_it_would_be_open(link)

    asyncio.run(scenario())


async def supernode_is_served(link: SuperLink, address: str) -> None:
    with fleet_client(link, address, link.node_key) as client:
        key = link.node_key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        request = fleet_pb2.ActivateNodeRequest(public_key=key, heartbeat_interval=30)
        node = (await asyncio.to_thread(client.ActivateNode, request)).node_id
        started = time.monotonic()
        pull = fleet_pb2.PullMessagesRequest(node=Node(node_id=node))
        answer = await asyncio.to_thread(client.PullMessages, pull)
        # An empty answer of this engine really is an empty body: it was held.
        assert not answer.messages_list
        assert time.monotonic() - started > 1
    other = ec.generate_private_key(ec.SECP384R1())
    with fleet_client(link, address, other) as client, pytest.raises(httpx.HTTPStatusError) as caught:
        await asyncio.to_thread(client.PullMessages, pull)
    assert caught.value.response.status_code == 403
    assert "gateway.node_key" in caught.value.response.text


async def trainer_program_is_refused(link: SuperLink, address: str) -> None:
    connector = aiohttp.TCPConnector(ssl=link.direct())
    async with aiohttp.ClientSession(connector=connector, headers=PROTOBUF) as client:
        for method, path, body in PROBES:
            async with client.request(method, f"https://{address}{path}", data=body) as response:
                assert (response.status, await nw.code_of(response)) == (403, "gateway.path_not_allowed"), path


async def attested_trainer_is_refused(link: SuperLink) -> None:
    """Even with the enclave's own keys, by hand."""
    client = await link.world.intruder()
    session = await link.world.session(client)
    for method, path, body in PROBES:
        sequence, sealed = session.seal_request(method, path, body)
        headers = {"secfl-session": session.session_id, "secfl-sequence": str(sequence), **PROTOBUF}
        async with client.request(method, path, data=sealed, headers=headers) as response:
            assert (response.status, await nw.code_of(response)) == (403, "gateway.path_not_allowed"), path


async def stranger_is_refused(link: SuperLink) -> None:
    """With the program's own CA, which is no secret, and with a certificate of another study."""
    stranger = nw.Study().enclave("trainer-cleveland")
    for context in (link.direct(), client_context(stranger.identity, link.world.study.ca_pem)):
        context.check_hostname = False
        context.load_verify_locations(cadata=link.world.study.ca_pem.decode())
        client = await link.world.intruder(context=context)
        for method, path, body in PROBES:
            with pytest.raises((aiohttp.ClientError, OSError)):
                await client.request(method, path, data=body)


async def without_the_gateway_it_would_be_open(link: SuperLink) -> None:
    """The probes are real: whoever reaches the port itself reads the documentation and registers a key."""
    connector = aiohttp.TCPConnector(ssl=link.direct())
    async with aiohttp.ClientSession(connector=connector, headers=PROTOBUF) as client:
        base = f"https://127.0.0.1:{link.port}"
        async with client.get(f"{base}/openapi.json") as response:
            assert response.status == 200
        key = ec.generate_private_key(ec.SECP384R1()).public_key()
        pem = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        body = control_pb2.RegisterNodeRequest(public_key=pem).SerializeToString()
        async with client.post(f"{base}/v1/control/register-node", data=body) as response:
            assert response.status == 200
