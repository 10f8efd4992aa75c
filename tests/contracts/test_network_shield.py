"""The network shield end to end on loopback: program's client, sidecar, gateway, program's server."""

from __future__ import annotations

import os

import network_world as nw


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
