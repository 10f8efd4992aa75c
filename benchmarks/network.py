"""CPU time of a request through sidecar and gateway, beside the same request to the program directly.

Client, both proxies and the program share one process, so the CPU time is that of all of them; the difference between
two lines is the price of the network shield. The small body is a poll, the large one a chunk of a model.
"""

from __future__ import annotations

import asyncio
import io
import os
import time

import aiohttp

import network_world as nw
from benchmarks.result import Result, Table

__all__ = ["run"]

_CASES = ((200, 2000), (5 * 1024 * 1024, 30))
"""Body size in bytes, and requests."""


def run(*, quick: bool) -> Result:
    """Send requests of two sizes both ways, one after the other."""
    result = Result("network", __doc__ or "")
    rows = asyncio.run(_measure(10 if quick else 1))
    result.tables.append(Table("one request", ("", "CPU ms", "wall ms", "CPU / direct", "wall / direct"), rows))
    return result


async def _measure(divisor: int) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    async with nw.world() as world:
        _, shielded = await world.sidecar()
        async with aiohttp.ClientSession(base_url=f"http://{world.setup.upstream}") as direct:
            for size, count in _CASES:
                found = {}
                for name, client in (("direct", direct), ("shielded", shielded)):
                    await _load(client, os.urandom(size), 10)
                    found[name] = await _load(client, os.urandom(size), max(5, count // divisor))
                for name, (cpu, wall) in found.items():
                    base = found["direct"]
                    values = (cpu * 1e3, wall * 1e3, cpu / base[0], wall / base[1])
                    rows.append((f"{size} B, {name}", *(f"{value:.2f}" for value in values)))
    return rows


async def _load(client: aiohttp.ClientSession, body: bytes, count: int) -> tuple[float, float]:
    """CPU and wall seconds of one request."""
    cpu, wall = time.process_time(), time.perf_counter()
    for _ in range(count):
        async with client.post("/v1/fleet/x", data=io.BytesIO(body)) as response:
            await response.read()
    return (time.process_time() - cpu) / count, (time.perf_counter() - wall) / count
