"""Attacks on the network between attested enclaves."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from yarl import URL

import network_world as nw
from secfl.crypto.hpke import SealingKey
from secfl.shield.gateway import Gateway
from secfl.shield.identity import PeerRules, client_context, node_key_header
from secfl.shield.listener import Limits

QUICK = Limits(header_seconds=0.4, handshake_seconds=0.4, body_seconds=0.4, body_rate=10**9, handshakes=20)


async def refused_in_handshake(world: nw.World, context: ssl.SSLContext) -> None:
    """TLS 1.3 clients learn of a refusal with their first read, so a request is tried as well."""
    client = await world.intruder(context=context)
    with pytest.raises((aiohttp.ClientError, OSError)):
        await client.get("/health")
    assert world.program.calls == []


def anonymous(world: nw.World) -> ssl.SSLContext:
    context = ssl.create_default_context(cadata=world.study.ca_pem.decode())
    context.check_hostname = False
    return context


def test_nw_01_a_client_without_a_certificate_is_refused() -> None:
    """TLS alone opens nothing."""
    nw.run(lambda world: refused_in_handshake(world, anonymous(world)))


def test_nw_01_tls_1_2_is_refused() -> None:
    """An attested client that speaks an older protocol is refused too."""

    async def scenario(world: nw.World) -> None:
        context = client_context(world.trainer.identity, world.study.ca_pem)
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_2
        await refused_in_handshake(world, context)

    nw.run(scenario)


def test_nw_01_plain_http_is_refused() -> None:
    """Nothing is answered without TLS."""

    async def scenario(world: nw.World) -> None:
        host, port = world.address.split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            assert b"HTTP" not in await reader.read()
        writer.close()

    nw.run(scenario)


def test_nw_02_a_certificate_of_another_authority_is_refused() -> None:
    """The same service of another study, or of anybody's CA, is a stranger."""

    async def scenario(world: nw.World) -> None:
        other = nw.Study().enclave("trainer-cleveland")
        await refused_in_handshake(world, client_context(other.identity, world.study.ca_pem))

    nw.run(scenario)


def test_nw_02_the_sidecar_sends_nothing_to_a_gateway_of_another_authority() -> None:
    """A gateway that only the operator vouches for gets no request."""

    async def scenario(world: nw.World) -> None:
        async with nw.world() as false:
            _, client = await world.sidecar(gateway=false.address)
            async with client.post("/v1/fleet/x", data=b"secret") as response:
                assert (response.status, await nw.code_of(response)) == (503, "sidecar.gateway_unavailable")
            assert false.program.calls == []

    nw.run(scenario)


@pytest.mark.parametrize(
    ("service", "policy", "code"),
    [
        ("trainer-cleveland", nw.POLICY, "peer.service_not_listed"),
        ("aggregator", b"\0" * 32, "peer.policy_differs"),
    ],
)
def test_nw_15_the_sidecar_sends_nothing_to_another_service_or_policy(service: str, policy: bytes, code: str) -> None:
    """The same measurement under the attacker's policy at the victim's address gets no request."""

    async def scenario(world: nw.World) -> None:
        world.gateway.update_identity(world.study.enclave(service, policy=policy).identity)
        _, client = await world.sidecar()
        async with client.post("/v1/fleet/x", data=b"secret") as response:
            assert response.status == 503
            assert code in (await response.read()).decode()
        assert world.program.calls == []

    nw.run(scenario)


@pytest.mark.parametrize(
    ("service", "policy", "code"),
    [
        ("trainer-hungarian", nw.POLICY, "peer.service_not_listed"),
        ("aggregator", nw.POLICY, "peer.service_not_listed"),
        ("trainer-cleveland", b"\0" * 32, "peer.policy_differs"),
    ],
)
def test_nw_15_a_peer_of_another_service_or_policy_is_refused(service: str, policy: bytes, code: str) -> None:
    """A certificate of the study's CA is not enough."""

    async def scenario(world: nw.World) -> None:
        client = await world.intruder(world.study.enclave(service, policy=policy))
        async with client.get("/health") as response:
            assert (response.status, await nw.code_of(response)) == (403, code)

    nw.run(scenario)


