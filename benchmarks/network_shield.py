"""CPU time of a request through sidecar and gateway, against the same request to the program directly.

Run: `PYTHONPATH=tests .venv/bin/python benchmarks/network_shield.py`. Client, both proxies and the program share one
process, so the CPU time is that of all of them; the difference between the two lines is the price of the shield.
"""

from __future__ import annotations

import asyncio
import io
import os
import time

import aiohttp

import network_world as nw

CASES = ((200, 2000), (5 * 1024 * 1024, 30))
"""Body size in bytes, and requests: a poll, and a chunk of a model in each direction."""


async def main() -> None:
    async with nw.world() as world:
        _, shielded = await world.sidecar()
        async with aiohttp.ClientSession(base_url=f"http://{world.setup.upstream}") as direct:
            for size, count in CASES:
                for name, client in (("direct", direct), ("shielded", shielded)):
                    await load(client, os.urandom(size), 10)
                    cpu, wall = time.process_time(), time.perf_counter()
                    await load(client, os.urandom(size), count)
                    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
                    print(f"{size:>8} B {name:<9} {cpu / count * 1e3:7.2f} ms CPU {wall / count * 1e3:7.2f} ms wall")


async def load(client: aiohttp.ClientSession, body: bytes, count: int) -> None:
    for _ in range(count):
        async with client.post("/v1/fleet/x", data=io.BytesIO(body)) as response:
            await response.read()


if __name__ == "__main__":
    asyncio.run(main())
