"""The edge: HTTPS to the state machine and back.

It knows the route table, sizes, TLS and how long to wait; it decides nothing. An error becomes an answer here and
nowhere else. An answer leaves only when the entries that it rests on are on the disk.
"""

from __future__ import annotations

import logging
import os
import ssl
from collections.abc import Awaitable, Callable
from typing import Protocol

from aiohttp import web

from secfl.errors import ConfigError, EncodingError, SecflError
from secfl.protocol.failure import encode_failure
from secfl.protocol.routes import ROUTES, Route

__all__ = ["Backend", "application", "tls_context"]

_LOG = logging.getLogger(__name__)


class Backend(Protocol):
    """Whoever answers requests."""

    async def answer(self, route: Route, body: bytes) -> tuple[int, bytes]:
        """Give status and body for one request."""


def application(backend: Backend) -> web.Application:
    """Make the web application: exactly the routes of the table."""
    app = web.Application(client_max_size=max(route.limit for route in ROUTES), middlewares=[_json_errors])
    for route in ROUTES:
        app.router.add_route(route.method, route.path, _handler(backend, route))
    return app


def tls_context(certificate: bytes, key: bytes) -> ssl.SSLContext:
    """Make the server's TLS context: TLS 1.3 only, no tickets, so that every connection is a full handshake.

    Args:
        certificate: PEM.
        key: PEM.

    Raises:
        ConfigError: `tls.identity`.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_COMPRESSION
    context.num_tickets = 0
    context.set_alpn_protocols(["http/1.1"])
    # `ssl` reads key files only; an anonymous memory file never touches a file system.
    descriptor = os.memfd_create("identity", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, key + b"\n" + certificate)
        context.load_cert_chain(f"/proc/self/fd/{descriptor}", password="")
    except (ssl.SSLError, OSError) as error:
        raise ConfigError("tls.identity", "the certificate and key cannot be loaded") from error
    finally:
        os.close(descriptor)
    return context


def _handler(backend: Backend, route: Route) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def handle(request: web.Request) -> web.Response:
        body = await _body(request, route)
        return _response(*await backend.answer(route, body))

    return handle


async def _body(request: web.Request, route: Route) -> bytes:
    length = request.content_length
    if length is None and request.method == "POST":
        raise EncodingError("request.length", "the length of the body must be stated")
    if length is not None and length > route.limit:
        raise EncodingError("request.too_large", "the body is too large", expected=route.limit, actual=length)
    return await request.read()


@web.middleware
async def _json_errors(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    try:
        return await handler(request)
    except SecflError as error:
        return _response(*encode_failure(error))
    except web.HTTPException as error:
        # Unknown paths and methods, in the one form that all refusals have.
        refused = EncodingError("route.unknown", "there is no such operation")
        return _response(error.status, encode_failure(refused)[1])
    except Exception as error:  # noqa: BLE001 - the outermost edge; the text may hold a secret and stays here
        _LOG.error("internal error in %s: %s", request.path, type(error).__name__)
        return _response(*encode_failure(error))


def _response(status: int, body: bytes) -> web.Response:
    return web.Response(status=status, body=body, content_type="application/json")