def test_nw_04_a_tls_session_cannot_be_resumed() -> None:
    """No ticket is issued, so each connection shows a certificate anew."""

    async def scenario(world: nw.World) -> None:
        host, port = world.address.split(":")
        context = client_context(world.trainer.identity, world.study.ca_pem)
        reader, writer = await asyncio.open_connection(host, int(port), ssl=context)
        writer.write(b"GET /.secfl/session HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await reader.read(100)).startswith(b"HTTP/1.1 200")
        channel = writer.get_extra_info("ssl_object")
        assert channel.version() == "TLSv1.3"
        assert channel.session is None or not channel.session.has_ticket
        writer.close()

    nw.run(scenario)


def test_nw_05_without_the_attested_gateway_nothing_leaves_in_plaintext(monkeypatch: pytest.MonkeyPatch) -> None:
    """A listener without TLS at the gateway's address, and proxies in the environment, see no byte of a body."""
    captured = bytearray()

    async def capture(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            captured.extend(await reader.read(65536))
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        writer.close()

    async def scenario(world: nw.World) -> None:
        server = await asyncio.start_server(capture, "127.0.0.1", 0)
        address = nw.address_of(server.sockets[0])
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "https_proxy"):
            monkeypatch.setenv(name, f"http://{address}")
        _, client = await world.sidecar(gateway=address)
        async with client.post("/v1/fleet/x", data=b"canary-5e1f") as response:
            assert response.status == 503
        assert captured
        assert b"canary" not in captured
        assert b"HTTP" not in captured
        before = len(captured)
        _, client = await world.sidecar()
        async with client.post("/v1/fleet/x", data=b"canary-5e1f") as response:
            assert response.status == 200
        assert len(captured) == before
        server.close()

    nw.run(scenario)


def test_nw_05_what_crosses_the_wire_shows_no_body() -> None:
    """Even inside TLS the body is sealed: an end of TLS that is not the attested one reads nothing."""

    async def scenario(world: nw.World) -> None:
        client = await world.intruder()
        session = await world.session(client)
        sequence, sealed = session.seal_request("POST", "/v1/fleet/x", b"canary-77")
        assert b"canary" not in sealed
        headers = {"secfl-session": session.session_id, "secfl-sequence": str(sequence)}
        async with client.post("/v1/fleet/x", data=sealed, headers=headers) as response:
            content = await response.read()
        assert b"yranac"[::-1] not in content
        assert b"yranac" not in content
        assert session.open_response(sequence, 200, content) == b"canary-77"[::-1]

    nw.run(scenario)


@pytest.mark.parametrize(
    ("headers", "code"),
    [({}, "session.required"), ({"secfl-session": "0" * 32}, "session.required")]
    + [({"secfl-session": "0" * 32, "secfl-sequence": number}, "session.malformed") for number in ("", "-1", "01", "x")]
    + [({"secfl-session": "../x", "secfl-sequence": "0"}, "session.malformed")]
    + [({"secfl-session": "0" * 32, "secfl-sequence": "0"}, "session.unknown")],
)
def test_nw_05_a_body_outside_a_session_is_refused(headers: dict[str, str], code: str) -> None:
    """There is no unsealed mode."""

    async def scenario(world: nw.World) -> None:
        client = await world.intruder()
        async with client.post("/v1/fleet/x", data=b"plain", headers=headers) as response:
            assert response.status in (400, 403)
            assert await nw.code_of(response) == code
        assert world.program.calls == []

    nw.run(scenario)


@pytest.mark.parametrize("attack", ["tampered", "replayed", "moved", "renumbered", "foreign", "delayed"])
def test_nw_07_a_sealed_body_that_is_changed_or_repeated_is_refused(attack: str) -> None:
    """Bit flips, replays, another path, number or session, and what lies behind the window, never reach the program."""

    async def scenario(world: nw.World) -> None:
        client = await world.intruder()
        session = await world.session(client)
        sequence, sealed = session.seal_request("POST", "/v1/fleet/x", b"model")
        session_id, path, expected = session.session_id, "/v1/fleet/x", "crypto.open_failed"
        if attack in ("replayed", "delayed"):
            expected = "session.replayed"
            newest = (sequence, sealed)
            for _ in range(300 if attack == "delayed" else 0):
                newest = session.seal_request("POST", "/v1/fleet/x", b"model")
            await post(client, session_id, path, newest, 200)
        elif attack == "tampered":
            sealed = bytes([sealed[0] ^ 1]) + sealed[1:]
        elif attack == "moved":
            path = "/v1/fleet/y"
        elif attack == "renumbered":
            sequence += 1
        else:
            session_id = (await world.session(client)).session_id
        calls = len(world.program.calls)
        await post(client, session_id, path, (sequence, sealed), 403, expected)
        assert len(world.program.calls) == calls

    nw.run(scenario)


def test_nw_07_a_session_of_another_peer_is_unknown() -> None:
    """A captured request is worth nothing to another attested enclave, nor on a renewed certificate."""

    async def scenario(world: nw.World) -> None:
        client = await world.intruder()
        session = await world.session(client)
        request = session.seal_request("POST", "/v1/fleet/x", b"model")
        other = await world.intruder(world.study.enclave("trainer-cleveland"))
        await post(other, session.session_id, "/v1/fleet/x", request, 403, "session.unknown")
        await post(client, session.session_id, "/v1/fleet/x", request, 200)

    nw.run(scenario)


async def post(
    client: aiohttp.ClientSession, session_id: str, path: str, request: tuple[int, bytes], status: int, code: str = ""
) -> None:
    headers = {"secfl-session": session_id, "secfl-sequence": str(request[0])}
    async with client.post(path, data=request[1], headers=headers) as response:
        assert response.status == status
        if code:
            assert await nw.code_of(response) == code


def test_nw_10_silent_and_slow_clients_are_cut_while_others_are_served() -> None:
    """Connections that never finish TLS, header or body end by their deadlines; beyond the bound the oldest go."""

    async def scenario(world: nw.World) -> None:
        host, port = world.address.split(":")
        half_open = [await asyncio.open_connection(host, int(port)) for _ in range(60)]
        trickle = client_context(world.trainer.identity, world.study.ca_pem)
        slow = [await asyncio.open_connection(host, int(port), ssl=trickle) for _ in range(2)]
        slow[0][1].write(b"POST /v1/fleet/x HT")
        _, client = await world.sidecar()
        async with client.post("/v1/fleet/x", data=b"ab") as response:
            assert await response.read() == b"ba"
        async with asyncio.timeout(3):
            for reader, writer in [*half_open, *slow]:
                with contextlib.suppress(ConnectionError):
                    assert await reader.read() == b""
                writer.close()

    nw.run(scenario, limits=QUICK)


def test_nw_10_a_body_that_does_not_arrive_is_answered_with_408() -> None:
    """A sender below the least rate is told so and cut."""

    async def scenario(world: nw.World) -> None:
        client = await world.intruder()
        session = await world.session(client)
        sequence, _ = session.seal_request("POST", "/v1/fleet/x", b"model")
        head = (
            f"POST /v1/fleet/x HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n"
            f"{nw.HEADER}: {node_key_header(world.trainer.node_key)}\r\n"
            f"secfl-session: {session.session_id}\r\nsecfl-sequence: {sequence}\r\n\r\nabc"
        )
        answer = await raw(world, head.encode())
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b'"gateway.too_slow"' in answer

    nw.run(scenario, limits=QUICK)


def test_nw_10_a_peer_that_does_not_take_its_answer_is_cut() -> None:
    """An answer that nobody reads does not hold its memory for ever."""

    async def scenario(world: nw.World) -> None:
        client = await world.intruder()
        session = await world.session(client)
        sequence, sealed = session.seal_request("POST", "/v1/fleet/x", os.urandom(20_000_000))
        head = (
            f"POST /v1/fleet/x HTTP/1.1\r\nHost: x\r\nContent-Length: {len(sealed)}\r\n"
            f"{nw.HEADER}: {node_key_header(world.trainer.node_key)}\r\n"
            f"secfl-session: {session.session_id}\r\nsecfl-sequence: {sequence}\r\n\r\n"
        )
        host, port = world.address.split(":")
        context = client_context(world.trainer.identity, world.study.ca_pem)
        reader, writer = await asyncio.open_connection(host, int(port), ssl=context)
        writer.write(head.encode() + sealed)
        assert (await reader.read(12)) == b"HTTP/1.1 200"
        await asyncio.sleep(1)
        received = 0
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            while part := await reader.read(1 << 20):
                received += len(part)
        assert received < 20_000_000
        writer.close()

    nw.run(scenario, limits=Limits(body_seconds=0.4))


async def raw(world: nw.World, data: bytes) -> bytes:
    """Send bytes over an attested connection and read until the gateway closes it."""
    host, port = world.address.split(":")
    context = client_context(world.trainer.identity, world.study.ca_pem)
    reader, writer = await asyncio.open_connection(host, int(port), ssl=context)
    writer.write(data)
    try:
        return await reader.read()
    finally:
        writer.close()


def test_nw_10_a_body_beyond_the_limit_is_answered_with_413() -> None:
    """The size is refused by its announcement, or as soon as it is exceeded."""

    async def scenario(world: nw.World) -> None:
        client = await world.intruder()
        session = await world.session(client)
        await post(client, session.session_id, "/v1/fleet/x", (0, b"x" * 2000), 413, "gateway.body_too_large")
        _, inside = await world.sidecar(limits=Limits(body=1000))

        async def pieces() -> object:
            for _ in range(30):
                yield b"x" * 100

        async with inside.post("/v1/fleet/x", data=pieces()) as response:
            assert (response.status, await nw.code_of(response)) == (413, "gateway.body_too_large")
        assert world.program.calls == []

    nw.run(scenario, limits=Limits(body=1000))


def test_nw_10_connections_of_one_peer_are_bounded() -> None:
    """One peer cannot take the connections of all."""

    async def scenario(world: nw.World) -> None:
        host, port = world.address.split(":")
        context = client_context(world.trainer.identity, world.study.ca_pem)
        opened = [await asyncio.open_connection(host, int(port), ssl=context) for _ in range(6)]
        await asyncio.sleep(0.1)
        assert len(world.gateway._listener.connections) == 4
        assert {event["code"] for event in world.events} == {"gateway.too_many_connections"}
        for _, writer in opened:
            writer.close()

    nw.run(scenario, limits=Limits(peer_connections=4))


@pytest.mark.parametrize(
    "head",
    [
        b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        b"GET /health HTTP/1.1\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMA\r\n\r\n",
        b"CONNECT 127.0.0.1:8000 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET http://127.0.0.1:8000/docs HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /docs HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST /v1/control/start-run HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n",
        b"POST /v1/runtime/pull-task HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n",
        b"POST /v1/fleet/../control/start-run HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n",
        b"POST /v1/fleet/%2e%2e/control/start-run HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n",
        b"POST /v1/fleet/x HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"TRACE /health HTTP/1.1\r\nHost: x\r\n\r\n",
        b"HEAD /health HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
)
def test_nw_13_routes_and_protocols_outside_the_rules_are_refused(head: bytes) -> None:
    """Streams, debug pages, tunnels and smuggled requests end at the gateway, even for an attested peer."""

    async def scenario(world: nw.World) -> None:
        async with asyncio.timeout(5):
            key = f"\r\n{nw.HEADER}: {node_key_header(world.trainer.node_key)}\r\nConnection: close\r\n".encode()
            answer = await raw(world, head if b"Upgrade" in head else head.replace(b"\r\n", key, 1))
        assert answer.split(b" ")[1][:1] == b"4"
        assert world.program.calls == []

    nw.run(scenario, limits=Limits(idle_seconds=1))


@pytest.mark.parametrize("target", ["/v1/control/start-run", "/docs", "/v1/fleet/../x", "/v1/fleet/%2e%2e/x"])
def test_nw_13_the_sidecar_forwards_no_crooked_path(target: str) -> None:
    """The program inside the trainer cannot reach past the rules either."""

    async def scenario(world: nw.World) -> None:
        _, client = await world.sidecar()
        url = URL(str(client._base_url).rstrip("/") + target, encoded=True)
        async with aiohttp.ClientSession() as plain, plain.post(url, headers=client.headers) as response:
            assert response.status in (400, 403)
        assert world.program.calls == []

    nw.run(scenario)


@pytest.mark.parametrize("value", ["other", "missing", "twice", "empty"])
def test_fl_27_a_request_in_the_name_of_another_node_is_refused(value: str) -> None:
    """The engine's node key must be the one in the peer's evidence, exactly once."""

    async def scenario(world: nw.World) -> None:
        _, client = await world.sidecar()
        right = node_key_header(world.trainer.node_key)
        headers = {
            "other": [node_key_header(nw.new_node_key())],
            "missing": [],
            "twice": [right, node_key_header(nw.new_node_key())],
            "empty": [""],
        }[value]
        del client.headers[nw.HEADER]
        async with client.post("/v1/fleet/x", headers=[(nw.HEADER, one) for one in headers]) as response:
            assert (response.status, await nw.code_of(response)) == (403, "gateway.node_key")
        assert world.program.calls == []

    nw.run(scenario)


@pytest.mark.parametrize("reason", ["lapsed", "revoked", "withdrawn"])
def test_fl_27_a_peer_that_lapses_or_is_revoked_loses_its_live_connections(reason: str) -> None:
    """A held request ends within a second, and the next one is refused at the door."""

    async def scenario(world: nw.World) -> None:
        sidecar, client = await world.sidecar()
        async with client.post("/v1/fleet/x") as response:
            assert response.status == 200
        held = asyncio.get_running_loop().create_task(client.post("/v1/fleet/pull-messages").__aenter__())
        await asyncio.sleep(0.1)
        started = time.monotonic()
        name = (world.trainer.site, world.trainer.node_key)
        if reason == "lapsed":
            world.clock[0] = 700
        elif reason == "revoked":
            world.gateway.update_revoked(frozenset({name}))
        else:
            world.gateway.update_leases({name: int(time.time()) + 600})
            world.gateway.update_leases({})
        assert (await held).status == 503
        assert time.monotonic() - started < 1
        calls = len(world.program.calls)
        async with client.post("/v1/fleet/x") as response:
            assert response.status == 503
        assert len(world.program.calls) == calls
        assert world.events[0]["code"] == ("peer.lease_lapsed" if reason == "lapsed" else "peer.revoked")
        if reason == "withdrawn":
            world.gateway.update_leases({name: int(time.time()) + 600})
            async with client.post("/v1/fleet/x") as response:
                assert response.status == 200
        assert sidecar is not None

    nw.run(scenario)


def test_fl_27_without_listed_peers_nobody_is_served() -> None:
    """An empty list of services allows nobody."""

    async def scenario(world: nw.World) -> None:
        client = await world.intruder()
        async with client.get("/health") as response:
            assert (response.status, await nw.code_of(response)) == (403, "peer.service_not_listed")

    nw.run(scenario, peers=PeerRules(frozenset(), nw.POLICY))


def test_nw_05_the_tls_key_is_in_no_file(tmp_path: Path) -> None:
    """Loading an identity leaves nothing behind on a file system."""
    before = set(os.listdir("/tmp")), len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    study = nw.Study()
    client_context(study.enclave("aggregator").identity, study.ca_pem)
    assert len(os.listdir("/proc/self/fd")) == before[1]  # noqa: PTH208
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_nw_16_certificates_that_run_out_are_renewed_before_or_end_in_a_clear_error() -> None:
    """Traffic crosses the expiry of a renewed certificate; without renewal nothing more reaches the program."""

    async def scenario(world: nw.World) -> None:
        short = world.study.enclave("trainer-cleveland", lease=2)
        forgetful = world.study.enclave("trainer-cleveland", site="hungarian", lease=2)
        sidecar, client = await world.sidecar(short)
        _, other = await world.sidecar(forgetful)
        until = asyncio.get_running_loop().time() + 3
        async with other.post("/v1/fleet/x", data=b"ab") as response:
            assert response.status == 200
        sidecar.update_identity(world.study.renew(short).identity)
        while asyncio.get_running_loop().time() < until:
            async with client.post("/v1/fleet/x", data=b"ab") as response:
                assert await response.read() == b"ba"
            await asyncio.sleep(0.1)
        calls = len(world.program.calls)
        async with other.post("/v1/fleet/x", data=b"ab") as response:
            assert (response.status, await nw.code_of(response)) == (503, "sidecar.gateway_unavailable")
        assert len(world.program.calls) == calls

    nw.run(scenario)


@pytest.mark.slow
def test_nw_16_a_gateway_whose_certificate_ran_out_gets_nothing() -> None:
    """The sidecar stops by itself when the gateway's lease ends, on live connections too."""

    async def scenario(world: nw.World) -> None:
        world.gateway.update_identity(world.study.renew(world.aggregator, lease=2).identity)
        _, client = await world.sidecar()
        async with client.post("/v1/fleet/x", data=b"ab") as response:
            assert response.status == 200
        calls = len(world.program.calls)
        await asyncio.sleep(2.2)
        async with client.post("/v1/fleet/x", data=b"ab") as response:
            assert (response.status, await nw.code_of(response)) == (503, "sidecar.gateway_unavailable")
        assert len(world.program.calls) == calls

    nw.run(scenario)


def test_nw_02_a_gateway_with_another_sealing_key_than_attested_gets_nothing() -> None:
    """Whoever ends TLS with an attested leaf but does not hold the attested sealing key gets no session."""

    async def scenario(world: nw.World) -> None:
        world.gateway.update_identity(world.study.enclave("aggregator").identity)
        _, client = await world.sidecar()
        async with client.post("/v1/fleet/x", data=b"ab") as response:
            assert response.status == 503
            assert "session.sealing_key" in (await response.read()).decode()
        assert world.program.calls == []

    nw.run(scenario)


def test_nw_02_a_trainer_with_another_sealing_key_than_attested_gets_no_session() -> None:
    """The gateway seals its secret only to the key in the peer's attestation result."""

    async def scenario(world: nw.World) -> None:
        mixed = replace(world.trainer, sealing_key=SealingKey.generate())
        _, client = await world.sidecar(mixed)
        async with client.post("/v1/fleet/x", data=b"ab") as response:
            assert response.status == 503
            assert "session.sealing_key" in (await response.read()).decode()
        assert world.program.calls == []

    nw.run(scenario)


def test_nw_05_the_program_is_reached_only_through_the_given_sockets() -> None:
    """The gateway makes no socket of its own towards the program: one of its own would be outside the namespace."""

    async def scenario(world: nw.World) -> None:
        made: list[object] = []

        def factory(address: Any) -> socket.socket:
            made.append(address)
            return socket.socket(address[0], address[1])

        listen = nw.listening()
        gateway = Gateway(world.setup, listen, socket_factory=factory)
        world.stack.enter_context(nw.background(gateway.run()))
        _, client = await world.sidecar(gateway=nw.address_of(listen))
        async with client.post("/v1/fleet/x", data=b"ab") as response:
            assert response.status == 200
        assert len(made) == 1

    nw.run(scenario)
