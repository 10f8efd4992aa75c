"""The network shield end to end on loopback: program's client, sidecar, gateway, program's server."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import replace

import aiohttp
import pytest

import network_world as nw
from secfl.errors import ConfigError, EncodingError
from secfl.shield import control
from secfl.shield.control import control_line
from secfl.shield.gateway import GatewaySetup, run_gateway
from secfl.shield.identity import Identity, node_key_header, pinned_client_context, server_context
from secfl.shield.listener import Limits
from secfl.shield.rules import Rules
from secfl.shield.sidecar import SidecarSetup, run_sidecar


def test_a_request_passes_unchanged_in_both_directions() -> None:
    """Method, path, body, status and headers arrive as they were sent, large bodies included."""

    async def scenario(world: nw.World) -> None:
        _, client = await world.sidecar()
        for body in (b"", b"hello", os.urandom(5_000_000)):
            async with client.post("/v1/fleet/push-object", data=body) as response:
                assert response.status == 200
                assert response.headers["X-Program"] == "yes"
                assert await response.read() == body[::-1]
            assert world.program.calls[-1] == ("POST", "/v1/fleet/push-object", body)
        async with client.post("/v1/fleet/missing") as response:
            assert (response.status, await response.read()) == (404, b"no such thing")
        assert not any(name.startswith("secfl-") for name in world.program.headers[-1])

    nw.run(scenario)


def test_a_chunked_request_passes() -> None:
    """A client inside that does not know its length in advance is served as well."""

    async def scenario(world: nw.World) -> None:
        _, client = await world.sidecar()

        async def pieces() -> object:
            for _ in range(3):
                yield b"abc"

        async with client.post("/v1/fleet/x", data=pieces()) as response:
            assert await response.read() == b"cbacbacba"

    nw.run(scenario)


def test_parallel_requests_share_a_session() -> None:
    """Requests that overtake each other on several connections all arrive."""

    async def scenario(world: nw.World) -> None:
        _, client = await world.sidecar()

        async def one(number: int) -> bytes:
            async with client.post("/v1/fleet/x", data=b"%03d" % number) as response:
                return await response.read()

        answers = await asyncio.gather(*(one(number) for number in range(60)))
        assert answers == [(b"%03d" % number)[::-1] for number in range(60)]

    nw.run(scenario)


def test_headers_of_one_hop_and_of_proxies_stop_at_the_shield() -> None:
    """The program sees only end-to-end headers, and not what a client claims about its origin."""

    async def scenario(world: nw.World) -> None:
        _, client = await world.sidecar()
        headers = {
            "Connection": "keep-alive, X-Mine",
            "X-Mine": "1",
            "X-Forwarded-For": "192.0.2.1",
            "Secfl-Session": "0" * 32,
            "Te": "trailers",
            "X-Kept": "2",
        }
        async with client.post("/v1/fleet/x", headers=headers) as response:
            assert response.status == 200
        seen = world.program.headers[-1]
        assert seen["x-kept"] == "2"
        assert not {"x-mine", "x-forwarded-for", "secfl-session", "te"} & set(seen)

    nw.run(scenario)


def test_an_empty_answer_is_held_until_something_is_there() -> None:
    """The client gets the message as soon as it exists, without asking again."""

    async def scenario(world: nw.World) -> None:
        _, client = await world.sidecar()

        async def later() -> None:
            await asyncio.sleep(0.3)
            world.program.waiting = b"work"

        started = time.monotonic()
        with nw.background(later()):
            async with client.post("/v1/fleet/pull-messages", data=b"me") as response:
                assert await response.read() == b"work"
        assert 0.25 < time.monotonic() - started < 1.2
        assert all(call == ("POST", "/v1/fleet/pull-messages", b"me") for call in world.program.calls)
        assert 3 < len(world.program.calls) < 15

    nw.run(scenario)


def test_a_hold_ends_with_the_empty_answer_after_its_time() -> None:
    """A client is not kept longer than the rule says."""

    async def scenario(world: nw.World) -> None:
        _, client = await world.sidecar()
        started = time.monotonic()
        async with client.post("/v1/fleet/pull-messages") as response:
            assert (response.status, await response.read()) == (200, b"")
        assert 0.5 < time.monotonic() - started < 2

    nw.run(scenario, rules=Rules.parse(["POST /v1/fleet/*"], hold={"/v1/fleet/pull-messages": 1}))


def test_a_held_request_is_repeated_when_the_program_says_so() -> None:
    """With a signal of the program, nobody polls in between."""
    signal = [0]

    async def scenario(world: nw.World) -> None:
        _, client = await world.sidecar()

        async def later() -> None:
            await asyncio.sleep(0.3)
            assert len(world.program.calls) == 1
            world.program.waiting = b"work"
            signal[0] = 1

        with nw.background(later()):
            async with client.post("/v1/fleet/pull-messages") as response:
                assert await response.read() == b"work"
        assert len(world.program.calls) == 2

    nw.run(scenario, pending=lambda: signal[0])


def test_an_answer_lingers_as_the_rule_says() -> None:
    """A client that polls at fixed steps meets a program that is done."""

    async def scenario(world: nw.World) -> None:
        _, client = await world.sidecar()
        started = time.monotonic()
        async with client.post("/v1/fleet/x", data=b"ab") as response:
            assert await response.read() == b"ba"
        assert time.monotonic() - started >= 0.15

    nw.run(scenario, rules=Rules.parse(["POST /v1/fleet/*"], linger={"/v1/fleet/x": 150}))


def test_a_client_that_leaves_ends_its_hold() -> None:
    """Nobody polls for a client that is gone, which would lose its messages."""

    async def scenario(world: nw.World) -> None:
        client = await world.intruder()
        session = await world.session(client)
        sequence, sealed = session.seal_request("POST", "/v1/fleet/pull-messages", b"")
        headers = {"secfl-session": session.session_id, "secfl-sequence": str(sequence)}
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await client.post("/v1/fleet/pull-messages", data=sealed, headers=headers)
        await asyncio.sleep(0.1)
        before = len(world.program.calls)
        await asyncio.sleep(0.4)
        assert len(world.program.calls) == before

    nw.run(scenario)


def test_a_first_request_waits_until_the_program_knows_the_site() -> None:
    """A trainer that is faster than its registration is not turned away."""
    known: set[str] = set()

    async def scenario(world: nw.World) -> None:
        _, client = await world.sidecar()

        async def register() -> None:
            await asyncio.sleep(0.2)
            assert world.program.calls == []
            known.add("cleveland")

        with nw.background(register()):
            async with client.post("/v1/fleet/x", data=b"ab") as response:
                assert await response.read() == b"ba"

    nw.run(scenario, is_admitted=known.__contains__)


def test_a_site_that_stays_unknown_is_told_to_come_back() -> None:
    """The wait has an end, and the answer is worth a retry."""

    async def scenario(world: nw.World) -> None:
        _, client = await world.sidecar()
        async with client.post("/v1/fleet/x") as response:
            assert (response.status, await nw.code_of(response)) == (503, "gateway.not_admitted")
        assert world.program.calls == []

    nw.run(scenario, is_admitted=lambda _: False, admission_seconds=0.2)


def test_renewed_certificates_are_used_without_a_pause() -> None:
    """Both ends change their certificates while requests go on."""

    async def scenario(world: nw.World) -> None:
        sidecar, client = await world.sidecar()

        async def ask() -> None:
            async with client.post("/v1/fleet/x", data=b"ab") as response:
                assert await response.read() == b"ba"

        await ask()
        sidecar.update_identity(world.study.renew(world.trainer).identity)
        await ask()
        world.gateway.update_identity(world.study.renew(world.aggregator).identity)
        await ask()
        sidecar.update_identity(world.study.renew(world.trainer).identity)
        await asyncio.gather(*(ask() for _ in range(20)))
        await ask()

    nw.run(scenario)


def test_a_restarted_gateway_is_met_with_a_new_session() -> None:
    """A session that the gateway lost costs one more round trip, nothing else."""

    async def scenario(world: nw.World) -> None:
        _, client = await world.sidecar()
        for _ in range(2):
            async with client.post("/v1/fleet/x", data=b"ab") as response:
                assert await response.read() == b"ba"
            world.gateway._sessions.drop(world.trainer.leaf)

    nw.run(scenario)


def test_a_program_that_is_down_is_an_outage() -> None:
    """The client inside learns that a retry is worth it."""

    async def scenario(world: nw.World) -> None:
        _, client = await world.sidecar()
        async with client.post("/v1/fleet/x") as response:
            assert (response.status, await nw.code_of(response)) == (503, "gateway.upstream_unavailable")

    nw.run(scenario, upstream="127.0.0.1:1")


def test_a_gateway_that_is_down_is_an_outage() -> None:
    """The sidecar has no other way and says so."""

    async def scenario(world: nw.World) -> None:
        _, client = await world.sidecar(gateway="127.0.0.1:1")
        async with client.post("/v1/fleet/x") as response:
            assert (response.status, await nw.code_of(response)) == (503, "sidecar.gateway_unavailable")

    nw.run(scenario)


def test_a_later_lease_from_the_manager_keeps_a_connection() -> None:
    """A peer that the manager reports as renewed is served on."""

    async def scenario(world: nw.World) -> None:
        _, client = await world.sidecar()
        name = (world.trainer.site, world.trainer.node_key)
        world.gateway.update_leases({name: int(time.time()) + 3000})
        async with client.post("/v1/fleet/x") as response:
            assert response.status == 200
        world.gateway._setup = replace(world.setup, clock=lambda: time.time() + 1000)
        await asyncio.sleep(0.4)
        async with client.post("/v1/fleet/x") as response:
            assert response.status == 200

    nw.run(scenario)


@pytest.mark.parametrize("part", ["certificate", "key"])
def test_an_unreadable_identity_is_a_config_error(part: str) -> None:
    """Without certificate and key nothing starts."""
    study = nw.Study()
    good = study.enclave("aggregator").identity
    parts = {"certificate": good.certificate, "key": good.key, part: b"nonsense"}
    with pytest.raises(ConfigError) as caught:
        server_context(Identity(**parts), study.ca_pem)
    assert caught.value.code == "tls.identity"


@pytest.mark.parametrize("authority", [b"", b"nonsense", b"\xff"])
def test_an_unreadable_authority_is_a_config_error(authority: bytes) -> None:
    """Without a pinned authority nothing connects."""
    with pytest.raises(ConfigError) as caught:
        pinned_client_context(authority)
    assert caught.value.code == "tls.authority"


def test_a_forked_gateway_obeys_its_control_line_and_ends_with_it() -> None:
    """The child reports that it is ready, takes updates, and stops when the shield is gone."""

    async def scenario(world: nw.World) -> None:
        ours, theirs = socket.socketpair()
        listen = nw.listening()
        setup = replace(world.setup, limits=Limits(), is_admitted=_everybody, clock=time.time)
        child = multiprocessing.get_context("fork").Process(target=_child, args=(setup, listen, theirs, ours))
        child.start()
        theirs.close()
        reader, writer = await asyncio.open_unix_connection(sock=ours)
        assert json.loads(await reader.readline()) == {"event": "ready"}
        _, client = await world.sidecar(gateway=nw.address_of(listen))
        async with client.post("/v1/fleet/x", data=b"ab") as response:
            assert await response.read() == b"ba"
        peer = {"site": world.trainer.site, "node_key": world.trainer.node_key}
        writer.write(control_line("revoked", peers=[peer]))
        assert json.loads(await reader.readline()) == {
            "event": "peer_dropped",
            "code": "peer.revoked",
            "site": "cleveland",
        }
        async with client.post("/v1/fleet/x") as response:
            assert response.status == 503
        writer.close()
        await asyncio.to_thread(child.join, 5)
        assert child.exitcode == 0

    nw.run(scenario)


def test_a_forked_sidecar_takes_a_renewed_certificate_and_refuses_other_orders() -> None:
    """What is no known message of the shield ends the process: nothing goes on half-configured."""

    async def scenario(world: nw.World) -> None:
        ours, theirs = socket.socketpair()
        listen = nw.listening()
        sidecar, _ = await world.sidecar()
        setup = replace(sidecar._setup, channel=replace(sidecar._setup.channel, clock=time.time))
        child = multiprocessing.get_context("fork").Process(target=_sidecar_child, args=(setup, listen, theirs, ours))
        child.start()
        theirs.close()
        reader, writer = await asyncio.open_unix_connection(sock=ours)
        await reader.readline()
        renewed = world.study.renew(world.trainer).identity
        writer.write(control_line("identity", certificate=renewed.certificate.decode(), key=renewed.key.decode()))
        headers = {nw.HEADER: node_key_header(world.trainer.node_key)}
        async with (
            aiohttp.ClientSession(f"http://{nw.address_of(listen)}", headers=headers) as client,
            client.post("/v1/fleet/x", data=b"ab") as response,
        ):
            assert await response.read() == b"ba"
        writer.write(control_line("leases", peers=[]))
        await asyncio.to_thread(child.join, 5)
        assert child.exitcode == 17
        writer.close()

    nw.run(scenario)


def _sidecar_child(setup: SidecarSetup, listen: socket.socket, control: socket.socket, other: socket.socket) -> None:
    other.close()
    try:
        run_sidecar(setup, listen, control)
    except ConfigError as error:
        sys.exit(error.exit_code)


@pytest.mark.parametrize(
    ("line", "read"),
    [
        ({"op": "identity", "certificate": "x"}, control.identity_update),
        ({"op": "identity", "certificate": "x", "key": 1}, control.identity_update),
        ({"op": "leases"}, control.lease_table),
        ({"op": "leases", "peers": [{"site": "a", "node_key": "k", "lease_until": "1"}]}, control.lease_table),
        ({"op": "leases", "peers": [{"site": "a", "node_key": "k"}]}, control.lease_table),
        ({"op": "revoked", "peers": [{"site": "a"}]}, control.revocations),
        ({"op": "revoked", "peers": [{"site": 1, "node_key": "k"}]}, control.revocations),
        ({"op": "revoked", "peers": {}}, control.revocations),
    ],
)
def test_a_malformed_control_message_is_an_encoding_error(line: dict[str, object], read: Callable[..., object]) -> None:
    """Each message has one form."""
    with pytest.raises(EncodingError) as caught:
        read(line)
    assert caught.value.code == "control.malformed"


def _everybody(_: str) -> bool:
    return True


def _child(setup: GatewaySetup, listen: socket.socket, control: socket.socket, other: socket.socket) -> None:
    other.close()
    run_gateway(setup, listen, control)
