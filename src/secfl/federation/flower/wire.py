"""The protobuf-over-HTTP client that the executor and the supervisor use on loopback.

One persistent connection, one request at a time, no retries beyond a connection that the server closed while idle.
It replaces Flower's own HTTP client, which costs several times the processor time per request.
"""

from __future__ import annotations

import http.client
import ssl
import threading
from collections.abc import Mapping
from typing import TypeVar

from google.protobuf.message import DecodeError, Message  # type: ignore[import-untyped]

from secfl.errors import EngineError, UnavailableError

__all__ = ["Channel", "tls_context"]

_MEDIA_TYPE = "application/protobuf"
_TIMEOUT_SECONDS = 60.0
"""Loopback answers in milliseconds; this bounds a hang, not a slow request."""

_Response = TypeVar("_Response", bound=Message)


def tls_context(root_certificate: bytes) -> ssl.SSLContext:
    """Make a context that accepts only servers certified by the given root.

    Raises:
        EngineError: `engine.root_certificate`.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_verify_locations(cadata=root_certificate.decode("ascii"))
    except (ssl.SSLError, ValueError) as error:
        raise EngineError("engine.root_certificate", "the root certificate is not a PEM certificate") from error
    return context


class Channel:
    """A connection to one of Flower's APIs; safe to share between threads."""

    def __init__(self, host: str, port: int, tls: ssl.SSLContext | None, headers: Mapping[str, str]) -> None:
        self._host = host
        self._port = port
        self._tls = tls
        self._headers = {"content-type": _MEDIA_TYPE, "accept": _MEDIA_TYPE, **headers}
        self._lock = threading.Lock()
        self._connection: http.client.HTTPConnection | None = None

    def call(
        self, path: str, request: Message, response_type: type[_Response], headers: Mapping[str, str] | None = None
    ) -> _Response:
        """Send a request and parse the answer.

        Raises:
            EngineError: `engine.api_refused`, `engine.api_malformed`.
            UnavailableError: `engine.api_unreachable`.
        """
        body = request.SerializeToString(deterministic=True)
        with self._lock:
            status, content = self._exchange(path, body, {**self._headers, **(headers or {})})
        if status != http.HTTPStatus.OK:
            raise EngineError("engine.api_refused", f"Flower refused {path}", path=path, status=status)
        response: _Response = response_type()
        try:
            response.ParseFromString(content)
        except DecodeError as error:
            raise EngineError("engine.api_malformed", f"the answer to {path} is not the expected message") from error
        return response

    def close(self) -> None:
        """Close the connection."""
        with self._lock:
            self._drop()

    def _exchange(self, path: str, body: bytes, headers: Mapping[str, str]) -> tuple[int, bytes]:
        # An idle connection is closed by the server after some seconds; the request then fails before any answer.
        for attempt in (0, 1):
            fresh = self._connection is None
            try:
                connection = self._connection or self._connect()
                connection.request("POST", path, body=body, headers=dict(headers))
                response = connection.getresponse()
                return response.status, response.read()
            except (OSError, http.client.HTTPException) as error:
                self._drop()
                if fresh or attempt:
                    raise UnavailableError("engine.api_unreachable", "Flower does not answer on loopback") from error
        raise UnavailableError("engine.api_unreachable", "Flower does not answer on loopback")

    def _connect(self) -> http.client.HTTPConnection:
        connection: http.client.HTTPConnection
        if self._tls is None:
            connection = http.client.HTTPConnection(self._host, self._port, timeout=_TIMEOUT_SECONDS)
        else:
            connection = http.client.HTTPSConnection(
                self._host, self._port, timeout=_TIMEOUT_SECONDS, context=self._tls
            )
        self._connection = connection
        return connection

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
