"""Running a manager: opens what the configuration names, serves until told to stop, and closes in order."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import ssl
import time
from collections.abc import Callable
from pathlib import Path

from aiohttp import web

from secfl.crypto.x509 import to_pem
from secfl.errors import ConfigError
from secfl.manager.config import LaunchConfig
from secfl.manager.log import Log
from secfl.manager.opening import open_manager, store_key
from secfl.manager.sealed_store import SealedStore
from secfl.manager.sealer import AttesterSealer
from secfl.manager.server import application, tls_context
from secfl.manager.service import ManagerService, World
from secfl.manager.store import SqliteStore
from secfl.protocol.public import Founders
from secfl.tee.attester import Attester
from secfl.tee.pool import VerifierPool

__all__ = ["STORE_FILE", "serve", "serve_service"]

STORE_FILE = "manager.sqlite"
_SHUTDOWN_SECONDS = 5.0
"""How long running requests may take after the signal to stop."""


def serve(config: LaunchConfig, attester: Attester, *, ready: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT.

    Args:
        ready: called once with the address that is served.

    Raises:
        SecflError: the configuration, the store, the collateral or the platform does not serve.
    """
    _listen(config.listen)
    directory = Path(config.state_dir)
    if not directory.is_dir():
        raise ConfigError("launch.state_dir", "the state directory does not exist", path=config.state_dir)
    file = SqliteStore(directory / STORE_FILE)
    sealer = AttesterSealer(attester)
    store = SealedStore(file, sealer)
    try:
        founders = Founders(founders=config.founders)
        manager = open_manager(store, sealer, founders, now=int(time.time()), random=os.urandom)
        with VerifierPool(config.verifier_processes) as verifier:
            world = World(
                store=store,
                attester=attester,
                verifier=verifier,
                trust_path=Path(config.collateral),
                fresh_log=lambda: Log(*store_key(store, sealer)),
            )
            service = ManagerService(manager, world)
            identity = manager.state.identity
            tls = tls_context(to_pem(identity.public.certificate), identity.tls_key.to_pem())
            # What the start made stays: the collector need not go through it again and again.
            gc.freeze()
            asyncio.run(_until_signal(service, tls, config.listen, ready))
    finally:
        file.close()


async def serve_service(
    service: ManagerService, tls: ssl.SSLContext, address: str, ready: Callable[[str], None], stop: asyncio.Event
) -> None:
    """Serve until `stop` is set.

    Args:
        address: `host:port`; port 0 takes a free one.
        ready: called with the address that is served.

    Raises:
        ConfigError: `launch.listen`.
        SecflError: as `ManagerService.start`.
    """
    await service.start()
    host, port = _listen(address)
    runner = web.AppRunner(application(service), access_log=None, shutdown_timeout=_SHUTDOWN_SECONDS)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port, ssl_context=tls, reuse_address=True)
        try:
            await site.start()
        except OSError as error:
            raise ConfigError("launch.listen", f"cannot listen: {error.strerror}", address=address) from error
        ready("{}:{}".format(*runner.addresses[0][:2]))
        await stop.wait()
    finally:
        await runner.cleanup()


async def _until_signal(
    service: ManagerService, tls: ssl.SSLContext, address: str, ready: Callable[[str], None]
) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        # As PID 1 of its namespace the process has no default action for either.
        loop.add_signal_handler(number, stop.set)
    await serve_service(service, tls, address, ready, stop)


def _listen(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ConfigError("launch.listen", "the address to listen on is written address:port", address=address[:100])
    return host, int(port)
