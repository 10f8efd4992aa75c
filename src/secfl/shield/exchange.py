"""One HTTP exchange as a proxy sees it: which headers pass, how a body is read within limits, how a refusal looks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import TYPE_CHECKING

from aiohttp import StreamReader, web
from multidict import CIMultiDict

from secfl.crypto import strict_json
from secfl.errors import EncodingError, FreshnessError, SecflError, UnavailableError

if TYPE_CHECKING:
    from secfl.shield.listener import Limits

__all__ = [
    "SEQUENCE_HEADER",
    "SESSION_HEADER",
    "SESSION_PATH",
    "STATUS_HEADER",
    "answer_with",
    "content",
    "passing_headers",
    "read_body",
    "refusal",
    "refusal_response",
    "require_plain_request",
]

SESSION_HEADER = "secfl-session"
SEQUENCE_HEADER = "secfl-sequence"
STATUS_HEADER = "secfl-status"
"""The program's own status: the outer answer is always 200 when it is sealed, so that each status has a body."""
SESSION_PATH = "/.secfl/session"
"""Where the ends agree on a session; no rule can cover it."""

_HOP_BY_HOP = frozenset(
    {
        "connection",
        "content-length",
        "expect",
        "forwarded",
        "host",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
_PRIVATE = ("secfl-", "x-forwarded-")
_CHUNK = 256 * 1024
_LARGE = 512 * 1024
_STATUS = {
    "gateway.body_too_large": 413,
    "gateway.length_required": 411,
    "gateway.too_slow": 408,
    "peer.lease_lapsed": 403,
    "session.replayed": 403,
}


def passing_headers(raw: Iterable[tuple[bytes, bytes]]) -> CIMultiDict[str]:
    """The end-to-end headers; those of one hop, of proxies and our own stay behind.

    Raises:
        EncodingError: `gateway.malformed_header`.
    """
    result: CIMultiDict[str] = CIMultiDict()
    named: set[str] = set()
    try:
        for name, value in raw:
            key, text = name.decode("ascii").lower(), value.decode("latin-1")
            if key == "connection":
                named.update(part.strip().lower() for part in text.split(","))
            if key not in _HOP_BY_HOP and not key.startswith(_PRIVATE):
                result.add(key, text)
    except UnicodeDecodeError as error:
        raise EncodingError("gateway.malformed_header", "a header name is not ASCII") from error
    for key in named:
        result.popall(key, None)
    return result


def require_plain_request(request: web.BaseRequest) -> None:
    """Refuse protocol changes: behind an upgrade there are no rules any more (NW-13).

    Raises:
        EncodingError: `gateway.upgrade_refused`.
    """
    if "upgrade" in request.headers or "http2-settings" in request.headers:
        raise EncodingError("gateway.upgrade_refused", "protocol upgrades are not forwarded")


async def read_body(content: StreamReader, length: int | None, *, limits: Limits, most: int | None = None) -> bytes:
    """Read a body within the limits of size and time.

    Args:
        length: what the header announces, when it does.
        most: largest body, when it is not the one in `limits`.

    Raises:
        EncodingError: `gateway.body_too_large` or `gateway.too_slow`.
    """
    limit = limits.body if most is None else most
    if length is not None and length > limit:
        raise EncodingError("gateway.body_too_large", "the body is too large", expected=limit, actual=length)
    start = asyncio.get_running_loop().time() + limits.body_seconds
    parts: list[bytes] = []
    received = 0
    try:
        async with asyncio.timeout_at(start) as deadline:
            while part := await content.readany():
                received += len(part)
                if received > limit:
                    raise EncodingError("gateway.body_too_large", "the body is too large", expected=limit)
                parts.append(part)
                deadline.reschedule(start + received / limits.body_rate)
    except TimeoutError as error:
        raise EncodingError("gateway.too_slow", "the body does not arrive") from error
    return parts[0] if len(parts) == 1 else b"".join(parts)


def content(body: bytes) -> bytes | AsyncIterator[memoryview]:
    """A body for a message whose header states the length; a large one in pieces, so that writing waits."""
    return _pieces(body) if len(body) > _LARGE else body


async def _pieces(body: bytes) -> AsyncIterator[memoryview]:
    view = memoryview(body)
    for start in range(0, len(view), _CHUNK):
        yield view[start : start + _CHUNK]


def answer_with(status: int, headers: CIMultiDict[str], body: bytes) -> web.Response:
    """The response that passes an answer on."""
    headers["Content-Length"] = str(len(body))
    return web.Response(status=status, headers=headers, body=content(body))


def refusal(error: SecflError) -> web.Response:
    """The answer to a request that SECFL itself refuses."""
    status = _STATUS.get(error.code, error.http_status)
    response = refusal_response(status, error.code, error.message)
    if isinstance(error, UnavailableError):
        response.headers["Retry-After"] = "1"
    if isinstance(error, EncodingError | FreshnessError):
        # What follows on such a connection is not worth parsing.
        response.force_close()
    return response


def refusal_response(status: int, code: str, message: str) -> web.Response:
    """A refusal as canonical JSON."""
    body = strict_json.encode({"error": {"code": code, "message": message}})
    return web.Response(status=status, body=body, content_type="application/json")
